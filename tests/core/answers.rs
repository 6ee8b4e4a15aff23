//! Every alternative, rung and fix that a plan prints, asked for directly in its words, gives the same figures.

use std::collections::BTreeMap;

use moeplan::ask::beside;
use moeplan::ask::machine::Described;
use moeplan::ask::options::{Planning, kept};
use moeplan::bytes::{Bytes, GIB, MIB};
use moeplan::checkup::{self, Checkup, Options};
use moeplan::emit;
use moeplan::machine::{Device, Host, Machine};
use moeplan::model::Model;
use moeplan::plan::explain::Alternative;
use moeplan::plan::solver::Strategy;
use moeplan::plan::{self, Beside, ContextChoice, Plan, Request, Turn};
use moeplan::run::{Target, parse};
use moeplan::synth::Wish;

use crate::support::planning::{machine, model};

/// What is asked about a model and a machine, in the words of `moeplan plan`.
struct Asked<'a> {
    model: &'a Model,
    machine: &'a Machine,
    words: &'a str,
}

impl Asked<'_> {
    /// What more words ask for, about the machine that they describe; `None` where they are not words.
    fn request(&self, more: &str) -> Option<(Machine, Request)> {
        let mut machine = self.machine.clone();
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
                "--margin" => margin = value().parse().unwrap(),
                "--budget" => {
                    let budget = value().split(',').map(|size| size.parse().unwrap()).collect();
                    machine = Described { budget, ..Described::default() }.limited(machine).unwrap();
                }
                "--ram" => Described { ram: Some(value().parse().unwrap()), ..Described::default() }
                    .describe(&mut machine.host)
                    .unwrap(),
                "--prompt" => planning.prompt = value().parse().unwrap(),
                "--depth" => planning.depth = value().parse().unwrap(),
                "--allow-quantized-cache" => planning.allow_quantized_cache = true,
                "--" => {}
                flag if flag.starts_with('-') => {
                    rest.push(flag.to_string());
                    if !flag.starts_with("--no-") && !["--op-offload", "-nkvo", "-kvu", "--swa-full"].contains(&flag) {
                        rest.push(value().to_string());
                    }
                }
                _ => return None,
            }
        }
        let request = planning.request(self.model, &machine, &kept(&rest).unwrap()).unwrap();
        Some((machine, Request { margin, ..request }))
    }

    /// The plan for a request, without what is said beside it.
    fn direct(&self, (machine, request): (Machine, Request)) -> Plan {
        let request = Request { explain: false, ..request };
        plan::brief(self.model, "model.gguf", &machine, &request).unwrap()
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
        let request = self.request("").unwrap().1;
        let Target { build, dialect } = request.run.target;
        let build = if answer.what.contains("--moe-cache-mib") { build.max(11_480) } else { build };
        let words: Vec<String> = words.chain(answer.args.clone()).collect();
        let command = parse::command_for(&words, &BTreeMap::new(), Target { build, dialect }).unwrap();
        let options = Options { margin: plan.margin, turn: Some(plan.turn), ..Options::default() };
        let checked = checkup::check(self.model, self.machine, &command, options).unwrap();
        assert_eq!((&checked.memory, &checked.shortfall), (&answer.memory, &answer.shortfall), "{what}");
        assert_eq!(checked.fits(), answer.fits, "{what}");
        assert!(checked.speed.is_none_or(|speed| speed == answer.speed), "{what}");
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
            let (_, request) = asked.request("").unwrap();
            let plan = plan::plan(model, "model.gguf", machine, &request).unwrap();
            for rung in &plan.ladder {
                let context = ContextChoice::Fixed(rung.n_ctx);
                let direct = asked.direct((machine.clone(), Request { context, ..request.clone() }));
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
        let request = Request { explain: false, ..asked.request("").unwrap().1 };
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

/// A command checked, and the plan beside it.
fn beside(
    model: &Model,
    machine: &Machine,
    line: &str,
    margin: Bytes,
    turn: Turn,
) -> (Checkup, Result<Beside, String>) {
    let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
    let command = parse::command(&words, &BTreeMap::new()).unwrap();
    let options = Options { margin, turn: Some(turn), ..Options::default() };
    let checkup = checkup::check(model, machine, &command, options).unwrap();
    let plan = beside::plan((model, "model.gguf"), machine, &command, &checkup, (&[], turn), options);
    (checkup, plan)
}

#[test]
fn the_plan_beside_a_command_is_what_its_words_ask_for_and_serves_the_same() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(6), ..Wish::default() });
    let deep = Turn { depth: 3000, ..Turn::default() };
    // Of main memory only its rate is said: the others are not numbers.
    let mut said = with_ram(&[2300], 64);
    said.host.set_memory(50.0);
    for (machine, line, margin, turn, is_faster) in [
        (said, "llama-server -ngl 99 -cmoe -c 16384 -np 1", 0, Turn::default(), Some(true)),
        (
            with_ram(&[2300], 64),
            "llama-server -ngl 99 -ncmoe 5 -c 8192 -ctk q8_0 -ctv q8_0 -fa on",
            128,
            deep,
            Some(true),
        ),
        // Four slots that share a cache, where nobody says how many.
        (with_ram(&[24_000], 64), "llama-server -ngl 0 -c 8192 -t 2 -ub 64", 0, Turn::default(), Some(true)),
        (
            with_ram(&[1900, 1500], 64),
            "llama-server -ngl 99 -ts 1,0 -cmoe -c 8192 -np 2 -dev CUDA0,CUDA1",
            0,
            Turn::default(),
            Some(true),
        ),
        // Neither fits as written; the second does after fitting, with less context.
        (with_ram(&[2300], 64), "llama-server -ngl 99 -c 16384 -np 1 -fit off", 0, Turn::default(), None),
        (with_ram(&[2600], 64), "llama-server -np 1", 0, Turn::default(), Some(true)),
    ] {
        let (checkup, found) = beside(&model, &machine, line, Bytes::mib(margin), turn);
        let found = found.unwrap_or_else(|why| panic!("no plan beside {line}: {why}: {checkup:?}"));
        let words = found.asked.strip_prefix("moeplan plan ").unwrap().replace("model.gguf", "");
        let asked = Asked { model: &model, machine: &machine, words: "" };
        let direct = asked.direct(asked.request(&words).unwrap());
        assert_eq!((&direct.command, &direct.check.memory), (&found.command, &found.memory), "{words}");
        assert_eq!((&direct.speed, direct.turn_seconds), (&found.speed, found.turn_seconds), "{words}");
        let served =
            |run: &moeplan::run::ResolvedRun| (run.n_ctx, run.n_ctx_seq, run.n_seq_max(), run.type_k, run.type_v);
        match &checkup.fit {
            Some(fit) => assert_eq!(direct.check.run.n_ctx, fit.n_ctx, "{line}"),
            None => assert_eq!(served(&direct.check.run), served(&checkup.run), "{line}"),
        }
        assert_eq!(found.times_as_fast.map(|times| times > 1.02), is_faster, "{line}: {found:?}");
        if let (Some(times), Some(speed)) = (found.times_as_fast, &checkup.speed) {
            let seconds = f64::from(turn.prompt) / speed.pp + f64::from(turn.generate) / speed.tg;
            assert!((times * found.turn_seconds / seconds - 1.0).abs() < 1e-9, "{line}");
        }
        // The plan's own command is as fast as itself.
        let own = found.command.replace("-m model.gguf", "").replace('\'', "");
        let (_, again) = beside(&model, &machine, &own, Bytes::mib(margin), turn);
        assert_eq!(again.map(|again| again.times_as_fast), Ok(Some(1.0)), "{own}");
    }
    for (line, why) in [
        ("llama-cli -ngl 99 -c 4096", "plans are for llama-server"),
        ("llama-server -ngl 99 -c 4096 -dev CUDA0", "`moeplan plan` does not take"),
        ("llama-server -ngl 99 -c 4096 --override-kv a=int:1", "`moeplan plan` does not take"),
        ("llama-server -ngl 99 -c 4096 -ctv q8_0 -fa off", "llama.cpp refuses the command"),
        ("llama-server -ngl 99 -c 32k", "llama.cpp reads only a part of a number"),
        ("llama-server -ngl 99 -c 4000000 -fit off", "none fits"),
    ] {
        let (_, found) = beside(&model, &with_ram(&[1900, 1500], 64), line, Bytes(0), Turn::default());
        let reason = found.expect_err(line);
        assert!(reason.starts_with(why), "{line}: {reason}");
    }
    // What decides nothing stays in the command, and in what is asked.
    let line = "llama-server -ngl 99 -c 8192 --jinja --rope-scaling yarn --port 8081";
    let (_, found) = beside(&model, &with_ram(&[2300], 64), line, Bytes(0), Turn::default());
    let found = found.unwrap();
    for command in [found.command, found.asked] {
        assert!(command.ends_with(" --jinja --rope-scaling yarn --port 8081"), "{command}");
    }
}

/// Cards by name, in a computer with so many GiB.
fn named(cards: &[&str], ram: u64) -> Machine {
    let cards: Vec<String> = cards.iter().map(ToString::to_string).collect();
    let ram = Bytes(ram * GIB);
    let host = Host { ram: Some(ram), note: Some("said of it".into()), ..Host::default() };
    Machine::new(Device::of_cards(&cards, None, Some(ram)).unwrap(), host).unwrap()
}

#[test]
fn a_check_and_a_script_for_windows_say_whose_the_budgets_are() {
    let model = model("qwen3-30b-a3b", &Wish { blocks: Some(6), ..Wish::default() });
    let budgets = |machine: &Machine| -> Vec<String> {
        let (checkup, _) = beside(&model, machine, "llama-server -ngl 99 -c 8192", Bytes(0), Turn::default());
        let rows = checkup.basis.into_iter().filter(|row| row.quantity.ends_with(checkup::BUDGET));
        rows.map(|row| format!("{}: {}", row.quantity, row.how)).collect()
    };
    let (card, unified) = (named(&["RTX 3090"], 64), named(&["Strix Halo"], 128));
    let of_card = budgets(&card);
    assert!(of_card[0].starts_with("CUDA0.budget: ") && of_card[0].contains("Windows about 22.76 GiB"), "{of_card:?}");
    assert_eq!(of_card[1..], ["main memory.budget: said of it"]);
    assert!(budgets(&unified)[0].contains("ttm.pages_limit=29360128"), "{:?}", budgets(&unified));
    let plan = plan::brief(&model, "model.gguf", &card, &Request::of(&card)).unwrap();
    let notes = |form| emit::render(&model, &plan, emit::Wish { form, ..emit::Wish::default() }).unwrap().notes;
    let is_told = |form| notes(form).iter().any(|note| note.contains("Windows about 22.76 GiB"));
    assert!(is_told(emit::Form::PowerShell) && !is_told(emit::Form::Shell));
}
