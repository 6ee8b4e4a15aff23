//! What a GGUF file is, from its header: `cargo run --example inspect -- model.gguf`.

#![expect(clippy::print_stdout, reason = "a program")]

use std::path::PathBuf;

use moeplan::{Inspection, Model, Role, gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path: PathBuf = std::env::args_os().nth(1).ok_or("usage: inspect MODEL.gguf")?.into();
    let model = Model::from_gguf(gguf::open(&path)?)?;
    let inspection = Inspection::new(&model, &[], None);
    println!("{}, {} blocks, {}", inspection.architecture, inspection.block_count, inspection.bytes.total);
    let experts = inspection.experts;
    println!("{} of {} experts a token, {} in all", experts.used, experts.count, experts.bytes);
    println!("{} of {} parameters active", inspection.parameters.active, inspection.parameters.total);
    println!("{} of attention", inspection.bytes.by_role[&Role::Attention]);
    Ok(())
}
