//! What of a computer helps or hinders moeplan: facts in, findings out, each with what to do about it.

pub mod environment;
pub mod facts;
mod host;
mod runtime;

use serde::Serialize;

pub use facts::Facts;

/// The document `moeplan/doctor/1`.
#[derive(Debug, Serialize)]
pub struct Doctor<'a> {
    /// Always `moeplan/doctor/1`.
    pub schema: &'static str,
    /// Whether no finding is a problem.
    pub ok: bool,
    /// In the order of [`Area`].
    pub findings: Vec<Finding>,
    /// What they were found from.
    pub facts: &'a Facts,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The llama.cpp that can be run.
    Runtime,
    /// What weights can be offloaded to.
    Devices,
    /// Main memory and its limits.
    Memory,
    /// Folders that are written to.
    Disk,
    /// What was learned of this machine before.
    Knowledge,
    /// Variables and configuration files.
    Environment,
}

impl Area {
    /// As a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Runtime => "Runtime",
            Self::Devices => "Devices",
            Self::Memory => "Memory",
            Self::Disk => "Disk",
            Self::Knowledge => "Known of this machine",
            Self::Environment => "Environment",
        }
    }
}

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; every command works, and its answers are right.
    Note,
    /// Keeps a command from working, or makes an answer about this machine wrong.
    Problem,
}

impl Level {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// How much it matters.
    pub level: Level,
    /// Its name, which does not change.
    pub code: &'static str,
    /// What was found; may hold strangers' text.
    pub message: String,
    /// What to do about it; `None` where there is nothing to do.
    pub hint: Option<String>,
}

impl Finding {
    fn ok(area: Area, code: &'static str, message: impl Into<String>) -> Self {
        Self { area, level: Level::Ok, code, message: message.into(), hint: None }
    }

    fn note(area: Area, code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { area, level: Level::Note, code, message: message.into(), hint: Some(hint.into()) }
    }

    fn problem(area: Area, code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { level: Level::Problem, ..Self::note(area, code, message, hint) }
    }
}

/// Judges the facts.
pub fn examine(facts: &Facts) -> Doctor<'_> {
    let mut findings = runtime::findings(facts);
    findings.extend(host::findings(facts));
    findings.extend(environment::findings(facts));
    findings.sort_by_key(|finding| finding.area);
    let ok = findings.iter().all(|finding| finding.level != Level::Problem);
    Doctor { schema: "moeplan/doctor/1", ok, findings, facts }
}

#[cfg(test)]
mod tests;
