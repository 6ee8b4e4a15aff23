//! Several models that stay loaded on one machine: which part of its memory each gets.
//!
//! The devices are laid end to end, and each model gets a piece of that line, so that it is on as few devices as its piece allows.
//! Between neighbours the border is moved to where the slower of the two is fastest, by bisection over real plans. Main memory is not
//! laid out so: what a model needs of it follows from its piece. What is left over then goes to longer contexts.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::choose::furthest;
use super::solver::{Candidate, Computes, Problem};
use super::{ContextChoice, Error, Request};
use crate::bytes::{Bytes, MIB};
use crate::machine::Machine;
use crate::memory::{Forecast, Launch};
use crate::model::Model;
use crate::run::RunConfig;
use crate::speed::prices::limited;

/// A model that is to stay loaded.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    pub model: &'a Model,
    pub request: &'a Request,
    /// How much its slowdown counts; `None` where times count as they are.
    pub weight: Option<f64>,
}

/// What a member gets.
#[derive(Debug, Clone)]
pub struct Share {
    /// The devices with its budgets, and its part of main memory.
    pub machine: Machine,
    /// Of every device of the whole machine, in order; 0 of one that it does not use.
    pub budgets: Vec<Bytes>,
    /// The request's own; the longest that all have room for where its plan alone would not choose that.
    pub context: ContextChoice,
    /// The time of a turn with the whole machine to itself, in seconds.
    pub alone_seconds: f64,
}

/// Borders are tried in steps of so much.
const STEP: u64 = 64 * MIB;
/// The same while orders are compared.
const COARSE: u64 = 16 * STEP;
/// What is left over goes to the faster ones as long as it costs the slowest no more than this share.
const SLACK: f64 = 0.005;
/// Tokens that contexts of a slot are longer by.
const STEP_OF_CONTEXT: u32 = 256;
/// Rounds over all borders; the first nearly settles them.
const ROUNDS: usize = 2;
/// All orders of so many models are tried where there are several devices.
const ORDERED: usize = 3;

/// What is missing, then what it costs.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Cost(u64, f64);

impl Cost {
    /// Little more than this.
    fn with_slack(self) -> Self {
        Self(self.0, self.1 * (1.0 + SLACK))
    }

    fn worse(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

/// The shares of the members, in their order.
///
/// Without weights the slowest is made as fast as can be: its cost is that of the request's objective, seconds of a turn. With weights
/// the largest of weight × cost ÷ cost alone is made small.
pub fn shares(members: &[Member<'_>], machine: &Machine) -> Result<Vec<Share>, Error> {
    let mut tokens = longest(members, machine)?;
    loop {
        let mut sharing = Sharing::new(members, machine, tokens)?;
        let best = sharing.best()?;
        let shorter = tokens.map(|tokens| tokens - tokens / 8);
        // What all have room for together may lie across the devices so that one of them does not have it.
        if best.costs.first().is_none_or(|cost| cost.0 == 0) || shorter.is_none_or(|tokens| tokens < STEP_OF_CONTEXT) {
            return sharing.shares(&best);
        }
        tokens = shorter;
    }
}

/// The tokens of a slot that all models have room for together with their experts on the host, where a request asks for the longest
/// context.
fn longest(members: &[Member<'_>], machine: &Machine) -> Result<Option<u32>, Error> {
    if members.iter().all(|member| member.request.context != ContextChoice::Max) {
        return Ok(None);
    }
    let leanest: Vec<Vec<Request>> =
        members.iter().map(|member| member.request.problem(member.model, machine).leanest()).collect();
    let ways = leanest.iter().map(Vec::len).max().unwrap_or(0);
    let places: Vec<usize> = (0..machine.devices.len()).collect();
    let spare = |steps: u32| -> Result<i128, Error> {
        let of_way = |way: usize| -> Result<i128, Error> {
            let mut taken = Vec::new();
            for (member, requests) in members.iter().zip(&leanest) {
                let problem = requests[way.min(requests.len() - 1)].problem(member.model, machine);
                let n_ctx = match member.request.context {
                    ContextChoice::Fixed(n_ctx) => n_ctx,
                    ContextChoice::Max => of_tokens(member, steps * STEP_OF_CONTEXT),
                    ContextChoice::Auto | ContextChoice::Turn => problem.shortest_context(),
                };
                let candidate = problem.solve_at(&problem.request.start(member.model, machine), n_ctx)?;
                taken.push(Taken::of(&candidate.forecast, member, machine, (machine, &places)));
            }
            let (devices, ram) = left(&taken, machine);
            let borders = i128::from(STEP) * (members.len() as i128 - 1);
            let devices = Some(devices.iter().sum::<i128>() - borders).filter(|_| !devices.is_empty());
            Ok(devices.into_iter().chain(ram).min().unwrap_or(0))
        };
        let ways: Vec<i128> = (0..ways).map(of_way).collect::<Result<_, Error>>()?;
        Ok(ways.into_iter().max().unwrap_or(0))
    };
    let most = members.iter().map(|member| member.model.hparams.context_length).max().unwrap_or(0);
    Ok(Some(furthest(1, most.div_ceil(STEP_OF_CONTEXT).max(1), spare)? * STEP_OF_CONTEXT))
}

/// `-c` of so many tokens in every slot: at most the model's own length, at least what the turn needs.
fn of_tokens(member: &Member<'_>, tokens: u32) -> u32 {
    let Member { model, request, .. } = member;
    let own = Some(model.hparams.context_length).filter(|own| *own > 0).unwrap_or(u32::MAX);
    let shortest = super::choose::turn_context(request.turn, model.hparams.context_length);
    tokens.min(own).max(shortest).saturating_mul(request.slots())
}

/// What a launch takes of the whole machine, in whole MiB.
struct Taken {
    /// Of every device, with the margin; 0 of one that it does not use.
    devices: Vec<u64>,
    ram: u64,
}

impl Taken {
    /// Of a launch on `part`, whose devices have these places among those of `machine`.
    fn of(forecast: &Forecast, member: &Member<'_>, machine: &Machine, (part, places): (&Machine, &[usize])) -> Self {
        let mut devices = vec![0; machine.devices.len()];
        for (device, place) in part.devices.iter().zip(places) {
            let used = forecast.total(&device.name);
            if used > Bytes(0) {
                devices[*place] = (used + member.request.margin).0.next_multiple_of(MIB);
            }
        }
        let ram = forecast.host_needs.least_ram(forecast.in_main_memory(part));
        Self { devices, ram: ram.0.next_multiple_of(MIB) }
    }
}

/// What launches together leave of each device and of main memory, in bytes; negative where it is too little.
fn left<'t>(taken: impl IntoIterator<Item = &'t Taken>, machine: &Machine) -> (Vec<i128>, Option<i128>) {
    let mut devices: Vec<i128> = machine.devices.iter().map(|device| i128::from(device.total.0)).collect();
    let mut ram = machine.host.ram.map(|ram| i128::from(ram.0));
    for taken in taken {
        devices.iter_mut().zip(&taken.devices).for_each(|(left, taken)| *left -= i128::from(*taken));
        ram = ram.map(|left| left - i128::from(taken.ram));
    }
    (devices, ram)
}

/// Main memory in parts that hold what is needed; what is left over counts for each of so many. Where it is too little for all, in parts as
/// the needs are. None where its size is not known.
fn portions(machine: &Machine, needs: &[u64], sharers: usize) -> Option<Vec<Bytes>> {
    let ram = machine.host.ram?;
    let all: u64 = needs.iter().sum();
    if let Some(left) = ram.0.checked_sub(all) {
        let more = left / sharers.max(1) as u64 / MIB * MIB;
        return Some(needs.iter().map(|needs| Bytes(needs + more)).collect());
    }
    let part = |needs: &u64| {
        let part = u128::from(ram.0) * u128::from(*needs) / u128::from(all);
        Bytes(u64::try_from(part).unwrap_or(u64::MAX) / STEP * STEP)
    };
    Some(needs.iter().map(part).collect())
}

/// A piece of the line: from one step to another.
type Piece = (u64, u64);

/// The devices end to end, in steps.
struct Line {
    /// Where each device begins, and how much of it there is, in bytes.
    devices: Vec<(u64, u64)>,
    steps: u64,
    /// Bytes of one.
    step: u64,
}

impl Line {
    fn new(machine: &Machine, step: u64) -> Self {
        let mut start = 0;
        let device = |total: u64| {
            let at = start;
            start += total;
            (at, total)
        };
        let devices: Vec<_> = machine.devices.iter().map(|device| device.total.0).map(device).collect();
        Self { devices, steps: start.div_ceil(step), step }
    }

    /// How much of each device is in a piece, in whole MiB.
    fn budgets(&self, (from, to): Piece) -> Vec<Bytes> {
        let (from, to) = (from * self.step, to * self.step);
        let of = |(start, total): &(u64, u64)| {
            let (first, last) = (from.max(*start), to.min(start + total));
            Bytes(last.saturating_sub(first) / MIB * MIB)
        };
        self.devices.iter().map(of).collect()
    }
}

struct Sharing<'a> {
    members: &'a [Member<'a>],
    /// What is asked of each while pieces are chosen: its context is fixed then.
    requests: Vec<Request>,
    machine: &'a Machine,
    line: Line,
    /// The plans with the whole machine.
    alone: Vec<Candidate>,
    /// What each may take of main memory.
    ram: Option<Vec<Bytes>>,
    known: RefCell<BTreeMap<(usize, Piece), Cost>>,
    computes: Vec<Computes>,
}

/// A member's plan on its piece.
struct Planned {
    machine: Machine,
    /// Where its devices are among those of the whole machine.
    places: Vec<usize>,
    candidate: Candidate,
    taken: Taken,
    /// What of `taken` is there only because no such plan is found with less.
    unused: Vec<u64>,
}

/// Pieces for all members, and what they then cost, the worst first.
struct Split {
    /// Which member has the first piece, and so on.
    order: Vec<usize>,
    /// By member.
    pieces: Vec<Piece>,
    costs: Vec<Cost>,
}

impl<'a> Sharing<'a> {
    /// `tokens` are those of a slot where the longest context is asked for.
    fn new(members: &'a [Member<'a>], machine: &'a Machine, tokens: Option<u32>) -> Result<Self, Error> {
        let request = |member: &Member<'_>| {
            let context = match member.request.context {
                ContextChoice::Auto => ContextChoice::Turn,
                ContextChoice::Max => ContextChoice::Fixed(of_tokens(member, tokens.unwrap_or(0))),
                context => context,
            };
            Request { context, ..member.request.clone() }
        };
        let requests: Vec<Request> = members.iter().map(request).collect();
        let solved =
            |(member, request): (&Member<'_>, &Request)| super::solve_with(&request.problem(member.model, machine));
        let alone: Vec<Candidate> = members.iter().zip(&requests).map(solved).collect::<Result<_, Error>>()?;
        let places: Vec<usize> = (0..machine.devices.len()).collect();
        let taken = |(member, alone): (&Member<'_>, &Candidate)| {
            Taken::of(&alone.forecast, member, machine, (machine, &places)).ram
        };
        let needs: Vec<u64> = members.iter().zip(&alone).map(taken).collect();
        Ok(Self {
            members,
            requests,
            machine,
            line: Line::new(machine, COARSE),
            alone,
            // With a piece it needs more: how much more all need together is looked at once there are pieces.
            ram: portions(machine, &needs, 1),
            known: RefCell::default(),
            computes: members.iter().map(|_| Computes::default()).collect(),
        })
    }

    /// The best split, and main memory in parts for its plans.
    fn best(&mut self) -> Result<Split, Error> {
        let order = self.order()?;
        self.line = Line::new(self.machine, STEP);
        self.known.borrow_mut().clear();
        let best = self.settled(&order, ROUNDS)?;
        let needs = self.plans(&best)?.iter().map(|plan| plan.taken.ram).collect::<Vec<_>>();
        let before = std::mem::replace(&mut self.ram, portions(self.machine, &needs, self.members.len()));
        if self.machine.host.ram.is_none_or(|ram| needs.iter().sum::<u64>() <= ram.0) {
            return Ok(best);
        }
        self.known.borrow_mut().clear();
        let again = self.settled(&order, ROUNDS)?;
        let all = before.iter().flatten().map(|part| part.0).sum::<u64>();
        // Parts that are more than there is were no answer.
        if again.costs < best.costs || self.machine.host.ram.is_some_and(|ram| all > ram.0) {
            return Ok(again);
        }
        self.ram = before;
        Ok(best)
    }

    /// The shares of a split. Where its plans fit, each gets what it uses and an equal part of what is left over after contexts have grown.
    fn shares(&self, split: &Split) -> Result<Vec<Share>, Error> {
        let fits = split.costs.first().is_none_or(|cost| cost.0 == 0);
        let mut budgets: Vec<Vec<Bytes>> = split.pieces.iter().map(|piece| self.line.budgets(*piece)).collect();
        let mut ram = self.ram.clone();
        let mut contexts: Vec<ContextChoice> = self.members.iter().map(|member| member.request.context).collect();
        let is_auto = |at: usize| self.members[at].request.context == ContextChoice::Auto;
        let mut longest = None;
        if fits {
            let mut plans = self.with_what_is_left(self.plans(split)?)?;
            for (at, plan) in plans.iter_mut().enumerate().filter(|(at, _)| is_auto(*at)) {
                let leaner = self.requests[at].problem(self.members[at].model, &plan.machine).leaner(&plan.candidate);
                plan.candidate.run = leaner.into_iter().next().unwrap_or_else(|| plan.candidate.run.clone());
            }
            let tokens = self.longer(&plans)?;
            longest = Some(tokens);
            let taken = self.taken(&plans, tokens)?;
            let (devices, _) = left(&taken, self.machine);
            for (at, spare) in devices.into_iter().enumerate() {
                let is_used = taken.iter().any(|taken| taken.devices[at] > 0);
                let uses: Vec<usize> = (0..budgets.len())
                    .filter(|of| if is_used { taken[*of].devices[at] > 0 } else { budgets[*of][at] > Bytes(0) })
                    .collect();
                let more = u64::try_from(spare).unwrap_or(0) / uses.len().max(1) as u64 / MIB * MIB;
                for (of, budgets) in budgets.iter_mut().enumerate() {
                    let taken = taken[of].devices[at];
                    budgets[at] = Bytes(if uses.contains(&of) { taken + more } else { 0 });
                }
            }
            let needs: Vec<u64> = taken.iter().map(|taken| taken.ram).collect();
            ram = portions(self.machine, &needs, needs.len());
            for (context, member) in contexts.iter_mut().zip(self.members) {
                if *context == ContextChoice::Max {
                    *context = ContextChoice::Fixed(of_tokens(member, tokens));
                }
            }
        }
        // A device without memory of its own has no more than there is.
        for (budgets, ram) in budgets.iter_mut().zip(ram.iter().flatten()) {
            for (budget, _) in budgets.iter_mut().zip(&self.machine.devices).filter(|(_, device)| device.integrated) {
                *budget = (*budget).min(*ram);
            }
        }
        let share = |(at, budgets): (usize, Vec<Bytes>)| {
            let machine = self.part(&budgets, ram.as_ref().map(|ram| ram[at]));
            let mut context = contexts[at];
            // With more room a plan may choose a larger micro-batch instead.
            if let Some(n_ctx) = longest.map(|tokens| of_tokens(&self.members[at], tokens)).filter(|_| is_auto(at)) {
                let Member { model, request, .. } = self.members[at];
                if super::solve(model, &machine, request)?.run.n_ctx < n_ctx {
                    context = ContextChoice::Fixed(n_ctx);
                }
            }
            Ok(Share { machine, budgets, context, alone_seconds: self.alone[at].estimate.turn_seconds })
        };
        budgets.into_iter().enumerate().map(share).collect()
    }

    /// The plans with what all of them leave over, the slowest first: no model lacks what another does not use.
    fn with_what_is_left(&self, mut plans: Vec<Planned>) -> Result<Vec<Planned>, Error> {
        let cost = |at: usize, plan: &Planned| self.cost_of(at, &plan.candidate);
        for at in 0..plans.len() {
            let found = plans.remove(at);
            plans.insert(at, self.tightened(at, found)?);
        }
        let mut order: Vec<usize> = (0..plans.len()).collect();
        order.sort_by(|a, b| cost(*b, &plans[*b]).total_cmp(&cost(*a, &plans[*a])));
        for at in order {
            let (devices, ram) = left(plans.iter().map(|plan| &plan.taken), self.machine);
            let taken = &plans[at].taken;
            let more = |(used, left): (&u64, i128)| used + u64::try_from(left).unwrap_or(0) * u64::from(*used > 0);
            let budgets: Vec<Bytes> = taken.devices.iter().zip(devices).map(more).map(Bytes).collect();
            let ram = ram.map(|left| Bytes(taken.ram + u64::try_from(left).unwrap_or(0)));
            let other = self.planned(at, &budgets, ram)?;
            let problem = self.requests[at].problem(self.members[at].model, &plans[at].machine);
            let has_all = plans[at].candidate.expert_split(&problem).routed_expert_bytes_on_host == Bytes(0);
            // A larger micro-batch for next to nothing is not what another lacks.
            let worth = if has_all { SLACK } else { 0.0 };
            if other.candidate.fits() && cost(at, &other) < cost(at, &plans[at]) * (1.0 - worth) {
                plans[at] = self.tightened(at, other)?;
            }
        }
        Ok(plans)
    }

    /// The plan that is found with no more than this one takes, if it costs little more; else this one, which then needs its whole budget.
    fn tightened(&self, at: usize, mut plan: Planned) -> Result<Planned, Error> {
        let budgets: Vec<Bytes> = plan.taken.devices.iter().copied().map(Bytes).collect();
        let other = self.planned(at, &budgets, plan.machine.host.ram)?;
        let most = self.cost_of(at, &plan.candidate) * (1.0 + SLACK);
        if other.candidate.fits() && self.cost_of(at, &other.candidate) <= most {
            return Ok(other);
        }
        for (place, device) in plan.places.iter().zip(&plan.machine.devices) {
            let taken = &mut plan.taken.devices[*place];
            if *taken > 0 {
                plan.unused[*place] = device.total.0.saturating_sub(*taken);
                *taken = device.total.0;
            }
        }
        Ok(plan)
    }

    /// The tokens of a slot that all contexts that may grow have room for, each launch with its placement and, as the plan of one
    /// model does, the smallest micro-batch that costs little.
    fn longer(&self, plans: &[Planned]) -> Result<u32, Error> {
        let free = |member: &Member<'_>| matches!(member.request.context, ContextChoice::Auto | ContextChoice::Max);
        let tokens = |(member, plan): (&Member<'_>, &Planned)| plan.candidate.run.n_ctx / member.request.slots();
        let growing = || self.members.iter().zip(plans).filter(|(member, _)| free(member));
        let now = growing().map(tokens).max().unwrap_or(0);
        let most = growing().map(|(member, _)| member.model.hparams.context_length).max().unwrap_or(0);
        let step = STEP_OF_CONTEXT;
        let spare = |steps: u32| -> Result<i128, Error> {
            let (devices, ram) = left(&self.taken(plans, steps * step)?, self.machine);
            Ok(devices.into_iter().chain(ram).min().unwrap_or(0))
        };
        if most <= now {
            return Ok(now);
        }
        Ok((furthest(now.div_ceil(step), most.div_ceil(step), spare)? * step).max(now))
    }

    /// What the launches take with contexts of so many tokens in a slot, where they may grow.
    fn taken(&self, plans: &[Planned], tokens: u32) -> Result<Vec<Taken>, Error> {
        let of = |(member, plan): (&Member<'_>, &Planned)| {
            let Planned { machine, places, candidate, unused, .. } = plan;
            let n_ctx = match member.request.context {
                ContextChoice::Auto | ContextChoice::Max => of_tokens(member, tokens).max(candidate.run.n_ctx),
                _ => candidate.run.n_ctx,
            };
            let run = RunConfig { n_ctx, ..candidate.run.clone() };
            let launch = Launch::new(member.model, machine, &run);
            let forecast = launch.forecast(candidate.forecast.placement.clone(), None)?;
            let mut taken = Taken::of(&forecast, member, self.machine, (machine, places));
            taken.devices.iter_mut().zip(unused).for_each(|(taken, unused)| *taken += unused);
            Ok(taken)
        };
        self.members.iter().zip(plans).map(of).collect()
    }

    /// The machine with budgets of its devices and a part of its main memory.
    fn part(&self, budgets: &[Bytes], ram: Option<Bytes>) -> Machine {
        let devices = self.machine.devices.iter().zip(budgets).filter(|(_, budget)| **budget > Bytes(0));
        let devices: Vec<_> = devices.map(|(device, budget)| limited(device, *budget)).collect();
        let mut host = self.machine.host.clone();
        host.ram = ram.or(host.ram);
        // Servers are numbered anew where one of them is left out.
        Machine::new(devices.clone(), host.clone()).unwrap_or(Machine { devices, host })
    }

    /// The machine with a member's part of it.
    fn part_of(&self, at: usize, piece: Piece) -> Machine {
        self.part(&self.line.budgets(piece), self.ram.as_ref().map(|ram| ram[at]))
    }

    fn plan(&self, at: usize, machine: &Machine) -> Result<Candidate, Error> {
        let problem = self.requests[at].problem(self.members[at].model, machine);
        super::solve_with(&Problem { computes: self.computes[at].clone(), ..problem })
    }

    /// The plans of a split, in the members' order.
    fn plans(&self, split: &Split) -> Result<Vec<Planned>, Error> {
        let ram = |at: usize| self.ram.as_ref().map(|ram| ram[at]);
        let plan = |(at, piece): (usize, &Piece)| self.planned(at, &self.line.budgets(*piece), ram(at));
        split.pieces.iter().enumerate().map(plan).collect()
    }

    fn planned(&self, at: usize, budgets: &[Bytes], ram: Option<Bytes>) -> Result<Planned, Error> {
        let machine = self.part(budgets, ram);
        let candidate = self.plan(at, &machine)?;
        let places: Vec<usize> = (0..budgets.len()).filter(|at| budgets[*at] > Bytes(0)).collect();
        let taken = Taken::of(&candidate.forecast, &self.members[at], self.machine, (&machine, &places));
        Ok(Planned { machine, places, candidate, taken, unused: vec![0; budgets.len()] })
    }

    /// What a member's plan costs, by its weight.
    fn cost_of(&self, at: usize, candidate: &Candidate) -> f64 {
        let member = &self.members[at];
        let of = |candidate: &Candidate| member.request.problem(member.model, self.machine).cost(&candidate.estimate);
        member.weight.map_or(of(candidate), |weight| weight * of(candidate) / of(&self.alone[at]))
    }

    fn cost(&self, at: usize, piece: Piece) -> Result<Cost, Error> {
        if let Some(known) = self.known.borrow().get(&(at, piece)) {
            return Ok(*known);
        }
        let candidate = self.plan(at, &self.part_of(at, piece))?;
        let cost = Cost(candidate.missing().0, self.cost_of(at, &candidate));
        self.known.borrow_mut().insert((at, piece), cost);
        Ok(cost)
    }

    /// The best order, as far as wide steps tell; on one device all are the same.
    fn order(&self) -> Result<Vec<usize>, Error> {
        let count = self.members.len();
        if self.machine.devices.len() < 2 || count > ORDERED {
            return Ok((0..count).collect());
        }
        let splits = permutations(count).into_iter().map(|order| self.settled(&order, 1));
        let splits: Vec<Split> = splits.collect::<Result<_, Error>>()?;
        let better = |best: Split, other: Split| if other.costs < best.costs { other } else { best };
        Ok(splits.into_iter().reduce(better).map(|best| best.order).unwrap_or_default())
    }

    /// Borders moved until none moves any more, in so many rounds at most.
    fn settled(&self, order: &[usize], rounds: usize) -> Result<Split, Error> {
        let count = u64::try_from(order.len()).unwrap_or(1);
        let mut borders: Vec<u64> = (0..=count).map(|at| self.line.steps * at / count).collect();
        // Without devices there is no border.
        for _ in 0..if self.line.steps < count { 0 } else { rounds } {
            let before = borders.clone();
            for at in 1..order.len() {
                borders[at] = self.border([order[at - 1], order[at]], (borders[at - 1], borders[at + 1]))?;
            }
            if borders == before || order.len() == 2 {
                break;
            }
        }
        self.split(order, &borders)
    }

    /// What a split costs.
    fn split(&self, order: &[usize], borders: &[u64]) -> Result<Split, Error> {
        let mut pieces = vec![(0, 0); order.len()];
        for (at, member) in order.iter().enumerate() {
            pieces[*member] = (borders[at], borders[at + 1]);
        }
        let costs = pieces.iter().enumerate().map(|(at, piece)| self.cost(at, *piece));
        let mut costs: Vec<Cost> = costs.collect::<Result<_, Error>>()?;
        costs.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
        Ok(Split { order: order.to_vec(), pieces, costs })
    }

    /// Where two neighbours meet: the slower of them is as fast as can be there, and what that leaves is the other's.
    fn border(&self, [left, right]: [usize; 2], (from, to): Piece) -> Result<u64, Error> {
        let of_left = |at: u64| self.cost(left, (from, at));
        let of_right = |at: u64| self.cost(right, (at, to));
        // The first border at which the left one is not the slower.
        let meet = first((from, to), |at| Ok(of_left(at)? <= of_right(at)?))?;
        let worst = |at: u64| Ok::<_, Error>(of_left(at)?.worse(of_right(at)?));
        let before = meet.saturating_sub(1).max(from);
        let found = if worst(before)? < worst(meet)? {
            // The left one is the slower: it needs no more than this.
            let enough = of_left(before)?.with_slack();
            first((from, before), |at| Ok(of_left(at)? <= enough))?
        } else {
            let enough = of_right(meet)?.with_slack();
            let beyond = first((meet, to + 1), |at| Ok(at > to || of_right(at)? > enough))?;
            beyond.saturating_sub(1).max(meet)
        };
        // A little of a device is less than none of it: one of them may do better on the host alone.
        for end in [from, to] {
            if worst(end)?.with_slack() < worst(found)? {
                return Ok(end);
            }
        }
        Ok(found)
    }
}

/// The first step of a range, its end included, for which something holds that then goes on to hold; the end where it holds for none.
fn first((mut low, mut high): (u64, u64), mut holds: impl FnMut(u64) -> Result<bool, Error>) -> Result<u64, Error> {
    while low < high {
        let middle = u64::midpoint(low, high);
        if holds(middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(low)
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for _ in 0..count {
        let longer = |order: &Vec<usize>| {
            let left: Vec<usize> = (0..count).filter(|at| !order.contains(at)).collect();
            left.into_iter().map(|at| [order.clone(), vec![at]].concat()).collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    orders
}
