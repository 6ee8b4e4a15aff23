//! Placement rule files (`rules/placement/*.yaml`, `--rules`): ordered rules, the first that matches a tensor decides. The YAML is
//! read with the place of every word, so that each mistake is told with line and column.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod check;
#[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "places in the model's and the file's own lists"))]
pub mod fill;

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_saphyr::{Spanned, from_str};

use crate::bytes::Bytes;
use crate::model::{Model, Tensor};
use crate::placement::pattern;
use crate::plan::patterns::{self, TensorSet, key};
use crate::rules::Role;
use crate::run::Override;
use crate::suggest;

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

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Buffer(String),
    /// Onto devices as far as they may be filled.
    Fill(Fill),
}

/// Devices filled to an amount: all that they hold counts, model, context, compute and overhead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// In this order, each to a total or (`None`) to its budget less the margin, which no total passes; [`DEVICES`] stands for all
    /// of them.
    pub devices: Vec<(String, Option<Bytes>)>,
    /// Kinds that are placed first, in this order (`up`, `gate`, `down`: down goes last). Empty: whole blocks.
    pub order: Vec<String>,
    /// Whether the blocks with the lowest numbers are placed first, not those with the highest, which `--n-cpu-moe` leaves on the
    /// device.
    pub from_first: bool,
    pub then: String,
}

/// Which of the blocks that have such tensors a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocks {
    /// Both ends included; `None` = to the last.
    Ranges(Vec<(u32, Option<u32>)>),
    First(usize),
    Last(usize),
}

/// A rule file that cannot be used: where, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rules `{name}`, line {}, column {}: {problem}", position.line, position.column)]
pub struct Error {
    pub name: String,
    pub position: Position,
    pub problem: String,
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

/// The largest block number that a range may name.
const MAX_BLOCK: u32 = 4096;

impl Blocks {
    /// Reads `3`, `0-13`, `0-3,8`, `20-`, `first 4` or `last 4`.
    fn parse(text: &str) -> Option<Self> {
        let count = |text: &str| text.trim().parse().ok().filter(|n| *n > 0);
        if let Some(rest) = text.strip_prefix("first ") {
            return count(rest).map(Self::First);
        }
        if let Some(rest) = text.strip_prefix("last ") {
            return count(rest).map(Self::Last);
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').map_or((part, Some(part)), |(first, last)| (first, Some(last)));
            let first: u32 = first.trim().parse().ok()?;
            let last = match last.map(str::trim) {
                Some("") | None => None,
                Some(last) => Some(last.parse().ok()?),
            };
            let is_range = last.is_none_or(|last| first <= last && last <= MAX_BLOCK);
            is_range.then_some((first, last))
        };
        text.split(',').map(range).collect::<Option<_>>().map(Self::Ranges)
    }

    /// Those of `present` that are meant.
    fn of(&self, present: &BTreeSet<u32>) -> BTreeSet<u32> {
        match self {
            Self::First(n) => present.iter().take(*n).copied().collect(),
            Self::Last(n) => present.iter().rev().take(*n).copied().collect(),
            Self::Ranges(ranges) => {
                let meant = |block: &&u32| {
                    ranges.iter().any(|(first, last)| first <= *block && last.is_none_or(|last| **block <= last))
                };
                present.iter().filter(meant).copied().collect()
            }
        }
    }
}

/// Blocks for people: `0-3, 8, 10-12`.
fn shown(blocks: &BTreeSet<u32>) -> String {
    let blocks: Vec<u32> = blocks.iter().copied().collect();
    let run = |run: &[u32]| match run {
        [first, .., last] => format!("{first}-{last}"),
        [only] => only.to_string(),
        [] => String::new(),
    };
    blocks.chunk_by(|one, next| *next == one + 1).map(run).collect::<Vec<_>>().join(", ")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    description: String,
    rules: Vec<Spanned<RuleText>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    role: Option<Spanned<String>>,
    tensors: Option<Spanned<String>>,
    blocks: Option<Spanned<String>>,
    kinds: Option<Spanned<Vec<String>>>,
    buffer: Option<Spanned<String>>,
    fill: Option<Spanned<FillText>>,
    order: Option<Spanned<Vec<String>>>,
    from: Option<Spanned<String>>,
    then: Option<Spanned<String>>,
}

/// The fields of a file and of a rule, for suggestions.
const FIELDS: &[&str] =
    &["description", "rules", "role", "tensors", "blocks", "kinds", "buffer", "fill", "order", "from", "then"];

/// `DEVICE: AMOUNT` in the order written.
#[derive(Debug)]
struct FillText(Vec<(String, Spanned<String>)>);

impl<'de> Deserialize<'de> for FillText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = FillText;

            fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                to.write_str("devices and how far to fill each, for example {CUDA0: 22G, CUDA1: rest}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FillText, A::Error> {
                let mut pairs: Vec<(String, Spanned<String>)> = Vec::new();
                while let Some((device, amount)) = map.next_entry::<String, Spanned<String>>()? {
                    if pairs.iter().any(|(known, _)| *known == device) {
                        return Err(A::Error::custom(format!("`{device}` is filled twice")));
                    }
                    pairs.push((device, amount));
                }
                Ok(FillText(pairs))
            }
        }
        deserializer.deserialize_any(Pairs)
    }
}

type Mistake = (Position, String);

fn position<T>(value: &Spanned<T>) -> Position {
    at(value.referenced.line(), value.referenced.column())
}

fn at(line: u64, column: u64) -> Position {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(line), column: number(column) }
}

/// Reads a rule file's text; `name` is for messages.
pub fn parse(name: &str, text: &str) -> Result<RuleFile, Error> {
    let mistake = |(position, problem)| Error { name: name.to_string(), position, problem };
    let file: FileText = from_str(text).map_err(|error| mistake(yaml(&error)))?;
    let rules = file.rules.iter().map(|text| rule(text).map_err(mistake));
    Ok(RuleFile { description: file.description, rules: rules.collect::<Result<_, _>>()? })
}

/// What the YAML reader says, in one line, with the nearest name where one is unknown.
fn yaml(error: &serde_saphyr::Error) -> Mistake {
    let position = error.location().map(|location| at(location.line(), location.column()));
    let plain = error.without_snippet().to_string();
    let message = plain.lines().next().unwrap_or_default();
    // The place is told once, before the message.
    let message = message.split(" at line ").next().unwrap_or(message);
    let unknown = message.split_once("unknown field `").and_then(|(_, rest)| rest.split('`').next());
    let near = unknown.map(|field| meant(field, FIELDS)).unwrap_or_default();
    (position.unwrap_or_default(), format!("{message}{near}"))
}

/// What a name was probably meant to be.
fn meant(word: &str, known: &[&str]) -> String {
    let singular = word.trim_end_matches('s');
    let part_of = || known.iter().copied().find(|name| name.split('_').any(|part| part == singular));
    let near = suggest::near(word, known.iter().copied()).into_iter().next().or_else(part_of);
    near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

fn rule(text: &Spanned<RuleText>) -> Result<PlacementRule, Mistake> {
    let here = position(text);
    let RuleText { role, tensors, blocks, kinds, buffer, fill, order, from, then } = &text.value;
    let select = match (role, tensors) {
        (Some(role), None) => Select::Role {
            role: of_name(role)?,
            kinds: kinds.as_ref().map(|kinds| some(kinds, "kinds")).transpose()?.unwrap_or_default(),
            blocks: match blocks {
                Some(text) => Some(Blocks::parse(&text.value).ok_or_else(|| {
                    let forms = "`3`, `0-13`, `0-3,8`, `20-`, `first 4` or `last 4`";
                    (position(text), format!("`{}` is no list of blocks: write it as {forms}", text.value))
                })?),
                None => None,
            },
        },
        (None, Some(tensors)) => {
            if let Some(at) = blocks.as_ref().map(position).or(kinds.as_ref().map(position)) {
                let problem = "`blocks` and `kinds` go with `role`; write them into the regex of `tensors`";
                return Err((at, problem.to_string()));
            }
            Select::Pattern(regex(tensors)?)
        }
        _ => return Err((here, "state either `role` or `tensors`, one of them".to_string())),
    };
    let action = match (buffer, fill) {
        (Some(buffer), None) => {
            let stray = order.as_ref().map(position).or(from.as_ref().map(position)).or(then.as_ref().map(position));
            if let Some(at) = stray {
                return Err((at, "`order`, `from` and `then` go with `fill`".to_string()));
            }
            Action::Buffer(buffer_name(buffer)?)
        }
        (None, Some(fill)) => Action::Fill(Fill {
            devices: amounts(fill)?,
            order: order.as_ref().map(|order| some(order, "order")).transpose()?.unwrap_or_default(),
            from_first: match from.as_ref().map(|from| (from.value.as_str(), position(from))) {
                None | Some(("last", _)) => false,
                Some(("first", _)) => true,
                Some((other, at)) => return Err((at, format!("`from` is `first` or `last`, not `{other}`"))),
            },
            then: then.as_ref().map_or(Ok("CPU".to_string()), buffer_name)?,
        }),
        (None, None) => return Err((here, "state where to: `buffer: CPU`, or `fill: {CUDA0: 22G}`".to_string())),
        (Some(buffer), Some(_)) => {
            return Err((position(buffer), "state either `buffer` or `fill`, one of them".to_string()));
        }
    };
    Ok(PlacementRule { position: here, select, action })
}

fn of_name(text: &Spanned<String>) -> Result<Role, Mistake> {
    let names = Role::ALL.map(Role::key);
    Role::ALL.into_iter().find(|role| role.key() == text.value).ok_or_else(|| {
        let (meant, known) = (meant(&text.value, &names), names.join(", "));
        (position(text), format!("`{}` is no role{meant} (known: {known})", text.value))
    })
}

fn some(list: &Spanned<Vec<String>>, field: &str) -> Result<Vec<String>, Mistake> {
    let twice =
        list.value.iter().enumerate().find(|(at, kind)| list.value.iter().take(*at).any(|other| other == *kind));
    match twice {
        Some((_, kind)) => Err((position(list), format!("`{field}` names `{kind}` twice"))),
        None if list.value.is_empty() => Err((position(list), format!("`{field}` is empty: leave it out"))),
        None => Ok(list.value.clone()),
    }
}

/// A regex that llama.cpp can be given.
fn regex(text: &Spanned<String>) -> Result<String, Mistake> {
    let refuse = |problem: String| Err((position(text), problem));
    if text.value.contains([',', '=']) {
        return refuse(format!("`{}` has a `,` or `=`, which llama.cpp's -ot cannot take", text.value));
    }
    match pattern::parse(&text.value) {
        Ok(_) => Ok(text.value.clone()),
        Err(reason) => refuse(format!("`{}` is no regex of llama.cpp's: {reason}", text.value)),
    }
}

fn buffer_name(text: &Spanned<String>) -> Result<String, Mistake> {
    let broken = text.value.is_empty() || text.value.contains([',', '=', ' ', '"', '\'']);
    if broken {
        return Err((position(text), format!("`{}` is no buffer: write CPU, CUDA0, …", text.value)));
    }
    Ok(text.value.clone())
}

fn amounts(fill: &Spanned<FillText>) -> Result<Vec<(String, Option<Bytes>)>, Mistake> {
    if fill.value.0.is_empty() {
        return Err((position(fill), "`fill` names no device: write {CUDA0: 22G}, or {devices: rest}".to_string()));
    }
    let amount = |(device, text): &(String, Spanned<String>)| {
        let amount = match text.value.as_str() {
            "rest" => Ok(None),
            size => size.parse::<Bytes>().map(Some).map_err(|error| (position(text), error.to_string())),
        }?;
        Ok((device.clone(), amount))
    };
    fill.value.0.iter().map(amount).collect()
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
            devices: vec![("CUDA0".into(), Some(Bytes(22 << 30))), ("CUDA1".into(), None)],
            order: ["up", "gate", "down"].map(str::to_string).into(),
            from_first: true,
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

    #[test]
    fn blocks_are_ranges_or_ends() {
        let present: BTreeSet<u32> = (1..10).collect();
        for (text, expected) in
            [("3", "3"), ("0-3,8", "1-3, 8"), ("7-", "7-9"), ("first 2", "1-2"), ("last 3", "7-9"), (" 4 - 5 ", "4-5")]
        {
            assert_eq!(shown(&Blocks::parse(text).unwrap().of(&present)), expected, "{text}");
        }
        for wrong in ["", "x", "7-3", "first", "first 0", "1-99999", "1,,2", "-3"] {
            assert_eq!(Blocks::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_that_are_meant() {
        let roles = Role::ALL.map(Role::key);
        for (word, near) in
            [("expert", "routed_expert"), ("routed_experts", "routed_expert"), ("atention", "attention")]
        {
            assert_eq!(meant(word, &roles), format!("; did you mean `{near}`?"));
        }
        assert_eq!((meant("rol", FIELDS).as_str(), meant("zzzzzz", FIELDS).as_str()), ("; did you mean `role`?", ""));
    }
}
