//! Judging an answer by what a program can honestly judge; made-up weights are never judged.

use std::collections::BTreeSet;

use regex::{Captures, Regex};
use serde_json::Value;

use super::document::{Item, Quality, Sample, Verdict, Weights};
use super::protocol::{Check, Prompt};
use crate::runtime::sandbox::Outcome;

/// How many Fibonacci numbers are asked for.
pub const FIBONACCI: u32 = 12;
/// The one line about an answer of made-up weights.
pub const NOT_JUDGED: &str = "the answer is right";

/// `run_code` gives the first [`FIBONACCI`] values of a function in code.
pub fn judge(prompt: &Prompt, sample: &Sample, weights: &Weights, run_code: &dyn Fn(&str, &str) -> Outcome) -> Quality {
    let text = &sample.text;
    let items = if weights.synthetic == Some(true) {
        vec![Item::open(NOT_JUDGED, format!("the weights are not real: {}", weights.basis))]
    } else if text.trim().is_empty() {
        let only_thought = (!sample.reasoning.is_empty()).then_some("it only thought aloud and never answered");
        let why = only_thought.or(sample.failure.as_deref()).unwrap_or("the answer is empty");
        vec![Item::held("there is an answer", false, why)]
    } else {
        let mut items = match &prompt.check {
            Some(Check::Fibonacci { function }) => fibonacci(text, |code| run_code(code, function)),
            Some(Check::Number { value, unit }) => vec![number(text, *value, unit)],
            Some(Check::Poem { stanzas, words, dashes }) => poem(text, *stanzas, *words, *dashes),
            Some(Check::Concepts { concepts }) => vec![concepts_named(text, concepts)],
            None => Vec::new(),
        };
        items.push(repetition(text));
        items.push(truncation(text, sample.finish_reason.as_deref(), sample.generated_tokens, prompt.max_tokens));
        items
    };
    Quality { prompt: prompt.name.clone(), verdict: overall(&items), items }
}

/// `Fail` where any fails, `Pass` where something passes, else not assessed.
pub fn overall<'a>(items: impl IntoIterator<Item = &'a Item>) -> Verdict {
    items.into_iter().fold(Verdict::NotAssessed, |so_far, item| match (so_far, item.verdict) {
        (Verdict::Fail, _) | (_, Verdict::Fail) => Verdict::Fail,
        (Verdict::Pass, _) | (_, Verdict::Pass) => Verdict::Pass,
        _ => Verdict::NotAssessed,
    })
}

fn is_fence(line: &str) -> bool {
    line.trim_start().starts_with("```")
}

/// The code of the first fenced block, else from the first line that begins a definition on.
fn code_of(text: &str) -> Option<String> {
    let mut lines = text.lines();
    if lines.any(is_fence) {
        return Some(lines.take_while(|line| !is_fence(line)).collect::<Vec<_>>().join("\n"));
    }
    let begins = |line: &str| ["def ", "import ", "from "].iter().any(|word| line.starts_with(word));
    let at = text.match_indices('\n').map(|(at, _)| at + 1);
    let at = std::iter::once(0).chain(at).find(|at| text.get(*at..).is_some_and(begins))?;
    text.get(at..).map(str::to_string)
}

fn fibonacci(text: &str, run_code: impl Fn(&str) -> Outcome) -> Vec<Item> {
    const EXTRACTS: &str = "code extracts";
    const COMPILES: &str = "the code compiles";
    const RIGHT: &str = "it returns correct Fibonacci numbers";
    let Some(code) = code_of(text) else {
        return vec![Item::held(EXTRACTS, false, "no code block and no definition")];
    };
    let extracts = Item::held(EXTRACTS, true, format!("{} lines", code.lines().count()));
    let right = match run_code(&code) {
        Outcome::Syntax(error) => return vec![extracts, Item::held(COMPILES, false, error)],
        Outcome::Unavailable(why) => return vec![extracts, Item::open(COMPILES, why)],
        Outcome::Failed(why) => Item::held(RIGHT, false, why),
        Outcome::Ran { function, values } => {
            let shown = values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let shown: String = shown.chars().take(120).collect();
            Item::held(RIGHT, are_fibonacci(&values), format!("{function}(1), {function}(2) … gave {shown}"))
        }
    };
    vec![extracts, Item::held(COMPILES, true, "Python parses it"), right]
}

/// Whether values at 1, 2, 3 … are F(1), F(2), F(3) … = 1, 1, 2 …, or lists of the first so many numbers, from 0 or from 1.
fn are_fibonacci(values: &[Value]) -> bool {
    let right: Vec<u64> =
        std::iter::successors(Some((0, 1)), |(a, b)| Some((*b, a + b))).map(|(a, _)| a).take(16).collect();
    let begins = |list: &[Value], from: usize| {
        let is_right = list.iter().zip(right.iter().skip(from)).all(|(value, right)| value.as_u64() == Some(*right));
        !list.is_empty() && is_right
    };
    let are_lists = |from| values.iter().all(|value| value.as_array().is_some_and(|list| begins(list, from)));
    begins(values, 1) || (!values.is_empty() && (are_lists(0) || are_lists(1)))
}

/// The number that the answer ends with: the last that its unit follows, else the last of all.
fn number(text: &str, value: f64, unit: &str) -> Item {
    const WHAT: &str = "the number is right";
    let spellings = [unit, &unit.replace('/', " per "), "kilometers per hour", "kph"].map(regex::escape).join("|");
    // Markdown and TeX may stand between a number and its unit.
    let pattern = format!(r"(?i)([0-9][0-9.,]*)(?:[ *_$\\{{}}~(]*(?:text\{{)?\s*(?<unit>{spellings}))?");
    let Ok(pattern) = Regex::new(&pattern) else { return Item::open(WHAT, format!("`{unit}` cannot be looked for")) };
    let number = |found: Captures<'_>| {
        let digits = found.get(1)?.as_str().trim_end_matches(['.', ',']).replace(',', "");
        Some((digits.parse::<f64>().ok()?, found.name("unit").is_some()))
    };
    let numbers: Vec<(f64, bool)> = pattern.captures_iter(text).filter_map(number).collect();
    let Some((found, _)) = numbers.iter().rev().find(|(_, has_unit)| *has_unit).or(numbers.last()) else {
        return Item::held(WHAT, false, format!("it has no number; the correct answer is {value} {unit}"));
    };
    let is_right = (found - value).abs() < 1e-6 * value.abs().max(1.0);
    Item::held(WHAT, is_right, format!("it ends with {found}; the correct answer is {value} {unit}"))
}

fn poem(text: &str, stanzas: usize, words: usize, dashes: usize) -> Vec<Item> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let groups = lines.split(|line| line.is_empty()).filter(|group| group.len() >= 2).count();
    let filled = lines.iter().filter(|line| !line.is_empty());
    let mut lengths: Vec<usize> = filled.map(|line| line.split_whitespace().count()).collect();
    lengths.sort_unstable();
    let half = lengths.get(lengths.len() / 2).copied().unwrap_or(0);
    let found = text.matches(['—', '–']).count() + text.matches(" - ").count() + text.matches("--").count();
    let found = found + lines.iter().filter(|line| line.ends_with(" -")).count();
    let lengths = format!("half of its lines have at most {half} words; the limit is {words}");
    vec![
        Item::held("it has stanzas", groups >= stanzas, format!("{groups} stanzas; at least {stanzas} expected")),
        Item::held("its lines are short", half <= words, lengths),
        Item::held("it has dashes", found >= dashes, format!("{found} dashes; at least {dashes} expected")),
    ]
}

fn concepts_named(text: &str, concepts: &[Vec<String>]) -> Item {
    let lower = text.to_lowercase();
    let has = |words: &&Vec<String>| words.iter().any(|word| lower.contains(&word.to_lowercase()));
    let missing: Vec<String> = concepts.iter().filter(|words| !has(words)).map(|words| words.join(" or ")).collect();
    let all = format!("all {} are there", concepts.len());
    let detail = if missing.is_empty() { all } else { format!("not there: {}", missing.join("; ")) };
    Item::held("it names the concepts", missing.is_empty(), detail)
}

/// Whether a text goes in circles: fewer than half of its runs of four words are different.
fn repetition(text: &str) -> Item {
    const WHAT: &str = "it does not repeat itself";
    let words: Vec<&str> = text.split_whitespace().collect();
    let runs: Vec<&[&str]> = words.windows(4).collect();
    let percent = 100 * runs.iter().collect::<BTreeSet<_>>().len() / runs.len().max(1);
    let is_short = runs.is_empty();
    let detail =
        if is_short { "too short to".into() } else { format!("{percent}% of its runs of four words are different") };
    Item::held(WHAT, is_short || percent >= 50, detail)
}

/// Whether it was cut: the server says so, it has as many tokens as it may, or it ends inside a code block.
fn truncation(text: &str, finish: Option<&str>, tokens: Option<u32>, max_tokens: u32) -> Item {
    const WHAT: &str = "it is not cut off";
    if finish == Some("length") || tokens.is_some_and(|tokens| tokens >= max_tokens) {
        return Item::held(WHAT, false, format!("it was cut at {max_tokens} tokens"));
    }
    if text.lines().filter(|line| is_fence(line)).count() % 2 == 1 {
        return Item::held(WHAT, false, "its last code block has no end");
    }
    match finish {
        Some(reason) if tokens.is_some() => Item::held(WHAT, true, format!("finish reason `{reason}`")),
        Some(_) => Item::open(WHAT, "the server does not count its tokens"),
        None => Item::open(WHAT, "the server gives no finish reason"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::suite::protocol::Suite;

    const TEXT: &str = "Here is the function:\n\n```python\ndef fibonacci(n):\n    pass\n```\nThat is all of it, as it is in the book.";

    fn sample(text: &str) -> Sample {
        let (generated_tokens, finish_reason) = (Some(50), Some("stop".into()));
        Sample { text: text.into(), generated_tokens, finish_reason, ..Sample::default() }
    }

    fn judged(prompt: &str, sample: &Sample, synthetic: bool, outcome: &Outcome) -> Quality {
        let suite = Suite::protocol();
        let prompt = suite.prompts.iter().find(|known| known.name == prompt).unwrap();
        let weights = Weights { synthetic: Some(synthetic), basis: "the header says so".into() };
        judge(prompt, sample, &weights, &|_, _| outcome.clone())
    }

    fn verdict_of(quality: &Quality, what: &str) -> Option<Verdict> {
        quality.items.iter().find(|item| item.what.contains(what)).map(|item| item.verdict)
    }

    #[test]
    fn made_up_weights_and_empty_answers_are_not_judged() {
        let none = Outcome::Failed(String::new());
        let failed = Sample { failure: Some("status 500".into()), ..sample("  ") };
        let thinking = Sample { reasoning: "hm".into(), ..sample("") };
        for (sample, synthetic, verdict, says) in [
            (&sample("75 km/h"), true, Verdict::NotAssessed, "the weights are not real: the header says so"),
            (&failed, false, Verdict::Fail, "status 500"),
            (&thinking, false, Verdict::Fail, "it only thought aloud and never answered"),
            (&sample(""), false, Verdict::Fail, "the answer is empty"),
        ] {
            let quality = judged("mathematics", sample, synthetic, &none);
            assert_eq!((quality.verdict, quality.items.len()), (verdict, 1));
            assert_eq!(quality.items[0].detail, says);
        }
    }

    #[test]
    fn code_is_found_and_its_numbers_are_judged() {
        assert_eq!(code_of(TEXT).as_deref(), Some("def fibonacci(n):\n    pass"));
        assert_eq!(code_of("Sure:\ndef f(n):\n return n").as_deref(), Some("def f(n):\n return n"));
        assert_eq!(code_of("no code at all"), None);
        for (values, right) in [
            (json!([1, 1, 2, 3, 5, 8]), true),
            (json!([[0], [0, 1], [0, 1, 1]]), true),
            (json!([[1], [1, 1], [1, 1, 2]]), true),
            (json!([0, 1, 1, 2]), false),
            (json!([1, 1, 2, 4]), false),
            (json!([null, null]), false),
            (json!([[], []]), false),
            (json!([]), false),
        ] {
            assert_eq!(are_fibonacci(values.as_array().unwrap()), right, "{values}");
        }
        let ran = Outcome::Ran { function: "fibonacci".into(), values: vec![json!(1), json!(1), json!(2)] };
        for (outcome, compiles, right) in [
            (ran, Verdict::Pass, Some(Verdict::Pass)),
            (Outcome::Failed("boom".into()), Verdict::Pass, Some(Verdict::Fail)),
            (Outcome::Syntax("line 1".into()), Verdict::Fail, None),
            (Outcome::Unavailable("no isolation".into()), Verdict::NotAssessed, None),
        ] {
            let quality = judged("code", &sample(TEXT), false, &outcome);
            let found = (verdict_of(&quality, "compiles"), verdict_of(&quality, "correct"));
            assert_eq!(found, (Some(compiles), right), "{outcome:?}");
        }
    }

    #[test]
    fn the_answers_number_is_the_one_it_ends_with() {
        for (text, right) in [
            ("Total 300 km in 4 hours: the average is 75 km/h.", true),
            ("so $75 \\text{ km/h}$ it is, **75 km/h**", true),
            ("= 75.0 kilometers per hour over 4 hours", true),
            ("The answer is 75.", true),
            ("80 km/h, then 72 km/h, so 76 km/h", false),
            ("75 km/h at first; in the end 80 km/h", false),
            ("I do not know.", false),
            ("1,075 km/h", false),
        ] {
            let item = number(text, 75.0, "km/h");
            assert_eq!(item.verdict == Verdict::Pass, right, "{text}: {}", item.detail);
        }
    }

    #[test]
    fn poems_and_explanations_have_what_was_asked_for() {
        let none = Outcome::Failed(String::new());
        let good = "The Sea — at Night — is but a Door —\nThat no one dares to close —\n\nIt keeps the Moon upon the floor —\nWherever Water goes —";
        assert_eq!(judged("creative", &sample(good), false, &none).verdict, Verdict::Pass);
        let prose = "The sea at night is a wide and dark thing that moves in ways that we do not see, and it is a wonder to all of us who stand on its shore.";
        let quality = judged("creative", &sample(prose), false, &none);
        let found = ["stanzas", "short", "dashes"].map(|what| verdict_of(&quality, what));
        assert_eq!(found, [Some(Verdict::Fail); 3]);
        let good = "The gradient of the loss says in which direction it grows. We take a step against it, of a size that the learning rate sets, and repeat until a minimum is near.";
        assert_eq!(judged("technical", &sample(good), false, &none).verdict, Verdict::Pass);
        let poor = "It is a way to train the network by going down the slope of a hill, step by step.";
        let quality = judged("technical", &sample(poor), false, &none);
        let lacks = &quality.items[0].detail;
        assert!(lacks.contains("learning rate or step size") && !lacks.contains("derivative"), "{lacks}");
    }

    #[test]
    fn circles_and_cuts_are_flagged() {
        for (text, expected) in [
            ("and then the sea was the sea and ".repeat(20), Verdict::Fail),
            ("& ".repeat(9), Verdict::Fail),
            ("one line of three\n\n".repeat(4), Verdict::Fail),
            ("A short answer.".into(), Verdict::Pass),
        ] {
            assert_eq!(repetition(&text).verdict, expected, "{text}");
        }
        for (text, finish, tokens, expected) in [
            ("All done.", Some("stop"), Some(5), Verdict::Pass),
            ("All do", Some("length"), Some(5), Verdict::Fail),
            ("All do", Some("stop"), Some(64), Verdict::Fail),
            ("```\nx = 1", Some("stop"), Some(5), Verdict::Fail),
            ("All done.", Some("stop"), None, Verdict::NotAssessed),
            ("All done.", None, None, Verdict::NotAssessed),
        ] {
            assert_eq!(truncation(text, finish, tokens, 64).verdict, expected, "{text}");
        }
    }
}
