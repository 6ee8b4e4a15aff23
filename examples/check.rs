//! What a llama.cpp command line would do on a card: `cargo run --example check -- 24G llama-server -m model.gguf -ncmoe 20`.

#![expect(clippy::print_stdout, reason = "a program")]

use std::collections::BTreeMap;

use moeplan::checkup::{self, Options};
use moeplan::run::{ModelSource, parse};
use moeplan::{Backend, Bytes, Device, Host, Machine, Model, gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (size, command) = words.split_first().ok_or("usage: check SIZE COMMAND…")?;
    // The second argument is the environment: llama.cpp reads LLAMA_ARG_… from it.
    let command = parse::command(command, &BTreeMap::new())?;
    let Some(ModelSource::Path(path)) = &command.model else { return Err("the command names no file".into()) };
    let model = Model::from_gguf(gguf::open(path)?)?;
    let machine = Machine::new(Device::of_budgets(Backend::Cuda, &[size.parse()?])?, Host::default())?;

    let checkup = checkup::check(&model, &machine, &command, Options::default())?;
    for (device, row) in &checkup.memory {
        let size = |bytes: Option<Bytes>| bytes.map_or("not counted".to_string(), |bytes| bytes.to_string());
        println!("{device}: {} model, {} context, {} compute", row.model, size(row.context), size(row.compute));
    }
    for lint in &checkup.lints {
        println!("{}: {}", lint.code, lint.message);
    }
    println!("{}", checkup.fits.map_or("not known", |fits| if fits { "fits" } else { "does not fit" }));
    Ok(())
}
