//! Running a model's Python where it can do no harm: no network, no files but the system's programs, no rights, little time. [I/O]
//!
//! Answers of a model are untrusted code. It runs only in a sandbox of bubblewrap (`bwrap`), with the system's own
//! `/usr/bin/python3`; elsewhere nothing is run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::process::output;

/// Longer than the interpreter's own alarm; then the sandbox is killed.
const LIMIT: Duration = Duration::from_secs(15);
/// The most that is read of what it says, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// The only interpreter that runs code: its files are all below `/usr`.
const PYTHON: &str = "/usr/bin/python3";

/// Reads the answer's syntax, runs it, and asks its function for the first numbers.
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
    say(ran={"function": chosen[0], "values": values})
except BaseException as error:
    if not isinstance(error, SystemExit) or error.code != 0:
        say(failed=(type(error).__name__ + ": " + str(error))[:200])
"#;

/// What came of a program; the interpreter says it so.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran, isolated: what its function gave for 1, 2, 3 …
    Ran {
        function: String,
        /// One value a call: numbers, or lists of them.
        values: Vec<serde_json::Value>,
    },
    /// It ran, isolated, and did not do what was asked.
    Failed(String),
    Syntax(String),
    /// It was not run, for this reason.
    Unavailable(String),
}

/// What Python code gives in a sandbox of bubblewrap: `function` is asked for its values at 1 to `count`.
pub fn run(code: &str, function: &str, count: u32) -> Outcome {
    let job = json!({"code": code, "function": function, "count": count});
    let outcome = sandbox().and_then(|mut command| ask(&mut command, &job));
    outcome.unwrap_or_else(|why| Outcome::Unavailable(format!("no isolation here ({why})")))
}

/// The command that runs Python in a root that holds nothing but the system's programs and libraries, read-only.
fn sandbox() -> Result<Command, String> {
    if !cfg!(target_os = "linux") || !Path::new(PYTHON).exists() {
        return Err(format!("it needs Linux, bubblewrap and {PYTHON}"));
    }
    let mut command = Command::new("bwrap");
    command.args(["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]);
    command.args(["--ro-bind", "/usr", "/usr"]);
    for folder in ["/bin", "/lib", "/lib64", "/lib32"] {
        match std::fs::read_link(folder) {
            Ok(target) => command.arg("--symlink").arg(target).arg(folder),
            Err(_) => command.args(["--ro-bind-try", folder, folder]),
        };
    }
    command.args(["--remount-ro", "/", "--chdir", "/", "--", PYTHON, "-I", "-S", "-B", "-c", RUN]);
    Ok(command)
}

/// Runs a command with a job on its standard input and reads its one line; the error is why nothing was run.
fn ask(command: &mut Command, job: &serde_json::Value) -> Result<Outcome, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    let printed = output(command, job.to_string().into_bytes(), LIMIT, MAX_ANSWER)
        .map_err(|error| format!("`{name}` cannot be started: {error}"))?;
    if let Some(outcome) = printed.stdout.lines().next().and_then(|line| serde_json::from_str(line).ok()) {
        return Ok(outcome);
    }
    Ok(Outcome::Failed(match printed.status {
        None => format!("it did not end within {} s", LIMIT.as_secs()),
        // Python ends without a word when a limit kills it; bubblewrap says why it failed.
        Some(status) if status.success() => "it ended without an answer".to_string(),
        Some(_) => match printed.stderr.trim().lines().last() {
            None => "it was killed because it used too much time or memory".to_string(),
            Some(last) => return Err(format!("`{name}`: {last}")),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(code: &str) -> Outcome {
        super::run(code, "fibonacci", 5)
    }

    #[test]
    fn a_function_gives_its_values_and_can_do_no_harm() {
        let outcome = run("def f(n): return n");
        if matches!(outcome, Outcome::Unavailable(_)) {
            // What people get where nothing isolates: no untrusted code is run.
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
    fn what_is_no_python_is_said_and_what_does_not_end_is_ended() {
        let outcome = run("def f(:\n");
        assert!(matches!(outcome, Outcome::Syntax(_) | Outcome::Unavailable(_)), "{outcome:?}");
        let outcome = run("def f(n):\n while True: pass");
        assert!(!matches!(outcome, Outcome::Ran { .. }), "{outcome:?}");
    }
}
