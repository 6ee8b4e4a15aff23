//! The grammars of flag values: numbers as `std::stoi` takes them, overrides, splits, cache types.
//!
//! Source: `common/arg.cpp`, `common/common.cpp` `string_parse_kv_override`, `common/common.h` (expert patterns), b11434.

use super::{Error, FlashAttn, LazyMode, LoadMode, MetadataOverride, Override, SplitMode};
use crate::gguf::{GgmlType, Value};

/// What `-cmoe` matches.
pub const EXPERTS: &str = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";
/// What `-ncffn` matches in a block.
pub const DENSE: &str = r"\.ffn_(up|down|gate)\.";
/// The cache types llama.cpp takes.
pub const CACHE_TYPES: &[&str] = &["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"];
/// llama.cpp's limit on overrides (`llama_max_tensor_buft_overrides`); a bound for `-ncmoe`.
const MAX_OVERRIDES: u32 = 4096;

/// A flag's value, and the flag for messages.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The flag as typed, or the environment variable.
    pub flag: &'a str,
    /// Its value.
    pub value: &'a str,
}

/// An entry of `-ot` that llama.cpp takes apart in the wrong place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The separator inside a pattern.
    Comma {
        /// As typed.
        text: String,
    },
    /// `=` inside a pattern.
    Equals {
        /// As typed.
        text: String,
    },
    /// Quotes around the whole.
    Quoted {
        /// As typed.
        text: String,
    },
}

impl Broken {
    /// As typed.
    pub fn text(&self) -> &str {
        match self {
            Self::Comma { text } | Self::Equals { text } | Self::Quoted { text } => text,
        }
    }
}

impl Given<'_> {
    /// The error that says what was expected.
    pub fn refuse(&self, expected: &str) -> Error {
        Error::BadValue { flag: self.flag.into(), value: self.value.into(), expected: expected.into() }
    }

    /// A leading integer, trailing text ignored (C++ `std::stoi`).
    pub fn integer(&self) -> Result<i32, Error> {
        let text = self.value.trim_start();
        let signs = usize::from(text.starts_with(['-', '+']));
        let digits = text.bytes().skip(signs).take_while(u8::is_ascii_digit).count();
        let number = text.get(..signs.saturating_add(digits)).unwrap_or_default();
        number.parse().map_err(|_| self.refuse("a whole number"))
    }

    /// What `std::stoi` leaves unread behind a number; empty for a whole one, or none.
    pub fn unread(&self) -> &str {
        let digits = |c: char| c.is_ascii_digit();
        let text = self.value.trim_start();
        let text = text.strip_prefix(['-', '+']).unwrap_or(text);
        if text.starts_with(digits) { text.trim_start_matches(digits) } else { "" }
    }

    /// An integer that is not negative.
    pub fn natural(&self) -> Result<u32, Error> {
        u32::try_from(self.integer()?).map_err(|_| self.refuse("a number that is not negative"))
    }

    /// `on|off` and their synonyms; `None` for neither.
    pub fn truth(&self) -> Option<bool> {
        match self.value {
            "on" | "enabled" | "true" | "1" => Some(true),
            "off" | "disabled" | "false" | "0" => Some(false),
            _ => None,
        }
    }

    /// `on` or `off`.
    pub fn switch(&self) -> Result<bool, Error> {
        self.truth().ok_or_else(|| self.refuse("`on` or `off`"))
    }

    /// `on`, `off` or `auto`.
    pub fn flash_attn(&self) -> Result<FlashAttn, Error> {
        match (self.truth(), self.value) {
            (Some(true), _) => Ok(FlashAttn::On),
            (Some(false), _) => Ok(FlashAttn::Off),
            (None, "auto" | "-1") => Ok(FlashAttn::Auto),
            _ => Err(self.refuse("`on`, `off` or `auto`")),
        }
    }

    /// `auto`, `all` or a number.
    pub fn layers(&self) -> Result<i32, Error> {
        match self.value {
            "auto" => Ok(-1),
            "all" => Ok(-2),
            _ => self.integer().map_err(|_| self.refuse("a number of layers, `auto` or `all`")),
        }
    }

    /// A cache type.
    pub fn cache_type(&self) -> Result<GgmlType, Error> {
        let known = CACHE_TYPES.contains(&self.value).then(|| GgmlType::from_name(self.value)).flatten();
        known.ok_or_else(|| self.refuse(&format!("one of {}", CACHE_TYPES.join(", "))))
    }

    /// A load mode.
    pub fn load_mode(&self) -> Result<LoadMode, Error> {
        Ok(match self.value {
            "auto" => LoadMode::Auto,
            "none" => LoadMode::None,
            "mmap" => LoadMode::Mmap,
            "mlock" => LoadMode::Mlock,
            "mmap+mlock" => LoadMode::MmapMlock,
            "dio" => LoadMode::Dio,
            _ => return Err(self.refuse("auto, none, mmap, mlock, mmap+mlock or dio")),
        })
    }

    /// A lazy mode.
    pub fn lazy_mode(&self) -> Result<LazyMode, Error> {
        Ok(match self.value {
            "on" => LazyMode::On,
            "auto" => LazyMode::Auto,
            "off" => LazyMode::Off,
            _ => return Err(self.refuse("on, auto or off")),
        })
    }

    /// A split mode.
    pub fn split_mode(&self) -> Result<SplitMode, Error> {
        Ok(match self.value {
            "none" => SplitMode::None,
            "layer" => SplitMode::Layer,
            "row" => SplitMode::Row,
            "tensor" => SplitMode::Tensor,
            _ => return Err(self.refuse("none, layer, row or tensor")),
        })
    }

    /// Proportions between any of `separators`.
    pub fn proportions(&self, separators: &[char]) -> Result<Vec<f32>, Error> {
        let parts = self.value.split(separators).filter(|part| !part.is_empty());
        parts
            .map(|part| part.trim().parse::<f32>().ok().filter(|share| share.is_finite()))
            .collect::<Option<Vec<f32>>>()
            .ok_or_else(|| self.refuse("numbers, for example 3,1"))
    }

    /// MiB between `,` or `/`.
    pub fn fit_target(&self) -> Result<Vec<u32>, Error> {
        let parts = self.value.split([',', '/']).filter(|part| !part.is_empty());
        parts.map(|part| Given { flag: self.flag, value: part }.natural()).collect()
    }

    /// Names between commas.
    pub fn names(&self, separator: char) -> Vec<String> {
        self.value.split(separator).filter(|part| !part.is_empty()).map(str::to_string).collect()
    }

    /// `--device`: names, or none of them for `none`.
    pub fn devices(&self, separator: char) -> Result<Vec<String>, Error> {
        let names = self.names(separator);
        match names.as_slice() {
            [] => Err(self.refuse("device names, or `none`")),
            [only] if only == "none" => Ok(Vec::new()),
            _ => Ok(names),
        }
    }

    /// `PATTERN=BUFFER` entries: split at every separator, then at the first `=`; and those that the splitting breaks.
    pub fn overrides(&self, separator: char) -> Result<(Vec<Override>, Vec<Broken>), Error> {
        let (mut entries, mut broken) = (Vec::new(), Vec::new());
        // C++ `getline` yields no entry after a last separator.
        let value = self.value.strip_suffix(separator).unwrap_or(self.value);
        let mut pending: Option<String> = None;
        for part in value.split(separator) {
            let Some((pattern, buffer)) = part.split_once('=') else {
                // Half a pattern: what was meant goes on after the separator.
                let text = pending.take().map_or_else(|| part.to_string(), |half| format!("{half}{separator}{part}"));
                pending = Some(text);
                continue;
            };
            if let Some(half) = pending.take() {
                broken.push(Broken::Comma { text: format!("{half}{separator}{part}") });
            } else if buffer.contains('=') {
                broken.push(Broken::Equals { text: part.to_string() });
            } else if buffer.ends_with(['"', '\'']) {
                broken.push(Broken::Quoted { text: part.to_string() });
            } else {
                entries.push(Override { pattern: pattern.into(), buffer: buffer.into(), origin: self.flag.into() });
            }
        }
        match pending {
            Some(_) => Err(self.refuse("PATTERN=BUFFER entries (no comma inside a pattern: llama.cpp splits there)")),
            None => Ok((entries, broken)),
        }
    }

    /// The entries of `-ncmoe N` and `-ncffn N`: one a block from 0.
    pub fn first_blocks(&self, pattern: &str) -> Result<Vec<Override>, Error> {
        let count = self.natural()?;
        if count > MAX_OVERRIDES {
            return Err(self.refuse("at most 4096 blocks"));
        }
        Ok((0..count).map(|block| on_host(format!("blk\\.{block}{pattern}"), self.flag)).collect())
    }

    /// `KEY=TYPE:VALUE` entries between commas; double quotes keep commas (`parse_csv_row`).
    pub fn metadata_overrides(&self) -> Result<Vec<MetadataOverride>, Error> {
        csv(self.value).iter().map(|entry| self.metadata_override(entry)).collect()
    }

    /// One `KEY=TYPE:VALUE`.
    fn metadata_override(&self, entry: &str) -> Result<MetadataOverride, Error> {
        let refuse = || self.refuse("KEY=TYPE:VALUE with TYPE one of int, float, bool, str");
        let (key, typed) = entry.split_once('=').filter(|(key, _)| key.len() < 128).ok_or_else(refuse)?;
        let (ty, text) = typed.split_once(':').ok_or_else(refuse)?;
        let value = match ty {
            "int" => text.trim().parse::<i64>().map(|n| u64::try_from(n).map_or(Value::I64(n), Value::U64)).ok(),
            "float" => text.trim().parse().map(Value::F64).ok(),
            "bool" => text.parse().map(Value::Bool).ok(),
            "str" => (text.len() < 128).then(|| Value::String(text.to_string())),
            _ => None,
        };
        Ok(MetadataOverride { key: key.into(), value: value.ok_or_else(refuse)? })
    }
}

/// An override to the host.
pub fn on_host(pattern: String, origin: &str) -> Override {
    Override { pattern, buffer: "CPU".into(), origin: origin.into() }
}

/// The fields of a comma-separated row with double quotes.
fn csv(text: &str) -> Vec<String> {
    let (mut fields, mut last) = (Vec::new(), String::new());
    let mut quoted = false;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => {
                rest.next();
                last.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut last)),
            _ => last.push(c),
        }
    }
    fields.push(last);
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(value: &str) -> Given<'_> {
        Given { flag: "-x", value }
    }

    #[test]
    fn overrides_split_at_commas_then_at_the_first_equals_sign() {
        let (list, broken) = given(r"blk\.(3|4)\.ffn=CUDA0,exps=CPU").overrides(',').unwrap();
        assert_eq!((list.len(), broken.len()), (2, 0));
        assert_eq!((list[0].pattern.as_str(), list[0].buffer.as_str()), (r"blk\.(3|4)\.ffn", "CUDA0"));
        assert_eq!(given("a=CPU,").overrides(',').unwrap().0.len(), 1);
        assert!(given("exps").overrides(',').is_err());
        assert!(given("a=CPU,exps").overrides(',').is_err());
    }

    #[test]
    fn what_the_splitting_breaks() {
        let text = |value| given(value).overrides(',').unwrap().1;
        assert_eq!(text("x{1,2}=CPU"), [Broken::Comma { text: "x{1,2}=CPU".into() }]);
        assert_eq!(text("(?=exps)=CPU"), [Broken::Equals { text: "(?=exps)=CPU".into() }]);
        assert_eq!(text("\"exps=CPU\""), [Broken::Quoted { text: "\"exps=CPU\"".into() }]);
        assert_eq!(given("a=CPU,x{1,2}=CPU,b=CPU").overrides(',').unwrap().0.len(), 2);
    }

    #[test]
    fn numbers_as_stoi_takes_them() {
        assert_eq!(given(" 512k").integer(), Ok(512));
        assert_eq!(given("-3").integer(), Ok(-3));
        assert!(given("many").integer().is_err());
        let unread = [" 512k", "-3", "+4x y", "8", "many", "1.5"].map(|text| given(text).unread().to_string());
        assert_eq!(unread, ["k", "", "x y", "", "", ".5"]);
        assert!(given("-3").natural().is_err());
    }

    #[test]
    fn metadata_overrides() {
        let list = given(r#"a.b=int:4,c=bool:true,"d=str:x,y""#).metadata_overrides().unwrap();
        assert_eq!(list[0], MetadataOverride { key: "a.b".into(), value: Value::U64(4) });
        assert_eq!(list[2].value, Value::String("x,y".into()));
        assert!(given("a=int").metadata_overrides().is_err());
    }

    #[test]
    fn counted_blocks_start_at_zero() {
        let list = given("2").first_blocks(EXPERTS).unwrap();
        assert_eq!(list[1].pattern, r"blk\.1\.ffn_(up|down|gate|gate_up)_(ch|)exps");
        assert!(given("1000000000").first_blocks(EXPERTS).is_err());
    }
}
