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

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::context::{ContextHParams, LayerHParams, Swa};
use super::{Model, Tensor};
use crate::arch::Arch;
use crate::expression::{Expr, Term};
use crate::gguf::Value;
use crate::hparams::{HParams, MAX_BLOCKS};
use crate::suggest::Hint;

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

impl Hint for Fault {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let text = match self {
            Self::MissingTensor { tensor } if tensor.contains("_exps.") => {
                "its experts are missing or named otherwise; take a GGUF made by llama.cpp's convert_hf_to_gguf.py"
            }
            Self::MissingTensor { .. } | Self::WrongShape(_) => OTHER_PROGRAM,
            Self::UnusedTensor(message) if message.starts_with("wrong") => OTHER_PROGRAM,
            Self::Rules(_) => "this is a mistake of moeplan; please report it",
            _ => "convert the model again with a current llama.cpp",
        };
        Some(text.into())
    }
}

const OTHER_PROGRAM: &str = "it is incomplete, or laid out for another program (ollama makes such files); take a GGUF made by llama.cpp's convert_hf_to_gguf.py";

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

/// The rules of an architecture.
#[derive(Default)]
struct Rules {
    /// `def NAME = …` and `def NAME[i] = …`.
    defs: HashMap<String, Expr>,
    /// What is read before the tensors.
    keys: Vec<Line>,
    /// None where a file has no `tensors`: such architectures are not checked.
    tensors: Vec<Line>,
    /// What the graph asserts of the numbers.
    graph: Vec<Line>,
}

/// How many values a key has.
enum Many {
    One,
    /// One for all, or an array of exactly so many (`get_key_or_arr`).
    Exactly(Expr),
    /// An array (`get_arr`).
    Array,
}

/// What of a name gets a value.
enum Place {
    Field,
    Layer(Expr),
    EveryLayer,
}

/// One line, with the lines that belong to it.
enum Line {
    /// `ty` is one of [`TYPES`] or `one-of(a|b)`.
    Key {
        ty: String,
        many: Many,
        optional: bool,
        keys: Vec<String>,
        into: Option<String>,
    },
    Let(String, Expr),
    Set(String, Place, Expr),
    Copy(String, String),
    /// A layer that has another's tensors.
    Alias(Expr, Expr),
    /// Tensors that the loader takes as optional and the graph reads.
    Need(Vec<String>),
    Refuse(Expr, String),
    /// Conditions and their lines; the first that holds counts.
    If(Vec<(Expr, Vec<Self>)>),
    For(String, Expr, Expr, Vec<Self>),
    Tensors {
        names: Vec<(String, bool)>,
        shape: Vec<Expr>,
        flags: Option<Expr>,
    },
}

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

/// A line's depth and its text.
type Text = (usize, String);

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
                    rules.defs.insert(name.trim_end_matches("[i]").to_string(), expression(expr)?);
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
        (rules.keys, rules.tensors) = (compile(&keys, &groups)?, compile(&tensors, &groups)?);
        rules.graph = compile(&graph, &groups)?;
        Ok(rules)
    }
}

fn expression(text: &str) -> Result<Expr, String> {
    Expr::parse(text).map_err(|error| error.to_string())
}

fn compile(mut texts: &[Text], groups: &HashMap<&str, Vec<Text>>) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    while let Some(((depth, text), after)) = texts.split_first() {
        let (below, after) = after.split_at(after.iter().position(|(other, _)| other <= depth).unwrap_or(after.len()));
        texts = after;
        let below = || compile(below, groups);
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let pair = |by: &str| rest.split_once(by).ok_or_else(|| format!("`{text}` without `{by}`"));
        let set = |place: fn(&str) -> Result<(&str, Place), String>| {
            let (name, expr) = pair(" = ")?;
            let (name, place) = place(name)?;
            Ok::<_, String>(Line::Set(name.to_string(), place, expression(expr)?))
        };
        lines.push(match word {
            "use" => {
                let (name, arguments) = rest.split_once('(').unwrap_or((rest, ")"));
                let group = groups.get(name).ok_or_else(|| format!("no group `{name}`"))?;
                let arguments = split(arguments.strip_suffix(')').unwrap_or(arguments));
                let fill = |(depth, text): &Text| {
                    let mut text = text.clone();
                    for number in 1..=9_usize {
                        if !text.contains('$') {
                            break;
                        }
                        let argument = arguments.get(number.saturating_sub(1)).copied().unwrap_or("0");
                        text = text.replace(&format!("${number}"), argument);
                    }
                    (*depth, text)
                };
                lines.extend(compile(&group.iter().map(fill).collect::<Vec<Text>>(), groups)?);
                continue;
            }
            "else" => {
                let condition = rest.strip_prefix("if ").map_or(Ok(Expr::Number(1)), expression)?;
                let Some(Line::If(branches)) = lines.last_mut() else { return Err("`else` without `if`".into()) };
                branches.push((condition, below()?));
                continue;
            }
            "let" => {
                let (name, expr) = pair(" = ")?;
                Line::Let(name.to_string(), expression(expr)?)
            }
            "set" => set(|name| match name.split_once('[') {
                Some((name, index)) => Ok((name, Place::Layer(expression(index.trim_end_matches(']'))?))),
                None => Ok((name, Place::Field)),
            })?,
            "fill" => set(|name| Ok((name, Place::EveryLayer)))?,
            "copy" => {
                let (from, to) = pair(" -> ")?;
                Line::Copy(from.to_string(), to.to_string())
            }
            "alias" => {
                let (layer, other) = pair(" = ")?;
                Line::Alias(expression(layer)?, expression(other)?)
            }
            "need" => Line::Need(rest.split(", ").map(ToString::to_string).collect()),
            "assert" => Line::Refuse(Expr::Apply("not", vec![expression(rest)?]), format!("llama.cpp wants {rest}")),
            "refuse" => {
                let (condition, message) = pair(": ")?;
                Line::Refuse(expression(condition)?, message.to_string())
            }
            "if" => Line::If(vec![(expression(rest)?, below()?)]),
            "for" => {
                let (name, range) = pair(" in ")?;
                let (from, to) = range.split_once("..").ok_or_else(|| format!("`{range}` is not a range"))?;
                Line::For(name.to_string(), expression(from)?, expression(to)?, below()?)
            }
            _ => {
                let (ty, count) = word.split_at(word.find(['?', '[']).unwrap_or(word.len()));
                let is_key = TYPES.iter().any(|(name, _)| *name == ty) || ty.starts_with("one-of(");
                if is_key { key(ty, count, rest)? } else { tensors(text)? }
            }
        });
    }
    Ok(lines)
}

/// What commas separate, those in brackets not counted.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let parts = text.split(|c| {
        depth = depth.saturating_add(i32::from("([".contains(c))).saturating_sub(i32::from(")]".contains(c)));
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// `TYPE[?][COUNT] KEY, KEY [-> NAME]`.
fn key(ty: &str, count: &str, rest: &str) -> Result<Line, String> {
    let many = match count.trim_start_matches('?') {
        "" => Many::One,
        "[]" => Many::Array,
        count => Many::Exactly(expression(count.trim_matches(['[', ']']))?),
    };
    let (keys, into) = rest.split_once(" -> ").map_or((rest, None), |(keys, into)| (keys, Some(into.to_string())));
    let keys = keys.split(", ").map(ToString::to_string).collect();
    Ok(Line::Key { ty: ty.to_string(), many, optional: count.starts_with('?'), keys, into })
}

/// `NAME[?], NAME[?] [SHAPE] [| FLAGS]`.
fn tensors(text: &str) -> Result<Line, String> {
    let not_one = || format!("`{text}` is not a tensor");
    let (names, rest) = text.split_once(" [").ok_or_else(not_one)?;
    // The shape ends at its last bracket: an index has its own.
    let (shape, flags) = match rest.split_once("] | ") {
        Some((shape, flags)) => (shape, Some(expression(flags)?)),
        None => (rest.strip_suffix(']').ok_or_else(not_one)?, None),
    };
    let name = |name: &str| (name.trim_end_matches('?').to_string(), name.ends_with('?'));
    let shape = split(shape).into_iter().map(expression).collect::<Result<_, _>>()?;
    Ok(Line::Tensors { names: names.split(", ").map(name).collect(), shape, flags })
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
        let n_tokens = match self.model.metadata.get("tokenizer.ggml.tokens") {
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

    fn block(&mut self, lines: &'a [Line]) -> Result<(), Fault> {
        let open = self.locals.len();
        let walked = lines.iter().try_for_each(|line| self.line(line));
        self.locals.truncate(open);
        walked
    }

    fn line(&mut self, line: &'a Line) -> Result<(), Fault> {
        match line {
            Line::Key { ty, many, optional, keys, into } => {
                for key in keys {
                    if let Err(fault) = self.key(ty, many, *optional, key, into.as_deref()) {
                        self.noted.as_mut().ok_or_else(|| fault.clone())?.push(fault);
                    }
                }
            }
            Line::Let(name, expr) => self.locals.push((name, self.value(expr)?)),
            Line::Set(name, place, expr) => {
                let value = self.value(expr)?;
                match place {
                    Place::Field => self.set(name, value),
                    Place::EveryLayer => self.array(name).fill(value),
                    Place::Layer(index) => {
                        let index = usize::try_from(self.value(index)?).unwrap_or(MAX_LAYERS);
                        // llama.cpp would write past its array; its own bounds come before.
                        let beyond = || Fault::BadKey(format!("`{name}` has {MAX_LAYERS} layers at most"));
                        *self.array(name).get_mut(index).ok_or_else(beyond)? = value;
                    }
                }
            }
            Line::Copy(from, to) => {
                let values = self.array(from).clone();
                self.arrays.insert(to, values);
            }
            Line::Alias(layer, other) => {
                let (to, from) = (format!("blk.{}.", self.value(layer)?), format!("blk.{}.", self.value(other)?));
                let theirs = self.made.iter().filter_map(|name| Some(format!("{to}{}", name.strip_prefix(&from)?)));
                let theirs: Vec<String> = theirs.collect();
                self.made.extend(theirs);
            }
            Line::Need(names) => {
                let mut names = names.iter().map(|name| self.tensor_name(name));
                if let Some(tensor) = names.find(|name| !self.made.contains(name)) {
                    return Err(Fault::MissingTensor { tensor });
                }
            }
            Line::Refuse(expr, message) => {
                if self.value(expr)? != 0 {
                    return Err(Fault::BadKey(format!("{message}{}", self.numbers(expr))));
                }
            }
            Line::If(branches) => {
                for (condition, lines) in branches {
                    if self.value(condition)? != 0 {
                        return self.block(lines);
                    }
                }
            }
            Line::For(name, from, to, lines) => {
                for value in self.value(from)?..self.value(to)? {
                    self.locals.push((name, value));
                    self.block(lines)?;
                    self.locals.pop();
                }
            }
            Line::Tensors { names, shape, flags } => {
                let shape = shape.iter().map(|dim| self.value(dim)).collect::<Result<Vec<i64>, Fault>>()?;
                let flags = flags.as_ref().map_or(Ok(0), |flags| self.value(flags))?;
                for (name, optional) in names {
                    self.create(name, &shape, flags | if *optional { OPTIONAL } else { 0 })?;
                }
            }
        }
        Ok(())
    }

    fn value(&self, expr: &Expr) -> Result<i64, Fault> {
        // A division by zero ends llama.cpp; a layer that is not there, too.
        expr.value(&|term| self.term(term, None)).map_err(Fault::BadKey)
    }

    /// The numbers of a condition, for people.
    fn numbers(&self, expr: &Expr) -> String {
        let known = |part: &Expr| {
            let name = match part {
                Expr::At(name, index) => format!("{name}[{}]", self.value(index).ok()?),
                Expr::Name(name) => name.clone(),
                _ => return None,
            };
            Some(format!("{name} = {}", self.value(part).ok()?))
        };
        let numbers: Vec<String> = expr.names().into_iter().filter_map(known).collect();
        if numbers.is_empty() { String::new() } else { format!(" ({})", numbers.join(", ")) }
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

    /// `get_key`, `get_key_or_arr`, `get_arr`, `get_arr_n`.
    fn key(&mut self, ty: &str, many: &Many, optional: bool, key: &str, into: Option<&'a str>) -> Result<(), Fault> {
        let key = self.full(key);
        let model = self.model;
        let missing = || if optional { Ok(()) } else { Err(Fault::MissingKey { key: key.clone() }) };
        let Some(value) = model.metadata.get(&key) else { return missing() };
        let wrong = || Fault::BadKey(format!("key `{key}` is {}, not {}", kind(value), words(ty)));
        let length = match value {
            Value::Array(values) => Some(values.len() as u64),
            // A long text is counted too, but no array is read where texts stand.
            Value::Counted { len } if ty != "str" || matches!(many, Many::Array) => Some(*len),
            _ => None,
        };
        let one = match (many, length) {
            _ if ty == "count" => length.and_then(|length| i64::try_from(length).ok()),
            (Many::Array, None) => return missing(),
            (Many::One, Some(_)) => None,
            (_, None) => number(ty, value),
            (_, Some(found)) => {
                if let Many::Exactly(count) = many {
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
        match (many, into) {
            (Many::Exactly(count), _) if ty != "count" => {
                let count = usize::try_from(self.value(count)?).unwrap_or(0);
                self.store(into, std::iter::repeat_n(one, count));
            }
            (_, Some(name)) => self.set(name, one),
            (_, None) => {}
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
        let key = |key: &str| self.model.metadata.get(&self.full(key));
        let values = self.arrays.get(words);
        let yes: bool = match question {
            "is" => self.model.architecture == words,
            "has" => tensor().is_some(),
            "made" => self.made.contains(&self.tensor_name(words)),
            "nvfp4" => self.made.contains(words) && tensor().is_some_and(|tensor| tensor.ty.name == "nvfp4"),
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

    /// The names that lines give a value, those of their blocks, and those that they read.
    fn names<'a>(lines: &'a [Line], sets: &mut [BTreeSet<&'a str>; 3]) {
        for line in lines {
            let (given, exprs): (_, Vec<&Expr>) = match line {
                Line::Key { many: Many::Exactly(count), into, .. } => (into.as_ref(), vec![count]),
                Line::Key { into, .. } => (into.as_ref(), vec![]),
                Line::Set(name, Place::Layer(index), expr) => (Some(name), vec![index, expr]),
                Line::Set(name, _, expr) => (Some(name), vec![expr]),
                Line::Copy(_, to) => (Some(to), vec![]),
                Line::Alias(a, b) | Line::For(_, a, b, _) => (None, vec![a, b]),
                Line::Need(_) => (None, vec![]),
                Line::Let(_, expr) | Line::Refuse(expr, _) => (None, vec![expr]),
                Line::If(branches) => (None, branches.iter().map(|(condition, _)| condition).collect()),
                Line::Tensors { shape, flags, .. } => (None, shape.iter().chain(flags).collect()),
            };
            sets[0].extend(given.map(String::as_str));
            sets[2].extend(exprs.into_iter().flat_map(Expr::names).map(|part| match part {
                Expr::Name(name) | Expr::At(name, _) => name.as_str(),
                other => panic!("{other:?} is not a name"),
            }));
            match line {
                Line::If(branches) => branches.iter().for_each(|(_, lines)| names(lines, sets)),
                Line::For(name, .., lines) => {
                    sets[1].insert(name);
                    names(lines, sets);
                }
                Line::Let(name, _) => {
                    sets[1].insert(name);
                }
                _ => {}
            }
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
                let mut sets = <[BTreeSet<&str>; 3]>::default();
                names(lines, &mut sets);
                let [more, local, read] = sets;
                given.extend(more);
                sections.push((architecture, local, read));
            }
        }
        for (architecture, local, read) in sections {
            let unknown: Vec<_> = read.iter().filter(|n| !local.contains(*n) && !given.contains(*n)).collect();
            assert!(unknown.is_empty(), "{architecture}: {unknown:?}");
        }
    }
}
