//! The grid of llama-bench: every combination of the values of its lists is a test of its own.
//!
//! Source: `tools/llama-bench/llama-bench.cpp` `parse_cmd_params`, `get_cmd_params_instances`, and its help, b11434.

use super::config::Program;
use super::held::Held;
use super::{Error, flags, parse};

/// What is answered at most.
const MOST: usize = 512;

/// Each variant of a launch, named by what it takes of the lists; the launch itself where there is only one.
pub fn variants(held: &Held) -> Result<Vec<Held>, Error> {
    let Some((program, words)) =
        held.words.split_first().filter(|(first, _)| Program::of_path(first) == Some(Program::Bench))
    else {
        return Ok(vec![held.clone()]);
    };
    // Flags with their values; what is not a list has one.
    let mut axes: Vec<(&str, Vec<String>)> = Vec::new();
    let mut rest = words;
    while let Some((word, after)) = rest.split_first() {
        let is_list = (parse::is_test(word) && word != "-pg")
            || flags::find_in_bench(word).is_some_and(|flag| flag.name() != "--rpc");
        let is_removed = flags::find_removed(word, true).is_some();
        let Some((value, others)) = after.split_first().filter(|_| is_list || is_removed) else {
            let taken = match parse::bench_flag_of_no_effect(word) {
                Some(values) => values,
                None => usize::from(parse::is_in_bench(word)),
            };
            axes.push((word, after.iter().take(taken).cloned().collect()));
            rest = after.get(taken..).unwrap_or_default();
            continue;
        };
        let values = value.split(',').flat_map(range);
        match axes.iter_mut().find(|(flag, _)| is_same(flag, word)) {
            Some((_, known)) => known.extend(values),
            None => axes.push((word, values.collect())),
        }
        rest = others;
    }
    let is_axis =
        |(word, values): &(&str, Vec<String>)| values.len() > 1 && parse::bench_flag_of_no_effect(word).is_none();
    let count = axes
        .iter()
        .filter(|axis| is_axis(axis))
        .fold(1, |count: usize, (_, values)| count.saturating_mul(values.len()));
    if count == 1 {
        return Ok(vec![held.clone()]);
    }
    if count > MOST {
        return Err(Error::TooManyVariants(count, MOST));
    }
    let mut all = vec![Held { words: vec![program.clone()], name: Some(String::new()), ..held.clone() }];
    for axis in &axes {
        let (word, values) = axis;
        let choices: Vec<&[String]> = if is_axis(axis) { values.chunks(1).collect() } else { vec![values.as_slice()] };
        let with = |variant: &Held, choice: &[String]| {
            let mut variant = variant.clone();
            let words: Vec<String> = std::iter::once((*word).to_string()).chain(choice.iter().cloned()).collect();
            if let Some(name) = variant.name.as_mut().filter(|_| is_axis(axis)) {
                *name = format!("{name} {}", words.join(" ")).trim_start().to_string();
            }
            variant.words.extend(words);
            variant
        };
        all = all
            .iter()
            .flat_map(|variant| choices.iter().map(|choice| with(variant, choice)).collect::<Vec<_>>())
            .collect();
    }
    Ok(all)
}

/// Whether two words are spellings of one flag.
fn is_same(one: &str, other: &str) -> bool {
    let name = |word: &str| flags::find_in_bench(word).map(flags::Flag::name);
    one == other || name(one).is_some_and(|flag| name(other) == Some(flag))
}

/// The numbers of `first-last`, `first-last+step` or `first-last*mult`; another value is itself.
fn range(value: &str) -> Vec<String> {
    let of = || {
        let (first, rest) = value.split_once('-')?;
        let end = rest.find(['+', '*']).unwrap_or(rest.len());
        let (last, step) = rest.split_at_checked(end)?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let by: u64 = if step.is_empty() { 1 } else { step.get(1..)?.parse().ok()? };
        let is_product = step.starts_with('*');
        let next =
            move |at: &u64| if is_product { at.checked_mul(by) } else { at.checked_add(by) }.filter(|next| next > at);
        Some(
            std::iter::successors(Some(first), next)
                .take_while(|at| *at <= last)
                .take(MOST.saturating_add(1))
                .map(|at| at.to_string())
                .collect(),
        )
    };
    of().unwrap_or_else(|| vec![value.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_the_lists_is_a_variant() {
        for (line, expected) in [
            ("llama-server -ub 1,2", vec![""]),
            ("llama-bench -m x -p 512 -n 128", vec![""]),
            (
                "llama-bench -m x -d 0,131072 -ub 512,4096",
                vec!["-d 0 -ub 512", "-d 0 -ub 4096", "-d 131072 -ub 512", "-d 131072 -ub 4096"],
            ),
            ("llama-bench -m x -pg 512,128 -ts 3/1 -r 3 -mmp 0,1 -o json", vec!["-mmp 0", "-mmp 1"]),
            ("llama-bench -ngl 10-30+10 -m x", vec!["-ngl 10", "-ngl 20", "-ngl 30"]),
            ("llama-bench -ub 128-512*2 --ubatch-size 4", vec!["-ub 128", "-ub 256", "-ub 512", "-ub 4"]),
        ] {
            let held = Held { words: shlex::split(line).unwrap(), ..Held::default() };
            let found: Vec<String> =
                variants(&held).unwrap().into_iter().map(|variant| variant.name.unwrap_or_default()).collect();
            assert_eq!(found, expected, "{line}");
        }
        let words = shlex::split("llama-bench -p 1-9999").unwrap();
        assert!(matches!(variants(&Held { words, ..Held::default() }), Err(Error::TooManyVariants(..))));
    }
}
