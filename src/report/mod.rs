//! What a person sees: a document becomes pages (`page`), which `text`, `markdown` and `html` render. Renderers never compute.
#![cfg_attr(not(feature = "cli"), allow(dead_code, reason = "some pages are of the program's own documents"))]

pub mod chart;
pub mod html;
#[cfg(feature = "cli")]
pub mod live;
#[cfg(feature = "cli")]
pub mod markdown;
pub mod page;
#[cfg(feature = "cli")]
pub mod read;
pub mod table;
#[cfg(feature = "cli")]
pub mod text;
