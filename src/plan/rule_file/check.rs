//! What a rule file does to a model, rule by rule: what each matches, what an earlier one took, what goes where.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::fill::Resolution;
use super::{Action, Fill, PlacementRule, RuleFile, Select, kind, shown};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::model::Model;

/// The `moeplan/rules/1` document.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RulesCheck {
    pub schema: &'static str,
    pub name: String,
    /// Its own description; a stranger's text.
    pub description: String,
    /// Bytes of all tensors of the model; `None` without one.
    pub model_bytes: Option<Bytes>,
    pub rules: Vec<RuleRow>,
    /// What no rule is about; `None` without a model.
    pub unmatched: Option<Count>,
    /// Whether the rules were carried out; not where one fills devices and model or machine is not known.
    pub carried_out: bool,
    /// The rules as `-ot` takes them; empty where they were not carried out.
    pub overrides: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuleRow {
    /// In the file, from 1.
    pub line: u32,
    /// In the file, from 1.
    pub column: u32,
    pub tensors: String,
    pub to: String,
    pub matches: Count,
    /// What it decides: an earlier rule decided the rest.
    pub decides: Count,
    pub blocks: String,
    pub shadowed: Vec<Shadow>,
    /// What a rule that fills put where, by buffer type.
    pub filled: BTreeMap<String, Count>,
    pub warnings: Vec<String>,
}

/// Tensors and their bytes in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Count {
    pub tensors: usize,
    pub bytes: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Shadow {
    pub line: u32,
    #[serde(flatten)]
    pub count: Count,
}

/// What `file` does to `model` on `machine`, filled as in `resolution`.
pub fn check(
    name: &str,
    file: &RuleFile,
    model: Option<&Model>,
    machine: Option<&Machine>,
    resolution: Option<&Resolution>,
) -> RulesCheck {
    let mut rows: Vec<RuleRow> = file.rules.iter().map(described).collect();
    let mut owner: BTreeMap<usize, u32> = BTreeMap::new();
    for (at, (rule, row)) in file.rules.iter().zip(&mut rows).enumerate() {
        row.warnings.extend(machine.and_then(|machine| unknown_buffer(rule, machine)));
        let Some(model) = model else { continue };
        counted(rule, row, model, &mut owner);
        for (buffer, tensors) in resolution.and_then(|resolution| resolution.filled.get(at)).into_iter().flatten() {
            row.filled.insert(buffer.clone(), count(model, tensors));
        }
    }
    let unmatched = model.map(|model| {
        let rest = (0..model.tensors.len()).filter(|at| !owner.contains_key(at)).collect();
        count(model, &rest)
    });
    let told = |resolution: &Resolution| {
        resolution.overrides.iter().map(|entry| format!("{}={}", entry.pattern, entry.buffer)).collect()
    };
    RulesCheck {
        schema: "moeplan/rules/1",
        name: name.to_string(),
        description: file.description.clone(),
        model_bytes: model.map(|model| model.tensors.iter().map(|tensor| tensor.bytes).sum()),
        rules: rows,
        unmatched,
        carried_out: resolution.is_some(),
        overrides: resolution.map(told).unwrap_or_default(),
    }
}

/// A buffer that the machine does not have.
fn unknown_buffer(rule: &PlacementRule, machine: &Machine) -> Option<String> {
    let (Action::Buffer(buffer) | Action::Fill(Fill { then: buffer, .. })) = &rule.action;
    let known: Vec<&str> = ["CPU"].into_iter().chain(machine.devices.iter().map(|d| d.buffer.as_str())).collect();
    if known.contains(&buffer.as_str()) {
        return None;
    }
    let same = known.iter().find(|name| name.eq_ignore_ascii_case(buffer));
    let meant = same.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
    Some(format!("`{buffer}` is no buffer of this machine, which has {}{meant}", known.join(", ")))
}

fn described(rule: &PlacementRule) -> RuleRow {
    let tensors = match &rule.select {
        Select::Pattern(pattern) => format!("/{pattern}/"),
        Select::Role { role, kinds, .. } if kinds.is_empty() => role.key().to_string(),
        Select::Role { role, kinds, .. } => format!("{} ({})", role.key(), kinds.join(", ")),
    };
    let to = match &rule.action {
        Action::Buffer(buffer) => buffer.clone(),
        Action::Fill(fill) => {
            let amount = |(device, amount): &(String, Option<Bytes>)| match amount {
                Some(bytes) => format!("{device} to {bytes}"),
                None => format!("{device} to its budget"),
            };
            let devices: Vec<String> = fill.devices.iter().map(amount).collect();
            let order = if fill.order.is_empty() { String::new() } else { format!(" by {}", fill.order.join(", ")) };
            let from = if fill.from_first { "first" } else { "last" };
            format!("fill {}{order}, {from} blocks before others; then {}", devices.join(", "), fill.then)
        }
    };
    let (line, column) = (rule.position.line, rule.position.column);
    RuleRow { line, column, tensors, to, ..RuleRow::default() }
}

/// Counts what the rule is about and what is left of it.
fn counted(rule: &PlacementRule, row: &mut RuleRow, model: &Model, owner: &mut BTreeMap<usize, u32>) {
    let matched = rule.select.tensors(model);
    row.matches = count(model, &matched);
    let mut taken: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
    let mut mine = BTreeSet::new();
    for at in &matched {
        match owner.get(at) {
            Some(line) => taken.entry(*line).or_default().insert(*at),
            None => mine.insert(*at),
        };
    }
    owner.extend(mine.iter().map(|at| (*at, rule.position.line)));
    row.decides = count(model, &mine);
    row.blocks = shown(&mine.iter().filter_map(|at| model.tensors.get(*at)?.block).collect());
    row.shadowed = taken.into_iter().map(|(line, tensors)| Shadow { line, count: count(model, &tensors) }).collect();
    if matched.is_empty() {
        row.warnings.push(nothing(rule, model));
    } else if mine.is_empty() {
        let lines: Vec<String> = row.shadowed.iter().map(|shadow| shadow.line.to_string()).collect();
        row.warnings.push(format!("decides nothing: line {} takes all that it matches", lines.join(", ")));
    }
    if let Action::Fill(fill) = &rule.action {
        let kinds: BTreeSet<&str> = matched.iter().filter_map(|at| Some(kind(model.tensors.get(*at)?))).collect();
        let has = |wanted: &str| kinds.iter().any(|kind| *kind == wanted || kind.split('_').any(|part| part == wanted));
        for wanted in fill.order.iter().filter(|wanted| !matched.is_empty() && !has(wanted)) {
            let known: Vec<&str> = kinds.iter().copied().collect();
            row.warnings.push(format!("`order` names `{wanted}`, of which it has none (it has {})", known.join(", ")));
        }
    }
}

/// Why a rule matches nothing, as far as the model tells.
fn nothing(rule: &PlacementRule, model: &Model) -> String {
    let Select::Role { role, kinds, .. } = &rule.select else {
        return "matches nothing: no tensor's name has this regex in it".to_string();
    };
    let of_role = || model.tensors.iter().filter(|tensor| tensor.role == *role);
    if of_role().next().is_none() {
        return format!("matches nothing: this model has no {}", role.words());
    }
    let of_kind =
        of_role().filter(|tensor| kinds.is_empty() || kinds.iter().any(|wanted| super::is_of_kind(tensor, wanted)));
    let blocks: BTreeSet<u32> = of_kind.filter_map(|tensor| tensor.block).collect();
    if !blocks.is_empty() {
        return format!("matches nothing: its tensors of {} are in blocks {}", role.words(), shown(&blocks));
    }
    let known: BTreeSet<&str> = of_role().map(kind).collect();
    format!(
        "matches nothing: its tensors of {} are of the kinds {}",
        role.words(),
        known.into_iter().collect::<Vec<_>>().join(", ")
    )
}

fn count(model: &Model, tensors: &BTreeSet<usize>) -> Count {
    let bytes = tensors.iter().filter_map(|at| model.tensors.get(*at)).map(|tensor| tensor.bytes).sum();
    Count { tensors: tensors.len(), bytes }
}
