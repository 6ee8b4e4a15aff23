//! Compact override patterns: a set of tensors said in a few regexes that llama.cpp's `-ot` takes.
//!
//! The emitted subset is common to ECMAScript and every other engine: literals, `\.`, `[a-b]` classes, `(a|b)`.
//! No `,` and no `=` (llama.cpp b11434 `common/arg.cpp` `parse_tensor_buffer_overrides` splits there), so no `{m,n}`.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Tensor;

/// Tensors by block and stem, the stem being the name between `blk.N.` and the last suffix (`ffn_up_exps`).
pub type TensorSet = BTreeSet<(u32, String)>;

/// A tensor of a block by block and stem: `blk.3.ffn_up_exps.bias` is 3 and `ffn_up_exps`.
pub fn key(tensor: &Tensor) -> Option<(u32, &str)> {
    let block = tensor.block?;
    let (stem, _) = tensor.name.strip_prefix(&format!("blk.{block}."))?.rsplit_once('.')?;
    Some((block, stem))
}

/// Patterns that match exactly the tensors of `chosen` among those of `universe`, few and short.
///
/// Stems with the same blocks share a pattern. Where `chosen` has every block of its stems, the block number is left out.
/// Each pattern is a search, as llama.cpp's: unanchored, the block number fenced by dots so that `blk.1` is not `blk.10`.
pub fn patterns(chosen: &TensorSet, universe: &TensorSet) -> Vec<String> {
    let blocks_of = |set: &TensorSet| {
        let mut by_stem: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for (block, stem) in set {
            by_stem.entry(stem.clone()).or_default().insert(*block);
        }
        by_stem
    };
    let all = blocks_of(universe);
    let mut stems_by_blocks: BTreeMap<(bool, BTreeSet<u32>), Vec<String>> = BTreeMap::new();
    for (stem, blocks) in blocks_of(chosen) {
        let whole = all.get(&stem) == Some(&blocks);
        let key = if whole { (true, BTreeSet::new()) } else { (false, blocks) };
        stems_by_blocks.entry(key).or_default().push(stem);
    }
    stems_by_blocks
        .into_iter()
        .map(|((whole, blocks), stems)| {
            let names = alternation(&stems.iter().map(|stem| stem.replace('.', "\\.")).collect::<Vec<_>>());
            if whole { format!("\\.{names}\\.") } else { format!("blk\\.{}\\.{names}\\.", numbers(&blocks)) }
        })
        .collect()
}

/// `a`, or `(a|b)`, with what the words share at both ends said once: `ffn_(down|up)_exps`.
fn alternation(words: &[String]) -> String {
    let [first, rest @ ..] = words else { return String::new() };
    if rest.is_empty() {
        return first.clone();
    }
    let shared_start = rest.iter().fold(first.len(), |n, word| n.min(common(first.bytes(), word.bytes())));
    let shortest = words.iter().map(String::len).min().unwrap_or(0);
    let shared_end = rest
        .iter()
        .fold(first.len(), |n, word| n.min(common(first.bytes().rev(), word.bytes().rev())))
        .min(shortest - shared_start);
    // A cut inside a word reads badly (`ffn_(d|g)…`): only whole parts are shared.
    let start = first[..shared_start].rfind(['_', '.']).map_or(0, |at| at + 1);
    let end = first[first.len() - shared_end..].find(['_', '.']).map_or(0, |at| shared_end - at);
    let middles: Vec<&str> = words.iter().map(|word| &word[start..(word.len() - end).max(start)]).collect();
    format!("{}({}){}", &first[..start], middles.join("|"), &first[first.len() - end..])
}

fn common(a: impl Iterator<Item = u8>, b: impl Iterator<Item = u8>) -> usize {
    a.zip(b).take_while(|(x, y)| x == y).count()
}

/// A regex for exactly these numbers: `7`, `([0-9]|1[0-3])`, `(0|[3-5]|[12][0-9])`.
fn numbers(set: &BTreeSet<u32>) -> String {
    let mut by_length: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for number in set {
        let digits = number.to_string();
        by_length.entry(digits.len()).or_default().insert(digits);
    }
    let alternatives: Vec<String> = by_length.values().flat_map(same_length).collect();
    match alternatives.as_slice() {
        [one] => one.clone(),
        many => format!("({})", many.join("|")),
    }
}

/// Alternatives for numbers of one length: those whose prefixes allow the same last digits are said together.
fn same_length(words: &BTreeSet<String>) -> Vec<String> {
    if words.iter().all(|word| word.len() == 1) {
        return vec![class(&words.iter().flat_map(|word| word.chars()).collect())];
    }
    let mut last_digits: BTreeMap<&str, BTreeSet<char>> = BTreeMap::new();
    for word in words {
        let (prefix, last) = word.split_at(word.len() - 1);
        last_digits.entry(prefix).or_default().extend(last.chars());
    }
    let mut prefixes: BTreeMap<BTreeSet<char>, BTreeSet<String>> = BTreeMap::new();
    for (prefix, digits) in last_digits {
        prefixes.entry(digits).or_default().insert(prefix.to_string());
    }
    let mut alternatives: Vec<(String, String)> = Vec::new();
    for (digits, prefixes) in prefixes {
        let first = prefixes.first().cloned().unwrap_or_default();
        alternatives.extend(
            same_length(&prefixes).into_iter().map(|prefix| (first.clone(), format!("{prefix}{}", class(&digits)))),
        );
    }
    alternatives.sort();
    alternatives.into_iter().map(|(_, text)| text).collect()
}

/// `3`, `[35]`, `[0-9]`, `[0-24-9]`.
fn class(digits: &BTreeSet<char>) -> String {
    let digits: Vec<char> = digits.iter().copied().collect();
    if let [one] = digits.as_slice() {
        return one.to_string();
    }
    let mut text = String::from("[");
    for run in digits.chunk_by(|a, b| u32::from(*b) == u32::from(*a) + 1) {
        match run {
            [a, .., b] if run.len() > 2 => text.extend([*a, '-', *b]),
            _ => text.extend(run),
        }
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEMS: [&str; 4] = ["ffn_down_exps", "ffn_gate_exps", "ffn_gate_up_exps", "ffn_up_exps"];

    fn set(blocks: impl IntoIterator<Item = u32>, stems: &[&str]) -> TensorSet {
        blocks.into_iter().flat_map(|block| stems.iter().map(move |stem| (block, (*stem).to_string()))).collect()
    }

    #[test]
    fn patterns_are_compact() {
        let (universe, three) = (set(0..48, &STEMS[..2]), &STEMS[..2]);
        let edge = set(0..9, three).into_iter().chain(set([9], &STEMS[..1])).collect();
        for (chosen, expected) in [
            (set(0..48, three), &[r"\.ffn_(down|gate)_exps\."][..]),
            (set(15..48, three), &[r"blk\.(1[5-9]|[23][0-9]|4[0-7])\.ffn_(down|gate)_exps\."]),
            (edge, &[r"blk\.[0-8]\.ffn_gate_exps\.", r"blk\.[0-9]\.ffn_down_exps\."]),
        ] {
            assert_eq!(patterns(&chosen, &universe), expected);
        }
    }

    proptest! {
        /// A pattern list matches what was chosen and nothing else.
        #[test]
        fn patterns_match_exactly_what_was_chosen(
            blocks in 1u32..140, picks in proptest::collection::vec(any::<bool>(), 560), stems in 1usize..=4
        ) {
            let universe = set(0..blocks, &STEMS[..stems]);
            let chosen: TensorSet =
                universe.iter().zip(&picks).filter(|(_, pick)| **pick).map(|(tensor, _)| tensor.clone()).collect();
            let regexes: Vec<regex::Regex> =
                patterns(&chosen, &universe).iter().map(|text| regex::Regex::new(text).unwrap()).collect();
            for (block, stem) in &universe {
                for suffix in ["weight", "bias"] {
                    let name = format!("blk.{block}.{stem}.{suffix}");
                    let hit = regexes.iter().any(|regex| regex.is_match(&name));
                    prop_assert_eq!(hit, chosen.contains(&(*block, stem.clone())), "{}", name);
                }
            }
        }
    }
}
