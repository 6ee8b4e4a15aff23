//! How `-c` is chosen: room for the turn, or the largest that fits.

use super::solver::{Candidate, Problem, Strategy};
use super::{Request, Turn};
use crate::bytes::Bytes;
use crate::memory::Error;
use crate::run::RunConfig;

/// How `-c` is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextChoice {
    /// Room for the turn, at least 8192 tokens, at most the model's own length.
    Turn,
    /// The largest that fits with every movable expert on the host.
    Max,
    Fixed(u32),
}

/// `run` with the context that the request asks for.
pub(super) fn with_context(problem: &Problem, request: &Request, run: RunConfig) -> Result<RunConfig, Error> {
    let n_ctx = match request.context {
        ContextChoice::Fixed(n_ctx) => n_ctx,
        ContextChoice::Turn => {
            let slots = request.run.n_parallel.unwrap_or(1).max(1);
            turn_context(request.turn, problem.model.hparams.context_length).saturating_mul(slots)
        }
        ContextChoice::Max => largest_context(problem, &run)?,
    };
    Ok(RunConfig { n_ctx, ..run })
}

/// Room for the turn rounded up to 256, at least 8192, at most what the model was trained on.
fn turn_context(turn: Turn, context_length: u32) -> u32 {
    let wanted = turn.tokens().next_multiple_of(256).max(8192);
    if context_length == 0 { wanted } else { wanted.min(context_length) }
}

/// The largest multiple of 256 that fits with the experts on the host; 256 where none does.
///
/// Memory grows with the context in nearly a straight line, so after the longest and a short one, each try is where the line
/// says that the budget ends, and its neighbour.
fn largest_context(problem: &Problem, run: &RunConfig) -> Result<u32, Error> {
    let strategy = match problem.strategy {
        Strategy::AllOnDevice | Strategy::Rules => problem.strategy,
        _ => Strategy::ExpertsOnHost,
    };
    let levers = super::Levers::default();
    let lean = Problem { strategy, levers, ..problem.clone() };
    let judge = |steps: u32| -> Result<i128, Error> {
        Ok(spare(&lean, &lean.solve(&RunConfig { n_ctx: steps * 256, ..run.clone() })?))
    };
    let (mut fits, mut too_many) = (1, problem.model.hparams.context_length.div_ceil(256).max(1));
    let (mut left, mut short) = (judge(fits)?, judge(too_many)?);
    if left < 0 || short >= 0 {
        return Ok(if left < 0 { 256 } else { too_many * 256 });
    }
    let mut tries = 0;
    while too_many - fits > 1 {
        tries += 1;
        let by_line = i128::from(too_many - fits) * left / (left - short).max(1);
        let by_line = u32::try_from(by_line).map_or(fits, |steps| fits + steps);
        let tried = if tries < 7 { by_line.clamp(fits + 1, too_many - 1) } else { u32::midpoint(fits, too_many) };
        let found = judge(tried)?;
        if found >= 0 {
            (fits, left) = (tried, found);
        } else {
            (too_many, short) = (tried, found);
        }
    }
    Ok(fits * 256)
}

/// Bytes left where least are; negative where they are missing. The host counts where the context is there.
fn spare(problem: &Problem, candidate: &Candidate) -> i128 {
    let signed = |budget: Bytes, used: Bytes| i128::from(budget.0) - i128::from(used.0);
    let devices = problem.machine.devices.iter().filter_map(|device| {
        let row = candidate.forecast.memory.get(&device.name)?;
        Some(signed(device.total, row.total() + problem.margin))
    });
    let shares = problem.machine.devices.iter().any(|device| problem.machine.is_shared(device));
    let there = problem.machine.devices.is_empty() || !candidate.run.offload_kqv || shares;
    let ram = problem.machine.host.ram.filter(|_| there);
    let host = ram.map(|ram| signed(ram, candidate.forecast.in_main_memory(problem.machine) + candidate.needs.least()));
    devices.chain(host).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_holds_the_turn() {
        let turn = |prompt, depth| Turn { prompt, generate: 512, depth };
        assert_eq!(turn_context(turn(4096, 0), 131_072), 8192);
        assert_eq!(turn_context(turn(4096, 16384), 131_072), 20992);
        assert_eq!(turn_context(turn(4096, 16384), 4096), 4096);
    }
}
