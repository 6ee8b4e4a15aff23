//! Whether an answer is English, by the share of sentences that are held together by English function words.

use std::collections::BTreeSet;

use super::document::Verdict;

/// Words that English sentences are held together by. Words that other languages with Latin letters use as well (`a`, `in`,
/// `is`, `no`, `on`, `so`, `was` …) are left out.
const FUNCTION_WORDS: [&str; 101] = [
    "the", "of", "and", "to", "that", "it", "for", "with", "this", "by", "be", "you", "its", "at", "from", "are",
    "which", "have", "has", "had", "not", "or", "but", "can", "we", "they", "their", "there", "when", "where", "what",
    "who", "how", "if", "then", "than", "each", "would", "could", "should", "may", "into", "out", "over", "more",
    "our", "your", "my", "his", "he", "she", "them", "these", "those", "been", "were", "because", "while", "through",
    "about", "between", "let", "one", "all", "any", "some", "such", "only", "other", "here", "both", "after", "before",
    "until", "first", "very", "just", "like", "up", "down", "does", "do", "us", "upon", "every", "without", "where's",
    "it's", "using", "used", "given", "same", "will", "must", "most", "yet", "nor", "off", "himself", "herself",
    "itself",
];
/// A sentence of fewer words is joined with what follows it.
const SENTENCE: usize = 5;
/// Less prose says nothing.
const LEAST_WORDS: usize = 8;
/// Of a sentence's words at least one in so many holds it together.
const ONE_IN: usize = 6;
/// Percent of the words that lie in English sentences: from here on the text is English, below half of it it is not.
const MOST: usize = 60;

/// The verdict and its evidence.
pub fn english(text: &str) -> (Verdict, String) {
    let prose = prose(text);
    let letters = prose.chars().filter(|c| c.is_alphabetic()).count();
    let latin = prose.chars().filter(|c| c.is_alphabetic() && c.is_ascii()).count();
    if letters >= 20 && latin * 10 < letters * 9 {
        return (Verdict::Fail, format!("{latin} of {letters} letters are Latin without accents"));
    }
    let sentences = sentences(&prose);
    let all: usize = sentences.iter().map(Vec::len).sum();
    if all < LEAST_WORDS {
        return (Verdict::NotAssessed, format!("{all} words of prose are too few to tell"));
    }
    let (english, other): (Vec<_>, Vec<_>) = sentences.iter().partition(|words| is_english(words));
    let within: usize = english.iter().map(|words| words.len()).sum();
    let percent = 100 * within / all;
    let detail = format!(
        "{} of {} sentences, with {percent}% of the words, are held together by English function words",
        english.len(),
        english.len() + other.len()
    );
    let verdict = match percent {
        MOST.. => Verdict::Pass,
        0..30 => Verdict::Fail,
        _ => Verdict::NotAssessed,
    };
    (verdict, detail)
}

/// The text without its code: fenced blocks, whether they end or not, and what stands between backticks.
fn prose(text: &str) -> String {
    let mut prose = String::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            prose.extend(line.split('`').step_by(2));
        }
        prose.push('\n');
    }
    prose
}

/// The words of each sentence; a paragraph ends one, too.
fn sentences(prose: &str) -> Vec<Vec<String>> {
    let mut sentences: Vec<Vec<String>> = Vec::new();
    let mut words = Vec::new();
    for part in prose.replace("\n\n", ". ").split(['.', '!', '?', ';']) {
        let is_word = |word: &&str| word.chars().any(char::is_alphabetic);
        let part = part.split(|c: char| !c.is_alphabetic() && c != '\'' && c != '’').filter(is_word);
        words.extend(part.map(|word| word.to_lowercase().replace('’', "'")));
        if words.len() >= SENTENCE {
            sentences.push(std::mem::take(&mut words));
        }
    }
    match sentences.last_mut() {
        Some(last) => last.append(&mut words),
        None => sentences.push(words),
    }
    sentences
}

/// Whether two different function words or more are among the words, and enough of them.
fn is_english(words: &[String]) -> bool {
    let found: Vec<&String> = words.iter().filter(|word| FUNCTION_WORDS.contains(&word.as_str())).collect();
    let different: BTreeSet<&&String> = found.iter().collect();
    different.len() >= 2 && found.len() * ONE_IN >= words.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIBONACCI: &str = "def fibonacci(n):\n    if n <= 1:\n        return n\n    a, b = 0, 1\n    for _ in range(n - 1):\n        a, b = b, a + b\n    return b\n";

    #[test]
    fn english_prose_and_verse_pass() {
        for text in [
            "The sea is a door that no one dares to close at night.",
            "Because I could not stop for Death –\nHe kindly stopped for me –\nThe Carriage held but just Ourselves –\nAnd Immortality.",
            "\"Hope\" is the thing with feathers –\nThat perches in the soul –\n\nAnd sings the tune without the words –\nAnd never stops – at all –",
            "Gradient descent is an optimization algorithm used to minimize the loss function of a neural network. It computes the gradient of the loss with respect to the weights, and takes a step against it.\n\n1. **Forward pass**: the network computes its predictions.\n2. **Learning rate**: it controls how large each step is.",
            "To find the speed, we divide the distance by the time:\n\nspeed = distance / time\n\nIf the train travels 150 km in 2 hours, then its speed is 75 km/h.",
            "Here is a Python function that computes the numbers of Fibonacci:\n```python\nx = 1\n```\nIt keeps the last two of them.",
        ] {
            let (verdict, detail) = english(text);
            assert_eq!(verdict, Verdict::Pass, "{text}: {detail}");
        }
    }

    #[test]
    fn other_languages_fail() {
        for text in [
            "Das Meer ist eine Tür, welche niemand nachts zu schließen wagt.",
            "Der Zug hat in zwei Stunden also 150 Kilometer hinter sich; so ist die Antwort am Ende 75, und was will man mehr als das.",
            "De trein rijdt in twee uur honderdvijftig kilometer, dus is de snelheid van de trein vijfenzeventig kilometer per uur.",
            "La descente de gradient est un algorithme qui minimise une fonction de perte par petits pas, on y arrive en calculant la pente.",
            "El descenso de gradiente es un algoritmo que minimiza una función de pérdida con pasos pequeños, y no hay otro tan usado.",
            "A descida do gradiente é um algoritmo que minimiza a função de perda com passos pequenos, as vezes no fim da rede.",
            "La discesa del gradiente è un algoritmo che minimizza la funzione di perdita, a piccoli passi e in modo iterativo.",
            "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore magna aliqua.",
            "Море ночью — это дверь, которую никто не решается закрыть.",
            "勾配降下法は、損失関数を最小化するための最適化アルゴリズムです。勾配の逆方向に進みます。",
        ] {
            let (verdict, detail) = english(text);
            assert_eq!(verdict, Verdict::Fail, "{text}: {detail}");
        }
    }

    #[test]
    fn gibberish_repetition_and_code_are_no_english() {
        let letters = "czcb yvjo swtb qkrz plvn wmxg htrd fbns ykvq zzpl";
        // Real words without grammar, as a model with random weights writes them.
        let salad = "piano harbor seven green running cloud tablet forty jump silver marble window engine cotton river";
        let (the, both) = ("the ".repeat(40), format!("{letters}. The sea is a door to all of us."));
        for text in [letters, salad, &the, FIBONACCI, &FIBONACCI.repeat(3)] {
            assert_eq!(english(text).0, Verdict::Fail, "{text}");
        }
        assert_eq!(english(&both).0, Verdict::NotAssessed, "half of it");
        for text in ["75", "", "It is 75 km/h.", &format!("```python\n{FIBONACCI}```\n"), &format!("```\n{FIBONACCI}")]
        {
            assert_eq!(english(text).0, Verdict::NotAssessed, "{text}");
        }
        // Circles in good English are found by their repetition, not here.
        assert_eq!(english(&"and then the sea was the sea ".repeat(9)).0, Verdict::Pass);
    }
}
