//! Every alternative, rung and fix that a plan prints, asked for directly in its words, gives the same figures.

use std::collections::BTreeMap;

use moeplan::ask::options::{Planning, kept};
use moeplan::bytes::{Bytes, GIB, MIB};
use moeplan::machine::{Host, Machine};
use moeplan::model::Model;
use moeplan::plan::explain::Alternative;
use moeplan::plan::solver::Strategy;
use moeplan::plan::{self, ContextChoice, Plan, Request};
use moeplan::run::{Target, parse};
use moeplan::synth::Wish;
use moeplan::{checkup, memory};

use crate::support::planning::{machine, model};

/// What is asked about a model and a machine, in the words of `moeplan plan`.
struct Asked<'a> {
    model: &'a Model,
    machine: &'a Machine,
    words: &'a str,
}

impl Asked<'_> {
    /// The request with more words; `None` where they are not words.
    fn request(&self, more: &str) -> Option<Request> {
        let mut planning = Planning { explain: true, ..Planning::default() };
        let mut margin = self.machine.margin();
        let mut rest = Vec::new();
        let line = format!("{} {more}", self.words);
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap();
            match word {
                "-c" => planning.ctx_size = Some(value().parse().unwrap()),
                "--build" => planning.build = Some(value().parse().unwrap()),
                "--strategy" => {
                    planning.strategy = Some(if value() == "auto" { Strategy::Auto } else { Strategy::AllOnDevice });
                }
                "--margin" => margin = Bytes(value().parse().unwrap()),
                "--depth" => planning.depth = value().parse().unwrap(),
                "--allow-quantized-cache" => planning.allow_quantized_cache = true,
                "--" => {}
                flag if flag.starts_with('-') => {
                    rest.push(flag.to_string());
                    if !flag.starts_with("--no-") && !["--op-offload", "-nkvo"].contains(&flag) {
                        rest.push(value().to_string());
                    }
                }
                _ => return None,
            }
        }
        Some(Request { margin, ..planning.request(self.model, self.machine, &kept(&rest).unwrap()).unwrap() })
    }

    /// The plan for a request, without what is said beside it.
    fn direct(&self, request: Request) -> Plan {
        let request = Request { explain: false, ..request };
        plan::brief(self.model, "model.gguf", self.machine, &request).unwrap()
    }

    /// An answer in words is the plan that they ask for; any other is what its arguments give. Whether it is in words. The turn has
    /// room wherever it has in `plan`.
    fn hold(&self, plan: &Plan, answer: &Alternative) -> bool {
        let what = format!("{}: {}", self.words, answer.what);
        if let Some(request) = self.request(&answer.what) {
            let direct = self.direct(request);
            assert_eq!((direct.check.fits(), &direct.check.shortfall), (answer.fits, &answer.shortfall), "{what}");
            assert_eq!((&direct.args, &direct.placement), (&answer.args, &answer.placement), "{what}");
            assert_eq!(direct.check.memory, answer.memory, "{what}");
            assert_eq!((&direct.speed, direct.turn_seconds), (&answer.speed, answer.turn_seconds), "{what}");
            let room = |plan: &Plan| plan.check.run.n_ctx_seq.min(plan.turn.tokens());
            assert!(room(&direct) >= room(plan), "{what}: the turn has no room");
            return true;
        }
        let words = ["llama-server", "-fit", "off", "-np", "1"].map(str::to_string).into_iter();
        // The first build with an expert cache, where the plan's has none.
        let Target { build, dialect } = self.request("").unwrap().run.target;
        let build = if answer.what.contains("--moe-cache-mib") { build.max(11_480) } else { build };
        let target = Target { build, dialect };
        let words: Vec<String> = words.chain(answer.args.clone()).collect();
        let run = parse::command_for(&words, &BTreeMap::new(), target).unwrap().run;
        let forecast = memory::forecast(self.model, self.machine, &run).unwrap();
        let machine_is_larger = answer.note.as_deref() == Some("more memory");
        assert!(machine_is_larger || checkup::Row::table(&forecast) == answer.memory, "{what}");
        false
    }
}

/// Cards of these budgets, in MiB, in a host of `ram` GiB.
fn with_ram(budgets: &[u64], ram: u64) -> Machine {
    let mut machine = machine(&budgets.iter().map(|mib| mib * MIB).collect::<Vec<_>>());
    machine.host = Host { ram: Some(Bytes(ram * GIB)), cores: Some(8), ..machine.host };
    machine
}

#[test]
fn what_is_printed_asked_for_directly_is_the_same() {
    let of = |name, blocks| model(name, &Wish { blocks: Some(blocks), ..Wish::default() });
    let models = [of("qwen3-30b-a3b", 6), of("gpt-oss-20b", 6), of("mixtral-8x7b", 3), of("llama-3.1-8b", 4)];
    // Room for some of the experts, for everything, two cards, no card, a main memory that pins nothing, and too little.
    let cases = [
        (with_ram(&[2300], 64), ""),
        (with_ram(&[2300], 64), "-c 16384 -ctk f16"),
        (with_ram(&[24_000], 64), "--build 11549"),
        (with_ram(&[1900, 1500], 64), "-np 2"),
        (with_ram(&[], 64), ""),
        (with_ram(&[1700], 6), "-b 1024 --depth 6000"),
        (with_ram(&[1100], 64), "-c 32768"),
        (with_ram(&[2000], 64), "-c max --allow-quantized-cache"),
        (with_ram(&[1500], 64), "--strategy all-on-device -c 65536 -ub 1024"),
    ];
    let (mut rungs, mut answers, mut in_words) = (0, 0, 0);
    for (nth, (machine, words)) in cases.iter().enumerate() {
        for model in models.iter().skip(nth % 3).step_by(3) {
            let asked = Asked { model, machine, words };
            let plan = plan::plan(model, "model.gguf", machine, &asked.request("").unwrap()).unwrap();
            for rung in &plan.ladder {
                let context = ContextChoice::Fixed(rung.n_ctx);
                let direct = asked.direct(Request { context, ..asked.request("").unwrap() });
                assert_eq!((direct.check.fits(), &direct.check.shortfall), (rung.fits, &rung.shortfall), "{rung:?}");
                assert_eq!(direct.placement.blocks_with_experts_on_host, rung.experts_on_host, "{rung:?}");
                assert_eq!((&direct.speed, direct.turn_seconds), (&rung.speed, rung.turn_seconds), "{rung:?}");
                assert!(direct.check.run.n_ctx_seq >= plan.turn.tokens(), "{rung:?}");
                rungs += 1;
            }
            for answer in plan.why.alternatives.iter().chain(&plan.why.fixes) {
                answers += 1;
                in_words += usize::from(asked.hold(&plan, answer));
            }
        }
    }
    assert!(rungs >= 30 && answers >= 90 && in_words >= 80, "{rungs} rungs, {answers} answers, {in_words} in words");
}

#[test]
fn the_ladder_ends_with_the_model_and_has_room_for_the_turn() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(3), ..Wish::default() });
    let machine = with_ram(&[24_000], 64);
    let rungs = |words| {
        let asked = Asked { model: &model, machine: &machine, words };
        let request = Request { explain: false, ..asked.request("").unwrap() };
        let plan = plan::plan(&model, "model.gguf", &machine, &request).unwrap();
        plan.ladder.iter().map(|rung| rung.n_ctx).collect::<Vec<_>>()
    };
    assert_eq!(rungs(""), [8192, 32_768, 40_960]);
    assert_eq!(rungs("-np 2"), [16_384, 65_536, 81_920]);
    assert_eq!(rungs("--depth 8000"), [32_768, 40_960]);
    assert_eq!(rungs("--depth 80000"), [0; 0]);
    let asked = Asked { model: &model, machine: &machine, words: "" };
    let brief = asked.direct(asked.request("").unwrap());
    assert!(brief.ladder.is_empty() && brief.fit_choice.is_none());
}
