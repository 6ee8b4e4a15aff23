//! What a person sees: a document becomes pages (`page`), which `text`, `markdown` and `html` render. Renderers never compute.

pub mod chart;
pub mod html;
pub mod live;
pub mod markdown;
pub mod page;
pub mod read;
pub mod table;
pub mod text;
