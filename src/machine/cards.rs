//! Cards by name: their memory as llama.cpp sees it, and what their data sheets say. The facts are in `cards.tsv`.

use std::sync::LazyLock;

use super::Backend;
use crate::bytes::Bytes;

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
        self.generation == "apple" || INTEGRATED.contains(&self.words)
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

/// Rows without memory of their own (Apple's have none either).
const INTEGRATED: [&str; 5] = ["gb10", "8060s", "8050s", "890m", "780m"];

/// Computers that people name instead of their graphics, in words of the name.
const COMPUTERS: [(&str, &str); 3] = [("strix halo", "8060s"), ("ryzen ai max 395", "8060s"), ("dgx spark", "gb10")];

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

/// The rows that a description names, in the table's order.
pub fn named(description: &str) -> impl Iterator<Item = &'static Card> + use<> {
    let words: Vec<String> = tokens(description).collect();
    CARDS.iter().filter(move |card| card.words.split(' ').all(|word| words.iter().any(|other| other == word)))
}

/// The row of a card that a person names, with or without the series: `RTX 4090`, `4090`; or by its computer: `Strix Halo`.
pub fn by_name(name: &str) -> Option<&'static Card> {
    let series = ["", "rtx ", "gtx "].into_iter();
    let has = |words: &str| words.split(' ').all(|word| tokens(name).any(|other| other == word));
    let of_computer = || COMPUTERS.iter().find(|(words, _)| has(words)).and_then(|(_, card)| named(card).next());
    series.flat_map(|series| named(&format!("{series}{name}"))).next().or_else(of_computer)
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
        assert!(INTEGRATED.iter().all(|words| named(words).next().is_some_and(|card| card.words == *words)));
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
