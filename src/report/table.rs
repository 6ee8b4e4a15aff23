//! One table, aligned for a terminal or as Markdown, with bars for shares; every cell's text is escaped here.

#[cfg(feature = "cli")]
use comfy_table::{CellAlignment, ContentArrangement, presets};
#[cfg(feature = "cli")]
use console::measure_text_width;

use crate::escape;

/// The cells of a row, each as it is shown.
macro_rules! row {
    ($($cell:expr),* $(,)?) => { [$($crate::report::table::cell(&$cell)),*] };
}
pub(crate) use row;

pub fn cell(shown: &(impl ToString + ?Sized)) -> String {
    shown.to_string()
}

#[derive(Debug, Clone)]
pub struct Table {
    /// Names, and whether a column leans right.
    pub columns: Vec<(String, bool)>,
    /// A cell for each column; the text is as it was given, nothing escaped.
    pub rows: Vec<Vec<String>>,
    /// The share of a whole that each row has, shown as a bar at the end of its line.
    shares: Vec<Option<f64>>,
}

/// Columns of a terminal that a bar takes, at most and at least.
const BAR: usize = 24;
const LEAST: usize = 5;

impl Table {
    /// A table without rows whose columns are named `tensor|>bytes`: `>` stands before one that leans right. Columns that are all
    /// unnamed get no heading line in text.
    pub fn of(columns: &str) -> Self {
        let column = |name: &str| (name.trim_start_matches('>').to_string(), name.starts_with('>'));
        Self { columns: columns.split('|').map(column).collect(), rows: Vec::new(), shares: Vec::new() }
    }

    /// Adds a row, one cell a column; the text may be untrusted.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
        self.shares.push(None);
    }

    /// Adds a row with a bar for `share` (0 to 1), where there is one.
    pub fn row_with_bar<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>, share: impl Into<Option<f64>>) {
        self.row(cells);
        self.shares.pop();
        self.shares.push(share.into());
    }

    pub fn rows_of<R: IntoIterator<Item: Into<String>>>(columns: &str, rows: impl IntoIterator<Item = R>) -> Self {
        let mut table = Self::of(columns);
        rows.into_iter().for_each(|row| table.row(row));
        table
    }

    /// Facts by their names, without a heading line; those that are not known, or empty, have no row.
    pub fn facts<N: Into<String>>(facts: impl IntoIterator<Item = (N, Option<String>)>) -> Self {
        let known = facts.into_iter().filter_map(|(name, fact)| Some([name.into(), fact?]));
        Self::rows_of("|", known.filter(|[_, fact]| !fact.is_empty()))
    }

    /// For a terminal of so many columns: aligned, two spaces between columns, no trailing spaces. Bars take the room that is left.
    #[cfg(feature = "cli")]
    pub fn text(&self, width: usize) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if self.columns.iter().any(|(name, _)| !name.is_empty()) {
            table.set_header(self.columns.iter().map(|(name, _)| escape::terminal(name).into_owned()));
        }
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| escape::terminal(cell).into_owned()));
        }
        for (column, (_, is_right)) in table.column_iter_mut().zip(&self.columns) {
            let side = if *is_right { CellAlignment::Right } else { CellAlignment::Left };
            column.set_padding((0, 2)).set_cell_alignment(side);
        }
        let mut lines: Vec<String> = table.lines().collect();
        let taken = lines.iter().map(|line| measure_text_width(line)).max().unwrap_or(0);
        // A bar of a few columns says nothing.
        let room = Some(width.saturating_sub(taken)).filter(|room| *room >= LEAST);
        for (line, share) in lines.iter_mut().rev().zip(self.shares.iter().rev()) {
            *line += &share.zip(room).map(|(share, room)| bar(share, room.min(BAR))).unwrap_or_default();
        }
        lines.iter().map(|line| [line.trim_end(), "\n"].concat()).collect()
    }

    /// The same without its last columns, as many as make it wider than `width`.
    #[cfg(feature = "cli")]
    pub fn fitted(&self, width: usize) -> String {
        let mut table = self.clone();
        loop {
            let text = table.text(width);
            if table.columns.len() < 2 || text.lines().all(|line| measure_text_width(line) <= width) {
                return text;
            }
            table.columns.pop();
            table.rows.iter_mut().for_each(|row| drop(row.pop()));
        }
    }

    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let has_bars = self.shares.iter().any(Option::is_some);
        let with = |cells: &mut dyn Iterator<Item = String>, last: String| {
            line(cells.chain(has_bars.then_some(last)).collect())
        };
        let mut out = with(&mut self.columns.iter().map(|(name, _)| escape::markdown(name)), String::new());
        let mut sides = self.columns.iter().map(|(_, is_right)| if *is_right { "---:" } else { ":---" }.to_string());
        out += &with(&mut sides, ":---".into());
        for (row, share) in self.rows.iter().zip(&self.shares) {
            let bar = share.map(|share| bar(share, BAR)).unwrap_or_default();
            out += &with(&mut row.iter().map(|cell| escape::markdown(cell)), bar);
        }
        out
    }
}

/// A bar of `width` columns filled to `share` (0 to 1) by eighths; anything above nothing shows at least an eighth of a column.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "clamped above"
)]
pub fn bar(share: f64, width: usize) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * (width * 8) as f64).round() as usize;
    let eighths = if share > 0.0 { eighths.max(1) } else { 0 };
    let last = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'].into_iter().take(eighths % 8).next_back();
    std::iter::repeat_n('█', eighths / 8).chain(last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_aligned_by_display_width_and_escaped_and_bars_shrink_with_the_terminal() {
        let mut table = Table::of("name|>size");
        table.row_with_bar(["漢字", "1.00 MiB"], 0.5);
        table.row(["a|\u{1b}[31mb", "1024.00 MiB"]);
        let lines = |width| table.text(width).lines().map(str::to_string).collect::<Vec<_>>();
        let (head, last) = ("name                  size", "a|\\u{1b}[31mb  1024.00 MiB");
        assert_eq!(lines(80), [head, "漢字              1.00 MiB  ████████████", last]);
        assert_eq!(lines(36), [head, "漢字              1.00 MiB  ████", last]);
        assert_eq!(lines(32), [head, "漢字              1.00 MiB", last]);
        let page = table.markdown();
        assert_eq!(page.lines().nth(1), Some("| :--- | ---: | :--- |"));
        assert!(page.lines().all(|line| line.replace("\\|", "").matches('|').count() == 4), "{page}");
        assert!(!page.contains('\u{1b}') && page.ends_with("|\n"));
    }

    #[test]
    fn bars_fill_by_eighths() {
        for (share, text) in
            [(0.0, ""), (1e-9, "▏"), (0.5, "██"), (0.53, "██▏"), (1.0, "████"), (7.0, "████"), (f64::NAN, "")]
        {
            assert_eq!(bar(share, 4), text, "{share}");
        }
    }
}
