//! The model of speed: its terms move as the machine would.

use std::sync::LazyLock;

use super::*;
use crate::bytes::Bytes;
use crate::machine::{Backend, Device, Host};
use crate::memory;
use crate::run::{LoadMode, Override, Program, Target};
use crate::synth::Wish;

fn model(name: &str) -> Model {
    crate::synth::model(name, &Wish::default()).unwrap()
}

fn machine(description: &str) -> Machine {
    let card = Device { description: Some(description.into()), ..Device::parse("CUDA0=80G").unwrap() };
    let host = Host { ram: Some(Bytes::mib(128 << 10)), cores: Some(16), threads: Some(16), ..Host::default() };
    Machine::new(vec![card], host).unwrap()
}

/// A launch with the experts of the first `blocks` blocks on the host.
fn hosted(blocks: u32) -> RunConfig {
    let pattern = |block| format!(r"blk\.{block}\.ffn_(up|down|gate|gate_up)_(ch|)exps");
    let entry = |block| Override { pattern: pattern(block), buffer: "CPU".into(), origin: "-ncmoe".into() };
    let overrides = (0..blocks).map(entry).collect();
    RunConfig { program: Program::Bench, n_ctx: 40960, n_gpu_layers: 99, overrides, ..RunConfig::default() }
}

/// Predicts a launch, placed and sized by the library itself.
fn estimate(model: &Model, machine: &Machine, run: &RunConfig, turn: Turn) -> Estimate {
    let forecast = &memory::forecast(model, machine, run).unwrap();
    predict(&Case { model, machine, run, placement: &forecast.placement, forecast }, turn)
}

const TURN: Turn = Turn { prompt: 4096, generate: 512, depth: 0, acceptance: None };

#[test]
fn a_turn_is_the_sum_of_its_terms() {
    let (model, machine) = (model("qwen3-30b-a3b"), machine("NVIDIA GeForce RTX 3090"));
    for run in [hosted(0), hosted(24), RunConfig { load_mode: LoadMode::None, ..hosted(48) }] {
        let estimate = estimate(&model, &machine, &run, TURN);
        let sum: f64 = estimate.terms.iter().map(|term| term.seconds).sum();
        assert!((sum / estimate.turn_seconds - 1.0).abs() < 1e-9, "{estimate:?}");
        let seconds = 4096.0 / estimate.speed.pp + 512.0 / estimate.speed.tg;
        assert!((seconds / estimate.turn_seconds - 1.0).abs() < 1e-9);
        assert!(estimate.terms.iter().all(|term| term.seconds > 0.0 && !term.what.starts_with("other work")));
    }
}

/// Each change of a launch, and whether prompts and generation gain (1), lose (-1) or stay (0).
#[test]
fn terms_move_as_the_machine_would() {
    let (model, machine) = (model("qwen3-30b-a3b"), machine("NVIDIA GeForce RTX 3090"));
    let base = || RunConfig { n_threads: Some(8), ..hosted(24) };
    let q8_0 = crate::gguf::GgmlType::from_name("q8_0").unwrap();
    let cases: [(&str, RunConfig, RunConfig, [i8; 2]); 8] = [
        ("more blocks on the host", base(), RunConfig { n_threads: Some(8), ..hosted(36) }, [-1, -1]),
        ("larger micro-batches", base(), RunConfig { n_ubatch: 2048, ..base() }, [1, 0]),
        ("pinned memory", base(), RunConfig { load_mode: LoadMode::None, ..base() }, [1, 0]),
        ("more threads", base(), RunConfig { n_threads: Some(16), ..base() }, [0, 1]),
        ("more threads than cores", base(), RunConfig { n_threads: Some(64), ..base() }, [0, -1]),
        ("products left on the host", base(), RunConfig { op_offload: false, ..base() }, [-1, 0]),
        ("batches below the micro-batch", base(), RunConfig { n_batch: 256, ..base() }, [-1, 0]),
        ("whole layers on the host", base(), RunConfig { n_gpu_layers: 20, overrides: vec![], ..base() }, [0, -1]),
    ];
    for (what, before, after, [pp, tg]) in cases {
        let of = |run: &RunConfig| estimate(&model, &machine, run, TURN).speed;
        let (before, after) = (of(&before), of(&after));
        for (phase, expected, before, after) in [("pp", pp, before.pp, after.pp), ("tg", tg, before.tg, after.tg)] {
            let ok = match expected {
                1 => after > before * 1.001,
                -1 => after < before * 0.999,
                _ => phase == "pp" && what.starts_with("whole") || (after / before - 1.0).abs() < 1e-3,
            };
            assert!(ok, "{what}: {phase} {before:.1} to {after:.1}");
        }
    }
    // A threshold leaves smaller parts of a prompt to the host, and larger ones to the device.
    let from = |rows| RunConfig { op_offload_min_batch: Some(rows), ..base() };
    let pp = |run, prompt| estimate(&model, &machine, &run, Turn { prompt, ..TURN }).speed.pp;
    let never = || RunConfig { op_offload: false, ..base() };
    for (rows, prompt, as_if) in
        [(513, 4096, never()), (512, 4096, base()), (32, 31, never()), (256, 255, never()), (256, 256, base())]
    {
        assert!((pp(from(rows), prompt) - pp(as_if, prompt)).abs() < 1e-9, "{rows} {prompt}");
    }
    assert!(pp(from(256), 600) < pp(base(), 600) && pp(from(256), 600) > pp(never(), 600));
    // From one row on, each token copies what it uses.
    let tg = |run| estimate(&model, &machine, &run, TURN).speed.tg;
    assert!(tg(from(1)) < tg(base()) && tg(from(2)) >= tg(base()));
    // A quantized cache brings a few kernels more, which a long past outweighs.
    let deep = |run| estimate(&model, &machine, &run, Turn { depth: 32_768, ..TURN }).speed.tg;
    assert!(deep(RunConfig { type_k: q8_0, type_v: q8_0, ..base() }) > deep(base()) * 1.01);
}

#[test]
fn depth_costs_in_both_phases_and_less_where_windows_bound_it() {
    let machine = machine("NVIDIA GeForce RTX 3090");
    let [whole, windowed, _] = ["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite"].map(|name| {
        let model = model(name);
        let at = |depth| estimate(&model, &machine, &hosted(0), Turn { depth, ..TURN });
        let (shallow, deep) = (at(0), at(32768));
        assert!(deep.speed.pp < shallow.speed.pp && deep.speed.tg < shallow.speed.tg, "{name}: {shallow:?} {deep:?}");
        deep.turn_seconds - shallow.turn_seconds
    });
    // Half of GPT-OSS's 24 layers see 128 tokens; Qwen3 has 48 that see all.
    assert!(windowed < 0.7 * whole);
}

#[test]
fn what_does_not_fit_in_memory_comes_from_the_disk() {
    let (model, mut machine) = (model("qwen3-30b-a3b"), machine("NVIDIA GeForce RTX 3090"));
    let roomy = estimate(&model, &machine, &hosted(48), TURN);
    machine.host.ram = Some(Bytes::mib(8 << 10));
    let tight = estimate(&model, &machine, &hosted(48), TURN);
    assert!(tight.speed.tg < roomy.speed.tg / 2.0 && tight.speed.basis.contains("disk"), "{:?}", tight.speed);
    assert!(tight.terms.iter().any(|term| term.what.contains("disk")));
}

/// Windows pins half of main memory: what asks for more is copied as mapped files are.
#[test]
fn what_windows_does_not_pin_is_copied_as_pageable() {
    let (model, mut machine) = (model("qwen3-30b-a3b"), machine("NVIDIA GeForce RTX 3090"));
    let pp =
        |machine: &Machine, load_mode| estimate(&model, machine, &RunConfig { load_mode, ..hosted(48) }, TURN).speed.pp;
    let at = |machine: &mut Machine, gib: u64, windows| {
        (machine.host.ram, machine.host.windows) = (Some(Bytes::mib(gib << 10)), windows);
        [LoadMode::None, LoadMode::Mmap].map(|mode| pp(machine, mode))
    };
    let [pinned, pageable] = at(&mut machine, 31, false);
    assert!(pinned > pageable * 1.02, "{pinned} {pageable}");
    for (gib, windows, expected) in [(31, true, pageable), (64, true, pinned), (31, false, pinned)] {
        let found = at(&mut machine, gib, windows)[0];
        assert!((found / expected - 1.0).abs() < 1e-3, "{gib} {windows}: {found} {expected}");
    }
    // Buffers of 4 GiB are pinned one by one: 12 of 16.35 GiB with half of 31.
    (machine.host.ram, machine.host.windows) = (Some(Bytes::mib(31 << 10)), true);
    let target = Target { build: 12032, ..Target::default() };
    let run = RunConfig { load_mode: LoadMode::None, target, ..hosted(48) };
    let partly = estimate(&model, &machine, &run, TURN).speed.pp;
    assert!(partly > pageable * 1.01 && partly < pinned * 0.999, "{partly} of {pageable} to {pinned}");
}

#[test]
fn other_computers_do_not_take_over_the_hosts_products() {
    let model = model("qwen3-30b-a3b");
    let server = Device::parse("RPC0[h:1]=80G").unwrap();
    assert_eq!(server.backend, Backend::Rpc);
    let machine = Machine::new(vec![server], machine("").host).unwrap();
    let run = RunConfig { rpc: vec!["h:1".into()], ..hosted(24) };
    let estimate = estimate(&model, &machine, &run, TURN);
    assert!(estimate.terms.iter().any(|term| term.what == "products on the host"), "{:?}", estimate.terms);
}

#[test]
fn devices_take_turns_unless_micro_batches_fill_them_all() {
    let model = model("qwen3-30b-a3b");
    let mut machine = machine("NVIDIA GeForce RTX 3090");
    let one = estimate(&model, &machine, &hosted(0), TURN).speed;
    let second = Device { description: machine.devices[0].description.clone(), ..Device::parse("CUDA1=80G").unwrap() };
    machine.devices.push(second);
    let piped = estimate(&model, &machine, &hosted(0), TURN).speed;
    // Any override forbids it (`llama-context.cpp` `pipeline_parallel`), even one that changes nothing.
    let nothing = Override { pattern: "no_such".into(), buffer: "CPU".into(), origin: "-ot".into() };
    let in_turn = estimate(&model, &machine, &RunConfig { overrides: vec![nothing], ..hosted(0) }, TURN).speed;
    assert!(piped.pp > 1.4 * in_turn.pp, "{piped:?} {in_turn:?}");
    assert!((in_turn.pp / one.pp - 1.0).abs() < 0.02 && (piped.tg / one.tg - 1.0).abs() < 0.05, "{in_turn:?} {one:?}");
}

#[test]
fn an_expert_cache_speeds_generation_and_says_what_it_assumes() {
    let (model, machine) = (model("qwen3-30b-a3b"), machine("NVIDIA GeForce RTX 3090"));
    let plain = RunConfig { program: Program::Server, load_mode: LoadMode::None, ..hosted(48) };
    let of = |moe_cache_mib| estimate(&model, &machine, &RunConfig { moe_cache_mib, ..plain.clone() }, TURN).speed;
    let (none, small, large) = (of(0), of(2000), of(8000));
    assert!(none.tg < small.tg && small.tg < large.tg, "{none:?} {small:?} {large:?}");
    assert!(large.basis.contains("hit rate assumed") && large.uncertainty >= 0.5);
}

/// Published figures of Qwen3-30B-A3B with everything on the card, and the H100's own, against the table: within what it says of itself.
/// The prompts of the RTX 5090 (12,241) are left out: nobody says of which micro-batch.
#[test]
fn published_figures_are_within_the_tables_word() {
    let rows = [
        ("NVIDIA GeForce RTX 5090", Phase::Generate, 377.0),
        ("AMD Radeon PRO W7800", Phase::Prompt, 2797.0),
        ("AMD Radeon PRO W7800", Phase::Generate, 122.0),
        ("NVIDIA H100 80GB HBM3", Phase::Prompt, 6693.0),
        ("NVIDIA H100 80GB HBM3", Phase::Generate, 283.0),
    ];
    let model = model("qwen3-30b-a3b");
    for (card, phase, published) in rows {
        let turn = Turn { prompt: 2048, generate: 128, ..TURN };
        let predicted = estimate(&model, &machine(card), &hosted(0), turn).speed;
        let (found, _) = predicted.of(phase);
        let error = found / published - 1.0;
        assert!(error.abs() <= predicted.uncertainty, "{card} {phase:?}: {found:.0} for {published}");
    }
}

/// llama-bench on one H100 (16 threads of a Sapphire Rapids, b11434, random weights that route evenly).
const H100: &str = include_str!("../../testdata/measured/h100-bench.jsonl");

/// The rows as samples of the machine: amounts, which no rates enter.
static SAMPLES: LazyLock<Vec<fit::Sample>> = LazyLock::new(|| {
    let models = ["qwen3-30b-a3b", "gpt-oss-20b"].map(|name| (name, model(name)));
    let machine = machine("NVIDIA H100 80GB HBM3");
    let sample = |row: &samples::BenchRow| {
        let (_, model) = models.iter().find(|(name, _)| *name == row.model()).unwrap();
        row.sample(model, &machine).unwrap()
    };
    samples::rows(H100).unwrap().iter().map(sample).collect()
});

fn samples_of(model: &str) -> Vec<fit::Sample> {
    SAMPLES.iter().filter(|sample| sample.what.starts_with(model)).cloned().collect()
}

#[test]
fn calibrated_on_its_own_rows_half_of_them_are_within_a_tenth() {
    let machine = machine("NVIDIA H100 80GB HBM3");
    let fit = fit::fit(&machine, &SAMPLES, "calibrated").unwrap();
    for phase in [Phase::Prompt, Phase::Generate] {
        let median = fit::median_error(&fit.residuals, phase).unwrap();
        assert!(median < 0.08, "{phase:?}: {median}");
    }
    let rates = fit.machine.devices[0].rates.clone().unwrap();
    assert!((20.0..64.0).contains(&rates.pinned) && (4.0..14.0).contains(&rates.pageable), "{rates:?}");
    assert!((1000.0..4000.0).contains(&rates.weights), "{rates:?}");
}

/// The machine file that `moeplan devices --calibrate --from testdata/measured/h100-bench.jsonl` wrote.
#[test]
fn the_machine_file_of_the_h100_predicts_its_rows() {
    let machine: Machine = serde_json::from_str(include_str!("../../testdata/machines/h100.json")).unwrap();
    let prices = Prices::of(&machine, &[0]);
    assert!(prices.basis.starts_with("calibrated on 2026-11-22"), "{}", prices.basis);
    for phase in [Phase::Prompt, Phase::Generate] {
        let errors = errors(&prices, &SAMPLES, phase);
        assert!(errors[errors.len() / 2] < 0.06 && errors[errors.len() - 1] < 0.26, "{phase:?}: {errors:?}");
    }
}

/// The whole of a model on one H200 and on two, by the prices that another H200 told with two small models.
#[test]
fn a_model_larger_than_the_probes_is_predicted() {
    let rows = samples::rows(include_str!("../../testdata/measured/h200-full.jsonl")).unwrap();
    let mut machine: Machine = serde_json::from_str(include_str!("../../testdata/machines/h200-live.json")).unwrap();
    let second = Device { name: "CUDA1".into(), buffer: "CUDA1".into(), ..machine.devices[0].clone() };
    machine.devices.push(second);
    let prices = Prices::of(&machine, &[0, 1]);
    let model = model("qwen3-30b-a3b");
    let samples: Vec<fit::Sample> = rows.iter().map(|row| row.sample(&model, &machine).unwrap()).collect();
    for (phase, median) in [(Phase::Prompt, 0.15), (Phase::Generate, 0.2)] {
        let errors = errors(&prices, &samples, phase);
        assert!(errors[errors.len() / 2] < median && errors[errors.len() - 1] < 0.3, "{phase:?}: {errors:.2?}");
    }
}

/// How far off the predictions of a phase are, the smallest first.
fn errors(prices: &Prices, samples: &[fit::Sample], phase: Phase) -> Vec<f64> {
    let of_phase = samples.iter().filter(|sample| sample.phase == phase);
    let mut errors: Vec<f64> = of_phase.map(|s| (prices.seconds(&s.work) / s.seconds - 1.0).abs()).collect();
    errors.sort_by(f64::total_cmp);
    errors
}

/// What the constants are for: launches and models that were not measured.
#[test]
fn calibrated_on_one_model_the_other_is_predicted() {
    let machine = machine("NVIDIA H100 80GB HBM3");
    for (known, unknown) in [("qwen3-30b-a3b", "gpt-oss-20b"), ("gpt-oss-20b", "qwen3-30b-a3b")] {
        let calibrated = fit::fit(&machine, &samples_of(known), "calibrated").unwrap().machine;
        let prices = Prices::of(&calibrated, &[0]);
        for phase in [Phase::Prompt, Phase::Generate] {
            let errors = errors(&prices, &samples_of(unknown), phase);
            let median = errors[errors.len() / 2];
            assert!(median < 0.20, "{unknown} from {known}: {median}");
        }
    }
}

#[test]
fn equal_cards_share_their_prices_and_stay_within_their_data_sheet() {
    let mut machine = machine("NVIDIA H100 80GB HBM3");
    let second = Device { name: "CUDA1".into(), ..machine.devices[0].clone() };
    machine.devices.push(second);
    // Every other launch was on the second card, and whatever reads weights there took no time.
    let mut samples = SAMPLES.clone();
    for (at, sample) in samples.iter_mut().enumerate() {
        sample.work.amounts.push([0.0; Cost::Disk as usize + 1]);
        if at % 2 == 1 {
            sample.work.amounts.swap(1, 2);
        }
    }
    let fit = fit::fit(&machine, &samples, "calibrated").unwrap();
    let [first, second] = [0, 1].map(|at| fit.machine.devices[at].rates.clone().unwrap());
    assert_eq!(first, second);
    assert!(first.weights <= 1.1 * 3352.0 && first.pinned <= 1.1 * 64.0, "{first:?}");
    assert!(!fit.is_nonsense() && fit.odd.is_empty(), "{:?}", fit.odd);
}

#[test]
fn a_calibration_that_misses_its_own_measurements_is_nonsense() {
    let machine = machine("NVIDIA H100 80GB HBM3");
    let mut samples = SAMPLES.clone();
    for (at, sample) in samples.iter_mut().enumerate() {
        sample.seconds *= if at % 3 == 0 { 6.0 } else { 1.0 };
    }
    let fit = fit::fit(&machine, &samples, "calibrated").unwrap();
    assert!(fit.is_nonsense() && fit.odd.iter().any(|odd| odd.contains("off by more than half")), "{:?}", fit.odd);
    // One alone does not make it nonsense, but no better known than what was never measured.
    let mut samples = SAMPLES.clone();
    let uncertainty = |samples: &[fit::Sample]| {
        let fit = fit::fit(&machine, samples, "calibrated").unwrap();
        assert!(!fit.is_nonsense());
        fit.machine.host.rates.unwrap().uncertainty
    };
    let known = uncertainty(&samples);
    samples[0].seconds *= 6.0;
    let (unknown, of_table) = (uncertainty(&samples), table::host(&machine.host).uncertainty);
    assert!(known < of_table && unknown >= of_table, "{known} {unknown} {of_table}");
}

#[test]
fn a_number_of_threads_says_the_cores_of_a_computer_that_nobody_described() {
    let (model, mut machine) = (model("qwen3-30b-a3b"), machine("NVIDIA GeForce RTX 3090"));
    (machine.host.cores, machine.host.threads) = (None, None);
    let tg = |threads| {
        let run = RunConfig { n_threads: Some(threads), ..hosted(24) };
        estimate(&model, &machine, &run, TURN).speed.tg
    };
    assert!(tg(8) <= tg(16) && tg(16) <= tg(24), "{} {} {}", tg(8), tg(16), tg(24));
}

#[test]
fn rates_are_given_one_by_one_and_the_rest_is_the_tables() {
    let host: Host = serde_json::from_str(r#"{"cores": 8, "rates": {"memory": 61}}"#).unwrap();
    let rates = prices::host_rates(&host);
    assert_eq!((rates.memory, rates.by_thread), (61.0, table::host(&host).by_thread));
    assert_eq!(serde_json::to_value(&host).unwrap()["rates"], serde_json::json!({ "memory": 61.0, "basis": "" }));
    let card: Device = serde_json::from_str(
        r#"{"name": "CUDA0", "buffer": "CUDA0", "backend": "cuda", "total": 1, "free": 1, "rates": {"op": 5, "uncertainty": 0.1}}"#,
    )
    .unwrap();
    let rates = prices::device_rates(&card);
    assert_eq!((rates.op, rates.weights), (5.0, table::device(&card).weights));
    assert_eq!((rates.uncertainty, rates.uncertainty_pp, rates.uncertainty_tg), (0.1, 0.1, 0.1));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(8))]
    /// Times made from constants give predictions back that agree with them, whatever the table said.
    #[test]
    fn samples_made_from_constants_are_predicted(factors in proptest::collection::vec(0.4_f64..2.5, 15)) {
        let machine = machine("NVIDIA H100 80GB HBM3");
        let mut real = machine.clone();
        let mut device = prices::device_rates(&machine.devices[0]);
        let mut host = prices::host_rates(&machine.host);
        let rates = [
            &mut device.weights, &mut device.products, &mut device.attention, &mut device.cache, &mut device.op,
            &mut device.graph, &mut device.pinned, &mut device.pageable, &mut device.offload, &mut device.switch,
            &mut host.memory, &mut host.by_thread, &mut host.products, &mut host.op,
        ];
        for (rate, factor) in rates.into_iter().zip(&factors) {
            *rate *= factor;
        }
        // Little more than the data sheet allows is taken for what it allows: no measurement insists on it.
        let sheet = table::figures(&machine.devices[0]).unwrap();
        for (rate, allowed) in [
            (device.weights, sheet.bandwidth), (device.cache, sheet.bandwidth), (device.pinned, sheet.link),
            (device.pageable, sheet.link),
        ] {
            proptest::prop_assume!(!(1.0..1.2).contains(&(rate / (1.1 * allowed))));
        }
        real.devices[0].rates = Some(device.clone());
        real.host.rates = Some(host);
        let prices = Prices::of(&real, &[0]);
        let mut samples = SAMPLES.clone();
        for sample in &mut samples {
            sample.seconds = prices.seconds(&sample.work);
        }
        let fit = fit::fit(&machine, &samples, "made").unwrap();
        let worst = fit.residuals.iter().map(|residual| residual.error().abs()).fold(0.0, f64::max);
        // The pull toward the table leaves up to 3.5% where nearly all prices are 2.5 times its own: 1 draw in 3,000.
        proptest::prop_assert!(worst < 0.03, "{worst}");
        // What many rows tell is found itself.
        let found = fit.machine.devices[0].rates.clone().unwrap();
        for (found, real) in [(found.pinned, device.pinned), (found.pageable, device.pageable)] {
            proptest::prop_assert!((found / real - 1.0).abs() < 0.15, "{found} for {real}");
        }
    }
}

/// A launch of llama-server with experts of 24 blocks on the host, as a person types it.
fn served(model: &Model, words: &str) -> RunConfig {
    let line = format!("llama-server -m m.gguf -ngl 99 -ncmoe 24 -c 40960 -lm none -fit off {words}");
    let words: Vec<String> = line.split(' ').map(String::from).collect();
    let mut run = crate::run::parse::command(&words, &std::collections::BTreeMap::new()).unwrap().run;
    run.infer_speculation(model.draft.as_ref().and_then(|draft| draft.speculation()));
    run
}

#[test]
fn a_pass_yields_its_own_token_and_the_drafts_before_the_first_that_is_not_taken() {
    for share in [0.0_f64, 0.3, 0.7, 1.0] {
        for drafted in 0..7 {
            // By cases: exactly k are taken with the probability p^k (1 − p), all with p^n.
            let taken = |k: u32| share.powf(f64::from(k)) * if k == drafted { 1.0 } else { 1.0 - share };
            let mean: f64 = (0..=drafted).map(|k| taken(k) * f64::from(k + 1)).sum();
            let found = Acceptance::try_from(share).unwrap().tokens_per_pass(drafted);
            assert!((found - mean).abs() < 1e-12, "{share} {drafted}: {found} {mean}");
        }
    }
    for wrong in [-0.1, 1.1, f64::NAN] {
        assert!(Acceptance::try_from(wrong).is_err());
    }
    assert!("70%".parse::<Acceptance>().is_err());
}

#[test]
fn speculation_gains_by_its_acceptance_alone_and_never_without_one() {
    let machine = machine("NVIDIA GeForce RTX 3090");
    let mut drafted = model("qwen3-30b-a3b");
    drafted.draft =
        Some(crate::synth::model("qwen3-30b-a3b", &Wish { blocks: Some(3), ..Wish::default() }).unwrap().into());
    let draft = "-md d.gguf -ngld 99 --spec-type draft-simple --spec-draft-n-max 3";
    for (model, words) in [(&model("qwen3.6-35b-a3b-mtp"), "-np 1 --spec-type draft-mtp"), (&drafted, draft)] {
        let run = served(model, words);
        let of = |acceptance: Option<f64>| {
            let acceptance = acceptance.map(|share| share.try_into().unwrap());
            estimate(model, &machine, &run, Turn { acceptance, ..TURN })
        };
        let without = of(None).speed;
        assert!(without.basis.ends_with("; speculation is not counted"), "{}", without.basis);
        assert_eq!(without.speculation, None);
        let with = [0.0, 0.5, 0.9, 1.0].map(|share| of(Some(share)));
        for (at, estimate) in with.iter().enumerate() {
            let speculation = estimate.speed.speculation.unwrap();
            assert!((speculation.tg_without / without.tg - 1.0).abs() < 1e-12, "{words}");
            assert!((estimate.speed.pp / without.pp - 1.0).abs() < 1e-12, "{words}");
            assert!(at == 0 || estimate.speed.tg > with[at - 1].speed.tg * 1.1, "{words}");
            assert!(estimate.speed.uncertainty_tg >= 0.3);
            let sum: f64 = estimate.terms.iter().map(|term| term.seconds).sum();
            assert!((sum / estimate.turn_seconds - 1.0).abs() < 1e-9, "{words}");
        }
        // What is drafted in vain costs time, and reads the experts of four tokens.
        assert!(with[0].speed.tg < without.tg * 0.6, "{words}: {} {}", with[0].speed.tg, without.tg);
        assert!(with[1].speed.basis.ends_with("; speculation: acceptance 0.5 assumed, 1.9 tokens a pass"));
    }
}

#[test]
fn requests_at_once_share_the_reading_of_weights() {
    let (model, machine) = (model("qwen3-30b-a3b"), machine("NVIDIA GeForce RTX 3090"));
    let of = |slots: u32| estimate(&model, &machine, &served(&model, &format!("-np {slots}")), TURN);
    let alone = of(1);
    assert_eq!(alone.speed.together, None);
    let mut before = alone.speed.tg;
    for slots in [2, 4, 8] {
        let found = of(slots);
        let together = found.speed.together.unwrap();
        assert_eq!(together.slots, slots);
        assert!((found.speed.tg / alone.speed.tg - 1.0).abs() < 1e-12, "one request alone is as fast");
        assert!(together.each < found.speed.tg && together.tg > before, "{together:?}");
        assert!(together.tg < alone.speed.tg * f64::from(slots));
        assert!(together.turn_seconds > found.turn_seconds);
        before = together.tg;
    }
    // A device takes over what 32 rows are multiplied with, unless that is forbidden.
    let each = |words: &str| estimate(&model, &machine, &served(&model, words), TURN).speed.together.unwrap().each;
    for (slots, is_taken_over) in [(31, false), (32, true)] {
        let of = |words: &str| each(&format!("-np {slots}{words}"));
        assert_eq!((of(" --no-op-offload") / of("") - 1.0).abs() > 0.05, is_taken_over, "{slots}");
    }
}
