//! Any text as a machine file: what fitting, check and their pages make of a model on it.
#![no_main]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use moeplan::checkup::{self, Options};
use moeplan::machine::Machine;
use moeplan::model::Model;
use moeplan::plan::{self, Checked};
use moeplan::run::parse;
use moeplan_fuzz::{made, shown};

const COMMANDS: [&str; 4] = ["-c 4096", "-c 0 -np 2", "-ngl 99 -ts 3,1 -ot exps=CPU", "-fit off -ngl 1 -lm none -c 512"];

fuzz_target!(|bytes: &[u8]| {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let Ok(file) = serde_json::from_slice::<Machine>(bytes) else { return };
    let Ok(machine) = Machine::new(file.devices, file.host) else { return };
    let _ = (machine.margin(), machine.budget_notes().count());
    let model = MODEL.get_or_init(|| Model::from_gguf(made("gpt-oss-20b", Some(3))).expect("a model"));
    let words = format!("llama-server -m m.gguf {}", COMMANDS[bytes.len() % 4]);
    let typed: Vec<String> = words.split(' ').map(str::to_string).collect();
    let command = parse::command(&typed, &BTreeMap::new()).expect("a good command");
    if let Ok(checkup) = checkup::check(model, &machine, &command, Options::default()) {
        let model = plan::summary(model, "m.gguf");
        let (name, variants, projected, mended, n_cpu_moe, plan) = (None, Vec::new(), None, None, None, None);
        shown(&Checked { checkup, model, command: words, name, variants, projected, mended, n_cpu_moe, plan });
    }
});
