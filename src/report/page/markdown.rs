//! A report as Markdown: every chart as its table.

use std::fmt::Write as _;

use super::{Block, Item, Page, Verdict, WhatIf};
use crate::escape;
use crate::report::table::{Align, Table};

/// The page of one document, from what its JSON says and nothing else.
pub fn of_document(document: &impl serde::Serialize) -> Result<String, super::Error> {
    super::of_document(document).map(|made| page(&made))
}

/// The whole report.
pub fn page(page: &Page) -> String {
    let mut out = format!("# {}\n", escape::markdown(&page.title));
    if !page.subtitle.is_empty() {
        let _ = write!(out, "\n{}\n", escape::markdown(&page.subtitle));
    }
    for section in &page.sections {
        let _ = write!(out, "\n## {}\n", escape::markdown(&section.heading));
        if !section.source.is_empty() {
            let _ = write!(out, "\nFrom {}\n", escape::markdown(&section.source));
        }
        for part in &section.blocks {
            out.push('\n');
            block(&mut out, part);
        }
    }
    out
}

fn block(out: &mut String, block: &Block) {
    match block {
        Block::Heading(text) => drop(writeln!(out, "### {}", escape::markdown(text))),
        Block::Prose(text) => drop(writeln!(out, "{}", escape::markdown(text))),
        Block::Verdict(verdict, text) => drop(writeln!(out, "**{}** {}", escape::markdown(text), mark(*verdict))),
        Block::KeyFigures(figures) => {
            let mut table = Table::new(&[("", Align::Left), ("", Align::Right), ("", Align::Left)]);
            for figure in figures {
                table.row([figure.label.clone(), figure.value.clone(), figure.note.clone()]);
            }
            *out += &table.markdown();
        }
        Block::Table(caption, table) => captioned(out, caption, table),
        Block::Figure(figure) => {
            captioned(out, &figure.title, &figure.table);
            if !figure.text.is_empty() {
                let _ = write!(out, "\n{}\n", escape::markdown(&figure.text));
            }
        }
        Block::Command(command) => fence(out, "sh", command),
        Block::Note(verdict, text, hint) => {
            let hint = hint.as_deref().map(|hint| format!(" {}", escape::markdown(hint))).unwrap_or_default();
            let _ = writeln!(out, "> {} {}.{hint}", mark(*verdict), escape::markdown(text.trim_end_matches('.')));
        }
        Block::Checklist(items) => items.iter().for_each(|item| checked(out, item)),
        Block::Output(label, text) => {
            let _ = write!(out, "{}\n\n", escape::markdown(label));
            fence(out, "text", text);
        }
        Block::WhatIf(WhatIf { axes, table, .. }) => {
            let axes: Vec<&str> = axes.iter().map(|axis| axis.what.as_str()).collect();
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
    let word = if item.verdict == Verdict::Good { String::new() } else { format!(" ({})", item.verdict.word()) };
    let _ = writeln!(out, "- [{ticked}] {}{word}{why}", escape::markdown(&item.what));
}

/// The mark of a verdict.
fn mark(verdict: Verdict) -> &'static str {
    verdict.mark()
}

/// Text in a fence longer than any run of backticks in it; line feeds stay, everything else unsafe is spelled out.
pub fn fence(out: &mut String, language: &str, text: &str) {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let lines: Vec<_> = text.lines().map(escape::terminal).collect();
    let _ = write!(out, "{fence}{language}\n{}\n{fence}\n", lines.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::page::Section;

    #[test]
    fn strangers_text_cannot_leave_its_place() {
        let hostile = "</h1><script>|`x`\n# y\u{202e}";
        let mut table = Table::new(&[("a", Align::Left)]);
        table.row([hostile]);
        let blocks = vec![
            Block::Output("said".into(), "```\n````x\n\u{1b}[31m".into()),
            Block::Command("a\nb".into()),
            Block::Table(hostile.into(), table),
            Block::Note(Verdict::Bad, hostile.into(), None),
            Block::Checklist(vec![Item { verdict: Verdict::Open, what: hostile.into(), why: String::new() }]),
        ];
        let section = Section { heading: hostile.into(), source: hostile.into(), blocks };
        let text = page(&Page { title: hostile.into(), subtitle: hostile.into(), sections: vec![section] });
        assert!(!text.contains("<script>") && !text.contains('\u{202e}') && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("`````text\n```\n````x\n\\u{1b}[31m\n`````\n"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("# ")).count(), 1, "{text}");
        assert!(text.contains("- [ ] "));
    }
}
