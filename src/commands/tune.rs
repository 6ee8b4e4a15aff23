//! `tune`: the plan, `--fit on` and the plan's neighbours measured in turn, and the fastest as a command. [I/O]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::launch::{Engine, EngineArgs, Proposal, as_written};
use super::plan_options::PlanOptions;
use super::{Outcome, Output, check, measuring};
use crate::bytes::Bytes;
use crate::cli::help::OWN;
use crate::evidence::store::now;
use crate::machine::{Device, Machine};
use crate::measurement::{Expected, peak_of};
use crate::memory;
use crate::plan::explain;
use crate::run::command::{server_command, shell};
use crate::run::{ModelSource, RunConfig, Target};
use crate::runtime::server::Server;
use crate::runtime::{self, Launch, Prompt, Runtime as _, Workload};
use crate::speed::Acceptance;
use crate::suggest::Refusal;
use crate::tune::document::{Document, Entry};
use crate::tune::race::End;
use crate::tune::{self, Candidate, Kind, Predicted, Race, SCHEMA, Subject, Visit, journal};
use crate::{evidence, files};

/// Samples of one visit, behind one warm-up.
const SAMPLES: u32 = 3;
/// What was measured longer ago is measured anew: drivers, clocks and neighbours change.
const FRESH: Duration = Duration::from_hours(24);

/// Measure the plan, llama.cpp's own `--fit on` and the most promising neighbours; ends with the fastest as a command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan tune model.gguf --vram 24G
  moeplan tune model.gguf --vram 24G -c 32768 --prompt 4096 --depth 16384 --minutes 30
  moeplan tune model.gguf --journal tune.jsonl         if interrupted, the same command continues")]
pub struct Args {
    /// A GGUF file to plan for, or a plan (`moeplan plan --explain --json`).
    #[arg(value_name = "MODEL|PLAN")]
    pub model: PathBuf,
    #[command(flatten)]
    pub options: PlanOptions,
    /// Time limit in minutes; except for the first, no measurement starts that would end later.
    #[arg(long, help_heading = OWN, value_name = "N", default_value_t = 20.0, value_parser = minutes)]
    pub minutes: f64,
    /// File that keeps every measurement, from which an interrupted run resumes [default: in the state folder].
    #[arg(long, help_heading = OWN, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    #[command(flatten)]
    pub engine: EngineArgs,
}

fn minutes(text: &str) -> Result<f64, String> {
    let number: Result<f64, _> = text.parse();
    number.ok().filter(|n| (0.0..=1e6).contains(n)).ok_or_else(|| "write a number of minutes".to_string())
}

struct Tuning {
    server: Server,
    proposal: Proposal,
    subject: Subject,
    race: Race,
    journal: PathBuf,
    first_error: Option<runtime::Error>,
    unkept: Option<anyhow::Error>,
}

/// What is said where no candidate has a sample.
const NOTHING: &str = "nothing could be measured";

pub fn run(mut args: Args, output: &Output) -> anyhow::Result<Outcome> {
    // The neighbours are the plan's explained alternatives.
    args.options.planning.explain = true;
    anyhow::ensure!(
        !args.options.launch.embeddings(),
        "--embeddings: `tune` times a turn, and an embedding server has none"
    );
    args.options.beside_plan(&args.model, false)?;
    // A dry run measures nothing, so it keeps nothing.
    let kept = (!args.engine.dry_run).then(|| journal_file(&args)).transpose()?;
    let (journal, earlier) = kept.unwrap_or_default();
    let _measuring = (!args.engine.dry_run).then(|| measuring::begin("tune", output)).transpose()?;
    let mut tuning = Tuning::prepare(&args, journal, output)?;
    if args.engine.dry_run {
        let candidates = tuning.race.entrants.iter().map(|entrant| &entrant.candidate);
        let launches = candidates.map(|candidate| (Some(candidate.what.clone()), &candidate.run));
        return check::told(tuning.proposal.told(launches, &args.options)?, output);
    }
    if !tuning.proposal.servers.is_empty() {
        output.say(
            "software devices run on moeplan's own RPC servers, which stop with it: write your server's address for HOST:PORT in the final command",
        );
    }
    let since = now().saturating_sub(FRESH.as_secs());
    let visits = journal::visits(&earlier, &tuning.subject).into_iter().filter(|visit| visit.time >= since);
    let known = visits.filter(|visit| tuning.race.add(visit.clone())).count();
    if known > 0 {
        output.say(&format!("{known} earlier measurements are reused from {}", tuning.journal.display()));
    }
    let begin = Instant::now();
    let limit = Duration::from_secs_f64(args.minutes * 60.0);
    let stopped = loop {
        let Some(at) = tuning.race.next() else { break tuning.race.end() };
        if tuning.race.is_begun() && begin.elapsed() + tuning.race.visit_time(at) > limit {
            break End::Time;
        }
        let left = limit.saturating_sub(begin.elapsed());
        output.say(&format!(
            "measuring {}; at most {} left",
            tuning.race.entrants[at].candidate.what,
            measuring::roughly(left)
        ));
        tuning.visit(at, output)?;
        if tuning.unkept.is_some() {
            break End::Journal;
        }
    };
    let Some((winner, verdict)) = tuning.race.winner() else {
        let error = tuning.first_error.map(|error| anyhow::Error::new(error).context(NOTHING));
        return Err(error.unwrap_or_else(|| anyhow::anyhow!(NOTHING)));
    };
    let model = ModelSource::Path(tuning.proposal.launch.model.clone());
    // A server of moeplan's own ends with it, and nobody reaches its address.
    let reachable = |word: &String| {
        let servers = tuning.proposal.servers.iter();
        servers.fold(word.clone(), |word, server| word.replace(server.endpoint(), "HOST:PORT"))
    };
    let chosen = &tuning.race.entrants[winner].candidate;
    let args: Vec<String> = chosen.args.iter().map(reachable).collect();
    let command = shell(&server_command(&model, &chosen.run, &args));
    let document = Document {
        schema: SCHEMA.to_string(),
        subject: tuning.subject.clone(),
        stopped,
        seconds: begin.elapsed().as_secs_f64(),
        journal: tuning.journal.display().to_string(),
        verdict,
        candidates: (0..tuning.race.entrants.len()).map(|at| Entry::of(&tuning.race, at)).collect(),
        winner,
        command: command.context("the model's path holds a NUL character")?,
    };
    output.show(&document)?;
    tuning.unkept.map_or(Ok(Outcome::Yes), Err)
}

/// The journal, which can be written, and what is in it: the one that is named, or that of the state folder.
fn journal_file(args: &Args) -> anyhow::Result<(PathBuf, String)> {
    let own = || Some(evidence::store::path()?.with_file_name("tune.jsonl"));
    let path = args.journal.clone().or_else(own).context("no folder for the journal: give --journal FILE")?;
    let folder = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create `{}`: give another --journal FILE", folder.display()))?;
    files::check_append(&path)?;
    // A device is written to; reading one may never end.
    let bytes = if path.is_file() { std::fs::read(&path) } else { Ok(Vec::new()) };
    let text =
        String::from_utf8_lossy(&bytes.with_context(|| format!("cannot read `{}`", path.display()))?).into_owned();
    if !journal::is_one(&text) {
        let message = format!("`{}` is not a journal of `tune`; nothing was added to it", path.display());
        return Err(Refusal::new(message, "name a new file with --journal").into());
    }
    Ok((path, text))
}

impl Tuning {
    /// The plan, its neighbours and `--fit on`.
    fn prepare(args: &Args, journal: PathBuf, output: &Output) -> anyhow::Result<Self> {
        let server = args.engine.server(output)?;
        let engine = Engine::Server(Box::new(server.clone()));
        let proposal = Proposal::of_model(&args.model, &args.options, &engine, None)?;
        proposal.warn(output);
        let plan = proposal.plan.as_deref().context("a tuning begins with a plan")?;
        let turn = plan.turn;
        anyhow::ensure!(
            turn.prompt > 0 && turn.generate > 0,
            "tuning needs a turn with a --prompt and a --generate above 0"
        );
        let shorter = |slot: u32| match slot.checked_sub(turn.depth.saturating_add(turn.generate)) {
            Some(prompt) if prompt > 0 => format!("--prompt {prompt} or less"),
            _ => "a smaller --depth or --generate".to_string(),
        };
        proposal.has_room(&proposal.forecast()?, "the turn", turn.tokens(), shorter)?;
        let launch = &proposal.launch;
        let path = &launch.model;
        let file = std::fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let device = |d: &Device| (d.name.clone(), d.description.clone().unwrap_or_default(), d.total);
        let subject = Subject {
            model: path.display().to_string(),
            bytes: Bytes(file.len()),
            program: server.build.program.display().to_string(),
            build: server.build.number.unwrap_or(0),
            prompt: turn.prompt,
            generate: turn.generate,
            depth: turn.depth,
            devices: launch.machine.devices.iter().map(device).collect(),
        };
        if plan.why.alternatives.is_empty() {
            output.say(
                "the plan lists no alternatives (`plan --explain --json` does): it is measured against --fit on alone",
            );
        }
        let machine = &launch.machine;
        let mut alternatives = alternatives(&plan.why.alternatives, plan.check.run.target, machine)?;
        // What the build lacks (an expert cache, before b11549) is no neighbour of its plan.
        alternatives.retain(|other| server.takes(&other.run));
        let request = args.options.request_for(engine.build(), &proposal.model, machine, &[])?;
        let fit = tune::fit(&launch.run, &request, machine, &engine.free(launch)?);
        let predicted = Predicted { speed: plan.speed.clone(), turn_seconds: plan.turn_seconds };
        let mut candidates = vec![
            Candidate::new(Kind::Plan, "the plan", launch.run.clone(), machine, Some(predicted)),
            Candidate::new(Kind::Fit, "--fit on", fit, machine, None),
        ];
        candidates.extend(tune::promising(&launch.run, alternatives, &request));
        let fits = |run: &RunConfig| {
            let forecast = memory::forecast(&proposal.model, machine, run);
            forecast.is_ok_and(|forecast| forecast.shortfall(machine, request.margin).is_empty())
        };
        let drafts = tune::drafts(&launch.run, machine).into_iter();
        candidates.extend(drafts.filter(|other| server.takes(&other.run) && fits(&other.run)));
        let race = Race::new(candidates);
        Ok(Self { server, proposal, subject, race, journal, first_error: None, unkept: None })
    }

    /// Loads a candidate, measures it and writes that down. An interruption is an error, any other failure is the candidate's.
    fn visit(&mut self, at: usize, output: &Output) -> anyhow::Result<()> {
        let candidate = self.race.entrants[at].candidate.clone();
        let launch = Launch { run: candidate.run.clone(), ..self.proposal.launch.clone() };
        let begin = Instant::now();
        let Subject { prompt, generate, depth, .. } = self.subject;
        let prompt = Prompt::Tokens(prompt);
        let workload = Workload { prompt, depth, n_generate: generate, repetitions: SAMPLES };
        let seen = match self.server.generate(&launch, &workload) {
            Ok(seen) if !seen.interrupted => seen,
            Ok(_) | Err(runtime::Error { kind: runtime::Kind::Interrupted, .. }) => {
                let journal = self.journal.display();
                output.say(&format!("the measurements are kept in {journal}, and the same command continues"));
                return Err(runtime::Error::interrupted().into());
            }
            Err(error) if error.is_of_every_launch() && self.race.entrants.iter().all(|e| e.visits.is_empty()) => {
                return Err(anyhow::Error::new(error).context(NOTHING));
            }
            Err(error) => {
                output.say(&format!("left out: {error}"));
                self.race.entrants[at].failure = Some(error.to_string());
                self.first_error.get_or_insert(error);
                return Ok(());
            }
        };
        let visit = Visit {
            schema: journal::SCHEMA.to_string(),
            subject: self.subject.clone(),
            candidate: candidate.id.clone(),
            what: candidate.what.clone(),
            time: now(),
            seconds: begin.elapsed().as_secs_f64(),
            load_seconds: seen.load_seconds,
            depth: seen.speed.depth,
            pp: seen.speed.pp.clone(),
            tg: seen.speed.tg.clone(),
            memory: seen.memory.iter().map(|(name, row)| (name.clone(), row.own())).collect(),
            peak: peak_of(&seen.device_used),
            cache_hits: seen.cache_hits,
            acceptance: seen.speed.drafts_taken.map(|taken| Acceptance::of_share(taken, launch.run.n_draft)),
        };
        // What cannot be kept is still in the race, and ends it.
        let line = serde_json::to_string(&visit)? + "\n";
        let kept = files::append(&self.journal, &line);
        self.unkept = kept.with_context(|| format!("cannot write the journal `{}`", self.journal.display())).err();
        if !self.race.add(visit) {
            self.race.entrants[at].failure = Some("the server's replies report no speed".to_string());
        }
        // What the devices showed is evidence for later plans.
        if candidate.kind != Kind::Fit {
            let keep = || -> anyhow::Result<_> {
                let forecast = memory::forecast(&self.proposal.model, &launch.machine, &launch.run)?;
                let expected = Expected::of(&forecast, Bytes(0));
                Ok(evidence::store::keep(&seen, &expected, &launch)?)
            };
            if let Err(error) = keep() {
                output.say(&format!("warning: cannot keep what was measured of the devices: {error}"));
            }
        }
        Ok(())
    }
}

/// The plan's alternatives that fit, as launches.
fn alternatives(planned: &[explain::Alternative], target: Target, machine: &Machine) -> anyhow::Result<Vec<Candidate>> {
    let candidate = |other: &explain::Alternative| {
        let mut run = as_written(&other.args, &other.environment, target)?.run;
        run.rpc = machine.rpc_servers(&run.rpc);
        let predicted = Predicted { speed: other.speed.clone(), turn_seconds: other.turn_seconds };
        Ok(Candidate::new(Kind::Neighbour, &other.what, run, machine, Some(predicted)))
    };
    planned.iter().filter(|other| other.fits).map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::plan::ExpertSplit;
    use crate::run::FlashAttn;
    use crate::runtime::server::Build;
    use crate::speed::Speed;

    #[test]
    fn a_flag_that_the_build_lacks_makes_no_neighbour() {
        let of = |args: &str| explain::Alternative {
            what: args.to_string(),
            environment: BTreeMap::new(),
            args: args.split(' ').map(str::to_string).collect(),
            fits: true,
            shortfall: BTreeMap::new(),
            memory: BTreeMap::new(),
            placement: ExpertSplit::default(),
            speed: Speed { pp: 1.0, tg: 1.0, basis: String::new(), uncertainty: 0.2, ..Speed::default() },
            turn_seconds: 1.0,
            turn_change: 0.0,
            note: None,
        };
        let machine = Machine::new(Vec::new(), crate::machine::Host::default()).unwrap();
        let found =
            alternatives(&[of("-c 512 --moe-cache-mib 2"), of("-c 512 -ub 64")], Target::default(), &machine).unwrap();
        assert_eq!(found.iter().map(|other| other.run.moe_cache_mib).collect::<Vec<_>>(), [2, 0]);
        for (flags, taken) in [(&["-c", "-ub"][..], [false, true]), (&["-c", "-ub", "--moe-cache-mib"], [true, true])] {
            let server = Server::of(
                PathBuf::new(),
                Build {
                    program: "llama-server".into(),
                    version: String::new(),
                    number: Some(11434),
                    flags: flags.iter().map(ToString::to_string).collect(),
                    isa: crate::machine::Isa::default(),
                },
            );
            assert_eq!(found.iter().map(|other| server.takes(&other.run)).collect::<Vec<_>>(), taken);
        }
        // What the arguments do not say is as in the build that they are for: before b6327 no layer was on a card.
        let old = Target { build: 6168, ..Target::default() };
        let found = [old, Target::default()]
            .map(|target| alternatives(&[of("-c 512")], target, &machine).unwrap().remove(0).run);
        assert_eq!(
            found.map(|run| (run.n_gpu_layers, run.flash_attn, run.fit)),
            [(0, FlashAttn::Off, false), (-1, FlashAttn::Auto, true)]
        );
        assert!(
            alternatives(&[of("-c 512 --frobnicate")], Target::default(), &machine)
                .unwrap_err()
                .to_string()
                .contains("--frobnicate")
        );
    }
}
