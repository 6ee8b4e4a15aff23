//! The panel below the log of a server that runs: on a terminal it stays in place, elsewhere it is a line now and then. [I/O]

use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard};
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

#[derive(Debug)]
enum Place {
    Nowhere,
    /// On a terminal, at its lower end.
    Terminal(ProgressBar),
    Lines,
}

#[derive(Debug)]
pub struct Panel {
    promise: Promise,
    place: Place,
    since: Instant,
    shown: Option<Instant>,
    /// Requests that were over when it was last shown.
    over: u64,
}

impl Panel {
    /// A panel on standard error, below the log where that is a terminal that can move its cursor; nothing with `-q`.
    pub fn new(promise: Promise, output: &Output) -> Self {
        let bar = ProgressBar::new_spinner();
        let place = match ProgressStyle::with_template("{msg}") {
            _ if output.global.quiet => Place::Nowhere,
            Ok(style) if std::io::stderr().is_terminal() && !bar.is_hidden() => {
                let bar = bar.with_style(style);
                *shown() = Some(bar.clone());
                Place::Terminal(bar)
            }
            _ => Place::Lines,
        };
        Self { promise, place, since: Instant::now(), shown: None, over: 0 }
    }

    /// Shows what is seen now, where it is time to.
    pub fn show(&mut self, process: u32, serving: &Serving) {
        let has_passed = |limit| self.shown.is_none_or(|shown| shown.elapsed() >= limit);
        let over = serving.served.saturating_add(serving.cancelled);
        let is_time = match self.place {
            Place::Nowhere => false,
            Place::Terminal(_) => has_passed(LOOK) || over != self.over,
            Place::Lines => has_passed(LINE) && over != self.over,
        };
        if !is_time {
            return;
        }
        (self.shown, self.over) = (Some(Instant::now()), over);
        let sample = Sample { uptime: self.since.elapsed(), held: sampler::held(process), serving: serving.clone() };
        match &self.place {
            Place::Terminal(bar) => {
                let width = console::Term::stderr().size_checked().map_or(WIDTH, |(_, columns)| columns.into());
                let text = panel(&self.promise, &sample, width.saturating_sub(1));
                let has_color = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
                bar.set_message(if has_color { text } else { anstream::adapter::strip_str(&text).to_string() });
            }
            Place::Lines => super::echo(&summary(&self.promise, &sample)),
            Place::Nowhere => {}
        }
    }

    pub fn clear(&mut self) {
        if let Place::Terminal(bar) = &self.place {
            *shown() = None;
            bar.finish_and_clear();
        }
        self.place = Place::Nowhere;
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        self.clear();
    }
}

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Shows a log line of the server on standard error, above the panel where there is one.
pub fn echo(line: &str) {
    match shown().as_ref() {
        Some(bar) => bar.suspend(|| super::echo(line)),
        None => super::echo(line),
    }
}
