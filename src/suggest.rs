//! What to try after an error: hints, and what a mistyped name may have meant.

use std::borrow::Cow;

/// What to try after an error, where something is known to help.
pub trait Hint {
    fn hint(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// How alike two words must be, 0 to 1, for one to be meant by the other: clap's own bound.
const ALIKE: f64 = 0.7;
/// How many are named at most.
const MOST: usize = 3;

/// The known names that a word may have meant, the likeliest first.
pub fn near<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let word = word.to_lowercase();
    let mut scored: Vec<(f64, &str)> = known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&word, &name.to_lowercase()), name))
        .filter(|(score, _)| *score > ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    // What is only a little like it says nothing beside what is very like it.
    let best = scored.first().map_or(0.0, |(score, _)| *score);
    scored.into_iter().filter(|(score, _)| best - score < 0.05).take(MOST).map(|(_, name)| name).collect()
}

/// ``did you mean `x` or `y`?``; `None` where nothing is like it.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let near: Vec<String> = near(word, known).into_iter().map(|name| format!("`{name}`")).collect();
    (!near.is_empty()).then(|| format!("did you mean {}?", near.join(" or ")))
}

/// A name that nothing known has.
#[derive(Debug, thiserror::Error)]
#[error("`{word}` is no {what}{}", self.list())]
pub struct Unknown {
    /// What it should have been: `built-in rule set, and no file that can be read`.
    what: &'static str,
    /// What was typed; untrusted text.
    word: String,
    known: Vec<String>,
}

impl Unknown {
    /// The name that was typed, and those that there are.
    pub fn new<'a>(what: &'static str, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self { what, word: word.to_string(), known: known.into_iter().map(str::to_string).collect() }
    }

    fn list(&self) -> String {
        if self.known.is_empty() { String::new() } else { format!("; there are {}", self.known.join(", ")) }
    }
}

impl Hint for Unknown {
    fn hint(&self) -> Option<Cow<'_, str>> {
        did_you_mean(&self.word, self.known.iter().map(String::as_str)).map(Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_seen_and_other_words_are_not() {
        let known = ["experts-on-host", "all-on-device", "attention-first", "gpt-oss-20b", "gpt-oss-120b", "q8_0"];
        for (word, expected) in [
            ("experts-on-hst", vec!["experts-on-host"]),
            ("gpt-oss-20", vec!["gpt-oss-20b", "gpt-oss-120b"]),
            ("Q8", vec!["q8_0"]),
            ("zebra", vec![]),
        ] {
            assert_eq!(near(word, known), expected, "{word}");
        }
        let unknown = Unknown::new("quant", "q8", known);
        assert_eq!(unknown.hint().as_deref(), Some("did you mean `q8_0`?"));
        assert!(unknown.to_string().starts_with("`q8` is no quant; there are experts-on-host, "));
    }
}
