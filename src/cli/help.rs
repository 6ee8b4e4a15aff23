//! Help that fits a screen: `-h` shows what is used most, `--help` everything; each command's examples, taken from there.

use clap::Command;

/// The heading of a command's own flags and arguments, the usual one: without it, those after flattened flags stand under theirs.
pub const OWN: Option<&str> = None;

/// The flags that `-h` shows of a command, by the names of their fields; arguments are always shown. A command that is not here shows
/// all its own.
const SHORT: &[(&str, &[&str])] = &[
    ("inspect", &["tensors", "metadata", "expect", "vram"]),
    ("check", &["vram", "gpu", "device", "ram", "machine", "margin", "tensors", "build", "dialect"]),
    ("plan", PLAN),
    ("run", &["vram", "ram", "ctx_size", "parallel", "follow", "llama_server", "log", "server_log"]),
    ("verify", &["vram", "ram", "backend", "ctx_size", "margin", "runtime", "tolerance"]),
    ("bench", &["url", "baseline", "repetitions", "depths", "from", "csv", "vram", "ram", "llama_server"]),
    ("tune", &["vram", "ram", "ctx_size", "prompt", "generate", "depth", "minutes", "journal", "llama_server"]),
    ("validate", &["model", "results", "vram", "ram", "backend", "llama_server"]),
    ("rules check", &["vram", "ram", "ctx_size"]),
    ("list", &["vram", "gpu", "ram", "machine"]),
    ("devices", &["calibrate", "known", "seconds", "from", "vram", "device", "ram", "backend"]),
];
const PLAN: &[&str] = &[
    "vram",
    "gpu",
    "ram",
    "cpu",
    "ctx_size",
    "rules",
    "objective",
    "prompt",
    "generate",
    "explain",
    "sweep",
    "want",
    "together",
    "emit",
];
/// Options of every command that `-h` shows.
const SHORT_OF_ALL: [&str; 3] = ["json", "output", "help"];

/// The command line with `-h` made to fit a screen, whatever a command's flags.
pub fn fitting(mut command: Command) -> Command {
    for argument in command.get_arguments().map(|argument| argument.get_id().clone()).collect::<Vec<_>>() {
        let is_shown = SHORT_OF_ALL.contains(&argument.as_str());
        command = command.mut_arg(argument, |argument| argument.hide_short_help(!is_shown));
    }
    shorten(command, "moeplan")
}

/// One command and those below it; `path` is what is typed up to here.
fn shorten(mut command: Command, path: &str) -> Command {
    let below: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_string()).collect();
    for name in &below {
        let path = format!("{path} {name}");
        command = command.mut_subcommand(name, |sub| shorten(sub, &path));
    }
    let Some((_, shown)) = SHORT.iter().find(|(known, _)| path.strip_prefix("moeplan ") == Some(known)) else {
        return command;
    };
    for name in *shown {
        debug_assert!(command.get_arguments().any(|argument| argument.get_id() == name), "{path} has no {name}");
    }
    let hidden: Vec<_> = command
        .get_arguments()
        .filter(|argument| !argument.is_positional() && !shown.contains(&argument.get_id().as_str()))
        .map(|argument| argument.get_id().clone())
        .collect();
    for argument in hidden {
        command = command.mut_arg(argument, |argument| argument.hide_short_help(true));
    }
    command
}

/// The examples of a command's help: the lines of commands, without what is said beside them.
pub fn examples(command: &Command) -> Vec<String> {
    let text = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let text = text.unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    lines.map(|line| line.split("   ").next().unwrap_or(line).trim().to_string()).collect()
}
