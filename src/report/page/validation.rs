//! A validation as sections: the final checklist, then each model with its evidence.

use super::memory::size;
use super::{Block, Item, Section, Verdict, bench, environment};
use crate::report::table::{Align, Table};
use crate::suite::document::{ModelValidation, Validation};

/// The sections of a validation.
pub fn sections(validation: &Validation, source: &str) -> Vec<Section> {
    let mut blocks = Vec::new();
    if !validation.description.is_empty() {
        blocks.push(Block::Prose(validation.description.clone()));
    }
    if !validation.summary.is_empty() {
        blocks.push(Block::Checklist(bench::items(&validation.summary)));
    }
    if !validation.prerequisites.is_empty() {
        blocks.push(Block::Heading("Prerequisites".into()));
        blocks.push(Block::Checklist(bench::items(&validation.prerequisites)));
    }
    blocks.push(Block::Table("Machine".into(), environment::machine(&validation.environment)));
    let heading = format!("Validation: {}", validation.suite);
    let first = Section { heading, source: source.to_string(), blocks };
    [first].into_iter().chain(validation.models.iter().map(model)).collect()
}

fn model(model: &ModelValidation) -> Section {
    let mut blocks = Vec::new();
    if let Some(why) = &model.skipped {
        blocks.push(Block::Checklist(vec![Item {
            verdict: Verdict::Skipped,
            what: "It was run".into(),
            why: why.clone(),
        }]));
    }
    for part in &model.sections {
        let mut name = part.name.replace(['-', '_'], " ");
        if let Some(first) = name.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        blocks.push(Block::Heading(name));
        blocks.push(Block::Checklist(bench::items(&part.items)));
    }
    if !model.placements.is_empty() {
        blocks.push(Block::Table("Placements, predicted".into(), placements(model)));
    }
    if let Some(bench) = &model.bench {
        blocks.push(Block::Heading("Benchmark".into()));
        blocks.extend(bench::blocks(bench));
    }
    Section { heading: model.name.clone(), source: model.path.clone().unwrap_or_default(), blocks }
}

fn placements(model: &ModelValidation) -> Table {
    let mut table = Table::new(&[
        ("case", Align::Left),
        ("experts on devices", Align::Right),
        ("experts on the host", Align::Right),
        ("memory", Align::Left),
        ("fits", Align::Left),
    ]);
    for placement in &model.placements {
        let memory: Vec<String> =
            placement.predicted.iter().map(|(device, row)| format!("{device} {}", size(row.total))).collect();
        let fits = match placement.fits {
            Some(true) => "yes",
            Some(false) => "no",
            None => "no budget given",
        };
        table.row([
            placement.case.clone(),
            size(placement.expert_bytes_on_devices),
            size(placement.expert_bytes_on_host),
            memory.join(", "),
            fits.to_string(),
        ]);
    }
    table
}
