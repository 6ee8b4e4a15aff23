//! Draft models of every kind beside their targets (`testdata/headers/make_drafts.py`): what is counted, and what llama.cpp refuses. Their
//! figures are compared with the embedded llama.cpp in `tests/oracle/oracle.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use moeplan::bytes::Bytes;
use moeplan::gguf;
use moeplan::machine::{Device, Host, Machine};
use moeplan::memory::{self, Forecast};
use moeplan::model::Model;
use moeplan::run::{Target, parse};

use crate::support::truth_rows::{Headers, device, forecast_on};

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("core-drafts");
    std::fs::create_dir_all(&folder).unwrap();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/drafts.tar.xz");
    let status = Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(&folder).status();
    assert!(status.unwrap().success(), "tar and xz unpack the headers");
    folder
}

fn open(folder: &Path, name: &str) -> Model {
    Model::from_gguf(gguf::open(&folder.join(format!("{name}.gguf"))).unwrap()).unwrap()
}

/// A target with a draft model on two cards.
fn forecast(target: Model, draft: Model, flags: &str) -> Result<Forecast, memory::Error> {
    let words = shlex::split(&format!("llama-server -md x.gguf -c 4096 -fit off {flags}")).unwrap();
    let mut run = parse::command_for(&words, &BTreeMap::new(), Target::default()).unwrap().run;
    run.infer_speculation(draft.speculation());
    let cards = ["CUDA0=24G", "CUDA1=24G"].map(|card| Device::parse(card).unwrap());
    let machine = Machine::new(cards.to_vec(), Host { ram: Some(Bytes::mib(65536)), ..Host::default() }).unwrap();
    memory::forecast(&Model { draft: Some(draft.into()), ..target }, &machine, &run)
}

#[test]
fn nothing_of_any_draft_model_is_left_out() {
    let folder = folder();
    for (target, draft, inferred, flags) in [
        ("target-qwen3", "eagle3-shared", None, "--spec-type draft-eagle3"),
        ("target-qwen3", "eagle3-own", None, "--spec-type draft-eagle3"),
        ("target-qwen3", "dflash-shared", Some("draft-dflash"), ""),
        ("target-qwen3", "dflash-windows", Some("draft-dflash"), ""),
        ("target-qwen3", "dflash2-shared", Some("draft-dflash"), ""),
        ("target-qwen3", "dspark-own", Some("draft-dspark"), ""),
        ("target-qwen3", "dspark-streams", Some("draft-dspark"), ""),
        ("target-gemma4", "assistant-gemma4", None, "--spec-type draft-mtp"),
        ("target-gemma4-shared", "assistant-gemma4", None, "--spec-type draft-mtp"),
        ("target-qwen3", "nextn-glm4moe-moe", Some("draft-mtp"), ""),
    ] {
        let draft_model = open(&folder, draft);
        assert_eq!(draft_model.speculation(), inferred, "{draft}");
        let is_assistant = draft.starts_with("assistant");
        let found = forecast(open(&folder, target), draft_model, &format!("-dev CUDA0 -ngl 99 {flags}"));
        let found = found.unwrap_or_else(|error| panic!("{draft}: {error}"));
        assert_eq!(found.uncounted, [], "{draft}");
        let part = &found.drafting.as_ref().unwrap().memory["CUDA0"];
        assert!(part.model > Bytes(0) && part.compute > Bytes(0), "{draft}: {part:?}");
        // An assistant has the target's caches.
        assert_eq!(part.context == Bytes(0), is_assistant, "{draft}: {part:?}");
        // The target keeps hidden states for those that read them, which llama.cpp reserves at the first request.
        let reads = draft.starts_with("eagle3") || draft.starts_with('d');
        assert_eq!(found.beyond.values().any(|bytes| *bytes > 0), reads, "{draft}: {:?}", found.beyond);
    }
}

#[test]
fn what_llama_cpp_does_not_start_is_said() {
    let folder = folder();
    let of = |target: &str, draft: &str, flags: &str| {
        forecast(open(&folder, target), open(&folder, draft), flags).map(|_| ()).unwrap_err().to_string()
    };
    let elsewhere = "-dev CUDA0 -devd CUDA1 -ngl 99";
    for (target, draft, flags, said) in [
        ("target-qwen3", "dflash-shared", elsewhere, "reads the target's `output.weight`, which is on a device"),
        ("target-gemma4", "assistant-gemma4", &format!("{elsewhere} --spec-type draft-mtp"), "`cache_k_l4`"),
    ] {
        let found = of(target, draft, flags);
        assert!(found.contains(said), "{draft} {flags}: {found}");
    }
    // Not every graph keeps inputs of layers.
    let glm = moeplan::synth::model("glm-4.5-air", &moeplan::synth::Wish::default()).unwrap();
    let found = forecast(glm, open(&folder, "dflash-own"), "").map(|_| ()).unwrap_err().to_string();
    assert!(found.contains("reads layers of its target that glm4moe does not show"), "{found}");
    // One with embeddings and a head of its own reads nothing of the kind.
    forecast(open(&folder, "target-qwen3"), open(&folder, "dflash-own"), elsewhere).unwrap();
    let alone = open(&folder, "eagle3-shared");
    let machine = Machine::new(Vec::new(), Host::default()).unwrap();
    let run = moeplan::run::RunConfig { n_ctx: 512, ..moeplan::run::RunConfig::default() };
    let found = memory::forecast(&alone, &machine, &run).map(|_| ()).unwrap_err().to_string();
    assert!(found.contains("llama.cpp refuses eagle3 by itself"), "{found}");
}

/// Speculation keeps snapshots of recurrent states on the device; a checkpoint in main memory has one state.
#[test]
fn checkpoints_hold_one_state_and_no_snapshots() {
    let mut headers = Headers::unpack("nextn.tar.xz");
    let model = headers.model("qwen35moe-moe");
    let of = |n_draft: u32| {
        let command = format!("llama-server -c 8192 -np 1 -ngl 99 --spec-type draft-mtp --spec-draft-n-max {n_draft}");
        forecast_on(model, &command, vec![device("CUDA0", 24576, None)]).unwrap()
    };
    let (one, three) = (of(1), of(3));
    assert!(three.memory["CUDA0"].context > one.memory["CUDA0"].context);
    assert!(one.host_needs.checkpoints > Bytes(0));
    assert_eq!(three.host_needs.checkpoints, one.host_needs.checkpoints);
}
