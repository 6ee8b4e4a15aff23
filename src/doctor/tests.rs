//! Made-up computers, and what is said of each.

use super::facts::{ConfigFile, Embedded, Knowledge, Leftover, Nvidia, Place};
use super::*;
use crate::bytes::{Bytes, GIB};
use crate::runtime::DeviceInfo;

fn card(name: &str, total: u64, free: u64) -> DeviceInfo {
    DeviceInfo {
        name: name.to_string(),
        buffer: name.to_string(),
        description: "a card".to_string(),
        backend: "CUDA".to_string(),
        gpu: true,
        total: Bytes(total * GIB),
        free: Bytes(free * GIB),
    }
}

fn server() -> Server {
    Server {
        program: "/opt/llama-server".into(),
        version: Some("version: 1".to_string()),
        build: Some(11434),
        flags: 200,
        lists_devices: true,
        bench: true,
        rpc: true,
        devices: vec![card("CUDA0", 24, 23)],
        ..Server::default()
    }
}

/// A computer at which nothing is wrong.
fn good() -> Facts {
    let mut facts = Facts::default();
    facts.moeplan.remote = true;
    facts.servers = vec![server()];
    facts.nvidia = Nvidia {
        driver: Some("590.1".to_string()),
        cards: vec![card("CUDA0", 24, 23)],
        installed: 1,
        kernel_module: true,
    };
    facts.memory.total = Some(Bytes(128 * GIB));
    facts.memory.available = Some(Bytes(120 * GIB));
    facts.folders =
        vec![Folder { path: "/c".into(), writable: true, free: Some(Bytes(100 * GIB)), ..Folder::default() }];
    facts.knowledge = Knowledge {
        rated_devices: vec!["CUDA0".to_string()],
        rated_host: true,
        measured_devices: vec!["CUDA0".to_string()],
        ..Knowledge::default()
    };
    facts
}

/// What is not ok of a computer that is good but for one change.
fn found(change: impl FnOnce(&mut Facts)) -> Vec<(Level, &'static str)> {
    let mut facts = good();
    change(&mut facts);
    let document = examine(&facts);
    for finding in &document.findings {
        assert!(finding.level != Level::Problem || finding.hint.is_some(), "{finding:?}");
    }
    let is_ok = document.ok;
    let wrong: Vec<_> =
        document.findings.into_iter().filter(|f| f.level != Level::Ok).map(|f| (f.level, f.code)).collect();
    assert_eq!(is_ok, wrong.iter().all(|(level, _)| *level != Level::Problem));
    wrong
}

fn of_server(change: impl FnOnce(&mut Server)) -> Vec<(Level, &'static str)> {
    found(|facts| change(&mut facts.servers[0]))
}

#[test]
fn nothing_is_said_against_a_good_computer() {
    assert_eq!(found(|_| ()), []);
}

#[test]
fn runtimes_that_do_not_work_are_problems_and_none_is_too() {
    use Level::{Note, Problem};
    assert_eq!(of_server(|s| s.error = Some("no library".into())), [(Problem, "server-broken")]);
    assert_eq!(of_server(|s| s.ik = true), [(Problem, "server-ik")]);
    assert_eq!(of_server(|s| s.build = Some(20000)), [(Note, "server-unknown-build")]);
    assert_eq!(of_server(|s| s.build = None), []);
    assert_eq!(of_server(|s| s.bench = false), [(Note, "server-alone")]);
    let none = |facts: &mut Facts| facts.servers.clear();
    assert_eq!(found(none), [(Problem, "no-runtime")]);
    let embedded = |error: Option<&str>| {
        let error = error.map(str::to_string);
        found(|facts| {
            facts.servers.clear();
            facts.moeplan.embedded = Some(Embedded { build: 11434, error });
        })
    };
    assert_eq!(embedded(None), [(Note, "no-server")]);
    assert_eq!(embedded(Some("crash")), [(Problem, "embedded-broken"), (Note, "no-server")]);
    let second = Server { place: Place::Cache, ..server() };
    assert_eq!(found(|facts| facts.servers.push(second)), []);
}

#[test]
fn devices_that_cannot_be_used_are_told_apart() {
    use Level::{Note, Problem};
    assert_eq!(of_server(|s| s.devices.clear()), [(Problem, "server-without-gpu")]);
    let silent = |s: &mut Server| (s.lists_devices, s.devices) = (false, Vec::new());
    assert_eq!(of_server(silent), [(Problem, "devices-not-listed")]);
    assert_eq!(found(|facts| facts.nvidia.installed = 2), [(Note, "devices-hidden")]);
    assert_eq!(found(|facts| facts.nvidia.cards = vec![card("CUDA0", 24, 9)]), [(Note, "device-in-use")]);
    let broken = |facts: &mut Facts| {
        facts.nvidia = Nvidia { kernel_module: true, ..Nvidia::default() };
        facts.servers.iter_mut().for_each(|server| server.devices.clear());
    };
    assert_eq!(found(broken), [(Problem, "driver-broken")]);
    let no_card = |facts: &mut Facts| {
        facts.nvidia = Nvidia::default();
        facts.servers.iter_mut().for_each(|server| server.devices.clear());
    };
    assert_eq!(found(no_card), [(Note, "no-device")]);
    let vulkan = |facts: &mut Facts| {
        facts.nvidia = Nvidia::default();
        facts.servers.iter_mut().for_each(|server| server.devices = vec![card("Vulkan0", 8, 8)]);
    };
    assert_eq!(found(vulkan), []);
}

#[test]
fn memory_and_folders_are_judged_by_what_a_launch_needs() {
    use Level::{Note, Problem};
    assert_eq!(found(|f| f.memory.available = Some(Bytes(9 * GIB))), [(Note, "memory-in-use")]);
    assert_eq!(found(|f| f.memory.total = None), [(Note, "memory-unknown")]);
    assert_eq!(found(|f| f.memory.computer = Some(Bytes(256 * GIB))), [(Note, "memory-of-control-group")]);
    assert_eq!(found(|f| f.memory.swap_used = Bytes(3 * GIB)), [(Note, "swapping")]);
    assert_eq!(found(|f| f.memory.lock_limit = Some(Bytes::mib(8))), [(Note, "lock-limit")]);
    assert_eq!(found(|f| f.memory.lock_limit = Some(Bytes(128 * GIB))), []);
    assert_eq!(found(|f| f.memory.overcommit = Some(2)), [(Note, "overcommit-strict")]);
    assert_eq!(found(|f| f.memory.wsl = true), [(Note, "wsl")]);
    let folder = |purpose, writable, free: u64| {
        found(|facts| {
            facts.folders.push(Folder { purpose, path: "/x".into(), writable, free: Some(Bytes::mib(free)) });
        })
    };
    assert_eq!(folder(Purpose::State, false, 100_000), [(Problem, "folder-not-writable")]);
    assert_eq!(folder(Purpose::Cache, true, 2000), [(Note, "little-room")]);
    assert_eq!(folder(Purpose::Cache, true, 1), [(Problem, "disk-full")]);
    let left = |facts: &mut Facts| facts.leftovers.push(Leftover { path: "/c/x".into(), bytes: Bytes(GIB) });
    assert_eq!(found(left), [(Note, "left-behind")]);
}

#[test]
fn what_interferes_is_named_with_what_is_done_about_it() {
    use Level::{Note, Problem};
    let set = |name: &str, value: &str| {
        let variable = variable(name, value).unwrap();
        found(|facts| facts.environment.push(variable))
    };
    assert_eq!(set("LLAMA_ARG_N_CPU_MOE", "9"), [(Note, "variable")]);
    assert_eq!(set("GGML_CUDA_ENABLE_UNIFIED_MEMORY", "1"), [(Problem, "variable")]);
    assert_eq!(set("HF_TOKEN", "hf_x"), []);
    let config = |system| found(|facts| facts.config_files.push(ConfigFile { path: "/c.ini".into(), system }));
    assert_eq!(config(true), [(Problem, "config-file")]);
    assert_eq!(config(false), [(Note, "config-file")]);
    let mut facts = good();
    facts.environment = vec![Variable { name: "LLAMA_ARG_CTX_SIZE".into(), value: Some("4096".into()) }];
    let document = examine(&facts);
    let last = document.findings.last().unwrap();
    assert!(last.message.starts_with("LLAMA_ARG_CTX_SIZE=4096: ") && last.message.contains("kept from"), "{last:?}");
}

#[test]
fn what_is_known_of_the_machine_is_said() {
    use Level::{Note, Problem};
    let nothing = |facts: &mut Facts| facts.knowledge = Knowledge::default();
    assert_eq!(found(nothing), [(Note, "not-calibrated"), (Note, "overhead-unknown")]);
    let unreadable = |facts: &mut Facts| {
        facts.knowledge.rates = Some("/m.json".into());
        facts.knowledge.rates_error = Some("expected value".into());
    };
    assert_eq!(found(unreadable), [(Problem, "rates-unreadable")]);
}

#[test]
fn findings_come_by_area() {
    let mut facts = good();
    facts.environment = vec![Variable { name: "HF_TOKEN".into(), value: None }];
    let areas: Vec<Area> = examine(&facts).findings.iter().map(|finding| finding.area).collect();
    assert!(areas.is_sorted() && areas.len() > 6, "{areas:?}");
}

#[test]
fn no_row_is_hidden_by_an_earlier_one_and_secrets_stay() {
    let all: Vec<_> = rows(VARIABLES).collect();
    assert_eq!(all.len(), VARIABLES.lines().filter(|line| !line.starts_with('#')).count());
    for row in all {
        assert_eq!(known(&row[0].replace('*', "X")), Some(row), "{} is hidden", row[0]);
    }
    for (name, shown) in [
        ("LLAMA_ARG_CTX_SIZE", Some("1")),
        ("HF_TOKEN", None),
        ("https_proxy", None),
        ("MOEPLAN_API_KEY", None),
        ("LLAMA_API_KEY", None),
        ("HF_ENDPOINT", None),
    ] {
        assert_eq!(variable(name, "1").unwrap().value.as_deref(), shown, "{name}");
    }
    assert_eq!(variable("PATH", "/bin"), None);
    let kept = [("HF_API_KEY", "x"), ("LLAMA_CLOUD_API_TOKEN", "x"), ("MOEPLAN_X", "https://me:word@host")];
    assert!(kept.iter().all(|(name, value)| variable(name, value).unwrap().value.is_none()));
}

#[test]
fn every_row_is_an_arm_and_every_arm_a_row() {
    let code = include_str!("mod.rs");
    let rows: Vec<_> = rows(CHECKS).collect();
    assert_eq!(rows.len(), CHECKS.lines().filter(|line| !line.starts_with('#')).count());
    for [key, level, area, ..] in &rows {
        let is_arm = code.contains(&format!("\"{key}\"")) || key.starts_with("server-broken:");
        assert!(is_arm && Level::of_word(level).name() == *level, "{key}");
        assert_eq!(serde_json::json!(Area::of_word(area)), *area, "{key}");
    }
    for place in [Place::Named, Place::Path, Place::Cache] {
        assert!(rows.iter().any(|[key, ..]| *key == format!("server-broken:{}", place.name())));
    }
}
