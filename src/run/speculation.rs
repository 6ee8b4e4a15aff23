//! Speculation: several flags together say how many tokens are drafted and which states are kept.
//!
//! Source: `common/arg.cpp`, `common/speculative.cpp` `common_speculative_n_max`, `common/common.h` `need_n_rs_seq`, b11434.

use super::Error;
use super::config::RunConfig;
use super::values::Given;

/// What the flags of speculation say, before it is known which kinds are on.
#[derive(Debug)]
pub(super) struct Speculation {
    kinds: Vec<String>,
    draft: u32,
    simple: u32,
    map_k: u32,
    map_k4v: u32,
    ngram_mod: u32,
}

impl Default for Speculation {
    fn default() -> Self {
        Self { kinds: Vec::new(), draft: 3, simple: 48, map_k: 48, map_k4v: 48, ngram_mod: 64 }
    }
}

impl Speculation {
    /// Carries out the flag of this name.
    pub fn set(&mut self, name: &str, given: Given<'_>) -> Result<(), Error> {
        match name {
            "--spec-type" => self.kinds.extend(given.names(',')),
            "--spec-default" => {
                self.kinds.push("ngram-mod".into());
                self.ngram_mod = 64;
            }
            "--spec-draft-n-max" => self.draft = given.natural()?,
            "--spec-ngram-simple-size-m" => self.simple = given.natural()?,
            "--spec-ngram-map-k-size-m" => self.map_k = given.natural()?,
            "--spec-ngram-map-k4v-size-m" => self.map_k4v = given.natural()?,
            _ => self.ngram_mod = given.natural()?,
        }
        Ok(())
    }

    /// Says in `run` what all of it comes to.
    pub fn finish(&self, run: &mut RunConfig) {
        run.mtp = self.kinds.iter().any(|kind| kind == "draft-mtp");
        run.n_draft = self.kinds.iter().map(|kind| self.n_draft(kind)).max().unwrap_or(0);
        let keeps =
            |kind: &String| matches!(kind.as_str(), "draft-mtp" | "draft-eagle3" | "draft-dflash" | "draft-dspark");
        run.n_rs_seq = if self.kinds.iter().any(keeps) { self.draft } else { 0 };
        if run.has_draft_model() && self.kinds.iter().all(|kind| kind == "none") {
            run.draft_n_max = (self.draft != Self::default().draft).then_some(self.draft);
        }
    }

    /// The longest draft of a kind, in tokens.
    fn n_draft(&self, kind: &str) -> u32 {
        match kind {
            "draft-simple" | "draft-eagle3" | "draft-mtp" | "draft-dflash" | "draft-dspark" => self.draft,
            "ngram-simple" => self.simple,
            "ngram-map-k" => self.map_k,
            "ngram-map-k4v" => self.map_k4v,
            "ngram-mod" => self.ngram_mod,
            "ngram-cache" => 8,
            _ => 0,
        }
    }
}

impl RunConfig {
    /// The kind of speculation that a draft model's file is for, where no `--spec-type` says it (`common/speculative.cpp`
    /// `common_speculative_types_from_gguf`, b11434): `has_nextn` of its last block.
    pub fn infer_speculation(&mut self, has_nextn: bool) {
        if has_nextn && self.has_draft_model() && self.n_draft == 0 {
            let n_max = self.draft_n_max.unwrap_or(Speculation::default().draft);
            (self.mtp, self.n_draft, self.n_rs_seq, self.draft_n_max) = (true, n_max, n_max, None);
        }
    }
}

/// The words for speculation that costs what `run` says, by a kind that does.
pub(super) fn words(run: &RunConfig) -> Vec<String> {
    let (kind, flag) = match (run.mtp, run.n_rs_seq, run.n_draft) {
        (true, ..) => ("draft-mtp", "--spec-draft-n-max"),
        (false, 1.., _) => ("draft-eagle3", "--spec-draft-n-max"),
        (false, 0, 1..) => ("ngram-mod", "--spec-ngram-mod-n-max"),
        (false, 0, 0) => {
            let n_max = run.draft_n_max.map(|n| ["--spec-draft-n-max".to_string(), n.to_string()]);
            return n_max.into_iter().flatten().collect();
        }
    };
    vec!["--spec-type".into(), kind.into(), flag.into(), run.n_draft.to_string()]
}
