//! A plan for people: the split per device, what goes where, the command.

use std::fmt::Write as _;

use crate::bytes::Bytes;
use crate::checkup::Severity;
use crate::cli::Format;
use crate::escape;
use crate::plan::Plan;
use crate::plan::solver::Strategy;
use crate::report::checkup::memory;

/// The plan as text or Markdown.
pub fn render(plan: &Plan, format: Format) -> String {
    let mut out = String::new();
    let text = format != Format::Markdown;
    let shown = |name: &str| if text { escape::terminal(name).into_owned() } else { escape::markdown(name) };
    let name = plan.model.name.as_deref().unwrap_or(&plan.model.path);
    let run = &plan.check.run;
    let _ = writeln!(
        out,
        "{}{}  {}  {}",
        if text { "" } else { "## " },
        shown(name),
        shown(&plan.model.architecture),
        plan.model.bytes
    );
    let budgets: Vec<String> =
        plan.machine.devices.iter().map(|device| format!("{} of {}", device.total, shown(&device.name))).collect();
    let budget = if budgets.is_empty() { "the host alone".to_string() } else { budgets.join(", ") };
    let _ = writeln!(
        out,
        "Planned for {budget}, margin {}: context {}, micro-batch {}, {} slot{}\n",
        plan.margin,
        run.n_ctx,
        run.n_ubatch,
        run.n_seq_max,
        if run.n_seq_max == 1 { "" } else { "s" }
    );
    let table = memory(&plan.check);
    out += &if text { table.text() } else { table.markdown() };
    let _ = writeln!(out, "\n{}", experts(plan));
    let _ = writeln!(out, "{}", verdict(plan));
    for warning in &plan.warnings {
        let _ = writeln!(out, "warning: {}; {}", shown(&warning.message), shown(&warning.hint));
    }
    for lint in plan.check.lints.iter().filter(|lint| lint.severity != Severity::Info) {
        let _ = writeln!(out, "{}: {} [{}]", super::checkup::word(lint.severity), shown(&lint.message), lint.code);
    }
    out.push('\n');
    if text {
        let _ = writeln!(out, "{}", escape::terminal(&plan.command));
    } else {
        // A fence longer than any run of backticks that a path may hold.
        let _ = writeln!(out, "``````sh\n{}\n``````", escape::terminal(&plan.command).replace('`', "'"));
    }
    out
}

/// Where the routed experts are, in one line.
fn experts(plan: &Plan) -> String {
    let split = &plan.placement;
    if split.blocks_with_experts == 0 {
        return "Routed experts: none, the model is dense".to_string();
    }
    let devices: Vec<String> = split.by_device.iter().map(|(device, bytes)| format!("{bytes} on {device}")).collect();
    match (split.blocks_with_experts_on_host, devices.is_empty()) {
        (0, _) => {
            format!("Routed experts: all {} blocks on the device, {}", split.blocks_with_experts, devices.join(", "))
        }
        (_, true) => format!("Routed experts: {} on the host", split.routed_expert_bytes_on_host),
        (hosted, false) => format!(
            "Routed experts: {}; {} on the host ({hosted} of {} blocks, whole or in part)",
            devices.join(", "),
            split.routed_expert_bytes_on_host,
            split.blocks_with_experts
        ),
    }
}

/// What to try when it does not fit.
fn remedy(plan: &Plan) -> &'static str {
    let host_only = plan.check.shortfall.keys().all(|name| name == "Host");
    match (host_only, plan.strategy) {
        (true, _) if plan.machine.devices.is_empty() => "Describe your cards with --vram, or take a smaller file",
        (true, _) => "The host needs more memory: take a smaller file, or a card that holds more of it",
        (false, Strategy::AllOnDevice | Strategy::Rules) => {
            "Experts may not be moved by this strategy: --strategy auto moves them to the host"
        }
        (false, _) if plan.placement.blocks_with_experts == 0 => {
            "The model is dense: try a smaller -c or -ub, -ctk q8_0 -ctv q8_0, or a smaller file"
        }
        (false, _) => {
            "Every routed expert that may move is on the host: try a smaller -c or -ub, -ctk q8_0 -ctv q8_0, or a smaller file"
        }
    }
}

/// Whether it fits, and by how much it does or does not.
fn verdict(plan: &Plan) -> String {
    if plan.check.fits {
        let spare: Vec<String> = plan
            .machine
            .devices
            .iter()
            .filter_map(|device| {
                let used = plan.check.memory.get(&device.name)?.total;
                Some(format!(
                    "{} left on {} beyond the margin",
                    device.total.saturating_sub(used + plan.margin),
                    device.name
                ))
            })
            .collect();
        if spare.is_empty() { "Fits".to_string() } else { format!("Fits: {}", spare.join(", ")) }
    } else {
        let short: Vec<String> = plan
            .check
            .shortfall
            .iter()
            .map(|(device, bytes): (&String, &Bytes)| format!("{device} by {bytes}"))
            .collect();
        format!("Does not fit: short on {}. {}", short.join(", "), remedy(plan))
    }
}
