//! The plan with an expert cache (`--moe-cache-mib`): how the budget is divided between blocks that stay on a device for good
//! and slots for experts of the host that were used of late.
//!
//! Its memory is exact (`memory::expert_cache`); how often it hits is the speed model's assumption.

use super::explore::Explorer;
use super::solver::{Candidate, Problem, Strategy};
use super::stage::{End, Stage};
use crate::bytes::Bytes;
use crate::memory::{Error, HOST, expert_cache};
use crate::rules::Role;
use crate::run::{Override, RunConfig};

/// Shares of the room for experts that the cache may get.
const SHARES: [f64; 4] = [1.0, 0.75, 0.5, 0.25];

impl Problem<'_> {
    /// The best launch with a cache beside `without`, which has none and keeps its other choices; `None` where nothing is to be
    /// cached or no cache fits.
    ///
    /// With `exact`, it was judged; without, its compute is that of `without`.
    pub fn with_expert_cache(
        &self,
        without: &Candidate,
        own: &[Override],
        exact: bool,
    ) -> Result<Option<Candidate>, Error> {
        let base = RunConfig { overrides: own.to_vec(), moe_cache_mib: 0, ..without.run.clone() };
        let stage = Stage::new(self, base.clone(), &[Role::RoutedExpert])?;
        if stage.is_fixed() || without.forecast.memory.len() < 2 || !without.devices_fit() {
            return Ok(None);
        }
        let explorer = Explorer::new(self, &stage);
        let room = stage.room(&explorer.hosted_with_compute_of(&base, without)?);
        let mut best: Option<Candidate> = None;
        for share in SHARES {
            let rest: Vec<i128> = room.iter().map(|room| room - part(*room, share)).collect();
            let kept = stage.whole_blocks(&stage.fill(&rest, End::First, false));
            let taken = i128::from(stage.bytes(&kept));
            let total: i128 = room.iter().map(|room| (*room).max(0)).sum();
            let Ok(mib) = u32::try_from((total - taken) >> 20) else { continue };
            let setting = RunConfig { moe_cache_mib: mib, ..base.clone() };
            let placement = stage.placement(&kept);
            if mib == 0 || expert_cache::expert_cache(self.model, self.machine, &setting, &placement).problem.is_some()
            {
                continue;
            }
            let candidate = explorer.candidate(&setting, &kept, Some(without))?;
            if best.as_ref().is_none_or(|known| self.cost(&candidate.estimate) < self.cost(&known.estimate)) {
                best = Some(candidate);
            }
        }
        match best {
            Some(best) if exact => self.shrunk(best),
            other => Ok(other.filter(Candidate::devices_fit)),
        }
    }

    /// The launch judged, its cache made smaller until the devices fit.
    fn shrunk(&self, mut candidate: Candidate) -> Result<Option<Candidate>, Error> {
        for _ in 0..8 {
            candidate = self.judge(candidate.run)?;
            let short = candidate.shortfall.iter().filter(|(name, _)| name.as_str() != HOST).map(|(_, over)| *over);
            let short: Bytes = short.sum();
            if short == Bytes(0) {
                return Ok(Some(candidate));
            }
            let less = u32::try_from(short.0.div_ceil(1 << 20)).unwrap_or(u32::MAX);
            candidate.run.moe_cache_mib = candidate.run.moe_cache_mib.saturating_sub(less.saturating_add(1));
            if candidate.run.moe_cache_mib == 0 {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Whether the planner may look at caches at all.
    pub fn may_cache_experts(&self) -> bool {
        self.strategy == Strategy::Auto && !self.machine.devices.is_empty()
    }
}

/// A share of some room.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "bytes below 2^52, ranked only")]
fn part(room: i128, share: f64) -> i128 {
    (room.max(0) as f64 * share) as i128
}
