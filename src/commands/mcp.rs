//! `mcp`: the Model Context Protocol on standard input and output: agents ask what the commands answer. [I/O]
//!
//! One message of JSON-RPC a line. Revisions up to 2025-11-25 begin with `initialize`; from 2026-07-28 on every request says its
//! revision, and there is nothing to begin (<https://modelcontextprotocol.io/specification>, "Versioning").

use std::io::{BufRead as _, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::machine::MachineArgs;
use super::plan_options::PlanOptions;
use super::what_if::WhatIfArgs;
use super::{Outcome, Output, check, devices, hint, inspect, model_arg, plan, print, quants};
use crate::ask;
use crate::ask::machine::Described;
use crate::ask::options::Planning;
use crate::cli::{Format, Global};
use crate::plan::Turn;
use crate::report::page::Document;
use crate::report::text;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  moeplan mcp            an agent's program starts this command, and then talks to it
docs/agents.md says how to configure such programs, and which tool answers what.")]
pub struct Args {}

/// Revisions with a handshake, the newest first.
const WITH_HANDSHAKE: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// The revision whose requests say it themselves.
const WITHOUT_HANDSHAKE: &str = "2026-07-28";
const REVISION: &str = "io.modelcontextprotocol/protocolVersion";
/// How long a client may keep the list of tools, in milliseconds: it is part of the program.
const KEPT: u64 = 3_600_000;
/// What a message may have at most, in bytes.
const MOST: u64 = 1 << 20;

const INSTRUCTIONS: &str = "moeplan says which llama.cpp launch of a GGUF model fits a machine, how much memory it takes, to the byte, and \
    roughly how fast it is. It reads headers only. `devices`: this machine, or one that you describe. `inspect`: what a model \
    contains. `plan`: the fastest launch that fits, as a command. `check`: what a command would do. Without `machine`, the answers are \
    for this computer.";

/// Codes of JSON-RPC 2.0, and the protocol's own.
#[derive(Debug, Clone, Copy)]
enum Code {
    Parse = -32700,
    InvalidRequest = -32600,
    NoMethod = -32601,
    InvalidParams = -32602,
    Revision = -32022,
}

/// The arguments of `inspect`.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Inspect {
    /// A GGUF file (any shard of a split model), its folder, https://…, `hf:owner/repo[:QUANT|/FILE]`, or a cached name. `hf:owner/repo`
    /// alone lists the models of the repository.
    model: PathBuf,
    /// List every tensor.
    #[serde(default)]
    tensors: bool,
    /// List every key and its value.
    #[serde(default)]
    metadata: bool,
    /// For a repository: the machine to rank its models for.
    machine: Option<Described>,
    /// With `machine`: memory to leave free on every device: `512M`.
    margin: Option<String>,
}

/// The arguments of `check`.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The whole command line of a llama.cpp program, as you would type it: `llama-server -m model.gguf -ngl 99 -cmoe`.
    command: String,
    /// The machine that it runs on; the default is this computer.
    #[serde(default)]
    machine: Described,
    /// Memory to leave free on every device: `512M`.
    margin: Option<String>,
    /// The llama.cpp build: 11434. Without it, the build of the installed llama-server, else the newest known.
    build: Option<u32>,
    /// The turn whose speed is predicted.
    turn: Option<Turn>,
    /// List every tensor: type, bytes, buffer, rule.
    #[serde(default)]
    tensors: bool,
}

/// The arguments of `plan`.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// A GGUF file (any shard of a split model), its folder, https://…, `hf:owner/repo[:QUANT|/FILE]`, or a cached name.
    model: PathBuf,
    /// The machine to plan for; the default is this computer.
    #[serde(default)]
    machine: Described,
    /// Memory to leave free on every device: `512M`.
    margin: Option<String>,
    /// The planner's options; each has a default.
    #[serde(default)]
    planning: Planning,
    /// llama-server flags that the plan keeps, one word per item: `["-ub", "2048", "--swa-full"]`.
    #[serde(default)]
    words: Vec<String>,
}

/// The arguments of `devices`.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// The machine to describe; the default is this computer.
    #[serde(default)]
    machine: Described,
}

/// A document and its page.
type Answer = (Value, String);

struct Tool {
    name: &'static str,
    description: &'static str,
    /// The schemas of what is asked, and of each kind of document, which `schema.rs` makes.
    asked: &'static str,
    documents: &'static [&'static str],
    call: fn(Value, &Output) -> anyhow::Result<Answer>,
}

macro_rules! schema {
    (mcp $name:literal) => {
        include_str!(concat!("../../schema/mcp-", $name, ".json"))
    };
    ($name:literal) => {
        include_str!(concat!("../../schema/", $name, "-1.json"))
    };
}

const TOOLS: [Tool; 4] = [
    Tool {
        name: "inspect",
        description: "What a GGUF model is, from its header: experts, parameters, bytes by role and type, memory per token of context. For a \
            repository on the Hugging Face hub: its models, and how each fits a machine.",
        asked: schema!(mcp "inspect"),
        documents: &[schema!("inspect"), schema!("quants")],
        call: |asked, output| {
            let Inspect { model, tensors, metadata, machine, margin } = of_json(asked)?;
            if let Some(repo) = inspect::listed(&model)? {
                inspect::only_lists(&repo, !tensors && !metadata)?;
                let machine = machine.map(|described| of_machine(described, margin)).transpose()?;
                return shown(&quants::of(&repo, machine.as_ref(), output)?);
            }
            ensure!(machine.is_none() && margin.is_none(), inspect::MACHINE_OF_ONE);
            let (model, mut inspection) = ask::inspect(model_arg::open(&model, output)?);
            if tensors {
                inspection = inspection.with_tensors(&model);
            }
            if metadata {
                inspection = inspection.with_metadata(&model);
            }
            shown(&inspection)
        },
    },
    Tool {
        name: "check",
        description: "What a llama.cpp command line would do: memory by device, whether it fits, warnings, predicted speed. Runs nothing.",
        asked: schema!(mcp "check"),
        documents: &[schema!("check")],
        call: |asked, output| {
            let Check { command, machine, margin, build, turn, tensors } = of_json(asked)?;
            let machine = of_machine(machine, margin)?;
            let args = check::Args::of(machine, turn.unwrap_or_default(), build, tensors);
            shown(&check::of_text(&args, &command, output)?)
        },
    },
    Tool {
        name: "plan",
        description: "The fastest llama-server launch of a model that fits a machine: `command`, memory by device, predicted speed.",
        asked: schema!(mcp "plan"),
        documents: &[schema!("plan")],
        call: |asked, output| {
            let Plan { model, machine, margin, planning, words } = of_json(asked)?;
            let options = PlanOptions { machine: of_machine(machine, margin)?, planning, ..PlanOptions::default() };
            let asked = plan::asked(&model, &options, &words, &WhatIfArgs::default(), output)?;
            shown(&asked.first().context("internal error: no model")?.plan(false)?)
        },
    },
    Tool {
        name: "devices",
        description: "The machine as the planner sees it: devices with total and free memory, main memory, processor.",
        asked: schema!(mcp "devices"),
        documents: &[schema!("devices")],
        call: |asked, _| {
            let Devices { machine } = of_json(asked)?;
            shown(&devices::of(&of_machine(machine, None)?)?)
        },
    },
];

fn of_json<T: DeserializeOwned>(asked: Value) -> anyhow::Result<T> {
    serde_path_to_error::deserialize(asked).context("the arguments")
}

fn of_machine(described: Described, margin: Option<String>) -> anyhow::Result<MachineArgs> {
    let margin = margin.map(|size| size.parse().with_context(|| format!("`margin`: `{size}`"))).transpose()?;
    Ok(MachineArgs { described, margin, machine: None })
}

fn shown(document: &(impl Serialize + Document)) -> anyhow::Result<Answer> {
    let page = text::report(&document.report(), false, usize::MAX);
    Ok((serde_json::to_value(document)?, anstream::adapter::strip_str(&page).to_string()))
}

/// Answers line by line, until standard input ends.
pub fn run(output: &Output) -> anyhow::Result<Outcome> {
    anyhow::ensure!(output.file().is_none(), "`mcp` answers on standard output: leave -o out");
    let output = Output::new(Global { format: Some(Format::Json), ..output.global.clone() });
    let mut input = std::io::stdin().lock();
    loop {
        let mut line = Vec::new();
        if input.by_ref().take(MOST).read_until(b'\n', &mut line)? == 0 {
            return Ok(Outcome::Yes);
        }
        if line.len() as u64 == MOST && !line.ends_with(b"\n") {
            input.skip_until(b'\n')?;
        }
        if let Some(reply) = reply(&line, &output) {
            print(&format!("{reply}\n"))?;
        }
    }
}

/// What is said to a line; a batch (revision 2025-03-26) has its replies together.
pub fn reply(line: &[u8], output: &Output) -> Option<Value> {
    if line.trim_ascii().is_empty() {
        return None;
    }
    match serde_json::from_slice(line) {
        Ok(Value::Array(batch)) if !batch.is_empty() => {
            let replies: Vec<Value> = batch.iter().filter_map(|message| reply_to(message, output)).collect();
            (!replies.is_empty()).then(|| replies.into())
        }
        Ok(message) => reply_to(&message, output),
        Err(fault) => Some(error(&Value::Null, Code::Parse, &format!("not a line of JSON of at most 1 MiB: {fault}"))),
    }
}

fn error(id: &Value, code: Code, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code as i32, "message": message } })
}

/// What is said to a message; nothing to a notification, nor to a reply.
fn reply_to(message: &Value, output: &Output) -> Option<Value> {
    let is_reply = message.get("result").is_some() || message.get("error").is_some();
    let id = message.get("id").filter(|id| id.is_string() || id.is_number());
    let method = message.get("method").and_then(Value::as_str).filter(|_| message["jsonrpc"] == "2.0");
    let Some(method) = method.filter(|_| id.is_some() || message.get("id").is_none()) else {
        let id = id.unwrap_or(&Value::Null);
        return (!is_reply).then(|| error(id, Code::InvalidRequest, "not a request of JSON-RPC 2.0"));
    };
    let id = id?;
    let params = &message["params"];
    let asked = &params["_meta"][REVISION];
    let revisions = || std::iter::once(WITHOUT_HANDSHAKE).chain(WITH_HANDSHAKE).collect::<Vec<_>>();
    if !asked.is_null() && !revisions().iter().any(|revision| asked == revision) {
        let mut refused = error(id, Code::Revision, "Unsupported protocol version");
        refused["error"]["data"] = json!({ "supported": revisions(), "requested": asked });
        return Some(refused);
    }
    let about = json!({ "name": "moeplan", "title": "moeplan", "version": env!("CARGO_PKG_VERSION") });
    let kept = |mut result: Value| {
        (result["ttlMs"], result["cacheScope"]) = (KEPT.into(), "public".into());
        result
    };
    let mut result = match method {
        "initialize" => {
            let wanted = params["protocolVersion"].as_str();
            let revision = WITH_HANDSHAKE.into_iter().find(|known| wanted == Some(known)).unwrap_or(WITH_HANDSHAKE[0]);
            json!({
                "protocolVersion": revision,
                "capabilities": { "tools": {} },
                "serverInfo": about,
                "instructions": INSTRUCTIONS,
            })
        }
        "server/discover" => kept(json!({
            "supportedVersions": revisions(),
            "capabilities": { "tools": {} },
            "instructions": INSTRUCTIONS,
            "_meta": { "io.modelcontextprotocol/serverInfo": about },
        })),
        "ping" => json!({}),
        "tools/list" => kept(json!({ "tools": TOOLS.iter().map(listed).collect::<Vec<_>>() })),
        "tools/call" => match TOOLS.iter().find(|tool| params["name"] == tool.name) {
            Some(tool) => called(tool, params.get("arguments").cloned().unwrap_or(json!({})), output),
            None => return Some(error(id, Code::InvalidParams, "no such tool: tools/list names them")),
        },
        _ => return Some(error(id, Code::NoMethod, "no such method: tools/list and tools/call are there")),
    };
    result["resultType"] = "complete".into();
    Some(json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

fn listed(tool: &Tool) -> Value {
    let read = |schema: &&str| serde_json::from_str::<Value>(schema).unwrap_or_default();
    json!({
        "name": tool.name,
        "description": tool.description,
        "inputSchema": read(&tool.asked),
        "outputSchema": any_of(tool.documents.iter().map(read).collect()),
        "annotations": { "readOnlyHint": true, "openWorldHint": true },
    })
}

/// One schema for documents of several kinds. A name that several define means the same in each.
fn any_of(mut schemas: Vec<Value>) -> Value {
    if schemas.len() < 2 {
        return schemas.pop().unwrap_or_default();
    }
    let mut named = serde_json::Map::new();
    for schema in &mut schemas {
        if let Some(Value::Object(own)) = schema.as_object_mut().and_then(|schema| schema.remove("$defs")) {
            named.extend(own);
        }
    }
    json!({ "type": "object", "anyOf": schemas, "$defs": named })
}

/// The result of a call: the document and its page, or what went wrong and what to try.
fn called(tool: &Tool, asked: Value, output: &Output) -> Value {
    // One question must not end the server.
    let answered = catch_unwind(AssertUnwindSafe(|| (tool.call)(asked, output)))
        .unwrap_or_else(|_| Err(anyhow!("internal error: please report this")));
    match answered {
        Ok((document, page)) => {
            json!({ "content": [{ "type": "text", "text": page }], "structuredContent": document })
        }
        Err(error) => {
            let hint = hint(&error).map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            let said = format!("{}: {error:#}{hint}", tool.name);
            let said: Vec<_> = said.lines().map(crate::escape::terminal).collect();
            json!({ "content": [{ "type": "text", "text": said.join("\n") }], "isError": true })
        }
    }
}
