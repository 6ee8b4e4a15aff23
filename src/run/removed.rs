//! Flags that llama.cpp had once: read as they were meant, and noted where the build refuses them.

use super::parse::Launch;
use super::settings;
use super::values::Given;
use super::{Error, LoadMode};

/// A flag that the reference does not have any more: carried out as it was meant, and noted where the build refuses it.
pub(super) fn removed(launch: &mut Launch, word: &str, instead: &str) -> Result<(), Error> {
    let target = launch.command.target;
    let instead = match (word, launch.command.run.load_mode) {
        ("--mlock", LoadMode::None) | ("--no-mmap", LoadMode::MmapMlock | LoadMode::Mlock) => "--load-mode mlock",
        _ => instead,
    };
    if let Some((flag, value)) = instead.split_once(' ') {
        settings::apply(launch, flag, true, Given { flag: word, value })?;
        if target.takes_mmap_flags() {
            return Ok(());
        }
        // The last of several says what they come to.
        let earlier = launch.command.notes.iter_mut().filter(|note| note.code == "removed-flag");
        for note in earlier.filter(|note| note.hint.as_deref().is_some_and(|hint| hint.contains(flag))) {
            note.hint = None;
        }
    }
    launch.command.note(
        "removed-flag",
        format!("`{word}` was removed: {} refuses it", target.name()),
        Some(format!("use `{instead}`")),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::run::parse::command;

    #[test]
    fn removed_flags_of_loading_are_read_as_they_were_meant() {
        for (words, mode, hints) in [
            ("--no-mmap", LoadMode::None, vec!["use `--load-mode none`"]),
            ("--mlock", LoadMode::MmapMlock, vec!["use `--load-mode mmap+mlock`"]),
            ("--no-mmap --mlock", LoadMode::Mlock, vec!["use `--load-mode mlock`"]),
            ("--mlock --no-mmap", LoadMode::Mlock, vec!["use `--load-mode mlock`"]),
            ("--no-mmap --draft 3", LoadMode::None, vec!["use `--load-mode none`", "use `--spec-draft-n-max`"]),
        ] {
            let command = {
                let line = format!("llama-server {words}").split(' ').map(str::to_string).collect::<Vec<_>>();
                command(&line, &BTreeMap::new()).unwrap()
            };
            let found: Vec<&str> = command.notes.iter().filter_map(|note| note.hint.as_deref()).collect();
            assert_eq!((command.run.load_mode, found), (mode, hints), "{words}");
        }
    }
}
