//! Tests of the page: it parses, it is safe, and its colours can be read.

use std::collections::BTreeMap;

use scraper::{Html, Selector};

use super::*;
use crate::report::chart::{Axis, Bar, Bars, Fill, Key, Lines, Part, Point, Series, Tone};
use crate::report::page;

/// Markup, an entity, an attribute's end, a control, a bidirectional override, a zero-width space.
const HOSTILE: &str =
    "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;\u{1b}[31m\u{202e}\u{200b}";

fn figure(chart: Chart) -> Block {
    let mut table = Table::of("what|>bytes");
    table.row([HOSTILE, "1"]);
    let key = Key { label: HOSTILE.into(), tone: Tone::Model, fill: Fill::Hatched };
    Block::Figure(Figure { title: HOSTILE.into(), text: HOSTILE.into(), legend: vec![key], chart, table })
}

/// A page with every kind of block, untrusted text in every field.
fn full() -> Report {
    let text = || HOSTILE.to_string();
    let stacked = |fill, parts: &[(Tone, f64)]| Bar::stacked(HOSTILE, text(), fill, parts.iter().copied());
    let bar = stacked(Fill::Plain, &[(Tone::Model, 2f64.powi(64)), (Tone::Host, 3.0)]);
    let plain =
        Bar { spread: Some(1.0), samples: vec![2.0, f64::NAN], ..stacked(Fill::Hatched, &[(Tone::Series(9), 3.0)]) };
    let part = Part { from: 0.0, length: 2.0, tone: Tone::Host, fill: Fill::Hatched, text: text() };
    let cells = Bar { parts: vec![part], ..stacked(Fill::Plain, &[]) };
    let group = |axis, bar, limit| Chart::Bars(vec![Bars { label: text(), axis, bars: vec![bar], limit }]);
    let point = |x, y| Point { x, y, spread: Some(0.5) };
    let series = |at| Series { label: text(), at, points: vec![point(0.0, 1.0), point(f64::INFINITY, 2.0)] };
    let lines = Lines {
        x: text(),
        y: text(),
        series: vec![series(0), series(7)],
        levels: vec![(text(), 1.5)],
        dense: false,
        x_is_bytes: false,
    };
    let item = Item { verdict: Verdict::Bad, what: text(), why: text(), hint: Some(text()) };
    let mut points = Table::of("budget");
    points.row([HOSTILE]);
    let axis = page::Axis { what: text().into(), values: vec![text()] };
    let blocks = vec![
        Block::Heading(text()),
        Block::Prose(text()),
        Block::Verdict(Verdict::Good, text()),
        Block::KeyFigures(vec![KeyFigure { label: text(), value: text(), note: text() }]),
        Block::Table(text(), points.clone()),
        figure(group(Axis::Bytes, bar, Some((text(), 7.0)))),
        figure(group(Axis::Number(text()), plain, None)),
        figure(Chart::Lines(lines)),
        figure(group(Axis::Blocks(2), cells, None)),
        Block::Command(text(), text()),
        Block::Note(Verdict::Caution, text(), Some(text())),
        Block::Checklist(vec![item]),
        Block::Output(text(), format!("first\r\nsecond {HOSTILE}")),
        Block::WhatIf(WhatIf { axes: vec![axis.clone(), axis], table: points, commands: vec![text()], start: 5 }),
    ];
    let mut page = Page { source: text(), ..Page::new("", text(), text()) };
    page.push_all(blocks);
    Report { title: text(), about: text(), pages: vec![page.clone(), page] }
}

fn select<'a>(page: &'a Html, what: &str) -> Vec<scraper::ElementRef<'a>> {
    page.select(&Selector::parse(what).unwrap()).collect()
}

#[test]
fn the_page_parses_without_an_error() {
    let parsed = Html::parse_document(&report(&full()));
    assert_eq!(parsed.errors, Vec::<String>::new());
    assert_eq!(select(&parsed, "h1").len(), 1);
    let mut ids: Vec<&str> = select(&parsed, "[id]").iter().filter_map(|element| element.value().id()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id twice");
    for attribute in ["aria-labelledby", "aria-describedby", "for"] {
        for element in select(&parsed, &format!("[{attribute}]")) {
            let id = element.value().attr(attribute).unwrap();
            assert!(ids.contains(&id), "{attribute} names {id}, which is not there");
        }
    }
}

#[test]
fn untrusted_text_is_text_wherever_it_stands() {
    let text = report(&full());
    assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{200b}', '\r']), "a control character reached the page");
    let parsed = Html::parse_document(&text);
    assert_eq!(select(&parsed, "img, iframe, object, embed, link, base, form, [onerror], [src]").len(), 0);
    assert_eq!(select(&parsed, "script").len(), 1);
    assert_eq!(select(&parsed, "script")[0].text().collect::<String>().trim(), SCRIPT.trim());
    let title: String = select(&parsed, "h1")[0].text().collect();
    assert_eq!(title, escape::terminal(HOSTILE));
    for link in select(&parsed, "[href]") {
        assert!(link.value().attr("href").unwrap().starts_with('#'), "the page leads out");
    }
    assert!(!STYLE.contains("http") && !STYLE.contains("@import") && !SCRIPT.contains("http"));
}

#[test]
fn every_chart_has_words_and_a_table() {
    let parsed = Html::parse_document(&report(&full()));
    let figures = select(&parsed, "figure");
    assert_eq!(figures.len(), 8);
    for figure in figures {
        let has = |what: &str| figure.select(&Selector::parse(what).unwrap()).next().is_some();
        assert!(has("figcaption b") && has("figcaption span") && has("details table td"), "{}", figure.html());
        assert!(has("[role=img][aria-labelledby][aria-describedby]"), "{}", figure.html());
    }
    for svg in select(&parsed, "svg:not([aria-hidden]):not(.mark):not([viewBox])") {
        let has = |what: &str| svg.select(&Selector::parse(what).unwrap()).next().is_some();
        assert!(has("title") && has("desc"), "{}", svg.html());
    }
}

#[test]
fn the_policy_lets_the_script_run() {
    use sha2::Digest as _;
    let letters = [('A', 'Z'), ('a', 'z'), ('0', '9')].into_iter().flat_map(|(from, to)| from..=to).chain("+/".chars());
    let letters: Vec<char> = letters.collect();
    // 32 bytes are 43 letters of six bits, the last two bits empty, and one `=`.
    let hash: Vec<u8> = sha2::Sha256::digest(SCRIPT).into_iter().chain([0]).collect();
    let six =
        |at: usize| (u16::from_be_bytes([hash[at * 6 / 8], hash[(at * 6 / 8 + 1).min(32)]]) >> (10 - at * 6 % 8)) & 63;
    let encoded: String = (0..43).map(|at| letters[usize::from(six(at))]).collect();
    assert_eq!(SCRIPT_HASH, format!("sha256-{encoded}="), "what-if.js has changed");
}

#[test]
fn numbers_that_are_none_stay_out_of_the_drawing() {
    let text = report(&full());
    let body = &text[text.find("<body>").unwrap()..];
    assert!(!body.contains("NaN") && !body.contains("inf\"") && !body.contains("inf%"), "not a number in a drawing");
}

#[test]
fn a_page_without_choices_has_no_script() {
    let mut without = full();
    without.pages.iter_mut().for_each(|page| page.parts.retain(|part| !matches!(part.block, Block::WhatIf(_))));
    let text = report(&without);
    assert!(!text.contains("<script") && text.contains("script-src 'none'"));
    assert_eq!(text, report(&without), "the same page twice");
}

/// The custom properties of the rule that begins at `start`.
fn colours(start: &str) -> BTreeMap<&'static str, [f64; 3]> {
    let rule = &STYLE[STYLE.find(start).unwrap() + start.len()..];
    let rule = &rule[rule.find('{').unwrap() + 1..];
    let rule = &rule[..rule.find('}').unwrap()];
    let declarations = rule.split(';').filter_map(|line| line.trim().strip_prefix("--")?.split_once(": #"));
    let channel = |hex: &str, at: usize| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
    let colour = |hex: &str| match hex.len() {
        3 => [1.0, 1.0, 1.0].map(|_| f64::from(u8::from_str_radix(&hex[..1].repeat(2), 16).unwrap()) / 255.0),
        _ => [channel(hex, 0), channel(hex, 2), channel(hex, 4)],
    };
    declarations.map(|(name, hex)| (name, colour(hex))).collect()
}

/// Contrast by WCAG 2.2.
fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let linear = |c: f64| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) };
    let luminance = |[r, g, b]: [f64; 3]| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    let (a, b) = (luminance(a) + 0.05, luminance(b) + 0.05);
    a.max(b) / a.min(b)
}

#[test]
fn colours_can_be_read_in_light_in_dark_and_on_paper() {
    let mut low = Vec::new();
    for start in [":root {", "dark) {\n  :root", "@media print {\n  :root"] {
        let start = start.trim_end_matches(" {");
        let colours = colours(start);
        let paper = colours["paper"];
        assert!(colours.len() > 18, "{start}: {colours:?}");
        for (name, colour) in colours.iter().filter(|(name, _)| !["paper", "raised", "line"].contains(name)) {
            let is_area = ["model", "context", "compute", "overhead", "host"].contains(name);
            let least = if is_area { 3.0 } else { 4.5 };
            let found = contrast(*colour, paper);
            if found < least {
                low.push(format!("{start} --{name}: {found:.2}, {least} at least"));
            }
        }
        for name in ["ink", "muted", "accent"] {
            assert!(contrast(colours[name], colours["raised"]) >= 4.5, "{start} --{name} on --raised");
        }
    }
    assert!(low.is_empty(), "{}", low.join("\n"));
}
