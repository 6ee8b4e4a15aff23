//! How `-c` is chosen: room for the turn, or the largest that fits.

use super::solver::{Candidate, Error, Problem, Strategy};
use super::{Request, Turn};
use crate::run::RunConfig;

/// How `-c` is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextChoice {
    /// Room for the turn, at least 8192 tokens, at most the model's own length.
    Turn,
    /// The largest that fits with every movable expert on the host.
    Max,
    /// What the user wrote.
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
    let wanted = (turn.prompt.saturating_add(turn.generate).saturating_add(turn.depth)).next_multiple_of(256).max(8192);
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
    let judge =
        |steps: u32| -> Result<Candidate, Error> { lean.solve(&RunConfig { n_ctx: steps * 256, ..run.clone() }) };
    let (mut fits, mut too_many) = (1, problem.model.hparams.context_length.div_ceil(256).max(1) + 1);
    while too_many - fits > 1 {
        let tried = u32::midpoint(fits, too_many);
        if judge(tried)?.fits() { fits = tried } else { too_many = tried }
    }
    Ok(fits * 256)
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
