//! Several models on one machine: what each gets, how fast it then is, and the files that start them.

use super::plan::{budgets, fits, name, warnings};
use super::{Block, Document, Page, Verdict};
use crate::ask::together::Together;
use crate::inspection::Warning;
use crate::number::{rate, seconds, thousands};
use crate::report::table::{Table, row};
use crate::run::command::shell;

const COLUMNS: &str = "model|>port|gets|fits|>context|>pp|>tg|>turn|>alone|ask with";

impl Document for Together {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Together", "Models that stay loaded together", budgets(&self.machine));
        page.push(if self.fits {
            let text = format!("All fit. The slowest turn takes {}.", seconds(self.slowest_seconds));
            Block::Verdict(Verdict::Good, text)
        } else {
            Block::Verdict(Verdict::Bad, "They do not all fit together.".to_string())
        });
        let rows = self.members.iter().map(|member| {
            let plan = &member.plan;
            let ram = plan.machine.host.ram.map(|ram| format!("{ram} of main memory"));
            let devices = plan.machine.devices.iter().map(|device| format!("{} of {}", device.total, device.name));
            row![
                name(&plan.model),
                member.port,
                devices.chain(ram).collect::<Vec<_>>().join(", "),
                fits(plan.check.fits(), &plan.check.shortfall),
                thousands(plan.check.run.n_ctx.into()),
                rate(plan.speed.pp),
                rate(plan.speed.tg),
                seconds(plan.turn_seconds),
                seconds(member.alone_seconds),
                shell(&member.flags).unwrap_or_default(),
            ]
        });
        page.push(Block::table("", Table::rows_of(COLUMNS, rows)));
        page.push(self.machine.budget_notes().map(Block::Prose));
        page.push(Block::Prose(
            "Speeds are of one model at a time. --emit llama-swap or --emit ini prints a file that keeps them all loaded."
                .to_string(),
        ));
        // All other warnings are each plan's own.
        let short = self.members.iter().flat_map(|member| {
            let warnings = member.plan.warnings.iter().filter(|warning| warning.code == "turn-beyond-context");
            warnings
                .map(|warning| Warning { message: format!("{}: {}", member.name, warning.message), ..warning.clone() })
        });
        page.push(warnings(&short.collect::<Vec<_>>()));
        let file = |label: &str, text: &Option<String>| Some(Block::Output(label.to_string(), text.clone()?));
        page.detail(file("llama-swap's configuration", &self.llama_swap));
        page.detail(file("models.ini of llama-server's router", &self.ini));
        page.detail(Block::Command("With models.ini".to_string(), self.router.clone()));
        page.push(self.members.iter().map(|member| Block::Command(member.name.clone(), member.command.clone())));
        vec![page]
    }
}
