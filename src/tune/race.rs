//! The race: who is measured next, who cannot win any more, who has won. Pure; times are of the turn, in seconds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Candidate, Visit};
use crate::stats::{Spread, median};

/// Visits of one candidate, at the most.
pub const MOST_VISITS: usize = 3;
/// Visits of the fastest and of `--fit on` before a difference is believed: one launch may be slow as a whole.
const LEAST_VISITS: usize = 2;
/// The least relative standard deviation that samples are believed to have.
const LEAST_SPREAD: f64 = 0.005;
/// The relative standard deviation where no candidate has two samples.
const UNKNOWN_SPREAD: f64 = 0.05;
/// Standard errors on either side of a median.
const ERRORS: f64 = 2.0;

/// Places in the race; neighbours come behind.
const PLAN: usize = 0;
const FIT: usize = 1;

/// Candidates and what was seen of them: the plan, `--fit on`, then the neighbours.
#[derive(Debug, Clone)]
pub struct Race {
    pub entrants: Vec<Entrant>,
}

#[derive(Debug, Clone)]
pub struct Entrant {
    pub candidate: Candidate,
    pub visits: Vec<Visit>,
    pub failure: Option<String>,
}

impl Entrant {
    pub fn turns(&self) -> Vec<f64> {
        self.visits.iter().flat_map(Visit::turns).collect()
    }
}

/// A median and how far off it may well be, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Range {
    pub median: f64,
    pub half: f64,
}

impl Range {
    /// Whether it is the longer one beyond what samples may be off.
    pub fn is_longer(&self, than: &Self) -> bool {
        self.median - self.half > than.median + than.half
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Standing {
    Winner,
    /// Slower beyond what the samples may be off.
    Slower,
    /// Not to be told from the fastest.
    Close,
    /// Not measured: even with its uncertainty, what is predicted of it does not win.
    CannotWin,
    NoTime,
    Failed {
        why: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum End {
    Decided,
    /// Several cannot be told apart, after as many launches as there are for each.
    Close,
    Time,
    Journal,
}

/// What the race says of `--fit on`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    Beats {
        /// The median turn of `--fit on` over the winner's.
        times: f64,
    },
    /// Nothing beats it beyond what the samples may be off: it is proposed.
    Fit,
    /// It could not be measured, so nothing is said of it.
    FitNotMeasured,
}

impl Race {
    /// The plan, `--fit on`, then the neighbours.
    pub fn new(candidates: Vec<Candidate>) -> Self {
        let entrant = |candidate| Entrant { candidate, visits: Vec::new(), failure: None };
        Self { entrants: candidates.into_iter().map(entrant).collect() }
    }

    /// Takes a visit in; whether it is of one of the candidates and has samples.
    pub fn add(&mut self, visit: Visit) -> bool {
        let entrant = self.entrants.iter_mut().find(|entrant| entrant.candidate.id == visit.candidate);
        let Some(entrant) = entrant.filter(|_| !visit.turns().is_empty()) else { return false };
        entrant.visits.push(visit);
        true
    }

    /// The median turn of a candidate and how far off it may be; `None` without samples, and of what has failed once: it is
    /// not to be relied on.
    pub fn range(&self, at: usize) -> Option<Range> {
        let turns = self.entrants[at].turns();
        let median = median(&turns).filter(|_| self.entrants[at].failure.is_none())?;
        let all: Vec<Vec<f64>> = self.entrants.iter().map(Entrant::turns).collect();
        let pooled = spread(&all).unwrap_or(UNKNOWN_SPREAD).max(LEAST_SPREAD);
        let relative = spread(std::slice::from_ref(&turns)).unwrap_or(0.0).max(pooled);
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let half = ERRORS * relative * median / (turns.len() as f64).sqrt();
        Some(Range { median, half })
    }

    fn fastest(&self) -> Option<usize> {
        let ranges = (0..self.entrants.len()).filter_map(|at| Some((at, self.range(at)?)));
        ranges.min_by(|(_, a), (_, b)| a.median.total_cmp(&b.median)).map(|(at, _)| at)
    }

    /// Whether what is predicted of an unmeasured candidate, in proportion to what was measured of the plan, is too slow even
    /// when it is off by its uncertainty.
    fn cannot_win(&self, at: usize) -> bool {
        let predicted = |at: usize| self.entrants[at].candidate.predicted.as_ref();
        let too_slow = || -> Option<bool> {
            let ratio = predicted(at)?.turn_seconds / predicted(PLAN)?.turn_seconds;
            let best = self.range(self.fastest()?)?;
            let least = 1.0 - predicted(at)?.speed.uncertainty.clamp(0.0, 1.0);
            Some(self.range(PLAN)?.median * ratio * least > best.median + best.half)
        };
        // Without figures of either nobody is ruled out.
        self.range(at).is_none() && too_slow().unwrap_or(false)
    }

    fn is_out(&self, at: usize) -> bool {
        let best = self.fastest().and_then(|best| self.range(best));
        let is_slower = self.range(at).zip(best).is_some_and(|(own, best)| own.is_longer(&best));
        is_slower || self.cannot_win(at)
    }

    /// Whether anything was visited, in vain too.
    pub fn is_begun(&self) -> bool {
        self.entrants.iter().any(|entrant| !entrant.visits.is_empty() || entrant.failure.is_some())
    }

    /// How long a visit will take: as its own did, else as the longest did.
    pub fn visit_time(&self, at: usize) -> Duration {
        let longest = |entrant: &Entrant| entrant.visits.iter().map(|visit| visit.seconds).fold(0.0, f64::max);
        let own = longest(&self.entrants[at]);
        let all = self.entrants.iter().map(longest).fold(0.0, f64::max);
        Duration::try_from_secs_f64(if own > 0.0 { own } else { all }).unwrap_or_default()
    }

    /// Who is to be visited next, so that visits alternate; `None` when what is left cannot win or was visited enough.
    pub fn next(&self) -> Option<usize> {
        let fastest = self.fastest();
        let is_wanted = |at: &usize| {
            let n = self.entrants[*at].visits.len();
            let is_pillar = Some(*at) == fastest || *at == FIT;
            let may_win = !self.is_out(*at) && n < MOST_VISITS && !self.is_decided(*at);
            self.entrants[*at].failure.is_none() && (may_win || (is_pillar && n < LEAST_VISITS))
        };
        // There and back again: a drift of the machine meets all alike.
        (0..self.entrants.len()).filter(is_wanted).min_by_key(|at| {
            let round = self.entrants[*at].visits.len();
            (round, if round.is_multiple_of(2) { *at } else { self.entrants.len() - at })
        })
    }

    /// Whether it is the fastest and nobody is left who may catch up.
    fn is_decided(&self, at: usize) -> bool {
        let is_rival = |other: usize| other != at && self.entrants[other].failure.is_none() && !self.is_out(other);
        Some(at) == self.fastest()
            && self.entrants[at].visits.len() >= LEAST_VISITS
            && !(0..self.entrants.len()).any(is_rival)
    }

    /// The candidate to propose and what is said of `--fit on`; `None` when nothing was measured.
    pub fn winner(&self) -> Option<(usize, Verdict)> {
        let fastest = self.fastest()?;
        let best = self.range(fastest)?;
        Some(match self.range(FIT) {
            None => (fastest, Verdict::FitNotMeasured),
            Some(fit) if fit.is_longer(&best) => (fastest, Verdict::Beats { times: fit.median / best.median }),
            Some(_) => (FIT, Verdict::Fit),
        })
    }

    /// Why it is over, when [`Self::next`] has nobody more.
    pub fn end(&self) -> End {
        let is_close = |at| self.standing(at) == Standing::Close;
        if (0..self.entrants.len()).any(is_close) { End::Close } else { End::Decided }
    }

    /// Where a candidate stands at the end.
    pub fn standing(&self, at: usize) -> Standing {
        let winner = self.winner().map(|(winner, _)| winner);
        match (self.range(at), &self.entrants[at].failure) {
            (_, Some(why)) => Standing::Failed { why: why.clone() },
            (None, _) if self.cannot_win(at) => Standing::CannotWin,
            (None, _) => Standing::NoTime,
            (Some(_), _) if winner == Some(at) => Standing::Winner,
            (Some(_), _) if self.is_out(at) => Standing::Slower,
            (Some(_), _) => Standing::Close,
        }
    }
}

/// The relative standard deviation within groups of samples (n − 1 of each); `None` where no group has two.
fn spread(groups: &[Vec<f64>]) -> Option<f64> {
    let (squares, freedom) =
        groups.iter().filter_map(|group| Spread::of(group)).fold((0.0, 0.0), |(squares, freedom), of| {
            let n = f64::from(of.n - 1);
            (squares + n * (of.stddev / of.mean).powi(2), freedom + n)
        });
    (freedom > 0.0).then(|| (squares / freedom).sqrt())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::run::RunConfig;
    use crate::speed::Speed;
    use crate::tune::journal::SCHEMA;
    use crate::tune::{Kind, Predicted, Subject};

    /// A visit whose samples took so many seconds.
    pub fn visit(candidate: &str, turns: &[f64]) -> Visit {
        Visit {
            schema: SCHEMA.into(),
            subject: Subject { prompt: 1000, generate: 1, ..Subject::default() },
            candidate: candidate.into(),
            seconds: 1.0,
            pp: turns.iter().map(|seconds| 1000.0 / seconds).collect(),
            ..Visit::default()
        }
    }

    /// The plan, `--fit on` and neighbours; predicted turns in seconds.
    fn race(predicted: &[f64]) -> Race {
        let candidate = |what: &str, kind, seconds: Option<f64>| {
            let speed = Speed { pp: 1.0, tg: 1.0, basis: String::new(), uncertainty: 0.2, ..Speed::default() };
            let predicted = seconds.map(|turn_seconds| Predicted { speed, turn_seconds });
            let (id, what) = (what.to_string(), what.to_string());
            Candidate { id, what, kind, args: Vec::new(), run: RunConfig::default(), predicted }
        };
        let neighbours = predicted.iter().enumerate().skip(1);
        let neighbours = neighbours.map(|(at, seconds)| candidate(&format!("n{at}"), Kind::Neighbour, Some(*seconds)));
        let first = [candidate("n0", Kind::Plan, predicted.first().copied()), candidate("fit", Kind::Fit, None)];
        Race::new(first.into_iter().chain(neighbours).collect())
    }

    /// Runs a race in which each candidate takes so many seconds (with a little noise); the order of visits.
    fn run(race: &mut Race, seconds: &[f64]) -> Vec<usize> {
        let mut order = Vec::new();
        while let Some(at) = race.next() {
            assert!(order.len() < 100, "{order:?}");
            let s = seconds[at];
            let id = race.entrants[at].candidate.id.clone();
            assert!(race.add(visit(&id, &[s * 0.99, s, s * 1.01])));
            order.push(at);
        }
        order
    }

    #[test]
    fn who_cannot_win_is_not_visited_again() {
        // Plan 10 s, fit 14 s, neighbours predicted 10.5, 11 and 20 s.
        let mut race = race(&[10.0, 10.5, 11.0, 20.0]);
        // The fastest and --fit on are seen twice, the slower ones once, the hopeless one never.
        assert_eq!(run(&mut race, &[10.0, 14.0, 9.0, 12.0, 1.0]), [0, 1, 2, 3, 2, 1]);
        assert_eq!((race.winner(), race.end()), (Some((2, Verdict::Beats { times: 14.0 / 9.0 })), End::Decided));
        let standings = [0, 1, 2, 3, 4].map(|at| race.standing(at));
        let expected = [Standing::Slower, Standing::Slower, Standing::Winner, Standing::Slower, Standing::CannotWin];
        assert_eq!(standings, expected);
    }

    #[test]
    fn equals_are_visited_to_the_end_and_fit_is_proposed() {
        let mut race = race(&[10.0, 10.0]);
        assert_eq!(run(&mut race, &[10.0, 10.01, 9.995]), [0, 1, 2, 2, 1, 0, 0, 1, 2]);
        assert_eq!((race.winner(), race.end()), (Some((1, Verdict::Fit)), End::Close));
        assert_eq!((race.standing(0), race.standing(1)), (Standing::Close, Standing::Winner));
    }

    #[test]
    fn what_fails_is_out_and_without_fit_nothing_is_said_of_it() {
        let mut race = race(&[10.0, 9.0]);
        assert_eq!((race.winner(), race.standing(0)), (None, Standing::NoTime));
        race.entrants[1].failure = Some("out of memory".into());
        let order = run(&mut race, &[10.0, 1.0, 8.0]);
        assert!(!order.contains(&1), "{order:?}");
        assert_eq!(race.winner(), Some((2, Verdict::FitNotMeasured)));
        assert_eq!(race.standing(1), Standing::Failed { why: "out of memory".into() });
        // What worked and then fails is not proposed.
        race.entrants[2].failure = Some("out of memory".into());
        assert_eq!(race.winner(), Some((0, Verdict::FitNotMeasured)));
        assert!(!race.add(visit("unknown", &[1.0])) && !race.add(visit("n0", &[])));
    }

    #[test]
    fn ranges_shrink_with_samples_and_grow_with_their_spread() {
        let half = |samples: &[&[f64]]| {
            let mut race = race(&[1.0]);
            assert!(samples.iter().all(|turns| race.add(visit("n0", turns))));
            race.range(0).unwrap().half
        };
        assert!((half(&[&[10.0]]) - 1.0).abs() < 1e-9 && half(&[&[10.0, 10.0]]) > 0.0);
        assert!(half(&[&[9.0, 10.0, 11.0]]) > half(&[&[9.9, 10.0, 10.1]]));
        assert!(half(&[&[9.0, 10.0, 11.0], &[9.0, 10.0, 11.0]]) < half(&[&[9.0, 10.0, 11.0]]));
    }
}
