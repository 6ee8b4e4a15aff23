//! Where something was measured and what: machine, devices, driver, build, the file and its header's facts.

use super::dotted;
use crate::number::{parameters, thousands};
use crate::report::table::Table;
use crate::suite::document::{DeviceFacts, Environment, ModelFacts};

/// On what something was measured, and when, in a line.
pub fn about(environment: &Environment) -> String {
    let device = |device: &DeviceFacts| device.description.clone().unwrap_or_else(|| device.name.clone());
    let devices = environment.devices.iter().map(device);
    let build = environment.runtime.iter().map(|runtime| format!("llama.cpp b{}", runtime.build));
    let begun = (environment.started > 0).then(|| utc(environment.started));
    dotted(devices.chain(build).chain(begun))
}

pub fn machine(environment: &Environment) -> Table {
    let threads = environment.processors.map(|n| format!("{n} threads"));
    let processor: Vec<String> = environment.processor.clone().into_iter().chain(threads).collect();
    let device = |DeviceFacts { name, description, total }: &DeviceFacts| {
        let description = description.as_ref().map(|text| format!("{text}, ")).unwrap_or_default();
        (name.clone(), Some(format!("{description}{total}")))
    };
    let runtime = environment.runtime.as_ref();
    let named = |(name, fact): (&str, Option<String>)| (name.to_string(), fact);
    let computer = [
        ("system", environment.system.clone()),
        ("processor", Some(processor.join(", "))),
        ("main memory", environment.ram.map(|bytes| bytes.to_string())),
    ];
    let programs = [
        ("driver", environment.driver.clone()),
        ("runtime", runtime.map(|runtime| format!("{} b{} ({})", runtime.program, runtime.build, runtime.backend))),
        ("endpoint", environment.endpoint.clone()),
        ("moeplan", Some(environment.moeplan.clone())),
        ("begun", (environment.started > 0).then(|| utc(environment.started))),
    ];
    let devices = environment.devices.iter().map(device);
    Table::facts(computer.map(named).into_iter().chain(devices).chain(programs.map(named)))
}

pub fn model(model: &ModelFacts) -> Table {
    let file_type = model.file_type.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
    let (size, exact) = (model.file_bytes, thousands(model.file_bytes.0));
    let (all, active) = (parameters(model.parameters), parameters(model.active_parameters));
    let (experts, used, bytes) = (model.experts, model.experts_used, model.expert_bytes);
    Table::facts([
        ("file", Some(model.path.clone())),
        ("name", Some(model.name.clone().unwrap_or_else(|| "not stated".into()))),
        ("architecture", Some(model.architecture.clone())),
        ("size", Some(format!("{file_type}{size} ({exact} bytes)"))),
        ("header SHA-256", Some(model.header_sha256.clone().unwrap_or_else(|| "not known".into()))),
        ("parameters", Some(format!("{all}, {active} active per token"))),
        ("experts", (experts > 0).then(|| format!("{experts} in a block, {used} used per token, {bytes}"))),
        ("shape", Some(format!("{} blocks, {} tensors", model.blocks, thousands(model.tensors)))),
    ])
}

/// Seconds since 1970 as a date and a time (days to a civil date by the well-known era arithmetic).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn dates_are_civil() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_312_532, "2026-11-22 01:55 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}
