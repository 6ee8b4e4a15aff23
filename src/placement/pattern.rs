//! The regexes of `-ot`: ECMAScript as C++ `std::regex` has it, translated or refused, searched unanchored.
//!
//! Source: `src/llama-model-loader.cpp` `create_tensor` (`std::regex_search` with the default grammar), b11434.

use fancy_regex::Regex;

/// A pattern that can be searched for.
#[derive(Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Whether the pattern occurs in `name`.
    pub fn matches(&self, name: &str) -> bool {
        // A failure is the backtracking limit: llama.cpp would give up on such a pattern as well.
        self.0.is_match(name).unwrap_or(false)
    }
}

/// Reads an ECMAScript regex; the error says what is the matter with it.
pub fn parse(text: &str) -> Result<Pattern, String> {
    let translated = translate(text)?;
    Regex::new(&translated).map(Pattern).map_err(|error| match error {
        fancy_regex::Error::CompileError(inner) => inner.to_string(),
        other => other.to_string(),
    })
}

/// The same regex in the syntax of the regex crates; an error for what means something else there, or nothing in ECMAScript.
fn translate(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len() + 8);
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    let mut in_class = false;
    let mut after_quantifier = false;
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        let mut quantified = false;
        match c {
            '\\' => {
                out.push_str(&escape(next, in_class)?);
                at += 1;
            }
            '[' if in_class => {
                // `[:alpha:]` and its like exist in both; a plain bracket is a character here.
                let named = matches!(next, Some(':'));
                out.push_str(if named { "[" } else { "\\[" });
                if let (true, Some(end)) = (named, find(&chars, at, &[':', ']'])) {
                    out.extend(chars.get(at + 1..=end).unwrap_or_default());
                    at = end;
                }
            }
            '[' => {
                in_class = true;
                out.push('[');
                if next == Some('^') {
                    out.push('^');
                    at += 1;
                }
                if chars.get(at + 1) == Some(&']') {
                    return Err("an empty character class matches nothing".into());
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => out.extend(['\\', c]),
            '-' if in_class && next == Some('-') => out.push_str("\\-"),
            '(' if !in_class && next == Some('?') => {
                group(chars.get(at + 2).copied())?;
                out.push_str("(?");
                at += 1;
            }
            '*' | '+' | '?' | '{' if !in_class => {
                at = quantifier(&chars, at, after_quantifier, &mut out)?;
                quantified = true;
            }
            '}' if !in_class => return Err("`}` must be escaped: `\\}`".into()),
            _ => out.push(c),
        }
        after_quantifier = quantified;
        at += 1;
    }
    Ok(out)
}

/// Refuses the groups that ECMAScript lacks, by what follows `(?`.
fn group(kind: Option<char>) -> Result<(), String> {
    if matches!(kind, Some(':' | '=' | '!')) {
        return Ok(());
    }
    Err("lookbehind, named groups, inline flags and atomic groups do not exist in llama.cpp's ECMAScript regexes: only \
         `(?:`, `(?=` and `(?!`"
        .into())
}

/// Writes the quantifier at `at`; where it ends.
fn quantifier(chars: &[char], at: usize, after_quantifier: bool, out: &mut String) -> Result<usize, String> {
    let c = chars.get(at).copied().unwrap_or_default();
    if after_quantifier && c == '+' {
        return Err("possessive quantifiers do not exist in llama.cpp's ECMAScript regexes".into());
    }
    let end = if c == '{' { find(chars, at, &['}']).ok_or("`{` must be escaped: `\\{`")? } else { at };
    out.extend(chars.get(at..=end).unwrap_or_default());
    Ok(end)
}

/// Where `end` ends at or after `from`.
fn find(chars: &[char], from: usize, end: &[char]) -> Option<usize> {
    chars.get(from..)?.windows(end.len()).position(|window| window == end).map(|offset| from + offset + end.len() - 1)
}

/// What follows a backslash.
fn escape(next: Option<char>, in_class: bool) -> Result<String, String> {
    match next {
        None => Err("a backslash at the end escapes nothing".into()),
        Some('0') => Ok("\\x00".into()),
        Some('b') if in_class => Ok("\\x08".into()),
        // ECMAScript's classes are ASCII.
        Some('d') => Ok(if in_class { "0-9" } else { "[0-9]" }.into()),
        Some('w') => Ok(if in_class { "0-9A-Za-z_" } else { "[0-9A-Za-z_]" }.into()),
        Some(c @ ('D' | 's' | 'S' | 'W' | 'b' | 'B' | 'n' | 'r' | 't' | 'f' | 'v' | 'x' | 'u' | '1'..='9')) => {
            Ok(format!("\\{c}"))
        }
        Some(c) if c.is_ascii_alphanumeric() => Err(format!("`\\{c}` means nothing in ECMAScript")),
        Some(c) if c.is_ascii_punctuation() => Ok(format!("\\{c}")),
        Some(c) => Ok(c.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_is_unanchored() {
        for (pattern, name, matches) in [
            (r"blk\.1", "blk.17.attn_q.weight", true),
            (r"blk\.1\.", "blk.17.attn_q.weight", false),
            (r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "blk.3.ffn_gate_up_exps.weight", true),
            (r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", "blk.3.ffn_up_shexp.weight", false),
            (r"^output\.", "token_embd.weight", false),
            (r"blk\.(?!0\.)\d+\.ffn", "blk.0.ffn_up.weight", false),
            (r"blk\.(?!0\.)\d+\.ffn", "blk.12.ffn_up.weight", true),
            (r"[[:digit:]]+\.ffn", "blk.12.ffn_up.weight", true),
            (r"[a-z&&b]lk", "blk.1", true),
            (r"(b)lk\.\d", "blk.1", true),
            (r"\/", "a/b", true),
            ("", "anything", true),
        ] {
            assert_eq!(parse(pattern).unwrap().matches(name), matches, "{pattern} on {name}");
        }
    }

    #[test]
    fn what_differs_is_refused() {
        for pattern in
            ["(?<=x)y", "(?i)x", "(?P<n>x)", "(?<n>x)", "x++", "(?>x)", r"\Ax", "x{", "(", "[", r"\", "*x", "[]"]
        {
            assert!(parse(pattern).is_err(), "{pattern}");
        }
    }
}
