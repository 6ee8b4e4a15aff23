//! A launch as the arguments of one build of llama-server: flags it lacks are translated, or refused with a reason.

use std::path::Path;

use super::Error;
use super::find::Build;
use crate::run::groups;
use crate::run::{Choice as _, LoadMode, Program, RunConfig, args, flags, is_speculation, spelling};

/// Where a server listens: this computer, alone.
pub const HOST: &str = "127.0.0.1";

/// The words after the program: the launch, the model, and what moeplan needs to watch it. `extra` words of the person come
/// last and win; of these only spellings of old and new builds are exchanged. What they say of speculation is said by nobody else.
pub(super) fn arguments(
    build: &Build,
    run: &RunConfig,
    model: &Path,
    port: u16,
    extra: &[String],
) -> Result<Vec<String>, Error> {
    if run.program != Program::Server {
        return Err(Error::NotForServer(run.program));
    }
    let mut words = vec!["-m".to_string(), model.display().to_string()];
    let speculates = extra.iter().any(|word| is_speculation(word));
    for (flag, group) in args::settings(run) {
        if !(speculates && is_speculation(flag.name())) {
            words.extend(for_build(build, &group)?);
        }
    }
    let port = port.to_string();
    for wanted in [&["--host", HOST][..], &["--port", &port], &["-lv", "4"], &["--offline"]] {
        if wanted.first().is_some_and(|flag| build.takes(flag)) {
            words.extend(wanted.iter().map(ToString::to_string));
        }
    }
    for group in groups(extra) {
        words.extend(exchanged(build, group)?.unwrap_or_else(|| group.to_vec()));
    }
    Ok(words)
}

/// Flags that a launch that is measured cannot have: its log is read, and it is asked over plain HTTP without a key.
const OF_MOEPLAN: &[&str] = &[
    "--log-disable",
    "--log-file",
    "--log-jsonl",
    "--log-colors",
    "--log-prefix",
    "--log-timestamps",
    "--verbose",
    "--verbosity",
    "--api-key",
    "--api-key-file",
    "--api-prefix",
    "--ssl-key-file",
    "--ssl-cert-file",
];

/// Words of a command line in those that a measured launch takes, and the flags that it cannot.
pub fn measurable(words: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut taken, mut left_out) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let flag = spelling(word).map(|(flag, _)| flag);
        let values = words.by_ref().take(flag.map_or(0, |flag| flag.values)).cloned();
        if flag.is_some_and(|flag| OF_MOEPLAN.contains(&flag.name())) {
            // The value of a flag that is left out may be a key.
            let _ = values.count();
            left_out.push(word.clone());
        } else {
            taken.push(word.clone());
            taken.extend(values);
        }
    }
    (taken, left_out)
}

/// A flag of the launch as this build takes it.
fn for_build(build: &Build, group: &[String]) -> Result<Vec<String>, Error> {
    if let Some(words) = exchanged(build, group)? {
        return Ok(words);
    }
    let flag = group.first().map_or("", String::as_str);
    if build.takes(flag) {
        return Ok(group.to_vec());
    }
    // A build that knows no fitting does none.
    if flag == "-fit" && group.get(1).is_some_and(|value| value == "off") {
        return Ok(Vec::new());
    }
    Err(Error::Lacks { flag: group.join(" "), build: build.name() })
}

/// How the file is read, in the build's own spelling; `None` when nothing is to be exchanged.
fn exchanged(build: &Build, group: &[String]) -> Result<Option<Vec<String>>, Error> {
    let words: Vec<&str> = group.iter().map(String::as_str).collect();
    let lacks = || Error::Lacks { flag: group.join(" "), build: build.name() };
    match words.as_slice() {
        ["-lm" | "--load-mode", mode] if !build.takes("--load-mode") => {
            let old = LoadMode::of_word(mode).map_or(&[][..], flags::old_load_mode);
            if old.iter().any(|flag| !build.takes(flag)) {
                return Err(lacks());
            }
            Ok(Some(old.iter().map(ToString::to_string).collect()))
        }
        [flag] if !build.takes(flag) && flags::new_load_mode(flag).is_some() => {
            let new = flags::new_load_mode(flag).filter(|_| build.takes("--load-mode")).ok_or_else(lacks)?;
            Ok(Some(new.split(' ').map(str::to_string).collect()))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suggest::Hint as _;

    fn build(flags: &[&str]) -> Build {
        Build {
            program: "llama-server".into(),
            version: "version: 0 (test)".into(),
            number: Some(11434),
            flags: flags.iter().map(ToString::to_string).collect(),
            isa: crate::machine::Isa::default(),
        }
    }

    fn run() -> RunConfig {
        RunConfig { load_mode: LoadMode::None, fit: false, n_ctx: 256, ..RunConfig::default() }
    }

    #[test]
    fn each_build_gets_its_own_spelling() {
        let new = build(&["-c", "-lm", "--load-mode", "-fit", "--port", "--host"]);
        let old = build(&["-c", "--no-mmap", "--port", "--host"]);
        let of = |build: &Build, extra: &[&str]| {
            let extra: Vec<String> = extra.iter().map(ToString::to_string).collect();
            arguments(build, &run(), Path::new("m.gguf"), 9, &extra).unwrap().join(" ")
        };
        assert_eq!(
            of(&new, &["--no-mmap", "--jinja"]),
            "-m m.gguf -c 256 -lm none -fit off --host 127.0.0.1 --port 9 --load-mode none --jinja"
        );
        assert_eq!(of(&old, &["-lm", "none"]), "-m m.gguf -c 256 --no-mmap --host 127.0.0.1 --port 9 --no-mmap");
        assert_eq!(
            of(&build(&[]), &[]),
            "-m m.gguf -c 256 -lm none -fit off --host 127.0.0.1 --port 9 -lv 4 --offline"
        );
    }

    #[test]
    fn what_a_build_lacks_is_refused_with_the_flag() {
        let error = arguments(&build(&["-c"]), &run(), Path::new("m.gguf"), 9, &[]).unwrap_err();
        assert_eq!(error.to_string(), "llama.cpp b11434 has no `-lm none`");
        let moe = RunConfig { moe_cache_mib: 64, fit: true, ..RunConfig::default() };
        let error = arguments(&build(&["-c"]), &moe, Path::new("m.gguf"), 9, &[]).unwrap_err();
        assert!(error.to_string().contains("--moe-cache-mib 64"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--llama-server")), "{:?}", error.hint());
    }

    #[test]
    fn what_a_command_says_of_speculation_is_said_once() {
        let run = RunConfig { n_draft: 16, ..run() };
        let of = |extra: &[&str]| {
            let extra: Vec<String> = extra.iter().map(ToString::to_string).collect();
            arguments(&build(&[]), &run, Path::new("m.gguf"), 9, &extra).unwrap().join(" ")
        };
        assert!(of(&["--jinja"]).contains("--spec-type ngram-mod"), "{}", of(&["--jinja"]));
        let own = of(&["--spec-type", "ngram-simple"]);
        assert!(own.ends_with("--spec-type ngram-simple") && !own.contains("ngram-mod"), "{own}");
    }

    #[test]
    fn what_a_measurement_needs_is_not_given_away() {
        let words = ["--jinja", "-lv", "1", "--temp", "0.5", "--api-key", "secret", "--no-log-prefix"];
        let (taken, left_out) = measurable(&words.map(str::to_string));
        assert_eq!(taken, ["--jinja", "--temp", "0.5"]);
        assert_eq!(left_out, ["-lv", "--api-key", "--no-log-prefix"]);
    }

    #[test]
    fn a_command_of_another_program_is_refused() {
        let bench = RunConfig { program: Program::Bench, ..RunConfig::default() };
        assert!(matches!(
            arguments(&build(&[]), &bench, Path::new("m.gguf"), 9, &[]),
            Err(Error::NotForServer(Program::Bench))
        ));
    }
}
