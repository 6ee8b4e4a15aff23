//! The ways to run one model that are compared: the launch itself and its baselines.

use crate::bytes::Bytes;
use crate::memory::{self, MemoryByDevice};
use crate::model::Model;
use crate::placement::{Buffer, Copy};
use crate::rules::Role;
use crate::run::command::pasteable;
use crate::run::{EXPERTS, Override, RunConfig};
use crate::runtime::Launch;

/// A launch with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseLaunch {
    /// `plan`, `all-on-device`, `experts-on-host`, `fit`.
    pub name: String,
    /// What that means, a sentence.
    pub what: String,
    /// What is launched.
    pub launch: Launch,
    /// What is predicted of it; `None` where llama.cpp chooses by itself.
    pub predicted: Option<Predicted>,
    /// Why it is not launched.
    pub refused: Option<String>,
}

/// What is predicted of a launch.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// Memory by device.
    pub memory: MemoryByDevice,
    /// The file's span that is mapped.
    pub mapped_span: Option<Bytes>,
    /// Bytes of routed experts on any device.
    pub expert_bytes_on_devices: Bytes,
    /// Bytes of routed experts on the host.
    pub expert_bytes_on_host: Bytes,
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
            match predict(model, &case.launch) {
                Ok(predicted) => case.predicted = Some(predicted),
                Err(why) => case.refused = Some(why),
            }
        }
        case
    }

    /// The command to paste.
    pub fn command(&self) -> String {
        pasteable(&self.launch.model, &self.launch.run)
    }

    /// The first device that the prediction overfills, in words; `None` where it fits or nothing is predicted.
    pub fn lacking(&self) -> Option<String> {
        let predicted = self.predicted.as_ref()?;
        let needs = |name: &str| predicted.memory.get(name).map_or(Bytes(0), memory::MemoryBreakdown::total);
        let device = self.launch.machine.devices.iter().find(|device| needs(&device.name) > device.total)?;
        Some(format!("it needs {} of {}, which has {}", needs(&device.name), device.name, device.total))
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

fn predict(model: &Model, launch: &Launch) -> Result<Predicted, String> {
    let forecast = memory::forecast(model, &launch.machine, &launch.run).map_err(|error| error.to_string())?;
    let is_on_device = |copy: &Copy| matches!(copy.buffer, Buffer::Device(_));
    let experts = |wanted: bool| {
        let all = forecast.placement.experts(model).map(|(_, copy)| copy);
        all.filter(|copy| is_on_device(copy) == wanted).map(|copy| copy.bytes).sum()
    };
    Ok(Predicted {
        mapped_span: forecast.mapped_span,
        expert_bytes_on_devices: experts(true),
        expert_bytes_on_host: experts(false),
        memory: forecast.memory,
    })
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
