//! The flags of llama-server, llama-cli and llama-fit-params, as data (`flags.tsv`): how many values each takes.

use std::sync::LazyLock;

use super::build::NEW_FLAGS;

/// One flag and its other spellings.
#[derive(Debug)]
pub(super) struct Flag {
    /// How many words follow it.
    pub values: usize,
    /// The environment variable that stands for it.
    pub environment: Option<&'static str>,
    /// Its spellings.
    names: Vec<&'static str>,
    /// The spellings that mean the opposite.
    negated: Vec<&'static str>,
}

impl Flag {
    /// The first long spelling: what the rest of the code calls it.
    pub fn name(&self) -> &'static str {
        self.names.iter().find(|name| name.starts_with("--")).or(self.names.first()).copied().unwrap_or_default()
    }

    /// The last spelling that means the opposite.
    pub fn negated(&self) -> Option<&'static str> {
        self.negated.last().copied()
    }

    /// Whether a negated spelling exists (then `LLAMA_ARG_NO_…` counts as well).
    pub fn is_switch(&self) -> bool {
        !self.negated.is_empty()
    }
}

/// Every flag in llama.cpp's order, which is the order in which it reads the environment.
pub(super) static FLAGS: LazyLock<Vec<Flag>> =
    LazyLock::new(|| include_str!("flags.tsv").lines().filter(|line| !line.starts_with('#')).map(flag).collect());

/// One line of the table; a bad line is our own mistake.
#[cfg_attr(not(test), expect(clippy::expect_used, reason = "the table is the program's own"))]
fn flag(line: &'static str) -> Flag {
    let mut columns = line.split('\t');
    let mut column = || columns.next().expect("four columns");
    let names = |text: &'static str| text.split(' ').filter(|name| *name != "-").collect();
    Flag {
        values: column().parse().expect("a number of values"),
        environment: Some(column()).filter(|name| *name != "-"),
        names: names(column()),
        negated: names(column()),
    }
}

/// The flag of a word and whether it is meant positively; `_` counts as `-` in long flags, as llama.cpp has it.
pub(super) fn find(word: &str) -> Option<(&'static Flag, bool)> {
    let spelled = if word.starts_with("--") { word.replace('_', "-") } else { word.to_string() };
    FLAGS.iter().find_map(|flag| {
        if flag.names.contains(&spelled.as_str()) {
            Some((flag, true))
        } else {
            flag.negated.contains(&spelled.as_str()).then_some((flag, false))
        }
    })
}

/// Every spelling of every flag, negated ones too.
pub fn spellings() -> impl Iterator<Item = &'static str> {
    let of_table = FLAGS.iter().flat_map(|flag| flag.names.iter().chain(&flag.negated).copied());
    of_table.chain(NEW_FLAGS.iter().map(|flag| flag.name))
}

/// What a word of a command line is, for who writes it in another form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spelling {
    /// The first long spelling, with its dashes.
    pub name: &'static str,
    /// The variable that stands for it; llama.cpp has none for some flags.
    pub environment: Option<&'static str>,
    /// Words that follow it.
    pub values: usize,
    /// Whether the word means yes; `false` for a negated spelling.
    pub on: bool,
    /// The spelling that means no, where there is one.
    pub negated: Option<&'static str>,
}

/// The flag that a word of llama-server's command line is, flags of newer builds included.
pub fn spelling(word: &str) -> Option<Spelling> {
    if let Some(new) = NEW_FLAGS.iter().find(|flag| flag.name == word) {
        let (name, values) = (new.name, new.values);
        return Some(Spelling { name, environment: Some(new.environment), values, on: true, negated: None });
    }
    let (flag, on) = find(word)?;
    let (environment, negated) = (flag.environment, flag.negated());
    Some(Spelling { name: flag.name(), environment, values: flag.values, on, negated })
}

/// Flags of older builds that b11434 no longer knows, and what took their place.
pub(super) const REMOVED: &[(&str, usize, &str)] = &[
    ("--no-mmap", 0, "--load-mode none"),
    ("--mmap", 0, "--load-mode mmap"),
    ("--mlock", 0, "--load-mode mmap+mlock"),
    ("--direct-io", 0, "--load-mode dio"),
    ("--no-direct-io", 0, "--load-mode auto"),
    ("-dio", 0, "--load-mode dio"),
    ("-ndio", 0, "--load-mode auto"),
    ("--draft", 1, "--spec-draft-n-max"),
    ("--draft-n", 1, "--spec-draft-n-max"),
    ("--draft-max", 1, "--spec-draft-n-max"),
    ("--draft-min", 1, "--spec-draft-n-min"),
    ("--draft-n-min", 1, "--spec-draft-n-min"),
    ("--spec-ngram-size-n", 1, "--spec-ngram-simple-size-n"),
    ("--spec-ngram-size-m", 1, "--spec-ngram-simple-size-m"),
    ("--spec-ngram-min-hits", 1, "--spec-ngram-simple-min-hits"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_parses_and_no_spelling_is_twice() {
        let mut all: Vec<&str> = FLAGS.iter().flat_map(|f| f.names.iter().chain(&f.negated)).copied().collect();
        assert!(all.len() > 400, "{}", all.len());
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn words_find_their_flag() {
        for (word, name, positive, values) in [
            ("-ngl", "--gpu-layers", true, 1),
            ("--n_gpu_layers", "--gpu-layers", true, 1),
            ("-nkvo", "--kv-offload", false, 0),
            ("-fa", "--flash-attn", true, 1),
            ("--control-vector-layer-range", "--control-vector-layer-range", true, 2),
        ] {
            let (flag, on) = find(word).unwrap();
            assert_eq!((flag.name(), on, flag.values), (name, positive, values), "{word}");
        }
        assert!(find("--no-mmap").is_none());
    }
}
