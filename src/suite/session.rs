//! One launch, or one endpoint, asked every prompt whole and as a stream, and swept over depths. [I/O]

use std::time::Duration;

use super::cases::CaseLaunch;
use super::document::{Clock, DepthSample, Mode, Prompt, Sample, Session, Settings, TokenCount};
use super::stream::Answer;
use crate::bytes::Bytes;
use crate::measurement::{Seen, Taken};
use crate::runtime::client::{Ask, Endpoint, Input, Reply, Request};
use crate::runtime::sampler::Watch;
use crate::runtime::server::Server;
use crate::runtime::{Error, Kind, Observation, Prompt as Text, Runtime, RuntimeInfo, Workload, pseudo_random};

/// How often memory is looked at while it works.
const PERIOD: Duration = Duration::from_millis(50);
/// The share that compute buffers and totals may differ by.
pub const TOLERANCE: f64 = 0.02;

/// What every session asks.
#[derive(Debug, Clone)]
pub struct Asking {
    pub prompts: Vec<Prompt>,
    pub settings: Settings,
    /// Whose tokenizer counts where the endpoint does not.
    pub tokenizer: Option<Endpoint>,
    /// What a plan leaves free: how far overhead may be off.
    pub margin: Bytes,
    pub interrupted: fn() -> bool,
    pub limit: Duration,
}

/// Launches a case, asks everything, stops it.
pub fn launched(server: &Server, case: &CaseLaunch, repetition: u32, asking: &Asking) -> Session {
    let mut session = Session::of(case, repetition);
    if session.failure.is_some() {
        return session;
    }
    let mut watch = Watch::before();
    let mut running = match server.start(&case.launch) {
        Ok(running) => running,
        Err(error) => {
            session.fail(Some(case), &error);
            return session;
        }
    };
    watch.loaded(running.id(), PERIOD);
    session.args = running.command().to_vec();
    session.notes = running.notes().to_vec();
    session.load_seconds = Some(running.load_time().as_secs_f64());
    let backend = case.launch.machine.devices.first().and_then(|device| device.backend.device_prefix());
    session.runtime = Some(RuntimeInfo {
        program: server.build.program.display().to_string(),
        build: server.build.number.unwrap_or(0),
        backend: backend.unwrap_or("CPU").to_string(),
    });
    let asked = endpoint(running.url(), asking).and_then(|endpoint| {
        ask_all(&endpoint, asking, &mut session)?;
        let n_vocab = running.vocabulary()?;
        sweep(&mut |request| running.complete(request), &asking.settings, n_vocab, &mut session)
    });
    // An end of the server says more than the answer that did not come.
    if !asked.as_ref().is_err_and(Error::is_interrupted)
        && let Some(end) = running.ended()
    {
        session.fail(Some(case), &running.why_it_ended("answering", end));
    }
    session.end(Some(case), asked);
    session.process = Some(watch.worked().process);
    running.stop();
    let device_use = watch.after();
    let log = running.log();
    let (memory, resolution, mapped_span) = (log.memory(), log.resolution(), log.mapped_span());
    let seen = Seen { memory: &memory, resolution: &resolution, mapped_span, used: &device_use };
    session.measured(case, asking.margin, &seen);
    session
}

/// Asks an endpoint that is there already.
pub fn of_endpoint(endpoint: &Endpoint, repetition: u32, asking: &Asking) -> Session {
    let mut session = Session { case: "endpoint".to_string(), repetition, ..Session::default() };
    let mut asked = ask_all(endpoint, asking, &mut session);
    if asked.is_ok() && !asking.settings.depths.is_empty() {
        if let Ok(n_vocab) = endpoint.vocabulary() {
            let mut complete = |request: &Request| endpoint.complete(request, &mut || None);
            asked = sweep(&mut complete, &asking.settings, n_vocab, &mut session);
        } else {
            let why = "no depth sweep: the endpoint takes no prompts of tokens (llama-server's /completion)";
            session.notes.push(why.into());
        }
    }
    session.end(None, asked);
    session
}

/// Runs a case inside moeplan: every prompt as it is, in one piece.
pub fn embedded(runtime: &dyn Runtime, case: &CaseLaunch, repetition: u32, asking: &Asking) -> Session {
    let mut session = Session::of(case, repetition);
    if session.failure.is_some() {
        return session;
    }
    session.notes.push("the embedded llama.cpp answers in one piece: there are no streams and no first token".into());
    session.notes.push("prompts are given to it as they are, without the model's chat template".into());
    for prompt in &asking.prompts {
        let (text, n_generate) = (Text::Text(prompt.text.clone()), prompt.max_tokens);
        let workload = Workload { prompt: text, depth: 0, n_generate, repetitions: 1 };
        match runtime.generate(&case.launch, &workload) {
            Ok(seen) => take(&mut session, case, asking.margin, &prompt.name, seen),
            Err(error) => {
                session.fail(Some(case), &error);
                break;
            }
        }
    }
    session
}

/// An answer of the embedded llama.cpp.
fn take(session: &mut Session, case: &CaseLaunch, margin: Bytes, prompt: &str, seen: Observation) {
    let tokens = u32::try_from(seen.tokens.len()).unwrap_or(u32::MAX);
    let (pp, tg) = (seen.pp.first().copied(), seen.tg.first().copied());
    let seconds = |n: u32, speed: Option<f64>| speed.filter(|s| *s > 0.0).map_or(0.0, |speed| f64::from(n) / speed);
    session.samples.push(Sample {
        prompt: prompt.to_string(),
        mode: Mode::Whole,
        prompt_tokens: Some(seen.n_prompt),
        generated_tokens: Some(tokens),
        tokens_by: Some(TokenCount::Runtime),
        pp,
        tg,
        speed_by: Some(Clock::Runtime),
        total_seconds: seconds(seen.n_prompt, pp) + seconds(tokens, tg),
        text: seen.text.clone(),
        ..Sample::default()
    });
    if session.runtime.is_none() {
        session.load_seconds = Some(seen.load_seconds);
        session.process = Some(seen.process);
        session.measured(case, margin, &Seen::of(&seen));
        session.runtime = Some(seen.runtime);
    }
}

fn endpoint(url: &str, asking: &Asking) -> Result<Endpoint, Error> {
    let mut endpoint = Endpoint::new(url)?;
    (endpoint.limit, endpoint.interrupted) = (asking.limit, asking.interrupted);
    Ok(endpoint)
}

/// Every prompt, whole and as a stream, after one short request that is not counted.
fn ask_all(endpoint: &Endpoint, asking: &Asking, session: &mut Session) -> Result<(), Error> {
    let warm = Prompt { name: "warm-up".into(), text: "Hello".into(), max_tokens: 8 };
    ask_one(endpoint, asking, &warm, Mode::Whole, None)?;
    for prompt in &asking.prompts {
        let whole = ask_one(endpoint, asking, prompt, Mode::Whole, None)?;
        let comparable = asking.settings.temperature == 0.0 && whole.failure.is_none();
        let text = comparable.then(|| whole.text.clone());
        session.samples.push(whole);
        let stream = ask_one(endpoint, asking, prompt, Mode::Stream, text.as_deref())?;
        session.samples.push(stream);
    }
    Ok(())
}

fn ask_one(
    endpoint: &Endpoint,
    asking: &Asking,
    prompt: &Prompt,
    mode: Mode,
    whole: Option<&str>,
) -> Result<Sample, Error> {
    let recording = endpoint.chat(&Ask {
        text: prompt.text.clone(),
        max_tokens: prompt.max_tokens,
        temperature: asking.settings.temperature,
        seed: asking.settings.seed,
        stream: mode == Mode::Stream,
    })?;
    let answer = if mode == Mode::Stream { Answer::streamed(&recording) } else { Answer::whole(&recording) };
    let count = |text: &str| asking.tokenizer.as_ref()?.count_tokens(text);
    let mut sample = sample(&prompt.name, mode, &answer, recording.seconds, count);
    if mode == Mode::Stream {
        sample.stream = answer.health(whole);
    }
    Ok(sample)
}

/// What an answer says. `count` is the tokenizer, asked where the server does not count.
fn sample(prompt: &str, mode: Mode, answer: &Answer, seconds: f64, count: impl Fn(&str) -> Option<u32>) -> Sample {
    let text = answer.text();
    let timings = answer.timings.filter(|timings| timings.predicted_n > 0);
    let by_runtime = answer.generated_tokens.or(timings.map(|timings| timings.predicted_n));
    let by_tokenizer = || if answer.reasoning.is_empty() && !text.is_empty() { count(&text) } else { None };
    let (generated_tokens, tokens_by) = match by_runtime {
        Some(n) => (Some(n), Some(TokenCount::Runtime)),
        None => by_tokenizer().map_or((None, None), |n| (Some(n), Some(TokenCount::Tokenizer))),
    };
    let is_speed = |speed: &f64| speed.is_finite() && *speed > 0.0;
    let streamed = mode == Mode::Stream;
    let between = answer.deltas.last().zip(answer.deltas.first()).map(|(last, first)| last.seconds - first.seconds);
    let (pp, tg, speed_by) = if let Some(timings) = timings {
        let tg = Some(timings.predicted_per_second).filter(is_speed).filter(|_| timings.predicted_n > 1);
        (Some(timings.prompt_per_second).filter(is_speed), tg, Some(Clock::Runtime))
    } else {
        let is_timed = streamed && answer.reasoning.is_empty() && !answer.is_burst();
        let tokens = generated_tokens.filter(|n| *n > 1 && is_timed);
        let speed = tokens.zip(between).map(|(n, seconds)| f64::from(n - 1) / seconds).filter(is_speed);
        (None, speed, speed.map(|_| Clock::Ours))
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
fn sweep(
    complete: &mut dyn FnMut(&Request) -> Result<Reply, Error>,
    settings: &Settings,
    n_vocab: u32,
    session: &mut Session,
) -> Result<(), Error> {
    for (at, depth) in (1_u64..).zip(&settings.depths) {
        let prefix = pseudo_random(*depth, n_vocab, 0);
        let request = |seed: u64, n_predict: u32| {
            let fresh = pseudo_random(settings.depth_prompt, n_vocab, seed);
            let prompt = Input::Tokens(prefix.iter().copied().chain(fresh).collect());
            Request { prompt, n_predict, cache_prompt: *depth > 0, probabilities: false }
        };
        let answer =
            complete(&request(2 * at, 1)).and_then(|_| complete(&request(2 * at + 1, settings.depth_generate)));
        match answer {
            Ok(reply) => {
                let cached = reply.timings.cache_n;
                if cached != *depth {
                    session.notes.push(format!("depth {depth} was asked for; the runtime kept {cached} tokens of it"));
                }
                let timings = &reply.timings;
                let is_speed = |speed: &f64| speed.is_finite() && *speed > 0.0;
                session.depths.push(DepthSample {
                    depth: timings.cache_n,
                    prompt_tokens: timings.prompt_n,
                    generated_tokens: timings.predicted_n,
                    pp: Some(timings.prompt_per_second).filter(is_speed),
                    tg: Some(timings.predicted_per_second).filter(is_speed).filter(|_| timings.predicted_n > 1),
                    first_token_seconds: reply.first_token.map(|time| time.as_secs_f64()),
                });
            }
            Err(Error { kind: Kind::Refused(words), .. }) => {
                session.notes.push(format!("depth {depth} was refused: {words}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Session {
    fn end(&mut self, case: Option<&CaseLaunch>, asked: Result<(), Error>) {
        if let Err(error) = asked {
            self.fail(case, &error);
        }
    }

    /// Memory by llama.cpp and the driver, beside what was predicted.
    fn measured(&mut self, case: &CaseLaunch, margin: Bytes, seen: &Seen<'_>) {
        let expected = case.predicted.as_ref().map(|predicted| predicted.expected(margin));
        let Taken { memory, device_used, comparison } = Taken::of(expected.as_ref(), seen, TOLERANCE);
        (self.memory, self.device_used, self.comparison) = (memory, device_used, comparison);
        (self.mapped_span, self.device_use) = (seen.mapped_span, seen.used.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::client::Timings;
    use crate::suite::stream::Delta;

    fn answer(n: u32) -> Answer {
        let delta = |at: u32| Delta { seconds: f64::from(at), piece: 0, text: "x".into() };
        Answer { deltas: (0..n).map(delta).collect(), ..Answer::default() }
    }

    #[test]
    fn what_the_runtime_counts_and_times_is_taken_as_it_is() {
        let timings = Timings {
            prompt_n: 3,
            prompt_per_second: 30.0,
            predicted_n: 5,
            predicted_per_second: 8.0,
            ..Timings::default()
        };
        let answer = Answer { timings: Some(timings), generated_tokens: Some(5), ..answer(4) };
        let sample = sample("p", Mode::Stream, &answer, 9.0, |_| Some(99));
        assert_eq!((sample.pp, sample.tg, sample.speed_by), (Some(30.0), Some(8.0), Some(Clock::Runtime)));
        assert_eq!((sample.generated_tokens, sample.tokens_by), (Some(5), Some(TokenCount::Runtime)));
        assert_eq!((sample.prompt_tokens, sample.first_token_seconds), (Some(3), Some(0.0)));
    }

    #[test]
    fn without_counts_the_tokenizer_counts_and_without_one_nothing_is_known() {
        let counted = sample("p", Mode::Stream, &answer(5), 9.0, |text| u32::try_from(text.len()).ok());
        assert_eq!((counted.generated_tokens, counted.tokens_by), (Some(5), Some(TokenCount::Tokenizer)));
        assert_eq!((counted.tg, counted.pp, counted.speed_by), (Some(1.0), None, Some(Clock::Ours)));
        let unknown = sample("p", Mode::Stream, &answer(5), 9.0, |_| None);
        assert_eq!(
            (unknown.generated_tokens, unknown.tokens_by, unknown.tg, unknown.speed_by),
            (None, None, None, None)
        );
        let whole = sample("p", Mode::Whole, &answer(1), 9.0, |_| Some(5));
        assert_eq!((whole.tg, whole.first_token_seconds, whole.gaps), (None, None, None));
        let thought = Answer { reasoning: "hm".into(), ..answer(5) };
        assert_eq!(sample("p", Mode::Stream, &thought, 9.0, |_| Some(5)).generated_tokens, None);
    }

    /// Answers with its prompt.
    struct Echo;

    impl Runtime for Echo {
        fn devices(&self, _rpc: &[String]) -> Result<Vec<crate::runtime::DeviceInfo>, Error> {
            Ok(Vec::new())
        }

        fn project(&self, _launches: &[crate::runtime::Launch]) -> Vec<Result<crate::runtime::Projection, Error>> {
            Vec::new()
        }

        fn generate(&self, _launch: &crate::runtime::Launch, workload: &Workload) -> Result<Observation, Error> {
            let Text::Text(text) = workload.prompt.clone() else { return Err(Error::not_built()) };
            if text == "fail" {
                return Err(Error::not_built());
            }
            Ok(Observation {
                runtime: RuntimeInfo { program: "embedded".into(), build: 11434, backend: "CPU".into() },
                mapped_span: Bytes(7),
                load_seconds: 1.5,
                n_prompt: 10,
                pp: vec![20.0],
                tg: vec![4.0],
                text,
                tokens: vec![1; usize::try_from(workload.n_generate).unwrap()],
                finite: true,
                ..Observation::default()
            })
        }
    }

    #[test]
    fn the_embedded_llama_answers_in_one_piece_and_says_so() {
        let machine = crate::machine::Machine { devices: Vec::new(), host: crate::machine::Host::default() };
        let run = crate::run::RunConfig::default();
        let launch = crate::runtime::Launch { model: "m.gguf".into(), run, machine, n_threads: 0 };
        let case = CaseLaunch { name: "plan".into(), what: String::new(), launch, predicted: None, refused: None };
        let prompt = |text: &str| Prompt { name: "code".into(), text: text.into(), max_tokens: 8 };
        let asking = |text: &str| Asking {
            prompts: vec![prompt("hello"), prompt(text)],
            settings: Settings::default(),
            tokenizer: None,
            margin: Bytes(0),
            interrupted: || false,
            limit: Duration::from_secs(1),
        };
        let session = embedded(&Echo, &case, 1, &asking("again"));
        assert_eq!((session.samples.len(), session.failure.as_ref(), session.load_seconds), (2, None, Some(1.5)));
        let sample = &session.samples[0];
        assert_eq!((sample.text.as_str(), sample.mode, sample.generated_tokens), ("hello", Mode::Whole, Some(8)));
        assert_eq!((Some(sample.total_seconds), sample.first_token_seconds), (Some(2.5), None));
        assert!(session.notes.iter().any(|note| note.contains("no streams")));
        let failed = embedded(&Echo, &case, 1, &asking("fail"));
        assert!(failed.samples.len() == 1 && failed.failure.is_some());
        let refused = CaseLaunch { refused: Some("no device".into()), ..case };
        let refused = embedded(&Echo, &refused, 1, &asking("x"));
        assert_eq!(refused.failure.as_deref(), Some("not launched: no device"));
    }
}
