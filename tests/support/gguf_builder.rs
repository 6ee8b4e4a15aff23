//! GGUF bytes, good or bad, for tests: knows nothing of the reader and takes any wrong number.

/// A metadata value, or raw bytes under a type id.
#[derive(Clone, Debug, PartialEq)]
pub enum V {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    U64(u64),
    I64(i64),
    F64(f64),
    /// Element type id and elements.
    Arr(u32, Vec<Self>),
    /// Type id and bytes as they are.
    Raw(u32, Vec<u8>),
}

/// A text value.
pub fn text(text: &str) -> V {
    V::Str(text.into())
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dims: Vec<u64>,
    ty: u32,
    offset: Option<u64>,
    bytes: u64,
}

/// A file to be; every method takes and gives it.
#[derive(Clone, Debug)]
pub struct Builder {
    magic: [u8; 4],
    version: u32,
    big: bool,
    alignment: u64,
    keys: Vec<(Vec<u8>, V)>,
    tensors: Vec<Tensor>,
    tensor_count: Option<u64>,
    key_count: Option<u64>,
}

impl Builder {
    pub fn new() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            big: false,
            alignment: 32,
            keys: Vec::new(),
            tensors: Vec::new(),
            tensor_count: None,
            key_count: None,
        }
    }

    /// A small model of two tensors.
    pub fn small() -> Self {
        Self::new()
            .key("general.architecture", text("llama"))
            .key("llama.block_count", V::U32(1))
            .tensor("token_embd.weight", &[32, 4], 0, 512)
            .tensor("blk.0.ffn_up.weight", &[32, 2], 8, 68)
    }

    pub fn magic(mut self, magic: [u8; 4]) -> Self {
        self.magic = magic;
        self
    }

    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    pub fn big_endian(mut self) -> Self {
        self.big = true;
        self
    }

    /// How the builder pads; states nothing in the metadata.
    pub fn padded_to(mut self, alignment: u64) -> Self {
        self.alignment = alignment;
        self
    }

    pub fn key(mut self, key: &str, value: V) -> Self {
        self.keys.push((key.into(), value));
        self
    }

    pub fn raw_key(mut self, key: &[u8], value: V) -> Self {
        self.keys.push((key.into(), value));
        self
    }

    /// A tensor with as many bytes of data as `bytes` says, at the next offset.
    pub fn tensor(mut self, name: &str, dims: &[u64], ty: u32, bytes: u64) -> Self {
        self.tensors.push(Tensor { name: name.into(), dims: dims.into(), ty, offset: None, bytes });
        self
    }

    /// The last tensor's offset, whatever comes before it.
    pub fn at(mut self, offset: u64) -> Self {
        self.tensors.last_mut().unwrap().offset = Some(offset);
        self
    }

    pub fn tensor_count(mut self, count: u64) -> Self {
        self.tensor_count = Some(count);
        self
    }

    pub fn key_count(mut self, count: u64) -> Self {
        self.key_count = Some(count);
        self
    }

    /// The three keys of shard `number` (from 0).
    pub fn shard(self, number: u16, count: u16, tensors: i32) -> Self {
        self.key("split.no", V::U16(number))
            .key("split.count", V::U16(count))
            .key("split.tensors.count", V::I32(tensors))
    }

    /// The header alone, padded to the data section.
    pub fn header(&self) -> Vec<u8> {
        let mut out = Out { bytes: self.magic.to_vec(), big: self.big };
        out.put(self.version.to_le_bytes());
        out.put(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.put(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            out.text(key);
            out.put(type_id(value).to_le_bytes());
            out.value(value);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            out.text(tensor.name.as_bytes());
            out.put(u32::try_from(tensor.dims.len()).unwrap().to_le_bytes());
            for dim in &tensor.dims {
                out.put(dim.to_le_bytes());
            }
            out.put(tensor.ty.to_le_bytes());
            out.put(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += tensor.bytes.next_multiple_of(self.alignment);
        }
        let end = (out.bytes.len() as u64).next_multiple_of(self.alignment);
        out.bytes.resize(usize::try_from(end).unwrap(), 0);
        out.bytes
    }

    /// Header and zeroed data.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = self.header();
        let data: u64 = self.tensors.iter().map(|tensor| tensor.bytes.next_multiple_of(self.alignment)).sum();
        bytes.resize(bytes.len() + usize::try_from(data).unwrap(), 0);
        bytes
    }
}

/// The type id of a value.
pub fn type_id(value: &V) -> u32 {
    match value {
        V::U8(_) => 0,
        V::I8(_) => 1,
        V::U16(_) => 2,
        V::I16(_) => 3,
        V::U32(_) => 4,
        V::I32(_) => 5,
        V::F32(_) => 6,
        V::Bool(_) => 7,
        V::Str(_) => 8,
        V::Arr(..) => 9,
        V::U64(_) => 10,
        V::I64(_) => 11,
        V::F64(_) => 12,
        V::Raw(id, _) => *id,
    }
}

struct Out {
    bytes: Vec<u8>,
    big: bool,
}

impl Out {
    fn put<const N: usize>(&mut self, mut little: [u8; N]) {
        if self.big {
            little.reverse();
        }
        self.bytes.extend(little);
    }

    fn text(&mut self, text: &[u8]) {
        self.put((text.len() as u64).to_le_bytes());
        self.bytes.extend(text);
    }

    fn value(&mut self, value: &V) {
        match value {
            V::U8(v) => self.put(v.to_le_bytes()),
            V::I8(v) => self.put(v.to_le_bytes()),
            V::U16(v) => self.put(v.to_le_bytes()),
            V::I16(v) => self.put(v.to_le_bytes()),
            V::U32(v) => self.put(v.to_le_bytes()),
            V::I32(v) => self.put(v.to_le_bytes()),
            V::F32(v) => self.put(v.to_le_bytes()),
            V::Bool(v) => self.put([u8::from(*v)]),
            V::Str(v) => self.text(v.as_bytes()),
            V::U64(v) => self.put(v.to_le_bytes()),
            V::I64(v) => self.put(v.to_le_bytes()),
            V::F64(v) => self.put(v.to_le_bytes()),
            V::Arr(id, elements) => {
                self.put(id.to_le_bytes());
                self.put((elements.len() as u64).to_le_bytes());
                for element in elements {
                    self.value(element);
                }
            }
            V::Raw(_, bytes) => self.bytes.extend(bytes),
        }
    }
}
