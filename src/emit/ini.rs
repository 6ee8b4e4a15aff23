//! A preset of llama.cpp's model router: one section, keys that are long flags without dashes.
//!
//! Source: `common/preset.cpp` `parse_ini_from_file`, `common_preset_context::load_from_ini` and `docs/preset.md`, b11434: a
//! value ends at the end of its line or at the first `;` or `#`, nothing is quoted and nothing is escaped.

use std::fmt::Write as _;

use super::Error;
use crate::run::groups;
use crate::run::spelling;

/// A whole preset file with the model as its one section.
pub(super) fn preset(name: &str, command: &[String]) -> Result<String, Error> {
    let args = command.get(1..).unwrap_or_default();
    let mut text = format!("[{name}]\n");
    for group in groups(args) {
        let word = group.first().map(String::as_str).unwrap_or_default();
        let (flag, on) = spelling(word).filter(|(flag, _)| flag.values < 2).ok_or_else(|| Error::Lacks {
            program: "a preset",
            lacks: "takes no flag that llama-server does not have".to_string(),
            instead: "use --emit shell",
        })?;
        let value = match group.get(1) {
            Some(value) => value,
            None if on => "1",
            None => "0",
        };
        check(value)?;
        let _ = writeln!(text, "{} = {value}", flag.name().trim_start_matches('-'));
    }
    Ok(text)
}

fn check(value: &str) -> Result<(), Error> {
    let problem = if value.contains([';', '#']) {
        "holds `;` or `#`"
    } else if value.is_empty() || value.trim() != value {
        "is empty, or begins or ends with a space"
    } else {
        return Ok(());
    };
    let (word, form) = (value.to_string(), "a preset of llama.cpp");
    Err(Error::Word { word, problem, form, instead: "rename the file, or use --emit shell" })
}

/// The command that llama-server's router makes of a preset file with one section.
pub(super) fn read(text: &str) -> Result<Vec<String>, String> {
    let mut command = vec!["llama-server".to_string()];
    let mut sections = 0;
    for line in text.lines() {
        let line = line.split([';', '#']).next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if line.starts_with('[') {
            sections += 1;
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| format!("`{line}` is no KEY = VALUE"))?;
        let (key, value) = (format!("--{}", key.trim()), value.trim());
        let (flag, _) = spelling(&key).ok_or_else(|| format!("{key} is not a flag"))?;
        match (flag.values, value) {
            (0, "0") => command.extend(flag.negated().last().map(str::to_string)),
            (0, _) => command.push(key),
            _ => command.extend([key, value.to_string()]),
        }
    }
    if sections == 1 { Ok(command) } else { Err(format!("it has {sections} sections")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_and_its_way_back() {
        let line =
            r"llama-server -m '/m/a b.gguf' -ngl 99 -nkvo -kvu -ot 'blk\.[0-9]\.(a|b)=CPU,c=CUDA1' --no-op-offload";
        let text = preset("a-b", &shlex::split(line).unwrap()).unwrap();
        assert_eq!(
            text,
            "[a-b]\nmodel = /m/a b.gguf\ngpu-layers = 99\nkv-offload = 0\nkv-unified = 1\n\
             override-tensor = blk\\.[0-9]\\.(a|b)=CPU,c=CUDA1\nop-offload = 0\n"
        );
        assert_eq!(
            read(&text).unwrap().join(" "),
            r"llama-server --model /m/a b.gguf --gpu-layers 99 --no-kv-offload --kv-unified --override-tensor blk\.[0-9]\.(a|b)=CPU,c=CUDA1 --no-op-offload"
        );
    }

    #[test]
    fn what_the_format_cuts_is_refused() {
        for path in ["a;b.gguf", "a#b.gguf", " a.gguf", ""] {
            let command = ["llama-server", "-m", path].map(str::to_string);
            assert!(matches!(preset("x", &command), Err(Error::Word { .. })), "{path}");
        }
        assert!(read("[a]\nx\n").is_err() && read("model = a\n").is_err() && read("[a]\nnothing = 1\n").is_err());
    }
}
