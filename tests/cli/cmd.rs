//! The pages of `tests/cmd`, README.md and `docs`: each is read by people and run by this test, so the manual cannot lie.

use std::path::Path;
use std::process::Command;

/// No card and no llama-server of this computer, and nothing measured on it: the pages are the same everywhere.
fn pages_of(pattern: &str) {
    trycmd::TestCases::new()
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("MOEPLAN_LLAMA_SERVER", "/nonexistent")
        .env("XDG_STATE_HOME", "/nonexistent")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .case(pattern);
}

#[test]
fn pages() {
    pages_of("tests/cmd/*.md");
}

/// What README.md and `docs` show is what comes out, in a folder with the models that they name.
#[test]
fn readme_and_docs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    let _ = std::fs::remove_dir_all(&pages);
    std::fs::create_dir_all(&pages).unwrap();
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|file| file.unwrap().path());
    let mut shown = 0;
    for page in docs.chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|ext| ext == "md")) {
        let text = std::fs::read_to_string(&page).unwrap();
        if !text.contains("```console\n$ moeplan") {
            continue;
        }
        shown += 1;
        // trycmd runs a page NAME.md in the folder NAME.in.
        let folder = pages.join(page.file_stem().unwrap()).with_extension("in");
        std::fs::create_dir_all(&folder).unwrap();
        // trycmd writes every backslash of an answer as a slash, and wants an answer's last line feed as an empty line.
        let compared = text.replace('\\', "/").replace("\n```\n", "\n\n```\n");
        std::fs::write(pages.join(page.file_name().unwrap()), compared).unwrap();
        for model in ["phi-3.5-moe", "gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b"] {
            let file = format!("{model}.gguf");
            if text.contains(&format!(" {file}")) {
                let mut synth = Command::new(env!("CARGO_BIN_EXE_moeplan"));
                let status = synth.args(["synth", model, "-q", "-o", &file]).current_dir(&folder).status();
                assert!(status.unwrap().success());
            }
        }
    }
    assert!(shown > 0, "README.md shows moeplan at work");
    pages_of(&format!("{}/*.md", pages.display()));
    let _ = std::fs::remove_dir_all(&pages);
}
