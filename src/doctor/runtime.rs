//! Findings on what runs llama.cpp, and on the devices it has.

use super::facts::{Facts, Place, Server};
use super::{Area, Finding};
use crate::run::build::{BUILDS, REFERENCE};

const GET_A_SERVER: &str =
    "scripts/llama-server builds one; or name yours with MOEPLAN_LLAMA_SERVER, or put it on PATH";

/// On runtimes and devices.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![Finding::ok(Area::Runtime, "moeplan", moeplan(facts))];
    found.extend(embedded(facts));
    match facts.servers.split_first() {
        Some((used, others)) => {
            found.extend(server(used));
            found.extend(others.iter().map(other));
        }
        None if facts.moeplan.embedded.is_none() => found.push(Finding::problem(
            Area::Runtime,
            "no-runtime",
            "no llama.cpp can be run: inspect, check, plan and report need none; run, verify, bench, tune and validate do",
            GET_A_SERVER,
        )),
        None => found.push(Finding::note(
            Area::Runtime,
            "no-server",
            "no llama-server was found: verify and bench work with the llama.cpp inside moeplan; run, tune and validate need one",
            GET_A_SERVER,
        )),
    }
    found.extend(devices(facts));
    found
}

fn moeplan(facts: &Facts) -> String {
    let network = if facts.moeplan.remote { "reads headers over the network" } else { "built without `remote`" };
    format!("moeplan {}, {network}", facts.moeplan.version)
}

fn embedded(facts: &Facts) -> Option<Finding> {
    let embedded = facts.moeplan.embedded.as_ref()?;
    Some(match &embedded.error {
        None => Finding::ok(Area::Runtime, "embedded", format!("llama.cpp b{} inside moeplan", embedded.build)),
        Some(error) => Finding::problem(
            Area::Runtime,
            "embedded-broken",
            format!("the llama.cpp inside moeplan does not run: {error}"),
            "use --runtime server, or build moeplan again on this computer",
        ),
    })
}

/// The server that is used.
fn server(server: &Server) -> Vec<Finding> {
    let at = format!("`{}` ({})", server.program.display(), server.place.name());
    if let Some(error) = &server.error {
        let hint = match server.place {
            Place::Named => "name llama.cpp's llama-server with MOEPLAN_LLAMA_SERVER, or unset it",
            Place::Path => "mend or remove it: it is found before any other; or name another with MOEPLAN_LLAMA_SERVER",
            Place::Cache => "run scripts/llama-server again",
        };
        return vec![Finding::problem(Area::Runtime, "server-broken", format!("{at} cannot be used: {error}"), hint)];
    }
    let version = server.build.map_or_else(
        || server.version.clone().unwrap_or_else(|| "of an unknown version".to_string()),
        |build| format!("llama.cpp b{build}"),
    );
    let flags = if server.flags == 0 { String::new() } else { format!(", {} flags", server.flags) };
    let mut found = vec![Finding::ok(Area::Runtime, "server", format!("{at}: {version}{flags}"))];
    found.extend(build(server));
    let missing: Vec<&str> = [(server.bench, "llama-bench"), (server.rpc, "ggml-rpc-server")]
        .into_iter()
        .filter_map(|(is_there, name)| (!is_there).then_some(name))
        .collect();
    if !missing.is_empty() {
        found.push(Finding::note(
            Area::Runtime,
            "server-alone",
            format!("no {} beside it", missing.join(" and no ")),
            "llama-bench is for `devices --calibrate`, ggml-rpc-server for `--backend rpc`: build them into its folder",
        ));
    }
    found
}

/// What the build's age or kind means for the predictions.
fn build(server: &Server) -> Option<Finding> {
    if server.ik {
        return Some(Finding::problem(
            Area::Runtime,
            "server-ik",
            "it is ik_llama.cpp's, whose memory is not modelled: its runs will differ from the predictions",
            "use llama.cpp's own llama-server; `check --dialect ik` reads the fork's commands",
        ));
    }
    let number = server.build?;
    let oldest = BUILDS.first().map_or(REFERENCE, |build| build.number);
    let newest = BUILDS.last().map_or(REFERENCE, |build| build.number);
    if number < oldest || number > newest {
        return Some(Finding::note(
            Area::Runtime,
            "server-unknown-build",
            format!("b{number} is not between b{oldest} and b{newest}, the builds that are known"),
            format!("`moeplan verify` says whether predictions hold; every rule was checked on b{REFERENCE}"),
        ));
    }
    None
}

/// A server that another one hides.
fn other(server: &Server) -> Finding {
    Finding::ok(
        Area::Runtime,
        "server-hidden",
        format!("`{}` ({}) comes after it and is not used", server.program.display(), server.place.name()),
    )
}

/// What weights can be offloaded to.
fn devices(facts: &Facts) -> Vec<Finding> {
    let mut found = nvidia(facts);
    let listed = facts.servers.first().filter(|server| server.error.is_none());
    if let Some(server) = listed.filter(|server| !server.lists_devices) {
        found.push(Finding::problem(
            Area::Devices,
            "devices-not-listed",
            format!("`{} --list-devices` gives no answer", server.program.display()),
            "does it run by hand? A driver that hangs, or a backend whose library is missing, is the usual cause",
        ));
    }
    let of_server: &[_] = listed.map_or(&[], |server| server.devices.as_slice());
    let is_blind = listed.is_some_and(|server| server.lists_devices && server.devices.is_empty());
    if is_blind && !facts.nvidia.cards.is_empty() {
        found.push(Finding::problem(
            Area::Devices,
            "server-without-gpu",
            "the driver shows a card, and llama-server lists none: it was built for the processor alone",
            "build it with `-DGGML_CUDA=ON`, or name one that was with MOEPLAN_LLAMA_SERVER",
        ));
    }
    for device in of_server.iter().filter(|device| facts.nvidia.cards.iter().all(|card| card.name != device.name)) {
        let (name, free, total) = (&device.buffer, device.free, device.total);
        let what = format!("{name}: {}, {free} of {total} free, listed by llama-server", device.description);
        found.push(Finding::ok(Area::Devices, "device", what));
    }
    if found.is_empty() {
        found.push(no_device(facts));
    }
    found
}

/// The cards that the NVIDIA driver shows, and what keeps it from showing them.
fn nvidia(facts: &Facts) -> Vec<Finding> {
    let nvidia = &facts.nvidia;
    let mut found = Vec::new();
    for card in &nvidia.cards {
        let driver = nvidia.driver.as_deref().unwrap_or("unknown");
        let text =
            format!("{}: {}, {} of {} free, driver {driver}", card.name, card.description, card.free, card.total);
        // A desktop takes a few hundred MiB; a tenth is another program's model.
        if card.free.0 < card.total.0 / 10 * 9 {
            let hint = "plans without --vram use what is free now: close what holds it (`nvidia-smi`), or give --vram";
            found.push(Finding::note(Area::Devices, "device-in-use", text, hint));
        } else {
            found.push(Finding::ok(Area::Devices, "device", text));
        }
    }
    let hidden = nvidia.installed.saturating_sub(nvidia.cards.len());
    if hidden > 0 {
        found.push(Finding::note(
            Area::Devices,
            "devices-hidden",
            format!("{hidden} of {} NVIDIA cards are hidden by CUDA_VISIBLE_DEVICES", nvidia.installed),
            "plans and launches leave them out; unset it to use them",
        ));
    }
    if nvidia.kernel_module && nvidia.driver.is_none() {
        found.push(Finding::problem(
            Area::Devices,
            "driver-broken",
            "the kernel has the NVIDIA driver, and its library (libnvidia-ml) cannot be used",
            "does `nvidia-smi` work? After an update of the driver, restart; in a container, pass the driver through",
        ));
    }
    found
}

fn no_device(facts: &Facts) -> Finding {
    let describe = "describe a card that is elsewhere with --vram 24G; `--backend rpc` starts software devices";
    let message = match facts.interfaces.as_slice() {
        [] => "no GPU: everything would run on the processor".to_string(),
        shown => format!("the system shows a GPU ({}), and no llama-server here lists one", shown.join(", ")),
    };
    let hint = match facts.interfaces.as_slice() {
        [] => describe.to_string(),
        _ => format!("build llama-server for it (`-DGGML_VULKAN=ON`, `-DGGML_HIP=ON`); {describe}"),
    };
    Finding::note(Area::Devices, "no-device", message, hint)
}
