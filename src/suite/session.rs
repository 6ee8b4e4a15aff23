//! One launch, or one endpoint, asked every prompt whole and as a stream, and swept over depths. [I/O]

use std::borrow::Cow;

use serde_json::json;

use super::document::{Case, Clock, DepthSample, Kind, Mode, Sample, Session, Settings, TokenCount, Trouble};
use super::protocol::{CASES, Prompt};
use super::stream::{Answer, Delta};
use crate::bytes::Bytes;
use crate::machine::Machine;
use crate::measurement::{Expected, Taken};
use crate::memory::{self, Forecast, HOST, MemoryBreakdown, MemoryByDevice};
use crate::model::Model;
use crate::rules::Role;
use crate::run::command::pasteable;
use crate::run::{EXPERTS, Override, RunConfig};
use crate::runtime::client::{Endpoint, Reply, Request, Timings};
use crate::runtime::server::Server;
use crate::runtime::{self, Error, Launch, Observation, Prompt as Text, Runtime, SpeedSamples, Workload};
use crate::suggest::Hint as _;

/// The share that compute buffers and totals may differ by.
const TOLERANCE: f64 = 0.02;

#[derive(Debug, Clone)]
pub struct Asking {
    pub prompts: Vec<Prompt>,
    pub settings: Settings,
    /// Whose tokenizer counts where the endpoint does not.
    pub tokenizer: Option<Endpoint>,
    /// What a plan leaves free: how far overhead may be off.
    pub margin: Bytes,
}

/// A case before its first launch.
#[derive(Debug, Clone)]
pub struct CaseLaunch {
    pub case: Case,
    pub launch: Launch,
    /// `None` where llama.cpp chooses by itself.
    pub predicted: Option<Forecast>,
    pub refused: Option<String>,
}

impl CaseLaunch {
    /// The case of that name, made from a launch: all but `fit` differ from it in nothing but where tensors go. `fit` is the launch that
    /// llama.cpp chooses by itself ([`crate::tune::fit`]).
    pub fn new(name: &str, launch: &Launch, fit: &RunConfig, model: &Model) -> Self {
        let what = CASES.iter().find(|(known, _)| *known == name).map_or("", |(_, what)| what);
        let run = if name == "fit" { fit.clone() } else { baseline(name, &launch.run) };
        let launch = Launch { run, ..launch.clone() };
        let command = Some(pasteable(&launch.model, &launch.run));
        let case = Case { name: name.into(), what: what.into(), command, ..Case::default() };
        let mut this = Self { case, launch, predicted: None, refused: None };
        let has_experts = model.tensors.iter().any(|tensor| tensor.role == Role::RoutedExpert);
        if this.launch.machine.devices.is_empty() && name != "plan" {
            this.refused = Some("there is no device to compare with main memory".to_string());
        } else if name == "experts-on-host" && !has_experts {
            this.refused = Some("the model has no routed experts".to_string());
        } else if !this.launch.run.fit {
            match memory::forecast(model, &this.launch.machine, &this.launch.run) {
                Ok(predicted) => this.predicted = Some(predicted),
                Err(why) => this.refused = Some(why.to_string()),
            }
        }
        this
    }

    /// The first device that it overfills, in words; `None` where it fits.
    pub fn lacking(&self) -> Option<String> {
        lacking(&self.predicted.as_ref()?.memory, &self.launch.machine)
    }

    /// What main memory has to give: the host's part, and the devices' that are in main memory themselves. Mapped weights are not
    /// counted.
    pub fn host_needs(&self) -> Bytes {
        let Some(predicted) = &self.predicted else { return Bytes(0) };
        let devices = &self.launch.machine.devices;
        let is_local = |name: &str| {
            let endpoint = devices.iter().find(|device| device.name == name).and_then(|device| device.endpoint());
            endpoint.is_some_and(|endpoint| endpoint.starts_with("127.") || endpoint.starts_with("localhost"))
        };
        let of = |(name, row): (&String, &MemoryBreakdown)| match name.as_str() {
            HOST if predicted.mapped.host.is_some() => row.context + row.compute,
            name if name == HOST || is_local(name) => row.own(),
            _ => Bytes(0),
        };
        predicted.memory.iter().map(of).sum()
    }

    /// A launch of it, unless it is refused; the error that `launch` ends with is the session's failure.
    fn session(&self, repetition: u32, launch: impl FnOnce(&mut Session) -> Result<(), Error>) -> Session {
        let predicted = self.predicted.as_ref().map(|predicted| memory::rows(&predicted.memory)).unwrap_or_default();
        let taken = Taken { predicted, ..Taken::default() };
        let mut session = Session { case: self.case.name.clone(), repetition, taken, ..Session::default() };
        if let Some(why) = &self.refused {
            session.failure = Some(format!("not launched: {why}"));
            session.trouble = Some(Trouble { kind: Kind::NotLaunched, hint: None });
        } else if let Err(error) = launch(&mut session) {
            session.fail(Some(self), &error);
        }
        session
    }
}

fn lacking(memory: &MemoryByDevice, machine: &Machine) -> Option<String> {
    let needs = |name: &str| memory.get(name).map_or(Bytes(0), MemoryBreakdown::total);
    let device = machine.devices.iter().find(|device| needs(&device.name) > device.total)?;
    Some(format!("it needs {} of {}, which has {}", needs(&device.name), device.name, device.total))
}

/// The settings of a case that moeplan chooses, from those of the launch under test.
fn baseline(name: &str, run: &RunConfig) -> RunConfig {
    let n_gpu_layers = run.n_gpu_layers.max(99);
    let experts = Override { pattern: EXPERTS.into(), buffer: "CPU".into(), origin: "-cmoe".into() };
    match name {
        "all-on-device" => RunConfig { overrides: Vec::new(), n_gpu_layers, fit: false, ..run.clone() },
        "experts-on-host" => RunConfig { overrides: vec![experts], n_gpu_layers, fit: false, ..run.clone() },
        _ => RunConfig { fit: false, ..run.clone() },
    }
}

pub fn launched(server: &Server, case: &CaseLaunch, repetition: u32, asking: &Asking) -> Session {
    case.session(repetition, |session| {
        let mut running = server.start(&case.launch)?;
        running.sample();
        session.notes.clone_from(&running.notes);
        let endpoint = running.client.clone();
        let asked = ask_all(&endpoint, asking, session)
            .and_then(|()| sweep(&endpoint, &asking.settings, endpoint.vocabulary()?, session))
            .map_err(|error| running.explained(error));
        // What it took is seen whether it answered or not.
        match (running.finish(), asked) {
            (Ok(seen), asked) => {
                session.measured(case, asking, seen);
                asked
            }
            (Err(error), asked) => asked.and(Err(error)),
        }
    })
}

pub fn of_endpoint(endpoint: &Endpoint, repetition: u32, asking: &Asking) -> Session {
    let mut session = Session { case: "endpoint".to_string(), repetition, ..Session::default() };
    let mut asked = ask_all(endpoint, asking, &mut session);
    if asked.is_ok() && !asking.settings.depths.is_empty() {
        if let Ok(n_vocab) = endpoint.vocabulary() {
            asked = sweep(endpoint, &asking.settings, n_vocab, &mut session);
        } else {
            let why = "no depth sweep: the endpoint takes no prompts of tokens (llama-server's /completion)";
            session.notes.push(why.into());
        }
    }
    if let Err(error) = asked {
        session.fail(None, &error);
    }
    session
}

/// Runs a case inside moeplan: every prompt as it is, in one piece.
pub fn embedded(runtime: &dyn Runtime, case: &CaseLaunch, repetition: u32, asking: &Asking) -> Session {
    case.session(repetition, |session| {
        let notes = [
            "the embedded llama.cpp answers in one piece: there are no streams and no first token",
            "prompts are given to it as they are, without the model's chat template",
        ];
        session.notes.extend(notes.map(str::to_string));
        for Prompt { name, text, max_tokens, .. } in &asking.prompts {
            let prompt = Text::Text(text.clone());
            let workload = Workload { prompt, depth: 0, n_generate: *max_tokens, repetitions: 1 };
            let seen = runtime.generate(&case.launch, &workload)?;
            session.samples.push(in_one_piece(name, &seen));
            if session.runtime.is_none() {
                session.measured(case, asking, seen);
            }
        }
        Ok(())
    })
}

fn in_one_piece(prompt: &str, seen: &Observation) -> Sample {
    let SpeedSamples { n_prompt: prompt_n, n_generate: predicted_n, pp, tg, .. } = seen.speed.clone();
    // A rate of 0 is not shown.
    let rate = |samples: &[f64]| samples.first().copied().unwrap_or_default();
    let (prompt_per_second, predicted_per_second) = (rate(&pp), rate(&tg));
    let timings = Timings { prompt_n, prompt_per_second, predicted_n, predicted_per_second, ..Timings::default() };
    let seconds = |n: u32, rate: f64| if rate > 0.0 { f64::from(n) / rate } else { 0.0 };
    let seconds = seconds(prompt_n, prompt_per_second) + seconds(predicted_n, predicted_per_second);
    let deltas = vec![Delta { seconds, piece: 0, text: seen.text.clone() }];
    let answer = Answer { deltas, timings: Some(timings), ..Answer::default() };
    sample(prompt, Mode::Whole, &answer, seconds, |_| None)
}

/// Every prompt, whole and as a stream, after one short request that is not counted.
fn ask_all(endpoint: &Endpoint, asking: &Asking, session: &mut Session) -> Result<(), Error> {
    let warm = Prompt { name: "warm-up".into(), text: "Hello".into(), max_tokens: 8, check: None };
    ask_one(endpoint, asking, &warm, Mode::Whole, None)?;
    for prompt in &asking.prompts {
        let whole = ask_one(endpoint, asking, prompt, Mode::Whole, None)?;
        let is_comparable = asking.settings.temperature == 0.0 && whole.failure.is_none();
        let text = is_comparable.then(|| whole.text.clone());
        session.samples.push(whole);
        session.samples.push(ask_one(endpoint, asking, prompt, Mode::Stream, text.as_deref())?);
    }
    Ok(())
}

/// `whole` is the same answer in one piece, where a stream can be compared with it.
fn ask_one(
    endpoint: &Endpoint,
    asking: &Asking,
    prompt: &Prompt,
    mode: Mode,
    whole: Option<&str>,
) -> Result<Sample, Error> {
    let recording = endpoint.chat(json!({
        "messages": [{"role": "user", "content": prompt.text}],
        "max_tokens": prompt.max_tokens,
        "temperature": asking.settings.temperature,
        "seed": asking.settings.seed,
        // Always said: some servers stream unless told otherwise.
        "stream": mode == Mode::Stream,
        // llama-server's own: every prompt is read whole, so that its speed is that of reading it.
        "cache_prompt": false,
    }))?;
    let answer = if mode == Mode::Stream { Answer::streamed(&recording) } else { Answer::whole(&recording) };
    let count = |text: &str| asking.tokenizer.as_ref()?.count_tokens(text);
    let mut sample = sample(&prompt.name, mode, &answer, recording.seconds, count);
    if mode == Mode::Stream {
        sample.stream = answer.health(whole);
    }
    Ok(sample)
}

fn speed(tokens_per_second: f64) -> Option<f64> {
    Some(tokens_per_second).filter(|speed| speed.is_finite() && *speed > 0.0)
}

/// Speeds of the prompt and of generation, which takes two tokens to have one.
fn speeds(timings: &Timings) -> (Option<f64>, Option<f64>) {
    let tg = speed(timings.predicted_per_second).filter(|_| timings.predicted_n > 1);
    (speed(timings.prompt_per_second), tg)
}

/// What an answer says. `count` is the tokenizer, asked where the server does not count.
fn sample(prompt: &str, mode: Mode, answer: &Answer, seconds: f64, count: impl Fn(&str) -> Option<u32>) -> Sample {
    let text = answer.text();
    let timings = answer.timings.filter(|timings| timings.predicted_n > 0);
    let (generated_tokens, tokens_by) = match answer.generated_tokens.or(timings.map(|timings| timings.predicted_n)) {
        Some(n) => (Some(n), Some(TokenCount::Runtime)),
        None if !answer.reasoning.is_empty() || text.is_empty() => (None, None),
        None => count(&text).map_or((None, None), |n| (Some(n), Some(TokenCount::Tokenizer))),
    };
    let streamed = mode == Mode::Stream;
    let (pp, tg, speed_by) = if let Some(timings) = &timings {
        let (pp, tg) = speeds(timings);
        (pp, tg, Some(Clock::Runtime))
    } else {
        let is_timed = streamed && answer.reasoning.is_empty() && !answer.is_burst();
        let tokens = generated_tokens.filter(|n| *n > 1 && is_timed);
        let between = answer.deltas.last().zip(answer.deltas.first()).map(|(last, first)| last.seconds - first.seconds);
        let tg = tokens.zip(between).and_then(|(n, seconds)| speed(f64::from(n - 1) / seconds));
        (None, tg, tg.map(|_| Clock::Ours))
    };
    Sample {
        prompt: prompt.to_string(),
        mode,
        failure: answer.failure.clone(),
        prompt_tokens: answer.prompt_tokens.or(timings.map(|timings| timings.prompt_n + timings.cache_n)),
        generated_tokens,
        tokens_by,
        pp,
        tg,
        speed_by,
        first_token_seconds: answer.first_token().filter(|_| streamed),
        gaps: answer.gaps().filter(|_| streamed),
        total_seconds: seconds,
        finish_reason: answer.finish_reason.clone(),
        text,
        reasoning: answer.reasoning.clone(),
        stream: Vec::new(),
    }
}

/// The depth sweep: at each depth one request that fills the cache and is not counted, then the one that is.
fn sweep(endpoint: &Endpoint, settings: &Settings, n_vocab: u32, session: &mut Session) -> Result<(), Error> {
    for (at, depth) in (1_u64..).zip(&settings.depths) {
        let complete = |seed: u64, n_predict: u32| {
            endpoint.complete(&Request::behind(*depth, settings.depth_prompt, n_vocab, seed, n_predict))
        };
        let answer = complete(2 * at, 1).and_then(|_| complete(2 * at + 1, settings.depth_generate));
        match answer {
            Ok(Reply { timings, first_token, .. }) => {
                let cached = timings.cache_n;
                if cached != *depth {
                    session.notes.push(format!("depth {depth} was asked for; the runtime kept {cached} tokens of it"));
                }
                let (pp, tg) = speeds(&timings);
                session.depths.push(DepthSample {
                    depth: cached,
                    prompt_tokens: timings.prompt_n,
                    generated_tokens: timings.predicted_n,
                    pp,
                    tg,
                    first_token_seconds: first_token.map(|time| time.as_secs_f64()),
                });
            }
            Err(Error { kind: runtime::Kind::Refused(words), .. }) => {
                session.notes.push(format!("depth {depth} was refused: {words}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Session {
    /// It failed, or was interrupted; the first reason stays. Where no memory could be had and the prediction says that it is
    /// too little, that is added.
    fn fail(&mut self, case: Option<&CaseLaunch>, error: &Error) {
        if self.failure.is_some() {
            return;
        }
        if error.is_interrupted() {
            self.is_interrupted = true;
            self.failure = Some("interrupted".to_string());
            return;
        }
        let lacking = case.and_then(CaseLaunch::lacking).filter(|_| error.kind == runtime::Kind::OutOfMemory);
        let kind = if lacking.is_some() { Kind::DoesNotFit } else { Kind::Failed };
        let as_predicted = lacking.map_or(String::new(), |lacking| format!("; as predicted, {lacking}"));
        self.failure = Some(format!("{error}{as_predicted}"));
        self.trouble = Some(Trouble { kind, hint: error.hint().map(Cow::into_owned) });
    }

    fn measured(&mut self, case: &CaseLaunch, asking: &Asking, seen: Observation) {
        let expected = case.predicted.as_ref().map(|predicted| Expected::of(predicted, asking.margin));
        self.taken = Taken::of(expected.as_ref(), &seen, TOLERANCE);
        self.args = seen.command.into_iter().skip(1).collect();
        (self.load_seconds, self.process, self.runtime) =
            (Some(seen.load_seconds), Some(seen.process), Some(seen.runtime));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Device, Host};
    use crate::run::{args, parse};
    use crate::runtime::log::LoadLog;
    use crate::runtime::{End, LOADING};

    #[test]
    fn baselines_differ_in_where_tensors_go() {
        let line =
            "llama-server -m m.gguf -c 4096 -np 1 -ub 2048 -ctk q8_0 -ngl 99 -ot blk\\.1\\.=CPU -lm none -fit off";
        let command: Vec<String> = line.split(' ').map(str::to_string).collect();
        let run = parse::command(&command, &std::collections::BTreeMap::new()).unwrap().run;
        let words = |name| args::args(&baseline(name, &run)).join(" ");
        assert_eq!(words("all-on-device"), "-c 4096 -np 1 -ub 2048 -ctk q8_0 -ngl 99 -lm none -fit off");
        let host = words("experts-on-host");
        assert!(host.contains("-cmoe") && !host.contains("blk") && host.contains("-ub 2048 -ctk q8_0"), "{host}");
        assert!(words("plan").contains("blk"));
    }

    #[test]
    fn too_little_memory_is_as_predicted_only_where_that_was_predicted() {
        let row = MemoryBreakdown { model: Bytes(9 << 30), ..MemoryBreakdown::default() };
        let memory = MemoryByDevice::from([("CUDA0".to_string(), row)]);
        let lacking = |has: &str| {
            let device = Device::parse(&format!("CUDA0={has}")).unwrap();
            lacking(&memory, &Machine::new(vec![device], Host::default()).unwrap())
        };
        assert_eq!(lacking("8GiB").as_deref(), Some("it needs 9.00 GiB of CUDA0, which has 8.00 GiB"));
        assert_eq!(lacking("24GiB"), None);
        let failure = LoadLog::read("error loading model: cut").failure().unwrap();
        let mut session = Session::default();
        session.fail(None, &Error::failed(failure, LOADING, End::Code(1)));
        session.fail(None, &Error::interrupted());
        assert!(session.kind() == Kind::Failed && session.trouble.unwrap().hint.is_some() && !session.is_interrupted);
    }

    #[test]
    fn the_runtimes_counts_and_clock_come_first_then_the_tokenizers_and_ours() {
        let delta = |at: u32| Delta { seconds: f64::from(at), piece: 0, text: "x".into() };
        let answer = |n: u32| Answer { deltas: (0..n).map(delta).collect(), ..Answer::default() };
        let (pp, tg) = (30.0, 8.0);
        let timings = Timings {
            prompt_n: 3,
            prompt_per_second: pp,
            predicted_n: 5,
            predicted_per_second: tg,
            ..Timings::default()
        };
        let told = Answer { timings: Some(timings), generated_tokens: Some(5), ..answer(4) };
        let found = sample("p", Mode::Stream, &told, 9.0, |_| Some(99));
        assert_eq!((found.pp, found.tg, found.speed_by), (Some(pp), Some(tg), Some(Clock::Runtime)));
        assert_eq!((found.generated_tokens, found.tokens_by), (Some(5), Some(TokenCount::Runtime)));
        assert_eq!((found.prompt_tokens, found.first_token_seconds), (Some(3), Some(0.0)));
        let counted = sample("p", Mode::Stream, &answer(5), 9.0, |text| u32::try_from(text.len()).ok());
        assert_eq!((counted.generated_tokens, counted.tokens_by), (Some(5), Some(TokenCount::Tokenizer)));
        assert_eq!((counted.tg, counted.pp, counted.speed_by), (Some(1.0), None, Some(Clock::Ours)));
        let unknown = sample("p", Mode::Stream, &answer(5), 9.0, |_| None);
        assert_eq!((unknown.generated_tokens, unknown.tokens_by, unknown.tg), (None, None, None));
        let whole = sample("p", Mode::Whole, &answer(1), 9.0, |_| Some(5));
        assert_eq!((whole.tg, whole.first_token_seconds, whole.gaps), (None, None, None));
        let thought = Answer { reasoning: "hm".into(), ..answer(5) };
        assert_eq!(sample("p", Mode::Stream, &thought, 9.0, |_| Some(5)).generated_tokens, None);
    }
}
