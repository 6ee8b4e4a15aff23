//! Pages for a terminal: the answer first, tables after it, the command to paste last. Colour only for meaning.

use anstyle::{AnsiColor, Style};

use super::page::{Block, KeyFigure, Page, Report, Verdict, dotted};
use super::table::Table;
use crate::escape;

/// The pages for `width` columns, with the blocks of the long form where `is_long`; lines end with a line feed. It holds the codes
/// of colours, which `anstream` takes out where they are not wanted.
pub fn report(report: &Report, is_long: bool, width: usize) -> String {
    report.pages.iter().map(|shown| page(shown, is_long, width)).collect::<Vec<_>>().join("\n")
}

fn page(page: &Page, is_long: bool, width: usize) -> String {
    let shown = || page.blocks.iter().filter(|(is_detail, _)| is_long || !is_detail).map(|(_, block)| block);
    let is_command = |block: &&Block| matches!(block, Block::Command(..));
    let mut out = format!("{}\n", escape::terminal(&dotted([&page.title, &page.about])));
    if !page.source.is_empty() {
        out += &format!("from {}\n", escape::terminal(&page.source));
    }
    let mut before: Option<&Block> = None;
    for part in shown().filter(|part| !is_command(part)).chain(shown().filter(is_command)) {
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
    let lines = |indent: &str, text: &str| text.lines().map(|line| format!("{indent}{}\n", safe(line))).collect();
    match block {
        Block::Heading(text) => {
            let bold = Style::new().bold();
            format!("{bold}{}{bold:#}\n", safe(text))
        }
        Block::Prose(text) => format!("{}\n", safe(text)),
        Block::Verdict(verdict, text) => {
            let style = style(*verdict);
            format!("{style}{}{style:#}\n", safe(text))
        }
        Block::KeyFigures(figures) => key_figures(figures).text(width),
        Block::Table(caption, table) => labelled(caption, table.text(width)),
        Block::Figure(figure) => labelled(&figure.title, figure.table.text(width)),
        Block::WhatIf(points) => points.table.text(width),
        Block::Command(label, command) => labelled(label, lines("", command)),
        Block::Output(label, text) => labelled(label, lines("    ", text)),
        Block::Note(verdict, text, hint) => {
            let (style, word) = (style(*verdict), word(*verdict));
            let hint = hint.as_deref().map(|hint| format!("   hint: {}\n", safe(hint))).unwrap_or_default();
            format!("{style}{word}:{style:#} {}\n{hint}", safe(text))
        }
        // `✓ what: why`, and what to do on a line of its own.
        Block::Checklist(items) => {
            let line = |item: &super::page::Item| {
                let style = style(item.verdict);
                let is_skipped = item.verdict == Verdict::Skipped;
                let skipped = if is_skipped { format!(" ({})", item.verdict.word()) } else { String::new() };
                let why = if item.why.is_empty() { String::new() } else { format!(": {}", safe(&item.why)) };
                let hint = item.hint.as_deref().map(|hint| format!("    → {}\n", safe(hint))).unwrap_or_default();
                format!("{style}{}{style:#} {}{skipped}{why}\n{hint}", item.verdict.mark(), safe(&item.what))
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

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Bad => "error",
        Verdict::Caution => "warning",
        Verdict::Good | Verdict::Open | Verdict::Skipped => "note",
    }
}

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Good => AnsiColor::Green.on_default(),
        Verdict::Caution => AnsiColor::Yellow.on_default(),
        Verdict::Bad => AnsiColor::Red.on_default().bold(),
        Verdict::Open | Verdict::Skipped => AnsiColor::Cyan.on_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_shows_the_answer_first_the_command_last_and_details_when_asked() {
        let mut shown = Page::new("Plan", "a\u{1b}[31m", "phimoe");
        shown.push(Block::Verdict(Verdict::Good, "Fits.".into()));
        shown.push(Block::KeyFigures(vec![KeyFigure::new("context", "8,192", "tokens")]));
        shown.push(Block::Command(String::new(), "llama-server -m m".into()));
        shown.detail(Block::Prose("why".into()));
        shown.push(Block::Note(Verdict::Caution, "odd\u{202e}".into(), Some("mend it".into())));
        let report = Report::from(vec![shown]);
        let plain = |is_long| anstream::adapter::strip_str(&super::report(&report, is_long, 80)).to_string();
        let note = "warning: odd\\u{202e}\n   hint: mend it\n\nllama-server -m m\n";
        let answer = "a\\u{1b}[31m · phimoe\n\nFits.\n\ncontext  8,192 tokens\n\n";
        assert_eq!(plain(false), format!("{answer}{note}"));
        assert_eq!(plain(true), format!("{answer}why\n\n{note}"));
    }
}
