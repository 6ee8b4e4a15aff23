//! Help that fits a screen: `-h` shows what is used most, `--help` everything; each command's examples, taken from there.

use clap::Command;
use clap::builder::StyledStr;

/// The flags that `-h` shows of a command, by their names here; arguments are always shown. A command that is not here shows
/// all its own.
const SHORT: &[(&str, &[&str])] = &[
    ("inspect", &["tensors", "metadata", "expect", "vram"]),
    ("check", &["vram", "device", "ram", "machine", "margin", "tensors", "build", "dialect"]),
    ("plan", PLAN),
    ("run", &["vram", "ram", "ctx_size", "parallel", "llama_server", "log", "server_log"]),
    (
        "verify",
        &["vram", "ram", "backend", "ctx_size", "margin", "runtime", "tolerance", "measure_prompt", "repetitions"],
    ),
    ("bench", &["url", "baseline", "repetitions", "depth", "from", "csv", "vram", "ram", "ctx_size", "llama_server"]),
    ("tune", &["vram", "ram", "ctx_size", "prompt", "generate", "depth", "minutes", "journal", "llama_server"]),
    ("validate", &["model", "results", "vram", "ram", "backend", "llama_server"]),
    ("devices", &["calibrate", "seconds", "from", "vram", "device", "ram", "backend"]),
];
const PLAN: &[&str] = &[
    "vram",
    "device",
    "ram",
    "machine",
    "margin",
    "ctx_size",
    "ubatch_size",
    "cache_type_k",
    "override_tensor",
    "rules",
    "strategy",
    "objective",
    "prompt",
    "generate",
    "explain",
    "sweep",
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
    let name = command.get_name().to_string();
    let Some((_, shown)) = SHORT.iter().find(|(known, _)| *known == name) else { return command };
    let hidden: Vec<_> = command
        .get_arguments()
        .filter(|argument| !argument.is_positional() && !shown.contains(&argument.get_id().as_str()))
        .map(|argument| argument.get_id().clone())
        .collect();
    for argument in hidden {
        command = command.mut_arg(argument, |argument| argument.hide_short_help(true));
    }
    let examples = command.get_after_help().cloned().unwrap_or_default();
    let short = format!("{}\n\nEvery flag: {path} --help", examples.ansi());
    command.after_help(StyledStr::from(short.trim_start().to_string())).after_long_help(examples)
}

/// The examples of a command's help: the lines of commands, without what is said beside them.
pub fn examples(command: &Command) -> Vec<String> {
    let text = command.get_after_long_help().or(command.get_after_help()).map(|text| text.to_string());
    let text = text.unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    lines.map(|line| line.split("   ").next().unwrap_or(line).trim().to_string()).collect()
}
