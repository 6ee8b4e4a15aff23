//! Reports of real documents and of made-up measurements: every kind has its section, nothing breaks out, a browser is content.
#![expect(clippy::print_stderr, reason = "a test that cannot run here says so")]

use crate::support::report_documents as made_up;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scraper::{Html, Selector};

fn moeplan(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moeplan")).current_dir(folder).args(words).output().unwrap()
}

fn ok(folder: &Path, words: &[&str]) -> String {
    let output = moeplan(folder, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with a document of every kind; `name` is what models, prompts and answers are called.
fn documents(name: &str) -> (tempfile::TempDir, Vec<&'static str>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    ok(path, &["synth", "gpt-oss-20b", "-o", "m.gguf"]);
    let budget = ["--vram", "8G", "--ram", "64G", "--json", "-o"];
    ok(path, &[&["plan", "m.gguf", "--tensors", "--explain"], &budget[..], &["plan.json"]].concat());
    ok(
        path,
        &[&["plan", "m.gguf", "--sweep", "vram=6G..14G:4G", "--sweep", "ctx=4k..8k"], &budget[..], &["sweep.json"]]
            .concat(),
    );
    let check = ["--", "llama-server", "-m", "m.gguf", "-ngl", "99", "-ncmoe", "20", "-c", "8192"];
    ok(path, &[&["check"], &budget[..], &["check.json"], &check[..]].concat());
    ok(path, &["inspect", "m.gguf", "--json", "-o", "inspect.json"]);
    let write = |file: &str, value: serde_json::Value| std::fs::write(path.join(file), value.to_string()).unwrap();
    write("measurement.json", made_up::measurement(name));
    write("bench.json", made_up::bench(name));
    write("validation.json", made_up::validation(name));
    write("run.json", made_up::launched(name));
    write("tune.json", made_up::tuning(name));
    write("llama-bench.json", made_up::llama_bench(name));
    let files =
        ["plan", "sweep", "check", "inspect", "measurement", "bench", "validation", "run", "tune", "llama-bench"];
    let names = files.map(|file| format!("{file}.json").leak() as &'static str);
    (folder, names.to_vec())
}

/// What the page says, style and script left out.
fn words(page: &Html) -> String {
    let body = Selector::parse("body").unwrap();
    page.select(&body).flat_map(|body| body.text()).collect::<Vec<_>>().join(" ")
}

fn count(page: &Html, what: &str) -> usize {
    page.select(&Selector::parse(what).unwrap()).count()
}

#[test]
fn every_document_has_its_section_in_both_formats() {
    let (folder, files) = documents("A model");
    let all = |more: &[&'static str]| [&["report"], &files[..], more].concat();
    ok(folder.path(), &all(&["-o", "report.html"]));
    let text = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    let page = Html::parse_document(&text);
    assert_eq!(page.errors, Vec::<String>::new());
    // Side by side, ten documents, and the two models of the validation.
    assert_eq!(count(&page, "section"), 13);
    assert_eq!(count(&page, "figure"), count(&page, "figure details table"), "a chart without its table");
    assert!(count(&page, "figure") > 20 && count(&page, ".what-if tbody tr") == 6);
    assert_eq!(count(&page, ".what-if input[type=range]"), 2);
    assert!(text.len() < 360_000, "{} bytes", text.len());
    let markdown = ok(folder.path(), &all(&["--format", "markdown"]));
    let shown = words(&page);
    for fact in [
        "CUDA0",
        "mapped from the file (1.00 GiB",
        "A model (bench.json)",
        "ffn_up_exps",
        "50.0 ± 1.0",
        "20 ± 1.0 ms",
        "all-on-device",
        "−58.6%",
        "tg128 @ d4096",
        "b11434",
        "http://127.0.0.1:8080",
        "Tuning of model.gguf",
        "beats --fit on: 1.50 times as fast",
        "answers of at most 700 tokens",
    ] {
        assert!(shown.contains(fact), "the page lacks `{fact}`");
        assert!(markdown.replace('\\', "").contains(fact), "the Markdown lacks `{fact}`");
    }
    for word in ["NaN", "TBD", "inf%"] {
        assert!(!shown.contains(word) && !markdown.contains(word), "`{word}` in a report");
    }
    assert_eq!(markdown.lines().filter(|line| line.starts_with("## ")).count(), 13);
    std::fs::write(folder.path().join("plain"), "").unwrap();
    let permissions = |file: &str| std::fs::metadata(folder.path().join(file)).unwrap().permissions();
    assert_eq!(permissions("report.html"), permissions("plain"), "readable as any file");
    ok(folder.path(), &all(&["-o", "again.html"]));
    assert_eq!(text, std::fs::read_to_string(folder.path().join("again.html")).unwrap(), "the same page twice");
}

#[test]
fn commands_write_their_own_page() {
    let (folder, _) = documents("A model");
    let budget = ["--vram", "8G", "--ram", "64G", "--format", "html"];
    for (words, map) in [
        (["plan", "m.gguf"].to_vec(), 1),
        (["plan", "m.gguf", "--sweep", "vram=6G..8G:1G"].to_vec(), 0),
        (["inspect", "m.gguf"].to_vec(), 0),
    ] {
        let budget = if words[0] == "inspect" { &budget[4..] } else { &budget[..] };
        let page = Html::parse_document(&ok(folder.path(), &[&words[..], budget].concat()));
        assert_eq!(page.errors, Vec::<String>::new(), "{words:?}");
        assert_eq!(count(&page, ".map"), map, "{words:?}");
        let sliders = [("inspect", 0), ("plan", 2 - words.len().saturating_sub(2) / 2)];
        let expected = sliders.iter().find(|(name, _)| *name == words[0]).unwrap().1;
        assert_eq!(count(&page, ".what-if input"), expected, "{words:?}");
        assert_eq!(count(&page, ".what-if tbody tr"), count(&page, ".what-if template.command"), "{words:?}");
    }
    // The page of a plan begins with the plan itself, in the middle of what else there could be.
    let page = Html::parse_document(&ok(folder.path(), &[&["plan", "m.gguf"], &budget[..]].concat()));
    let places: Vec<_> = page
        .select(&Selector::parse(".what-if input").unwrap())
        .map(|input| (input.value().attr("value").unwrap(), input.value().attr("max").unwrap()))
        .collect();
    assert_eq!(
        places,
        [("2", "5"), ("0", "2")],
        "4, 6, 8, 10, 12 and 16 GiB; the context that the turn needs, and its doubles"
    );
    for words in ["list", "synth --list", "devices --vram 24G --ram 64G", "rules list"] {
        let words = words.split(' ').chain(["--format", "html"]).collect::<Vec<_>>();
        let page = Html::parse_document(&ok(folder.path(), &words));
        assert_eq!(page.errors, Vec::<String>::new(), "{words:?}");
        assert_eq!(count(&page, "section"), 1, "{words:?}");
    }
}

#[test]
fn strangers_names_stay_names() {
    let hostile =
        "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>|`\u{1b}[31m\u{202e}\u{200b}\"'";
    let (folder, files) = documents(hostile);
    ok(folder.path(), &[&["report"], &files[..], &["-o", "report.html", "--title", hostile]].concat());
    let text = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    let page = Html::parse_document(&text);
    assert_eq!(count(&page, "script"), 1, "the slider's own");
    assert_eq!(count(&page, "img, iframe, object, embed, link, base, [onerror], [src]"), 0);
    assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{200b}']));
    assert!(words(&page).contains("<script>alert(1)</script><img src=x onerror=alert(2)>|`\\u{1b}[31m\\u{202e}"));
    let markdown = ok(folder.path(), &[&["report"], &files[..], &["--title", hostile]].concat());
    let outside_fences = markdown.split("```").step_by(2).collect::<String>();
    assert!(!outside_fences.contains("<script") && !outside_fences.contains("<img"));
    assert!(!markdown.contains(['\u{1b}', '\u{202e}', '\u{200b}']));
}

#[test]
fn what_is_no_document_is_an_error_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.json"), r#"{"schema":"moeplan/plan/9"}"#).unwrap();
    std::fs::write(folder.path().join("m.gguf"), b"GGUF\x03\0\0\0\xff").unwrap();
    std::fs::write(folder.path().join("program"), b"\x7fELF\xff\xfe").unwrap();
    std::fs::write(folder.path().join("empty.json"), "").unwrap();
    std::fs::write(folder.path().join("log.txt"), "hello").unwrap();
    let as_it_is = "error: `log.txt` is not JSON: expected value at line 1 column 1\n";
    for (words, expected) in [
        (["report"].to_vec(), "hint: for example: moeplan report run.json"),
        (["report", "m.gguf"].to_vec(), "hint: `moeplan inspect m.gguf --json"),
        (["report", "program"].to_vec(), "`program` is not JSON: it is not even text"),
        (["report", "empty.json"].to_vec(), "`empty.json` is empty"),
        (["report", "log.txt"].to_vec(), as_it_is),
        (["report", "a.json"].to_vec(), "`moeplan/plan/9`, which a report does not show"),
        (["report", "b.json"].to_vec(), "cannot read `b.json`"),
        (["report", "."].to_vec(), "`.` is a folder"),
        (["report", "a.json", "-o", "p.pdf"].to_vec(), "hint: the known extensions are .html, .md, .svg, .txt"),
    ] {
        let output = moeplan(folder.path(), &words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(expected), "{words:?}: {said}");
    }
    assert!(!folder.path().join("p.pdf").exists());
    let said = String::from_utf8(moeplan(folder.path(), &["report", "a.json"]).stderr).unwrap();
    assert!(said.contains("hint: a report shows what inspect, check, plan, run"), "{said}");
}

/// Chromium, where there is one.
fn browser() -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    folders.iter().flat_map(|folder| names.map(|name| folder.join(name))).find(|path| path.is_file())
}

#[test]
fn a_browser_shows_the_page_without_complaint() {
    let Some(browser) = browser() else {
        return eprintln!("skipped: no chromium on PATH");
    };
    let (folder, files) = documents("A model <i>&");
    ok(folder.path(), &[&["report"], &files[..], &["-o", "report.html"]].concat());
    let page = folder.path().join("report.html");
    for width in ["1200,900", "390,844"] {
        let output = Command::new(&browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"])
            .arg(format!("--user-data-dir={}", folder.path().join("browser").display()))
            .arg(format!("--window-size={width}"))
            .arg(format!("file://{}", page.display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let complaints: Vec<&str> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
        let shown = Html::parse_document(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(count(&shown, "tr.chosen"), 1, "the slider did not start: is its hash in the policy?");
    }
}
