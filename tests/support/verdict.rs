//! What comparing two memory tables says, and the sums over many.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use moeplan::bytes::{Bytes, MIB};
use moeplan::memory::{MemoryBreakdown, MemoryByDevice};

use super::random_launch::Case;

/// What was found of one case.
#[derive(Debug)]
pub enum Verdict {
    /// Both answered.
    Compared {
        /// Our prediction.
        ours: MemoryByDevice,
        /// llama.cpp's projection.
        theirs: MemoryByDevice,
    },
    /// Both say no.
    BothRefuse,
    /// llama.cpp's process ended: an assertion of its own.
    Died {
        /// Whether we refuse.
        refused: bool,
        /// Its last words.
        log: Vec<String>,
    },
    /// We predict what llama.cpp refuses.
    OnlyTheyRefuse(String),
    /// We refuse what llama.cpp takes.
    OnlyWeRefuse(String),
}

/// A column of the tables.
type Term = fn(&MemoryBreakdown) -> Bytes;

/// Each cell of a column: where, ours, theirs.
fn cells<'a>(ours: &'a MemoryByDevice, theirs: &'a MemoryByDevice, term: Term) -> Vec<(&'a str, u64, u64)> {
    let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let of = |table: &MemoryByDevice, key: &String| table.get(key).map_or(0, |row| term(row).0);
    keys.into_iter().map(|key| (key.as_str(), of(ours, key), of(theirs, key))).collect()
}

/// The cells of a column that differ, in words.
fn differences(ours: &MemoryByDevice, theirs: &MemoryByDevice, term: Term, name: &str) -> String {
    let mut text = String::new();
    for (key, p, m) in cells(ours, theirs, term).into_iter().filter(|(_, p, m)| p != m) {
        let _ = write!(text, " {name} {key} ours {p} theirs {m} ({:+})", i128::from(p) - i128::from(m));
    }
    text
}

fn within(ours: u64, theirs: u64) -> bool {
    ours.abs_diff(theirs) <= MIB.max(theirs / 100)
}

impl Verdict {
    /// Whether model, context or a refusal disagree. A death of llama.cpp's is no refusal: it is only counted.
    pub fn is_wrong(&self) -> bool {
        match self {
            Self::Compared { ours, theirs } => {
                let terms: [Term; 2] = [|row| row.model, |row| row.context];
                terms.into_iter().any(|term| cells(ours, theirs, term).iter().any(|(_, p, m)| p != m))
            }
            Self::BothRefuse | Self::Died { .. } => false,
            Self::OnlyTheyRefuse(_) | Self::OnlyWeRefuse(_) => true,
        }
    }

    /// Compute cells: ours and theirs.
    fn compute(&self) -> Vec<(u64, u64)> {
        let Self::Compared { ours, theirs } = self else { return Vec::new() };
        let all = cells(ours, theirs, |row| row.compute);
        all.into_iter().map(|(_, p, m)| (p, m)).filter(|(p, m)| p + m > 0).collect()
    }

    /// In words; with the compute column too where `whole`.
    pub fn describe(&self, whole: bool) -> String {
        match self {
            Self::Compared { ours, theirs } => {
                let model = differences(ours, theirs, |row| row.model, "model");
                let context = differences(ours, theirs, |row| row.context, "context");
                let compute = differences(ours, theirs, |row| row.compute, "compute");
                let text = format!("{model}{context}{}", if whole { compute.as_str() } else { "" });
                if text.is_empty() { "all equal".to_string() } else { text.trim_start().to_string() }
            }
            Self::BothRefuse => "both refuse".to_string(),
            Self::Died { refused, log } => {
                format!("llama.cpp died, we {}: {}", if *refused { "refuse" } else { "answer" }, log.join(" | "))
            }
            Self::OnlyTheyRefuse(why) => format!("only llama.cpp refuses: {why}"),
            Self::OnlyWeRefuse(why) => format!("only we refuse: {why}"),
        }
    }
}

/// Sums over cases.
#[derive(Debug, Default)]
pub struct Score {
    /// All.
    pub cases: usize,
    /// Those that disagree on model, context or refusal.
    pub wrong: usize,
    compared: usize,
    refused: usize,
    died: usize,
    died_unrefused: usize,
    within: usize,
    cells: usize,
    cells_exact: usize,
    cells_within: usize,
    /// By flag or model: cases compared, cases with a compute cell outside.
    by_flag: BTreeMap<String, (usize, usize)>,
    by_model: BTreeMap<String, (usize, usize)>,
    /// The largest miss of each model: relative error and the line.
    worst: BTreeMap<String, (f64, String)>,
    deaths: BTreeMap<String, (usize, String)>,
}

#[expect(clippy::cast_precision_loss, reason = "ratios for people")]
fn share(part: usize, all: usize) -> f64 {
    part as f64 / all.max(1) as f64
}

impl Score {
    /// Counts one case; `replay` is its replay line.
    pub fn add(&mut self, replay: &str, case: &Case, verdict: &Verdict) {
        self.cases += 1;
        self.wrong += usize::from(verdict.is_wrong());
        match verdict {
            Verdict::Compared { .. } => self.compared += 1,
            Verdict::Died { refused, log } => {
                self.died += 1;
                self.died_unrefused += usize::from(!refused);
                let assertion = log.iter().find(|line| line.contains("ASSERT"));
                let words = assertion.map_or("no last words", |line| line.rsplit('/').next().unwrap_or_default());
                self.deaths.entry(words.to_string()).or_insert((0, replay.to_string())).0 += 1;
                return;
            }
            _ => {
                self.refused += 1;
                return;
            }
        }
        let compute = verdict.compute();
        self.cells += compute.len();
        self.cells_exact += compute.iter().filter(|(p, m)| p == m).count();
        self.cells_within += compute.iter().filter(|(p, m)| within(*p, *m)).count();
        let good = compute.iter().all(|(p, m)| within(*p, *m));
        self.within += usize::from(good);
        let model = replay.split(' ').nth(1).unwrap_or_default().to_string();
        let count = |table: &mut BTreeMap<String, (usize, usize)>, name| {
            let row = table.entry(name).or_default();
            row.0 += 1;
            row.1 += usize::from(!good);
        };
        count(&mut self.by_model, model.clone());
        for name in case.flag_names() {
            count(&mut self.by_flag, name);
        }
        #[expect(clippy::cast_precision_loss, reason = "ratios for people")]
        let error = |(p, m): &(u64, u64)| p.abs_diff(*m) as f64 / (*m).max(16 * MIB) as f64;
        if !good {
            let largest = compute.iter().map(error).fold(0.0, f64::max);
            let worst = self.worst.entry(model).or_default();
            if largest >= worst.0 {
                *worst = (largest, format!("{replay}\n    {}", verdict.describe(true)));
            }
        }
    }

    /// The share of compared cases whose compute cells are all within 1% or 1 MiB.
    pub fn share_within(&self) -> f64 {
        share(self.within, self.compared)
    }

    /// For people.
    pub fn report(&self) -> String {
        let mut text = format!(
            "{} cases: {} compared, {} refused by both or one, {} deaths of llama.cpp ({} that we answer), {} disagreements\n",
            self.cases, self.compared, self.refused, self.died, self.died_unrefused, self.wrong
        );
        let _ = writeln!(
            text,
            "compute within 1% or 1 MiB: {:.2}% of cases, {:.2}% of {} cells; exact {:.2}% of cells",
            100.0 * self.share_within(),
            100.0 * share(self.cells_within, self.cells),
            self.cells,
            100.0 * share(self.cells_exact, self.cells)
        );
        for (title, table) in [("flag", &self.by_flag), ("model", &self.by_model)] {
            let mut rows: Vec<_> = table.iter().filter(|(_, (_, missed))| *missed > 0).collect();
            rows.sort_by(|a, b| share(b.1.1, b.1.0).total_cmp(&share(a.1.1, a.1.0)));
            let rows = rows.iter().map(|(name, (all, missed))| format!("{name} {missed}/{all}"));
            let _ = writeln!(text, "compute missed by {title}: {}", rows.collect::<Vec<_>>().join(", "));
        }
        for (words, (count, example)) in &self.deaths {
            let _ = writeln!(text, "died {count}: {words}\n    {example}");
        }
        for (error, line) in self.worst.values() {
            let _ = writeln!(text, "compute off by {:.1}%: {line}", 100.0 * error);
        }
        text
    }
}
