//! What a device and a host do in a second: the constants of the speed model, from a calibration or the built-in table.

use serde::{Deserialize, Serialize};

/// What one device does, alone and with the host. All figures are effective ones: what llama.cpp gets, not what a data sheet says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DeviceRates {
    /// Weights read for one token, and passed over once a micro-batch: GB/s (10^9).
    pub weights: f64,
    /// Products of a micro-batch with quantized weights: TFLOP/s (10^12).
    pub products: f64,
    /// Attention of a micro-batch: TFLOP/s.
    pub attention: f64,
    /// Keys and values read for one token: GB/s.
    pub cache: f64,
    /// Fixed time by weight tensor used, for one pass through the graph: microseconds.
    pub op: f64,
    /// Fixed time by pass through the graph: microseconds.
    pub graph: f64,
    /// Copies from pinned host memory (`--load-mode none`): GB/s.
    pub pinned: f64,
    /// Copies from mapped files and other pageable memory: GB/s.
    pub pageable: f64,
    /// Fixed time by host tensor copied for one micro-batch: microseconds.
    pub offload: f64,
    /// Fixed time by change between this device and the host or another device: microseconds.
    pub switch: f64,
    /// The share by which predictions with these figures may well be off: 0.15 = ±15%.
    pub uncertainty: f64,
    /// Where they come from: `calibrated on …`, `table: …`, `guess …`.
    pub basis: String,
}

/// What the host does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HostRates {
    /// Main memory read by all threads together: GB/s (10^9).
    pub memory: f64,
    /// Weights multiplied with one token's row by one thread: GB/s.
    pub by_thread: f64,
    /// Products of a micro-batch by one thread: GFLOP/s (10^9).
    pub products: f64,
    /// Fixed time by weight tensor used, for one pass through the graph: microseconds.
    pub op: f64,
    /// Weights read from the disk that do not stay in memory: GB/s.
    pub disk: f64,
    /// The share by which predictions with these figures may well be off.
    pub uncertainty: f64,
    pub basis: String,
}
