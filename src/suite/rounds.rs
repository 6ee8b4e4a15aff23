//! Launches in turn, so that what changes over time changes for all: every case once, then every case again.

use super::bench::Raw;
use super::cases::CaseLaunch;
use super::document::Session;
use super::session::Interrupted;

/// Runs every case `repetitions` times, interleaved, another case first in each round. `each` is told after every launch.
/// A case that could not be launched at all is not tried again. The error is an interruption, with what was measured before it.
pub fn rounds(
    cases: &[CaseLaunch],
    repetitions: u32,
    launch: &mut dyn FnMut(&CaseLaunch, u32) -> Result<Session, Interrupted>,
    each: &mut dyn FnMut(&[Raw]),
) -> Result<Vec<Raw>, Vec<Raw>> {
    let empty = |case: &CaseLaunch| Raw {
        name: case.name.clone(),
        what: case.what.clone(),
        command: Some(case.command()),
        sessions: Vec::new(),
    };
    let mut raw: Vec<Raw> = cases.iter().map(empty).collect();
    for (first, repetition) in (1..=repetitions.max(1)).enumerate() {
        for at in 0..cases.len() {
            let at = (first + at) % cases.len();
            let (Some(case), Some(so_far)) = (cases.get(at), raw.get_mut(at)) else { continue };
            if so_far.sessions.iter().any(|session| session.failure.is_some() && session.samples.is_empty()) {
                continue;
            }
            match launch(case, repetition) {
                Ok(session) => so_far.sessions.push(session),
                Err(Interrupted(session)) => {
                    so_far.sessions.extend(Some(*session).filter(|session| !session.samples.is_empty()));
                    return Err(raw);
                }
            }
            each(&raw);
        }
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Host, Machine};
    use crate::run::RunConfig;
    use crate::runtime::Launch;

    fn case(name: &str) -> CaseLaunch {
        let machine = Machine { devices: Vec::new(), host: Host::default() };
        let launch = Launch { model: "m.gguf".into(), run: RunConfig::default(), machine, n_threads: 0 };
        CaseLaunch { name: name.into(), what: String::new(), launch, predicted: None, refused: None }
    }

    #[test]
    fn cases_take_turns_and_a_failed_one_is_not_tried_again() {
        let mut order = Vec::new();
        let mut told = 0;
        let raw = rounds(
            &[case("plan"), case("bad"), case("fit")],
            3,
            &mut |case, repetition| {
                order.push(format!("{}{repetition}", case.name));
                let failure = (case.name == "bad").then(|| "no memory".to_string());
                Ok(Session { case: case.name.clone(), repetition, failure, ..Session::default() })
            },
            &mut |_| told += 1,
        );
        assert_eq!(order, ["plan1", "bad1", "fit1", "fit2", "plan2", "fit3", "plan3"]);
        assert_eq!((told, raw.unwrap().iter().map(|raw| raw.sessions.len()).collect::<Vec<_>>()), (7, vec![3, 1, 3]));
    }

    #[test]
    fn an_interruption_ends_the_rounds_and_what_was_measured_is_kept() {
        let mut launches = 0;
        let answer = rounds(
            &[case("plan"), case("fit")],
            3,
            &mut |_, _| {
                launches += 1;
                if launches == 2 { Err(Interrupted(Box::default())) } else { Ok(Session::default()) }
            },
            &mut |_| {},
        );
        let sessions: Vec<usize> = answer.unwrap_err().iter().map(|raw| raw.sessions.len()).collect();
        assert_eq!((sessions, launches), (vec![1, 0], 2));
    }
}
