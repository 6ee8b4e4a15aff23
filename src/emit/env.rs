//! An env file: one `LLAMA_ARG_…` a flag, quoted so that a shell, systemd and Compose read the same value.
//!
//! Source: `common/arg.cpp` `common_arg::get_value_from_env`, b11434. What has no variable there stays in the command that
//! the file's first comment gives.

use std::collections::BTreeMap;

use super::{Error, words};
use crate::run::groups;
use crate::run::spelling;

/// The text and what it leaves to the command line.
#[derive(Debug)]
pub(super) struct File {
    pub text: String,
    pub notes: Vec<String>,
}

/// What the comment with the command begins with.
const START: &str = "# Start: ";

/// The env file of a command, its program first.
pub(super) fn file(command: &[String]) -> Result<File, Error> {
    let (program, args) = command.split_first().map_or(("", command), |(first, rest)| (first.as_str(), rest));
    let mut lines = Vec::new();
    let mut without = vec![program.to_string()];
    for group in groups(args) {
        let value = group.get(1).map_or("1", String::as_str);
        match group.first().and_then(|word| spelling(word)).and_then(|(flag, on)| Some((flag.environment?, on))) {
            Some((name, on)) => lines.push(format!("{name}={}", quote(if on { value } else { "0" })?)),
            None => without.extend(group.iter().cloned()),
        }
    }
    let left = without.get(1..).filter(|rest| !rest.is_empty()).map(words::line);
    let note = |rest: &String| {
        format!("llama.cpp has no variable for `{rest}`: the file's first line says the command to start with")
    };
    let text = format!("{START}{}\n{}\n", words::line(&without), lines.join("\n"));
    Ok(File { text, notes: left.iter().map(note).collect() })
}

/// A value in single quotes, or in double ones where it holds a single one: what is inside is literal in both, for a POSIX
/// shell, systemd's EnvironmentFile and Compose's env_file. (`docker run --env-file` knows no quotes at all.)
fn quote(value: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+%@".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return Ok(value.to_string());
    }
    if !value.contains('\'') {
        return Ok(format!("'{value}'"));
    }
    if value.contains(['"', '\\', '$', '`']) {
        return Err(Error::Word {
            word: value.to_string(),
            problem: "holds a single quote beside `\"`, `\\`, `$` or a backtick",
            form: "an env file",
            instead: "use --emit shell",
        });
    }
    Ok(format!("\"{value}\""))
}

/// The variables of a file and the command of its first comment.
pub(super) fn read(text: &str) -> Result<(BTreeMap<String, String>, Vec<String>), String> {
    let mut lines = text.lines();
    let start = lines.next().and_then(|line| line.strip_prefix(START)).ok_or("no command in its first line")?;
    let words = shlex::split(start).ok_or("its command cannot be split into words")?;
    let mut variables = BTreeMap::new();
    for line in lines {
        let (name, value) = line.split_once('=').ok_or_else(|| format!("`{line}` is no NAME=VALUE"))?;
        let value = shlex::split(value).filter(|words| words.len() == 1).and_then(|words| words.into_iter().next());
        let value = value.ok_or_else(|| format!("`{line}` is not one value"))?;
        if variables.insert(name.to_string(), value).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok((variables, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_variables_and_the_rest_stays_a_command() {
        let command: Vec<String> =
            shlex::split("llama-server -m 'it is.gguf' -c 8192 -no-kvu -tb 8 -ot 'a|b=CPU' --no-op-offload").unwrap();
        let file = file(&command).unwrap();
        assert_eq!(
            file.text,
            "# Start: llama-server -tb 8 --no-op-offload\nLLAMA_ARG_MODEL='it is.gguf'\nLLAMA_ARG_CTX_SIZE=8192\n\
             LLAMA_ARG_KV_UNIFIED=0\nLLAMA_ARG_OVERRIDE_TENSOR='a|b=CPU'\n"
        );
        assert_eq!(file.notes.len(), 1);
        let (variables, words) = read(&file.text).unwrap();
        assert_eq!(variables.get("LLAMA_ARG_MODEL").map(String::as_str), Some("it is.gguf"));
        assert_eq!(words.join(" "), "llama-server -tb 8 --no-op-offload");
    }

    #[test]
    fn values_that_readers_differ_on_are_refused() {
        assert_eq!(quote("it's").unwrap(), "\"it's\"");
        assert_eq!(quote(r"a\b $x").unwrap(), r"'a\b $x'");
        assert_eq!(quote("").unwrap(), "''");
        assert!(quote("it's $x").is_err());
    }

    #[test]
    fn broken_files_are_told() {
        for (text, problem) in [
            ("LLAMA_ARG_MODEL=x\n", "first line"),
            ("# Start: a\nno\n", "NAME=VALUE"),
            ("# Start: a\nA=1\nA=2\n", "twice"),
            ("# Start: a\nA=1 2\n", "one value"),
        ] {
            assert!(read(text).unwrap_err().contains(problem), "{text}");
        }
    }
}
