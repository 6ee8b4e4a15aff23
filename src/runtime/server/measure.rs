//! A workload on a running server: warm-up apart from samples, the server's own clock, memory from its log. [I/O]

use std::time::Duration;

use super::client::{Input, Reply, Request};
use super::running::Running;
use super::{Error, Server, Step};
use crate::runtime::sampler::Watch;
use crate::runtime::wire::pseudo_random;
use crate::runtime::{Error as RuntimeError, Launch, Observation, ProcessMemory, Prompt, RuntimeInfo, Workload};

/// How often memory is looked at while it works.
const PERIOD: Duration = Duration::from_millis(50);
/// Tokens generated in the warm-up: enough for the graph of one token to be built and run.
const WARM_UP_TOKENS: u32 = 8;

/// Launches, measures, stops.
pub(super) fn generate(server: &Server, launch: &Launch, workload: &Workload) -> Result<Observation, RuntimeError> {
    let mut watch = Watch::before();
    let mut running = server.start(launch)?;
    watch.loaded(running.id(), PERIOD);
    let mut samples = if launch.run.embeddings {
        embeddings(server, &mut running, workload)?
    } else {
        completions(server, &mut running, workload)?
    };
    server.tell(Step::Ready);
    let process = watch.worked().process;
    running.stop();
    let device_used = watch.after();
    let first = samples.replies.first().cloned().unwrap_or_default();
    let mut command = vec![server.build.program.display().to_string()];
    command.extend(running.command().iter().cloned());
    let log = running.log();
    if log.buffers.is_empty() {
        return Err(Error::SilentLog.into());
    }
    Ok(Observation {
        command,
        runtime: RuntimeInfo {
            program: server.build.program.display().to_string(),
            build: server.build.number.unwrap_or(0),
            backend: crate::runtime::worker::backend(launch),
        },
        memory: log.memory(),
        resolution: log.resolution(),
        device_used,
        mapped_span: log.mapped_span(),
        process,
        process_before: ProcessMemory::default(),
        load_seconds: running.load_time().as_secs_f64(),
        n_prompt: samples.n_prompt,
        depth: samples.replies.iter().map(|reply| reply.timings.cache_n).min().unwrap_or(0),
        first_token: samples.replies.iter().filter_map(|r| Some(r.first_token?.as_secs_f64())).collect(),
        pp: std::mem::take(&mut samples.pp),
        tg: samples
            .replies
            .iter()
            .filter(|r| r.timings.predicted_n > 1)
            .map(|r| r.timings.predicted_per_second)
            .collect(),
        text: first.text,
        tokens: first.tokens,
        finite: samples.finite,
        interrupted: samples.interrupted,
    })
}

/// What the requests gave.
struct Samples {
    replies: Vec<Reply>,
    n_prompt: u32,
    pp: Vec<f64>,
    finite: bool,
    interrupted: bool,
}

impl Samples {
    /// None yet, after a warm-up.
    fn new(warm: &Reply, n_prompt: u32) -> Self {
        Self { replies: Vec::new(), n_prompt, pp: Vec::new(), finite: warm.finite, interrupted: false }
    }

    /// The reply of a sample; `None` where the person stopped it: what was measured before is kept.
    fn unless_interrupted(&mut self, reply: Result<Reply, Error>) -> Result<Option<Reply>, Error> {
        self.interrupted = matches!(reply, Err(Error::Interrupted));
        if self.interrupted { Ok(None) } else { reply.map(Some) }
    }
}

/// One request that is not counted, then one a repetition, each with a prompt of its own behind the same prefix.
fn completions(server: &Server, running: &mut Running, workload: &Workload) -> Result<Samples, RuntimeError> {
    let n_vocab = match workload.prompt {
        Prompt::Tokens(_) => running.vocabulary()?,
        Prompt::Text(_) => 0,
    };
    let prefix = pseudo_random(workload.depth, n_vocab, 0);
    let of = workload.repetitions.max(1);
    let prompt = |sample: u32| match &workload.prompt {
        Prompt::Text(text) => Input::Text(text.clone()),
        Prompt::Tokens(n) => {
            let fresh = pseudo_random(*n, n_vocab, u64::from(sample) + 1);
            Input::Tokens(prefix.iter().copied().chain(fresh).collect())
        }
    };
    let request = |sample: u32, n_predict: u32| Request {
        prompt: prompt(sample),
        n_predict,
        cache_prompt: workload.depth > 0,
        probabilities: sample == 0,
    };
    server.tell(Step::WarmUp);
    let warm = running.complete(&request(0, workload.n_generate.clamp(1, WARM_UP_TOKENS)))?;
    let mut samples = Samples::new(&warm, 0);
    for sample in 1..=of {
        server.tell(Step::Sample { number: sample, of });
        let reply = running.complete(&request(sample, workload.n_generate));
        let Some(reply) = samples.unless_interrupted(reply)? else { break };
        samples.n_prompt = reply.timings.prompt_n;
        samples.pp.push(reply.timings.prompt_per_second);
        samples.replies.push(reply);
    }
    Ok(samples)
}

/// The same for a server that only embeds, whose answers have no clock of their own.
fn embeddings(server: &Server, running: &mut Running, workload: &Workload) -> Result<Samples, RuntimeError> {
    let Prompt::Tokens(n) = workload.prompt else {
        return Err(Error::NeedsEmbedded("a text for a launch with --embedding").into());
    };
    let n_vocab = running.vocabulary()?;
    let of = workload.repetitions.max(1);
    server.tell(Step::WarmUp);
    let warm = running.embed(&pseudo_random(n, n_vocab, 1))?;
    let mut samples = Samples::new(&warm, n);
    for sample in 1..=of {
        server.tell(Step::Sample { number: sample, of });
        let reply = running.embed(&pseudo_random(n, n_vocab, u64::from(sample) + 1));
        let Some(reply) = samples.unless_interrupted(reply)? else { break };
        samples.finite &= reply.finite;
        samples.pp.push(f64::from(n) / reply.whole.as_secs_f64());
        samples.replies.push(reply);
    }
    Ok(samples)
}
