//! The panel below the log of a server that runs: on a terminal it stays in place, elsewhere it is a line now and then. [I/O]

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Output;
use crate::report::live::{Promise, Sample, panel, summary};
use crate::runtime::log::Serving;
use crate::runtime::sampler;

/// How often memory is looked at for the panel.
const LOOK: Duration = Duration::from_secs(1);
/// How often a line is written where there is no terminal, at most.
const LINE: Duration = Duration::from_secs(10);
/// The width of a terminal that does not say it, in columns.
const WIDTH: usize = 80;

/// The bar that holds the panel while it is shown: lines of log are printed above it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// What is shown of a server that runs.
#[derive(Debug)]
pub struct Panel {
    promise: Promise,
    /// At the lower end of a terminal; without one there are lines.
    bar: Option<ProgressBar>,
    is_quiet: bool,
    since: Instant,
    shown: Option<Instant>,
    /// Requests that were over when it was last shown.
    over: u64,
}

impl Panel {
    /// A panel on standard error; nothing with `-q`.
    pub fn new(promise: Promise, output: &Output) -> Self {
        let is_quiet = output.global.quiet;
        let bar = ProgressBar::new_spinner();
        // A terminal is one that can move its cursor.
        let is_terminal = std::io::stderr().is_terminal() && !bar.is_hidden() && !is_quiet;
        let style = ProgressStyle::with_template("{msg}").ok().filter(|_| is_terminal);
        let bar = style.map(|style| bar.with_style(style));
        hold(bar.clone());
        Self { promise, bar, is_quiet, since: Instant::now(), shown: None, over: 0 }
    }

    /// Shows what is seen now, where it is time to.
    pub fn show(&mut self, process: u32, serving: &Serving) {
        let over = serving.served.saturating_add(serving.cancelled);
        let is_over = over != self.over;
        let has_passed = |limit| self.shown.is_none_or(|shown| shown.elapsed() >= limit);
        let is_time = if self.bar.is_some() { has_passed(LOOK) || is_over } else { has_passed(LINE) && is_over };
        if self.is_quiet || !is_time {
            return;
        }
        (self.shown, self.over) = (Some(Instant::now()), over);
        let sample = Sample { uptime: self.since.elapsed(), held: sampler::held(process), serving: serving.clone() };
        let Some(bar) = &self.bar else { return super::echo(&summary(&self.promise, &sample)) };
        let width = console::Term::stderr().size_checked().map_or(WIDTH, |(_, columns)| columns.into());
        let text = panel(&self.promise, &sample, width.saturating_sub(1));
        let has_color = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
        bar.set_message(if has_color { text } else { anstream::adapter::strip_str(&text).to_string() });
    }

    pub fn clear(&mut self) {
        self.is_quiet = true;
        if let Some(bar) = self.bar.take() {
            hold(None);
            bar.finish_and_clear();
        }
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        self.clear();
    }
}

fn hold(bar: Option<ProgressBar>) {
    *SHOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = bar;
}

/// Shows a log line of the server on standard error, above the panel where there is one.
pub fn echo(line: &str) {
    let shown = SHOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match shown.as_ref() {
        Some(bar) => bar.suspend(|| super::echo(line)),
        None => super::echo(line),
    }
}
