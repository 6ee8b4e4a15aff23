//! Cards and processors by name.

use super::{Block, Document, Page};
use crate::ask::known::Known;
use crate::machine::processors::shown;
use crate::report::table::{Table, row};

impl Document for Known {
    fn pages(&self) -> Vec<Page> {
        let mut page = Page::new("Known", "Cards and processors by name", "");
        if self.is_empty() {
            page.push(Block::Prose(
                "No card or processor of that name is known; without a word, all are listed.".to_string(),
            ));
        }
        let unknown = || "–".to_string();
        let rate = |rate: Option<f64>| rate.map_or_else(unknown, |rate| format!("{rate:.0} GB/s"));
        let cards = self.cards.iter().map(|card| {
            let sizes: Vec<String> = card.sold.iter().map(|gb| format!("{gb}G")).collect();
            let of = if card.integrated { "main memory: " } else { "" };
            let sizes = if sizes.is_empty() { unknown() } else { format!("{of}{}", sizes.join(", ")) };
            row![card.name, sizes, rate(card.bandwidth)]
        });
        page.push(Block::table("Cards, for --gpu", Table::rows_of("name|memory|>bandwidth", cards)));
        let legend = "Where the memory is –, give it: --gpu 'NAME 12GB'.";
        page.push(self.cards.iter().any(|card| card.sold.is_empty()).then(|| Block::Prose(legend.to_string())));
        let processors = self.processors.iter().map(|known| {
            row![shown(&known.name), known.cores.map_or_else(unknown, |cores| cores.to_string()), rate(known.memory)]
        });
        page.push(Block::table("Processors, for --cpu", Table::rows_of("name|>cores|>main memory", processors)));
        let legend =
            "x is any digit, and letters may follow. A row without cores is a family: give --cores N beside --cpu.";
        page.push((!self.processors.is_empty()).then(|| Block::Prose(legend.to_string())));
        vec![page]
    }
}
