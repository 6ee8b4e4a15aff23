//! Headers that are whole but for some keys and tensors, of text models and of projectors: what is inspected, fitted and checked.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use moeplan::gguf::{Gguf, Header, Value};
use moeplan::inspection::Inspection;
use moeplan::machine::Backend;
use moeplan::memory::projector::{encoder_memory, image_tokens};
use moeplan::model::{Model, projector};
use moeplan::run::FlashAttn;
use moeplan::synth::spec;
use moeplan_fuzz::{Draw, checked, header, machine, made, model, shown};

const MODELS: [&str; 7] = [
    "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "glm-4.7-flash", "qwen3.5-35b-a3b", "granite-3.1-3b-a800m",
    "llama-3.1-8b",
];

/// Values of `clip.projector_type`.
const PROJECTORS: [&str; 32] = [
    "adapter", "cogvlm", "deepseek4v", "deepseekocr", "deepseekocr2", "dots_ocr", "gemma3", "gemma3nv", "gemma4a",
    "gemma4uv", "gemma4v", "glm4v", "glma", "granite4_vision", "granite_speech", "hunyuanvl", "idefics3", "internvl",
    "kimik25", "ldp", "ldpv2", "lfm2a", "llama4", "minicpmv4_6", "mlp", "phi4", "pixtral", "qwen2.5vl_merger",
    "qwen2a", "resampler", "step3vl", "ultravox",
];

/// All but the first two leave something to fitting.
const COMMANDS: [&str; 8] = [
    "-ngl 99 -c 0", "-ngl 99 -cmoe -ub 2048 -fit off", "", "-c 4096 -np 4", "-c 0 -fitc 8192 -fitt 1024,512", "-sm none",
    "-ts 3,1 -ub 64", "-dev none -c 0",
];

fn wholes() -> &'static [Gguf] {
    static WHOLES: OnceLock<Vec<Gguf>> = OnceLock::new();
    WHOLES.get_or_init(|| {
        let models = MODELS.iter().map(|name| made(name, Some(2)));
        models.chain(spec::projectors().iter().map(|name| made(name, None))).collect()
    })
}

/// `whole` with some of its keys and tensors taken away, exchanged, or made anything.
fn changed(whole: &Header, draw: &mut Draw) -> Option<Header> {
    let (mut metadata, mut tensors) = (whole.metadata.clone(), whole.tensors.clone());
    for _ in 0..draw.below(6) {
        let key = metadata.keys().nth(usize::from(draw.byte()) % metadata.len())?.clone();
        match draw.below(8) {
            0 => metadata.remove(&key),
            1 => {
                let name = PROJECTORS[usize::from(draw.below(32))].to_string();
                metadata.insert("clip.projector_type".to_string(), Value::String(name))
            }
            _ => metadata.insert(key, draw.value()),
        };
    }
    for _ in 0..draw.below(6) {
        let mut place = || (usize::from(draw.byte()) << 8 | usize::from(draw.byte())) % tensors.len().max(1);
        let (at, other) = (place(), place());
        match draw.below(4) {
            _ if tensors.len() < 2 => return None,
            0 => drop(tensors.remove(at)),
            1 => {
                let (name, of_other) = (tensors[at].name.clone(), tensors[other].name.clone());
                (tensors[at].name, tensors[other].name) = (of_other, name);
            }
            2 => {
                let dimension = usize::from(draw.below(4));
                tensors[at].shape.swap(0, dimension);
            }
            _ => tensors[at] = draw.tensor(tensors[at].name.clone())?,
        }
    }
    header(metadata, tensors)
}

fuzz_target!(|bytes: &[u8]| {
    let mut draw = Draw(bytes);
    let whole = &wholes()[usize::from(draw.byte()) % wholes().len()];
    let command = COMMANDS[usize::from(draw.below(8))];
    let tokens = [draw.byte(), draw.byte()].map(|n| if n < 128 { 0 } else { u32::from(n) << (n % 8) });
    let Some(header) = changed(&whole.header, &mut draw) else { return };
    let (model, refused) = Model::as_far_as_readable(model(header));
    shown(&Inspection::new(&model, &refused, None));
    if let Ok(encoders) = projector::encoders(&model, tokens) {
        let _ = image_tokens(&encoders);
        for encoder in encoders {
            let home = Some((0, Backend::Cuda)).filter(|_| tokens[0] == 0);
            let _ = encoder_memory(encoder, home, FlashAttn::Auto);
        }
        return;
    }
    if !refused.is_empty() {
        return;
    }
    checked(&model, &machine(), command);
});
