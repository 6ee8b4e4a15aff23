//! Several models that stay loaded on one machine: a plan for each, and the files that start them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::bytes::{Bytes, MIB};
use crate::emit::{self, Form};
use crate::machine::Machine;
use crate::model::Model;
use crate::plan::{self, ContextChoice, Plan, Request, together};
use crate::run::flags::says;
use crate::run::groups;
use crate::suggest::Refusal;

/// The `moeplan/together/1` document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Together {
    pub schema: Cow<'static, str>,
    /// The whole machine, which the models share.
    pub machine: Machine,
    /// In the order given.
    pub members: Vec<Member>,
    /// Whether every plan fits into its part.
    pub fits: bool,
    /// The largest of the members' times of a turn, in seconds.
    pub slowest_seconds: f64,
    /// llama-swap's configuration with a group of all; absent where a command cannot be written so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llama_swap: Option<String>,
    /// models.ini of llama-server's router; absent where a command cannot be written so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ini: Option<String>,
    /// The command of that router, once `ini` is models.ini.
    pub router: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Member {
    /// What the model is called in the files.
    pub name: String,
    /// How much its slowdown counts; absent where times count as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    pub port: u16,
    /// The whole command with the port, quoted for a shell; untrusted text.
    pub command: String,
    /// The options of `moeplan plan` that give this plan, beside those that describe the machine.
    pub flags: Vec<String>,
    /// The predicted time of a turn with the whole machine for itself, in seconds.
    pub alone_seconds: f64,
    pub plan: Plan,
}

/// llama-server's own port, which the first model gets where the launches do not say another.
const PORT: u16 = 8080;

/// Plans for models, shown as these paths, that share a machine. `kind` is what `--ram SIZE` is followed by.
pub fn together(
    asked: &[(Model, String, Request)],
    machine: &Machine,
    weights: &[f64],
    kind: &str,
) -> Result<Together, plan::Error> {
    let said = asked.first().and_then(|(_, _, request)| port_of(request)).transpose()?.unwrap_or(PORT);
    let asked: Vec<_> = asked.iter().map(|(model, path, request)| (model, path, serving(model, request))).collect();
    let members: Vec<together::Member<'_>> = asked
        .iter()
        .enumerate()
        .map(|(at, (model, _, request))| together::Member { model, request, weight: weights.get(at).copied() })
        .collect();
    let shares = together::shares(&members, machine)?;
    let mut plans = Vec::new();
    for ((model, path, request), share) in asked.iter().zip(&shares) {
        let request = Request { context: share.context, ..request.clone() };
        plans.push(plan::brief(model, path, &share.machine, &request)?);
    }
    let pairs: Vec<_> = asked.iter().map(|(model, ..)| *model).zip(&plans).collect();
    let files = [Form::LlamaSwap, Form::Ini].map(|form| emit::together(&pairs, form).ok());
    let names = files.iter().flatten().map(|(_, names)| names.clone()).next().unwrap_or_default();
    let [llama_swap, ini] = files.map(|file| file.map(|(text, _)| text));
    let fits = plans.iter().all(|plan| plan.check.fits());
    let slowest_seconds = plans.iter().map(|plan| plan.turn_seconds).fold(0.0, f64::max);
    let members = plans.into_iter().zip(shares).enumerate().map(|(at, (plan, share))| {
        let port = u16::try_from(at).map_or(u16::MAX, |at| said.saturating_add(at));
        let size = |bytes: &Bytes| if *bytes == Bytes(0) { "0".to_string() } else { format!("{}M", bytes.0 / MIB) };
        let mut flags = Vec::new();
        if !share.budgets.is_empty() {
            let budgets: Vec<String> = share.budgets.iter().map(size).collect();
            flags.extend(["--budget".to_string(), budgets.join(",")]);
        }
        flags.extend(share.machine.host.ram.iter().flat_map(|ram| ["--ram".to_string(), size(ram) + kind]));
        if let ContextChoice::Fixed(n_ctx) = share.context
            && share.context != asked[at].2.context
        {
            flags.extend(["-c".to_string(), n_ctx.to_string()]);
        }
        flags.extend(asked[at].2.run.embeddings.then(|| "--embedding".to_string()));
        Member {
            name: names.get(at).unwrap_or(&plan.model.path).clone(),
            weight: weights.get(at).copied(),
            port,
            command: format!("{} --port {port}", plan.command),
            flags,
            alone_seconds: share.alone_seconds,
            plan,
        }
    });
    let members: Vec<Member> = members.collect();
    Ok(Together {
        schema: "moeplan/together/1".into(),
        machine: machine.clone(),
        fits,
        slowest_seconds,
        llama_swap,
        ini,
        router: format!("llama-server --models-preset models.ini --models-max {}", members.len()),
        members,
    })
}

/// A model that gives vectors is asked for them, and each gets a port of its own.
fn serving(model: &Model, request: &Request) -> Request {
    let own = groups(&request.beside).into_iter().filter(|group| !says(group, "--port"));
    let mut request = Request { beside: own.flatten().cloned().collect(), ..request.clone() };
    request.run.embeddings |= model.is_embedding();
    request
}

fn port_of(request: &Request) -> Option<Result<u16, Refusal>> {
    let port = groups(&request.beside).into_iter().rfind(|group| says(group, "--port"))?.get(1)?;
    let refuse = |_| Refusal::new(format!("`--port {port}` is no port"), "write a number up to 65535");
    Some(port.parse().map_err(refuse))
}
