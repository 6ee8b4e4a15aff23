//! The regexes of `-ot`: ECMAScript as C++ `std::regex` has it, translated or refused, searched unanchored.
//!
//! Source: `src/llama-model-loader.cpp` `create_tensor` (`std::regex_search` with the default grammar), b11434.
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

use std::collections::HashMap;
use std::sync::Arc;

use fancy_regex::Regex;

/// A pattern that can be searched for.
#[derive(Debug)]
pub struct Pattern {
    /// Literal text that it begins with, as `blk.12.`; often empty.
    head: String,
    rest: Arc<Regex>,
}

impl Pattern {
    /// Whether the pattern occurs in `name`.
    pub fn matches(&self, name: &str) -> bool {
        // A failure is the backtracking limit: llama.cpp would give up on such a pattern as well.
        let rest = |text: &str| self.rest.is_match(text).unwrap_or(false);
        if self.head.is_empty() {
            return rest(name);
        }
        name.match_indices(&self.head).any(|(at, _)| name.get(at.saturating_add(self.head.len())..).is_some_and(rest))
    }
}

/// Reads patterns. Lists of overrides by block differ in their heads alone, so what follows the heads is kept compiled.
#[derive(Debug, Default)]
pub struct Parser {
    compiled: HashMap<String, Arc<Regex>>,
}

impl Parser {
    /// Reads an ECMAScript regex; the error says what is the matter with it.
    pub fn parse(&mut self, text: &str) -> Result<Pattern, String> {
        let (head, rest) = split_head(text).unwrap_or_default();
        let source = if head.is_empty() { text } else { rest };
        let key = format!("{}{source}", if head.is_empty() { ' ' } else { '^' });
        if let Some(known) = self.compiled.get(&key) {
            return Ok(Pattern { head, rest: known.clone() });
        }
        let translated = translate(source)?;
        let anchored = if head.is_empty() { translated } else { format!("^(?:{translated})") };
        let compiled = Regex::new(&anchored).map_err(|error| match error {
            fancy_regex::Error::CompileError(inner) => inner.to_string(),
            other => other.to_string(),
        })?;
        let rest = Arc::new(compiled);
        self.compiled.insert(key, rest.clone());
        Ok(Pattern { head, rest })
    }
}

pub fn parse(text: &str) -> Result<Pattern, String> {
    Parser::default().parse(text)
}

/// `blk.N.` of a pattern that begins with `blk\.N\.`, and what follows, where that can be matched by itself: no alternative of
/// the whole, no quantifier of the last dot, nothing that looks back.
fn split_head(text: &str) -> Option<(String, &str)> {
    let after = text.strip_prefix(r"blk\.")?;
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let (number, after) = after.split_at_checked(digits).filter(|(number, _)| !number.is_empty())?;
    let rest = after.strip_prefix(r"\.")?;
    let looks_back = rest.contains('^') || rest.contains(r"\b") || rest.contains(r"\B");
    let mut depth = 0_i32;
    let mut escaped = false;
    for c in rest.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            // Brackets may hold any of these: too rare to be worth telling apart.
            '[' => return None,
            '(' => depth = depth.saturating_add(1),
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => return None,
            _ => {}
        }
    }
    (depth == 0 && !looks_back && !rest.starts_with(['*', '+', '?', '{'])).then(|| (format!("blk.{number}."), rest))
}

/// The same regex in the syntax of the regex crates; an error for what means something else there, or nothing in ECMAScript.
fn translate(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len().saturating_add(8));
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    let mut in_class = false;
    let mut after_quantifier = false;
    let after = |at: usize, steps: usize| chars.get(at.saturating_add(steps)).copied();
    while let Some(&c) = chars.get(at) {
        let next = after(at, 1);
        let mut quantified = false;
        match c {
            '\\' => {
                out.push_str(&escape(next, in_class)?);
                at = at.saturating_add(1);
            }
            '[' if in_class => {
                // `[:alpha:]` and its like exist in both; a plain bracket is a character here.
                let named = matches!(next, Some(':'));
                out.push_str(if named { "[" } else { "\\[" });
                if let (true, Some(end)) = (named, find(&chars, at, &[':', ']'])) {
                    out.extend(chars.get(at..=end).unwrap_or_default().iter().skip(1));
                    at = end;
                }
            }
            '[' => {
                in_class = true;
                out.push('[');
                if next == Some('^') {
                    out.push('^');
                    at = at.saturating_add(1);
                }
                if after(at, 1) == Some(']') {
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
                group(after(at, 2))?;
                out.push_str("(?");
                at = at.saturating_add(1);
            }
            '*' | '+' | '?' | '{' if !in_class => {
                at = quantifier(&chars, at, after_quantifier, &mut out)?;
                quantified = true;
            }
            '}' if !in_class => return Err("`}` must be escaped: `\\}`".into()),
            _ => out.push(c),
        }
        after_quantifier = quantified;
        at = at.saturating_add(1);
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
    let offset = chars.get(from..)?.windows(end.len()).position(|window| window == end)?;
    from.checked_add(offset)?.checked_add(end.len().checked_sub(1)?)
}

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
    fn heads_are_split_off_where_that_changes_nothing() {
        for (pattern, head) in [
            (r"blk\.3\.ffn_(up|down)_exps", Some("blk.3.")),
            (r"blk\.12\.", Some("blk.12.")),
            (r"blk\.3\.ffn|output", None),
            (r"blk\.3\.?ffn", None),
            (r"blk\.3\.[a-z]+", None),
            (r"blk\.3\.x)", None),
            (r"blk\.\d\.ffn", None),
            (r"(blk\.3\.ffn)", None),
        ] {
            assert_eq!(split_head(pattern).map(|(head, _)| head).as_deref(), head, "{pattern}");
        }
        let mut parser = Parser::default();
        for block in 0..3 {
            let pattern = parser.parse(&format!(r"blk\.{block}\.ffn_(up|down)_exps")).unwrap();
            assert!(pattern.matches(&format!("blk.{block}.ffn_up_exps.weight")));
            assert!(!pattern.matches(&format!("blk.{}.ffn_up_exps.weight", block + 1)));
            assert!(!pattern.matches(&format!("blk.{block}.attn.ffn_up_exps.weight")));
        }
        assert_eq!(parser.compiled.len(), 1);
        assert!(parser.parse(r"ffn_(up|down)_exps").unwrap().matches("blk.1.ffn_up_exps.weight"));
        assert!(parser.parse(r"blk\.1\.(").is_err());
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
