//! Answers right and wrong, one case each.

use serde_json::{Value, json};

use super::*;
use crate::suite::document::Mode;
use crate::suite::protocol::Suite;

/// Says what it was told to say.
struct Said(Outcome);

impl Interpreter for Said {
    fn values(&self, _code: &str, _function: &str, _count: u32) -> Outcome {
        self.0.clone()
    }
}

fn ran(values: &Value) -> Said {
    let values = values.as_array().cloned().unwrap_or_default();
    Said(Outcome::Ran { function: "fibonacci".into(), values })
}

fn real() -> Weights {
    Weights { synthetic: Some(false), basis: "a test".into() }
}

fn sample(text: &str) -> Sample {
    Sample {
        prompt: String::new(),
        mode: Mode::Whole,
        failure: None,
        prompt_tokens: Some(9),
        generated_tokens: Some(50),
        tokens_by: None,
        pp: None,
        tg: None,
        speed_by: None,
        first_token_seconds: None,
        gaps: None,
        total_seconds: 1.0,
        finish_reason: Some("stop".into()),
        text: text.into(),
        reasoning: String::new(),
        stream: Vec::new(),
    }
}

fn verdicts(prompt: &str, text: &str, interpreter: &Said) -> Quality {
    let suite = Suite::protocol();
    let prompt = suite.prompts.iter().find(|known| known.name == prompt).unwrap();
    judge(prompt, &sample(text), &real(), interpreter)
}

fn verdict_of(quality: &Quality, what: &str) -> Verdict {
    quality.items.iter().find(|item| item.what.contains(what)).unwrap_or_else(|| panic!("{what}: {quality:?}")).verdict
}

#[test]
fn made_up_weights_are_never_judged() {
    let suite = Suite::protocol();
    let weights = Weights { synthetic: Some(true), basis: "the header says so".into() };
    for prompt in &suite.prompts {
        let quality = judge(prompt, &sample("75 km/h"), &weights, &ran(&json!([1, 1, 2])));
        assert_eq!(quality.verdict, Verdict::NotAssessed);
        assert!(
            quality.items.iter().all(|item| item.verdict == Verdict::NotAssessed && item.detail.contains("header"))
        );
    }
}

#[test]
fn code_is_found_and_its_numbers_are_judged() {
    let text = "Here is the function:\n\n```python\ndef fibonacci(n):\n    pass\n```\nThat is all of it, as it is in the book.";
    assert_eq!(code_of(text).as_deref(), Some("def fibonacci(n):\n    pass"));
    assert_eq!(code_of("Sure:\ndef f(n):\n return n").as_deref(), Some("def f(n):\n return n"));
    assert_eq!(code_of("no code at all"), None);
    for (outcome, compiles, right) in [
        (ran(&json!([1, 1, 2, 3, 5, 8])), Verdict::Pass, Some(Verdict::Pass)),
        (ran(&json!([[0], [0, 1], [0, 1, 1]])), Verdict::Pass, Some(Verdict::Pass)),
        (ran(&json!([[1], [1, 1], [1, 1, 2]])), Verdict::Pass, Some(Verdict::Pass)),
        (ran(&json!([0, 1, 1, 2])), Verdict::Pass, Some(Verdict::Fail)),
        (ran(&json!([1, 1, 2, 4])), Verdict::Pass, Some(Verdict::Fail)),
        (ran(&json!([null, null])), Verdict::Pass, Some(Verdict::Fail)),
        (ran(&json!([[], []])), Verdict::Pass, Some(Verdict::Fail)),
        (Said(Outcome::Failed("boom".into())), Verdict::Pass, Some(Verdict::Fail)),
        (Said(Outcome::OnlyParsed("no isolation".into())), Verdict::Pass, Some(Verdict::NotAssessed)),
        (Said(Outcome::Syntax("line 1".into())), Verdict::Fail, None),
        (Said(Outcome::Unavailable("no python3".into())), Verdict::NotAssessed, None),
    ] {
        let quality = verdicts("code", text, &outcome);
        assert_eq!(verdict_of(&quality, "compiles"), compiles, "{:?}", outcome.0);
        let found = quality.items.iter().find(|item| item.what.contains("right")).map(|item| item.verdict);
        assert_eq!(found, right, "{:?}", outcome.0);
    }
}

#[test]
fn the_answers_number_is_the_one_it_ends_with() {
    for (text, right) in [
        ("Total 300 km in 4 hours: the average is 75 km/h.", true),
        ("The speed is **75 km/h**", true),
        ("so $75 \\text{ km/h}$ it is", true),
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
fn a_poem_has_stanzas_short_lines_and_dashes() {
    let good = "The Sea — at Night — is but a Door —\nThat no one dares to close —\n\nIt keeps the Moon upon the floor —\nWherever Water goes —";
    assert_eq!(verdicts("creative", good, &ran(&json!([]))).verdict, Verdict::Pass);
    let prose = "The sea at night is a wide and dark thing that moves in ways that we do not see, and it is a wonder to all of us who stand on its shore.";
    let quality = verdicts("creative", prose, &ran(&json!([])));
    for what in ["stanzas", "short", "dashes"] {
        assert_eq!(verdict_of(&quality, what), Verdict::Fail, "{what}");
    }
}

#[test]
fn an_explanation_names_its_concepts_or_is_told_which_it_lacks() {
    let good = "The gradient of the loss says in which direction it grows. We take a step against it, of a size that the learning rate sets, and repeat until a minimum is near.";
    assert_eq!(verdicts("technical", good, &ran(&json!([]))).verdict, Verdict::Pass);
    let poor = "It is a way to train the network by going down the slope of a hill, step by step.";
    let quality = verdicts("technical", poor, &ran(&json!([])));
    let item = quality.items.iter().find(|item| item.what.contains("concepts")).unwrap();
    assert!(
        item.detail.contains("learning rate or step size") && !item.detail.contains("derivative"),
        "{}",
        item.detail
    );
}

#[test]
fn circles_cuts_and_other_languages_are_flagged() {
    let circles = "and then the sea was the sea and ".repeat(20);
    assert_eq!(repetition(&circles).verdict, Verdict::Fail);
    assert_eq!(repetition(&"& ".repeat(9)).verdict, Verdict::Fail);
    assert_eq!(repetition(&"one line of three\n\n".repeat(4)).verdict, Verdict::Fail);
    assert_eq!(repetition("A short answer.").verdict, Verdict::Pass);
    for (text, finish, tokens, expected) in [
        ("All done.", Some("stop"), Some(5), Verdict::Pass),
        ("All do", Some("length"), Some(5), Verdict::Fail),
        ("All do", Some("stop"), Some(64), Verdict::Fail),
        ("```\nx = 1", Some("stop"), Some(5), Verdict::Fail),
        ("All done.", Some("stop"), None, Verdict::Pass),
        ("All do", Some("stop"), None, Verdict::NotAssessed),
        ("All done.", None, None, Verdict::NotAssessed),
    ] {
        assert_eq!(truncation(text, finish, tokens, 64).verdict, expected, "{text}");
    }
    let english = "The sea is a door that no one dares to close at night.";
    for (text, is_code, expected) in [
        (english, false, Verdict::Pass),
        ("Das Meer ist eine Tür, welche niemand nachts zu schließen wagt.", false, Verdict::Fail),
        ("Море ночью — это дверь, которую никто не решается закрыть.", false, Verdict::Fail),
        ("def fibonacci(n): return fibonacci(n - 1)", true, Verdict::NotAssessed),
        ("75", false, Verdict::NotAssessed),
        ("This is a function that gives what you want:\n\ndef f(n):\n    return n", true, Verdict::Pass),
    ] {
        assert_eq!(language(text, is_code).verdict, expected, "{text}");
    }
}

#[test]
fn no_answer_is_a_failure_with_its_reason() {
    let suite = Suite::protocol();
    let empty = Sample { failure: Some("status 500".into()), ..sample("  ") };
    let quality = judge(&suite.prompts[0], &empty, &real(), &ran(&json!([])));
    assert_eq!((quality.verdict, quality.items[0].detail.as_str()), (Verdict::Fail, "status 500"));
    let thinking = Sample { reasoning: "hm".into(), ..sample("") };
    let quality = judge(&suite.prompts[0], &thinking, &real(), &ran(&json!([])));
    assert!(quality.items[0].detail.contains("thought aloud"));
}
