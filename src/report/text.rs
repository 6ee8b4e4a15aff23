//! Pages for a terminal: the answer first, tables after it, the command to paste last. Colour only for meaning.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::page::{Block, Item, KeyFigure, Page, Report, Verdict, dotted};
use super::table::Table;
use crate::escape;

/// The pages, with the blocks of the long form where `is_long`; lines end with a line feed. It holds the codes of colours, which
/// `anstream` takes out where they are not wanted.
pub fn report(report: &Report, is_long: bool) -> String {
    report.pages.iter().map(|shown| page(shown, is_long)).collect::<Vec<_>>().join("\n")
}

fn page(page: &Page, is_long: bool) -> String {
    let shown = || page.parts.iter().filter(|part| is_long || !part.is_detail).map(|part| &part.block);
    let is_command = |block: &&Block| matches!(block, Block::Command(..));
    let mut out = format!("{}\n", escape::terminal(&dotted([&page.title, &page.about])));
    if !page.source.is_empty() {
        let _ = writeln!(out, "from {}", escape::terminal(&page.source));
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
        block(&mut out, part);
        before = Some(part);
    }
    out
}

fn block(out: &mut String, block: &Block) {
    match block {
        Block::Heading(text) => {
            let bold = Style::new().bold();
            let _ = writeln!(out, "{bold}{}{bold:#}", escape::terminal(text));
        }
        Block::Prose(text) => line(out, text),
        Block::Verdict(verdict, text) => {
            let style = style(*verdict);
            let _ = writeln!(out, "{style}{}{style:#}", escape::terminal(text));
        }
        Block::KeyFigures(figures) => *out += &key_figures(figures).text(),
        Block::Table(caption, rows) => table(out, caption, rows),
        Block::Figure(figure) => table(out, &figure.title, &figure.table),
        Block::WhatIf(points) => *out += &points.table.text(),
        Block::Command(label, command) => {
            if !label.is_empty() {
                let _ = writeln!(out, "{}:", escape::terminal(label));
            }
            command.lines().for_each(|command| line(out, command));
        }
        Block::Note(verdict, text, hint) => {
            let (style, word) = (style(*verdict), word(*verdict));
            let _ = writeln!(out, "{style}{word}:{style:#} {}", escape::terminal(text));
            if let Some(hint) = hint {
                let _ = writeln!(out, "   hint: {}", escape::terminal(hint));
            }
        }
        Block::Checklist(items) => items.iter().for_each(|item| checked(out, item)),
        Block::Output(label, text) => {
            let _ = writeln!(out, "{}:", escape::terminal(label));
            text.lines().for_each(|text| line(out, &format!("    {text}")));
        }
    }
}

fn line(out: &mut String, text: &str) {
    let _ = writeln!(out, "{}", escape::terminal(text));
}

fn table(out: &mut String, caption: &str, table: &Table) {
    if !caption.is_empty() {
        let _ = writeln!(out, "{}:", escape::terminal(caption));
    }
    *out += &table.text();
}

/// Figures as lines: `context  8,192 tokens, f16 cache`.
pub(super) fn key_figures(figures: &[KeyFigure]) -> Table {
    let phrase = |figure: &KeyFigure| format!("{} {}", figure.value, figure.note).trim().to_string();
    Table::facts(figures.iter().map(|figure| (figure.label.as_str(), Some(phrase(figure)))))
}

/// `✓ what: why`, and what to do on a line of its own.
fn checked(out: &mut String, item: &Item) {
    let style = style(item.verdict);
    let _ = write!(out, "{style}{}{style:#} {}", item.verdict.mark(), escape::terminal(&item.what));
    if item.verdict == Verdict::Skipped {
        let _ = write!(out, " ({})", item.verdict.word());
    }
    if !item.why.is_empty() {
        let _ = write!(out, ": {}", escape::terminal(&item.why));
    }
    out.push('\n');
    if let Some(hint) = &item.hint {
        let _ = writeln!(out, "    → {}", escape::terminal(hint));
    }
}

/// What a note is, in a word.
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
        let plain = |is_long| anstream::adapter::strip_str(&report(&vec![shown.clone()].into(), is_long)).to_string();
        let note = "warning: odd\\u{202e}\n   hint: mend it\n\nllama-server -m m\n";
        let answer = "a\\u{1b}[31m · phimoe\n\nFits.\n\ncontext  8,192 tokens\n\n";
        assert_eq!(plain(false), format!("{answer}{note}"));
        assert_eq!(plain(true), format!("{answer}why\n\n{note}"));
    }
}
