//! Where llama-server is, and what it says of itself: version, flags, devices. [I/O]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::Error;
use crate::machine::Isa;
use crate::runtime::{DeviceInfo, log};

/// The folder below moeplan's cache that `scripts/llama-server` fills.
pub const CACHE_FOLDER: &str = "llama.cpp-b11434/bin";
/// How long a program may take to say what it is: a GPU driver can take seconds to wake.
const PROBE_LIMIT: Duration = Duration::from_mins(1);
/// The most that is read of what it says, in bytes.
const PROBE_BYTES: u64 = 1 << 20;
/// The smallest number that is a release of llama.cpp; builds outside its repository count from 1.
const FIRST_RELEASE: u32 = 1000;

/// Where a llama-server was looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// It was named, by a flag or by `MOEPLAN_LLAMA_SERVER`.
    Named,
    /// `PATH`.
    #[default]
    Path,
    /// What `scripts/llama-server` has built.
    Cache,
}

impl Place {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Path => "on PATH",
            Self::Cache => "built by scripts/llama-server",
        }
    }
}

/// A llama-server that can be run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// The program.
    pub program: PathBuf,
    /// The line it says of its version.
    pub version: String,
    /// The N of bN; `None` when it does not say, or when it was built apart from llama.cpp's repository.
    pub number: Option<u32>,
    /// Every flag its help lists; empty when there is no help.
    pub flags: BTreeSet<String>,
    /// What it repacks: of a build with variants for many processors the one it picked, else this processor's.
    pub isa: Isa,
}

impl Build {
    /// Whether it takes this flag; a build without help is taken to.
    pub fn takes(&self, flag: &str) -> bool {
        self.flags.is_empty() || self.flags.contains(flag)
    }

    /// What messages call it: `llama.cpp b11434`, or its version's line.
    pub fn name(&self) -> String {
        self.number.map_or_else(|| format!("`{}`", self.version), |number| format!("llama.cpp b{number}"))
    }
}

/// Finds llama-server: the path that was named, `PATH`, then what `scripts/llama-server` has built. Every place that was
/// looked at is in the error.
pub fn find(named: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = named {
        let program = if path.is_dir() { path.join(program_name("llama-server")) } else { path.to_path_buf() };
        return if is_program(&program) { Ok(program) } else { Err(Error::NoSuchServer(program)) };
    }
    match places().into_iter().next() {
        Some((_, program)) => Ok(program),
        None => Err(Error::NotFound(
            ["PATH".to_string()].into_iter().chain(built().map(|program| program.display().to_string())).collect(),
        )),
    }
}

/// Every llama-server that can be run, in the order in which one is looked for when none is named.
pub fn places() -> Vec<(Place, PathBuf)> {
    let on_path =
        std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let on_path = on_path.map(|folder| (Place::Path, folder.join(program_name("llama-server"))));
    let all = on_path.chain(built().map(|program| (Place::Cache, program)));
    let mut found: Vec<(Place, PathBuf)> = Vec::new();
    for (place, program) in all.filter(|(_, program)| is_program(program)) {
        if found.iter().all(|(_, known)| *known != program) {
            found.push((place, program));
        }
    }
    found
}

/// Where `scripts/llama-server` puts it.
fn built() -> Option<PathBuf> {
    Some(crate::files::cache_folder()?.join(CACHE_FOLDER).join(program_name("llama-server")))
}

/// A program that was built with `server`: llama-bench, ggml-rpc-server (once rpc-server).
pub fn beside(server: &Path, names: &[&str]) -> Option<PathBuf> {
    let folder = std::fs::canonicalize(server).ok()?;
    let folder = folder.parent()?;
    names.iter().map(|name| folder.join(program_name(name))).find(|program| is_program(program))
}

fn program_name(name: &str) -> String {
    format!("{name}{}", std::env::consts::EXE_SUFFIX)
}

fn is_program(path: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    #[cfg(unix)]
    let runs = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0;
    #[cfg(not(unix))]
    let runs = true;
    metadata.is_file() && runs
}

/// Asks a program for its version and flags.
pub fn probe(program: &Path) -> Result<Build, Error> {
    let version = ask(program, &["--version"])?;
    let help = ask(program, &["--help"]).unwrap_or_default();
    let line = version.lines().find(|line| line.contains("version:")).or_else(|| version.lines().next());
    let line = line.unwrap_or_default().trim().to_string();
    if !line.contains("version") {
        return Err(Error::NotAServer { program: program.to_path_buf(), said: line });
    }
    let flags = flags(&help);
    let isa = if flags.contains("-lv") { picked(program)? } else { None };
    let isa = isa.unwrap_or_else(crate::runtime::detect::isa);
    Ok(Build { program: program.to_path_buf(), number: number(&line), version: line, flags, isa })
}

/// How often a program is asked which variant of its code it picked.
const ASKED: usize = 4;

/// The instruction set of the variant that a program picks for this processor; `None` where it has no variants. It may end
/// before its log is written to the end (common/log.cpp writes from a thread, b11434), so one that has variants is asked again.
fn picked(program: &Path) -> Result<Option<Isa>, Error> {
    let folder = std::fs::canonicalize(program).ok().and_then(|program| program.parent().map(Path::to_path_buf));
    let mut files = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let has_variants = files.any(|file| file.file_name().to_string_lossy().contains("ggml-cpu-"));
    picked_of(if has_variants { ASKED } else { 1 }, || ask(program, &["-lv", "4", "--list-devices"]))
}

fn picked_of(attempts: usize, mut ask: impl FnMut() -> Result<String, Error>) -> Result<Option<Isa>, Error> {
    for _ in 0..attempts {
        let isa = variant(&ask()?);
        if isa.is_some() {
            return Ok(isa);
        }
    }
    Ok(None)
}

/// The devices it lists, `rpc` servers' first; the processor is not among them.
pub fn devices(program: &Path, rpc: &[String]) -> Result<Vec<DeviceInfo>, Error> {
    let servers = rpc.join(",");
    let arguments: &[&str] = if rpc.is_empty() { &["--list-devices"] } else { &["--rpc", &servers, "--list-devices"] };
    Ok(log::devices(&ask(program, arguments)?))
}

/// What a program prints, on both streams; a bounded time and a bounded length.
fn ask(program: &Path, arguments: &[&str]) -> Result<String, Error> {
    let failed = |source| Error::Probe { program: program.to_path_buf(), flag: arguments.join(" "), source };
    let mut command = Command::new(program);
    for name in super::environment::to_remove(std::env::vars_os().map(|(name, _)| name), false) {
        command.env_remove(name);
    }
    let mut child = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (send, texts) = channel();
    let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
        let send = send.clone();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stream.map(|stream| stream.take(PROBE_BYTES).read_to_end(&mut bytes));
            let _ = send.send(bytes);
        });
    };
    read(child.stdout.take().map(|stream| Box::new(stream) as Box<dyn std::io::Read + Send>));
    read(child.stderr.take().map(|stream| Box::new(stream) as Box<dyn std::io::Read + Send>));
    let start = std::time::Instant::now();
    let mut text = String::new();
    for _ in 0..2 {
        let left = PROBE_LIMIT.saturating_sub(start.elapsed());
        let Ok(bytes) = texts.recv_timeout(left) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(std::io::Error::other(format!("no answer in {} s", PROBE_LIMIT.as_secs()))));
        };
        text.push_str(&String::from_utf8_lossy(&bytes));
        text.push('\n');
    }
    // A program that says more than is read would wait for ever.
    let _ = child.kill();
    child.wait().map_err(failed)?;
    Ok(text)
}

/// The instruction set of the processor's variant that was loaded (ggml/src/ggml-backend-reg.cpp; the variants of
/// ggml/src/CMakeLists.txt, b11434).
fn variant(log: &str) -> Option<Isa> {
    let (_, rest) = log.split_once("ggml-cpu-")?;
    let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "._".contains(*c)).collect();
    let name = name.trim_end_matches(std::env::consts::DLL_SUFFIX);
    Some(match name {
        "sapphirerapids" => Isa::X86Amx,
        "skylakex" | "cannonlake" | "cascadelake" | "icelake" | "cooperlake" | "zen4" => Isa::X86Avx512,
        "haswell" | "alderlake" => Isa::X86Avx2,
        "x64" | "sse42" | "sandybridge" | "ivybridge" | "piledriver" => Isa::Generic,
        name if name.starts_with("armv8.0") => Isa::Generic,
        name if name.starts_with("arm") || name.starts_with("apple") => Isa::ArmNeon,
        _ => return None,
    })
}

/// The build's number in `version: 0.6.0-dev (build 11434, commit …)` or `version: 4567 (abcdef)`.
fn number(line: &str) -> Option<u32> {
    let after = line.split_once("build ").or_else(|| line.split_once("version: "))?.1;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    let rest = after.get(digits.len()..)?;
    let number = digits.parse().ok().filter(|_| !rest.starts_with('.'))?;
    (number >= FIRST_RELEASE).then_some(number)
}

/// The flags of a help text: the words that begin its lines, up to the first that is none.
fn flags(help: &str) -> BTreeSet<String> {
    let is_flag = |word: &&str| {
        word.strip_prefix('-')
            .is_some_and(|rest| rest.trim_start_matches('-').starts_with(|c: char| c.is_ascii_alphabetic()))
    };
    let lines = help.lines().filter(|line| line.starts_with('-'));
    lines
        .flat_map(|line| line.split_whitespace().map(|word| word.trim_end_matches(',')).take_while(is_flag))
        .map(str::to_string)
        .collect()
}

/// Names of the environment, sorted and as text; a name that is no text is none of ours.
pub(super) fn names(all: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Vec<String> {
    let mut names: Vec<String> =
        all.into_iter().filter_map(|name| name.as_ref().to_str().map(str::to_string)).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_a_number_only_where_it_is_a_release() {
        for (line, expected) in [
            ("version: 0.6.0-dev (build 11434, commit sdist-11434)", Some(11434)),
            ("version: 0.1.0-dev (build 1, commit 7e4c0a9)", None),
            ("version: 4567 (abcdef0)", Some(4567)),
            ("version: 0.6.0", None),
            ("version: 99999999999999", None),
        ] {
            assert_eq!(number(line), expected, "{line}");
        }
    }

    #[test]
    fn the_variant_that_was_loaded_says_what_is_repacked() {
        let line = |name: &str| format!("0.00 I load_backend: loaded CPU backend from /x/libggml-cpu-{name}.so\n");
        let dll = |name: &str| line(name).replace(".so", std::env::consts::DLL_SUFFIX);
        assert_eq!(variant(&dll("icelake")), Some(Isa::X86Avx512));
        assert_eq!(variant(&dll("sapphirerapids")), Some(Isa::X86Amx));
        assert_eq!(variant(&dll("armv8.2_1")), Some(Isa::ArmNeon));
        assert_eq!(variant(&dll("quantum")), None);
        assert_eq!(variant("no backend"), None);
    }

    #[test]
    fn a_program_that_ends_before_its_log_is_asked_again() {
        for (silent, attempts, expected, asked) in [
            (0, ASKED, Some(Isa::X86Avx512), 1),
            (2, ASKED, Some(Isa::X86Avx512), 3),
            (9, ASKED, None, ASKED),
            (1, 1, None, 1),
        ] {
            let mut n = 0;
            let isa = picked_of(attempts, || {
                n += 1;
                Ok(if n > silent {
                    "libggml-cpu-zen4.so\n".replace(".so", std::env::consts::DLL_SUFFIX)
                } else {
                    String::new()
                })
            });
            assert_eq!((isa.unwrap(), n), (expected, asked), "{silent} silent of {attempts}");
        }
    }

    #[test]
    fn flags_are_what_begins_a_line_of_the_help() {
        let help = "----- common params -----\n\n-h,    --help, --usage                  print usage and exit\n\
            -lm,   --load-mode MODE                 as --no-mmap did\n                                        --not-this\n\
            --perf, --no-perf                       whether\n-c N\n";
        let found: Vec<String> = flags(help).into_iter().collect();
        assert_eq!(found, ["--help", "--load-mode", "--no-perf", "--perf", "--usage", "-c", "-h", "-lm"]);
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let error = find(Some(Path::new("/nowhere/llama-server"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere/llama-server"), "{error}");
    }
}
