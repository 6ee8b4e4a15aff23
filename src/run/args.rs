//! A launch printed back as arguments of its build, or of ik_llama.cpp: what differs from the defaults there, in the order of
//! the rows of [`flags`].

use super::config::{Dialect, Program, RunConfig};
use super::flags::{self, Effect, Flag};
use super::{groups, speculation};

/// The arguments (without program and model) that give `run` back when parsed. llama-bench's differ in grammar.
pub fn args(run: &RunConfig) -> Vec<String> {
    let mut out = Vec::new();
    if run.program == Program::Bench {
        out.extend(["-p".to_string(), run.n_ctx.to_string(), "-n".to_string(), "0".to_string()]);
    }
    out.extend(settings(run).into_iter().flat_map(|(_, words)| words));
    out.extend(numbers_of_ik(run));
    out
}

/// The numbers of a launch that llama.cpp has no flag for.
fn numbers_of_ik(run: &RunConfig) -> impl Iterator<Item = String> {
    let numbers = [("-mla", run.mla), ("-amb", run.attention_mib), ("-wgt", run.worst_graph_tokens)];
    let given = numbers.into_iter().filter_map(|(flag, number)| Some([flag.to_string(), number?.to_string()]));
    let switches = [("experts", "-no-fmoe"), ("gates", "-no-fug"), ("sums", "-no-mmad")];
    let off = switches.into_iter().filter(|(what, _)| run.unfused.iter().any(|other| other == what));
    given.flatten().chain(off.map(|(_, flag)| flag.to_string()))
}

/// The arguments of a launch of llama-server, with the flags of `words` that decide nothing here, and those of speculation:
/// [`RunConfig`] says only what drafts cost. What no llama.cpp has is left out.
pub fn args_beside(run: &RunConfig, words: &[String]) -> Vec<String> {
    let is_known = |group: &&[String]| group.first().is_some_and(|word| flags::spelling(word).is_some());
    let said: Vec<&[String]> = groups(words).into_iter().filter(is_known).collect();
    let drafts = said.iter().any(|group| speculates(group));
    let own = settings(run).into_iter().map(|(_, words)| words).filter(|words| !drafts || !speculates(words));
    own.chain(said.iter().map(|group| group.to_vec())).flatten().chain(numbers_of_ik(run)).collect()
}

fn speculates(group: &[String]) -> bool {
    group.first().is_some_and(|word| flags::is_speculation(word))
}

/// Every flag that `run` needs, with its words; of llama-bench those beside its tests.
pub fn settings(run: &RunConfig) -> Vec<(&'static Flag, Vec<String>)> {
    let bench = run.program == Program::Bench;
    let is_ik = run.target.dialect == Dialect::Ik;
    let has = |flag: &&Flag| (!bench || flag.is_in_bench()) && (!is_ik || flag.in_ik || said_in_ik(flag));
    let all = flags::ROWS.iter().filter(has).map(|flag| (flag, words(flag, run, bench)));
    all.filter(|(_, words)| !words.is_empty()).collect()
}

/// `--no-op-offload` of ik_llama.cpp: of all operations (-1) none is offloaded (its `docs/parameters.md`; PR 405).
pub const NO_OP_OFFLOAD: [&str; 2] = ["-op", "-1,0"];

/// What ik_llama.cpp says in words of its own.
fn said_in_ik(flag: &Flag) -> bool {
    ["--load-mode", "--op-offload"].contains(&flag.name())
}

/// The words of one flag; none where its default is meant.
fn words(flag: &Flag, run: &RunConfig, bench: bool) -> Vec<String> {
    let field = match &flag.effect {
        Effect::Field(field) => field,
        Effect::Speculation if flag.name() == "--spec-type" => return speculation::words(run),
        _ => return Vec::new(),
    };
    let Some(value) = (field.print)(run, bench) else { return Vec::new() };
    let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    match (flag.name(), run.target.dialect) {
        ("--load-mode", dialect) if dialect == Dialect::Ik || run.target.build < flag.since => {
            let old = if bench { flags::old_load_mode_of_bench } else { flags::old_load_mode };
            return owned(old(run.load_mode));
        }
        ("--op-offload", Dialect::Ik) => return owned(&NO_OP_OFFLOAD),
        // There it stands alone and means on.
        ("--fit", Dialect::Ik) => return owned(&["--fit"]),
        _ => {}
    }
    let name = flag.printed(bench, value == "on");
    match (flag.values, bench) {
        (0, false) => vec![name.to_string()],
        (0, true) => vec![name.to_string(), u32::from((value == "on") != flag.bench_negates()).to_string()],
        _ => vec![name.to_string(), value],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::gguf::Value;
    use crate::run::{LazyMode, MetadataOverride, Override, parse};

    fn read(words: &str) -> RunConfig {
        let words: Vec<String> = words.split(' ').map(str::to_string).collect();
        parse::command(&words, &BTreeMap::new()).unwrap().run
    }

    /// `run` printed and read again.
    fn read_back(run: &RunConfig) -> RunConfig {
        let words: Vec<String> = [run.program.name().to_string()].into_iter().chain(args(run)).collect();
        let parsed = parse::command_for(&words, &BTreeMap::new(), run.target).unwrap();
        assert_eq!(parsed.notes, [], "{words:?}");
        parsed.run
    }

    /// A launch, whichever spelling of a flag its overrides came from.
    fn anonymous(mut run: RunConfig) -> RunConfig {
        run.overrides.iter_mut().for_each(|entry| entry.origin.clear());
        run
    }

    #[test]
    fn a_launch_in_json_reads_back() {
        let run = RunConfig {
            program: Program::Bench,
            n_parallel: Some(3),
            kv_unified: Some(false),
            devices: Some(Vec::new()),
            overrides: vec![Override { pattern: "a".into(), buffer: "CPU".into(), origin: "-ot".into() }],
            metadata_overrides: vec![MetadataOverride { key: "a".into(), value: Value::I64(-4) }],
            repack: false,
            fit: false,
            fit_ctx: u32::MAX,
            cache_ram: Some(-1),
            lazy_mode: LazyMode::On,
            ..RunConfig::default()
        };
        for run in [run, RunConfig::default()] {
            let text = serde_json::to_string(&run).unwrap();
            assert_eq!(serde_json::from_str::<RunConfig>(&text).unwrap(), run, "{text}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for (words, printed) in [
            ("llama-server -ncmoe 2", "-ncmoe 2"),
            ("llama-server --n-cpu-moe 12", "-ncmoe 12"),
            ("llama-server --cpu-moe", "-cmoe"),
            ("llama-server -ncffn 3", "-ncffn 3"),
            ("llama-server -ot a=CPU -ncmoe 0", "-ot a=CPU"),
            ("llama-server -sm none -mg 2 -ngl all -lm mlock -fa off", "-fa off -ngl all -sm none -mg 2 -lm mlock"),
            ("llama-server -dev none -kvu --kv-unified-per-slot 9", "-kvu --kv-unified-per-slot 9 -dev none"),
            ("llama-server --no-host --embeddings -ub 0", "-ub 0 --no-host --embedding"),
            ("llama-server --spec-type draft-mtp", "--spec-type draft-mtp --spec-draft-n-max 3"),
            ("llama-server -c 0 -c 163 -fitc -1", "-c 163 -fitc -1"),
            ("llama-server -c 0", "-c 0"),
            ("llama-server -c 0 -fitc 5", "-fitc 5"),
            ("llama-server --override-kv a=int:-4,b=float:0.5", "--override-kv a=int:-4,b=float:0.5"),
            ("llama-server --override-kv \"b=str:x,y\"", "--override-kv \"b=str:x,y\""),
            (
                "llama-bench -p 2048 -ts 3/1 -ot a=CPU;b=CPU -nopo 1 --repack 0",
                "-p 2048 -n 0 -ts 3/1 -ot a=CPU;b=CPU -nopo 1 --repack 0",
            ),
        ] {
            let run = read(words);
            assert_eq!(args(&run).join(" "), printed, "{words}");
            assert_eq!(anonymous(read_back(&run)), anonymous(run), "{words}");
        }
        // Not every form of a plan keeps the order among several flags: one says it all.
        for words in ["-ncmoe 1 -ot a=CPU", "-ot a=CPU -ncmoe 2", "-cmoe -ncmoe 2", "-ncmoe 1 -ncffn 1"] {
            let run = read(&format!("llama-server {words}"));
            let printed = args(&run);
            assert!(printed.len() == 2 && printed[0] == "-ot", "{printed:?}");
            assert_eq!(read_back(&run).overrides.len(), run.overrides.len(), "{words}");
        }
    }
}
