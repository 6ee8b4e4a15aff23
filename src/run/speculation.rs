//! Speculation: several flags together say how many tokens are drafted and which states are kept.
//!
//! Source: `common/arg.cpp`, `common/speculative.cpp` `common_speculative_n_max`, `common/common.h` `need_n_rs_seq`, b11434.

use std::collections::BTreeMap;

use super::Error;
use super::config::RunConfig;
use super::values::Given;

/// Each kind of speculation, the flag that says how long its drafts may be, and that length without the flag, in tokens.
const KINDS: [(&str, &str, u32); 10] = [
    ("draft-simple", DRAFT_MAX, 3),
    ("draft-eagle3", DRAFT_MAX, 3),
    ("draft-mtp", DRAFT_MAX, 3),
    ("draft-dflash", DRAFT_MAX, 3),
    ("draft-dspark", DRAFT_MAX, 3),
    ("ngram-simple", "--spec-ngram-simple-size-m", 48),
    ("ngram-map-k", "--spec-ngram-map-k-size-m", 48),
    ("ngram-map-k4v", "--spec-ngram-map-k4v-size-m", 48),
    ("ngram-mod", NGRAM_MAX, 64),
    ("ngram-cache", "", 8),
];
const DRAFT_MAX: &str = "--spec-draft-n-max";
const NGRAM_MAX: &str = "--spec-ngram-mod-n-max";
/// `--spec-draft-n-max` where it is not given.
const DRAFT: u32 = 3;

/// What the flags of speculation say, before it is known which kinds are on.
#[derive(Debug, Default)]
pub(super) struct Speculation {
    kinds: Vec<String>,
    /// By flag, in tokens.
    lengths: BTreeMap<&'static str, u32>,
}

impl Speculation {
    /// Carries out the flag of this name. `is_checked`: whether the kinds are llama.cpp's.
    pub fn set(&mut self, name: &'static str, given: Given<'_>, is_checked: bool) -> Result<(), Error> {
        match name {
            "--spec-type" => {
                let known = || std::iter::once("none").chain(KINDS.map(|(kind, ..)| kind));
                let kinds = given.names(',');
                // `common_speculative_types_from_names` refuses others.
                if is_checked && kinds.iter().any(|kind| known().all(|name| name != kind)) {
                    return Err(given.refuse(&format!("one of {}", known().collect::<Vec<_>>().join(", "))));
                }
                self.kinds.extend(kinds);
            }
            "--spec-default" => {
                self.kinds.push("ngram-mod".into());
                self.lengths.insert(NGRAM_MAX, 64);
            }
            _ => {
                self.lengths.insert(name, given.natural()?);
            }
        }
        Ok(())
    }

    /// Says in `run` what all of it comes to.
    pub fn finish(&self, run: &mut RunConfig) {
        let is = |names: &[&str]| self.kinds.iter().any(|kind| names.contains(&kind.as_str()));
        let draft = self.lengths.get(DRAFT_MAX).copied().unwrap_or(DRAFT);
        let known = KINDS.iter().filter(|(kind, ..)| is(&[kind]));
        let longest = known.map(|(_, flag, usual)| self.lengths.get(flag).copied().unwrap_or(*usual)).max();
        run.mtp |= is(&["draft-mtp"]);
        run.n_draft = longest.unwrap_or(0); // A kind that is not known here drafts nothing that is counted.
        run.n_rs_seq = if is(&["draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark"]) { draft } else { 0 };
        let mut kinds = KINDS.iter().map(|(kind, ..)| *kind).filter(|kind| is(&[kind]));
        let only = kinds.next().filter(|_| kinds.next().is_none());
        run.draft_type = only
            .filter(|kind| *kind != "draft-mtp" && words(run).get(1).is_none_or(|word| word != kind))
            .map(str::to_string);
        if run.has_draft_model() && self.kinds.iter().all(|kind| kind == "none") {
            run.draft_n_max = (draft != DRAFT).then_some(draft);
        }
    }
}

impl RunConfig {
    /// The same launch with drafts of at most `n` tokens; with 0, without speculation and without a draft model.
    #[must_use]
    pub fn with_drafts(&self, n: u32) -> Self {
        if n > 0 {
            return Self { n_draft: n, n_rs_seq: self.n_rs_seq.min(1) * n, ..self.clone() };
        }
        Self {
            mtp: false,
            n_draft: 0,
            n_rs_seq: 0,
            draft_model: None,
            draft_hf: None,
            draft_n_max: None,
            draft_type: None,
            draft_n_gpu_layers: None,
            draft_devices: None,
            draft_overrides: Vec::new(),
            draft_n_ubatch: None,
            draft_type_k: None,
            draft_type_v: None,
            ..self.clone()
        }
    }

    /// Takes the kind of speculation that a draft model's file is for, where no `--spec-type` says it (`common/arg.cpp`, b11434).
    pub fn infer_speculation(&mut self, kind: Option<&str>) {
        if let Some(kind) = kind.filter(|_| self.has_draft_model() && self.n_draft == 0) {
            let n_max = self.draft_n_max.unwrap_or(DRAFT);
            (self.mtp, self.n_draft, self.n_rs_seq, self.draft_n_max) = (kind == "draft-mtp", n_max, n_max, None);
            self.draft_type = (!self.mtp).then(|| kind.to_string());
        }
    }
}

/// The words for speculation that costs what `run` says, by a kind that does.
pub(super) fn words(run: &RunConfig) -> Vec<String> {
    let kind = match (run.mtp, run.n_rs_seq, run.n_draft) {
        (true, ..) => "draft-mtp",
        (false, 1.., _) => run.draft_type.as_deref().unwrap_or("draft-eagle3"),
        (false, 0, 1..) => run.draft_type.as_deref().unwrap_or("ngram-mod"),
        (false, 0, 0) => {
            let n_max = run.draft_n_max.map(|n| [DRAFT_MAX.to_string(), n.to_string()]);
            return n_max.into_iter().flatten().collect();
        }
    };
    let flag = KINDS.iter().find(|(known, ..)| *known == kind).map_or(DRAFT_MAX, |(_, flag, _)| flag);
    let length = [flag.to_string(), run.n_draft.to_string()];
    // The length of some is not a flag's.
    ["--spec-type".into(), kind.into()].into_iter().chain(length.into_iter().filter(|_| !flag.is_empty())).collect()
}
