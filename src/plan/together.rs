//! Several models that stay loaded on one machine: which part of its memory each gets.
//!
//! The devices are laid end to end, and each model gets a piece of that line, so that it is on as few devices as its piece allows.
//! Between neighbours the border is moved to where the slower of the two is fastest, by bisection over real plans.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::solver::{Candidate, Computes, Problem};
use super::{Error, Request};
use crate::bytes::{Bytes, MIB};
use crate::machine::Machine;
use crate::model::Model;
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
    /// The time of a turn with the whole machine to itself, in seconds.
    pub alone_seconds: f64,
}

/// Borders are tried in steps of so much.
const STEP: u64 = 64 * MIB;
/// The same while orders are compared.
const COARSE: u64 = 16 * STEP;
/// What is left over goes to the faster ones as long as it costs the slowest no more than this share.
const SLACK: f64 = 0.005;
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
    let alone = members.iter().map(|member| {
        let problem = member.request.problem(member.model, machine);
        super::solve_with(&problem)
    });
    let alone: Vec<Candidate> = alone.collect::<Result<_, Error>>()?;
    let cost = |(member, alone): (&Member<'_>, &Candidate)| {
        member.request.problem(member.model, machine).cost(&alone.estimate)
    };
    let mut sharing = Sharing {
        members,
        machine,
        line: Line::new(machine, COARSE),
        alone: members.iter().zip(&alone).map(cost).collect(),
        ram: portions(machine, &alone.iter().map(|alone| needs(alone, machine)).collect::<Vec<_>>()),
        known: RefCell::default(),
        computes: members.iter().map(|_| Computes::default()).collect(),
    };
    let order = sharing.order()?;
    sharing.line = Line::new(machine, STEP);
    sharing.known.borrow_mut().clear();
    let mut best = sharing.settled(&order, ROUNDS)?;
    // Main memory by what is really on the host then.
    let used = (0..members.len()).map(|at| Ok(needs(&sharing.plan(at, best.pieces[at])?, machine)));
    let ram = portions(machine, &used.collect::<Result<Vec<_>, Error>>()?);
    let before = std::mem::replace(&mut sharing.ram, ram);
    sharing.known.borrow_mut().clear();
    let again = sharing.split(&best.order, &best.borders)?;
    if again.costs < best.costs {
        best = again;
    } else {
        sharing.ram = before;
    }
    let share = |at: usize| Share {
        machine: sharing.part(at, best.pieces[at]),
        budgets: sharing.line.budgets(best.pieces[at]),
        alone_seconds: alone[at].estimate.turn_seconds,
    };
    Ok((0..members.len()).map(share).collect())
}

/// Main memory that a launch takes at least, its part of what is left to the system apart.
fn needs(candidate: &Candidate, machine: &Machine) -> Bytes {
    let host = candidate.forecast.host_needs;
    candidate.forecast.in_main_memory(machine) + host.least().saturating_sub(host.reserve)
}

/// Main memory in parts as the needs are, in whole steps; none where its size is not known.
fn portions(machine: &Machine, needs: &[Bytes]) -> Option<Vec<Bytes>> {
    let ram = machine.host.ram?;
    // Every program has a system around it.
    let needs: Vec<u128> = needs.iter().map(|needs| u128::from(needs.0) + u128::from(ram.0 / 32)).collect();
    let all: u128 = needs.iter().sum::<u128>().max(1);
    let part = |needs: &u128| {
        let part = u64::try_from(u128::from(ram.0) * needs / all).unwrap_or(u64::MAX);
        Bytes(part / STEP * STEP)
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
    machine: &'a Machine,
    line: Line,
    /// What each plan would cost with the whole machine.
    alone: Vec<f64>,
    ram: Option<Vec<Bytes>>,
    known: RefCell<BTreeMap<(usize, Piece), Cost>>,
    computes: Vec<Computes>,
}

/// Pieces for all members, and what they then cost, the worst first.
struct Split {
    /// Which member has the first piece, and so on.
    order: Vec<usize>,
    borders: Vec<u64>,
    /// By member.
    pieces: Vec<Piece>,
    costs: Vec<Cost>,
}

impl Sharing<'_> {
    /// The machine with a member's part of it.
    fn part(&self, at: usize, piece: Piece) -> Machine {
        let budgets = self.line.budgets(piece);
        let devices = self.machine.devices.iter().zip(budgets).filter(|(_, budget)| *budget > Bytes(0));
        let devices: Vec<_> = devices.map(|(device, budget)| limited(device, budget)).collect();
        let mut host = self.machine.host.clone();
        host.ram = self.ram.as_ref().map(|ram| ram[at]).or(host.ram);
        // Servers are numbered anew where one of them is left out.
        Machine::new(devices.clone(), host.clone()).unwrap_or(Machine { devices, host })
    }

    fn plan(&self, at: usize, piece: Piece) -> Result<Candidate, Error> {
        let (member, machine) = (&self.members[at], self.part(at, piece));
        let problem = member.request.problem(member.model, &machine);
        super::solve_with(&Problem { computes: self.computes[at].clone(), ..problem })
    }

    fn cost(&self, at: usize, piece: Piece) -> Result<Cost, Error> {
        if let Some(known) = self.known.borrow().get(&(at, piece)) {
            return Ok(*known);
        }
        let (member, candidate) = (&self.members[at], self.plan(at, piece)?);
        let cost = member.request.problem(member.model, self.machine).cost(&candidate.estimate);
        let cost = member.weight.map_or(cost, |weight| weight * cost / self.alone[at]);
        let cost = Cost(candidate.missing().0, cost);
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
        Ok(Split { order: order.to_vec(), borders: borders.to_vec(), pieces, costs })
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
