//! llama-bench's own flags: the tests that it makes, of which the longest counts, and what decides nothing here.
//!
//! Source: llama-bench's help and `tools/llama-bench/README.md`, b11434. Its values come in lists, every combination a test.

use super::values::Given;
use super::{Error, flags};

/// Flags that decide nothing here, with the number of words that follow.
const OTHERS: [(&str, usize); 2] = [
    ("-h --help --version --list-devices -v --verbose --progress --no-warmup --offline", 0),
    (
        "--numa -r --repetitions --prio --delay -o --output -oe --output-err -hft --hf-token -C --cpu-mask --cpu-strict --poll",
        1,
    ),
];

/// Flags of the tests.
const TESTS: [&str; 7] = ["-p", "--n-prompt", "-n", "--n-gen", "-pg", "-d", "--n-depth"];

/// How many words follow a flag that decides nothing here; `None` for another word.
pub(super) fn other(word: &str) -> Option<usize> {
    OTHERS.iter().find(|(names, _)| names.split(' ').any(|name| name == word)).map(|(_, values)| *values)
}

/// Whether llama-bench has a flag.
pub(super) fn has(word: &str) -> bool {
    is_test(word) || other(word).is_some() || flags::find_in_bench(word).is_some()
}

/// Whether a word says which tests are made.
pub(super) fn is_test(word: &str) -> bool {
    TESTS.contains(&word.replace('_', "-").as_str())
}

/// How long the tests are, in tokens.
#[derive(Debug)]
pub(super) struct Tests {
    prompt: u32,
    generate: u32,
    both: u32,
    depth: u32,
}

impl Default for Tests {
    fn default() -> Self {
        Self { prompt: 512, generate: 128, both: 0, depth: 0 }
    }
}

impl Tests {
    /// Carries out one of their flags.
    pub fn set(&mut self, given: Given<'_>) -> Result<(), Error> {
        match given.flag.trim_start_matches('-').replace('_', "-").as_str() {
            "p" | "n-prompt" => self.prompt = given.natural()?,
            "n" | "n-gen" => self.generate = given.natural()?,
            "d" | "n-depth" => self.depth = given.natural()?,
            _ => {
                let (prompt, generate) = given.value.split_once(',').ok_or_else(|| given.refuse("PROMPT,GENERATE"))?;
                let part = |value| Given { value, ..given }.natural();
                self.both = part(prompt)?.saturating_add(part(generate)?);
            }
        }
        Ok(())
    }

    /// The context that the longest of them needs.
    pub fn n_ctx(&self) -> u32 {
        let longest = self.prompt.max(self.generate).max(self.both);
        longest.saturating_add(self.depth).max(1)
    }
}
