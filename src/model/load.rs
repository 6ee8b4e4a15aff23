//! What llama.cpp's loader requires of a model before it computes anything: keys, values, tensors and their shapes.
//!
//! The rules are `rules/loader/*.txt`, one file an architecture, in the words of `load_arch_hparams` and
//! `load_arch_tensors`; `groups.txt` is what they share. Source: `src/models/*.cpp`, `src/llama-model.cpp`,
//! `src/llama-model-loader.cpp` (`create_tensor`, `check_tensor_dims`, `done_getting_tensors`), llama.cpp b11434.
//!
//! A line is a key (`u32? attention.sliding_window -> n_swa`), a tensor (`.attn_q.weight [n_embd, n_embd_q] | flags`; a dot
//! in front is `blk.{i}.`, `?` is optional), `let`, `set`, `fill`, `copy`, `alias LAYER = LAYER`, `need TENSOR`, `assert`,
//! `refuse CONDITION: message`, `if`, `else`, `for i in a..b`, or `use GROUP(…)`; what is indented belongs to the line above. A
//! group's `$1` is its first argument, 0 where there is none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::hparams::{ContextHParams, HParams, LayerHParams, MAX_BLOCKS, Swa};
use super::{Model, Tensor};
use crate::arch::Arch;
use crate::expression::{Expr, Term};
use crate::gguf::Value;

/// Why llama.cpp does not load a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("key `{key}` is missing")]
    MissingKey { key: String },
    /// A key, or the numbers of several.
    #[error("{0}")]
    BadKey(String),
    #[error("missing tensor '{tensor}'")]
    MissingTensor { tensor: String },
    #[error("{0}")]
    WrongShape(String),
    /// Tensors that llama.cpp does not make, or more than the file has.
    #[error("{0}")]
    UnusedTensor(String),
    #[error("moeplan's loader rules: {0}")]
    Rules(String),
}

impl Fault {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::MissingTensor { tensor } if tensor.contains("_exps.") => {
                "its experts are missing or named differently; use a GGUF made by llama.cpp's convert_hf_to_gguf.py"
            }
            Self::MissingTensor { .. } | Self::WrongShape(_) => OTHER_PROGRAM,
            Self::UnusedTensor(message) if message.starts_with("wrong") => OTHER_PROGRAM,
            Self::Rules(_) => "this is a bug in moeplan; please report it",
            _ => "convert the model again with a current llama.cpp",
        }
    }
}

const OTHER_PROGRAM: &str = "it is incomplete, or made for another program (ollama makes such files); use a GGUF made by llama.cpp's convert_hf_to_gguf.py";

impl Model {
    /// What llama.cpp's loader would refuse first. A model whose architecture has no rules is not checked.
    ///
    /// # Errors
    /// The first fault, in the order in which llama.cpp looks.
    pub fn check_load(&self) -> Result<(), Fault> {
        let rules = Rules::of(&self.architecture).map_err(Fault::Rules)?;
        if rules.tensors.is_empty() { Ok(()) } else { Walk::new(self, &rules).run() }
    }
}

/// Reads the keys of a model, as far as they can be read; what llama.cpp would refuse among them.
pub(super) fn read(model: &mut Model) -> Vec<Fault> {
    match Rules::of(&model.architecture) {
        Ok(rules) => {
            let (hparams, context, faults) = Walk::new(model, &rules).read();
            (model.hparams, model.context) = (hparams, context);
            faults
        }
        Err(error) => vec![Fault::Rules(error)],
    }
}

static FILES: include_dir::Dir<'static> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/rules/loader");

/// The rules of an architecture: lines with their depths, groups filled in.
#[derive(Default)]
struct Rules {
    /// `def NAME = …` and `def NAME[i] = …`.
    defs: HashMap<String, Expr>,
    /// What is read before the tensors.
    keys: Vec<Text>,
    /// None where a file has no `tensors`: such architectures are not checked.
    tensors: Vec<Text>,
    /// What the graph asserts of the numbers.
    graph: Vec<Text>,
    /// The expressions that were met so far.
    parsed: Mutex<HashMap<String, Arc<Expr>>>,
}

/// A line's depth and its text.
type Text = (usize, String);

/// The types of keys, and what each is in words; of a `count` the length is read, whatever the elements.
const TYPES: [(&str, &str); 7] = [
    ("u32", "a whole number of 32 bits"),
    ("i32", "a signed number of 32 bits"),
    ("u64", "a whole number of 64 bits"),
    ("f32", "a fraction (f32)"),
    ("bool", "a boolean"),
    ("str", "text"),
    ("count", "an array"),
];

impl Rules {
    /// The rules of an architecture; of one without a file, what every architecture shares.
    fn of(architecture: &str) -> Result<Arc<Self>, String> {
        // A model's keys and its tensors are walked one after the other, and the files of a folder are often of one kind.
        static READ: Mutex<BTreeMap<String, Arc<Rules>>> = Mutex::new(BTreeMap::new());
        let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
        let name = Arch::of(architecture).loads_as.unwrap_or(architecture);
        if let Some(rules) = read.get(name) {
            return Ok(Arc::clone(rules));
        }
        let text = |name: &str| FILES.get_file(format!("{name}.txt"))?.contents_utf8();
        let own = text(name);
        let rules = Arc::new(Self::parse(text("groups").unwrap_or_default(), own.unwrap_or_default())?);
        if own.is_some() {
            read.insert(name.to_string(), Arc::clone(&rules));
        }
        Ok(rules)
    }

    fn parse(shared: &str, own: &str) -> Result<Self, String> {
        let (mut rules, mut groups) = (Self::default(), HashMap::new());
        let mut group: Option<&mut Vec<Text>> = None;
        let line = |text: &str| (0, text.to_string());
        let (mut keys, mut tensors, mut graph) = (vec![line("use keys")], Vec::new(), Vec::new());
        let mut section = &mut keys;
        let mut has_tensors = false;
        for text in shared.lines().chain(own.lines()) {
            let code = text.trim();
            if code.is_empty() || code.starts_with('#') {
                continue;
            }
            let depth = text.len().saturating_sub(text.trim_start().len()) / 2;
            if let Some(name) = code.strip_prefix("group ") {
                group = Some(groups.entry(name).or_insert_with(Vec::new));
                continue;
            }
            match group.take_if(|_| depth > 0) {
                Some(lines) => {
                    lines.push((depth.saturating_sub(1), code.to_string()));
                    group = Some(lines);
                    continue;
                }
                None => group = None,
            }
            match code.strip_prefix("def ").and_then(|text| text.split_once(" = ")) {
                Some((name, expr)) => {
                    rules.defs.insert(name.trim_end_matches("[i]").to_string(), Expr::parse(expr)?);
                }
                None if code == "tensors" => (section, has_tensors) = (&mut tensors, true),
                None if code == "graph" => section = &mut graph,
                None => section.push((depth, code.to_string())),
            }
        }
        if has_tensors {
            keys.push(line("use vocabulary"));
            tensors.push(line("use scales"));
        }
        (rules.keys, rules.tensors) = (expand(&keys, &groups)?, expand(&tensors, &groups)?);
        rules.graph = expand(&graph, &groups)?;
        Ok(rules)
    }

    fn parsed(&self, text: &str) -> Result<Arc<Expr>, Fault> {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(expr) = parsed.get(text) {
            return Ok(Arc::clone(expr));
        }
        let expr = Arc::new(Expr::parse(text).map_err(Fault::Rules)?);
        parsed.insert(text.to_string(), Arc::clone(&expr));
        Ok(expr)
    }
}

/// Lines with those of the groups that they use.
fn expand(lines: &[Text], groups: &HashMap<&str, Vec<Text>>) -> Result<Vec<Text>, String> {
    let mut expanded = Vec::with_capacity(lines.len());
    for (depth, text) in lines {
        let Some(call) = text.strip_prefix("use ") else {
            expanded.push((*depth, text.clone()));
            continue;
        };
        let (name, arguments) = call.split_once('(').unwrap_or((call, ")"));
        let group = groups.get(name).ok_or_else(|| format!("no group `{name}`"))?;
        let arguments: Vec<&str> = split(arguments.strip_suffix(')').unwrap_or(arguments)).collect();
        let fill = |(below, text): &Text| {
            let mut text = text.clone();
            if text.contains('$') {
                for number in 1..=9_usize {
                    let argument = arguments.get(number.saturating_sub(1)).copied().unwrap_or("0");
                    text = text.replace(&format!("${number}"), argument);
                }
            }
            (depth.saturating_add(*below), text)
        };
        expanded.extend(expand(&group.iter().map(fill).collect::<Vec<Text>>(), groups)?);
    }
    Ok(expanded)
}

/// The type of a key's line, what follows the type in its first word, the keys, and what gets the value.
type Key<'t> = (&'t str, &'t str, &'t str, Option<&'t str>);

/// `TYPE[?][COUNT] KEY, KEY [-> NAME]`; `None` for another line.
fn key(text: &str) -> Option<Key<'_>> {
    let (word, rest) = text.split_once(' ')?;
    let (ty, count) = word.split_at(word.find(['?', '[']).unwrap_or(word.len()));
    let is_key = TYPES.iter().any(|(name, _)| *name == ty) || ty.starts_with("one-of(");
    let (keys, into) = rest.split_once(" -> ").map_or((rest, None), |(keys, into)| (keys, Some(into)));
    is_key.then_some((ty, count, keys, into))
}

/// `NAME[?], NAME[?] [SHAPE] [| FLAGS]`.
fn tensors(text: &str) -> Option<(&str, &str, Option<&str>)> {
    let (names, rest) = text.split_once(" [")?;
    // The shape ends at its last bracket: an index has its own.
    Some(match rest.split_once("] | ") {
        Some((shape, flags)) => (names, shape, Some(flags)),
        None => (names, rest.strip_suffix(']')?, None),
    })
}

fn pair<'t>(text: &'t str, by: &str) -> Result<(&'t str, &'t str), Fault> {
    text.split_once(by).ok_or_else(|| Fault::Rules(format!("`{text}` without `{by}`")))
}

/// What commas separate, those in brackets not counted.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    let parts = text.split(move |c| {
        match c {
            '(' | '[' => depth = depth.saturating_add(1),
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// `TENSOR_NOT_REQUIRED` and its siblings (`src/llama-model-loader.h`); the bits are our own.
const OPTIONAL: i64 = 1;
const DUPLICATED: i64 = 2;
const SKIP: i64 = 4;
const RESHAPE: i64 = 8;

/// Names that every rule may use. Of a plain launch: MTP tensors are skipped, and looked at all the same.
const CONSTANTS: [(&str, i64); 5] =
    [("optional", OPTIONAL), ("duplicated", DUPLICATED), ("skip", SKIP), ("reshape", RESHAPE), ("load_mtp", 0)];

/// The length of per-layer arrays.
const MAX_LAYERS: usize = MAX_BLOCKS as usize;

/// The rules walked over a model, as llama.cpp's loader walks its code: what is known so far.
struct Walk<'a> {
    model: &'a Model,
    rules: &'a Rules,
    tensors: HashMap<&'a str, &'a Tensor>,
    /// Names of open blocks of lines, the innermost last.
    locals: Vec<(&'a str, i64)>,
    fields: HashMap<&'a str, i64>,
    arrays: HashMap<&'a str, Vec<i64>>,
    /// Tensors that llama.cpp has made and uses.
    made: HashSet<String>,
    /// Tensors of the file that it has looked at.
    seen: HashSet<&'a str>,
    created: usize,
    /// Wrong keys are noted here and passed over; without it, they end the walk.
    noted: Option<Vec<Fault>>,
}

impl<'a> Walk<'a> {
    fn new(model: &'a Model, rules: &'a Rules) -> Self {
        Self {
            model,
            rules,
            tensors: model.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
            locals: Vec::new(),
            fields: HashMap::new(),
            arrays: HashMap::new(),
            made: HashSet::new(),
            seen: HashSet::new(),
            created: 0,
            noted: None,
        }
    }

    /// What the keys say: all of it in a file that llama.cpp loads, else as far as it can be read, and what is wrong with it.
    fn read(mut self) -> (HParams, ContextHParams, Vec<Fault>) {
        self.noted = Some(Vec::new());
        let walked = self.block(&self.rules.keys);
        let mut faults = self.noted.take().unwrap_or_default();
        // Numbers that are refused after a wrong key may be so for want of it.
        if let Err(fault) = walked
            && faults.is_empty()
        {
            faults.push(fault);
        }
        let narrow = |n: i64| u32::try_from(n.max(0)).unwrap_or(u32::MAX);
        let field = |name: &str| self.field(name).map_or(0, narrow);
        // No value: past 64 bits. `Cache::tensors` refuses rows that long.
        let wide = |name: &str| self.at(name, 0).map_or(u64::MAX, |n| u64::try_from(n).unwrap_or(0));
        let block_count = field("n_block");
        let n_layer_all = if block_count == 0 { 0 } else { field("n_layer_all").min(MAX_BLOCKS) };
        let layer = |il: u32| {
            let at = |name: &str| self.at(name, il.into()).map_or(0, narrow);
            LayerHParams {
                n_head: at("n_head"),
                n_head_kv: at("n_head_kv"),
                n_embd_head_k: at("n_embd_head_k"),
                n_embd_head_v: at("n_embd_head_v"),
                is_swa: at("is_swa") != 0,
                is_recr: at("is_recr") != 0,
                no_ffn: at("n_ff") == 0,
                is_indexer_full: at("is_indexer_full") != 0,
                compress_ratio: at("compress_ratio"),
                is_ple: at("is_ple") != 0,
            }
        };
        let context = ContextHParams {
            layers: (0..n_layer_all).map(layer).collect(),
            n_layer: n_layer_all.saturating_sub(field("n_layer_nextn")),
            has_router_layer: field("has_router_layer") != 0,
            swa: (field("swa_type") != 0).then(|| Swa { n_swa: field("n_swa"), chunked: field("swa_type") == 2 }),
            is_mla: field("is_mla") != 0,
            n_layer_kv_from_start: self.field("n_layer_kv_from_start").and_then(|n| u32::try_from(n).ok()),
            n_layer_dense_lead: field("n_layer_dense_lead"),
            indexer_head_size: field("indexer_head_size"),
            indexer_top_k: field("indexer_top_k"),
            indexer_rows: field("indexer_rows"),
            n_embd_r: wide("n_embd_r"),
            n_embd_s: wide("n_embd_s"),
            ple_conv_state: wide("ple_conv_state"),
        };
        let used = |il: u32| self.at("n_expert_used", il.into()).map_or(0, narrow);
        let n_tokens = match self.model.hparams.metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Counted { len }) => u32::try_from(*len).ok(),
            Some(Value::Array(values)) => u32::try_from(values.len()).ok(),
            _ => None,
        };
        let hparams = HParams {
            block_count,
            nextn_predict_layers: field("n_nextn"),
            context_length: field("n_ctx_train"),
            embedding_length: field("n_embd"),
            vocab_size: n_tokens.unwrap_or_else(|| self.model.hparams.u32_or_0("vocab_size")),
            expert_count: field("n_expert"),
            expert_used_count: (0..block_count).map(used).collect(),
            non_causal: field("causal") == 0,
            ..self.model.hparams.clone()
        };
        (hparams, context, faults)
    }

    fn run(mut self) -> Result<(), Fault> {
        let rules = self.rules;
        self.block(&rules.keys)?;
        self.block(&rules.tensors)?;
        let (expected, created) = (self.model.tensors.len(), self.created);
        if created > expected {
            let message = format!("too many tensors created; expected {expected}, got {created}");
            return Err(Fault::UnusedTensor(message));
        }
        match self.model.tensors.iter().find(|tensor| !self.seen.contains(tensor.name.as_str())) {
            Some(Tensor { name, .. }) if created < expected => Err(Fault::UnusedTensor(format!(
                "wrong number of tensors; expected {expected}, got {created}: {} has no tensor '{name}'",
                self.model.architecture
            ))),
            _ => self.block(&rules.graph),
        }
    }

    /// Walks lines and forgets their names.
    fn block(&mut self, mut lines: &'a [Text]) -> Result<(), Fault> {
        let open = self.locals.len();
        // Whether a branch of the last `if` was walked.
        let mut walked = false;
        while let Some(((depth, text), after)) = lines.split_first() {
            let below = after.iter().position(|(other, _)| other <= depth).unwrap_or(after.len());
            let (below, after) = after.split_at(below);
            lines = after;
            let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
            match word {
                "if" => walked = self.branch(Some(rest), below)?,
                "else" => walked = walked || self.branch(rest.strip_prefix("if "), below)?,
                "for" => {
                    let (name, range) = pair(rest, " in ")?;
                    let (from, to) = pair(range, "..")?;
                    for value in self.value(from)?..self.value(to)? {
                        self.locals.push((name, value));
                        self.block(below)?;
                        self.locals.pop();
                    }
                }
                _ => self.line(text, word, rest)?,
            }
        }
        self.locals.truncate(open);
        Ok(())
    }

    /// Walks lines if the condition holds; whether it did.
    fn branch(&mut self, condition: Option<&'a str>, lines: &'a [Text]) -> Result<bool, Fault> {
        let holds = condition.map_or(Ok(true), |condition| Ok(self.value(condition)? != 0))?;
        if holds {
            self.block(lines)?;
        }
        Ok(holds)
    }

    fn line(&mut self, text: &'a str, word: &str, rest: &'a str) -> Result<(), Fault> {
        match word {
            "let" => {
                let (name, expr) = pair(rest, " = ")?;
                self.locals.push((name, self.value(expr)?));
            }
            "set" | "fill" => {
                let (name, expr) = pair(rest, " = ")?;
                let value = self.value(expr)?;
                match name.split_once('[') {
                    None if word == "fill" => self.array(name).fill(value),
                    None => self.set(name, value),
                    Some((name, index)) => {
                        let index = self.value(index.trim_end_matches(']'))?;
                        let index = usize::try_from(index).unwrap_or(MAX_LAYERS);
                        // llama.cpp would write past its array; its own bounds come before.
                        let beyond = || Fault::BadKey(format!("`{name}` has {MAX_LAYERS} layers at most"));
                        *self.array(name).get_mut(index).ok_or_else(beyond)? = value;
                    }
                }
            }
            "copy" => {
                let (from, to) = pair(rest, " -> ")?;
                let values = self.array(from).clone();
                self.arrays.insert(to, values);
            }
            // A layer that has another's tensors.
            "alias" => {
                let (to, from) = pair(rest, " = ")?;
                let (to, from) = (format!("blk.{}.", self.value(to)?), format!("blk.{}.", self.value(from)?));
                let theirs = self.made.iter().filter_map(|name| Some(format!("{to}{}", name.strip_prefix(&from)?)));
                let theirs: Vec<String> = theirs.collect();
                self.made.extend(theirs);
            }
            // Tensors that the loader takes as optional and the graph reads.
            "need" => {
                let mut names = rest.split(", ").map(|name| self.tensor_name(name));
                if let Some(tensor) = names.find(|name| !self.made.contains(name)) {
                    return Err(Fault::MissingTensor { tensor });
                }
            }
            "assert" if self.value(rest)? == 0 => {
                return Err(Fault::BadKey(format!("llama.cpp wants {rest}{}", self.numbers(rest)?)));
            }
            "assert" => {}
            "refuse" => {
                let (condition, message) = pair(rest, ": ")?;
                if self.value(condition)? != 0 {
                    return Err(Fault::BadKey(format!("{message}{}", self.numbers(condition)?)));
                }
            }
            _ => match tensors(text) {
                Some((names, shape, flags)) => {
                    let shape = split(shape).map(|dim| self.value(dim)).collect::<Result<Vec<i64>, Fault>>()?;
                    let flags = flags.map_or(Ok(0), |flags| self.value(flags))?;
                    for name in names.split(", ") {
                        let optional = if name.ends_with('?') { OPTIONAL } else { 0 };
                        self.create(name.trim_end_matches('?'), &shape, flags | optional)?;
                    }
                }
                None => {
                    let unknown = || Fault::Rules(format!("`{text}` is neither a key nor a tensor"));
                    let (ty, count, keys, into) = key(text).ok_or_else(unknown)?;
                    for key in keys.split(", ") {
                        if let Err(fault) = self.key(ty, count, key, into) {
                            self.noted.as_mut().ok_or_else(|| fault.clone())?.push(fault);
                        }
                    }
                }
            },
        }
        Ok(())
    }

    fn value(&self, text: &str) -> Result<i64, Fault> {
        self.value_of(&*self.rules.parsed(text)?)
    }

    fn value_of(&self, expr: &Expr) -> Result<i64, Fault> {
        // A division by zero ends llama.cpp; a layer that is not there, too.
        expr.value(&|term| self.term(term, None)).map_err(Fault::BadKey)
    }

    /// The numbers of a condition, for people.
    fn numbers(&self, condition: &str) -> Result<String, Fault> {
        let known = |part: &Expr| {
            let name = match part {
                Expr::At(name, index) => format!("{name}[{}]", self.value_of(index).ok()?),
                Expr::Name(name) => name.clone(),
                _ => return None,
            };
            Some(format!("{name} = {}", self.value_of(part).ok()?))
        };
        let numbers: Vec<String> = self.rules.parsed(condition)?.names().into_iter().filter_map(known).collect();
        Ok(if numbers.is_empty() { String::new() } else { format!(" ({})", numbers.join(", ")) })
    }

    /// Gives a name of an open block, else a field, its value.
    fn set(&mut self, name: &'a str, value: i64) {
        match self.locals.iter_mut().rfind(|(local, _)| *local == name) {
            Some((_, slot)) => *slot = value,
            None => {
                self.fields.insert(name, value);
            }
        }
    }

    fn array(&mut self, name: &'a str) -> &mut Vec<i64> {
        // `deepstack_mapping_arr` alone does not start with zeros (`load_hparams`).
        self.arrays.entry(name).or_insert_with(|| vec![if name == "deepstack_mapping" { -1 } else { 0 }; MAX_LAYERS])
    }

    fn full(&self, key: &str) -> String {
        let is_full = key.starts_with("tokenizer.") || key.starts_with("general.");
        if is_full { key.to_string() } else { format!("{}.{key}", self.model.architecture) }
    }

    /// `get_key`; with `[n]` as `count` `get_key_or_arr`, of one for all or an array of exactly so many; with `[]` `get_arr`.
    fn key(&mut self, ty: &str, count: &str, key: &str, into: Option<&'a str>) -> Result<(), Fault> {
        let key = self.full(key);
        let model = self.model;
        let missing = || if count.starts_with('?') { Ok(()) } else { Err(Fault::MissingKey { key: key.clone() }) };
        let Some(value) = model.hparams.metadata.get(&key) else { return missing() };
        let wrong = || Fault::BadKey(format!("key `{key}` is {}, not {}", kind(value), words(ty)));
        let count = count.trim_start_matches('?').strip_prefix('[').map(|count| count.trim_end_matches(']'));
        let length = match value {
            Value::Array(values) => Some(values.len() as u64),
            // A long text is counted too, but no array is read where texts stand.
            Value::Counted { len } if ty != "str" || count == Some("") => Some(*len),
            _ => None,
        };
        let one = match (count, length) {
            _ if ty == "count" => length.and_then(|length| i64::try_from(length).ok()),
            (Some(""), None) => return missing(),
            (None, Some(_)) => None,
            (_, None) => number(ty, value),
            (Some(count), Some(found)) => {
                if !count.is_empty() {
                    let expected = self.value(count)?;
                    if i64::try_from(found) != Ok(expected) {
                        return Err(Fault::BadKey(format!("key `{key}` has {found} values, {expected} expected")));
                    }
                }
                let Value::Array(values) = value else { return Ok(()) };
                let numbers = values.iter().map(|value| element(ty, value)).collect::<Option<Vec<i64>>>();
                self.store(into, numbers.ok_or_else(wrong)?.into_iter());
                return Ok(());
            }
        };
        let one = one.ok_or_else(wrong)?;
        match (count, into) {
            (Some(count), _) => {
                let count = usize::try_from(self.value(count)?).unwrap_or(0);
                self.store(into, std::iter::repeat_n(one, count));
            }
            (None, Some(name)) => self.set(name, one),
            (None, None) => {}
        }
        Ok(())
    }

    fn store(&mut self, into: Option<&'a str>, values: impl Iterator<Item = i64>) {
        if let Some(name) = into {
            self.array(name).iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
        }
    }

    /// The full name of a tensor: a dot in front is the block `i`.
    fn tensor_name(&self, name: &str) -> String {
        match name.strip_prefix('.') {
            Some(suffix) => format!("blk.{}.{suffix}", self.term(Term::Name("i"), None).unwrap_or(-1)),
            None => name.to_string(),
        }
    }

    /// `create_tensor` and `check_tensor_dims` (`src/llama-model-loader.cpp`).
    fn create(&mut self, name: &str, shape: &[i64], flags: i64) -> Result<(), Fault> {
        let name = self.tensor_name(name);
        let Some(tensor) = self.tensors.get(name.as_str()).copied() else {
            return if flags & OPTIONAL == 0 { Err(Fault::MissingTensor { tensor: name }) } else { Ok(()) };
        };
        let found = tensor.shape.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        let product = |dims: &[i64]| dims.iter().try_fold(1_i64, |all, n| all.checked_mul(*n));
        let fits = if flags & RESHAPE == 0 {
            found.iter().enumerate().all(|(i, n)| *n == shape.get(i).copied().unwrap_or(1))
        } else {
            product(&found) == product(shape)
        };
        if !fits {
            let dims = found.iter().rposition(|n| *n != 1).map_or(1, |last| last.saturating_add(1)).max(shape.len());
            let found = found.get(..dims).unwrap_or(&found);
            let message = format!("tensor '{name}' has wrong shape; expected {shape:?}, got {found:?}");
            return Err(Fault::WrongShape(message));
        }
        self.seen.insert(&tensor.name);
        if flags & SKIP != 0 || flags & DUPLICATED == 0 {
            self.created = self.created.saturating_add(1);
        }
        if flags & SKIP == 0 {
            self.made.insert(name);
        }
        Ok(())
    }

    /// A field, without the names of blocks of lines. What no key has set is 0 (`src/llama-hparams.h`).
    fn field(&self, name: &str) -> Option<i64> {
        let constant = || CONSTANTS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        self.fields.get(name).copied().or_else(constant).or_else(|| self.at(name, 0)).or(Some(0))
    }

    /// In a definition of `layer`, names are fields and `i` is the layer.
    fn term(&self, term: Term<'_>, layer: Option<i64>) -> Option<i64> {
        match (term, layer) {
            (Term::Name("i"), Some(layer)) => Some(layer),
            (Term::Name(name), None) => {
                let local = self.locals.iter().rfind(|(local, _)| *local == name);
                local.map(|(_, value)| *value).or_else(|| self.field(name))
            }
            (Term::Name(name), Some(_)) => self.field(name),
            (Term::At(name, index), _) => self.at(name, index),
            (Term::Ask(question, words), _) => self.ask(question, words),
        }
    }

    fn at(&self, name: &str, index: i64) -> Option<i64> {
        let place = usize::try_from(index).ok().filter(|place| *place < MAX_LAYERS)?;
        if let Some(values) = self.arrays.get(name) {
            return values.get(place).copied();
        }
        match self.rules.defs.get(name) {
            Some(expr) => expr.value(&|term| self.term(term, Some(index))).ok(),
            None => Some(0),
        }
    }

    fn ask(&self, question: &str, words: &str) -> Option<i64> {
        let tensor = || self.tensors.get(self.tensor_name(words).as_str()).copied();
        let key = |key: &str| self.model.hparams.metadata.get(&self.full(key));
        let values = self.arrays.get(words);
        let yes: bool = match question {
            "is" => self.model.architecture == words,
            "has" => tensor().is_some(),
            "made" => self.made.contains(&self.tensor_name(words)),
            "nvfp4" => self.made.contains(words) && tensor().is_some_and(|tensor| tensor.ty.name == "nvfp4"),
            "width" => return i64::try_from(tensor()?.shape[0]).ok(),
            "rows" => return i64::try_from(tensor()?.shape[1]).ok(),
            "array" => matches!(key(words), Some(Value::Array(_) | Value::Counted { .. })),
            "given" => key(words).is_some(),
            "equals" => {
                let (name, text) = words.split_once('|')?;
                matches!(key(name), Some(Value::String(found)) if found == text)
            }
            "any" => {
                let layers = usize::try_from(self.field("n_layer_all")?).ok()?;
                values.is_some_and(|values| values.iter().take(layers).any(|value| *value != 0))
            }
            "highest" => return values.map_or(Some(0), |values| values.iter().copied().max()),
            "distinct" | "distinct_positive" => {
                let least = i64::from(question != "distinct");
                let values: HashSet<&i64> = values?.iter().filter(|value| **value >= least).collect();
                return i64::try_from(values.len()).ok();
            }
            _ => return None,
        };
        Some(yes.into())
    }
}

/// The choices of a `one-of(a|b)`.
fn choices(ty: &str) -> Option<std::str::Split<'_, char>> {
    Some(ty.strip_prefix("one-of(")?.strip_suffix(')')?.split('|'))
}

/// The value of a scalar key; what is not a number of that type is `None`. Fractions are rounded away from 0: only their sign
/// is asked.
fn number(ty: &str, value: &Value) -> Option<i64> {
    match (ty, value) {
        ("u32", Value::U64(n)) => u32::try_from(*n).ok().map(i64::from),
        ("u64", Value::U64(n)) => i64::try_from(*n).ok(),
        ("i32", Value::I64(n)) => Some(*n),
        ("bool", Value::Bool(yes)) => Some((*yes).into()),
        ("f32", Value::F64(x)) => Some(i64::from(*x > 0.0).wrapping_sub(i64::from(*x < 0.0))),
        ("str", Value::String(_) | Value::Counted { .. }) => Some(0),
        (_, Value::String(text)) => i64::try_from(choices(ty)?.position(|word| word == text)?).ok(),
        _ => None,
    }
}

/// The value of an array's element: 32-bit integers of either sign, and flags among integers (`get_arr`).
fn element(ty: &str, value: &Value) -> Option<i64> {
    match (ty, value) {
        ("u32" | "i32", Value::I64(n)) => Some(*n),
        ("i32", Value::U64(n)) => i64::try_from(*n).ok(),
        ("u32" | "i32", Value::Bool(yes)) => Some((*yes).into()),
        _ => number(ty, value),
    }
}

/// What a key has to be, in words.
fn words(ty: &str) -> String {
    match choices(ty) {
        Some(words) if words.clone().count() > 16 => "one that llama.cpp b11434 knows".to_string(),
        Some(words) => format!("one of {}", words.collect::<Vec<_>>().join(", ")),
        None => TYPES.iter().find(|(name, _)| *name == ty).map_or(ty, |(_, words)| words).to_string(),
    }
}

/// What a value is, in words.
fn kind(value: &Value) -> String {
    match value {
        Value::U64(n) => n.to_string(),
        Value::I64(n) => format!("the signed number {n}"),
        Value::F64(x) => format!("the fraction {x}"),
        Value::Bool(_) => "a boolean".to_string(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(values) => format!("an array of {}", values.len()),
        Value::Counted { len } => format!("an array or text of {len}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The name that a line gives a value, to a block of lines alone or to all, and the expressions that it reads.
    fn names(text: &str) -> (Option<&str>, Option<&str>, Vec<&str>) {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let pair = |by: &str| rest.split_once(by).unwrap_or_else(|| panic!("{text}"));
        match word {
            "let" => (Some(pair(" = ").0), None, vec![pair(" = ").1]),
            "set" | "fill" => {
                let (name, expr) = pair(" = ");
                let (name, index) = name.trim_end_matches(']').split_once('[').unwrap_or((name, "0"));
                (None, Some(name), vec![index, expr])
            }
            "copy" => (None, Some(pair(" -> ").1), vec![]),
            "alias" => (None, None, vec![pair(" = ").0, pair(" = ").1]),
            "need" => (None, None, vec![]),
            "assert" | "if" => (None, None, vec![rest]),
            "else" => (None, None, rest.strip_prefix("if ").into_iter().collect()),
            "refuse" => (None, None, vec![pair(": ").0]),
            "for" => (Some(pair(" in ").0), None, pair(" in ").1.split("..").collect()),
            _ => match key(text) {
                Some((_, count, _, into)) => {
                    (None, into, count.split(['?', '[', ']']).filter(|count| !count.is_empty()).collect())
                }
                None => {
                    let (_, shape, flags) = tensors(text).unwrap_or_else(|| panic!("{text}"));
                    (None, None, split(shape).chain(flags).collect())
                }
            },
        }
    }

    #[test]
    fn every_file_is_read_and_every_name_has_a_value() {
        let rules = |arch: &Arch| Rules::of(arch.name).unwrap_or_else(|error| panic!("{}: {error}", arch.name));
        let all: Vec<_> = Arch::ALL.iter().map(|arch| (arch.name, rules(arch))).collect();
        let mut given: BTreeSet<&str> = CONSTANTS.iter().map(|(name, _)| *name).collect();
        // Fields that some architectures alone set are 0 elsewhere.
        let mut sections = Vec::new();
        for (architecture, rules) in &all {
            given.extend(rules.defs.keys().map(String::as_str));
            for lines in [&rules.keys, &rules.tensors, &rules.graph] {
                let (mut local, mut read) = (BTreeSet::new(), BTreeSet::new());
                for (name, field, exprs) in lines.iter().map(|(_, text)| names(text)) {
                    local.extend(name);
                    given.extend(field);
                    let exprs = exprs.into_iter().map(|expr| rules.parsed(expr).unwrap());
                    read.extend(exprs.flat_map(|expr| expr.names().into_iter().cloned().collect::<Vec<_>>()).map(
                        |part| match part {
                            Expr::Name(name) | Expr::At(name, _) => name,
                            other => panic!("{other:?} is not a name"),
                        },
                    ));
                }
                sections.push((architecture, local, read));
            }
        }
        for (architecture, local, read) in sections {
            let has_value = |name: &&String| local.contains(name.as_str()) || given.contains(name.as_str());
            let unknown: Vec<_> = read.iter().filter(|name| !has_value(name)).collect();
            assert!(unknown.is_empty(), "{architecture}: {unknown:?}");
        }
    }
}
