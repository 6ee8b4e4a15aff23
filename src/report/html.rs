//! Pages as one self-contained document: nothing is fetched, it reads without script, in light, dark and on paper.
//!
//! Text is escaped by type: `maud` writes markup only where this module does. What reorders or hides text is spelled out in
//! the finished page, so that no field can be forgotten.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{self, Chart, Figure};
use super::page::{Block, Page, Report, Verdict, WhatIf};
use super::table::Table;
use crate::escape;

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/what-if.js");
/// The hash of [`SCRIPT`], the only script that the page's policy lets run.
const SCRIPT_HASH: &str = "sha256-BzvIDFne4zSKw4Uf07oZ14gBNf7ekQyAW+B8FMY3x7M=";

/// A table of more rows is folded: it is there to look something up.
const LONG: usize = 60;

pub fn report(report: &Report) -> String {
    let has_script = blocks(report).any(|block| matches!(block, Block::WhatIf(_)));
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
                        @if report.pages.len() > 1 {
                            nav aria-label="Contents" {
                                ul {
                                    @for (at, page) in report.pages.iter().enumerate() {
                                        li { a href=(format!("#s{at}")) { (report.heading(page)) } }
                                    }
                                }
                            }
                        }
                    }
                    main { @for (at, page) in report.pages.iter().enumerate() { (section(report, page, at)) } }
                    footer { "Written by moeplan " (env!("CARGO_PKG_VERSION")) ". Predictions and measurements are labelled." }
                }
                @if has_script { script { (PreEscaped(SCRIPT)) } }
            }
        }
    };
    spelled_out(&markup.into_string())
}

fn blocks(report: &Report) -> impl Iterator<Item = &Block> {
    report.pages.iter().flat_map(|page| &page.blocks).map(|(_, block)| block)
}

/// The first curves of the report as a picture (SVG) of their own; `None` where it has none.
pub fn picture(report: &Report) -> Option<String> {
    let (figure, lines) = blocks(report).find_map(|block| match block {
        Block::Figure(figure @ Figure { chart: Chart::Lines(lines), .. }) => Some((figure, lines)),
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

/// A section; the only one of a report needs no heading beside the report's, but for readers who move by headings.
fn section(report: &Report, page: &Page, at: usize) -> Markup {
    let only = report.pages.len() == 1;
    html! {
        section.only[only] id=(format!("s{at}")) aria-labelledby=(format!("s{at}-name")) {
            h2.sr[only] id=(format!("s{at}-name")) { (report.heading(page)) }
            @if !page.source.is_empty() { p.source { (page.source) } }
            @for (n, (_, part)) in page.blocks.iter().enumerate() { (block(part, &format!("s{at}-{n}"))) }
        }
    }
}

fn block(block: &Block, id: &str) -> Markup {
    match block {
        Block::Heading(text) => html! { h3 { (text) } },
        Block::Prose(text) => html! { p { (text) } },
        Block::Verdict(verdict, text) => {
            html! { p.verdict.(verdict.look().class) { (sign(*verdict)) span { (text) } } }
        }
        Block::KeyFigures(figures) => html! {
            dl.figures.of-4[figures.len() == 4 || figures.len() > 6] {
                @for figure in figures {
                    div {
                        dt { (figure.label) }
                        dd.number { (figure.value) }
                        @if !figure.note.is_empty() { dd.note { (figure.note) } }
                    }
                }
            }
        },
        Block::Table(caption, rows) if rows.rows.len() > LONG => html! {
            details { summary { (if caption.is_empty() { "Table" } else { caption }) } (table(rows, "")) }
        },
        Block::Table(caption, rows) => table(rows, caption),
        Block::Figure(drawn) => figure(drawn, id),
        Block::Command(label, command) => html! {
            @if !label.is_empty() { h3 { (label) } }
            pre { code { (command.replace("\r\n", "\n")) } }
        },
        Block::Note(verdict, text, hint) => html! {
            ul.notes { li.(verdict.look().class) {
                (sign(*verdict))
                span { (text) @if let Some(hint) = hint { span.hint { (hint) } } }
            } }
        },
        Block::Checklist(items) => html! {
            ul.checklist {
                @for item in items {
                    li.(item.verdict.look().class) {
                        (sign(item.verdict))
                        span { (item.what)
                            @if !item.why.is_empty() { span.why { (item.why) } }
                            @if let Some(hint) = &item.hint { span.why { (hint) } }
                        }
                    }
                }
            }
        },
        Block::Output(label, text) => html! { details { summary { (label) } pre { (text.replace("\r\n", "\n")) } } },
        Block::WhatIf(points) => what_if(points, id),
    }
}

fn sign(verdict: Verdict) -> Markup {
    html! { span.sign aria-hidden="true" { (verdict.look().mark) } span.sr { (verdict.look().word) ": " } }
}

/// How a cell breaks: a number never, a short text neither, a path or a regex anywhere.
fn breaks(cell: &str) -> Option<&'static str> {
    if cell.chars().count() <= 18 {
        return Some("short");
    }
    cell.split_whitespace().any(|word| word.chars().count() > 24).then_some("long")
}

/// A table; wide ones scroll within the page, by keyboard too.
fn table(table: &Table, caption: &str) -> Markup {
    let right = |is_right: &bool| is_right.then_some("r");
    html! {
        div.scroll tabindex="0" role="region" aria-label=(if caption.is_empty() { "Table" } else { caption }) {
            table {
                @if !caption.is_empty() { caption { (caption) } }
                @if table.columns.iter().any(|(name, _)| !name.is_empty()) {
                    thead { tr { @for (name, is_right) in &table.columns { th scope="col" class=[right(is_right)] { (name) } } } }
                }
                tbody {
                    @for row in &table.rows {
                        tr {
                            @for (cell, (_, is_right)) in row.iter().zip(&table.columns) {
                                td class=[right(is_right).or_else(|| breaks(cell))] { (cell) }
                            }
                        }
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
            details { summary { "The numbers as a table" } (table(&figure.table, "")) }
        }
    }
}

/// Points of a plan with a slider for each thing that changes; without script, the table of all of them.
fn what_if(points: &WhatIf, id: &str) -> Markup {
    let names: Vec<&str> = points.axes.iter().map(|axis| axis.what.as_ref()).collect();
    // Where each slider stands at the point that is shown first; the last axis changes fastest.
    let mut rest = points.start.min(points.table.rows.len().saturating_sub(1));
    let mut places = Vec::new();
    for axis in points.axes.iter().rev() {
        let n = axis.values.len().max(1);
        places.insert(0, rest % n);
        rest /= n;
    }
    html! {
        div.what-if {
            h3 { "What if the " (names.join(" or the ")) " changed?" }
            @for (at, (axis, place)) in points.axes.iter().zip(&places).enumerate() {
                div.control hidden {
                    label for=(format!("{id}-slider{at}")) { (axis.what) }
                    input id=(format!("{id}-slider{at}")) type="range" min="0" max=(axis.values.len().saturating_sub(1)) step="1" value=(place);
                    output for=(format!("{id}-slider{at}")) {}
                    @for value in &axis.values { template { (value) } }
                }
            }
            (table(&points.table, ""))
            @for command in &points.commands { template.command { (command) } }
            @if let Some(command) = points.commands.get(points.start) { pre { (command) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_policy_lets_the_script_run() {
        use sha2::Digest as _;
        // 32 bytes are 43 letters of six bits, the last two bits empty, and one `=`.
        let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
        let hash: Vec<u8> = sha2::Sha256::digest(SCRIPT).into_iter().chain([0]).collect();
        let six = |at: usize| {
            (u16::from_be_bytes([hash[at * 6 / 8], hash[(at * 6 / 8 + 1).min(32)]]) >> (10 - at * 6 % 8)) & 63
        };
        let encoded: String = (0..43).map(|at| letters[usize::from(six(at))]).collect();
        assert_eq!(SCRIPT_HASH, format!("sha256-{encoded}="), "what-if.js has changed");
        assert!(!STYLE.contains("http") && !STYLE.contains("@import") && !SCRIPT.contains("http"));
    }

    #[test]
    fn colours_can_be_read_in_light_in_dark_and_on_paper() {
        // Relative luminance and contrast by WCAG 2.2.
        let luminance = |hex: &str| {
            let hex = if hex.len() == 3 { hex.chars().flat_map(|c| [c, c]).collect() } else { hex.to_string() };
            let linear = |at: usize| {
                let c = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
                if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
            };
            0.2126 * linear(0) + 0.7152 * linear(2) + 0.0722 * linear(4) + 0.05
        };
        for start in [":root", "dark) {\n  :root", "@media print {\n  :root"] {
            let rule = &STYLE[STYLE.find(start).unwrap() + start.len()..];
            let rule = &rule[rule.find('{').unwrap() + 1..rule.find('}').unwrap()];
            let declarations = rule.split(';').filter_map(|line| line.trim().strip_prefix("--")?.split_once(": #"));
            let colours: BTreeMap<&str, f64> = declarations.map(|(name, hex)| (name, luminance(hex))).collect();
            assert!(colours.len() > 18, "{start}: {colours:?}");
            let contrast = |name: &str, paper: &str| {
                let (a, b) = (colours[name], colours[paper]);
                a.max(b) / a.min(b)
            };
            for name in colours.keys().filter(|name| !["paper", "raised", "line"].contains(name)) {
                let is_area = ["model", "context", "compute", "overhead", "host"].contains(name);
                let least = if is_area { 3.0 } else { 4.5 };
                assert!(contrast(name, "paper") >= least, "{start} --{name}: {least} at least");
            }
            for name in ["ink", "muted", "accent"] {
                assert!(contrast(name, "raised") >= 4.5, "{start} --{name} on --raised");
            }
        }
    }
}
