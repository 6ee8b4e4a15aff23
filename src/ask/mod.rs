//! Questions in the words of the program's flags, and the documents that answer them: what the program and a page in a browser share.
//!
//! [`machine::Described`] and [`options::Planning`] are the flags of `plan`, as structs that JSON fills too. The answers are the
//! documents that the program writes with `--json`.

pub mod beside;
pub mod check;
pub mod known;
pub mod machine;
pub mod options;
pub mod quants;
pub mod together;

use std::borrow::Cow;
use std::error::Error;

use crate::arch::Arch;
use crate::gguf::{self, GgmlType, Gguf};
use crate::inspection::{ByCache, Inspection};
use crate::model::{FileKind, Model, projector};
use crate::plan::sweep::{self, SweepDocument};
use crate::plan::{Plan, Request};
use crate::suggest::{Hint, Refusal};
use crate::{files, memory, placement, plan, run, synth};

/// What a GGUF file is, and the model as far as it can be read.
pub fn inspect(gguf: Gguf) -> (Model, Inspection) {
    let (model, refused) = Model::as_far_as_readable(gguf);
    let loads = refused.is_empty() && model.kind == FileKind::Model && Arch::named(&model.architecture).is_some();
    // What context takes at the two usual cache types; one that llama.cpp refuses for the model is left out.
    let (mut per_token, mut fixed) = (ByCache::new(), ByCache::new());
    for ty in ["f16", "q8_0"].into_iter().filter(|_| loads).filter_map(GgmlType::from_name) {
        if let Ok(context) = memory::context::per_token(&model, ty) {
            per_token.insert(ty.name.into(), context.per_token);
            fixed.insert(ty.name.into(), context.fixed);
        }
    }
    let context = (!per_token.is_empty()).then_some((per_token, fixed));
    let mut inspection = Inspection::new(&model, &refused, context);
    let encoders = projector::encoders(&model, [0, 0]).unwrap_or_default();
    for (row, tokens) in inspection.encoders.iter_mut().zip(memory::projector::image_tokens(&encoders)) {
        row.tokens = tokens;
    }
    (model, inspection)
}

/// The plans for budgets and contexts around a plan's own, for the page of the plan; `None` where there is nothing to vary.
pub fn near(model: &Model, plan: &Plan, request: &Request) -> Option<SweepDocument> {
    let (budget, n_ctx) = (plan.machine.devices.first()?.total, plan.check.run.n_ctx);
    let range = [request.turn.tokens(), model.hparams.context_length];
    let [least, most] = range.map(|slot| slot.saturating_mul(request.slots()));
    let (budgets, contexts) = sweep::near(budget, n_ctx, (least, most));
    let axes = (Some(budgets.as_slice()), Some(contexts.as_slice()));
    let mut document = sweep::sweep(model, &plan.model.path, &plan.machine, request, axes).ok()?;
    document.asked = document.points.iter().position(|point| point.value == budget.0 && point.n_ctx == n_ctx);
    document.model.what_if.clone_from(&plan.model.what_if);
    Some(document)
}

/// What to try after an error of this library's; of an error with causes, ask each of them.
pub fn hint<'a>(error: &'a (dyn Error + 'static)) -> Option<Cow<'a, str>> {
    macro_rules! first_of {
        ($($kind:ty),* $(,)?) => {
            None$(.or_else(|| error.downcast_ref::<$kind>()?.hint()))*
        };
    }
    first_of!(
        Refusal,
        files::Error,
        gguf::Error,
        gguf::source::Error,
        crate::machine::Error,
        memory::Error,
        placement::Error,
        plan::Error,
        run::Error,
        synth::output::Error,
    )
}
