//! The suites of classes of machines, and what they expect of their models.

use std::collections::BTreeMap;

use moeplan::bytes::{Bytes, GIB};
use moeplan::expectation::{self, Expectations};
use moeplan::inspection::Inspection;
use moeplan::plan::solver::Strategy;
use moeplan::plan::{self, ContextChoice, Request};
use moeplan::suite::protocol::{self, Suite};
use moeplan::synth::{Wish, recipe, spec};

use crate::support::planning::{machine, model, request};

/// Suite, GiB of each card, GiB of main memory.
const CLASSES: [(&str, &[u64], u64); 6] = [
    ("moe-8g", &[8], 32),
    ("moe-12g", &[12], 32),
    ("moe-16g", &[16], 64),
    ("moe-24g", &[24], 64),
    ("moe-2x24g", &[24, 24], 128),
    ("moe-4x24g", &[24, 24, 24, 24], 256),
];

#[test]
fn every_model_of_a_class_has_a_plan_that_fits_it() {
    let suites = protocol::BUILT_IN.iter().skip(1);
    assert_eq!(suites.clone().map(|(name, _)| *name).collect::<Vec<_>>(), CLASSES.map(|(name, ..)| name));
    let mut models = BTreeMap::new();
    for ((name, text), (_, cards, ram)) in suites.zip(CLASSES) {
        let suite = Suite::from_yaml(name, text).unwrap();
        let count = if cards.len() == 1 { String::new() } else { format!("{} × ", cards.len()) };
        let said = format!("{count}{} GiB of device memory and {ram} GiB of main memory", cards[0]);
        assert!(suite.description.ends_with(&said), "{name}: {}", suite.description);
        let mut machine = machine(&cards.iter().map(|gib| gib * GIB).collect::<Vec<_>>());
        machine.host.ram = Some(Bytes(ram * GIB));
        for wanted in &suite.models {
            let recipe = recipe::named("Q4_K_M").filter(|_| !wanted.name.starts_with("gpt-oss"));
            let model = models
                .entry(wanted.name.clone())
                .or_insert_with(|| model(&wanted.name, &Wish { recipe, ..Wish::default() }));
            // All experts in main memory, which is soon asked, or as many as need be.
            let plan = |strategy| {
                let request = Request { context: ContextChoice::Fixed(suite.context), ..request(strategy) };
                plan::brief(model, "model.gguf", &machine, &request).unwrap().check
            };
            let fits = || [Strategy::ExpertsOnHost, Strategy::FirstN].into_iter().any(|strategy| plan(strategy).fits());
            assert!(fits(), "{name}: {}: {:?}", wanted.name, plan(Strategy::FirstN).shortfall);
        }
    }
}

#[test]
fn every_spec_is_what_is_expected_of_its_model() {
    let specs = spec::names();
    for (name, text) in expectation::BUILT_IN {
        assert!(specs.iter().any(|spec| spec == name), "{name}: no spec");
        let inspection = Inspection::new(&model(name, &Wish::default()), &[], None);
        let checks = Expectations::from_yaml(name, text).unwrap().check(&inspection).unwrap();
        let missed: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
        assert!(missed.is_empty(), "{name}: {missed:?}");
    }
}
