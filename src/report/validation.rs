//! A validation as a checklist: every line ticked with its evidence, or not ticked with the reason.

use super::bench::{Page, word};
use crate::cli::Format;
use crate::escape;
use crate::suite::document::{Item, ModelValidation, Validation, Verdict};

/// As text or as Markdown.
pub fn render(validation: &Validation, format: Format) -> String {
    let is_markdown = format == Format::Markdown;
    let page = Page { is_markdown };
    let mut out = page.title(1, &format!("{}: {}", validation.suite, validation.description));
    out += &page.title(2, "Prerequisites");
    out += &checklist(&validation.prerequisites, is_markdown);
    for model in &validation.models {
        out += &of_model(model, page);
    }
    out += &page.title(2, "Final checklist");
    out + &checklist(&validation.summary, is_markdown)
}

fn of_model(model: &ModelValidation, page: Page) -> String {
    let mut out = page.title(2, &format!("Model {}", model.name));
    if let Some(why) = &model.skipped {
        let line = Item { what: "it was run".into(), verdict: Verdict::Skipped, detail: why.clone() };
        return out + &checklist(&[line], page.is_markdown);
    }
    for section in &model.sections {
        out += &page.title(3, &section.name);
        out += &checklist(&section.items, page.is_markdown);
    }
    if let Some(bench) = &model.bench {
        for table in super::bench::summary_tables(bench) {
            out += &page.table(&table);
        }
    }
    out
}

/// Lines with a box each.
pub fn checklist(items: &[Item], is_markdown: bool) -> String {
    let line = |item: &Item| {
        let mark = if item.verdict == Verdict::Pass { 'x' } else { ' ' };
        let reason = match item.verdict {
            Verdict::Pass => String::new(),
            other => format!("{}: ", word(other)),
        };
        let text = |text: &str| if is_markdown { escape::markdown(text) } else { escape::terminal(text).into_owned() };
        format!("- [{mark}] {} ({reason}{})", text(&item.what), text(&item.detail))
    };
    items.iter().map(line).collect::<Vec<_>>().join("\n") + "\n\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_ticked_with_evidence_or_says_why_not() {
        let item = |verdict, detail: &str| Item { what: "it <fits>".into(), verdict, detail: detail.into() };
        let text = checklist(
            &[
                item(Verdict::Pass, "3 of 4"),
                item(Verdict::Fail, "4 of 4"),
                item(Verdict::NotAssessed, "nobody knows"),
                item(Verdict::Skipped, "\u{1b}[31m"),
            ],
            false,
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "- [x] it <fits> (3 of 4)");
        assert_eq!(lines[1], "- [ ] it <fits> (NO: 4 of 4)");
        assert_eq!(lines[2], "- [ ] it <fits> (not assessed: nobody knows)");
        assert!(!lines[3].contains('\u{1b}') && lines[3].contains("skipped: "));
        assert!(!checklist(&[item(Verdict::Pass, "")], true).contains("<fits>"));
    }
}
