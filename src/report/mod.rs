//! Rendering: the same tables as text, Markdown and HTML, and reports with charts. Renderers never compute.

pub mod bench;
pub mod bar;
pub mod chart;
pub mod html;
pub mod page;
pub mod plan;
pub mod rules;
pub mod checkup;
pub mod devices;
pub mod doctor;
pub mod inspection;
pub mod live;
pub mod measurement;
pub mod sweep;
pub mod svg;
pub mod table;
pub mod tune;
pub mod validation;
