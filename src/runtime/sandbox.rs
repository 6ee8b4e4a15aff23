//! Running a model's Python where it can do no harm: namespaces of its own, no network, no files, no rights, little time. [I/O]
//!
//! Answers of a model are strangers' code. It runs only where Linux namespaces isolate it (`unshare` and the system's own
//! `/usr/bin/python3`); elsewhere its syntax is read and nothing is run.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::files::temporary::Folder;

/// Longer than the interpreter's own alarm; then the whole namespace is killed.
const LIMIT: Duration = Duration::from_secs(15);
/// The most that is read of what it says, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// The only interpreter that is run isolated: its files are all below `/usr`.
const PYTHON: &str = "/usr/bin/python3";

/// Prepares the namespace: a root that holds nothing but the system's programs and libraries, read-only.
const PREPARE: &str = r#"
mount -t tmpfs -o size=1m,mode=755 none "$1"
cd "$1"
mkdir old
for d in usr bin lib lib64 lib32; do
  if [ -L "/$d" ]; then cp -P "/$d" "$d"
  elif [ -d "/$d" ]; then mkdir "$d"; mount --rbind "/$d" "$d"; mount -o remount,bind,ro "$d"; fi
done
pivot_root . old
cd /
exec /usr/bin/env -i /usr/bin/python3 -I -S -B -c "$2"
"#;

/// Lets go of the old root and of every right, looks whether that worked, and only then runs the answer.
const ISOLATE: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def must(result, what):
    if result != 0:
        sys.exit(what + ": " + os.strerror(ctypes.get_errno()))
must(libc.umount2(b"/old", 2), "the old root stays")
os.rmdir("/old")
must(libc.mount(None, b"/", None, 1 | 32 | 4096, None), "the root stays writable")
must(libc.prctl(38, 1, 0, 0, 0), "new privileges stay possible")
must(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()), "rights stay")
if set(os.listdir("/")) - {"usr", "bin", "lib", "lib64", "lib32"}:
    sys.exit("files of the computer are visible")
try:
    os.chroot("/usr")
    sys.exit("rights stayed")
except PermissionError:
    pass
"#;

/// Reads the answer's syntax; runs it where `isolated` says so, and asks its function for the first numbers.
const RUN: &str = r#"
import io, json, resource, signal, sys
job = json.load(sys.stdin)
out = sys.stdout
def say(**what):
    out.write(json.dumps(what) + "\n")
    out.flush()
try:
    program = compile(job["code"], "answer", "exec")
except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    say(syntax=str(error)[:200])
    sys.exit(0)
if not job["isolated"]:
    say(parses=True)
    sys.exit(0)
for name, value in (("CPU", 5), ("AS", 1 << 29), ("FSIZE", 0), ("NOFILE", 16), ("NPROC", 1), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
signal.alarm(10)
def audit(event, args):
    if event.startswith(("os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.", "socket.",
                         "ctypes.", "signal.", "resource.")):
        raise PermissionError(event)
sys.addaudithook(audit)
sys.stdin = io.StringIO("10\n" * 100)
sys.stdout = sys.stderr = io.StringIO()
names = {"__name__": "answer"}
try:
    exec(program, names)
    found = [name for name, value in names.items() if type(value).__name__ == "function"]
    chosen = [name for name in found if name == job["function"]]
    chosen = chosen or [name for name in found if name.lower().startswith(job["function"][:3])] or found[-1:]
    if not chosen:
        say(failed="it defines no function")
        sys.exit(0)
    values = []
    for n in range(1, job["count"] + 1):
        value = names[chosen[0]](n)
        if type(value).__name__ in ("generator", "tuple"):
            value = [item for item, _ in zip(value, range(64))]
        values.append(value)
    say(function=chosen[0], values=values)
except BaseException as error:
    if not isinstance(error, SystemExit) or error.code != 0:
        say(failed=(type(error).__name__ + ": " + str(error))[:200])
"#;

/// What came of a program.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It ran, isolated: what its function gave for 1, 2, 3 …
    Ran {
        /// The function's name.
        function: String,
        /// One value a call: numbers, or lists of them.
        values: Vec<serde_json::Value>,
    },
    /// It ran, isolated, and did not do what was asked.
    Failed(String),
    /// It is not Python.
    Syntax(String),
    /// It is Python; it was not run, for this reason.
    OnlyParsed(String),
    /// Nothing could be told, for this reason.
    Unavailable(String),
}

/// What can run a model's Python. A trait, so that tests need no interpreter.
pub trait Interpreter {
    /// Runs `code` and asks `function` for its values at 1 to `count`.
    fn values(&self, code: &str, function: &str, count: u32) -> Outcome;
}

/// Python in namespaces of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Isolated;

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Job<'a> {
    code: &'a str,
    function: &'a str,
    count: u32,
    isolated: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    syntax: Option<String>,
    parses: bool,
    failed: Option<String>,
    function: Option<String>,
    values: Vec<serde_json::Value>,
}

impl Interpreter for Isolated {
    fn values(&self, code: &str, function: &str, count: u32) -> Outcome {
        let job = Job { code, function, count, isolated: true };
        let why = match isolated().and_then(|(command, folder)| {
            let answer = ask(command, &job);
            drop(folder);
            answer
        }) {
            Ok(answer) => return outcome(answer, None),
            Err(Why::Slow) => return Outcome::Failed(format!("it did not end within {} s", LIMIT.as_secs())),
            Err(Why::Not(why)) => why,
        };
        let mut plain = Command::new("python3");
        plain.args(["-I", "-S", "-B", "-c", RUN]);
        match ask(plain, &Job { isolated: false, ..job }) {
            Ok(answer) => outcome(answer, Some(why)),
            Err(Why::Slow) => Outcome::Unavailable("python3 did not answer".to_string()),
            Err(Why::Not(why)) => Outcome::Unavailable(why),
        }
    }
}

/// Why there is no answer.
enum Why {
    Slow,
    Not(String),
}

/// The command that runs Python isolated, and the folder that its root is made in.
fn isolated() -> Result<(Command, Folder), Why> {
    if !cfg!(target_os = "linux") || !Path::new(PYTHON).exists() {
        return Err(Why::Not(format!("no isolation here (needs Linux namespaces and {PYTHON})")));
    }
    let folder = Folder::new().map_err(|error| Why::Not(format!("no folder for a sandbox: {error}")))?;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork"]);
    command.args(["--kill-child", "--", "/bin/sh", "-eu", "-c", PREPARE, "sandbox"]);
    command.arg(folder.path()).arg(format!("{ISOLATE}{RUN}"));
    Ok((command, folder))
}

/// Runs a command with a job on its standard input and reads its one line.
fn ask(mut command: Command, job: &Job<'_>) -> Result<Answer, Why> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| Why::Not(format!("`{name}` cannot be started: {error}")))?;
    let input = serde_json::to_vec(job).unwrap_or_default();
    let mut stdin = child.stdin.take();
    let writer = std::thread::spawn(move || stdin.take().map(|mut pipe| pipe.write_all(&input)));
    let (said, errors) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let ended = wait(&mut child);
    let _ = writer.join();
    let (said, errors) = (said.join().unwrap_or_default(), errors.join().unwrap_or_default());
    let answer = said.lines().next().and_then(|line| serde_json::from_str(line).ok());
    match (ended, answer) {
        (_, Some(answer)) => Ok(answer),
        (None, None) => Err(Why::Slow),
        // Python ends without a word when a limit kills it; what prepares the sandbox says why it failed.
        (Some(true), None) => {
            Ok(Answer { failed: Some("it ended without an answer".to_string()), ..Answer::default() })
        }
        (Some(false), None) if errors.trim().is_empty() => {
            Ok(Answer { failed: Some("it was killed for its time or memory".to_string()), ..Answer::default() })
        }
        (Some(false), None) => {
            let last = errors.trim().lines().last().unwrap_or_default();
            Err(Why::Not(format!("no isolation here (`{name}`: {last})")))
        }
    }
}

/// All that a pipe says, as far as it is taken, read on a thread of its own.
fn reader(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.map(|pipe| pipe.take(MAX_ANSWER).read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Whether it succeeded; `None` when it had to be killed.
fn wait(child: &mut Child) -> Option<bool> {
    let begin = Instant::now();
    while begin.elapsed() < LIMIT {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            Err(_) => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn outcome(answer: Answer, why_not_run: Option<String>) -> Outcome {
    match (answer, why_not_run) {
        (Answer { syntax: Some(error), .. }, _) => Outcome::Syntax(error),
        (Answer { parses: true, .. }, why) => Outcome::OnlyParsed(why.unwrap_or_default()),
        (Answer { failed: Some(error), .. }, _) => Outcome::Failed(error),
        (Answer { function: Some(function), values, .. }, _) => Outcome::Ran { function, values },
        _ => Outcome::Failed("it ended without an answer".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(code: &str) -> Outcome {
        Isolated.values(code, "fibonacci", 5)
    }

    fn is_isolated() -> bool {
        !matches!(run("def f(n): return n"), Outcome::OnlyParsed(_) | Outcome::Unavailable(_))
    }

    #[test]
    fn what_is_no_python_is_said() {
        let outcome = run("def f(:\n");
        assert!(matches!(outcome, Outcome::Syntax(_) | Outcome::Unavailable(_)), "{outcome:?}");
    }

    #[test]
    fn a_function_gives_its_values_and_can_do_no_harm() {
        if !is_isolated() {
            // The other half is what people get here: nothing of a stranger is run.
            assert!(!matches!(run("def f(n): return n"), Outcome::Ran { .. } | Outcome::Failed(_)));
            return;
        }
        let values = |code: &str| match run(code) {
            Outcome::Ran { values, .. } => serde_json::to_string(&values).unwrap(),
            other => format!("{other:?}"),
        };
        assert_eq!(values("def fib(n):\n return n if n < 2 else fib(n-1)+fib(n-2)"), "[1,1,2,3,5]");
        assert_eq!(values("print(input())\ndef other(): pass\ndef fibonacci(n): return [n] * 2").len(), 31);
        for (code, says) in [
            ("import os\ndef f(n): return os.listdir('/home')", "FileNotFoundError"),
            ("def f(n): return open('/etc/passwd').read()", "FileNotFoundError"),
            ("def f(n): open('/usr/bin/x', 'w')", "OSError"),
            ("import socket\ndef f(n): return socket.create_connection(('127.0.0.1', 22), 1)", "PermissionError"),
            ("import os\ndef f(n): return os.fork()", "PermissionError"),
            ("import os\ndef f(n): os._exit(0)", "without an answer"),
            ("def f(n): return [0] * 10**10", "MemoryError"),
            ("x = 1", "no function"),
            ("raise ValueError('no')", "ValueError: no"),
        ] {
            let outcome = run(code);
            assert!(matches!(&outcome, Outcome::Failed(why) if why.contains(says)), "{code}: {outcome:?}");
        }
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let outcome = run("def f(n):\n while True: pass");
        assert!(!matches!(outcome, Outcome::Ran { .. }), "{outcome:?}");
    }
}
