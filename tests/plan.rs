//! The planner on headers of known models: never over a budget, nothing left that would still fit, the replay holds.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use moeplan::bytes::{Bytes, GIB, MIB};
use moeplan::machine::{Backend, Device, Host, Machine};
use moeplan::model::Model;
use moeplan::plan::solver::{Levers, Objective, Strategy};
use moeplan::plan::{self, ContextChoice, Plan, Request, Turn};
use moeplan::run::{RunConfig, Target};
use moeplan::synth::output::{Fill, Watch, write};
use moeplan::synth::{Wish, spec, synthesize};
use proptest::prelude::*;

/// The header of a known model, as `moeplan synth` writes it.
fn model(name: &str, wish: &Wish) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let synthesis = synthesize(&spec::named(name).unwrap(), wish).unwrap();
    let stop = AtomicBool::new(false);
    write(&synthesis, &path, Fill::Hole, false, Watch { wrote: &|_| {}, stop: &stop }).unwrap();
    Model::from_gguf(moeplan::gguf::open(&path).unwrap()).unwrap()
}

fn machine(budgets: &[u64]) -> Machine {
    let device = |(at, total): (usize, &u64)| Device {
        name: format!("CUDA{at}"),
        buffer: format!("CUDA{at}"),
        backend: Backend::Cuda,
        description: None,
        total: Bytes(*total),
        free: Bytes(*total),
        overhead: None,
        calibration: None,
        rates: None,
    };
    Machine {
        devices: budgets.iter().enumerate().map(device).collect(),
        host: Host { ram: Some(Bytes(512 * GIB)), ..Host::default() },
    }
}

fn request(strategy: Strategy) -> Request {
    Request {
        run: RunConfig::default(),
        context: ContextChoice::Turn,
        turn: Turn { prompt: 4096, generate: 512, depth: 0 },
        margin: Bytes::mib(256),
        strategy,
        objective: Objective::Turn,
        levers: Levers::default(),
        target: Target::default(),
        tensors: false,
        explain: false,
    }
}

fn plan_for(model: &Model, budgets: &[u64], strategy: Strategy) -> Plan {
    plan::plan(model, "model.gguf", &machine(budgets), &request(strategy)).unwrap()
}

/// Every device within its budget less the margin, as the plan itself says it.
fn within_budgets(plan: &Plan) -> bool {
    plan.machine
        .devices
        .iter()
        .all(|device| plan.check.memory.get(&device.name).is_none_or(|row| row.total + plan.margin <= device.total))
}

#[test]
fn what_fits_whole_stays_whole() {
    let model = model("phi-3.5-moe", &Wish::default());
    let plan = plan_for(&model, &[97 * GIB], Strategy::Auto);
    assert!(plan.check.fits && within_budgets(&plan));
    assert_eq!(plan.placement.routed_expert_bytes_on_host, Bytes(0));
    assert!(!plan.args.iter().any(|word| word == "-ot"), "{:?}", plan.args);
}

#[test]
fn experts_move_to_the_host_until_it_fits_and_no_further() {
    for (name, budget) in [("phi-3.5-moe", 24), ("gpt-oss-20b", 8), ("qwen3-30b-a3b", 8), ("mixtral-8x7b", 12)] {
        let model = model(name, &Wish::default());
        let plan = plan_for(&model, &[budget * GIB], Strategy::Auto);
        assert!(plan.check.fits && within_budgets(&plan), "{name}");
        assert!(plan.placement.routed_expert_bytes_on_host > Bytes(0), "{name}");
        let whole = plan_for(&model, &[budget * GIB], Strategy::FirstN);
        assert!(whole.check.fits && within_budgets(&whole), "{name}");
        assert!(
            plan.placement.routed_expert_bytes_on_devices >= whole.placement.routed_expert_bytes_on_devices,
            "{name}: single tensors only add"
        );
        // The smallest routed-expert tensor still on the host would not have fitted as well.
        let spare = plan.machine.devices[0].total.0 - plan.check.memory["CUDA0"].total.0 - plan.margin.0;
        let smallest = model.tensors.iter().filter(|tensor| tensor.name.ends_with("_exps.weight")).map(|t| t.bytes.0);
        assert!(spare < smallest.max().unwrap(), "{name}: {spare} bytes left idle");
    }
}

#[test]
fn too_small_a_budget_is_a_whole_plan_with_its_shortfall() {
    let model = model("phi-3.5-moe", &Wish::default());
    let plan = plan_for(&model, &[800 * MIB], Strategy::Auto);
    assert!(!plan.check.fits);
    assert!(plan.check.shortfall["CUDA0"] > Bytes(0));
    assert!(plan.command.contains("-ot"), "the command is there all the same: {}", plan.command);
}

#[test]
fn several_devices_share_the_layers_and_each_keeps_its_budget() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    for budgets in [&[8 * GIB, 4 * GIB][..], &[24 * GIB, 12 * GIB], &[3 * GIB, 3 * GIB, 3 * GIB]] {
        let plan = plan_for(&model, budgets, Strategy::Auto);
        assert!(plan.check.fits && within_budgets(&plan), "{budgets:?}: {:?}", plan.check.memory);
        assert!(plan.args.iter().any(|word| word == "-ts"), "{:?}", plan.args);
    }
}

#[test]
fn the_largest_context_fits_and_the_next_does_not() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let ask = |context, strategy| {
        let request = Request { context, ..request(strategy) };
        plan::plan(&model, "model.gguf", &machine(&[4 * GIB]), &request).unwrap()
    };
    let largest = ask(ContextChoice::Max, Strategy::Auto);
    assert!(largest.check.fits);
    let n_ctx = largest.check.run.n_ctx;
    assert!((8192..40960).contains(&n_ctx), "{n_ctx}");
    // Beyond it, dense tensors would have to leave as well.
    assert!(!ask(ContextChoice::Fixed(n_ctx + 256), Strategy::ExpertsOnHost).check.fits);
}

#[test]
fn a_rule_of_the_user_is_kept() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let mut request = request(Strategy::Auto);
    let words = ["llama-server", "-ot", r"blk\.4[0-7]\.ffn_down_exps=CPU"].map(str::to_string);
    request.run = moeplan::run::parse::command(&words, &std::collections::BTreeMap::new()).unwrap().run;
    let plan = plan::plan(&model, "model.gguf", &machine(&[12 * GIB]), &request).unwrap();
    assert!(plan.check.fits && within_budgets(&plan));
    let at = plan.args.iter().position(|word| word == "-ot").unwrap();
    assert!(plan.args[at + 1].starts_with(r"blk\.4[0-7]\.ffn_down_exps=CPU,"), "{}", plan.args[at + 1]);
}

#[test]
fn the_document_names_its_schema_and_carries_the_check() {
    let model = model("olmoe-1b-7b", &Wish { tiny: true, ..Wish::default() });
    let json = serde_json::to_value(plan_for(&model, &[GIB], Strategy::Auto)).unwrap();
    assert_eq!(json["schema"], "moeplan/plan/1");
    for key in ["model", "machine", "args", "command", "placement", "memory", "fits", "shortfall", "run", "overrides"] {
        assert!(!json[key].is_null(), "{key}");
    }
    assert_eq!(json["machine"]["devices"][0]["name"], "CUDA0");
    assert!(Path::new(json["model"]["path"].as_str().unwrap()).ends_with("model.gguf"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if std::env::var_os("MOEPLAN_FULL").is_some() { 2000 } else { 60 }, ..ProptestConfig::default() })]
    /// Whatever the machine: a plan that says it fits is within every budget, and one that does not says by how much.
    #[test]
    fn a_plan_never_exceeds_a_budget(
        which in 0usize..4,
        budgets in proptest::collection::vec(256u64..6000, 1..4),
        strategy in prop_oneof![Just(Strategy::Auto), Just(Strategy::FirstN), Just(Strategy::ExpertsOnHost)],
    ) {
        thread_local! {
            static MODELS: Vec<Model> = ["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "mixtral-8x7b"]
                .iter().map(|name| model(name, &Wish { blocks: Some(8), ..Wish::default() })).collect();
        }
        let budgets: Vec<u64> = budgets.into_iter().map(|mib| mib * MIB).collect();
        let plan = MODELS.with(|models| plan_for(&models[which], &budgets, strategy));
        prop_assert_eq!(plan.check.fits, within_budgets(&plan));
        prop_assert_eq!(plan.check.fits, plan.check.shortfall.is_empty());
    }
}
