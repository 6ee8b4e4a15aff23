//! The oracle of the loader's rules: headers with one mistake each, asked of the linked llama.cpp and of us.
//!
//! Feature `embedded`. The headers are those of the oracle; each tensor is dropped, each dimension changed by one and
//! doubled, each number among the keys set to 0, 1, 7 and twice itself. Wherever llama.cpp refuses or aborts, we refuse;
//! wherever it loads, we answer with its bytes. A sample of a fixed seed; all of it with `MOEPLAN_FULL=1`; `MOEPLAN_CASES` and
//! `MOEPLAN_SEED` another sample, `MOEPLAN_MODELS` the headers with that in their names, `MOEPLAN_REPORT` a file that every
//! disagreement goes to.
#![expect(clippy::print_stderr, reason = "a test's report")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use moeplan::bytes::{Bytes, MIB};
use moeplan::gguf::GgmlType;
use moeplan::memory::{MemoryBreakdown, MemoryByDevice};
use moeplan::model::Model;
use moeplan::run::{Target, parse};
use moeplan::runtime::{Embedded, Error, Kind, Launch, Projection, Runtime as _, software_machine};
use moeplan::{gguf, memory};

use super::oracle;
use crate::support::gguf_builder::{Builder, V};
use crate::support::is_full;

/// Mutations of a run that says nothing else.
const CASES: usize = 1500;
/// Files that one worker process is asked about.
const BATCH: usize = 200;
/// What each file is launched as.
const COMMAND: &str = "llama-server -c 1024 -np 1 -ub 128 -b 128";

/// A header as it is in its file: keys as raw bytes under their type, tensors by name.
struct Header {
    name: String,
    keys: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, GgmlType)>,
}

/// One mistake.
#[derive(Debug, Clone)]
enum Mutation {
    /// None: the header itself has to be loaded.
    Nothing,
    Drop(usize),
    Shape(usize, usize, u64),
    Key(usize, Number),
}

/// What a key's numbers become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Is(u8),
    Twice,
}

fn headers() -> Vec<Header> {
    let wanted = std::env::var("MOEPLAN_MODELS").unwrap_or_default();
    let paths = oracle::headers().unwrap_or_default();
    paths.iter().map(|path| read(path)).filter(|header| header.name.contains(&wanted)).collect()
}

fn read(path: &Path) -> Header {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).expect("a header");
    file.take(1 << 20).read_to_end(&mut bytes).expect("its first bytes");
    let mut at = 16_usize;
    let number = |at: &mut usize, n: usize| {
        let raw = &bytes[*at..*at + n];
        *at += n;
        raw.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let size = |n: u64| usize::try_from(n).expect("a small number");
    let count = number(&mut at, 8);
    let width = |ty: u64| match ty {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    };
    let mut keys = Vec::new();
    for _ in 0..count {
        let length = size(number(&mut at, 8));
        let key = String::from_utf8(bytes[at..at + length].to_vec()).expect("a key");
        at += length;
        let ty = number(&mut at, 4);
        let start = at;
        match ty {
            8 => at += size(number(&mut at, 8)),
            9 => {
                let (element, n) = (number(&mut at, 4), number(&mut at, 8));
                for _ in 0..n {
                    at += if element == 8 { size(number(&mut at, 8)) } else { width(element) };
                }
            }
            _ => at += width(ty),
        }
        keys.push((key, u32::try_from(ty).expect("a type"), bytes[start..at].to_vec()));
    }
    let gguf = gguf::open(path).expect("a readable header");
    let tensor = |tensor: gguf::TensorInfo| {
        let dims = tensor.shape[..tensor.n_dims as usize].to_vec();
        (tensor.name, dims, tensor.ty)
    };
    Header {
        name: path.file_stem().expect("a stem").to_string_lossy().into_owned(),
        keys,
        tensors: gguf.header.tensors.into_iter().map(tensor).collect(),
    }
}

/// A key's value with its numbers changed; `None` where it has no number or stays the same.
fn changed(ty: u32, raw: &[u8], number: Number) -> Option<Vec<u8>> {
    let element = |ty: u32, raw: &[u8]| -> Vec<u8> {
        let whole = raw.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        match (ty, number) {
            (6, Number::Is(n)) => f32::from(n).to_le_bytes().to_vec(),
            (6, Number::Twice) => {
                (2.0 * f32::from_le_bytes(raw.try_into().expect("four bytes"))).to_le_bytes().to_vec()
            }
            (7, Number::Is(n)) => vec![u8::from(n != 0)],
            (7, Number::Twice) => raw.to_vec(),
            (_, Number::Is(n)) => u64::from(n).to_le_bytes()[..raw.len()].to_vec(),
            (_, Number::Twice) => (whole << 1).to_le_bytes()[..raw.len()].to_vec(),
        }
    };
    let new = match ty {
        8 | 12 => return None,
        9 => {
            let inner = u32::from_le_bytes(raw[..4].try_into().expect("a type"));
            if matches!(inner, 8 | 9 | 12) {
                return None;
            }
            let count = u64::from_le_bytes(raw[4..12].try_into().expect("a count")).max(1);
            let width = (raw.len() - 12) / usize::try_from(count).expect("a small array");
            let mut new = raw[..12].to_vec();
            raw[12..].chunks(width.max(1)).for_each(|raw| new.extend(element(inner, raw)));
            new
        }
        _ => element(ty, raw),
    };
    (new != raw).then_some(new)
}

impl Header {
    fn mutations(&self) -> Vec<Mutation> {
        let mut all = vec![Mutation::Nothing];
        for (i, (_, dims, ty)) in self.tensors.iter().enumerate() {
            all.push(Mutation::Drop(i));
            for (d, n) in dims.iter().enumerate() {
                let sizes = [n + 1, n - 1, 2 * n].into_iter().filter(|n| *n > 0);
                let fits = |n: &u64| d > 0 || ty.row_bytes(*n).is_some();
                all.extend(sizes.filter(fits).map(|n| Mutation::Shape(i, d, n)));
            }
        }
        for (i, (_, ty, raw)) in self.keys.iter().enumerate() {
            let numbers = [Number::Is(0), Number::Is(1), Number::Is(7), Number::Twice];
            let mut seen = Vec::new();
            for number in numbers {
                if let Some(new) = changed(*ty, raw, number).filter(|new| !seen.contains(new)) {
                    seen.push(new);
                    all.push(Mutation::Key(i, number));
                }
            }
        }
        all
    }

    /// The mutation in words.
    fn describe(&self, mutation: &Mutation) -> String {
        let what = match mutation {
            Mutation::Nothing => "as it is".to_string(),
            Mutation::Drop(i) => format!("without {}", self.tensors[*i].0),
            Mutation::Shape(i, d, n) => {
                let (name, dims, _) = &self.tensors[*i];
                format!("{name}[{d}] of {dims:?} = {n}")
            }
            Mutation::Key(i, number) => format!("{} = {number:?}", self.keys[*i].0),
        };
        format!("{}: {what}", self.name)
    }

    /// Writes the header with its mistake; the data is a hole.
    fn write(&self, mutation: &Mutation, path: &Path) {
        let mut builder = Builder::new();
        for (i, (key, ty, raw)) in self.keys.iter().enumerate() {
            let raw = match mutation {
                Mutation::Key(at, number) if *at == i => changed(*ty, raw, *number).expect("a number"),
                _ => raw.clone(),
            };
            builder = builder.key(key, V::Raw(*ty, raw));
        }
        let mut data = 0;
        for (i, (name, dims, ty)) in self.tensors.iter().enumerate() {
            let mut dims = dims.clone();
            match mutation {
                Mutation::Drop(at) if *at == i => continue,
                Mutation::Shape(at, d, n) if *at == i => dims[*d] = *n,
                _ => {}
            }
            let bytes = ty.row_bytes(dims[0]).expect("whole blocks") * dims[1..].iter().product::<u64>();
            data += bytes.next_multiple_of(32);
            builder = builder.tensor(name, &dims, ty.id, bytes);
        }
        let header = builder.header();
        let mut file = std::fs::File::create(path).expect("a temporary file");
        file.write_all(&header).expect("written");
        file.set_len(header.len() as u64 + data).expect("a hole");
    }
}

/// What one side says.
#[derive(Debug)]
enum Said {
    Loads(MemoryByDevice),
    Refuses(String),
    /// llama.cpp aborts, or we panic.
    Dies(String),
}

impl Said {
    fn word(&self, ours: bool) -> &'static str {
        match (self, ours) {
            (Self::Loads(_), false) => "loads",
            (Self::Refuses(_), false) => "refuses",
            (Self::Dies(_), false) => "aborts",
            (Self::Loads(_), true) => "answer",
            (Self::Refuses(_), true) => "refuse",
            (Self::Dies(_), true) => "panic",
        }
    }
}

fn theirs(answer: Result<Projection, Error>) -> Said {
    match answer {
        Ok(projection) => Said::Loads(projection.by_device()),
        Err(error @ Error { kind: Kind::Died | Kind::TimedOut, .. }) => Said::Dies(error.to_string()),
        Err(error) => Said::Refuses(error.to_string()),
    }
}

fn ours(launch: &Launch) -> Said {
    let predict = || -> Result<MemoryByDevice, String> {
        let gguf = gguf::open(&launch.model).map_err(|e| e.to_string())?;
        let model = Model::from_gguf(gguf).map_err(|e| e.to_string())?;
        Ok(memory::forecast(&model, &launch.machine, &launch.run).map_err(|e| e.to_string())?.memory)
    };
    match catch_unwind(AssertUnwindSafe(predict)) {
        Ok(Ok(memory)) => Said::Loads(memory),
        Ok(Err(why)) => Said::Refuses(why),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Said::Dies(text.or(panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
        }
    }
}

/// What differs where both answer: model and context to the byte, compute within 1% or 1 MiB.
fn difference(ours: &MemoryByDevice, theirs: &MemoryByDevice) -> Option<String> {
    #[expect(clippy::type_complexity, reason = "of this test alone")]
    let terms: [(&str, fn(&MemoryBreakdown) -> Bytes, bool); 3] =
        [("model", |row| row.model, true), ("context", |row| row.context, true), ("compute", |row| row.compute, false)];
    let mut text = String::new();
    let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    for (name, term, exact) in terms {
        for key in &keys {
            let of = |table: &MemoryByDevice| table.get(*key).map_or(0, |row| term(row).0);
            let (p, m) = (of(ours), of(theirs));
            if p != m && (exact || p.abs_diff(m) > MIB.max(m / 100)) {
                let _ = write!(text, " {name} {key} ours {p} theirs {m}");
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

/// Counts and disagreements.
#[derive(Default)]
struct Table {
    counts: BTreeMap<(&'static str, &'static str, &'static str), usize>,
    wrong: Vec<String>,
}

impl Table {
    fn add(&mut self, kind: &'static str, what: &str, theirs: &Said, ours: &Said) {
        let (mut them, mut us) = (theirs.word(false), ours.word(true));
        let why = match (theirs, ours) {
            (Said::Loads(theirs), Said::Loads(ours)) => {
                let differs = difference(ours, theirs);
                us = if differs.is_some() { "answer otherwise" } else { "answer" };
                differs
            }
            (Said::Loads(_), Said::Refuses(why) | Said::Dies(why)) => Some(format!("we {us}: {why}")),
            (Said::Refuses(_) | Said::Dies(_), Said::Refuses(_)) => None,
            (Said::Refuses(why) | Said::Dies(why), _) => Some(format!("we {us}, llama.cpp {them}: {why}")),
        };
        if let Some(why) = why {
            self.wrong.push(format!("{what}: {why}"));
        }
        // llama.cpp's process may also die of a signal that is no assertion.
        if matches!(theirs, Said::Dies(why) if why.contains("was stopped after")) {
            them = "hangs";
        }
        *self.counts.entry((kind, them, us)).or_default() += 1;
    }

    fn report(&self) -> String {
        let mut text = "mutation  llama.cpp  we                 cases\n".to_string();
        for ((kind, theirs, ours), n) in &self.counts {
            let _ = writeln!(text, "{kind:<9} {theirs:<10} {ours:<17} {n:>6}");
        }
        text
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// A sample: every case with the chance `wanted / all`, by a generator of a fixed seed (splitmix64).
fn sample<T>(all: Vec<T>, wanted: usize, seed: u64) -> Vec<T> {
    let count = all.len() as u64;
    let mut state = seed;
    let mut take = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % count < wanted as u64
    };
    all.into_iter().filter(|_| take()).collect()
}

#[test]
fn what_llama_cpp_refuses_is_refused_and_what_it_loads_is_answered() {
    let headers = headers();
    let all: Vec<(&Header, Mutation)> = headers
        .iter()
        .flat_map(|header| header.mutations().into_iter().map(move |mutation| (header, mutation)))
        .collect();
    let total = all.len();
    let cases = if is_full() {
        all
    } else {
        let wanted = number("MOEPLAN_CASES").map_or(CASES, |n| usize::try_from(n).expect("a count"));
        sample(all, wanted, number("MOEPLAN_SEED").unwrap_or(1))
    };
    eprintln!("{} of {total} mutations of {} headers", cases.len(), headers.len());
    let words: Vec<String> = COMMAND.split(' ').map(str::to_string).collect();
    let run = parse::command_for(&words, &BTreeMap::new(), Target::default()).expect("a command line").run;
    let template = Launch { model: PathBuf::new(), run, machine: software_machine(0, Bytes::mib(24 * 1024)) };
    let runtime = Embedded::of(env!("CARGO_BIN_EXE_moeplan"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut table = Table::default();
    std::panic::set_hook(Box::new(|_| {}));
    let mut done = 0;
    for batch in cases.chunks(BATCH) {
        let launches: Vec<Launch> = (0..batch.len())
            .map(|i| Launch { model: folder.path().join(format!("{i}.gguf")), ..template.clone() })
            .collect();
        for ((header, mutation), launch) in batch.iter().zip(&launches) {
            header.write(mutation, &launch.model);
        }
        for (((header, mutation), launch), answer) in batch.iter().zip(&launches).zip(runtime.project(&launches)) {
            let kind = match mutation {
                Mutation::Nothing => "none",
                Mutation::Drop(_) => "drop",
                Mutation::Shape(..) => "shape",
                Mutation::Key(..) => "key",
            };
            table.add(kind, &header.describe(mutation), &theirs(answer), &ours(launch));
        }
        done += batch.len();
        if done % 2000 < BATCH {
            eprintln!("{done} done, {} disagreements", table.wrong.len());
        }
        if let Some(report) = std::env::var_os("MOEPLAN_REPORT") {
            std::fs::write(report, table.report() + &table.wrong.join("\n") + "\n").expect("a report");
        }
    }
    let _ = std::panic::take_hook();
    eprintln!("{}", table.report());
    let shown: Vec<&str> = table.wrong.iter().take(60).map(String::as_str).collect();
    assert!(table.wrong.is_empty(), "{} disagreements:\n{}", table.wrong.len(), shown.join("\n"));
}
