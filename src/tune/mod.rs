//! Which launch is fastest here: the plan, `--fit on` and the plan's neighbours as candidates of a race of few measurements.

pub mod document;
pub mod journal;
pub mod race;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::plan::Request;
use crate::plan::solver::Strategy;
use crate::run::{RunConfig, args};
use crate::speed::Speed;
pub use journal::{Subject, Visit};
pub use race::{Race, Verdict};

pub const SCHEMA: &str = "moeplan/tune/1";
/// Neighbours that take part, the most promising ones.
pub const MOST: usize = 5;
/// MiB that `--fit` leaves free of a device by default (`common/common.h` `fit_params_target`, b11434).
const FIT_MARGIN: u64 = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Plan,
    Fit,
    Neighbour,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Candidate {
    /// What differs from the plan: `-ub 1024`.
    pub what: String,
    pub kind: Kind,
    /// Its arguments without what differs from day to day, which tell it apart in a journal.
    #[serde(skip)]
    pub id: String,
    pub args: Vec<String>,
    #[serde(skip)]
    pub run: RunConfig,
    /// What is predicted of it; `None` for `--fit on`.
    pub predicted: Option<Predicted>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Predicted {
    pub speed: Speed,
    pub turn_seconds: f64,
}

/// What tells launches apart in a journal: their arguments without addresses and without what other programs leave free.
pub fn id(run: &RunConfig, machine: &Machine) -> String {
    let mut run = RunConfig { rpc: Vec::new(), fit_target: Vec::new(), ..run.clone() };
    for rule in &mut run.overrides {
        rule.origin = "-ot".to_string();
        if let Some(device) = machine.devices.iter().find(|device| device.buffer == rule.buffer) {
            rule.buffer.clone_from(&device.name);
        }
    }
    let variables = run.environment().into_iter().map(|(name, value)| format!("{name}={value}"));
    variables.chain(args::args(&run)).collect::<Vec<_>>().join(" ")
}

impl Candidate {
    pub fn new(kind: Kind, what: &str, run: RunConfig, machine: &Machine, predicted: Option<Predicted>) -> Self {
        Self { what: what.to_string(), kind, id: id(&run, machine), args: args::args(&run), run, predicted }
    }
}

/// The alternatives that may be taken in the plan's place, the fastest by prediction first: they serve the same context with
/// the same cache, and leave what the user fixed as it is.
pub fn promising(plan: &RunConfig, mut alternatives: Vec<Candidate>, request: &Request) -> Vec<Candidate> {
    let levers = request.levers;
    let fixed = |run: &RunConfig| {
        let service = (run.n_ctx, run.n_parallel, run.type_k, run.type_v);
        let batches = ((!levers.ubatch).then_some(run.n_ubatch), (!levers.batch).then_some(run.n_batch));
        let load = ((!levers.load_mode).then_some(run.load_mode), (!levers.threads).then_some(run.n_threads));
        let placement = (request.strategy != Strategy::Auto).then(|| run.overrides.clone());
        (service, batches, load, (!levers.op_offload).then_some(run.offload_rows()), placement)
    };
    let mut seen: Vec<RunConfig> = Vec::new();
    let turn = |other: &Candidate| other.predicted.as_ref().map_or(f64::INFINITY, |predicted| predicted.turn_seconds);
    alternatives.sort_by(|a, b| turn(a).total_cmp(&turn(b)));
    alternatives.retain(|other| {
        let is_new = other.run != *plan && fixed(&other.run) == fixed(plan) && !seen.contains(&other.run);
        seen.push(other.run.clone());
        is_new
    });
    alternatives.truncate(MOST);
    alternatives
}

/// A launch that drafts, without drafts and with drafts of half and of twice as many tokens. Nothing predicts how many of them are
/// taken, so all of these are measured.
pub fn drafts(plan: &RunConfig, machine: &Machine) -> Vec<Candidate> {
    let n = plan.n_draft;
    let lengths: BTreeSet<u32> = [0, n / 2, n.saturating_mul(2)].into_iter().filter(|_| n > 0).collect();
    let candidate = |length: u32| {
        let what = if length == 0 { "no drafts".to_string() } else { format!("drafts of {length} tokens") };
        Candidate::new(Kind::Neighbour, &what, plan.with_drafts(length), machine, None)
    };
    lengths.into_iter().map(candidate).collect()
}

/// What llama.cpp is started with to choose by itself ([`Request::left_to_fitting`]), with of every device only its budget. `free` is
/// what each device has free, by name, before anything is started.
pub fn fit(plan: &RunConfig, request: &Request, machine: &Machine, free: &BTreeMap<String, Bytes>) -> RunConfig {
    let run = request.left_to_fitting(plan, machine);
    let target = |name: &String| {
        let device = machine.devices.iter().find(|device| device.name == *name || device.buffer == *name);
        let others = device.map_or(Bytes(0), |device| {
            free.get(&device.name).copied().unwrap_or(device.free).saturating_sub(device.total)
        });
        u32::try_from((others.0 >> 20) + FIT_MARGIN).unwrap_or(u32::MAX)
    };
    RunConfig { fit_target: run.devices.iter().flatten().map(target).collect(), ..run }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Backend, Device, Host};
    use crate::run::{LoadMode, Override};

    fn experts_on(buffer: &str) -> Vec<Override> {
        vec![Override { pattern: "exps".into(), buffer: buffer.into(), origin: "-ot".into() }]
    }

    type Fix = fn(&mut Request);

    #[test]
    fn what_the_user_fixed_and_what_is_served_stay() {
        let machine = Machine::new(Vec::new(), Host::default()).unwrap();
        let plan = RunConfig { n_ctx: 8192, ..RunConfig::default() };
        let others = [
            ("same", plan.clone(), 1.0),
            ("-ub", RunConfig { n_ubatch: 1024, ..plan.clone() }, 5.0),
            ("-lm", RunConfig { load_mode: LoadMode::None, ..plan.clone() }, 4.0),
            ("-t", RunConfig { n_threads: Some(3), ..plan.clone() }, 3.0),
            ("blocks", RunConfig { overrides: experts_on("CPU"), ..plan.clone() }, 2.0),
            ("blocks again", RunConfig { overrides: experts_on("CPU"), ..plan.clone() }, 2.0),
            ("-c", RunConfig { n_ctx: 4096, ..plan.clone() }, 1.0),
        ];
        let speed = Speed { pp: 1.0, tg: 1.0, basis: String::new(), uncertainty: 0.2, ..Speed::default() };
        let others = others.map(|(what, run, turn_seconds)| {
            let predicted = Some(Predicted { speed: speed.clone(), turn_seconds });
            Candidate::new(Kind::Neighbour, what, run, &machine, predicted)
        });
        let fixes: [(Fix, &str); 4] = [
            (|_| {}, "blocks -t -lm -ub"),
            (|request| request.levers.ubatch = false, "blocks -t -lm"),
            (|request| request.levers.threads = false, "blocks -lm -ub"),
            (|request| request.strategy = Strategy::ExpertsOnHost, "-t -lm -ub"),
        ];
        for (fix, expected) in fixes {
            let mut request = Request::of(&machine);
            fix(&mut request);
            let found = promising(&plan, others.to_vec(), &request);
            let found: Vec<&str> = found.iter().map(|other| other.what.as_str()).collect();
            assert_eq!(found.join(" "), expected);
        }
    }

    #[test]
    fn fit_gets_the_budget_as_what_it_must_leave_free() {
        let devices = Device::of_budgets(Backend::Cuda, &[Bytes::mib(24 * 1024), Bytes::mib(12 * 1024)]).unwrap();
        let machine = Machine::new(devices, Host::default()).unwrap();
        let (n_parallel, overrides) = (Some(1), experts_on("CPU"));
        let plan = RunConfig { n_ctx: 8192, n_parallel, n_ubatch: 2048, overrides, ..RunConfig::default() };
        let mut request = Request::of(&machine);
        (request.run.load_mode, request.run.n_ubatch) = (LoadMode::Mmap, 512);
        let free = BTreeMap::from([("CUDA0".to_string(), Bytes::mib(80_000)), ("CUDA1".to_string(), Bytes::mib(100))]);
        let run = fit(&plan, &request, &machine, &free);
        // 80000 − 24576 + 1024; a device that has less than its budget keeps llama.cpp's own margin.
        assert_eq!(run.fit_target, [56_448, 1024]);
        assert_eq!((run.n_ctx, run.n_parallel, run.n_ubatch, run.load_mode), (8192, Some(1), 512, LoadMode::Mmap));
        assert!(run.fit && run.overrides.is_empty());
        let later = fit(&plan, &request, &machine, &BTreeMap::new());
        assert!(later.fit_target != run.fit_target && id(&later, &machine) == id(&run, &machine));
    }

    #[test]
    fn an_rpc_server_at_another_port_is_the_same_candidate() {
        let at = |port: &str| {
            let device = Device::parse(&format!("RPC0[127.0.0.1:{port}]=1G")).unwrap();
            let machine = Machine::new(vec![device], Host::default()).unwrap();
            let overrides = experts_on(&machine.devices[0].buffer);
            id(&RunConfig { overrides, rpc: machine.rpc_servers(&[]), ..RunConfig::default() }, &machine)
        };
        assert!(at("1") == at("2") && at("1").contains("exps=RPC0"), "{}", at("1"));
    }
}
