//! The check document for people: a table of memory, the verdict, the overrides, what is wrong.

use std::fmt::Write as _;

use super::bar::bar;
use super::page::markdown::fence;
use super::table::{Align, Table};
use crate::bytes::Bytes;
use crate::checkup::basis::BUDGET;
use crate::checkup::{Checkup, Severity};
use crate::escape;
use crate::memory::Basis;
use crate::number::{share, thousands};

/// Columns of a bar.
const BAR: usize = 20;

/// For a terminal; with where the figures come from where that is asked for.
pub fn text(checkup: &Checkup, with_basis: bool) -> String {
    let mut out = memory(checkup).text();
    let _ = writeln!(out, "\n{}", verdict(checkup));
    for line in uncounted(checkup) {
        let _ = writeln!(out, "{}", escape::terminal(&line));
    }
    let _ = writeln!(out, "{}", launch(checkup));
    for note in budget_notes(checkup) {
        let _ = writeln!(out, "{note}.");
    }
    if let Some(span) = checkup.mapped_span {
        let _ = writeln!(
            out,
            "A launch with mapped files logs CPU_Mapped as {span}: the span in the file, not what it needs."
        );
    }
    for table in [overrides(checkup), tensors(checkup)].into_iter().filter(|table| !table.is_empty()) {
        let _ = write!(out, "\n{}", table.text());
    }
    if with_basis {
        let _ = write!(out, "\n{}", basis(checkup).text());
    }
    for lint in &checkup.lints {
        let _ = writeln!(out, "\n{}: {} [{}]", word(lint.severity), escape::terminal(&lint.message), lint.code);
        if let Some(hint) = &lint.hint {
            let _ = writeln!(out, "   hint: {}", escape::terminal(hint));
        }
    }
    out
}

/// What was checked; both are strangers' text.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The model, as the command names it.
    pub model: &'a str,
    /// The command, quoted for a shell.
    pub command: &'a str,
}

/// The same as Markdown, under what was checked.
pub fn markdown(checkup: &Checkup, asked: &Asked<'_>) -> String {
    let mut out = format!("## {}\n\n", escape::markdown(asked.model));
    fence(&mut out, "sh", asked.command);
    out += "\n";
    out += &memory(checkup).markdown();
    let _ = writeln!(out, "\n**{}**\n\n{}", escape::markdown(&verdict(checkup)), escape::markdown(&launch(checkup)));
    for line in uncounted(checkup) {
        let _ = writeln!(out, "\n{}", escape::markdown(&line));
    }
    for note in budget_notes(checkup) {
        let _ = writeln!(out, "\n{}.", escape::markdown(&note));
    }
    for table in [overrides(checkup), tensors(checkup)].into_iter().filter(|table| !table.is_empty()) {
        let _ = write!(out, "\n{}", table.markdown());
    }
    for lint in &checkup.lints {
        let hint = lint.hint.as_deref().map(|hint| format!(" {}.", escape::markdown(hint))).unwrap_or_default();
        let _ = write!(out, "\n> **{}**: {}.{hint}\n", lint.code, escape::markdown(&lint.message));
    }
    out
}

/// Where budgets come from that are no exact figures.
fn budget_notes(checkup: &Checkup) -> impl Iterator<Item = String> {
    let of_device = |row: &Basis| Some(format!("{}: {}", row.quantity.strip_suffix(BUDGET)?, row.how));
    checkup.basis.iter().filter_map(of_device)
}

/// Memory by device.
pub(super) fn memory(checkup: &Checkup) -> Table {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("model", Align::Right),
        ("context", Align::Right),
        ("compute", Align::Right),
        ("overhead", Align::Right),
        ("total", Align::Right),
        ("budget", Align::Right),
        ("", Align::Left),
    ]);
    for (key, row) in &checkup.memory {
        let budget = checkup.budget.get(key);
        let part = budget.map_or(0.0, |budget| share(row.counted().0, budget.0));
        let size = |bytes: Option<Bytes>| match bytes {
            None => "not counted".to_string(),
            Some(Bytes(0)) => "0".to_string(),
            Some(bytes) => bytes.to_string(),
        };
        table.row([
            key.clone(),
            size(Some(row.model)),
            size(row.context),
            size(row.compute),
            size(row.overhead),
            size(row.total),
            budget.map(ToString::to_string).unwrap_or_default(),
            bar(part, BAR),
        ]);
    }
    table
}

/// Yes or no, and by how much.
fn verdict(checkup: &Checkup) -> String {
    let refused = checkup.is_refused();
    match checkup.fits {
        Some(true) if refused => return "Would fit, but llama.cpp refuses the command.".into(),
        Some(true) => return "Fits.".into(),
        None if refused => return "llama.cpp refuses the command.".into(),
        None => return "Whether it fits cannot be told.".into(),
        Some(false) => {}
    }
    let over: Vec<String> = checkup.shortfall.iter().map(|(key, bytes)| format!("{key} by {bytes}")).collect();
    let refused = if refused { "; and llama.cpp refuses the command" } else { "" };
    format!("Does not fit: {}{refused}.", over.join(", "))
}

/// What is not in the table, a line for each reason.
pub(super) fn uncounted(checkup: &Checkup) -> Vec<String> {
    let mut reasons: Vec<&str> = checkup.uncounted.iter().map(|term| term.reason.as_str()).collect();
    reasons.dedup();
    let terms = |reason: &&str| {
        let of = checkup.uncounted.iter().filter(|term| term.reason == **reason).map(|term| term.what);
        format!("Not counted: {}. Reason: {reason}.", of.collect::<Vec<_>>().join(", "))
    };
    reasons.iter().map(terms).collect()
}

/// The launch in a line.
fn launch(checkup: &Checkup) -> String {
    let run = &checkup.run;
    let cache =
        if run.type_k == run.type_v { run.type_k.to_string() } else { format!("{}/{}", run.type_k, run.type_v) };
    let slots = match (run.n_seq_max(), run.kv_unified == Some(true)) {
        (1, _) => "1 sequence".to_string(),
        (n, true) => format!("{n} sequences sharing one cache"),
        (n, false) => format!("{n} sequences of {} tokens", thousands(u64::from(run.n_ctx_seq))),
    };
    let context = thousands(u64::from(run.n_ctx));
    format!("Context {context} tokens ({cache} cache), {slots}, batch {} / {}.", run.n_batch, run.n_ubatch)
}

/// The overrides and what they did, those of one counting flag in one row.
fn overrides(checkup: &Checkup) -> Table {
    let mut table = Table::new(&[
        ("override", Align::Left),
        ("to", Align::Left),
        ("tensors", Align::Right),
        ("bytes", Align::Right),
        ("from", Align::Left),
    ]);
    for group in &checkup.override_groups {
        let from = match (group.rules, group.shadowed_by) {
            (1, Some(rule)) => format!("{} (shadowed by {})", group.origin, row_of(checkup, rule)),
            (1, None) => group.origin.clone(),
            (n, _) => format!("{} ({n} rules)", group.origin),
        };
        table.row([
            group.pattern.clone(),
            group.buffer.clone(),
            group.tensors.to_string(),
            group.bytes.to_string(),
            from,
        ]);
    }
    table
}

/// In which row of the table an override is, counted from 1.
fn row_of(checkup: &Checkup, rule: usize) -> usize {
    checkup.override_groups.iter().take_while(|group| group.first <= rule).count()
}

/// Where the figures come from.
fn basis(checkup: &Checkup) -> Table {
    let mut table = Table::new(&[("figure", Align::Left), ("basis", Align::Left)]);
    for row in &checkup.basis {
        table.row([row.quantity.clone(), row.how.clone()]);
    }
    table
}

/// Every tensor, where asked for.
fn tensors(checkup: &Checkup) -> Table {
    let mut table = Table::new(&[
        ("tensor", Align::Left),
        ("type", Align::Left),
        ("bytes", Align::Right),
        ("buffer", Align::Left),
        ("rule", Align::Right),
    ]);
    for row in checkup.tensors.iter().flatten() {
        table.row([
            row.name.clone(),
            row.ty.to_string(),
            thousands(row.bytes.0),
            row.buffer.clone().unwrap_or_else(|| "not loaded".into()),
            row.rule.map(|rule| row_of(checkup, rule).to_string()).unwrap_or_default(),
        ]);
    }
    table
}

/// How bad, in a word.
pub(super) fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "note",
    }
}
