//! Any text as a machine file: what fitting, check and their pages make of a model on it.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use moeplan::machine::Machine;
use moeplan::model::Model;
use moeplan_fuzz::{checked, made};

const COMMANDS: [&str; 4] = ["-c 4096", "-c 0 -np 2", "-ngl 99 -ts 3,1 -ot exps=CPU", "-fit off -ngl 1 -lm none -c 512"];

fuzz_target!(|bytes: &[u8]| {
    static MODEL: OnceLock<Model> = OnceLock::new();
    let Ok(file) = serde_json::from_slice::<Machine>(bytes) else { return };
    let Ok(machine) = Machine::new(file.devices, file.host) else { return };
    let _ = (machine.margin(), machine.budget_notes().count());
    let model = MODEL.get_or_init(|| Model::from_gguf(made("gpt-oss-20b", Some(3))).expect("a model"));
    checked(model, &machine, COMMANDS[bytes.len() % 4]);
});
