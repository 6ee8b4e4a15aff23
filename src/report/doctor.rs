//! What a computer helps or hinders, for people.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::table::{Align, Table};
use crate::doctor::{Doctor, Finding, Level};
use crate::escape;
use crate::number::counted;

/// For a terminal, colour only for meaning; what is as it should be without its hints.
pub fn text(document: &Doctor<'_>) -> String {
    let mut out = String::new();
    for group in document.findings.chunk_by(|a, b| a.area == b.area) {
        let heading = group.first().map_or("", |finding| finding.area.title());
        let _ = writeln!(out, "{heading}");
        for finding in group {
            let style = style(finding.level);
            let message = escape::terminal(&finding.message);
            let _ = writeln!(out, "  {style}{:<7}{style:#}  {message}", finding.level.name());
            if let Some(hint) = &finding.hint {
                let _ = writeln!(out, "           → {}", escape::terminal(hint));
            }
        }
        out.push('\n');
    }
    let _ = writeln!(out, "{}", summary(&document.findings));
    out
}

/// As Markdown: one table.
pub fn markdown(document: &Doctor<'_>) -> String {
    let columns = ["", "", "finding", "what to do"].map(|name| (name, Align::Left));
    let mut table = Table::new(&columns);
    for finding in &document.findings {
        let hint = finding.hint.clone().unwrap_or_default();
        table.row([finding.area.title().to_string(), finding.level.name().to_string(), finding.message.clone(), hint]);
    }
    format!("{}\n{}\n", table.markdown(), summary(&document.findings))
}

fn style(level: Level) -> Style {
    match level {
        Level::Ok => AnsiColor::Green.on_default(),
        Level::Note => AnsiColor::Cyan.on_default(),
        Level::Problem => AnsiColor::Red.on_default().bold(),
    }
}

fn summary(findings: &[Finding]) -> String {
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count() as u64;
    match (count(Level::Problem), count(Level::Note)) {
        (0, 0) => "No problems".to_string(),
        (0, notes) => format!("No problems, {}", counted(notes, "note")),
        (problems, notes) => format!("{}, {}", counted(problems, "problem"), counted(notes, "note")),
    }
}
