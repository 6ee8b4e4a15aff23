//! Processors by name: their cores, instruction set and memory, as data sheets say. The facts are in `processors.tsv`.
//!
//! A row is for every name that has all of its words; # is a digit, and a * at the end is any rest of a word. What is known is looked up
//! apart: the first row with cores says the cores, the first one with memory the rest.
//!
//! - cores, threads: of one processor.
//! - isa: what ggml-cpu's kernels use.
//! - memory: GB/s of the fastest memory of its data sheet, channels × MT/s × 8 bytes.
//! - products: GFLOP/s that a thread gets out of micro-batches, where it is not that of the instruction set: published prompts of the
//!   same kind.
//! - kind: the one kind of memory that desktop processors of the family take, in two channels (Intel's 12th to 14th generations take
//!   two kinds); of others the fastest of the data sheet, in all channels.
//!
//! Sources: the makers' data sheets (ark.intel.com, amd.com product pages, "System Memory Specification"/"Max Memory Speed").

use super::Isa;
use super::cards;

const TABLE: &str = include_str!("processors.tsv");

/// What is known of a processor by its name.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Processor {
    pub cores: Option<u32>,
    pub threads: Option<u32>,
    pub isa: Option<Isa>,
    /// GB/s of the fastest memory that its data sheet names.
    pub memory: Option<f64>,
    /// GFLOP/s of a thread in micro-batches, where they are not those of its instruction set.
    pub products: Option<f64>,
    /// The one kind of memory that it takes (`ddr4`), where it is a desktop processor of such a family.
    pub takes: Option<&'static str>,
    /// The fastest memory of another processor, in all channels (`ddr4-3200x8`).
    pub fastest: Option<&'static str>,
    /// The row of many processors by which it is known, where no row of its own is.
    pub family: Option<&'static str>,
}

/// A row: its words, then cores, threads, instruction set, memory, products, kind of memory.
type Row = (&'static str, [&'static str; 6]);

fn rows() -> impl Iterator<Item = Row> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines.filter_map(|line| {
        let mut cells = line.split('\t');
        let words = cells.next()?;
        let cells: Vec<_> = cells.collect();
        Some((words, cells.try_into().ok()?))
    })
}

/// The rows that can be asked for by name, with their cores.
pub fn known() -> impl Iterator<Item = (&'static str, Processor)> {
    rows().map(|(words, cells)| (words, read(cells)))
}

fn read([cores, threads, isa, memory, products, kind]: [&'static str; 6]) -> Processor {
    let isa = serde_json::from_value(isa.into()).ok();
    let number = |cell: &str| cell.parse().ok();
    let (memory, products) = (number(memory), number(products));
    let (takes, fastest) = match kind {
        "-" => (None, None),
        kit if kit.contains('-') => (None, Some(kit)),
        kind => (Some(kind), None),
    };
    let (cores, threads) = (cores.parse().ok(), threads.parse().ok());
    Processor { cores, threads, isa, memory, products, takes, fastest, family: None }
}

/// What the rows say of a processor; processors that are one with their graphics have the memory of those (`Apple M3 Ultra`).
pub fn named(description: &str) -> Processor {
    let description = description.to_ascii_lowercase();
    let words: Vec<&str> = description.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let of_name = |row: &&Row| row.0.split(' ').all(|pattern| words.iter().any(|word| matches(pattern, word)));
    let all: Vec<Row> = rows().collect();
    let mut found = Processor::default();
    for (pattern, cells) in all.iter().filter(of_name) {
        let row = read(*cells);
        found.cores = found.cores.or(row.cores);
        found.threads = found.threads.or(row.threads);
        // A family says all of the rest.
        if found.isa.is_none() {
            (found.isa, found.memory) = (row.isa, row.memory);
            (found.products, found.takes, found.fastest) = (row.products, row.takes, row.fastest);
            found.family = row.isa.map(|_| *pattern).filter(|pattern| pattern.contains('#'));
        }
    }
    found.family = found.family.filter(|_| found.cores.is_none());
    if found.isa.is_none()
        && let Some(card) = cards::named(&description).find(|card| card.is_integrated())
    {
        (found.isa, found.memory) = (card.isa(), card.figures.map(|figures| figures.bandwidth));
    }
    found
}

/// The names that a mistyped one may have meant.
pub fn names() -> impl Iterator<Item = &'static str> {
    rows().map(|(words, _)| words.trim_end_matches('*')).filter(|words| !words.contains('#'))
}

/// A processor's name with the series that a person leaves out or shortens, where a row is then for it: `5900X`, `13700K`,
/// `R9 5900X`, `Ryzen9 5900X`; else as it is.
pub fn full_name(name: &str) -> String {
    if named(name).cores.is_some() {
        return name.to_string();
    }
    let lower = name.to_ascii_lowercase();
    // `EPYC9354`.
    if let Some(number) = lower.strip_prefix("epyc").or_else(|| lower.strip_prefix("threadripper"))
        && number.starts_with(|c: char| c.is_ascii_digit())
        && let Some(series) = name.get(..name.len() - number.len())
    {
        return format!("{series} {number}");
    }
    let words = || lower.split(|c: char| !c.is_ascii_alphanumeric());
    let is_ryzen = words().any(|word| {
        matches!(word.strip_prefix("ryzen").or_else(|| word.strip_prefix('r')), Some("3" | "5" | "7" | "9"))
    });
    // A model's number and letters. Numbers alone are of both makers: i7-7700, Ryzen 7700.
    let letters = words().find_map(|word| {
        let letters = word.trim_start_matches(|c: char| c.is_ascii_digit());
        (3..=5).contains(&(word.len() - letters.len())).then_some(letters)
    });
    let series: &[&str] = match letters {
        _ if is_ryzen => &["Ryzen"],
        Some("") | None => &[],
        Some(letters) if letters.starts_with('k') => &["i5", "i7", "i9", "Ultra"],
        Some(_) => &["Ryzen", "i5", "i7", "i9", "Ultra"],
    };
    let mut names = series.iter().map(|series| format!("{series} {name}"));
    names.find(|name| named(name).cores.is_some()).unwrap_or_else(|| name.to_string())
}

/// A row's words as people write them: `ultra 2##*` as `Ultra 2xx`.
pub fn shown(row: &str) -> String {
    let word = |word: &str| match word {
        "ai" => "AI".to_string(),
        _ if word.contains(|c: char| c.is_ascii_digit() || c == '#') => {
            word.to_ascii_uppercase().replace('#', "x").trim_end_matches('*').to_string()
        }
        _ => word.chars().take(1).map(|c| c.to_ascii_uppercase()).chain(word.chars().skip(1)).collect(),
    };
    row.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Whether somebody who looks for a processor by these words means this row: each is a part of its words, or they name it.
pub fn is_meant(row: &str, word: &str) -> bool {
    let maker = match row.split([' ', '#']).next() {
        Some("ryzen" | "threadripper" | "epyc") => "amd",
        Some("i" | "i5" | "i7" | "i9" | "xeon" | "gold" | "ultra") => "intel core",
        _ => "",
    };
    let word = word.to_ascii_lowercase();
    let words: Vec<&str> = word.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let is_named = || row.split(' ').all(|pattern| words.iter().any(|word| matches(pattern, word)));
    let has =
        |word: &&str| row.contains(*word) || maker.contains(*word) || row.split(' ').any(|part| matches(part, word));
    words.iter().all(has) || is_named()
}

/// Whether a word is of a pattern: `#` is a digit, `*` at the end any rest.
fn matches(pattern: &str, word: &str) -> bool {
    let (pattern, is_open) = pattern.strip_suffix('*').map_or((pattern, false), |start| (start, true));
    let alike = |(expected, found): (char, char)| expected == found || expected == '#' && found.is_ascii_digit();
    let has_length = if is_open { word.len() >= pattern.len() } else { word.len() == pattern.len() };
    has_length && pattern.chars().zip(word.chars()).all(alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_socket() {
        for (name, kind) in [
            ("Ryzen 5900X", Some("ddr4")),
            ("AMD Ryzen 9 5950X 16-Core Processor", Some("ddr4")),
            ("Ryzen 5 5600G", Some("ddr4")),
            ("Ryzen 7950X3D", Some("ddr5")),
            ("AMD Ryzen 7 9800X3D 8-Core Processor", Some("ddr5")),
            ("Intel(R) Core(TM) i9-13900K", None),
            ("AMD Ryzen Threadripper 3970X", Some("ddr4-3200x4")),
            ("AMD Ryzen AI MAX+ 395", None),
            ("EPYC 9654", Some("ddr5-4800x12")),
            ("AMD EPYC 7402 24-Core Processor", Some("ddr4-3200x8")),
        ] {
            let known = named(name);
            assert_eq!(known.takes.or(known.fastest), kind, "{name}");
        }
    }

    #[test]
    fn every_line_reads() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).skip(1);
        for line in lines {
            assert_eq!(line.split('\t').count(), 7, "{line}");
        }
        for (words, row) in known() {
            assert!(row.cores.is_some() || row.isa.is_some(), "{words}");
            if let Some(kit) = row.fastest {
                let of_kit = format!("1G@{kit}").parse::<super::super::Ram>().unwrap().bandwidth.unwrap();
                assert!((of_kit - row.memory.unwrap()).abs() < 0.1, "{words} {of_kit}");
            }
            assert_eq!(row.cores.is_some(), row.threads.is_some(), "{words}");
        }
    }

    #[test]
    fn names_as_systems_print_them() {
        for (name, cores, memory) in [
            ("AMD Ryzen 9 7950X 16-Core Processor", Some(16), Some(83.2)),
            ("Ryzen 7950X", Some(16), Some(83.2)),
            ("AMD Ryzen 5 5600X 6-Core Processor", Some(6), Some(51.2)),
            ("13th Gen Intel(R) Core(TM) i7-13700K", Some(16), Some(89.6)),
            ("Intel(R) Core(TM) Ultra 9 285K", Some(24), Some(102.4)),
            ("Intel(R) Core(TM) i9-10900X CPU @ 3.70GHz", Some(10), Some(93.9)),
            ("AMD Ryzen Threadripper PRO 7965WX 24-Cores", Some(24), Some(332.8)),
            ("AMD EPYC 9355 32-Core Processor", Some(32), Some(576.0)),
            ("Intel(R) Xeon(R) Gold 6138 CPU @ 2.00GHz", Some(20), Some(128.0)),
            ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", None, Some(76.8)),
            ("AMD RYZEN AI MAX+ 395 w/ Radeon 8060S", Some(16), Some(256.0)),
            ("Apple M1 Max", None, Some(400.0)),
            ("Strix Halo", None, Some(256.0)),
            ("something else", None, None),
        ] {
            let found = named(name);
            assert_eq!((found.cores, found.memory), (cores, memory), "{name}");
        }
    }

    #[test]
    fn the_series_may_be_left_out_or_shortened() {
        for (name, full, cores) in [
            ("5900X", "Ryzen 5900X", Some(12)),
            ("7800X3D", "Ryzen 7800X3D", Some(8)),
            ("13700k", "i7 13700k", Some(16)),
            ("12400F", "i5 12400F", Some(6)),
            ("285K", "Ultra 285K", Some(24)),
            ("R9 5900X", "Ryzen R9 5900X", Some(12)),
            ("ryzen9 5900x", "Ryzen ryzen9 5900x", Some(12)),
            ("R7 7700", "Ryzen R7 7700", Some(8)),
            ("EPYC9354", "EPYC 9354", Some(32)),
            ("AI Max 395", "AI Max 395", Some(16)),
            ("Core Ultra 7 258V", "Core Ultra 7 258V", Some(8)),
            ("Ryzen 7 5800X3D", "Ryzen 7 5800X3D", Some(8)),
            // Of both makers, and an i7 that no row is for.
            ("7700", "7700", None),
            ("7700K", "7700K", None),
            ("3090", "3090", None),
        ] {
            assert_eq!((full_name(name).as_str(), named(&full_name(name)).cores), (full, cores), "{name}");
        }
    }

    #[test]
    fn processors_that_are_one_with_their_graphics_have_its_instruction_set() {
        for (name, isa) in [
            ("M4 Max", Some(Isa::ArmNeon)),
            ("Apple M3 Ultra", Some(Isa::ArmNeon)),
            ("DGX Spark", Some(Isa::ArmNeon)),
            ("Strix Halo", Some(Isa::X86Avx512)),
            // A card is no processor.
            ("RTX 4090", None),
        ] {
            assert_eq!(named(name).isa, isa, "{name}");
        }
    }

    #[test]
    fn a_family_is_not_a_processor_of_it() {
        for (name, family) in [
            ("Ryzen 9999", Some("ryzen 9###*")),
            ("Ryzen 7950X", None),
            ("AMD Ryzen 5 5600X 6-Core Processor", None),
            ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", None),
            ("M4 Max", None),
        ] {
            assert_eq!(named(name).family, family, "{name}");
        }
        assert_eq!(
            ["ryzen 9###*", "ultra 2##*", "xeon w# 2###*"].map(shown),
            ["Ryzen 9xxx", "Ultra 2xx", "Xeon Wx 2xxx"]
        );
        let near = crate::suggest::near("ryzen5600", names());
        assert_eq!(near.first(), Some(&"ryzen 5600"));
    }
}
