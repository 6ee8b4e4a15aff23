//! The journal of a tuning: one JSON line a visit, so that an interrupted one goes on where it stopped.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::speed::Acceptance;

/// What was tuned: measurements of another subject are no evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Subject {
    pub model: String,
    /// The length of the file, of the first of a split.
    pub bytes: Bytes,
    pub program: String,
    /// Its build; 0 where it does not say.
    pub build: u32,
    pub prompt: u32,
    pub generate: u32,
    pub depth: u32,
    pub devices: Vec<(String, String, Bytes)>,
}

pub const SCHEMA: &str = "moeplan/tune-visit/1";

/// One launch of a candidate, loaded, warmed up and measured: a line of the journal.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Visit {
    pub schema: String,
    pub subject: Subject,
    /// The candidate's [`super::Candidate::id`].
    pub candidate: String,
    pub what: String,
    /// When, in seconds since 1970.
    pub time: u64,
    /// Loading, warm-up and all, in seconds.
    pub seconds: f64,
    /// Loading, in seconds.
    pub load_seconds: f64,
    /// Tokens that were in the cache before each prompt, as the server counted them.
    pub depth: u32,
    /// Prompt processing, tokens/s of each sample.
    pub pp: Vec<f64>,
    /// Generation, tokens/s of each sample.
    pub tg: Vec<f64>,
    pub memory: BTreeMap<String, Bytes>,
    /// The most that the driver showed more than before the launch, by device; empty where no driver says.
    pub peak: BTreeMap<String, Bytes>,
    /// The share of experts that were found in the expert cache, where the build says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_hits: Option<f64>,
    /// The probability that a drafted token is taken if those before it were, where tokens were drafted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<Acceptance>,
}

impl Visit {
    /// The time of the turn in each sample, in seconds: prompt ÷ pp + generated ÷ tg.
    pub fn turns(&self) -> Vec<f64> {
        let Subject { prompt, generate, .. } = self.subject;
        let prompt = |pp: &f64| f64::from(prompt) / pp;
        let generation = |at: usize| self.tg.get(at).map(|tg| f64::from(generate) / tg);
        // A single token belongs to the prompt.
        let only_prompt = generate <= 1;
        let samples = self.pp.iter().enumerate();
        let turns = samples.filter_map(|(at, pp)| Some(prompt(pp) + if only_prompt { 0.0 } else { generation(at)? }));
        turns.filter(|seconds| seconds.is_finite() && *seconds > 0.0).collect()
    }
}

/// Whether a file of this text is a journal: it is empty, or holds a line of one, whichever version's.
pub fn is_one(text: &str) -> bool {
    text.trim().is_empty() || text.contains("\"moeplan/tune-visit/")
}

/// The visits of `subject` in a journal's text. Other lines are passed over: another subject's, a later version's, a torn one.
pub fn visits(text: &str, subject: &Subject) -> Vec<Visit> {
    let visit = |line: &str| serde_json::from_str::<Visit>(line).ok();
    text.lines().filter_map(visit).filter(|visit| visit.schema == SCHEMA && visit.subject == *subject).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::race::tests::visit;

    #[test]
    fn visits_of_the_subject_come_back_and_other_lines_do_no_harm() {
        let ours = visit("a", &[1.0, 2.0]);
        let mut other = ours.clone();
        other.subject.prompt += 1;
        let later = Visit { schema: "moeplan/tune/2".into(), ..ours.clone() };
        let line = |visit: &Visit| serde_json::to_string(visit).unwrap();
        let whole = line(&ours);
        let torn = &whole[..whole.len() / 2];
        let text = [whole.as_str(), &line(&other), "not json", &line(&later), "", torn].join("\n");
        assert!(is_one(&text) && is_one(torn) && is_one("\n") && !is_one("my notes\n"));
        assert_eq!(visits(&text, &ours.subject), [ours]);
    }

    #[test]
    fn a_turn_is_its_prompt_and_what_is_generated() {
        let mut visit = visit("a", &[]);
        (visit.subject.prompt, visit.subject.generate) = (1000, 100);
        (visit.pp, visit.tg) = (vec![500.0, 1000.0, 0.0], vec![50.0, 25.0, 10.0]);
        assert_eq!(visit.turns(), [4.0, 5.0]);
        (visit.subject.generate, visit.tg) = (1, Vec::new());
        assert_eq!(visit.turns(), [2.0, 1.0]);
        visit.subject.generate = 2;
        assert!(visit.turns().is_empty());
    }
}
