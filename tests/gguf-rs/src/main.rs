//! Reads a GGUF file with gguf-rs alone, for `scripts/hostile-peers`: exit code 0 where it takes the file.

use std::process::ExitCode;

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_default();
    let read = gguf_rs::get_gguf_container(&path).and_then(|mut container| container.decode());
    match read {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
