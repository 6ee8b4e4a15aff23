//! The models of a repository of the hub, and which of them fit a machine.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::bytes::Bytes;
use crate::checkup;
use crate::gguf::Gguf;
use crate::gguf::source::Which;
use crate::gguf::source::hub::{self, Quant};
use crate::machine::Machine;
use crate::model::Model;
use crate::plan::{self, ContextChoice, Levers, Request, Strategy};
use crate::run::{RunConfig, Target};
use crate::speed::Speed;

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quants {
    pub schema: &'static str,
    pub repo: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    #[serde(rename = "quants")]
    pub rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Row {
    pub model: String,
    #[serde(flatten)]
    pub quant: Quant,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fits: Option<Fits>,
    /// Why `fits` is not known though it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether it fits, by what may be done with the experts.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fits {
    /// Tokens of context.
    pub n_ctx: u32,
    pub all_on_device: Fit,
    pub experts_on_host: Fit,
    pub auto: Fit,
    /// Predicted speed of `auto`; none where it does not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// Predicted time of the turn under `auto`, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_seconds: Option<f64>,
    /// Blocks that keep experts on the host under `auto`, of those that have any.
    pub blocks_with_experts_on_host: usize,
    pub blocks_with_experts: usize,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fit {
    pub fits: bool,
    pub memory: BTreeMap<String, checkup::Row>,
    /// What is missing, over all devices.
    pub short: Bytes,
}

impl Row {
    /// One of the models of a repository, and whether it fits, where that was asked.
    pub fn of(repo: &str, quants: &[Quant], quant: &Quant, judged: Option<Result<Fits, String>>) -> Self {
        let (fits, error) = match judged.transpose() {
            Ok(fits) => (fits, None),
            Err(error) => (None, Some(error)),
        };
        let chosen = hub::choose(repo, quants, &Which::Quant(quant.name.clone()));
        let is_chosen = chosen.is_ok_and(|chosen| chosen.path == quant.path);
        let name = if is_chosen { format!(":{}", quant.name) } else { format!("/{}", quant.path) };
        Self { model: format!("hf:{repo}{name}"), quant: quant.clone(), fits, error }
    }
}

impl Fits {
    /// What a machine makes most of first: what fits, by the time of its turn; what does not, by what is missing; what could not be judged.
    pub fn order(a: Option<&Self>, b: Option<&Self>) -> Ordering {
        let rank = |of: Option<&Self>| {
            let turn = of.map_or(f64::INFINITY, |fits| fits.turn_seconds.unwrap_or(f64::MAX));
            (turn, of.map_or(Bytes(0), |fits| fits.auto.short))
        };
        let ((turn, short), (other, than)) = (rank(a), rank(b));
        turn.total_cmp(&other).then(short.cmp(&than))
    }
}

impl Quants {
    /// As the repository has them; for a machine in the order of [`Fits::order`].
    pub fn new(repo: &str, machine: Option<Machine>, mut rows: Vec<Row>) -> Self {
        if machine.is_some() {
            rows.sort_by(|a, b| Fits::order(a.fits.as_ref(), b.fits.as_ref()));
        }
        Self { schema: "moeplan/quants/1", repo: repo.to_string(), machine, rows }
    }
}

/// What a header says about a machine and a build; `path` is what the model is called.
pub fn judge(gguf: Gguf, path: &str, machine: &Machine, margin: Bytes, target: Target) -> Result<Fits, plan::Error> {
    let model = Model::from_gguf(gguf)?;
    let plan = |strategy, levers| {
        let (run, context) = (RunConfig::of(target), ContextChoice::Turn);
        let request = Request { run, context, margin, strategy, levers, ..Request::of(machine) };
        plan::brief(&model, path, machine, &request)
    };
    let fit = |plan: plan::Plan| Fit {
        fits: plan.check.fits(),
        short: plan.check.shortfall.values().copied().sum(),
        memory: plan.check.memory,
    };
    let auto = plan(Strategy::Auto, Levers::unasked())?;
    let fit_of = |strategy| plan(strategy, Levers::default()).map(fit);
    let fits = auto.check.fits();
    Ok(Fits {
        speed: fits.then(|| auto.speed.clone()),
        turn_seconds: fits.then_some(auto.turn_seconds),
        n_ctx: auto.check.run.n_ctx,
        all_on_device: fit_of(Strategy::AllOnDevice)?,
        experts_on_host: fit_of(Strategy::ExpertsOnHost)?,
        blocks_with_experts_on_host: auto.placement.blocks_with_experts_on_host,
        blocks_with_experts: auto.placement.blocks_with_experts,
        auto: fit(auto),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_comes_first_by_its_turn_then_what_is_short_of_least() {
        let fit = |fits, short| Fit { fits, memory: BTreeMap::new(), short: Bytes(short) };
        let judged = |n_ctx, turn_seconds: Option<f64>, short| Fits {
            n_ctx,
            all_on_device: fit(false, 9),
            experts_on_host: fit(false, 9),
            auto: fit(turn_seconds.is_some(), short),
            speed: None,
            turn_seconds,
            blocks_with_experts_on_host: 0,
            blocks_with_experts: 1,
        };
        let mut rows = [
            None,
            Some(judged(4, None, 7)),
            Some(judged(2, Some(9.0), 0)),
            Some(judged(3, None, 5)),
            Some(judged(1, Some(2.0), 0)),
        ];
        rows.sort_by(|a, b| Fits::order(a.as_ref(), b.as_ref()));
        let order: Vec<u32> = rows.iter().map(|row| row.as_ref().map_or(0, |fits| fits.n_ctx)).collect();
        assert_eq!(order, [1, 2, 3, 4, 0]);
    }
}
