//! Judging an answer by what a program can honestly judge; made-up weights are never judged.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{Item, Quality, Sample, Verdict, Weights};
use super::language;
use super::protocol::{Check, SuitePrompt};
use crate::runtime::sandbox::{Interpreter, Outcome};

/// How many Fibonacci numbers are asked for.
const FIBONACCI: u32 = 12;
/// The one line about an answer of made-up weights.
pub const NOT_JUDGED: &str = "the answer is right";

/// Judges an answer to a prompt.
pub fn judge(prompt: &SuitePrompt, sample: &Sample, weights: &Weights, interpreter: &dyn Interpreter) -> Quality {
    let name = prompt.name.clone();
    if weights.synthetic == Some(true) {
        let detail = format!("the weights are not real: {}", weights.basis);
        let items = vec![item(NOT_JUDGED, Verdict::NotAssessed, detail)];
        return Quality { prompt: name, verdict: Verdict::NotAssessed, items };
    }
    if sample.text.trim().is_empty() {
        let why = sample.failure.clone().unwrap_or_else(|| "the answer is empty".to_string());
        let why =
            if sample.reasoning.is_empty() { why } else { "it only thought aloud and never answered".to_string() };
        let items = vec![item("there is an answer", Verdict::Fail, why)];
        return Quality { prompt: name, verdict: Verdict::Fail, items };
    }
    let text = &sample.text;
    let mut items = match &prompt.check {
        Check::Fibonacci { function } => fibonacci(text, function, interpreter),
        Check::Number { value, unit } => vec![number(text, *value, unit)],
        Check::Poem { stanzas, words, dashes } => poem(text, *stanzas, *words, *dashes),
        Check::Concepts { concepts } => vec![named(text, concepts)],
    };
    items.push(repetition(text));
    items.push(truncation(text, sample.finish_reason.as_deref(), sample.generated_tokens, prompt.max_tokens));
    items.push(language(text, matches!(prompt.check, Check::Fibonacci { .. })));
    Quality { prompt: name, verdict: overall(&items), items }
}

/// `Fail` where any fails, `Pass` where something passes, else not assessed.
pub fn overall(items: &[Item]) -> Verdict {
    let has = |verdict| items.iter().any(|item| item.verdict == verdict);
    match () {
        () if has(Verdict::Fail) => Verdict::Fail,
        () if has(Verdict::Pass) => Verdict::Pass,
        () => Verdict::NotAssessed,
    }
}

fn item(what: &str, verdict: Verdict, detail: impl Into<String>) -> Item {
    Item { what: what.to_string(), verdict, detail: detail.into() }
}

fn held(what: &str, holds: bool, detail: impl Into<String>) -> Item {
    item(what, if holds { Verdict::Pass } else { Verdict::Fail }, detail)
}

/// The code of the first fenced block, else from the first line that begins a definition on.
pub fn code_of(text: &str) -> Option<String> {
    let mut lines = text.lines();
    if lines.any(|line| line.trim_start().starts_with("```")) {
        let block: Vec<&str> = lines.take_while(|line| !line.trim_start().starts_with("```")).collect();
        return Some(block.join("\n"));
    }
    let begins = |line: &str| ["def ", "import ", "from "].iter().any(|word| line.starts_with(word));
    let code: Vec<&str> = text.lines().skip_while(|line| !begins(line)).collect();
    (!code.is_empty()).then(|| code.join("\n"))
}

fn fibonacci(text: &str, function: &str, interpreter: &dyn Interpreter) -> Vec<Item> {
    const EXTRACTS: &str = "code extracts";
    const COMPILES: &str = "the code compiles";
    const RIGHT: &str = "it gives right Fibonacci numbers";
    let Some(code) = code_of(text) else {
        return vec![item(EXTRACTS, Verdict::Fail, "no code block and no definition")];
    };
    let mut items = vec![item(EXTRACTS, Verdict::Pass, format!("{} lines", code.lines().count()))];
    let parsed = "Python parses it";
    match interpreter.values(&code, function, FIBONACCI) {
        Outcome::Syntax(error) => items.push(item(COMPILES, Verdict::Fail, error)),
        Outcome::OnlyParsed(why) => {
            items.push(item(COMPILES, Verdict::Pass, parsed));
            items.push(item(RIGHT, Verdict::NotAssessed, format!("it was not run: {why}")));
        }
        Outcome::Unavailable(why) => items.push(item(COMPILES, Verdict::NotAssessed, why)),
        Outcome::Failed(why) => {
            items.push(item(COMPILES, Verdict::Pass, parsed));
            items.push(item(RIGHT, Verdict::Fail, why));
        }
        Outcome::Ran { function, values } => {
            items.push(item(COMPILES, Verdict::Pass, parsed));
            let shown = values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let shown: String = shown.chars().take(120).collect();
            let detail = format!("{function}(1), {function}(2) … gave {shown}");
            items.push(held(RIGHT, are_fibonacci(&values), detail));
        }
    }
    items
}

/// Whether values at 1, 2, 3 … are F(1), F(2), F(3) … = 1, 1, 2 …, or lists of the first so many numbers, from 0 or from 1.
fn are_fibonacci(values: &[serde_json::Value]) -> bool {
    let numbers: Vec<u64> = {
        let mut numbers = vec![0_u64, 1];
        while numbers.len() < FIBONACCI as usize + 3 {
            let last = numbers.iter().rev().take(2).sum();
            numbers.push(last);
        }
        numbers
    };
    let as_list = |value: &serde_json::Value| -> Option<Vec<u64>> {
        value.as_array()?.iter().map(serde_json::Value::as_u64).collect()
    };
    let single: Option<Vec<u64>> = values.iter().map(serde_json::Value::as_u64).collect();
    if let Some(single) = single {
        return !single.is_empty() && numbers.iter().skip(1).zip(&single).all(|(a, b)| a == b);
    }
    let lists: Option<Vec<Vec<u64>>> = values.iter().map(as_list).collect();
    lists.is_some_and(|lists| {
        (0..2).any(|from| {
            let starts =
                |list: &Vec<u64>| !list.is_empty() && list.iter().zip(numbers.iter().skip(from)).all(|(a, b)| a == b);
            !lists.is_empty() && lists.iter().all(starts)
        })
    })
}

/// The numbers of a text with what follows each.
fn numbers(text: &str) -> Vec<(f64, &str)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let from = rest.get(at..).unwrap_or_default();
        let is_part = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
        let end = from.find(|c: char| !is_part(c)).unwrap_or(from.len());
        let digits = from.get(..end).unwrap_or_default().trim_end_matches(['.', ',']).replace(',', "");
        rest = from.get(end..).unwrap_or_default();
        if let Ok(number) = digits.parse() {
            found.push((number, rest));
        }
    }
    found
}

/// The number that the answer ends with: the last that its unit follows, else the last of all.
fn number(text: &str, value: f64, unit: &str) -> Item {
    const WHAT: &str = "the number is right";
    let spellings =
        [unit.to_lowercase(), unit.replace('/', " per ").to_lowercase(), "kilometers per hour".into(), "kph".into()];
    let has_unit = |rest: &str| {
        let rest = rest.trim_start_matches(|c: char| " *_$\\{}~(".contains(c)).to_lowercase();
        let rest = rest.strip_prefix("text{").unwrap_or(&rest).trim_start();
        spellings.iter().any(|spelling| rest.starts_with(spelling.as_str()))
    };
    let all = numbers(text);
    let with_unit = all.iter().rev().find(|(_, rest)| has_unit(rest));
    match with_unit.or(all.last()) {
        Some((found, _)) => held(
            WHAT,
            (found - value).abs() < 1e-6 * value.abs().max(1.0),
            format!("it ends with {found}; right is {value} {unit}"),
        ),
        None => item(WHAT, Verdict::Fail, format!("it has no number; right is {value} {unit}")),
    }
}

fn poem(text: &str, stanzas: usize, words: usize, dashes: usize) -> Vec<Item> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let groups = lines.split(|line| line.is_empty()).filter(|group| group.len() >= 2).count();
    let mut lengths: Vec<usize> =
        lines.iter().filter(|line| !line.is_empty()).map(|line| line.split_whitespace().count()).collect();
    lengths.sort_unstable();
    let half = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    let found = text.matches(['—', '–']).count() + text.matches(" - ").count() + text.matches("--").count();
    let found = found + lines.iter().filter(|line| line.ends_with(" -")).count();
    vec![
        held("it has stanzas", groups >= stanzas, format!("{groups} stanzas; {stanzas} at least")),
        held(
            "its lines are short",
            half <= words,
            format!("half of its lines have at most {half} words; {words} at most"),
        ),
        held("it has dashes", found >= dashes, format!("{found} dashes; {dashes} at least")),
    ]
}

fn named(text: &str, concepts: &[Vec<String>]) -> Item {
    let lower = text.to_lowercase();
    let has = |words: &&Vec<String>| words.iter().any(|word| lower.contains(&word.to_lowercase()));
    let missing: Vec<String> = concepts.iter().filter(|words| !has(words)).map(|words| words.join(" or ")).collect();
    let detail = if missing.is_empty() {
        format!("all {} are there", concepts.len())
    } else {
        format!("not there: {}", missing.join("; "))
    };
    held("it names the concepts", missing.is_empty(), detail)
}

/// Whether a text goes in circles: few of its runs of four words are different, or one line is there again and again.
fn repetition(text: &str) -> Item {
    const WHAT: &str = "it does not repeat itself";
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut lines = BTreeMap::<&str, usize>::new();
    for line in text.lines().map(str::trim).filter(|line| line.split_whitespace().count() >= 3) {
        *lines.entry(line).or_default() += 1;
    }
    let (line, times) = lines.iter().max_by_key(|(_, times)| **times).map_or(("", 0), |(line, times)| (*line, *times));
    if times >= 4 {
        let line: String = line.chars().take(60).collect();
        return item(WHAT, Verdict::Fail, format!("a line is there {times} times: `{line}`"));
    }
    let runs: Vec<&[&str]> = words.windows(4).collect();
    if runs.len() < 24 {
        let is_one_word = words.len() >= 8 && words.iter().collect::<BTreeSet<_>>().len() <= 2;
        return held(WHAT, !is_one_word, format!("{} words", words.len()));
    }
    let different = runs.iter().collect::<BTreeSet<_>>().len();
    let percent = 100 * different / runs.len();
    held(WHAT, percent >= 50, format!("{percent}% of its runs of four words are different"))
}

/// Whether it was cut: the server says so, it has as many tokens as it may, or it ends inside a sentence or a code block.
fn truncation(text: &str, finish: Option<&str>, tokens: Option<u32>, max_tokens: u32) -> Item {
    const WHAT: &str = "it is not cut off";
    if finish == Some("length") || tokens.is_some_and(|tokens| tokens >= max_tokens) {
        return item(WHAT, Verdict::Fail, format!("it was cut at {max_tokens} tokens"));
    }
    if text.lines().filter(|line| line.trim_start().starts_with("```")).count() % 2 == 1 {
        return item(WHAT, Verdict::Fail, "its last code block has no end");
    }
    let last = text.trim_end().chars().next_back();
    let ends = last.is_some_and(|c| !c.is_alphabetic() && c != ',' && c != ';' && c != ':');
    match (finish, ends) {
        (Some(reason), _) if tokens.is_some() => item(WHAT, Verdict::Pass, format!("finish reason `{reason}`")),
        (Some(reason), true) => {
            item(WHAT, Verdict::Pass, format!("finish reason `{reason}`, and it ends like a sentence"))
        }
        (_, true) => item(WHAT, Verdict::NotAssessed, "the server gives no finish reason; it ends like a sentence"),
        (_, false) => {
            item(WHAT, Verdict::NotAssessed, "it ends inside a sentence, and the server does not count its tokens")
        }
    }
}

/// Whether it is English; of an answer that is code without a fence around it, its prose.
fn language(text: &str, is_code: bool) -> Item {
    const WHAT: &str = "it is English";
    let has_fence = text.lines().any(|line| line.trim_start().starts_with("```"));
    let code = if is_code && !has_fence { code_of(text) } else { None };
    let (verdict, detail) = language::english(text.strip_suffix(code.as_deref().unwrap_or_default()).unwrap_or(text));
    item(WHAT, verdict, detail)
}

#[cfg(test)]
#[path = "quality_tests.rs"]
mod tests;
