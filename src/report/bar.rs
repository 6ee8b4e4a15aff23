//! A share of a whole as a bar of eighth blocks.

/// Glyphs of a bar, the fullest first.
const GLYPHS: [char; 8] = ['█', '▉', '▊', '▋', '▌', '▍', '▎', '▏'];

/// A bar of `width` columns filled to `share` (0 to 1); anything above nothing shows at least an eighth of a column.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "clamped above"
)]
pub fn bar(share: f64, width: usize) -> String {
    let full = width * 8;
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * full as f64).round() as usize;
    let eighths = if share > 0.0 { eighths.max(1) } else { 0 };
    let last = GLYPHS.iter().rev().take(eighths % 8).next_back();
    std::iter::repeat_n(&GLYPHS[0], eighths / 8).chain(last).collect()
}

/// A bar of fewer columns says nothing.
const LEAST: usize = 5;

/// `text` with the bars that end its lines made smaller alike, or left out, so that they make no line wider than `columns`.
/// `width` tells the columns of a line without its bar.
#[expect(clippy::cast_precision_loss, reason = "columns of a terminal")]
pub fn fitted(text: &str, columns: usize, width: impl Fn(&str) -> usize) -> String {
    let parts = |line: &str| {
        let words = line.trim_end_matches(GLYPHS);
        (words.to_string(), line.chars().count() - words.chars().count())
    };
    let with_bars = || text.lines().map(parts).filter(|(_, bar)| *bar > 0);
    let room = with_bars().map(|(words, _)| columns.saturating_sub(width(&words))).min().unwrap_or(columns);
    let longest = with_bars().map(|(_, bar)| bar).max().unwrap_or(0);
    if longest <= room {
        return text.to_string();
    }
    let fit = |line: &str| match parts(line) {
        (words, 0) => format!("{words}\n"),
        (words, _) if room < LEAST => format!("{}\n", words.trim_end()),
        (words, _) => format!("{words}{}\n", bar(length(line) / longest as f64, room)),
    };
    text.lines().map(fit).collect()
}

/// The columns that the bar at the end of a line fills, with the share of its last one.
#[expect(clippy::cast_precision_loss, reason = "eighths of a terminal's columns")]
fn length(line: &str) -> f64 {
    let glyphs = line.chars().rev().map_while(|glyph| GLYPHS.iter().position(|known| *known == glyph));
    glyphs.map(|at| 8 - at).sum::<usize>() as f64 / 8.0
}

#[cfg(test)]
mod tests {
    use super::{bar, fitted};

    #[test]
    fn bars_shrink_with_the_terminal_and_keep_their_shares() {
        let text = "one  1 GiB  ████████\ntwo         ████\nno bar, and a line that is longer than all\n";
        let width = |line: &str| line.chars().count();
        assert_eq!(fitted(text, 80, width), text);
        let narrow = "one  1 GiB  ██████\ntwo         ███\nno bar, and a line that is longer than all\n";
        assert_eq!(fitted(text, 18, width), narrow);
        assert_eq!(fitted(text, 14, width), "one  1 GiB\ntwo\nno bar, and a line that is longer than all\n");
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
