//! Rule sets and what they do to a model, for people.

use std::fmt::Write as _;

use serde::Serialize;

use crate::cli::Format;
use crate::escape;
use crate::plan::rule_file::RuleFile;
use crate::plan::rule_file::check::{Count, RuleRow, RulesCheck};
use crate::report::table::{Align, Table};

/// One built-in rule set, in the `moeplan/rule-sets/1` document.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuleSet<'a> {
    /// What `--rules` takes.
    name: &'a str,
    /// What it does and when it helps.
    description: &'a str,
    /// How many rules.
    rules: usize,
    /// Whether it fills devices to their budgets.
    fills: bool,
}

/// The list as a document.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuleSets<'a> {
    /// Always `moeplan/rule-sets/1`.
    schema: &'static str,
    /// By name.
    sets: Vec<RuleSet<'a>>,
}

/// The built-in sets as a document.
pub fn list_document<'a>(files: &'a [(&'a str, RuleFile)]) -> RuleSets<'a> {
    let set = |(name, file): &'a (&'a str, RuleFile)| {
        let (rules, fills) = (file.rules.len(), file.fills());
        RuleSet { name, description: &file.description, rules, fills }
    };
    RuleSets { schema: "moeplan/rule-sets/1", sets: files.iter().map(set).collect() }
}

/// The built-in sets, each with when it helps.
pub fn list(files: &[(&str, RuleFile)], format: Format) -> String {
    if format == Format::Markdown {
        let mut table = Table::new(&[("name", Align::Left), ("what it does and when it helps", Align::Left)]);
        for (name, file) in files {
            table.row([(*name).to_string(), file.description.clone()]);
        }
        return table.markdown();
    }
    let mut out = String::new();
    for (name, file) in files {
        let _ = writeln!(out, "{name}\n    {}", wrapped(&file.description, 96).join("\n    "));
    }
    out
}

/// What a file does, rule by rule.
pub fn check(document: &RulesCheck, format: Format) -> String {
    let text = format != Format::Markdown;
    let shown = |words: &str| if text { escape::terminal(words).into_owned() } else { escape::markdown(words) };
    let mut out = String::new();
    let _ =
        writeln!(out, "{}{}: {}\n", if text { "" } else { "## " }, shown(&document.name), shown(&document.description));
    let mut table = Table::new(&[
        ("line", Align::Right),
        ("tensors", Align::Left),
        ("to", Align::Left),
        ("matches", Align::Right),
        ("decides", Align::Right),
        ("blocks", Align::Left),
    ]);
    let of = |count: &Count| match document.model_bytes {
        Some(_) => format!("{}, {}", count.tensors, count.bytes),
        None => String::new(),
    };
    for rule in &document.rules {
        let (matches, decides) = (of(&rule.matches), of(&rule.decides));
        table.row([
            rule.line.to_string(),
            rule.tensors.clone(),
            rule.to.clone(),
            matches,
            decides,
            rule.blocks.clone(),
        ]);
    }
    if !table.is_empty() {
        out += &if text { table.text() } else { table.markdown() };
    }
    for rule in &document.rules {
        out += &details(rule, &shown);
    }
    if let (Some(rest), Some(all)) = (document.unmatched, document.model_bytes) {
        let _ = writeln!(out, "\nWithout a rule: {} tensors, {} of {all}", rest.tensors, rest.bytes);
    }
    if document.overrides.is_empty() && document.rules.iter().any(|rule| rule.to.starts_with("fill ")) {
        let said = if document.carried_out {
            "All of it fits where llama.cpp puts it: no -ot is needed"
        } else {
            "Describe a machine (--vram 24G) and a model to see what fits"
        };
        let _ = writeln!(out, "{said}");
    }
    for entry in &document.overrides {
        let _ = writeln!(out, "  -ot {}", shown(entry));
    }
    out
}

/// What is to be said of one rule beside its row.
fn details(rule: &RuleRow, shown: &dyn Fn(&str) -> String) -> String {
    let mut out = String::new();
    for shadow in &rule.shadowed {
        let Count { tensors, bytes } = shadow.count;
        let _ = writeln!(out, "line {}: line {} takes {tensors} of its tensors, {bytes}", rule.line, shadow.line);
    }
    for (buffer, count) in &rule.filled {
        let _ = writeln!(out, "line {}: {} tensors, {} on {}", rule.line, count.tensors, count.bytes, shown(buffer));
    }
    for warning in &rule.warnings {
        let _ = writeln!(out, "warning: line {}: {}", rule.line, shown(warning));
    }
    out
}

/// Lines of at most so many characters, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}
