//! The grammars of flag values: numbers as `std::stoi` takes them, overrides, splits, cache types; read and written.
//!
//! Source: `common/arg.cpp`, `common/common.cpp` `string_parse_kv_override`, `common/common.h` (expert patterns), b11434.

use super::config::{Choice, FlashAttn, MetadataOverride, Override};
use super::{Error, Note};
use crate::gguf::GgmlType;

/// What `-cmoe` matches (`LLM_FFN_EXPS_REGEX`).
pub const EXPERTS: &str = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";
pub const DENSE: &str = r"\.ffn_(up|down|gate)\.";
pub const CACHE_TYPES: &[&str] = &["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"];
/// llama.cpp's limit on overrides (`llama_max_tensor_buft_overrides`); a bound for `-ncmoe`.
const MAX_OVERRIDES: u32 = 4096;
/// What a note ends with whose rule is left out of the answer.
pub const LEFT_OUT: &str = "; the figures leave this rule out";

#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The flag as typed, or the environment variable.
    pub flag: &'a str,
    /// Its value; empty for a flag that stands alone.
    pub value: &'a str,
    /// Whether a flag that stands alone says yes: false for a negated spelling.
    pub on: bool,
    /// Whether it is llama-bench's grammar: `/` and `;` within lists.
    pub bench: bool,
}

impl<'a> Given<'a> {
    pub fn new(flag: &'a str, value: &'a str) -> Self {
        Self { flag, value, on: true, bench: false }
    }

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
    pub fn unread(&self) -> &'a str {
        let digits = |c: char| c.is_ascii_digit();
        let text = self.value.trim_start();
        let text = text.strip_prefix(['-', '+']).unwrap_or(text);
        if text.starts_with(digits) { text.trim_start_matches(digits) } else { "" }
    }

    pub fn natural(&self) -> Result<u32, Error> {
        u32::try_from(self.integer()?).map_err(|_| self.refuse("a number that is not negative"))
    }

    /// A number that counts where it is more than zero.
    pub fn positive(&self) -> Result<Option<u32>, Error> {
        Ok(Some(self.natural()?).filter(|n| *n > 0))
    }

    /// MiB, or -1 for no limit.
    pub fn limit(&self) -> Result<Option<i32>, Error> {
        Ok(Some(self.integer()?.max(-1)))
    }

    /// A count; zero or less leaves the choice to llama.cpp.
    pub fn count(&self) -> Result<Option<u32>, Error> {
        Ok(u32::try_from(self.integer()?).ok().filter(|n| *n > 0))
    }

    /// Slots of a server; `None` leaves the choice to it.
    pub fn slots(&self) -> Result<Option<u32>, Error> {
        match self.integer()? {
            0 => Err(self.refuse("a number of slots, or -1 for llama-server's own choice")),
            slots => Ok(u32::try_from(slots).ok()),
        }
    }

    /// `on|off` and their synonyms; `None` for neither.
    pub fn truth(&self) -> Option<bool> {
        match self.value {
            "on" | "enabled" | "true" | "1" => Some(true),
            "off" | "disabled" | "false" | "0" => Some(false),
            _ => None,
        }
    }

    pub fn switch(&self) -> Result<bool, Error> {
        self.truth().ok_or_else(|| self.refuse("`on` or `off`"))
    }

    /// Whether a flag that stands alone says yes.
    #[expect(clippy::unnecessary_wraps, reason = "rows of flags hold functions of one type")]
    pub fn is_on(&self) -> Result<bool, Error> {
        Ok(self.on)
    }

    pub fn flash_attn(&self) -> Result<FlashAttn, Error> {
        match (self.truth(), self.value) {
            (Some(true), _) => Ok(FlashAttn::On),
            (Some(false), _) => Ok(FlashAttn::Off),
            (None, "auto" | "-1") => Ok(FlashAttn::Auto),
            _ => Err(self.refuse("`on`, `off` or `auto`")),
        }
    }

    pub fn layers(&self) -> Result<i32, Error> {
        match self.value {
            "auto" => Ok(-1),
            "all" => Ok(-2),
            _ => self.integer().map_err(|_| self.refuse("a number of layers, `auto` or `all`")),
        }
    }

    /// A type of [`CACHE_TYPES`], or of those that this llama.cpp has beside.
    pub fn cache_type(&self, more: &[&str]) -> Result<GgmlType, Error> {
        let known = CACHE_TYPES.iter().chain(more).any(|name| *name == self.value);
        let ty = GgmlType::from_name(self.value).filter(|_| known);
        ty.ok_or_else(|| self.refuse(&format!("one of {}", [CACHE_TYPES, more].concat().join(", "))))
    }

    pub fn choice<T: Choice>(&self) -> Result<T, Error> {
        T::of_word(self.value).ok_or_else(|| {
            let words: Vec<&str> = T::VALUES.iter().map(|(_, word, ..)| *word).collect();
            let (last, others) = words.split_last().unwrap_or((&"", &[]));
            self.refuse(&format!("{} or {last}", others.join(", ")))
        })
    }

    /// Shares, between `,` or `/`; in llama-bench between `/` or `;`.
    pub fn proportions(&self) -> Result<Vec<f32>, Error> {
        let separators = if self.bench { ['/', ';'] } else { [',', '/'] };
        let parts = self.value.split(separators).filter(|part| !part.is_empty());
        parts
            .map(|part| part.trim().parse::<f32>().ok().filter(|share| share.is_finite()))
            .collect::<Option<Vec<f32>>>()
            .ok_or_else(|| self.refuse("numbers, for example 3,1"))
    }

    pub fn fit_target(&self) -> Result<Vec<u32>, Error> {
        let parts = self.value.split([',', '/']).filter(|part| !part.is_empty());
        parts.map(|value| Given { value, ..*self }.natural()).collect()
    }

    pub fn names(&self, separator: char) -> Vec<String> {
        self.value.split(separator).filter(|part| !part.is_empty()).map(str::to_string).collect()
    }

    /// `--device`: names, or none of them for `none`; llama-bench's `auto` is all.
    pub fn devices(&self) -> Result<Option<Vec<String>>, Error> {
        let names = self.names(if self.bench { '/' } else { ',' });
        match names.as_slice() {
            [] => Err(self.refuse("device names, or `none`")),
            [only] if only == "none" => Ok(Some(Vec::new())),
            [only] if only == "auto" && self.bench => Ok(None),
            _ => Ok(Some(names)),
        }
    }

    /// `PATTERN=BUFFER` entries: split at every separator, then at the first `=`. One that the splitting breaks is noted and
    /// left out.
    pub fn overrides(&self) -> Result<(Vec<Override>, Vec<Note>), Error> {
        let separator = if self.bench { ';' } else { ',' };
        let (mut entries, mut notes) = (Vec::new(), Vec::new());
        let mut broken = |(code, why, hint): Slip, text: &str| {
            let why = why.replace("SEPARATOR", &separator.to_string());
            let message = format!("`{} {text}`: {why}{LEFT_OUT}", self.flag);
            notes.push(Note { code: code.into(), message, hint: Some(hint.into()) });
        };
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
                broken(COMMA, &format!("{half}{separator}{part}"));
            } else if buffer.contains('=') {
                broken(if buffer.contains(';') { SEMICOLON } else { EQUALS }, part);
            } else if buffer.is_empty() {
                return Err(self.refuse("a buffer after `=`: `CPU`, or a device such as `CUDA0`"));
            } else if buffer.ends_with(['"', '\'']) {
                broken(QUOTED, part);
            } else {
                entries.push(Override { pattern: pattern.into(), buffer: buffer.into(), origin: self.flag.into() });
            }
        }
        match pending {
            Some(_) => Err(self.refuse("PATTERN=BUFFER entries (no comma inside a pattern: llama.cpp splits there)")),
            None => Ok((entries, notes)),
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
        let entries = csv(self.value).into_iter().map(MetadataOverride::try_from);
        let refuse = |_| self.refuse("KEY=TYPE:VALUE with TYPE one of int, float, bool, str");
        entries.map(|entry| entry.map_err(refuse)).collect()
    }
}

/// A slip in `-ot` that makes llama.cpp take an entry apart in the wrong place: code, why, hint.
type Slip = (&'static str, &'static str, &'static str);

const COMMA: Slip = (
    "pattern-split-by-comma",
    "llama.cpp splits at every `SEPARATOR`, finds no `=` in one part, and refuses the command",
    "a pattern cannot hold one: write `(a|b)` for a list, `xx?` for `x{1,2}`",
);
const EQUALS: Slip = (
    "pattern-split-by-equals",
    "llama.cpp splits at the first `=`, takes the rest for a buffer, and refuses the command",
    "a pattern cannot hold `=`: write the rule without a lookahead",
);
const SEMICOLON: Slip = (
    "pattern-split-by-equals",
    "llama.cpp takes everything after the first `=` for a buffer, and refuses the command",
    "`,` separates rules; `;` does so in llama-bench alone",
);
const QUOTED: Slip = (
    "pattern-quoted",
    "the quotes reach llama.cpp, which knows no such buffer and refuses the command",
    "leave the inner quotes out: no shell removes them here",
);

/// The value that follows a flag, or the error that says what to write.
pub fn value_of<'a>(word: &str, name: &str, next: Option<&'a String>) -> Result<&'a str, Error> {
    let expected = match name {
        "--gpu-layers" => "a number of layers, `auto` or `all`",
        "--override-tensor" => "PATTERN=BUFFER",
        "--model" => "a GGUF file",
        _ => "one word after it",
    };
    next.map(String::as_str).ok_or_else(|| Error::MissingValue { flag: word.into(), expected: expected.into() })
}

pub fn on_host(pattern: String, origin: &str) -> Override {
    Override { pattern, buffer: "CPU".into(), origin: origin.into() }
}

pub fn list<T: ToString>(values: &[T], separator: &str) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}

/// `--override-kv`'s value; an array cannot be written and is left out.
pub fn metadata_list(entries: &[MetadataOverride]) -> String {
    let quoted = |entry: String| {
        if entry.contains([',', '"']) { format!("\"{}\"", entry.replace('"', "\"\"")) } else { entry }
    };
    let entries = entries.iter().map(MetadataOverride::to_string).filter(|entry| !entry.is_empty());
    entries.map(quoted).collect::<Vec<_>>().join(",")
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
    use crate::gguf::Value;

    fn given(value: &str) -> Given<'_> {
        Given::new("-x", value)
    }

    #[test]
    fn what_the_splitting_breaks() {
        for (value, code) in [
            ("x{1,2}=CPU", "pattern-split-by-comma"),
            ("(?=exps)=CPU", "pattern-split-by-equals"),
            ("exps=CPU;attn=CUDA0", "pattern-split-by-equals"),
            ("\"exps=CPU\"", "pattern-quoted"),
        ] {
            let notes = given(value).overrides().unwrap().1;
            assert!(notes.len() == 1 && notes[0].code == code && notes[0].message.contains(value), "{notes:?}");
        }
        assert!(given("exps=").overrides().unwrap_err().to_string().contains("a buffer after `=`"));
        assert_eq!(given("a=CPU,x{1,2}=CPU,b=CPU").overrides().unwrap().0.len(), 2);
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
}
