//! What a computer helps or hinders.

use super::{Block, Document, Item, Page, Verdict};
use crate::doctor::{Doctor, Finding, Level};
use crate::number::counted;

impl Document for Doctor<'_> {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Doctor", "What moeplan finds here", "");
        let item = |finding: &Finding| {
            let verdict = match finding.level {
                Level::Ok => Verdict::Good,
                Level::Note => Verdict::Open,
                Level::Problem => Verdict::Bad,
            };
            Item { verdict, what: finding.message.clone(), why: String::new(), hint: finding.hint.clone() }
        };
        for group in self.findings.chunk_by(|a, b| a.area == b.area) {
            let title = group.first().map_or("", |finding| finding.area.title());
            page.push(Block::checklist(title, group.iter().map(item).collect()));
        }
        let count = |level: Level| self.findings.iter().filter(|finding| finding.level == level).count() as u64;
        let (problems, notes) = (count(Level::Problem), count(Level::Note));
        let problems_in_words = if problems == 0 { "No problems".to_string() } else { counted(problems, "problem") };
        let notes = if problems + notes == 0 { String::new() } else { format!(", {}", counted(notes, "note")) };
        page.push(Block::Verdict(Verdict::of(problems == 0), format!("{problems_in_words}{notes}")));
        vec![page]
    }
}
