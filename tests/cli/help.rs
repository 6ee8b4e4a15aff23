//! The first minute: help that fits a screen, examples that hold, completions, manual pages, and what is said of a slip.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::{Command, CommandFactory as _};
use moeplan::cli::{help, long_flags};
use moeplan::commands::Cli;

use crate::support::gguf_builder::{Builder, V, text};

/// Lines and columns of a small terminal.
const SCREEN: (usize, usize) = (40, 100);

/// Every command that people type, with what is typed to reach it.
fn all() -> Vec<(String, Command)> {
    fn below(path: &str, command: &Command, found: &mut Vec<(String, Command)>) {
        found.push((path.to_string(), command.clone()));
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            below(&format!("{path} {}", sub.get_name()), sub, found);
        }
    }
    let mut command = help::fitting(Cli::command()).term_width(SCREEN.1);
    command.build();
    let mut found = Vec::new();
    below("moeplan", &command, &mut found);
    assert!(found.len() > 15);
    found
}

#[test]
fn short_help_fits_a_screen_and_long_help_has_everything() {
    for (path, mut command) in all() {
        let short = command.render_help().to_string();
        let widest = short.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(short.lines().count() <= SCREEN.0 && widest <= SCREEN.1, "{path}: {widest} columns\n{short}");
        // clap would wrap an example.
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in after.lines().filter(|line| line.starts_with("  ")) {
            assert!(line.chars().count() < SCREEN.1, "{path}: {line}");
        }
        let long = command.render_long_help().to_string();
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            if let Some(name) = argument.get_long() {
                assert!(long.contains(&format!("--{name}")), "{path} --help does not explain --{name}");
            }
        }
    }
}

/// A flag that follows flattened ones would stand under their heading.
#[test]
fn headings_are_of_what_stands_under_them() {
    let of_machine = [
        "vram",
        "device",
        "gpu",
        "pcie",
        "budget",
        "ram",
        "memory-bandwidth",
        "cpu",
        "cores",
        "windows",
        "backend",
        "machine",
        "margin",
    ];
    let of_what_if =
        ["as", "imatrix", "pure", "leave-output-tensor", "output-tensor-type", "token-embedding-type", "tensor-type"];
    let mut seen = 0;
    for (path, command) in all() {
        for argument in command.get_arguments() {
            let Some(name) = argument.get_long() else {
                assert_eq!(argument.get_help_heading(), None, "{path} {}", argument.get_id());
                continue;
            };
            let heading = argument.get_help_heading().unwrap_or("Options");
            match heading {
                "Machine" => assert!(of_machine.contains(&name), "{path} --{name}"),
                "A file that llama-quantize would make" => assert!(of_what_if.contains(&name), "{path} --{name}"),
                "llama.cpp's own, kept as given" => {
                    assert!(moeplan::run::spelling(&format!("--{name}")).is_some(), "{path} --{name}");
                }
                _ => continue,
            }
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn every_example_is_a_command_line_that_is_understood() {
    for (path, command) in all() {
        let is_group = command.get_subcommands().next().is_some();
        let examples = help::examples(&command);
        assert!(!examples.is_empty() || is_group || path.starts_with("moeplan rules"), "{path} has no example");
        for example in examples {
            // What is in `$(…)`, before `|`, or on either side of `&&`, is a command line of its own.
            let inner = example.split_once("$(").map_or(example.as_str(), |(_, inner)| inner.trim_end_matches(')'));
            for part in inner.split(" && ").map(|part| part.split(" | ").next().unwrap_or(part)) {
                let words = shlex::split(part).unwrap_or_default();
                assert_eq!(words.first().map(String::as_str), Some("moeplan"), "{path}: {example}");
                let words = long_flags(words.into_iter().map(Into::into));
                let read = Cli::command().try_get_matches_from(words);
                assert!(read.is_ok(), "{path}: `{example}`: {}", read.unwrap_err());
            }
        }
    }
}

/// Runs moeplan in a folder: exit code, standard output, standard error.
fn moeplan(folder: &Path, words: &[&str]) -> (i32, String, String) {
    let mut command = Process::new(env!("CARGO_BIN_EXE_moeplan"));
    command.args(words).current_dir(folder).env("HOME", folder).env_remove("XDG_CACHE_HOME");
    for name in ["MOEPLAN_LLAMA_SERVER", "LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE", "OLLAMA_MODELS"] {
        command.env_remove(name);
    }
    let output = command.env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let (code, script, _) = moeplan(folder.path(), &["completions", shell]);
        assert_eq!(code, 0);
        for (path, command) in all() {
            assert!(script.contains(command.get_name()), "{shell}: {path}");
        }
        assert!(!script.contains("worker"), "{shell}: a command that nobody types");
        // Names that come along; clap_complete gives PowerShell no values.
        let has_values = script.contains("gpt-oss-20b") && script.contains("attention-first");
        assert!(has_values || shell == "powershell", "{shell}");
        if shell == "bash" {
            std::fs::write(folder.path().join("script"), &script).unwrap();
            let bash = Process::new("bash").arg("-n").arg(folder.path().join("script")).status();
            assert!(bash.is_ok_and(|status| status.success()) || cfg!(windows));
        }
    }
    let pages = folder.path().join("man");
    assert_eq!(moeplan(folder.path(), &["man", "--out", "man"]).0, 0);
    for (path, _) in all() {
        let page = pages.join(format!("{}.1", path.replace(' ', "-")));
        let text = std::fs::read_to_string(&page).unwrap_or_default();
        assert!(text.contains(".SH OPTIONS") && !text.contains(".SH EXTRA"), "{}", page.display());
    }
    assert!(moeplan(folder.path(), &["man"]).1.contains("moeplan\\-plan(1)"));
    let plan = std::fs::read_to_string(pages.join("moeplan-plan.1")).unwrap();
    assert!(plan.contains("Memory to leave free on every device"), "what a short help leaves out has its words here");
}

/// One more tensor of type f16 (1) or f32 (0).
fn with(file: Builder, name: &str, dims: &[u64], ty: u32) -> Builder {
    file.tensor(name, dims, ty, dims.iter().product::<u64>() * if ty == 1 { 2 } else { 4 })
}

/// A llama-like header of two blocks; `experts` tensors are named by block and number.
fn model(keys: &[(&str, V)], experts: &[String]) -> Builder {
    let base = [
        ("general.architecture", text("llama")),
        ("llama.block_count", V::U32(2)),
        ("llama.context_length", V::U32(4096)),
        ("llama.embedding_length", V::U32(64)),
        ("llama.feed_forward_length", V::U32(128)),
        ("llama.attention.head_count", V::U32(4)),
        ("llama.attention.layer_norm_rms_epsilon", V::F32(1e-5)),
        ("llama.rope.dimension_count", V::U32(16)),
        ("llama.vocab_size", V::U32(32)),
        ("tokenizer.ggml.model", text("none")),
    ];
    let mut file = Builder::new();
    for (key, value) in base.iter().chain(keys) {
        file = file.key(key, value.clone());
    }
    file = with(with(file, "token_embd.weight", &[64, 32], 1), "output_norm.weight", &[64], 0);
    for block in 0..2 {
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            file = with(file, &format!("blk.{block}.{name}.weight"), &[64, 64], 1);
        }
        for name in ["attn_norm", "ffn_norm"] {
            file = with(file, &format!("blk.{block}.{name}.weight"), &[64], 0);
        }
        for name in experts {
            let shape = if name.starts_with("ffn_down") { [128, 64] } else { [64, 128] };
            file = with(file, &format!("blk.{block}.{name}.weight"), &shape, 1);
        }
    }
    file
}

fn write(folder: &Path, name: &str, file: &Builder) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, file.build()).unwrap();
    path
}

#[test]
fn a_file_that_is_no_model_is_said_to_be_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let kind = |kind: &str| Builder::new().key("general.architecture", text("llama")).key("general.type", text(kind));
    let one = |file: Builder| with(file, "blk.0.attn_q.weight", &[64, 8], 1);
    let old: Vec<String> = ["ffn_gate.0", "ffn_up.0", "ffn_down.0"].map(str::to_string).to_vec();
    let experts = [("llama.expert_count", V::U32(1)), ("llama.expert_used_count", V::U32(1))];
    for (name, file, said, hint) in [
        ("mmproj.gguf", one(kind("mmproj")), "a multimodal projector", "--mmproj"),
        ("lora.gguf", one(kind("adapter")), "an adapter", "--lora"),
        ("imatrix.gguf", one(kind("imatrix")), "an importance matrix", "the model's own GGUF file"),
        ("vocab.gguf", kind("model"), "a vocabulary without weights", "the model's own GGUF file"),
        ("old-mixtral.gguf", model(&experts, &old), "hold one expert each", "convert the model again"),
    ] {
        write(here, name, &file);
        for words in [vec!["plan", "--vram", "1G", name], vec!["check", "--", "llama-server", "-m", name]] {
            let (code, _, error) = moeplan(here, &words);
            assert_eq!(code, 2, "{words:?}: {error}");
            assert!(error.contains(said) && error.contains("hint: ") && error.contains(hint), "{words:?}: {error}");
        }
        let (code, shown, _) = moeplan(here, &["inspect", name]);
        assert!(code == 0 && shown.contains(said) && shown.contains("hint: "), "{shown}");
    }
}

#[test]
fn models_without_experts_and_those_that_fit_are_planned() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let dense: Vec<String> = ["ffn_gate", "ffn_up", "ffn_down"].map(str::to_string).to_vec();
    write(here, "dense.gguf", &model(&[], &dense));
    let (code, shown, error) = moeplan(here, &["plan", "--vram", "2G", "--ram", "16G", "dense.gguf"]);
    assert_eq!(code, 0, "{error}");
    assert!(shown.contains("the model is dense") && shown.contains("-ngl 99"), "{shown}");
    write(here, "embed.gguf", &model(&[("llama.pooling_type", V::U32(1))], &dense));
    let (code, shown, _) = moeplan(here, &["plan", "--vram", "2G", "--ram", "16G", "embed.gguf"]);
    assert!(code == 0 && shown.contains("an embedding model") && !shown.contains("output-on-host"), "{shown}");
    // Too large for the card: feed-forward tensors of some blocks leave.
    let big = ["synth", "llama-3.1-8b", "-q", "-o", "big.gguf"];
    assert_eq!(moeplan(here, &big).0, 0);
    let (code, shown, _) = moeplan(here, &["plan", "--vram", "4G", "--ram", "32G", "big.gguf"]);
    assert!(code == 0 && shown.contains(".ffn_") && shown.contains("=CPU"), "{shown}");
    assert_eq!(moeplan(here, &["synth", "gpt-oss-20b", "-q", "-o", "moe.gguf"]).0, 0);
    let (code, shown, _) = moeplan(here, &["plan", "--vram", "24G", "--ram", "64G", "moe.gguf"]);
    assert!(code == 0 && shown.contains("all 24 blocks on the devices") && !shown.contains("=CPU"), "{shown}");
}

#[test]
fn a_slip_gets_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let dense: Vec<String> = ["ffn_gate", "ffn_up", "ffn_down"].map(str::to_string).to_vec();
    write(here, "m.gguf", &model(&[], &dense));
    for name in ["empty", "one", "two"] {
        std::fs::create_dir(here.join(name)).unwrap();
    }
    std::fs::copy(here.join("m.gguf"), here.join("one/m.gguf")).unwrap();
    std::fs::copy(here.join("m.gguf"), here.join("two/a.gguf")).unwrap();
    std::fs::copy(here.join("m.gguf"), here.join("two/b.gguf")).unwrap();
    for (line, hint) in [
        ("m.gguf", "moeplan inspect m.gguf"),
        ("one", "moeplan inspect one"),
        ("hf:owner/repo", "moeplan inspect hf:owner/repo"),
        ("llama-server -m m.gguf", "moeplan check -- llama-server"),
        ("plna m.gguf", "did you mean `plan`?"),
        ("rules shwo x", "did you mean `show`?"),
        ("plan m.gguf --vram -5G", "without the sign"),
        ("plan m.gguf -c -1", "`-c max`"),
        ("plan m.gguf --vram 24,5G", "a size with decimals is `24.5G`"),
        ("plan m.gguf --vram 24G --margin 30G", "what stays free on every device"),
        ("plan m.gguf --vram 24G --device CUDA0=24G", "leave one of them out"),
        ("plan m.gguf --ram 24G --ram 32G", "give it once"),
        ("plan m.gguf --gpu P40", "--gpu 'P40=SIZE'"),
        ("plan", "moeplan plan --vram 24G model.gguf"),
        ("check", "moeplan check --vram 12G"),
        ("plan -m m.gguf", "without a flag"),
        ("plan m.gguf --vrm 24G", "--vram"),
        ("plan m.gguf --jinja", "`moeplan plan model.gguf … -- --jinja`"),
        ("verify m.gguf --jinja", "after `--` of `moeplan run`"),
        ("plan m.gguf --vram 24G -- --lora a.gguf", "adapters are not counted"),
        ("plan m.gguf --vram 24G -- --gpt-oss-20b-default", "names a model of its own"),
        ("plan m.gguf -sm row", "splits by layers"),
        ("plan m.gguf --mmproj p.gguf --vram 24G", "`moeplan plan model.gguf … -- --mmproj p.gguf`"),
        ("plan m.gguf --gpu 3090 --vram 23G", "--gpu 'RTX 3090=23G'"),
        ("devices --gpu iris", "--device Vulkan0=18G,shared"),
        ("inspect m.gguf --vram 24G --cores 8", "`moeplan plan --vram 24G --cores 8 m.gguf`"),
        ("plan m.gguf -md d.gguf", "a plan keeps llama.cpp's own flags after `--`"),
        ("run m.gguf --rpc h:1", "'RPC0[HOST:PORT]=16G'"),
        ("plan m.gguf -fitt 512", "--margin SIZE stays free"),
        ("plan m.gguf --swa-full", "moeplan plan model.gguf … -- --swa-full"),
        ("run m.gguf --swa-full", "moeplan check -- llama-server … --swa-full"),
        ("plan m.gguf --vram 24G -- -sm row", "splits by layers"),
        ("plan m.gguf --vram 24G -- -ub 1k", "write `-ub 1024`"),
        ("plan m.gguf -ncmo 3", "-ncmoe"),
        ("plan m.gguf --vram 24G --strategy first", "first-n"),
        ("plan m.gguf --vram 24G --rules attention-frist", "attention-first"),
        ("plan m.gguf --vram 24G --strategy experts-on-host --rules down-on-host", "leave one of them out"),
        ("rules check down-on-host m.gguf --vram 24G --strategy first-n", "leave one of them out"),
        ("plan m.gguf --vram 24G -ctk q8", "q8_0"),
        ("plan m.gguf --vram 24G --emit args --json", "the arguments in `args`"),
        ("plan m.gguf --vram 24G --emit shell --explain", "once with --explain"),
        ("plan m.gguf --vram 24G -ub 1k", "write `-ub 1024`"),
        (r"plan m.gguf --vram 24G -ot blk\.\d{1,2}\.=CPU", "a pattern cannot hold one"),
        ("plan m.gguf --vram 24G -lm nmap", "mmap"),
        ("plan --vram 24G two", "name one of them"),
        ("plan --vram 24G nothere.gguf", "pass a .gguf file"),
        ("plan --vram 24G nothere", "moeplan list"),
        ("inspect empty", "a folder that holds one model"),
        ("inspect --expect gpt-oss-20 m.gguf", "gpt-oss-20b"),
        ("rules show attention-frist", "attention-first"),
        ("synth gpt-oss-20 -o x.gguf", "gpt-oss-20b"),
        ("synth gpt-oss-20b --recipe Q4_KM -o x.gguf", "Q4_K_M"),
        ("validate moe-cpu-offlod --model a=m.gguf", "moe-cpu-offload"),
        ("check m.gguf", "moeplan check -- llama-server -m m.gguf"),
        ("check -- lama-server -m m.gguf", "llama-server"),
        ("devices --backend cudo", "cuda"),
        ("plan -fa m.gguf --vram 24G", "give `-fa` a value of its own"),
        ("plan m.gguf --ram 2x32G@ddr5-6000x2", "64GiB@ddr5-6000x2"),
        ("plan m.gguf --ram 2x16GB@ddr5-6000", ": 32GB@ddr5-6000"),
        ("plan m.gguf one two/a.gguf --vram 24G --emit ini", "--together plans for models"),
        ("plan m.gguf one --vram 24G --emit shell", "once for each model"),
        ("bench m.gguf --streams 4", "`-np N`"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let (code, _, error) = moeplan(here, &words);
        assert_eq!(code, 2, "{line}: {error}");
        let said = error.split_once("hint: ").map_or("", |(_, hint)| hint);
        // What an option's value should be is told with the value.
        let is_told = error.contains("did you mean") || error.contains("write the size");
        let said = if said.is_empty() && is_told { &error } else { said };
        assert!(said.contains(hint), "{line}: {error}");
        let mut parts: Vec<&str> = error.lines().flat_map(|line| line.split(": ")).collect();
        let all = parts.len();
        parts.dedup();
        assert_eq!(parts.len(), all, "the same twice: {error}");
    }
    let (code, shown, _) =
        moeplan(here, &["check", "--vram", "1G", "--", "llama-server", "-m", "m.gguf", "--n-cpu-mo", "3"]);
    assert!(code == 1 && shown.contains("did you mean `--n-cpu-moe`?"), "{shown}");
    let (code, _, shown) = moeplan(here, &[]);
    assert!(code == 2 && shown.contains("Start here:"), "{shown}");
    assert_eq!(moeplan(here, &["inspect", "one"]).0, 0);
    for (words, of) in
        [(&["help", "-h"][..], "moeplan [OPTIONS]"), (&["help", "plan", "--help"], "moeplan plan [OPTIONS]")]
    {
        let (code, shown, said) = moeplan(here, words);
        assert!(code == 0 && shown.contains(&format!("Usage: {of}")), "{words:?}: {shown}{said}");
    }
}

#[test]
fn a_plan_for_a_card_says_whose_main_memory_it_counts_on() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "m.gguf", &model(&[], &["ffn_gate", "ffn_up", "ffn_down"].map(str::to_string)));
    let said = |words: &str| {
        let mut command = Process::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(words.split(' ')).current_dir(folder.path()).env_remove("MOEPLAN_HOST");
        String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned()
    };
    let note = "the host is assumed to be this computer";
    assert!(said("plan --vram 24G m.gguf").contains(note));
    assert!(!said("plan --vram 24G --ram 64G m.gguf").contains(note));
    let emitted = said("plan --vram 24G --emit args --build 6000 m.gguf");
    assert!(!emitted.contains(note) && emitted.contains("warning: b6000 is older than every build"), "{emitted}");
    // Where none is described, it is this computer's, which may have none.
    let (_, found, _) = moeplan(folder.path(), &["devices", "--json"]);
    let has_none = serde_json::from_str::<serde_json::Value>(&found).unwrap()["devices"].as_array().unwrap().is_empty();
    assert_eq!(said("check -- llama-server -m m.gguf").contains("no GPU was found here"), has_none);
    assert!(!said("check --vram 24G -- llama-server -m m.gguf").contains("no GPU was found"));
}

#[test]
fn the_curves_of_a_sweep_are_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    assert_eq!(moeplan(here, &["synth", "gpt-oss-20b", "-q", "-o", "m.gguf"]).0, 0);
    let sweep = ["plan", "--sweep", "vram=6G..18G:4G", "--ram", "64G", "--json", "-o", "sweep.json", "m.gguf"];
    assert_eq!(moeplan(here, &sweep).0, 0);
    assert_eq!(moeplan(here, &["report", "sweep.json", "-o", "sweep.svg"]).0, 0);
    let picture = std::fs::read_to_string(here.join("sweep.svg")).unwrap();
    assert!(picture.starts_with("<svg xmlns=") && !picture.contains("<script"), "{picture}");
    assert!(picture.contains("predicted") && picture.contains("tokens per second") && picture.contains("<polyline"));
    // The ending of a file chooses the format.
    for (name, start) in [("plan.html", "<!DOCTYPE html>"), ("plan.md", "# "), ("plan.json", "{\n")] {
        assert!(moeplan(here, &["plan", "--vram", "24G", "-o", name, "m.gguf"]).0 < 2);
        let text = std::fs::read_to_string(here.join(name)).unwrap();
        assert!(text.starts_with(start), "{name}: {}", text.lines().next().unwrap_or_default());
    }
    let (code, _, error) = moeplan(here, &["report", "plan.json", "-o", "plan.svg"]);
    assert!(code == 2 && error.contains("none of these documents has curves"), "{error}");
}
