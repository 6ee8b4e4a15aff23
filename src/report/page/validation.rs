//! A validation: the final checklist, then each model with its evidence.

use super::compare::Summary;
use super::memory::size;
use super::{Block, Document, Item, Page, Verdict, bench, environment};
use crate::report::table::Table;
use crate::suite::document::{ModelValidation, Validation};

impl Document for Validation {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("", format!("Validation: {}", self.suite), environment::about(&self.environment));
        page.push((!self.description.is_empty()).then(|| Block::Prose(self.description.clone())));
        page.push(Block::checklist("Final checklist", bench::items(&self.summary)));
        page.push(Block::checklist("Prerequisites", bench::items(&self.prerequisites)));
        page.detail(Block::Table("Machine".into(), environment::machine(&self.environment)));
        [page].into_iter().chain(self.models.iter().map(model)).collect()
    }

    fn summaries(&self) -> Vec<Summary> {
        self.models.iter().filter_map(|model| bench::summary(model.bench.as_ref()?, &model.name)).collect()
    }
}

fn model(model: &ModelValidation) -> Page {
    let source = model.path.clone().unwrap_or_default();
    let mut page = Page { source, ..Page::new("", model.name.clone(), "") };
    page.push(model.skipped.clone().map(|why| {
        Block::Checklist(vec![Item { verdict: Verdict::Skipped, what: "It was run".into(), why, hint: None }])
    }));
    for part in &model.sections {
        let mut name = part.name.replace(['-', '_'], " ");
        if let Some(first) = name.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        page.push([Block::Heading(name), Block::Checklist(bench::items(&part.items))]);
    }
    let placements = model.placements.iter().map(|placement| {
        let memory: Vec<String> =
            placement.predicted.iter().map(|(device, row)| format!("{device} {}", size(row.total))).collect();
        let fits = placement.fits.map_or("no budget given", |fits| if fits { "yes" } else { "no" });
        let (devices, host) = (size(placement.expert_bytes_on_devices), size(placement.expert_bytes_on_host));
        [placement.case.clone(), devices, host, memory.join(", "), fits.to_string()]
    });
    let columns = "case|>experts on devices|>experts on the host|memory|fits";
    page.detail(Block::table("Placements, predicted", Table::rows_of(columns, placements)));
    if let Some(measured) = &model.bench {
        page.push(Block::Heading("Benchmark".into()));
        bench::blocks(measured, &mut page);
    }
    page
}
