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
    // A dash too few or too many.
    let bare = |name: &str| name.trim_start_matches('-').to_lowercase();
    if let Some((_, same)) = scored.iter().find(|(_, name)| bare(name) == bare(&word)) {
        return vec![same];
    }
    // What is only a little like it says nothing beside what is very like it.
    let best = scored.first().map_or(0.0, |(score, _)| *score);
    scored.into_iter().filter(|(score, _)| best - score < 0.05).take(MOST).map(|(_, name)| name).collect()
}

/// ``did you mean `x` or `y`?``; `None` where nothing is like it.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    one_of(&near(word, known))
}

/// The same of names that may be meant.
pub fn one_of(names: &[&str]) -> Option<String> {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| format!("did you mean {}?", names.join(" or ")))
}

/// What is wrong with something that a person typed or wrote, and what to try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// May hold untrusted text.
    pub message: String,
    /// Empty where nothing is known to help.
    pub hint: String,
}

impl Refusal {
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }

    /// A name that no file has, and none of the `kind` that are built in.
    pub fn unknown<'a>(kind: &str, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let message = format!("`{word}` is neither a file nor a built-in {kind} ({})", known.join(", "));
        Self::new(message, did_you_mean(word, known).unwrap_or_default())
    }
}

impl Hint for Refusal {
    fn hint(&self) -> Option<Cow<'_, str>> {
        (!self.hint.is_empty()).then_some(Cow::Borrowed(&self.hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_seen_and_other_words_are_not() {
        let known = [
            "experts-on-host",
            "all-on-device",
            "attention-first",
            "gpt-oss-20b",
            "gpt-oss-120b",
            "q8_0",
            "--cpu-moe",
            "--n-cpu-moe",
        ];
        for (word, expected) in [
            ("experts-on-hst", vec!["experts-on-host"]),
            ("gpt-oss-20", vec!["gpt-oss-20b", "gpt-oss-120b"]),
            ("Q8", vec!["q8_0"]),
            ("zebra", vec![]),
            ("-n-cpu-moe", vec!["--n-cpu-moe"]),
        ] {
            assert_eq!(near(word, known), expected, "{word}");
        }
        let unknown = Refusal::unknown("quant", "q8", known);
        assert_eq!(unknown.hint().as_deref(), Some("did you mean `q8_0`?"));
        assert!(unknown.message.starts_with("`q8` is neither a file nor a built-in quant (experts-on-host, "));
    }
}
