//! llama-bench's own JSON as a section.

use super::speed::{Entry, Unit, figure};
use super::view::BenchRow;
use super::{Block, Section};
use crate::measurement::Spread;
use crate::number::rate;
use crate::report::table::{Align, Table};

/// The section of the rows of one file.
pub fn section(rows: &[BenchRow], source: &str) -> Section {
    let mut blocks = Vec::new();
    let charts = [
        ("Generation", rows.iter().filter(|row| row.n_prompt == 0).collect::<Vec<_>>()),
        ("Prompt", rows.iter().filter(|row| row.n_gen == 0).collect()),
        ("Prompt and generation together", rows.iter().filter(|row| row.n_prompt > 0 && row.n_gen > 0).collect()),
    ];
    for (title, rows) in charts {
        let entries: Vec<Entry> = rows.iter().map(|row| entry(row)).collect();
        blocks.extend(figure(title, Unit::TokensPerSecond, &entries).map(Block::Figure));
    }
    blocks.push(Block::Table("Tests".into(), table(rows)));
    let mut machine = Table::new(&[("", Align::Left), ("", Align::Left)]);
    if let Some(row) = rows.first() {
        let facts = [("processor", &row.cpu_info), ("devices", &row.gpu_info), ("file", &row.model_filename)];
        for (what, fact) in facts.into_iter().filter(|(_, fact)| !fact.is_empty()) {
            machine.row([what.to_string(), fact.clone()]);
        }
    }
    if !machine.is_empty() {
        blocks.push(Block::Table("Machine".into(), machine));
    }
    let heading = rows.first().map(|row| row.model_type.clone()).filter(|name| !name.is_empty());
    Section { heading: heading.unwrap_or_else(|| "llama-bench".into()), source: source.to_string(), blocks }
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

/// What tells this launch from the next.
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
    use Align::{Left, Right};
    let columns = [("model", Left), ("size", Right), ("backend", Left), ("build", Left), ("launch", Left)];
    let mut table = Table::new(&[&columns[..], &[("test", Left), ("tokens/s", Right)]].concat());
    for row in rows {
        table.row([
            if row.model_type.is_empty() { row.model_filename.clone() } else { row.model_type.clone() },
            row.model_size.to_string(),
            row.backends.clone(),
            format!("b{}", row.build_number),
            format!("{}, ngl {}, load mode {}", launch(row), row.n_gpu_layers, row.load_mode),
            test(row),
            format!("{} ± {}", rate(row.avg_ts), rate(row.stddev_ts)),
        ]);
    }
    table
}
