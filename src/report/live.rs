//! The panel of a server that runs: memory beside the plan, speeds, requests. From what is known to lines that fit a width.

use std::collections::BTreeMap;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::page::at_depth;
use super::table::{Table, bar, row};
use crate::bytes::Bytes;
use crate::escape;
use crate::machine::Machine;
use crate::memory::{HOST, MemoryByDevice};
use crate::number::{counted, rate, share, thousands};
use crate::runtime::log::{Pace, Serving};
use crate::runtime::sampler::Held;
use crate::speed::{Phase, Speed, Turn};

const BAR: usize = 16;
const NOT_MEASURED: &str = "not measured";

/// What was said before the server ran.
#[derive(Debug, Clone)]
pub struct Promise {
    /// The model, as a person knows it; untrusted text.
    pub model: String,
    pub endpoint: String,
    pub tiers: Vec<Tier>,
    /// Predicted speed of a turn, where a plan says it.
    pub speed: Option<(Turn, Speed)>,
}

/// What a device or the host was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// As llama.cpp names it, or `Host`.
    pub name: String,
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

#[derive(Debug, Clone, Default)]
pub struct Sample {
    pub uptime: Duration,
    /// What is held by device; what cannot be measured is not there.
    pub held: BTreeMap<String, Held>,
    pub serving: Serving,
}

/// The panel, lines at most `width` columns wide, with the codes of colours.
pub fn panel(promise: &Promise, sample: &Sample, width: usize) -> String {
    let (plain, dim, red) = (Style::new(), Style::new().dimmed(), AnsiColor::Red.on_default());
    let heading = format!("up {}, {}, {}", clock(sample.uptime), promise.endpoint, promise.model);
    // A typed `^C` pushes the panel one line up before it can be taken away: what then stays behind is the first line.
    let mut lines = vec![(plain, String::new()), (plain.bold(), escape::terminal(&heading).into_owned())];
    let looks: Vec<Look> = promise.tiers.iter().map(|tier| look(tier, sample)).collect();
    let styles = looks.iter().map(|(_, _, is_over)| if *is_over { red } else { plain });
    let table = memory(promise, &looks).fitted(width);
    lines.extend([dim].into_iter().chain(styles).zip(table.lines().map(str::to_string)));
    let slots = sample.serving.slots.map_or(String::new(), |slots| format!(" ({})", counted(slots.into(), "slot")));
    lines.push((plain, format!("requests: {}{slots}", counts(&sample.serving))));
    let speeds = speeds(promise, &sample.serving);
    if !speeds.rows.is_empty() {
        let table = speeds.fitted(width);
        lines.extend([dim].into_iter().chain(std::iter::repeat(plain)).zip(table.lines().map(str::to_string)));
    }
    let painted = lines.into_iter().map(|(style, line)| {
        let line = console::truncate_str(&line, width, "…").into_owned();
        if style.is_plain() { line } else { format!("{style}{line}{style:#}") }
    });
    painted.collect::<Vec<_>>().join("\n")
}

/// The same in one line, for a log: how it is after a request.
pub fn summary(promise: &Promise, sample: &Sample) -> String {
    let mut parts = vec![format!("up {}", clock(sample.uptime)), counts(&sample.serving)];
    if let Some(latest) = &sample.serving.latest {
        let pace = |(name, pace): (&str, Option<Pace>)| {
            let pace = pace?;
            Some(format!("{name} {} t/s of {}", rate(pace.rate), tokens(pace.tokens)))
        };
        let paces: Vec<String> = [("pp", latest.pp), ("tg", latest.tg)].into_iter().filter_map(pace).collect();
        parts.extend((!paces.is_empty()).then(|| format!("latest {}", paces.join(" and "))));
    }
    for tier in &promise.tiers {
        let (name, (bytes, whose, _)) = (escape::terminal(&tier.name), look(tier, sample));
        let whose = if whose.is_empty() { String::new() } else { format!(" ({whose})") };
        parts.push(match bytes {
            Some(bytes) => format!("{name} {bytes} of {} predicted{whose}", tier.predicted),
            None => format!("{name} {NOT_MEASURED}"),
        });
    }
    parts.join("; ")
}

/// What a tier holds, whose memory that is where it is not the server's alone, and whether the server itself holds more than it may.
/// Pages of a mapped file that the system may drop are no claim on the budget: a model that is larger than main memory is mapped for
/// that very reason.
type Look = (Option<Bytes>, &'static str, bool);

fn look(tier: &Tier, sample: &Sample) -> Look {
    let (bytes, own, whose) = match sample.held.get(&tier.name).copied() {
        Some(Held::ByProcess(bytes)) => (Some(bytes), Some(bytes), ""),
        Some(Held::Resident { own, all }) => (Some(all), Some(own), "resident in total"),
        Some(Held::ByAll(bytes)) => (Some(bytes), None, "all programs"),
        None => (None, None, ""),
    };
    (bytes, whose, own.zip(tier.budget).is_some_and(|(own, budget)| own > budget))
}

/// Memory beside its prediction. The last columns matter least: they go where a terminal is narrow.
fn memory(promise: &Promise, looks: &[Look]) -> Table {
    let rows = promise.tiers.iter().zip(looks).map(|(tier, (bytes, whose, is_over))| {
        // What is held in full blocks, what is predicted beyond it shaded, what is free of the budget blank.
        let gauge = bytes.zip(tier.budget).map_or(String::new(), |(held, budget)| {
            let [full, predicted] = [held, tier.predicted].map(|bytes| bar(share(bytes.0, budget.0), BAR));
            let shaded = predicted.chars().count().saturating_sub(full.chars().count());
            format!("{full}{}", "░".repeat(shaded))
        });
        row![
            tier.name,
            bytes.map_or(NOT_MEASURED.to_string(), |bytes| bytes.to_string()),
            tier.predicted,
            if *is_over { "over its budget" } else { whose },
            tier.budget.map_or("unknown".to_string(), |budget| budget.to_string()),
            gauge,
        ]
    });
    Table::rows_of("|>now|>predicted||>budget|", rows)
}

fn counts(serving: &Serving) -> String {
    let cancelled = serving.cancelled;
    let broken_off = if cancelled > 0 { format!(", {} broken off", thousands(cancelled)) } else { String::new() };
    format!("{} running, {} served{broken_off}", serving.running(), thousands(serving.served))
}

/// Speeds in tokens per second; no row where nothing is known.
fn speeds(promise: &Promise, serving: &Serving) -> Table {
    let mut table = Table::of("t/s|>pp|>tg|");
    let mut add = |name: &str, pp: Option<f64>, tg: Option<f64>, note: String| {
        let shown = |value: Option<f64>| value.map_or("-".to_string(), rate);
        table.row(row![name, shown(pp), shown(tg), note]);
    };
    if let Some(latest) = &serving.latest {
        let so_far = if latest.is_over { "" } else { " so far" };
        let note = match (latest.pp, latest.tg) {
            (Some(read), Some(generated)) => {
                format!("{} + {}{so_far}", thousands(read.tokens.into()), tokens(generated.tokens))
            }
            (Some(one), None) | (None, Some(one)) => format!("{}{so_far}", tokens(one.tokens)),
            (None, None) => "too short to time".to_string(),
        };
        add("latest", latest.pp.map(|pace| pace.rate), latest.tg.map(|pace| pace.rate), note);
    }
    if serving.pp().is_some() || serving.tg().is_some() {
        add("session", serving.pp(), serving.tg(), "all finished requests".to_string());
    }
    if let Some((turn, speed)) = &promise.speed {
        let (read, generated) = (thousands(turn.prompt.into()), tokens(turn.generate));
        let [pp, tg] = [Phase::Prompt, Phase::Generate].map(|phase| speed.within(phase));
        let note = format!("{read} + {generated}{}, {pp} and {tg}", at_depth(turn.depth));
        add("predicted", Some(speed.pp), Some(speed.tg), note);
    }
    table
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
    use crate::runtime::log::LoadLog;

    const GIB: u64 = 1 << 30;

    fn tier(name: &str, predicted: u64, budget: Option<u64>) -> Tier {
        Tier { name: name.to_string(), predicted: Bytes(predicted), budget: budget.map(Bytes) }
    }

    fn promise() -> Promise {
        let speed = Speed { pp: 520.0, tg: 32.0, basis: "guess".to_string(), uncertainty: 0.35, ..Speed::default() };
        Promise {
            model: "qwen3.gguf".to_string(),
            endpoint: "http://127.0.0.1:8080".to_string(),
            tiers: vec![
                tier("CUDA0", 21 * GIB, Some(24 * GIB)),
                tier("RPC0", 3 * GIB, Some(8 * GIB)),
                tier(HOST, 14 * GIB, None),
            ],
            speed: Some((Turn::default(), speed)),
        }
    }

    fn sample() -> Sample {
        let mut log = LoadLog::default();
        for line in [
            "srv    load_model: initializing, n_slots = 4, n_ctx_slot = 512",
            "slot launch_slot_: id  3 | task 0 | processing task, is_child = 0",
            "slot print_timing: id  3 | task 0 | prompt eval time = 600.00 ms / 300 tokens (2.00 ms per token, 500.00 tokens per second)",
            "slot print_timing: id  3 | task 0 |        eval time = 4000.00 ms / 128 tokens (32.00 ms per token, 31.25 tokens per second)",
            "slot      release: id  3 | task 0 | stop processing: n_tokens = 428, truncated = 0",
        ] {
            log.line(line);
        }
        let held = BTreeMap::from([
            ("CUDA0".to_string(), Held::ByProcess(Bytes(18 * GIB))),
            (HOST.to_string(), Held::Resident { own: Bytes(2 * GIB), all: Bytes(12 * GIB) }),
        ]);
        Sample { uptime: Duration::from_secs(751), held, serving: log.serving }
    }

    fn texts(promise: &Promise, sample: &Sample, width: usize) -> Vec<String> {
        let text = anstream::adapter::strip_str(&panel(promise, sample, width)).to_string();
        text.lines().skip(1).map(str::to_string).collect()
    }

    #[test]
    fn a_wide_terminal_shows_everything_and_a_narrow_one_what_matters() {
        assert_eq!(
            texts(&promise(), &sample(), 79),
            [
                "up 0:12:31, http://127.0.0.1:8080, qwen3.gguf",
                "                now  predicted                        budget",
                "CUDA0     18.00 GiB  21.00 GiB                     24.00 GiB  ████████████░░",
                "RPC0   not measured   3.00 GiB                      8.00 GiB",
                "Host      12.00 GiB  14.00 GiB  resident in total    unknown",
                "requests: 0 running, 1 served (4 slots)",
                "t/s         pp    tg",
                "latest     500  31.2  300 + 128 tokens",
                "session    500  31.2  all finished requests",
                "predicted  520  32.0  4,096 + 512 tokens, ±35% and ±35%",
            ]
        );
        let narrow = texts(&promise(), &sample(), 39);
        assert_eq!(narrow[1..3], ["                now  predicted", "CUDA0     18.00 GiB  21.00 GiB"]);
        assert_eq!(narrow[6..8], ["t/s         pp    tg", "latest     500  31.2"]);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_names_are_escaped() {
        let mut long = promise();
        long.model = "漢字\u{1b}[2Jb\nc".repeat(20);
        long.tiers.push(tier(&"V".repeat(80), GIB, Some(GIB)));
        for width in [1, 8, 20, 39, 47, 60, 79, 119, 300] {
            for line in panel(&long, &sample(), width).lines() {
                assert!(console::measure_text_width(line) <= width && !line.contains("\u{1b}[2J"), "{width}: {line}");
            }
        }
        let text = texts(&Promise { speed: None, ..promise() }, &Sample::default(), 79).join("\n");
        assert!(text.ends_with("requests: 0 running, 0 served") && text.matches(NOT_MEASURED).count() == 3, "{text}");
    }

    #[test]
    fn whose_memory_it_is_and_that_it_is_too_much_are_said() {
        let mut sample = sample();
        let line = |sample: &Sample| texts(&promise(), sample, 79).swap_remove(2);
        sample.held.insert("CUDA0".to_string(), Held::ByProcess(Bytes(25 * GIB)));
        assert!(line(&sample).contains("over its budget"), "{}", line(&sample));
        sample.held.insert("CUDA0".to_string(), Held::ByAll(Bytes(25 * GIB)));
        assert!(line(&sample).contains("  all programs"), "{}", line(&sample));
        // Of main memory a mapped file's pages do not count, what is the process's own does.
        for (own, says) in [(2, "resident in total"), (9, "over its budget")] {
            let budgeted = Promise { tiers: vec![tier(HOST, 14 * GIB, Some(8 * GIB))], ..promise() };
            let held = Held::Resident { own: Bytes(own * GIB), all: Bytes(12 * GIB) };
            sample.held.insert(HOST.to_string(), held);
            let text = texts(&budgeted, &sample, 79).swap_remove(2);
            assert!(text.contains("12.00 GiB") && text.contains(says), "{text}");
        }
    }
}
