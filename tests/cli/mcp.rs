//! `mcp` as an agent's program drives it: the real program over standard input and output, line by line.

use crate::support::schemas;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

fn moeplan(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moeplan"));
    command.current_dir(folder).env("CUDA_VISIBLE_DEVICES", "").env_remove("MOEPLAN_LLAMA_SERVER").env("PATH", folder);
    for variable in ["HOME", "HF_HOME", "LLAMA_CACHE", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"] {
        command.env(variable, folder.join("home"));
    }
    command
}

struct Agent {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Agent {
    fn new(folder: &Path) -> Self {
        let piped = || (Stdio::piped(), Stdio::piped(), Stdio::piped());
        let (stdin, stdout, stderr) = piped();
        let mut child = moeplan(folder).arg("mcp").stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap();
        let (input, said) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let (send, lines) = channel();
        std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, input, lines }
    }

    fn say(&mut self, line: &[u8]) {
        self.input.write_all(line).unwrap();
    }

    fn hear(&self) -> Value {
        let line = self.lines.recv_timeout(Duration::from_mins(2)).expect("a reply");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("no line of JSON: {error}: {line}"))
    }

    /// The reply to a request; nothing else was said before it.
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        let request = json!({ "jsonrpc": "2.0", "id": method, "method": method, "params": params });
        self.say(format!("{request}\n").as_bytes());
        let reply = self.hear();
        assert_eq!((&reply["jsonrpc"], &reply["id"]), (&json!("2.0"), &json!(method)), "{reply}");
        reply
    }

    fn call(&mut self, tool: &str, arguments: &Value) -> Value {
        let reply = self.ask("tools/call", &json!({ "name": tool, "arguments": arguments }));
        assert_eq!(reply["result"]["resultType"], "complete", "{reply}");
        reply["result"].clone()
    }

    /// Ends standard input: the exit code, lines that came yet, and standard error.
    fn end(mut self) -> (Option<i32>, Vec<String>, String) {
        drop(self.input);
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), self.lines.iter().collect(), said)
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("home")).unwrap();
    for words in ["synth qwen3-30b-a3b --tiny -q -o tiny.gguf", "synth gpt-oss-20b -q -o gpt-oss-20b.gguf"] {
        assert!(moeplan(folder.path()).args(words.split(' ')).status().unwrap().success());
    }
    folder
}

#[test]
fn both_ways_to_begin_and_a_list_of_tools() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(folder.path());
    for (wanted, given) in [
        ("2025-11-25", "2025-11-25"),
        ("2025-06-18", "2025-06-18"),
        ("2024-11-05", "2024-11-05"),
        ("1999-01-01", "2025-11-25"),
        // It has no handshake: whoever begins with one gets the newest that has.
        ("2026-07-28", "2025-11-25"),
    ] {
        let asked =
            json!({ "protocolVersion": wanted, "capabilities": {}, "clientInfo": { "name": "x", "version": "1" } });
        let result = agent.ask("initialize", &asked)["result"].clone();
        assert_eq!(result["protocolVersion"], given, "{wanted}");
        assert!(result["capabilities"]["tools"].is_object() && result["serverInfo"]["name"] == "moeplan", "{result}");
        agent.say(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n");
    }
    let with = |revision: &str| json!({ "_meta": { "io.modelcontextprotocol/protocolVersion": revision } });
    let found = agent.ask("server/discover", &with("2026-07-28"))["result"].clone();
    assert_eq!(found["supportedVersions"][0], "2026-07-28");
    assert!(found["ttlMs"].is_u64() && found["cacheScope"] == "public" && found["resultType"] == "complete", "{found}");
    let refused = agent.ask("tools/list", &with("2199-01-01"))["error"].clone();
    assert_eq!((&refused["code"], &refused["data"]["requested"]), (&json!(-32022), &json!("2199-01-01")));
    assert_eq!(refused["data"]["supported"], found["supportedVersions"]);
    let tools = agent.ask("tools/list", &with("2026-07-28"))["result"]["tools"].clone();
    let names: Vec<_> = tools.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["inspect", "check", "plan", "devices"]);
    for tool in tools.as_array().unwrap() {
        let name = tool["name"].as_str().unwrap();
        let schema = schemas::read(&format!("moeplan/{name}/1"));
        if name == "inspect" {
            // Or the models of a repository.
            let either = tool["outputSchema"]["anyOf"].as_array().unwrap();
            assert_eq!((either.len(), &either[0]["properties"]), (2, &schema["properties"]));
        } else {
            assert_eq!(tool["outputSchema"], schema);
        }
        assert_eq!((&tool["inputSchema"]["type"], &tool["outputSchema"]["type"]), (&json!("object"), &json!("object")));
        let faults = |asked: Value| schemas::faults(&tool["inputSchema"], &asked);
        let mut asked =
            json!({ "model": "m.gguf", "command": "llama-server", "machine": { "vram": ["24G"], "cores": 8 } });
        let known = tool["inputSchema"]["properties"].as_object().unwrap();
        asked.as_object_mut().unwrap().retain(|key, _| known.contains_key(key));
        assert_eq!(faults(asked.clone()), [""; 0], "{name}");
        asked["modle"] = "m.gguf".into();
        assert!(!faults(asked).is_empty(), "{name}: any key");
    }
    assert_eq!(agent.ask("ping", &Value::Null)["result"], json!({ "resultType": "complete" }));
    assert_eq!(agent.end(), (Some(0), Vec::new(), String::new()));
}

#[test]
fn a_tool_answers_what_its_command_answers() {
    let folder = folder();
    let mut agent = Agent::new(folder.path());
    let machine = json!({ "vram": ["9M"], "backend": "rpc", "ram": "1G", "cores": 4 });
    let words = "--vram 9M --backend rpc --ram 1G --cores 4";
    for (tool, arguments, command) in [
        ("inspect", json!({ "model": "tiny.gguf" }), "inspect tiny.gguf".to_string()),
        (
            "inspect",
            json!({ "model": "tiny.gguf", "tensors": true, "metadata": true }),
            "inspect tiny.gguf --tensors --metadata".into(),
        ),
        (
            "plan",
            json!({ "model": "tiny.gguf", "machine": machine, "margin": "0", "planning": { "ctx_size": "1024" } }),
            format!("plan tiny.gguf {words} --margin 0 -c 1024"),
        ),
        (
            "plan",
            json!({ "model": "tiny.gguf", "machine": machine, "planning": { "objective": "tg", "explain": true, "tensors": true }, "words": ["-ub", "64", "--swa-full"] }),
            format!("plan tiny.gguf {words} --objective tg --explain --tensors -- -ub 64 --swa-full"),
        ),
        (
            "check",
            json!({ "command": "$ llama-server -m tiny.gguf -ngl 99 -c 512", "machine": machine, "tensors": true, "build": 11434, "turn": { "prompt": 64, "generate": 8, "depth": 0 } }),
            format!(
                "check {words} --tensors --build 11434 --prompt 64 --generate 8 -- llama-server -m tiny.gguf -ngl 99 -c 512"
            ),
        ),
        ("devices", json!({ "machine": machine }), format!("devices {words}")),
        (
            "devices",
            json!({ "machine": { "gpu": ["RTX 4090"], "ram": "64G@ddr5-6000x2" } }),
            "devices --gpu 'RTX 4090' --ram 64G@ddr5-6000x2".into(),
        ),
    ] {
        let result = agent.call(tool, &arguments);
        assert_eq!(result["isError"], Value::Null, "{tool}: {result}");
        let output = |format: &str| {
            let words = shlex::split(&format!("--format {format} {command}")).unwrap();
            let output = moeplan(folder.path()).args(words).output().unwrap();
            assert!(
                matches!(output.status.code(), Some(0 | 1)),
                "{command}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap()
        };
        let document: Value = serde_json::from_str(&output("json")).unwrap();
        let shown = &result["structuredContent"];
        assert_eq!(shown["command"], document["command"], "{command}");
        assert!(*shown == document, "{command}: another document");
        schemas::assert_valid(shown);
        assert_eq!(result["content"], json!([{ "type": "text", "text": output("text") }]), "{command}");
    }
    assert_eq!(agent.call("devices", &json!({}))["structuredContent"]["schema"], "moeplan/devices/1");
    assert_eq!(agent.end().0, Some(0));
}

#[test]
fn what_is_asked_wrong_is_an_error_of_the_tool_with_a_hint() {
    let folder = folder();
    let mut agent = Agent::new(folder.path());
    let card = json!({ "vram": ["24G"] });
    for (tool, arguments, said) in [
        ("inspect", json!({}), "missing field `model`"),
        ("inspect", json!({ "model": "nothere.gguf" }), "hint: "),
        ("inspect", json!({ "model": ["a"] }), "the arguments: model"),
        ("inspect", json!({ "model": "tiny.gguf", "tensor": true }), "`tensor`, expected"),
        ("inspect", json!({ "model": "../\u{202e}\u{1b}[31m\0.gguf" }), "\\u{202e}"),
        ("plan", json!({ "model": "tiny.gguf", "machine": { "vram": "24" } }), "the arguments: machine.vram"),
        ("plan", json!({ "model": "tiny.gguf", "machine": { "vram": ["24"] } }), "24"),
        ("plan", json!({ "model": "tiny.gguf", "machine": card, "margin": "much" }), "`margin`: `much`"),
        ("plan", json!({ "model": "tiny.gguf", "machine": card, "words": ["-sm", "row"] }), "hint: "),
        ("plan", json!({ "model": "tiny.gguf", "machine": card, "planning": { "ctx_size": 8192.5 } }), "the arguments"),
        ("plan", json!({ "model": "tiny.gguf", "machine": { "gpu": ["RTX 9999"] } }), "RTX 9999"),
        ("plan", json!({ "model": "tiny.gguf", "machine": { "vram": ["24G"], "cores": 0 } }), "0 cores"),
        ("plan", json!({ "model": "tiny.gguf", "machine": { "vram": ["24G"], "memory_bandwidth": -1 } }), "GB/s"),
        ("plan", json!({ "model": "tiny.gguf", "machine": { "device": ["CUDA0"] } }), "CUDA0"),
        ("check", json!({ "command": "", "machine": card }), "check"),
        ("check", json!({ "command": "-", "machine": card }), "check"),
        ("check", json!({ "command": "llama-server -ngl 99", "machine": card }), "names no model"),
        (
            "check",
            json!({ "command": "[a]\nmodel = tiny.gguf\n[b]\nmodel = tiny.gguf\n", "machine": card }),
            "one at a time",
        ),
        ("devices", json!({ "machine": { "vram": ["99999999999999999999G"] } }), "devices"),
        ("devices", json!([1, 2]), "the arguments"),
    ] {
        let result = agent.call(tool, &arguments);
        let text = result["content"][0]["text"].as_str().unwrap();
        assert_eq!(result["isError"], true, "{tool} {arguments}: {result}");
        assert!(text.contains(said) && !text.contains("internal error"), "{tool} {arguments}: {text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    }
    // Whatever is asked, something is said, and no question ends the server.
    let most = u64::from(u32::MAX);
    for (tool, arguments) in [
        (
            "plan",
            json!({ "model": "tiny.gguf", "machine": card, "planning": { "prompt": most, "generate": most, "depth": most } }),
        ),
        ("plan", json!({ "model": "tiny.gguf", "machine": card, "planning": { "ctx_size": "4294967295" } })),
        (
            "plan",
            json!({ "model": "tiny.gguf", "machine": card, "planning": { "prompt": 0, "generate": 0, "build": most } }),
        ),
        (
            "plan",
            json!({ "model": "tiny.gguf", "machine": { "vram": ["17179869183G"], "ram": "17179869183G@1e300", "cores": most } }),
        ),
        (
            "plan",
            json!({ "model": "tiny.gguf", "machine": { "vram": ["1G"], "memory_bandwidth": 1e308 }, "margin": "17179869183G" }),
        ),
        ("plan", json!({ "model": ".", "machine": card })),
        ("plan", json!({ "model": "/dev/null", "machine": card })),
        ("check", json!({ "command": format!("llama-server {}", "-ot ".repeat(9999)), "machine": card })),
        (
            "check",
            json!({ "command": "llama-server -m tiny.gguf -c 4294967295 -np 4294967295 -ngl -5", "machine": card }),
        ),
        ("check", json!({ "command": "'", "machine": card })),
        (
            "check",
            json!({ "command": "llama-server -m tiny.gguf", "build": 0, "turn": { "prompt": most, "generate": most, "depth": most }, "machine": card }),
        ),
    ] {
        let result = agent.call(tool, &arguments);
        assert!(!result.to_string().contains("internal error"), "{tool} {arguments}: {result}");
    }
    let (code, rest, said) = agent.end();
    assert_eq!((code, rest), (Some(0), Vec::new()));
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_line_that_is_no_request_does_not_end_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::new(folder.path());
    let long = [vec![b'['; 3 << 20], b"\n".to_vec()].concat();
    for (line, id, code) in [
        (&b"{\n"[..], Value::Null, -32700),
        (b"\xff\xfe\n", Value::Null, -32700),
        (&long, Value::Null, -32700),
        (b"[]\n", Value::Null, -32600),
        (b"3\n", Value::Null, -32600),
        (b"{\"id\":7}\n", json!(7), -32600),
        (b"{\"id\":7,\"method\":\"ping\"}\n", json!(7), -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"ping\"}\n", Value::Null, -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"ping\"}\n", Value::Null, -32600),
        (b"{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"resources/list\"}\n", json!("a"), -32601),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\"}\n", json!(1), -32602),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"run\"}}\n", json!(1), -32602),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":[]}\r\n", json!(1), -32602),
    ] {
        agent.say(line);
        let reply = agent.hear();
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
        assert_eq!((&reply["id"], &reply["error"]["code"]), (&id, &json!(code)), "{shown}: {reply}");
    }
    // Nothing is said to an empty line, a notification or a reply; a batch has one answer.
    agent.say(b"\n  \n{\"jsonrpc\":\"2.0\",\"method\":\"nothing\"}\n{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n");
    agent.say(b"[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"},{\"jsonrpc\":\"2.0\",\"method\":\"x\"},4]\n");
    let batch = agent.hear();
    assert_eq!(
        (batch.as_array().map(Vec::len), &batch[0]["id"], &batch[1]["error"]["code"]),
        (Some(2), &json!(1), &json!(-32600))
    );
    agent.say(b"{\"half a line");
    let (code, rest, said) = agent.end();
    assert!(
        code == Some(0) && rest.len() == 1 && rest[0].contains("-32700") && said.is_empty(),
        "{code:?} {rest:?} {said}"
    );
    let refused = moeplan(folder.path()).args(["mcp", "-o", "x"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
}

/// docs/agents.md shows calls (`json`) and their pages (`text`). `TRYCMD=overwrite` writes the pages anew.
#[test]
fn the_manual_shows_what_tools_answer() {
    let folder = folder();
    let mut agent = Agent::new(folder.path());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/agents.md");
    let manual = std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n");
    let mut parts: Vec<String> = manual.split("```").map(str::to_string).collect();
    let mut shown = 0;
    for at in 0..parts.len().saturating_sub(2) {
        let Some(call) = parts[at].strip_prefix("json\n").filter(|call| call.contains("\"arguments\"")) else {
            continue;
        };
        let call: Value = serde_json::from_str(call).unwrap();
        let result = agent.call(call["name"].as_str().unwrap(), &call["arguments"]);
        parts[at + 2] = format!("text\n{}", result["content"][0]["text"].as_str().unwrap());
        shown += 1;
    }
    let right = parts.join("```");
    if std::env::var_os("TRYCMD").is_some_and(|wish| wish == "overwrite") {
        std::fs::write(path, &right).unwrap();
    } else {
        assert_eq!(manual, right);
    }
    assert!(shown > 1);
}
