//! llama.cpp through its C interface; the only FFI of moeplan, run only in the worker process. Checked on b11434. [I/O]
#![expect(unsafe_code, reason = "the C interface of llama.cpp")]

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::time::Instant;

use llama_cpp_sys_2 as sys;

use super::{
    BufferMemory, DeviceInfo, EMBEDDED_BUILD, Launch, Observation, Projection, Prompt, RuntimeInfo, Workload,
    pseudo_random, sampler,
};
use crate::bytes::Bytes;
use crate::gguf::Value;
use crate::run::Choice as _;
use crate::run::numbers::sequences;
use crate::run::{MetadataOverride, Override, Program};

/// What `moeplan_memory_breakdown` writes (shim.cpp).
#[repr(C)]
#[derive(Clone, Copy)]
struct ShimBuffer {
    buffer: *const c_char,
    device: *const c_char,
    host: bool,
    model: usize,
    context: usize,
    compute: usize,
}

unsafe extern "C" {
    fn moeplan_memory_breakdown(ctx: *const sys::llama_context, out: *mut ShimBuffer, capacity: usize) -> usize;
    fn moeplan_model_devices(model: *const sys::llama_model) -> usize;
    fn moeplan_model_device(model: *const sys::llama_model, i: usize) -> sys::ggml_backend_dev_t;
    fn moeplan_rpc_add(endpoint: *const c_char) -> bool;
    fn moeplan_rpc_serve(endpoint: *const c_char, n_threads: usize);
    fn moeplan_log_to_stderr();
    fn moeplan_exit(code: i32) -> !;
}

/// Makes llama.cpp ready; its log goes to standard error.
pub fn init() {
    // SAFETY: neither takes anything; both are called before any other function of llama.cpp.
    unsafe {
        moeplan_log_to_stderr();
        sys::llama_backend_init();
    }
}

/// Ends the process at once, also while other threads compute.
pub fn leave(code: i32) -> ! {
    // SAFETY: `_Exit` may be called from any thread at any time.
    unsafe { moeplan_exit(code) }
}

/// Makes the devices of an RPC server known, as `--rpc` does.
pub fn add_rpc(endpoint: &str) -> Result<(), String> {
    let name = c_string(endpoint)?;
    // SAFETY: `name` is a C string that lives through the call; llama.cpp copies it.
    if unsafe { moeplan_rpc_add(name.as_ptr()) } {
        Ok(())
    } else {
        Err(format!("the RPC server `{endpoint}` has no device, or this build has no RPC"))
    }
}

/// Serves this computer's processor at `endpoint` until its supervisor ends it.
pub fn serve_rpc(endpoint: &str, n_threads: u32) -> anyhow::Result<()> {
    init();
    let name = CString::new(endpoint)?;
    // SAFETY: `name` lives through the call, which lasts as long as the server.
    unsafe { moeplan_rpc_serve(name.as_ptr(), n_threads as usize) };
    anyhow::bail!("the RPC server at `{endpoint}` stopped")
}

/// Every device that llama.cpp knows now.
pub fn devices() -> Vec<DeviceInfo> {
    all_devices().into_iter().map(describe).collect()
}

pub fn project(launch: &Launch) -> Result<Projection, String> {
    Ok(Loaded::new(launch, true, ptr::null_mut())?.memory())
}

/// The context of `draft` beside that of `target` (`ctx_other`).
pub fn project_draft(target: &Launch, draft: &Launch) -> Result<Projection, String> {
    let target = Loaded::new(target, true, ptr::null_mut())?;
    Ok(Loaded::new(draft, true, target.context)?.memory())
}

/// Loads `launch` for real and runs `workload`.
pub fn generate(launch: &Launch, workload: &Workload) -> Result<Observation, String> {
    let process_before = sampler::own();
    let start = Instant::now();
    let loaded = Loaded::new(launch, false, ptr::null_mut())?;
    let load_seconds = start.elapsed().as_secs_f64();
    let prefix = loaded.pseudo_random(workload.depth, 0);
    let prompt = match &workload.prompt {
        Prompt::Text(text) => loaded.tokenize(text)?,
        Prompt::Tokens(n) => loaded.pseudo_random(*n, 1),
    };
    if prompt.is_empty() {
        return Err("the prompt has no tokens".to_string());
    }
    let mut seen = Observation {
        runtime: RuntimeInfo { program: "embedded".to_string(), build: EMBEDDED_BUILD, backend: launch.backend() },
        process_before,
        load_seconds,
        finite: true,
        ..Observation::default()
    };
    seen.speed.n_prompt = u32::try_from(prompt.len()).map_err(|_| TOO_LONG)?;
    (seen.speed.depth, seen.speed.n_generate) = (workload.depth, workload.n_generate);
    for repetition in 0..workload.repetitions.max(1) {
        let tokens = loaded.run(&prefix, &prompt, workload.n_generate, &mut seen)?;
        if repetition == 0 {
            seen.text = loaded.text(&tokens);
            seen.tokens = tokens;
        }
    }
    let memory = loaded.memory();
    (seen.memory, seen.mapped_span) = (memory.by_device(), memory.mapped_span());
    seen.process = sampler::own();
    Ok(seen)
}

const TOO_LONG: &str = "the prompt is too long";

/// A model with a context, freed in the right order.
struct Loaded {
    model: *mut sys::llama_model,
    context: *mut sys::llama_context,
    n_batch: usize,
}

impl Loaded {
    /// `other` is the context that a draft model drafts for, or null; it outlives this one.
    fn new(launch: &Launch, no_alloc: bool, other: *mut sys::llama_context) -> Result<Self, String> {
        let path = c_string(&launch.model.to_string_lossy())?;
        let mut devices = pick_devices(&launch.device_names())?;
        devices.push(ptr::null_mut());
        let run = &launch.run;
        let patterns: Vec<CString> = run.overrides.iter().map(|o| c_string(&o.pattern)).collect::<Result<_, _>>()?;
        let overrides = override_list(&run.overrides, &patterns)?;
        let metadata = metadata_list(&run.metadata_overrides);
        // SAFETY: takes nothing; longer lists than this are refused by llama.cpp.
        let mut split = vec![0.0_f32; unsafe { sys::llama_max_devices() }];
        for (share, wanted) in split.iter_mut().zip(&run.tensor_split) {
            *share = *wanted;
        }
        // SAFETY: takes nothing.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.devices = devices.as_mut_ptr();
        params.tensor_buft_overrides = overrides.as_ptr();
        params.kv_overrides = if run.metadata_overrides.is_empty() { ptr::null() } else { metadata.as_ptr() };
        params.n_gpu_layers = run.n_gpu_layers;
        params.split_mode = run.split_mode.number().cast_unsigned();
        params.main_gpu = run.main_gpu;
        params.tensor_split = if run.tensor_split.is_empty() { ptr::null() } else { split.as_ptr() };
        params.load_mode = if no_alloc { sys::LLAMA_LOAD_MODE_NONE } else { run.load_mode.number() };
        params.use_extra_bufts = run.repack;
        params.no_host = run.no_host;
        params.no_alloc = no_alloc;
        params.load_mtp = run.mtp;
        // SAFETY: every pointer in `params` is to a list that ends as llama.h says and lives to the end of this function.
        let model = unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) };
        if model.is_null() {
            return Err("the model does not load".to_string());
        }
        let context_params = sys::llama_context_params { ctx_other: other, ..context_params(launch) };
        // SAFETY: `model` is a loaded model; the parameters hold no pointer but that to a live context.
        let context = unsafe { sys::llama_init_from_model(model, context_params) };
        if context.is_null() {
            // SAFETY: nothing else holds the model.
            unsafe { sys::llama_model_free(model) };
            return Err("the context cannot be created".to_string());
        }
        // SAFETY: `context` is live.
        let n_batch = unsafe { sys::llama_n_batch(context) } as usize;
        Ok(Self { model, context, n_batch: n_batch.max(1) })
    }

    /// Bytes by buffer type, exact.
    fn memory(&self) -> Projection {
        const EMPTY: ShimBuffer =
            ShimBuffer { buffer: ptr::null(), device: ptr::null(), host: false, model: 0, context: 0, compute: 0 };
        let mut entries = [EMPTY; 64];
        // SAFETY: the context is live and the list has the length that is said.
        let n = unsafe { moeplan_memory_breakdown(self.context, entries.as_mut_ptr(), entries.len()) };
        assert!(n <= entries.len(), "more buffer types than ggml has devices");
        let buffers = entries.iter().take(n).map(|entry| BufferMemory {
            buffer: text_of(entry.buffer),
            device: (!entry.device.is_null()).then(|| text_of(entry.device)),
            host: entry.host,
            model: bytes(entry.model),
            context: bytes(entry.context),
            compute: bytes(entry.compute),
        });
        // SAFETY: the model is live and `i` is below its number of devices.
        let devices = unsafe {
            (0..moeplan_model_devices(self.model)).map(|i| describe(moeplan_model_device(self.model, i)).name).collect()
        };
        // SAFETY: the context is live.
        let n_ctx = unsafe { sys::llama_n_ctx(self.context) };
        Projection { buffers: buffers.collect(), devices, n_ctx }
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is live, and so is its vocabulary as long as it.
        unsafe { sys::llama_model_get_vocab(self.model) }
    }

    fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary is live.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(self.vocab()) }).unwrap_or(0)
    }

    fn pseudo_random(&self, n: u32, seed: u64) -> Vec<i32> {
        let tokens = pseudo_random(n, u32::try_from(self.n_vocab()).unwrap_or(1), seed);
        tokens.into_iter().filter_map(|token| i32::try_from(token).ok()).collect()
    }

    fn tokenize(&self, text: &str) -> Result<Vec<i32>, String> {
        let length = i32::try_from(text.len()).map_err(|_| TOO_LONG)?;
        let room = length.checked_add(8).ok_or(TOO_LONG)?;
        let mut tokens = vec![0_i32; text.len() + 8];
        // SAFETY: `text` and `tokens` have the lengths that are said.
        let n = unsafe {
            sys::llama_tokenize(self.vocab(), text.as_ptr().cast(), length, tokens.as_mut_ptr(), room, true, true)
        };
        let n = usize::try_from(n).map_err(|_| "the prompt cannot be tokenised".to_string())?;
        tokens.truncate(n);
        Ok(tokens)
    }

    fn text(&self, tokens: &[i32]) -> String {
        let mut all = Vec::new();
        for &token in tokens {
            let mut piece = [0_u8; 256];
            // SAFETY: `piece` has the length that is said (256).
            let n = unsafe { sys::llama_token_to_piece(self.vocab(), token, piece.as_mut_ptr().cast(), 256, 0, true) };
            let n = usize::try_from(n).unwrap_or(0);
            all.extend_from_slice(piece.get(..n).unwrap_or(&[]));
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Clears the caches, reads `prefix` apart from the clock, then the prompt, generates greedily: the tokens. Speeds go to `seen`.
    fn run(&self, prefix: &[i32], prompt: &[i32], n_generate: u32, seen: &mut Observation) -> Result<Vec<i32>, String> {
        // SAFETY: the context is live; a context without caches has no memory to clear.
        unsafe {
            let memory = sys::llama_get_memory(self.context);
            if !memory.is_null() {
                sys::llama_memory_clear(memory, true);
            }
        }
        if !prefix.is_empty() {
            prefix.chunks(self.n_batch).try_for_each(|chunk| self.decode(chunk))?;
            // Reading the logits waits for the devices.
            self.best();
        }
        let start = Instant::now();
        prompt.chunks(self.n_batch).try_for_each(|chunk| self.decode(chunk))?;
        let (mut token, mut finite) = self.best();
        seen.speed.pp.push(rate(prompt.len(), start));
        seen.finite &= finite;
        let start = Instant::now();
        let mut tokens = Vec::new();
        for _ in 0..n_generate {
            tokens.push(token);
            self.decode(&[token])?;
            (token, finite) = self.best();
            seen.finite &= finite;
        }
        seen.speed.tg.extend((!tokens.is_empty()).then(|| rate(tokens.len(), start)));
        Ok(tokens)
    }

    fn decode(&self, tokens: &[i32]) -> Result<(), String> {
        let mut tokens = tokens.to_vec();
        let n = i32::try_from(tokens.len()).map_err(|_| "the batch is too long".to_string())?;
        // SAFETY: the batch points to `tokens`, which outlives the call; llama.cpp reads `n` of them.
        let code = unsafe { sys::llama_decode(self.context, sys::llama_batch_get_one(tokens.as_mut_ptr(), n)) };
        match code {
            0 => Ok(()),
            1 => Err("the context is full: a larger -c or a shorter prompt".to_string()),
            code => Err(format!("llama_decode returned {code}")),
        }
    }

    /// The most likely next token, and whether all logits are finite. Waits for the devices.
    fn best(&self) -> (i32, bool) {
        let n_vocab = self.n_vocab();
        // SAFETY: after a successful decode the last row of logits exists and has `n_vocab` values.
        let logits = unsafe {
            let row = sys::llama_get_logits_ith(self.context, -1);
            if row.is_null() {
                return (0, false);
            }
            std::slice::from_raw_parts(row, n_vocab)
        };
        let finite = logits.iter().all(|x| x.is_finite());
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
        (i32::try_from(best).unwrap_or(0), finite)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: both are live and nothing else holds them; the context goes first.
        unsafe {
            sys::llama_free(self.context);
            sys::llama_model_free(self.model);
        }
    }
}

/// The parameters that a program makes of a launch (common/common.cpp `common_context_params_to_llama`, b11434).
fn context_params(launch: &Launch) -> sys::llama_context_params {
    let run = &launch.run;
    let all = || std::thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok());
    let threads = run.n_threads.filter(|n| *n > 0).or_else(all);
    let threads = threads.and_then(|n| i32::try_from(n).ok()).unwrap_or(1);
    let (n_seq_max, kv_unified) = sequences(run);
    // SAFETY: takes nothing.
    let mut params = unsafe { sys::llama_context_default_params() };
    params.n_ctx = match (run.n_ctx, run.kv_unified_per_slot) {
        (0, Some(per_slot)) => per_slot.saturating_mul(n_seq_max),
        (n_ctx, _) if run.program.takes_chunks() => n_ctx.saturating_mul(n_seq_max),
        (n_ctx, _) => n_ctx,
    };
    params.n_batch = run.n_batch;
    params.n_ubatch = run.n_ubatch;
    params.n_seq_max = n_seq_max;
    // A server asks for a row a slot and drafted token, the other tools for all (tools/server/server-context.cpp, b11434).
    params.n_outputs_max = match run.program {
        Program::Server | Program::Cli => n_seq_max.saturating_mul(run.n_draft.saturating_add(1)).min(run.n_batch),
        _ => 0,
    };
    params.n_outputs_max_per_seq = 1;
    params.n_rs_seq = run.n_rs_seq;
    params.n_threads = threads;
    params.n_threads_batch = threads;
    params.flash_attn_type = run.flash_attn.number();
    params.type_k = run.type_k.id;
    params.type_v = run.type_v.id;
    params.offload_kqv = run.offload_kqv;
    params.op_offload = run.op_offload;
    params.swa_full = run.swa_full;
    params.kv_unified = kv_unified;
    params.ctx_type = if run.mtp_context { sys::LLAMA_CONTEXT_TYPE_MTP } else { sys::LLAMA_CONTEXT_TYPE_DEFAULT };
    params
}

fn all_devices() -> Vec<sys::ggml_backend_dev_t> {
    // SAFETY: every index is below the count.
    unsafe { (0..sys::ggml_backend_dev_count()).map(|i| sys::ggml_backend_dev_get(i)).collect() }
}

fn describe(device: sys::ggml_backend_dev_t) -> DeviceInfo {
    let (mut free, mut total) = (0_usize, 0_usize);
    // SAFETY: devices live as long as the program, and so do their names; the sizes are written to locals.
    unsafe {
        sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
        let kind = sys::ggml_backend_dev_type(device);
        DeviceInfo {
            name: text_of(sys::ggml_backend_dev_name(device)),
            buffer: text_of(sys::ggml_backend_buft_name(sys::ggml_backend_dev_buffer_type(device))),
            description: text_of(sys::ggml_backend_dev_description(device)),
            backend: text_of(sys::ggml_backend_reg_name(sys::ggml_backend_dev_backend_reg(device))),
            gpu: kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU || kind == sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
            total: bytes(total),
            free: bytes(free),
        }
    }
}

fn described() -> Vec<(DeviceInfo, sys::ggml_backend_dev_t)> {
    all_devices().into_iter().map(|device| (describe(device), device)).collect()
}

fn buffers(known: &[(DeviceInfo, sys::ggml_backend_dev_t)]) -> String {
    known.iter().map(|(info, _)| info.buffer.as_str()).collect::<Vec<_>>().join(", ")
}

/// The devices of these names or buffer type names, in this order.
fn pick_devices(names: &[String]) -> Result<Vec<sys::ggml_backend_dev_t>, String> {
    let known = described();
    let pick = |name: &String| {
        let found = known.iter().find(|(info, _)| info.gpu && (info.name == *name || info.buffer == *name));
        let lacks = || format!("{} `{name}` (it has {})", super::worker::LACKS, buffers(&known));
        found.map(|(_, device)| *device).ok_or_else(lacks)
    };
    names.iter().map(pick).collect()
}

/// The override list of llama.h, ended by a null pattern. Buffer types are named as `-ot` takes them (common/arg.cpp).
fn override_list(
    overrides: &[Override],
    patterns: &[CString],
) -> Result<Vec<sys::llama_model_tensor_buft_override>, String> {
    let known = described();
    let entry = |(Override { buffer, .. }, pattern): (&Override, &CString)| {
        let found = known.iter().find(|(info, _)| info.buffer == *buffer);
        let lacks = || format!("-ot names `{buffer}`, which this llama.cpp does not have (it has {})", buffers(&known));
        let (_, device) = found.ok_or_else(lacks)?;
        // SAFETY: devices and buffer types live as long as the program.
        let buft = unsafe { sys::ggml_backend_dev_buffer_type(*device) };
        Ok(sys::llama_model_tensor_buft_override { pattern: pattern.as_ptr(), buft })
    };
    let end = sys::llama_model_tensor_buft_override { pattern: ptr::null(), buft: ptr::null_mut() };
    overrides.iter().zip(patterns).map(entry).chain([Ok(end)]).collect()
}

/// The `--override-kv` list of llama.h, ended by an empty key.
fn metadata_list(entries: &[MetadataOverride]) -> Vec<sys::llama_model_kv_override> {
    // SAFETY: the structure is plain numbers and characters, for which all-zero is a value.
    let empty = || unsafe { std::mem::zeroed::<sys::llama_model_kv_override>() };
    let mut list: Vec<sys::llama_model_kv_override> = Vec::with_capacity(entries.len() + 1);
    for MetadataOverride { key, value } in entries {
        let mut entry = empty();
        copy_text(&mut entry.key, key);
        let mut integer = |n| {
            entry.tag = sys::LLAMA_KV_OVERRIDE_TYPE_INT;
            entry.__bindgen_anon_1.val_i64 = n;
        };
        match value {
            Value::I64(n) => integer(*n),
            Value::U64(n) => match i64::try_from(*n) {
                Ok(n) => integer(n),
                // `--override-kv` cannot say it.
                Err(_) => continue,
            },
            Value::F64(x) => {
                entry.tag = sys::LLAMA_KV_OVERRIDE_TYPE_FLOAT;
                entry.__bindgen_anon_1.val_f64 = *x;
            }
            Value::Bool(yes) => {
                entry.tag = sys::LLAMA_KV_OVERRIDE_TYPE_BOOL;
                entry.__bindgen_anon_1.val_bool = *yes;
            }
            Value::String(text) => {
                entry.tag = sys::LLAMA_KV_OVERRIDE_TYPE_STR;
                // SAFETY: the union was zeroed whole, so this view of it is a value.
                copy_text(unsafe { &mut entry.__bindgen_anon_1.val_str }, text);
            }
            // `--override-kv` cannot say any other.
            _ => continue,
        }
        list.push(entry);
    }
    list.push(empty());
    list
}

/// Copies what fits and leaves a zero at the end.
fn copy_text(to: &mut [c_char], from: &str) {
    let room = to.len().saturating_sub(1);
    for (to, from) in to.iter_mut().take(room).zip(from.bytes()) {
        *to = from.cast_signed();
    }
}

fn rate(tokens: usize, start: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
    let tokens = tokens as f64;
    tokens / start.elapsed().as_secs_f64().max(1e-9)
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("`{text}` has a zero byte"))
}

/// A copy of a C string, empty for null.
fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: llama.cpp's names are C strings that live as long as the program.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn bytes(n: usize) -> Bytes {
    Bytes(n as u64)
}
