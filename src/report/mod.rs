//! Rendering: the same tables as text and Markdown. Renderers never compute.
