//! Variables and configuration files that change what llama.cpp or moeplan does: what each does, and what moeplan does about it.
//!
//! Sources, b11434: `common/arg.cpp`, `ggml/src/ggml-cuda/ggml-cuda.cu`, `ggml/src/ggml-vulkan/ggml-vulkan.cpp`,
//! `ggml/src/ggml-backend-reg.cpp`, `src/llama-kv-cache.cpp`.

use super::facts::{Facts, Variable};
use super::{Area, Finding, Level};

/// A variable, or all whose names begin so, and what is known of it.
struct Known {
    /// The name; `*` at its end: all that begin so.
    name: &'static str,
    /// How much it matters where it is set.
    level: Level,
    /// What it does, and what moeplan does about it.
    what: &'static str,
    /// What a person can do.
    hint: &'static str,
    /// Whether the value may be shown.
    is_plain: bool,
}

const fn known(name: &'static str, level: Level, what: &'static str, hint: &'static str) -> Known {
    Known { name, level, what, hint, is_plain: true }
}

const fn secret(name: &'static str, level: Level, what: &'static str, hint: &'static str) -> Known {
    Known { name, level, what, hint, is_plain: false }
}

const UNSET: &str = "unset it for predictions that hold";
const FREE: &str = "nothing has to be done";

/// The first that fits counts.
const KNOWN: &[Known] = &[
    known(
        "LLAMA_ARG_*",
        Level::Note,
        "a flag of llama.cpp: kept from every server that moeplan starts, counted by `check`, not by `plan`",
        "unset it, or the command of a plan that you paste will not be what was planned",
    ),
    secret("LLAMA_API_KEY", Level::Ok, "llama-server asks for a key: kept from measurements, left to `run`", FREE),
    known("LLAMA_CACHE", Level::Ok, "where llama.cpp keeps models: `moeplan list` looks there", FREE),
    known("LLAMA_ATTN_ROT_DISABLE", Level::Note, "changes quantized caches; llama-server is left it", UNSET),
    known("LLAMA_SERVER_*", Level::Note, "llama-server's own: kept from every server that moeplan starts", FREE),
    known("AIP_*", Level::Note, "changes where llama-server listens: kept from every server that moeplan starts", FREE),
    known("LLAMA_*", Level::Note, "llama.cpp's, for debugging: it may slow a server that moeplan starts", UNSET),
    known(
        "CUDA_VISIBLE_DEVICES",
        Level::Note,
        "decides which NVIDIA cards there are, and their numbers: moeplan and llama-server both heed it",
        "the same value has to be set where the planned command runs",
    ),
    known(
        "CUDA_DEVICE_ORDER",
        Level::Note,
        "decides the numbers of NVIDIA cards: moeplan and llama-server both heed it",
        "the same value has to be set where the planned command runs",
    ),
    known(
        "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
        Level::Problem,
        "a launch that does not fit a card spills into main memory instead of failing, and free memory reads wrong",
        UNSET,
    ),
    known(
        "GGML_CUDA_NO_PINNED",
        Level::Problem,
        "host memory is not pinned: prompts are slower than predicted for `-lm none`",
        "unset it, or plan with `-lm mmap`",
    ),
    known(
        "GGML_CUDA_REGISTER_HOST",
        Level::Note,
        "pins mapped weights: the host's part is faster than predicted",
        UNSET,
    ),
    known("GGML_CUDA_DEVICES", Level::Problem, "makes up more cards than there are", UNSET),
    known("GGML_CUDA_DISABLE_*", Level::Problem, "turns a speed-up off that predictions count on", UNSET),
    known("GGML_CUDA_*", Level::Note, "changes how CUDA computes or copies; llama-server is left it", UNSET),
    known("GGML_OP_OFFLOAD_MIN_BATCH", Level::Problem, "moves where prompts of host weights are computed", UNSET),
    known("GGML_VK_VISIBLE_DEVICES", Level::Note, "decides which Vulkan devices llama-server lists", FREE),
    known(
        "GGML_VK_*",
        Level::Note,
        "changes Vulkan's buffers, or how it computes; llama-server is left it, and it is not modelled",
        UNSET,
    ),
    known("GGML_BACKEND_PATH", Level::Note, "loads one more backend into every llama.cpp", UNSET),
    known("GGML_*", Level::Note, "ggml's, and not modelled; llama-server is left it", UNSET),
    known("HIP_VISIBLE_DEVICES", Level::Note, "decides which AMD cards llama-server lists", FREE),
    known("ROCR_VISIBLE_DEVICES", Level::Note, "decides which AMD cards llama-server lists", FREE),
    known("HSA_OVERRIDE_GFX_VERSION", Level::Note, "makes an AMD card pass for another", FREE),
    known("ONEAPI_DEVICE_SELECTOR", Level::Note, "decides which Intel devices llama-server lists", FREE),
    known("OMP_NUM_THREADS", Level::Ok, "llama.cpp sets its own threads (`-t`)", FREE),
    known("OMP_WAIT_POLICY", Level::Note, "whether idle threads spin: generation on the host can differ", UNSET),
    known("LD_PRELOAD", Level::Note, "loaded into llama-server too", "unset it where llama-server does not start"),
    known(
        "LD_LIBRARY_PATH",
        Level::Note,
        "looked through before the libraries beside llama-server: another llama.cpp's may be taken",
        "unset it where llama-server does not start, or is another version than it should be",
    ),
    secret("HF_TOKEN", Level::Ok, "sent to the hub's own host for `hf:` models, to no other", FREE),
    secret("HF_ENDPOINT", Level::Note, "`hf:` models come from this hub instead of huggingface.co", FREE),
    known("HF_HUB_OFFLINE", Level::Note, "not heeded by moeplan", "set MOEPLAN_OFFLINE, or give --offline"),
    known("HF_*", Level::Ok, "Hugging Face's: `moeplan list` looks where its cache is", FREE),
    known("HUGGINGFACE_HUB_CACHE", Level::Ok, "where models are kept: `moeplan list` looks there", FREE),
    known("OLLAMA_MODELS", Level::Ok, "where models are kept: `moeplan list` looks there", FREE),
    secret("MOEPLAN_API_KEY", Level::Ok, "the key for `bench --url`", FREE),
    known(
        "MOEPLAN_OFFLINE",
        Level::Note,
        "no server is asked: only headers that are kept are used",
        "unset it for more",
    ),
    known("MOEPLAN_*", Level::Ok, "moeplan's own", FREE),
    secret(
        "*_PROXY",
        Level::Note,
        "used to read headers over the network; never for this computer, nor for a llama-server",
        "NO_PROXY names hosts to ask directly",
    ),
];

impl Known {
    /// Names differ in case only where proxies are meant.
    fn is(&self, name: &str) -> bool {
        match (self.name.strip_suffix('*'), self.name.strip_prefix('*')) {
            (Some(start), _) => name.starts_with(start),
            (None, Some(end)) => name.to_uppercase().ends_with(end),
            (None, None) => name == self.name,
        }
    }
}

fn of(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.is(name))
}

/// The variable as a fact, where it matters; the value of one that may hold a secret is left out.
pub fn variable(name: &str, value: &str) -> Option<Variable> {
    let known = of(name)?;
    let shown = known.is_plain && !may_be_secret(name, value);
    Some(Variable { name: name.to_string(), value: shown.then(|| value.to_string()) })
}

/// Whether a variable that only a whole family is known of may hold a key: by a word of its name, or an address with a password.
fn may_be_secret(name: &str, value: &str) -> bool {
    let words = ["TOKEN", "KEY", "SECRET", "PASS", "PASSWORD", "AUTH", "CREDENTIALS"];
    name.split('_').any(|word| words.contains(&word)) || value.split_once("://").is_some_and(|(_, at)| at.contains('@'))
}

/// On variables and configuration files.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<Finding> = facts.environment.iter().filter_map(of_variable).collect();
    for file in &facts.config_files {
        let path = file.path.display();
        found.push(if file.system {
            Finding::problem(
                Area::Environment,
                "config-file",
                format!("`{path}` is read by every llama-server first, and cannot be kept from it"),
                "move what decides memory out of it; its flags come before those of a plan",
            )
        } else {
            Finding::note(
                Area::Environment,
                "config-file",
                format!("`{path}`: kept from every server that moeplan starts; a command that you paste reads it"),
                "move what decides memory out of it",
            )
        });
    }
    if found.is_empty() {
        found.push(Finding::ok(Area::Environment, "environment", "nothing that interferes"));
    }
    found
}

fn of_variable(variable: &Variable) -> Option<Finding> {
    let known = of(&variable.name)?;
    let name = match &variable.value {
        Some(value) => format!("{}={value}", variable.name),
        None => variable.name.clone(),
    };
    let message = format!("{name}: {}", known.what);
    let hint = (known.hint != FREE).then(|| known.hint.to_string());
    Some(Finding { area: Area::Environment, level: known.level, code: "variable", message, hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_is_hidden_by_an_earlier_one_and_secrets_stay() {
        for (at, row) in KNOWN.iter().enumerate() {
            let name = row.name.replace('*', "X");
            let first = KNOWN.iter().position(|known| known.is(&name));
            assert_eq!(first, Some(at), "{} is hidden", row.name);
        }
        for (name, shown) in [
            ("LLAMA_ARG_CTX_SIZE", Some("1")),
            ("HF_TOKEN", None),
            ("https_proxy", None),
            ("MOEPLAN_API_KEY", None),
            ("LLAMA_API_KEY", None),
            ("HF_ENDPOINT", None),
        ] {
            assert_eq!(variable(name, "1").unwrap().value.as_deref(), shown, "{name}");
        }
        assert_eq!(variable("PATH", "/bin"), None);
        let kept = [("HF_API_KEY", "x"), ("LLAMA_CLOUD_API_TOKEN", "x"), ("MOEPLAN_X", "https://me:word@host")];
        assert!(kept.iter().all(|(name, value)| variable(name, value).unwrap().value.is_none()));
        assert!(variable("LLAMA_ARG_CTX_SIZE", "4096").unwrap().value.is_some());
    }
}
