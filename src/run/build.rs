//! Builds of llama.cpp: which flags each has, and whether its memory rules are known here.
//!
//! Sources: `common/arg.cpp` of b11434; the help and the measured memory of b10434 and b11549; the tree that llama-cpp-sys-2
//! 0.1.161 vendors, whose `common/arg.cpp` has the flags of b11434 and whose `src` and `ggml/src` equal it file by file.

use super::behaviour::{STEPS, Step};
use super::config::Dialect;
pub use super::config::{REFERENCE, Target};
use super::flags::{self, Flag, Removed};
use crate::gguf::GgmlType;

/// A build whose differences from the reference are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    pub number: u32,
    /// What is known of its memory, in a sentence.
    pub memory: &'static str,
}

pub const BUILDS: &[Build] = &[
    Build { number: 10434, memory: "flags known (the old mmap flags still count); memory assumed to be b11434's" },
    Build {
        number: REFERENCE,
        memory: "the reference: every rule was checked on it; llama-cpp-sys-2 0.1.161 vendors it",
    },
    Build { number: 11549, memory: "b11434's rules and the expert cache (`--moe-cache-mib`)" },
    Build {
        number: NEWEST,
        memory: "b11549's rules but for mapped files and rotations of quantized caches; compared with no run",
    },
];

/// The oldest build whose source was read for its rules, and the newest.
pub const OLDEST: u32 = 9093;
pub const NEWEST: u32 = 12032;

/// The number of a build as it is written: `11434` or `b11434`.
pub fn number(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix('b').unwrap_or(text).parse();
    number
        .map_err(|_| "write the number of a build, as `llama-server --version` prints it: 11434 or b11434".to_string())
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

    /// What is known of its memory, in a sentence.
    pub fn memory(self) -> String {
        if let Some(known) = self.known() {
            return known.memory.to_string();
        }
        let differs = |step: &&Step| (step.since <= self.build) != (step.since <= REFERENCE);
        let mut rules: Vec<&str> = STEPS.iter().filter(differs).map(|step| step.rule).collect();
        rules.dedup();
        let within = |step: &&Step| step.before < self.build && self.build < step.since;
        let mut unsure: Vec<&str> = STEPS.iter().filter(within).map(|step| step.rule).collect();
        unsure.dedup();
        let mut said = match rules.as_slice() {
            [] => "b11434's rules".to_string(),
            rules => format!("b11434's rules but for {}", rules.join(", ")),
        };
        if !unsure.is_empty() {
            said += &format!("; which of two it has of {} is not known: the older is taken", unsure.join(", "));
        }
        if self.build < OLDEST {
            said += &format!("; no source older than b{OLDEST} was read");
        } else if self.build > NEWEST {
            said += &format!("; nothing newer than b{NEWEST} was read, {} builds before it", self.build - NEWEST);
        }
        said
    }

    /// Whether it loads tensors of a type.
    pub fn loads(self, ty: GgmlType) -> bool {
        match self.dialect {
            Dialect::LlamaCpp => self.build >= ty.since,
            Dialect::Ik => ty.since == u32::MAX || ty.since <= REFERENCE,
        }
    }

    /// Who has a type, in words.
    pub fn with(ty: GgmlType) -> String {
        if ty.since == u32::MAX {
            "ik_llama.cpp's".to_string()
        } else {
            format!("of llama.cpp b{} and later", ty.since)
        }
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

    /// Whether it still takes a flag of old; `None` where no build between is known. ik_llama.cpp has them all.
    pub(super) fn takes(self, flag: &Removed) -> Option<bool> {
        match self.build {
            _ if self.dialect == Dialect::Ik => Some(true),
            build if build <= flag.until => Some(true),
            build => (build >= flag.gone).then_some(false),
        }
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
    fn what_is_known_of_a_build() {
        let memory = |build| Target { build, ..Target::default() }.memory();
        assert!(BUILDS.windows(2).all(|pair| pair[0].number < pair[1].number));
        assert!(memory(9341).starts_with("b11434's rules but for logits_of_all, mask_copied, embedding_inputs"));
        assert!(memory(9460).contains("of logits_of_all is not known"));
        assert_eq!(memory(11410), "b11434's rules");
        assert!(memory(11500).contains("of looks_up_first is not known"));
        assert!(memory(8000).ends_with("no source older than b9093 was read"));
        assert!(memory(12732).ends_with("700 builds before it"));
    }
}
