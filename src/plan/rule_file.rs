//! Placement rule files (`rules/placement/*.yaml`, `--rules`): ordered rules, the first that matches a tensor decides. The YAML is
//! read with the place of every word, so that each mistake is told with line and column. Rules that fill devices are judged by the
//! law and the prediction themselves.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_saphyr::{Spanned, from_str};

use super::patterns::{self, TensorSet, key};
use super::{ContextChoice, Levers, Request, Strategy};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::memory;
use crate::model::{Model, Tensor};
use crate::placement::{self, Buffer, Placement, pattern};
use crate::rules::Role;
use crate::run::{Override, RunConfig};
use crate::suggest::{self, Refusal};

/// The rule sets that come with moeplan, by name.
pub const BUILT_IN: [(&str, &str); 9] = [
    ("all-on-device", include_str!("../../rules/placement/all-on-device.yaml")),
    ("attention-first", include_str!("../../rules/placement/attention-first.yaml")),
    ("attention-only", include_str!("../../rules/placement/attention-only.yaml")),
    ("down-last", include_str!("../../rules/placement/down-last.yaml")),
    ("down-on-host", include_str!("../../rules/placement/down-on-host.yaml")),
    ("experts-on-host", include_str!("../../rules/placement/experts-on-host.yaml")),
    ("first-blocks", include_str!("../../rules/placement/first-blocks.yaml")),
    ("last-blocks", include_str!("../../rules/placement/last-blocks.yaml")),
    ("up-gate-on-host", include_str!("../../rules/placement/up-gate-on-host.yaml")),
];

/// What a rule set stands for every device of the machine by.
const DEVICES: &str = "devices";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleFile {
    pub description: String,
    /// In order; the first that matches a tensor decides.
    pub rules: Vec<PlacementRule>,
}

/// Where something stands in a file, from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRule {
    position: Position,
    select: Select,
    fill: Option<Fill>,
    /// Where to; of a rule that fills, where the rest goes.
    buffer: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Select {
    /// By role; only these kinds (`down` of `ffn_down_exps`), of which none are all.
    Role(Role, Vec<String>, Option<Blocks>),
    /// Those that this regex finds (llama.cpp's ECMAScript, a search in the full name).
    Pattern(String),
}

/// Devices filled to an amount: all that they hold counts, model, context, compute and overhead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fill {
    /// In this order, each to a total or (`None`) to its budget less the margin, which no total passes; [`DEVICES`] stands for all
    /// of them.
    devices: Vec<(String, Option<Bytes>)>,
    /// Kinds that are placed first, in this order (`up`, `gate`, `down`: down goes last). Empty: whole blocks.
    order: Vec<String>,
    /// Whether the blocks with the lowest numbers are placed first, not those with the highest, which `--n-cpu-moe` leaves on the
    /// device.
    from_first: bool,
}

/// Which of the blocks that have such tensors a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
enum Blocks {
    First(usize),
    Last(usize),
    /// Both ends included; `None` = to the last.
    Ranges(Vec<(u32, Option<u32>)>),
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
        self.rules.iter().any(|rule| rule.fill.is_some())
    }
}

impl Select {
    /// The tensors it is about, as indices of the model.
    fn tensors(&self, model: &Model) -> BTreeSet<usize> {
        let all = model.tensors.iter().enumerate();
        match self {
            Self::Pattern(text) => {
                // `parse` has read it.
                let Ok(pattern) = pattern::parse(text) else { return BTreeSet::new() };
                all.filter(|(_, tensor)| pattern.matches(&tensor.name)).map(|(at, _)| at).collect()
            }
            Self::Role(role, kinds, blocks) => {
                let mut found: Vec<(usize, &Tensor)> =
                    all.filter(|(_, tensor)| tensor.role == *role && is_of_kinds(tensor, kinds)).collect();
                if let Some(blocks) = blocks {
                    let meant = blocks.of(&found.iter().filter_map(|(_, tensor)| tensor.block).collect());
                    found.retain(|(_, tensor)| tensor.block.is_some_and(|block| meant.contains(&block)));
                }
                found.into_iter().map(|(at, _)| at).collect()
            }
        }
    }
}

/// The kind of a tensor: `down` of `blk.3.ffn_down_exps.weight`, `attn_q` of `blk.3.attn_q.bias`.
fn kind(tensor: &Tensor) -> &str {
    let name = key(tensor).map_or(tensor.name.as_str(), |(_, stem)| stem);
    let Some(part) = name.strip_prefix("ffn_") else { return name };
    ["_exps", "_chexps", "_shexp"].iter().find_map(|suffix| part.strip_suffix(suffix)).unwrap_or(part)
}

/// Whether a tensor is of one of some kinds, if there are any: `gate_up` is of `gate` and of `up`.
fn is_of_kinds(tensor: &Tensor, kinds: &[String]) -> bool {
    let kind = kind(tensor);
    kinds.is_empty()
        || kinds.iter().any(|wanted| kind == wanted || (kind == "gate_up" && matches!(wanted.as_str(), "gate" | "up")))
}

/// Whether a kind is what `order` names: the whole of it, or a part (`gate` of `gate_up`).
fn is_named(kind: &str, wanted: &str) -> bool {
    kind == wanted || kind.split('_').any(|part| part == wanted)
}

fn override_of(pattern: String, buffer: &str) -> Override {
    Override { pattern, buffer: buffer.to_string(), origin: "--rules".to_string() }
}

/// What `-ot` needs to say that these tensors go to a buffer.
fn overrides_of(model: &Model, tensors: &BTreeSet<usize>, buffer: &str) -> Vec<Override> {
    let owned = |tensor| key(tensor).map(|(block, stem)| (block, stem.to_string()));
    let universe: TensorSet = model.tensors.iter().filter_map(owned).collect();
    let chosen = || tensors.iter().filter_map(|at| model.tensors.get(*at));
    let literal = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_string() } else { format!("\\{c}") };
    let whole = chosen().filter(|tensor| key(tensor).is_none());
    let names = whole.map(|tensor| format!("^{}$", tensor.name.chars().map(literal).collect::<String>()));
    let in_blocks = patterns::patterns(&chosen().filter_map(owned).collect(), &universe);
    in_blocks.into_iter().chain(names).map(|pattern| override_of(pattern, buffer)).collect()
}

/// The overrides of a file, in its order; of rules that fill devices (`resolve`) where they leave all to their last buffer.
pub fn overrides(file: &RuleFile, model: &Model) -> Vec<Override> {
    file.rules.iter().flat_map(|rule| fixed(rule, model)).collect()
}

/// The overrides of a rule that fills nothing.
fn fixed(rule: &PlacementRule, model: &Model) -> Vec<Override> {
    match &rule.select {
        Select::Pattern(pattern) => vec![override_of(pattern.clone(), &rule.buffer)],
        Select::Role(..) => overrides_of(model, &rule.select.tensors(model), &rule.buffer),
    }
}

/// Reads `3`, `0-13`, `0-3,8`, `20-`, `first 4` or `last 4`; blocks up to 4096.
impl TryFrom<String> for Blocks {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let count = |text: &str| text.trim().parse().ok().filter(|n| *n > 0);
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.trim().parse().ok()?;
            let last: Option<u32> = match last.trim() {
                "" => None,
                last => Some(last.parse().ok().filter(|last| (first..=4096).contains(last))?),
            };
            Some((first, last))
        };
        let read = match text.split_once(' ') {
            Some(("first", rest)) => count(rest).map(Self::First),
            Some(("last", rest)) => count(rest).map(Self::Last),
            _ => text.split(',').map(range).collect::<Option<_>>().map(Self::Ranges),
        };
        let forms = "write it as `3`, `0-13`, `0-3,8`, `20-`, `first 4` or `last 4`";
        read.ok_or_else(|| format!("`{text}` is not a list of blocks: {forms}"))
    }
}

impl Blocks {
    /// Those of `present` that are meant.
    fn of(&self, present: &BTreeSet<u32>) -> BTreeSet<u32> {
        match self {
            Self::First(n) => present.iter().take(*n).copied().collect(),
            Self::Last(n) => present.iter().rev().take(*n).copied().collect(),
            Self::Ranges(ranges) => {
                let is_in = |block: u32| {
                    ranges.iter().any(|(first, last)| (*first..=last.unwrap_or(u32::MAX)).contains(&block))
                };
                present.iter().copied().filter(|block| is_in(*block)).collect()
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

// Reading.

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
    role: Option<Role>,
    tensors: Option<Regex>,
    blocks: Option<Spanned<Blocks>>,
    kinds: Option<Spanned<Vec<String>>>,
    buffer: Option<Spanned<String>>,
    /// Its order is that of the places in the file.
    fill: Option<Spanned<BTreeMap<String, Spanned<Amount>>>>,
    order: Option<Spanned<Vec<String>>>,
    from: Option<Spanned<End>>,
    then: Option<Spanned<String>>,
}

type Mistake = (Position, String);

/// A mistake is told in one line, whatever a value holds.
fn mistake<T, M>(at: &Spanned<T>, problem: impl Into<String>) -> Result<M, Mistake> {
    Err((position(at), problem.into().replace(char::is_control, " ")))
}

fn position<T>(value: &Spanned<T>) -> Position {
    at(value.referenced.line(), value.referenced.column())
}

fn at(line: u64, column: u64) -> Position {
    // A file of 4 billion lines is not read at all.
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(line), column: number(column) }
}

pub fn parse(name: &str, text: &str) -> Result<RuleFile, Error> {
    let error = |(position, problem)| Error { name: name.to_string(), position, problem };
    let file: FileText = from_str(text).map_err(|wrong| error(yaml(&wrong)))?;
    let rules = file.rules.iter().map(|text| rule(text).map_err(error));
    Ok(RuleFile { description: file.description, rules: rules.collect::<Result<_, _>>()? })
}

/// What the YAML reader says, in one line, with the nearest name where one is unknown.
fn yaml(error: &serde_saphyr::Error) -> Mistake {
    let position = error.location().map(|location| at(location.line(), location.column()));
    let plain = error.without_snippet().to_string();
    // The place is told once, before the message.
    let message = plain.lines().next().and_then(|line| line.split(" at line ").next()).unwrap_or_default();
    let message = message.replace("unknown variant", "unknown name");
    let message = message.replace("externally tagged enum expected scalar or mapping", "one name is expected here");
    let near = message.split_once("unknown ").and_then(|(_, rest)| {
        let word = rest.split('`').nth(1)?;
        let known: Vec<&str> = rest.split_once("expected one of ")?.1.split(", ").collect();
        let singular = word.trim_end_matches('s');
        let part_of = || known.iter().copied().find(|name| name.split('_').any(|part| part == singular));
        let near = suggest::near(word, known.iter().copied()).into_iter().next().or_else(part_of)?;
        Some(format!("; did you mean `{near}`?"))
    });
    (position.unwrap_or_default(), format!("{message}{}", near.unwrap_or_default()))
}

fn rule(text: &Spanned<RuleText>) -> Result<PlacementRule, Mistake> {
    let RuleText { role, tensors, blocks, kinds, buffer, fill, order, from, then } = &text.value;
    let select = match (role, tensors) {
        (Some(role), None) => {
            let blocks = blocks.as_ref().map(|blocks| blocks.value.clone());
            Select::Role(*role, names(kinds.as_ref(), "kinds")?, blocks)
        }
        (None, Some(tensors)) => {
            if let Some(at) = blocks.as_ref().map(position).or(kinds.as_ref().map(position)) {
                let problem = "`blocks` and `kinds` go with `role`; write them into the regex of `tensors`";
                return Err((at, problem.to_string()));
            }
            Select::Pattern(tensors.0.clone())
        }
        _ => return mistake(text, "give exactly one of `role` and `tensors`"),
    };
    let (fill, to) = match (buffer, fill) {
        (Some(buffer), None) => {
            let stray = order.as_ref().map(position).or(from.as_ref().map(position)).or(then.as_ref().map(position));
            if let Some(at) = stray {
                return Err((at, "`order`, `from` and `then` go with `fill`".to_string()));
            }
            (None, Some(buffer))
        }
        (None, Some(fill)) if fill.value.is_empty() => {
            return mistake(fill, "`fill` names no device: write {CUDA0: 22G}, or {devices: rest}");
        }
        (None, Some(fill)) => {
            let from_first = from.as_ref().is_some_and(|from| from.value == End::First);
            let mut written: Vec<_> = fill.value.iter().collect();
            written.sort_by_key(|(_, amount)| position(amount));
            let devices = written.into_iter().map(|(device, amount)| (device.clone(), amount.value.0)).collect();
            (Some(Fill { devices, order: names(order.as_ref(), "order")?, from_first }), then.as_ref())
        }
        (None, None) => return mistake(text, "say where they go: `buffer: CPU`, or `fill: {CUDA0: 22G}`"),
        (Some(buffer), Some(_)) => return mistake(buffer, "give exactly one of `buffer` and `fill`"),
    };
    if let Some(text) = to.filter(|text| text.value.is_empty() || text.value.contains([',', '=', ' ', '"', '\''])) {
        return mistake(text, format!("`{}` is not a buffer: write CPU, CUDA0, …", text.value));
    }
    let buffer = to.map_or("CPU", |text| text.value.as_str()).to_string();
    Ok(PlacementRule { position: position(text), select, fill, buffer })
}

/// A list of different names; none where it is left out.
fn names(list: Option<&Spanned<Vec<String>>>, field: &str) -> Result<Vec<String>, Mistake> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let mut seen = BTreeSet::new();
    match list.value.iter().find(|name| !seen.insert(name.as_str())) {
        Some(name) => mistake(list, format!("`{field}` names `{name}` twice")),
        None if list.value.is_empty() => mistake(list, format!("`{field}` is empty: leave it out")),
        None => Ok(list.value.clone()),
    }
}

/// Which end of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum End {
    First,
    Last,
}

/// A regex that `-ot` takes.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Regex(String);

impl TryFrom<String> for Regex {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.contains([',', '=']) {
            return Err(format!("`{text}` has a `,` or `=`, which llama.cpp's -ot cannot take"));
        }
        match pattern::parse(&text) {
            Ok(_) => Ok(Self(text)),
            Err(reason) => Err(format!("`{text}` is not a regex that llama.cpp takes: {reason}")),
        }
    }
}

/// How much of a device; `None` = to its budget.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Amount(Option<Bytes>);

impl TryFrom<String> for Amount {
    type Error = crate::bytes::ParseBytesError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self(if text == "rest" { None } else { Some(text.parse()?) }))
    }
}

// Filling.

#[derive(Debug, thiserror::Error)]
pub enum FillError {
    #[error(transparent)]
    Forecast(#[from] memory::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    pub overrides: Vec<Override>,
    /// By rule: the tensors that a filling rule put into each buffer; nothing for another rule.
    pub filled: Vec<Assignment>,
}

/// Tensors of a rule, as indices of the model, by buffer type.
type Assignment = Vec<(String, BTreeSet<usize>)>;

/// The request with the rules carried out for the launch that was `chosen` without them: everything else stays as it is there.
pub fn pinned(
    file: &RuleFile,
    model: &Model,
    machine: &Machine,
    request: &Request,
    chosen: RunConfig,
) -> Result<(Request, Resolution), FillError> {
    let mut run = RunConfig { overrides: request.run.overrides.clone(), ..chosen };
    let resolution = resolve(file, model, machine, request.margin, &run)?;
    run.overrides.extend(resolution.overrides.iter().cloned());
    let (context, strategy, levers) = (ContextChoice::Fixed(run.n_ctx), Strategy::Rules, Levers::default());
    Ok((Request { run, context, strategy, levers, ..request.clone() }, resolution))
}

/// The rules for a launch, whose own overrides come first.
#[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "a list by rule"))]
fn resolve(
    file: &RuleFile,
    model: &Model,
    machine: &Machine,
    margin: Bytes,
    run: &RunConfig,
) -> Result<Resolution, FillError> {
    let rules = &file.rules;
    // Until its turn comes, what a rule would fill with is where the rest goes.
    let rest = |rule: &PlacementRule| (rule.buffer.clone(), rule.select.tensors(model));
    let filled = rules.iter().map(|rule| rule.fill.iter().map(|_| rest(rule)).collect()).collect();
    let mut filler = Filler { rules, model, machine, margin, run, filled };
    for (at, rule) in rules.iter().enumerate() {
        if let Some(fill) = &rule.fill {
            filler.fill(at, rule, fill)?;
        }
    }
    let filled = filler.filled.clone();
    // What is on its device without being told is left out: a command is to be read by people.
    let buffers = |placement: &Placement| -> Vec<Vec<Buffer>> {
        placement.copies.iter().map(|copies| copies.iter().map(|copy| copy.buffer).collect()).collect()
    };
    let wanted = buffers(&filler.place(rules.len())?);
    for (at, assigned) in filled.iter().enumerate() {
        for group in (0..assigned.len()).rev() {
            let without = filler.filled[at].remove(group);
            if buffers(&filler.place(rules.len())?) != wanted {
                filler.filled[at].insert(group, without);
            }
        }
    }
    Ok(Resolution { overrides: filler.launch(rules.len()).overrides.split_off(run.overrides.len()), filled })
}

/// Tensors that stay together: a weight with its biases and scales.
struct Unit {
    tensors: Vec<usize>,
    /// Where it is without a rule; `None` = host.
    device: Option<u16>,
    /// Where the rule puts it so far.
    on: Option<u16>,
    rank: (usize, i64, usize),
}

struct Filler<'a> {
    rules: &'a [PlacementRule],
    model: &'a Model,
    machine: &'a Machine,
    margin: Bytes,
    run: &'a RunConfig,
    filled: Vec<Assignment>,
}

#[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "places in the model's and the file's own lists"))]
impl Filler<'_> {
    /// The launch with the overrides of the first so many rules, as they stand.
    fn launch(&self, rules: usize) -> RunConfig {
        let mut run = self.run.clone();
        for (rule, assigned) in self.rules.iter().zip(&self.filled).take(rules) {
            if rule.fill.is_none() {
                run.overrides.extend(fixed(rule, self.model));
            }
            for (buffer, tensors) in assigned {
                run.overrides.extend(overrides_of(self.model, tensors, buffer));
            }
        }
        run
    }

    fn place(&self, rules: usize) -> Result<Placement, memory::Error> {
        Ok(placement::place(self.model, self.machine, &self.launch(rules))?)
    }

    fn fill(&mut self, at: usize, rule: &PlacementRule, fill: &Fill) -> Result<(), FillError> {
        let limits = self.limits(rule, fill)?;
        let mut units = self.units(at, rule, fill)?;
        // What belongs to a device's own layers comes before what would be fetched from another's.
        for own in [true, false] {
            for (device, _) in &limits {
                let is_free = |unit: &Unit| unit.on.is_none() && own == (unit.device == Some(*device));
                let free: Vec<usize> = (0..units.len()).filter(|unit| is_free(&units[*unit])).collect();
                let put = |units: &mut [Unit], count: usize| {
                    free.iter()
                        .enumerate()
                        .for_each(|(rank, unit)| units[*unit].on = (rank < count).then_some(*device));
                };
                let (mut fits, mut too_many) = (0, free.len() + 1);
                while too_many - fits > 1 {
                    // All of them first: mostly that settles it for the devices that have room.
                    let tried = if too_many > free.len() { free.len() } else { usize::midpoint(fits, too_many) };
                    put(&mut units, tried);
                    self.filled[at] = self.assignment(rule, &limits, &units);
                    if self.fits(&limits)? { fits = tried } else { too_many = tried }
                }
                put(&mut units, fits);
            }
        }
        self.filled[at] = self.assignment(rule, &limits, &units);
        Ok(())
    }

    /// How much each device of a rule may hold.
    fn limits(&self, rule: &PlacementRule, fill: &Fill) -> Result<Vec<(u16, Bytes)>, FillError> {
        let mut limits: Vec<(u16, Bytes)> = Vec::new();
        for (name, amount) in &fill.devices {
            let mut is_known = name == DEVICES;
            for (index, device) in (0..).zip(&self.machine.devices) {
                if name != DEVICES && device.name != *name && device.buffer != *name {
                    continue;
                }
                is_known = true;
                if limits.iter().all(|(known, _)| *known != index) {
                    let budget = device.total.saturating_sub(self.margin); // A margin beyond the budget leaves nothing.
                    limits.push((index, amount.map_or(budget, |most| budget.min(most))));
                }
            }
            if !is_known {
                let known: Vec<&str> = self.machine.devices.iter().map(|device| device.name.as_str()).collect();
                let (Position { line, column }, known) = (rule.position, known.join(", "));
                let wrong = format!("the rule at line {line}, column {column} fills `{name}`");
                let message =
                    format!("{wrong}, which this machine does not have; known: {known}, or `{DEVICES}` for all");
                return Err(Refusal::new(message, "").into());
            }
        }
        Ok(limits)
    }

    /// What a rule may place: its tensors that are loaded and that nothing before it decides.
    fn units(&self, at: usize, rule: &PlacementRule, fill: &Fill) -> Result<Vec<Unit>, memory::Error> {
        let before = self.place(at)?;
        let mut units: BTreeMap<(Option<u32>, &str), Unit> = BTreeMap::new();
        for index in rule.select.tensors(self.model) {
            let (tensor, copies) = (&self.model.tensors[index], &before.copies[index]);
            if copies.is_empty() || copies.iter().any(|copy| copy.rule.is_some()) {
                continue;
            }
            let kind = kind(tensor);
            let order = fill.order.iter().position(|wanted| is_named(kind, wanted)).unwrap_or(fill.order.len());
            let block = tensor.block.map_or(0, i64::from);
            let device = copies.iter().find_map(|copy| copy.buffer.device_index());
            let rank = (order, if fill.from_first { block } else { -block }, index);
            let unit = Unit { tensors: Vec::new(), device, on: None, rank };
            units.entry((tensor.block, kind)).or_insert(unit).tensors.push(index);
        }
        let mut units: Vec<Unit> = units.into_values().collect();
        units.sort_by_key(|unit| unit.rank);
        Ok(units)
    }

    /// Units by buffer: the devices in the rule's order, then the rest.
    fn assignment(&self, rule: &PlacementRule, limits: &[(u16, Bytes)], units: &[Unit]) -> Assignment {
        let buffer = |device: u16| Some((self.machine.device(device)?.buffer.clone(), Some(device)));
        let devices = limits.iter().filter_map(|(device, _)| buffer(*device));
        let group = |(buffer, on): (String, Option<u16>)| {
            let here = units.iter().filter(|unit| unit.on == on);
            (buffer, here.flat_map(|unit| unit.tensors.iter().copied()).collect::<BTreeSet<usize>>())
        };
        let groups = devices.chain([(rule.buffer.clone(), None)]).map(group);
        groups.filter(|(_, tensors)| !tensors.is_empty()).collect()
    }

    /// Whether every device of a rule keeps within its limit, all rules counted.
    fn fits(&self, limits: &[(u16, Bytes)]) -> Result<bool, memory::Error> {
        let forecast = memory::forecast(self.model, self.machine, &self.launch(self.rules.len()))?;
        let total = |at: u16| self.machine.device(at).map_or(Bytes(0), |device| forecast.total(&device.name));
        Ok(limits.iter().all(|(device, limit)| total(*device) <= *limit))
    }
}

// Telling what a file does.

/// The `moeplan/rules/1` document.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RulesCheck {
    pub schema: &'static str,
    pub name: String,
    /// Its own description; untrusted text.
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
    let mut owner: BTreeMap<usize, u32> = BTreeMap::new();
    let row = |(at, rule): (usize, &PlacementRule)| {
        let mut row = described(rule);
        row.warnings.extend(machine.and_then(|machine| unknown_buffer(&rule.buffer, machine)));
        if let Some(model) = model {
            counted(rule, &mut row, model, &mut owner);
            let filled = resolution.and_then(|resolution| resolution.filled.get(at)).into_iter().flatten();
            row.filled = filled.map(|(buffer, tensors)| (buffer.clone(), count(model, tensors))).collect();
        }
        row
    };
    let rules = file.rules.iter().enumerate().map(row).collect();
    let overrides = resolution.map_or(&[][..], |resolution| &resolution.overrides);
    RulesCheck {
        schema: "moeplan/rules/1",
        name: name.to_string(),
        description: file.description.clone(),
        model_bytes: model.map(|model| model.tensors.iter().map(|tensor| tensor.bytes).sum()),
        rules,
        unmatched: model.map(|model| {
            count(model, (0..model.tensors.len()).filter(|at| !owner.contains_key(at)).collect::<Vec<_>>().iter())
        }),
        carried_out: resolution.is_some(),
        overrides: overrides.iter().map(|entry| format!("{}={}", entry.pattern, entry.buffer)).collect(),
    }
}

fn count<'a>(model: &Model, tensors: impl IntoIterator<Item = &'a usize>) -> Count {
    let found = tensors.into_iter().filter_map(|at| model.tensors.get(*at));
    found.fold(Count::default(), |sum, tensor| Count { tensors: sum.tensors + 1, bytes: sum.bytes + tensor.bytes })
}

/// A buffer that the machine does not have.
fn unknown_buffer(buffer: &str, machine: &Machine) -> Option<String> {
    let known: Vec<&str> = ["CPU"].into_iter().chain(machine.devices.iter().map(|d| d.buffer.as_str())).collect();
    if known.contains(&buffer) {
        return None;
    }
    let same = known.iter().find(|name| name.eq_ignore_ascii_case(buffer));
    let meant = same.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
    Some(format!("`{buffer}` is not a buffer of this machine, which has {}{meant}", known.join(", ")))
}

fn described(rule: &PlacementRule) -> RuleRow {
    let tensors = match &rule.select {
        Select::Pattern(pattern) => format!("/{pattern}/"),
        Select::Role(role, kinds, _) if kinds.is_empty() => role.key().to_string(),
        Select::Role(role, kinds, _) => format!("{} ({})", role.key(), kinds.join(", ")),
    };
    let to = rule.fill.as_ref().map_or(rule.buffer.clone(), |fill| {
        let amount = |(device, amount): &(String, Option<Bytes>)| {
            let budget = if device == DEVICES { "their budgets" } else { "its budget" };
            format!("{device} to {}", amount.map_or(budget.to_string(), |bytes| bytes.to_string()))
        };
        let devices: Vec<String> = fill.devices.iter().map(amount).collect();
        let order = if fill.order.is_empty() { String::new() } else { format!(" by {}", fill.order.join(", ")) };
        let from = if fill.from_first { "first" } else { "last" };
        format!("fill {}{order}, {from} blocks before others; then {}", devices.join(", "), rule.buffer)
    });
    RuleRow { line: rule.position.line, column: rule.position.column, tensors, to, ..RuleRow::default() }
}

/// Counts what the rule is about and what is left of it.
fn counted(rule: &PlacementRule, row: &mut RuleRow, model: &Model, owner: &mut BTreeMap<usize, u32>) {
    let matched = rule.select.tensors(model);
    row.matches = count(model, &matched);
    let mut taken: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut mine = Vec::new();
    for at in &matched {
        match owner.get(at) {
            Some(line) => taken.entry(*line).or_default().push(*at),
            None => mine.push(*at),
        }
    }
    owner.extend(mine.iter().map(|at| (*at, rule.position.line)));
    row.decides = count(model, &mine);
    row.blocks = shown(&mine.iter().filter_map(|at| model.tensors.get(*at)?.block).collect());
    row.shadowed = taken.iter().map(|(line, tensors)| Shadow { line: *line, count: count(model, tensors) }).collect();
    if matched.is_empty() {
        row.warnings.push(nothing(rule, model));
    } else if mine.is_empty() {
        let lines: Vec<String> = taken.keys().map(ToString::to_string).collect();
        row.warnings.push(format!("has no effect: line {} takes everything that it matches", lines.join(", ")));
    }
    let kinds: BTreeSet<&str> = matched.iter().filter_map(|at| Some(kind(model.tensors.get(*at)?))).collect();
    for wanted in rule.fill.iter().flat_map(|fill| &fill.order) {
        if !kinds.is_empty() && !kinds.iter().any(|kind| is_named(kind, wanted)) {
            let known: Vec<&str> = kinds.iter().copied().collect();
            row.warnings
                .push(format!("`order` names `{wanted}`, but the rule matches none (it has {})", known.join(", ")));
        }
    }
}

/// Why a rule matches nothing, as far as the model tells.
fn nothing(rule: &PlacementRule, model: &Model) -> String {
    let Select::Role(role, kinds, _) = &rule.select else {
        return "matches nothing: no tensor name matches this regex".to_string();
    };
    let of_role: Vec<&Tensor> = model.tensors.iter().filter(|tensor| tensor.role == *role).collect();
    if of_role.is_empty() {
        return format!("matches nothing: this model has no {}", role.words());
    }
    let of_kinds = of_role.iter().filter(|tensor| is_of_kinds(tensor, kinds));
    let blocks: BTreeSet<u32> = of_kinds.filter_map(|tensor| tensor.block).collect();
    let found = if blocks.is_empty() {
        let known: BTreeSet<&str> = of_role.into_iter().map(kind).collect();
        format!("of the kinds {}", known.into_iter().collect::<Vec<_>>().join(", "))
    } else {
        format!("in blocks {}", shown(&blocks))
    };
    format!("matches nothing: its tensors of {} are {found}", role.words())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bytes::{GIB, MIB};
    use crate::machine::{Backend, Device, Host};
    use crate::synth::{self, Wish};

    #[test]
    fn mistakes_are_told_with_their_place_and_what_to_write() {
        for (text, line, column, expected) in [
            ("rules:\n  - role: router\n", 2, 5, "say where they go"),
            ("rules:\n  - rol: router\n    buffer: CPU\n", 2, 5, "did you mean `role`?"),
            ("rules:\n  - zzzzzz: router\n    buffer: CPU\n", 2, 5, "zzzzzz"),
            ("rules:\n  - role: expert\n    buffer: CPU\n", 2, 11, "did you mean `routed_expert`?"),
            ("rules:\n  - role: atention\n    buffer: CPU\n", 2, 11, "did you mean `attention`?"),
            ("rules:\n  - buffer: CPU\n", 2, 5, "one of `role` and `tensors`"),
            ("rules:\n  - tensors: 'a{1,2}'\n    buffer: CPU\n", 2, 14, "cannot take"),
            ("rules:\n  - tensors: '(a'\n    buffer: CPU\n", 2, 14, "not a regex"),
            ("rules:\n  - role: router\n    blocks: 7-3\n    buffer: CPU\n", 3, 13, "not a list of blocks"),
            ("rules:\n  - tensors: a\n    blocks: 7\n    buffer: CPU\n", 3, 13, "go with `role`"),
            ("rules:\n  - role: router\n    buffer: CPU\n    then: CPU\n", 4, 11, "go with `fill`"),
            ("rules:\n  - role: router\n    fill: {CUDA0: lots}\n", 3, 19, "is not a size"),
            ("rules:\n  - role: router\n    fill: {}\n", 3, 11, "no device"),
            ("rules:\n  - role: router\n    buffer: \"C=\\nP\"\n", 3, 13, "`C= P` is not a buffer"),
            ("rules:\n  - role: router\n    fill: CUDA0\n", 3, 11, "map"),
            ("rules:\n  - role: router\n    fill: {CUDA0: 1G, CUDA0: 2G}\n", 3, 23, "CUDA0"),
            ("rules:\n  - role: router\n    fill: {CUDA0: rest}\n    order: [up, up]\n", 4, 12, "twice"),
            (
                "rules:\n  - role: router\n    fill: {CUDA0: rest}\n    from: top\n",
                4,
                11,
                "expected one of first, last",
            ),
            ("rules:\n  - role: router\n    buffer: 'a,b'\n", 3, 13, "not a buffer"),
            ("rules:\n  - role: [a]\n", 2, 11, "one name is expected"),
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
    fn blocks_are_ranges_or_ends() {
        let present: BTreeSet<u32> = (1..10).collect();
        for (text, expected) in
            [("3", "3"), ("0-3,8", "1-3, 8"), ("7-", "7-9"), ("first 2", "1-2"), ("last 3", "7-9"), (" 4 - 5 ", "4-5")]
        {
            assert_eq!(shown(&Blocks::try_from(text.to_string()).unwrap().of(&present)), expected, "{text}");
        }
        for wrong in ["", "x", "7-3", "first", "first 0", "1-99999", "1,,2", "-3"] {
            assert!(Blocks::try_from(wrong.to_string()).is_err(), "{wrong}");
        }
    }

    fn model() -> Model {
        synth::model("qwen3-30b-a3b", &Wish { blocks: Some(8), ..Wish::default() }).unwrap()
    }

    /// The rules of a text carried out on cards of so many MiB, with the machine and each card's total.
    fn carried_out(
        model: &Model,
        text: &str,
        cards: &[u64],
        run: RunConfig,
    ) -> Result<(Resolution, Machine, BTreeMap<String, Bytes>), FillError> {
        let budgets: Vec<Bytes> = cards.iter().map(|mib| Bytes::mib(*mib)).collect();
        let host = Host { ram: Some(Bytes(64 * GIB)), ..Host::default() };
        let machine = Machine::new(Device::of_budgets(Backend::Cuda, &budgets).unwrap(), host).unwrap();
        let mut run = RunConfig { n_ctx: 8192, n_parallel: Some(1), n_gpu_layers: 99, fit: false, ..run };
        let resolution = resolve(&parse("test", text).unwrap(), model, &machine, Bytes::mib(100), &run)?;
        run.overrides.extend(resolution.overrides.iter().cloned());
        let memory = memory::forecast(model, &machine, &run)?.memory;
        Ok((resolution, machine, memory.into_iter().map(|(name, row)| (name, row.total())).collect()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        /// What is stated is never passed, the budget less the margin neither; with one device, no tensor that would fit is left.
        #[test]
        fn no_device_is_filled_beyond_its_amount(
            cards in proptest::collection::vec(2400_u64..6000, 1..3), amount in 2000_u64..6000, which in 0_usize..3,
            first in any::<bool>(),
        ) {
            thread_local! { static MODEL: Model = model(); }
            let from = if first { "first" } else { "last" };
            let order = ["", "order: [up, gate, down], ", "order: [down], "][which];
            let (devices, tensor_split) = if cards.len() == 1 { ("devices", vec![]) } else { ("CUDA1", vec![5.0, 4.0]) };
            let text = format!(
                "rules:\n- {{role: routed_expert, {order}from: {from}, fill: {{CUDA0: {amount}M, {devices}: rest}}}}\n"
            );
            let run = RunConfig { tensor_split, ..RunConfig::default() };
            let (resolution, machine, used) = MODEL.with(|model| carried_out(model, &text, &cards, run).unwrap());
            let is_filled = |name: &str| resolution.filled[0].iter().any(|(buffer, _)| buffer == name);
            for (device, budget) in machine.devices.iter().zip(&cards) {
                let stated = if device.name == "CUDA0" { amount } else { u64::MAX };
                let limit = Bytes((budget - 100).min(stated) * MIB);
                let placed = is_filled(&device.buffer);
                prop_assert!(!placed || used[&device.name] <= limit, "{} of {limit} on {}", used[&device.name], device.name);
                if cards.len() == 1 && placed && is_filled("CPU") {
                    // The largest part of a block, and the area that prompts copy experts through.
                    let left = limit.saturating_sub(used[&device.name]);
                    prop_assert!(left < Bytes::mib(300), "{left} left");
                }
            }
        }
    }

    #[test]
    fn earlier_rules_and_overrides_of_the_user_are_left_alone() {
        let model = model();
        let text =
            "rules:\n- {role: routed_expert, kinds: [up], buffer: CPU}\n- {role: routed_expert, fill: {CUDA0: rest}}\n";
        let by_user = Override { pattern: r"blk\.0\.".into(), buffer: "CPU".into(), origin: "-ot".into() };
        let run = RunConfig { overrides: vec![by_user], ..RunConfig::default() };
        let (resolution, ..) = carried_out(&model, text, &[24_000], run).unwrap();
        let filled: Vec<&str> = resolution.filled[1]
            .iter()
            .flat_map(|(_, tensors)| tensors.iter().map(|at| model.tensors[*at].name.as_str()))
            .collect();
        assert_eq!(filled.len(), 7 * 2, "{filled:?}");
        assert!(filled.iter().all(|name| !name.contains("_up_") && !name.starts_with("blk.0.")), "{filled:?}");
        // All of it fits, and is on its device without being told.
        assert_eq!(resolution.overrides.len(), 1, "{:?}", resolution.overrides);
    }

    #[test]
    fn the_blocks_that_are_named_first_are_filled_first_and_a_missing_device_is_told() {
        let model = model();
        for (from, kept) in [("first", 0), ("last", 7)] {
            let text = format!("rules:\n- {{role: routed_expert, from: {from}, fill: {{CUDA0: rest}}}}\n");
            let (resolution, ..) = carried_out(&model, &text, &[3400], RunConfig::default()).unwrap();
            let on = |wanted: &str| {
                let of = resolution.filled[0].iter().filter(|(buffer, _)| buffer == wanted);
                of.flat_map(|(_, tensors)| tensors).any(|at| model.tensors[*at].block == Some(kept))
            };
            assert!(on("CUDA0") && !on("CPU"), "{from}: {:?}", resolution.filled);
        }
        let text = "rules:\n\n- {role: routed_expert, fill: {CUDA7: rest}}\n";
        let error = carried_out(&model, text, &[8000], RunConfig::default()).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("known: CUDA0"), "{error}");
    }
}
