//! Pages as Markdown: every chart as its table.

use super::page::{Block, Item, Report, Verdict};
use super::table::Table;
use super::text::{key_figures, word};
use crate::escape::{markdown as safe, terminal};

/// The whole report; a document by itself is one section under its title.
pub fn report(report: &Report) -> String {
    let mut out = format!("# {}\n", safe(&report.title));
    if !report.about.is_empty() {
        out += &format!("\n{}\n", safe(&report.about));
    }
    for page in &report.pages {
        if report.pages.len() != 1 {
            out += &format!("\n## {}\n", safe(report.heading(page)));
        }
        if !page.source.is_empty() {
            out += &format!("\nFrom {}\n", safe(&page.source));
        }
        for (_, part) in &page.blocks {
            out.push('\n');
            out += &block(part);
        }
    }
    out
}

fn block(block: &Block) -> String {
    match block {
        Block::Heading(text) => format!("### {}\n", safe(text)),
        Block::Prose(text) => format!("{}\n", safe(text)),
        Block::Verdict(verdict, text) => format!("**{}** {}\n", safe(text), verdict.mark()),
        Block::KeyFigures(figures) => key_figures(figures).markdown(),
        Block::Table(caption, table) => captioned(caption, table),
        Block::Figure(figure) if figure.text.is_empty() => captioned(&figure.title, &figure.table),
        Block::Figure(figure) => format!("{}\n{}\n", captioned(&figure.title, &figure.table), safe(&figure.text)),
        Block::Command(label, command) if label.is_empty() => fenced("sh", command),
        Block::Command(label, command) => format!("{}:\n\n{}", safe(label), fenced("sh", command)),
        Block::Note(verdict, text, hint) => {
            let hint = hint.as_deref().map(|hint| format!(" {}.", safe(hint))).unwrap_or_default();
            format!("> **{}**: {}.{hint}\n", word(*verdict), safe(text.trim_end_matches('.')))
        }
        Block::Checklist(items) => items.iter().map(checked).collect(),
        Block::Output(label, text) => format!("{}\n\n{}", safe(label), fenced("text", text)),
        Block::WhatIf(points) => {
            let axes: Vec<&str> = points.axes.iter().map(|axis| axis.what.as_ref()).collect();
            captioned(&format!("By {}", axes.join(" and ")), &points.table)
        }
    }
}

fn captioned(caption: &str, table: &Table) -> String {
    if caption.is_empty() { table.markdown() } else { format!("**{}**\n\n{}", safe(caption), table.markdown()) }
}

/// `- [x] what: why`.
fn checked(item: &Item) -> String {
    let (tick, word) = match item.verdict {
        Verdict::Good => ("x", String::new()),
        other => (" ", format!(" ({})", other.word())),
    };
    let why = if item.why.is_empty() { String::new() } else { format!(": {}", safe(&item.why)) };
    let hint = item.hint.as_deref().map(|hint| format!(" → {}", safe(hint))).unwrap_or_default();
    format!("- [{tick}] {}{word}{why}{hint}\n", safe(&item.what))
}

/// Text in a fence longer than any run of backticks in it; line feeds stay, everything else unsafe is spelled out.
fn fenced(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let lines: Vec<_> = text.lines().map(terminal).collect();
    format!("{fence}{language}\n{}\n{fence}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_cannot_leave_its_place() {
        let hostile = || "</h1><script>|`x`\n# y\u{202e}".to_string();
        let item = Item { verdict: Verdict::Open, what: hostile(), why: String::new(), hint: Some(hostile()) };
        let shown: String = [
            Block::Output("said".into(), "```\n````x\n\u{1b}[31m".into()),
            Block::Command(hostile(), "a\nb".into()),
            Block::Table(hostile(), Table::rows_of("a", [[hostile()]])),
            Block::Note(Verdict::Bad, hostile(), None),
            Block::Checklist(vec![item]),
        ]
        .iter()
        .map(block)
        .collect();
        assert!(!shown.contains("<script>") && !shown.contains('\u{202e}') && !shown.contains('\u{1b}'), "{shown}");
        assert!(shown.contains("`````text\n```\n````x\n\\u{1b}[31m\n`````\n"), "{shown}");
        assert!(!shown.lines().any(|line| line.starts_with("# ")) && shown.contains("- [ ] "), "{shown}");
    }
}
