//! Findings on main memory, folders, and what was learned of this machine.

use super::facts::{Facts, Folder, Leftover, Purpose};
use super::{Area, Finding};
use crate::bytes::{Bytes, GIB};
use crate::number::{counted, small_size};

/// What a calibration writes at its most, and more than all headers that are kept.
const ROOM: Bytes = Bytes(4 * GIB);

/// On memory, disk and knowledge.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = memory(facts);
    found.extend(facts.folders.iter().map(folder));
    found.extend(leftovers(&facts.leftovers));
    found.extend(knowledge(facts));
    found
}

fn memory(facts: &Facts) -> Vec<Finding> {
    let memory = &facts.memory;
    let mut found = Vec::new();
    match (memory.available, memory.total) {
        (Some(available), Some(total)) => {
            found.push(Finding::ok(Area::Memory, "memory", format!("{available} of {total} available")));
            if available.0 < total.0 / 2 {
                found.push(Finding::note(
                    Area::Memory,
                    "memory-in-use",
                    "other programs hold more than half of it, and plans count on all of it",
                    "close them before a launch, or plan with --ram for what is available",
                ));
            }
        }
        _ => found.push(Finding::note(
            Area::Memory,
            "memory-unknown",
            "how much main memory there is cannot be told",
            "give --ram, so that plans can tell whether the host's part fits",
        )),
    }
    if let (Some(computer), Some(total)) = (memory.computer, memory.total) {
        found.push(Finding::note(
            Area::Memory,
            "memory-of-control-group",
            format!("the computer has {computer}, and a control group allows {total}"),
            "plans count on what is allowed; the page cache of a mapped model counts against it too",
        ));
    }
    if memory.swap_used.0 > GIB {
        found.push(Finding::note(
            Area::Memory,
            "swapping",
            format!("{} of swap is in use", memory.swap_used),
            "weights that are swapped out make generation many times slower: free memory before measuring",
        ));
    }
    if memory.overcommit == Some(2) {
        found.push(Finding::note(
            Area::Memory,
            "overcommit-strict",
            "vm.overcommit_memory is 2: an allocation can be refused while memory is free",
            "`sysctl vm.overcommit_memory=0`, or launch with `-lm mmap`",
        ));
    }
    if memory.wsl {
        found.push(Finding::note(
            Area::Memory,
            "wsl",
            "this is WSL: Windows lets programs pin only a part of main memory",
            "where llama-server falls back to memory that is not pinned, prompts are slower than predicted",
        ));
    }
    found.push(locked(memory.lock_limit, memory.total));
    found
}

/// `-lm mlock` locks weights within this limit (`src/llama-mmap.cpp` `llama_mlock`, b11434: a warning where it cannot).
fn locked(limit: Option<Bytes>, total: Option<Bytes>) -> Finding {
    match (limit, total) {
        (Some(limit), Some(total)) if limit.0 < total.0 / 2 => Finding::note(
            Area::Memory,
            "lock-limit",
            format!("a process may lock {limit}: `-lm mlock` would lock no more of a model"),
            "`ulimit -l unlimited`, where you need it; pinned memory of a driver (`-lm none`) is not under this limit",
        ),
        (Some(limit), _) => Finding::ok(Area::Memory, "lock-limit", format!("a process may lock {limit}")),
        (None, _) => Finding::ok(Area::Memory, "lock-limit", "no limit on locked memory"),
    }
}

fn folder(folder: &Folder) -> Finding {
    let what = match folder.purpose {
        Purpose::Cache => "headers and built servers",
        Purpose::State => "what runs have shown",
        Purpose::Config => "this machine's rates",
        Purpose::Temporary => "temporary files",
    };
    let at = folder.path.display();
    if !folder.writable {
        let hint = match folder.purpose {
            Purpose::Cache => {
                "set XDG_CACHE_HOME to a folder of yours; until then headers are read from the network anew"
            }
            Purpose::State => "set XDG_STATE_HOME to a folder of yours; until then no run makes later plans better",
            Purpose::Config => "set XDG_CONFIG_HOME to a folder of yours, or calibrate with -o FILE",
            Purpose::Temporary => "set TMPDIR to a folder of yours; launches keep their logs there",
        };
        return Finding::problem(Area::Disk, "folder-not-writable", format!("`{at}` ({what}) cannot be written"), hint);
    }
    let Some(free) = folder.free else {
        return Finding::ok(Area::Disk, "folder", format!("`{at}`: {what}"));
    };
    let text = format!("`{at}`: {what}, {free} free");
    match folder.purpose {
        _ if free.0 < GIB / 16 => {
            Finding::problem(Area::Disk, "disk-full", text, "free some of it: nothing can be kept")
        }
        Purpose::Cache if free < ROOM => Finding::note(
            Area::Disk,
            "little-room",
            text,
            format!("`devices --calibrate` writes models of up to {ROOM} there: set XDG_CACHE_HOME to a larger disk"),
        ),
        _ => Finding::ok(Area::Disk, "folder", text),
    }
}

/// What crashed runs left behind: models of a calibration take GiB.
fn leftovers(left: &[Leftover]) -> Option<Finding> {
    let first = left.first()?;
    let bytes: Bytes = left.iter().map(|left| left.bytes).sum();
    let (what, more) = (counted(left.len() as u64, "temporary file"), if left.len() > 1 { ", …" } else { "" });
    let text = format!("{what} of runs that were killed: {}, `{}`{more}", small_size(bytes), first.path.display());
    Some(Finding::note(
        Area::Disk,
        "left-behind",
        text,
        "the next command removes them, whichever it is: `moeplan list`",
    ))
}

fn knowledge(facts: &Facts) -> Vec<Finding> {
    let known = &facts.knowledge;
    let area = Area::Knowledge;
    let mut found = Vec::new();
    if let (Some(path), Some(error)) = (&known.rates, &known.rates_error) {
        found.push(Finding::problem(
            area,
            "rates-unreadable",
            format!("`{}` is not used: {error}", path.display()),
            "`moeplan devices --calibrate` writes it anew; or remove it",
        ));
    }
    let has_devices = !facts.nvidia.cards.is_empty() || facts.servers.first().is_some_and(|s| !s.devices.is_empty());
    let mut rated = known.rated_devices.clone();
    rated.extend(known.rated_host.then(|| "the host".to_string()));
    if rated.is_empty() {
        found.push(Finding::note(
            area,
            "not-calibrated",
            "no speeds were measured here: predicted ones are a table's, or guesses",
            "`moeplan devices --calibrate` measures them in three minutes",
        ));
    } else {
        found.push(Finding::ok(area, "calibrated", format!("speeds were measured of {}", rated.join(", "))));
    }
    if has_devices && known.measured_devices.is_empty() {
        found.push(Finding::note(
            area,
            "overhead-unknown",
            "no run has shown what the devices take beyond llama.cpp's own sums",
            "`moeplan verify --measure-prompt 4096 --vram SIZE MODEL` measures it; until then what is known of cards of its kind is assumed (`moeplan devices` says what)",
        ));
    } else if has_devices {
        let of = known.measured_devices.join(", ");
        let text = format!("overhead was measured of {of}, {} records", known.records);
        found.push(Finding::ok(area, "overhead", text));
    }
    if known.headers > 0 {
        let text = format!("{} headers of models on the network are kept, {}", known.headers, known.headers_bytes);
        found.push(Finding::ok(area, "headers", text));
    }
    found
}
