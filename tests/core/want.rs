//! Inverse questions and shared machines, held to trying everything on small models.

use moeplan::ask::together::together;
use moeplan::bytes::{Bytes, GIB, MIB};
use moeplan::machine::{Device, Host, Machine};
use moeplan::model::Model;
use moeplan::plan::solver::{Candidate, Levers, Strategy};
use moeplan::plan::want::{Answer, Change, Quantity, Want, Wanted, upgrades, want};
use moeplan::plan::{self, ContextChoice, Request};
use moeplan::speed::{prices, table};
use moeplan::synth::Wish;

use crate::support::planning::{machine, model, request};

/// What a plan may be worse by with more room, as docs/plan.md says.
const UNEVEN: f64 = 0.015;

fn small(name: &str) -> Model {
    model(name, &Wish { blocks: Some(4), ..Wish::default() })
}

fn asked() -> Request {
    Request { levers: Levers::unasked(), context: ContextChoice::Fixed(8192), ..request(Strategy::Auto) }
}

/// A card by name with so many MiB, in a host whose memory has a known speed.
fn one_card(mib: u64) -> Machine {
    let mut machine = machine(&[mib * MIB]);
    machine.devices[0].description = Some("RTX 4090".into());
    machine.host.cores = Some(16);
    machine.host.set_memory(table::memory(64.0));
    machine
}

fn tg(value: f64) -> Want {
    Want { what: Quantity::Tg, value }
}

fn solved(model: &Model, machine: &Machine, wanted: &Wanted) -> Candidate {
    plan::solve(model, machine, &Request { objective: wanted.objective, ..asked() }).unwrap()
}

/// The answers' plans, planned directly on their machines, have the same figures.
fn same_when_asked_directly<'a>(
    model: &Model,
    request: &Request,
    answers: impl IntoIterator<Item = &'a Answer>,
) -> usize {
    let mut count = 0;
    for Answer { machine, point, flags } in answers {
        let is_for_speed = flags.iter().any(|flag| flag == "--objective");
        let objective = if is_for_speed { plan::Objective::Tg } else { request.objective };
        let direct = plan::plan(model, "m.gguf", machine, &Request { objective, ..request.clone() }).unwrap();
        assert_eq!((direct.speed, direct.turn_seconds), (point.speed.clone(), point.turn_seconds), "{flags:?}");
        assert_eq!((direct.args, direct.check.shortfall), (point.args.clone(), point.shortfall.clone()), "{flags:?}");
        count += 1;
    }
    count
}

#[test]
fn the_least_of_each_is_what_trying_all_finds() {
    let model = small("qwen3-30b-a3b");
    let machine = one_card(1900);
    let speed = |machine: &Machine| {
        let request = Request { objective: plan::Objective::Tg, ..asked() };
        plan::solve(&model, machine, &request).unwrap().estimate.speed.tg
    };
    let value = f64::midpoint(speed(&machine), speed(&one_card(8000)));
    let wanted = want(&model, "m.gguf", &machine, &asked(), (&[tg(value)], "")).unwrap();
    assert!(!wanted.reached && wanted.is_reachable(), "{value}: {:?}", wanted.now.point.speed);
    let tried = |machine: &Machine| {
        let found = solved(&model, machine, &wanted);
        (found.fits() && found.estimate.speed.tg >= value, found.estimate.speed.tg)
    };
    let held_to_all = |change: &Change, unit: u64, steps: u64, with: &dyn Fn(u64) -> Machine| {
        let found = change.answers.first().map(|answer| answer.point.value / unit);
        let near = found.into_iter().flat_map(|least| [least - 1, least]);
        for step in (1..=steps).step_by(3).chain(near) {
            let (is_reached, tg) = tried(&with(step));
            match found {
                Some(least) if step == least => assert!(is_reached, "{step}"),
                Some(least) if step + 1 == least => assert!(!is_reached, "{step}"),
                // Fewer may do by the little that the search is uneven.
                _ if found.is_none_or(|least| step < least) => {
                    assert!(!is_reached || tg < value * (1.0 + UNEVEN), "{step} {tg} {value} {found:?}");
                }
                _ => {}
            }
        }
        found
    };
    let budget = |steps: u64| {
        let device = prices::limited(&machine.devices[0], Bytes(steps * 64 * MIB));
        Machine { devices: vec![device], ..machine.clone() }
    };
    assert!(held_to_all(&wanted.budget, 64 * MIB, 60, &budget).is_some_and(|least| least > 29));
    let faster = |bandwidth: u64| {
        let mut machine = machine.clone();
        machine.host.set_memory(table::memory(f64::from(u32::try_from(bandwidth).unwrap())));
        machine
    };
    assert!(held_to_all(&wanted.memory_speed, 1, 130, &faster).is_none_or(|least| least > 64));
    let more = |gib: u64| {
        let mut machine = machine.clone();
        machine.host.ram = Some(Bytes(gib * GIB));
        machine
    };
    assert_eq!(held_to_all(&wanted.main_memory, GIB, 12, &more), None);
    assert!(wanted.main_memory.reason.as_ref().unwrap().starts_with("More main memory is not enough: "));
    let cards = &wanted.card.answers;
    assert!(
        cards.len() == 3
            && cards.is_sorted_by_key(|answer| answer
                .point
                .label
                .split(' ')
                .rev()
                .nth(1)
                .unwrap()
                .parse::<u32>()
                .unwrap())
    );
    let answers = wanted.changes().into_iter().flat_map(|change| &change.answers);
    assert!(same_when_asked_directly(&model, &asked(), answers.chain([&wanted.now])) >= 5);
    // What the usual plan reaches is not paid for with slower prompts.
    let easy = want(&model, "m.gguf", &machine, &asked(), (&[tg(speed(&machine) * 0.5)], "")).unwrap();
    assert!(easy.reached && easy.now.flags.is_empty(), "{:?}", easy.now.flags);
}

#[test]
fn only_what_the_machine_takes_is_offered() {
    let model = small("mixtral-8x7b");
    let mut machine = one_card(2600);
    machine.host.processor = Some("Ryzen 5900X".into());
    let speed = |machine: &Machine| plan::solve(&model, machine, &asked()).unwrap().estimate.speed.tg;
    let mut ddr4 = machine.clone();
    ddr4.host.set_memory(table::memory(42.656));
    let value = f64::midpoint(speed(&machine).min(speed(&ddr4)), {
        ddr4.host.set_memory(table::memory(51.2));
        speed(&ddr4)
    });
    let slow =
        Machine { host: Host { processor: machine.host.processor.clone(), ..ddr4.host.clone() }, ..machine.clone() };
    let wanted = want(&model, "m.gguf", &slow, &asked(), (&[tg(value)], "")).unwrap();
    let labels = wanted.memory_speed.answers.iter().map(|answer| &answer.point.label);
    assert!(labels.clone().count() == 1 && labels.clone().all(|label| label.contains("ddr4-3200x2")), "{wanted:?}");
    let never = want(&model, "m.gguf", &slow, &asked(), (&[tg(1e6)], "")).unwrap();
    assert!(never.memory_speed.reason.as_ref().is_some_and(|reason| reason.contains("for Ryzen 5900X is fast")));
    let upgraded = upgrades(&model, &slow, &asked(), "").unwrap();
    assert!(upgraded.iter().all(|answer| !answer.point.label.contains("ddr5")), "{upgraded:?}");
    // A server's has its own channels, as often as there are processors.
    for (name, bandwidth) in [("EPYC 7402", "204.8"), ("2x EPYC 7402", "409.6")] {
        let server = Machine { host: Host { processor: Some(name.into()), ..slow.host.clone() }, ..slow.clone() };
        let upgraded = upgrades(&model, &server, &asked(), "").unwrap();
        let labels: Vec<&str> = upgraded.iter().map(|answer| answer.point.label.as_str()).collect();
        assert!(labels.contains(&format!("main memory of {bandwidth} GB/s (ddr4-3200x8)").as_str()), "{labels:?}");
        assert!(labels.iter().all(|label| !label.contains("ddr5")), "{labels:?}");
    }
    // A second card of the kind is enough for what one is not.
    let two = Machine::new(
        vec![machine.devices[0].clone(), machine.devices[0].next_of_its_kind(&machine).unwrap()],
        machine.host.clone(),
    )
    .unwrap();
    let between = f64::midpoint(speed(&machine), speed(&two));
    let wanted = want(&model, "m.gguf", &machine, &asked(), (&[tg(between)], "")).unwrap();
    let more = &wanted.more_cards.answers[0];
    assert!(!wanted.reached && more.machine.devices.len() == 2, "{more:?}");
    assert_eq!(same_when_asked_directly(&model, &asked(), [more]), 1);
}

/// Where graphics use main memory, what would make a plan fit is a size that is sold, and its figures are that machine's own.
#[test]
fn more_unified_memory_is_offered_as_it_is_sold() {
    let model = model("qwen3-30b-a3b", &Wish::default());
    let of = |gib: u64| {
        let ram = Bytes(gib * GIB);
        let devices = Device::of_cards(&["M3 Pro".into()], None, Some(ram)).unwrap();
        Machine::new(devices, Host { ram: Some(ram), ..Host::default() }).unwrap()
    };
    let found = plan::brief(&model, "m.gguf", &of(18), &asked()).unwrap();
    let fixes: Vec<&str> = found.why.fixes.iter().map(|fix| &*fix.what).collect();
    assert!(!found.check.fits() && fixes == ["--ram 36G --budget 27648M"], "{fixes:?}");
    let direct = plan::solve(&model, &of(36), &asked()).unwrap();
    assert!(found.why.fixes[0].turn_seconds.total_cmp(&direct.estimate.turn_seconds).is_eq());
    assert_eq!(found.check.shortfall.keys().collect::<Vec<_>>(), ["Host"]);
    // The computer is not sold with more, and smaller parts of what is there save nothing.
    let wanted = want(&model, "m.gguf", &of(36), &asked(), (&[tg(1e6)], "")).unwrap();
    assert!(wanted.changes().iter().all(|change| change.answers.is_empty()), "{wanted:?}");
    let reached = want(&model, "m.gguf", &of(36), &asked(), (&[tg(1.0)], "")).unwrap();
    assert!(reached.reached && reached.budget.answers.is_empty(), "{reached:?}");
    assert_eq!(upgrades(&model, &of(36), &asked(), "").unwrap(), []);
}

#[test]
fn main_memory_and_a_context_are_found_too_and_what_nothing_gives_is_said() {
    let model = small("mixtral-8x7b");
    let mut machine = one_card(2600);
    machine.host.ram = Some(Bytes(2 * GIB));
    let context = [Want { what: Quantity::Ctx, value: 16384.0 }, Want { what: Quantity::Turn, value: 600.0 }];
    let wanted = want(&model, "m.gguf", &machine, &asked(), (&context, "@64")).unwrap();
    assert!(!wanted.reached);
    let memory = &wanted.main_memory.answers[0];
    assert_eq!(memory.flags, ["-c", "16384", "--ram", &format!("{}G@64", memory.point.value / GIB)]);
    let with = |gib: u64| {
        let mut machine = machine.clone();
        machine.host.ram = Some(Bytes(gib * GIB));
        let request = Request { context: ContextChoice::Fixed(16384), ..asked() };
        plan::solve(&model, &machine, &request).unwrap().fits()
    };
    let least = (1..64).find(|gib| with(*gib)).unwrap();
    assert_eq!(memory.point.value, least * GIB);
    // What the machine has is no change of it.
    machine.host.ram = Some(Bytes(512 * GIB));
    let enough = want(&model, "m.gguf", &machine, &asked(), (&[tg(1e6)], "")).unwrap().main_memory;
    assert!(enough.answers.is_empty() && enough.reason.unwrap().contains("with 513 GiB of main memory"));
    let never = want(&model, "m.gguf", &machine, &asked(), (&[tg(1e6)], "")).unwrap();
    assert!(!never.is_reachable());
    assert!(never.changes().iter().all(|change| change.reason.is_some()), "{never:?}");
}

#[test]
fn wants_are_read_and_mistakes_say_what_to_write() {
    for (text, what, value) in [
        ("tg=20", Quantity::Tg, 20.0),
        ("pp=1e3", Quantity::Pp, 1000.0),
        ("turn=30s", Quantity::Turn, 30.0),
        ("turn=2.5", Quantity::Turn, 2.5),
        ("ctx=128k", Quantity::Ctx, 131_072.0),
    ] {
        assert_eq!(text.parse(), Ok(Want { what, value }), "{text}");
    }
    for bad in ["tg", "tg=", "tg=0", "tg=-1", "tg=nan", "tg=inf", "speed=3", "turn=1m", "ctx=many"] {
        assert!(bad.parse::<Want>().is_err(), "{bad}");
    }
}

#[test]
fn an_upgrade_is_a_plan_for_the_machine_it_names() {
    let model = small("mixtral-8x7b");
    let mut machine = one_card(4000);
    machine.host.ram = Some(Bytes(16 * GIB));
    let answers = upgrades(&model, &machine, &asked(), "").unwrap();
    let labels: Vec<&str> = answers.iter().map(|answer| answer.point.label.as_str()).collect();
    assert_eq!(labels.len(), 4, "{labels:?}");
    assert_eq!(answers[0].flags, ["--gpu", "RTX 4090=4000M,RTX 4090=4000M"]);
    assert!(labels[1].ends_with(" GB") && labels[2].contains("ddr5-4800x2") && labels[3] == "32 GiB of main memory");
    assert_eq!(same_when_asked_directly(&model, &asked(), &answers), 4);
}

/// Main memory for everything: the cards alone are shared.
fn cards(budgets: &[u64]) -> Machine {
    let mut machine = machine(&budgets.iter().map(|mib| mib * MIB).collect::<Vec<_>>());
    machine.devices.iter_mut().for_each(|device| device.description = Some("RTX 4090".into()));
    machine
}

/// The machine with so many MiB of each card.
fn part(machine: &Machine, mib: &[u64]) -> Machine {
    let devices = machine.devices.iter().zip(mib).filter(|(_, mib)| **mib > 0);
    let devices: Vec<Device> = devices.map(|(device, mib)| prices::limited(device, Bytes(mib * MIB))).collect();
    Machine { devices, ..machine.clone() }
}

/// The largest cost of two models, of which the first gets this; infinite where one does not fit.
fn worst(models: [&Model; 2], weights: Option<([f64; 2], [f64; 2])>, machine: &Machine, mib: &[u64]) -> f64 {
    let rest: Vec<u64> = machine.devices.iter().zip(mib).map(|(device, mib)| device.total.0 / MIB - mib).collect();
    let cost = |at: usize, mib: &[u64]| {
        let found = plan::solve(models[at], &part(machine, mib), &asked()).unwrap();
        let seconds = if found.fits() { found.estimate.turn_seconds } else { f64::INFINITY };
        weights.map_or(seconds, |(weights, alone)| seconds * weights[at] / alone[at])
    };
    cost(0, mib).max(cost(1, &rest))
}

#[test]
fn no_coarse_split_is_better_than_the_shares() {
    let (a, b) = (small("qwen3-30b-a3b"), small("mixtral-8x7b"));
    for (budgets, weights) in
        [(&[6000][..], &[][..]), (&[6000][..], &[3.0, 1.0][..]), (&[2600][..], &[][..]), (&[4000, 3000][..], &[][..])]
    {
        let machine = cards(budgets);
        let models = [a.clone(), b.clone()].map(|model| (model, "m.gguf".to_string(), asked()));
        let found = together(&models, &machine, weights, "").unwrap();
        let alone = [0, 1].map(|at| found.members[at].alone_seconds);
        let costs = found.members.iter().enumerate().map(|(at, member)| {
            weights.get(at).map_or(member.plan.turn_seconds, |weight| weight * member.plan.turn_seconds / alone[at])
        });
        let ours = costs.fold(0.0, f64::max);
        assert!(found.fits, "{budgets:?}");
        let weighted = <[f64; 2]>::try_from(weights).ok().map(|weights| (weights, alone));
        let steps = |total: u64| (0..=8).map(move |at| total * at / 8 / 64 * 64);
        let grid: Vec<Vec<u64>> = match budgets {
            [one] => steps(*one).map(|mib| vec![mib]).collect(),
            [first, second] => {
                let coarse = |total: u64| steps(total).step_by(2);
                coarse(*first).flat_map(|a| coarse(*second).map(move |b| vec![a, b])).collect()
            }
            _ => unreachable!(),
        };
        for mib in grid {
            let other = worst([&a, &b], weighted, &machine, &mib);
            assert!(ours <= other * 1.02, "{budgets:?} {weights:?}: {ours} against {other} for {mib:?}");
        }
        // No byte is given twice.
        for (at, device) in machine.devices.iter().enumerate() {
            let given = |of: &moeplan::ask::together::Member| {
                let same = of.plan.machine.devices.iter().find(|own| own.name == device.name);
                same.map_or(0, |own| own.total.0)
            };
            assert!(found.members.iter().map(given).sum::<u64>() <= device.total.0, "{at}");
        }
        let ram: u64 = found.members.iter().map(|of| of.plan.machine.host.ram.unwrap().0).sum();
        assert!(ram <= machine.host.ram.unwrap().0);
    }
}

/// Nothing is left unused by one model that another lacks: neither experts on the host beside memory that has room for them, nor a short
/// context.
#[test]
fn what_shares_leave_over_goes_to_experts_and_to_contexts() {
    let (a, b) = (small("qwen3-30b-a3b"), small("gpt-oss-120b"));
    let machine = |words: &str, ram: u64| {
        let host = Host { ram: Some(Bytes(ram * MIB)), cores: Some(8), ..Host::default() };
        Machine::new(vec![Device::parse(words).unwrap()], host).unwrap()
    };
    let metal = machine("MTL0=11700M", 24576);
    let apu = machine("Vulkan0=12000M,shared", 24576);
    let roomy = machine("Vulkan0=14000M,shared", 26624);
    let card = machine("CUDA0=12000M", 32768);
    for (machine, context) in [
        (&metal, ContextChoice::Auto),
        (&metal, ContextChoice::Max),
        (&apu, ContextChoice::Max),
        (&roomy, ContextChoice::Fixed(16384)),
        (&card, ContextChoice::Auto),
        (&card, ContextChoice::Max),
    ] {
        let request = Request { context, ..asked() };
        let models = [a.clone(), b.clone()].map(|model| (model, "m.gguf".to_string(), request.clone()));
        let found = together(&models, machine, &[], "").unwrap();
        assert!(found.fits, "{machine:?} {context:?}");
        let plans = || found.members.iter().map(|member| &member.plan);
        let row = |plan: &plan::Plan| plan.check.memory.get(&machine.devices[0].name).and_then(|row| row.total);
        let left = machine.devices[0].total.saturating_sub(plans().filter_map(row).sum());
        let ram: Bytes = plans().map(|plan| plan.machine.host.ram.unwrap()).sum();
        assert!(ram <= machine.host.ram.unwrap(), "{ram}");
        let contexts: Vec<u32> = plans().map(|plan| plan.check.run.n_ctx).collect();
        // One block has at most 1.6 GiB of experts; its single tensors a third.
        let has_experts_on_host = plans().any(|plan| plan.placement.routed_expert_bytes_on_host > Bytes(0));
        assert!(!has_experts_on_host || left < Bytes(1200 * MIB), "{machine:?} {context:?} {contexts:?} {left}");
        let may_have = !matches!(context, ContextChoice::Fixed(_));
        assert!(!has_experts_on_host || may_have, "{machine:?} {context:?} {contexts:?} {left}");
        let own = |at: usize| [&a, &b][at].hparams.context_length;
        let shortest = (0..2).filter(|at| contexts[*at] < own(*at)).map(|at| contexts[at]).min();
        if matches!(context, ContextChoice::Fixed(_)) {
            assert_eq!(contexts, [16384, 16384]);
            continue;
        }
        let Some(shortest) = shortest else { continue };
        let found_seconds: Vec<f64> = plans().map(|plan| plan.turn_seconds).collect();
        // No coarse split of device and main memory has room for both with contexts a tenth longer.
        let fits = |at: usize, device: u64, ram: u64| {
            let mut part = part(machine, &[device]);
            part.host.ram = Some(Bytes(ram * MIB));
            let n_ctx = (shortest + shortest / 10).min(own(at));
            let request =
                Request { strategy: Strategy::AllOnDevice, context: ContextChoice::Fixed(n_ctx), ..request.clone() };
            let found = plan::solve([&a, &b][at], &part, &request).unwrap();
            found.fits() && found.estimate.turn_seconds <= found_seconds[at] * 1.0001
        };
        let (device, ram) = (machine.devices[0].total.0 / MIB, machine.host.ram.unwrap().0 / MIB);
        for (i, j) in (1..32).flat_map(|i| (1..8).map(move |j| (i, j))) {
            let (first, second) = (device * i / 32, ram * j / 8);
            let both = fits(0, first, second) && fits(1, device - first, ram - second);
            assert!(!both, "{machine:?} {context:?}: {contexts:?}, and {i}/32 and {j}/8 have room for more");
        }
    }
}

/// `-c max` of one model whose mapped file would be held twice: the context is as long as the device has room for.
#[test]
fn the_longest_context_is_not_cut_by_moving_experts_where_that_frees_nothing() {
    let model = small("qwen3-30b-a3b");
    let host = Host { ram: Some(Bytes(6 * GIB)), cores: Some(8), ..Host::default() };
    let machine = Machine::new(vec![Device::parse("MTL0=4G").unwrap()], host).unwrap();
    let at = |context| plan::solve(&model, &machine, &Request { context, ..asked() }).unwrap();
    let longest = at(ContextChoice::Max).run.n_ctx;
    assert!(at(ContextChoice::Fixed(longest)).fits() && longest >= at(ContextChoice::Auto).run.n_ctx, "{longest}");
}
