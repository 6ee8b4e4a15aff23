//! Ctrl-C, SIGTERM and SIGHUP: what measures stops in order, all else ends at once; nothing temporary is left. [I/O]

use std::sync::atomic::{AtomicBool, Ordering};

use crate::files::temporary;
use crate::runtime;
use crate::synth::output;

/// The exit code of a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

pub static PRESSED: AtomicBool = AtomicBool::new(false);
/// Whether what runs looks at [`PRESSED`].
static ARMED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C (and SIGTERM, SIGHUP) remove what is temporary before they end the program. What it has started is then ended
/// by its supervisor.
pub fn watch() {
    let handler = || {
        let insists = PRESSED.swap(true, Ordering::Relaxed);
        if insists || !ARMED.load(Ordering::Relaxed) {
            temporary::remove_all();
            #[expect(clippy::exit, reason = "nobody looks, or the person insists")]
            std::process::exit(i32::from(EXIT_CODE));
        }
    };
    // Where no handler can be had, the signals end the program as they end any.
    let _ = ctrlc::set_handler(handler);
}

/// From now on the first Ctrl-C only sets [`PRESSED`], and the second ends the program.
pub fn arm() {
    ARMED.store(true, Ordering::Relaxed);
}

pub fn is_pressed() -> bool {
    PRESSED.load(Ordering::Relaxed)
}

/// Whether an error says that it was pressed.
pub fn is_cause(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(runtime::Error::is_interrupted)
            || matches!(cause.downcast_ref(), Some(output::Error::Stopped))
    })
}
