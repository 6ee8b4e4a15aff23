//! What is wrong or surprising about a command: each lint has a stable code, a severity, a cause and a remedy.
//!
//! A lint is one row of `LINTS` and one function; what reading the command already noted is in `NOTES`. `docs/lints.md` has
//! a section for each code.

mod devices;
mod launch;
mod rules;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{OverrideGroup, OverrideRow, RefusedCaches};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::memory::Forecast;
use crate::model::Model;
use crate::run::{Note, ParsedCommand, RunConfig};

/// Something wrong or surprising.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Lint {
    pub code: Cow<'static, str>,
    pub severity: Severity,
    pub message: String,
    pub hint: Option<String>,
}

/// How bad a lint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
    Info,
}

/// Everything that a lint may look at.
pub(super) struct Facts<'a> {
    pub model: &'a Model,
    pub machine: &'a Machine,
    pub command: &'a ParsedCommand,
    pub run: &'a RunConfig,
    pub forecast: &'a Forecast,
    pub overrides: &'a [OverrideRow],
    /// The same with the entries of a counting flag together.
    pub groups: &'a [OverrideGroup],
    /// Whether a device's budget is passed.
    pub short: bool,
    pub refused_caches: RefusedCaches,
    pub cache_problem: Option<crate::memory::expert_cache::Problem>,
}

/// Cause and remedy.
pub(super) struct Finding {
    message: String,
    hint: Option<String>,
}

/// A finding with both.
#[expect(clippy::unnecessary_wraps, reason = "it is how a lint ends")]
fn found(message: impl Into<String>, hint: impl Into<String>) -> Option<Finding> {
    Some(Finding { message: message.into(), hint: Some(hint.into()) })
}

/// One lint.
struct Rule {
    code: &'static str,
    severity: Severity,
    find: fn(&Facts<'_>) -> Option<Finding>,
}

/// A row of the table.
const fn rule(code: &'static str, severity: Severity, find: fn(&Facts<'_>) -> Option<Finding>) -> Rule {
    Rule { code, severity, find }
}

/// Every lint of a whole command, in the order in which they are told within a severity.
const LINTS: &[Rule] = &[
    rule("quantized-v-without-flash-attention", Severity::Error, launch::quantized_v),
    rule("cache-types-differ", Severity::Error, launch::cache_types_differ),
    rule("expert-cache-refused", Severity::Error, launch::expert_cache_refused),
    rule("unknown-architecture", Severity::Error, launch::unknown_architecture),
    rule("mtp-without-nextn", Severity::Error, launch::mtp_without_nextn),
    rule("unknown-build", Severity::Warning, launch::unknown_build),
    rule("rule-matches-nothing", Severity::Warning, rules::matches_nothing),
    rule("rule-beaten-by-environment", Severity::Warning, rules::beaten_by_environment),
    rule("rule-after-cpu-moe", Severity::Warning, rules::after_cpu_moe),
    rule("rule-shadowed", Severity::Warning, rules::shadowed),
    rule("block-number-open", Severity::Warning, rules::block_number_open),
    rule("device-not-used", Severity::Warning, rules::device_not_used),
    rule("ncmoe-beside-cmoe", Severity::Warning, rules::ncmoe_beside_cmoe),
    rule("ncmoe-counts-dense-blocks", Severity::Warning, rules::ncmoe_counts_dense_blocks),
    rule("ngl-leaves-block-0", Severity::Warning, launch::ngl_leaves_block_0),
    rule("output-on-host", Severity::Warning, launch::output_on_host),
    rule("ubatch-beyond-batch", Severity::Warning, launch::ubatch_beyond_batch),
    rule("fit-gives-up", Severity::Warning, launch::fit_gives_up),
    rule("fit-cuts-context", Severity::Warning, launch::fit_cuts_context),
    rule("pinned-memory-beyond-ram", Severity::Warning, launch::pinned_beyond_ram),
    rule("shared-memory", Severity::Warning, launch::shared_memory),
    rule("mapped-beyond-ram", Severity::Warning, launch::mapped_beyond_ram),
    rule("repacked-experts-not-offloaded", Severity::Warning, launch::repacked_not_offloaded),
    rule("expert-cache-unused", Severity::Warning, launch::expert_cache_unused),
    rule("rpc-not-named", Severity::Warning, devices::rpc_not_named),
    rule("no-tensor-split", Severity::Warning, devices::no_tensor_split),
    rule("experts-on-one-device", Severity::Warning, devices::experts_on_one_device),
    rule("latent-cache-type", Severity::Warning, launch::latent_cache_type),
    rule("fit-would-change", Severity::Info, launch::fit_would_change),
    rule("ngl-leaves-blocks", Severity::Info, launch::ngl_leaves_blocks),
    rule("mmap-with-host-overrides", Severity::Info, launch::mmap_with_host_overrides),
    rule("repack-lost", Severity::Info, launch::repack_lost),
    rule("slots-multiply-states", Severity::Info, launch::slots_multiply_states),
    rule("slots-share-context", Severity::Info, launch::slots_share_context),
    rule("overrides-stop-pipeline", Severity::Info, devices::overrides_stop_pipeline),
    rule("copies-on-first-device", Severity::Info, devices::copies_on_first_device),
];

/// What reading a command notes, and how bad each is.
const NOTES: &[(&str, Severity)] = &[
    ("unknown-flag", Severity::Error),
    ("flag-not-known", Severity::Warning),
    ("removed-flag", Severity::Error),
    ("flag-of-newer-build", Severity::Error),
    ("flag-needs-value", Severity::Error),
    ("number-cut-short", Severity::Warning),
    ("pattern-split-by-comma", Severity::Error),
    ("pattern-split-by-equals", Severity::Error),
    ("pattern-quoted", Severity::Error),
    ("other-dialect", Severity::Warning),
    ("config-file-read", Severity::Warning),
    ("projector", Severity::Warning),
    ("first-variant", Severity::Info),
    ("what-if", Severity::Info),
    ("imatrix-needed", Severity::Warning),
    ("requantized", Severity::Warning),
];

/// Every code there is; the manual has a section for each.
pub fn codes() -> impl Iterator<Item = (&'static str, Severity)> {
    NOTES.iter().copied().chain(LINTS.iter().map(|rule| (rule.code, rule.severity)))
}

/// The lints of a command: errors first, at most one of each code.
pub(super) fn lints(facts: &Facts<'_>) -> Vec<Lint> {
    let mut lints = noted(&facts.command.notes);
    lints.extend(LINTS.iter().filter_map(|rule| {
        let Finding { message, hint } = (rule.find)(facts)?;
        Some(Lint { code: rule.code.into(), severity: rule.severity, message, hint })
    }));
    lints.sort_by_key(|lint| lint.severity);
    lints
}

/// The notes, those of one code in one lint.
fn noted(notes: &[Note]) -> Vec<Lint> {
    let mut lints: Vec<Lint> = Vec::new();
    for note in notes {
        if let Some(lint) = lints.iter_mut().find(|lint| lint.code == note.code) {
            lint.message = format!("{}; {}", lint.message, note.message);
            match (&mut lint.hint, &note.hint) {
                (Some(all), Some(hint)) if !all.contains(hint.as_str()) => *all = format!("{all}; {hint}"),
                (hint @ None, Some(_)) => hint.clone_from(&note.hint),
                _ => {}
            }
            continue;
        }
        let severity = NOTES.iter().find(|(code, _)| *code == note.code).map_or(Severity::Warning, |(_, how)| *how);
        lints.push(Lint { code: note.code.clone(), severity, message: note.message.clone(), hint: note.hint.clone() });
    }
    lints
}

impl Facts<'_> {
    /// Whether any device takes part.
    fn has_devices(&self) -> bool {
        !self.forecast.placement.devices.is_empty()
    }

    /// Names of the devices that take part.
    fn device_names(&self) -> Vec<&str> {
        self.forecast.placement.taking_part(self.machine).map(|(_, device)| device.name.as_str()).collect()
    }

    /// Main memory, where it is known.
    fn ram(&self) -> Option<Bytes> {
        self.machine.host.ram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_in_kebab_case() {
        let mut all: Vec<&str> = codes().map(|(code, _)| code).collect();
        assert!(all.iter().all(|code| code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')));
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }

    #[test]
    fn notes_of_one_code_become_one_lint() {
        let note = |message: &str, hint: Option<&str>| Note {
            code: "removed-flag".into(),
            message: message.into(),
            hint: hint.map(str::to_string),
        };
        let lints = noted(&[note("a", None), note("b", Some("x")), note("c", Some("x")), note("d", Some("y"))]);
        assert_eq!(lints.len(), 1);
        assert_eq!((lints[0].message.as_str(), lints[0].hint.as_deref()), ("a; b; c; d", Some("x; y")));
    }
}
