//! The rules about the code, as a test: one-way arrows, who prints, where `unsafe` is, what files begin with.

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file under a folder of the project, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    walk(&path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    walk(&root.join(folder), &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has no Rust files");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(root).unwrap().to_path_buf(), text)
    };
    paths.into_iter().map(read).collect()
}

/// The modules of `lib.rs`, in its order.
fn reading_order() -> Vec<String> {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let order: Vec<String> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_string)).collect();
    assert!(order.len() > 10, "lib.rs lists the modules");
    order
}

/// The module of `src/<module>.rs` or `src/<module>/…`.
fn module_of(path: &Path) -> String {
    let first = path.components().nth(1).unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_string()
}

/// The modules that a text uses as `crate::MODULE` or in `use crate::{MODULE, …}`.
fn used_modules(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            for (at, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && c.is_ascii_alphabetic() => {
                        used.push(word(&list[at..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            used.push(word(rest));
        }
    }
    used
}

#[test]
fn arrows_go_one_way() {
    let order = reading_order();
    let rank = |module: &str| order.iter().position(|known| known == module);
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let module = module_of(&path);
        let Some(own) = rank(&module) else { continue };
        for used in used_modules(&text) {
            if rank(&used).is_some_and(|used| used > own) {
                wrong.push(format!("{} uses crate::{used}, which comes after {module} in lib.rs", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_arrow_check_sees_a_wrong_arrow() {
    assert_eq!(used_modules("use crate::{run::{A, B}, plan};\nlet x = crate::memory::y();"), ["run", "plan", "memory"]);
}

#[test]
fn files_begin_with_what_they_are() {
    let mut wrong = Vec::new();
    for folder in ["src", "tests"] {
        for (path, text) in sources(folder) {
            if !text.starts_with("//! ") {
                wrong.push(format!("{}: does not begin with `//! ` and a sentence", path.display()));
            }
            if text.lines().any(|line| line.trim_end() != line) {
                wrong.push(format!("{}: trailing space", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_edge_prints_and_unsafe_is_where_it_is_known() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let shown = path.display().to_string().replace('\\', "/");
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let code: String = text.lines().filter(is_code).flat_map(|line| [line, "\n"]).collect();
        let prints = ["println!", "eprintln!", "print!(", "anstream::std"].iter().any(|word| code.contains(word));
        if prints && shown != "src/main.rs" && !shown.starts_with("src/commands/") {
            wrong.push(format!("{shown}: prints"));
        }
        let may_be_unsafe = shown.starts_with("src/gguf/") || shown.starts_with("src/runtime/");
        if (text.contains("unsafe {") || text.contains("unsafe impl")) && !may_be_unsafe {
            wrong.push(format!("{shown}: unsafe code"));
        }
        for word in ["TODO", "FIXME", "todo!(", "unimplemented!("] {
            if text.contains(word) {
                wrong.push(format!("{shown}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn readme_names_every_command() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_moeplan")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() >= 4, "{help}");
    for name in commands {
        assert!(readme.contains(&format!("moeplan {name}")), "README.md does not mention `moeplan {name}`");
    }
}

#[test]
fn links_of_the_documentation_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["", "docs", "docs/reports", "web/npm"].map(|folder| fs::read_dir(root.join(folder)).unwrap());
    let pages = folders.into_iter().flatten().map(|file| file.unwrap().path());
    let mut wrong = Vec::new();
    for page in pages.filter(|path| path.extension().is_some_and(|ext| ext == "md")) {
        for rest in fs::read_to_string(&page).unwrap().split("](").skip(1) {
            let link = rest.split([')', '#']).next().unwrap();
            if !link.contains([':', ' ', '\n']) && !page.parent().unwrap().join(link).exists() {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_file_is_compiled_in() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text: String = sources("src").into_iter().map(|(_, text)| text).collect();
    let mut wrong = Vec::new();
    for folder in fs::read_dir(root.join("rules")).unwrap().map(Result::unwrap) {
        if text
            .contains(&format!("include_dir!(\"$CARGO_MANIFEST_DIR/rules/{}\")", folder.file_name().to_str().unwrap()))
        {
            continue;
        }
        for file in fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
            let path = file.path();
            let name = format!(
                "rules/{}/{}",
                folder.file_name().to_str().unwrap(),
                path.file_name().unwrap().to_str().unwrap()
            );
            let stem = path.file_stem().unwrap().to_str().unwrap().to_string();
            if !text.contains(&name) && !text.contains(&format!("\"{stem}\"")) {
                wrong.push(name);
            }
        }
    }
    assert!(wrong.is_empty(), "compiled in nowhere: {}", wrong.join(", "));
}

/// Modules that read untrusted bytes: what panics on them is denied by lint in the module or the one it is part of.
const READING: [&str; 18] = [
    "src/escape.rs",
    "src/evidence.rs",
    "src/expectation.rs",
    "src/gguf/mod.rs",
    "src/inspection.rs",
    "src/machine.rs",
    "src/model.rs",
    "src/placement/pattern.rs",
    "src/plan/rule_file.rs",
    "src/report/page/mod.rs",
    "src/rules.rs",
    "src/run/mod.rs",
    "src/runtime/mod.rs",
    "src/speed/samples.rs",
    "src/suite/llama_bench.rs",
    "src/suite/store.rs",
    "src/suite/stream.rs",
    "src/tune/journal.rs",
];

#[test]
fn modules_that_read_untrusted_bytes_deny_what_panics_on_them() {
    let sources = sources("src");
    for path in READING {
        let (_, text) = sources.iter().find(|(known, _)| known == Path::new(path)).expect(path);
        let attributes = text.split("\n\n").next().unwrap_or_default();
        for lint in ["indexing_slicing", "string_slice", "unwrap_used", "expect_used", "clippy::panic"] {
            assert!(attributes.contains("deny(") && attributes.contains(lint), "{path} does not deny {lint}");
        }
    }
}

#[test]
fn the_attacks_of_the_document_are_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/hostile-files.md")).unwrap();
    let (_, list) = document.split_once("## Attacks, each a test").unwrap();
    let rows = list.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with('|')).skip(2);
    let tests: String = sources("tests").into_iter().map(|(_, text)| text).collect();
    let mut count = 0;
    for row in rows {
        let named: Vec<&str> = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{row}");
        for name in named {
            let name = name.rsplit([':', ' ']).next().unwrap();
            assert!(name == "*" || tests.contains(&format!("fn {name}(")), "no test is called `{name}`: {row}");
            count += 1;
        }
    }
    assert!(count > 40, "{count} names");
}
