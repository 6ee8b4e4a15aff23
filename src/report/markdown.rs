//! Pages as Markdown: every chart as its table.

use std::fmt::Write as _;

use super::page::{Block, Item, Report, Verdict, WhatIf};
use super::table::Table;
use super::text::{key_figures, word};
use crate::escape;

/// The whole report; a document by itself is one section under its title.
pub fn report(report: &Report) -> String {
    let is_one = report.pages.len() == 1;
    let mut out = format!("# {}\n", escape::markdown(&report.title));
    if !report.about.is_empty() {
        let _ = write!(out, "\n{}\n", escape::markdown(&report.about));
    }
    for page in &report.pages {
        if !is_one {
            let _ = write!(out, "\n## {}\n", escape::markdown(report.heading(page)));
        }
        if !page.source.is_empty() {
            let _ = write!(out, "\nFrom {}\n", escape::markdown(&page.source));
        }
        for part in &page.parts {
            out.push('\n');
            block(&mut out, &part.block);
        }
    }
    out
}

fn block(out: &mut String, block: &Block) {
    match block {
        Block::Heading(text) => drop(writeln!(out, "### {}", escape::markdown(text))),
        Block::Prose(text) => drop(writeln!(out, "{}", escape::markdown(text))),
        Block::Verdict(verdict, text) => drop(writeln!(out, "**{}** {}", escape::markdown(text), verdict.mark())),
        Block::KeyFigures(figures) => *out += &key_figures(figures).markdown(),
        Block::Table(caption, table) => captioned(out, caption, table),
        Block::Figure(figure) => {
            captioned(out, &figure.title, &figure.table);
            if !figure.text.is_empty() {
                let _ = write!(out, "\n{}\n", escape::markdown(&figure.text));
            }
        }
        Block::Command(label, command) => {
            if !label.is_empty() {
                let _ = write!(out, "{}:\n\n", escape::markdown(label));
            }
            fence(out, "sh", command);
        }
        Block::Note(verdict, text, hint) => {
            let hint = hint.as_deref().map(|hint| format!(" {}.", escape::markdown(hint))).unwrap_or_default();
            let text = escape::markdown(text.trim_end_matches('.'));
            let _ = writeln!(out, "> **{}**: {text}.{hint}", word(*verdict));
        }
        Block::Checklist(items) => items.iter().for_each(|item| checked(out, item)),
        Block::Output(label, text) => {
            let _ = write!(out, "{}\n\n", escape::markdown(label));
            fence(out, "text", text);
        }
        Block::WhatIf(WhatIf { axes, table, .. }) => {
            let axes: Vec<&str> = axes.iter().map(|axis| axis.what.as_ref()).collect();
            captioned(out, &format!("By {}", axes.join(" and ")), table);
        }
    }
}

fn captioned(out: &mut String, caption: &str, table: &Table) {
    if !caption.is_empty() {
        let _ = write!(out, "**{}**\n\n", escape::markdown(caption));
    }
    *out += &table.markdown();
}

/// `- [x] what: why`.
fn checked(out: &mut String, item: &Item) {
    let ticked = if item.verdict == Verdict::Good { "x" } else { " " };
    let why = if item.why.is_empty() { String::new() } else { format!(": {}", escape::markdown(&item.why)) };
    let hint = item.hint.as_deref().map(|hint| format!(" → {}", escape::markdown(hint))).unwrap_or_default();
    let word = if item.verdict == Verdict::Good { String::new() } else { format!(" ({})", item.verdict.word()) };
    let _ = writeln!(out, "- [{ticked}] {}{word}{why}{hint}", escape::markdown(&item.what));
}

/// Text in a fence longer than any run of backticks in it; line feeds stay, everything else unsafe is spelled out.
fn fence(out: &mut String, language: &str, text: &str) {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let lines: Vec<_> = text.lines().map(escape::terminal).collect();
    let _ = write!(out, "{fence}{language}\n{}\n{fence}\n", lines.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::page::Page;

    #[test]
    fn untrusted_text_cannot_leave_its_place() {
        let hostile = "</h1><script>|`x`\n# y\u{202e}";
        let mut table = Table::of("a");
        table.row([hostile]);
        let blocks = vec![
            Block::Output("said".into(), "```\n````x\n\u{1b}[31m".into()),
            Block::Command(hostile.into(), "a\nb".into()),
            Block::Table(hostile.into(), table),
            Block::Note(Verdict::Bad, hostile.into(), None),
            Block::Checklist(vec![Item {
                verdict: Verdict::Open,
                what: hostile.into(),
                why: String::new(),
                hint: Some(hostile.into()),
            }]),
        ];
        let mut page = Page { source: hostile.into(), ..Page::new("", hostile, hostile) };
        page.push_all(blocks);
        let text = report(&vec![page].into());
        assert!(!text.contains("<script>") && !text.contains('\u{202e}') && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("`````text\n```\n````x\n\\u{1b}[31m\n`````\n"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("# ")).count(), 1, "{text}");
        assert!(text.contains("- [ ] "));
    }
}
