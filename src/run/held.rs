//! Commands as people hold them: prompts, wrappers, containers and other programs around a command of llama.cpp, taken off.
//!
//! What stands around a command is a row of one of three tables: `WRAPPERS`, `RUNNERS`, and for koboldcpp `koboldcpp::OPTIONS`.
//! Files that hold several commands are `sources`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;

use super::config::Program;
use super::{Error, Note, koboldcpp, pasted};
use crate::bytes::Bytes;
use crate::machine::Backend;

/// One launch, taken out of what held it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Variables that are set for it.
    pub environment: BTreeMap<String, String>,
    /// Its program and that one's words.
    pub words: Vec<String>,
    /// Which of several it is: the name of a section, a model or a service.
    pub name: Option<String>,
    pub notes: Vec<Note>,
    /// What of main memory it may use, where a container or systemd limits that.
    pub memory: Option<Bytes>,
    /// The kind of devices that its container's image is built for, where the tag says so.
    pub image: Option<Backend>,
    /// The build of llama.cpp in that image, where the tag says it.
    pub build: Option<u32>,
    /// Paths of its words outside its container, and inside.
    pub inside: Vec<(String, String)>,
    /// The lines of a preset that its words come from.
    pub lines: BTreeMap<usize, Vec<String>>,
    /// Beside which others of its file it may be loaded.
    pub loaded: Loaded,
}

/// Beside which others of its file a command's model may be loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Loaded {
    /// Not known, or beside none.
    #[default]
    Alone,
    /// llama-server's router keeps `most` of its models; `is_said`: somebody gave that number.
    UpTo {
        most: usize,
        is_said: bool,
    },
    In(Group),
}

/// A group of llama-swap, or of services that all run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    /// One member at a time.
    pub swap: bool,
    /// It and other exclusive groups unload one another.
    pub is_exclusive: bool,
}

impl Group {
    /// One whose members are all loaded.
    pub(super) fn of_all(name: &str) -> Self {
        Self { name: name.to_string(), swap: false, is_exclusive: false }
    }
}

/// Which commands, by their places, may be loaded together and weigh most; none where each is loaded alone.
pub fn heaviest(held: &[Held], weight: impl Fn(usize) -> u64) -> Vec<usize> {
    let sum = |set: &[usize]| set.iter().map(|at| weight(*at)).sum::<u64>();
    let mut groups: BTreeMap<&str, (&Group, Vec<usize>)> = BTreeMap::new();
    let mut of_router: Vec<usize> = Vec::new();
    let mut kept = 0;
    for (at, held) in held.iter().enumerate() {
        match &held.loaded {
            Loaded::Alone => {}
            Loaded::UpTo { most, .. } => {
                kept = *most;
                of_router.push(at);
            }
            Loaded::In(group) => groups.entry(&group.name).or_insert_with(|| (group, Vec::new())).1.push(at),
        }
    }
    of_router.sort_by_key(|at| std::cmp::Reverse(weight(*at)));
    of_router.truncate(kept);
    let sets = groups.into_values().map(|(group, members)| {
        let largest = members.iter().copied().max_by_key(|at| weight(*at));
        (group.is_exclusive, if group.swap { largest.into_iter().collect() } else { members })
    });
    let (exclusive, beside): (Vec<_>, Vec<_>) = sets.partition(|(is_exclusive, _)| *is_exclusive);
    let one = exclusive.into_iter().max_by_key(|(_, set)| sum(set));
    let mut set: Vec<usize> = beside.into_iter().chain(one).flat_map(|(_, set)| set).chain(of_router).collect();
    set.sort_unstable();
    set
}

/// Reads a file that a command names (`--env-file`).
pub type Files<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A program that runs another: its names, its options that take a value, and how many words come before the command.
type Wrapper = (&'static str, &'static str, usize);

/// Sources: the manual pages of util-linux 2.40, coreutils 9, sudo 1.9, numactl 2.0, systemd 256.
const WRAPPERS: &[Wrapper] = &[
    ("sudo", "-u -g -h -p -C -T -D -R -r -t -U --user --group --chdir --preserve-env", 0),
    ("doas", "-u -C", 0),
    (
        "numactl",
        "-i -w -N -p -P -C -m -S --interleave --weighted-interleave --cpunodebind --preferred --preferred-many --physcpubind \
         --membind --shm",
        0,
    ),
    ("taskset", "", 1),
    ("chrt", "-T -P -D", 1),
    ("nice", "-n --adjustment", 0),
    ("ionice", "-c -n --class --classdata", 0),
    ("timeout", "-s -k --signal --kill-after", 1),
    ("env", "-u -C --unset --chdir", 0),
    ("stdbuf", "-i -o -e --input --output --error", 0),
    ("export set setenv", "", 0),
    ("time gtime", "-f -o --format --output", 0),
    ("exec", "-a", 0),
    (
        "systemd-run",
        "-p -u -E -t -M -H -d --property --unit --setenv --slice --description --uid --gid --nice --working-directory",
        0,
    ),
    ("screen", "-S -dmS -L -Logfile -c", 0),
    ("strace ltrace", "-o -e -p -s", 0),
    ("nsys", "-o -t --output --trace", 1),
    ("firejail bwrap", "", 0),
    ("conda mamba micromamba", "-n -p --name --prefix", 1),
    ("uv pixi poetry pipenv", "", 1),
    ("toolbox distrobox", "-c -n --container --name", 1),
    ("start", "", 0),
    ("command builtin nohup setsid unbuffer catchsegv prime-run mangohud gamemoderun caffeinate rlwrap chronic", "", 0),
    ("perf", "-e -o", 1),
    ("gdb valgrind python python3 py winpty call wsl cmd", "-ex", 0),
];

/// Options of `run` and `exec` that stand alone; every other one takes a value (docker 28, podman 5).
const ALONE: &str = "--detach --init --interactive --no-healthcheck --oom-kill-disable --privileged --publish-all --quiet --read-only \
                     --rm --sig-proxy --tty --disable-content-trust --replace --no-hosts --rmi --tls-verify --http-proxy --env-host \
                     --no-hostname --read-only-tmpfs --use-api-socket";
/// The same in one letter; they may stand together (`-it`).
const LETTERS: &str = "ditPq";

/// Programs that run an image, and the commands of theirs that start one.
const RUNNERS: [&str; 3] = ["docker", "podman", "nerdctl"];

/// What llama.cpp's images start by a word of their tag (`.devops/*.Dockerfile`), and what the full one's first word means
/// (`.devops/tools.sh`).
const ENTRYPOINTS: [(&str, &str); 2] = [("light", "llama-cli"), ("server", "llama-server")];
/// What the tags of llama.cpp's images call the devices that their builds know, and the files of the system that a container needs, where
/// files are enough (docs/docker.md, b11434).
pub(crate) const IMAGES: [(&str, Backend, Option<&[&str]>); 5] = [
    ("cuda", Backend::Cuda, Some(&[])),
    ("rocm", Backend::Rocm, Some(&["/dev/kfd", "/dev/dri"])),
    ("vulkan", Backend::Vulkan, Some(&["/dev/dri"])),
    ("intel", Backend::Sycl, Some(&["/dev/dri"])),
    ("musa", Backend::Musa, None),
];
const TOOLS: [(&str, &str, &str); 5] = [
    ("--server", "-s", "llama-server"),
    ("--run", "-r", "llama-cli"),
    ("--run-legacy", "-l", "llama-completion"),
    ("--bench", "-b", "llama-bench"),
    ("--perplexity", "-p", "llama-perplexity"),
];

/// Programs with another engine or another command line, and what to do instead.
const OTHERS: [(&str, &str); 7] = [
    (
        "ollama",
        "`moeplan list` names the file of an ollama model: `moeplan check -- llama-server -m NAME -c N` answers for it",
    ),
    (
        "lms",
        "LM Studio's models are in `moeplan list`: `moeplan check -- llama-server -m NAME -c N -ngl N` answers for one",
    ),
    ("llama_cpp.server", "llama-cpp-python: write `--n_gpu_layers N --n_ctx N` as `llama-server -ngl N -c N`"),
    ("vllm", "write the launch as `llama-server -m model.gguf -c N -ngl N`"),
    ("llamafile", "it takes most of llama-server's flags: write the launch as `llama-server …`"),
    ("llama-quantize", "`moeplan inspect --as TYPE` says what it would make"),
    ("llama-gguf-split", "it loads no model"),
];

/// The prompts of shells: bash, zsh, fish, PowerShell and cmd.
static PROMPT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let of = [
        r"PS(?: [A-Za-z]:[^>]*)?> *",
        r"[A-Za-z]:\\[^<>|]*> *",
        r"\[?[\w.-]+@[\w.-]+[^$#%>|]*[$#%>] +",
        r"(?:ba|z|da|fi)?sh-[\d.]+[$#] +",
        r"[~/][^\s$#%>]*[$#%>❯] +",
        r"[➜❯λ»] +(?:~ +)?",
        r"[$#%>]{1,2} +",
    ];
    // Only the first matters; the patterns are the program's own.
    Regex::new(&format!(r"^\s*(?:\([\w.-]+\) *)?(?:{})", of.join("|"))).ok()
});

/// How much of a line is a shell's prompt, in bytes.
fn prompt(line: &str) -> usize {
    let found = PROMPT.as_ref().and_then(|prompt| prompt.find(line));
    // A redirection ends in `>` as well.
    found
        .filter(|found| !found.as_str().contains(" -") && !found.as_str().contains(".exe"))
        .map_or(0, |found| found.end())
}

/// The name of a program's file, without its folder and its ending.
pub(super) fn file_name(path: &str) -> &str {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    [".exe", ".EXE", ".py", ".cmd", ".bat"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// `NAME=VALUE` before a program; PowerShell's `$env:NAME="VALUE"`.
pub(crate) fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.strip_prefix("$env:").unwrap_or(word).split_once('=')?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (plain && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some((name, value))
}

/// The launch that a shell's words make.
pub fn of_words(words: &[String], files: Files<'_>) -> Result<Held, Error> {
    let mut held = Held::default();
    let words = without_prompt(words);
    if let [whole] = words.as_slice()
        && whole.contains(" -")
        && let Some(words) = split(whole)
    {
        return of_words(&words, files);
    }
    if let Some(error) = pasted::slip(&words) {
        return Err(error);
    }
    let mut first_error = None;
    for part in words.split(|word| matches!(word.as_str(), "|" | "|&" | "&" | "&&" | "||" | ";")) {
        if part.is_empty() || part == [""] {
            continue;
        }
        match held.strip(part, files, false) {
            Ok(()) => return Ok(held),
            // `cd build && ./llama-server` is about what comes after.
            Err(error) => _ = first_error.get_or_insert(error),
        }
    }
    Err(first_error.unwrap_or(Error::Empty))
}

/// Words without a prompt before them, without the signs of continued lines, and without redirections.
fn without_prompt(words: &[String]) -> Vec<String> {
    let head = words.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(" ") + " ";
    let mut left = prompt(&head);
    let mut kept = Vec::new();
    let mut is_target = false;
    for word in words {
        let before = left;
        left = left.saturating_sub(word.len().saturating_add(1));
        let word = word.get(before..).unwrap_or_default();
        if (before > 0 && word.is_empty())
            || matches!(word.trim(), "\\" | "`" | "^")
            || word == "\n"
            || word == "$@"
            || word == "@args"
        {
            continue;
        }
        if std::mem::take(&mut is_target) {
            continue;
        }
        match redirection(word) {
            Some("") => is_target = true,
            Some(_) => {}
            // PowerShell's call operator.
            None if word == "&" && kept.is_empty() => {}
            // `cd build; llama-server …`
            None => match word.strip_suffix(';').filter(|_| kept.last().is_none_or(|flag| flag != "-ot")) {
                Some(word) => kept.extend([word, ";"].map(str::to_string)),
                None => kept.push(word.to_string()),
            },
        }
    }
    // `nohup llama-server … 8080&`
    if let Some(last) = kept.last_mut().filter(|last| last.len() > 1 && last.ends_with('&')) {
        last.pop();
    }
    kept
}

/// Where `>`, `2>`, `&>>` or `<` leads to, empty where that is the next word; `None` for any other word.
fn redirection(word: &str) -> Option<&str> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.strip_prefix('&').filter(|rest| rest.starts_with('>')).unwrap_or(rest);
    let target = rest.strip_prefix(">>").or_else(|| rest.strip_prefix('>')).or_else(|| rest.strip_prefix('<'))?;
    Some(target)
}

impl Held {
    /// Takes off what stands around a program; `is_contained`: a container is taken off already, and has none in it.
    fn strip(&mut self, mut words: &[String], files: Files<'_>, is_contained: bool) -> Result<(), Error> {
        // Each turn takes at least one word.
        while let Some((first, rest)) = words.split_first() {
            let name = file_name(first);
            if let Some((name, value)) = assignment(first) {
                self.environment.insert(name.to_string(), value.to_string());
                words = rest;
            } else if let (Some(name), [equals, value, rest @ ..]) = (first.strip_prefix("$env:"), rest)
                && equals == "="
            {
                self.environment.insert(name.to_string(), value.clone());
                words = rest;
            } else if let Some((_, values, before)) = row(WRAPPERS, name) {
                words = self.after_own(rest, values, *before);
            } else if matches!(name, "bash" | "sh" | "zsh" | "powershell" | "pwsh") && rest.len() > 1 {
                // `bash -c TEXT`: the last word is the text.
                let text = rest.iter().find(|word| !word.starts_with('-')).and_then(|text| split(text));
                let Self { environment, words, notes, memory, .. } = of_words(&text.unwrap_or_default(), files)?;
                self.environment.extend(environment);
                self.memory = memory.or(self.memory);
                self.notes.extend(notes);
                self.words = words;
                return Ok(());
            } else if RUNNERS.contains(&name) && !is_contained {
                return self.container(rest, files);
            } else if name.starts_with("koboldcpp") {
                let (words, note) = koboldcpp::words(rest)?;
                self.notes.push(note);
                return self.strip(&words, files, is_contained);
            } else {
                return self.program(first, rest);
            }
        }
        Err(Error::Empty)
    }

    /// The words after a wrapper's own: options, which may set variables, words before the command, and options again (`perf stat -e`).
    fn after_own<'a>(&mut self, words: &'a [String], values: &str, before: usize) -> &'a [String] {
        let words = self.after_options(words, values).get(before..).unwrap_or_default();
        let words = if before > 0 { self.after_options(words, values) } else { words };
        // `cmd /c PROGRAM`
        let is_option = |word: &String| matches!(word.as_str(), "--" | "/c" | "/C" | "/b" | "/B");
        words.get(usize::from(words.first().is_some_and(is_option))..).unwrap_or_default()
    }

    fn after_options<'a>(&mut self, mut words: &'a [String], values: &str) -> &'a [String] {
        let is_option = |word: &String| word.starts_with('-') && word.len() > 1;
        while let Some((first, rest)) = words.split_first().filter(|(first, _)| is_option(first)) {
            let takes_value = values.split(' ').any(|name| name == first);
            let value = rest.first().filter(|_| matches!(first.as_str(), "-E" | "--setenv"));
            self.set(value.map(String::as_str).or(first.strip_prefix("--setenv=")).unwrap_or_default());
            let property = rest.first().filter(|_| matches!(first.as_str(), "-p" | "--property"));
            let property = property.map(String::as_str).or(first.strip_prefix("--property="));
            self.memory = property.and_then(|text| limit(text.strip_prefix("MemoryMax=")?)).or(self.memory);
            words = rest.get(usize::from(takes_value)..).unwrap_or_default();
            if first == "--" {
                break;
            }
        }
        words
    }

    /// A program by its name, by `llama COMMAND`, or arguments alone, which are llama-server's.
    fn program(&mut self, first: &str, rest: &[String]) -> Result<(), Error> {
        let command = rest.first().filter(|_| file_name(first) == "llama");
        self.words = if Program::of_path(first).is_some() {
            std::iter::once(first.to_string()).chain(rest.iter().cloned()).collect()
        } else if let Some(command) = command {
            let program = Program::of_command(command).ok_or_else(|| Error::UnknownCommand(command.clone()))?;
            std::iter::once(program.name().to_string()).chain(rest.iter().skip(1).cloned()).collect()
        } else if first.starts_with('-') {
            ["llama-server", first].map(str::to_string).into_iter().chain(rest.iter().cloned()).collect()
        } else {
            let (name, unknown) = (file_name(first), Error::UnknownProgram(first.to_string()));
            if let Some((_, instead)) = OTHERS.iter().find(|(other, _)| *other == name) {
                return Err(Error::OtherProgram { name: name.to_string(), instead });
            }
            // Some other wrapper: what follows it begins with the program.
            let at = rest.iter().position(|word| Program::of_path(word).is_some()).ok_or(unknown)?;
            rest.get(at..).unwrap_or_default().to_vec()
        };
        Ok(())
    }

    /// `docker run OPTIONS IMAGE WORDS`: variables, devices and the image's program; paths inside are told as paths outside.
    fn container(&mut self, words: &[String], files: Files<'_>) -> Result<(), Error> {
        let no_image = || Error::UnknownProgram("docker".to_string());
        let is_start = |word: &String| matches!(word.as_str(), "run" | "exec" | "create");
        let mut words = words.get(words.iter().position(is_start).ok_or_else(no_image)?..).unwrap_or_default();
        let is_exec = words.first().is_some_and(|word| word == "exec");
        words = words.get(1..).unwrap_or_default();
        let mut options: Vec<(&str, &str)> = Vec::new();
        while let Some((first, rest)) = words.split_first().filter(|(first, _)| first.starts_with('-')) {
            let is_alone = ALONE.split(' ').any(|name| name == first)
                || first.strip_prefix('-').is_some_and(|letters| letters.chars().all(|c| LETTERS.contains(c)));
            let (option, value) = match first.split_once('=').filter(|_| first.starts_with("--")) {
                Some(pair) => pair,
                None if is_alone => (first.as_str(), ""),
                // `-eNAME=VALUE`
                None if !first.starts_with("--") && first.len() > 2 => first.split_at_checked(2).unwrap_or((first, "")),
                None => (first.as_str(), rest.first().map_or("", String::as_str)),
            };
            let taken = usize::from(
                !is_alone
                    && !value.is_empty()
                    && rest.first().is_some_and(|next| next == value && !first.contains('=')),
            );
            options.push((option, value));
            words = rest.get(taken..).unwrap_or_default();
        }
        let (image, rest) = words.split_first().ok_or_else(no_image)?;
        let mut volumes: Vec<(String, String)> = Vec::new();
        let (mut entrypoint, mut folder, mut has_device) = (None, "/app", false);
        let (mut nodes, mut has_all) = (Vec::new(), false);
        for (option, value) in options {
            match option {
                "-e" | "--env" => self.set(value),
                "--env-file" => files(value).iter().flat_map(|text| text.lines()).for_each(|line| self.set(line)),
                "-v" | "--volume" => volumes.extend(volume(value)),
                "--mount" => volumes.extend(mount(value)),
                "--privileged" => has_all = true,
                "--gpus" => {
                    (has_device, has_all) = (true, true);
                    self.set(&gpus(value).map(|list| format!("{CONTAINER_DEVICES}={list}")).unwrap_or_default());
                }
                "--device" => {
                    has_device = true;
                    nodes.push(value);
                    let number = value.strip_prefix("nvidia.com/gpu=").filter(|number| *number != "all");
                    self.set(&number.map(|number| format!("{CONTAINER_DEVICES}={number}")).unwrap_or_default());
                }
                "--runtime" => has_device |= value == "nvidia",
                "--entrypoint" => entrypoint = Some(value),
                "-w" | "--workdir" => folder = value,
                "-m" | "--memory" => self.memory = limit(value),
                _ => {}
            }
        }
        let tag = image.rsplit('/').next().unwrap_or(image);
        let built_for = IMAGES.iter().find(|(word, ..)| tag.contains(word));
        self.image = built_for.map(|(_, backend, _)| *backend);
        self.build = tag.rsplit_once("-b").and_then(|(_, number)| number.parse().ok());
        // A name of the Container Device Interface (`amd.com/gpu=all`), or WSL's device, stands for all.
        let is_given_by = |node: &str| {
            nodes
                .iter()
                .any(|given| given.starts_with(node) || given.contains("/gpu=") || given.starts_with("/dev/dxg"))
        };
        let wanted = built_for.and_then(|(.., nodes)| *nodes).unwrap_or_default();
        let lacking = wanted.iter().filter(|node| !(is_given_by(node) || is_exec || has_all));
        let lacking: Vec<String> = lacking.map(|node| format!("--device {node}")).collect();
        let is_given = has_device || is_exec || self.environment.contains_key(CONTAINER_DEVICES);
        // The project's images without a word for devices are built for the processor (docs/docker.md, b11434).
        let missing = if image.contains("ggml-org/llama.cpp:") && self.image.is_none() {
            let hint = "take an image for the GPU (`server-cuda`, `server-vulkan` …)";
            Some(("the image is built for the processor alone", hint.to_string()))
        } else if tag.contains("cuda") && !is_given {
            let hint = "add `--gpus all` (podman: `--device nvidia.com/gpu=all`)";
            Some(("the container is given no GPU", hint.to_string()))
        } else if !lacking.is_empty() {
            Some(("the container is given no GPU", format!("add `{}`", lacking.join(" "))))
        } else {
            None
        };
        if let Some((what, hint)) = missing {
            self.notes.push(Note {
                code: "container-without-gpu".into(),
                message: format!("{what}: llama.cpp runs on the processor there"),
                hint: Some(format!("{hint}; the figures are with the GPU")),
            });
        }
        let inner: Vec<String> = match entrypoint.filter(|entrypoint| !entrypoint.is_empty()) {
            Some(entrypoint) => std::iter::once(entrypoint.to_string()).chain(rest.iter().cloned()).collect(),
            None => of_image(tag, rest),
        };
        self.strip(&inner, files, true)?;
        let outside = |word: &str| outside(word, folder, &volumes);
        for word in &mut self.words {
            if let Some(path) = outside(word) {
                self.inside.push((path.clone(), std::mem::replace(word, path)));
            }
        }
        for value in self.environment.values_mut() {
            if let Some(path) = outside(value) {
                *value = path;
            }
        }
        Ok(())
    }

    /// Sets a variable of a line `NAME=VALUE`; other lines set none.
    fn set(&mut self, line: &str) {
        if let Some((name, value)) = assignment(line) {
            self.environment.insert(name.to_string(), value.to_string());
        }
    }
}

/// Which NVIDIA cards a container sees: applied before `CUDA_VISIBLE_DEVICES`, which counts among these.
pub(super) const CONTAINER_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

fn row<'a>(rows: &'a [Wrapper], name: &str) -> Option<&'a Wrapper> {
    rows.iter().find(|(names, ..)| names.split(' ').any(|known| known == name))
}

/// The words that an image's own program is started with.
fn of_image(tag: &str, rest: &[String]) -> Vec<String> {
    let version = tag.split_once(':').map_or(tag, |(_, version)| version);
    let tool =
        |word: &String| TOOLS.iter().find(|(long, short, _)| word == long || word == short).map(|(.., name)| *name);
    let (name, words) = match (rest.split_first(), version) {
        // Its own name, as in `docker run IMAGE llama-server …`.
        (Some((first, _)), _) if !first.starts_with('-') => return rest.to_vec(),
        (Some((first, words)), "full") => (tool(first), words),
        (Some((first, words)), version) if version.starts_with("full-") => (tool(first), words),
        _ => (None, rest),
    };
    let own = ENTRYPOINTS.iter().find(|(part, _)| version.contains(part)).map_or("llama-server", |(_, name)| name);
    let words = if name.is_some() { words } else { rest };
    std::iter::once(name.unwrap_or(own).to_string()).chain(words.iter().cloned()).collect()
}

/// `48g`, `512MiB`, bytes alone: sizes of docker, Compose and systemd, all of which count in 1024; `None` for what is no limit.
pub(super) fn limit(text: &str) -> Option<Bytes> {
    let text = text.trim().to_ascii_uppercase();
    let letters = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let (number, unit) = (text.strip_suffix(letters)?, letters.trim_end_matches('B').trim_end_matches('I'));
    let unit = if unit.is_empty() { "B".to_string() } else { format!("{unit}iB") };
    format!("{number}{unit}").parse().ok().filter(|limit: &Bytes| limit.0 > 0)
}

/// `HOST:INSIDE[:ro]`; a drive of Windows has a colon of its own.
fn volume(value: &str) -> Option<(String, String)> {
    let drive = value.starts_with(|c: char| c.is_ascii_alphabetic())
        && value.get(1..3).is_some_and(|text| text == ":\\" || text == ":/");
    let at = value.char_indices().filter(|(_, c)| *c == ':').map(|(at, _)| at).nth(usize::from(drive))?;
    let (host, inside) = value.split_at_checked(at)?;
    let inside = inside.strip_prefix(':')?.split(':').next()?;
    Some((host.to_string(), inside.to_string()))
}

/// `type=bind,source=HOST,target=INSIDE`.
fn mount(value: &str) -> Option<(String, String)> {
    let of = |names: [&str; 3]| {
        let mut pairs = value.split(',').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| names.contains(name)).map(|(_, path)| path.to_string())
    };
    Some((of(["source", "src", "from"])?, of(["target", "dst", "destination"])?))
}

/// The cards of `--gpus`: `device=0,2`, a count, or all of them.
fn gpus(value: &str) -> Option<String> {
    let value = value.trim_matches(['"', '\'']);
    let list = value.split_once("device=").map(|(_, list)| list.trim_matches(['"', '\'']).to_string());
    list.or_else(|| {
        let count: u32 = value.strip_prefix("count=").unwrap_or(value).parse().ok()?;
        Some((0..count).map(|at| at.to_string()).collect::<Vec<_>>().join(","))
    })
}

/// A path of the container as this computer has it; `None` for what is not in a volume.
fn outside(word: &str, folder: &str, volumes: &[(String, String)]) -> Option<String> {
    let has_ending =
        word.contains('/') || word.rsplit_once('.').is_some_and(|(_, ending)| ending == "gguf" || ending == "ini");
    if !has_ending || word.starts_with('-') || word.contains("://") {
        return None;
    }
    let inside =
        if word.starts_with('/') { word.to_string() } else { format!("{}/{word}", folder.trim_end_matches('/')) };
    // Of two volumes, one in the other, the inner one has it; of two at one place the later.
    let mut volumes: Vec<_> = volumes.iter().rev().collect();
    volumes.sort_by_key(|(_, inside)| std::cmp::Reverse(inside.len()));
    volumes.into_iter().find_map(|(host, at)| {
        let rest = inside.strip_prefix(at.trim_end_matches('/'))?;
        let path = format!("{}{rest}", host.trim_end_matches('/'));
        (rest.is_empty() || rest.starts_with('/')).then(|| path.strip_prefix("./").unwrap_or(&path).to_string())
    })
}

/// The words of a line as its shell would split it: a POSIX shell, or one of Windows, where a backslash is a plain character.
pub(super) fn split(line: &str) -> Option<Vec<String>> {
    static WINDOWS: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r#"(?:^|[\s"'=])[A-Za-z]:\\|^\.{1,2}\\|\.exe\b|^PS[ >]"#).ok());
    if !WINDOWS.as_ref().is_some_and(|windows| windows.is_match(line)) {
        return shlex::split(line);
    }
    let mut words = Vec::new();
    let (mut word, mut quote): (Option<String>, Option<char>) = (None, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// The lines of a shell's text, continued ones joined, each without its prompt.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut is_continued = false;
    for line in text.lines() {
        let line = line.trim();
        if is_continued && line.starts_with('#') {
            continue;
        }
        let (body, continues) = match line.strip_suffix(['\\', '`', '^']) {
            // A backslash that ends a path or a regex stands in a word.
            Some(body) if body.is_empty() || body.ends_with(char::is_whitespace) || !line.ends_with('`') => {
                (body.trim_end(), true)
            }
            _ => (line, false),
        };
        match lines.last_mut().filter(|_| is_continued) {
            // The prompts of a continued line: `> ` and `>> `.
            Some(last) => *last = format!("{last} {}", body.trim_start_matches('>').trim_start()),
            None => lines.push(body.get(prompt(body)..).unwrap_or(body).to_string()),
        }
        is_continued = continues;
    }
    lines.retain(|line| !line.is_empty());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text's one command, variables first.
    fn read(text: &str) -> String {
        let words = split(&lines(text).join("\n")).unwrap();
        shown(&words)
    }

    fn shown(words: &[String]) -> String {
        match of_words(words, &|name| (name == "gpu.env").then(|| "LLAMA_ARG_CTX_SIZE=4096\n# x\n".to_string())) {
            Ok(held) => super::super::sources::shown(&held),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn prompts_continuations_and_redirections_are_taken_off() {
        for text in [
            "$ llama-server -m x -ngl 9",
            "# llama-server -m x -ngl 9",
            "user@host:~/llama.cpp$ llama-server -m x -ngl 9",
            "[user@host dir]$ llama-server -m x -ngl 9",
            "(base) root@box:/# llama-server -m x -ngl 9",
            "bash-5.1$ llama-server -m x -ngl 9",
            "➜  ~ llama-server -m x -ngl 9",
            "~/llama.cpp ❯ llama-server -m x -ngl 9",
            "% llama-server -m x -ngl 9",
            "> llama-server -m x -ngl 9",
            "llama-server \\\n  -m x \\\n  # a comment\n  -ngl 9",
            "llama-server -m x `\n>> -ngl 9",
            "llama-server ^\n -m x ^\n -ngl 9",
            "llama-server -m x -ngl 9 > log.txt 2>&1 &",
            "llama-server -m x -ngl 9 &> log",
            "llama-server -m x -ngl 9 2>&1 | tee log.txt",
            "cd build/bin && llama-server -m x -ngl 9; echo done",
        ] {
            assert_eq!(read(text), "llama-server -m x -ngl 9", "{text}");
        }
        for (text, expected) in [
            (
                r"PS C:\llama> .\llama-server.exe -m D:\models\x.gguf -ngl 9",
                r"'.\llama-server.exe' -m 'D:\models\x.gguf' -ngl 9",
            ),
            (r"C:\llama>llama-server.exe -m C:\x.gguf", r"llama-server.exe -m 'C:\x.gguf'"),
            (
                r#"& "C:\Program Files\llama\llama-server.exe" -m "D:\my models\x.gguf" -c 8192"#,
                r"'C:\Program Files\llama\llama-server.exe' -m 'D:\my models\x.gguf' -c 8192",
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        // As a shell hands them over.
        for words in [
            "$|llama-server|-m|x",
            "user@host:~$|llama-server|-m|x",
            "PS|C:\\ai>|llama-server|-m|x",
            "llama-server|\\|-m|x",
            "llama-server -m x",
        ] {
            let words: Vec<String> = words.split('|').map(str::to_string).collect();
            assert_eq!(shown(&words), "llama-server -m x", "{words:?}");
        }
    }

    #[test]
    fn wrappers_are_taken_off_with_their_options() {
        for text in [
            "sudo llama-server -m x",
            "sudo -u ai -E CUDA=1 llama-server -m x",
            "numactl --interleave=all llama-server -m x",
            "numactl -N 0 -m 0 -- llama-server -m x",
            "numactl --cpunodebind 0 --membind 0 taskset -c 0-7 llama-server -m x",
            "taskset 0xff llama-server -m x",
            "nohup nice -n 10 ionice -c 2 -n 0 llama-server -m x",
            "nice -10 llama-server -m x",
            "time -f %e chrt -f 50 llama-server -m x",
            "exec -a name env -u HOME -- llama-server -m x",
            "stdbuf -oL timeout -s KILL 60 llama-server -m x",
            "systemd-run --user --scope -p MemoryMax=60G --unit llama-server llama-server -m x",
            "gdb --args llama-server -m x",
            "perf stat -e cycles llama-server -m x",
            "conda run -n ai llama-server -m x",
            "uv run -- llama-server -m x",
            "setsid mangohud --dlsym llama-server -m x",
            "unknown-wrapper --flag 3 llama-server -m x",
            "bash -c 'exec llama-server -m x'",
            "llama serve -m x",
            "./build/bin/llama server -m x",
            "-m x",
        ] {
            let read = read(text).replace("CUDA=1 ", "");
            assert_eq!(read, "llama-server -m x", "{text}");
        }
        for (text, expected) in [
            (
                r#"$env:CUDA_VISIBLE_DEVICES="1"; .\llama-server.exe -m x"#,
                r"CUDA_VISIBLE_DEVICES=1 '.\llama-server.exe' -m x",
            ),
            ("$env:A = '2'; llama-server -m x", "A=2 llama-server -m x"),
            ("env A=1 B='2 3' sudo C=4 llama-cli -m x", "A=1 B='2 3' C=4 llama-cli -m x"),
            ("systemd-run -E A=1 --setenv=B=2 llama-bench -m x", "A=1 B=2 llama-bench -m x"),
            ("llama bench -m x", "llama-bench -m x"),
            ("llama completion -m x", "llama-completion -m x"),
            ("llama fit-params -m x", "llama-fit-params -m x"),
            ("llama frobnicate", "error: `llama frobnicate`: `llama` has no command of this name that loads a model"),
            ("ollama run x", "error: `ollama` is not a llama.cpp program"),
            ("docker run i env docker run i llama-server -m x", "llama-server -m x"),
            ("frobnicate x", "error: `frobnicate` is not a llama.cpp program that loads a model, and none follows it"),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn containers_are_told_as_this_computer_has_them() {
        for (text, expected) in [
            ("docker run --gpus all IMAGE -m m.gguf -ngl 99", "llama-server -m m.gguf -ngl 99"),
            (
                "sudo docker run --rm -it --gpus all -p 8080:8080 -v /home/ai/models:/models ghcr.io/ggml-org/llama.cpp:server-cuda -m /models/a/x.gguf -c 8192 --host 0.0.0.0",
                "llama-server -m /home/ai/models/a/x.gguf -c 8192 --host 0.0.0.0",
            ),
            (
                "docker run -v/m:/models:ro --gpus '\"device=1,0\"' ghcr.io/ggml-org/llama.cpp:full-cuda --server -m /models/x.gguf",
                "NVIDIA_VISIBLE_DEVICES=1,0 llama-server -m /m/x.gguf",
            ),
            (
                "docker run --gpus=1 ghcr.io/ggml-org/llama.cpp:light-cuda -m /x.gguf",
                "NVIDIA_VISIBLE_DEVICES=0 llama-cli -m /x.gguf",
            ),
            ("docker run --gpus all ghcr.io/ggml-org/llama.cpp:full-cuda --bench -m /x.gguf", "llama-bench -m /x.gguf"),
            (
                "podman run --device nvidia.com/gpu=1 --mount type=bind,source=/m,target=/models -e LLAMA_ARG_MODEL=/models/x.gguf --env-file gpu.env localhost/llama:server",
                "LLAMA_ARG_CTX_SIZE=4096 LLAMA_ARG_MODEL=/m/x.gguf NVIDIA_VISIBLE_DEVICES=1 llama-server",
            ),
            (
                "docker run --name llama-server --entrypoint /app/llama-cli -v /m:/app/models img -m models/x.gguf",
                "/app/llama-cli -m /m/x.gguf",
            ),
            ("docker exec -it box llama-bench -m /x.gguf", "llama-bench -m /x.gguf"),
            (r"docker run -v C:\models:/models img:server -m /models/x.gguf", r"llama-server -m 'C:\models/x.gguf'"),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        let words = shlex::split("docker run ghcr.io/ggml-org/llama.cpp:server-cuda -m x").unwrap();
        assert_eq!(of_words(&words, &|_| None).unwrap().notes[0].code, "container-without-gpu");
        let plain = ["docker", "run", "--gpus", "all", "ghcr.io/ggml-org/llama.cpp:server", "-m", "a.gguf"];
        let notes = of_words(&plain.map(String::from), &|_| None).unwrap().notes;
        assert!(notes[0].message.starts_with("the image is built for the processor alone"), "{notes:?}");
    }

    /// The heaviest set equals the best of every set that groups and a router allow.
    #[test]
    fn the_heaviest_set_is_that_of_brute_force() {
        let kinds: Vec<Loaded> = [(true, true), (true, false), (false, true), (false, false)]
            .into_iter()
            .enumerate()
            .map(|(at, (swap, is_exclusive))| Loaded::In(Group { name: at.to_string(), swap, is_exclusive }))
            .chain([Loaded::Alone, Loaded::UpTo { most: 2, is_said: true }])
            .collect();
        let mut state = 7u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        for _ in 0..300 {
            let n = 1 + random(8);
            let held: Vec<Held> =
                (0..n).map(|_| Held { loaded: kinds[random(kinds.len())].clone(), ..Held::default() }).collect();
            let weights: Vec<u64> = (0..n).map(|_| 1 + random(50) as u64).collect();
            let is_allowed = |set: u32| {
                let of = |kind: &Loaded| (0..n).filter(|at| set >> at & 1 == 1 && held[*at].loaded == *kind).count();
                let exclusive = [0, 2].iter().filter(|at| of(&kinds[**at]) > 0).count();
                exclusive <= 1 && of(&kinds[0]) <= 1 && of(&kinds[1]) <= 1 && of(&kinds[4]) == 0 && of(&kinds[5]) <= 2
            };
            let sum = |set: u32| (0..n).filter(|at| set >> at & 1 == 1).map(|at| weights[at]).sum::<u64>();
            let most = (0..1u32 << n).filter(|set| is_allowed(*set)).map(sum).max();
            let found = heaviest(&held, |at| weights[at]);
            let set = found.iter().fold(0, |set, at| set | 1 << at);
            assert!(is_allowed(set), "{held:?} {found:?}");
            assert_eq!(Some(sum(set)), most, "{held:?} {weights:?}");
        }
    }

    #[test]
    fn koboldcpp_is_answered_in_the_words_of_llama_cpp() {
        for (text, expected) in [
            (
                "koboldcpp --model x.gguf --contextsize 16384 --gpulayers 99 --overridetensors exps=CPU --usecublas 1 mmq --quantkv 1 --flashattention",
                "CUDA_VISIBLE_DEVICES=1 llama-server -np 1 -fit off -c 16384 -b 512 -ub 512 -lm none --swa-full -m x.gguf -ngl 99 -ot exps=CPU -ctk q8_0 -ctv q8_0 -fa on",
            ),
            (
                "python3 koboldcpp.py --moecpu 12 --tensor_split 3 1 --blasbatchsize 2048 --usemmap --useswa --gpulayers -1 x.gguf",
                "llama-server -np 1 -fit off -c 8192 -b 2048 -ub 2048 -lm mmap -ncmoe 12 -ts 3,1 -ngl -1 -m x.gguf",
            ),
            (
                r"koboldcpp.exe --moecpu --model C:\x.gguf",
                r"llama-server -np 1 -fit off -c 8192 -b 512 -ub 512 -lm none --swa-full -cmoe -m 'C:\x.gguf'",
            ),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
