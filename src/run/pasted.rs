//! What a forum, a chat or a word processor makes of a command line before it is pasted.

use super::{Error, flags};

const DASHES: [char; 8] =
    ['\u{2010}', '\u{2011}', '\u{2012}', '\u{2013}', '\u{2014}', '\u{2015}', '\u{2212}', '\u{fe63}'];
const QUOTES: [char; 8] = ['\u{2018}', '\u{2019}', '\u{201a}', '\u{201c}', '\u{201d}', '\u{201e}', '\u{ab}', '\u{bb}'];
/// Flags whose value is a person's text, in which such signs are meant.
const TEXTS: [&str; 8] =
    ["-p", "--prompt", "-sys", "--system-prompt", "-r", "--reverse-prompt", "-a", "--chat-template-kwargs"];

/// The first slip of a pasted command, as an error that says what to type.
pub(super) fn slip(words: &[String]) -> Option<Error> {
    let before = [""].into_iter().chain(words.iter().map(String::as_str));
    before.zip(words).filter(|(before, _)| !TEXTS.contains(before)).find_map(|(_, word)| of_word(word))
}

fn of_word(word: &str) -> Option<Error> {
    let shown = word.to_string();
    if word.starts_with(DASHES) {
        let name = word.trim_start_matches(DASHES).trim_start_matches('-');
        let short = format!("-{name}");
        let is_short = !name.is_empty() && (name.chars().count() < 2 || flags::spelling(&short).is_some());
        let typed = if is_short { short } else { format!("--{name}") };
        return Some(Error::Dash { word: shown, typed });
    }
    let quoted = word.starts_with(QUOTES) || word.ends_with(QUOTES);
    quoted.then(|| Error::CurlyQuotes { typed: word.trim_matches(QUOTES).to_string(), word: shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pasting_spoils_is_named() {
        let dash =
            |word: &str, typed: &str| format!("`{word}` begins with a dash that is not a hyphen: type `{typed}`");
        for (line, expected) in [
            ("llama-server|\u{2013}ngl|9", Some(dash("\u{2013}ngl", "-ngl"))),
            ("llama-server|\u{2014}model|x", Some(dash("\u{2014}model", "--model"))),
            ("\u{2014}|llama-server", Some(dash("\u{2014}", "--"))),
            ("llama-cli|-p|\u{201c}Hello\u{201d} \u{2013} he said", None),
            ("/my llama-bench/llama-server|-m|a\u{2013}b", None),
        ] {
            let words: Vec<String> = line.split('|').map(str::to_string).collect();
            assert_eq!(slip(&words).map(|error| error.to_string()), expected);
        }
    }
}
