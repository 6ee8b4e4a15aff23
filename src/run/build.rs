//! Builds of llama.cpp: which flags each has, and whether its memory rules are known here.
//!
//! Sources: `common/arg.cpp` of b11434; the help and the measured memory of b10434 and b11549; the tree that llama-cpp-sys-2
//! 0.1.161 vendors, whose `common/arg.cpp` has the flags of b11434 and whose `src` and `ggml/src` equal it file by file.

use super::dialect::Dialect;

/// The build that every rule here was checked on.
pub const REFERENCE: u32 = 11434;

/// A build whose differences from the reference are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    /// The N of `bN`.
    pub number: u32,
    /// What is known of its memory, in a sentence.
    pub memory: &'static str,
}

/// By number.
pub const BUILDS: &[Build] = &[
    Build { number: 10434, memory: "flags known (the old mmap flags still count); memory taken to be b11434's" },
    Build {
        number: REFERENCE,
        memory: "the reference: every rule was checked on it; llama-cpp-sys-2 0.1.161 vendors it",
    },
    Build { number: 11549, memory: "b11434's rules and the expert cache (`--moe-cache-mib`)" },
];

/// A flag that the reference does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NewFlag {
    /// The first build it was seen in.
    pub since: u32,
    /// How many words follow it.
    pub values: usize,
    /// The environment variable that stands for it.
    pub environment: &'static str,
    /// Its spelling.
    pub name: &'static str,
}

/// Flags newer than the reference.
pub(super) const NEW_FLAGS: &[NewFlag] =
    &[NewFlag { since: 11549, values: 1, environment: "LLAMA_ARG_MOE_CACHE_MIB", name: "--moe-cache-mib" }];

/// The last known build that still takes the mmap flags of old (`--no-mmap`, `--mlock`, `--direct-io`).
const LAST_WITH_MMAP_FLAGS: u32 = 10434;

/// What a command is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The N of `bN`; of ik_llama.cpp, nothing.
    pub build: u32,
    /// llama.cpp or a fork of it.
    pub dialect: Dialect,
}

impl Default for Target {
    fn default() -> Self {
        Self { build: REFERENCE, dialect: Dialect::LlamaCpp }
    }
}

impl Target {
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

    /// Whether it has the expert cache (`--moe-cache-mib`).
    pub fn has_expert_cache(self) -> bool {
        let since = NEW_FLAGS.iter().find(|flag| flag.name == "--moe-cache-mib").map(|flag| flag.since);
        self.dialect == Dialect::LlamaCpp && since.is_some_and(|since| self.build >= since)
    }

    /// Whether the flags of old that `--load-mode` replaced are still taken.
    pub(super) fn takes_mmap_flags(self) -> bool {
        self.dialect == Dialect::Ik || self.build <= LAST_WITH_MMAP_FLAGS
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
