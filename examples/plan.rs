//! The launch that fits a card, and its overrides alone: `cargo run --example plan -- model.gguf 24G`.

#![expect(clippy::print_stdout, reason = "a program")]

use moeplan::plan::{self, Request};
use moeplan::{Backend, Device, Host, Machine, Model, gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, size] = words.as_slice() else { return Err("usage: plan MODEL.gguf SIZE".into()) };
    let model = Model::from_gguf(gguf::open(path.as_ref())?)?;
    let machine = Machine::new(Device::of_budgets(Backend::Cuda, &[size.parse()?])?, Host::default())?;
    let plan = plan::plan(&model, path, &machine, &Request::of(&machine))?;

    for (device, short) in &plan.check.shortfall {
        println!("{device} is short of {short}");
    }
    let overrides = plan.args.iter().skip_while(|word| *word != "-ot").nth(1);
    println!("-ot: {}", overrides.map_or("none needed", String::as_str));
    println!("{}", plan.command);
    println!("{:.1} tokens/s predicted, ±{:.0}%", plan.speed.tg, plan.speed.uncertainty * 100.0);
    Ok(())
}
