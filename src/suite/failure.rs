//! Why a launch gave nothing: told apart as far as a checklist and a hint need it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::cases::CaseLaunch;
use super::document::{Bench, Case, Session};
use crate::runtime;
use crate::suggest::Hint;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It was not launched, for a reason that was known before.
    NotLaunched,
    /// Memory could not be had, and that it does not fit was predicted.
    DoesNotFit,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Trouble {
    pub kind: Kind,
    pub hint: Option<String>,
}

/// Nothing was measured: no question of the person's is answered.
#[derive(Debug, thiserror::Error)]
#[error("nothing was measured: {why}")]
pub struct NothingMeasured {
    why: String,
    hint: Option<String>,
}

impl NothingMeasured {
    /// For a reason that kept everything from being launched.
    pub fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), hint: None }
    }

    /// Of benches that did not measure anything, with the first reason; `None` where something was measured, or nothing tried.
    pub fn of<'a>(benches: impl IntoIterator<Item = &'a Bench>) -> Option<Self> {
        let mut first = None;
        for session in benches.into_iter().flat_map(|bench| &bench.cases).flat_map(|case| &case.sessions) {
            let why = session.failure.as_ref().filter(|_| session.samples.is_empty())?;
            let hint = session.trouble.as_ref().and_then(|trouble| trouble.hint.clone());
            first.get_or_insert(Self { why: why.clone(), hint });
        }
        first
    }
}

impl Hint for NothingMeasured {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.hint.as_deref().map(Cow::Borrowed)
    }
}

impl Session {
    /// The session of a case before anything is launched: refused where the case is.
    pub fn of(case: &CaseLaunch, repetition: u32) -> Self {
        let predicted =
            case.predicted.as_ref().map(|predicted| crate::memory::rows(&predicted.memory)).unwrap_or_default();
        let mut session = Self { case: case.name.clone(), repetition, predicted, ..Self::default() };
        if let Some(why) = &case.refused {
            session.failure = Some(format!("not launched: {why}"));
            session.trouble = Some(Trouble { kind: Kind::NotLaunched, hint: None });
        }
        session
    }

    /// It failed, or was interrupted; the first reason stays. Where no memory could be had and the prediction says that it is
    /// too little, that is added.
    pub fn fail(&mut self, case: Option<&CaseLaunch>, error: &runtime::Error) {
        if self.failure.is_some() {
            return;
        }
        if error.is_interrupted() {
            self.is_interrupted = true;
            self.failure = Some("interrupted".to_string());
            return;
        }
        let lacking = case.and_then(|case| case.predicted.as_ref()?.lacking(&case.launch.machine));
        let lacking = lacking.filter(|_| error.kind == runtime::Kind::OutOfMemory);
        let kind = if lacking.is_some() { Kind::DoesNotFit } else { Kind::Failed };
        let as_predicted = lacking.map_or(String::new(), |lacking| format!("; as predicted, {lacking}"));
        self.failure = Some(format!("{error}{as_predicted}"));
        self.trouble = Some(Trouble { kind, hint: error.hint().map(Cow::into_owned) });
    }

    /// What kind of failure it is; of sessions that were written before kinds were, that it failed.
    pub fn kind(&self) -> Kind {
        self.trouble.as_ref().map_or(Kind::Failed, |trouble| trouble.kind)
    }
}

impl Case {
    /// Its first launch that failed, not refused and not known before to need too much.
    pub fn first_failed(&self) -> Option<&Session> {
        self.sessions.iter().find(|session| session.failure.is_some() && session.kind() == Kind::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;
    use crate::machine::{Device, Host, Machine};
    use crate::measurement::LaunchForecast;
    use crate::memory::MemoryBreakdown;
    use crate::run::RunConfig;
    use crate::runtime::End;
    use crate::runtime::log::Failure;

    fn case(needs: u64, has: &str) -> CaseLaunch {
        let machine = Machine::new(vec![Device::parse(&format!("CUDA0={has}")).unwrap()], Host::default()).unwrap();
        let memory = [("CUDA0".to_string(), MemoryBreakdown { model: Bytes(needs), ..MemoryBreakdown::default() })];
        let predicted = LaunchForecast { memory: memory.into(), ..LaunchForecast::default() };
        let launch = runtime::Launch { model: "m.gguf".into(), run: RunConfig::default(), machine, n_threads: 0 };
        let name = "all-on-device".to_string();
        CaseLaunch { name, what: String::new(), launch, predicted: Some(predicted), refused: None }
    }

    fn failed(case: &CaseLaunch, failure: Failure) -> Session {
        let mut session = Session::of(case, 1);
        session.fail(Some(case), &runtime::Error::failed(failure, End::Code(1), &[]));
        session
    }

    #[test]
    fn too_little_memory_is_as_predicted_only_where_that_was_predicted() {
        let no_memory = || Failure::OutOfMemory { buffer: None, bytes: None, part: None };
        let small = failed(&case(9 << 30, "8GiB"), no_memory());
        assert_eq!(small.kind(), Kind::DoesNotFit);
        let why = small.failure.unwrap();
        assert!(why.ends_with("; as predicted, it needs 9.00 GiB of CUDA0, which has 8.00 GiB"), "{why}");
        assert_eq!(failed(&case(9 << 30, "24GiB"), no_memory()).kind(), Kind::Failed);
        let cut = failed(&case(9 << 30, "8GiB"), Failure::BadModel("cut".into()));
        assert_eq!((cut.kind(), cut.trouble.unwrap().hint.is_some()), (Kind::Failed, true));
        let refused = Session::of(&CaseLaunch { refused: Some("no device".into()), ..case(1, "8G") }, 1);
        assert_eq!((refused.kind(), refused.failure.as_deref()), (Kind::NotLaunched, Some("not launched: no device")));
    }
}
