//! Placement rule files (`rules/placement/*.yaml`, `--rules`): ordered rules, the first that matches a tensor decides.

mod blocks;
pub mod check;
pub mod fill;
mod text;

use std::collections::BTreeSet;

use crate::bytes::Bytes;
use crate::model::{Model, Tensor};
use crate::placement::pattern;
use crate::plan::patterns::{self, TensorSet, key};
use crate::rules::Role;
use crate::run::Override;
use blocks::Blocks;

/// The rule sets that come with moeplan, by name.
pub const BUILT_IN: [(&str, &str); 9] = [
    ("all-on-device", include_str!("../../../rules/placement/all-on-device.yaml")),
    ("attention-first", include_str!("../../../rules/placement/attention-first.yaml")),
    ("attention-only", include_str!("../../../rules/placement/attention-only.yaml")),
    ("down-last", include_str!("../../../rules/placement/down-last.yaml")),
    ("down-on-host", include_str!("../../../rules/placement/down-on-host.yaml")),
    ("experts-on-host", include_str!("../../../rules/placement/experts-on-host.yaml")),
    ("first-blocks", include_str!("../../../rules/placement/first-blocks.yaml")),
    ("last-blocks", include_str!("../../../rules/placement/last-blocks.yaml")),
    ("up-gate-on-host", include_str!("../../../rules/placement/up-gate-on-host.yaml")),
];

/// What a rule set stands for every device of the machine by.
pub const DEVICES: &str = "devices";

/// A rule file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFile {
    pub description: String,
    /// In order; the first that matches a tensor decides.
    pub rules: Vec<PlacementRule>,
}

/// Where something stands in a file, from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// One rule: which tensors, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRule {
    pub position: Position,
    pub select: Select,
    pub action: Action,
}

/// Which tensors a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Select {
    Role {
        role: Role,
        /// Only these kinds (`down` of `ffn_down_exps`); empty = all.
        kinds: Vec<String>,
        blocks: Option<Blocks>,
    },
    /// Those that this regex finds (llama.cpp's ECMAScript, a search in the full name).
    Pattern(String),
}

/// Where a rule's tensors go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Buffer(String),
    /// Onto devices as far as they may be filled.
    Fill(Fill),
}

/// Devices filled to an amount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// In this order; [`DEVICES`] stands for all of them.
    pub devices: Vec<(String, Amount)>,
    /// Kinds that are placed first, in this order (`up`, `gate`, `down`: down goes last). Empty: whole blocks.
    pub order: Vec<String>,
    pub from: From,
    pub then: String,
}

/// How far a device is filled: all that it holds counts, model, context, compute and overhead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// To this total, never beyond the budget less the margin.
    UpTo(Bytes),
    /// To the budget less the margin.
    Rest,
}

/// Which blocks are placed first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum From {
    First,
    /// Those with the highest, as `--n-cpu-moe` leaves them on the device.
    #[default]
    Last,
}

/// A rule file that cannot be used: where, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rules `{name}`, line {}, column {}: {problem}", position.line, position.column)]
pub struct Error {
    pub name: String,
    pub position: Position,
    pub problem: String,
}

/// Reads a rule file's text.
pub fn parse(name: &str, text: &str) -> Result<RuleFile, Error> {
    text::parse(name, text)
}

impl RuleFile {
    /// Whether a rule fills devices, so that machine and launch decide what it does.
    pub fn fills(&self) -> bool {
        self.rules.iter().any(|rule| matches!(rule.action, Action::Fill(_)))
    }
}

impl Select {
    /// The tensors it is about, as indices of the model.
    pub fn tensors(&self, model: &Model) -> BTreeSet<usize> {
        let all = model.tensors.iter().enumerate();
        match self {
            Self::Pattern(text) => {
                // `parse` has read it.
                let Ok(pattern) = pattern::parse(text) else { return BTreeSet::new() };
                all.filter(|(_, tensor)| pattern.matches(&tensor.name)).map(|(at, _)| at).collect()
            }
            Self::Role { role, kinds, blocks } => {
                let is_kind = |tensor: &Tensor| kinds.is_empty() || kinds.iter().any(|kind| is_of_kind(tensor, kind));
                let of_role: Vec<(usize, &Tensor)> =
                    all.filter(|(_, tensor)| tensor.role == *role && is_kind(tensor)).collect();
                let present = of_role.iter().filter_map(|(_, tensor)| tensor.block).collect();
                let meant = blocks.as_ref().map(|blocks| blocks.of(&present));
                let in_blocks = |tensor: &Tensor| {
                    meant.as_ref().is_none_or(|meant| tensor.block.is_some_and(|block| meant.contains(&block)))
                };
                of_role.into_iter().filter(|(_, tensor)| in_blocks(tensor)).map(|(at, _)| at).collect()
            }
        }
    }
}

/// The kind of a tensor: `down` of `blk.3.ffn_down_exps.weight`, `attn_q` of `blk.3.attn_q.bias`.
pub(super) fn kind(tensor: &Tensor) -> &str {
    let name = key(tensor).map_or(tensor.name.as_str(), |(_, stem)| stem);
    let Some(part) = name.strip_prefix("ffn_") else { return name };
    ["_exps", "_chexps", "_shexp"].iter().find_map(|suffix| part.strip_suffix(suffix)).unwrap_or(part)
}

/// Whether a tensor is of a kind: `gate_up` is of `gate` and of `up`.
fn is_of_kind(tensor: &Tensor, wanted: &str) -> bool {
    let kind = kind(tensor);
    kind == wanted || (kind == "gate_up" && matches!(wanted, "gate" | "up"))
}

/// What `-ot` needs to say that these tensors go to a buffer.
pub(super) fn overrides_of(model: &Model, tensors: &BTreeSet<usize>, buffer: &str) -> Vec<Override> {
    let to = |pattern: String| Override { pattern, buffer: buffer.to_string(), origin: "--rules".to_string() };
    let owned = |tensor| key(tensor).map(|(block, stem)| (block, stem.to_string()));
    let universe: TensorSet = model.tensors.iter().filter_map(owned).collect();
    let chosen = || tensors.iter().filter_map(|at| model.tensors.get(*at));
    let in_blocks: TensorSet = chosen().filter_map(owned).collect();
    let names = chosen().filter(|tensor| key(tensor).is_none()).map(|tensor| exactly(&tensor.name));
    patterns::patterns(&in_blocks, &universe).into_iter().chain(names).map(to).collect()
}

/// A regex for one name.
fn exactly(name: &str) -> String {
    let literal = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_string() } else { format!("\\{c}") };
    format!("^{}$", name.chars().map(literal).collect::<String>())
}

/// The overrides of a file, in its order; of rules that fill devices ([`fill::resolve`]) where they leave all to `then`.
pub fn overrides(file: &RuleFile, model: &Model) -> Vec<Override> {
    let of = |rule: &PlacementRule| match &rule.action {
        Action::Buffer(buffer) => fixed(rule, model, buffer),
        Action::Fill(fill) => fixed(rule, model, &fill.then),
    };
    file.rules.iter().flat_map(of).collect()
}

/// The overrides of a rule that fills nothing.
fn fixed(rule: &PlacementRule, model: &Model, buffer: &str) -> Vec<Override> {
    match &rule.select {
        Select::Pattern(pattern) => {
            let (pattern, buffer, origin) = (pattern.clone(), buffer.to_string(), "--rules".to_string());
            vec![Override { pattern, buffer, origin }]
        }
        Select::Role { .. } => overrides_of(model, &rule.select.tensors(model), buffer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_rule_set_reads() {
        for (name, text) in BUILT_IN {
            assert!(
                parse(name, text).is_ok_and(|file| !file.description.is_empty()),
                "{name}: {:?}",
                parse(name, text)
            );
        }
        assert!(BUILT_IN.is_sorted());
    }

    #[test]
    fn mistakes_are_told_with_their_place_and_what_to_write() {
        for (text, line, column, expected) in [
            ("rules:\n  - role: router\n", 2, 5, "state where to"),
            ("rules:\n  - rol: router\n    buffer: CPU\n", 2, 5, "did you mean `role`?"),
            ("rules:\n  - role: expert\n    buffer: CPU\n", 2, 11, "did you mean `routed_expert`?"),
            ("rules:\n  - buffer: CPU\n", 2, 5, "either `role` or `tensors`"),
            ("rules:\n  - tensors: 'a{1,2}'\n    buffer: CPU\n", 2, 14, "cannot take"),
            ("rules:\n  - tensors: '(a'\n    buffer: CPU\n", 2, 14, "no regex"),
            ("rules:\n  - role: router\n    blocks: 7-3\n    buffer: CPU\n", 3, 13, "no list of blocks"),
            ("rules:\n  - tensors: a\n    blocks: 7\n    buffer: CPU\n", 3, 13, "go with `role`"),
            ("rules:\n  - role: router\n    buffer: CPU\n    then: CPU\n", 4, 11, "go with `fill`"),
            ("rules:\n  - role: router\n    fill: {CUDA0: lots}\n", 3, 19, "is not a size"),
            ("rules:\n  - role: router\n    fill: {}\n", 3, 11, "no device"),
            ("rules:\n  - role: router\n    fill: CUDA0\n", 3, 5, "how far to fill"),
            ("rules:\n  - role: router\n    fill: {CUDA0: rest}\n    order: [up, up]\n", 4, 12, "twice"),
            ("rules:\n  - role: router\n    fill: {CUDA0: rest}\n    from: top\n", 4, 11, "`first` or `last`"),
            ("rules:\n  - role: router\n    buffer: 'a,b'\n", 3, 13, "no buffer"),
            ("rules:\n  - role: [a]\n", 2, 11, "expected string"),
            ("rules:\n  - role: \"a\n", 3, 1, ""),
            ("description: x\n", 1, 1, "rules"),
        ] {
            let error = parse("mine.yaml", text).unwrap_err();
            assert!(error.problem.contains(expected), "{text}{error}");
            assert_eq!((error.position.line, error.position.column), (line, column), "{text}{error}");
            assert!(!error.to_string().contains('\n') && error.to_string().contains("mine.yaml"), "{error}");
        }
    }

    #[test]
    fn a_rule_that_fills_reads() {
        let text = "rules:\n  - role: routed_expert\n    blocks: last 4\n    fill: {CUDA0: 22G, CUDA1: rest}\n    \
                    order: [up, gate, down]\n    from: first\n";
        let file = parse("x", text).unwrap();
        assert!(file.fills());
        let expected = Fill {
            devices: vec![("CUDA0".into(), Amount::UpTo(Bytes(22 << 30))), ("CUDA1".into(), Amount::Rest)],
            order: ["up", "gate", "down"].map(str::to_string).into(),
            from: From::First,
            then: "CPU".into(),
        };
        assert_eq!(file.rules[0].action, Action::Fill(expected));
        let Select::Role { blocks, .. } = &file.rules[0].select else { panic!("by role") };
        assert_eq!(*blocks, Some(Blocks::Last(4)));
    }

    #[test]
    fn names_are_taken_literally() {
        assert_eq!(exactly("a.b+c_1"), r"^a\.b\+c_1$");
    }
}
