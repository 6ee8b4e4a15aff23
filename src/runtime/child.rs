//! The worker's own loop: a question a line on standard input, an answer a line on standard output. [I/O]

use std::collections::BTreeSet;
use std::io::{BufRead as _, Write as _};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::embedded;
use super::wire::{MARK, Reply, Request};

/// Answers until standard input ends. That ends the process at once, whatever it is doing: the parent is gone, or wants
/// it gone.
pub fn serve() -> anyhow::Result<()> {
    let (send, requests) = channel();
    end_with_stdin(move |line| {
        let _ = send.send(line);
    });
    embedded::init();
    let mut endpoints = BTreeSet::new();
    for line in requests {
        let reply = match serde_json::from_str::<Request>(&line) {
            Ok(request) => answer(request, &mut endpoints).unwrap_or_else(Reply::Refused),
            Err(error) => Reply::Refused(format!("the question is not understood: {error}")),
        };
        // llama.cpp's own lines may have left the line unfinished.
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{MARK}{}", serde_json::to_string(&reply)?)?;
        out.flush()?;
    }
    Ok(())
}

/// Serves this computer's processor at `endpoint` until standard input ends.
pub fn serve_rpc(endpoint: &str, n_threads: u32) -> anyhow::Result<()> {
    end_with_stdin(|_| ());
    embedded::init();
    embedded::serve_rpc(endpoint, n_threads)?;
    anyhow::bail!("the RPC server at `{endpoint}` stopped")
}

/// Reads standard input on a thread of its own, which ends the process with it.
fn end_with_stdin(mut each: impl FnMut(String) + Send + 'static) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            each(line);
        }
        embedded::leave(0);
    });
}

/// One answer; the error is what llama.cpp would not do.
fn answer(request: Request, endpoints: &mut BTreeSet<String>) -> Result<Reply, String> {
    let mut connect = |rpc: &[String]| -> Result<(), String> {
        for endpoint in rpc {
            if endpoints.insert(endpoint.clone()) {
                embedded::add_rpc(endpoint)?;
            }
        }
        Ok(())
    };
    match request {
        Request::Devices { rpc } => {
            connect(&rpc)?;
            Ok(Reply::Devices(embedded::devices()))
        }
        Request::Project(job) => {
            connect(&job.rpc)?;
            embedded::project(&job).map(Reply::Projection)
        }
        Request::Generate(job, workload) => {
            connect(&job.rpc)?;
            embedded::generate(&job, &workload).map(|generation| Reply::Generation(Box::new(generation)))
        }
        Request::Crash => std::process::abort(),
        Request::Sleep(seconds) => {
            std::thread::sleep(Duration::from_secs(seconds));
            Ok(Reply::Devices(Vec::new()))
        }
    }
}
