//! A multimodal projector: its encoders, as their keys describe them, and which of its tensors llama.cpp loads.
//!
//! Source: `tools/mtmd/clip.cpp` `load_hparams`, `load_tensors`, `clip_init`, `tools/mtmd/clip-model.h`, llama.cpp b11434. The facts
//! of each type are in `projectors.tsv`.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

use std::collections::HashSet;
use std::sync::LazyLock;

use super::{Model, Tensor};
use crate::gguf::Value;

/// Why llama.cpp refuses a projector, or moeplan cannot read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the file has neither a vision nor an audio encoder (`clip.has_vision_encoder`, `clip.has_audio_encoder`)")]
    NoEncoder,
    #[error("llama.cpp b11434 does not know the projector type `{name}`")]
    Type {
        /// Untrusted text.
        name: String,
    },
    #[error("key `{key}` is missing or out of range")]
    Key { key: String },
    #[error(
        "an image would have {least} tokens at least and {most} at most: see --image-min-tokens and --image-max-tokens"
    )]
    Tokens { least: u64, most: u64 },
    #[error("the file has no tensor `{tensor}`, which llama.cpp requires of `{name}`")]
    Tensor { name: String, tensor: String },
}

/// What an encoder reads, in the order in which llama.cpp makes their contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    Vision,
    Audio,
    /// It makes sound.
    GenAudio,
}

impl Modality {
    /// Its part of `clip.<part>.KEY`, and the prefix of its tensors.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Vision => ("vision", "v"),
            Self::Audio => ("audio", "a"),
            Self::GenAudio => ("gen.audio", "a.gen.code"),
        }
    }
}

/// One context of a projector.
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    pub model: &'a Model,
    pub modality: Modality,
    pub kind: &'static Kind,
    pub n_embd: u64,
    pub n_head: u64,
    pub n_head_kv: u64,
    /// Elements of a head.
    pub d_head: u64,
    pub n_layer: u64,
    pub projection_dim: u64,
    /// Pixels by side of the default image; 0 for audio.
    pub image_size: u64,
    /// Pixels by side.
    pub patch_size: u64,
    /// Patches by side that become one token.
    pub n_merge: u64,
    /// Pixels by side of the image that memory is reserved for.
    pub side: u64,
    /// The most tokens of an image, where images differ in size.
    pub max_tokens: Option<u64>,
}

/// A row of the table.
#[derive(Debug)]
pub struct Kind {
    /// `clip.projector_type`.
    pub name: &'static str,
    merge: u64,
    merge_key: Option<&'static str>,
    /// The fewest and the most tokens of an image, where llama.cpp says so itself.
    limits: Option<(u32, u32)>,
    /// `image_max_pixels` says how many pixels an image has.
    pixel_keys: bool,
    /// `--image-max-tokens` counts, although the type has no limits of its own.
    own_limit: bool,
    /// Tokens by side of the image that memory is reserved for.
    reserved: Option<u64>,
    tensors: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    name: String,
    is_required: bool,
}

static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    include_str!("projectors.tsv").lines().filter(|line| !line.starts_with('#')).flat_map(Kind::parse).collect()
});

/// Those without the usual blocks (`has_standard_layers`).
const WITHOUT_BLOCKS: [&str; 3] = ["gemma3nv", "qwen3tts_spkenc", "pockettts_gen"];

/// The largest number of a key; no product of three of them passes 64 bits.
const MAX_NUMBER: u64 = 1 << 16;

impl Kind {
    /// The rows of a line: one for each of its names.
    fn parse(line: &'static str) -> Vec<Self> {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_default();
        let (names, merge, pixels, reserved, tensors) = (next(), next(), next(), next(), next());
        let (merge, merge_key) = merge.split_once(' ').map_or((merge, None), |(n, key)| (n, Some(key)));
        let range = pixels.split(' ').find_map(|word| word.split_once(".."));
        let row = |name| Self {
            name,
            merge: merge.parse().unwrap_or(1),
            merge_key,
            limits: range.and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?))),
            pixel_keys: pixels.split(' ').any(|word| word == "keys"),
            own_limit: pixels.split(' ').any(|word| word == "own"),
            reserved: reserved.parse().ok(),
            tensors: tensors.split(' ').flat_map(Pattern::parse).collect(),
        };
        names.split(' ').map(row).collect()
    }

    fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// Its own tensors, those of every projector, and the blocks'.
    fn patterns(&'static self) -> impl Iterator<Item = &'static Pattern> {
        let blocks = (!WITHOUT_BLOCKS.contains(&self.name)).then(|| Self::named("blocks")).flatten();
        [Self::named("every"), blocks, Some(self)].into_iter().flatten().flat_map(|kind| &kind.tensors)
    }
}

impl Pattern {
    /// The names of a word: `{a,b}` is either, `.*` a weight and a bias.
    fn parse(word: &str) -> Vec<Self> {
        let (word, is_required) = word.strip_suffix('?').map_or((word, true), |word| (word, false));
        let cut = word.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?)));
        let (head, (either, tail)) = cut.unwrap_or(("", (word, "")));
        let whole = either.split(',').map(|middle| format!("{head}{middle}{tail}"));
        let both = |name: String| match name.strip_suffix(".*") {
            Some(stem) => vec![format!("{stem}.weight"), format!("{stem}.bias")],
            None => vec![name],
        };
        whole.flat_map(both).map(|name| Self { name, is_required }).collect()
    }

    /// Whether this is the name of a tensor, of a block that there is.
    fn matches(&self, name: &str, prefix: &str, n_layer: u64) -> bool {
        let (own, rest) = match self.name.strip_prefix("P.") {
            Some(rest) => (name.strip_prefix(prefix).and_then(|name| name.strip_prefix('.')), rest),
            None => (Some(name), self.name.as_str()),
        };
        let Some(own) = own else { return false };
        let (mut parts, mut wanted) = (own.split('.'), rest.split('.'));
        let in_blocks = self.name.starts_with("P.blk.#") && !self.name.starts_with("P.blk.#.#");
        loop {
            match (parts.next(), wanted.next()) {
                (None, None) => return true,
                (Some(part), Some("#")) => match part.parse::<u64>() {
                    Ok(il) if !in_blocks || il < n_layer => {}
                    _ => return false,
                },
                (Some(part), Some(want)) if part == want => {}
                _ => return false,
            }
        }
    }
}

impl<'a> Encoder<'a> {
    /// The tensors that llama.cpp loads for it.
    pub fn loaded(self) -> impl Iterator<Item = &'a Tensor> {
        let (_, prefix) = self.modality.names();
        let is_loaded =
            move |tensor: &&Tensor| self.kind.patterns().any(|p| p.matches(&tensor.name, prefix, self.n_layer));
        self.model.tensors.iter().filter(is_loaded)
    }

    /// The prefix of its tensors.
    pub fn prefix(self) -> &'static str {
        self.modality.names().1
    }

    /// The number `clip.KEY`.
    pub fn number(self, key: &str) -> Option<u64> {
        number(self.model, &format!("clip.{key}"))
    }

    /// The first tensor that is missing.
    fn missing(self) -> Option<String> {
        let has: HashSet<&str> = self.model.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let (_, prefix) = self.modality.names();
        let mut names = self.kind.patterns().filter(|pattern| pattern.is_required).flat_map(|pattern| {
            let name = pattern.name.replacen("P.", &format!("{prefix}."), usize::from(pattern.name.starts_with("P.")));
            // Which blocks of another kind a file must have depends on its keys.
            let is_of_layers = pattern.name.starts_with("P.blk.#.");
            let blocks = if is_of_layers { 0..self.n_layer } else { 0..1 };
            blocks.map(move |il| if is_of_layers { name.replacen('#', &il.to_string(), 1) } else { name.clone() })
        });
        names.find(|name| !name.contains('#') && !name.contains("seanet") && !has.contains(name.as_str()))
    }
}

fn number(model: &Model, key: &str) -> Option<u64> {
    match model.hparams.metadata.get(key) {
        Some(Value::U64(n)) => Some(*n),
        Some(Value::I64(n)) => u64::try_from(*n).ok(),
        _ => None,
    }
}

/// The encoders of a projector's file; `image_tokens` are `--image-min-tokens` and `--image-max-tokens`, 0 = not
/// given.
///
/// # Errors
/// What llama.cpp would refuse first.
pub fn encoders(model: &Model, image_tokens: [u32; 2]) -> Result<Vec<Encoder<'_>>, Fault> {
    let has = |key: &str| matches!(model.hparams.metadata.get(key), Some(Value::Bool(true)));
    let all = [
        (Modality::Vision, "clip.has_vision_encoder"),
        (Modality::Audio, "clip.has_audio_encoder"),
        (Modality::GenAudio, "clip.has_gen_audio_encoder"),
    ];
    let mut encoders: Vec<Encoder<'_>> = Vec::new();
    for (modality, key) in all {
        // llama.cpp does not run Gemma 3n's audio.
        let is_skipped =
            modality == Modality::Audio && encoders.first().is_some_and(|vision| vision.kind.name == "gemma3nv");
        if has(key) && !is_skipped {
            encoders.push(encoder(model, modality, image_tokens)?);
        }
    }
    if encoders.iter().all(|encoder| encoder.modality == Modality::GenAudio) {
        return Err(Fault::NoEncoder);
    }
    Ok(encoders)
}

fn encoder(model: &Model, modality: Modality, image_tokens: [u32; 2]) -> Result<Encoder<'_>, Fault> {
    let (part, _) = modality.names();
    let text = |key: &str| match model.hparams.metadata.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.as_str()),
        _ => None,
    };
    let name = text("clip.projector_type").or_else(|| text(&format!("clip.{part}.projector_type"))).unwrap_or_default();
    let name = match (name, modality) {
        ("qwen2.5o", Modality::Vision) => "qwen2.5vl_merger",
        ("qwen2.5o", _) => "qwen2a",
        (name, _) => name,
    };
    let kind = Kind::named(name).filter(|_| !matches!(name, "every" | "blocks"));
    let kind = kind.ok_or_else(|| Fault::Type { name: name.to_string() })?;
    let optional = |key: &str| match number(model, key) {
        Some(n) if n > MAX_NUMBER => Err(Fault::Key { key: key.to_string() }),
        found => Ok(found),
    };
    let required = |key: &str| optional(key)?.ok_or_else(|| Fault::Key { key: key.to_string() });
    let own = |key: &str| format!("clip.{part}.{key}");
    let n_embd = required(&own("embedding_length"))?;
    let n_head = required(&own("attention.head_count"))?;
    let n_head_kv = optional(&own("attention.head_count_kv"))?.unwrap_or(n_head);
    let d_head = match optional(&own("attention.head_dim"))? {
        Some(d_head) if d_head > 0 => d_head,
        _ => n_embd.checked_div(n_head).unwrap_or(0),
    };
    let n_layer = required(&own("block_count"))?;
    let projection_dim = required(&own("projection_dim"))?;
    let mut encoder = Encoder {
        model,
        modality,
        kind,
        n_embd,
        n_head,
        n_head_kv,
        d_head,
        n_layer,
        projection_dim,
        image_size: 0,
        patch_size: 1,
        n_merge: kind.merge,
        side: 0,
        max_tokens: None,
    };
    if modality == Modality::Vision {
        read_image(&mut encoder, image_tokens, &required)?;
    }
    match encoder.missing() {
        Some(tensor) => Err(Fault::Tensor { name: kind.name.to_string(), tensor }),
        None => Ok(encoder),
    }
}

/// The size of images.
fn read_image(
    e: &mut Encoder<'_>,
    image_tokens: [u32; 2],
    required: &impl Fn(&str) -> Result<u64, Fault>,
) -> Result<(), Fault> {
    let fault = |key: &str| Fault::Key { key: key.to_string() };
    let [image_min_tokens, image_max_tokens] = image_tokens;
    let (size, patch) = ("clip.vision.image_size", "clip.vision.patch_size");
    (e.image_size, e.patch_size) = (required(size)?, required(patch)?);
    let merge_key = e.kind.merge_key.map(|key| format!("clip.vision.{key}"));
    if let Some(n_merge) = merge_key.as_ref().and_then(|key| number(e.model, key)) {
        e.n_merge = n_merge;
    }
    match e.kind.name {
        "gemma4uv" => (e.patch_size, e.n_merge) = (e.patch_size.saturating_mul(e.n_merge), 1),
        "deepseekocr" | "deepseekocr2" => (e.patch_size, e.image_size) = (16, 1024),
        _ => {}
    }
    if e.image_size > 8192 {
        return Err(fault(size));
    }
    if e.patch_size == 0 || e.patch_size >= MAX_NUMBER {
        return Err(fault(patch));
    }
    if e.n_merge == 0 || e.n_merge >= MAX_NUMBER {
        return Err(fault(&merge_key.unwrap_or_default()));
    }
    let step = e.patch_size.saturating_mul(e.n_merge);
    let area = step.saturating_mul(step);
    let stated = |key: &str| number(e.model, &format!("clip.vision.{key}"));
    let of = |tokens: u32| u64::from(tokens).saturating_mul(area);
    let mut max_pixels = e.kind.limits.map(|(_, most)| of(if image_max_tokens > 0 { image_max_tokens } else { most }));
    if e.kind.pixel_keys {
        max_pixels = stated("image_max_pixels").or(max_pixels);
    }
    if e.kind.own_limit && image_max_tokens > 0 {
        max_pixels = Some(of(image_max_tokens));
    }
    let mut reserved = e.kind.reserved;
    match e.kind.name {
        "kimik25" if stated("image_min_pixels").unwrap_or(0) > 0 => {
            max_pixels = stated("image_max_pixels").filter(|pixels| *pixels > 0).or(max_pixels);
        }
        "deepseek4v" => {
            let most = if image_max_tokens > 0 { image_max_tokens.max(16) } else { 384 };
            reserved = Some(u64::from(most.min(256)).isqrt());
            e.max_tokens = Some(most.into());
        }
        _ => {}
    }
    let mut least = e.kind.limits.map(|(least, _)| of(if image_min_tokens > 0 { image_min_tokens } else { least }));
    if e.kind.pixel_keys {
        least = stated("image_min_pixels").or(least);
    }
    if e.kind.own_limit && image_min_tokens > 0 {
        least = Some(of(image_min_tokens));
    }
    if let (Some(least), Some(most)) = (least, max_pixels)
        && least > most
    {
        let tokens = |pixels: u64| pixels.checked_div(area).unwrap_or(0);
        return Err(Fault::Tokens { least: tokens(least), most: tokens(most) });
    }
    e.max_tokens = e.max_tokens.or_else(|| max_pixels?.checked_div(area));
    e.side = match (reserved, max_pixels) {
        (Some(side), _) => {
            let most = u64::from(image_max_tokens);
            let side = if most > 0 && side.saturating_mul(side) > most { most.isqrt().max(1) } else { side };
            side.saturating_mul(step)
        }
        (None, Some(pixels)) if e.kind.limits.is_some() => pixels.isqrt(),
        _ => e.image_size,
    };
    Ok(())
}
