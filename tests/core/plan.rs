//! The planner on headers of known models: never over a budget, nothing left that would still fit, the replay holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use moeplan::bytes::{Bytes, GIB, MIB};
use moeplan::machine::cards::{CARDS, Card};
use moeplan::machine::{Device, Host, Machine};
use moeplan::memory::{self, overhead};
use moeplan::model::Model;
use moeplan::plan::rule_file;
use moeplan::plan::solver::{Levers, Objective, Strategy};
use moeplan::plan::sweep::{Sweep, sweep};
use moeplan::plan::{self, ContextChoice, Plan, Request, Turn};
use moeplan::run::{LoadMode, RunConfig, Target};
use moeplan::synth::Wish;
use moeplan::{checkup, fit, placement, run};
use proptest::prelude::*;

use crate::support::is_full;
use crate::support::planning::{machine, model, request};

fn plan_for(model: &Model, budgets: &[u64], strategy: Strategy) -> Plan {
    plan::brief(model, "model.gguf", &machine(budgets), &request(strategy)).unwrap()
}

/// Every device within its budget less the margin, as the plan itself says it.
fn within_budgets(plan: &Plan) -> bool {
    plan.machine
        .devices
        .iter()
        .all(|device| plan.check.memory.get(&device.name).is_none_or(|row| row.counted() + plan.margin <= device.total))
}

#[test]
fn what_fits_whole_stays_whole() {
    let model = model("phi-3.5-moe", &Wish::default());
    let plan = plan_for(&model, &[97 * GIB], Strategy::Auto);
    assert!(plan.check.fits() && within_budgets(&plan));
    assert_eq!(plan.placement.routed_expert_bytes_on_host, Bytes(0));
    assert!(!plan.args.iter().any(|word| word == "-ot"), "{:?}", plan.args);
}

/// Of launches that generate equally fast, the one with the faster prompts is planned: where all is on the device, the micro-batch of a turn.
#[test]
fn the_other_speed_decides_between_equals() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let of = |objective, budget: u64| {
        with_levers(&model, &machine(&[budget * GIB]), |request| {
            (request.context, request.objective) = (ContextChoice::Fixed(8192), objective);
        })
    };
    for budget in [8, 12, 48] {
        let (tg, turn, pp) = (of(Objective::Tg, budget), of(Objective::Turn, budget), of(Objective::Pp, budget));
        assert!(tg.speed.tg >= turn.speed.tg * 0.999, "{budget}");
        assert!(pp.speed.pp >= turn.speed.pp * 0.99, "{budget}");
        if budget == 48 {
            assert_eq!(tg.check.run.n_ubatch, turn.check.run.n_ubatch);
            assert!(tg.check.run.n_ubatch > 512);
        }
        assert!(tg.check.run.n_ubatch >= 512, "{budget}: {}", tg.check.run.n_ubatch);
    }
}

/// Rules that fill devices are carried out for one launch: with the overrides that they gave, another context is not what they would give.
#[test]
fn rules_that_fill_show_no_other_contexts() {
    let (model, machine) = (model("qwen3-30b-a3b", &Wish::default()), machine(&[12 * GIB]));
    let request = Request { context: ContextChoice::Fixed(8192), ..request(Strategy::Auto) };
    let without = plan::plan(&model, "model.gguf", &machine, &request).unwrap();
    assert!(without.ladder.len() > 1);
    let (name, text) = rule_file::BUILT_IN.into_iter().find(|(name, _)| *name == "last-blocks").unwrap();
    let file = rule_file::parse(name, text).unwrap();
    let chosen = plan::solve(&model, &machine, &request).unwrap().run;
    let (pinned, _) = rule_file::pinned(&file, &model, &machine, &request, chosen).unwrap();
    let plan = plan::plan(&model, "model.gguf", &machine, &pinned).unwrap();
    assert!(plan.check.fits() && plan.ladder.is_empty(), "{:?}", plan.ladder);
}

#[test]
fn a_turn_that_the_context_does_not_hold_is_told() {
    let model = model("gpt-oss-20b", &Wish::default());
    let told = |context, slots, turn: Turn| {
        let run = RunConfig { n_parallel: Some(slots), ..RunConfig::default() };
        let request = Request { context, run, turn, ..request(Strategy::Auto) };
        let plan = plan::brief(&model, "model.gguf", &machine(&[24 * GIB]), &request).unwrap();
        let warning = plan.warnings.into_iter().find(|warning| warning.code == "turn-beyond-context");
        warning.map(|warning| warning.hint)
    };
    let usual = Turn::default();
    assert!(told(ContextChoice::Fixed(4096), 1, usual).unwrap().starts_with("-c 4608 has room"));
    assert!(told(ContextChoice::Fixed(8192), 2, usual).unwrap().starts_with("-c 9216 has room"));
    assert!(told(ContextChoice::Auto, 1, Turn { depth: 200_000, ..usual }).unwrap().starts_with("--prompt"));
    for context in [ContextChoice::Fixed(4608), ContextChoice::Auto, ContextChoice::Max] {
        assert_eq!(told(context, 1, usual), None);
    }
    assert_eq!(told(ContextChoice::Auto, 2, usual), None);
}

#[test]
fn a_context_that_nobody_asked_for_and_is_short_is_told() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let told = |context, slots, gib: u64| {
        let run = RunConfig { n_parallel: Some(slots), ..RunConfig::default() };
        let request = Request { context, run, ..request(Strategy::Auto) };
        let plan = plan::brief(&model, "model.gguf", &machine(&[gib * GIB]), &request).unwrap();
        let warning = plan.warnings.into_iter().find(|warning| warning.code == "short-context");
        warning.map(|warning| format!("{} | {}", warning.message, warning.hint))
    };
    let short = told(ContextChoice::Auto, 8, 24).unwrap();
    assert!(
        short.starts_with("each of the 8 slots has ") && short.ends_with("| -c 65536 plans for 8,192 in each slot"),
        "{short}"
    );
    assert_eq!([told(ContextChoice::Auto, 1, 8), told(ContextChoice::Fixed(36_864), 8, 24)], [None, None]);
}

/// llama.cpp numbers RPC devices as `--rpc` names their servers, so those after one that is left out move up.
#[test]
fn a_server_without_use_is_not_named() {
    let model = model("gpt-oss-20b", &Wish::default());
    for (devices, named, warned) in [
        (["RPC0[a:1]=200M", "RPC1[b:2]=24G"], "--rpc b:2 -dev RPC0", 1),
        (["RPC0[b:2]=24G", "RPC1[a:1]=200M"], "--rpc b:2 -dev RPC0", 1),
        (["RPC0[a:1]=8G", "RPC1[b:2]=8G"], "--rpc a:1,b:2 -dev RPC0,RPC1", 0),
        (["RPC0[a:1]=200M", "CUDA0=24G"], "-dev CUDA0", 1),
    ] {
        let devices = devices.map(|text| Device::parse(text).unwrap()).to_vec();
        let machine = Machine::new(devices, Host::default()).unwrap();
        let plan = plan::plan(&model, "model.gguf", &machine, &request(Strategy::Auto)).unwrap();
        let line = plan.args.join(" ");
        assert!(plan.check.fits() && line.contains(named), "{line}");
        assert_eq!(line.contains("-ts "), named.contains(",RPC1"), "{line}");
        assert_eq!(line.contains("--rpc"), named.contains("--rpc"), "{line}");
        assert_eq!(plan.warnings.iter().filter(|warning| warning.code == "server-not-used").count(), warned);
    }
}

#[test]
fn a_card_without_use_is_told() {
    let model = model("gpt-oss-20b", &Wish::default());
    for (budgets, told) in [([24, 12], 1), ([8, 8], 0)] {
        let plan = plan_for(&model, &budgets.map(|gib| gib * GIB), Strategy::Auto);
        let warnings = plan.warnings.iter().filter(|warning| warning.code == "device-not-used");
        assert_eq!(warnings.filter(|warning| warning.message.starts_with("CUDA1 ")).count(), told, "{budgets:?}");
    }
}

/// 831 tokens/s of an 8B model's prompts are published (llama.cpp PR 7716).
#[test]
fn a_p40_is_as_fast_as_published() {
    let card = Device { description: Some("Tesla P40".into()), ..Device::parse("CUDA0=22G").unwrap() };
    let machine = Machine::new(vec![card], Host { ram: Some(Bytes(256 * GIB)), ..Host::default() }).unwrap();
    let request = request(Strategy::Auto);
    let request = Request {
        run: RunConfig { n_ubatch: 512, ..request.run },
        turn: Turn { prompt: 2048, ..Turn::default() },
        context: ContextChoice::Fixed(8192),
        ..request
    };
    let plan = plan::brief(&model("llama-3.1-8b", &Wish::default()), "model.gguf", &machine, &request).unwrap();
    assert!((700.0..1000.0).contains(&plan.speed.pp), "{}", plan.speed.pp);
}

#[test]
fn experts_move_to_the_host_until_it_fits_and_no_further() {
    for (name, budget) in [("phi-3.5-moe", 24), ("gpt-oss-20b", 8), ("qwen3-30b-a3b", 8), ("mixtral-8x7b", 12)] {
        let model = model(name, &Wish::default());
        let plan = plan_for(&model, &[budget * GIB], Strategy::Auto);
        assert!(plan.check.fits() && within_budgets(&plan), "{name}");
        assert!(plan.placement.routed_expert_bytes_on_host > Bytes(0), "{name}");
        let whole = plan_for(&model, &[budget * GIB], Strategy::FirstN);
        assert!(whole.check.fits() && within_budgets(&whole), "{name}");
        assert!(
            plan.placement.routed_expert_bytes_on_devices >= whole.placement.routed_expert_bytes_on_devices,
            "{name}: single tensors only add"
        );
        // The smallest routed-expert tensor still on the host would not have fitted as well.
        let spare = plan.machine.devices[0].total.0 - plan.check.memory["CUDA0"].counted().0 - plan.margin.0;
        let smallest = model.tensors.iter().filter(|tensor| tensor.name.ends_with("_exps.weight")).map(|t| t.bytes.0);
        assert!(spare < smallest.max().unwrap(), "{name}: {spare} bytes left idle");
    }
}

#[test]
fn too_small_a_budget_is_a_whole_plan_with_its_shortfall() {
    let model = model("phi-3.5-moe", &Wish::default());
    let plan = plan_for(&model, &[800 * MIB], Strategy::Auto);
    assert!(!plan.check.fits());
    assert!(plan.check.shortfall["CUDA0"] > Bytes(0));
    assert!(plan.command.contains("-ngl 0"), "the command is there all the same: {}", plan.command);
}

#[test]
fn several_devices_share_the_layers_and_each_keeps_its_budget() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    for budgets in [&[8 * GIB, 4 * GIB][..], &[24 * GIB, 12 * GIB], &[3 * GIB, 3 * GIB, 3 * GIB]] {
        let plan = plan_for(&model, budgets, Strategy::Auto);
        assert!(plan.check.fits() && within_budgets(&plan), "{budgets:?}: {:?}", plan.check.memory);
        // What fits one card stays there, without a split.
        let used = plan.check.memory.keys().filter(|name| name.starts_with("CUDA")).count();
        assert_eq!(plan.args.iter().any(|word| word == "-ts"), used > 1, "{:?}", plan.args);
        assert!(used > 1 || budgets[0] == 24 * GIB, "{:?}", plan.args);
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
    assert!(largest.check.fits());
    let n_ctx = largest.check.run.n_ctx;
    assert!((8192..40960).contains(&n_ctx), "{n_ctx}");
    // Beyond it, dense tensors would have to leave as well.
    assert!(!ask(ContextChoice::Fixed(n_ctx + 256), Strategy::ExpertsOnHost).check.fits());
}

#[test]
fn a_rule_of_the_user_is_kept() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let mut request = request(Strategy::Auto);
    let words = ["llama-server", "-ot", r"blk\.4[0-7]\.ffn_down_exps=CPU"].map(str::to_string);
    request.run = run::parse::command(&words, &BTreeMap::new()).unwrap().run;
    let plan = plan::plan(&model, "model.gguf", &machine(&[12 * GIB]), &request).unwrap();
    assert!(plan.check.fits() && within_budgets(&plan));
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

fn with_levers(model: &Model, machine: &Machine, change: impl Fn(&mut Request)) -> Plan {
    let mut request = Request { levers: Levers::unasked(), ..request(Strategy::Auto) };
    change(&mut request);
    plan::brief(model, "model.gguf", machine, &request).unwrap()
}

#[test]
fn what_is_left_to_the_planner_makes_a_turn_faster() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let machine = machine(&[8 * GIB]);
    let chosen = with_levers(&model, &machine, |_| {});
    let plain = plan_for(&model, &[8 * GIB], Strategy::Auto);
    assert!(chosen.check.fits() && within_budgets(&chosen));
    assert!(chosen.turn_seconds < 0.8 * plain.turn_seconds, "{} and {}", chosen.turn_seconds, plain.turn_seconds);
    assert!(chosen.check.run.n_ubatch > 512 && chosen.check.run.load_mode == LoadMode::None, "{:?}", chosen.args);
    // For generation alone, a larger micro-batch only takes room from the experts.
    let generation = with_levers(&model, &machine, |request| request.objective = Objective::Tg);
    assert!(generation.check.run.n_ubatch <= chosen.check.run.n_ubatch, "{:?}", generation.args);
    assert!(generation.speed.tg >= chosen.speed.tg);
    // What serves eight at once best is no slower at it than what serves one best.
    let [turn, throughput] = [Objective::Turn, Objective::Throughput].map(|objective| {
        let plan = with_levers(&model, &machine, |request| {
            (request.objective, request.run.n_parallel) = (objective, Some(8));
        });
        assert!(plan.check.fits() && within_budgets(&plan));
        plan
    });
    let seconds = |plan: &Plan| plan.speed.together.unwrap().turn_seconds;
    assert!(seconds(&throughput) <= seconds(&turn) * 1.005, "{:?} {:?}", throughput.args, turn.args);
    assert!(turn.turn_seconds <= throughput.turn_seconds * 1.005, "{:?} {:?}", throughput.args, turn.args);
}

#[test]
fn what_the_user_set_is_never_changed() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let plan = with_levers(&model, &machine(&[8 * GIB]), |request| {
        request.run =
            RunConfig { n_ubatch: 1024, load_mode: LoadMode::Mmap, n_threads: Some(3), ..RunConfig::default() };
        request.levers = Levers { ubatch: false, load_mode: false, threads: false, ..Levers::unasked() };
    });
    for words in [["-ub", "1024"], ["-lm", "mmap"], ["-t", "3"]] {
        assert!(plan.args.windows(2).any(|pair| pair == words), "{words:?} in {:?}", plan.args);
    }
}

#[test]
fn main_memory_is_a_limit_with_what_the_process_needs() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let with_ram = |ram: u64| {
        let mut machine = machine(&[8 * GIB]);
        machine.host.ram = Some(Bytes(ram));
        with_levers(&model, &machine, |_| {})
    };
    let roomy = with_ram(64 * GIB);
    assert!(roomy.check.fits() && !roomy.args.iter().any(|word| word == "--cache-ram"), "{:?}", roomy.args);
    let (table, needs) = (roomy.check.memory["Host"].counted(), roomy.check.host_needs);
    // With so much main memory the system is left as much.
    assert!(table > Bytes(10 * GIB) && needs.reserve > Bytes(4 * GIB), "{table} {needs:?}");
    let tight = with_ram((table + needs.least()).0 + 512 * MIB);
    assert!(tight.check.fits() && tight.check.run.load_mode == LoadMode::None, "{:?}", tight.args);
    let at = tight.args.iter().position(|word| word == "--cache-ram").unwrap();
    let cache = Bytes::mib(tight.args[at + 1].parse().unwrap());
    let held = tight.check.memory["Host"].counted() + tight.check.host_needs.least();
    assert!(held + cache <= tight.machine.host.ram.unwrap(), "{held} and {:?}", tight.args);
    assert!(tight.warnings.iter().any(|warning| warning.code == "prompt-cache"));
    let short = with_ram(table.0 - GIB);
    assert!(!short.check.fits() && short.check.run.load_mode != LoadMode::None, "{:?}", short.args);
    assert!(short.warnings.iter().any(|warning| warning.code == "disk-bound"));
}

/// One rule: what a plan says of main memory is what a check of its command says.
#[test]
fn a_check_of_the_planned_command_has_the_same_account_of_main_memory() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    for (ram, load_mode) in [(59, None), (24, None), (20, Some(LoadMode::None)), (18, None), (16, None), (12, None)] {
        let mut machine = machine(&[8 * GIB]);
        machine.host.ram = Some(Bytes(ram * GIB));
        let plan = with_levers(&model, &machine, |request| {
            request.context = ContextChoice::Fixed(32_768);
            if let Some(load_mode) = load_mode {
                (request.run.load_mode, request.levers.load_mode) = (load_mode, false);
            }
        });
        let words = shlex::split(&plan.command).unwrap();
        let command = run::parse::command(&words, &BTreeMap::new()).unwrap();
        let options = checkup::Options { margin: plan.margin, ..checkup::Options::default() };
        let check = checkup::check(&model, &machine, &command, options).unwrap();
        assert_eq!((check.shortfall, check.budget), (plan.check.shortfall, plan.check.budget), "{ram}");
        assert_eq!(check.host_needs, plan.check.host_needs, "{ram}");
        // What is pinned leaves room for the system.
        let pinned = plan.check.host_needs.pinned;
        assert!(!plan.check.fits.unwrap_or(false) || pinned < Bytes(ram * GIB / 8 * 7), "{ram}: {pinned}");
    }
}

#[test]
fn metal_reads_the_file_where_that_saves_memory() {
    let model = model("gpt-oss-20b", &Wish::default());
    let mode = |size: &str| {
        let host = Host { ram: Some(Bytes(64 * GIB)), ..Host::default() };
        let machine = Machine::new(vec![Device::parse(size).unwrap()], host).unwrap();
        let plan = with_levers(&model, &machine, |_| {});
        assert!(plan.check.fits(), "{size}: {:?}", plan.check.shortfall);
        plan.check.run.load_mode
    };
    assert_eq!(mode("MTL0=8G"), LoadMode::None);
    assert_ne!(mode("MTL0=48G"), LoadMode::None);
    // Where it does not fit, the map that Metal would hold beside the host is not counted as missing.
    let host = Host { ram: Some(Bytes(12 * GIB)), ..Host::default() };
    let machine = Machine::new(vec![Device::parse("MTL0=8G").unwrap()], host).unwrap();
    let short = with_levers(&model, &machine, |_| {}).check.shortfall;
    assert!(short["Host"] > Bytes(0) && short["Host"] < Bytes(5 * GIB), "{short:?}");
}

#[test]
fn what_fitting_would_choose_is_beside_the_plan() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let asked = Request { levers: Levers::unasked(), ..request(Strategy::Auto) };
    let plan = plan::plan(&model, "model.gguf", &machine(&[12 * GIB]), &asked).unwrap();
    let choice = plan.fit_choice.unwrap();
    assert_eq!((choice.n_ctx, choice.failure), (plan.check.run.n_ctx, None));
    assert_eq!(choice.launch.args[..2], ["-c".to_string(), choice.n_ctx.to_string()]);
    // It leaves 1024 MiB free and a micro-batch of 512: the plan is faster.
    assert!(choice.launch.fits && choice.launch.turn_change > 0.0, "{:?}", choice.launch);
    let words = ["llama-server", "-fit", "off", "-np", "1"].map(str::to_string).into_iter().chain(choice.launch.args);
    let run = run::parse::command_for(&words.collect::<Vec<_>>(), &BTreeMap::new(), asked.run.target).unwrap().run;
    let forecast = memory::forecast(&model, &machine(&[12 * GIB]), &run).unwrap();
    assert_eq!(checkup::Row::table(&forecast), choice.launch.memory);
}

#[test]
fn dense_parts_leave_only_when_no_expert_is_left() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(12), ..Wish::default() });
    let plan = with_levers(&model, &machine(&[1900 * MIB]), |_| {});
    assert!(plan.check.fits(), "{:?}", plan.check.shortfall);
    let dense = with_levers(&model, &machine(&[1400 * MIB]), |_| {});
    assert_eq!(dense.placement.routed_expert_bytes_on_devices, Bytes(0));
    let on_device = |plan: &Plan| plan.check.memory["CUDA0"].model;
    assert!(dense.check.fits() && on_device(&dense) < on_device(&plan), "{:?}", dense.check.shortfall);
}

#[test]
fn an_explanation_is_of_launches_that_were_planned() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(16), ..Wish::default() });
    let plan = with_levers(&model, &machine(&[4 * GIB]), |request| request.explain = true);
    let find = |what: &str| plan.why.alternatives.iter().find(|other| other.what.contains(what)).unwrap();
    assert!(!find("one more block on CUDA0").fits, "or the plan would have it");
    assert!(find("one step less on CUDA0").fits);
    assert!(find("-lm mmap").turn_change > 0.0 && find("-ctk q8_0").fits);
    assert!(find("--moe-cache-mib").note.as_ref().unwrap().contains("needs b11480"));
    let sum: Bytes = plan.why.explain.iter().map(|term| term.bytes).sum();
    assert_eq!(sum, plan.check.memory["CUDA0"].counted() + plan.margin);
    assert!(plan.why.explain.iter().any(|term| term.fix.starts_with("-ub") && term.saves > Bytes(0)));
    // Of every card.
    let plan = with_levers(&model, &machine(&[3 * GIB, 2 * GIB]), |request| request.explain = true);
    for device in ["CUDA0", "CUDA1"] {
        let terms = plan.why.explain.iter().filter(|term| term.term.ends_with(&format!(" on {device}")));
        let sum: Bytes = terms.map(|term| term.bytes).sum();
        assert_eq!(sum, plan.check.memory[device].counted() + plan.margin, "{device}");
    }
}

#[test]
fn what_does_not_fit_comes_with_fixes_that_do() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(16), ..Wish::default() });
    let plan = with_levers(&model, &machine(&[4 * GIB]), |request| {
        request.context = ContextChoice::Fixed(131_072);
        request.strategy = Strategy::AllOnDevice;
    });
    assert!(!plan.check.fits());
    let fixes: Vec<&str> = plan.why.fixes.iter().map(|fix| fix.what.as_str()).collect();
    assert!(fixes.contains(&"--strategy auto") && fixes.len() <= 4, "{fixes:?}");
    assert!(plan.why.fixes.iter().all(|fix| fix.fits));
}

/// Behind a slow link, short prompts are computed on the processor, and long ones still on the card.
#[test]
fn short_prompts_stay_on_the_processor_behind_a_slow_link() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let behind = |gigabytes: u32, prompt: u32, n_ubatch: u32, build: u32| {
        let mut machine = machine(&[8 * GIB]);
        let rates = format!("{{\"pinned\": {gigabytes}, \"pageable\": {gigabytes}}}");
        machine.devices[0].rates = Some(serde_json::from_str(&rates).unwrap());
        with_levers(&model, &machine, |request| {
            request.context = ContextChoice::Fixed(16384);
            request.turn = Turn { prompt, ..Turn::default() };
            request.run.target.build = build;
            (request.run.n_ubatch, request.levers.ubatch) = (n_ubatch, false);
        })
    };
    let slow = behind(3, 300, 2048, 11434);
    let rows = slow.check.run.op_offload_min_batch.unwrap();
    assert!((512..=2048).contains(&rows) && slow.check.run.op_offload, "{rows}");
    assert_eq!(slow.environment["GGML_OP_OFFLOAD_MIN_BATCH"], rows.to_string());
    assert!(
        slow.command.starts_with(&format!("GGML_OP_OFFLOAD_MIN_BATCH={rows} llama-server -m ")),
        "{}",
        slow.command
    );
    assert!(slow.check.fits() && slow.warnings.iter().any(|warning| warning.code == "offload-from"));
    // Every other case has no use for it: a long prompt, a fast link, a micro-batch that never pays, a build that does not read it.
    for plan in [behind(3, 16000, 2048, 11434), behind(60, 300, 2048, 11434), behind(3, 300, 128, 11434)] {
        assert_eq!(plan.check.run.op_offload_min_batch, None, "{}", plan.command);
    }
    let older = behind(3, 300, 2048, 7000);
    assert!(older.environment.is_empty() && older.turn_seconds > slow.turn_seconds * 0.99, "{}", older.command);
}

/// The graph that is reserved has a micro-batch's rows: a threshold beyond them keeps the host's experts out of the device's buffer.
#[test]
fn a_threshold_beyond_the_micro_batch_takes_no_room_for_copies() {
    let (model, machine) = (model("qwen3-30b-a3b", &Wish::default()), machine(&[24 * GIB]));
    let of = |words: &str| {
        let words: Vec<String> =
            format!("{words} -m x -ngl 99 -cmoe -c 8192 -fit off").split(' ').map(str::to_string).collect();
        let run = run::parse::command(&words, &BTreeMap::new()).unwrap().run;
        memory::forecast(&model, &machine, &run).unwrap().memory
    };
    let from = |rows: u32| of(&format!("GGML_OP_OFFLOAD_MIN_BATCH={rows} llama-server"));
    let (usual, never) = (of("llama-server"), of("llama-server --no-op-offload"));
    assert!(usual["CUDA0"].compute > never["CUDA0"].compute);
    assert_eq!([from(33), from(512), from(513), from(4096)], [usual.clone(), usual, never.clone(), never]);
}

#[test]
fn a_build_with_an_expert_cache_has_a_plan_with_it_beside() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(16), ..Wish::default() });
    let target = Target { build: 11549, ..Target::default() };
    let plan = with_levers(&model, &machine(&[4 * GIB]), |request| {
        (request.run.target, request.explain) = (target, true);
    });
    let cached = plan.why.alternatives.iter().find(|other| other.what.contains("--moe-cache-mib")).unwrap();
    assert!(cached.fits && cached.speed.tg > plan.speed.tg);
    assert!(cached.memory["CUDA0"].total.unwrap() + plan.margin <= Bytes(4 * GIB));
    assert!(cached.args.iter().any(|word| word == "--moe-cache-mib"));
    // One that gains nothing is not worth a row.
    let whole = with_levers(&model, &machine(&[24 * GIB]), |request| request.run.target = target);
    assert!(whole.why.alternatives.is_empty());
    // Two cores read the experts so slowly that the cache is worth its memory.
    let mut slow = machine(&[4 * GIB]);
    slow.host.cores = Some(2);
    let taken = with_levers(&model, &slow, |request| {
        (request.run.target, request.objective) = (target, Objective::Tg);
        request.levers.expert_cache = true;
    });
    assert!(taken.args.iter().any(|word| word == "--moe-cache-mib") && taken.check.fits() && within_budgets(&taken));
}

#[test]
fn more_room_is_never_slower() {
    let model = model("gpt-oss-20b", &Wish { blocks: Some(12), ..Wish::default() });
    let request = Request { levers: Levers::unasked(), ..request(Strategy::Auto) };
    let over: Sweep = "vram=2G..8G:1G".parse().unwrap();
    let document = sweep(&model, "model.gguf", &machine(&[GIB]), &request, (Some(&over.values), None)).unwrap();
    assert_eq!(document.points.len(), 7);
    for pair in document.points.windows(2) {
        assert!(pair[1].turn_seconds <= pair[0].turn_seconds * 1.02, "{} and {}", pair[0].label, pair[1].label);
        assert!(pair[1].fits);
    }
}

/// Models with routed experts and one without, in the types that they are mostly run in.
const TWELVE: [&str; 12] = [
    "dbrx-instruct",
    "deepseek-v2-lite",
    "deepseek-v3",
    "glm-4.5-air",
    "gpt-oss-120b",
    "gpt-oss-20b",
    "kimi-k2",
    "llama-3.1-8b",
    "mixtral-8x22b",
    "phi-3.5-moe",
    "qwen3-235b-a22b",
    "qwen3-30b-a3b",
];

/// A plan for the size on a card's box, on every card of that size: with the card's own overhead it ends below what an idle system
/// leaves of the card, so that `-fit off` does no harm.
#[test]
fn no_plan_overflows_a_card_of_its_size() {
    let judged: usize = std::thread::scope(|scope| {
        let threads: Vec<_> =
            TWELVE.into_iter().enumerate().map(|(at, name)| scope.spawn(move || judged_cards(at, name))).collect();
        threads.into_iter().map(|thread| thread.join().expect("plans that fit")).sum()
    });
    assert!(judged >= if is_full() { 300 } else { 100 }, "{judged} cards were judged");
}

/// How many cards a model's plans were held to, of each third size unless all is asked for; `at` alternates the context.
fn judged_cards(at: usize, name: &str) -> usize {
    let nvidia = || CARDS.iter().filter(|card| card.is_nvidia());
    let sizes: BTreeSet<u32> = nvidia().flat_map(|card| card.sold.iter().map(|sold| sold.gb)).collect();
    let model = model(name, &Wish::default());
    let mut judged = 0;
    for (nth, gb) in sizes.iter().enumerate().filter(|(nth, _)| is_full() || (at + nth).is_multiple_of(3)) {
        let host = Host { ram: Some(Bytes(1024 * GIB)), cores: Some(16), ..Host::default() };
        let device = Device::parse(&format!("CUDA0={gb}G")).unwrap();
        assert_eq!(device.sold_as, Some(*gb));
        let machine = Machine::new(vec![device], host).unwrap();
        let long = model.hparams.context_length.min(65_536);
        let context = if (at + nth).is_multiple_of(2) { ContextChoice::Auto } else { ContextChoice::Fixed(long) };
        let plan = with_levers(&model, &machine, |request| request.context = context);
        assert!(plan.args.ends_with(&["-fit".to_string(), "off".to_string()]), "{:?}", plan.args);
        let words: Vec<String> = ["llama-server".to_string()].into_iter().chain(plan.args.iter().cloned()).collect();
        let launch = run::parse::command(&words, &BTreeMap::new()).unwrap().run;
        let placement = placement::place(&model, &machine, &launch).unwrap();
        let row = plan.check.memory["CUDA0"];
        let of_size =
            |card: &'static Card| card.sold.iter().filter(|sold| sold.gb == *gb).map(move |sold| (card, sold));
        for (card, sold) in nvidia().flat_map(of_size).filter(|_| plan.check.fits()) {
            let device = Device { description: Some(card.words.to_string()), ..machine.devices[0].clone() };
            let overhead = overhead::held(&device, 0, &model, &launch, &placement).peak;
            let total = Bytes(row.total.unwrap().0 - row.overhead.unwrap().0) + overhead;
            let offered = sold.offers();
            assert!(total <= offered, "{name} for {gb}G on {} ({}): {total} of {offered}", card.words, sold.system);
            judged += 1;
        }
    }
    judged
}

/// Reports tell of launches on 8 GB P104-100 that loaded and answered prompts, with 84 to 160 MiB beyond llama.cpp's own sum. Five like
/// them: a card of which nothing is known could not hold them.
#[test]
fn launches_that_fill_an_8_gb_pascal_card_fit() {
    for (name, flags) in [
        ("gpt-oss-120b", "-ncmoe 34"),
        ("gpt-oss-20b", "-ncmoe 12"),
        ("qwen3-30b-a3b", "-ncmoe 40"),
        ("deepseek-v2-lite", "-ncmoe 20"),
        ("llama-3.1-8b", ""),
    ] {
        let model = model(name, &Wish::default());
        let on = |description: Option<&str>, n_ctx: u32| {
            let device =
                Device { description: description.map(str::to_string), ..Device::parse("CUDA0=8109M").unwrap() };
            let machine = Machine::new(vec![device], Host::default()).unwrap();
            let line = format!("llama-server -ngl 99 -np 1 -fit off -c {n_ctx} {flags}");
            let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
            let command = run::parse::command(&words, &BTreeMap::new()).unwrap();
            let check = checkup::check(&model, &machine, &command, checkup::Options::default()).unwrap();
            (check.fits(), check.memory["CUDA0"])
        };
        let fills = |n_ctx: &u32| {
            let row = on(None, *n_ctx).1;
            row.total.unwrap().0 - row.overhead.unwrap().0 >= Bytes::mib(7400).0
        };
        let n_ctx = (1..512).map(|n| n * 2048).find(fills).expect("a context that fills the card");
        let ((unknown, _), (known, row)) = (on(None, n_ctx), on(Some("NVIDIA P104-100"), n_ctx));
        assert!(!unknown && known, "{name} -c {n_ctx}: {row:?}");
        assert!((Bytes::mib(84)..Bytes::mib(200)).contains(&row.overhead.unwrap()), "{name}: {:?}", row.overhead);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if is_full() { 10_000 } else { 40 }, ..ProptestConfig::default() })]
    /// Whatever the machine: a plan that says it fits is within every budget, and one that does not says by how much.
    #[test]
    fn a_plan_never_exceeds_a_budget(
        which in 0usize..4,
        budgets in proptest::collection::vec(256u64..6000, 1..4),
        strategy in prop_oneof![Just(Strategy::Auto), Just(Strategy::FirstN), Just(Strategy::ExpertsOnHost)],
        chosen in any::<bool>(),
    ) {
        thread_local! {
            static MODELS: Vec<Model> = ["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "mixtral-8x7b"]
                .iter().map(|name| model(name, &Wish { blocks: Some(8), ..Wish::default() })).collect();
        }
        let budgets: Vec<u64> = budgets.into_iter().map(|mib| mib * MIB).collect();
        let levers = if chosen { Levers::unasked() } else { Levers::default() };
        let request = Request { levers, ..request(strategy) };
        let plan = MODELS.with(|models| plan::brief(&models[which], "model.gguf", &machine(&budgets), &request).unwrap());
        prop_assert_eq!(plan.check.fits(), within_budgets(&plan));
        prop_assert_eq!(plan.check.fits(), plan.check.shortfall.is_empty());
    }
}

/// A device whose layers are fewer than what fitting takes of it: llama.cpp's counts are unsigned and go round.
#[test]
fn fitting_takes_layers_that_a_device_does_not_have() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(3), ..Wish::default() });
    let machine = machine(&[3594, 1982, 2686].map(|mib| mib * MIB));
    let run = RunConfig { n_ctx: 8192, ..RunConfig::default() };
    let fitted = fit::fitted(&model, &machine, &run).unwrap();
    // Three blocks and the output, whatever the shares are.
    assert_eq!((fitted.failure, fitted.run.n_gpu_layers), (None, 4));
}
