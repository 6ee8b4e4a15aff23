//! What tests of the planner ask about: headers of known models, cards by their budgets, a usual request.

use moeplan::bytes::{Bytes, GIB};
use moeplan::machine::{Backend, Device, Host, Machine};
use moeplan::model::Model;
use moeplan::plan::solver::{Levers, Objective, Strategy};
use moeplan::plan::{ContextChoice, Request, Turn};
use moeplan::run::RunConfig;
use moeplan::synth::Wish;

pub fn model(name: &str, wish: &Wish) -> Model {
    moeplan::synth::model(name, wish).unwrap()
}

/// Cards of these budgets, in bytes, in a host with plenty of memory.
pub fn machine(budgets: &[u64]) -> Machine {
    let budgets: Vec<Bytes> = budgets.iter().copied().map(Bytes).collect();
    let devices = Device::of_budgets(Backend::Cuda, &budgets).unwrap();
    Machine { devices, host: Host { ram: Some(Bytes(512 * GIB)), ..Host::default() } }
}

/// A plan for the usual turn, nothing but the placement left to the planner.
pub fn request(strategy: Strategy) -> Request {
    Request {
        run: RunConfig::default(),
        beside: Vec::new(),
        context: ContextChoice::Auto,
        turn: Turn::default(),
        margin: Bytes::mib(256),
        strategy,
        objective: Objective::Turn,
        levers: Levers::default(),
        tensors: false,
        explain: false,
    }
}
