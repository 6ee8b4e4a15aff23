//! Rendering: the same tables as text and Markdown. Renderers never compute.

pub mod bar;
pub mod chart;
pub mod plan;
pub mod rules;
pub mod checkup;
pub mod devices;
pub mod inspection;
pub mod measurement;
pub mod number;
pub mod sweep;
pub mod table;
pub mod tune;
