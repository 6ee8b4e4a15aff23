//! The forms of a plan: on one line, a script, an env file, a preset of llama.cpp's model router, a model of llama-swap's
//! configuration; each with the way back, as its reader reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::{Error, Form};
use crate::bytes::{Bytes, MIB};
use crate::machine::Backend;
use crate::run::command::quoted;
use crate::run::flags::{new_load_mode, says};
use crate::run::held::{Held, IMAGES, assignment};
use crate::run::sources::{self, Kind, START};
use crate::run::{self, ModelSource, ParsedCommand, Target, groups, spelling};

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

/// Variables that a launch needs: names and numbers, which no form has to quote.
type Variables = BTreeMap<String, String>;

fn refuse<T>(word: &str, problem: &'static str, form: &'static str, instead: &'static str) -> Result<T, Error> {
    Err(Error::Word { word: word.to_string(), problem, form, instead })
}

/// Refuses words with control characters: no form carries them through every reader.
pub(super) fn printable(words: &[String]) -> Result<(), Error> {
    match words.iter().find(|word| word.contains(char::is_control)) {
        Some(word) => refuse(word, "holds a control character", "an emitted plan", "rename the file"),
        None => Ok(()),
    }
}

/// Words that `$(…)` takes apart again: it splits at spaces and takes quotes literally.
pub(super) fn on_one_line(words: &[String]) -> Result<String, Error> {
    match words.iter().find(|word| word.is_empty() || word.contains(char::is_whitespace)) {
        Some(word) => refuse(word, "is empty or holds a space", "$(…)", "use --emit shell"),
        None => Ok(words.join(" ")),
    }
}

/// A word in single quotes where it needs any; [`printable`] has refused what cannot be quoted.
pub(super) fn quote(word: &str) -> String {
    quoted(word).unwrap_or_default()
}

/// Words in a line, each as [`quote`] writes it.
pub(super) fn line(words: &[String]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

const SHEBANG: &str = "#!/bin/sh\n";
const EXPORT: &str = "export ";
const EXEC: &str = "exec ";
const REST: &str = " \"$@\"";

/// A script that becomes the program; what it is called with is passed on, and wins. Where the launch `needs` so much of a card, the
/// script first says that none has it free. It says nothing where NVIDIA's driver cannot be asked.
pub(super) fn script(environment: &Variables, words: &[String], needs: Option<Bytes>) -> String {
    let look = |needs: Bytes| {
        let mib = needs.0.div_ceil(MIB);
        format!(
            "for free in $(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits 2>/dev/null | sort -n | tail -n 1); do\n\
             \x20 [ \"$free\" -lt {mib} ] 2>/dev/null &&\n\
             \x20   echo \"warning: this launch was planned for {mib} MiB of a card, and $free MiB are free\" >&2\n\
             done\n"
        )
    };
    let set = |(name, value): (&String, &String)| format!("{EXPORT}{name}={}\n", quote(value));
    let set: String = environment.iter().map(set).collect();
    format!("{SHEBANG}{}{set}{EXEC}{}{REST}", needs.map(look).unwrap_or_default(), line(words))
}

/// The words of [`script`], as a shell would make them.
pub(super) fn of_script(text: &str) -> Result<Held, String> {
    let lines = text.strip_prefix(SHEBANG).and_then(|text| text.strip_suffix(REST));
    let line = lines.and_then(|lines| lines.lines().last()?.strip_prefix(EXEC));
    let words = line.and_then(shlex::split).ok_or_else(|| "its line cannot be split into words".to_string())?;
    let set = text.lines().filter_map(|line| shlex::split(line.strip_prefix(EXPORT)?)?.pop());
    let environment = set.filter_map(|set| assignment(&set).map(|(name, value)| (name.to_string(), value.to_string())));
    Ok(Held { words, environment: environment.collect(), ..Held::default() })
}

const SET: &str = "$env:";
const CALL: &str = "& ";
const REST_OF_POWERSHELL: &str = " @args\n";

/// A script of PowerShell, which passes on what it is called with, and says of a card's memory what [`script`] does. In single quotes everything is as it is, and two of them are one
/// (about_Quoting_Rules); a comma or a dot of a word without quotes may part it (about_Parsing).
pub(super) fn powershell(environment: &Variables, words: &[String], needs: Option<Bytes>) -> Result<String, Error> {
    // Windows PowerShell and PowerShell 7 pass a double quote on differently; a variable holds one in both.
    let as_variable = |group: &&[String]| match group {
        [flag, value] if value.contains('"') => Some((spelling(flag)?.0.environment?.to_string(), value.clone())),
        _ => None,
    };
    let all = groups(words);
    let variables: Vec<(String, String)> = all.iter().filter_map(as_variable).collect();
    let words = all.iter().filter(|group| as_variable(group).is_none()).copied().flatten();
    let quoted = words.map(|word| {
        if word.contains(['"', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}']) {
            let problem = "holds a double quote or a curly one";
            return refuse(word, problem, "a script of PowerShell", "rename the file, or use --emit env");
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let is_plain = !word.is_empty() && word.chars().all(is_plain);
        Ok(if is_plain { word.clone() } else { format!("'{}'", word.replace('\'', "''")) })
    });
    let line = quoted.collect::<Result<Vec<_>, Error>>()?.join(" ");
    // Without nvidia-smi, and where it knows no number, `$free` stays empty.
    let look = |needs: Bytes| {
        let mib = needs.0.div_ceil(MIB);
        format!(
            "$free = try {{ nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits | ForEach-Object {{ [int]$_ }} | \
             Sort-Object | Select-Object -Last 1 }} catch {{ }}\n\
             if ($null -ne $free -and $free -lt {mib}) {{ Write-Warning \"this launch was planned for {mib} MiB of a card, and \
             $free MiB are free\" }}\n"
        )
    };
    let set = |(name, value): (&String, &String)| format!("{SET}{name} = '{}'\n", value.replace('\'', "''"));
    let set: String = environment.iter().chain(variables.iter().map(|(name, value)| (name, value))).map(set).collect();
    Ok(format!("{}{set}{CALL}{line}{REST_OF_POWERSHELL}", needs.map(look).unwrap_or_default()))
}

/// The words of [`powershell`], as PowerShell would make them.
pub(super) fn of_powershell(text: &str) -> Result<Held, String> {
    let lines = text.strip_suffix(REST_OF_POWERSHELL);
    let line = lines.and_then(|lines| lines.lines().last()?.strip_prefix(CALL));
    let mut rest = line.ok_or("it does not call a program")?;
    let mut words = Vec::new();
    while !rest.is_empty() {
        let mut word = String::new();
        if let Some(mut inside) = rest.strip_prefix('\'') {
            loop {
                let (before, after) = inside.split_once('\'').ok_or("a quote is not closed")?;
                word += before;
                let Some(more) = after.strip_prefix('\'') else {
                    rest = after;
                    break;
                };
                word.push('\'');
                inside = more;
            }
        } else {
            let (plain, after) = rest.split_at_checked(rest.find(' ').unwrap_or(rest.len())).unwrap_or_default();
            (word, rest) = (plain.to_string(), after);
        }
        words.push(word);
        rest = rest.strip_prefix(' ').unwrap_or(rest);
    }
    let set = text.lines().filter_map(|line| line.strip_prefix(SET)?.split_once(" = "));
    let value = |quoted: &str| quoted.strip_prefix('\'')?.strip_suffix('\'').map(|value| value.replace("''", "'"));
    let environment = set.filter_map(|(name, quoted)| Some((name.to_string(), value(quoted)?))).collect();
    Ok(Held { environment, words, ..Held::default() })
}

/// The one command of a form, as the form's reader takes it out.
pub(super) fn only(kind: Kind, text: &str) -> Result<Held, String> {
    let mut found = sources::of_text(kind, text, &|_| None).map_err(|error| error.to_string())?;
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err("it does not have exactly one command".to_string()),
    }
}

/// A command as its program would read it.
pub(super) fn read(held: &Held, target: Target, form: &'static str) -> Result<ParsedCommand, Error> {
    run::parse::launch(held, &BTreeMap::new(), target)
        .map_err(|error| Error::ReadBack { form, problem: error.to_string() })
}

/// The env file of a command, its program first, and what it leaves to the command line: one `LLAMA_ARG_…` a flag, quoted so that a
/// shell, systemd and Compose read the same value. What has no variable (`common/arg.cpp` `common_arg::get_value_from_env`, b11434)
/// stays in the command that the file's first comment gives.
pub(super) fn env_file(environment: &Variables, command: &[String]) -> Result<(String, Vec<String>), Error> {
    let (program, args) = command.split_first().map_or(("", command), |(first, rest)| (first.as_str(), rest));
    let mut lines = Vec::new();
    let mut without = vec![program.to_string()];
    for group in groups(args) {
        let value = group.get(1).map_or("1", String::as_str);
        match group.first().and_then(|word| spelling(word)).and_then(|(flag, on)| Some((flag.environment?, on))) {
            Some((name, on)) => lines.push(format!("{name}={}", quote_variable(if on { value } else { "0" })?)),
            None => without.extend(group.iter().cloned()),
        }
    }
    lines.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
    let left = without.get(1..).filter(|rest| !rest.is_empty()).map(line);
    let note = |rest: &String| {
        format!("llama.cpp has no variable for `{rest}`: the file's first line shows the command to start with")
    };
    let text = format!("{START}{}\n{}\n", line(&without), lines.join("\n"));
    Ok((text, left.iter().map(note).collect()))
}

/// A value in single quotes, or in double ones where it holds a single one: what is inside is literal in both, for a POSIX
/// shell, systemd's EnvironmentFile and Compose's env_file. (`docker run --env-file` knows no quotes at all.)
fn quote_variable(value: &str) -> Result<String, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+%@".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return Ok(value.to_string());
    }
    if !value.contains('\'') {
        return Ok(format!("'{value}'"));
    }
    if value.contains(['"', '\\', '$', '`']) {
        let problem = "holds a single quote beside `\"`, `\\`, `$` or a backtick";
        return refuse(value, problem, "an env file", "use --emit shell");
    }
    Ok(format!("\"{value}\""))
}

/// The flags that a form leaves to the program that starts llama-server, and why; the router's are those of
/// `tools/server/server-models.cpp` `unset_reserved_args`, b11549.
fn of_starter(form: Form) -> (&'static [&'static str], &'static str) {
    match form {
        Form::LlamaSwap => (&["--port"], "llama-swap chooses the port"),
        Form::Ini => (
            &["--host", "--port", "--alias", "--api-key", "--api-key-file", "--ssl-key-file", "--ssl-cert-file"],
            "llama-server's router says this for all its models",
        ),
        // Inside, every address is the container's own: the image listens to all of them.
        Form::Compose => (&["--host"], "a container listens on all of its own addresses"),
        _ => (&[], ""),
    }
}

/// The flags of a command that its form says, each with its values.
fn said_by(form: Form, args: &[String]) -> impl Iterator<Item = &[String]> {
    let (names, _) = of_starter(form);
    groups(args).into_iter().filter(move |group| !names.iter().any(|name| says(group, name)))
}

/// What of a command a form leaves out, without values, one of which may be a key.
pub fn left_out(form: Form, args: &[String]) -> Option<String> {
    let (names, why) = of_starter(form);
    let left = groups(args).into_iter().filter(|group| names.iter().any(|name| says(group, name)));
    let flags: Vec<&str> = left.filter_map(|group| group.first()).map(String::as_str).collect();
    (!flags.is_empty()).then(|| format!("left out: {} ({why})", flags.join(", ")))
}

/// A whole preset file with the model as its one section, keys that are long flags without dashes (`common/preset.cpp`
/// `parse_ini_from_file`, `common_preset_context::load_from_ini` and `docs/preset.md`, b11434): a value ends at the end of its line or
/// at the first `;` or `#`, nothing is quoted and nothing is escaped.
pub(super) fn preset(name: &str, command: &[String]) -> Result<String, Error> {
    let args = command.get(1..).unwrap_or_default();
    let mut text = format!("[{name}]\n");
    for group in said_by(Form::Ini, args) {
        let word = group.first().map(String::as_str).unwrap_or_default();
        // How builds before `--load-mode` say it.
        if new_load_mode(word).is_some() {
            let _ = writeln!(text, "{} = 1", word.trim_start_matches('-'));
            continue;
        }
        let (flag, on) = spelling(word).filter(|(flag, _)| flag.values < 2).ok_or_else(|| Error::Lacks {
            program: "a preset",
            lacks: "takes no flag that llama-server does not have".to_string(),
            instead: "use --emit shell",
        })?;
        let value = group.get(1).map_or(if on { "1" } else { "0" }, String::as_str);
        if value.contains([';', '#']) || value.is_empty() || value.trim() != value {
            let problem = "is empty, holds `;` or `#`, or begins or ends with a space";
            return refuse(value, problem, "a preset of llama.cpp", "rename the file, or use --emit shell");
        }
        let _ = writeln!(text, "{} = {value}", flag.name().trim_start_matches('-'));
    }
    Ok(text)
}

/// llama-swap's own macro for the port that it chooses.
const PORT: [&str; 2] = ["--port", "${PORT}"];

/// The part of the configuration that moeplan writes.
#[derive(Debug, Serialize, Deserialize)]
struct SwapConfig {
    models: BTreeMap<String, SwapEntry>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    groups: BTreeMap<String, SwapGroup>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hooks: Option<Hooks>,
}

/// What llama-swap does when it starts: it loads these models (its config.example.yaml, "hooks").
#[derive(Debug, Serialize, Deserialize)]
struct Hooks {
    on_startup: OnStartup,
}

#[derive(Debug, Serialize, Deserialize)]
struct OnStartup {
    preload: Vec<String>,
}

/// Models that stay loaded side by side (`swap`); before they are, those of other groups are unloaded (`exclusive`).
#[derive(Debug, Serialize, Deserialize)]
struct SwapGroup {
    swap: bool,
    exclusive: bool,
    members: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SwapEntry {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    cmd: String,
}

/// A word of llama-swap's `cmd`, which it splits by the rules of its own system (`proxy/config/config.go` `SanitizeCommand`,
/// `shlex.Posix` and `shlex.Windows` of golib). Under Windows only `"` quotes, and a backslash is one before it alone; so words are in
/// double quotes, where both read the same. `None`: no quotes are right in both.
fn swap_word(word: &str) -> Option<String> {
    let single = quote(word);
    if single == word {
        return Some(single);
    }
    // A shell that this is pasted into would act on `$`, a backtick and `!` there; and a backslash escapes itself, `"` and the end.
    let is_eaten =
        |(at, _): (usize, &str)| word.get(at + 1..).is_none_or(|rest| rest.is_empty() || rest.starts_with(['"', '\\']));
    let is_alike = !word.contains(['$', '`', '!']) && !word.match_indices('\\').any(is_eaten);
    is_alike.then(|| format!("\"{}\"", word.replace('"', "\\\"")))
}

/// What a command of llama-swap's has that only a POSIX system reads.
pub(super) fn only_posix(words: &[String]) -> Option<String> {
    let word = words.iter().find(|word| swap_word(word).is_none())?;
    Some(format!(
        "llama-swap on Windows cannot read `{word}`: no quotes are right there and on other systems; rename it"
    ))
}

/// The configuration with these models, `models.NAME.cmd`, the port left to llama-swap, which splits a command into words after
/// putting macros (`${…}`) in; lines are joined. Several are a group that is loaded at once and stays loaded.
pub(super) fn swap_models(named: &[(String, Held)]) -> Result<String, Error> {
    let mut models = BTreeMap::new();
    for (name, Held { words: command, environment, .. }) in named {
        if let Some(word) = command.iter().find(|word| word.contains("${")) {
            return refuse(word, "holds `${`", "llama-swap's configuration (it would be a macro)", "rename the file");
        }
        let (program, args) = command.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        let word = |word: &String| swap_word(word).unwrap_or_else(|| quote(word));
        let line = |words: &[String]| words.iter().map(word).collect::<Vec<_>>().join(" ");
        let first = format!("{} {}", word(&program.to_string()), PORT.join(" "));
        let lines: Vec<String> = std::iter::once(first).chain(said_by(Form::LlamaSwap, args).map(line)).collect();
        let env = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        models.insert(name.clone(), SwapEntry { env, cmd: lines.join("\n") + "\n" });
    }
    let members: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
    let is_group = members.len() > 1;
    let hooks = is_group.then(|| Hooks { on_startup: OnStartup { preload: members.clone() } });
    let group = is_group.then_some(SwapGroup { swap: false, exclusive: true, members });
    let groups = group.into_iter().map(|group| ("together".to_string(), group)).collect();
    serde_yaml::to_string(&SwapConfig { models, groups, hooks })
        .map_err(|error| Error::ReadBack { form: "llama-swap", problem: error.to_string() })
}

/// The volume that keeps what llama-server fetches.
const CACHE: &str = "llama-cache";

/// The Compose file of a command: llama.cpp's image for `backend`, the folders of `files` mounted read-only, all cards. The port is open to
/// this computer only. `fetches`: the model is fetched, and kept in a volume.
pub(super) fn compose_file(
    name: &str,
    (environment, command): (&Variables, &[String]),
    files: &[String],
    backend: Backend,
    fetches: bool,
) -> Result<String, Error> {
    let of_backend = IMAGES.iter().find(|(_, known, _)| *known == backend).and_then(|(word, _, devices)| {
        let devices = (*devices)?;
        Some((format!("server-{word}"), devices))
    });
    let of_cpu = || (backend == Backend::Cpu).then(|| ("server".to_string(), &[][..]));
    let (image, devices) = of_backend.or_else(of_cpu).ok_or(Error::NoSuchForm {
        form: "compose",
        whom: "these devices",
        instead: "llama.cpp has no image for them: use --emit shell",
    })?;
    let mut folders: Vec<String> = Vec::new();
    let mut inside: BTreeMap<&str, String> = BTreeMap::new();
    for file in files {
        // Elsewhere than on Windows a backslash is a letter of a name.
        let is_drive = file.get(1..2) == Some(":");
        let ends: &[char] = if is_drive { &['/', '\\'] } else { &['/'] };
        let (folder, name) = file.rsplit_once(ends).unwrap_or((".", file));
        if folder.get(if is_drive { 2.. } else { 0.. }).is_some_and(|folder| folder.contains(':')) {
            return refuse(file, "holds `:`", "a volume of Compose", "rename the folder");
        }
        let is_whole = is_drive || folder.starts_with(['.', '/', '~']);
        let folder = match folder {
            "" => "/".to_string(),
            folder if is_whole => folder.to_string(),
            folder => format!("./{folder}"),
        };
        let at = folders.iter().position(|known| *known == folder).unwrap_or_else(|| {
            folders.push(folder);
            folders.len() - 1
        });
        inside.insert(file, format!("{}/{name}", target(at)));
    }
    let of_port = groups(command).into_iter().rfind(|group| says(group, "--port"));
    let port = of_port.and_then(|group| group.get(1)).map(String::as_str);
    // Where the port is not said, the image's build decides: 8080, from b11521 on 9931 (`common/common.h`).
    let said = if port.is_some() { Vec::new() } else { ["--port", "8080"].map(str::to_string).to_vec() };
    let command = [command, &said].concat();
    let port = port.unwrap_or("8080");
    // In double quotes no reader takes a word for a number or a truth (`off`); `$$` is one `$`, which would put a variable in.
    let text = |text: &str| serde_json::Value::from(text.replace('$', "$$")).to_string();
    let volume = |(at, folder): (usize, &String)| {
        format!("      - {{type: bind, source: {}, target: {}, read_only: true}}\n", text(folder), text(&target(at)))
    };
    let cache = fetches.then(|| format!("      - {{type: volume, source: {CACHE}, target: /root/.cache}}\n"));
    let volumes: String = folders.iter().enumerate().map(volume).chain(cache).collect();
    let word = |word: &String| text(inside.get(word.as_str()).unwrap_or(word));
    let line = |group: &[String]| format!("      {},\n", group.iter().map(word).collect::<Vec<_>>().join(", "));
    let words: String = said_by(Form::Compose, command.get(1..).unwrap_or_default()).map(line).collect();
    let devices = if devices.is_empty() { String::new() } else { format!("    devices: [{}]\n", devices.join(", ")) };
    let cards = if backend == Backend::Cuda {
        "    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: all, capabilities: [gpu]}]}}}\n"
    } else {
        ""
    };
    let set: Vec<String> = environment.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect();
    let set = if set.is_empty() { String::new() } else { format!("    environment: {{{}}}\n", set.join(", ")) };
    let kept = if fetches { format!("volumes: {{{CACHE}: {{}}}}\n") } else { String::new() };
    Ok(format!(
        "services:\n  {}:\n    image: ghcr.io/ggml-org/llama.cpp:{image}\n    ports: [{}]\n    \
         volumes:\n{volumes}{devices}{cards}{set}    command: [\n{words}    ]\n{kept}",
        text(&name.to_ascii_lowercase()),
        text(&format!("127.0.0.1:{port}:{port}")),
    ))
}

/// Where the container sees a folder.
fn target(at: usize) -> String {
    if at == 0 { "/models".to_string() } else { format!("/models-{}", at.saturating_add(1)) }
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

    #[test]
    fn values_that_readers_differ_on_are_refused() {
        assert_eq!(quote_variable("it's").unwrap(), "\"it's\"");
        assert_eq!(quote_variable(r"a\b $x").unwrap(), r"'a\b $x'");
        assert_eq!(quote_variable("").unwrap(), "''");
        assert!(quote_variable("it's $x").is_err());
    }

    #[test]
    fn what_the_format_cuts_is_refused() {
        for path in ["a;b.gguf", "a#b.gguf", " a.gguf", ""] {
            let command = ["llama-server", "-m", path].map(str::to_string);
            assert!(matches!(preset("x", &command), Err(Error::Word { .. })), "{path}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let line =
            r"llama-server -m '/m/it'\''s 1.gguf' -c 8192 -no-kvu -tb 8 -ot 'a\.(b|c)=CPU,d=CUDA1' --no-op-offload";
        let command = shlex::split(line).unwrap();
        let environment = Variables::from([("NAME".to_string(), "64".to_string())]);
        let none = Variables::new();
        let whole = |held: Held| (held.environment, held.words);
        let both = (environment.clone(), command.clone());
        let held = Held { environment: environment.clone(), words: command.clone(), ..Held::default() };
        let of_swap = only(Kind::LlamaSwap, &swap_models(&[("its-1".into(), held)]).unwrap()).unwrap();
        let port = ["--port", "8080"].map(str::to_string);
        assert_eq!(whole(of_swap), (environment.clone(), [&command[..1], &port, &command[1..]].concat()));
        for needs in [None, Some(Bytes::mib(7))] {
            let script = script(&environment, &command, needs);
            assert_eq!(whole(of_script(&script).unwrap()), both);
            // So does `moeplan check serve.sh`.
            assert_eq!(whole(only(Kind::Shell, &script.replace(REST, "")).unwrap()), both);
        }
        let sets = powershell(&environment, &command, None).unwrap();
        assert_eq!(whole(of_powershell(&sets).unwrap()), both);
        let plain = sets.replace("it''s", "its");
        assert_eq!(only(Kind::Shell, &plain).unwrap().environment, environment);
        let looks = powershell(&none, &command, Some(Bytes::mib(7))).unwrap();
        assert!(looks.starts_with("$free = try { nvidia-smi ") && looks.contains("-lt 7)"), "{looks}");
        assert_eq!(of_powershell(&looks).unwrap().words, command);
        assert_eq!(only(Kind::Shell, &looks.replace("it''s", "its")).unwrap().words[3..], command[3..]);
        let script = powershell(&none, &command, None).unwrap();
        assert!(script.starts_with("& llama-server -m '/m/it''s 1.gguf' -c 8192"), "{script}");
        assert_eq!(of_powershell(&script).unwrap().words, command);
        assert!(powershell(&none, &["a\"b".to_string()], None).is_err());
        // `moeplan check serve.ps1`, where no quote is in it.
        let plain = script.replace("it''s", "its");
        assert_eq!(only(Kind::Shell, &plain).unwrap().words[3..], command[3..]);
        let (text, notes) = env_file(&environment, &command).unwrap();
        let Held { environment, words, .. } = only(Kind::Env, &text).unwrap();
        assert_eq!(environment.get("LLAMA_ARG_MODEL").map(String::as_str), Some("/m/it's 1.gguf"));
        assert_eq!(environment.get("NAME").map(String::as_str), Some("64"));
        assert_eq!((words.join(" "), notes.len()), ("llama-server -tb 8 --no-op-offload".to_string(), 1));
        let long = only(Kind::Preset, &preset("x", &command).unwrap()).unwrap().words.join(" ");
        assert!(long.starts_with("llama-server --model /m/it's 1.gguf --ctx-size 8192 --no-kv-unified"), "{long}");
    }

    /// Words as llama-swap on Windows takes them apart (golib's `shlex.Windows`): `"` quotes, 2n backslashes before one are n, and an
    /// odd one makes it a letter; everything else is as it is.
    fn of_windows(line: &str) -> Vec<String> {
        let (mut words, mut word, mut is_quoted) = (Vec::new(), None::<String>, false);
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            let after = rest.trim_start_matches('\\');
            let slashes = rest.len() - after.len();
            if slashes > 0 {
                let is_before_quote = after.starts_with('"');
                let kept = if is_before_quote { slashes / 2 } else { slashes };
                word.get_or_insert_default().push_str(&"\\".repeat(kept));
                let is_letter = is_before_quote && slashes % 2 == 1;
                if is_letter {
                    word.get_or_insert_default().push('"');
                }
                rest = &after[usize::from(is_letter)..];
                continue;
            }
            rest = &rest[c.len_utf8()..];
            match c {
                '"' => {
                    is_quoted = !is_quoted;
                    word.get_or_insert_default();
                }
                ' ' | '\t' | '\n' if !is_quoted => words.extend(word.take()),
                _ => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }

    #[test]
    fn llama_swap_reads_the_same_words_on_windows() {
        for word in
            ["plain", r"blk\.(1|2)\.ffn_down=CPU", r"C:\my models\a.gguf", "it's", "a \"b\"", "", r"^a|b\.c", "é ü"]
        {
            let quoted = swap_word(word).unwrap();
            let line = format!("x {quoted} {quoted} y");
            let expected = ["x", word, word, "y"].map(str::to_string).to_vec();
            assert_eq!(of_windows(&line), expected, "{quoted}");
            assert_eq!(shlex::split(&line), Some(expected), "{quoted}");
        }
        for word in [r"\\server\x.gguf", r"x\", r#"a\"b"#, "$(x)", "`y`", "a!b"] {
            assert_eq!(swap_word(word), None, "{word}");
            assert!(only_posix(&["x".to_string(), word.to_string()]).unwrap().contains(word));
        }
        let words = ["llama-server", "-ot", r"a\.(b)=CPU"].map(str::to_string).to_vec();
        let line = swap_models(&[("x".into(), Held { words, ..Held::default() })]);
        assert!(line.unwrap().contains(r#"-ot "a\.(b)=CPU""#));
    }

    #[test]
    fn macros_in_a_name_are_refused() {
        let command = ["llama-server", "-m", "${HOME}.gguf"].map(str::to_string);
        assert!(matches!(
            swap_models(&[("x".into(), Held { words: command.to_vec(), ..Held::default() })]),
            Err(Error::Word { .. })
        ));
    }
}
