//! Pages as one self-contained document: nothing is fetched, it reads without script, in light, dark and on paper.
//!
//! Text is escaped by type: `maud` writes markup only where this module does. What reorders or hides text is spelled out in
//! the finished page, so that no field can be forgotten.

#[cfg(test)]
mod tests;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{self, Chart, Figure};
use super::page::{Block, Item, KeyFigure, Page, Report, Verdict, WhatIf};
use super::table::{Align, Table};
use crate::escape;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("what-if.js");
/// The hash of [`SCRIPT`], the only script that the page's policy lets run.
const SCRIPT_HASH: &str = "sha256-BzvIDFne4zSKw4Uf07oZ14gBNf7ekQyAW+B8FMY3x7M=";

/// A table of more rows is folded: it is there to look something up.
const LONG: usize = 60;

pub fn report(report: &Report) -> String {
    let has_script =
        report.pages.iter().flat_map(|page| &page.parts).any(|part| matches!(part.block, Block::WhatIf(_)));
    let scripts = if has_script { format!("script-src '{SCRIPT_HASH}'") } else { "script-src 'none'".to_string() };
    let policy =
        format!("default-src 'none'; style-src 'unsafe-inline'; {scripts}; base-uri 'none'; form-action 'none'");
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content=(concat!("moeplan ", env!("CARGO_PKG_VERSION")));
                title { (report.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (chart::definitions())
                div.page {
                    header {
                        p.brand { "moeplan" }
                        h1 { (report.title) }
                        @if !report.about.is_empty() { p.subtitle { (report.about) } }
                        @if report.pages.len() > 1 { (contents(report)) }
                    }
                    main { @for (at, page) in report.pages.iter().enumerate() { (section(report, page, at)) } }
                    footer { "Written by moeplan " (env!("CARGO_PKG_VERSION")) ". Predictions and measurements are marked as what they are." }
                }
                @if has_script { script { (PreEscaped(SCRIPT)) } }
            }
        }
    };
    spelled_out(&markup.into_string())
}

/// The first curves of the report as a picture (SVG) of their own; `None` where it has none.
pub fn picture(report: &Report) -> Option<String> {
    let (figure, lines) = report.pages.iter().flat_map(|page| &page.parts).find_map(|part| match &part.block {
        Block::Figure(figure) => match &figure.chart {
            Chart::Lines(lines) => Some((figure, lines)),
            Chart::Bars(_) => None,
        },
        _ => None,
    })?;
    let title = format!("{} · {}", report.title, figure.title);
    Some(spelled_out(&chart::picture(lines, STYLE, &title, &figure.text).into_string()))
}

/// The page with every character that reorders or hides text written as `\u{…}`; its own line feeds stay.
fn spelled_out(page: &str) -> String {
    let lines: Vec<_> = page.split('\n').map(escape::terminal).collect();
    lines.join("\n") + "\n"
}

fn contents(report: &Report) -> Markup {
    html! {
        nav aria-label="Contents" {
            ul {
                @for (at, page) in report.pages.iter().enumerate() { li { a href=(format!("#s{at}")) { (report.heading(page)) } } }
            }
        }
    }
}

/// A section; the only one of a report needs no heading beside the report's, but for readers who move by headings.
fn section(report: &Report, page: &Page, at: usize) -> Markup {
    let only = report.pages.len() == 1;
    html! {
        section.only[only] id=(format!("s{at}")) aria-labelledby=(format!("s{at}-name")) {
            h2.sr[only] id=(format!("s{at}-name")) { (report.heading(page)) }
            @if !page.source.is_empty() { p.source { (page.source) } }
            @for (n, part) in page.parts.iter().enumerate() { (block(&part.block, &format!("s{at}-{n}"))) }
        }
    }
}

fn block(block: &Block, id: &str) -> Markup {
    match block {
        Block::Heading(text) => html! { h3 { (text) } },
        Block::Prose(text) => html! { p { (text) } },
        Block::Verdict(verdict, text) => html! { p.verdict.(class(*verdict)) { (sign(*verdict)) span { (text) } } },
        Block::KeyFigures(figures) => key_figures(figures),
        Block::Table(caption, rows) if rows.rows().len() > LONG => html! {
            details { summary { (if caption.is_empty() { "Table" } else { caption }) } (table(rows, None)) }
        },
        Block::Table(caption, rows) => table(rows, Some(caption)),
        Block::Figure(drawn) => figure(drawn, id),
        Block::Command(label, command) => html! {
            @if !label.is_empty() { h3 { (label) } }
            pre { code { (kept_lines(command)) } }
        },
        Block::Note(verdict, text, hint) => html! {
            ul.notes { li.(class(*verdict)) {
                (sign(*verdict))
                span { (text) @if let Some(hint) = hint { span.hint { (hint) } } }
            } }
        },
        Block::Checklist(items) => checklist(items),
        Block::Output(label, text) => html! { details { summary { (label) } pre { (kept_lines(text)) } } },
        Block::WhatIf(points) => what_if(points, id),
    }
}

/// Untrusted text over several lines: its line feeds stay, everything else is spelled out as in the rest of the page.
fn kept_lines(text: &str) -> String {
    text.replace("\r\n", "\n")
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Caution => "caution",
        Verdict::Bad => "bad",
        Verdict::Open | Verdict::Skipped => "open",
    }
}

/// The mark of a verdict, with its word for who does not see it.
fn sign(verdict: Verdict) -> Markup {
    html! { span.sign aria-hidden="true" { (verdict.mark()) } span.sr { (verdict.word()) ": " } }
}

fn key_figures(figures: &[KeyFigure]) -> Markup {
    html! {
        dl.figures.of-4[figures.len() == 4 || figures.len() > 6] {
            @for figure in figures {
                div {
                    dt { (figure.label) }
                    dd.number { (figure.value) }
                    @if !figure.note.is_empty() { dd.note { (figure.note) } }
                }
            }
        }
    }
}

fn checklist(items: &[Item]) -> Markup {
    html! {
        ul.checklist {
            @for item in items {
                li.(class(item.verdict)) {
                    (sign(item.verdict))
                    span { (item.what)
                        @if !item.why.is_empty() { span.why { (item.why) } }
                        @if let Some(hint) = &item.hint { span.why { (hint) } }
                    }
                }
            }
        }
    }
}

/// How a cell breaks: a number never, a short text neither, a path or a regex anywhere.
fn breaks(cell: &str) -> Option<&'static str> {
    if cell.chars().count() <= 18 {
        return Some("short");
    }
    cell.split_whitespace().any(|word| word.chars().count() > 24).then_some("long")
}

/// A table; wide ones scroll within the page, by keyboard too.
fn table(table: &Table, caption: Option<&str>) -> Markup {
    let side = |at: usize| table.columns().get(at).filter(|(_, side)| *side == Align::Right).map(|_| "r");
    html! {
        div.scroll tabindex="0" role="region" aria-label=(caption.filter(|text| !text.is_empty()).unwrap_or("Table")) {
            table {
                @if let Some(caption) = caption.filter(|text| !text.is_empty()) { caption { (caption) } }
                @if table.columns().iter().any(|(name, _)| !name.is_empty()) {
                    thead { tr {
                        @for (at, (name, _)) in table.columns().iter().enumerate() {
                            th scope="col" class=[side(at)] { (name) }
                        }
                    } }
                }
                tbody {
                    @for row in table.rows() {
                        tr { @for (at, cell) in row.iter().enumerate() { td class=[side(at).or_else(|| breaks(cell))] { (cell) } } }
                    }
                }
            }
        }
    }
}

/// A chart with its table. A drawing made of several parts is one image for who cannot see it.
fn figure(figure: &Figure, id: &str) -> Markup {
    let is_one_drawing = matches!(figure.chart, Chart::Lines(_));
    let (named, described) = (format!("{id}-title"), format!("{id}-desc"));
    let drawing = chart::drawn(figure, id);
    html! {
        figure {
            figcaption { b id=(named) { (figure.title) } @if !figure.text.is_empty() { span id=(described) { (figure.text) } } }
            (chart::legend(&figure.legend))
            @if is_one_drawing {
                (drawing)
            } @else {
                div role="img" aria-labelledby=(named) aria-describedby=[(!figure.text.is_empty()).then_some(described)] { (drawing) }
            }
            details { summary { "The numbers as a table" } (table(&figure.table, None)) }
        }
    }
}

/// Points of a plan with a slider for each thing that changes; without script, the table of all of them.
fn what_if(points: &WhatIf, id: &str) -> Markup {
    let names: Vec<&str> = points.axes.iter().map(|axis| axis.what.as_ref()).collect();
    let places = places(points);
    html! {
        div.what-if {
            h3 { "What if the " (names.join(" or the ")) " were another?" }
            @for (at, (axis, place)) in points.axes.iter().zip(&places).enumerate() {
                div.control hidden {
                    label for=(format!("{id}-slider{at}")) { (axis.what) }
                    input id=(format!("{id}-slider{at}")) type="range" min="0" max=(axis.values.len().saturating_sub(1)) step="1" value=(place);
                    output for=(format!("{id}-slider{at}")) {}
                    @for value in &axis.values { template { (value) } }
                }
            }
            (table(&points.table, None))
            @for command in &points.commands { template.command { (command) } }
            @if let Some(command) = points.commands.get(points.start) { pre { (command) } }
        }
    }
}

/// Where each slider stands at the point that is shown first.
fn places(points: &WhatIf) -> Vec<usize> {
    let mut rest = points.start.min(points.table.rows().len().saturating_sub(1));
    let mut places: Vec<usize> = Vec::new();
    for axis in points.axes.iter().rev() {
        let n = axis.values.len().max(1);
        places.push(rest % n);
        rest /= n;
    }
    places.reverse();
    places
}
