//! Ctrl-C: the first asks what runs to stop in order, the second ends moeplan at once. [I/O]

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime;
use crate::runtime::server;

/// The exit code of a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

static PRESSED: AtomicUsize = AtomicUsize::new(0);

/// From now on Ctrl-C (and SIGTERM, SIGHUP) are counted instead of ending the program. A second one ends it; what it has
/// started is then ended by its supervisor.
pub fn arm() {
    // A second call is refused, and the first handler serves as well.
    let _ = ctrlc::set_handler(|| {
        if PRESSED.fetch_add(1, Ordering::Relaxed) > 0 {
            #[expect(clippy::exit, reason = "the person insists")]
            std::process::exit(i32::from(EXIT_CODE));
        }
    });
}

/// Whether it was pressed.
pub fn is_pressed() -> bool {
    PRESSED.load(Ordering::Relaxed) > 0
}

/// Whether an error says that it was pressed.
pub fn is_cause(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(runtime::Error::Server(server::Error::Interrupted)))
            || matches!(cause.downcast_ref(), Some(server::Error::Interrupted))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_is_known_by_its_error() {
        let error = anyhow::Error::from(runtime::Error::from(server::Error::Interrupted)).context("while measuring");
        assert!(is_cause(&error));
        assert!(!is_cause(&anyhow::anyhow!("interrupted")));
    }
}
