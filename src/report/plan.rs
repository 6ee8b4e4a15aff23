//! A plan for people: the split per device, what goes where, the command.

use std::fmt::Write as _;

use crate::bytes::Bytes;
use crate::checkup::Severity;
use crate::cli::Format;
use crate::escape;
use crate::number::{counted, signed};
use crate::plan::Plan;
use crate::plan::explain::Alternative;
use crate::plan::solver::Strategy;
use crate::report::checkup::memory;
use crate::report::page::markdown::fence;
use crate::report::table::{Align, Table};
use crate::speed::Phase;

/// The plan as text or Markdown.
pub fn render(plan: &Plan, format: Format) -> String {
    let mut out = String::new();
    let text = format != Format::Markdown;
    let shown = |name: &str| if text { escape::terminal(name).into_owned() } else { escape::markdown(name) };
    let name = plan.model.name.as_deref().unwrap_or(&plan.model.path);
    let run = &plan.check.run;
    let _ = writeln!(
        out,
        "{}{}  {}  {}{}",
        if text { "" } else { "## " },
        shown(name),
        shown(&plan.model.architecture),
        plan.model.bytes,
        shown(&super::sweep::predicted(&plan.model))
    );
    let budgets: Vec<String> =
        plan.machine.devices.iter().map(|device| format!("{} of {}", device.total, shown(&device.name))).collect();
    let budget = if budgets.is_empty() { "the host alone".to_string() } else { budgets.join(", ") };
    let _ = writeln!(
        out,
        "Planned for {budget}, margin {}: context {}, micro-batch {}, {}",
        plan.margin,
        run.n_ctx,
        run.n_ubatch,
        counted(run.n_seq_max().into(), "slot")
    );
    for note in plan.machine.budget_notes() {
        let _ = writeln!(out, "{}{}", if text { "" } else { "\n" }, shown(&note));
    }
    out.push('\n');
    let table = memory(&plan.check);
    out += &if text { table.text() } else { table.markdown() };
    let _ = writeln!(out, "\n{}", experts(plan));
    let _ = writeln!(out, "{}", verdict(plan));
    let _ = writeln!(out, "{}", shown(&speed(plan)));
    for warning in &plan.warnings {
        let _ = writeln!(out, "warning: {}; {}", shown(&warning.message), shown(&warning.hint));
    }
    for lint in plan.check.lints.iter().filter(|lint| lint.severity != Severity::Info) {
        let _ = writeln!(out, "{}: {} [{}]", super::checkup::word(lint.severity), shown(&lint.message), lint.code);
    }
    for (title, table) in tables(plan).into_iter().filter(|(_, table)| !table.is_empty()) {
        let _ = write!(
            out,
            "\n{title}\n{}{}",
            if text { "" } else { "\n" },
            if text { table.text() } else { table.markdown() }
        );
    }
    out.push('\n');
    if text {
        let _ = writeln!(out, "{}", escape::terminal(&plan.command));
    } else {
        fence(&mut out, "sh", &plan.command);
    }
    out
}

/// The predicted speed, in one line.
fn speed(plan: &Plan) -> String {
    let (speed, turn) = (&plan.speed, &plan.turn);
    let depth = if turn.depth > 0 { format!(" at depth {}", turn.depth) } else { String::new() };
    format!(
        "Predicted ±{:.0}%: prompt {:.0} tokens/s, generation {:.1} tokens/s; {} + {} tokens{depth} in {:.1} s ({})",
        speed.uncertainty * 100.0,
        speed.pp,
        speed.tg,
        turn.prompt,
        turn.generate,
        plan.turn_seconds,
        speed.basis
    )
}

/// What else there is, what takes the room, what takes the time, what would make it fit.
fn tables(plan: &Plan) -> Vec<(&'static str, Table)> {
    use Align::{Left, Right};
    let mut terms = Table::new(&[("term", Left), ("bytes", Right), ("fix", Left), ("frees", Right), ("costs", Left)]);
    for row in &plan.why.explain {
        let saves = if row.saves == Bytes(0) { String::new() } else { row.saves.to_string() };
        terms.row([row.term.clone(), row.bytes.to_string(), row.fix.clone(), saves, row.costs.clone()]);
    }
    let mut time = Table::new(&[("phase", Left), ("time goes to", Left), ("seconds", Right)]);
    for term in plan.why.time.iter().filter(|term| term.seconds >= plan.turn_seconds * 0.005) {
        let phase = match term.phase {
            Phase::Prompt => "prompt",
            Phase::Generate => "generation",
        };
        time.row([phase.to_string(), term.what.clone(), format!("{:.2}", term.seconds)]);
    }
    vec![
        ("What takes the room:", terms),
        ("What takes the time:", time),
        ("What else there is:", launches(&plan.why.alternatives)),
        ("What would make it fit:", launches(&plan.why.fixes)),
    ]
}

/// Other launches, a row each.
fn launches(alternatives: &[Alternative]) -> Table {
    use Align::{Left, Right};
    let columns = [("change", Left), ("fits", Left), ("blocks on host", Right), ("pp", Right), ("tg", Right)];
    let mut table = Table::new(&[&columns[..], &[("turn", Right), ("", Right), ("", Left)]].concat());
    for other in alternatives {
        let short: Vec<String> = other.shortfall.iter().map(|(name, over)| format!("{name} short of {over}")).collect();
        table.row([
            other.what.clone(),
            if other.fits { "yes".to_string() } else { short.join(", ") },
            format!("{} of {}", other.placement.blocks_with_experts_on_host, other.placement.blocks_with_experts),
            format!("{:.0}", other.speed.pp),
            format!("{:.1}", other.speed.tg),
            format!("{:.1} s", other.turn_seconds),
            format!("{}%", signed(other.turn_change * 100.0, 1)),
            other.note.clone().unwrap_or_default(),
        ]);
    }
    table
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
    if plan.check.fits() {
        let spare: Vec<String> = plan
            .machine
            .devices
            .iter()
            .filter_map(|device| {
                let used = plan.check.memory.get(&device.name)?.total?;
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
