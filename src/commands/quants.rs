//! `inspect hf:owner/repo`: the models of a repository, and which of them fit a machine. [I/O]

use std::collections::BTreeMap;

use serde::Serialize;

use super::machine::MachineArgs;
use super::{Outcome, Output, model_arg};
use crate::bytes::Bytes;
use crate::checkup;
use crate::gguf::Gguf;
use crate::gguf::source::Error;
use crate::gguf::source::hub::{self, Quant};
use crate::machine::Machine;
use crate::model::Model;
use crate::number::counted;
use crate::plan::{self, Levers, Request, Strategy};
use crate::report::page::plan::budgets;
use crate::report::page::{Block, Document, Page, dotted};
use crate::report::table::Table;
use crate::speed::{Speed, Turn};

/// Headers read at the same time.
const PARALLEL: usize = 4;

/// The document `moeplan/quants/1`.
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
    let (margin, machine) = machine.map(described).transpose()?.unzip();
    let margin = margin.unwrap_or_default();
    let quants = model_arg::with_client(output, |client| {
        let quants = client.quants(repo)?;
        let Some(machine) = &machine else { return Ok(quants.into_iter().map(|quant| (quant, None)).collect()) };
        let mut judged = Vec::with_capacity(quants.len());
        let (first, rest) = quants.split_at(quants.len().min(1));
        for some in [first].into_iter().chain(rest.chunks(PARALLEL)) {
            std::thread::scope(|scope| {
                let judge = |quant| judge(client.open_quant_beside(repo, quant, first.first()), repo, machine, margin);
                let threads: Vec<_> = some.iter().map(|quant| scope.spawn(move || judge(quant))).collect();
                for (quant, thread) in some.iter().zip(threads) {
                    let fits = thread.join().unwrap_or_else(|_| Err("internal error: please report this".into()));
                    judged.push((quant.clone(), Some(fits)));
                }
            });
        }
        Ok(judged)
    })?;
    let all: Vec<Quant> = quants.iter().map(|(quant, _)| quant.clone()).collect();
    let row = |(quant, judged): (Quant, Option<Result<Fits, String>>)| {
        let is_it = hub::choose(repo, &all, Some(&quant.name)).is_ok_and(|chosen| chosen.path == quant.path);
        let model = if is_it { format!("hf:{repo}:{}", quant.name) } else { format!("hf:{repo}/{}", quant.path) };
        let (fits, error) = match judged {
            Some(Ok(fits)) => (Some(fits), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        Row { model, quant, fits, error }
    };
    let rows = quants.into_iter().map(row).collect();
    let document = Quants { schema: "moeplan/quants/1", repo: repo.to_string(), machine, rows };
    output.show(&document)?;
    let asked = document.machine.is_some();
    let any = document.rows.iter().filter_map(|row| row.fits.as_ref()).any(|fits| fits.auto.fits);
    Ok(if asked && !any { Outcome::No } else { Outcome::Yes })
}

/// What a header says about a machine; the error as text, since one model's must not hide the others.
fn judge(opened: Result<Gguf, Error>, repo: &str, machine: &Machine, margin: Bytes) -> Result<Fits, String> {
    let model = Model::from_gguf(opened.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    let plan = |strategy| {
        let request = Request { margin, strategy, levers: Levers::default(), ..Request::of(machine) };
        plan::plan(&model, &format!("hf:{repo}"), machine, &request).map_err(|error| error.to_string())
    };
    let fit = |plan: plan::Plan| Fit {
        fits: plan.check.fits(),
        short: plan.check.shortfall.values().copied().sum(),
        memory: plan.check.memory,
    };
    let auto = plan(Strategy::Auto)?;
    let (speed, turn_seconds) =
        if auto.check.fits() { (Some(auto.speed.clone()), Some(auto.turn_seconds)) } else { (None, None) };
    Ok(Fits {
        speed,
        turn_seconds,
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
        let fits = self.rows.iter().find_map(|row| row.fits.as_ref());
        let context = fits.map(|fits| format!("context {}", fits.n_ctx));
        let about = dotted([models].into_iter().chain(machine).chain(context));
        let mut page = Page::new("Repository", self.repo.clone(), about);
        page.push(Block::Table(String::new(), table(self)));
        page.push_all(self.machine.iter().flat_map(Machine::budget_notes).map(Block::Prose));
        page.push(predicted(self).map(Block::Prose));
        vec![page]
    }
}

/// What the speeds are of and how sure they are: the least sure of them, where they differ.
fn predicted(document: &Quants) -> Option<String> {
    let speeds = document.rows.iter().filter_map(|row| row.fits.as_ref()?.speed.as_ref());
    let speed = speeds.max_by(|a, b| a.uncertainty.total_cmp(&b.uncertainty))?;
    let Turn { prompt, generate, .. } = Turn::default();
    let off = speed.uncertainty * 100.0;
    let of = format!("tokens/s as planned, and seconds for {prompt} + {generate} tokens ({})", speed.basis);
    Some(format!("Predicted ±{off:.0}%: {of}"))
}

fn table(document: &Quants) -> Table {
    let judged = match document.machine {
        Some(_) => "all on device|experts on host|planned|>prompt|>generation|>turn|",
        None => "",
    };
    let mut table = Table::of(&format!("quant|>size|>files|{judged}MODEL"));
    for row in &document.rows {
        let quant = &row.quant;
        let mut cells = vec![quant.name.clone(), quant.bytes.to_string(), quant.files.len().to_string()];
        match (&row.fits, &row.error) {
            (Some(fits), _) => {
                cells.extend([word(&fits.all_on_device), word(&fits.experts_on_host), planned(fits)]);
                cells.extend(how_fast(fits));
            }
            (None, Some(error)) => {
                cells.push(format!("({error})"));
                cells.resize(cells.len() + 5, String::new());
            }
            (None, None) => {}
        }
        cells.push(row.model.clone());
        table.row(cells);
    }
    table
}

fn word(fit: &Fit) -> String {
    if fit.fits { "fits".to_string() } else { format!("{} short", fit.short) }
}

/// Prompt, generation, and the turn.
fn how_fast(fits: &Fits) -> [String; 3] {
    match (&fits.speed, fits.turn_seconds) {
        (Some(speed), Some(seconds)) => {
            [format!("{:.0}", speed.pp), format!("{:.1}", speed.tg), format!("{seconds:.1} s")]
        }
        _ => Default::default(),
    }
}

fn planned(fits: &Fits) -> String {
    match (fits.auto.fits, fits.blocks_with_experts_on_host, fits.blocks_with_experts) {
        (false, ..) => "no".to_string(),
        (true, 0, _) => "all on device".to_string(),
        (true, host, blocks) => format!("experts of {host} of {blocks} blocks on host"),
    }
}
