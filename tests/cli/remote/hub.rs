//! Repositories: the list, the choice, the token, and the whole program through HF_ENDPOINT.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use super::http_server::{Answer, Server};
use super::*;
use moeplan::gguf::source::Which;

fn item(path: &str, bytes: usize, oid: &str) -> String {
    format!(r#"{{"type":"file","path":{path:?},"size":9,"oid":"x","lfs":{{"oid":"{oid}","size":{bytes}}}}}"#)
}

/// A hub with one repository of three models, one of them split, and names that lead elsewhere.
fn hub() -> Server {
    let shard = |number, model: Builder| model.shard(number, 2, 4).build();
    let split = [shard(0, builder()), shard(1, Builder::new().tensor("rest.weight", &[32, 4], 0, 512))];
    let items = [
        r#"{"type":"directory","path":"Q8_0","size":0}"#.to_string(),
        item("README.md", 10, "r"),
        item("../evil-Q4_K_M.gguf", 10, "e"),
        item("Q8_0/m-Q8_0-00001-of-00002.gguf", split[0].len(), "s0"),
        item("Q8_0/m-Q8_0-00002-of-00002.gguf", split[1].len(), "s1"),
        item("m-IQ2_XS.gguf", model().len(), "i"),
        item("m-Q4_K_M.gguf", model().len(), "q"),
        item("mmproj-F16.gguf", 10, "p"),
    ];
    let listing = format!("[{}]", items.join(","));
    Server::new(move |request| {
        let file = match request.path.as_str() {
            "/api/models/o/r/tree/main?recursive=true" => return Answer::status(200).body(listing.clone()),
            "/o/r/resolve/main/Q8_0/m-Q8_0-00001-of-00002.gguf" => split[0].clone(),
            "/o/r/resolve/main/Q8_0/m-Q8_0-00002-of-00002.gguf" => split[1].clone(),
            "/o/r/resolve/main/m-IQ2_XS.gguf" | "/o/r/resolve/main/m-Q4_K_M.gguf" => model(),
            _ => return Answer::status(if request.path.contains("gated") { 401 } else { 404 }),
        };
        Answer::range(request, &file, "\"e\"")
    })
}

fn client_of(hub: &Server, cache: Option<&std::path::Path>) -> Client {
    Client::new(limits(), cache.map(Into::into), &hub.address, None).unwrap()
}

#[test]
fn a_repository_is_listed_without_reading_a_header() {
    let hub = hub();
    let quants = client_of(&hub, None).quants("o/r").unwrap();
    let names: Vec<_> = quants.iter().map(|quant| (quant.name.as_str(), quant.files.len())).collect();
    assert_eq!(names, [("Q8_0", 2), ("IQ2_XS", 1), ("Q4_K_M", 1)]);
    assert_eq!(hub.paths().len(), 1);
}

#[test]
fn quantisations_and_files_are_found() {
    let hub = hub();
    let client = client_of(&hub, None);
    let chosen = |which| client.choose("o/r", &which);
    assert_eq!(chosen(Which::Default).unwrap().name, "Q4_K_M");
    let split = chosen(Which::Quant("q8_0".into())).unwrap();
    assert_eq!(client.open_quant("o/r", &split).unwrap().files.len(), 2);
    assert_eq!(chosen(Which::File("Q8_0/m-Q8_0-00002-of-00002.gguf".into())).unwrap(), split);
    let error = chosen(Which::Quant("Q3_K_S".into())).unwrap_err();
    assert!(error.hint().unwrap().contains("`IQ2_XS`"), "{error}");
}

#[test]
fn content_that_the_list_knows_is_not_asked_for_again() {
    let directory = tempfile::tempdir().unwrap();
    let hub = hub();
    for _ in 0..2 {
        let client = client_of(&hub, Some(directory.path()));
        let quant = client.choose("o/r", &Which::Default).unwrap();
        is_model(&client.open_quant("o/r", &quant));
    }
    let files =
        hub.paths().iter().filter(|path| path.contains("resolve")).collect::<std::collections::BTreeSet<_>>().len();
    let asked = hub.paths().iter().filter(|path| path.contains("resolve")).count();
    assert!(files == 1 && asked <= 6, "{:?}", hub.paths());
    let before = hub.paths().len();
    let mut offline = client_of(&hub, Some(directory.path()));
    offline.offline = true;
    let quant = offline.choose("o/r", &Which::Default).unwrap();
    is_model(&offline.open_quant("o/r", &quant));
    assert_eq!(hub.paths().len(), before);
}

#[test]
fn the_list_may_have_pages_but_only_on_the_hub() {
    let page = |next: &'static str| {
        Server::new(move |request| {
            let path = if request.path.contains("cursor") { "b-Q8_0.gguf" } else { "a-Q4_0.gguf" };
            let answer = Answer::status(200).body(format!("[{}]", item(path, 5, path)));
            match request.earlier {
                0 if path.starts_with('a') => answer.header("Link", format!("<{next}>; rel=\"next\"")),
                _ => answer,
            }
        })
    };
    let server = page("/api/models/o/r/tree/main?cursor=2");
    assert_eq!(client_of(&server, None).quants("o/r").unwrap().len(), 2);
    let elsewhere = page("http://127.0.0.2:1/cursor");
    assert!(client_of(&elsewhere, None).quants("o/r").is_err());
}

#[test]
fn a_list_that_is_none_or_has_no_end_is_refused() {
    for body in ["", "{}", "[{\"type\":1}]", "<html>", "[[[[[["] {
        let server = Server::new(move |_| Answer::status(200).body(body));
        let error = client_of(&server, None).quants("o/r").unwrap_err();
        assert!(matches!(error, Error::Address { failure: Failure::Listing(_), .. }), "{body}: {error}");
    }
    let server = Server::new(|_| Answer { endless: true, ..Answer::status(200).body("[") });
    let client = Client::new(Limits { listing: 1 << 16, ..limits() }, None, &server.address, None).unwrap();
    assert!(client.quants("o/r").is_err() && client.moved() <= 1 << 16);
    let server = Server::new(|_| Answer::status(200).body("[]"));
    let error = client_of(&server, None).quants("o/r").unwrap_err();
    assert!(error.to_string().contains("holds no GGUF model"), "{error}");
}

/// A hub with four quantisations whose headers hold the same 60 KiB of vocabulary, moved by a few bytes; the last one's is
/// another.
fn siblings() -> (Server, u64) {
    let quant = |n: usize| {
        let word = if n == 3 { "longer word number" } else { "word number" };
        let words = (0..3000).map(|at| text(&format!("{word} {at}"))).collect();
        let name = "x".repeat(10 + 7 * n);
        let file = Builder::small()
            .key("general.name", text(&name))
            .key("tokenizer.ggml.tokens", V::Arr(8, words))
            .key("tokenizer.chat_template", text(&"{{ message }}".repeat(200)))
            .key("general.file_type", V::U32(u32::try_from(n).unwrap()));
        (0..20).fold(file, |file, at| file.tensor(&format!("blk.{at}.x.weight"), &[32, 64], 0, 8192))
    };
    let files: Vec<(String, Vec<u8>)> =
        (0..4).map(|n| (format!("/o/r/resolve/main/m-Q{n}_0.gguf"), quant(n).build())).collect();
    let items: Vec<String> =
        (0..4).map(|n| item(&format!("m-Q{n}_0.gguf"), files[n].1.len(), &n.to_string())).collect();
    let listing = format!("[{}]", items.join(","));
    let server = Server::new(move |request| match files.iter().find(|(path, _)| *path == request.path) {
        Some((path, file)) => Answer::range(request, file, &format!("\"{path}\"")),
        None => Answer::status(200).body(listing.clone()),
    });
    (server, quant(0).header().len() as u64)
}

#[test]
fn a_vocabulary_that_is_known_is_not_moved_again() {
    let directory = tempfile::tempdir().unwrap();
    let (server, header) = siblings();
    let quick = Limits { tail: 4 << 10, ..limits() };
    let client = Client::new(quick, Some(directory.path().into()), &server.address, None).unwrap();
    let plain = client_of(&server, None);
    let quants = client.quants("o/r").unwrap();
    client.open_quant("o/r", &quants[0]).unwrap();
    for (n, quant) in quants.iter().enumerate() {
        let before = client.moved();
        let spliced = client.open_quant_beside("o/r", quant, Some(&quants[0])).unwrap();
        let moved = client.moved() - before;
        let whole = plain.open_quant("o/r", quant).unwrap();
        assert_eq!(spliced.header.metadata, whole.header.metadata, "{n}");
        assert_eq!(format!("{:?}", spliced.header.tensors), format!("{:?}", whole.header.tensors), "{n}");
        assert_eq!(spliced.header.data_offset, whole.header.data_offset, "{n}");
        let (least, most) = [(0, 0), (1, header / 2), (1, header / 2), (header, u64::MAX)][n];
        assert!(moved >= least && moved <= most, "{n}: {moved} of {header}");
    }
}

/// The program, alone with this hub and an empty home.
fn program(hub: &Server, home: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    command.env_clear().env("HOME", home).env("HF_ENDPOINT", &hub.address).env("HF_TOKEN", "hf_mine");
    command.env("http_proxy", "http://127.0.0.1:1");
    command
}

fn moeplan(hub: &Server, home: &std::path::Path, words: &[&str]) -> (Output, String, String) {
    let output = program(hub, home).args(words).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output, stdout, stderr)
}

#[test]
fn the_program_lists_a_repository_and_inspects_a_model_of_it() {
    let home = tempfile::tempdir().unwrap();
    let hub = hub();
    let (output, stdout, stderr) = moeplan(&hub, home.path(), &["inspect", "hf:o/r"]);
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.contains("IQ2_XS") && stdout.contains("hf:o/r:Q4_K_M") && !stdout.contains("evil"), "{stdout}");
    let (_, stdout, _) = moeplan(&hub, home.path(), &["inspect", "--json", "hf:o/r"]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    schemas::assert_valid(&json);
    assert_eq!(
        (&json["schema"], &json["quants"][0]["files"][1]["path"]),
        (&"moeplan/quants/1".into(), &"Q8_0/m-Q8_0-00002-of-00002.gguf".into())
    );
    let (output, stdout, stderr) = moeplan(&hub, home.path(), &["inspect", "--json", "hf:o/r:Q8_0"]);
    assert!(output.status.success(), "{stderr}");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["files"].as_array().unwrap().len(), 2);
    assert!(home.path().join(".cache/moeplan").is_dir(), "headers are kept");
    let (output, ..) = moeplan(&hub, home.path(), &["inspect", "--offline", "hf:o/r:Q8_0"]);
    assert!(output.status.success());
    let requests = hub.requests.lock().unwrap();
    assert!(requests.iter().all(|request| request.header("authorization") == Some("Bearer hf_mine")));
}

/// A hub whose repository `o/moe` has these files: a name, the model that `synth` makes small, and its recipe.
fn repository(models: &[[&str; 3]]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for [name, model, recipe] in models {
        let path = folder.path().join(name);
        let synth = ["synth", model, "--tiny", "--quiet", "--recipe", recipe, "-o", path.to_str().unwrap()];
        assert!(Command::new(env!("CARGO_BIN_EXE_moeplan")).args(synth).output().unwrap().status.success());
        files.push((format!("/o/moe/resolve/main/{name}"), std::fs::read(path).unwrap()));
    }
    let items: Vec<String> =
        files.iter().zip(models).map(|((path, file), [name, ..])| item(name, file.len(), path)).collect();
    files.push(("/api/models/o/moe/tree/main".to_string(), format!("[{}]", items.join(",")).into_bytes()));
    Server::of_files(files)
}

/// llama.cpp loads a repository's projector with its model unless told otherwise.
#[test]
fn the_projector_of_a_repository_is_counted_or_the_command_leaves_it_out() {
    let home = tempfile::tempdir().unwrap();
    let hub = repository(&[["m-Q8_0.gguf", "mixtral-8x7b", "Q8_0"], ["mmproj-F16.gguf", "mmproj-llava-1.5-7b", "F16"]]);
    let json = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let (_, stdout, stderr) = moeplan(&hub, home.path(), &words);
        serde_json::from_str::<serde_json::Value>(&stdout).unwrap_or_else(|_| panic!("{stderr}"))
    };
    let check = |words: &str| {
        let answer =
            json(&format!("check --vram 8G --ram 8G --json -- llama-server -hf o/moe:Q8_0 -ngl 99 -c 4096{words}"));
        assert_eq!(answer["verdict"], "comfortable", "{answer}");
        let parts = answer["parts"].as_array().unwrap();
        let has_projector = parts.iter().any(|part| part["what"] == "projector");
        (has_projector, answer["memory"]["CUDA0"]["total"].as_u64().unwrap())
    };
    let [(with, more), (without, less)] = [check(""), check(" --no-mmproj")];
    assert!(with && !without && more > less, "{more} {less}");

    let plan = json("plan hf:o/moe:Q8_0 --vram 8G --ram 8G -c 4096 --json");
    let has_projector = plan["parts"].as_array().unwrap().iter().any(|part| part["what"] == "projector");
    let leaves_out = plan["args"].as_array().unwrap().iter().any(|word| word == "--no-mmproj");
    assert!(has_projector != leaves_out, "{plan}");
}

#[test]
fn the_program_says_which_quantisation_fits_and_how_fast_it_would_be() {
    let home = tempfile::tempdir().unwrap();
    let hub = repository(&[["m-Q8_0.gguf", "qwen3-30b-a3b", "Q8_0"], ["m-F16.gguf", "qwen3-30b-a3b", "F16"]]);
    let listed = |vram: &str| {
        let words = ["inspect", "hf:o/moe", "--vram", vram, "--ram", "8G", "--margin", "0", "--json"];
        let (output, stdout, stderr) = moeplan(&hub, home.path(), &words);
        let json: serde_json::Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
        (output.status.code(), json)
    };
    let (code, json) = listed("8G");
    assert_eq!(code, Some(0));
    for (at, name) in ["Q8_0", "F16"].into_iter().enumerate() {
        let row = &json["quants"][at];
        assert_eq!((row["name"].as_str(), row["fits"]["all_on_device"]["fits"].as_bool()), (Some(name), Some(true)));
        let (speed, turn) = (&row["fits"]["speed"], row["fits"]["turn_seconds"].as_f64().unwrap());
        let number = |key: &str| speed[key].as_f64().unwrap();
        let expected = 4096.0 / number("pp") + 512.0 / number("tg");
        assert!((turn - expected).abs() < 0.01 * expected, "{turn} {expected}");
        assert!(number("uncertainty") > 0.0 && !speed["basis"].as_str().unwrap().is_empty());
    }
    let seconds = |at: usize| json["quants"][at]["fits"]["turn_seconds"].as_f64().unwrap();
    assert!(seconds(0) < seconds(1), "fewer bytes are faster");

    let (code, json) = listed("1M");
    assert_eq!(code, Some(1), "nothing fits");
    assert!(json["quants"][0]["fits"]["auto"]["short"].as_u64().unwrap() > 0);
    assert!(json["quants"][0]["fits"].get("speed").is_none(), "what does not fit has no speed");

    let (_, page, _) = moeplan(&hub, home.path(), &["inspect", "hf:o/moe", "--vram", "8G", "--ram", "8G"]);
    assert!(page.contains("Predicted, prompt ±") && page.contains("tokens/s as planned"), "{page}");
}

#[test]
fn an_agent_is_told_the_models_of_a_repository_as_a_person_is() {
    let home = tempfile::tempdir().unwrap();
    let hub = repository(&[["m-Q8_0.gguf", "qwen3-30b-a3b", "Q8_0"], ["m-F16.gguf", "qwen3-30b-a3b", "F16"]]);
    let machine = serde_json::json!({ "vram": ["8G"], "ram": "8G" });
    let calls = [
        serde_json::json!({ "model": "hf:o/moe" }),
        serde_json::json!({ "model": "hf:o/moe", "machine": machine }),
        serde_json::json!({ "model": "hf:o/moe", "tensors": true }),
        serde_json::json!({ "model": "hf:o/moe:Q8_0", "machine": machine }),
    ];
    let mut asked = vec![serde_json::json!({ "method": "tools/list" })];
    asked.extend(calls.map(|arguments| {
        serde_json::json!({ "method": "tools/call", "params": { "name": "inspect", "arguments": arguments } })
    }));
    let mut child = program(&hub, home.path()).arg("mcp").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for mut question in asked {
        (question["jsonrpc"], question["id"]) = ("2.0".into(), 1.into());
        writeln!(input, "{question}").unwrap();
    }
    drop(input);
    let said = child.wait_with_output().unwrap().stdout;
    let replies: Vec<serde_json::Value> =
        said.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let schema = &replies[0]["result"]["tools"][0]["outputSchema"];
    for (reply, words) in replies[1..3].iter().zip([&[][..], &["--vram", "8G", "--ram", "8G"]]) {
        let (_, stdout, _) = moeplan(&hub, home.path(), &[&["inspect", "hf:o/moe", "--json"], words].concat());
        let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let shown = &reply["result"]["structuredContent"];
        assert!(*shown == document && shown["quants"].as_array().unwrap().len() == 2, "{reply}");
        assert_eq!(schemas::faults(schema, shown), [""; 0]);
    }
    for (reply, said) in
        replies[3..].iter().zip(["whose models `inspect` lists", "a machine can be given only for a whole repository"])
    {
        let text = reply["result"]["content"][0]["text"].as_str().unwrap();
        assert!(reply["result"]["isError"] == true && text.contains(said), "{reply}");
    }
}

#[test]
fn the_program_says_what_to_try() {
    let home = tempfile::tempdir().unwrap();
    let hub = hub();
    for (words, said) in [
        (["inspect", "hf:o/gated"], "HF_TOKEN"),
        (["inspect", "hf:o/none"], "check owner"),
        (["inspect", "hf:o/r:Q2_K"], "it holds `Q8_0`"),
        (["inspect", "hf:o"], "hf:owner/repo"),
        (["inspect", "some-model"], "moeplan list"),
    ] {
        let (output, _, stderr) = moeplan(&hub, home.path(), &words);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr.contains(said) && !stderr.contains("hf_mine"), "{words:?}: {stderr}");
    }
}
