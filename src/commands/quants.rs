//! `inspect hf:owner/repo`: the models of a repository, and which of them fit a machine. [I/O]

use std::collections::BTreeMap;

use serde::Serialize;

use super::machine::MachineArgs;
use super::{Outcome, Output, model_arg};
use crate::bytes::Bytes;
use crate::checkup;
use crate::gguf::Gguf;
use crate::gguf::source::hub::{self, Quant};
use crate::gguf::source::{Error, Which};
use crate::machine::Machine;
use crate::model::Model;
use crate::number::{counted, rate, seconds};
use crate::plan::{self, Levers, Request, Strategy};
use crate::report::page::plan::budgets;
use crate::report::page::{Block, Document, Page, dotted};
use crate::report::table::{Table, row};
use crate::speed::{Phase, Speed, Turn};

const PARALLEL: usize = 4;

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quants {
    schema: &'static str,
    repo: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<Machine>,
    #[serde(rename = "quants")]
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Row {
    model: String,
    #[serde(flatten)]
    quant: Quant,
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<Fits>,
    /// Why `fits` is not known though it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Whether it fits, by what may be done with the experts.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Fits {
    /// Tokens of context.
    n_ctx: u32,
    all_on_device: Fit,
    experts_on_host: Fit,
    auto: Fit,
    /// Predicted speed of `auto`; none where it does not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<Speed>,
    /// Predicted time of the turn under `auto`, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    turn_seconds: Option<f64>,
    /// Blocks that keep experts on the host under `auto`, of those that have any.
    blocks_with_experts_on_host: usize,
    blocks_with_experts: usize,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Fit {
    fits: bool,
    memory: BTreeMap<String, checkup::Row>,
    /// What is missing, over all devices.
    short: Bytes,
}

/// Runs the listing; exit 1 where a machine is given and nothing fits it.
pub fn run(repo: &str, machine: Option<&MachineArgs>, output: &Output) -> anyhow::Result<Outcome> {
    let described = |args: &MachineArgs| args.machine().map(|machine| (args.margin(&machine), machine));
    let machine = machine.map(described).transpose()?;
    let rows = model_arg::with_client(output, |client| {
        let quants = client.quants(repo)?;
        let (first, rest) = quants.split_at(quants.len().min(1));
        let judge = |quant| {
            let (margin, machine) = machine.as_ref()?;
            Some(judge(client.open_quant_beside(repo, quant, first.first()), repo, machine, *margin))
        };
        let mut rows = Vec::with_capacity(quants.len());
        for some in [first].into_iter().chain(rest.chunks(PARALLEL)) {
            std::thread::scope(|scope| {
                let threads: Vec<_> = some.iter().map(|quant| scope.spawn(move || judge(quant))).collect();
                for (quant, thread) in some.iter().zip(threads) {
                    let failed = || Some(Err(anyhow::anyhow!("internal error: please report this")));
                    let (fits, error) = match thread.join().unwrap_or_else(|_| failed()).transpose() {
                        Ok(fits) => (fits, None),
                        Err(error) => (None, Some(format!("{error:#}"))),
                    };
                    let chosen = hub::choose(repo, &quants, &Which::Quant(quant.name.clone()));
                    let is_chosen = chosen.is_ok_and(|chosen| chosen.path == quant.path);
                    let name = if is_chosen { format!(":{}", quant.name) } else { format!("/{}", quant.path) };
                    rows.push(Row { model: format!("hf:{repo}{name}"), quant: quant.clone(), fits, error });
                }
            });
        }
        Ok(rows)
    })?;
    let machine = machine.map(|(_, machine)| machine);
    let document = Quants { schema: "moeplan/quants/1", repo: repo.to_string(), machine, rows };
    output.show(&document)?;
    let any = document.rows.iter().filter_map(|row| row.fits.as_ref()).any(|fits| fits.auto.fits);
    Ok(if document.machine.is_some() && !any { Outcome::No } else { Outcome::Yes })
}

/// What a header says about a machine.
fn judge(opened: Result<Gguf, Error>, repo: &str, machine: &Machine, margin: Bytes) -> anyhow::Result<Fits> {
    let model = Model::from_gguf(opened?)?;
    let plan = |strategy| {
        let request = Request { margin, strategy, levers: Levers::default(), ..Request::of(machine) };
        plan::plan(&model, &format!("hf:{repo}"), machine, &request)
    };
    let fit = |plan: plan::Plan| Fit {
        fits: plan.check.fits(),
        short: plan.check.shortfall.values().copied().sum(),
        memory: plan.check.memory,
    };
    let auto = plan(Strategy::Auto)?;
    let fits = auto.check.fits();
    Ok(Fits {
        speed: fits.then(|| auto.speed.clone()),
        turn_seconds: fits.then_some(auto.turn_seconds),
        n_ctx: auto.check.run.n_ctx,
        all_on_device: fit(plan(Strategy::AllOnDevice)?),
        experts_on_host: fit(plan(Strategy::ExpertsOnHost)?),
        blocks_with_experts_on_host: auto.placement.blocks_with_experts_on_host,
        blocks_with_experts: auto.placement.blocks_with_experts,
        auto: fit(auto),
    })
}

impl Document for Quants {
    fn pages(&self) -> Vec<Page> {
        let models = counted(self.rows.len() as u64, "model");
        let machine = self.machine.as_ref().map(|machine| format!("for {}", budgets(machine)));
        let judged = || self.rows.iter().filter_map(|row| row.fits.as_ref());
        let context = judged().next().map(|fits| format!("context {}", fits.n_ctx));
        let about = dotted([models].into_iter().chain(machine).chain(context));
        let mut page = Page::new("Repository", self.repo.clone(), about);
        page.push(Block::Table(String::new(), table(self)));
        page.push(self.machine.iter().flat_map(Machine::budget_notes).map(Block::Prose));
        // What the speeds are of and how sure they are: the least sure of them, where they differ.
        let speeds = judged().filter_map(|fits| fits.speed.as_ref());
        page.push(speeds.max_by(|a, b| a.uncertainty.total_cmp(&b.uncertainty)).map(|speed| {
            let Turn { prompt, generate, .. } = Turn::default();
            let [pp, tg] = [Phase::Prompt, Phase::Generate].map(|phase| speed.within(phase));
            let of = format!("tokens/s as planned, and seconds for {prompt} + {generate} tokens ({})", speed.basis);
            Block::Prose(format!("Predicted, prompt {pp}, generation {tg}: {of}"))
        }));
        vec![page]
    }
}

fn table(document: &Quants) -> Table {
    let judged = match document.machine {
        Some(_) => "all on device|experts on host|planned|>prompt|>generation|>turn|",
        None => "",
    };
    let word = |fit: &Fit| if fit.fits { "fits".to_string() } else { format!("{} short", fit.short) };
    let rows = document.rows.iter().map(|Row { model, quant, fits, error }| {
        let judged = match (fits, error) {
            (Some(fits), _) => {
                let planned = match (fits.auto.fits, fits.blocks_with_experts_on_host, fits.blocks_with_experts) {
                    (false, ..) => "no".to_string(),
                    (true, 0, _) => "all on device".to_string(),
                    (true, host, blocks) => format!("experts of {host} of {blocks} blocks on host"),
                };
                let speed =
                    |of: fn(&Speed) -> f64| fits.speed.as_ref().map(|speed| rate(of(speed))).unwrap_or_default();
                let turn = fits.turn_seconds.map(seconds).unwrap_or_default();
                let (pp, tg) = (speed(|speed| speed.pp), speed(|speed| speed.tg));
                vec![word(&fits.all_on_device), word(&fits.experts_on_host), planned, pp, tg, turn]
            }
            (None, Some(error)) => [vec![format!("({error})")], vec![String::new(); 5]].concat(),
            (None, None) => Vec::new(),
        };
        row![quant.name, quant.bytes, quant.files.len()].into_iter().chain(judged).chain([model.clone()])
    });
    Table::rows_of(&format!("quant|>size|>files|{judged}MODEL"), rows)
}
