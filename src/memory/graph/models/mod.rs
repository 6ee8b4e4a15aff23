//! The architectures whose graphs are replayed.

mod deepseek4;
mod delta;
mod drafters;
mod dsa;
mod gemma;
mod glm5_next;
mod hyper;
mod ik;
mod kda;
mod kpool;
mod mixed;
mod mla;
mod mtp;
mod kimi_k3;
mod minimax;
mod own;
mod plamo2;
mod plain;
mod qwen4exp;

use super::{Builder, Error};
use crate::arch::Graph;

/// Builds the graph of the architecture.
pub(super) fn build<'g>(b: &'g Builder<'g>) {
    match &b.arch.graph {
        Graph::DFlash => drafters::dflash(b),
        Graph::Eagle3 => drafters::eagle3(b),
        Graph::Gemma4Assistant => drafters::gemma4_assistant(b),
        _ if b.plan.caches.is_mtp => mtp::build(b),
        Graph::None => _ = b.fail(Error::Architecture { architecture: b.plan.model.architecture.clone() }),
        _ if b.plan.rules.one_cache && b.arch.mla => ik::mla(b),
        Graph::Plain(spec) => plain::decoder(b, spec),
        Graph::Arctic => own::arctic(b),
        Graph::BailingMoe3 => kda::bailingmoe3(b),
        Graph::Deci => own::deci(b),
        Graph::Deepseek2 => mla::deepseek2(b),
        Graph::Deepseek4 => deepseek4::build(b),
        Graph::Delta => delta::build(b),
        Graph::Dsa => dsa::build(b),
        Graph::FalconH1 => mixed::falcon_h1(b),
        Graph::Gemma4 => gemma::gemma4(b),
        Graph::Glm5Next => glm5_next::build(b),
        Graph::GraniteHybrid => mixed::granite(b),
        Graph::Grok => own::grok(b),
        Graph::GroveMoe => own::grovemoe(b),
        Graph::HrmText => own::hrm_text(b),
        Graph::HyV4 => hyper::hy_v4(b),
        Graph::Jamba => mixed::jamba(b),
        Graph::KimiK3 => kimi_k3::build(b),
        Graph::KimiLinear => kda::kimi_linear(b),
        Graph::Lfm2 => mixed::lfm2(b),
        Graph::Llama4 => own::llama4(b),
        Graph::Mamba => mixed::mamba(b),
        Graph::MiniCpm3 => mla::minicpm3(b),
        Graph::MiniMax01 => minimax::minimax_01(b),
        Graph::MiniMaxM3 => minimax::minimax_m3(b),
        Graph::Nanbeige => own::nanbeige(b),
        Graph::NemotronH => mixed::nemotron_h(b),
        Graph::OpenElm => own::openelm(b),
        Graph::Plamo2 => plamo2::build(b),
        Graph::Qwen4Exp => qwen4exp::build(b),
        Graph::SmallThinker => own::smallthinker(b),
        Graph::Talkie => own::talkie(b),
    }
}
