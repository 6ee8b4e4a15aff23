//! What is written is read back: every value, every tensor, both byte orders, both versions.

use std::collections::BTreeMap;

use moeplan::gguf::ggml_type::TYPES;
use moeplan::gguf::{ByteOrder, Header, Value};
use proptest::prelude::*;

use crate::support::gguf_builder::{Builder, V, type_id};

fn scalar() -> impl Strategy<Value = V> {
    prop_oneof![
        any::<u8>().prop_map(V::U8),
        any::<i8>().prop_map(V::I8),
        any::<u16>().prop_map(V::U16),
        any::<i16>().prop_map(V::I16),
        any::<u32>().prop_map(V::U32),
        any::<i32>().prop_map(V::I32),
        any::<f32>().prop_map(V::F32),
        any::<bool>().prop_map(V::Bool),
        ".{0,12}".prop_map(V::Str),
        any::<u64>().prop_map(V::U64),
        any::<i64>().prop_map(V::I64),
        any::<f64>().prop_map(V::F64),
    ]
}

/// A scalar, or an array of one scalar several times.
fn value() -> impl Strategy<Value = V> {
    prop_oneof![scalar(), (scalar(), 0_usize..20).prop_map(|(v, n)| V::Arr(type_id(&v), vec![v; n]))]
}

/// What the reader should make of `value`.
fn expected(value: &V) -> Value {
    match value {
        V::U8(v) => Value::U64((*v).into()),
        V::I8(v) => Value::I64((*v).into()),
        V::U16(v) => Value::U64((*v).into()),
        V::I16(v) => Value::I64((*v).into()),
        V::U32(v) => Value::U64((*v).into()),
        V::I32(v) => Value::I64((*v).into()),
        V::F32(v) => Value::F64((*v).into()),
        V::Bool(v) => Value::Bool(*v),
        V::Str(v) => Value::String(v.clone()),
        V::U64(v) => Value::U64(*v),
        V::I64(v) => Value::I64(*v),
        V::F64(v) => Value::F64(*v),
        V::Arr(_, elements) => Value::Array(elements.iter().map(expected).collect()),
        V::Raw(..) => panic!("not generated"),
    }
}

#[derive(Clone, Debug)]
struct Tensor {
    ty: usize,
    blocks: u64,
    rest: Vec<u64>,
}

impl Tensor {
    fn dims(&self) -> Vec<u64> {
        [&[self.blocks * TYPES[self.ty].block_size], self.rest.as_slice()].concat()
    }

    fn bytes(&self) -> u64 {
        (self.blocks * TYPES[self.ty].block_bytes + TYPES[self.ty].row_extra) * self.rest.iter().product::<u64>()
    }
}

fn tensor() -> impl Strategy<Value = Tensor> {
    (0..TYPES.len(), 0_u64..4, prop::collection::vec(0_u64..4, 0..4)).prop_map(|(ty, blocks, rest)| {
        // What rows of nothing take beside their blocks has never been written.
        let blocks = if TYPES[ty].row_extra > 0 { blocks.max(1) } else { blocks };
        Tensor { ty, blocks, rest }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        keys in prop::collection::btree_map("[a-z.]{1,16}", value(), 0..8),
        tensors in prop::collection::btree_map("[a-z.0-9]{0,63}", tensor(), 0..8),
        alignment in prop::sample::select(vec![None, Some(1_u32), Some(8), Some(64), Some(4096)]),
        big in any::<bool>(),
        version in 2_u32..=3,
    ) {
        let mut file = Builder::new().version(version).padded_to(alignment.unwrap_or(32).into());
        if big {
            file = file.big_endian();
        }
        for (key, value) in &keys {
            file = file.key(key, value.clone());
        }
        if let Some(alignment) = alignment {
            file = file.key("general.alignment", V::U32(alignment));
        }
        for (name, tensor) in &tensors {
            file = file.tensor(name, &tensor.dims(), TYPES[tensor.ty].id, tensor.bytes());
        }
        let bytes = file.build();
        let header = Header::read(&bytes, bytes.len() as u64).map_err(|fault| TestCaseError::fail(fault.to_string()))?;
        prop_assert_eq!(header.version, version);
        prop_assert_eq!(header.byte_order, if big { ByteOrder::Big } else { ByteOrder::Little });
        let mut wanted: BTreeMap<String, Value> = keys.iter().map(|(key, value)| (key.clone(), expected(value))).collect();
        if let Some(alignment) = alignment {
            wanted.insert("general.alignment".into(), Value::U64(alignment.into()));
        }
        // As text, so that a NaN equals itself.
        prop_assert_eq!(format!("{:?}", header.metadata), format!("{wanted:?}"));
        prop_assert_eq!(header.tensors.len(), tensors.len());
        for (found, (name, tensor)) in header.tensors.iter().zip(&tensors) {
            let dims = tensor.dims();
            prop_assert_eq!(&found.name, name);
            prop_assert_eq!(found.ty.id, TYPES[tensor.ty].id);
            prop_assert_eq!(found.n_dims as usize, dims.len());
            prop_assert_eq!(&found.shape[..dims.len()], dims.as_slice());
            prop_assert_eq!(found.elements(), dims.iter().product::<u64>());
            prop_assert_eq!(found.bytes.0, tensor.bytes());
        }
    }
}
