//! Every form of every plan, read back, is the plan: random launches in every form, and values that formats act on.

use std::collections::BTreeMap;

use moeplan::bytes::{Bytes, GIB};
use moeplan::emit::{Error, Form, Runner, Wish, emit};
use moeplan::machine::{Backend, Device, Host, Isa, Machine};
use moeplan::model::Model;
use moeplan::run::{
    FlashAttn, LoadMode, MetadataOverride, ModelSource, Override, ParsedCommand, RunConfig, Target, parse,
};
use moeplan::speed::Turn;
use moeplan::synth::{self, Wish as Header};
use proptest::prelude::*;
use proptest::sample::select;

const FORMS: [Form; 7] =
    [Form::Args, Form::Shell, Form::PowerShell, Form::Env, Form::Ini, Form::LlamaSwap, Form::Compose];

fn model() -> Model {
    synth::model("qwen3-30b-a3b", &Header { blocks: Some(6), ..Header::default() }).unwrap()
}

fn machine() -> Machine {
    let devices = Device::of_budgets(Backend::Cuda, &[Bytes(8 * GIB); 2]).unwrap();
    Machine::new(devices, Host { isa: Isa::X86Avx2, ..Host::default() }).unwrap()
}

fn command(run: RunConfig, source: ModelSource) -> ParsedCommand {
    ParsedCommand::new(run, Some(source))
}

fn wish(form: Form, runner: Runner) -> Wish {
    Wish { form, runner, turn: Turn { prompt: 512, generate: 128, depth: 1024, acceptance: None } }
}

fn server(form: Form) -> Wish {
    wish(form, Runner::LlamaServer)
}

fn on_cpu(pattern: &str) -> Override {
    Override { pattern: pattern.into(), buffer: "CPU".into(), origin: "-ot".into() }
}

prop_compose! {
    fn launches()(
        n_ctx in (1_u32..64).prop_map(|n| n * 256), n_ubatch in select(&[256_u32, 512, 2048][..]),
        n_parallel in 1_u32..4, kv_unified in any::<Option<bool>>(),
        flash_attn in select(&[FlashAttn::Auto, FlashAttn::On, FlashAttn::Off][..]),
        load_mode in select(&[LoadMode::Auto, LoadMode::None, LoadMode::Mmap, LoadMode::MmapMlock, LoadMode::Dio][..]),
        devices in select(vec![vec!["CUDA0"], vec!["CUDA1", "CUDA0"], vec!["CUDA0", "CUDA1"]]),
        split in proptest::collection::vec(1_u16..9, 0..3),
        rules in proptest::collection::vec((select(&[
            r"\.ffn_down_exps\.", r"blk\.([0-2]|4)\.ffn_(gate|up)_exps\.", "^output", "exps", r"blk\.5\..*shexp|attn_[qk]",
        ][..]), select(&["CPU", "CUDA0", "CUDA1"][..])), 0..4),
        switches in any::<[bool; 5]>(), threads in proptest::option::of(1_u32..64), offload_rows in proptest::option::of(0_u32..4096), batch_threads in proptest::option::of(1_u32..64),
        path in "[a-zA-Z /._'$(){}&!*?\\[\\]é-]{1,24}\\.gguf",
    ) -> (RunConfig, String) {
        let [offload_kqv, op_offload, repack, swa_full, key] = switches;
        let overrides = rules.into_iter().map(|(pattern, buffer)| Override { buffer: buffer.into(), ..on_cpu(pattern) });
        let entry = MetadataOverride {
            key: "qwen3moe.expert_used_count".into(), value: moeplan::gguf::Value::U64(4),
        };
        let run = RunConfig {
            n_ctx, n_ubatch, n_parallel: Some(n_parallel), kv_unified, flash_attn, load_mode, n_gpu_layers: 99,
            devices: Some(devices.into_iter().map(str::to_string).collect()),
            tensor_split: split.into_iter().map(f32::from).collect(),
            overrides: overrides.collect(), fit: false, offload_kqv, op_offload, repack, swa_full,
            n_threads: threads, n_threads_batch: batch_threads, op_offload_min_batch: offload_rows,
            metadata_overrides: if key { vec![entry] } else { Vec::new() },
            ..RunConfig::default()
        };
        (run, path)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    /// `emit` itself replays what it wrote: only a value that a format cannot hold may be refused, with a reason.
    #[test]
    fn every_form_gives_the_launch_back_or_says_what_it_cannot_hold(
        (run, path) in launches(), form in select(&FORMS[..]), runner in select(&[Runner::LlamaServer, Runner::LlamaBench, Runner::Embedded][..]),
        build in select(&[9093_u32, 11434, 12032][..]),
    ) {
        thread_local! { static MODEL: Model = model(); }
        // Old builds map the file unless they are told otherwise, and have no other word for it.
        let load_mode = if build == 9093 && run.load_mode == LoadMode::Mmap { LoadMode::Auto } else { run.load_mode };
        let run = RunConfig { load_mode, target: Target { build, ..Target::default() }, ..run };
        let is_locked = run.load_mode == LoadMode::MmapMlock;
        let command = command(run, ModelSource::Path(path.clone().into()));
        match MODEL.with(|model| emit(model, &machine(), &command, wish(form, runner))) {
            Ok(emitted) => prop_assert!(!emitted.text.is_empty()),
            Err(Error::Word { word, .. }) => prop_assert!(path.contains(&word), "{}", word),
            Err(Error::NoSuchForm { .. }) => prop_assert!(runner != Runner::LlamaServer),
            Err(Error::Lacks { program: "llama-bench", .. }) => prop_assert!(is_locked && build == 9093),
            Err(Error::Lacks { program, .. }) => prop_assert_eq!(program, "an embedded llama.cpp"),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn a_script_is_read_by_a_real_shell() {
    let model = model();
    let path = "/m/it's a $(model) `x` \"y\" \\z.gguf";
    let run = RunConfig { n_ctx: 4096, overrides: vec![on_cpu(r"blk\.([0-9]|1[0-3])\..*")], ..RunConfig::default() };
    let command = command(run.clone(), ModelSource::Path(path.into()));
    let script = emit(&model, &machine(), &command, server(Form::Shell)).unwrap().text;
    let folder = tempfile::tempdir().unwrap();
    let fake = folder.path().join("llama-server");
    std::fs::write(&fake, "#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\n").unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path_variable = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let shell = |text: &str| {
        let output = std::process::Command::new("sh")
            .args(["-c", text, "sh", "--port", "1"])
            .env("PATH", &path_variable)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let words = String::from_utf8(output.stdout).unwrap();
        words.split_terminator('\0').map(str::to_string).collect::<Vec<_>>()
    };
    let words = shell(&script);
    assert_eq!(words[..2], ["-m".to_string(), path.to_string()]);
    assert_eq!(words[words.len() - 2..], ["--port".to_string(), "1".to_string()]);
    let program = vec!["llama-server".to_string()];
    let again = parse::command_for(&[program, words].concat(), &BTreeMap::new(), run.target).unwrap();
    assert_eq!(again.run, run);
    // What is free of the card is said only where it is less than the plan takes.
    let card = Machine::new(vec![Device::parse("CUDA0=24576M").unwrap()], Host::default()).unwrap();
    let script = emit(&model, &card, &command, server(Form::Shell)).unwrap().text;
    let smi = folder.path().join("nvidia-smi");
    for (says, warns) in [(None, false), (Some("1\n7"), true), (Some("7\n99999\n1"), false), (Some("[N/A]"), false)] {
        if let Some(says) = says {
            std::fs::write(&smi, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            #[cfg(unix)]
            std::fs::set_permissions(&smi, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let output =
            std::process::Command::new("sh").args(["-c", &script]).env("PATH", &path_variable).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && output.stdout.starts_with(b"-m\0"), "{said}");
        assert_eq!(said.starts_with("warning: this launch was planned for "), warns, "{says:?}: {said}");
        assert!(warns || said.is_empty(), "{said}");
    }
}

#[cfg(unix)]
proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Files have the names that strangers gave them: no shell acts on one, whatever form it is in.
    #[test]
    fn no_shell_acts_on_a_path(parts in proptest::collection::vec(select(&[
        "$(touch ran)", "`touch ran`", ";touch ran;", "|touch ran", "&touch ran&", ">ran", "${IFS}", "$", "'", "\"", "\\", " ", "#", "*",
        "~", "!", "%s", "=", "(", ")", "a", "é",
    ][..]), 1..9), form in select(&[Form::Shell, Form::Env, Form::LlamaSwap][..])) {
        thread_local! { static MODEL: Model = model(); }
        let path = format!("/m/{}.gguf", parts.concat());
        let command = command(RunConfig { n_ctx: 4096, ..RunConfig::default() }, ModelSource::Path(path.clone().into()));
        let text = match MODEL.with(|model| emit(model, &machine(), &command, server(form))) {
            Ok(emitted) => emitted.text,
            Err(Error::Word { word, .. }) => {
                prop_assert_eq!(word, path);
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        // What the reader of each form does: a script runs; variables are taken; llama-swap's command is split as a shell would.
        let written = match form {
            Form::LlamaSwap => {
                let read: serde_json::Value = serde_yaml::from_str(&text).unwrap();
                let model = read["models"].as_object().unwrap().values().next().unwrap();
                let command = model["cmd"].as_str().unwrap().replace("${PORT}", "1").replace('\n', " ");
                format!("server() {{ printf %s \"$4\"; }}\n{}", command.replacen("llama-server", "server", 1))
            }
            Form::Shell => text.replacen("exec llama-server", "server() { printf %s \"$2\"; }\nserver", 1),
            _ => format!("{text}\nprintf %s \"$LLAMA_ARG_MODEL\""),
        };
        let folder = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("sh").args(["-c", &written]).current_dir(&folder).output().unwrap();
        prop_assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
        prop_assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
}

/// What Compose makes of the file: a list of words, in which two `$` are one, and folders that are mounted read-only.
#[test]
fn a_compose_file_mounts_the_folders_and_keeps_every_word() {
    let model = model();
    let path = "/m/it's a ${model} \"y\" #\\z.gguf";
    let overrides = vec![on_cpu(r"blk\.(1|2)\.ffn_.*_exps$")];
    let run = RunConfig { n_ctx: 4096, overrides, op_offload_min_batch: Some(512), ..RunConfig::default() };
    let command = command(run, ModelSource::Path(path.into()));
    let of = |machine: &Machine, command: &ParsedCommand| emit(&model, machine, command, server(Form::Compose));
    let text = of(&machine(), &command).unwrap().text;
    let read: serde_json::Value = serde_yaml::from_str(&text).unwrap();
    let service = read["services"].as_object().unwrap().values().next().unwrap();
    assert_eq!(service["image"], "ghcr.io/ggml-org/llama.cpp:server-cuda");
    let words: Vec<String> =
        service["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().into()).collect();
    assert!(words.iter().all(|word| !word.replace("$$", "").contains('$')), "{words:?}");
    assert_eq!(words[..2], ["-m", "/models/it's a $${model} \"y\" #\\z.gguf"]);
    let at = words.iter().position(|word| word == "-ot").unwrap();
    assert_eq!(words[at + 1], r"blk\.(1|2)\.ffn_.*_exps$$=CPU");
    assert_eq!(service["environment"]["GGML_OP_OFFLOAD_MIN_BATCH"], "512");
    let volume = &service["volumes"][0];
    assert_eq!((volume["source"].as_str(), volume["read_only"].as_bool()), (Some("/m"), Some(true)));
    assert_eq!(service["deploy"]["resources"]["reservations"]["devices"][0]["count"], "all");
    let on = |device: &str| Machine::new(vec![Device::parse(device).unwrap()], Host::default()).unwrap();
    assert!(of(&on("Vulkan0=8G"), &command).unwrap().text.contains("server-vulkan"));
    assert!(matches!(of(&on("MTL0=8G"), &command), Err(Error::NoSuchForm { .. })));
    // A name with a colon would end the volume's.
    let colon = ParsedCommand { model: Some(ModelSource::Path("/a:b/x.gguf".into())), ..command };
    assert!(matches!(of(&machine(), &colon), Err(Error::Word { .. })));
}

#[test]
fn what_decides_nothing_is_in_every_form() {
    let model = model();
    let source = ModelSource::Path("/m/a.gguf".into());
    let beside = r#"--jinja --temp 0.6 --host 127.0.0.1 --port 8081 --chat-template-file /t/a.jinja --chat-template-kwargs {"a":1}"#;
    let beside = beside.split(' ').map(str::to_string).collect();
    let command = ParsedCommand { beside, ..command(RunConfig { n_ctx: 4096, ..RunConfig::default() }, source) };
    for form in FORMS {
        let emitted = emit(&model, &machine(), &command, server(form)).unwrap();
        let text = emitted.text;
        for word in ["jinja", "0.6", "a.jinja", "kwargs"] {
            assert!(text.to_lowercase().contains(word), "{form:?}: {text}");
        }
        // llama-swap and the router choose the port themselves, and a container's own address is nobody's.
        let is_chosen = matches!(form, Form::LlamaSwap | Form::Ini);
        assert_eq!(text.contains("8081"), !is_chosen, "{form:?}: {text}");
        let is_said = emitted.notes.iter().any(|note| note.starts_with("left out: "));
        assert_eq!(is_said, is_chosen || form == Form::Compose, "{form:?}: {:?}", emitted.notes);
        if form == Form::PowerShell {
            assert!(text.contains("$env:LLAMA_ARG_CHAT_TEMPLATE_KWARGS = '{\"a\":1}'"), "{text}");
        }
        assert!(!text.contains("127.0.0.1\""), "{form:?}: {text}");
        if form == Form::Compose {
            assert!(text.contains("\"127.0.0.1:8081:8081\"") && text.contains("\"/models-2/a.jinja\""), "{text}");
            // A file of the hub is no file of this computer.
            let hub = ModelSource::HuggingFace { repo: "o/r".into(), file: Some("a.gguf".into()) };
            let text = emit(&model, &machine(), &ParsedCommand { model: Some(hub), ..command.clone() }, server(form))
                .unwrap()
                .text;
            assert!(text.contains("\"-hff\", \"a.gguf\"") && !text.contains("source: \".\""), "{text}");
        }
    }
}

#[test]
fn an_env_file_is_read_by_a_real_shell() {
    let model = model();
    let run = RunConfig { n_ctx: 4096, overrides: vec![on_cpu(r"blk\.(1|2)\.ffn_.*_exps")], ..RunConfig::default() };
    let command = command(run.clone(), ModelSource::Path("/m/it's.gguf".into()));
    let file = emit(&model, &machine(), &command, server(Form::Env)).unwrap().text;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("env");
    std::fs::write(&path, file).unwrap();
    let text = format!("set -a; . '{}'; env -0", path.display());
    let output = std::process::Command::new("sh").args(["-c", &text]).env_clear().output().unwrap();
    let variables = String::from_utf8(output.stdout).unwrap();
    let pairs = variables.split_terminator('\0').filter_map(|pair| pair.split_once('='));
    let env = pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let again = parse::command(&["llama-server".to_string()], &env).unwrap();
    assert_eq!(again.model, command.model);
    assert_eq!(again.run.overrides[0].pattern, run.overrides[0].pattern);
    assert_eq!(again.run.n_ctx, run.n_ctx);
}

#[test]
fn hub_models_and_addresses_keep_their_flags() {
    let model = model();
    let hub = ModelSource::HuggingFace { repo: "o/r-GGUF:Q4_K_M".into(), file: None };
    for form in FORMS {
        let text = emit(&model, &machine(), &command(RunConfig::default(), hub.clone()), server(form)).unwrap().text;
        assert_eq!(text.contains("o/r-GGUF:Q4_K_M"), form != Form::Args, "{text}");
    }
    let url = command(RunConfig::default(), ModelSource::Url("https://h/x.gguf".into()));
    assert!(emit(&model, &machine(), &url, server(Form::Ini)).is_ok());
    let bench = wish(Form::Shell, Runner::LlamaBench);
    assert!(matches!(emit(&model, &machine(), &url, bench), Err(Error::Lacks { .. })));
}

#[test]
fn the_expert_cache_is_read_as_its_build_reads_it() {
    let model = model();
    let run = RunConfig { moe_cache_mib: 2048, n_ctx: 8192, target: Target::newest(), ..RunConfig::default() };
    let command = command(run, ModelSource::Path("/m/a.gguf".into()));
    for form in FORMS {
        let text = emit(&model, &machine(), &command, server(form)).unwrap().text;
        assert!(text.contains("2048"), "{text}");
    }
    let bench = emit(&model, &machine(), &command, wish(Form::Args, Runner::LlamaBench)).unwrap();
    assert!(bench.notes.iter().any(|note| note.contains("expert cache")), "{:?}", bench.notes);
}
