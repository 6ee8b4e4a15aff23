//! Decisions drawn from a fuzzer's bytes: a number after another, text between separators.

use std::collections::BTreeMap;
use std::path::PathBuf;

use moeplan::bytes::Bytes;
use moeplan::checkup::{self, Options};
use moeplan::gguf::{self, ByteOrder, Gguf, GgmlType, Header, ModelFile, TensorInfo, Value, ggml_type};
use moeplan::machine::{Backend, Device, Host, Machine};
use moeplan::model::Model;
use moeplan::plan::{self, Checked};
use moeplan::report::page::Document;
use moeplan::report::{html, markdown, text};
use moeplan::run::parse;
use moeplan::synth::{self, Wish};

/// The bytes that are left to decide with; all zero when there are none.
pub struct Draw<'a>(pub &'a [u8]);

impl Draw<'_> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u8) -> u8 {
        self.byte() % limit.max(1)
    }

    /// A number of any size, small ones more often.
    pub fn number(&mut self) -> u64 {
        let width = self.below(10);
        match width {
            0..4 => u64::from(self.byte()),
            4 => u64::MAX - u64::from(self.byte()),
            5 => 1_u64 << (self.byte() % 64),
            _ => (0..width - 2).fold(0, |number, _| number << 8 | u64::from(self.byte())),
        }
    }

    /// A text of up to 40 bytes.
    pub fn text(&mut self) -> String {
        let length = usize::from(self.below(40)).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }

    /// A value of any kind.
    pub fn value(&mut self) -> Value {
        match self.below(8) {
            0..3 => Value::U64(self.number()),
            3 => Value::I64(self.number().cast_signed()),
            4 => Value::F64(f64::from_bits(self.number())),
            5 => Value::Bool(self.byte() > 127),
            6 => Value::String(self.text()),
            _ => Value::Array((0..self.below(12)).map(|_| Value::U64(self.number())).collect()),
        }
    }

    /// A tensor, its bytes as the reader would have them.
    pub fn tensor(&mut self, name: String) -> Option<TensorInfo> {
        let ty = GgmlType::from_id(u32::from(self.below(43))).unwrap_or_else(ggml_type::f32);
        let n_dims = u32::from(self.below(4)) + 1;
        let mut shape = [1; 4];
        for (at, dimension) in shape.iter_mut().take(n_dims as usize).enumerate() {
            let number = self.number();
            *dimension = if at == 0 { (number % (1 << 40)).next_multiple_of(ty.block_size) } else { number };
        }
        let elements = shape.iter().try_fold(1_u64, |product, n| product.checked_mul(*n))?;
        let bytes = ty.row_bytes(elements.min(i64::MAX.unsigned_abs()))?;
        Some(TensorInfo { name, ty, n_dims, shape, offset: 0, shard: 0, bytes: Bytes(bytes) })
    }
}

/// A header of these keys and tensors, which follow one another as the reader demands.
pub fn header(metadata: BTreeMap<String, Value>, mut tensors: Vec<TensorInfo>) -> Option<Header> {
    let mut end = 0_u64;
    for tensor in &mut tensors {
        tensor.offset = end;
        end = tensor.bytes.0.checked_next_multiple_of(32).and_then(|bytes| end.checked_add(bytes))?;
    }
    let order = ByteOrder::Little;
    Some(Header { version: 3, byte_order: order, alignment: 32, data_offset: 4096, metadata, tensors })
}

/// A model of one file.
pub fn model(header: Header) -> Gguf {
    let file = ModelFile { path: PathBuf::from("m.gguf"), bytes: Bytes(u64::MAX), data_offset: header.data_offset };
    Gguf { files: vec![file], header }
}

/// A model that `synth` makes, of a few blocks.
pub fn made(name: &str, blocks: Option<u32>) -> Gguf {
    let folder = tempfile::tempdir().expect("a folder");
    let wish = Wish { blocks, ..Wish::default() };
    gguf::open(&synth::hole(name, &wish, folder.path()).expect("a name of synth's")).expect("a whole file")
}

/// Two cards, and a host.
pub fn machine() -> Machine {
    let devices = Device::of_budgets(Backend::Cuda, &[Bytes(24 << 30), Bytes(8 << 30)]).expect("two devices");
    Machine::new(devices, Host { ram: Some(Bytes(64 << 30)), ..Host::default() }).expect("a machine")
}

/// Its page in every format.
pub fn shown(document: &impl Document) {
    let report = document.report();
    text::report(&report, true, 80);
    for page in [markdown::report(&report), html::report(&report)] {
        assert!(!page.contains('\u{1b}'), "{page:?}");
    }
}

/// What `check` says of a llama-server with these words, in every format.
pub fn checked(model: &Model, machine: &Machine, words: &str) {
    let command = format!("llama-server -m m.gguf {words}");
    let typed: Vec<String> = command.split_whitespace().map(str::to_string).collect();
    let parsed = parse::command(&typed, &BTreeMap::new()).expect("a good command");
    let Ok(checkup) = checkup::check(model, machine, &parsed, Options::default()) else { return };
    let model = plan::summary(model, "m.gguf");
    let (name, variants, projected, mended, n_cpu_moe) = (None, Vec::new(), None, None, None);
    let (plan, no_plan) = (None, None);
    shown(&Checked { checkup, model, command, name, variants, projected, mended, n_cpu_moe, plan, no_plan });
}
