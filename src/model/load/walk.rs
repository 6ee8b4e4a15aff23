//! The rules of an architecture walked over a model, as llama.cpp's loader walks its code.

use std::collections::{HashMap, HashSet};

use super::Fault;
use super::rules::{Line, Many, Rules, Ty};
use crate::expression::{Expr, Values};
use crate::gguf::Value;
use crate::hparams::{HParams, MAX_BLOCKS};
use crate::model::context::{ContextHParams, LayerHParams, Swa};
use crate::model::{Model, Tensor};

/// `TENSOR_NOT_REQUIRED` and its siblings (`src/llama-model-loader.h`); the bits are our own.
const OPTIONAL: i64 = 1;
const DUPLICATED: i64 = 2;
const SKIP: i64 = 4;
const RESHAPE: i64 = 8;

/// The length of per-layer arrays.
const MAX_LAYERS: usize = MAX_BLOCKS as usize;

/// A walk: what is known so far.
pub(super) struct Walk<'a> {
    model: &'a Model,
    rules: &'a Rules,
    tensors: HashMap<&'a str, &'a Tensor>,
    /// Names of blocks of lines, the innermost last.
    scopes: Vec<HashMap<&'a str, i64>>,
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
    pub(super) fn new(model: &'a Model, rules: &'a Rules) -> Self {
        Self {
            noted: None,
            model,
            rules,
            tensors: model.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect(),
            scopes: vec![HashMap::new()],
            fields: HashMap::new(),
            arrays: HashMap::new(),
            made: HashSet::new(),
            seen: HashSet::new(),
            created: 0,
        }
    }

    /// What the keys say: all of it in a file that llama.cpp loads, else as far as it can be read, and what is wrong with it.
    pub(super) fn read(mut self) -> (HParams, ContextHParams, Vec<Fault>) {
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
        let n_layer = n_layer_all.saturating_sub(field("n_layer_nextn"));
        let context = ContextHParams {
            layers: (0..n_layer_all).map(layer).collect(),
            n_layer,
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
        let metadata = &self.model.metadata;
        let n_tokens = match metadata.get("tokenizer.ggml.tokens") {
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
            expert_used_count: (0..block_count)
                .map(|il| self.at("n_expert_used", il.into()).map_or(0, narrow))
                .collect(),
            ..self.model.hparams.clone()
        };
        (hparams, context, faults)
    }

    pub(super) fn run(mut self) -> Result<(), Fault> {
        let rules = self.rules;
        self.block(&rules.keys)?;
        self.block(&rules.tensors)?;
        let expected = self.model.tensors.len();
        let created = self.created;
        if created > expected {
            return Err(Fault::TooManyTensors { expected, created });
        }
        match self.model.tensors.iter().find(|tensor| !self.seen.contains(tensor.name.as_str())) {
            Some(tensor) if created < expected => Err(Fault::UnusedTensor {
                tensor: tensor.name.clone(),
                architecture: self.model.architecture.clone(),
                expected,
                created,
            }),
            _ => self.block(&rules.graph),
        }
    }

    fn block(&mut self, lines: &'a [Line]) -> Result<(), Fault> {
        self.scopes.push(HashMap::new());
        let walked = lines.iter().try_for_each(|line| self.line(line));
        self.scopes.pop();
        walked
    }

    fn line(&mut self, line: &'a Line) -> Result<(), Fault> {
        match line {
            Line::Key { ty, many, optional, keys, into } => {
                keys.iter().try_for_each(|key| match self.key(ty, many, *optional, key, into.as_deref()) {
                    Err(fault) => self.noted.as_mut().map(|noted| noted.push(fault.clone())).ok_or(fault),
                    Ok(()) => Ok(()),
                })
            }
            Line::Let(name, expr) => {
                let value = self.value(expr)?;
                self.declare(name, value);
                Ok(())
            }
            Line::Set(name, index, expr) => {
                let value = self.value(expr)?;
                let Some(index) = index else {
                    self.set(name, value);
                    return Ok(());
                };
                let index = usize::try_from(self.value(index)?).unwrap_or(MAX_LAYERS);
                let slot = self.array(name).get_mut(index);
                // llama.cpp would write past its array; its own bounds come before.
                slot.map(|slot| *slot = value).ok_or_else(|| beyond(name))
            }
            Line::Fill(name, expr) => {
                let value = self.value(expr)?;
                self.array(name).fill(value);
                Ok(())
            }
            Line::Copy(from, to) => {
                let values = self.array(from).clone();
                self.arrays.insert(to, values);
                Ok(())
            }
            Line::Alias(layer, other) => {
                let (to, from) = (format!("blk.{}.", self.value(layer)?), format!("blk.{}.", self.value(other)?));
                let theirs = self.made.iter().filter_map(|name| Some(format!("{to}{}", name.strip_prefix(&from)?)));
                let theirs: Vec<String> = theirs.collect();
                self.made.extend(theirs);
                Ok(())
            }
            Line::Need(names) => names.iter().try_for_each(|name| {
                let tensor = self.tensor_name(name);
                if self.made.contains(&tensor) { Ok(()) } else { Err(Fault::MissingTensor { tensor }) }
            }),
            Line::Assert(expr, text) => {
                if self.value(expr)? != 0 {
                    return Ok(());
                }
                Err(self.numbers(format!("llama.cpp wants {text}"), expr))
            }
            Line::Refuse(expr, message) => {
                if self.value(expr)? == 0 {
                    return Ok(());
                }
                Err(self.numbers(message.clone(), expr))
            }
            Line::If(condition, lines, otherwise) => {
                let lines = if self.value(condition)? != 0 { lines } else { otherwise };
                self.block(lines)
            }
            Line::For(name, from, to, lines) => {
                for value in self.value(from)?..self.value(to)? {
                    self.scopes.push(HashMap::from([(name.as_str(), value)]));
                    let walked = self.block(lines);
                    self.scopes.pop();
                    walked?;
                }
                Ok(())
            }
            Line::Tensors { names, shape, flags } => {
                let shape = shape.iter().map(|dim| self.value(dim)).collect::<Result<Vec<i64>, Fault>>()?;
                let flags = flags.as_ref().map_or(Ok(0), |flags| self.value(flags))?;
                names.iter().try_for_each(|(name, optional)| {
                    self.create(name, &shape, flags | if *optional { OPTIONAL } else { 0 })
                })
            }
        }
    }

    fn value(&self, expr: &Expr) -> Result<i64, Fault> {
        // A division by zero ends llama.cpp; a layer that is not there, too.
        expr.value(self).map_err(|problem| Fault::Numbers { rule: problem, numbers: Vec::new() })
    }

    fn numbers(&self, rule: String, expr: &Expr) -> Fault {
        let known = |part: &Expr| {
            let name = match part {
                Expr::At(name, index) => format!("{name}[{}]", index.value(self).ok()?),
                Expr::Name(name) => name.clone(),
                _ => return None,
            };
            Some((name, part.value(self).ok()?))
        };
        Fault::Numbers { rule, numbers: expr.names().into_iter().filter_map(known).collect() }
    }

    fn declare(&mut self, name: &'a str, value: i64) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, value);
        }
    }

    /// Gives a name of an open block, else a field, its value.
    fn set(&mut self, name: &'a str, value: i64) {
        let local = self.scopes.iter_mut().rev().find_map(|scope| scope.get_mut(name));
        match local {
            Some(slot) => *slot = value,
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
        if key.starts_with("tokenizer.") || key.starts_with("general.") {
            return key.to_string();
        }
        format!("{}.{key}", self.model.architecture)
    }

    /// `get_key`, `get_key_or_arr`, `get_arr`, `get_arr_n`.
    fn key(&mut self, ty: &Ty, many: &Many, optional: bool, key: &str, into: Option<&'a str>) -> Result<(), Fault> {
        let key = self.full(key);
        let model = self.model;
        let missing = || if optional { Ok(()) } else { Err(Fault::MissingKey { key: key.clone() }) };
        let Some(value) = model.metadata.get(&key) else { return missing() };
        let wrong = || Fault::KeyType { key: key.clone(), expected: words(ty), found: kind(value) };
        let length = match value {
            Value::Array(values) => Some(values.len() as u64),
            // A long text is counted too, but no array is read where texts stand.
            Value::Counted { len } if *ty != Ty::Str || *many == Many::Array => Some(*len),
            _ => None,
        };
        if *ty == Ty::Count {
            let length = length.ok_or_else(wrong)?;
            self.store(into, i64::try_from(length).unwrap_or(i64::MAX));
            return Ok(());
        }
        match (many, length) {
            (Many::One, Some(_)) => Err(wrong()),
            (Many::One, None) => {
                let number = number(ty, value).ok_or_else(wrong)?;
                self.store(into, number);
                Ok(())
            }
            (Many::Array, None) => missing(),
            (Many::Exactly(count), None) => {
                let (count, number) = (self.value(count)?, number(ty, value).ok_or_else(wrong)?);
                self.store_all(into, std::iter::repeat_n(number, usize::try_from(count).unwrap_or(0)));
                Ok(())
            }
            (_, Some(found)) => {
                if let Many::Exactly(count) = many {
                    let expected = self.value(count)?;
                    if i64::try_from(found) != Ok(expected) {
                        return Err(Fault::KeyLength { key, expected, found });
                    }
                }
                let Value::Array(values) = value else { return Ok(()) };
                let numbers = values.iter().map(|value| element(ty, value)).collect::<Option<Vec<i64>>>();
                self.store_all(into, numbers.ok_or_else(wrong)?.into_iter());
                Ok(())
            }
        }
    }

    fn store(&mut self, into: Option<&'a str>, value: i64) {
        if let Some(name) = into {
            self.set(name, value);
        }
    }

    fn store_all(&mut self, into: Option<&'a str>, values: impl Iterator<Item = i64>) {
        if let Some(name) = into {
            self.array(name).iter_mut().zip(values).for_each(|(slot, value)| *slot = value);
        }
    }

    /// The full name of a tensor: a dot in front is the block `i`.
    fn tensor_name(&self, name: &str) -> String {
        match name.strip_prefix('.') {
            Some(suffix) => format!("blk.{}.{suffix}", self.name("i").unwrap_or(-1)),
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
            return Err(Fault::WrongShape {
                tensor: name,
                expected: shape.to_vec(),
                found: found.into_iter().take(dims).collect(),
            });
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

    /// A field, without the names of blocks of lines.
    fn field(&self, name: &str) -> Option<i64> {
        if let Some(value) = self.fields.get(name) {
            return Some(*value);
        }
        match name {
            "optional" => return Some(OPTIONAL),
            "duplicated" => return Some(DUPLICATED),
            "skip" => return Some(SKIP),
            "reshape" => return Some(RESHAPE),
            // Of a plain launch: MTP tensors are skipped, and looked at all the same.
            "load_mtp" => return Some(0),
            _ => {}
        }
        // What no key has set is 0 (`src/llama-hparams.h`).
        self.at(name, 0).or(Some(0))
    }
}

impl Values for Walk<'_> {
    fn name(&self, name: &str) -> Option<i64> {
        let local = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        local.copied().or_else(|| self.field(name))
    }

    fn at(&self, name: &str, index: i64) -> Option<i64> {
        let place = usize::try_from(index).ok().filter(|place| *place < MAX_LAYERS)?;
        if let Some(values) = self.arrays.get(name) {
            return values.get(place).copied();
        }
        match self.rules.defs.get(name) {
            Some(expr) => expr.value(&OfLayer { walk: self, index }).ok(),
            None => Some(0),
        }
    }

    fn ask(&self, question: &str, words: &str) -> Option<i64> {
        let tensor = || self.tensors.get(self.tensor_name(words).as_str()).copied();
        let yes: bool = match question {
            "is" => self.model.architecture == words,
            "has" => tensor().is_some(),
            "made" => self.made.contains(&self.tensor_name(words)),
            "nvfp4" => self.made.contains(words) && tensor().is_some_and(|tensor| tensor.ty.name == "nvfp4"),
            "rows" => return i64::try_from(tensor()?.shape[1]).ok(),
            "array" => {
                matches!(self.model.metadata.get(&self.full(words)), Some(Value::Array(_) | Value::Counted { .. }))
            }
            "given" => self.model.metadata.contains_key(&self.full(words)),
            "equals" => {
                let (key, text) = words.split_once('|')?;
                matches!(self.model.metadata.get(&self.full(key)), Some(Value::String(found)) if found == text)
            }
            "any" => {
                let layers = usize::try_from(self.field("n_layer_all")?).ok()?;
                self.arrays.get(words).is_some_and(|values| values.iter().take(layers).any(|value| *value != 0))
            }
            "highest" => return self.arrays.get(words).map_or(Some(0), |values| values.iter().copied().max()),
            "distinct" | "distinct_positive" => {
                let least = i64::from(question != "distinct");
                let values: HashSet<&i64> = self.arrays.get(words)?.iter().filter(|value| **value >= least).collect();
                return i64::try_from(values.len()).ok();
            }
            _ => return None,
        };
        Some(yes.into())
    }
}

/// A definition's names: the layer is `i`, the rest are fields.
struct OfLayer<'a> {
    walk: &'a Walk<'a>,
    index: i64,
}

impl Values for OfLayer<'_> {
    fn name(&self, name: &str) -> Option<i64> {
        if name == "i" { Some(self.index) } else { self.walk.field(name) }
    }

    fn at(&self, name: &str, index: i64) -> Option<i64> {
        self.walk.at(name, index)
    }
}

fn beyond(name: &str) -> Fault {
    Fault::Numbers { rule: format!("`{name}` has {MAX_LAYERS} layers at most"), numbers: Vec::new() }
}

/// The value of a scalar key; what is not a number of that type is `None`. Fractions are rounded away from 0: only their sign
/// is asked.
fn number(ty: &Ty, value: &Value) -> Option<i64> {
    match (ty, value) {
        (Ty::U32, Value::U64(n)) => u32::try_from(*n).ok().map(i64::from),
        (Ty::U64, Value::U64(n)) => i64::try_from(*n).ok(),
        (Ty::I32, Value::I64(n)) => Some(*n),
        (Ty::Bool, Value::Bool(yes)) => Some((*yes).into()),
        (Ty::F32, Value::F64(x)) => Some(i64::from(*x > 0.0).wrapping_sub(i64::from(*x < 0.0))),
        (Ty::Str, Value::String(_) | Value::Counted { .. }) => Some(0),
        (Ty::OneOf(words), Value::String(text)) => {
            words.iter().position(|word| word == text).and_then(|place| i64::try_from(place).ok())
        }
        _ => None,
    }
}

/// The value of an array's element: 32-bit integers of either sign, and flags among integers (`get_arr`).
fn element(ty: &Ty, value: &Value) -> Option<i64> {
    match (ty, value) {
        (Ty::U32 | Ty::I32, Value::I64(n)) => Some(*n),
        (Ty::I32, Value::U64(n)) => i64::try_from(*n).ok(),
        (Ty::U32 | Ty::I32, Value::Bool(yes)) => Some((*yes).into()),
        _ => number(ty, value),
    }
}

/// What a key has to be, in words.
fn words(ty: &Ty) -> String {
    match ty {
        Ty::U32 => "a whole number of 32 bits".to_string(),
        Ty::I32 => "a signed number of 32 bits".to_string(),
        Ty::U64 => "a whole number of 64 bits".to_string(),
        Ty::F32 => "a fraction (f32)".to_string(),
        Ty::Bool => "a boolean".to_string(),
        Ty::Str => "text".to_string(),
        Ty::Count => "an array".to_string(),
        Ty::OneOf(words) if words.len() > 16 => "one that llama.cpp b11434 knows".to_string(),
        Ty::OneOf(words) => format!("one of {}", words.join(", ")),
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
