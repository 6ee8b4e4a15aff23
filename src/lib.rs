//! Plan, predict and prove where llama.cpp puts a mixture-of-experts model.
//!
//! The header of a GGUF file says what a model is; with a machine's budgets it says which launch of llama.cpp fits, what it
//! takes to the byte, and about how fast it is. No weight is read, no device touched, no process started.
//!
//! ```
//! use moeplan::plan::{self, Request};
//! use moeplan::{Backend, Device, Host, Machine, Model, gguf};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = moeplan::synth::hole("phi-3.5-moe", &Default::default(), folder.path())?;
//! // Any file of a split model, or a folder with one model; `path` is of a Phi-3.5-MoE here.
//! let model = Model::from_gguf(gguf::open(&path)?)?;
//!
//! // One card of 24 GiB beside 256 GiB of main memory.
//! let cards = Device::of_budgets(Backend::Cuda, &["24G".parse()?])?;
//! let machine = Machine::new(cards, Host { ram: Some("256G".parse()?), ..Host::default() })?;
//!
//! let plan = plan::plan(&model, &path.to_string_lossy(), &machine, &Request::of(&machine))?;
//! println!("{}", plan.command);
//! assert!(plan.check.fits() && plan.args.contains(&"-ot".to_string()));
//! assert!(plan.check.memory["CUDA0"].total <= Some("24G".parse()?));
//! # Ok(())
//! # }
//! ```
//!
//! What a command line of yours would do is [`checkup::check`]'s to say; what a model holds, [`Inspection`]'s. A plan in the
//! form that another tool reads is [`emit::render`]'s. Every document serialises to the JSON that the program's `--json` writes,
//! which the schemas in `schema/` describe. `examples/` holds three short programs.
//!
//! # Features
//!
//! Take the library without the program:
//!
//! ```toml
//! moeplan = { version = "0.1", default-features = false }
//! ```
//!
//! - `cli` (default): the program `moeplan`: command line, reports, launching and measuring.
//! - `pages`: documents as HTML ([`ask`] answers with them); part of `cli`.
//! - `remote` (default): headers over HTTP through [`gguf::source::Client`].
//! - `embedded`: llama.cpp linked into the program; needs CMake and libclang.
//!
//! # What is promised
//!
//! The modules and types on this page follow semantic versioning: before 1.0 a minor release may change them, a patch release
//! does not. Everything else that is public is so for the program and its tests, hidden here, and may change at any time.

// The modules are in reading order: each uses only those above it (`tests/core/tidy.rs` holds this).
pub mod bytes;
#[doc(hidden)]
pub mod number;
#[doc(hidden)]
pub mod escape;
#[doc(hidden)]
pub mod suggest;
#[doc(hidden)]
pub mod stats;
#[doc(hidden)]
pub mod files;
pub mod gguf;
#[doc(hidden)]
pub mod arch;
pub mod rules;
#[doc(hidden)]
pub mod expression;
pub mod model;
#[doc(hidden)]
pub mod quantize;
#[doc(hidden)]
pub mod expectation;
pub mod inspection;
#[doc(hidden)]
pub mod synth;
pub mod machine;
pub mod run;
#[doc(hidden)]
pub mod placement;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod fit;
#[doc(hidden)]
pub mod speed;
pub mod checkup;
pub mod plan;
pub mod emit;
pub mod ask;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod runtime;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod measurement;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod evidence;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod tune;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod suite;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod doctor;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "pages")]
#[doc(hidden)]
pub mod report;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod commands;
#[cfg(all(test, feature = "cli"))]
mod schema;

pub use bytes::Bytes;
pub use checkup::Checkup;
pub use gguf::{GgmlType, Gguf};
pub use inspection::Inspection;
pub use machine::{Backend, Device, Host, Machine};
pub use memory::{Basis, MemoryBreakdown, MemoryByDevice};
pub use model::{HParams, Model};
pub use plan::Plan;
pub use rules::Role;
pub use run::RunConfig;
pub use speed::{Speed, Turn};
