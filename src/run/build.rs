//! Builds of llama.cpp: which flags each has, and whether its memory rules are known here.
//!
//! Sources: `common/arg.cpp` of b11434; the help and the measured memory of b10434 and b11549; the tree that llama-cpp-sys-2
//! 0.1.161 vendors, whose `common/arg.cpp` has the flags of b11434 and whose `src` and `ggml/src` equal it file by file.

use super::dialect::Dialect;
use super::flags::{self, Flag, Removed};

/// The build that every rule here was checked on.
pub const REFERENCE: u32 = 11434;

/// A build whose differences from the reference are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    pub number: u32,
    /// What is known of its memory, in a sentence.
    pub memory: &'static str,
}

pub const BUILDS: &[Build] = &[
    Build { number: 10434, memory: "flags known (the old mmap flags still count); memory taken to be b11434's" },
    Build {
        number: REFERENCE,
        memory: "the reference: every rule was checked on it; llama-cpp-sys-2 0.1.161 vendors it",
    },
    Build { number: 11549, memory: "b11434's rules and the expert cache (`--moe-cache-mib`)" },
];

/// The number of a build as it is written: `11434` or `b11434`.
pub fn number(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix('b').unwrap_or(text).parse();
    number
        .map_err(|_| "write the number of a build, as `llama-server --version` prints it: 11434 or b11434".to_string())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub build: u32,
    pub dialect: Dialect,
}

impl Default for Target {
    fn default() -> Self {
        Self { build: REFERENCE, dialect: Dialect::LlamaCpp }
    }
}

impl Target {
    /// llama.cpp's newest build whose flags are known.
    pub fn newest() -> Self {
        Self { build: BUILDS.last().map_or(REFERENCE, |build| build.number), dialect: Dialect::LlamaCpp }
    }

    /// Its row of the table, where it has one.
    pub fn known(self) -> Option<&'static Build> {
        BUILDS.iter().find(|build| build.number == self.build)
    }

    /// The newest known build that is no newer, else the oldest.
    #[cfg_attr(not(test), expect(clippy::expect_used, reason = "the table is the program's own"))]
    pub fn nearest(self) -> &'static Build {
        let older = BUILDS.iter().rev().find(|build| build.number <= self.build);
        older.or(BUILDS.first()).expect("the table has rows")
    }

    pub fn has(self, flag: &Flag) -> bool {
        match self.dialect {
            Dialect::LlamaCpp => self.build >= flag.since,
            Dialect::Ik => flag.since <= REFERENCE,
        }
    }

    /// Whether it has the expert cache (`--moe-cache-mib`).
    pub fn has_expert_cache(self) -> bool {
        self.dialect == Dialect::LlamaCpp && flags::spelling("--moe-cache-mib").is_some_and(|(flag, _)| self.has(flag))
    }

    /// Whether it still takes a flag of old; ik_llama.cpp has those that b10434 had.
    pub(super) fn takes(self, flag: &Removed) -> bool {
        flag.until > 0 && (self.dialect == Dialect::Ik || self.build <= flag.until)
    }

    /// What messages call it: `llama.cpp b11434`.
    pub fn name(self) -> String {
        match self.dialect {
            Dialect::LlamaCpp => format!("llama.cpp b{}", self.build),
            Dialect::Ik => "ik_llama.cpp".to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_build_has_a_nearest_known_one() {
        let of = |build| Target { build, ..Target::default() };
        assert!(BUILDS.windows(2).all(|pair| pair[0].number < pair[1].number));
        for (build, known, nearest) in [
            (1, false, 10434),
            (11434, true, 11434),
            (11500, false, 11434),
            (11549, true, 11549),
            (99999, false, 11549),
        ] {
            assert_eq!((of(build).known().is_some(), of(build).nearest().number), (known, nearest), "{build}");
        }
    }
}
