//! Role rules: which tensor is what, from `rules/roles/*.yaml`.

use serde::{Deserialize, Serialize};

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Routed experts (`ffn_*_exps`, `ffn_*_chexps`), their biases and scales.
    RoutedExpert,
    /// Shared experts (`ffn_*_shexp`) and their gate.
    SharedExpert,
    /// `ffn_gate_inp`, `exp_probs_b`, …
    Router,
    /// Attention weights, their biases and norms inside attention.
    Attention,
    /// Dense feed-forward weights.
    DenseFfn,
    /// Token (and position) embeddings: llama.cpp's INPUT class.
    TokenEmbd,
    /// `output` and what belongs to the output stage.
    Output,
    /// Norms.
    Norm,
    /// State-space, linear-attention and convolution weights.
    Recurrent,
    /// What no rule names.
    Other,
}
