//! Cards by name: their memory as llama.cpp sees it, and what their data sheets say. The facts are in `cards.tsv`.
//!
//! The first row whose words are all in a device's description counts; for speed, the first of those that has one. `-`: not known, or no
//! figure.
//!
//! - words: lower case, separated by spaces.
//! - generation: NVIDIA's, of others the maker.
//! - multiprocessors: data sheet.
//! - context: MiB that CUDA takes for a process that has done nothing yet: total less free as llama.cpp prints them on a system without
//!   a display (the least printed; the P104's is the 84 MiB that a load log shows; an H200's was measured).
//! - bandwidth: of its memory, data sheet, GB/s.
//! - products: TFLOP/s that llama.cpp gets out of quantized matrices with long rows at `-ub 512`; from published prompt speeds where the
//!   source names a model, else as cards of its generation by multiprocessors and clock (Ada's: by the RTX 4090; Pascal's: by the P40).
//! - link: GB/s of its slot in one direction, as sold (`PCIe` 3 x16 16, 4 x16 32, 5 x16 64); of memory that is the host's, GB/s of a copy
//!   in it.
//! - op: microseconds of one kernel, by generation and driver.
//! - source: of bandwidth and products, where it is not the maker's data sheet alone.
//!
//! Below a card, indented, is what llama.cpp saw of its memory, by the size that it is sold with and by operating system: sold (GB),
//! system, total and free (MiB), source. All are lines that llama.cpp printed, in public logs and reports, where nothing else is said.
//! What the idle system holds is total - free. It includes the context of the process that printed it, which makes a budget smaller, not
//! larger.
//!
//! - free `=`: no display is attached to cards of this kind, and nothing is held (NVML on an idle H100,
//!   `testdata/machines/h100-live.json`, and an idle H200).
//! - free `-`: not printed; taken as total less the most that was held on the same system, of a card of that size, else of the next
//!   larger size.

use std::sync::LazyLock;

use super::{Backend, Isa};
use crate::bytes::{Bytes, GIB};

const TABLE: &str = include_str!("cards.tsv");

/// A row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// All of them are words of its description, in lower case.
    pub words: &'static str,
    /// NVIDIA's name of its generation; of other cards, the maker.
    pub generation: &'static str,
    pub multiprocessors: Option<u64>,
    /// What CUDA takes for a process that has done nothing yet, where it was printed.
    pub context: Option<Bytes>,
    /// What its speed is derived from.
    pub figures: Option<Figures>,
    /// The sizes that it is sold with, by operating system.
    pub sold: Vec<Sold>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub bandwidth: f64,
    pub products: f64,
    /// Of its slot in one direction, GB/s.
    pub link: f64,
    pub op: f64,
}

/// A card's memory as llama.cpp saw it on one operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sold {
    pub gb: u32,
    /// `linux` or `windows`.
    pub system: &'static str,
    pub total: Bytes,
    /// What of it is free on an idle system; `None` = nobody printed it.
    pub free: Option<Bytes>,
}

impl Card {
    /// The backend that drives it best.
    pub fn backend(&self) -> Backend {
        match self.generation {
            "amd" => Backend::Rocm,
            "intel" => Backend::Vulkan,
            "apple" => Backend::Metal,
            _ => Backend::Cuda,
        }
    }

    /// Whether its memory is main memory.
    pub fn is_integrated(&self) -> bool {
        !self.computers().is_empty()
    }

    /// The GB of main memory that computers with it are sold with, where its memory is main memory; the least first.
    pub fn computers(&self) -> &'static [u32] {
        UNIFIED.iter().find(|(words, _)| *words == self.words).map_or(&[], |(_, sizes)| sizes)
    }

    /// The main memory of the one computer that there is with it.
    pub fn only_computer(&self) -> Option<Bytes> {
        let [gb] = self.computers() else { return None };
        Some(Bytes(u64::from(*gb) * GIB))
    }

    /// What llama.cpp sees of so much main memory unless the system is told otherwise, for a card whose memory that is.
    ///
    /// Apple: `recommendedMaxWorkingSetSize`, printed by llama.cpp as 10922.67 MiB of 16 GiB, 21845.34 of 32, 49152 of 64 and 73728
    /// of 96 (newer systems allow a little more). AMD: half, as Linux (`ttm_global_init`; 63,968 MiB of 128 GB in a kernel's log) and
    /// Windows do; Intel: half, as Windows does. GB10: 122,500 MiB of 128 GB.
    pub fn may_take(&self, ram: Bytes) -> Bytes {
        let (part, whole) = match self.generation {
            "apple" if ram.0 < 36 * GIB => (2, 3),
            "apple" => (3, 4),
            "amd" | "intel" => (1, 2),
            _ => (122_500, 128 << 10),
        };
        Bytes(u64::try_from(u128::from(ram.0) * part / whole).unwrap_or(ram.0))
    }

    /// Of the processor that is one with it, where its memory is main memory.
    pub fn isa(&self) -> Option<Isa> {
        let isa = match self.generation {
            "amd" => Isa::X86Avx512,
            "intel" => Isa::X86Avx2,
            _ => Isa::ArmNeon,
        };
        self.is_integrated().then_some(isa)
    }

    /// The words that people look for it by beside its own: maker, series, backend, and computers of that name.
    pub fn also_called(&self) -> impl Iterator<Item = &'static str> {
        let maker: &[&str] = match self.generation {
            "amd" => &["amd", "radeon", "rx", "rocm"],
            "intel" => &["intel"],
            "apple" => &["apple", "metal", "mac"],
            _ => &["nvidia", "geforce", "cuda"],
        };
        let computers = COMPUTERS.iter().filter(|(_, card)| *card == self.words).map(|(words, _)| *words);
        maker.iter().copied().chain([self.generation]).chain(computers)
    }

    pub fn is_nvidia(&self) -> bool {
        !matches!(self.generation, "amd" | "intel" | "apple")
    }

    /// Whether a backend of cards drives it.
    pub fn runs(&self, backend: Backend) -> bool {
        match backend {
            Backend::Cuda => self.is_nvidia(),
            Backend::Rocm => self.generation == "amd",
            Backend::Sycl => self.generation == "intel",
            Backend::Vulkan => self.generation != "apple",
            _ => false,
        }
    }
}

impl Sold {
    /// What an idle system leaves of it. Where that was not printed: less the most that was held, on the same operating system, of a card
    /// of this size, else of the next larger size, else of any.
    pub fn offers(&self) -> Bytes {
        let same_system = || CARDS.iter().flat_map(|card| &card.sold).filter(|other| other.system == self.system);
        let printed = || same_system().filter_map(|other| Some((other.gb, other.total.0 - other.free?.0)));
        let size = || printed().map(|(gb, _)| gb).filter(|gb| *gb >= self.gb).min();
        let held = || printed().filter(|(gb, _)| size().is_none_or(|size| *gb == size)).map(|(_, held)| held).max();
        self.free.or_else(|| Some(Bytes(self.total.0 - held()?))).unwrap_or(self.total)
    }
}

/// Rows without memory of their own, and the GB that computers with them are sold with (data sheets; of modules, the usual ones).
const UNIFIED: [(&str, &[u32]); 26] = [
    ("gb10", &[128]),
    ("8060s", &[32, 64, 96, 128]),
    ("8050s", &[32, 64, 96, 128]),
    ("890m", &[16, 24, 32, 48, 64, 96, 128]),
    ("780m", &[8, 16, 24, 32, 48, 64, 96, 128]),
    ("m1 ultra", &[64, 128]),
    ("m2 ultra", &[64, 128, 192]),
    ("m3 ultra", &[96, 256, 512]),
    ("m1 max", &[32, 64]),
    ("m2 max", &[32, 64, 96]),
    ("m3 max", &[36, 48, 64, 96, 128]),
    ("m4 max", &[36, 48, 64, 128]),
    ("m5 max", &[36, 48, 64, 128]),
    ("m1 pro", &[16, 32]),
    ("m2 pro", &[16, 32]),
    ("m3 pro", &[18, 36]),
    ("m4 pro", &[24, 48, 64]),
    ("m5 pro", &[24, 48, 64]),
    ("m1", &[8, 16]),
    ("m2", &[8, 16, 24]),
    ("m3", &[8, 16, 24]),
    ("m4", &[16, 24, 32]),
    ("m5", &[16, 24, 32]),
    ("880m", &[16, 24, 32, 48, 64, 96, 128]),
    ("arc 140v", &[16, 32]),
    ("arc 130v", &[16, 32]),
];

/// Computers and chips that people and drivers name instead of their graphics, in words of the name.
const COMPUTERS: [(&str, &str); 11] = [
    ("strix halo", "8060s"),
    ("ai max 395", "8060s"),
    ("ai max 390", "8050s"),
    ("ai max 385", "8050s"),
    ("lunar lake", "arc 140v"),
    ("dgx spark", "gb10"),
    ("strix point", "890m"),
    // As ROCm and older Mesa call them: `AMD Radeon Graphics (RADV GFX1151)`.
    ("gfx1151", "8060s"),
    ("gfx1150", "890m"),
    ("gfx1103", "780m"),
    ("phoenix", "780m"),
];

/// The cards in the table's order, read once.
pub static CARDS: LazyLock<Vec<Card>> = LazyLock::new(|| {
    let mut cards: Vec<Card> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#') && !line.starts_with("words\t")) {
        match (line.strip_prefix('\t'), cards.last_mut()) {
            (Some(memory), Some(card)) => card.sold.extend(sold(memory)),
            _ => cards.extend(card(line)),
        }
    }
    cards
});

/// A line of a card.
fn card(line: &'static str) -> Option<Card> {
    let mut cells = line.split('\t');
    let (words, generation) = (cells.next()?, cells.next()?);
    let (multiprocessors, context) = (cells.next()?.parse().ok(), cells.next()?.parse().ok().map(Bytes::mib));
    let mut number = || cells.next()?.parse::<f64>().ok();
    let figures = (|| Some(Figures { bandwidth: number()?, products: number()?, link: number()?, op: number()? }))();
    Some(Card { words, generation, multiprocessors, context, figures, sold: Vec::new() })
}

/// A line of a card's memory.
fn sold(line: &'static str) -> Option<Sold> {
    let mut cells = line.split('\t');
    let (gb, system, total) = (cells.next()?.parse().ok()?, cells.next()?, Bytes::mib(cells.next()?.parse().ok()?));
    let free = match cells.next()? {
        "=" => Some(total),
        mib => mib.parse().ok().map(Bytes::mib),
    };
    Some(Sold { gb, system, total, free })
}

/// The rows that a description names, in the table's order; then those of the computer that it names.
pub fn named(description: &str) -> impl Iterator<Item = &'static Card> + use<> {
    let words: Vec<String> = tokens(description).collect();
    let has = |named: &str| named.split(' ').all(|word| words.iter().any(|other| other == word));
    let of_computers: Vec<&str> = COMPUTERS.iter().filter(|(named, _)| has(named)).map(|(_, card)| *card).collect();
    let own: Vec<&Card> = CARDS.iter().filter(|card| has(card.words)).collect();
    own.into_iter().chain(of_computers.into_iter().filter_map(|words| CARDS.iter().find(|card| card.words == words)))
}

/// The row of a card that a person names, with or without the series: `RTX 4090`, `4090`; or by its computer: `Strix Halo`.
pub fn by_name(name: &str) -> Option<&'static Card> {
    ["", "rtx ", "gtx "]
        .into_iter()
        .flat_map(|series| named(&format!("{series}{name}")))
        .next()
        .or_else(|| run_together(name))
}

/// The row that a name without spaces names: `RTX3090`, `4070ti`, `RX7900XTX`.
fn run_together(name: &str) -> Option<&'static Card> {
    let words: Vec<String> = tokens(name).collect();
    let is_of = |card: &&Card| {
        let own = words.iter().filter(|word| !card.also_called().any(|other| other == *word));
        let compact = own.map(String::as_str).collect::<String>();
        let compact = compact.strip_prefix("rx").unwrap_or(&compact);
        let expected = card.words.replace(' ', "");
        expected == compact || ["rtx", "gtx"].iter().any(|series| expected.strip_prefix(series) == Some(compact))
    };
    CARDS.iter().find(is_of)
}

/// A name without the size in it, and that size in GB: `RTX 3080 12GB`, `A100-SXM4-80GB`, `M4 Max 128 GB`.
pub fn without_size(name: &str) -> (String, Option<u32>) {
    let mut size = None;
    let mut words: Vec<&str> = Vec::new();
    for word in name.split(|c: char| !c.is_ascii_alphanumeric() && c != '+' && c != '.') {
        let unit = word.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_unit = ["g", "gb", "gib"].iter().any(|known| unit.eq_ignore_ascii_case(known));
        let digits = word.strip_suffix(unit).filter(|digits| !digits.is_empty());
        let number = if is_unit { digits.or_else(|| words.last().copied().filter(|_| unit == word)) } else { None };
        match number.and_then(|number| number.parse().ok()) {
            Some(gb) => {
                if digits.is_none() {
                    words.pop();
                }
                size = Some(gb);
            }
            None => words.push(word),
        }
    }
    (size.map_or_else(|| name.to_string(), |_| words.join(" ")), size)
}

/// Another card that a name has beside its own, or its own a second time: `RTX 3090 RTX 3060`.
pub fn other_in(name: &str, card: &'static Card) -> Option<&'static Card> {
    let has_digit = |word: &String| word.contains(|c: char| c.is_ascii_digit());
    let words: Vec<String> = tokens(name).filter(has_digit).collect();
    let is_again = |word: &String| words.iter().filter(|other| *other == word).count() > 1;
    let names = |word: &String| by_name(word).filter(|other| !word.starts_with("gfx") && other.words != card.words);
    // `4070ti super`: some of its words may be run together.
    let together = card.words.replace(' ', "");
    let is_own = |word: &String| {
        let mut called = card.also_called().flat_map(|name| name.split(' '));
        together.contains(word.as_str()) || called.any(|own| own == word)
    };
    if words.iter().any(is_again) {
        return Some(card);
    }
    words.iter().filter(|word| !is_own(word)).find_map(names)
}

/// Whether Intel calls graphics so that have no memory of their own.
pub fn is_intel_integrated(name: &str) -> bool {
    let words: Vec<String> = tokens(name).collect();
    let has = |word: &str| words.iter().any(|other| other == word);
    // Cards of their own are A770, B580, Pro B60.
    let is_card = |word: &String| word.starts_with(['a', 'b']) && word.ends_with(|c: char| c.is_ascii_digit());
    let is_arc = has("arc") && !words.iter().any(is_card);
    is_arc || has("iris") || has("uhd") || has("lake") || has("ultra") && has("core")
}

/// Whether a computer of Apple is named, without its chip.
pub fn is_mac(name: &str) -> bool {
    tokens(name).any(|word| matches!(word.as_str(), "mac" | "macbook" | "macmini" | "imac" | "apple"))
}

/// `4x RTX 3090`, `4 × RTX 3090` and `RTX 3090 x4` as a count and the rest; `None` where no count is said.
pub fn counted(text: &str) -> Option<(usize, &str)> {
    let is_times = |c: char| matches!(c, 'x' | 'X' | '×' | '*');
    let count = |digits: &str| digits.parse().ok().filter(|_| digits.len() <= 2);
    let text = text.trim();
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let of = rest.trim_start();
    let name = of.strip_prefix(is_times).or_else(|| Some(of).filter(|of| of.len() < rest.len()));
    let first = || Some((count(text.strip_suffix(rest)?)?, name?.trim_start()));
    let last = || {
        let before = text.trim_end_matches(|c: char| c.is_ascii_digit());
        let name = before.trim_end().strip_suffix(is_times)?;
        // `3090x2`; a name like `MI250X` has no number behind it.
        let is_word = name.ends_with(|c: char| c.is_whitespace() || c.is_ascii_digit());
        Some((count(text.strip_prefix(before)?)?, name.trim_end())).filter(|_| is_word)
    };
    first().or_else(last).filter(|(_, name)| !name.is_empty())
}

/// The words of a name, in lower case.
fn tokens(name: &str) -> impl Iterator<Item = String> {
    let lower = name.to_ascii_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_string);
    words.collect::<Vec<_>>().into_iter()
}

/// What cards sold with one size offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The least that an idle system leaves of one of them.
    pub least: Bytes,
    /// The total of the one that offers most.
    pub example: Bytes,
}

/// What the cards sold as `gb` GB offer to a backend; `None` where no row has that size.
pub fn sold_as(gb: u32, backend: Backend) -> Option<Offer> {
    let cards = CARDS.iter().filter(|card| card.runs(backend)).flat_map(|card| &card.sold);
    let of_size = || cards.clone().filter(|sold| sold.gb == gb);
    let least = of_size().map(Sold::offers).min()?;
    let example = of_size().max_by_key(|sold| sold.offers())?.total;
    Some(Offer { least, example })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_reads_and_every_row_can_be_reached() {
        let lines: Vec<&str> = TABLE.lines().filter(|line| !line.starts_with('#')).skip(1).collect();
        let (memory, cards): (Vec<&str>, Vec<&str>) = lines.iter().partition(|line| line.starts_with('\t'));
        assert_eq!(CARDS.len(), cards.len());
        assert_eq!(CARDS.iter().map(|card| card.sold.len()).sum::<usize>(), memory.len());
        for line in &lines {
            let cells = line.split('\t').count();
            assert!(if line.starts_with('\t') { cells == 6 } else { matches!(cells, 8 | 9) }, "{line}");
        }
        for card in CARDS.iter() {
            assert_eq!(named(card.words).next().unwrap().words, card.words, "an earlier row hides it");
            assert_eq!(card.is_nvidia(), card.multiprocessors.is_some(), "{}", card.words);
            assert!(card.context.is_none() || card.is_nvidia(), "{}", card.words);
            for sold in &card.sold {
                assert!(matches!(sold.system, "linux" | "windows"), "{}", card.words);
                let nominal = Bytes(u64::from(sold.gb) << 30);
                assert!(sold.offers() <= sold.total && sold.total <= nominal, "{}: {sold:?}", card.words);
                assert!(sold.offers().0 * 100 >= nominal.0 * 81, "{}: {sold:?}", card.words);
            }
        }
    }

    #[test]
    fn computers_are_known_by_their_names_and_have_no_memory_of_their_own() {
        for (name, words) in [
            ("Strix Halo", "8060s"),
            ("Ryzen AI Max+ 395", "8060s"),
            ("DGX Spark", "gb10"),
            ("Radeon 8060S", "8060s"),
            ("M3 Ultra", "m3 ultra"),
        ] {
            let card = by_name(name).unwrap();
            assert_eq!((card.words, card.is_integrated()), (words, true), "{name}");
            let error = crate::machine::Error::NoMemory(name.into());
            assert!(crate::suggest::Hint::hint(&error).is_some_and(|hint| hint.contains("main memory")), "{name}");
        }
        assert!(!by_name("RTX 4090").unwrap().is_integrated());
        for (words, sizes) in UNIFIED {
            assert!(CARDS.iter().any(|card| card.words == words) && sizes.is_sorted() && !sizes.is_empty(), "{words}");
        }
        assert!(
            CARDS.iter().all(|card| card.generation != "apple" || card.is_integrated()),
            "an Apple row lacks sizes"
        );
        // What drivers call graphics whose name they do not know.
        for (name, words) in
            [("AMD Radeon Graphics (RADV GFX1151)", "8060s"), ("AMD Radeon 880M Graphics (RADV STRIX1)", "880m")]
        {
            assert_eq!(named(name).next().map(|card| card.words), Some(words), "{name}");
        }
        assert!(named("AMD Radeon Graphics (RADV RAPHAEL_MENDOCINO)").next().is_none());
    }

    #[test]
    fn systems_let_graphics_take_a_part_of_main_memory() {
        // Lines of llama.cpp and of Linux, in MiB: see `may_take`.
        for (name, gib, mib) in [
            ("M1 Pro", 16, 10_922),
            ("M2 Max", 32, 21_845),
            ("M3 Pro", 36, 27 << 10),
            ("M1 Max", 64, 49_152),
            ("M2 Max", 96, 73_728),
            ("8060S", 128, 64 << 10),
            ("GB10", 128, 122_500),
        ] {
            assert_eq!(by_name(name).unwrap().may_take(Bytes::mib(gib << 10)).0 >> 20, mib, "{name} of {gib} GiB");
        }
    }

    #[test]
    fn a_count_is_before_a_name_or_behind_it() {
        for (text, expected) in [
            ("4x RTX 3090", Some((4, "RTX 3090"))),
            ("4×RTX 3090", Some((4, "RTX 3090"))),
            ("4 X 3090", Some((4, "3090"))),
            ("2 RTX 3090", Some((2, "RTX 3090"))),
            ("RTX 3090 x4", Some((4, "RTX 3090"))),
            ("RTX 3090 × 2", Some((2, "RTX 3090"))),
            ("3090x2", Some((2, "3090"))),
            ("RTX 4090*2", Some((2, "RTX 4090"))),
            ("0x RTX 3090", Some((0, "RTX 3090"))),
            ("RTX 3090", None),
            ("3060 laptop", None),
            ("7900 XTX", None),
            ("MI250X", None),
            ("4", None),
            ("4x", None),
        ] {
            assert_eq!(counted(text), expected, "{text}");
        }
    }

    #[test]
    fn a_size_is_the_least_that_its_cards_offer() {
        let offer = |gb, backend| sold_as(gb, backend).map(|offer| (offer.least.0 >> 20, offer.example.0 >> 20));
        // An A10 has 22,731 MiB and no display; a 3090 on Linux offers 23,863.
        assert_eq!(offer(24, Backend::Cuda), Some((22_731, 24_126)));
        assert_eq!(offer(24, Backend::Rocm), Some((23_749, 24_560)));
        assert_eq!(offer(24, Backend::Vulkan), Some((22_731, 24_560)));
        assert_eq!(offer(97, Backend::Cuda), Some((97_871, 97_871)));
        assert_eq!(offer(32, Backend::Cuda), Some((30_991, 32_494)));
        for (gb, backend) in [(23, Backend::Cuda), (24, Backend::Metal), (24, Backend::Rpc), (24, Backend::Cpu)] {
            assert_eq!(offer(gb, backend), None, "{gb} {backend:?}");
        }
        // Of 8 GB under Windows at most 1,131 MiB were held (an RTX 5060), and of 6 GB nobody printed it.
        assert_eq!(offer(6, Backend::Cuda), Some((6143 - 1131, 6063)));
    }
}
