//! llama-bench's own JSON as a bench: every launch of it a case, every test a point of the depth sweep.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::string_slice, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

use super::document::{Case, DepthSample, Session};
use crate::run::command::shell;
use crate::runtime::RuntimeInfo;
use crate::speed::samples::{self, BenchRow, Error};

/// The flags that say which test it is and not which launch.
const TESTS: [&str; 3] = ["-p", "-n", "-d"];

/// The cases of llama-bench's JSON or JSON lines, in the order in which their launches first come.
pub fn cases(text: &str) -> Result<Vec<Case>, Error> {
    let mut cases: Vec<Case> = Vec::new();
    for row in samples::rows(text)? {
        let command = Some(command(&row));
        if let Some(case) = cases.iter_mut().find(|case| case.command == command) {
            take(case, &row);
            continue;
        }
        let name = format!("llama-bench-{}", cases.len() + 1);
        let devices = if row.gpu_info.is_empty() { &row.cpu_info } else { &row.gpu_info };
        let what = format!("measured by llama-bench b{} on {devices}, {}", row.build_number, row.test_time);
        let mut case = Case { name, what, command, ..Case::default() };
        take(&mut case, &row);
        cases.push(case);
    }
    Ok(cases)
}

fn command(row: &BenchRow) -> String {
    let words = row.words();
    let mut launch = vec!["llama-bench".to_string(), "-m".to_string(), row.model_filename.clone()];
    let pairs = words.get(1..).unwrap_or_default().chunks(2);
    launch
        .extend(pairs.filter(|pair| !matches!(pair, [flag, ..] if TESTS.contains(&flag.as_str()))).flatten().cloned());
    // JSON of llama-bench with a NUL has no command to show.
    shell(&launch).unwrap_or_default()
}

/// A row is one point, measured as often as it has samples; without samples its mean is the only one.
fn take(case: &mut Case, row: &BenchRow) {
    let speeds = if row.samples_ts.is_empty() { vec![row.avg_ts] } else { row.samples_ts.clone() };
    for (repetition, speed) in (1_u32..).zip(speeds) {
        let is_prompt = row.n_prompt > 0;
        let speed = Some(speed).filter(|speed| speed.is_finite() && *speed > 0.0);
        let sample = DepthSample {
            depth: row.n_depth,
            prompt_tokens: row.n_prompt,
            generated_tokens: row.n_gen,
            pp: speed.filter(|_| is_prompt),
            tg: speed.filter(|_| !is_prompt),
            first_token_seconds: None,
        };
        if let Some(session) = case.sessions.iter_mut().find(|session| session.repetition == repetition) {
            session.depths.push(sample);
            continue;
        }
        let (program, backend) = ("llama-bench".to_string(), row.backends.clone());
        let runtime = Some(RuntimeInfo { program, build: row.build_number, backend });
        let case_name = case.name.clone();
        case.sessions.push(Session {
            case: case_name,
            repetition,
            runtime,
            depths: vec![sample],
            ..Session::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ncmoe: u32, tests: &str) -> String {
        format!(
            r#"{{"build_number":11434,"backends":"RPC","gpu_info":"","cpu_info":"a processor","model_filename":"m.gguf","n_batch":2048,"n_ubatch":512,"n_threads":2,"n_cpu_moe":{ncmoe},{tests}}}"#
        )
    }

    #[test]
    fn launches_are_cases_and_tests_are_points() {
        let rows = [
            row(0, r#""n_prompt":512,"n_gen":0,"n_depth":0,"avg_ts":15.0,"samples_ts":[10.0,20.0]"#),
            row(0, r#""n_prompt":0,"n_gen":64,"n_depth":0,"avg_ts":3.0,"samples_ts":[2.0,4.0]"#),
            row(2, r#""n_prompt":512,"n_gen":0,"n_depth":4096,"avg_ts":7.0"#),
        ];
        let raw = cases(&format!("[{}]", rows.join(","))).unwrap();
        assert_eq!(raw, cases(&rows.join("\n")).unwrap());
        let names: Vec<(&str, usize)> = raw.iter().map(|case| (case.name.as_str(), case.sessions.len())).collect();
        assert_eq!(names, [("llama-bench-1", 2), ("llama-bench-2", 1)]);
        let points =
            |session: &Session| -> Vec<_> { session.depths.iter().map(|at| (at.depth, at.pp, at.tg)).collect() };
        assert_eq!(points(&raw[0].sessions[1]), [(0, Some(20.0), None), (0, None, Some(4.0))]);
        assert_eq!(points(&raw[1].sessions[0]), [(4096, Some(7.0), None)]);
        let command = raw[1].command.as_ref().unwrap();
        assert!(command.starts_with("llama-bench -m m.gguf -b 2048") && command.contains("-ncmoe 2"), "{command}");
        assert!(!command.contains("-p ") && !command.contains("-d "), "{command}");
        assert!(cases("[{\"avg_ts\":1.0}]").is_err() && cases("nothing").unwrap().is_empty());
    }
}
