//! What an installed llama.cpp projects for a launch: its llama-fit-params is asked. [I/O]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::server::{ask, beside, flags, is_program, version};
use super::{Error, detect};
use crate::bytes::{Bytes, MIB};
use crate::memory::{MemoryBreakdown, MemoryByDevice};
use crate::plan::Projected;
use crate::run::args::settings;
use crate::run::{RunConfig, parse};

const PROGRAM: &str = "llama-fit-params";

/// Asks `named`, or the llama-fit-params beside the llama-server of this computer, for what it takes of `run`, and `predict` for the
/// same. It prints whole MiB, rounded down (`common/fit.cpp` `common_fit_print`, b11434), for the devices that it finds.
pub fn of(
    named: Option<&Path>,
    model: &Path,
    run: &RunConfig,
    predict: impl FnOnce(&RunConfig) -> anyhow::Result<MemoryByDevice>,
) -> anyhow::Result<Projected> {
    let program = program(named)?;
    let known = flags(&ask(&program, &["--help"])?);
    let taken = |words: &Vec<String>| known.is_empty() || words.first().is_some_and(|flag| known.contains(flag));
    let kept: Vec<String> = settings(run).into_iter().map(|(_, words)| words).filter(taken).flatten().collect();
    let mut line = vec![PROGRAM.to_string(), "-m".to_string(), model.display().to_string()];
    line.extend(kept);
    let predicted = predict(&parse::command_for(&line, &BTreeMap::new(), run.target)?.run)?;
    let words: Vec<&str> = line.iter().skip(1).map(String::as_str).chain(["-fitp", "on"]).collect();
    let printed = ask(&program, &words)?;
    let memory = memory(&printed);
    if memory.is_empty() {
        let last = printed.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        let message = format!("`{}` printed no projection for `{}`: {last}", program.display(), words.join(" "));
        let hint = "check that the command runs with it; without `--ask`, moeplan answers alone";
        return Err(Error::setup(message, hint).into());
    }
    Ok(Projected { program: program.display().to_string(), version: version(&program)?, memory, predicted })
}

fn program(named: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = named {
        let message = format!("`{}` is not a program that can be run", path.display());
        let hint = format!("name a {PROGRAM}: `--ask=PATH`");
        return if is_program(path) { Ok(path.to_path_buf()) } else { Err(Error::setup(message, hint)) };
    }
    let server = detect::server()?;
    beside(&server, &[PROGRAM]).ok_or_else(|| {
        let message = format!("there is no {PROGRAM} beside `{}`", server.display());
        Error::setup(message, "name one: `--ask=PATH`; llama.cpp's releases have it")
    })
}

/// The rows `CUDA0 2812 96 364`: a device and MiB of model, context and compute.
fn memory(printed: &str) -> MemoryByDevice {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [device, terms @ ..] = words.as_slice() else { return None };
        let mib: Vec<u64> = terms.iter().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let [model, context, compute] = *mib.as_slice() else { return None };
        let bytes = |mib: u64| Bytes(mib.saturating_mul(MIB));
        let row = MemoryBreakdown {
            model: bytes(model),
            context: bytes(context),
            compute: bytes(compute),
            ..Default::default()
        };
        Some(((*device).to_string(), row))
    };
    printed.lines().filter_map(row).collect::<BTreeMap<_, _>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_from_a_log() {
        let printed = "common_init: 3 of 4\nload 1 2 x\nCUDA0 2812 96 364 \nHost 61040 0 25 \n";
        let found = memory(printed);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["CUDA0", "Host"]);
        assert_eq!(found["CUDA0"].compute, Bytes(364 * MIB));
    }
}
