//! What a server's log says about requests: slots at work, how many are over, and how fast they were.

use std::collections::{BTreeMap, BTreeSet};

use super::MOST;
use super::line::number;

/// One phase of a request by the server's own clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Tokens so far.
    pub tokens: u32,
    /// Tokens/s.
    pub rate: f64,
}

/// The request that the log last told a speed of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latest {
    /// Its number, where the line says it.
    task: Option<u32>,
    /// Reading the prompt.
    pub pp: Option<Pace>,
    /// Generating.
    pub tg: Option<Pace>,
    /// Whether these are its last figures.
    pub is_over: bool,
}

/// A mean rate over many requests: tokens of all over the time of all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Mean {
    tokens: f64,
    milliseconds: f64,
}

impl Mean {
    fn add(&mut self, last: Option<(Pace, f64)>) {
        let Some((pace, milliseconds)) = last else { return };
        // The rate of generation leaves the first token out, so the count of tokens is not what it is made of.
        self.tokens += pace.rate * milliseconds / 1000.0;
        self.milliseconds += milliseconds;
    }

    fn rate(self) -> Option<f64> {
        (self.milliseconds > 0.0).then(|| self.tokens / self.milliseconds * 1000.0)
    }
}

/// What was said about requests so far (`SLT_INF` lines of llama.cpp's tools/server/server-context.cpp, b11434).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serving {
    /// Slots that the server has, where it says so.
    pub slots: Option<u32>,
    /// Requests that ended by themselves.
    pub served: u64,
    /// Requests that whoever asked broke off.
    pub cancelled: u64,
    /// The request that was last told about.
    pub latest: Option<Latest>,
    /// Slots that work, and on which task.
    running: BTreeMap<u32, u32>,
    /// Tasks that were broken off and have not stopped yet.
    stopping: BTreeSet<u32>,
    pp: Mean,
    tg: Mean,
}

impl Serving {
    /// Slots that work now.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Prompt tokens/s of all requests that are over.
    pub fn pp(&self) -> Option<f64> {
        self.pp.rate()
    }

    /// Generated tokens/s of all requests that are over.
    pub fn tg(&self) -> Option<f64> {
        self.tg.rate()
    }

    /// Takes a line without its prefix of time and level.
    pub(super) fn line(&mut self, text: &str) {
        if let Some((slot, task, message)) = of_slot(text) {
            self.slot(slot, task, message.trim_start());
        } else if let Some((_, rest)) = text.split_once(", n_slots = ") {
            self.slots = number(rest);
        } else if let Some((_, rest)) = text.split_once(": cancel task, id_task = ") {
            if self.stopping.len() >= MOST {
                self.stopping.pop_first();
            }
            self.stopping.extend(number::<u32>(rest));
        } else if text.starts_with("srv") && text.ends_with("all slots are idle") {
            self.running.clear();
        } else {
            // Builds before b11434 wrote the lines of one message below each other.
            self.timing(None, text.trim_start());
        }
    }

    fn slot(&mut self, slot: u32, task: Option<u32>, message: &str) {
        match task {
            Some(task) if message.starts_with("processing task") && self.running.len() < MOST => {
                self.running.insert(slot, task);
            }
            Some(task) if message.starts_with("stop processing") => {
                self.running.remove(&slot);
                let count = if self.stopping.remove(&task) { &mut self.cancelled } else { &mut self.served };
                *count = count.saturating_add(1);
            }
            _ => self.timing(task, message),
        }
    }

    /// Lines about speed, of a request under way or over.
    fn timing(&mut self, task: Option<u32>, message: &str) {
        if let Some(rest) = message.strip_prefix("prompt eval time =") {
            let last = last(rest);
            self.latest = Some(Latest { task, pp: last.map(|(pace, _)| pace), tg: None, is_over: true });
            self.pp.add(last);
        } else if let Some(rest) = message.strip_prefix("eval time =") {
            let last = last(rest);
            self.tg_is(task, last.map(|(pace, _)| pace), true);
            self.tg.add(last);
        } else if let Some(rest) = message.strip_prefix("prompt processing, n_tokens =") {
            let rate = rest.split_once('/').and_then(|(_, rest)| positive(rest));
            self.latest = Some(Latest { task, pp: pace(rest, rate), tg: None, is_over: false });
        } else if let Some(rest) = message.strip_prefix("n_gen =") {
            let rate = rest.split_once("tg_3s =").and_then(|(_, rest)| positive(rest));
            self.tg_is(task, pace(rest, rate), false);
        }
    }

    fn tg_is(&mut self, task: Option<u32>, tg: Option<Pace>, is_over: bool) {
        // Requests side by side take turns in the log: only one's own prompt belongs to it.
        let pp = self.latest.as_ref().filter(|latest| latest.task == task).and_then(|latest| latest.pp);
        self.latest = Some(Latest { task, pp, tg, is_over });
    }
}

/// `slot FUNCTION: id  3 | task 17 | MESSAGE`; a slot at rest has task -1.
fn of_slot(text: &str) -> Option<(u32, Option<u32>, &str)> {
    let (head, rest) = text.strip_prefix("slot ")?.split_once(" | task ")?;
    let (task, message) = rest.split_once(" | ")?;
    let (_, slot) = head.split_once(": id ")?;
    Some((slot.trim().parse().ok()?, task.trim().parse().ok(), message))
}

/// `  719.67 ms /    11 tokens (   65.42 ms per token,    15.28 tokens per second)`: the pace and the milliseconds. `None` where
/// there was nothing to time.
fn last(text: &str) -> Option<(Pace, f64)> {
    let (_, tokens) = text.split_once(" / ")?;
    let (_, rate) = text.split_once(" ms per token,")?;
    Some((pace(tokens, positive(rate))?, positive(text)?))
}

fn pace(tokens: &str, rate: Option<f64>) -> Option<Pace> {
    Some(Pace { tokens: number(tokens)?, rate: rate? })
}

/// The first word, if it is a number above zero: a division by zero is printed as `inf` or `nan`.
fn positive(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> Serving {
        let mut serving = Serving::default();
        for line in lines {
            serving.line(line);
        }
        serving
    }

    /// Tokens and rate of a phase.
    type Pair = Option<(u32, f64)>;

    fn paces(latest: Option<&Latest>) -> (Pair, Pair, bool) {
        let pair = |pace: Option<Pace>| pace.map(|pace| (pace.tokens, pace.rate));
        let latest = latest.expect("a request");
        (pair(latest.pp), pair(latest.tg), latest.is_over)
    }

    const BEGIN: &str = "slot launch_slot_: id  3 | task 0 | processing task, is_child = 0";
    const PROMPT: &str = "slot print_timing: id  3 | task 0 | prompt eval time =     719.67 ms /    11 tokens (   65.42 ms per token,    15.28 tokens per second)";
    const ANSWER: &str = "slot print_timing: id  3 | task 0 |        eval time =    4338.20 ms /     8 tokens (  619.74 ms per token,     1.61 tokens per second)";
    const END: &str = "slot      release: id  3 | task 0 | stop processing: n_tokens = 18, truncated = 0";

    #[test]
    fn a_request_runs_and_is_served() {
        let slots = "srv    load_model: initializing, n_slots = 4, n_ctx_slot = 512, kv_unified = 'true'";
        let mut serving = after(&[slots, BEGIN]);
        assert_eq!((serving.slots, serving.running(), serving.served), (Some(4), 1, 0));
        for line in [PROMPT, ANSWER, END] {
            serving.line(line);
        }
        assert_eq!((serving.running(), serving.served, serving.cancelled), (0, 1, 0));
        assert_eq!(paces(serving.latest.as_ref()), (Some((11, 15.28)), Some((8, 1.61)), true));
    }

    #[test]
    fn what_is_broken_off_is_not_served() {
        let serving = after(&[BEGIN, "srv          stop: cancel task, id_task = 0", END]);
        assert_eq!((serving.running(), serving.served, serving.cancelled), (0, 0, 1));
        let idle = after(&[BEGIN, "srv  update_slots: all slots are idle"]);
        assert_eq!((idle.running(), idle.served), (0, 0));
    }

    #[test]
    fn a_session_is_all_tokens_over_all_time() {
        let prompt = |ms: &str, tokens: u32, rate: &str| {
            format!("prompt eval time = {ms} ms / {tokens} tokens ( 1.00 ms per token, {rate} tokens per second)")
        };
        let serving = after(&[&prompt("1000.00", 100, "100.00"), &prompt("3000.00", 900, "300.00")]);
        assert_eq!((serving.pp(), serving.tg()), (Some(250.0), None));
        let nothing =
            "       eval time =       0.00 ms /     1 tokens (     inf ms per token,     -nan tokens per second)";
        let serving = after(&[PROMPT, nothing]);
        assert_eq!((serving.tg(), paces(serving.latest.as_ref()).1), (None, None));
    }

    #[test]
    fn a_request_under_way_is_told_as_it_goes() {
        let reading = "slot print_timing: id  0 | task 7 | prompt processing, n_tokens =   2048, progress = 0.50, t =   4.10 s / 499.51 tokens per second";
        let writing = "slot print_timing: id  0 | task 7 | n_gen =    150, tg =  31.20 t/s, tg_3s =  30.10 t/s";
        assert_eq!(paces(after(&[reading]).latest.as_ref()), (Some((2048, 499.51)), None, false));
        let both = after(&[reading, writing]);
        assert_eq!(paces(both.latest.as_ref()), (Some((2048, 499.51)), Some((150, 30.1)), false));
        assert_eq!(both.tg(), None, "only what is over counts in the session");
        // Of another request nothing is taken over.
        assert_eq!(paces(after(&[PROMPT, writing]).latest.as_ref()), (None, Some((150, 30.1)), false));
    }

    #[test]
    fn nonsense_says_nothing() {
        for line in [
            "slot print_timing: id  x | task 0 | prompt eval time = y",
            "slot release: id 99999999999 | task 1 | stop processing",
            "slot launch_slot_: id  1 | task -1 | processing task",
            "prompt eval time = / tokens",
            "n_gen = 5, tg = 1 t/s",
            "slot  | task  | ",
            "srv stop: cancel task, id_task = x",
        ] {
            let serving = after(&[line]);
            let said = serving.latest.as_ref().is_some_and(|latest| latest.pp.is_some() || latest.tg.is_some());
            assert!(!said && serving.running() == 0 && serving.served == 0, "{line}: {serving:?}");
        }
    }
}
