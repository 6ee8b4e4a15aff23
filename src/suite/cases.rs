//! The ways to run one model that are compared: the launch itself and its baselines.

use super::document::Case;
use crate::bytes::Bytes;
use crate::measurement::LaunchForecast;
use crate::memory;
use crate::model::Model;
use crate::rules::Role;
use crate::run::command::pasteable;
use crate::run::{EXPERTS, Override, RunConfig};
use crate::runtime::Launch;

#[derive(Debug, Clone, PartialEq)]
pub struct CaseLaunch {
    /// `plan`, `all-on-device`, `experts-on-host`, `fit`.
    pub name: String,
    pub what: String,
    pub launch: Launch,
    /// What is predicted of it; `None` where llama.cpp chooses by itself.
    pub predicted: Option<LaunchForecast>,
    pub refused: Option<String>,
}

impl CaseLaunch {
    /// The case of that name, made from a launch: all but `fit` differ from it in nothing but where tensors go.
    /// `fit` is the launch that llama.cpp chooses by itself ([`crate::tune::neighbours::fit`]).
    pub fn new(name: &str, launch: &Launch, fit: &RunConfig, model: &Model) -> Self {
        let run = if name == "fit" { fit.clone() } else { baseline(name, &launch.run) };
        let what = match name {
            "all-on-device" => "every layer and every expert on the devices (-ngl 99), else as the launch under test",
            "experts-on-host" => "every routed expert in main memory (-cmoe), the rest on the devices",
            "fit" => {
                "what llama.cpp chooses by itself (-fit on) within the same budget, for the same context, slots and cache types"
            }
            _ => "the launch under test",
        };
        let launch = Launch { run, ..launch.clone() };
        let mut case = Self { name: name.into(), what: what.into(), launch, predicted: None, refused: None };
        let has_experts = model.tensors.iter().any(|tensor| tensor.role == Role::RoutedExpert);
        if case.launch.machine.devices.is_empty() && name != "plan" {
            case.refused = Some("there is no device to compare with main memory".to_string());
        } else if name == "experts-on-host" && !has_experts {
            case.refused = Some("the model has no routed experts".to_string());
        } else if !case.launch.run.fit {
            match LaunchForecast::of(model, &case.launch) {
                Ok(predicted) => case.predicted = Some(predicted),
                Err(why) => case.refused = Some(why.to_string()),
            }
        }
        case
    }

    pub fn command(&self) -> String {
        pasteable(&self.launch.model, &self.launch.run)
    }

    /// Before its first launch.
    pub fn case(&self) -> Case {
        let (name, what) = (self.name.clone(), self.what.clone());
        Case { name, what, command: Some(self.command()), ..Case::default() }
    }

    /// What main memory has to give: the host's part, and the devices' that are in main memory themselves. Mapped weights
    /// are not counted.
    pub fn host_needs(&self) -> Bytes {
        let Some(predicted) = &self.predicted else { return Bytes(0) };
        let devices = &self.launch.machine.devices;
        let is_local = |name: &str| {
            let endpoint = devices.iter().find(|device| device.name == name).and_then(|device| device.endpoint());
            endpoint.is_some_and(|endpoint| endpoint.starts_with("127.") || endpoint.starts_with("localhost"))
        };
        let of = |(name, row): (&String, &memory::MemoryBreakdown)| match name.as_str() {
            name if name == memory::HOST && predicted.mapped_span.is_some() => row.context + row.compute,
            name if name == memory::HOST || is_local(name) => row.own(),
            _ => Bytes(0),
        };
        predicted.memory.iter().map(of).sum()
    }
}

/// The settings of a case that moeplan chooses, from those of the launch under test.
fn baseline(name: &str, run: &RunConfig) -> RunConfig {
    let everything =
        RunConfig { overrides: Vec::new(), n_gpu_layers: run.n_gpu_layers.max(99), fit: false, ..run.clone() };
    match name {
        "all-on-device" => everything,
        "experts-on-host" => {
            let experts = Override { pattern: EXPERTS.into(), buffer: "CPU".into(), origin: "-cmoe".into() };
            RunConfig { overrides: vec![experts], ..everything }
        }
        _ => RunConfig { fit: false, ..run.clone() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{args, parse};

    fn words(name: &str, line: &str) -> String {
        let command: Vec<String> = line.split(' ').map(str::to_string).collect();
        let run = parse::command(&command, &std::collections::BTreeMap::new()).unwrap().run;
        args::args(&baseline(name, &run)).join(" ")
    }

    #[test]
    fn baselines_differ_in_where_tensors_go() {
        let line =
            "llama-server -m m.gguf -c 4096 -np 1 -ub 2048 -ctk q8_0 -ngl 99 -ot blk\\.1\\.=CPU -lm none -fit off";
        assert_eq!(words("all-on-device", line), "-c 4096 -np 1 -ub 2048 -ctk q8_0 -ngl 99 -lm none -fit off");
        let host = words("experts-on-host", line);
        assert!(host.contains("-cmoe") && !host.contains("blk") && host.contains("-ub 2048 -ctk q8_0"), "{host}");
        assert!(words("plan", line).contains("blk"));
    }
}
