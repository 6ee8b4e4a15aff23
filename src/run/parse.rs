//! Whole command lines of llama.cpp's programs, read as the program would read them.
//!
//! Source: `common/arg.cpp` `common_params_parse_ex`, b11434: the environment first, in the order of the flags' definitions,
//! then the words; later words win, overrides accumulate. Of every list of llama-bench the first value is taken.
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

use std::collections::BTreeMap;

use super::behaviour::STEPS;
use super::command::{ModelSource, ParsedCommand};
use super::config::{Dialect, LoadMode, OFFLOAD_MIN_BATCH, Override, Program, RunConfig, Target};
use super::dialect::{self, LastBlocks};
use super::flags::{self, Effect, Flag, Removed};
use super::held::{self, Held};
use super::speculation::Speculation;
use super::values::{Given, value_of};
use super::{Error, visible};
use crate::suggest;

/// Reads a command line: the program, then its words, in the given environment. What stands around it (`NAME=VALUE`, `sudo`,
/// `docker run …`) is taken off as in `held`. As the newest build that is known reads it.
pub fn command(words: &[String], env: &BTreeMap<String, String>) -> Result<ParsedCommand, Error> {
    command_for(words, env, Target::newest())
}

/// [`command`] as a given build, or ik_llama.cpp, would read it.
pub fn command_for(words: &[String], env: &BTreeMap<String, String>, target: Target) -> Result<ParsedCommand, Error> {
    launch(&held::of_words(words, &|_| None)?, env, target)
}

/// Reads a launch that was taken out of what held it; its own variables win over `env`.
pub fn launch(held: &Held, env: &BTreeMap<String, String>, target: Target) -> Result<ParsedCommand, Error> {
    read(held, env, target).map_err(|error| {
        // Which line of a preset it is about: the one that is refused alone, too.
        let program = held.words.iter().take(1);
        let alone =
            |words: &Vec<String>| Held { words: program.clone().chain(words).cloned().collect(), ..Held::default() };
        let is_refused = |words| read(&alone(words), &BTreeMap::new(), target).is_err_and(|other| other == error);
        match held.lines.iter().find(|(_, words)| is_refused(words)) {
            Some((line, _)) => error.at_line(*line, held.name.as_deref()),
            None => error,
        }
    })
}

fn read(held: &Held, env: &BTreeMap<String, String>, target: Target) -> Result<ParsedCommand, Error> {
    let mut env = env.clone();
    env.extend(held.environment.clone());
    let target = Target { build: held.build.unwrap_or(target.build), ..target };
    let (first, words) = held.words.split_first().ok_or(Error::Empty)?;
    let program = Program::of_path(first).ok_or_else(|| Error::UnknownProgram(first.clone()))?;
    let mut run = RunConfig { program, ..RunConfig::of(target) };
    if program == Program::Server {
        run.n_parallel = run.rules().slots;
    }
    match program {
        Program::Perplexity | Program::Imatrix => run.n_ctx = 512,
        // They create their context themselves, without fitting (`tools/batched-bench/batched-bench.cpp`).
        Program::BatchedBench | Program::SweepBench => run.fit = false,
        Program::Embedding => run.embeddings = true,
        _ => {}
    }
    let mut reader = Reader {
        command: ParsedCommand::new(run, None),
        speculation: Speculation::default(),
        fits_nothing: false,
        hub: (None, None),
        tests: Tests { prompt: 512, generate: 128, both: 0, depth: 0 },
        of_tests: Vec::new(),
    };
    reader.command.notes.clone_from(&held.notes);
    (reader.command.memory, reader.command.image) = (held.memory, held.image);
    reader.command.environment = env
        .iter()
        .filter(|(name, _)| visible::selects(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(value) = env.get(OFFLOAD_MIN_BATCH) {
        reader.offload_rows(value);
    }
    if program == Program::Bench {
        reader.bench(words)?;
    } else {
        reader.environment(&env)?;
        reader.arguments(words)?;
    }
    Ok(reader.finish())
}

struct Reader {
    command: ParsedCommand,
    speculation: Speculation,
    fits_nothing: bool,
    hub: (Option<String>, Option<String>),
    tests: Tests,
    /// llama-bench's `-ncmoe`, which comes after all of its `-ot`.
    of_tests: Vec<Override>,
}

/// The variable that negates a switch which has one.
fn negated_variable(flag: &Flag) -> Option<String> {
    let name = flag.environment.filter(|_| flag.is_switch())?;
    Some(name.replace("LLAMA_ARG_", "LLAMA_ARG_NO_"))
}

impl Reader {
    /// `LLAMA_ARG_*`, in the order of the flags' definitions.
    fn environment(&mut self, env: &BTreeMap<String, String>) -> Result<(), Error> {
        if env.is_empty() {
            return Ok(());
        }
        let (target, program) = (self.command.run.target, self.command.run.program);
        for flag in flags::FLAGS.iter().filter(|flag| target.has(flag) && flag.is_of(program)) {
            let Some(name) = flag.environment else { continue };
            let is_negated = negated_variable(flag).is_some_and(|negated| env.contains_key(&negated));
            let Some(value) = (if is_negated { Some("0") } else { env.get(name).map(String::as_str) }) else {
                continue;
            };
            let given = Given::new(name, value);
            if flag.is_switch() {
                let on = given.switch()?;
                // The last spelling that negates is the long one.
                let word = if on { flag.name() } else { flag.negated().last().unwrap_or_default() };
                self.set(flag, Given { on, ..given }, &[word])?;
            } else if flag.values > 0 {
                self.set(flag, given, &[flag.name(), value])?;
            } else if given.truth() == Some(true) {
                self.set(flag, given, &[flag.name()])?;
            }
        }
        self.note_unknown(env);
        Ok(())
    }

    /// [`OFFLOAD_MIN_BATCH`], in every program; what is no number is 0 (`atoi`), and every product is taken over.
    fn offload_rows(&mut self, value: &str) {
        let target = self.command.run.target;
        if !target.has_offload_rows() {
            let message = format!("{} is not known to read `{OFFLOAD_MIN_BATCH}`: it is not counted", target.name());
            return self.command.note("unknown-variable", message, None);
        }
        let given = Given::new(OFFLOAD_MIN_BATCH, value);
        if !given.integer().is_ok_and(|rows| rows >= 0) {
            let message = format!(
                "`{OFFLOAD_MIN_BATCH}={value}`: llama.cpp reads no positive number, so devices take over products of any size"
            );
            self.command.note("number-cut-short", message, Some("write a number of tokens".to_string()));
        }
        self.command.run.op_offload_min_batch = Some(given.integer().map_or(0, |rows| rows.max(0).unsigned_abs()));
        self.note_unread(given);
    }

    /// Variables that no flag of llama.cpp has; it ignores them.
    fn note_unknown(&mut self, env: &BTreeMap<String, String>) {
        let known: Vec<&str> = flags::FLAGS.iter().filter_map(|flag| flag.environment).collect();
        let negated: Vec<String> = flags::FLAGS.iter().filter_map(negated_variable).collect();
        let is_known = |name: &str| known.contains(&name) || negated.iter().any(|known| known == name);
        let of_flags = env.keys().map(String::as_str).filter(|name| name.starts_with("LLAMA_ARG_"));
        let unknown: Vec<&str> = of_flags.filter(|name| !is_known(name)).collect();
        if let Some(first) = unknown.first().filter(|_| self.command.run.target.dialect == Dialect::LlamaCpp) {
            let hint = suggest::did_you_mean(first, known.iter().copied());
            let names = unknown.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            self.command.note(
                "unknown-variable",
                format!("no flag of llama.cpp reads {names}: it has no effect"),
                hint,
            );
        }
    }

    fn arguments(&mut self, mut words: &[String]) -> Result<(), Error> {
        while let Some((word, rest)) = words.split_first() {
            let taken = self.argument(word, rest)?;
            words = rest.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// One flag: how many words after it belong to it.
    fn argument(&mut self, word: &str, rest: &[String]) -> Result<usize, Error> {
        let (next, target) = (rest.first(), self.command.run.target);
        if target.dialect == Dialect::Ik
            && let Some(taken) = self.argument_of_ik(word, next)?
        {
            return Ok(taken);
        }
        if let Some(removed) = flags::find_removed(word, false) {
            self.removed(word, removed, "")?;
            return Ok(removed.values);
        }
        if let Some(values) = self.command.run.program.own_values(word) {
            let given = Given::new(word, if values > 0 { value_of(word, word, next)? } else { "" });
            self.own(given)?;
            return Ok(values);
        }
        let known = flags::spelling(word).filter(|(flag, _)| target.has(flag) || target.dialect != Dialect::Ik);
        let Some((flag, on)) = known else {
            if let Some((flag, value)) = glued(word) {
                self.command.note(
                    "flag-malformed",
                    format!("`{word}` is one word: {} refuses it; it is read as `{flag} {value}`", target.name()),
                    Some(format!("write `{flag} {value}`")),
                );
                self.argument(flag, &[value.to_string()])?;
                return Ok(0);
            }
            let taken = self.unknown(word, next);
            self.command.beside.push(word.to_string());
            self.command.beside.extend(rest.iter().take(taken).cloned());
            return Ok(taken);
        };
        if let Some(value) = optional_value(flag.name(), next) {
            if flag.name() == "--flash-attn" && target.rules().flash_attn_alone {
                self.set(flag, Given { on, ..Given::new(word, value) }, &[word])?;
                return Ok(0);
            }
            let alone = STEPS.iter().find(|step| step.rule == "flash_attn_alone" && flag.name() == "--flash-attn");
            let since = alone.map_or(String::new(), |step| format!(", as in every build from b{} on", step.since));
            self.command.note(
                "flag-needs-value",
                format!("`{word}` needs a value in {}{since}; read as `{word} {value}`", target.name()),
                Some(format!("write `{word} {value}`{}", if since.is_empty() { "" } else { OWN_BUILD })),
            );
            self.set(flag, Given { on, ..Given::new(word, value) }, &[word, value])?;
            return Ok(0);
        }
        let value = if flag.values == 0 { "" } else { value_of(word, flag.name(), next)? };
        if rest.len() < flag.values {
            return Err(Error::MissingValue { flag: word.into(), expected: "two words".into() });
        }
        let program = self.command.run.program;
        if !flag.is_of(program) && target.dialect == Dialect::LlamaCpp {
            let message = format!("`{word}` is a flag of llama-server: {} refuses it", program.name());
            self.command.note("unknown-flag", message, Some("leave it out".into()));
        } else if target.has(flag) {
            let values = rest.iter().take(flag.values).map(String::as_str);
            let typed: Vec<&str> = std::iter::once(word).chain(values).collect();
            self.set(flag, Given { on, ..Given::new(word, value) }, &typed)?;
        } else {
            self.command.note(
                "flag-of-newer-build",
                format!(
                    "`{word}` is not a flag of {}: the first build known to have it is b{}",
                    target.name(),
                    flag.since
                ),
                Some(format!("`moeplan check --build {}` answers for that build", flag.since)),
            );
        }
        Ok(flag.values)
    }

    /// A flag that ik_llama.cpp reads in its own way; `None` where it is read as llama.cpp does.
    fn argument_of_ik(&mut self, word: &str, next: Option<&String>) -> Result<Option<usize>, Error> {
        if let Some((flag, _)) = flags::spelling(word).filter(|(flag, _)| !flag.in_ik) {
            self.command.note(
                "other-dialect",
                format!("`{word}` is a flag of llama.cpp; ik_llama.cpp is not known to have `{}`", flag.name()),
                Some("see `llama-server --help` of your build; `--no-mmap` is its `--load-mode none`".into()),
            );
        }
        dialect::read(&mut self.command.run, &mut self.command.last_blocks, word, next)
    }

    /// Carries out a flag; the words that were `typed` are kept where [`RunConfig`] does not say all that they do.
    fn set(&mut self, flag: &Flag, given: Given<'_>, typed: &[&str]) -> Result<(), Error> {
        match &flag.effect {
            Effect::None => {}
            Effect::Words(words) => self.arguments(&words.split(' ').map(str::to_string).collect::<Vec<_>>())?,
            Effect::Field(field) => {
                self.command.notes.extend((field.read)(&mut self.command.run, given)?);
                if field.is_number {
                    self.note_unread(given);
                }
            }
            Effect::Model => self.model(flag.name(), given.value),
            Effect::Speculation => {
                let is_checked = self.command.run.target.dialect == Dialect::LlamaCpp;
                self.speculation.set(flag.name(), given, is_checked)?;
                if flag.name() != "--spec-type" {
                    self.note_unread(given);
                }
            }
            Effect::FitPrint => self.fits_nothing = given.switch()?,
        }
        if flag.beside {
            self.command.beside.extend(typed.iter().map(ToString::to_string));
        }
        Ok(())
    }

    /// Notes what llama.cpp leaves unread of a number (`std::stoi`); llama-bench refuses it.
    fn note_unread(&mut self, given: Given<'_>) {
        let (unread, value) = (given.unread(), given.value);
        if unread.is_empty() || given.bench {
            return;
        }
        let number = value.strip_suffix(unread).unwrap_or(value).trim();
        // `16,384` is one number, too.
        let meant = match crate::number::tokens(&value.replace(',', "")) {
            Ok(whole) => Ok(format!("write `{} {whole}`", given.flag)),
            Err(_) if flags::spelling(unread).is_some() => {
                Ok(format!("a space is missing: `{} {number} {unread}`", given.flag))
            }
            Err(error) => Err(error),
        };
        self.command.note(
            "number-cut-short",
            format!("`{} {value}`: llama.cpp reads {number} and ignores the rest", given.flag),
            meant.ok(),
        );
    }

    /// A flag that says where the model is.
    fn model(&mut self, name: &str, value: &str) {
        match name {
            "--model" => self.command.model = Some(ModelSource::Path(value.into())),
            "--model-url" => self.command.model = Some(ModelSource::Url(value.into())),
            "--docker-repo" => self.command.model = Some(ModelSource::Docker(value.into())),
            "--hf-repo" => self.hub.0 = Some(value.into()),
            _ => self.hub.1 = Some(value.into()),
        }
    }

    /// A flag that the reference does not have any more: carried out as it was meant, and noted where the build refuses it.
    fn removed(&mut self, word: &str, flag: &Removed, value: &str) -> Result<(), Error> {
        let target = self.command.run.target;
        let word = &if value.is_empty() { word.to_string() } else { format!("{word} {value}") };
        let instead = match (word.as_str(), self.command.run.load_mode) {
            _ if flag.bench && value == "0" => flag.when_off,
            ("--mlock", LoadMode::None) | ("--no-mmap", LoadMode::MmapMlock | LoadMode::Mlock) => "--load-mode mlock",
            _ => flag.instead,
        };
        if let Some((name, value)) = instead.split_once(' ')
            && let Some((new, _)) = flags::spelling(name)
        {
            self.set(new, Given::new(word, value), &[])?;
            // The last of several says what they come to.
            let earlier = self.command.notes.iter_mut().filter(|note| note.code == "removed-flag");
            for note in earlier.filter(|note| note.hint.as_deref().is_some_and(|hint| hint.contains(name))) {
                note.hint = None;
            }
        }
        match target.takes(flag) {
            Some(true) => {}
            Some(false) => self.command.note(
                "removed-flag",
                format!("`{word}` was removed after b{}: {} refuses it", flag.until, target.name()),
                Some(format!("use `{instead}`{OWN_BUILD}")),
            ),
            None => self.command.note(
                "flag-not-known",
                format!(
                    "`{word}` was removed after b{} and by b{}; whether {} has it is not known",
                    flag.until,
                    flag.gone,
                    target.name()
                ),
                Some(format!("`{instead}` took its place")),
            ),
        }
        Ok(())
    }

    /// A flag of this program that llama-server does not have.
    fn own(&mut self, given: Given<'_>) -> Result<(), Error> {
        let run = &mut self.command.run;
        match given.flag {
            // A sequence for each of the largest number that is measured together.
            "-npl" => {
                let counts: Vec<u32> = given
                    .names(',')
                    .iter()
                    .map(|value| Given { value, ..given }.natural())
                    .collect::<Result<_, _>>()?;
                run.n_parallel = counts.into_iter().max();
            }
            "--kl-divergence" => run.n_parallel = Some(1),
            _ => {}
        }
        Ok(())
    }

    /// Notes a word that no table has; how many words after it look like its value.
    fn unknown(&mut self, word: &str, next: Option<&String>) -> usize {
        let target = self.command.run.target;
        let of_bench = self.command.run.program == Program::Bench;
        let spellings = flags::spellings().filter(|flag| !of_bench || is_in_bench(flag));
        let (name, meant) = (target.name(), suggest::did_you_mean(word, spellings));
        let (code, message, hint) = if !word.starts_with('-') {
            let message = format!("`{word}` belongs to no flag: {name} refuses it");
            let is_file =
                std::path::Path::new(word).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
            if is_file && self.command.model.is_none() {
                self.model("--model", word);
                ("flag-malformed", format!("{message}; it is read as the model"), Some(format!("write `-m {word}`")))
            } else {
                ("unknown-flag", message, Some("leave it out, or put its flag before it".to_string()))
            }
        } else if target.dialect == Dialect::Ik {
            let message = format!("moeplan does not know `{word}` in ik_llama.cpp and assumes that it has no effect");
            ("other-dialect", message, None)
        } else if dialect::is_own(word) && Program::Perplexity.own_values(word).is_none() {
            let hint = "`--dialect ik` reads the command as ik_llama.cpp does".to_string();
            ("unknown-flag", format!("`{word}` is a flag of ik_llama.cpp: {name} refuses it"), Some(hint))
        } else if target.known().is_some() {
            let program = if of_bench { "llama-bench of " } else { "" };
            // Any of the programs that have flags of their own knows them all.
            let is_others = Program::Perplexity.own_values(word).is_some();
            let hint = if is_others {
                Some("other programs have it, such as llama-completion; leave it out".into())
            } else {
                meant
            };
            ("unknown-flag", format!("`{word}` is not a flag of {program}{name}, which refuses it"), hint)
        } else {
            let hint = meant.unwrap_or_else(|| "`llama-server --help` of that build lists what it has".into());
            let message = format!("moeplan does not know `{word}`; {name} may have it");
            ("flag-not-known", message, Some(hint))
        };
        self.command.note(code, message, hint);
        usize::from(word.starts_with('-') && next.is_some_and(|value| !value.starts_with('-')))
    }

    /// The words after `llama-bench`.
    fn bench(&mut self, mut words: &[String]) -> Result<(), Error> {
        let run = &mut self.command.run;
        run.fit = false;
        run.n_parallel = Some(1);
        run.kv_unified = Some(false);
        while let Some((word, rest)) = words.split_first() {
            let taken = self.argument_of_bench(word, rest.first())?;
            words = rest.get(taken..).unwrap_or_default();
        }
        let run = &mut self.command.run;
        run.overrides.append(&mut self.of_tests);
        // The context that the longest of them needs.
        let Tests { prompt, generate, both, depth } = self.tests;
        run.n_ctx = prompt.max(generate).max(both).saturating_add(depth).max(1);
        Ok(())
    }

    /// One flag of llama-bench: how many words after it belong to it.
    fn argument_of_bench(&mut self, word: &str, next: Option<&String>) -> Result<usize, Error> {
        if let Some(values) = bench_flag_of_no_effect(word) {
            return Ok(values);
        }
        if let Some(removed) = flags::find_removed(word, true) {
            let value = value_of(word, "--load-mode", next)?;
            let value = self.first(word, value);
            self.removed(word, removed, value)?;
            return Ok(removed.values);
        }
        if is_test(word) {
            let whole = value_of(word, word, next)?;
            let value = if word == "-pg" { whole } else { self.first(word, whole) };
            self.tests.set(Given { bench: true, ..Given::new(word, value) })?;
            return Ok(1);
        }
        let Some(flag) = flags::find_in_bench(word) else { return Ok(self.unknown(word, next)) };
        let whole = value_of(word, flag.name(), next)?;
        let value = if flag.name() == "--rpc" { whole } else { self.first(word, whole) };
        let given = Given { bench: true, ..Given::new(word, value) };
        match flag.name() {
            "--n-cpu-moe" if self.command.run.target.dialect == Dialect::Ik => {
                self.command.last_blocks = Some(LastBlocks { count: given.natural()?, origin: word.to_string() });
            }
            "--n-cpu-moe" => {
                let before = std::mem::take(&mut self.command.run.overrides);
                self.set(flag, given, &[])?;
                self.of_tests = std::mem::replace(&mut self.command.run.overrides, before);
            }
            name => {
                let on = if flag.values == 0 { given.switch()? != flag.bench_negates() } else { true };
                self.set(flag, Given { on, ..given }, &[])?;
                self.command.run.fit |= name == "--fit-target";
            }
        }
        Ok(1)
    }

    /// The first of the values of a list, with a note where there are more.
    fn first<'a>(&mut self, word: &str, whole: &'a str) -> &'a str {
        let Some((value, _)) = whole.split_once(',') else { return whole };
        self.command.note(
            "first-variant",
            format!("`{word} {whole}` makes llama-bench run several tests; this is the one with `{value}`"),
            Some("check the others one by one".into()),
        );
        value
    }

    /// The command once every word is read.
    fn finish(mut self) -> ParsedCommand {
        let run = &mut self.command.run;
        self.speculation.finish(run);
        if run.program == Program::Embedding {
            // The whole context in one batch (`examples/embedding/embedding.cpp`).
            run.n_batch = run.n_batch.max(run.n_ctx);
            run.n_ubatch = run.n_batch;
        }
        if self.fits_nothing && run.program == Program::FitParams {
            // Printing measures the command as it is; nothing is fitted.
            run.fit = false;
        }
        if let ((Some(repo), file), false) = (self.hub, matches!(self.command.model, Some(ModelSource::Path(_)))) {
            self.command.model = Some(ModelSource::HuggingFace { repo, file });
            let run = &self.command.run;
            if run.program.takes_projector() && run.mmproj_auto && !run.has_projector() {
                self.command.note(
                    "projector",
                    "`-hf` also loads the repository's multimodal projector, if it has one; it is not counted".into(),
                    Some("add `--no-mmproj`, or name the projector with `--mmproj-url`".into()),
                );
            }
        }
        self.command
    }
}

/// `--ctx-size=8192` and `-c8192`, which llama.cpp does not take apart: a flag with one value, and that value.
fn glued(word: &str) -> Option<(&str, &str)> {
    let (flag, value) = match word.split_once('=') {
        Some(pair) if word.starts_with('-') => pair,
        _ => word.split_at_checked(word.find(|c: char| c.is_ascii_digit())?)?,
    };
    let takes_one = flags::spelling(flag).is_some_and(|(flag, _)| flag.values == 1);
    (takes_one && !value.is_empty()).then_some((flag, value))
}

/// What else helps where a flag is one of older builds.
const OWN_BUILD: &str = "; `--build N` says which llama.cpp you have, if it is an older one";

/// What a bare `-fa` or `-fit` of older builds means, where no fitting value follows.
fn optional_value(name: &str, next: Option<&String>) -> Option<&'static str> {
    let bare = next.is_none_or(|word| word.starts_with('-') && word != "-1");
    (bare && matches!(name, "--flash-attn" | "--fit")).then_some("on")
}

// llama-bench's own flags: the tests that it makes, of which the longest counts, and what decides nothing here (llama-bench's help and
// `tools/llama-bench/README.md`, b11434). Its values come in lists, every combination a test.

/// Flags that decide nothing here, with the number of words that follow.
const BENCH_OTHERS: [(&str, usize); 2] = [
    ("-h --help --version --list-devices -v --verbose --progress --no-warmup --offline", 0),
    (
        "--numa -r --repetitions --prio --delay -o --output -oe --output-err -hft --hf-token -C --cpu-mask --cpu-strict --poll",
        1,
    ),
];

const TESTS: [&str; 7] = ["-p", "--n-prompt", "-n", "--n-gen", "-pg", "-d", "--n-depth"];

/// How many words follow a flag that decides nothing here; `None` for another word.
pub(super) fn bench_flag_of_no_effect(word: &str) -> Option<usize> {
    BENCH_OTHERS.iter().find(|(names, _)| names.split(' ').any(|name| name == word)).map(|(_, values)| *values)
}

pub(super) fn is_in_bench(word: &str) -> bool {
    is_test(word) || bench_flag_of_no_effect(word).is_some() || flags::find_in_bench(word).is_some()
}

/// Whether a word says which tests are made.
pub(super) fn is_test(word: &str) -> bool {
    TESTS.contains(&word.replace('_', "-").as_str())
}

/// How long the tests are, in tokens.
#[derive(Debug)]
struct Tests {
    prompt: u32,
    generate: u32,
    both: u32,
    depth: u32,
}

impl Tests {
    fn set(&mut self, given: Given<'_>) -> Result<(), Error> {
        match given.flag.trim_start_matches('-').replace('_', "-").as_str() {
            "p" | "n-prompt" => self.prompt = given.natural()?,
            "n" | "n-gen" => self.generate = given.natural()?,
            "d" | "n-depth" => self.depth = given.natural()?,
            _ => {
                let (prompt, generate) = given.value.split_once(',').ok_or_else(|| given.refuse("PROMPT,GENERATE"))?;
                let part = |value| Given { value, ..given }.natural();
                self.both = part(prompt)?.saturating_add(part(generate)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::FlashAttn;

    fn read(line: &str) -> Result<ParsedCommand, Error> {
        read_in(line, &[])
    }

    fn read_in(line: &str, env: &[(&str, &str)]) -> Result<ParsedCommand, Error> {
        let words = shlex::split(line).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect();
        command(&words, &env)
    }

    #[test]
    fn the_variable_without_a_flag_counts_in_every_program() {
        let of = |line: &str, build| {
            let target = Target { build, ..Target::default() };
            let words = shlex::split(line).unwrap();
            let read = command_for(&words, &BTreeMap::new(), target).unwrap();
            (read.run.offload_rows(), read.notes.into_iter().map(|note| note.code).collect::<Vec<_>>())
        };
        for (line, rows, codes) in [
            ("llama-server -m x", Some(32), vec![]),
            ("GGML_OP_OFFLOAD_MIN_BATCH=1024 llama-server -m x", Some(1024), vec![]),
            ("env GGML_OP_OFFLOAD_MIN_BATCH=1024 llama-bench -m x", Some(1024), vec![]),
            ("GGML_OP_OFFLOAD_MIN_BATCH=1024 llama-server -m x --no-op-offload", None, vec![]),
            // As `atoi` reads them.
            ("GGML_OP_OFFLOAD_MIN_BATCH=1k llama-server -m x", Some(1), vec!["number-cut-short"]),
            ("GGML_OP_OFFLOAD_MIN_BATCH=many llama-server -m x", Some(0), vec!["number-cut-short"]),
            ("GGML_OP_OFFLOAD_MIN_BATCH=-1 llama-server -m x", Some(0), vec!["number-cut-short"]),
        ] {
            let codes: Vec<_> = codes.into_iter().map(std::borrow::Cow::Borrowed).collect();
            assert_eq!(of(line, 11434), (rows, codes), "{line}");
        }
        let (rows, codes) = of("GGML_OP_OFFLOAD_MIN_BATCH=1024 llama-server -m x", 6000);
        assert_eq!((rows, codes.len()), (Some(32), 1));
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
        assert!(matches!(read("ollama run x"), Err(Error::OtherProgram { .. })));
        assert_eq!(read("frobnicate x"), Err(Error::UnknownProgram("frobnicate".into())));
    }

    fn read_for(line: &str, target: Target) -> Result<ParsedCommand, Error> {
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        command_for(&words, &BTreeMap::new(), target)
    }

    #[test]
    fn a_build_has_its_own_defaults_and_flags() {
        let at = |build| Target { build, ..Target::default() };
        let run = |build| read_for("llama-server -m x", at(build)).unwrap().run;
        let said = |run: RunConfig| (run.flash_attn, run.n_gpu_layers, run.n_parallel, run.n_ctx, run.fit);
        assert_eq!(said(run(6168)), (FlashAttn::Off, 0, Some(1), 4096, false));
        assert_eq!(said(run(6327)), (FlashAttn::Auto, -1, Some(1), 4096, false));
        assert_eq!(said(run(8133)), (FlashAttn::Auto, -1, None, 0, true));
        let codes = |line: &str, build| {
            let notes = read_for(line, at(build)).unwrap().notes;
            notes.into_iter().map(|note| note.code.into_owned()).collect::<Vec<_>>().join(" ")
        };
        let draft = "llama-server --draft-max 4";
        assert_eq!([8284, 9000, 9093].map(|build| codes(draft, build)), ["", "flag-not-known", "removed-flag"]);
        let alone = "llama-server -fa -c 512";
        assert_eq!([6168, 6327].map(|build| codes(alone, build)), ["", "flag-needs-value"]);
        assert_eq!(codes("llama-server --moe-cache-mib 9", 11480), "");
        let experts = |build| read_for("llama-server -cmoe", at(build)).unwrap().run.overrides.remove(0).pattern;
        assert_eq!(experts(8133), r"\.ffn_(up|down|gate)_(ch|)exps");
        assert_eq!(experts(9093), crate::run::EXPERTS);
    }

    #[test]
    fn ik_llama_cpp_reads_its_own_flags() {
        let ik = |line: &str| read_for(line, Target { dialect: Dialect::Ik, ..Target::default() });
        let run = ik("llama-server -mla 2 -cmoe -ctk q8_KV -mtp -vhad -wgt 4").unwrap().run;
        assert_eq!((run.mla, run.n_gpu_layers, run.mtp, run.type_k.name), (Some(2), 0, true, "q8_KV"));
        // Weights alone, not biases.
        assert!(run.overrides[0].pattern.ends_with(r"exps\.(weight|scale)"));
        assert!(read_for("llama-server -ctk q8_KV", Target::default()).is_err());
        for line in ["llama-server -sm graph -ts 1,1", "llama-server --swa-compress", "llama-server -dsa"] {
            assert!(matches!(ik(line), Err(Error::NotCounted { .. })), "{line}");
        }
        assert!(ik("llama-server -sm layer --draft-max 4").unwrap().notes.is_empty());
    }

    #[test]
    fn long_short_and_underscored_flags() {
        let short = "llama-server -c 8192 -ngl 99 -b 1024 -ub 256 -np 2 -kvu -fa on -nkvo -nr -sm none -mg 1";
        let long = "llama-server --ctx-size 8192 --n-gpu-layers 99 --batch-size 1024 --ubatch_size 256 --parallel 2 \
                    --kv-unified --flash-attn 1 --no-kv-offload --no_repack --split-mode none --main-gpu 1";
        let (short, long) = (read(short).unwrap(), read(long).unwrap());
        assert_eq!(short, long);
        let run = short.run;
        assert_eq!((run.n_ctx, run.n_ubatch, run.flash_attn, run.offload_kqv), (8192, 256, FlashAttn::On, false));
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
    fn variables_that_llama_cpp_does_not_read_are_named() {
        let env = [
            ("LLAMA_ARG_CTX", "8192"),
            ("LLAMA_ARG_PARALLEL", "8"),
            ("LLAMA_ARG_NO_CTX_SIZE", "1"),
            ("LLAMA_ARG_NO_KV_OFFLOAD", "1"),
            ("MODEL", "m"),
        ];
        let notes = read_in("llama-server", &env).unwrap().notes;
        let [note] = &notes[..] else { panic!("{notes:?}") };
        assert_eq!(
            note.message,
            "no flag of llama.cpp reads `LLAMA_ARG_CTX`, `LLAMA_ARG_NO_CTX_SIZE`, `LLAMA_ARG_PARALLEL`: it has no effect"
        );
        assert!(note.hint.as_ref().is_some_and(|hint| hint.contains("LLAMA_ARG_CTX_SIZE")), "{notes:?}");
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
    fn a_flag_that_names_a_model_stands_for_its_words() {
        let words = "-hf ggml-org/gpt-oss-20b-GGUF -hff gpt-oss-20b-mxfp4.gguf --port 8013 -ub 2048 -b 32768 -np 2 \
                     -c 262144 --temp 1 --top-p 1 --top-k 0 --min-p 0.01 --jinja";
        for more in ["", " -c 8192 -ub 512"] {
            let [named, written] = ["--gpt-oss-20b-default", words].map(|of| read(&format!("llama-server {of}{more}")));
            let (named, written) = (named.unwrap(), written.unwrap());
            assert_eq!(
                (named.run.n_ctx, named.run.n_ubatch),
                if more.is_empty() { (262_144, 2048) } else { (8192, 512) }
            );
            assert_eq!((&named.run, named.model, named.beside), (&written.run, written.model, written.beside));
        }
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
            (
                "llama-server --spec-type mtp",
                "`--spec-type mtp`: expected one of none, draft-simple, draft-eagle3, draft-mtp, draft-dflash, draft-dspark, \
                 ngram-simple, ngram-map-k, ngram-map-k4v, ngram-mod, ngram-cache",
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

    #[test]
    fn removed_flags_of_loading_are_read_as_they_were_meant() {
        for (words, mode, hints) in [
            ("--no-mmap", LoadMode::None, vec!["use `--load-mode none`"]),
            ("--mlock", LoadMode::MmapMlock, vec!["use `--load-mode mmap+mlock`"]),
            ("--no-mmap --mlock", LoadMode::Mlock, vec!["use `--load-mode mlock`"]),
            ("--mlock --no-mmap", LoadMode::Mlock, vec!["use `--load-mode mlock`"]),
            ("--no-mmap --draft 3", LoadMode::None, vec!["use `--load-mode none`", "use `--spec-draft-n-max`"]),
        ] {
            let command = read(&format!("llama-server {words}")).unwrap();
            let found: Vec<&str> = command.notes.iter().filter_map(|note| note.hint.as_deref()).collect();
            let hints: Vec<String> = hints.iter().map(|hint| format!("{hint}{OWN_BUILD}")).collect();
            assert_eq!((command.run.load_mode, found), (mode, hints.iter().map(String::as_str).collect()), "{words}");
        }
    }
}
