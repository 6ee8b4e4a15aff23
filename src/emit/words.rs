//! Words of command lines: names made of a model's, on one line, in a script; and reading them back.

use std::collections::BTreeMap;

use super::Error;
use crate::run::command::quoted;
use crate::run::{self, Dialect, ModelSource, ParsedCommand, Target};

/// A name for the model in a configuration: its file's, or its repository's, in letters that every format takes.
pub(super) fn name_of(source: &ModelSource) -> String {
    let stem = |file: &str| {
        let name = file.rsplit(['/', '\\']).next().unwrap_or(file).split('?').next().unwrap_or_default().to_string();
        let name = name.strip_suffix(".gguf").unwrap_or(&name);
        // The first file of a split model: `-00001-of-00003`.
        let whole = name.len().checked_sub("-00001-of-00001".len()).and_then(|at| name.split_at_checked(at));
        let whole = whole.filter(|(_, shard)| shard.get(6..10) == Some("-of-"));
        whole.map_or(name, |(whole, _)| whole).to_string()
    };
    let name = match source {
        ModelSource::Path(path) => stem(&path.to_string_lossy()),
        ModelSource::Url(url) => stem(url),
        ModelSource::HuggingFace { file: Some(file), .. } => stem(file),
        ModelSource::HuggingFace { repo, file: None } | ModelSource::Docker(repo) => {
            repo.rsplit('/').next().unwrap_or(repo).to_string()
        }
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    // `default` and `*` are sections of their own in llama.cpp's presets.
    if name.is_empty() || name == "default" { "model".to_string() } else { name }
}

/// Refuses words with control characters: no form carries them through every reader.
pub(super) fn printable(words: &[String]) -> Result<(), Error> {
    words.iter().find(|word| word.contains(char::is_control)).map_or(Ok(()), |word| {
        Err(Error::Word {
            word: word.clone(),
            problem: "holds a control character",
            form: "an emitted plan",
            instead: "rename the file",
        })
    })
}

/// Words that `$(…)` takes apart again: it splits at spaces and takes quotes literally.
pub(super) fn on_one_line(words: &[String]) -> Result<String, Error> {
    let broken = words.iter().find(|word| word.is_empty() || word.contains(char::is_whitespace));
    broken.map_or_else(
        || Ok(words.join(" ")),
        |word| {
            Err(Error::Word {
                word: word.clone(),
                problem: "is empty or holds a space",
                form: "$(…)",
                instead: "use --emit shell",
            })
        },
    )
}

/// A word in single quotes where it needs any; [`printable`] has refused what cannot be quoted.
pub(super) fn quote(word: &str) -> String {
    quoted(word).unwrap_or_default()
}

/// Words in a line, each as [`quote`] writes it.
pub(super) fn line(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

const SHEBANG: &str = "#!/bin/sh\nexec ";
const REST: &str = " \"$@\"";

/// A script that becomes the program; what it is called with is passed on, and wins.
pub(super) fn script(words: &[String]) -> String {
    format!("{SHEBANG}{}{REST}", line(words))
}

/// The words of [`script`], as a shell would make them.
pub(super) fn of_script(text: &str) -> Option<Vec<String>> {
    shlex::split(text.strip_prefix(SHEBANG)?.strip_suffix(REST)?)
}

/// A command as its program would read it, in the newest build.
pub(super) fn read(
    words: &[String],
    env: &BTreeMap<String, String>,
    dialect: Dialect,
    form: &'static str,
) -> Result<ParsedCommand, Error> {
    let target = Target { dialect, ..Target::newest() };
    run::parse::command_for(words, env, target).map_err(|error| Error::ReadBack { form, problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_files_without_shards_in_plain_letters() {
        let path = |path: &str| name_of(&ModelSource::Path(path.into()));
        let hub = |repo: &str, file: Option<&str>| {
            name_of(&ModelSource::HuggingFace { repo: repo.into(), file: file.map(str::to_string) })
        };
        assert_eq!(path("/m/Qwen3 30B-Q4_K_M-00001-of-00003.gguf"), "Qwen3-30B-Q4_K_M");
        assert_eq!(path("default.gguf"), "model");
        assert_eq!(path("x-00001-of-0001é.gguf"), "x-00001-of-0001-");
        assert_eq!(hub("a/b-GGUF:Q4_0", None), "b-GGUF-Q4_0");
        assert_eq!(hub("a/b-GGUF", Some("sub/c.gguf")), "c");
        assert_eq!(name_of(&ModelSource::Url("https://h/x/y.gguf?download=1".into())), "y");
    }
}
