//! Whole command lines of llama.cpp's programs, read as the program would read them.
//!
//! Source: `common/arg.cpp` `common_params_parse_ex`, b11434: the environment first, in the order of the flags' definitions,
//! then the words; later words win, overrides accumulate.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::build::{NEW_FLAGS, Target};
use super::dialect::{self, Dialect, LastBlocks};
use super::removed::removed;
use super::settings::{self, Speculation};
use super::values::{Broken, Given};
use super::{Error, Program, RunConfig, bench, flags, pasted};
use crate::suggest;

/// What a note ends with whose rule is left out of the answer.
pub const LEFT_OUT: &str = "; the figures are without this rule";

/// A command line, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct ParsedCommand {
    /// What it says about memory.
    pub run: RunConfig,
    /// The model it names.
    pub model: Option<ModelSource>,
    /// What a person should know: unknown and removed flags, what is not counted.
    pub notes: Vec<Note>,
    /// The build and dialect it was read for.
    pub target: Target,
    /// ik_llama.cpp's `-ncmoe`, which only model and machine together make overrides of.
    pub last_blocks: Option<LastBlocks>,
    /// Words of llama-server's command line that `run` does not hold: a launch takes them as they are.
    pub beside: Vec<String>,
}

impl ParsedCommand {
    /// Adds a note.
    pub(super) fn note(&mut self, code: &'static str, message: String, hint: Option<String>) {
        self.notes.push(Note { code: code.into(), message, hint });
    }

    /// `-ot`: its entries; one that llama.cpp would take apart in the wrong place is noted and left out.
    pub(super) fn override_tensors(&mut self, given: Given<'_>, separator: char) -> Result<(), Error> {
        let (entries, broken) = given.overrides(separator)?;
        self.run.overrides.extend(entries);
        for entry in broken {
            let (code, why, hint) = match &entry {
                Broken::Comma { .. } => (
                    "pattern-split-by-comma",
                    format!(
                        "llama.cpp splits at every `{separator}`, finds no `=` in one part, and refuses the command"
                    ),
                    "a pattern cannot hold one: write `(a|b)` for a list, `xx?` for `x{1,2}`",
                ),
                Broken::Equals { .. } => (
                    "pattern-split-by-equals",
                    "llama.cpp splits at the first `=`, takes the rest for a buffer, and refuses the command"
                        .to_string(),
                    "a pattern cannot hold `=`: write the rule without a lookahead",
                ),
                Broken::Quoted { .. } => (
                    "pattern-quoted",
                    "the quotes reach llama.cpp, which knows no such buffer and refuses the command".to_string(),
                    "leave the inner quotes out: no shell takes them off here",
                ),
            };
            let text = entry.text();
            self.note(code, format!("`{} {text}`: {why}{LEFT_OUT}", given.flag), Some(hint.into()));
        }
        Ok(())
    }
}

/// Where the model of a command comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// `-m`.
    Path(PathBuf),
    /// `-hf` and `-hff`.
    HuggingFace {
        /// `owner/name[:quant]`.
        repo: String,
        /// A file of it.
        file: Option<String>,
    },
    /// `-mu`.
    Url(String),
    /// `-dr`.
    Docker(String),
}

/// Something about a command line that is no error here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A stable name: `unknown-flag`, `removed-flag` …
    pub code: Cow<'static, str>,
    /// What is the matter; holds words as typed.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

/// A command while it is read.
pub(super) struct Launch {
    /// What is known so far.
    pub command: ParsedCommand,
    /// Resolved at the end.
    pub speculation: Speculation,
    /// `-fitp`.
    pub fit_print: bool,
    /// `-hf`.
    pub hf_repo: Option<String>,
    /// `-hff`.
    pub hf_file: Option<String>,
}

/// Reads a command line: the program, then its words, in the given environment. Leading `NAME=VALUE` words and `env` count
/// as a shell would count them.
pub fn command(words: &[String], env: &BTreeMap<String, String>) -> Result<ParsedCommand, Error> {
    command_for(words, env, Target::default())
}

/// [`command`] as a given build, or ik_llama.cpp, would read it.
pub fn command_for(words: &[String], env: &BTreeMap<String, String>, target: Target) -> Result<ParsedCommand, Error> {
    let mut env = env.clone();
    let mut words = words;
    while let Some((first, rest)) = words.split_first() {
        if let Some((name, value)) = assignment(first) {
            env.insert(name.to_string(), value.to_string());
        } else if first != "env" {
            break;
        }
        words = rest;
    }
    if let Some(error) = pasted::slip(words) {
        return Err(error);
    }
    let (first, rest) = words.split_first().ok_or(Error::Empty)?;
    let program = program(first).ok_or_else(|| Error::UnknownProgram(first.clone()))?;
    let run = RunConfig { program, ..RunConfig::default() };
    let mut launch = Launch {
        command: ParsedCommand { run, model: None, notes: Vec::new(), target, last_blocks: None, beside: Vec::new() },
        speculation: Speculation::default(),
        fit_print: false,
        hf_repo: None,
        hf_file: None,
    };
    if target.dialect == Dialect::Ik {
        dialect::defaults(&mut launch.command.run);
    }
    if program == Program::Bench {
        bench::read(&mut launch, rest)?;
    } else {
        environment(&mut launch, &env)?;
        arguments(&mut launch, rest)?;
        settings::finish(&mut launch);
    }
    if let (Some(repo), false) = (launch.hf_repo, matches!(launch.command.model, Some(ModelSource::Path(_)))) {
        launch.command.model = Some(ModelSource::HuggingFace { repo, file: launch.hf_file });
    }
    Ok(launch.command)
}

/// `NAME=VALUE` before a program.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (plain && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some((name, value))
}

/// The program of a path to it.
fn program(path: &str) -> Option<Program> {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    match name.strip_suffix(".exe").unwrap_or(name) {
        "llama-server" => Some(Program::Server),
        "llama-cli" => Some(Program::Cli),
        "llama-bench" => Some(Program::Bench),
        "llama-fit-params" => Some(Program::FitParams),
        _ => None,
    }
}

/// `LLAMA_ARG_*`, in the order of the flags' definitions.
fn environment(launch: &mut Launch, env: &BTreeMap<String, String>) -> Result<(), Error> {
    if env.is_empty() {
        return Ok(());
    }
    for flag in flags::FLAGS.iter() {
        let Some(name) = flag.environment else { continue };
        let negated = name.replace("LLAMA_ARG_", "LLAMA_ARG_NO_");
        let value =
            if flag.is_switch() && env.contains_key(&negated) { Some("0") } else { env.get(name).map(String::as_str) };
        let Some(value) = value else { continue };
        let given = Given { flag: name, value };
        if flag.is_switch() {
            let on = given.switch()?;
            let word = if on { flag.name() } else { flag.negated().unwrap_or_default() };
            settings::carry_out(launch, flag.name(), on, given, &[word])?;
        } else if flag.values > 0 {
            settings::carry_out(launch, flag.name(), true, given, &[flag.name(), value])?;
        } else if given.truth() == Some(true) {
            settings::carry_out(launch, flag.name(), true, given, &[flag.name()])?;
        }
    }
    for flag in NEW_FLAGS {
        if let Some(value) = env.get(flag.environment).filter(|_| launch.command.target.build >= flag.since) {
            settings::apply(launch, flag.name, true, Given { flag: flag.environment, value })?;
        }
    }
    Ok(())
}

/// The words after the program.
fn arguments(launch: &mut Launch, words: &[String]) -> Result<(), Error> {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        at = at.saturating_add(1);
        if let Some(taken) = of_target(launch, word, words.get(at))? {
            at = at.saturating_add(taken);
            continue;
        }
        if let Some((_, values, instead)) = flags::REMOVED.iter().find(|(name, ..)| name == word) {
            at = at.saturating_add(*values);
            removed(launch, word, instead)?;
            continue;
        }
        let Some((flag, on)) = flags::find(word) else {
            let taken = unknown(&mut launch.command, word, words.get(at));
            launch.command.beside.extend(std::iter::once(word).chain(words.iter().skip(at).take(taken)).cloned());
            at = at.saturating_add(taken);
            continue;
        };
        if let Some(value) = optional_value(flag.name(), words.get(at)) {
            launch.command.note(
                "flag-needs-value",
                format!("`{word}` needs a value in {}; read as `{word} {value}`", launch.command.target.name()),
                Some(format!("write `{word} {value}`")),
            );
            settings::apply(launch, flag.name(), on, Given { flag: word, value })?;
            continue;
        }
        let value = if flag.values == 0 { "" } else { value_of(word, flag.name(), words.get(at))? };
        if flag.values > 1 && words.len().saturating_sub(at) < flag.values {
            return Err(Error::MissingValue { flag: word.clone(), expected: "two words".into() });
        }
        let typed: Vec<&str> =
            std::iter::once(word).chain(words.iter().skip(at).take(flag.values)).map(String::as_str).collect();
        settings::carry_out(launch, flag.name(), on, Given { flag: word, value }, &typed)?;
        at = at.saturating_add(flag.values);
    }
    Ok(())
}

/// The value that follows a flag, or the error that says what to write.
pub(super) fn value_of<'a>(word: &str, name: &str, next: Option<&'a String>) -> Result<&'a str, Error> {
    let expected = match name {
        "--gpu-layers" => "a number of layers, `auto` or `all`",
        "--override-tensor" => "PATTERN=BUFFER",
        "--model" => "a GGUF file",
        _ => "one word after it",
    };
    next.map(String::as_str).ok_or_else(|| Error::MissingValue { flag: word.into(), expected: expected.into() })
}

/// What a bare `-fa` or `-fit` of older builds means, where no fitting value follows.
fn optional_value(name: &str, next: Option<&String>) -> Option<&'static str> {
    let bare = next.is_none_or(|word| word.starts_with('-') && word != "-1");
    (bare && matches!(name, "--flash-attn" | "--fit")).then_some("on")
}

/// A flag that the reference does not have, or that ik_llama.cpp reads in its own way: how many words after it belong to it.
fn of_target(launch: &mut Launch, word: &str, next: Option<&String>) -> Result<Option<usize>, Error> {
    let target = launch.command.target;
    if target.dialect == Dialect::Ik {
        if let Some((flag, _)) = flags::find(word).filter(|(flag, _)| dialect::lacks(flag.name())) {
            launch.command.note(
                "other-dialect",
                format!("`{word}` is a flag of llama.cpp; ik_llama.cpp is not known to have `{}`", flag.name()),
                Some("see `llama-server --help` of your build; `--no-mmap` stands for `--load-mode none` there".into()),
            );
        }
        return dialect::read(launch, word, next);
    }
    let spelled = word.replace('_', "-");
    let Some(new) = NEW_FLAGS.iter().find(|flag| flag.name == spelled) else { return Ok(None) };
    let value = value_of(word, new.name, next)?;
    if target.build < new.since {
        newer(&mut launch.command, word, new.since);
    } else {
        settings::apply(launch, new.name, true, Given { flag: word, value })?;
    }
    Ok(Some(new.values))
}

/// Notes a flag of a build that is newer than the one asked about.
fn newer(command: &mut ParsedCommand, word: &str, since: u32) {
    let name = command.target.name();
    command.note(
        "flag-of-newer-build",
        format!("`{word}` is no flag of {name}: the first build known to have it is b{since}"),
        Some(format!("`moeplan check --build {since}` answers for that build")),
    );
}

/// Notes a word that no table has; how many words after it look like its value.
pub(super) fn unknown(command: &mut ParsedCommand, word: &str, next: Option<&String>) -> usize {
    let target = command.target;
    match target.dialect {
        Dialect::Ik => command.note(
            "other-dialect",
            format!("`{word}` is no flag that moeplan knows of ik_llama.cpp; it is taken not to matter"),
            None,
        ),
        Dialect::LlamaCpp if dialect::is_own(word) => command.note(
            "unknown-flag",
            format!("`{word}` is a flag of ik_llama.cpp: {} refuses it", target.name()),
            Some("`--dialect ik` reads the command as ik_llama.cpp does".into()),
        ),
        Dialect::LlamaCpp => {
            let of_bench = command.run.program == Program::Bench;
            let spellings = flags::spellings().filter(|flag| !of_bench || bench::has(flag));
            let meant = suggest::did_you_mean(word, spellings);
            let program = if of_bench { "llama-bench of " } else { "" };
            if target.known().is_some() {
                let message = format!("`{word}` is no flag of {program}{}, which refuses it", target.name());
                command.note("unknown-flag", message, meant);
            } else {
                let message = format!("`{word}` is no flag known here; whether {} has it is not known", target.name());
                let hint = meant.unwrap_or_else(|| "`llama-server --help` of that build lists what it has".into());
                command.note("flag-not-known", message, Some(hint));
            }
        }
    }
    usize::from(word.starts_with('-') && next.is_some_and(|value| !value.starts_with('-')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{FlashAttn, SplitMode};

    fn read(line: &str) -> Result<ParsedCommand, Error> {
        read_in(line, &[])
    }

    fn read_in(line: &str, env: &[(&str, &str)]) -> Result<ParsedCommand, Error> {
        let words = shlex::split(line).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
        command(&words, &env)
    }

    fn patterns(command: &ParsedCommand) -> Vec<&str> {
        command.run.overrides.iter().map(|entry| entry.pattern.as_str()).collect()
    }

    #[test]
    fn programs_by_any_path() {
        for (line, program) in [
            ("llama-server", Program::Server),
            ("./build/bin/llama-cli -m x", Program::Cli),
            (r"'C:\llama\llama-bench.exe'", Program::Bench),
            ("env CUDA_VISIBLE_DEVICES=0 /usr/bin/llama-fit-params", Program::FitParams),
        ] {
            assert_eq!(read(line).unwrap().run.program, program, "{line}");
        }
        assert_eq!(read(""), Err(Error::Empty));
        assert_eq!(read("ollama run x"), Err(Error::UnknownProgram("ollama".into())));
    }

    #[test]
    fn long_short_and_underscored_flags() {
        for line in [
            "llama-server -c 8192 -ngl 99 -b 1024 -ub 256 -np 2 -kvu -fa on -nkvo -nr -sm none -mg 1",
            "llama-server --ctx-size 8192 --n-gpu-layers 99 --batch-size 1024 --ubatch_size 256 --parallel 2 --kv-unified \
             --flash-attn 1 --no-kv-offload --no_repack --split-mode none --main-gpu 1",
        ] {
            let ParsedCommand { run, notes, .. } = read(line).unwrap();
            let expected = RunConfig {
                n_ctx: 8192,
                n_gpu_layers: 99,
                n_batch: 1024,
                n_ubatch: 256,
                n_parallel: Some(2),
                kv_unified: Some(true),
                flash_attn: FlashAttn::On,
                offload_kqv: false,
                repack: false,
                split_mode: SplitMode::None,
                main_gpu: 1,
                ..RunConfig::default()
            };
            assert_eq!((run, notes), (expected, vec![]), "{line}");
        }
    }

    #[test]
    fn overrides_keep_their_order_and_the_environment_comes_first() {
        let line = r"llama-server -ncmoe 1 -ot 'a=CUDA0,b=CPU' -cmoe -ot c=CPU -ncffn 1";
        let env =
            [("LLAMA_ARG_N_CPU_MOE", "1"), ("LLAMA_ARG_OVERRIDE_TENSOR", "e=CPU"), ("LLAMA_ARG_CTX_SIZE", "1024")];
        let command = read_in(line, &env).unwrap();
        let experts = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";
        let block = format!("blk\\.0{experts}");
        assert_eq!(patterns(&command), ["e", &block, &block, "a", "b", experts, "c", r"blk\.0\.ffn_(up|down|gate)\."]);
        assert_eq!(command.run.n_ctx, 1024);
        assert_eq!(read_in("llama-server -c 2048", &env).unwrap().run.n_ctx, 2048);
        assert_eq!(read_in("llama-bench", &env).unwrap().run.overrides, []);
        assert!(!read_in("llama-cli", &[("LLAMA_ARG_NO_KV_OFFLOAD", "1")]).unwrap().run.offload_kqv);
    }

    #[test]
    fn flags_that_do_not_matter_still_take_their_values() {
        let line = "llama-server --port 8080 --host 0.0.0.0 -t 8 --control-vector-layer-range 1 2 --temp 0.7 --jinja \
                    -a name --no-warmup -v -m model.gguf";
        let command = read(line).unwrap();
        assert_eq!(command.notes, []);
        assert_eq!(command.model, Some(ModelSource::Path("model.gguf".into())));
    }

    #[test]
    fn removed_and_unknown_flags_are_noted() {
        let command = read("llama-server --no-mmap --frobnicate 3 --mlock -fa -ngl 9 -m x").unwrap();
        let codes: Vec<&str> = command.notes.iter().map(|note| &*note.code).collect();
        assert_eq!(codes, ["removed-flag", "unknown-flag", "removed-flag", "flag-needs-value"]);
        assert_eq!((command.run.flash_attn, command.run.n_gpu_layers), (FlashAttn::On, 9));
        assert!(command.model.is_some());
    }

    #[test]
    fn speculation_decides_output_rows_and_rollback() {
        for (line, mtp, n_draft, n_rs_seq) in [
            ("llama-server", false, 0, 0),
            ("llama-server --spec-type draft-mtp", true, 3, 3),
            ("llama-server --spec-type draft-mtp,ngram-simple --spec-draft-n-max 5", true, 48, 5),
            ("llama-server --spec-default", false, 64, 0),
        ] {
            let run = read(line).unwrap().run;
            assert_eq!((run.mtp, run.n_draft, run.n_rs_seq), (mtp, n_draft, n_rs_seq), "{line}");
        }
    }

    #[test]
    fn bench_takes_the_first_of_each_list() {
        let command =
            read("llama-bench -m x -p 512,2048 -n 128 -d 4096 -ot 'a=CPU;b=CPU,c=CUDA0' -ts 3/1 -ncmoe 2 -ngl 99")
                .unwrap();
        assert_eq!(command.run.n_ctx, 512 + 4096);
        assert_eq!(patterns(&command)[..2], ["a", "b"]);
        assert_eq!(command.run.overrides.len(), 4);
        assert_eq!(command.run.tensor_split, [3.0, 1.0]);
        assert_eq!(command.notes.len(), 2);
    }

    #[test]
    fn errors_name_the_flag_and_what_to_try() {
        for (line, message) in [
            ("llama-server -ngl", "`-ngl` takes a value: a number of layers, `auto` or `all`"),
            ("llama-server -ngl many", "`-ngl many`: expected a number of layers, `auto` or `all`"),
            (
                "llama-server -ctk q3_K",
                "`-ctk q3_K`: expected one of f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1",
            ),
            ("llama-server -np 0", "`-np 0`: expected a number of slots, or -1 for llama-server's own choice"),
            (
                "llama-server -ot exps",
                "`-ot exps`: expected PATTERN=BUFFER entries (no comma inside a pattern: llama.cpp splits there)",
            ),
        ] {
            assert_eq!(read(line).unwrap_err().to_string(), message, "{line}");
        }
    }
}
