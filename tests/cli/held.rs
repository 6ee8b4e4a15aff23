//! Commands as people hold them: pasted, wrapped, piped, and in the files of other programs.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// A small model in a folder of its own.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let synth = ["synth", "qwen3-30b-a3b", "--tiny", "-q", "-o", "x.gguf"];
    assert!(
        Command::new(env!("CARGO_BIN_EXE_moeplan")).args(synth).current_dir(folder.path()).status().unwrap().success()
    );
    folder
}

/// The exit code, the document and what was said of `check --vram 24576M,12288M --json` with these words.
fn check(folder: &Path, words: &[&str], input: &str, variables: &[(&str, &str)]) -> (i32, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    command.args(["check", "--json", "--vram", "24576M,12288M", "--ram", "64G", "--"]).args(words).current_dir(folder);
    command.env("CUDA_VISIBLE_DEVICES", "").env("HOME", folder).envs(variables.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

fn total(document: &Value, device: &str) -> Option<u64> {
    document["memory"][device]["total"].as_u64()
}

#[test]
fn a_wrapped_command_is_the_command() {
    let folder = folder();
    let at = folder.path();
    let flags = "-ngl 99 -c 4096 -fit off";
    let plain = check(at, &words(&format!("llama-server -m x.gguf {flags}")), "", &[]);
    assert_eq!(plain.0, 0, "{}", plain.2);
    for wrapped in [
        "$ llama-server -m x.gguf",
        "sudo numactl --interleave=all llama-server -m x.gguf",
        "llama serve -m x.gguf",
        "-m x.gguf",
        "docker run --gpus all -v .:/m i:server -m /m/x.gguf",
    ] {
        let found = check(at, &words(&format!("{wrapped} {flags}")), "", &[]);
        assert_eq!((found.0, &found.1["memory"]), (0, &plain.1["memory"]), "{wrapped}: {}", found.2);
    }
    // What llama.cpp refuses is read as it was meant.
    let (code, glued, said) = check(at, &words("llama-server x.gguf -ngl99 --ctx-size=4096 -fit off"), "", &[]);
    assert_eq!((code, &glued["memory"]), (1, &plain.1["memory"]), "{said}");
    let hint = glued["lints"][0]["hint"].as_str().unwrap_or_default();
    assert_eq!(hint, "write `-m x.gguf`; write `-ngl 99`; write `--ctx-size 4096`");
    // In quotes as a whole.
    let quoted = check(at, &[&format!("llama-server -m x.gguf {flags}")], "", &[]);
    assert_eq!((quoted.0, &quoted.1["memory"]), (0, &plain.1["memory"]), "{}", quoted.2);
    let input = "user@host:~$ llama-server \\\n  -m ~/x.gguf \\\n  -ngl 99 -c 4096 -fit off 2>&1 | tee log\n";
    let piped = check(at, &["-"], input, &[]);
    assert_eq!((piped.0, &piped.1["memory"]), (0, &plain.1["memory"]), "{}", piped.2);
}

#[test]
fn files_of_other_programs_are_answered_model_by_model() {
    let folder = folder();
    let at = folder.path();
    for (name, text) in [
        ("models.ini", "[*]\nngl = 99\n[small]\nmodel = x.gguf\nc = 4096\n[large]\nmodel = x.gguf\nc = 8192\n"),
        (
            "swap.yaml",
            "models:\n  small: {cmd: 'llama-server --port ${PORT} -m x.gguf -ngl 99 -c 4096'}\n  large: {cmd: llama-server -m x.gguf -c 8192 -ngl 99}\n",
        ),
        (
            "compose.yaml",
            "services:\n  small: {image: 'llama.cpp:server', volumes: ['./:/m'], command: -m /m/x.gguf -c 4096 -ngl 99}\n  large: {image: 'llama.cpp:server', volumes: ['./:/m'], command: -m /m/x.gguf -c 8192 -ngl 99}\n",
        ),
    ] {
        std::fs::write(at.join(name), text).unwrap();
        let (code, document, said) = check(at, &[name], "", &[]);
        assert_eq!((code, document["schema"].as_str()), (0, Some("moeplan/checks/1")), "{name}: {said}");
        let checks = document["checks"].as_array().unwrap();
        let rows: Vec<_> =
            checks.iter().map(|row| (row["name"].as_str().unwrap(), row["run"]["n_ctx"].as_u64().unwrap())).collect();
        let expected = [("large", 8192), ("small", 4096)];
        assert!(rows == expected || rows == [expected[1], expected[0]], "{name}: {rows:?}");
    }
    std::fs::write(at.join("gone.ini"), "[a]\nmodel = x.gguf\n[b]\nmodel = gone.gguf\n").unwrap();
    let (code, document, _) = check(at, &["gone.ini"], "", &[]);
    assert_eq!(code, 2);
    assert!(document["checks"][1]["error"].as_str().unwrap().contains("gone.gguf"), "{document}");
    std::fs::write(at.join("llama.env"), "LLAMA_ARG_MODEL=x.gguf\nLLAMA_ARG_CTX_SIZE=4096\n").unwrap();
    let (code, document, said) = check(at, &["llama.env"], "", &[]);
    assert_eq!((code, document["run"]["n_ctx"].as_u64()), (0, Some(4096)), "{said}");
    let table = Command::new(env!("CARGO_BIN_EXE_moeplan"))
        .args(["check", "--vram", "24576M", "--ram", "64G", "models.ini"])
        .current_dir(at)
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("small") && table.contains("large") && table.contains("Fits"), "{table}");
}

#[test]
fn variables_select_the_cards() {
    let folder = folder();
    let words = ["llama-server", "-m", "x.gguf", "-ngl", "99", "-c", "4096", "-fit", "off"];
    let both = check(folder.path(), &words, "", &[]).1;
    assert!(total(&both, "CUDA1").is_some());
    let second = ["CUDA_VISIBLE_DEVICES=1"].into_iter().chain(words).collect::<Vec<_>>();
    for (words, variables) in [(&second[..], &[][..]), (&words[..], &[("CUDA_VISIBLE_DEVICES", "1")])] {
        let one = check(folder.path(), words, "", variables).1;
        assert_eq!((one["budget"]["CUDA0"].as_u64(), total(&one, "CUDA1")), (Some(12_288 << 20), None), "{words:?}");
        assert!(one["lints"].as_array().unwrap().iter().any(|lint| lint["code"] == "cards-selected"));
    }
}

#[test]
fn every_variant_of_a_grid_is_answered_and_the_largest_decides() {
    let folder = folder();
    let words = ["llama-bench", "-m", "x.gguf", "-ngl", "99", "-d", "0,4096", "-ub", "512,64"];
    let (code, grid, said) = check(folder.path(), &words, "", &[]);
    assert_eq!((code, grid["variants"].as_array().unwrap().len()), (0, 4), "{said}");
    let alone = ["llama-bench", "-m", "x.gguf", "-ngl", "99", "-d", "4096", "-ub", "512"];
    let (_, alone, _) = check(folder.path(), &alone, "", &[]);
    assert_eq!((&grid["memory"], grid["run"]["n_ctx"].as_u64()), (&alone["memory"], Some(4608)));
}

/// LLaVA's projector gives 4,096 numbers an embedding, the model reads 2,048.
#[test]
fn a_plan_that_llama_cpp_refuses_is_a_no() {
    let folder = folder();
    let moeplan = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(words.split(' ')).current_dir(folder.path()).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    assert!(moeplan("synth mmproj-llava-1.5-7b -q -o mmproj.gguf").status.success());
    let plan = moeplan("plan --vram 24G --ram 64G -c 4096 x.gguf -- --mmproj mmproj.gguf");
    let text = String::from_utf8_lossy(&plan.stdout);
    assert_eq!(plan.status.code(), Some(1), "{text}");
    assert!(text.contains("Would fit, but llama.cpp refuses the command."), "{text}");
    assert!(text.contains("use the projector that was published with this model"), "{text}");
}

/// A plan beside a command is one that runs where the command does, and is for what was meant.
#[test]
fn a_plan_beside_a_command_fits_its_container() {
    let folder = folder();
    let docker = "docker run --gpus all -v .:/models ghcr.io/ggml-org/llama.cpp:server";
    let plan = |words: &str| check(folder.path(), &self::words(words), "", &[]).1["plan"].take();
    let inside = plan(&format!("{docker}-cuda -m /models/x.gguf -c 1024 -ngl 99 -cmoe"));
    let of = |what: &str| inside[what].as_str().unwrap_or_default().to_string();
    assert!(of("command").starts_with("llama-server -m /models/x.gguf "), "{inside}");
    assert!(of("asked").contains(" x.gguf"), "{inside}");
    for none in [
        format!("{docker}-vulkan -m /models/x.gguf -c 1024 -ngl 99 -cmoe"),
        "llama-server -m x.gguf -c 1k -ngl 99 -cmoe".to_string(),
    ] {
        assert!(plan(&none).is_null(), "{none}");
    }
}

#[test]
fn paths_that_nobody_expanded_are_explained() {
    let folder = folder();
    for (path, expected) in [
        ("~/gone/x.gguf", "only a shell expands that"),
        ("$HOME/gone/x.gguf", "only a shell expands that"),
        ("${MODEL}", "the variable is not set in what can be read here"),
        (r"C:\models\x.gguf", "a Windows path"),
    ] {
        let (code, _, said) = check(folder.path(), &["llama-server", "-m", path], "", &[]);
        assert!(code == 2 && said.contains(expected) && said.contains("hint: "), "{path}: {said}");
    }
    let (code, _, said) = check(folder.path(), &["llama-server", "--models-dir", "."], "", &[]);
    assert!(code == 2 && said.contains("a router, which picks") && said.contains("check each file"), "{said}");
    let (code, _, said) = check(folder.path(), &["llama-server", "-c", "4096"], "", &[]);
    assert!(code == 2 && said.contains("add `-m FILE`"), "{said}");
    let (code, _, said) = check(folder.path(), &["ollama", "run", "x"], "", &[]);
    assert!(code == 2 && said.contains("moeplan list"), "{said}");
}

/// What `plan --emit env` writes, read as Compose reads it, from another folder than the file's.
#[test]
fn a_compose_file_is_read_with_its_env_file_in_its_own_folder() {
    let folder = folder();
    let at = folder.path();
    std::fs::create_dir(at.join("stack")).unwrap();
    std::fs::rename(at.join("x.gguf"), at.join("stack/x.gguf")).unwrap();
    let moeplan = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(words.split(' ')).current_dir(at).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    let plan = "plan --vram 24576M --ram 64G -c 4096 -ot blk\\.(0|1)\\.ffn_(up|down)_exps\\.=CPU";
    let written = moeplan(&format!("{plan} --emit env -o stack/x.env stack/x.gguf"));
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let env = std::fs::read_to_string(at.join("stack/x.env")).unwrap();
    assert!(env.contains("LLAMA_ARG_OVERRIDE_TENSOR='blk"), "{env}");
    let service = "image: 'llama.cpp:server', volumes: ['./:/app/stack'], env_file: [{path: x.env}]";
    let text = format!("services:\n  a: {{{service}}}\n  b: {{image: 'llama.cpp:server', command: -m gone.gguf}}\n");
    std::fs::write(at.join("stack/compose.yaml"), text).unwrap();
    let (code, document, said) = check(at, &words("docker compose -f stack/compose.yaml up -d a"), "", &[]);
    assert_eq!((code, document["run"]["n_ctx"].as_u64()), (0, Some(4096)), "{said}");
    assert_eq!(document["overrides"].as_array().map(Vec::len), Some(1), "{document}");
    let (code, all, _) = check(at, &words("docker compose -f stack/compose.yaml up"), "", &[]);
    assert_eq!((code, all["checks"].as_array().map(Vec::len)), (2, Some(2)));
}

/// Services run at once: what they take of one card is added up, and the card is called what the machine calls it.
#[test]
fn services_on_one_card_are_added_up() {
    let folder = folder();
    let at = folder.path();
    let device = "deploy: {resources: {reservations: {devices: [{driver: nvidia, device_ids: ['1']}]}}}";
    let service = format!(
        "{{image: 'llama.cpp:server', volumes: ['./:/m'], command: -m /m/x.gguf -c 4096 -ngl 99 -fit off, {device}}}"
    );
    std::fs::write(at.join("compose.yaml"), format!("services:\n  a: {service}\n  b: {service}\n")).unwrap();
    let moeplan = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(words.split(' ')).current_dir(at).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    let found = moeplan("check --vram 24576M,1200M --ram 64G --json compose.yaml");
    let document: Value = serde_json::from_slice(&found.stdout).unwrap();
    let each: Vec<u64> =
        document["checks"].as_array().unwrap().iter().map(|row| total(row, "CUDA0").unwrap()).collect();
    assert!(
        document["checks"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| row["fits"] == true && row["cards"]["CUDA0"] == "CUDA1")
    );
    let at_once = &document["at_once"];
    assert_eq!(at_once["memory"]["CUDA1"].as_u64(), Some(each.iter().sum()), "{at_once}");
    assert_eq!(at_once["shortfall"]["CUDA1"].as_u64(), Some(each.iter().sum::<u64>() - (1200 << 20)), "{at_once}");
    assert_eq!(found.status.code(), Some(1));
    // What graphics hold of the same memory is not left to the host.
    let of = |device: &str| {
        let found = moeplan(&format!("check --device {device} --ram 64G --json compose.yaml"));
        let document: Value = serde_json::from_slice(&found.stdout).unwrap();
        let of = |what: &str, name: &str| document["at_once"][what][name].as_u64().unwrap();
        (of("budget", "Host"), of("memory", "Vulkan0"))
    };
    let ((apart, _), (shared, held)) = (of("Vulkan0=48G"), of("Vulkan0=48G,shared"));
    assert!(held > 1 << 30 && apart - shared >= held, "{apart} {shared} {held}");
    // Main memory counts for all together, too, where files are mapped.
    let mapped = "{image: 'llama.cpp:server', volumes: ['./:/m'], command: -m /m/x.gguf -c 4096 -ngl 0 -fit off}";
    std::fs::write(at.join("mapped.yaml"), format!("services:\n  a: {mapped}\n  b: {mapped}\n")).unwrap();
    let found = moeplan("check --vram 24576M --ram 1400M --json mapped.yaml");
    let document: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert!(document["checks"].as_array().unwrap().iter().all(|row| row["fits"] == true), "{document}");
    assert!(document["at_once"]["shortfall"]["Host"].as_u64() > Some(0), "{}", document["at_once"]);
    assert_eq!(found.status.code(), Some(1));
    // A card that is not described, and a container whose limit is too small for what it pins.
    let found = moeplan("check --vram 24576M --ram 64G --json compose.yaml");
    let document: Value = serde_json::from_slice(&found.stdout).unwrap();
    let missing = document["checks"][0]["error"].to_string();
    assert_eq!(found.status.code(), Some(2));
    assert!(missing.contains("given card 1 (`device_ids`") && missing.contains("known: CPU, CUDA0"), "{missing}");
    let limited = "{extends: a, mem_limit: 200m, command: -m /m/x.gguf -c 4096 -ngl 0 -lm none -fit off}";
    std::fs::write(at.join("limited.yaml"), format!("services:\n  a: {service}\n  b: {limited}\n")).unwrap();
    let found = moeplan("check --vram 24576M,1200M --ram 64G --json limited.yaml");
    let document: Value = serde_json::from_slice(&found.stdout).unwrap();
    let [a, b] = [0, 1].map(|at| &document["checks"][at]);
    assert_eq!((a["main_memory"].as_u64(), b["main_memory"].as_u64()), (Some(64 << 30), Some(200 << 20)));
    assert!(a["fits"] == true && b["shortfall"]["Host"].as_u64() > Some(0), "{b}");
    assert_eq!(b["host_needs"]["reserve"].as_u64(), Some(0));
    let table = moeplan("check --vram 24576M,24576M --ram 64G compose.yaml");
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(text.contains("All of them fit at once.") && !text.contains("  CUDA0"), "{text}");
}

/// What `plan --emit compose` writes is the plan, in the folder of the file.
#[test]
fn an_emitted_compose_file_is_the_plan() {
    let folder = folder();
    let at = folder.path();
    let moeplan = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(words.split(' ')).current_dir(at).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    let machine = "--vram 24576M,24576M --ram 64G";
    let written = moeplan(&format!("plan {machine} -c 4096 --emit compose -o compose.yaml x.gguf"));
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let of = |words: &str| serde_json::from_slice::<Value>(&moeplan(words).stdout).unwrap();
    let plan = of(&format!("plan {machine} -c 4096 --json x.gguf"));
    let check = of(&format!("check {machine} --json compose.yaml"));
    assert_eq!((&check["memory"], &check["run"]["n_ubatch"]), (&plan["memory"], &plan["run"]["n_ubatch"]));
    assert!(check["fits"] == true && check["lints"].as_array().unwrap().iter().all(|lint| lint["severity"] == "info"));
    // Nobody needs a llama-server to see what would be launched.
    for words in [
        "validate --model mine=x.gguf --results r",
        "run x.gguf",
        "bench x.gguf",
        "tune --prompt 1024 x.gguf",
        "verify --runtime server x.gguf",
    ] {
        let (command, rest) = words.split_once(' ').unwrap();
        let mut run = Command::new(env!("CARGO_BIN_EXE_moeplan"));
        run.args(format!("{command} --dry-run {machine} -c 4096 {rest}").split(' ')).current_dir(at);
        let run = run.env("PATH", "").env("HOME", at).env("XDG_CACHE_HOME", at).env_remove("MOEPLAN_LLAMA_SERVER");
        let found = run.output().unwrap();
        let said = String::from_utf8_lossy(&found.stderr).into_owned();
        assert!(found.status.code() != Some(2) && said.contains("no llama-server was found here"), "{command}: {said}");
    }
}

/// Of llama-swap's groups and a router's models, those that stay loaded are added up; errors name the line and the section.
#[test]
fn models_that_stay_loaded_are_added_up() {
    let folder = folder();
    let at = folder.path();
    let moeplan = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
        command.args(words.split(' ')).current_dir(at).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    let of = |words: &str| {
        let found = moeplan(&format!("check --vram 1200M --ram 64G --json {words}"));
        let document: Value = serde_json::from_slice(&found.stdout).unwrap_or_default();
        (found.status.code(), document, String::from_utf8_lossy(&found.stderr).into_owned())
    };
    let model = |name: &str| format!("  {name}: {{cmd: llama-server -m x.gguf -ngl 99 -c 4096 -fit off}}\n");
    let models = ["a", "b", "c"].map(model).concat();
    for (groups, code, commands) in [
        ("", 0, None),
        ("groups: {g: {swap: true, members: [a, b, c]}}", 0, None),
        ("groups: {g: {swap: false, members: [a, c]}}", 1, Some(["a", "c"])),
        ("groups: {g: {persistent: true, members: [b]}}", 1, Some(["b", "c"])),
    ] {
        std::fs::write(at.join("swap.yaml"), format!("models:\n{models}{groups}\n")).unwrap();
        let (found, document, said) = of("swap.yaml");
        assert_eq!(found, Some(code), "{groups} {said}");
        let at_once = &document["at_once"];
        assert_eq!(at_once["commands"], commands.map_or(Value::Null, Value::from), "{groups}");
        let sum = 2 * total(&document["checks"][0], "CUDA0").unwrap();
        let short = at_once["shortfall"]["CUDA0"].as_u64();
        assert_eq!(short, commands.map(|_| sum - (1200 << 20)), "{groups}");
    }
    let text = String::from_utf8_lossy(&moeplan("check --vram 1200M --ram 64G swap.yaml").stdout).into_owned();
    assert!(text.contains("b, c at once do not fit: "), "{text}");
    // Nobody said how many a router keeps: no definite no.
    let section = |name: &str| format!("[{name}]\nmodel = x.gguf\nngl = 99\nfit = off\nc = 4096\n");
    std::fs::write(at.join("m.ini"), section("a") + &section("b")).unwrap();
    let (code, document, said) = of("m.ini");
    assert_eq!((code, document["at_once"]["assumed_most"].as_u64()), (Some(0), Some(4)), "{said}");
    let router = |most: u32| of(&format!("-- llama-server --models-preset m.ini --models-max {most}"));
    let (code, said, _) = router(2);
    assert!(code == Some(1) && said["at_once"]["assumed_most"].is_null(), "{said}");
    assert!(router(1).0 == Some(0) && router(1).1["at_once"].is_null());
    // One section alone.
    std::fs::write(at.join("m.ini"), section("a") + "ctk = q9\n").unwrap();
    let (code, _, said) = of("m.ini");
    assert!(code == Some(2) && said.contains("line 6, [a]: `-ctk q9`"), "{said}");
    std::fs::write(at.join("m.ini"), section("a") + &section("b") + "ctk = q9\n").unwrap();
    let (code, document, _) = of("m.ini");
    let error = document["checks"][1]["error"].as_str().unwrap_or_default();
    assert!(code == Some(2) && error.starts_with("line 11, [b]: "), "{document}");
}

/// A flag of an older build is carried out as it was meant: the speed is that of the launch that was meant.
#[test]
fn a_command_with_a_removed_flag_has_a_speed() {
    let folder = folder();
    let of = |words: &[&str]| {
        let mut line = vec!["llama-server", "-m", "x.gguf", "-ngl", "99", "-c", "4096", "-fit", "off"];
        line.extend(words);
        check(folder.path(), &line, "", &[])
    };
    let (code, new, said) = of(&["-lm", "none"]);
    assert!(code == 0 && new["speed"].is_object(), "{said}");
    let (code, old, _) = of(&["--no-mmap"]);
    assert_eq!((code, &old["speed"], &old["verdict"]), (1, &new["speed"], &Value::from("refused")));
    assert!(new["mended"].is_null());
    // An image's tag says its build, which has it.
    let image =
        ["docker", "run", "--gpus", "all", "llama.cpp:server-cuda-b9000", "-m", "x.gguf", "-c", "512", "--no-mmap"];
    let (code, found, said) = check(folder.path(), &image, "", &[]);
    assert!(code == 0 && !said.contains("assuming"), "{said}");
    let asked = found["plan"]["asked"].as_str().unwrap_or_default();
    assert!(asked.contains(" --build 9000 "), "{found}");
    // So are others that are read as what was meant, each command printed as llama.cpp takes it, with what decides nothing.
    for words in [
        &["--no-mmap", "-fa", "--jinja", "--port", "9"][..],
        &["-lm", "none", "--flash-attn=on", "--jinja", "--port", "9"],
    ] {
        let (code, found, said) = of(words);
        assert_eq!(code, 1, "{said}");
        let mended = found["mended"].as_str().unwrap();
        assert!(mended.ends_with(" --jinja --port 9"), "{mended}");
        let (code, again, said) = check(folder.path(), &mended.split(' ').collect::<Vec<_>>(), "", &[]);
        assert_eq!((code, &again["memory"], &again["speed"]), (0, &found["memory"], &found["speed"]), "{said}");
        let beside = &found["plan"];
        assert!(beside["command"].as_str().unwrap().ends_with(" --jinja --port 9"), "{beside}");
        let [times, own, turn] =
            ["times_as_fast", "command_seconds", "turn_seconds"].map(|key| beside[key].as_f64().unwrap());
        assert!(
            (times - own / turn).abs() < 1e-9 && again["plan"]["times_as_fast"] == beside["times_as_fast"],
            "{beside}"
        );
    }
    // What is not read at all has neither.
    let (_, lost, _) = of(&["--no-mmap", "--frobnicate"]);
    assert!(lost["speed"].is_null() && lost["plan"].is_null() && lost["mended"].is_null());
}

/// The number of blocks is the least that fits: one less does not, where no other rule places experts.
#[test]
fn a_command_that_does_not_fit_is_told_how_many_blocks_would() {
    let folder = folder();
    let synth = ["synth", "qwen3-30b-a3b", "-q", "-o", "whole.gguf"];
    let made = Command::new(env!("CARGO_BIN_EXE_moeplan")).args(synth).current_dir(folder.path()).status().unwrap();
    assert!(made.success());
    let of = |words: &[&str]| {
        let line = ["llama-server", "-m", "whole.gguf", "-ngl", "99", "-c", "4096", "-fit", "off", "-dev", "CUDA1"];
        check(folder.path(), &[&line[..], words].concat(), "", &[])
    };
    for words in [&[][..], &["-ncmoe", "3"], &["-ncmoe", "3", "--no-mmap"]] {
        let (code, short, said) = of(words);
        let n = short["n_cpu_moe"].as_u64().unwrap();
        assert!(code == 1 && n > 3, "{said} {short}");
        let fits = |n: u64| of(&["-ncmoe", &n.to_string()]).1["fits"] == true;
        assert!(fits(n) && !fits(n - 1), "{n}");
    }
    let none = |words: &[&str]| of(words).1["n_cpu_moe"].is_null();
    assert!(none(&["-ncmoe", "48"]) && none(&["-ot", "x=CPU"]));
}
