//! Contradictions caught: what a header's numbers make impossible ends one computation, never the program.
//!
//! The replay of llama.cpp's graphs asserts what llama.cpp asserts, and arithmetic is checked in every build; a header
//! whose keys and shapes contradict each other can make either fail. Nothing outside the computation sees half of it.

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A computation that could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model's or the launch's numbers contradict each other: {0}")]
pub struct Contradiction(pub String);

impl Contradiction {
    /// What to try.
    pub fn hint(&self) -> String {
        "llama.cpp refuses a model whose tensors do not fit its keys; if it runs this one, please report it as a bug"
            .into()
    }
}

/// Carries out a computation; what it asserts in vain is an error.
pub fn run<T>(computation: impl FnOnce() -> T) -> Result<T, Contradiction> {
    DEPTH.set(DEPTH.get().saturating_add(1));
    let result = panic::catch_unwind(AssertUnwindSafe(computation));
    DEPTH.set(DEPTH.get().saturating_sub(1));
    result.map_err(|_| Contradiction(LAST.take().unwrap_or_else(|| "see the message above".to_string())))
}

/// Keeps failures inside [`run`] off standard error (unless `RUST_BACKTRACE` asks for them): they come back as errors.
pub fn silence() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if DEPTH.get() == 0 || std::env::var_os("RUST_BACKTRACE").is_some() {
            usual(info);
        }
        let text = info.payload_as_str().unwrap_or("a check failed").lines().next().unwrap_or_default();
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        LAST.set(Some(format!("{text}{place}")));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_an_error_and_the_next_computation_is_not() {
        assert_eq!(run(|| 7), Ok(7));
        let nothing: Vec<u8> = Vec::new();
        assert!(run(|| run(|| nothing[nothing.len()]).is_err() && panic!("twice")).is_err());
        assert_eq!((run(|| 7), DEPTH.get()), (Ok(7), 0));
    }
}
