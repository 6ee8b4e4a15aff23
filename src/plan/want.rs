//! Inverse questions: the least budget, card, main memory and memory speed whose plan gives what is wanted; and what a larger machine
//! would give.

use std::borrow::Cow;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::solver::{Computes, Objective, Problem};
use super::sweep::Point;
use super::{ContextChoice, Error, ModelSummary, Request};
use crate::bytes::{Bytes, GIB, MIB};
use crate::machine::cards::{self, CARDS, Card, Sold};
use crate::machine::{Backend, Device, Host, Machine, Ram, processors};
use crate::model::Model;
use crate::number::{rate, seconds, tokens};
use crate::speed::prices::{device_rates, host_rates, limited};
use crate::speed::table;

/// Something that a launch is to give: `tg=20`, `pp=500`, `turn=30s`, `ctx=128k`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Want {
    pub what: Quantity,
    /// Tokens per second at least; of a turn seconds at most; of a context tokens.
    pub value: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Quantity {
    Tg,
    Pp,
    Turn,
    Ctx,
}

impl FromStr for Want {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("`{text}`: write tg=20, pp=500 (tokens/s), turn=30s or ctx=128k");
        let (name, value) = text.split_once('=').ok_or_else(usage)?;
        let number = |text: &str| text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0).ok_or_else(usage);
        let (what, value) = match name {
            "tg" => (Quantity::Tg, number(value)?),
            "pp" => (Quantity::Pp, number(value)?),
            "turn" => (Quantity::Turn, number(value.strip_suffix('s').unwrap_or(value))?),
            "ctx" => (Quantity::Ctx, f64::from(tokens(value)?.max(1))),
            _ => return Err(usage()),
        };
        Ok(Self { what, value })
    }
}

impl Want {
    fn is_met(&self, point: &Point) -> bool {
        match self.what {
            Quantity::Tg => point.speed.tg >= self.value,
            Quantity::Pp => point.speed.pp >= self.value,
            Quantity::Turn => point.turn_seconds <= self.value,
            Quantity::Ctx => f64::from(point.n_ctx) >= self.value,
        }
    }

    /// What a plan has of it.
    fn found(&self, point: &Point) -> String {
        match self.what {
            Quantity::Tg => format!("generation is {} tokens/s", rate(point.speed.tg)),
            Quantity::Pp => format!("a prompt is {} tokens/s", rate(point.speed.pp)),
            Quantity::Turn => format!("a turn takes {}", seconds(point.turn_seconds)),
            Quantity::Ctx => format!("the context is {} tokens", point.n_ctx),
        }
    }
}

/// The `moeplan/want/1` document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Wanted {
    pub schema: Cow<'static, str>,
    pub model: ModelSummary,
    pub wants: Vec<Want>,
    pub objective: Objective,
    /// The plan for the machine as it is described.
    pub now: Answer,
    /// Whether that plan fits and gives all that is wanted.
    pub reached: bool,
    /// The least budget of the devices, which keep their speeds and their shares of it.
    pub budget: Change,
    /// The smallest cards that reach it, one of them in place of all devices.
    pub card: Change,
    /// The fewest more cards of the last one's kind.
    #[serde(default)]
    pub more_cards: Change,
    /// The least main memory.
    pub main_memory: Change,
    /// The least speed of main memory, then the slowest usual kit that has it.
    pub memory_speed: Change,
}

impl Wanted {
    /// What may change.
    pub fn changes(&self) -> [&Change; 5] {
        [&self.budget, &self.card, &self.more_cards, &self.main_memory, &self.memory_speed]
    }

    /// Whether the machine, or one change of it, gives what is wanted.
    pub fn is_reachable(&self) -> bool {
        self.reached || self.changes().iter().any(|change| !change.answers.is_empty())
    }
}

/// What one thing has to be, all else as the machine says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Change {
    /// The least first; empty where nothing of the kind reaches it.
    pub answers: Vec<Answer>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Change {
    fn none(reason: impl Into<String>) -> Self {
        Self { answers: Vec::new(), reason: Some(reason.into()) }
    }
}

/// A plan for a machine in which one thing differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answer {
    /// The options of `moeplan plan` that give this plan, in place of those that say the same of the machine.
    pub flags: Vec<String>,
    pub machine: Machine,
    #[serde(flatten)]
    pub point: Point,
}

/// Budgets are tried in steps of so much.
const STEP: u64 = 64 * MIB;
/// Plans for at most so many cards are listed.
const MOST_CARDS: usize = 3;
/// As many cards of one kind are added at most.
const MOST_MORE_CARDS: u64 = 3;
/// As much as memory may be doubled to find out whether any amount is enough.
const DOUBLINGS: u32 = 6;
/// Less time than this share is no gain of a doubled memory.
const NO_GAIN: f64 = 0.001;
/// GB/s of a data sheet that two channels reach, and that any server's memory does.
const CHANNELS: [u64; 2] = [130, 1200];
/// GB of main memory that computers are sold with.
const SIZES: [u32; 16] = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];
/// Main memory that is sold, slowest first as llama.cpp gets to use it.
const KITS: [&str; 12] = [
    "ddr4-2666x2",
    "ddr4-3200x2",
    "ddr5-4800x2",
    "ddr5-5600x2",
    "ddr5-6000x2",
    "ddr5-6400x2",
    "ddr5-8000x2",
    "ddr4-3200x8",
    "ddr5-4800x8",
    "ddr5-6400x8",
    "ddr5-4800x12",
    "ddr5-6400x12",
];

/// The kits that a host takes, as far as its processor says it, with GB/s of their data sheets; the slowest first.
fn kits(host: &Host) -> impl Iterator<Item = (&'static str, f64)> + use<> {
    let known = host.processor.as_deref().map(processors::named).unwrap_or_default();
    let kits = match (known.fastest, known.takes) {
        (Some(kit), _) => vec![kit],
        (None, Some(kind)) => KITS.into_iter().filter(|kit| kit.starts_with(kind) && kit.ends_with("x2")).collect(),
        (None, None) => KITS.to_vec(),
    };
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let sockets = host.processor.as_deref().and_then(cards::counted).map_or(1.0, |(sockets, _)| sockets as f64);
    let of_kit = move |kit: &str| Some(format!("1G@{kit}").parse::<Ram>().ok()?.bandwidth? * sockets);
    kits.into_iter().filter_map(move |kit| Some((kit, of_kit(kit)?)))
}

/// A model and what is asked of every machine.
struct Asked<'a> {
    model: &'a Model,
    /// What is asked, and in the words that every answer's flags begin with.
    request: Request,
    flags: Vec<String>,
    /// What is asked of every machine that is tried: for the one speed that is wanted, and a context that the turn just fits in.
    tried: Request,
    wants: &'a [Want],
    /// Whether the margin is what the devices call for, so that other devices may call for another.
    margin_is_devices: bool,
    /// Of every machine: a launch names its devices, and devices of one name have the same compute.
    computes: Computes,
    /// What the size of main memory is followed by where it is typed: its type, or its GB/s.
    kind: &'a str,
}

/// The least of each thing that gives all of `wants`. `kind` is what `--ram SIZE` is followed by.
///
/// Where all that is wanted is of one speed, machines are judged by plans for that speed. The plan that is shown is the request's own
/// wherever that reaches it too: the last tokens of one speed may cost much of the other.
pub fn want(
    model: &Model,
    path: &str,
    machine: &Machine,
    request: &Request,
    (wants, kind): (&[Want], &str),
) -> Result<Wanted, Error> {
    let mut asked = Asked::new(model, machine, request, kind);
    asked.wants = wants;
    // Of several contexts the longest has room for all.
    let contexts = wants.iter().filter(|want| want.what == Quantity::Ctx).map(|want| want.value);
    if let Some(tokens) = contexts.max_by(f64::total_cmp) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "read from a u32")]
        let n_ctx = tokens as u32;
        asked.request.context = ContextChoice::Fixed(n_ctx);
        asked.flags.extend(["-c".into(), n_ctx.to_string()]);
    }
    let speeds = || wants.iter().map(|want| want.what).filter(|what| *what != Quantity::Ctx);
    let only = |what| speeds().all(|other| other == what) && speeds().next().is_some();
    let objective = [(Quantity::Tg, Objective::Tg), (Quantity::Pp, Objective::Pp)];
    let objective = objective.into_iter().find(|(what, _)| only(*what)).map(|(_, objective)| objective);
    asked.tried = asked.request.clone();
    if let Some(objective) = objective.filter(|_| request.objective == Objective::Turn) {
        asked.tried.objective = objective;
    }
    // The longer context that a plan chooses costs its turn little, and takes most of the time to find.
    if asked.tried.context == ContextChoice::Auto {
        asked.tried.context = ContextChoice::Turn;
    }
    let now = asked.plan(machine.clone(), Vec::new(), 0, "this machine".into())?;
    let reached = asked.is_reached(&now);
    let told = |change: Change| -> Result<Change, Error> {
        let answers = change.answers.into_iter().map(|answer| asked.told(answer)).collect::<Result<_, Error>>()?;
        Ok(Change { answers, ..change })
    };
    Ok(Wanted {
        schema: "moeplan/want/1".into(),
        model: super::summary(model, path),
        wants: wants.to_vec(),
        objective: asked.tried.objective,
        reached,
        now: asked.told(now)?,
        budget: told(asked.budget(machine, reached)?)?,
        card: told(asked.card(machine))?,
        more_cards: if reached { Change::default() } else { told(asked.more_cards(machine)?)? },
        main_memory: told(asked.main_memory(machine, reached)?)?,
        memory_speed: told(asked.memory_speed(machine)?)?,
    })
}

/// What one more card, the next larger card, faster and more main memory would give.
pub fn upgrades(model: &Model, machine: &Machine, request: &Request, kind: &str) -> Result<Vec<Answer>, Error> {
    let asked = Asked::new(model, machine, request, kind);
    let mut answers = Vec::new();
    if let [.., last] = machine.devices.as_slice()
        && let Some(more) = last.next_of_its_kind(machine)
    {
        let label = format!("one more card: {} of {}", more.name, more.total);
        let devices: Vec<Device> = machine.devices.iter().cloned().chain([more]).collect();
        let flags = flags_of(&devices);
        let machine = Machine { devices, host: machine.host.clone() };
        answers.push(asked.plan(machine, flags, 0, label)?);
    }
    if let [only] = machine.devices.as_slice()
        && !machine.is_unified()
    {
        let nominal = only.sold_as.map_or(only.total.0.div_ceil(GIB), u64::from);
        let is_larger = |card: &Candidate| {
            let (new, own) = (device_rates(&card.device), device_rates(only));
            let is_slower = new.weights < own.weights || new.products < own.products;
            u64::from(card.sold.gb) > nominal && card.card.runs(only.backend) && !is_slower
        };
        if let Some(card) = cards(machine).into_iter().find(is_larger) {
            answers.push(asked.with_card(machine, &card)?);
        }
    }
    let memory = host_rates(&machine.host).memory;
    if let Some((kit, bandwidth)) = kits(&machine.host).find(|(_, bandwidth)| table::memory(*bandwidth) > memory * 1.05)
        && !machine.is_unified()
    {
        answers.push(asked.with_memory_speed(machine, bandwidth, Some(kit))?);
    }
    // The system keeps a part of what was sold.
    let (sizes, ram) = (sizes(machine), machine.host.ram.map(|ram| ram.0.div_ceil(GIB)));
    let sold = ram.and_then(|ram| sizes.iter().map(|gb| u64::from(*gb)).find(|gb| *gb >= ram));
    // Modules come in pairs of one kind; what is part of a chip is sold in the next size.
    let least = |sold: u64| if machine.is_unified() { sold + 1 } else { sold * 2 };
    if let Some(more) = sold.and_then(|sold| sizes.iter().map(|gb| u64::from(*gb)).find(|gb| *gb >= least(sold))) {
        answers.push(asked.with_main_memory(machine, more)?);
    }
    Ok(answers)
}

impl<'a> Asked<'a> {
    fn new(model: &'a Model, machine: &Machine, request: &Request, kind: &'a str) -> Self {
        Self {
            model,
            request: request.clone(),
            flags: Vec::new(),
            tried: request.clone(),
            wants: &[],
            margin_is_devices: request.margin == machine.margin(),
            computes: Computes::default(),
            kind,
        }
    }

    fn is_reached(&self, answer: &Answer) -> bool {
        answer.point.fits && self.wants.iter().all(|want| want.is_met(&answer.point))
    }

    /// What is missing of what is wanted.
    fn missing(&self, answer: &Answer) -> String {
        let unmet = self.wants.iter().filter(|want| !want.is_met(&answer.point));
        let over = answer.point.shortfall.iter().map(|(name, over)| format!("{name} is {over} over"));
        let found = unmet.map(|want| want.found(&answer.point));
        format!("with {}, {}", answer.point.label, over.chain(found).collect::<Vec<_>>().join(", "))
    }

    /// The plan for a machine.
    fn plan(&self, machine: Machine, own: Vec<String>, value: u64, label: String) -> Result<Answer, Error> {
        self.plan_of(&self.tried, (machine, own), value, label)
    }

    fn plan_of(
        &self,
        request: &Request,
        (machine, flags): (Machine, Vec<String>),
        value: u64,
        label: String,
    ) -> Result<Answer, Error> {
        let margin = if self.margin_is_devices { machine.margin() } else { request.margin };
        let request = Request { margin, ..request.clone() };
        let problem = Problem { computes: self.computes.clone(), ..request.problem(self.model, &machine) };
        let point = Point::of(&problem, &super::solve_with(&problem)?, value, label);
        Ok(Answer { flags, machine, point })
    }

    /// The answer as it is shown, with all its flags: the plan of the request itself where it reaches what is wanted, else the one for the
    /// speed that is wanted, and that with no longer context than the turn needs.
    fn told(&self, answer: Answer) -> Result<Answer, Error> {
        let Answer { flags: own, machine, point: Point { value, label, n_ctx, .. } } = answer;
        let objective = self.tried.objective;
        let for_speed = (objective != self.request.objective).then(|| {
            let word = if objective == Objective::Tg { "tg" } else { "pp" };
            (Request { objective, ..self.request.clone() }, vec!["--objective".to_string(), word.into()])
        });
        let (last, words) = for_speed.clone().unwrap_or_else(|| (self.request.clone(), Vec::new()));
        let is_free = last.context == ContextChoice::Auto;
        let short = (
            Request { context: ContextChoice::Fixed(n_ctx), ..last },
            [words, vec!["-c".into(), n_ctx.to_string()]].concat(),
        );
        let ways = [Some((self.request.clone(), Vec::new())), for_speed, Some(short).filter(|_| is_free)];
        let mut unreached: Option<Answer> = None;
        for (request, words) in ways.into_iter().flatten() {
            // A longer context makes no plan faster: where the shortest does not do, no long one has to be found.
            if is_free && request.objective != objective && unreached.is_none() {
                let short = Request { context: ContextChoice::Turn, ..request.clone() };
                let found = self.plan_of(&short, (machine.clone(), own.clone()), value, label.clone())?;
                if !self.is_reached(&found) {
                    continue;
                }
            }
            let flags = [words, self.flags.clone(), own.clone()].concat();
            let found = self.plan_of(&request, (machine.clone(), flags), value, label.clone())?;
            if self.is_reached(&found) {
                return Ok(found);
            }
            unreached.get_or_insert(found);
        }
        // A machine that does not reach it is shown as it is planned without a target.
        unreached.map_or_else(|| self.plan(machine, own, value, label), Ok)
    }

    /// The least step above `none` whose plan gives what is wanted: `first` steps, doubled as long as that helps, then bisection.
    fn least(
        &self,
        what: &str,
        (none, first): (u64, u64),
        mut at: impl FnMut(u64) -> Result<Answer, Error>,
    ) -> Result<Change, Error> {
        let (mut most, mut top) = (first, at(first)?);
        for _ in 0..DOUBLINGS {
            if self.is_reached(&top) {
                break;
            }
            let next = at(most * 2)?;
            let gains = next.point.turn_seconds < top.point.turn_seconds * (1.0 - NO_GAIN);
            if top.point.fits && !gains && !self.is_reached(&next) {
                break;
            }
            (most, top) = (most * 2, next);
        }
        if !self.is_reached(&top) {
            let missing = self.missing(&top);
            return Ok(Change::none(format!("{what} is not enough: {missing}, and more gains nothing")));
        }
        Ok(Change { answers: vec![self.bisected((none, most), top, at)?], reason: None })
    }

    /// Of two steps, of which the greater one's plan gives what is wanted: the least between them that does.
    fn bisected(
        &self,
        (mut low, mut high): (u64, u64),
        mut found: Answer,
        mut at: impl FnMut(u64) -> Result<Answer, Error>,
    ) -> Result<Answer, Error> {
        while high - low > 1 {
            let middle = u64::midpoint(low, high);
            let answer = at(middle)?;
            if self.is_reached(&answer) {
                (high, found) = (middle, answer);
            } else {
                low = middle;
            }
        }
        Ok(found)
    }

    fn budget(&self, machine: &Machine, reached: bool) -> Result<Change, Error> {
        let Some(largest) = machine.devices.iter().map(|device| device.total.0).max() else {
            return Ok(Change::none("No device is described: add --vram or --gpu"));
        };
        let of_model: Bytes = self.model.tensors.iter().map(|tensor| tensor.bytes).sum();
        let at = |steps: u64| {
            let mut machine = machine.clone();
            let ram = machine.host.ram.unwrap_or(Bytes(u64::MAX));
            for device in &mut machine.devices {
                let share = u128::from(steps * STEP) * u128::from(device.total.0) / u128::from(largest.max(1));
                let most = if device.integrated { ram.0 } else { u64::MAX };
                let budget = u64::try_from(share).unwrap_or(u64::MAX).min(most) / MIB * MIB;
                *device = limited(device, Bytes(budget.max(MIB)));
            }
            let budgets = || machine.devices.iter().map(|device| device.total);
            let flag = budgets().map(|budget| format!("{}M", budget.0 / MIB)).collect::<Vec<_>>().join(",");
            let label = budgets().map(|budget| budget.to_string()).collect::<Vec<_>>().join(" + ");
            let label = format!("a budget of {label}");
            let value = budgets().sum::<Bytes>().0;
            self.plan(machine, vec!["--budget".into(), flag], value, label)
        };
        // What graphics leave of main memory is not saved: only more for them is a change.
        if let Some(ram) = machine.host.ram.filter(|_| machine.is_unified()) {
            if reached {
                return Ok(Change::none(
                    "No smaller budget was tried: the graphics use main memory, which the machine has anyway",
                ));
            }
            let (now, most) = (largest / STEP, ram.0 / STEP);
            let top = at(most)?;
            if now >= most || !self.is_reached(&top) {
                let missing = self.missing(&top);
                return Ok(Change::none(format!(
                    "A larger share of main memory for the graphics is not enough: {missing}"
                )));
            }
            return Ok(Change { answers: vec![self.bisected((now, most), top, at)?], reason: None });
        }
        self.least("A larger budget", (0, of_model.0.div_ceil(STEP).max(16)), at)
    }

    fn main_memory(&self, machine: &Machine, reached: bool) -> Result<Change, Error> {
        if machine.is_unified() {
            let mut last = None;
            for gib in sizes(machine).into_iter().map(u64::from) {
                let answer = self.with_main_memory(machine, gib)?;
                if self.is_reached(&answer) {
                    return Ok(Change { answers: vec![answer], reason: None });
                }
                last = Some(self.missing(&answer));
            }
            let reason = match last {
                Some(last) => {
                    format!("More main memory is not enough, in any size that such computers are sold with: {last}")
                }
                None => "No main memory was tried: the sizes that such computers are sold with are not known".into(),
            };
            return Ok(Change::none(reason));
        }
        let of_model: Bytes = self.model.tensors.iter().map(|tensor| tensor.bytes).sum();
        // Where it is not reached, what the machine has is not enough.
        let has = machine.host.ram.filter(|_| !reached).map_or(0, |ram| ram.0.div_ceil(GIB));
        let first = (of_model.0.div_ceil(GIB) + 4).max(has + 1);
        self.least("More main memory", (has, first), |gib| self.with_main_memory(machine, gib))
    }

    fn with_main_memory(&self, machine: &Machine, gib: u64) -> Result<Answer, Error> {
        let (machine, mut flags) = with_memory(machine, gib);
        if let Some(size) = flags.get_mut(1) {
            *size += self.kind;
        }
        self.plan(machine, flags, gib * GIB, format!("{gib} GiB of main memory"))
    }

    /// Two channels are used better than many, so that both are searched.
    fn memory_speed(&self, machine: &Machine) -> Result<Change, Error> {
        if machine.is_unified() {
            return Ok(Change::none(
                "No memory speed was tried: main memory is soldered in, and the graphics use it too",
            ));
        }
        // A known processor takes one kind; what it is not sold with is no answer.
        let is_known = |name: &&str| {
            let known = processors::named(name);
            known.takes.or(known.fastest).is_some()
        };
        if let Some(name) = machine.host.processor.as_deref().filter(is_known) {
            let mut last = None;
            for (kit, bandwidth) in kits(&machine.host) {
                let answer = self.with_memory_speed(machine, bandwidth, Some(kit))?;
                if self.is_reached(&answer) {
                    return Ok(Change { answers: vec![answer], reason: None });
                }
                last = Some(self.missing(&answer));
            }
            let missing = last.unwrap_or_default();
            return Ok(Change::none(format!("No memory for {name} is fast enough: {missing}")));
        }
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let at = |speed: u64| self.with_memory_speed(machine, speed as f64, None);
        let mut range = (0, CHANNELS[0]);
        let mut top = at(range.1)?;
        if !self.is_reached(&top) {
            range = (CHANNELS[0], CHANNELS[1]);
            top = at(range.1)?;
        }
        if !self.is_reached(&top) {
            return Ok(Change::none(format!("Faster main memory is not enough: {}", self.missing(&top))));
        }
        let least = self.bisected(range, top, at)?;
        let enough = host_rates(&least.machine.host).memory;
        let mut answers = vec![least];
        for (kit, bandwidth) in kits(&machine.host).filter(|(_, bandwidth)| table::memory(*bandwidth) >= enough) {
            let answer = self.with_memory_speed(machine, bandwidth, Some(kit))?;
            if self.is_reached(&answer) {
                answers.push(answer);
                break;
            }
        }
        Ok(Change { answers, reason: None })
    }

    fn with_memory_speed(&self, machine: &Machine, bandwidth: f64, kit: Option<&str>) -> Result<Answer, Error> {
        let mut machine = machine.clone();
        machine.host.set_memory(table::memory(bandwidth));
        let label = format!("main memory of {bandwidth} GB/s");
        let label = kit.map_or(label.clone(), |kit| format!("{label} ({kit})"));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
        let value = bandwidth as u64;
        self.plan(machine, vec!["--memory-bandwidth".into(), bandwidth.to_string()], value, label)
    }

    /// The smallest cards that reach it; a card that the request cannot be carried out on does not.
    fn card(&self, machine: &Machine) -> Change {
        if machine.is_unified() {
            return Change::none("No card was tried: the graphics are part of their computer");
        }
        let (mut answers, mut last) = (Vec::new(), None);
        for card in cards(machine) {
            match self.with_card(machine, &card) {
                Ok(answer) if self.is_reached(&answer) => answers.push(answer),
                Ok(answer) => last = Some(self.missing(&answer)),
                Err(error) => last = Some(error.to_string()),
            }
            if answers.len() == MOST_CARDS {
                break;
            }
        }
        let none = || format!("No single card is enough: {}", last.unwrap_or_default());
        let reason = answers.is_empty().then(none);
        Change { answers, reason }
    }

    /// One more card like the last, two, three.
    fn more_cards(&self, machine: &Machine) -> Result<Change, Error> {
        let mut larger = machine.clone();
        let mut last = None;
        for count in 1..=MOST_MORE_CARDS {
            let Some(more) = larger.devices.last().and_then(|device| device.next_of_its_kind(&larger)) else { break };
            let label = match count {
                1 => format!("one more card of {}", more.total),
                _ => format!("{count} more cards of {}", more.total),
            };
            larger.devices.push(more);
            let flags = flags_of(&larger.devices);
            let answer = self.plan(larger.clone(), flags, count, label)?;
            if self.is_reached(&answer) {
                return Ok(Change { answers: vec![answer], reason: None });
            }
            last = Some(self.missing(&answer));
        }
        Ok(last.map_or_else(Change::default, |last| {
            Change::none(format!("More cards of the same kind are not enough: {last}"))
        }))
    }

    /// One card in place of all devices.
    fn with_card(&self, machine: &Machine, card: &Candidate) -> Result<Answer, Error> {
        let machine = Machine { devices: vec![card.device.clone()], host: machine.host.clone() };
        let label = format!("{} of {} GB", card.card.words.to_uppercase(), card.sold.gb);
        self.plan(machine, card.flags.clone(), card.device.total.0, label)
    }
}

/// A machine with so much main memory, and the flags that say it. Devices that use it get the same share as they had, or what the system
/// lets them have.
pub(super) fn with_memory(machine: &Machine, gib: u64) -> (Machine, Vec<String>) {
    let mut machine = machine.clone();
    let ram = Bytes(gib * GIB);
    let before = machine.host.ram.replace(ram).filter(|before| before.0 > 0);
    let mut flags = vec!["--ram".into(), format!("{gib}G")];
    if machine.is_unified() {
        for device in machine.devices.iter_mut().filter(|device| device.integrated) {
            let by_system = device.card().filter(|card| before.is_none_or(|ram| card.may_take(ram) == device.total));
            let scaled = |before: Bytes| u128::from(device.total.0) * u128::from(ram.0) / u128::from(before.0);
            let share = before.and_then(|before| u64::try_from(scaled(before)).ok()).unwrap_or(ram.0);
            let budget = by_system.map_or(Bytes(share.min(ram.0)), |card| card.may_take(ram));
            *device = limited(device, Bytes(budget.0 / MIB * MIB));
        }
        let sizes = machine.devices.iter().map(|device| format!("{}M", device.total.0 / MIB));
        flags.extend(["--budget".into(), sizes.collect::<Vec<_>>().join(",")]);
    }
    (machine, flags)
}

/// GB of main memory that a computer like this can be bought with, the least first.
pub(super) fn sizes(machine: &Machine) -> Vec<u32> {
    let card = machine.devices.iter().filter(|device| device.integrated).find_map(Device::card);
    card.map(Card::computers).filter(|sizes| !sizes.is_empty()).unwrap_or(&SIZES).to_vec()
}

/// A card that can be bought, in one of its sizes.
struct Candidate {
    card: &'static Card,
    sold: Sold,
    device: Device,
    flags: Vec<String>,
}

/// The cards whose memory and speed are known, by memory and then by bandwidth, on the first device's backend where it drives them. A
/// laptop's cannot be bought alone, nor can Apple's.
fn cards(machine: &Machine) -> Vec<Candidate> {
    let like = machine.devices.first();
    let mut found = Vec::new();
    let is_sold_alone = |card: &&Card| !card.words.ends_with("laptop") && !card.is_integrated();
    for card in CARDS.iter().filter(is_sold_alone).filter(|card| card.figures.is_some()) {
        let mut sizes: Vec<Sold> = Vec::new();
        for sold in &card.sold {
            if sizes.iter().all(|known| known.gb != sold.gb) {
                sizes.push(*sold);
            }
        }
        for (at, sold) in sizes.into_iter().enumerate() {
            let backend = like.map(|device| device.backend).filter(|backend| card.runs(*backend));
            let backend = backend.filter(|backend| *backend != card.backend());
            let name = card.words.to_uppercase();
            let name = if at == 0 { name } else { format!("{name}={}G", sold.gb) };
            let mut flags = vec!["--gpu".to_string(), name.clone()];
            flags.extend(backend.into_iter().flat_map(backend_flag));
            flags.extend(machine.host.windows.then(|| "--windows".to_string()));
            let device = Device::of_cards(&[name], backend, None).ok().and_then(|devices| devices.into_iter().next());
            let device = device.map(|device| if machine.host.windows { device.under_windows() } else { device });
            found.extend(device.map(|device| Candidate { card, sold, device, flags }));
        }
    }
    let bandwidth = |of: &Candidate| of.card.figures.map_or(0.0, |figures| figures.bandwidth);
    found.sort_by(|a, b| a.sold.gb.cmp(&b.sold.gb).then(bandwidth(a).total_cmp(&bandwidth(b))));
    found
}

fn backend_flag(backend: Backend) -> [String; 2] {
    ["--backend".to_string(), format!("{backend:?}").to_lowercase()]
}

/// The flags that describe these devices, as far as they are cards by name or by size.
fn flags_of(devices: &[Device]) -> Vec<String> {
    let size = |device: &Device| match device.sold_as {
        Some(gb) => format!("{gb}G"),
        None => format!("{}M", device.total.0 / MIB),
    };
    let first = devices.first().map(|first| first.backend);
    let is_one_kind = devices.iter().all(|device| Some(device.backend) == first);
    let is_usual = |device: &Device| device.card().is_some_and(|card| card.backend() == device.backend);
    let name = |device: &Device| {
        let name = device.description.as_ref().filter(|name| cards::by_name(name).is_some() && !name.contains(','))?;
        (is_one_kind || is_usual(device)).then(|| format!("{name}={}", size(device)))
    };
    let names: Option<Vec<String>> = devices.iter().map(name).collect();
    // More sizes than a machine file has devices are refused: sizes alone stand for cards that are sold.
    let are_sold = devices.iter().all(|device| device.sold_as.is_some() && !device.integrated);
    match names {
        Some(names) => {
            let backend = first.filter(|_| !devices.iter().all(is_usual)).map(backend_flag);
            ["--gpu".into(), names.join(",")].into_iter().chain(backend.into_iter().flatten()).collect()
        }
        None if is_one_kind && are_sold => {
            vec!["--vram".into(), devices.iter().map(size).collect::<Vec<_>>().join(",")]
        }
        None => {
            let shared = |device: &Device| if device.integrated { ",shared" } else { "" };
            let of = |device: &Device| {
                ["--device".to_string(), format!("{}={}{}", device.buffer, size(device), shared(device))]
            };
            devices.iter().flat_map(of).collect()
        }
    }
}
