//! Predicted speed of a launch: the time of a turn from the bytes moved, the operations done and the waits of every tier.

pub mod design;
pub mod fit;
pub mod prices;
pub mod samples;
pub mod table;
mod work;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::memory::Forecast;
use crate::model::Model;
use crate::number::fixed;
use crate::placement::Placement;
use crate::run::{Program, RunConfig};
use prices::Prices;
pub use work::{Cost, Work};
use work::{Layout, Pass};

/// One turn of a conversation, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Turn {
    pub prompt: u32,
    pub generate: u32,
    pub depth: u32,
    /// The share of drafted tokens that the model takes, where the launch speculates; absent = speculation is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<Acceptance>,
}

/// The probability that a drafted token is taken if those before it were: 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "f64")]
pub struct Acceptance(f64);

impl Acceptance {
    /// That of which drafts of `drafted` tokens have this share taken.
    pub fn of_share(taken: f64, drafted: u32) -> Self {
        let tokens = 1.0 + taken.clamp(0.0, 1.0) * f64::from(drafted);
        let halved = |(low, high): (f64, f64), _| {
            let middle = f64::midpoint(low, high);
            if Self(middle).tokens_per_pass(drafted) < tokens { (middle, high) } else { (low, middle) }
        };
        Self((0..30).fold((0.0, 1.0), halved).1)
    }

    /// The mean number of tokens that a pass yields: its own, and of `drafted` tokens those before the first that is not taken.
    fn tokens_per_pass(self, drafted: u32) -> f64 {
        // A sum, which is exact where everything is taken.
        (0..drafted).fold(1.0, |tokens, _| 1.0 + self.0 * tokens)
    }
}

impl TryFrom<f64> for Acceptance {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(format!("{share} is not a share from 0 to 1")) }
    }
}

impl std::str::FromStr for Acceptance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share: f64 = text.parse().map_err(|_| "not a number from 0 to 1, as 0.7".to_string())?;
        share.try_into()
    }
}

impl std::fmt::Display for Acceptance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Turn {
    pub fn tokens(self) -> u32 {
        self.prompt.saturating_add(self.generate).saturating_add(self.depth)
    }
}

/// A long prompt and a page of answer in an empty context.
impl Default for Turn {
    fn default() -> Self {
        Self { prompt: 4096, generate: 512, depth: 0, acceptance: None }
    }
}

/// A launch whose speed is asked. `placement` may be another than the forecast's own: a search times it with the memory of a launch
/// nearby.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub model: &'a Model,
    pub machine: &'a Machine,
    pub run: &'a RunConfig,
    pub placement: &'a Placement,
    pub forecast: &'a Forecast,
}

/// Tokens per second; predicted here, never shown as measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Speed {
    /// Prompt processing of the turn's prompt at its depth, tokens/s.
    pub pp: f64,
    /// Generation after that prompt, tokens/s.
    pub tg: f64,
    /// Where the constants come from: `calibrated on …`, `table: …`, `guess`.
    pub basis: String,
    /// The share that `pp` and `tg` may well be off: 0.15 = ±15%.
    pub uncertainty: f64,
    /// The same of `pp` alone: four in five launches are within it.
    #[serde(default)]
    pub uncertainty_pp: f64,
    /// The same of `tg` alone.
    #[serde(default)]
    pub uncertainty_tg: f64,
    /// What speculation does to `tg`; absent where it is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<Speculation>,
    /// All slots of the server at once; absent with one slot, and where their number was not given (`-np`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
}

/// Generation with drafts, by an assumed acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Speculation {
    pub acceptance: Acceptance,
    /// Tokens drafted by pass.
    pub drafted: u32,
    /// Tokens that a pass yields in the mean.
    pub tokens_per_pass: f64,
    /// Generation if nothing were drafted, tokens/s.
    pub tg_without: f64,
}

/// As many requests as there are slots, all with the same turn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Together {
    pub slots: u32,
    /// Generation of each request, tokens/s.
    pub each: f64,
    /// Generation of all of them, tokens/s.
    pub tg: f64,
    /// The time until all of them are answered: their prompts one after the other, then generation together. In seconds.
    pub turn_seconds: f64,
}

impl Speed {
    /// A phase's speed, and the share that it may well be off.
    pub fn of(&self, phase: Phase) -> (f64, f64) {
        let (speed, share) = match phase {
            Phase::Prompt => (self.pp, self.uncertainty_pp),
            Phase::Generate => (self.tg, self.uncertainty_tg),
        };
        // Documents of earlier versions say one for both.
        (speed, if share > 0.0 { share } else { self.uncertainty })
    }

    /// The time of a turn: prompt ÷ pp + generated ÷ tg, in seconds.
    pub fn turn_seconds(&self, turn: Turn) -> f64 {
        f64::from(turn.prompt) / self.pp + f64::from(turn.generate) / self.tg
    }

    /// The share that a phase's speed may be off, in whole percent.
    pub fn within(&self, phase: Phase) -> String {
        format!("±{:.0}%", self.of(phase).1 * 100.0)
    }

    /// The same of all slots' generation. Passes of 9 to 31 rows were predicted up to 73% too fast (`docs/speed.md`).
    pub fn within_together(&self, slots: u32) -> String {
        let least = if (9..32).contains(&slots) { 0.73 } else { 0.0 };
        format!("±{:.0}%", self.of(Phase::Generate).1.max(least) * 100.0)
    }
}

/// What the prediction says of one launch.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Estimate {
    /// Tokens per second.
    pub speed: Speed,
    /// Time of the turn, in seconds.
    pub turn_seconds: f64,
    /// What the time is spent on, by phase.
    pub terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Term {
    pub phase: Phase,
    /// What: `experts copied to CUDA0`, `experts computed on the host`, `attention on CUDA0` …
    pub what: String,
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Prompt,
    Generate,
}

/// The prompt that `pp` is of where the turn has none, in tokens (llama-bench's default).
const USUAL_PROMPT: u32 = 512;
/// How far off a launch with an expert cache may be: even routing would hit no more than the share that is cached.
const CACHE_UNCERTAINTY: f64 = 0.5;
/// How far off a launch that speculates may be: eight of ten on an H200, of NextN blocks and of a draft model, are within it.
const SPECULATION_UNCERTAINTY: f64 = 0.3;
/// What is said of runs that read weights from the disk: which pages stay is up to the system.
const DISK_UNCERTAINTY: f64 = 0.7;

/// Predicts the speed of a launch for a turn.
pub fn predict(case: &Case<'_>, turn: Turn) -> Estimate {
    let prices = Prices::of(case.machine, &case.placement.devices);
    let layout = Layout::of(case);
    let tokens = if turn.prompt == 0 { USUAL_PROMPT } else { turn.prompt };
    let prompt = layout.prompt(tokens, turn.depth);
    let generated = f64::from(turn.generate.max(1));
    let pp = f64::from(tokens) / prices.seconds(&prompt);
    let drafter = turn.acceptance.and_then(|acceptance| Drafter::of(case, &layout, acceptance));
    let generation = |drafter: Option<&Drafter>, slots: u32| {
        let slots = f64::from(slots);
        let mut work = layout.work();
        let depth = f64::from(turn.depth.saturating_add(turn.prompt)) + generated / 2.0;
        match drafter {
            Some(drafter) => drafter.generate(&mut work, &layout, generated, slots, depth),
            None => layout.decode(&mut work, Pass { slots, ..Pass::ONE_TOKEN }, generated, depth),
        }
        if case.run.program != Program::Bench {
            work.sample(case.model.hparams.vocab_size, slots * generated);
        }
        work
    };
    let rate = |work: &Work| 1.0 / (prices.seconds(work) / generated);
    let alone = generation(drafter.as_ref(), 1);
    let tg = rate(&alone);
    let speculation = drafter.as_ref().map(|drafter| Speculation {
        acceptance: drafter.acceptance,
        drafted: drafter.drafted,
        tokens_per_pass: drafter.tokens_per_pass(),
        tg_without: rate(&generation(None, 1)),
    });
    let slots = case.run.n_parallel.filter(|slots| *slots > 1 && case.run.program == Program::Server);
    let together = slots.map(|slots| {
        let each = rate(&generation(drafter.as_ref(), slots));
        let (all, prompts) = (f64::from(slots), f64::from(turn.prompt) / pp);
        Together { slots, each, tg: all * each, turn_seconds: all * prompts + f64::from(turn.generate) / each }
    });
    let mut terms = Vec::new();
    if turn.prompt > 0 {
        terms.extend(prices.terms(&prompt, Phase::Prompt, case.machine));
    }
    if turn.generate > 0 {
        terms.extend(prices.terms(&alone, Phase::Generate, case.machine));
    }
    let uncertainty_of = |work, phase| prices.uncertainty(work, phase);
    let mut uncertainty = [uncertainty_of(&prompt, Phase::Prompt), uncertainty_of(&alone, Phase::Generate)];
    let mut basis = prices.basis;
    for (applies, words, least) in [
        (layout.cache_hits > 0.0, work::CACHE_ASSUMPTION, CACHE_UNCERTAINTY),
        (layout.missing > 0.0, "; host weights exceed main memory: bound by the disk", DISK_UNCERTAINTY),
        (case.run.n_draft > 0 && drafter.is_none(), "; speculation is not counted", 0.0),
        (case.run.n_draft == 0 && turn.acceptance.is_some(), "; nothing is drafted, so that no acceptance counts", 0.0),
    ] {
        if applies {
            basis.push_str(words);
            uncertainty = uncertainty.map(|share| share.max(least));
        }
    }
    if let Some(speculation) = &speculation {
        let Speculation { acceptance, tokens_per_pass, .. } = speculation;
        basis +=
            &format!("; speculation: acceptance {acceptance} assumed, {} tokens a pass", fixed(*tokens_per_pass, 1));
        uncertainty[1] = uncertainty[1].max(SPECULATION_UNCERTAINTY);
    }
    // A share of a share has no more digits than its parts.
    let [uncertainty_pp, uncertainty_tg] = uncertainty.map(|share| (share * 1e3).round() / 1e3);
    let uncertainty = uncertainty_pp.max(uncertainty_tg);
    let speed = Speed { pp, tg, basis, uncertainty, uncertainty_pp, uncertainty_tg, speculation, together };
    Estimate { turn_seconds: speed.turn_seconds(turn), speed, terms }
}

/// What drafts tokens that the target takes or does not.
struct Drafter {
    layout: Layout,
    acceptance: Acceptance,
    /// Tokens by pass.
    drafted: u32,
    /// Whether the target's rows, which it computes too, have an output.
    output: bool,
}

impl Drafter {
    /// The context that drafts token by token; `None` where none does: dflash and dspark draft all at once, n-grams without a model.
    fn of(case: &Case<'_>, target: &Layout, acceptance: Acceptance) -> Option<Self> {
        let kind = case.model.draft.as_ref().and_then(|draft| draft.speculation());
        let by_token = case.run.n_draft > 0 && !matches!(kind, Some("draft-dflash" | "draft-dspark"));
        let part = case.forecast.drafting.as_ref().filter(|_| by_token)?;
        // Beside n-grams, whose drafts may be longer, the states that are kept say how many tokens a model drafts.
        let drafted = if case.run.n_rs_seq > 0 { case.run.n_rs_seq } else { case.run.n_draft };
        let (model, placement) = match &case.model.draft {
            Some(draft) => (draft.as_ref(), &part.placement),
            None => (case.model, case.placement),
        };
        let run = case.run.drafting(case.forecast.numbers.n_ctx);
        let forecast = Forecast { caches: part.caches.clone(), kernels: part.kernels, ..case.forecast.clone() };
        let mut layout = Layout::of(&Case { model, run: &run, placement, forecast: &forecast, ..*case });
        layout.borrow(target);
        Some(Self { layout, acceptance, drafted, output: !run.mtp_context })
    }

    fn tokens_per_pass(&self) -> f64 {
        self.acceptance.tokens_per_pass(self.drafted)
    }

    /// Adds the generation of `tokens` tokens in each slot. A pass drafts token by token; then the target computes its last token and all
    /// drafted ones at once, and the drafter those same rows, so that its cache has what the target saw (`common/speculative.cpp`
    /// `process` and `draft`, b11434). Drafts are sampled on the device.
    fn generate(&self, work: &mut Work, target: &Layout, tokens: f64, slots: f64, depth: f64) {
        let (passes, drafted) = (tokens / self.tokens_per_pass(), f64::from(self.drafted));
        let pass = Pass { slots, rows: drafted + 1.0, output: true };
        target.decode(work, pass, passes, depth);
        self.layout.decode(work, Pass { output: self.output, ..pass }, passes, depth);
        self.layout.decode(work, Pass { slots, ..Pass::ONE_TOKEN }, passes * drafted, depth);
        // Its graph is built anew for another number of rows (`llama-graph.h` `can_reuse`): for the target's, and for the next draft.
        self.layout.start(work, 2.0 * passes);
    }
}

#[cfg(test)]
mod tests;
