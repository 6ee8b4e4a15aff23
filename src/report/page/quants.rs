//! The models of a repository.

use super::plan::budgets;
use super::{Block, Document, Page, dotted};
use crate::ask::quants::{Fit, Fits, Quants, Row};
use crate::machine::Machine;
use crate::number::{counted, rate, seconds};
use crate::report::table::{Table, row};
use crate::speed::{Phase, Speed, Turn};

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
        page.push(predicted(judged()));
        vec![page]
    }
}

/// What the speeds are of and how sure they are: the least sure of them, where they differ.
pub(crate) fn predicted<'a>(judged: impl Iterator<Item = &'a Fits>) -> Option<Block> {
    let speeds = judged.filter_map(|fits| fits.speed.as_ref());
    let speed = speeds.max_by(|a, b| a.uncertainty.total_cmp(&b.uncertainty))?;
    let Turn { prompt, generate, .. } = Turn::default();
    let [pp, tg] = [Phase::Prompt, Phase::Generate].map(|phase| speed.within(phase));
    let of = format!("tokens/s as planned, and seconds for {prompt} + {generate} tokens ({})", speed.basis);
    Some(Block::Prose(format!("Predicted, prompt {pp}, generation {tg}: {of}")))
}

/// The columns of [`verdicts`], each with its `|`; none without a machine.
pub(crate) fn columns(machine: Option<&Machine>) -> &'static str {
    machine.map_or("", |_| "all on device|experts on host|planned|>prompt|>generation|>turn|")
}

/// The cells of what a machine makes of a model; none where that was not asked.
pub(crate) fn verdicts(fits: Option<&Fits>, error: Option<&String>) -> Vec<String> {
    let word = |fit: &Fit| if fit.fits { "fits".to_string() } else { format!("{} short", fit.short) };
    match (fits, error) {
        (Some(fits), _) => {
            let planned = match (fits.auto.fits, fits.blocks_with_experts_on_host, fits.blocks_with_experts) {
                (false, ..) => "no".to_string(),
                (true, 0, _) => "all on device".to_string(),
                (true, host, blocks) => format!("experts of {host} of {blocks} blocks on host"),
            };
            let speed = |of: fn(&Speed) -> f64| fits.speed.as_ref().map(|speed| rate(of(speed))).unwrap_or_default();
            let turn = fits.turn_seconds.map(seconds).unwrap_or_default();
            let (pp, tg) = (speed(|speed| speed.pp), speed(|speed| speed.tg));
            vec![word(&fits.all_on_device), word(&fits.experts_on_host), planned, pp, tg, turn]
        }
        (None, Some(error)) => [vec![format!("({error})")], vec![String::new(); 5]].concat(),
        (None, None) => Vec::new(),
    }
}

fn table(document: &Quants) -> Table {
    let rows = document.rows.iter().map(|Row { model, quant, fits, error }| {
        let judged = verdicts(fits.as_ref(), error.as_ref());
        row![quant.name, quant.bytes, quant.files.len()].into_iter().chain(judged).chain([model.clone()])
    });
    Table::rows_of(&format!("quant|>size|>files|{}MODEL", columns(document.machine.as_ref())), rows)
}
