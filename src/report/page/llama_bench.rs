//! llama-bench's own JSON.

use super::speed::{Entry, Unit::Rate, chart};
use super::{Block, Document, Page};
use crate::number::rate;
use crate::report::table::{Table, row};
use crate::speed::samples::BenchRow;
use crate::stats::Spread;

impl Document for Vec<BenchRow> {
    fn pages(&self) -> Vec<Page> {
        let title = self.first().map(|row| row.model_type.as_str()).filter(|name| !name.is_empty());
        let build = self.first().map_or(String::new(), |row| format!("b{}", row.build_number));
        let mut page = Page::new("llama-bench", title.unwrap_or("llama-bench"), build);
        let of = |kept: fn(&&BenchRow) -> bool| self.iter().filter(kept).map(entry).collect::<Vec<_>>();
        let charts = [
            ("Generation", of(|row| row.n_prompt == 0)),
            ("Prompt", of(|row| row.n_gen == 0)),
            ("Prompt and generation together", of(|row| row.n_prompt > 0 && row.n_gen > 0)),
        ];
        for (title, entries) in charts {
            page.detail(chart(title, Rate, entries));
        }
        page.push(Block::table("Tests", table(self)));
        let facts = self.first().map(|row| {
            [("processor", &row.cpu_info), ("devices", &row.gpu_info), ("file", &row.model_filename)]
                .map(|(what, fact)| (what, Some(fact.clone())))
        });
        page.detail(Block::table("Machine", Table::facts(facts.into_iter().flatten())));
        vec![page]
    }
}

/// `tg128 @ d4096`, as llama-bench names its tests.
fn test(row: &BenchRow) -> String {
    let name = match (row.n_prompt, row.n_gen) {
        (prompt, 0) => format!("pp{prompt}"),
        (0, generate) => format!("tg{generate}"),
        (prompt, generate) => format!("pp{prompt}+tg{generate}"),
    };
    if row.n_depth > 0 { format!("{name} @ d{}", row.n_depth) } else { name }
}

fn launch(row: &BenchRow) -> String {
    let mut parts = vec![format!("ub {}", row.n_ubatch), format!("{} threads", row.n_threads)];
    if row.n_cpu_moe > 0 {
        parts.push(format!("ncmoe {}", row.n_cpu_moe));
    }
    if !matches!(row.tensor_buft_overrides.as_str(), "" | "none") {
        parts.push(format!("-ot {}", row.tensor_buft_overrides));
    }
    parts.join(", ")
}

fn entry(row: &BenchRow) -> Entry {
    let n = u32::try_from(row.samples_ts.len().max(1)).unwrap_or(u32::MAX);
    let spread = Spread { mean: row.avg_ts, stddev: row.stddev_ts, n };
    Entry::measured(format!("{}, {}", test(row), launch(row)), Some(spread), row.samples_ts.clone())
}

fn table(rows: &[BenchRow]) -> Table {
    let rows = rows.iter().map(|of| {
        row![
            if of.model_type.is_empty() { &of.model_filename } else { &of.model_type },
            of.model_size,
            of.backends,
            format!("b{}", of.build_number),
            format!("{}, ngl {}, load mode {}", launch(of), of.n_gpu_layers, of.load_mode),
            test(of),
            format!("{} ± {}", rate(of.avg_ts), rate(of.stddev_ts)),
        ]
    });
    Table::rows_of("model|>size|backend|build|launch|test|>tokens/s", rows)
}
