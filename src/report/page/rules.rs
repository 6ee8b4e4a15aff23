//! Rule sets, and what a rule file does to a model.

use serde::Serialize;

use super::{Block, Document, Page, Verdict};
use crate::number;
use crate::plan::rule_file::{Count, RuleFile, RulesCheck};
use crate::report::table::{Table, row};

/// One built-in rule set, in the `moeplan/rule-sets/1` document.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuleSet<'a> {
    /// What `--rules` takes.
    name: &'a str,
    /// What it does and when it helps.
    description: &'a str,
    rules: usize,
    /// Whether it fills devices to their budgets.
    fills: bool,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuleSets<'a> {
    /// Always `moeplan/rule-sets/1`.
    schema: &'static str,
    sets: Vec<RuleSet<'a>>,
}

impl<'a> RuleSets<'a> {
    pub fn of(files: &'a [(&'a str, RuleFile)]) -> Self {
        let set = |(name, file): &'a (&'a str, RuleFile)| {
            let (rules, fills) = (file.rules.len(), file.fills());
            RuleSet { name, description: &file.description, rules, fills }
        };
        Self { schema: "moeplan/rule-sets/1", sets: files.iter().map(set).collect() }
    }
}

impl Document for RuleSets<'_> {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Rules", "Built-in rule sets", "");
        for set in &self.sets {
            page.push(Block::Heading(set.name.to_string()));
            page.push(Block::Prose(set.description.trim().to_string()));
        }
        vec![page]
    }
}

impl Document for RulesCheck {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Rules", self.name.clone(), "");
        page.push(Block::Prose(self.description.trim().to_string()));
        page.push(Block::table("", table(self)));
        for rule in &self.rules {
            for shadow in &rule.shadowed {
                let Count { tensors, bytes } = shadow.count;
                let text = format!("line {}: line {} takes {tensors} of its tensors, {bytes}", rule.line, shadow.line);
                page.push(Block::Prose(text));
            }
            for (buffer, Count { tensors, bytes }) in &rule.filled {
                page.push(Block::Prose(format!(
                    "line {}: {}, {bytes} on {buffer}",
                    rule.line,
                    number::counted(*tensors as u64, "tensor")
                )));
            }
            let note = |text: &String| Block::Note(Verdict::Caution, format!("line {}: {text}", rule.line), None);
            page.push(rule.warnings.iter().map(note));
        }
        if let (Some(rest), Some(all)) = (self.unmatched, self.model_bytes) {
            page.push(Block::Prose(format!(
                "Without a rule: {}, {} of {all}",
                number::counted(rest.tensors as u64, "tensor"),
                rest.bytes
            )));
        }
        if self.overrides.is_empty() && self.rules.iter().any(|rule| rule.to.starts_with("fill ")) {
            let text = if self.carried_out {
                "All of it fits where llama.cpp puts it: no -ot is needed"
            } else {
                "Describe a machine (--vram 24G) and a model to see what fits"
            };
            page.push(Block::Prose(text.into()));
        }
        page.push(self.overrides.iter().map(|entry| Block::Prose(format!("  -ot {entry}"))));
        vec![page]
    }
}

fn table(document: &RulesCheck) -> Table {
    let of = |count: &Count| match document.model_bytes {
        Some(_) => format!("{}, {}", count.tensors, count.bytes),
        None => String::new(),
    };
    let rows = document
        .rules
        .iter()
        .map(|rule| row![rule.line, rule.tensors, rule.to, of(&rule.matches), of(&rule.decides), rule.blocks]);
    Table::rows_of(">line|tensors|to|>matches|>decides|blocks", rows)
}
