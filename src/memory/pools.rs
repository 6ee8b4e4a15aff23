//! What CUDA holds of a device as a launch needs it, beside its buffers: page tables of pinned host memory, and pools.
//!
//! Nothing prints these bytes. Pools are a stack that grows to the largest sum of temporaries of one operation and never
//! shrinks (`ggml-cuda.cu` `ggml_cuda_pool_vmm`), so the operation that needs most decides.

use crate::bytes::{Bytes, MIB};
use crate::gguf::GgmlType;
use crate::model::{Model, Tensor};
use crate::placement::{Buffer, Placement};
use crate::rules::Role;
use crate::run::RunConfig;

/// Pools grow in steps of the device's granularity for mapped memory: 2 MiB on every card seen.
const STEP: u64 = 2 * MIB;
/// Rows of activations are padded to so many elements (`ggml-cuda/common.cuh` `MATRIX_ROW_PADDING`, b11434).
const ROW_PADDING: u64 = 512;
/// A tile of partial sums of the quantized product, in bytes: 128 × 128 of f32 (`ggml-cuda/mmq.cuh` `tmp_fixup`, b11434).
const TILE: u64 = 128 * 128 * 4;

/// Memory of the device that maps pinned host memory: an entry of 8 bytes for each page of 4 KiB.
///
/// Measured on an H100 (driver 580): 24 MiB for 12,249 MiB pinned, 13 for 6,767.
pub fn page_tables(placement: &Placement) -> Bytes {
    Bytes(placement.pinned().0 / 512)
}

/// What the pool of device `at` grows to once a prompt has filled a micro-batch, on a card of so many multiprocessors.
pub fn pool(model: &Model, run: &RunConfig, placement: &Placement, at: u16, multiprocessors: u64) -> Bytes {
    let tokens = u64::from(run.n_ubatch.min(run.n_ctx.max(1)));
    let shared = placement.shares.as_ref().is_some_and(|shares| shares.devices.contains(&at));
    // The host's experts are copied to the first device, and multiplied there, if a micro-batch has the rows for it.
    let is_offloaded = run.offload_rows().is_some_and(|rows| rows <= run.n_ubatch);
    let offloads = is_offloaded && placement.devices.first() == Some(&at);
    // The model's own NextN blocks draft alone.
    let first = if run.mtp_context { model.context.n_layer } else { 0 };
    let of_context = |tensor: &Tensor| first == 0 || tensor.block.is_some_and(|block| block >= first);
    let tensors = model.tensors.iter().zip(&placement.copies).filter(|(tensor, _)| of_context(tensor));
    let needs = tensors.filter_map(|(tensor, copies)| {
        let here = copies.iter().any(|copy| shared || copy.buffer == Buffer::Device(at));
        let is_hosts = || copies.iter().any(|copy| matches!(copy.buffer, Buffer::Cpu | Buffer::HostPinned));
        let copied = offloads && tensor.role == Role::RoutedExpert && is_hosts();
        (here || copied).then(|| temporaries(tensor, tokens, model, multiprocessors * TILE))
    });
    Bytes(needs.max().unwrap_or(0).next_multiple_of(STEP))
}

/// The temporaries of a product with `tensor` for a micro-batch.
///
/// Source: `ggml-cuda/mmq.cu` `ggml_cuda_mul_mat_q` (activations as q8_1, 36 bytes for 32), `ggml-cuda.cu`
/// `ggml_cuda_mul_mat_id` and `ggml_cuda_mul_mat_cublas_impl` (activations and result in half precision), b11434.
fn temporaries(tensor: &Tensor, tokens: u64, model: &Model, tiles: u64) -> u64 {
    let [width, height, experts, _] = tensor.shape;
    let half = |ty: GgmlType| matches!(ty.name, "f16" | "bf16");
    let quantized = |rows: u64| rows * width.next_multiple_of(ROW_PADDING) * 36 / 32 + tiles;
    match tensor.role {
        // Their biases and scales are added, not multiplied.
        Role::RoutedExpert if experts < 2 => 0,
        Role::RoutedExpert => {
            let used = model.hparams.expert_used_count.iter().copied().max().unwrap_or(0);
            let rows = tokens * u64::from(used);
            // Plain weights: activations in their type and results in single precision, both sorted by expert.
            let sorted = || rows * (tensor.ty.row_bytes(width).unwrap_or(0) + height * 4);
            rows * 8 + if tensor.ty.is_quantized { quantized(rows) } else { sorted() }
        }
        // Only the last token of a prompt reaches the output, and embeddings are looked up.
        Role::Output | Role::TokenEmbd | Role::Norm => 0,
        _ if height < 2 => 0,
        _ if tensor.ty.is_quantized => quantized(tokens),
        _ if half(tensor.ty) => tokens * (width + height) * 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::machine::{Backend, Device, Host, Machine};
    use crate::memory::{forecast, overhead};
    use crate::synth::{self, Wish};

    fn model(name: &str, recipe: &str) -> Model {
        let wish = Wish { recipe: synth::recipe::named(recipe), ..Wish::default() };
        synth::model(name, &wish).unwrap()
    }

    /// What an H100 80GB (driver 580, b11434) showed beyond llama.cpp's own sum, in MiB: loaded, and after long prompts.
    #[test]
    fn an_h100_is_predicted_within_32_mib() {
        let qwen = model("qwen3-30b-a3b", "Q4_K_M");
        let oss = model("gpt-oss-20b", "F16");
        let deepseek = model("deepseek-moe-16b", "F16");
        for (model, args, loaded, peak) in [
            (&qwen, "-ncmoe 40", 600, 710),
            (&qwen, "-ncmoe 35 -lm none -ub 2048", 624, 788),
            (&qwen, "-ncmoe 48 -lm none -ub 4096 -b 4096", 633, 825),
            (&oss, "-ncmoe 17", 597, 705),
            (&oss, "-ncmoe 14 -lm none -ub 2048", 610, 736),
            (&deepseek, "-ub 2048", 600, 827),
            (&deepseek, "-ncmoe 28 -lm none -ub 4096 -b 4096", 656, 1014),
        ] {
            let mut devices = Device::of_budgets(Backend::Cuda, &[Bytes::mib(81079)]).unwrap();
            devices[0].description = Some("NVIDIA H100 80GB HBM3".to_string());
            let machine = Machine::new(devices, Host::default()).unwrap();
            let command = format!("llama-server -c 24576 -np 1 -fit off -ngl 99 {args}");
            let words: Vec<String> = command.split(' ').map(String::from).collect();
            let run = crate::run::parse::command(&words, &BTreeMap::new()).unwrap().run;
            let forecast = forecast(model, &machine, &run).unwrap();
            let told = overhead::held(&machine.devices[0], 0, model, &run, &forecast.placement);
            assert!(told.loaded.0.abs_diff(loaded * MIB) <= 4 * MIB, "{args}: {} loaded", told.loaded);
            assert!(told.peak.0.abs_diff(peak * MIB) <= 32 * MIB, "{args}: {} at the peak", told.peak);
            assert_eq!(forecast.memory["CUDA0"].overhead, told.peak);
        }
    }
}
