//! Vocabularies of any size that llama.cpp loads and uses: byte-level BPE with real merges, SentencePiece with scores.
//!
//! Source: `src/llama-vocab.cpp` (`llama_vocab::impl::load`), llama.cpp b11434.

use std::collections::HashSet;

use super::spec::Spec;
use crate::expression::Dims;
use crate::gguf::writer::Scalar;
use crate::suggest::Refusal;

/// `enum llama_token_type`.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' \
    + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[derive(Default)]
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
}

impl Vocabulary {
    fn push(&mut self, token: impl Into<String>, kind: i32) {
        self.tokens.push(token.into());
        self.types.push(kind);
    }

    /// Words of growing length up to `size` tokens, each merged from an earlier one and a letter.
    fn fill(mut self, space: char, size: usize) -> Self {
        let mut words: Vec<String> = std::iter::once(space).chain('a'..='z').map(String::from).collect();
        for at in 0.. {
            for letter in 'a'..='z' {
                if self.tokens.len() == size {
                    return self;
                }
                let word = format!("{}{letter}", words[at]);
                self.merges.push(format!("{} {letter}", words[at]));
                self.push(word.clone(), kind::NORMAL);
                words.push(word);
            }
        }
        self
    }
}

/// The `tokenizer.*` keys of a spec. `printable`: bytes that are not printable ASCII get the type UNUSED, which
/// llama.cpp takes as input and prints as nothing, so that whatever a random model generates is valid UTF-8.
pub fn keys(spec: &Spec, dims: &Dims, printable: bool) -> Result<Vec<(String, Scalar)>, Refusal> {
    let size = usize::try_from(spec.number("n_vocab", dims)?).unwrap_or(usize::MAX);
    let first = match &spec.tokenizer.first_special {
        Some(expression) => usize::try_from(spec.number(expression, dims)?).unwrap_or(usize::MAX),
        None => 0,
    };
    let special = &spec.tokenizer.special;
    if size < 512 || first.saturating_add(special.len()) > size {
        return Err(spec.bad(format!("{size} tokens have no room for bytes, words and the special ones from {first}")));
    }
    let mut vocabulary = match spec.tokenizer.model.as_str() {
        "gpt2" => bpe(size, printable),
        "llama" => sentence_piece(size, printable),
        "gemma4" => pieces(Vocabulary::default(), size, printable),
        other => return Err(spec.bad(format!("no vocabulary of the model `{other}` can be made"))),
    };
    if spec.tokenizer.model != "llama" && first < 256 {
        // Special tokens come before the bytes.
        vocabulary.tokens.rotate_right(special.len());
        vocabulary.types.rotate_right(special.len());
        vocabulary.merges.truncate(vocabulary.merges.len() - special.len());
    }
    let mut replaced = HashSet::new();
    for (at, token) in (first..).zip(special) {
        replaced.insert(std::mem::replace(&mut vocabulary.tokens[at], token.clone()));
        vocabulary.types[at] = kind::CONTROL;
    }
    // No merge is of a token, or makes one, that a special token replaced.
    vocabulary.merges.retain(|merge| {
        let (left, right) = merge.split_once(' ').unwrap_or((merge, ""));
        ![left, right, &format!("{left}{right}")].into_iter().any(|token| replaced.contains(token))
    });
    assemble(spec, vocabulary).map_err(|problem| spec.bad(problem))
}

fn assemble(spec: &Spec, vocabulary: Vocabulary) -> Result<Vec<(String, Scalar)>, String> {
    let (model, pre) = (spec.tokenizer.model.as_str(), spec.tokenizer.pre.as_str());
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut keys = vec![(key("model"), Scalar::String(model.into()))];
    if !pre.is_empty() {
        keys.push((key("pre"), Scalar::String(pre.into())));
    }
    let mut ids = Vec::new();
    for (name, token) in &spec.tokenizer.ids {
        let id = vocabulary.tokens.iter().position(|text| text == token);
        let id = id.ok_or_else(|| format!("`{token}` ({name}) is not in the vocabulary"))?;
        ids.push((key(name), Scalar::U32(u32::try_from(id).map_err(|error| error.to_string())?)));
    }
    #[expect(clippy::cast_precision_loss, reason = "scores only order the tokens")]
    let scores = (0..vocabulary.tokens.len()).map(|i| 259.0_f32.min(i as f32) - i as f32).collect();
    keys.push((key("tokens"), Scalar::Strings(vocabulary.tokens)));
    if model != "gpt2" {
        keys.push((key("scores"), Scalar::F32s(scores)));
    }
    keys.push((key("token_type"), Scalar::I32s(vocabulary.types)));
    if model != "llama" {
        keys.push((key("merges"), Scalar::Strings(vocabulary.merges)));
    }
    keys.extend(ids);
    keys.extend(spec.tokenizer.flags.iter().map(|(name, flag)| (key(name), Scalar::Bool(*flag))));
    keys.push(("tokenizer.chat_template".into(), Scalar::String(CHAT_TEMPLATE.into())));
    Ok(keys)
}

/// Whether a byte alone is text that can be printed.
fn prints(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\t' | 0x20..=0x7e)
}

/// The 256 bytes as GPT-2 spells them, then words of growing length, each merged from an earlier one and a letter.
fn bpe(size: usize, printable: bool) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    let mut next = 256;
    for byte in 0..=u8::MAX {
        let spelled = match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("a letter of Latin Extended-A")
            }
        };
        let kind = if printable && !prints(byte) { kind::UNUSED } else { kind::NORMAL };
        vocabulary.push(spelled, kind);
    }
    vocabulary.fill('\u{120}', size)
}

/// `<unk> <s> </s>`, then pieces.
fn sentence_piece(size: usize, printable: bool) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    vocabulary.push("<unk>", kind::UNKNOWN);
    vocabulary.push("<s>", kind::CONTROL);
    vocabulary.push("</s>", kind::CONTROL);
    pieces(vocabulary, size, printable)
}

/// The 256 bytes, single characters, then words of growing length.
fn pieces(mut vocabulary: Vocabulary, size: usize, printable: bool) -> Vocabulary {
    for byte in 0..=u8::MAX {
        let kind = if printable && !prints(byte) { kind::UNUSED } else { kind::BYTE };
        vocabulary.push(format!("<0x{byte:02X}>"), kind);
    }
    vocabulary.push("\u{2581}", kind::NORMAL);
    ('!'..='~').for_each(|letter| vocabulary.push(letter, kind::NORMAL));
    vocabulary.fill('\u{2581}', size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::spec;

    fn strings(keys: &[(String, Scalar)], name: &str) -> Vec<String> {
        match keys.iter().find(|(key, _)| key == name) {
            Some((_, Scalar::Strings(items))) => items.clone(),
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn every_vocabulary_has_its_size_unique_tokens_and_merges_of_known_parts() {
        for name in spec::names() {
            let spec = spec::named(&name).unwrap();
            let also_full = ["gpt-oss-20b", "phi-3.5-moe", "granite-3.1-3b-a800m"].contains(&name.as_str());
            for tiny in [false, true].into_iter().filter(|tiny| *tiny || also_full) {
                let dims = spec.dims(tiny, None);
                let keys = keys(&spec, &dims, tiny).unwrap_or_else(|error| panic!("{error}"));
                let tokens = strings(&keys, "tokenizer.ggml.tokens");
                assert_eq!(tokens.len() as u64, spec.number("n_vocab", &dims).unwrap(), "{name}");
                let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
                assert_eq!(known.len(), tokens.len(), "{name}: a token twice");
                if name == "phi-3.5-moe" && !tiny {
                    assert_eq!(tokens[32000], "<|endoftext|>");
                }
                if spec.tokenizer.model == "gpt2" {
                    for merge in strings(&keys, "tokenizer.ggml.merges") {
                        let (left, right) = merge.split_once(' ').unwrap();
                        assert!(known.contains(left) && known.contains(right), "{name}: {merge}");
                        assert!(known.contains(format!("{left}{right}").as_str()), "{name}: {merge}");
                    }
                }
            }
        }
    }
}
