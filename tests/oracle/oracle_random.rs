//! The oracle on flags drawn at random: our bytes against the linked llama.cpp's own projection, buffer type by buffer type.
//!
//! Feature `embedded`. 200 cases of a fixed seed; `MOEPLAN_FULL=1` 10,000; `MOEPLAN_CASES`, `MOEPLAN_SEED` others.
//! `MOEPLAN_CASE='1 qwen3moe-moe llama-server -c 512'` (software devices, model, command) only that one, with llama.cpp's
//! log where `MOEPLAN_LOG` is set. The headers are those of testdata/architectures.tar.xz and the tiny siblings of every
//! model that `moeplan synth` knows, or the files of the folder `MOEPLAN_HEADERS`; of them those with `MOEPLAN_MODELS` in
//! their names.
#![expect(clippy::print_stderr, reason = "a test's report")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use crate::oracle::unpacked;
use crate::support::is_full;
use crate::support::random_launch::{Case, case, drafting};
use crate::support::verdict::{Score, Verdict};
use moeplan::bytes::Bytes;
use moeplan::gguf;
use moeplan::machine::Machine;
use moeplan::measurement::Expected;
use moeplan::memory::{self, MemoryByDevice};
use moeplan::model::Model;
use moeplan::run::numbers::numbers;
use moeplan::run::{RunConfig, Target, parse};
use moeplan::runtime::{
    Embedded, Error, Kind, Launch, Projection, Prompt, RpcServer, Runtime as _, Workload, bind_software_devices,
    software_machine,
};
use moeplan::synth::output::{self, Fill, Watch};
use moeplan::synth::{Wish, spec, synthesize};
use proptest::strategy::{Strategy as _, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Cases of a run that says nothing else.
const CASES: usize = 200;
/// Cases of `MOEPLAN_FULL=1`.
const FULL_CASES: usize = 10_000;
/// Projections that one worker process makes.
const BATCH: usize = 100;
/// Recorded: the least share of cases whose compute buffers are all within 1% or 1 MiB. Raise it when it grows.
const COMPUTE_WITHIN: f64 = 0.99;

/// Models, software devices and the linked llama.cpp.
struct Rig {
    runtime: Embedded,
    models: Vec<(String, PathBuf, Model)>,
    machines: Vec<(Machine, Vec<RpcServer>)>,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/architectures.tar.xz");
        let status = Command::new("tar").arg("-xJSf").arg(&archive).arg("-C").arg(folder.path()).status();
        assert!(status.expect("tar is installed").success(), "{} unpacks", archive.display());
        for name in spec::names() {
            let spec = spec::named(&name).expect("a listed model");
            let synthesis = synthesize(&spec, &Wish { tiny: true, ..Wish::default() }).expect("a tiny sibling");
            let path = folder.path().join(format!("tiny-{name}.gguf"));
            let watch = Watch { wrote: &|_| (), stop: &AtomicBool::new(false) };
            output::write(&synthesis, &path, Fill::Hole, true, watch).expect("written");
        }
        let headers = std::env::var_os("MOEPLAN_HEADERS").map_or_else(|| folder.path().to_path_buf(), PathBuf::from);
        let entries = std::fs::read_dir(headers).expect("a readable folder").map(|e| e.expect("an entry").path());
        let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
        paths.sort();
        let named = |path: PathBuf| {
            let name = path.file_stem().expect("a stem").to_string_lossy().into_owned();
            let model = Model::from_gguf(gguf::open(&path).expect("a header")).expect("a model");
            (name, path, model)
        };
        let models: Vec<_> = paths.into_iter().map(named).collect();
        let wanted = std::env::var("MOEPLAN_MODELS").unwrap_or_default();
        let models: Vec<_> = models.into_iter().filter(|(name, ..)| name.contains(&wanted)).collect();
        let narrowed = std::env::var_os("MOEPLAN_HEADERS").is_some() || !wanted.is_empty();
        assert!(models.len() >= if narrowed { 1 } else { 140 }, "only {} models", models.len());
        let mut rig = Self {
            runtime: Embedded::of(env!("CARGO_BIN_EXE_moeplan")),
            models,
            machines: Vec::new(),
            _folder: folder,
        };
        rig.start_servers();
        rig
    }

    /// Fresh servers for none, one and two software devices.
    fn start_servers(&mut self) {
        let start = |n| {
            let mut machine = software_machine(n, Bytes::mib(24 * 1024));
            let program = &self.runtime.program;
            let servers = bind_software_devices(program, None, &mut machine, &mut RunConfig::default(), 1);
            (machine, servers.expect("software devices"))
        };
        self.machines = (0..=2).map(start).collect();
    }

    fn model(&self, case: &Case) -> &(String, PathBuf, Model) {
        &self.models[case.model % self.models.len()]
    }

    /// The case as a launch on its devices, which `-ot` may name `RPC0` and `RPC1`.
    fn launch(&self, case: &Case) -> Launch {
        self.launch_of(case, &self.model(case).1)
    }

    fn launch_of(&self, case: &Case, model: &Path) -> Launch {
        let words: Vec<String> = case.command().split(' ').map(str::to_string).collect();
        let mut run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("flags of llama.cpp").run;
        let (machine, servers) = &self.machines[case.devices()];
        run.rpc = servers.iter().map(|server| server.endpoint().to_string()).collect();
        for rule in run.overrides.iter_mut().chain(&mut run.draft_overrides) {
            if let Some(device) = machine.devices.iter().find(|device| device.name == rule.buffer) {
                rule.buffer.clone_from(&device.buffer);
            }
        }
        Launch { model: model.to_path_buf(), run, machine: machine.clone() }
    }

    /// What is said of each case by llama.cpp and by us.
    fn judge(&mut self, cases: &[Case]) -> Vec<Verdict> {
        let launches: Vec<Launch> = cases.iter().map(|case| self.launch(case)).collect();
        let theirs = self.runtime.project(&launches);
        if theirs.iter().any(|answer| matches!(answer, Err(Error { kind: Kind::Unreachable, .. }))) {
            // A server died of what it was asked: the cases after it deserve an answer.
            self.start_servers();
            return cases.iter().map(|case| self.judge_alone(case)).collect();
        }
        let pairs = cases.iter().zip(&launches).zip(theirs);
        pairs.map(|((case, launch), theirs)| verdict(&self.model(case).2, launch, theirs)).collect()
    }

    fn judge_alone(&mut self, case: &Case) -> Verdict {
        let launch = self.launch(case);
        let theirs = self.runtime.project(std::slice::from_ref(&launch)).remove(0);
        if matches!(theirs, Err(Error { kind: Kind::Unreachable, .. })) {
            self.start_servers();
        }
        verdict(&self.model(case).2, &launch, theirs)
    }

    /// What to type to see the case again.
    fn replay(&self, case: &Case) -> String {
        format!("MOEPLAN_CASE='{} {} {}'", case.devices(), self.model(case).0, case.command())
    }

    /// The smallest case that still disagrees as `tree` does now.
    fn shrink(&mut self, tree: &mut impl ValueTree<Value = Case>) -> (Case, Verdict) {
        let mut smallest = tree.current();
        let mut found = self.judge_alone(&smallest);
        for _ in 0..120 {
            let simpler = tree.simplify();
            if !simpler {
                break;
            }
            loop {
                let case = tree.current();
                let verdict = self.judge_alone(&case);
                if verdict.is_wrong() {
                    (smallest, found) = (case, verdict);
                    break;
                }
                if !tree.complicate() {
                    return (smallest, found);
                }
            }
        }
        (smallest, found)
    }
}

/// Ours against theirs.
fn verdict(model: &Model, launch: &Launch, theirs: Result<Projection, Error>) -> Verdict {
    let ours = predict(model, launch);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => Verdict::Compared { ours, theirs: theirs.by_device() },
        (ours, Err(error)) if error.kind == Kind::Died => {
            let log = error.to_string().split(" | ").map(str::to_string).collect();
            Verdict::Died { refused: ours.is_err(), log }
        }
        (Err(_), Err(_)) => Verdict::BothRefuse,
        (Ok(_), Err(theirs)) => Verdict::OnlyTheyRefuse(theirs.to_string()),
        (Err(ours), Ok(_)) => Verdict::OnlyWeRefuse(ours),
    }
}

/// What we predict, or why llama.cpp would refuse.
fn predict(model: &Model, launch: &Launch) -> Result<MemoryByDevice, String> {
    Ok(memory::forecast(model, &launch.machine, &launch.run).map_err(|e| e.to_string())?.memory)
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[test]
fn our_bytes_are_llama_cpps_on_random_flags() {
    let mut rig = Rig::new();
    if let Ok(text) = std::env::var("MOEPLAN_CASE") {
        // A model may also be a file.
        let path = PathBuf::from(text.split_whitespace().nth(1).unwrap_or_default());
        if path.exists() {
            let model = Model::from_gguf(gguf::open(&path).expect("a header")).expect("a model");
            rig.models.push((path.display().to_string(), path, model));
        }
        let names: Vec<String> = rig.models.iter().map(|(name, ..)| name.clone()).collect();
        let case = Case::parse(&text, &names).expect("`DEVICES MODEL PROGRAM FLAGS…`");
        if std::env::var_os("MOEPLAN_LOG").is_some() {
            rig.runtime.echo = Some(|line| eprintln!("{line}"));
        }
        let verdict = rig.judge_alone(&case);
        eprintln!("{}\n{}\n{verdict:?}", rig.replay(&case), verdict.describe(true));
        assert!(!verdict.is_wrong());
        return;
    }
    let full = is_full();
    let asked = number("MOEPLAN_CASES").and_then(|n| usize::try_from(n).ok());
    let count = asked.unwrap_or(if full { FULL_CASES } else { CASES });
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number("MOEPLAN_SEED").unwrap_or(1).to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = case();
    let (mut score, mut wrong) = (Score::default(), Vec::new());
    while score.cases < count {
        let size = BATCH.min(count - score.cases);
        let mut trees: Vec<_> = (0..size).map(|_| strategy.new_tree(&mut runner).expect("a case")).collect();
        let cases: Vec<Case> = trees.iter().map(ValueTree::current).collect();
        let verdicts = rig.judge(&cases);
        for ((case, verdict), tree) in cases.iter().zip(verdicts).zip(&mut trees) {
            score.add(&rig.replay(case), case, &verdict);
            // Twenty examples tell enough; each takes some seconds to shrink.
            if verdict.is_wrong() && wrong.len() < 20 {
                let (smallest, verdict) = rig.shrink(tree);
                wrong.push(format!("{}\n  {}", rig.replay(&smallest), verdict.describe(false)));
            }
        }
    }
    eprintln!("{}", score.report());
    assert!(wrong.is_empty(), "{} disagreements, {} shown:\n{}", score.wrong, wrong.len(), wrong.join("\n"));
    let within = score.share_within();
    assert!(within >= COMPUTE_WITHIN, "compute within 1% or 1 MiB on {within:.4} of the cases");
}

/// A projection is not all that the launch then allocates: what is bound to one of several devices stays there, and more batches are
/// reserved.
#[test]
fn what_a_launch_allocates_is_predicted() {
    let rig = Rig::new();
    let full = is_full();
    let asked = number("MOEPLAN_CASES").and_then(|n| usize::try_from(n).ok());
    let count = asked.unwrap_or(if full { 1000 } else { 60 });
    let mut seed = [2; 32];
    seed[..8].copy_from_slice(&number("MOEPLAN_SEED").unwrap_or(1).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let strategy = case();
    let workload = Workload { prompt: Prompt::Tokens(1), depth: 0, n_generate: 0, repetitions: 1 };
    let (mut equal, mut beyond, mut refused, mut wrong) = (0, 0, 0, Vec::new());
    while equal + refused + wrong.len() < count {
        let case = strategy.new_tree(&mut runner).expect("a case").current();
        let launch = rig.launch(&case);
        let forecast = memory::forecast(&rig.model(&case).2, &launch.machine, &launch.run);
        let (Ok(forecast), Ok(seen)) = (forecast, rig.runtime.generate(&launch, &workload)) else {
            refused += 1;
            continue;
        };
        let expected = Expected::of(&forecast, Bytes(0)).memory;
        let compute = |memory: &MemoryByDevice| {
            let rows = memory.iter().map(|(name, row)| (name.clone(), row.compute));
            rows.filter(|(_, bytes)| *bytes > Bytes(0)).collect::<BTreeMap<_, _>>()
        };
        let (ours, theirs) = (compute(&expected), compute(&seen.memory));
        beyond += usize::from(!forecast.beyond().is_empty());
        if ours == theirs {
            equal += 1;
        } else {
            wrong.push(format!("{}\n  ours {ours:?}\n  theirs {theirs:?}", rig.replay(&case)));
        }
    }
    eprintln!("{equal} equal, {beyond} of them not as projected; {refused} refused, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(beyond > 0 && equal >= count / 2, "{equal} equal, {beyond} not as projected, {refused} refused");
}

/// A target, what drafts for it (`None`: its own NextN blocks), and the kind of speculation.
type Pair = (PathBuf, Option<PathBuf>, &'static str);

/// Every draft model of `testdata/drafts.tar.xz` with its target, every model with NextN blocks, and as many plain drafts of another model.
fn pairs(rig: &Rig) -> Vec<Pair> {
    let unpacked = |name| unpacked(name).expect("a test archive");
    let (drafts, nextn) = (unpacked("drafts"), unpacked("nextn"));
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let target = |wanted: &str| drafts.iter().find(|path| name(path) == wanted).expect("a target").clone();
    let mut pairs: Vec<Pair> = nextn.iter().map(|path| (path.clone(), None, "draft-mtp")).collect();
    for draft in drafts.iter().filter(|path| !name(path).starts_with("target-")) {
        let kind = name(draft).split('-').next().unwrap_or_default().to_string();
        let (of, kind) = match kind.as_str() {
            "assistant" => ("target-gemma4", "draft-mtp"),
            "nextn" => ("target-qwen3", "draft-mtp"),
            "eagle3" => ("target-qwen3", "draft-eagle3"),
            "dspark" => ("target-qwen3", "draft-dspark"),
            _ => ("target-qwen3", "draft-dflash"),
        };
        pairs.push((target(of), Some(draft.clone()), kind));
    }
    let plain = rig.models.iter().zip(rig.models.iter().skip(7)).step_by(3);
    pairs.extend(plain.map(|((_, model, _), (_, draft, _))| (model.clone(), Some(draft.clone()), "draft-simple")));
    pairs
}

#[test]
fn our_bytes_are_llama_cpps_on_random_launches_with_drafts() {
    let mut rig = Rig::new();
    let pairs = pairs(&rig);
    let count = number("MOEPLAN_CASES").and_then(|n| usize::try_from(n).ok());
    let count = count.unwrap_or(if is_full() { FULL_CASES } else { CASES });
    let mut seed = [1; 32];
    seed[..8].copy_from_slice(&number("MOEPLAN_SEED").unwrap_or(1).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let strategy = (case(), drafting(), 0..pairs.len());
    let open = |path: &Path| Model::from_gguf(gguf::open(path).map_err(|e| e.to_string())?).map_err(|e| e.to_string());
    let (mut equal, mut refused, mut died, mut wrong) = (0, 0, 0, Vec::new());
    for _ in 0..count.div_ceil(BATCH) {
        let drawn: Vec<_> =
            (0..BATCH.min(count)).map(|_| strategy.new_tree(&mut runner).expect("a case").current()).collect();
        let launches: Vec<(Launch, Launch)> = drawn
            .iter()
            .map(|(case, flags, at)| {
                let (model, draft, kind) = &pairs[*at];
                let mut flags = flags.clone();
                flags.push(format!("--spec-type {kind}"));
                flags.extend(draft.as_ref().map(|path| format!("-md {}", path.display())));
                let target = rig.launch_of(&case.with(&flags), model);
                let cells = open(model).map_or(0, |model| numbers(&target.run, &model.hparams).n_ctx);
                let run = target.run.drafting(cells);
                let draft = Launch { model: draft.as_ref().unwrap_or(model).clone(), run, ..target.clone() };
                (target, draft)
            })
            .collect();
        let targets: Vec<Launch> = launches.iter().map(|(target, _)| target.clone()).collect();
        let theirs = rig.runtime.project(&targets).into_iter().zip(rig.runtime.project_drafts(&launches));
        for (((case, flags, at), (target, _)), (whole, part)) in drawn.iter().zip(&launches).zip(theirs) {
            let (model, draft, kind) = &pairs[*at];
            let name = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let what = format!(
                "{} {} {kind} {:?} {}",
                case.devices(),
                name(model),
                draft.as_ref().map(name),
                case.with(flags).command()
            );
            let ours = open(model).and_then(|mut model| {
                model.draft = draft.as_ref().map(|path| open(path)).transpose()?.map(Into::into);
                memory::forecast(&model, &target.machine, &target.run).map_err(|e| e.to_string())
            });
            match (ours, whole, part) {
                (_, Err(error), _) | (_, _, Err(error)) if error.kind == Kind::Died => died += 1,
                (Ok(ours), Ok(whole), Ok(part)) => {
                    let Some(drafting) = ours.drafting else {
                        wrong.push(format!("{what}: {:?}", ours.uncounted));
                        continue;
                    };
                    let mut part = part.by_device();
                    // NextN blocks of the model itself are the target's.
                    part.values_mut().filter(|_| draft.is_none()).for_each(|row| row.model = Bytes(0));
                    let verdicts = [
                        Verdict::Compared { ours: ours.target, theirs: whole.by_device() },
                        Verdict::Compared { ours: drafting.memory, theirs: part },
                    ];
                    let said = verdicts.map(|verdict| verdict.describe(true));
                    if said.iter().all(|said| said == "all equal") {
                        equal += 1;
                    } else {
                        wrong.push(format!("{what}: target {}; drafting {}", said[0], said[1]));
                    }
                }
                (Err(_), _, Err(_)) | (Err(_), Err(_), _) => refused += 1,
                (ours, whole, part) => wrong.push(format!(
                    "{what}: ours {:?}, theirs {:?} {:?}",
                    ours.err(),
                    whole.err().map(|e| e.to_string()),
                    part.err().map(|e| e.to_string())
                )),
            }
        }
        rig.start_servers();
    }
    eprintln!("{equal} equal, {refused} refused by both, {died} deaths of llama.cpp, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
