//! Files and texts that hold commands: presets of llama.cpp's router, llama-swap's configuration, Compose files, env files, systemd
//! units, koboldcpp's settings, and what a shell reads.

use std::collections::BTreeMap;

use serde_yaml::Value;

use super::command::quoted;
use super::flags::{self, Flag};
use super::held::{self, Files, Group, Held, Loaded, assignment, of_words, split};
use super::{Error, spelling};

/// How a text holds commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Lines of a shell: a script, or a command that was pasted.
    Shell,
    /// `models.ini` (`llama-server --models-preset`).
    Preset,
    LlamaSwap,
    Compose,
    /// `LLAMA_ARG_…=VALUE` lines.
    Env,
    /// A systemd unit, or Podman's `.container`.
    Unit,
    /// koboldcpp's `.kcpps`.
    Kobold,
}

impl Kind {
    /// What a text is, by its name's ending and by what is in it.
    pub fn of(name: &str, text: &str) -> Self {
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
        let has = |start: &str| text.lines().any(|line| line.trim_start().starts_with(start));
        let is_variable =
            |line: &str| assignment(line.trim()).is_some_and(|(name, value)| !value.contains(" -") && !name.is_empty());
        let mut plain =
            text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')).peekable();
        match ending {
            "kcpps" | "kcppt" => Self::Kobold,
            "service" | "container" => Self::Unit,
            _ if has("[Service]") || has("[Container]") => Self::Unit,
            _ if has("services:") && text.contains("image:") => Self::Compose,
            _ if has("models:") && text.contains("cmd:") => Self::LlamaSwap,
            _ if has("services:") => Self::Compose,
            "ini" => Self::Preset,
            "env" => Self::Env,
            _ if plain
                .peek()
                .is_some_and(|line| line.trim_start().starts_with('[') && line.trim_end().ends_with(']')) =>
            {
                Self::Preset
            }
            _ if plain.peek().is_some() && plain.all(is_variable) => Self::Env,
            _ => Self::Shell,
        }
    }
}

/// Every command of a text.
pub fn of_text(kind: Kind, text: &str, files: Files<'_>) -> Result<Vec<Held>, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let found = match kind {
        Kind::Shell => shell(text, files)?,
        Kind::Preset => preset(text, &[])?,
        Kind::LlamaSwap => llama_swap(&yaml(text)?, files)?,
        Kind::Compose => compose(&yaml(text)?, files, &Project::default())?,
        Kind::Env => vec![env(text)?],
        Kind::Unit => vec![unit(text, files)?],
        Kind::Kobold => vec![kobold(text, files)?],
    };
    if found.is_empty() { Err(Error::NoCommand) } else { Ok(found) }
}

/// Every command that a command stands for: one, or those of a file that it reads.
pub fn of_command(words: &[String], files: Files<'_>) -> Result<Vec<Held>, Error> {
    // A server of several models: `llama-server --models-preset FILE`, `llama-swap --config FILE`, `docker compose -f FILE up`.
    let all_after = |names: &[&str]| -> Vec<String> {
        let value = |(at, word): (usize, &String)| match word.split_once('=') {
            Some((name, value)) if names.contains(&name) => Some(value.to_string()),
            _ => words.get(at.saturating_add(1)).filter(|_| names.contains(&word.as_str())).cloned(),
        };
        words.iter().enumerate().filter_map(value).collect()
    };
    let after = |names: &[&str]| all_after(names).into_iter().next();
    let is = |name: &str| words.iter().any(|word| held::file_name(word) == name);
    let read = |name: &str| files(name).ok_or_else(|| Error::NoFile(name.to_string()));
    if is("llama-swap") {
        let name = after(&["--config", "-config", "-c"]).unwrap_or_else(|| "config.yaml".to_string());
        return of_text(Kind::LlamaSwap, &read(&name)?, files);
    }
    let is_compose = words.windows(2).any(|pair| {
        pair.first().is_some_and(|word| word == "docker" || word == "podman")
            && pair.last().is_some_and(|word| word == "compose")
    });
    if is_compose || is("docker-compose") || is("podman-compose") {
        let mut names = all_after(&["-f", "--file"]);
        if names.is_empty() {
            let found = |names: &[&str]| names.iter().find(|name| files(name).is_some()).map(ToString::to_string);
            names.push(found(&COMPOSE).unwrap_or_else(|| COMPOSE[0].to_string()));
            names.extend(found(&OVERRIDES));
        }
        let name = names.first().cloned().unwrap_or_default();
        let folder = after(&["--project-directory"]).or_else(|| Some(name.rsplit_once('/')?.0.to_string()));
        let started = words.iter().skip_while(|word| !STARTING.contains(&word.as_str())).skip(1);
        let project = Project {
            folder: folder.unwrap_or_default(),
            started: started.filter(|word| !word.starts_with('-')).cloned().collect(),
            profiles: Some(all_after(&["--profile"])),
        };
        let mut config = Value::Null;
        for name in &names {
            config = merged(config, &yaml(&read(name)?)?);
        }
        let found = compose(&config, files, &project)?;
        return if found.is_empty() { Err(Error::NoCommand) } else { Ok(found) };
    }
    let held = of_words(words, files)?;
    let Some(at) = held.words.iter().position(|word| word == "--models-preset") else { return Ok(vec![held]) };
    let name = held.words.get(at.saturating_add(1)).cloned().unwrap_or_default();
    let mut base = held.words.clone();
    base.drain(at..base.len().min(at.saturating_add(2)));
    let of_models = preset(&read(&name)?, base.get(1..).unwrap_or_default())?;
    let most = after(&["--models-max"]).or_else(|| held.environment.get("LLAMA_ARG_MODELS_MAX").cloned());
    let most: Option<usize> = most.and_then(|most| most.parse().ok());
    let Held { environment, notes, memory, image, inside, .. } = held;
    let of_router = |model: Held| {
        let (environment, notes, inside) = (environment.clone(), notes.clone(), inside.clone());
        let loaded = match (&model.loaded, most) {
            // 0 is no limit.
            (Loaded::UpTo { .. }, Some(0)) => Loaded::In(Group::of_all("router")),
            (Loaded::UpTo { .. }, Some(most)) => Loaded::UpTo { most, is_said: true },
            (as_read, _) => as_read.clone(),
        };
        Held { environment, notes, memory, image, inside, loaded, ..model }
    };
    Ok(of_models.into_iter().map(of_router).collect())
}

/// Lines of a shell. One that begins with `#` is a comment, unless nothing else is there: then that is root's prompt.
fn shell(text: &str, files: Files<'_>) -> Result<Vec<Held>, Error> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    shell_lines(&lines.collect::<Vec<_>>().join("\n"), files).or_else(|_| shell_lines(text, files))
}

/// Those that set variables, and those that start a program of llama.cpp.
fn shell_lines(text: &str, files: Files<'_>) -> Result<Vec<Held>, Error> {
    let (mut variables, mut found, mut first_error) = (BTreeMap::new(), Vec::new(), None);
    for line in held::lines(text) {
        let set = ["export ", "set ", "$env:"].iter().find_map(|start| line.strip_prefix(start)).unwrap_or(&line);
        let set = set.trim().replacen(" = ", "=", 1);
        let words = split(&set).unwrap_or_default();
        if let [only] = words.as_slice()
            && let Some((name, value)) = assignment(only)
        {
            variables.insert(name.to_string(), value.to_string());
            continue;
        }
        let line = expanded(&line, &variables, true);
        let words = split(&line).ok_or(Error::Quotes)?;
        match of_words(&words, files) {
            Ok(mut held) => {
                held.environment = variables.clone().into_iter().chain(held.environment).collect();
                found.push(held);
            }
            Err(_) if words.is_empty() => {}
            // Of a text of one command its error is told; beside commands other lines are no matter.
            Err(error) => _ = first_error.get_or_insert(error),
        }
    }
    if found.len() > 1 {
        (1..)
            .zip(&mut found)
            .for_each(|(number, held): (usize, &mut Held)| held.name = Some(format!("command {number}")));
    }
    if found.is_empty() { Err(first_error.unwrap_or(Error::NoCommand)) } else { Ok(found) }
}

/// `~/`, `$NAME`, `${NAME}` and `${NAME:-VALUE}` by the variables of a text and the home of the person; others stay as they are. Only a
/// shell knows `~`.
fn expanded(text: &str, variables: &BTreeMap<String, String>, is_shell: bool) -> String {
    let home = || std::env::var("HOME").ok();
    let value = |name: &str| variables.get(name).cloned().or_else(|| home().filter(|_| name == "HOME"));
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let starts_word = out.is_empty() || out.ends_with(|c: char| c.is_whitespace() || "=:\"".contains(c));
        let braced = rest.strip_prefix("${").and_then(|inner| inner.split_once('}'));
        let plain = rest.strip_prefix('$').map(|name| {
            name.split_at_checked(name.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count())
                .unwrap_or_default()
        });
        if let Some((inner, after)) = braced {
            let (name, default) = inner
                .split_once(":-")
                .or_else(|| inner.split_once('-'))
                .map_or((inner, None), |(name, default)| (name, Some(default)));
            if let Some(found) = value(name).or_else(|| default.map(str::to_string)) {
                out += &found;
                rest = after;
                continue;
            }
        } else if let Some((name, after)) = plain.filter(|(name, _)| !name.is_empty())
            && let Some(found) = value(name)
        {
            out += &found;
            rest = after;
            continue;
        } else if let (true, true, Some(after), Some(home)) = (is_shell, starts_word, rest.strip_prefix("~/"), home()) {
            out = out + &home + "/";
            rest = after;
            continue;
        }
        out.push(c);
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    out
}

/// Models that llama-server's router keeps loaded where `--models-max` does not say how many (`common/common.h`, b11434).
const MODELS_MAX: usize = 4;

/// The number of a line, its flag and its words.
type Setting = (usize, &'static Flag, Vec<String>);

/// The sections of a preset file: keys are flags without dashes, or their variables; `[*]` is for all; `base` is the router's own command
/// line, which wins (`common/preset.cpp` `parse_ini_from_file`, `common_preset_context::load_from_ini` and
/// `tools/server/README.md`, b11434). A value ends at the end of its line or at the first `;` or `#`, nothing is quoted.
pub fn preset(text: &str, base: &[String]) -> Result<Vec<Held>, Error> {
    let mut sections: Vec<(String, Vec<Setting>)> = Vec::new();
    let mut at_startup: Vec<String> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split([';', '#']).next().unwrap_or_default().trim();
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            sections.push((name.trim().to_string(), Vec::new()));
            continue;
        }
        let section = sections.last().map(|(name, _)| name.clone());
        let refused = |expected| Error::Line { line: line.to_string(), expected }.at_line(number, section.as_deref());
        let Some((key, value)) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
            if line.is_empty() {
                continue;
            }
            return Err(refused("KEY = VALUE"));
        };
        if key == "load-on-startup" && matches!(value, "1" | "on" | "true" | "enabled") {
            at_startup.extend(section.clone());
        }
        if matches!(key, "version" | "load-on-startup" | "stop-timeout" | "dedup-cache-models") {
            continue;
        }
        let words = ["--", "-"].iter().find_map(|dashes| {
            let word = format!("{dashes}{key}");
            let (flag, on) = spelling(&word)?;
            // Literally: `ctx_size` is not one, other than on the command line.
            flag.names().chain(flag.negated()).any(|name| name == word).then_some((flag, on, word))
        });
        let of_variable = || {
            flags::FLAGS
                .iter()
                .find(|flag| flag.environment == Some(key))
                .map(|flag| (flag, true, flag.name().to_string()))
        };
        // A flag of builds before `--load-mode`, which is read as it stands.
        let of_old = || {
            let word = format!("--{key}");
            flags::new_load_mode(&word).and_then(|_| Some((spelling("--load-mode")?.0, word)))
        };
        let is_off = matches!(value, "0" | "off" | "false" | "disabled");
        if let (None, Some((flag, word))) = (&words, of_old()) {
            let word = match (key, is_off) {
                ("mmap", true) => Some("--no-mmap".to_string()),
                (_, is_off) => Some(word).filter(|_| !is_off),
            };
            if let Some((_, settings)) = sections.last_mut() {
                settings.extend(word.map(|word| (number, flag, vec![word])));
            }
            continue;
        }
        let (flag, on, word) =
            words.or_else(of_variable).ok_or_else(|| refused("a flag of llama-server (`ctx-size`, not `ctx_size`)"))?;
        let words = match (flag.values, is_off == on) {
            (0, true) => flag.negated().last().map(str::to_string).into_iter().collect(),
            (0, false) => vec![flag.name().to_string()],
            _ => vec![word, value.to_string()],
        };
        if sections.is_empty() {
            sections.push(("default".to_string(), Vec::new()));
        }
        if let Some((_, settings)) = sections.last_mut() {
            settings.push((number, flag, words));
        }
    }
    let shared = sections.iter().find(|(name, _)| name == "*").map_or_else(Vec::new, |(_, settings)| settings.clone());
    let models = sections.iter().filter(|(name, settings)| name != "*" && !(name == "default" && settings.is_empty()));
    let held = models.map(|(name, own)| {
        let kept = shared.iter().filter(|(_, flag, _)| own.iter().all(|(_, other, _)| other.name() != flag.name()));
        let settings: Vec<_> = kept.chain(own).collect();
        let lines = settings.iter().map(|(number, _, words)| (*number, words.clone())).collect();
        let names_model = |name: &str| ["--model", "--hf-repo", "--model-url", "--docker-repo"].contains(&name);
        let mut words = vec!["llama-server".to_string()];
        if !settings.iter().any(|(_, flag, _)| names_model(flag.name())) && name.contains('/') {
            words.extend(["-hf".to_string(), name.clone()]);
        }
        words.extend(settings.into_iter().flat_map(|(.., words)| words.clone()));
        words.extend(base.iter().cloned());
        let loaded = match at_startup.as_slice() {
            [_, _, ..] if at_startup.contains(name) => Loaded::In(Group::of_all("startup")),
            [_, _, ..] => Loaded::Alone,
            _ => Loaded::UpTo { most: MODELS_MAX, is_said: false },
        };
        Held { words, name: Some(name.clone()), lines, loaded, ..Held::default() }
    });
    Ok(held.collect())
}

/// A YAML text, with what `<<: *anchor` brings in its place.
fn yaml(text: &str) -> Result<Value, Error> {
    let unread = |error: serde_yaml::Error| Error::Unread(error.to_string());
    let mut value: Value = serde_yaml::from_str(text).map_err(unread)?;
    value.apply_merge().map_err(unread)?;
    Ok(value)
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

fn entries(value: Option<&Value>) -> impl Iterator<Item = (String, &Value)> {
    let map = value.and_then(Value::as_mapping);
    map.into_iter().flatten().filter_map(|(name, value)| Some((text_of(name)?, value)))
}

/// `NAME=VALUE` lines of a list, or of a mapping.
fn pairs(value: Option<&Value>) -> Vec<String> {
    let listed = value.and_then(Value::as_sequence).into_iter().flatten().filter_map(text_of);
    listed.chain(entries(value).filter_map(|(name, value)| Some(format!("{name}={}", text_of(value)?)))).collect()
}

/// The models of llama-swap's configuration: macros are put in, comments and line ends taken out (its README, "configuration").
fn llama_swap(config: &Value, files: Files<'_>) -> Result<Vec<Held>, Error> {
    let mut found = Vec::new();
    let groups: Vec<(String, &Value)> = entries(config.get("groups")).collect();
    let group_of = |model: &str| {
        let members = |group: &Value| group.get("members").and_then(Value::as_sequence).cloned().unwrap_or_default();
        let is_in =
            |(_, group): &&(String, &Value)| members(group).iter().any(|name| text_of(name).as_deref() == Some(model));
        let (name, group) = groups.iter().find(is_in).map(|(name, group)| (name.as_str(), *group)).unzip();
        let is = |key: &str, usual| group.and_then(|group| group.get(key)?.as_bool()).unwrap_or(usual);
        let (swap, is_exclusive) = (is("swap", true), is("exclusive", true) && !is("persistent", false));
        Loaded::In(Group { name: name.unwrap_or_default().to_string(), swap, is_exclusive })
    };
    for (name, model) in entries(config.get("models")) {
        let mut macros: BTreeMap<String, String> =
            [("PORT", "8080"), ("MODEL_ID", &name)].map(|(name, value)| (name.to_string(), value.to_string())).into();
        for (name, value) in entries(config.get("macros")).chain(entries(model.get("macros"))) {
            if let Some(text) = text_of(value) {
                let text = expanded(&text, &macros, false);
                macros.insert(name, text);
            }
        }
        let told = |error: Error| error.of(format!("models.{name}"));
        let missing = || Error::Line { line: name.clone(), expected: "a model with `cmd`" };
        let command = model.get("cmd").and_then(text_of).ok_or_else(missing)?;
        let lines: Vec<&str> = command
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .map(|line| line.trim_end_matches('\\'))
            .collect();
        let words = split(&expanded(&lines.join(" "), &macros, false)).ok_or_else(|| told(Error::Quotes))?;
        let variables = pairs(model.get("env"));
        let words: Vec<String> =
            variables.into_iter().map(|pair| expanded(&pair, &macros, false)).chain(words).collect();
        let held = of_words(&words, files).map_err(told)?;
        found.push(Held { loaded: group_of(&name), name: Some(name), ..held });
    }
    Ok(found)
}

/// The names that `docker compose` looks for, in its order, and its commands that start services.
const COMPOSE: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// The file that it reads after that one, and merges into it.
const OVERRIDES: [&str; 4] =
    ["compose.override.yaml", "compose.override.yml", "docker-compose.override.yml", "docker-compose.override.yaml"];
const STARTING: [&str; 5] = ["up", "start", "restart", "create", "run"];

/// How `docker compose` was called.
#[derive(Debug, Default)]
struct Project {
    /// The project's folder, which relative paths of the file begin at; empty: that of the reader.
    folder: String,
    /// The words after its command, among them the services that are started; all are where none is named.
    started: Vec<String>,
    /// The profiles that are asked for, without which a service of a profile is started by name only; `None`: the file is read alone.
    profiles: Option<Vec<String>>,
}

impl Project {
    fn path(&self, path: &str) -> String {
        within(&self.folder, path)
    }

    /// The services of a file that are started: those named and what they depend on, else all.
    fn services<'a>(&self, config: &'a Value) -> Vec<(String, &'a Value)> {
        let all: Vec<_> = entries(config.get("services")).collect();
        let mut named: Vec<String> =
            self.started.iter().filter(|word| all.iter().any(|(name, _)| name == *word)).cloned().collect();
        if named.is_empty() {
            let is_started = |service: &Value| {
                let (Some(of), Some(asked)) = (service.get("profiles").and_then(Value::as_sequence), &self.profiles)
                else {
                    return true;
                };
                of.is_empty() || of.iter().filter_map(text_of).any(|profile| asked.contains(&profile))
            };
            return all.into_iter().filter(|(_, service)| is_started(service)).collect();
        }
        let mut at = 0;
        while let Some((_, service)) = named.get(at).and_then(|name| all.iter().find(|(known, _)| known == name)) {
            let on = service.get("depends_on");
            let listed = on.and_then(Value::as_sequence).into_iter().flatten().filter_map(text_of);
            let needed: Vec<String> =
                listed.chain(entries(on).map(|(name, _)| name)).filter(|name| !named.contains(name)).collect();
            named.extend(needed);
            at = at.saturating_add(1);
        }
        all.into_iter().filter(|(name, _)| named.contains(name)).collect()
    }
}

/// A path that begins at a folder; one that begins elsewhere, or at the reader's own folder, as it is.
fn within(folder: &str, path: &str) -> String {
    let is_absolute = path.starts_with(['/', '~', '\\']) || path.get(1..2) == Some(":");
    if is_absolute || folder.is_empty() { path.to_string() } else { format!("{folder}/{path}") }
}

/// What Compose makes of a setting and the one that comes after it: mappings and lists are joined, all else is replaced
/// (compose-spec, "Merge").
fn merged(base: Value, own: &Value) -> Value {
    let list = |value: &Value| value.as_sequence().cloned().unwrap_or_else(|| vec![value.clone()]);
    match (base, own) {
        (Value::Mapping(mut all), Value::Mapping(own)) => {
            for (key, value) in own {
                let value = match (key.as_str(), all.get(key)) {
                    (Some("command" | "entrypoint"), _) | (_, None) => value.clone(),
                    (Some("environment"), Some(base)) if !value.is_null() => {
                        let both = [base, value].into_iter().flat_map(|value| pairs(Some(value)));
                        Value::Sequence(both.map(Value::String).collect())
                    }
                    (Some("env_file"), Some(base)) => Value::Sequence([list(base), list(value)].concat()),
                    (_, Some(base)) => merged(base.clone(), value),
                };
                all.insert(key.clone(), value);
            }
            Value::Mapping(all)
        }
        (Value::Sequence(all), Value::Sequence(own)) => Value::Sequence([&all[..], own].concat()),
        (_, own) => own.clone(),
    }
}

/// The entries of a list, or what stands in its place alone.
fn each(value: Option<&mut Value>) -> Vec<&mut Value> {
    match value {
        Some(Value::Sequence(list)) => list.iter_mut().collect(),
        other => other.into_iter().collect(),
    }
}

/// How many services may extend one another.
const MOST_EXTENDED: u32 = 16;

/// A service of a file in `folder`, merged with what it extends; its paths begin in that folder.
fn extended(config: &Value, name: &str, folder: &str, files: Files<'_>, depth: u32) -> Result<Value, Error> {
    let refused =
        || Error::Line { line: format!("extends: {name}"), expected: "a service that is there, and no circle" };
    let services = config.get("services").filter(|_| depth < MOST_EXTENDED);
    let own = services.and_then(|services| services.get(name)).ok_or_else(refused)?;
    let Some(extends) = own.get("extends") else { return Ok(own.clone()) };
    let base = text_of(extends).or_else(|| text_of(extends.get("service")?)).ok_or_else(refused)?;
    let Some(file) = extends.get("file").and_then(text_of) else {
        return Ok(merged(extended(config, &base, folder, files, depth.saturating_add(1))?, own));
    };
    let path = within(folder, &file);
    let other = yaml(&files(&path).ok_or_else(|| Error::NoFile(path.clone()))?)?;
    let folder_of = |path: &str| path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_string());
    let mut base = extended(&other, &base, &folder_of(&path), files, depth.saturating_add(1))?;
    // Its paths begin where its own file is.
    let at = folder_of(&file);
    let moved = |value: &mut Value, is_path: fn(&str) -> bool| {
        if let Some(path) = value.as_str().filter(|path| is_path(path)) {
            let dot = if path.starts_with('.') { "./" } else { "" };
            *value = Value::String(format!("{dot}{}", within(&at, path)));
        }
    };
    for volume in each(base.get_mut("volumes")) {
        let short = if volume.is_mapping() { volume.get_mut("source") } else { Some(volume) };
        if let Some(path) = short {
            moved(path, |path| path.starts_with('.'));
        }
    }
    for file in each(base.get_mut("env_file")) {
        let path = if file.is_mapping() { file.get_mut("path") } else { Some(file) };
        if let Some(path) = path {
            moved(path, |_| true);
        }
    }
    Ok(merged(base, own))
}

/// The variables of an env file as Compose and systemd read it: quotes are taken off. Lines that set none are left out.
fn variables(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(|line| line.trim().trim_start_matches("export ")).filter_map(assignment);
    lines.map(|(name, value)| (name.to_string(), unquoted(value))).collect()
}

/// Compose and systemd keep the spaces of a value that has no quotes.
fn unquoted(value: &str) -> String {
    match shlex::split(value).as_deref() {
        Some([word]) => word.clone(),
        _ => value.trim().to_string(),
    }
}

/// The files of a service's `env_file`: a name, names, or mappings with `path`, `required` and `format`.
fn env_files(service: &Value, files: Files<'_>, project: &Project) -> Result<Vec<(String, String)>, Error> {
    let listed = match service.get("env_file") {
        Some(Value::Sequence(list)) => list.iter().collect(),
        Some(only) => vec![only],
        None => Vec::new(),
    };
    let mut found = Vec::new();
    for entry in listed {
        let Some(name) = text_of(entry).or_else(|| entry.get("path").and_then(text_of)) else { continue };
        let is_needed = entry.get("required").and_then(Value::as_bool) != Some(false);
        let is_raw = entry.get("format").and_then(Value::as_str) == Some("raw");
        let path = project.path(&name);
        match files(&path) {
            Some(text) if is_raw => {
                let pairs = text.lines().filter_map(assignment);
                found.extend(pairs.map(|(name, value)| (name.to_string(), value.to_string())));
            }
            Some(text) => found.extend(variables(&text)),
            None if is_needed => return Err(Error::NoFile(path)),
            None => {}
        }
    }
    Ok(found)
}

/// The services of a Compose file that run llama.cpp, each as the `docker run` that does the same (compose-spec, 2025).
fn compose(config: &Value, files: Files<'_>, project: &Project) -> Result<Vec<Held>, Error> {
    let (mut found, mut first_error) = (Vec::new(), None);
    let variables: BTreeMap<String, String> =
        files(&project.path(".env")).iter().flat_map(|text| variables(text)).collect();
    let expand = |text: &str| {
        let parts: Vec<String> = text.split("$$").map(|part| expanded(part, &variables, true)).collect();
        parts.join("$")
    };
    for (name, _) in project.services(config) {
        let service = &extended(config, &name, &project.folder, files, 0)?;
        let image = service.get("image").and_then(text_of);
        let mut words = vec!["docker".to_string(), "run".to_string()];
        if service.get("privileged").and_then(Value::as_bool) == Some(true) {
            words.push("--privileged".to_string());
        }
        match env_files(service, files, project) {
            Ok(pairs) => {
                words.extend(pairs.into_iter().flat_map(|(name, value)| ["-e".to_string(), format!("{name}={value}")]));
            }
            Err(error) if image.as_ref().is_some_and(|image| image.contains("llama")) => return Err(error),
            // Of a service that is none of llama.cpp's nothing is asked.
            Err(_) => {}
        }
        let mut option = |option: &str, value: &str| words.extend([option.to_string(), expand(value)]);
        let list = |key: &str| {
            let value = service.get(key);
            value.and_then(Value::as_sequence).map(|list| list.iter().filter_map(text_of).collect::<Vec<_>>())
        };
        for pair in pairs(service.get("environment")) {
            option("-e", &pair);
        }
        for volume in service.get("volumes").and_then(Value::as_sequence).into_iter().flatten() {
            let long = volume.get("source").and_then(text_of).zip(volume.get("target").and_then(text_of));
            if let Some(short) = text_of(volume).or(long.map(|(source, target)| format!("{source}:{target}"))) {
                // Without a dot or a slash it is the name of a volume.
                let short = if short.starts_with('.') { project.path(&short) } else { short };
                option("-v", &short);
            }
        }
        let nodes = service.get("devices").and_then(Value::as_sequence).into_iter().flatten();
        for node in nodes.filter_map(|node| text_of(node).or_else(|| node.get("source").and_then(text_of))) {
            option("--device", &node);
        }
        if let Some(runtime) = service.get("runtime").and_then(text_of) {
            option("--runtime", &runtime);
        }
        let reserved =
            ["deploy", "resources", "reservations", "devices"].iter().try_fold(service, |value, key| value.get(*key));
        let devices = reserved.or(service.get("gpus"));
        if let Some(all) = devices.and_then(text_of) {
            option("--gpus", &all);
        }
        for device in devices.and_then(Value::as_sequence).into_iter().flatten() {
            let ids = device
                .get("device_ids")
                .and_then(Value::as_sequence)
                .map(|ids| ids.iter().filter_map(text_of).collect::<Vec<_>>().join(","));
            let count = device.get("count").and_then(text_of);
            option("--gpus", &ids.map_or_else(|| count.unwrap_or("all".to_string()), |ids| format!("device={ids}")));
        }
        if let Some(folder) = service.get("working_dir").and_then(text_of) {
            option("-w", &folder);
        }
        let limits = ["deploy", "resources", "limits", "memory"].iter().try_fold(service, |value, key| value.get(*key));
        if let Some(limit) = limits.or(service.get("mem_limit")).and_then(text_of) {
            option("--memory", &limit);
        }
        let all = |key: &str| list(key).or_else(|| split(&service.get(key).and_then(text_of)?)).unwrap_or_default();
        let entrypoint = all("entrypoint");
        if let Some(program) = entrypoint.first() {
            option("--entrypoint", program);
        }
        let Some(image) = image else { continue };
        words.push(expand(&image));
        words.extend(entrypoint.iter().skip(1).chain(&all("command")).map(|word| expand(word)));
        let is_llama = image.contains("llama")
            || words.iter().any(|word| word.contains("llama") || word.starts_with("LLAMA_ARG_"));
        match of_words(&words, files) {
            _ if !is_llama => {}
            Ok(held) => found.push(Held { name: Some(name), loaded: Loaded::In(Group::of_all("services")), ..held }),
            Err(error) => _ = first_error.get_or_insert(error.of(format!("services.{name}"))),
        }
    }
    if found.is_empty() { Err(first_error.unwrap_or(Error::NoCommand)) } else { Ok(found) }
}

/// What the comment with the command of an env file begins with.
pub const START: &str = "# Start: ";

/// The variables of an env file, and the command of its first comment; llama-server without one.
fn env(text: &str) -> Result<Held, Error> {
    let mut held = Held { words: vec!["llama-server".to_string()], ..Held::default() };
    if let Some(start) = text.lines().next().and_then(|line| line.strip_prefix(START)) {
        held.words = shlex::split(start).ok_or(Error::Quotes)?;
    }
    let lines = (1..).zip(text.lines().map(str::trim));
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let refused = |expected| Error::Line { line: line.to_string(), expected }.at_line(number, None);
        let unread = || refused("NAME=VALUE");
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=').ok_or_else(unread)?;
        shlex::split(value).ok_or_else(unread)?;
        if held.environment.insert(name.trim().to_string(), unquoted(value)).is_some() {
            return Err(refused("each name once"));
        }
    }
    Ok(held)
}

/// The command of a systemd unit (systemd.service(5), systemd.exec(5)), or of Podman's `.container` (podman-systemd.unit(5)).
fn unit(text: &str, files: Files<'_>) -> Result<Held, Error> {
    let (mut variables, mut command, mut image, mut options) = (BTreeMap::new(), None, None, Vec::new());
    let mut memory = None;
    let joined = text.replace("\\\n", " ").replace("\\\r\n", " ");
    let home = std::env::var("HOME").unwrap_or_default();
    for line in joined.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = value.trim().replace("%%", "\0").replace("%h", &home).replace('\0', "%");
        match key.trim() {
            "Environment" => {
                let pairs = shlex::split(&value).ok_or(Error::Quotes)?;
                variables.extend(
                    pairs
                        .iter()
                        .filter_map(|pair| assignment(pair))
                        .map(|(name, value)| (name.to_string(), value.to_string())),
                );
            }
            "EnvironmentFile" => {
                let text = files(value.trim_start_matches('-'));
                variables
                    .extend(text.map(|text| env(&text)).transpose()?.map(|held| held.environment).unwrap_or_default());
            }
            "ExecStart" if !value.is_empty() => {
                command = Some(value.trim_start_matches(['-', '@', '+', '!', ':']).to_string());
            }
            "Image" => image = Some(value),
            "Exec" => command = Some(value),
            "Volume" => options.extend(["-v".to_string(), value]),
            "AddDevice" => options.extend(["--device".to_string(), value]),
            "Entrypoint" => options.extend(["--entrypoint".to_string(), value]),
            "Memory" => options.extend(["--memory".to_string(), value]),
            "MemoryMax" => memory = held::limit(&value),
            _ => {}
        }
    }
    let command =
        expanded(&command.or_else(|| image.clone().map(|_| String::new())).ok_or(Error::NoCommand)?, &variables, false);
    let mut words = shlex::split(&command).ok_or(Error::Quotes)?;
    if let Some(image) = image {
        let start = ["podman", "run"].map(str::to_string).into_iter().chain(options).chain([image]);
        words = start.chain(words).collect();
    }
    let mut held = of_words(&words, files)?;
    held.environment = variables.into_iter().chain(held.environment).collect();
    held.memory = memory.or(held.memory);
    Ok(held)
}

/// koboldcpp's settings: the options of its command line, as JSON.
fn kobold(text: &str, files: Files<'_>) -> Result<Held, Error> {
    let settings: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| Error::Unread(error.to_string()))?;
    let mut words = vec!["koboldcpp".to_string()];
    for (name, value) in settings {
        use serde_json::Value::{Array, Bool, Null, Number, String};
        let name = if name == "model_param" { "--model".to_string() } else { format!("--{name}") };
        let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
        match &value {
            Null | Bool(false) => {}
            String(text) if text.is_empty() => {}
            Bool(true) => words.push(name),
            Array(list) if list.is_empty() => {}
            Array(list) => words.extend([name].into_iter().chain(list.iter().map(text))),
            Number(number) if name == "--moecpu" && number.as_i64() == Some(0) => {}
            other => words.extend([name, text(other)]),
        }
    }
    of_words(&words, files)
}

/// A text's words as one line for a POSIX shell, variables first.
pub fn shown(held: &Held) -> String {
    let pairs = held.environment.iter().map(|(name, value)| Some(format!("{name}={}", quoted(value)?)));
    // A NUL was never in a command.
    pairs.chain(held.words.iter().map(|word| quoted(word))).map(Option::unwrap_or_default).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Bytes;
    use crate::run::held::heaviest;

    fn read(name: &str, text: &str) -> Vec<String> {
        let files = |name: &str| (name == "more.env").then(|| "LLAMA_ARG_N_GPU_LAYERS=99\n".to_string());
        let found = of_text(Kind::of(name, text), text, &files).unwrap_or_else(|error| panic!("{name}: {error}"));
        found.iter().map(|held| format!("{}: {}", held.name.as_deref().unwrap_or("-"), shown(held))).collect()
    }

    #[test]
    fn every_command_of_a_file_is_found() {
        for (name, text, expected) in [
            (
                "models.ini",
                "version = 1\n[*]\nn-gpu-layers = 99 ; all\nc = 4096\n\n[small]\nmodel = /m/a.gguf\nmmap = off\nLLAMA_ARG_CTX_SIZE = 8192\nkv-offload = off\nload-on-startup = true\n\
                 [own/repo-GGUF:Q4_K_M]\ncpu-moe = true\nno-mmproj = 1\n",
                &[
                    "small: llama-server --n-gpu-layers 99 --model /m/a.gguf --no-mmap --ctx-size 8192 --no-kv-offload",
                    "own/repo-GGUF:Q4_K_M: llama-server -hf own/repo-GGUF:Q4_K_M --n-gpu-layers 99 -c 4096 --cpu-moe --no-mmproj-auto",
                ][..],
            ),
            (
                "swap.yaml",
                "macros:\n  dir: /m\n  server: llama-server --port ${PORT} -ngl 99\nmodels:\n  a:\n    cmd: ${server} -m ${dir}/a.gguf -c 8192\n  \
                 b:\n    env: [CUDA_VISIBLE_DEVICES=1]\n    cmd: |\n      # the large one\n      llama-server --port ${PORT} \\\n      -m ~/b.gguf\n      -ot 'exps=CPU'\n",
                &[
                    "a: llama-server --port 8080 -ngl 99 -m /m/a.gguf -c 8192",
                    "b: CUDA_VISIBLE_DEVICES=1 llama-server --port 8080 -m '~/b.gguf' -ot exps=CPU",
                ],
            ),
            (
                "compose.yaml",
                "services:\n  web: {image: nginx}\n  llama:\n    image: ghcr.io/ggml-org/llama.cpp:server-cuda\n    volumes: [\"/data:/models:ro\"]\n    \
                 environment: {LLAMA_ARG_CTX_SIZE: 4096}\n    command: -m /models/x.gguf -ngl ${LAYERS:-99}\n    deploy: {resources: {reservations: {devices: [{driver: nvidia, device_ids: ['1']}]}}}\n  \
                 other:\n    image: ghcr.io/ggml-org/llama.cpp:server\n    env_file: more.env\n    command: [\"-m\", \"/y.gguf\"]\n",
                &[
                    "llama: LLAMA_ARG_CTX_SIZE=4096 NVIDIA_VISIBLE_DEVICES=1 llama-server -m /data/x.gguf -ngl 99",
                    "other: LLAMA_ARG_N_GPU_LAYERS=99 llama-server -m /y.gguf",
                ],
            ),
            (
                "llama.env",
                "# settings\nLLAMA_ARG_MODEL=\"/m/a b.gguf\"\nexport LLAMA_ARG_CTX_SIZE=8192\n",
                &["-: LLAMA_ARG_CTX_SIZE=8192 LLAMA_ARG_MODEL='/m/a b.gguf' llama-server"],
            ),
            (
                "llama.service",
                "[Unit]\nDescription=x\n[Service]\nEnvironment=\"CUDA_VISIBLE_DEVICES=0\" MODEL=/m/x.gguf\nEnvironmentFile=-more.env\n\
                 ExecStart=/usr/bin/numactl --interleave=all /opt/llama-server \\\n  -m ${MODEL} -c 8192 -ot 'exps=CPU'\n",
                &[
                    "-: CUDA_VISIBLE_DEVICES=0 LLAMA_ARG_N_GPU_LAYERS=99 MODEL=/m/x.gguf /opt/llama-server -m /m/x.gguf -c 8192 -ot exps=CPU",
                ],
            ),
            (
                "llama.container",
                "[Container]\nImage=ghcr.io/ggml-org/llama.cpp:server-cuda\nVolume=/m:/models\nAddDevice=nvidia.com/gpu=all\nExec=-m /models/x.gguf\n",
                &["-: llama-server -m /m/x.gguf"],
            ),
            (
                "x.kcpps",
                r#"{"model": null, "model_param": "/m/x.gguf", "contextsize": 4096, "gpulayers": 20, "tensor_split": [3, 1], "moecpu": 0, "flashattention": true, "quantkv": 0, "usecuda": ["normal"], "overridetensors": ""}"#,
                &[
                    "-: llama-server -np 1 -fit off -c 4096 -b 512 -ub 512 -lm none --swa-full -fa on -ngl 20 -m /m/x.gguf -ctk f16 -ctv f16 -ts 3,1",
                ],
            ),
            (
                "-",
                "#!/bin/bash\n# my server\nexport CUDA_VISIBLE_DEVICES=1\nMODEL=/m/x.gguf\ncd /opt\n./llama-server -m \"$MODEL\" \\\n  -c 8192 \"$@\"\n",
                &["-: CUDA_VISIBLE_DEVICES=1 MODEL=/m/x.gguf ./llama-server -m /m/x.gguf -c 8192"],
            ),
            (
                "run.bat",
                "@echo off\r\nset CUDA_VISIBLE_DEVICES=0\r\nllama-server.exe ^\r\n  -m C:\\m\\x.gguf ^\r\n  -c 4096\r\n",
                &[r"-: CUDA_VISIBLE_DEVICES=0 llama-server.exe -m 'C:\m\x.gguf' -c 4096"],
            ),
            ("-", "# llama-server -m old\nllama-server -m new\n", &["-: llama-server -m new"]),
            ("-", "# llama-server -m x\n", &["-: llama-server -m x"]),
            (
                "-",
                "llama-server -m a\nllama-bench -m b\n",
                &["command 1: llama-server -m a", "command 2: llama-bench -m b"],
            ),
        ] {
            assert_eq!(read(name, text), expected, "{name}");
        }
    }

    #[test]
    fn commands_that_read_a_file_stand_for_its_commands() {
        let files = |name: &str| match name {
            "m.ini" => Some("[a]\nmodel = a.gguf\n[b]\nmodel = b.gguf\n".to_string()),
            "c.yaml" => Some("models:\n  x: {cmd: llama-server -m x.gguf}\n".to_string()),
            _ => None,
        };
        for (line, expected) in [
            (
                "sudo llama-server --models-preset m.ini -ngl 99",
                vec!["llama-server --model a.gguf -ngl 99", "llama-server --model b.gguf -ngl 99"],
            ),
            ("llama-swap --config c.yaml --listen :8080", vec!["llama-server -m x.gguf"]),
            ("llama-server -m y", vec!["llama-server -m y"]),
        ] {
            let found = of_command(&shlex::split(line).unwrap(), &files).unwrap();
            assert_eq!(found.iter().map(shown).collect::<Vec<_>>(), expected, "{line}");
        }
        let words = shlex::split("llama-server --models-preset gone.ini").unwrap();
        assert_eq!(of_command(&words, &files), Err(Error::NoFile("gone.ini".into())));
    }

    /// What `plan --emit env` writes reads as the shell and Compose read it; paths begin at the project's folder; names pick services.
    #[test]
    fn a_compose_file_is_read_as_compose_reads_it() {
        let compose = r#"x-c: &c {image: "llama:server", command: -m /z.gguf}
services:
  d: {<<: *c, profiles: [batch]}
  a:
    image: llama:server
    volumes: ["./models:/models", "cache:/root"]
    env_file: [{path: a.env}, {path: gone.env, required: false}, {path: raw.env, format: raw}]
    environment: {LLAMA_ARG_CTX_SIZE: 512}
    command: -m /models/x.gguf
    depends_on: {b: {condition: service_healthy}}
  b: {image: "llama:server", command: "-m ${DIR}/y.gguf"}
  c: {<<: *c}
"#;
        let files = |name: &str| {
            match name {
            "at/compose.yaml" => Some(compose.to_string()),
            "at/.env" => Some("DIR=\"/d\" # a comment\n".to_string()),
            "at/a.env" => Some(
                "# Start: llama-server -tb 8\nLLAMA_ARG_OVERRIDE_TENSOR='a\\.(b|c)$=CPU'\nexport LLAMA_ARG_CTX_SIZE=8\n"
                    .to_string(),
            ),
            "at/raw.env" => Some("A=\"b\"\n".to_string()),
            _ => None,
        }
        };
        let a = r#"A='"b"' LLAMA_ARG_CTX_SIZE=512 LLAMA_ARG_OVERRIDE_TENSOR='a\.(b|c)$=CPU' llama-server -m at/./models/x.gguf"#;
        let (b, c) = ("llama-server -m /d/y.gguf", "llama-server -m /z.gguf");
        for (words, expected) in [
            ("up -d", vec![a, b, c]),
            ("up -d c", vec![c]),
            ("up a", vec![a, b]),
            ("config", vec![a, b, c]),
            ("up d", vec![c]),
            ("--profile other --profile=batch up", vec![c, a, b, c]),
        ] {
            let line = format!("docker compose -f at/compose.yaml {words}");
            let found = of_command(&shlex::split(&line).unwrap(), &files).unwrap();
            let found: Vec<String> = found.iter().map(shown).collect();
            assert_eq!(found, expected, "{words}");
        }
        assert_eq!(of_text(Kind::Compose, compose, &|_| None), Err(Error::NoFile("a.env".into())));
    }

    /// What lacks a GPU in a service lacks it in the `docker run` that does the same; NVIDIA's driver is not among what `privileged` gives.
    #[test]
    fn a_service_is_given_what_docker_run_is_given() {
        for (image, service, words, lacks) in [
            ("server-rocm", "", "", true),
            ("server-rocm", "devices: [/dev/kfd, /dev/dri]", "--device /dev/kfd --device /dev/dri", false),
            ("server-rocm", "devices: [{source: /dev/kfd}]", "--device /dev/kfd", true),
            ("server-rocm", "privileged: true", "--privileged", false),
            ("server-cuda", "privileged: true", "--privileged", true),
            ("server-cuda", "gpus: all", "--gpus all", false),
        ] {
            let notes = |held: &Held| held.notes.iter().map(|note| note.code.to_string()).collect::<Vec<_>>();
            let text = format!("services: {{a: {{image: 'llama:{image}', command: -m x.gguf, {service}}}}}");
            let of_service = of_text(Kind::Compose, &text, &|_| None).unwrap();
            let line = format!("docker run {words} llama:{image} -m x.gguf");
            let of_run = of_words(&shlex::split(&line).unwrap(), &|_| None).unwrap();
            assert_eq!(notes(&of_service[0]), notes(&of_run), "{line}");
            assert_eq!(notes(&of_run).contains(&"container-without-gpu".to_string()), lacks, "{line}");
        }
    }

    #[test]
    fn the_tag_of_an_image_says_its_build() {
        for (image, build) in
            [("llama.cpp:server-cuda-b9000", Some(9000)), ("llama.cpp:server-cuda", None), ("x:a-beta", None)]
        {
            let words = shlex::split(&format!("docker run --gpus all {image} -m x.gguf --no-mmap")).unwrap();
            assert_eq!(of_words(&words, &|_| None).unwrap().build, build, "{image}");
        }
    }

    /// What a service extends, another file's with its paths, and override files are merged as Compose merges them.
    #[test]
    fn services_that_extend_others_are_merged() {
        let files = |name: &str| {
            let text = match name {
                "at/compose.yaml" => {
                    "services:
  base: {image: 'llama:server', command: -m /m/x.gguf -c 1, environment: {LLAMA_ARG_CTX_SIZE: 2, A: 1}, mem_limit: 8g,
    volumes: ['./m:/m'], env_file: a.env, deploy: {resources: {reservations: {devices: [{driver: nvidia, device_ids: ['1']}]}}}}
  a: {extends: base, command: [-m, /m/y.gguf], environment: [A=3], env_file: [b.env], deploy: {resources: {limits: {memory: 512M}}}}
  b: {extends: {service: far, file: sub/common.yaml}, volumes: ['./own:/n']}
"
                }
                "at/sub/common.yaml" => {
                    "services: {far: {extends: {service: end, file: deep/x.yaml}, command: -m /n/x.gguf, env_file: c.env}}"
                }
                "at/sub/deep/x.yaml" => "services: {end: {image: 'llama:server', volumes: ['./d:/d', './d:/n']}}",
                "at/compose.override.yaml" => "services: {base: {command: -m /m/o.gguf}}",
                "at/a.env" => "B=a",
                "at/b.env" => "B=b",
                "at/sub/c.env" => "LLAMA_ARG_MMPROJ=/d/p.gguf",
                "circle.yaml" => "services: {a: {extends: b, image: llama}, b: {extends: a}}",
                "gone.yaml" => "services: {a: {extends: {service: b, file: no.yaml}, image: llama}}",
                _ => return None,
            };
            Some(text.to_string())
        };
        let read = |line: &str| of_command(&shlex::split(line).unwrap(), &files);
        let a = "A=3 B=b LLAMA_ARG_CTX_SIZE=2 NVIDIA_VISIBLE_DEVICES=1 llama-server -m at/./m/y.gguf";
        let b = "LLAMA_ARG_MMPROJ=at/./sub/./deep/./d/p.gguf llama-server -m at/./own/x.gguf";
        let found = read("docker compose -f at/compose.yaml up a b").unwrap();
        assert_eq!(found.iter().map(shown).collect::<Vec<_>>(), [a, b]);
        assert_eq!(found.iter().map(|held| held.memory).collect::<Vec<_>>(), [Some(Bytes::mib(512)), None]);
        let both = read("docker compose -f at/compose.yaml --file=at/compose.override.yaml up base").unwrap();
        assert!(shown(&both[0]).ends_with(" -m at/./m/o.gguf"), "{}", shown(&both[0]));
        assert_eq!(both[0].memory, Some(Bytes::mib(8192)));
        let circle = read("docker compose -f circle.yaml up").unwrap_err().to_string();
        assert!(circle.ends_with("expected a service that is there, and no circle"), "{circle}");
        assert_eq!(read("docker compose -f gone.yaml up"), Err(Error::NoFile("no.yaml".into())));
    }

    #[test]
    fn a_file_says_what_may_be_loaded_together() {
        let read = |name: &str, text: &str| {
            let found = of_text(Kind::of(name, text), text, &|_| None).unwrap();
            heaviest(&found, |at| 1 << at)
        };
        let swap = "models:\n  a: {cmd: llama-server -m a}\n  b: {cmd: llama-server -m b}\n  c: {cmd: llama-server -m c}\n  d: {cmd: llama-server -m d}\n";
        for (groups, expected) in [
            ("", vec![3]),
            ("groups: {g: {swap: false, members: [a, b]}}", vec![3]),
            ("groups: {g: {swap: false, members: [a, d]}}", vec![0, 3]),
            ("groups: {g: {swap: true, exclusive: false, members: [a, b]}}", vec![1, 3]),
            ("groups: {g: {persistent: true, swap: false, members: [a, b]}}", vec![0, 1, 3]),
        ] {
            assert_eq!(read("swap.yaml", &format!("{swap}{groups}\n")), expected, "{groups}");
        }
        let sections: Vec<String> = (0..6).map(|at| format!("[m{at}]\nmodel = {at}.gguf\n")).collect();
        assert_eq!(read("m.ini", &sections.concat()), [2, 3, 4, 5]);
        let started = |at: &usize| format!("{}load-on-startup = true\n", sections[*at]);
        assert_eq!(read("m.ini", &format!("{}{}{}", started(&0), started(&1), sections[2])), [0, 1]);
        let files = |_: &str| Some(sections.concat());
        for (most, expected) in [("1", vec![5]), ("2", vec![4, 5]), ("0", vec![0, 1, 2, 3, 4, 5])] {
            let line = format!("llama-server --models-preset m.ini --models-max {most}");
            let found = of_command(&shlex::split(&line).unwrap(), &files).unwrap();
            assert_eq!(heaviest(&found, |at| 1 << at), expected, "{most}");
        }
    }

    #[test]
    fn limits_of_memory_are_read_in_every_spelling() {
        for (text, mib) in [
            ("docker run -m 8g llama:server -m x", Some(8192)),
            ("docker run --memory=512MB --gpus 1 llama:server -m x", Some(512)),
            ("docker run --memory 1073741824 llama:server -m x", Some(1024)),
            ("docker run --memory 0 llama:server -m x", None),
            ("systemd-run --user -p MemoryMax=1.5G llama-server -m x", Some(1536)),
            ("systemd-run --property=MemoryMax=infinity llama-server -m x", None),
            ("llama-server -m 8g", None),
        ] {
            let held = of_words(&shlex::split(text).unwrap(), &|_| None).unwrap();
            assert_eq!(held.memory, mib.map(Bytes::mib), "{text}");
        }
        let unit = "[Service]\nMemoryMax=60G\nExecStart=llama-server -m x\n";
        assert_eq!(of_text(Kind::Unit, unit, &|_| None).unwrap()[0].memory, Some(Bytes::mib(60 << 10)));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line() {
        for (kind, text, expected) in [
            (
                Kind::Preset,
                "[a]\nfrobnicate = 1\n",
                "line 2, [a]: `frobnicate = 1`: expected a flag of llama-server (`ctx-size`, not `ctx_size`)",
            ),
            (
                Kind::Preset,
                "[a]\nctx_size = 1\n",
                "line 2, [a]: `ctx_size = 1`: expected a flag of llama-server (`ctx-size`, not `ctx_size`)",
            ),
            (Kind::Preset, "\nmodel\n", "line 2: `model`: expected KEY = VALUE"),
            (Kind::LlamaSwap, "models:\n  a: {ttl: 3}\n", "`a`: expected a model with `cmd`"),
            (Kind::LlamaSwap, "models:\n  a: {cmd: \"'x\"}\n", "models.a: a quote is opened and not closed"),
            (Kind::LlamaSwap, "models:\n  a: {cmd: vllm x}\n", "models.a: `vllm` is not a llama.cpp program"),
            (Kind::Env, "# x\nLLAMA ARG\n", "line 2: `LLAMA ARG`: expected NAME=VALUE"),
            (Kind::Shell, "llama-server -m 'x\n", "a quote is opened and not closed"),
            (
                Kind::Shell,
                "# nothing yet\n\n",
                "`nothing` is not a llama.cpp program that loads a model, and none follows it",
            ),
            (Kind::Shell, "\n", "it contains no llama.cpp command"),
            (Kind::Compose, "services:\n  web: {image: nginx}\n", "it contains no llama.cpp command"),
        ] {
            assert_eq!(of_text(kind, text, &|_| None).unwrap_err().to_string(), expected);
        }
    }
}
