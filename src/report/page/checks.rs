//! The checks of several commands: a table, and what is the matter with each.

use super::compare::Summary;
use super::memory::size;
use super::plan::{name, short, verdict};
use super::{Block, Document, Page, Verdict};
use crate::ask::check::{AtOnce, CheckRow, Checks};
use crate::bytes::Bytes;
use crate::checkup::Severity;
use crate::number::thousands;
use crate::report::table::Table;

impl CheckRow {
    fn name(&self) -> &str {
        match self {
            Self::Checked(checked) => checked.name.as_deref().unwrap_or_else(|| name(&checked.model)),
            Self::Failed { name, command, .. } => name.as_deref().unwrap_or(command),
        }
    }
}

/// What commands that run at once take together.
fn at_once(all: &AtOnce, of: usize) -> [Block; 2] {
    let who = if all.commands.len() < of { all.commands.join(", ") } else { "All of them".to_string() };
    let (verdict, text) = if all.shortfall.is_empty() {
        (Verdict::Good, format!("{who} fit at once."))
    } else {
        let bad = if all.assumed_most.is_some() { Verdict::Caution } else { Verdict::Bad };
        (bad, format!("{who} at once do not fit: {}.", short(&all.shortfall)))
    };
    let router = |most| format!(" llama-server keeps up to {most} models loaded; `--models-max N` sets how many.");
    let text = text + &all.assumed_most.map(router).unwrap_or_default();
    let row = |(name, used): (&String, &Bytes)| {
        let budget = all.budget.get(name).map_or("not known".to_string(), |budget| size(*budget));
        [name.clone(), size(*used), budget]
    };
    let table = Table::rows_of("|>total|>budget", all.memory.iter().map(row));
    [Block::Verdict(verdict, text), Block::Table("Together".into(), table)]
}

impl Document for Checks {
    fn pages(&self) -> Vec<Page> {
        let devices: std::collections::BTreeSet<&str> = self
            .checks
            .iter()
            .filter_map(CheckRow::checked)
            .flat_map(|row| row.checkup.memory.keys().map(|name| row.checkup.card(name)))
            .collect();
        let mut page = Page::new("Checks", format!("{} commands", self.checks.len()), String::new());
        let row = |row: &CheckRow| {
            let checked = row.checked();
            let answer = match row {
                CheckRow::Checked(checked) => verdict(&checked.checkup).1.trim_end_matches('.').to_string(),
                CheckRow::Failed { .. } => "not answered".to_string(),
            };
            let context = checked.map_or(String::new(), |checked| thousands(checked.checkup.run.n_ctx.into()));
            let memory = devices.iter().map(|device| {
                let mut rows = checked.into_iter().flat_map(|checked| {
                    checked.checkup.memory.iter().map(|(name, row)| (checked.checkup.card(name), row))
                });
                rows.find(|(card, _)| card == device).map_or(String::new(), |(_, row)| row.counted().to_string())
            });
            [row.name().to_string(), answer, context].into_iter().chain(memory).collect::<Vec<_>>()
        };
        let columns = ["command", "answer", ">context"]
            .map(str::to_string)
            .into_iter()
            .chain(devices.iter().map(|device| format!(">{device}")));
        page.push(Block::table(
            "",
            Table::rows_of(&columns.collect::<Vec<_>>().join("|"), self.checks.iter().map(row)),
        ));
        page.push(self.at_once.iter().flat_map(|all| at_once(all, self.checks.len())));
        for row in &self.checks {
            match row {
                CheckRow::Failed { error, .. } => {
                    page.push(Block::note(Severity::Error, &format!("{}: {error}", row.name()), "not-answered", None));
                }
                CheckRow::Checked(checked) => {
                    let lints = checked.checkup.lints.iter();
                    page.push(lints.filter(|lint| lint.severity <= Severity::Warning).map(|lint| {
                        Block::note(
                            lint.severity,
                            &format!("{}: {}", row.name(), lint.message),
                            &lint.code,
                            lint.hint.as_deref(),
                        )
                    }));
                }
            }
        }
        let commands = self.checks.iter().filter_map(|row| Some((row.name(), row.checked()?.command.clone())));
        page.detail(commands.map(|(name, command)| Block::Command(name.to_string(), command)));
        vec![page]
    }

    fn summaries(&self) -> Vec<Summary> {
        self.checks.iter().filter_map(CheckRow::checked).flat_map(Document::summaries).collect()
    }
}
