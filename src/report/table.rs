//! One table, aligned for a terminal or as Markdown; every cell's text is escaped here.

use comfy_table::presets;
use comfy_table::{CellAlignment, ContentArrangement};

use super::bar::bar;
use crate::escape;

/// Which side a column leans on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows of text under named columns.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
    /// A share of a whole for each row that has one, shown as a bar at the end of its line.
    shares: Vec<Option<f64>>,
}

const BAR: usize = 24;

impl Table {
    /// A table without rows. Columns that are all unnamed get no heading line in text.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            columns: columns.iter().map(|(name, align)| ((*name).to_string(), *align)).collect(),
            rows: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// A table without rows whose columns are named `tensor|>bytes`: `>` stands before one that leans right.
    pub fn of(columns: &str) -> Self {
        let column = |name: &str| match name.strip_prefix('>') {
            Some(name) => (name.to_string(), Align::Right),
            None => (name.to_string(), Align::Left),
        };
        Self { columns: columns.split('|').map(column).collect(), rows: Vec::new(), shares: Vec::new() }
    }

    /// Adds a row, one cell a column; the text may be untrusted.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) -> &mut Self {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
        self.shares.push(None);
        self
    }

    /// Adds a row with a bar for `share` (0 to 1).
    pub fn row_with_bar<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>, share: f64) -> &mut Self {
        self.row(cells);
        if let Some(last) = self.shares.last_mut() {
            *last = Some(share);
        }
        self
    }

    /// A table of [`Table::of`] with its rows.
    pub fn rows_of<R: IntoIterator<Item: Into<String>>>(columns: &str, rows: impl IntoIterator<Item = R>) -> Self {
        let mut table = Self::of(columns);
        for row in rows {
            table.row(row);
        }
        table
    }

    /// Facts by their names, without a heading line; those that are not known have no row.
    pub fn facts<N: Into<String>>(facts: impl IntoIterator<Item = (N, Option<String>)>) -> Self {
        let known = facts.into_iter().filter_map(|(name, fact)| Some([name.into(), fact?]));
        Self::rows_of("|", known)
    }

    /// The column of bars, where any row has one.
    fn bars(&self) -> Option<impl Iterator<Item = String> + '_> {
        let has_bars = self.shares.iter().any(Option::is_some);
        has_bars.then(|| self.shares.iter().map(|share| share.map_or(String::new(), |share| bar(share, BAR))))
    }

    /// Names of the columns and the side each leans on.
    pub fn columns(&self) -> &[(String, Align)] {
        &self.columns
    }

    /// The rows, a cell for each column; the text is as it was given, nothing escaped.
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For a terminal: aligned, two spaces between columns, no trailing spaces, a line feed after each row.
    pub fn text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if self.columns.iter().any(|(name, _)| !name.is_empty()) {
            table.set_header(self.columns.iter().map(|(name, _)| name));
        }
        let mut bars = self.bars();
        for row in &self.rows {
            let bar = bars.as_mut().and_then(Iterator::next);
            table.add_row(row.iter().map(|cell| escape::terminal(cell).into_owned()).chain(bar));
        }
        let sides = self.columns.iter().map(|(_, align)| *align).chain([Align::Left]);
        for (column, align) in table.column_iter_mut().zip(sides) {
            column.set_padding((0, 2)).set_cell_alignment(match align {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_string()).collect();
        lines.join("\n") + "\n"
    }

    /// The same without its last columns, as many as make it wider than `width`.
    pub fn fitted(&self, width: usize) -> String {
        let mut table = self.clone();
        loop {
            let text = table.text();
            if table.columns.len() < 2 || text.lines().all(|line| console::measure_text_width(line) <= width) {
                return text;
            }
            table.columns.pop();
            table.rows.iter_mut().for_each(|row| drop(row.pop()));
        }
    }

    pub fn markdown(&self) -> String {
        let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        let mut bars = self.bars();
        let extra = |cell: &str| bars.is_some().then(|| cell.to_string());
        let (unnamed, left) = (extra(""), extra(":---"));
        let mut out = line(&mut self.columns.iter().map(|(name, _)| escape::markdown(name)).chain(unnamed));
        let sides = self.columns.iter().map(|(_, align)| match align {
            Align::Left => ":---".to_string(),
            Align::Right => "---:".to_string(),
        });
        out += &line(&mut sides.chain(left));
        for row in &self.rows {
            let bar = bars.as_mut().and_then(Iterator::next);
            out += &line(&mut row.iter().map(|cell| escape::markdown(cell)).chain(bar));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&[("name", Align::Left), ("size", Align::Right), ("", Align::Left)]);
        table.row(["漢字", "1.00 MiB", "██"]).row(["a|\u{1b}[31mb", "1024.00 MiB", ""]);
        table
    }

    #[test]
    fn text_is_aligned_by_display_width_and_escaped() {
        let lines: Vec<String> = sample().text().lines().map(str::to_string).collect();
        assert_eq!(
            lines,
            ["name                  size", "漢字              1.00 MiB  ██", "a|\\u{1b}[31mb  1024.00 MiB"]
        );
    }

    #[test]
    fn markdown_keeps_its_cells() {
        let page = sample().markdown();
        assert_eq!(page.lines().nth(1), Some("| :--- | ---: | :--- |"));
        assert!(page.lines().all(|line| line.replace("\\|", "").matches('|').count() == 4), "{page}");
        assert!(!page.contains('\u{1b}') && page.ends_with("|\n"));
    }
}
