//! A validation as a checklist: every line ticked with its evidence, or not ticked with the reason.

use super::bench::{heading, summary, word};
use crate::escape;
use crate::suite::document::{Item, ModelValidation, Section, Validation, Verdict};

/// For a terminal; a page of it is `page::of`.
pub fn render(validation: &Validation) -> String {
    let mut out = heading(&format!("{}: {}", validation.suite, validation.description));
    out += &(heading("Prerequisites") + &checklist(&validation.prerequisites));
    for model in &validation.models {
        out += &(heading(&format!("Model {}", model.name)) + &of_model(model));
    }
    out + &heading("Final checklist") + &checklist(&validation.summary)
}

fn of_model(model: &ModelValidation) -> String {
    if let Some(why) = &model.skipped {
        let line = Item { what: "it was run".into(), verdict: Verdict::Skipped, detail: why.clone() };
        return checklist(&[line]);
    }
    let part = |section: &Section| heading(&section.name) + &checklist(&section.items);
    let parts: String = model.sections.iter().map(part).collect();
    parts + &model.bench.as_ref().map(summary).unwrap_or_default()
}

/// Lines with a box each.
fn checklist(items: &[Item]) -> String {
    let line = |item: &Item| {
        let mark = if item.verdict == Verdict::Pass { 'x' } else { ' ' };
        let reason = match item.verdict {
            Verdict::Pass => String::new(),
            other => format!("{}: ", word(other)),
        };
        format!("- [{mark}] {} ({reason}{})\n", escape::terminal(&item.what), escape::terminal(&item.detail))
    };
    items.iter().map(line).collect::<String>() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_ticked_with_evidence_or_says_why_not() {
        let item = |verdict, detail: &str| Item { what: "it <fits>".into(), verdict, detail: detail.into() };
        let text = checklist(&[
            item(Verdict::Pass, "3 of 4"),
            item(Verdict::Fail, "4 of 4"),
            item(Verdict::NotAssessed, "nobody knows"),
            item(Verdict::Skipped, "\u{1b}[31m"),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "- [x] it <fits> (3 of 4)");
        assert_eq!(lines[1], "- [ ] it <fits> (NO: 4 of 4)");
        assert_eq!(lines[2], "- [ ] it <fits> (not assessed: nobody knows)");
        assert!(!lines[3].contains('\u{1b}') && lines[3].contains("skipped: "));
    }
}
