//! A model of llama-swap's configuration: `models.NAME.cmd`, the port left to llama-swap.
//!
//! llama-swap takes a command apart as a POSIX shell does, after putting macros (`${…}`) in; lines are joined.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Error, words};
use crate::run::groups;

/// llama-swap's own macro for the port that it chooses.
const PORT: [&str; 2] = ["--port", "${PORT}"];

/// The part of the configuration that moeplan writes.
#[derive(Debug, Serialize, Deserialize)]
struct Config {
    models: BTreeMap<String, Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    cmd: String,
}

pub(super) fn model(name: &str, command: &[String]) -> Result<String, Error> {
    if let Some(word) = command.iter().find(|word| word.contains("${")) {
        return Err(Error::Word {
            word: word.clone(),
            problem: "holds `${`",
            form: "llama-swap's configuration (it would be a macro)",
            instead: "rename the file",
        });
    }
    let (program, args) = command.split_first().map_or(("", command), |(first, rest)| (first.as_str(), rest));
    let first = format!("{} {}", words::quote(program), PORT.join(" "));
    let lines: Vec<String> = std::iter::once(first).chain(groups(args).into_iter().map(words::line)).collect();
    let models = BTreeMap::from([(name.to_string(), Entry { cmd: lines.join("\n") + "\n" })]);
    serde_yaml::to_string(&Config { models })
        .map_err(|error| Error::ReadBack { form: "llama-swap", problem: error.to_string() })
}

/// The command of a configuration with one model, without the port.
pub(super) fn read(text: &str) -> Result<Vec<String>, String> {
    let config: Config = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    let mut models = config.models.into_values();
    let (Some(entry), None) = (models.next(), models.next()) else { return Err("it has not one model".to_string()) };
    let mut words = shlex::split(&entry.cmd).ok_or("its command cannot be split into words")?;
    let at = words.windows(2).position(|pair| pair == PORT).ok_or("its command leaves the port to nobody")?;
    words.drain(at..at + PORT.len());
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_and_its_way_back() {
        let command = shlex::split(r"llama-server -m '/m/it'\''s #1.gguf' -c 8192 -ot 'a\.(b|c)=CPU' -kvu").unwrap();
        let text = model("its-1", &command).unwrap();
        assert!(text.starts_with("models:\n  its-1:\n    cmd: |\n      llama-server --port ${PORT}\n"), "{text}");
        assert!(text.contains("\n      -c 8192\n"), "{text}");
        assert_eq!(read(&text).unwrap(), command);
    }

    #[test]
    fn macros_in_a_name_are_refused() {
        let command = ["llama-server", "-m", "${HOME}.gguf"].map(str::to_string);
        assert!(matches!(model("x", &command), Err(Error::Word { .. })));
        assert!(read("models: {}").is_err() && read("models: {a: {cmd: llama-server}}").is_err());
    }
}
