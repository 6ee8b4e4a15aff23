//! What earlier runs of a suite left in the folder of results: models whose files need not be there any more. [I/O]

use super::checklist;
use super::document::{Bench, Case, Item, ModelValidation, PlacementFacts, Section, Verdict};
use super::protocol::Suite;
use super::store::Store;

/// The name of the step that holds a model's checked header.
pub const ARCHITECTURE: &str = "architecture";
/// The name of the step that holds a model's predicted placements.
pub const PLACEMENTS: &str = "placements";
/// The file that holds all launches of a model.
pub const BENCH: &str = "bench.json";

/// A model as its steps in the folder tell it; `None` where none of its launches was made before.
pub fn model(store: &Store, suite: &Suite, name: &str) -> Option<ModelValidation> {
    let store = store.at(name);
    let bench: Bench = store.read(BENCH)?;
    let architecture: Section = store.step(ARCHITECTURE)?.result;
    let placements: Vec<PlacementFacts> = store.step(PLACEMENTS)?.result;
    let file = Section { name: "file".into(), items: vec![kept(&bench, suite)] };
    let mut sections = vec![file, architecture];
    sections.extend(checklist::of_bench(&placements, &bench));
    let path = bench.model.as_ref().map(|model| model.path.clone());
    Some(ModelValidation { name: name.to_string(), path, sections, placements, bench: Some(bench), skipped: None })
}

/// The line that says that a model was not run this time, and whether it was asked what the suite asks now.
fn kept(bench: &Bench, suite: &Suite) -> Item {
    let mut other = Vec::new();
    if bench.prompts != suite.prompts() {
        other.push("prompts");
    }
    if bench.settings != suite.settings() {
        other.push("settings");
    }
    if bench.cases.iter().map(|case| &case.name).ne(&suite.cases) {
        other.push("cases");
    }
    let of_case = |case: &Case| u32::try_from(case.sessions.len()).unwrap_or(u32::MAX);
    let fewest = bench.cases.iter().map(of_case).min().unwrap_or_default();
    let lost = bench.cases.iter().any(|case| case.sessions.iter().any(|session| session.failure.is_some()));
    let (verdict, asked) = if fewest < bench.settings.repetitions && !lost {
        let asked = bench.settings.repetitions;
        (Verdict::NotAssessed, format!("it was interrupted: {fewest} of {asked} launches of each case were made"))
    } else if other.is_empty() {
        (Verdict::Pass, "asked as now".to_string())
    } else {
        (Verdict::NotAssessed, format!("other {} than the suite has now", other.join(" and ")))
    };
    Item::new(
        "the results of an earlier run are of this suite",
        verdict,
        format!("its file was not run this time; {asked}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::bench::NotYet;
    use crate::suite::document::{Environment, Session, Weights};

    fn kept_in(store: &Store, suite: &Suite, name: &str) {
        let session = Session { case: "fit".into(), repetition: 1, ..Session::default() };
        let mut bench = Bench::new(suite, Environment::default(), None, Weights::default());
        let case = |name: &String| Case { name: name.clone(), sessions: vec![session.clone()], ..Case::default() };
        bench.cases = suite.cases.iter().map(case).collect();
        bench.sum_up(suite, &NotYet);
        let below = store.below(name).unwrap();
        below.write(BENCH, &serde_json::to_string(&bench).unwrap()).unwrap();
        below.keep(ARCHITECTURE, "of the file then", &checklist::architecture(None, &Weights::default())).unwrap();
        below.keep(PLACEMENTS, "of the file then", &Vec::<PlacementFacts>::new()).unwrap();
    }

    #[test]
    fn a_model_is_told_by_its_steps_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path()).unwrap();
        let mut suite = Suite { repetitions: 1, ..Suite::protocol() };
        kept_in(&store, &suite, "small");
        assert_eq!(store.folders(), ["small"]);
        let first = model(&store, &suite, "small").unwrap();
        let names: Vec<&str> = first.sections.iter().map(|section| section.name.as_str()).collect();
        assert_eq!(names, ["file", "architecture", "placements", "tests", "streaming", "memory"]);
        assert!(first.skipped.is_none() && first.sections[0].items[0].verdict == Verdict::Pass);
        suite.repetitions += 1;
        let other = &model(&store, &suite, "small").unwrap().sections[0].items[0];
        assert_eq!(other.verdict, Verdict::NotAssessed);
        assert!(other.detail.ends_with("other settings than the suite has now"), "{}", other.detail);
        suite.repetitions = 3;
        kept_in(&store, &suite, "small");
        let lacking = &model(&store, &suite, "small").unwrap().sections[0].items[0];
        assert_eq!(lacking.verdict, Verdict::NotAssessed);
        assert!(lacking.detail.ends_with("1 of 3 launches of each case were made"), "{}", lacking.detail);
    }

    #[test]
    fn what_was_not_run_to_its_end_is_no_result() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path()).unwrap();
        let suite = Suite::protocol();
        assert!(model(&store, &suite, "small").is_none() && store.folders().is_empty());
        for lost in [BENCH, "architecture.json", "placements.json"] {
            kept_in(&store, &suite, "small");
            std::fs::write(store.path("small").join(lost), "{\"schema\":").unwrap();
            assert!(model(&store, &suite, "small").is_none(), "{lost}");
        }
    }
}
