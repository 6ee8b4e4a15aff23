//! What-if quants against llama-quantize: its `--dry-run`, tensor by tensor, and what it said before (`testdata/quantize.tsv`).
//!
//! The real one is beside `MOEPLAN_LLAMA_SERVER`, or what `scripts/llama-server` has built. `MOEPLAN_FULL` asks it about every
//! recipe of every small model; `MOEPLAN_CAPTURE` writes what it says of the headers made here to the table.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test says what it asked, or that it was skipped")]

use crate::support::is_full;
use crate::support::quantize_cases;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use moeplan::gguf::{self, GgmlType};
use moeplan::model::{Model, Tensor};
use moeplan::placement::pattern;
use moeplan::quantize::law::{self, Given};
use moeplan::quantize::{self, Facts, Imatrix, Options, RECIPES, Recipe};
use moeplan::runtime::server;
use moeplan::synth::output::{Fill, Watch, write};
use moeplan::synth::{Wish, spec, synthesize};

use crate::support::quantize_cases::CASES;

/// The types by name, or that it refuses.
type Answer = Option<BTreeMap<String, String>>;

/// The options of a row, as llama-quantize takes them; `--imatrix` stands for a file.
const OPTIONS: [&str; 7] = [
    "--pure",
    "--leave-output-tensor",
    "--output-tensor-type q5_0 --token-embedding-type bf16",
    "--imatrix --tensor-type attn_v=q8_0 --tensor-type blk\\.([0-3])\\.ffn=iq3_s",
    "--token-embedding-type q4_K --tensor-type per_layer=q3_K --tensor-type TOKEN=q2_K",
    "--tensor-type ffn_down=nvfp4",
    "--tensor-type attn=q1_0",
];

/// The model of a header that has what llama-quantize asks for, which is less than what loading does.
fn model(path: &Path) -> Model {
    let gguf = gguf::open(path).unwrap_or_else(|error| panic!("{error}"));
    Model::as_far_as_readable(gguf).0
}

/// What we say.
fn predicted(model: &Model, recipe: Recipe, flags: &str) -> (Answer, u64) {
    let words: Vec<&str> = flags.split_whitespace().collect();
    let after = |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1]);
    let named: Vec<_> = words
        .windows(2)
        .filter(|pair| pair[0] == "--tensor-type")
        .map(|pair| {
            let (name, ty) = pair[1].split_once('=').unwrap();
            (pattern::parse(&name.to_lowercase()).unwrap(), GgmlType::from_name(ty).unwrap())
        })
        .collect();
    let by_name = |name: &str| named.iter().find(|(pattern, _)| pattern.matches(name)).map(|(_, ty)| *ty);
    let options = Options {
        imatrix: words.contains(&"--imatrix"),
        pure: words.contains(&"--pure"),
        keep_output: words.contains(&"--leave-output-tensor"),
        output: after("--output-tensor-type").and_then(GgmlType::from_name),
        token_embedding: after("--token-embedding-type").and_then(GgmlType::from_name),
        named: if named.is_empty() { None } else { Some(&by_name) },
    };
    let given = |tensor: &'_ Tensor| (tensor.name.clone(), tensor.shape, tensor.ty);
    let tensors: Vec<_> = model.tensors.iter().map(given).collect();
    let given: Vec<Given<'_>> =
        tensors.iter().map(|(name, shape, ty)| Given { name, shape: *shape, ty: *ty }).collect();
    let Ok(chosen) = law::assign(recipe, &Facts::of(model), &options, &given) else {
        assert!(quantize::predict(model, recipe, &options, Path::new("out.gguf")).is_err());
        return (None, 0);
    };
    let mut types = BTreeMap::new();
    let mut bytes = 0;
    for ((name, shape, _), chosen) in tensors.iter().zip(chosen) {
        types.insert(name.clone(), chosen.ty.name.to_string());
        bytes += chosen.ty.row_bytes(shape[0]).unwrap() * shape[1] * shape[2] * shape[3];
    }
    (Some(types), bytes)
}

/// A llama-quantize that is here.
struct Oracle {
    program: PathBuf,
    imatrix: PathBuf,
}

impl Oracle {
    fn find(folder: &Path) -> Option<Self> {
        let named = std::env::var_os("MOEPLAN_LLAMA_SERVER").filter(|name| !name.is_empty());
        let found = server::find(named.as_deref().map(Path::new)).ok()?;
        let program = server::beside(&found, &["llama-quantize"])?;
        Some(Self { program, imatrix: quantize_cases::imatrix(folder) })
    }

    /// What it would write, and how many MiB in all.
    fn ask(&self, path: &Path, recipe: Recipe, flags: &str) -> (Answer, f64) {
        let mut command = Command::new(&self.program);
        for word in flags.split_whitespace() {
            command.arg(word);
            if word == "--imatrix" {
                command.arg(&self.imatrix);
            }
        }
        let output = command.arg("--dry-run").arg(path).arg(recipe.name).output().expect("llama-quantize runs");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            assert!(text.contains("failed to quantize"), "{} {flags}: {text}", recipe.name);
            return (None, 0.0);
        }
        let lines = text.lines().filter(|line| line.starts_with('[') && line.contains("type = "));
        let types = lines.map(|line| {
            let (name, rest) = line.split_once("] ").and_then(|(_, rest)| rest.split_once(" - [")).unwrap();
            let old = rest.split_once("type = ").and_then(|(_, rest)| rest.split_once(',')).unwrap().0;
            let new = line.rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
            (name.trim().to_string(), new.unwrap_or(old).trim().to_string())
        });
        let types = types.collect();
        let size = text.split_once("quant size  = ").and_then(|(_, rest)| rest.split_once(" MiB")).unwrap().0;
        (Some(types), size.trim().parse().unwrap())
    }

    /// Holds our answer to its own; the answer.
    fn agree(&self, path: &Path, model: &Model, recipe: Recipe, flags: &str) -> (Answer, u64) {
        let (ours, bytes) = predicted(model, recipe, flags);
        let (theirs, mib) = self.ask(path, recipe, flags);
        let what = format!("{} as {} {flags}", path.display(), recipe.name);
        match (&ours, &theirs) {
            (Some(ours), Some(theirs)) => {
                let differ: Vec<_> = theirs.iter().filter(|(name, ty)| ours.get(*name) != Some(ty)).take(4).collect();
                let found: Vec<_> = differ.iter().map(|(name, _)| ours.get(*name)).collect();
                assert!(differ.is_empty(), "{what}: llama-quantize says {differ:?}, we {found:?}");
                assert_eq!(ours.len(), theirs.len(), "{what}");
                #[expect(clippy::cast_precision_loss, reason = "MiB with two decimals")]
                let ours = bytes as f64 / 1_048_576.0;
                assert!((ours - mib).abs() <= 0.0051, "{what}: {ours} MiB, llama-quantize says {mib}");
            }
            (ours, theirs) => assert_eq!(ours.is_some(), theirs.is_some(), "{what}"),
        }
        (theirs, bytes)
    }
}

/// Every row of the table: header, recipe, options.
fn rows() -> Vec<(usize, Recipe, &'static str)> {
    let mut rows = Vec::new();
    for (at, _) in CASES.iter().enumerate() {
        for recipe in RECIPES {
            rows.extend(["", "--imatrix"].map(|flags| (at, recipe, flags)));
        }
    }
    for (at, case) in CASES.iter().enumerate() {
        if ["llama", "llama-tied", "mixtral", "llama-16-experts"].contains(&case.name) {
            let recipes = RECIPES.iter().filter(|recipe| ["F16", "Q4_K_M", "IQ2_XS"].contains(&recipe.name));
            rows.extend(recipes.flat_map(|recipe| OPTIONS.map(|flags| (at, recipe, flags))));
        }
    }
    rows
}

/// A row of the table: bytes, tensors by type, and a digest of every name with its type.
fn summary(answer: &Answer, bytes: u64) -> String {
    let Some(types) = answer else { return "refused".to_string() };
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    for (name, ty) in types {
        *counts.entry(ty).or_default() += 1;
        for byte in format!("{name} {ty}\n").bytes() {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let counts: Vec<String> = counts.iter().map(|(ty, count)| format!("{ty}:{count}")).collect();
    format!("{bytes}\t{digest:016x}\t{}", counts.join(" "))
}

fn table() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/quantize.tsv")
}

#[test]
fn every_branch_is_as_llama_quantize_said() {
    let folder = tempfile::tempdir().unwrap();
    let models: Vec<Model> = CASES.iter().map(|case| model(&case.write(folder.path()))).collect();
    let text = std::fs::read_to_string(table()).expect("the table is in the repository");
    let said: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let rows = rows();
    assert_eq!(said.len(), rows.len());
    for ((at, recipe, flags), said) in rows.into_iter().zip(said) {
        let (answer, bytes) = predicted(&models[at], recipe, flags);
        let found = format!("{}\t{}\t{flags}\t{}", CASES[at].name, recipe.name, summary(&answer, bytes));
        assert_eq!(found, said);
    }
}

#[test]
fn every_branch_is_as_llama_quantize_says() {
    let folder = tempfile::tempdir().unwrap();
    let Some(oracle) = Oracle::find(folder.path()) else {
        eprintln!("skipped: no llama-quantize (scripts/llama-server builds one)");
        return;
    };
    let files: Vec<(PathBuf, Model)> = CASES
        .iter()
        .map(|case| {
            let path = case.write(folder.path());
            let model = model(&path);
            (path, model)
        })
        .collect();
    let rows = rows();
    let captures = std::env::var_os("MOEPLAN_CAPTURE").is_some();
    let is_full = captures || is_full();
    let mut out = String::from("# header, recipe, options, bytes, digest of names and types, tensors by type: ");
    out.push_str("what llama-quantize b11434 --dry-run says (MOEPLAN_CAPTURE=1 cargo test --test core whatif)\n");
    let mut asked = 0;
    for (number, (at, recipe, flags)) in rows.into_iter().enumerate() {
        if is_full || number % 7 == 0 || OPTIONS.contains(&flags) {
            let (path, model) = &files[at];
            let (answer, bytes) = oracle.agree(path, model, recipe, flags);
            let _ = writeln!(out, "{}\t{}\t{flags}\t{}", CASES[at].name, recipe.name, summary(&answer, bytes));
            asked += 1;
        }
    }
    if captures {
        std::fs::write(table(), out).unwrap();
    }
    println!("{asked} answers of llama-quantize, all equal");
}

#[test]
fn every_architecture_is_as_llama_quantize_says() {
    let folder = tempfile::tempdir().unwrap();
    let Some(oracle) = Oracle::find(folder.path()) else {
        eprintln!("skipped: no llama-quantize (scripts/llama-server builds one)");
        return;
    };
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/architectures.tar.xz");
    let status = Command::new("tar").arg("-xJSf").arg(archive).arg("-C").arg(folder.path()).status();
    assert!(status.expect("tar is installed").success(), "the archive unpacks");
    let is_model = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "gguf");
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(is_model).collect();
    paths.sort();
    assert!(paths.len() > 100, "{} models", paths.len());
    let is_full = is_full();
    let mut asked = 0;
    for (number, path) in paths.iter().enumerate() {
        let model = model(path);
        for (at, recipe) in RECIPES.iter().enumerate() {
            if is_full || (at + number) % 12 == 0 {
                let flags = if (at + number / 2) % 2 == 0 { "" } else { "--imatrix" };
                oracle.agree(path, &model, recipe, flags);
                asked += 1;
            }
        }
    }
    println!("{asked} answers of llama-quantize about {} architectures, all equal", paths.len());
}

#[test]
fn every_known_model_is_as_llama_quantize_says() {
    let folder = tempfile::tempdir().unwrap();
    let Some(oracle) = Oracle::find(folder.path()) else {
        eprintln!("skipped: no llama-quantize (scripts/llama-server builds one)");
        return;
    };
    let is_full = is_full();
    let mut asked = 0;
    for (number, name) in spec::names().into_iter().enumerate() {
        if !is_full && number % 7 != 2 {
            continue;
        }
        let path = synth(folder.path(), &name, &Wish::default(), Fill::Hole);
        let model = model(&path);
        for (at, recipe) in RECIPES.iter().enumerate() {
            if is_full || at % 4 == 1 {
                let flags = if (at + number) % 2 == 0 { "" } else { "--imatrix" };
                oracle.agree(&path, &model, recipe, flags);
                asked += 1;
            }
        }
        std::fs::remove_file(path).unwrap();
    }
    println!("{asked} answers of llama-quantize about known models of full size, all equal");
}

fn synth(folder: &Path, name: &str, wish: &Wish, fill: Fill) -> PathBuf {
    let synthesis = synthesize(&spec::named(name).unwrap(), wish).unwrap();
    let path = folder.join(format!("{name}.gguf"));
    write(&synthesis, &path, fill, true, Watch { wrote: &|_| (), stop: &AtomicBool::new(false) }).unwrap();
    path
}

#[test]
fn what_llama_quantize_writes_is_what_was_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let Some(oracle) = Oracle::find(folder.path()) else {
        eprintln!("skipped: no llama-quantize (scripts/llama-server builds one)");
        return;
    };
    let wish = Wish { tiny: true, ..Wish::default() };
    let source = synth(folder.path(), "olmoe-1b-7b", &wish, Fill::Random(1));
    let source_model = model(&source);
    for name in ["F32", "Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K", "TQ1_0", "MXFP4_MOE"] {
        let out = folder.path().join(format!("{name}.gguf"));
        let recipe = quantize::recipe::named(name).unwrap();
        let made = quantize::predict(&source_model, recipe, &Options::default(), &out).unwrap();
        let mut command = Command::new(&oracle.program);
        command.args(["--allow-requantize".as_ref(), source.as_os_str(), out.as_os_str(), name.as_ref()]);
        let output = command.output().expect("llama-quantize runs");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let written = model(&out);
        let row = |tensor: &Tensor| (tensor.name.clone(), tensor.ty, tensor.shape, tensor.bytes, tensor.file_offset);
        let rows = |model: &Model| model.tensors.iter().map(row).collect::<Vec<_>>();
        assert_eq!(rows(&made.model), rows(&written), "{name}");
        assert_eq!(made.model.files[0].bytes, written.files[0].bytes, "{name}");
        assert_eq!(made.model.hparams.metadata, written.hparams.metadata, "{name}");
        assert_eq!(made.requantized > 0, name != "Q8_0", "{name}");
    }
}

/// Its dry run does not look at the rows of types that options demand; writing them aborts.
#[test]
fn a_demanded_type_needs_whole_rows() {
    let folder = tempfile::tempdir().unwrap();
    let case = CASES.iter().find(|case| case.name == "llama-rows-of-72").unwrap();
    let model = model(&case.write(folder.path()));
    let error = |flags: &str| {
        let options = Options { token_embedding: GgmlType::from_name(flags), ..Options::default() };
        let recipe = quantize::recipe::named("Q4_K_M").unwrap();
        quantize::predict(&model, recipe, &options, Path::new("out.gguf"))
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(error("f16"), Ok(()));
    let refused =
        "llama-quantize cannot make `per_layer_token_embd.weight` q4_K: its rows of 72 are not a whole number of 256";
    assert_eq!(error("q4_K"), Err(refused.to_string()));
}

#[test]
fn a_prediction_is_the_law_applied() {
    let folder = tempfile::tempdir().unwrap();
    for (number, case) in CASES.iter().enumerate() {
        let model = model(&case.write(folder.path()));
        for recipe in RECIPES.iter().skip(number % 5).step_by(5) {
            let (types, bytes) = predicted(&model, recipe, "--imatrix");
            let options = Options { imatrix: true, ..Options::default() };
            let made = quantize::predict(&model, recipe, &options, Path::new("out.gguf")).unwrap().model;
            let types = types.unwrap();
            assert!(made.tensors.iter().all(|tensor| types[&tensor.name] == tensor.ty.name), "{}", recipe.name);
            assert_eq!(made.tensors.iter().map(|tensor| tensor.bytes.0).sum::<u64>(), bytes);
            assert_eq!((made.tensors.len(), made.files.len()), (types.len(), 1));
        }
    }
}

#[test]
fn what_needs_an_imatrix_says_so_and_is_predicted_as_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&CASES[0].write(folder.path()));
    for recipe in RECIPES {
        let predict = |imatrix| {
            let options = Options { imatrix, ..Options::default() };
            quantize::predict(&model, recipe, &options, Path::new("out.gguf")).unwrap()
        };
        let (without, with) = (predict(false), predict(true));
        let needs = ["IQ1", "IQ2", "IQ3_X", "Q2_K_S"].iter().any(|start| recipe.name.starts_with(start));
        assert_eq!(without.imatrix, if needs { Imatrix::Needed } else { Imatrix::None }, "{}", recipe.name);
        assert_eq!(with.imatrix, Imatrix::Given);
        let types = |model: &Model| model.tensors.iter().map(|tensor| tensor.ty).collect::<Vec<_>>();
        assert!(!needs || types(&without.model) == types(&with.model), "{}", recipe.name);
    }
}
