//! The panel of a server that runs: memory beside the plan, speeds, requests. From what is known to lines that fit a width.

use std::collections::BTreeMap;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::bar::bar;
use super::table::Table;
use crate::bytes::Bytes;
use crate::escape;
use crate::machine::Machine;
use crate::memory::{HOST, MemoryByDevice};
use crate::number::{counted, percent, rate, share, thousands};
use crate::runtime::log::{Latest, Pace, Serving};
use crate::runtime::sampler::Held;
use crate::speed::{Speed, Turn};

/// Columns of a bar of memory.
const BAR: usize = 16;
/// What stands where nothing can be measured.
const NOT_MEASURED: &str = "not measured";

/// What was said before the server ran.
#[derive(Debug, Clone)]
pub struct Promise {
    /// The model, as a person knows it; untrusted text.
    pub model: String,
    /// Where requests go; untrusted text.
    pub endpoint: String,
    /// Memory by device, the host last.
    pub tiers: Vec<Tier>,
    /// Predicted speed of a turn, where a plan says it.
    pub speed: Option<(Turn, Speed)>,
}

/// What a device or the host was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// As llama.cpp names it, or `Host`.
    pub name: String,
    /// What the launch takes of it.
    pub predicted: Bytes,
    /// What it may take, where that is known.
    pub budget: Option<Bytes>,
}

impl Tier {
    /// A row for every device that takes part, and one for main memory, whatever buffers are in it.
    pub fn of(predicted: &MemoryByDevice, machine: &Machine) -> Vec<Self> {
        let mut tiers: Vec<Self> = Vec::new();
        let mut host = Self { name: HOST.to_string(), predicted: Bytes(0), budget: machine.host.ram };
        for (name, memory) in predicted {
            match machine.devices.iter().find(|device| device.name == *name) {
                Some(device) => {
                    tiers.push(Self { name: name.clone(), predicted: memory.total(), budget: Some(device.total) });
                }
                None => host.predicted += memory.total(),
            }
        }
        tiers.push(host);
        tiers
    }
}

/// What is seen now.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Since it takes requests.
    pub uptime: Duration,
    /// What is held by device; what cannot be measured is not there.
    pub held: BTreeMap<String, Held>,
    /// What its log says about requests.
    pub serving: Serving,
}

/// One line of the panel, no wider than was asked for, safe for a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Without colours.
    pub text: String,
    style: Style,
}

impl Line {
    fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }

    /// With its colours, where they are wanted.
    pub fn painted(&self, has_color: bool) -> String {
        if !has_color || self.style.is_plain() {
            return self.text.clone();
        }
        format!("{}{}{:#}", self.style, self.text, self.style)
    }
}

/// The panel, at most `width` columns wide.
pub fn lines(promise: &Promise, sample: &Sample, width: usize) -> Vec<Line> {
    let bold = Style::new().bold();
    // A typed `^C` pushes the panel one line up before it can be taken away: what then stays behind is this line.
    let mut lines = vec![Line::new("", Style::new())];
    lines.push(Line::new(heading(promise, sample.uptime, width), bold));
    lines.extend(memory(promise, sample, width));
    lines.push(Line::new(requests(&sample.serving, width), Style::new()));
    lines.extend(speeds(promise, &sample.serving, width));
    for line in &mut lines {
        line.text = console::truncate_str(&line.text, width, "…").into_owned();
    }
    lines
}

/// The same in one line, for a log: how it is after a request.
pub fn summary(promise: &Promise, sample: &Sample) -> String {
    let mut parts = vec![format!("up {}", clock(sample.uptime)), counts(&sample.serving)];
    if let Some(latest) = &sample.serving.latest {
        let paces = [("pp", latest.pp), ("tg", latest.tg)];
        let said: Vec<String> = paces
            .into_iter()
            .filter_map(|(name, pace)| Some(format!("{name} {} t/s of {}", rate(pace?.rate), tokens(pace?.tokens))))
            .collect();
        if !said.is_empty() {
            parts.push(format!("latest {}", said.join(" and ")));
        }
    }
    let memory = |tier: &Tier| {
        let name = escape::terminal(&tier.name);
        match sample.held.get(&tier.name) {
            Some(held) => {
                let whose = Some(whose(*held)).filter(|whose| !whose.is_empty());
                let whose = whose.map(|whose| format!(" ({whose})")).unwrap_or_default();
                format!("{name} {} of {} predicted{whose}", bytes(*held), tier.predicted)
            }
            None => format!("{name} {NOT_MEASURED}"),
        }
    };
    parts.extend(promise.tiers.iter().map(memory));
    parts.join("; ")
}

/// The first that fits, else the last, which is cut.
fn fitting(width: usize, forms: impl IntoIterator<Item = String>) -> String {
    let mut last = String::new();
    for form in forms {
        if form.lines().all(|line| console::measure_text_width(line) <= width) {
            return form;
        }
        last = form;
    }
    last
}

fn heading(promise: &Promise, uptime: Duration, width: usize) -> String {
    let (model, endpoint) = (escape::terminal(&promise.model), escape::terminal(&promise.endpoint));
    let up = format!("up {}", clock(uptime));
    fitting(width, [format!("{model} at {endpoint}, {up}"), format!("{endpoint}, {up}"), format!("{up}, {endpoint}")])
}

/// The table of memory, in as many columns as fit.
fn memory(promise: &Promise, sample: &Sample, width: usize) -> Vec<Line> {
    let rows: Vec<(bool, [String; 6])> = promise
        .tiers
        .iter()
        .map(|tier| {
            let held = sample.held.get(&tier.name).copied();
            let is_over = is_over(tier, held);
            let note = if is_over { "over its budget" } else { held.map_or("", whose) };
            let cells = [
                tier.name.clone(),
                held.map_or(NOT_MEASURED.to_string(), |held| bytes(held).to_string()),
                tier.predicted.to_string(),
                tier.budget.map_or("unknown".to_string(), |budget| budget.to_string()),
                gauge(tier, held),
                note.to_string(),
            ];
            (is_over, cells)
        })
        .collect();
    let form = |(columns, kept): (&str, &[usize])| {
        let mut table = Table::of(columns);
        for (_, cells) in &rows {
            table.row(kept.iter().filter_map(|at| cells.get(*at).cloned()));
        }
        table.text()
    };
    let forms: [(&str, &[usize]); 4] = [
        ("|>now|>predicted|>budget||", &[0, 1, 2, 3, 4, 5]),
        ("|>now|>predicted|>budget|", &[0, 1, 2, 3, 5]),
        ("|>now|>predicted|", &[0, 1, 2, 5]),
        ("|>now|>predicted", &[0, 1, 2]),
    ];
    let text = fitting(width, forms.into_iter().map(form));
    let red = Style::new().fg_color(Some(AnsiColor::Red.into()));
    let styles = rows.iter().map(|(is_over, _)| if *is_over { red } else { Style::new() });
    let styles = std::iter::once(Style::new().dimmed()).chain(styles);
    text.lines().zip(styles).map(|(line, style)| Line::new(line, style)).collect()
}

/// What is held in full blocks, what is predicted beyond it shaded, what is free of the budget blank.
fn gauge(tier: &Tier, held: Option<Held>) -> String {
    let (Some(held), Some(budget)) = (held, tier.budget) else { return String::new() };
    let full = bar(share(bytes(held).0, budget.0), BAR);
    let predicted = bar(share(tier.predicted.0, budget.0), BAR).chars().count();
    let shaded = predicted.saturating_sub(full.chars().count());
    format!("{full}{}", "░".repeat(shaded))
}

fn bytes(held: Held) -> Bytes {
    match held {
        Held::Resident { all: bytes, .. } | Held::ByProcess(bytes) | Held::ByAll(bytes) => bytes,
    }
}

/// Whose memory a figure is, where it is not the server's alone.
fn whose(held: Held) -> &'static str {
    match held {
        Held::ByProcess(_) => "",
        Held::Resident { .. } => "the whole process",
        Held::ByAll(_) => "all programs",
    }
}

/// Whether the server itself holds more than it may. Pages of a mapped file that the system may drop are no claim on the budget:
/// a model that is larger than main memory is mapped for that very reason.
fn is_over(tier: &Tier, held: Option<Held>) -> bool {
    let own = match held {
        Some(Held::Resident { own: bytes, .. } | Held::ByProcess(bytes)) => Some(bytes),
        Some(Held::ByAll(_)) | None => None,
    };
    own.zip(tier.budget).is_some_and(|(own, budget)| own > budget)
}

fn requests(serving: &Serving, width: usize) -> String {
    let short = counts(serving);
    let long = match serving.slots {
        Some(slots) => format!("requests: {short} ({})", counted(slots.into(), "slot")),
        None => format!("requests: {short}"),
    };
    fitting(width, [long, short])
}

fn counts(serving: &Serving) -> String {
    let broken_off = match serving.cancelled {
        0 => String::new(),
        n => format!(", {} broken off", thousands(n)),
    };
    format!("{} running, {} served{broken_off}", serving.running(), thousands(serving.served))
}

/// The table of speeds, in as many columns as fit; nothing where nothing is known.
fn speeds(promise: &Promise, serving: &Serving, width: usize) -> Vec<Line> {
    let mut rows: Vec<[String; 4]> = Vec::new();
    let cell = |value: Option<f64>| value.map_or("-".to_string(), rate);
    if let Some(latest) = &serving.latest {
        let of = |pace: Option<Pace>| cell(pace.map(|pace| pace.rate));
        rows.push(["latest".to_string(), of(latest.pp), of(latest.tg), of_latest(latest)]);
    }
    if serving.pp().is_some() || serving.tg().is_some() {
        let note = "all requests that are over".to_string();
        rows.push(["session".to_string(), cell(serving.pp()), cell(serving.tg()), note]);
    }
    if let Some((turn, speed)) = &promise.speed {
        let depth = if turn.depth > 0 { format!(" at depth {}", thousands(turn.depth.into())) } else { String::new() };
        let note = format!(
            "{} + {}{depth}, ±{}",
            thousands(turn.prompt.into()),
            tokens(turn.generate),
            percent(speed.uncertainty)
        );
        rows.push(["predicted".to_string(), cell(Some(speed.pp)), cell(Some(speed.tg)), note]);
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let form = |(columns, n): (&str, usize)| {
        let mut table = Table::of(columns);
        for cells in &rows {
            table.row(cells.iter().take(n).cloned());
        }
        table.text()
    };
    let text = fitting(width, [("t/s|>pp|>tg|", 4), ("t/s|>pp|>tg", 3)].into_iter().map(form));
    let styles = std::iter::once(Style::new().dimmed()).chain(std::iter::repeat(Style::new()));
    text.lines().zip(styles).map(|(line, style)| Line::new(line, style)).collect()
}

/// Tokens of the request: read, and generated.
fn of_latest(latest: &Latest) -> String {
    let count = |pace: Option<Pace>| pace.map(|pace| pace.tokens);
    let so_far = if latest.is_over { "" } else { " so far" };
    match (count(latest.pp), count(latest.tg)) {
        (Some(read), Some(generated)) => format!("{} + {}{so_far}", thousands(read.into()), tokens(generated)),
        (Some(one), None) | (None, Some(one)) => format!("{}{so_far}", tokens(one)),
        (None, None) => "too short to time".to_string(),
    }
}

fn tokens(n: u32) -> String {
    counted(n.into(), "token")
}

/// `0:12:31`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryBreakdown;
    use crate::runtime::log::LogReader;

    const GIB: u64 = 1 << 30;

    fn tier(name: &str, predicted: u64, budget: Option<u64>) -> Tier {
        Tier { name: name.to_string(), predicted: Bytes(predicted), budget: budget.map(Bytes) }
    }

    fn promise() -> Promise {
        let speed = Speed { pp: 520.0, tg: 32.0, basis: "guess".to_string(), uncertainty: 0.35 };
        Promise {
            model: "qwen3.gguf".to_string(),
            endpoint: "http://127.0.0.1:8080".to_string(),
            tiers: vec![
                tier("CUDA0", 21 * GIB, Some(24 * GIB)),
                tier("RPC0", 3 * GIB, Some(8 * GIB)),
                tier(HOST, 14 * GIB, None),
            ],
            speed: Some((Turn { prompt: 4096, generate: 512, depth: 0 }, speed)),
        }
    }

    fn sample() -> Sample {
        let mut reader = LogReader::default();
        for line in [
            "srv    load_model: initializing, n_slots = 4, n_ctx_slot = 512",
            "slot launch_slot_: id  3 | task 0 | processing task, is_child = 0",
            "slot print_timing: id  3 | task 0 | prompt eval time = 600.00 ms / 300 tokens (2.00 ms per token, 500.00 tokens per second)",
            "slot print_timing: id  3 | task 0 |        eval time = 4000.00 ms / 128 tokens (32.00 ms per token, 31.25 tokens per second)",
            "slot      release: id  3 | task 0 | stop processing: n_tokens = 428, truncated = 0",
        ] {
            reader.line(line);
        }
        let held = BTreeMap::from([
            ("CUDA0".to_string(), Held::ByProcess(Bytes(18 * GIB))),
            (HOST.to_string(), Held::Resident { own: Bytes(2 * GIB), all: Bytes(12 * GIB) }),
        ]);
        Sample { uptime: Duration::from_secs(751), held, serving: reader.serving().clone() }
    }

    fn texts(promise: &Promise, sample: &Sample, width: usize) -> Vec<String> {
        lines(promise, sample, width).into_iter().skip(1).map(|line| line.text).collect()
    }

    #[test]
    fn a_wide_terminal_shows_everything() {
        assert_eq!(
            texts(&promise(), &sample(), 79),
            [
                "qwen3.gguf at http://127.0.0.1:8080, up 0:12:31",
                "                now  predicted     budget",
                "CUDA0     18.00 GiB  21.00 GiB  24.00 GiB  ████████████░░",
                "RPC0   not measured   3.00 GiB   8.00 GiB",
                "Host      12.00 GiB  14.00 GiB    unknown                  the whole process",
                "requests: 0 running, 1 served (4 slots)",
                "t/s         pp    tg",
                "latest     500  31.2  300 + 128 tokens",
                "session    500  31.2  all requests that are over",
                "predicted  520  32.0  4,096 + 512 tokens, ±35.0%",
            ]
        );
    }

    #[test]
    fn a_narrow_terminal_keeps_what_matters() {
        assert_eq!(
            texts(&promise(), &sample(), 39),
            [
                "http://127.0.0.1:8080, up 0:12:31",
                "                now  predicted",
                "CUDA0     18.00 GiB  21.00 GiB",
                "RPC0   not measured   3.00 GiB",
                "Host      12.00 GiB  14.00 GiB",
                "requests: 0 running, 1 served (4 slots)",
                "t/s         pp    tg",
                "latest     500  31.2",
                "session    500  31.2",
                "predicted  520  32.0",
            ]
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut long = promise();
        long.model = "漢字".repeat(60);
        long.endpoint = format!("http://{}:1", "a".repeat(200));
        long.tiers.push(tier(&"V".repeat(80), GIB, Some(GIB)));
        for width in [1, 8, 20, 39, 47, 60, 79, 119, 300] {
            for line in lines(&long, &sample(), width) {
                assert!(console::measure_text_width(&line.text) <= width, "{width}: {}", line.text);
            }
        }
    }

    #[test]
    fn before_the_first_request_nothing_is_made_up() {
        let unplanned = Promise { speed: None, ..promise() };
        let text = texts(&unplanned, &Sample::default(), 79).join("\n");
        assert!(text.ends_with("requests: 0 running, 0 served"), "{text}");
        assert_eq!(text.matches(NOT_MEASURED).count(), 3, "{text}");
    }

    #[test]
    fn whose_memory_it_is_and_that_it_is_too_much_are_said() {
        let mut sample = sample();
        let line = |sample: &Sample| texts(&promise(), sample, 79).swap_remove(2);
        sample.held.insert("CUDA0".to_string(), Held::ByProcess(Bytes(25 * GIB)));
        assert!(line(&sample).ends_with("████████████████  over its budget"), "{}", line(&sample));
        sample.held.insert("CUDA0".to_string(), Held::ByAll(Bytes(25 * GIB)));
        assert!(line(&sample).ends_with("  all programs"), "{}", line(&sample));
        // Of main memory a mapped file's pages do not count, what is the process's own does.
        for (own, says) in [(2, "the whole process"), (9, "over its budget")] {
            let budgeted = Promise { tiers: vec![tier(HOST, 14 * GIB, Some(8 * GIB))], ..promise() };
            let held = Held::Resident { own: Bytes(own * GIB), all: Bytes(12 * GIB) };
            sample.held.insert(HOST.to_string(), held);
            let text = texts(&budgeted, &sample, 79).swap_remove(2);
            assert!(text.contains("12.00 GiB") && text.ends_with(says), "{text}");
        }
    }

    #[test]
    fn strangers_names_are_escaped_and_colour_is_only_where_it_is_wanted() {
        let mut promise = promise();
        promise.model = "a\u{1b}[2Jb\nc.gguf".to_string();
        let lines = lines(&promise, &sample(), 79);
        assert!(lines.iter().all(|line| !line.painted(false).contains(['\u{1b}', '\n'])), "{lines:?}");
        assert!(lines[1].text.starts_with("a\\u{1b}[2Jb"), "{lines:?}");
        assert!(lines[1].painted(true).starts_with("\u{1b}[1ma"), "{lines:?}");
        assert!(!summary(&promise, &sample()).contains('\u{1b}'));
    }

    #[test]
    fn a_log_gets_it_in_one_line() {
        assert_eq!(
            summary(&promise(), &sample()),
            "up 0:12:31; 0 running, 1 served; latest pp 500 t/s of 300 tokens and tg 31.2 t/s of 128 tokens; \
             CUDA0 18.00 GiB of 21.00 GiB predicted; RPC0 not measured; Host 12.00 GiB of 14.00 GiB predicted (the whole process)"
        );
    }

    #[test]
    fn all_of_main_memory_is_one_row() {
        let machine = Machine { devices: Vec::new(), host: crate::Host::default() };
        let of = |model| MemoryBreakdown { model: Bytes(model), ..MemoryBreakdown::default() };
        let memory = MemoryByDevice::from([("CPU_REPACK".to_string(), of(5)), (HOST.to_string(), of(7))]);
        assert_eq!(Tier::of(&memory, &machine), [tier(HOST, 12, None)]);
    }
}
