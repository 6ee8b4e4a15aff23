//! Inverse questions: whether the machine gives what is wanted, and the least that would.

use super::plan::{about, fits, name};
use super::{Block, Document, Page, Verdict};
use crate::number::{rate, seconds, thousands};
use crate::plan::want::{Answer, Quantity, Want, Wanted};
use crate::report::table::{Table, row};
use crate::run::command::shell;

const COLUMNS: &str = "ask with|fits|>context|>pp|>tg|>turn";

impl Document for Wanted {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Want", name(&self.model), about(&self.model, Some(&self.now.machine)));
        let wanted = self.wants.iter().map(wanted).collect::<Vec<_>>().join(" and ");
        page.push(match (self.reached, self.is_reachable()) {
            (true, _) => Block::Verdict(Verdict::Good, format!("This machine reaches {wanted}.")),
            (_, true) => {
                let text = format!("This machine does not reach {wanted}. Each change below is enough by itself.");
                Block::Verdict(Verdict::Caution, text)
            }
            _ => Block::Verdict(
                Verdict::Bad,
                format!("Neither this machine nor a single change to it reaches {wanted}."),
            ),
        });
        let found = self.changes().into_iter().flat_map(|change| &change.answers);
        let rows = std::iter::once(&self.now).chain(found).map(|answer| (answer.point.label.clone(), answer));
        let rows: Vec<_> = rows.collect();
        let caption = match (rows.len(), self.reached) {
            (1, _) => "As it is",
            (_, true) => "The least of each part that still reaches it",
            (_, false) => "Smallest changes that reach it",
        };
        page.push(answers(caption, "change", &rows));
        let reasons = self.changes().into_iter().filter_map(|change| change.reason.as_ref());
        page.push(reasons.map(|reason| Block::Prose(format!("{reason}."))));
        page.push(Block::Prose(format!("Speeds are predicted ({}).", self.now.point.speed.basis)));
        page.detail(rows.iter().map(|(what, answer)| {
            let start = ["llama-server", "-m", &self.model.path];
            let words: Vec<&str> = start.into_iter().chain(answer.point.args.iter().map(String::as_str)).collect();
            // A word with a NUL was never a command.
            Block::Command(what.clone(), shell(&words).unwrap_or_default())
        }));
        vec![page]
    }
}

/// As it was asked: `20 tokens/s of generation`.
fn wanted(want: &Want) -> String {
    match want.what {
        Quantity::Tg => format!("{} tokens/s of generation", rate(want.value)),
        Quantity::Pp => format!("{} tokens/s of prompt", rate(want.value)),
        Quantity::Turn => format!("a turn of {}", seconds(want.value)),
        Quantity::Ctx => format!("a context of {} tokens", want.value),
    }
}

/// Plans for other machines, each with the options that give it.
pub(super) fn answers(caption: &str, first: &str, rows: &[(String, &Answer)]) -> Option<Block> {
    let rows = rows.iter().map(|(what, Answer { flags, point, .. })| {
        row![
            what,
            shell(flags).unwrap_or_default(),
            fits(point.fits, &point.shortfall),
            thousands(point.n_ctx.into()),
            rate(point.speed.pp),
            rate(point.speed.tg),
            seconds(point.turn_seconds),
        ]
    });
    Block::table(caption, Table::rows_of(&format!("{first}|{COLUMNS}"), rows))
}
