//! Pages for a terminal, as they are. Colour only for meaning.

use anstyle::Style;

use super::page::{Block, Item, KeyFigure, Look, Page, Report, Verdict, dotted};
use super::table::Table;
use crate::escape;

/// The pages for `width` columns, with the blocks of the long form where `is_long`; lines end with a line feed. It holds the codes
/// of colours, which `anstream` takes out where they are not wanted.
pub fn report(report: &Report, is_long: bool, width: usize) -> String {
    report.pages.iter().map(|shown| page(shown, is_long, width)).collect::<Vec<_>>().join("\n")
}

fn page(page: &Page, is_long: bool, width: usize) -> String {
    let shown = page.blocks.iter().filter(|(is_detail, _)| is_long || !is_detail).map(|(_, block)| block);
    let mut out = format!("{}\n", escape::terminal(&dotted([&page.title, &page.about])));
    if !page.source.is_empty() {
        out += &format!("from {}\n", escape::terminal(&page.source));
    }
    let mut before: Option<&Block> = None;
    for part in shown {
        let goes_on = match (before, part) {
            (Some(Block::Command(..)), Block::Command(label, _)) => label.is_empty(),
            (Some(Block::Note(..)), Block::Note(..))
            | (Some(Block::Heading(_)), _)
            | (Some(Block::Verdict(..) | Block::Prose(_)), Block::Prose(_)) => true,
            _ => false,
        };
        if !goes_on {
            out.push('\n');
        }
        out += &block(part, width);
        before = Some(part);
    }
    out
}

fn block(block: &Block, width: usize) -> String {
    let safe = escape::terminal;
    let labelled =
        |label: &str, text: String| if label.is_empty() { text } else { format!("{}:\n{text}", safe(label)) };
    let lines = |indent: &str, text: &str| text.lines().map(|line| [indent, &safe(line), "\n"].concat()).collect();
    match block {
        Block::Heading(text) => {
            let bold = Style::new().bold();
            format!("{bold}{}{bold:#}\n", safe(text))
        }
        Block::Prose(text) => format!("{}\n", safe(text)),
        Block::Verdict(verdict, text) => {
            let style = verdict.look().style;
            format!("{style}{}{style:#}\n", safe(text))
        }
        Block::KeyFigures(figures) => key_figures(figures).text(width),
        Block::Table(caption, table) => labelled(caption, table.text(width)),
        Block::Figure(figure) => labelled(&figure.title, figure.table.text(width)),
        Block::WhatIf(points) => points.table.text(width),
        Block::Command(label, command) => labelled(label, lines("", command)),
        Block::Output(label, text) => labelled(label, lines("    ", text)),
        Block::Note(verdict, text, hint) => {
            let Look { style, note, .. } = verdict.look();
            let hint = hint.as_deref().map(|hint| format!("   hint: {}\n", safe(hint))).unwrap_or_default();
            format!("{style}{note}:{style:#} {}\n{hint}", safe(text))
        }
        // `✓ what: why`, and what to do on a line of its own.
        Block::Checklist(items) => {
            let line = |item: &Item| {
                let Look { style, mark, .. } = item.verdict.look();
                let skipped = if item.verdict == Verdict::Skipped { " (skipped)" } else { "" };
                let why = if item.why.is_empty() { String::new() } else { format!(": {}", safe(&item.why)) };
                let hint = item.hint.as_deref().map(|hint| format!("    → {}\n", safe(hint))).unwrap_or_default();
                format!("{style}{mark}{style:#} {}{skipped}{why}\n{hint}", safe(&item.what))
            };
            items.iter().map(line).collect()
        }
    }
}

/// Figures as lines: `context  8,192 tokens, f16 cache`.
pub(super) fn key_figures(figures: &[KeyFigure]) -> Table {
    let phrase = |figure: &KeyFigure| format!("{} {}", figure.value, figure.note).trim().to_string();
    Table::facts(figures.iter().map(|figure| (figure.label.as_str(), Some(phrase(figure)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_shows_the_answer_first_and_details_when_asked() {
        let mut shown = Page::new("Plan", "a\u{1b}[31m", "phimoe");
        shown.push(Block::Verdict(Verdict::Good, "Fits.".into()));
        shown.push(Block::KeyFigures(vec![KeyFigure::new("context", "8,192", "tokens")]));
        shown.push(Block::Command(String::new(), "llama-server -m m".into()));
        shown.detail(Block::Prose("why".into()));
        shown.push(Block::Note(Verdict::Caution, "odd\u{202e}".into(), Some("mend it".into())));
        let report = Report::from(vec![shown]);
        let plain = |is_long| anstream::adapter::strip_str(&super::report(&report, is_long, 80)).to_string();
        let note = "warning: odd\\u{202e}\n   hint: mend it\n";
        let answer = "a\\u{1b}[31m · phimoe\n\nFits.\n\ncontext  8,192 tokens\n\nllama-server -m m\n\n";
        assert_eq!(plain(false), format!("{answer}{note}"));
        assert_eq!(plain(true), format!("{answer}why\n\n{note}"));
    }
}
