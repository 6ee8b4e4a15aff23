//! Lints of the override list: what a rule matches, what it decides, what was probably meant.

use std::collections::BTreeSet;

use super::super::{OverrideGroup, OverrideRow};
use super::{Facts, Finding, found};
use crate::placement::pattern::{self, Pattern};
use crate::rules::Role;

/// Whether a person wrote the rule (`-ot`), rather than a flag that stands for rules.
fn written(row: &OverrideRow) -> bool {
    matches!(row.origin.replace('_', "-").as_str(), "-ot" | "--override-tensor" | "LLAMA-ARG-OVERRIDE-TENSOR")
}

/// Whether the rule comes from the environment.
fn of_environment(row: &OverrideRow) -> bool {
    row.origin.starts_with("LLAMA_ARG_")
}

/// A rule as it was typed.
fn shown(row: &OverrideRow) -> String {
    if written(row) { format!("`{} {}={}`", row.origin, row.pattern, row.buffer) } else { format!("`{}`", row.origin) }
}

/// The first of some rules, and how many more there are.
fn first_of(rows: &[&OverrideRow]) -> Option<String> {
    let first = shown(rows.first()?);
    Some(match rows.len() {
        1 => first,
        n => format!("{first} (and {} more)", n - 1),
    })
}

/// No tensor matches.
pub(super) fn matches_nothing(facts: &Facts<'_>) -> Option<Finding> {
    // `-ncmoe N` makes N entries; one that finds no experts in a dense block is no mistake of its own.
    let of_group = facts.groups.iter().flat_map(|group| {
        let rows = facts.overrides.get(group.first..group.first + group.rules).unwrap_or_default();
        let dead = |row: &&OverrideRow| row.matches == 0;
        match rows.first() {
            Some(first) if written(first) => rows.iter().filter(dead).collect(),
            // That it counts dense blocks is a lint of its own.
            Some(_) if dense_lead(facts, group).is_some() => Vec::new(),
            Some(first) if rows.iter().all(|row| dead(&row)) => vec![first],
            _ => Vec::new(),
        }
    });
    let rows: Vec<&OverrideRow> = of_group.collect();
    let hint = if rows.iter().any(|row| row.pattern.contains(['"', '\''])) {
        "the quotes are part of the pattern: leave the inner ones out"
    } else if rows.iter().all(|row| !written(row)) {
        "the model has no routed experts to move: leave the flag out"
    } else {
        "`moeplan inspect MODEL --tensors` lists the names"
    };
    found(format!("{} matches no tensor of this model", first_of(&rows)?), hint)
}

/// Rules of a person that match but decide nothing, by the rule before them.
fn dead<'a>(
    facts: &'a Facts<'_>,
    by: impl Fn(&OverrideRow, &OverrideRow) -> bool,
) -> Option<(String, &'a OverrideRow)> {
    let mut first = None;
    let mut rows = Vec::new();
    for row in facts.overrides.iter().filter(|row| written(row) && row.tensors == 0) {
        if let Some(winner) = row.shadowed_by.and_then(|index| facts.overrides.get(index)).filter(|w| by(row, w)) {
            first.get_or_insert(winner);
            rows.push(row);
        }
    }
    Some((first_of(&rows)?, first?))
}

/// Whether the winner comes from the environment and the rule from the command line.
fn environment_wins(row: &OverrideRow, winner: &OverrideRow) -> bool {
    of_environment(winner) && !of_environment(row)
}

/// Beaten by `LLAMA_ARG_*`, which llama.cpp reads first.
pub(super) fn beaten_by_environment(facts: &Facts<'_>) -> Option<Finding> {
    let (rule, winner) = dead(facts, environment_wins)?;
    found(
        format!("{rule} decides nothing: `{}` is in the environment, which llama.cpp reads first", winner.origin),
        format!("unset `{}`, or write the rule there", winner.origin),
    )
}

/// After `-cmoe`, `-ncmoe` or `-ncffn`, which takes all it matches.
pub(super) fn after_cpu_moe(facts: &Facts<'_>) -> Option<Finding> {
    let (rule, winner) = dead(facts, |row, winner| !written(winner) && !environment_wins(row, winner))?;
    found(
        format!("{rule} decides nothing: `{}` stands before it and takes the same tensors", winner.origin),
        format!("put `-ot` before `{}`: the first match wins", winner.origin),
    )
}

/// After another rule that takes all it matches.
pub(super) fn shadowed(facts: &Facts<'_>) -> Option<Finding> {
    let (rule, winner) = dead(facts, |row, winner| written(winner) && !environment_wins(row, winner))?;
    found(
        format!("{rule} decides nothing: `{}` comes before it", winner.pattern),
        "the first match wins: put the narrower rule first",
    )
}

/// Whether a pattern matches a block by a part of its number, on one side.
type IsOpen = fn(&Pattern, u32, &str) -> bool;

/// `blk\.1` without an end matches blocks 10 to 19 as well, and `4\.ffn` without a beginning 14 and 24.
pub(super) fn block_number_open(facts: &Facts<'_>) -> Option<Finding> {
    for row in facts.overrides.iter().filter(|row| written(row) && row.matches > 0) {
        let Ok(pattern) = pattern::parse(&row.pattern) else { continue };
        let sides: [(IsOpen, &str, &str); 2] = [
            (is_open, "end", r"end the number with `\.`: `blk\.1\.` is block 1 alone"),
            (is_open_before, "beginning", r"begin the number with `blk\.`: `blk\.[4-9]\.` is blocks 4 to 9 alone"),
        ];
        for (is_open, side, hint) in sides {
            let mut seen = BTreeSet::new();
            let open: Vec<String> = (facts.model.tensors.iter())
                .filter_map(|tensor| Some((tensor.block.filter(|block| *block > 9)?, tensor.name.as_str())))
                .filter(|(block, name)| pattern.matches(name) && seen.insert(*block) && is_open(&pattern, *block, name))
                .map(|(block, _)| block.to_string())
                .collect();
            let Some(first) = open.first() else { continue };
            let more = if open.len() == 1 { String::new() } else { format!(" and {} more", open.len() - 1) };
            let what =
                format!("{} matches block {first}{more} too: the block number is open at its {side}", shown(row));
            return found(what, hint);
        }
    }
    None
}

/// Whether the pattern matches by the last digits of the block number alone, and asks for certain ones.
fn is_open_before(pattern: &Pattern, block: u32, name: &str) -> bool {
    let digits = block.to_string();
    let Some(rest) = name.strip_prefix("blk.").and_then(|name| name.strip_prefix(&digits)) else { return false };
    let (_, tail) = digits.split_at(1);
    let (_, after) = tail.split_at(1);
    let matches = |number: String| pattern.matches(&format!("blk.{number}{rest}"));
    if !matches(format!("Z{tail}")) || matches(format!("Z{after}")) {
        return false;
    }
    let numbers: Vec<u32> = if after.is_empty() { (0..10).collect() } else { (10..100).collect() };
    let taken: Vec<u32> = numbers.iter().copied().filter(|number| matches(number.to_string())).collect();
    // Every other block, or nearly any: so it was meant.
    let alternate =
        taken.len() * 2 == numbers.len() && taken.iter().all(|n| n % 2 == taken.first().map_or(0, |n| n % 2));
    !alternate && taken.len() * 10 < numbers.len() * 9
}

/// Whether the pattern matches by the first digits of the block number alone, and asks for certain ones.
fn is_open(pattern: &Pattern, block: u32, name: &str) -> bool {
    let digits = block.to_string();
    let Some(rest) = name.strip_prefix("blk.").and_then(|name| name.strip_prefix(&digits)) else { return false };
    let (head, _) = digits.split_at(digits.len() - 1);
    let (before, _) = head.split_at(head.len() - 1);
    // `Z` is in no tensor's name: what still matches does not look at what stands there.
    let matches = |number: String| pattern.matches(&format!("blk.{number}Z{rest}"));
    if !matches(head.to_string()) || matches(before.to_string()) {
        return false;
    }
    // Nearly any number in their place: all blocks are meant.
    let numbers = if before.is_empty() { 0..10 } else { 10..100 };
    let count = numbers.len();
    numbers.filter(|number| matches(number.to_string())).count() * 10 < count * 9
}

/// The target exists, but takes no part in the launch.
pub(super) fn device_not_used(facts: &Facts<'_>) -> Option<Finding> {
    let left_out = |row: &&OverrideRow| {
        let index = facts.machine.devices.iter().position(|device| device.buffer == row.buffer);
        row.tensors > 0
            && index.is_some_and(|at| !facts.forecast.placement.devices.iter().any(|used| usize::from(*used) == at))
    };
    let row = facts.overrides.iter().find(left_out)?;
    found(
        format!(
            "{} sends {} to `{}`, which takes no part in the launch: llama.cpp has nothing to compute with there",
            shown(row),
            row.bytes,
            row.buffer
        ),
        "name the device in `--device` (and leave out `-sm none`), or send the tensors elsewhere",
    )
}

/// Whether a rule comes from `-ncmoe N`.
fn of_ncmoe(row: &OverrideRow) -> bool {
    matches!(row.origin.replace('_', "-").as_str(), "-ncmoe" | "--n-cpu-moe" | "LLAMA-ARG-N-CPU-MOE")
}

/// Whether a rule comes from `-cmoe`.
fn of_cmoe(row: &OverrideRow) -> bool {
    matches!(row.origin.replace('_', "-").as_str(), "-cmoe" | "--cpu-moe" | "LLAMA-ARG-CPU-MOE")
}

/// `-cmoe` beside `-ncmoe N`, with no rule of a person between them that one of them would come before.
pub(super) fn ncmoe_beside_cmoe(facts: &Facts<'_>) -> Option<Finding> {
    let all = facts.overrides.iter().position(of_cmoe)?;
    let beside = |group: &&OverrideGroup| {
        let rows = facts.overrides.get(group.first.min(all)..group.first.max(all)).unwrap_or_default();
        facts.overrides.get(group.first).is_some_and(of_ncmoe) && !rows.iter().any(written)
    };
    let group = facts.groups.iter().find(beside)?;
    let (flag, n) = (&group.origin, group.rules);
    let every = &facts.overrides.get(all)?.origin;
    found(
        format!("`{every}` moves the experts of every block, so `{flag} {n}` changes nothing"),
        format!("leave `{every}` out to move those of {n} blocks alone, or leave `{flag}` out"),
    )
}

/// How many of the blocks that `-ncmoe N` counts come before the first one with experts, where there is one beyond N.
fn dense_lead(facts: &Facts<'_>, group: &OverrideGroup) -> Option<usize> {
    let rows = facts.overrides.get(group.first..group.first + group.rules)?;
    let any_experts = facts.model.tensors.iter().any(|tensor| tensor.role == Role::RoutedExpert);
    let blocks = facts.forecast.placement.layers.len().saturating_sub(1);
    let dense = rows.iter().take_while(|row| row.matches == 0).count();
    (rows.first().is_some_and(of_ncmoe) && dense > 0 && any_experts && rows.len() < blocks).then_some(dense)
}

/// `-ncmoe N` counts every block from 0, those without experts too.
pub(super) fn ncmoe_counts_dense_blocks(facts: &Facts<'_>) -> Option<Finding> {
    let (group, dense) = facts.groups.iter().find_map(|group| Some((group, dense_lead(facts, group)?)))?;
    let (flag, n, blocks) = (&group.origin, group.rules, facts.forecast.placement.layers.len().saturating_sub(1));
    // N may end before they do.
    let experts = facts.model.tensors.iter().filter(|tensor| tensor.role == Role::RoutedExpert);
    let first = experts.filter_map(|tensor| usize::try_from(tensor.block?).ok()).min();
    let lead = first.unwrap_or(dense).clamp(dense, blocks);
    let are = if lead == 1 { "block 0 has".to_string() } else { format!("blocks 0 to {} have", lead - 1) };
    let moved = match n - dense {
        0 => "none".to_string(),
        moved => format!("those of {moved}"),
    };
    found(
        format!("`{flag} {n}` counts from block 0, and {are} no experts: it moves {moved}"),
        format!("`{flag} {}` moves the experts of {}", (n + lead).min(blocks), n.min(blocks - lead)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_numbers() {
        let name = "blk.17.ffn_up_exps.weight";
        for (text, open) in [
            (r"blk\.1", true),
            (r"blk\.1.*exps", true),
            (r"blk\.(0|1).*_exps", true),
            (r"blk\.[0-4]", true),
            (r"blk\.1\.", false),
            (r"blk\.\d+\.ffn_.*_exps", false),
            (r"blk\.\d+.*_exps", false),
            (r"blk\.1[0-9]\.", false),
            (r"blk\.(1[0-9])", false),
            (r"exps", false),
            (r"blk\.[1-9].*exps", false),
        ] {
            let pattern = pattern::parse(text).unwrap();
            assert_eq!(pattern.matches(name) && is_open(&pattern, 17, name), open, "{text}");
        }
        for (text, open) in [
            (r"[4-9].ffn_.*_exps.", true),
            (r"7\.ffn_up", true),
            (r"blk.*[4-9]\.ffn", true),
            (r"blk\.[4-9].ffn_.*_exps.", false),
            (r"blk\.(1[0-9])\.ffn", false),
            (r"(1|2)[0-9]\.ffn", false),
            (r"[0-9]\.ffn", false),
            (r"\d+\.ffn", false),
            (r"[13579]\.ffn_.*_exps", false),
            (r"blk\.\d*7\.", false),
            (r"exps", false),
        ] {
            let pattern = pattern::parse(text).unwrap();
            assert_eq!(pattern.matches(name) && is_open_before(&pattern, 17, name), open, "{text}");
        }
        let name = "blk.105.ffn_up_exps.weight";
        for (text, open) in
            [(r"blk\.1[0-9]", true), (r"blk\.10\.", false), (r"blk\.\d+.*exps", false), (r"blk\.1.*", false)]
        {
            let pattern = pattern::parse(text).unwrap();
            assert_eq!(pattern.matches(name) && is_open(&pattern, 105, name), open, "{text}");
        }
    }
}
