//! Which launch is fastest here: the plan, `--fit on` and the plan's neighbours as candidates of a race of few measurements.

pub mod document;
pub mod journal;
pub mod neighbours;
pub mod race;

use serde::{Deserialize, Serialize};

use crate::run::RunConfig;
use crate::speed::Speed;
pub use journal::{Subject, Visit};
pub use race::{Race, Verdict};

pub const SCHEMA: &str = "moeplan/tune/1";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Plan,
    Fit,
    Neighbour,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Candidate {
    /// What differs from the plan: `-ub 1024`.
    pub what: String,
    pub kind: Kind,
    /// Its arguments without what differs from day to day, which tell it apart in a journal.
    #[serde(skip)]
    pub id: String,
    pub args: Vec<String>,
    #[serde(skip)]
    pub run: RunConfig,
    /// What is predicted of it; `None` for `--fit on`.
    pub predicted: Option<Predicted>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Predicted {
    pub speed: Speed,
    pub turn_seconds: f64,
}
