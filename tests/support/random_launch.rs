//! Command lines drawn at random: every flag that decides memory, each with values that have been known to matter.

use proptest::prelude::*;
use proptest::sample::select;

/// One launch, drawn: a model by number, software devices, a program and its flags.
#[derive(Debug, Clone)]
pub struct Case {
    /// Which model, modulo their count.
    pub model: usize,
    /// No device, one, or two with a split.
    split: Option<String>,
    devices: usize,
    program: &'static str,
    /// Flags with their values.
    flags: Vec<String>,
}

impl Case {
    /// The same launch as llama-server's, with more flags; one that names a device which it does not have is left out.
    pub fn with(&self, more: &[String]) -> Self {
        let has = |flag: &&String| !flag.ends_with("RPC1") || self.devices > 1;
        let has = |flag: &&String| has(flag) && (!flag.ends_with("RPC0") || self.devices > 0);
        let flags = self.flags.iter().chain(more.iter().filter(has)).cloned().collect();
        Self { program: PROGRAMS[0], flags, ..self.clone() }
    }

    /// How many software devices.
    pub fn devices(&self) -> usize {
        self.devices
    }

    /// The program and its arguments without the model, separated by single spaces.
    pub fn command(&self) -> String {
        let split = self.split.iter().filter(|_| self.devices == 2).map(|shares| format!("-ts {shares}"));
        let words: Vec<String> = self.flags.iter().cloned().chain(split).collect();
        format!("{} -fit off {}", self.program, words.join(" ")).trim_end().to_string()
    }

    /// The flags without values, to sort cases by.
    pub fn flag_names(&self) -> Vec<String> {
        let name = |flag: &String| {
            let mut words = flag.split(' ');
            let name = words.next().unwrap_or_default();
            match name {
                "-fa" => flag.clone(),
                "-ctk" | "-ctv" => format!("{name} {}", if flag.ends_with("f16") { "16 bits" } else { "other" }),
                _ => name.to_string(),
            }
        };
        let mut names: Vec<String> = self.flags.iter().map(name).collect();
        names.push(format!("{} devices", self.devices));
        names.push(self.program.to_string());
        names.sort();
        names.dedup();
        names
    }

    /// `DEVICES MODEL PROGRAM FLAGS…` as a replay line has it.
    pub fn parse(text: &str, models: &[String]) -> Option<Self> {
        let mut words = text.split_whitespace();
        let devices = words.next()?.parse().ok()?;
        let name = words.next()?;
        let model = models.iter().position(|known| known == name)?;
        let asked = words.next()?;
        let program = PROGRAMS.into_iter().find(|known| *known == asked)?;
        let words: Vec<&str> = words.collect();
        let flags = words.strip_prefix(&["-fit", "off"]).unwrap_or(&words).iter().map(ToString::to_string).collect();
        Some(Self { model, split: None, devices, program, flags })
    }
}

const PROGRAMS: [&str; 3] = ["llama-server", "llama-fit-params", "llama-cli"];
const CACHE_TYPES: [&str; 9] = ["f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"];
const PATTERNS: [&str; 18] = [
    "exps",
    "ffn_.*_exps",
    "ffn_(up|gate)_exps",
    "ffn_down_exps",
    "shexp",
    r"blk\.[01]\.",
    r"blk\.1\.",
    r"blk\.[0-9]*[02468]\.ffn",
    r"blk\.0\.attn",
    "attn",
    "attn_(q|k|v)",
    "attn_output",
    "norm",
    r"^output\.weight",
    "token_embd",
    r"ffn_(gate|up|down)\.",
    "ssm",
    ".*",
];

/// `flag` with one of `values`, `of_hundred` times in a hundred; shrinks to nothing, then to the first value.
fn flag(flag: &'static str, of_hundred: u8, values: &'static [&'static str]) -> BoxedStrategy<Option<String>> {
    let value = select(values).prop_map(move |v| format!("{flag} {v}").trim_end().to_string());
    if of_hundred == 100 {
        return value.prop_map(Some).boxed();
    }
    prop::option::weighted(f64::from(of_hundred) / 100.0, value).boxed()
}

/// `-ot` with one to three rules; a buffer that is no device of the launch becomes the host's.
fn overrides() -> BoxedStrategy<Vec<(&'static str, &'static str)>> {
    let rule = (select(&PATTERNS[..]), select(&["CPU", "RPC0", "RPC1"][..]));
    prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(rule, 1..=3)].boxed()
}

/// Flags of a drafting context.
pub fn drafting() -> impl Strategy<Value = Vec<String>> {
    let flags = (
        flag("-ngld", 60, &["99", "0", "1", "2"]),
        flag("-ctkd", 30, &CACHE_TYPES),
        flag("-ctvd", 20, &CACHE_TYPES),
        flag("-devd", 25, &["RPC0", "RPC1"]),
        flag("-cmoed", 10, &[""]),
        flag("--spec-draft-n-max", 40, &["1", "7", "16"]),
    );
    flags
        .prop_map(|(ngl, ctk, ctv, dev, cmoe, n_max)| [ngl, ctk, ctv, dev, cmoe, n_max].into_iter().flatten().collect())
}

/// A case.
pub fn case() -> impl Strategy<Value = Case> {
    let sizes = (
        flag("-c", 90, &["4096", "256", "512", "1000", "2048", "5000", "8192", "16384", "32768", "100000"]),
        flag("-b", 25, &["2048", "64", "256", "512", "1024", "4096"]),
        flag("-ub", 45, &["512", "1", "32", "128", "256", "1024", "2048", "4096"]),
        flag("-np", 55, &["1", "2", "3", "4", "7", "16"]),
        prop_oneof![2 => Just(None), 1 => flag("-kvu", 100, &[""]), 1 => flag("-no-kvu", 100, &[""])],
        flag("--swa-full", 15, &[""]),
    );
    let caches = (
        flag("-fa", 60, &["on", "off", "auto"]),
        flag("-ctk", 35, &CACHE_TYPES),
        flag("-ctv", 25, &CACHE_TYPES),
        flag("-nkvo", 15, &[""]),
    );
    let placement = (
        flag("-ngl", 85, &["99", "0", "1", "2", "3", "4", "5", "14", "25"]),
        flag("-cmoe", 20, &[""]),
        flag("-ncmoe", 20, &["1", "2", "3"]),
        flag("--no-op-offload", 15, &[""]),
        flag("-nr", 25, &[""]),
        overrides(),
    );
    let place = (
        any::<prop::sample::Index>().prop_map(|i| i.index(1 << 20)).no_shrink(),
        prop_oneof![1 => Just(1_usize), 1 => Just(0), 1 => Just(2)],
        select(&["1,1", "1,3", "3,1", "0,1", "1,0", "2,3"][..]),
        select(&PROGRAMS[..2]),
    );
    (place, sizes, caches, placement).prop_map(|(place, sizes, caches, placement)| {
        let (model, devices, split, program) = place;
        let (c, b, ub, np, kvu, swa) = sizes;
        let (fa, ctk, ctv, nkvo) = caches;
        let (ngl, cmoe, ncmoe, no_op_offload, nr, rules) = placement;
        let rule = |(pattern, buffer): (&str, &str)| {
            let known = buffer.strip_prefix("RPC").is_some_and(|n| n.parse().is_ok_and(|n: usize| n < devices));
            format!("-ot {pattern}={}", if known { buffer } else { "CPU" })
        };
        let flags = [c, b, ub, np, kvu, swa, fa, ctk, ctv, nkvo, ngl, cmoe, ncmoe, no_op_offload, nr];
        let flags = flags.into_iter().flatten().chain(rules.into_iter().map(rule)).collect();
        Case { model, split: Some(split.to_string()), devices, program, flags }
    })
}
