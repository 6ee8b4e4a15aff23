//! The panel of `run` on a terminal and where there is none, on a fake llama-server that serves one request.

use crate::support::http_server::{Answer, Server};
use crate::{MOEPLAN, fake, tiny, until};

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use moeplan::bytes::Bytes;

/// How long anything may take.
const LIMIT: Duration = Duration::from_mins(1);

/// A program under test and what it has said.
struct Talker {
    child: Child,
    pieces: Receiver<Vec<u8>>,
    said: String,
}

impl Talker {
    fn new(command: &mut Command, from: impl FnOnce(&mut Child) -> Box<dyn std::io::Read + Send>) -> Self {
        let mut child = command.stdin(Stdio::piped()).spawn().expect("a program");
        let mut source = from(&mut child);
        let (send, pieces) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n) = source.read(&mut piece) {
                if n == 0 || send.send(piece[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, pieces, said: String::new() }
    }

    /// Waits until it has said `words`; what it has said since it began.
    fn until(&mut self, words: &str) -> String {
        self.until_times(words, 1)
    }

    /// Waits until it has said `words` so many times.
    fn until_times(&mut self, words: &str, times: usize) -> String {
        let start = Instant::now();
        while self.said.matches(words).count() < times {
            assert!(start.elapsed() < LIMIT, "`{words}` never came: {}", self.said);
            if let Ok(piece) = self.pieces.recv_timeout(Duration::from_millis(100)) {
                self.said += &String::from_utf8_lossy(&piece);
            }
        }
        self.said.clone()
    }

    /// Sends one request to the server that it says is ready, and reads the answer.
    fn ask(&mut self) {
        ask(&self.until("Ctrl-C stops"));
    }

    /// Its exit code, and all that it has said.
    fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("an end").code();
        for piece in &self.pieces {
            self.said += &String::from_utf8_lossy(&piece);
        }
        (code, self.said)
    }
}

/// Sends one request to the server whose address `said` names, and reads the answer.
fn ask(said: &str) {
    let (_, rest) = said.rsplit_once("http://127.0.0.1:").expect("an address");
    let port = rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|port| port.parse::<u16>().ok());
    let mut stream = TcpStream::connect(("127.0.0.1", port.expect("a port"))).expect("the server");
    stream.write_all(b"POST /completion HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
}

/// What docs/run.md shows from these words on was said in this order, figures, paths and empty lines apart.
fn is_in_the_manual(begins: &str, said: &str) {
    let figures = |text: &str| text.replace(|c: char| c.is_ascii_digit() || c == '.', "");
    let manual = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/run.md")).expect("a page");
    let block = manual.split("```").find(|block| block.starts_with(&format!("text\n{begins}"))).expect("a block");
    let mut rest = said;
    for line in block.lines().skip(1) {
        let line = line.split(" (`").next().unwrap_or_default();
        let shown = |at: &&str| figures(at).contains(&figures(line));
        let found = rest.split(['\r', '\n']).find(shown).unwrap_or_else(|| panic!("`{line}` was not said: {said}"));
        rest = rest.split_once(found).map_or("", |(_, rest)| rest);
    }
}

/// The words of a `run` on the fake server.
fn words(folder: &Path, more: &[&str]) -> Vec<String> {
    let (server, model) = (fake(), tiny(folder));
    let mut words = vec![MOEPLAN.to_string()];
    words.extend(["run", "--backend", "cpu", "--ctx-size", "512", "--llama-server"].map(str::to_string));
    words.extend([server.display().to_string(), model.display().to_string()]);
    words.extend(more.iter().map(|word| (*word).to_string()));
    words
}

#[test]
fn a_model_of_the_hub_is_planned_from_its_header_and_fetched_by_the_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, file) = ("/owner/repo/resolve/main/m-Q4_K_M.gguf", std::fs::read(tiny(folder.path())).expect("a model"));
    let (whole, shown) = (file.len() as u64, Bytes(file.len() as u64).to_string());
    let beside = folder.path().join("mmproj-F16.gguf");
    let mut synth = Command::new(MOEPLAN);
    synth.args(["synth", "mmproj-llava-1.5-7b", "--tiny", "--recipe", "F16", "-q", "-o"]).arg(&beside);
    assert!(synth.stdout(Stdio::null()).status().expect("moeplan").success());
    let projector = std::fs::read(beside).expect("a projector");
    let small = projector.len();
    let item = format!(
        r#"[{{"type":"file","path":"m-Q4_K_M.gguf","size":{whole},"oid":"x"}},{{"type":"file","path":"mmproj-F16.gguf","size":{small},"oid":"y"}}]"#
    );
    let hub = Server::new(move |request| match request.path.as_str() {
        "/api/models/owner/repo/tree/main?recursive=true" => Answer::status(200).body(item.clone()),
        asked if asked == path => Answer::range(request, &file, "\"e\""),
        "/owner/repo/resolve/main/mmproj-F16.gguf" => Answer::range(request, &projector, "\"f\""),
        _ => Answer::status(404),
    });
    let fetching = "FAKE_LLAMA_SERVER=fetch";
    // The model's projector is counted, unless the words for llama-server say that it is not loaded.
    for (offline, fetches, extra) in [
        ("", fetching, ""),
        ("--offline", "FAKE_LLAMA_SERVER=", ""),
        ("", "FAKE_LLAMA_SERVER=", "-- --jinja --no-mmproj"),
    ] {
        let answer = folder.path().join(format!("run{offline}{}.json", extra.len()));
        let [home, answer_path, server] = [folder.path(), &answer, &fake()].map(|path| path.display().to_string());
        // It fetches for longer than it may load.
        let line = format!(
            "exec env {fetches} FAKE_LLAMA_SERVER_STATE={home} HF_ENDPOINT={} HOME={home} XDG_CACHE_HOME={home} {MOEPLAN} run {offline} \
             --backend cpu --ram 64G --ctx-size 512 --timeout 5 --llama-server {server} --json -o {answer_path} hf:owner/repo:Q4_K_M {extra}",
            hub.address
        );
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdout(Stdio::piped());
        let mut talker = Talker::new(&mut command, |child| Box::new(child.stdout.take().expect("stdout")));
        talker.until(&format!("llama-server first downloads {shown}"));
        if fetches == fetching {
            talker.until("fetching the model, ");
        }
        talker.until("Ctrl-C stops");
        if fetches == fetching {
            is_in_the_manual("llama-server first downloads", &talker.said);
        }
        let document: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&answer).expect("a document")).expect("JSON");
        let words: Vec<_> =
            document["command"].as_array().expect("words").iter().filter_map(|word| word.as_str()).collect();
        assert!(
            words.windows(2).any(|pair| pair == ["-hf", "owner/repo:Q4_K_M"]) && !words.contains(&"-m"),
            "{words:?}"
        );
        assert_eq!(words.contains(&"--offline"), !offline.is_empty(), "{words:?}");
        let parts = document["plan"]["parts"].as_array().map_or(0, Vec::len);
        let is_counted = talker.said.contains("`-hf` also loads") && parts == 2;
        assert_eq!(
            (is_counted, words.contains(&"--no-mmproj")),
            (extra.is_empty(), !extra.is_empty()),
            "{words:?} {parts} {}",
            talker.said
        );
        talker.child.stdin.as_mut().expect("stdin").write_all(b"\x03").expect("Ctrl-C");
        assert_eq!(talker.end().0, Some(130));
    }
    assert!(hub.sent() < whole + small as u64, "more than the header was read: {} of {whole} bytes", hub.sent());
}

/// A card whose memory other programs take and give back, by a library in the place of the driver's.
#[test]
fn the_server_follows_what_other_programs_leave_of_the_card() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/nvml.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(at("libnvidia-ml.so.1")).arg(source);
    assert!(cc.status().expect("cc, which links Rust too").success());
    let mut synth = Command::new(MOEPLAN);
    synth.args(["synth", "gpt-oss-20b", "--blocks", "4", "-q", "-o"]).arg(at("model.gguf")).stdout(Stdio::null());
    assert!(synth.status().expect("moeplan").success());
    // A file that is half written would be a card of another size.
    let free = |mib: u32| {
        std::fs::write(at("next"), format!("8192 {mib}")).expect("a file");
        std::fs::rename(at("next"), at("card")).expect("a file");
    };
    free(8000);
    let mut command = Command::new(MOEPLAN);
    command.args(["run", "--follow", "--ctx-size", "512", "--json", "--force", "-o"]).arg(at("run.json"));
    command
        .arg("--llama-server")
        .arg(fake())
        .arg("model.gguf")
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.env("LD_LIBRARY_PATH", folder.path()).env("FAKE_NVML", at("card")).env_remove("CUDA_VISIBLE_DEVICES");
    command.env("FAKE_LLAMA_SERVER", "held").env("FAKE_LLAMA_SERVER_STATE", folder.path()).env("HOME", folder.path());
    command.env("XDG_STATE_HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
    let mut talker = Talker::new(&mut command, |child| Box::new(child.stderr.take().expect("stderr")));
    let launched = |talker: &mut Talker, times| {
        talker.until_times("Ctrl-C stops", times);
        let document = std::fs::read(at("run.json")).expect("a document");
        let document: serde_json::Value = serde_json::from_slice(&document).expect("JSON");
        let on_host = document["command"].to_string().contains("=CPU");
        (document["endpoint"].clone(), document["process"].clone(), on_host)
    };
    let first = launched(&mut talker, 1);
    assert!(!first.2, "all experts fit: {}", talker.said);
    // Less than the margin is not followed.
    free(7900);
    // While a request runs, the server stays.
    let said = talker.said.clone();
    let asking = std::thread::spawn(move || ask(&said));
    assert!(until(|| at("asked").exists()), "no request came");
    free(3000);
    std::thread::sleep(Duration::from_secs(6));
    while let Ok(piece) = talker.pieces.try_recv() {
        talker.said += &String::from_utf8_lossy(&piece);
    }
    assert!(!talker.said.contains("planning again"), "{}", talker.said);
    std::fs::write(at("go"), "").expect("a mark");
    asking.join().expect("an answer");
    let second = launched(&mut talker, 2);
    assert!(second.2 && second.1 != first.1, "experts have left the card: {}", talker.said);
    assert_eq!(second.0, first.0, "another address");
    // Nothing fits: the server stays.
    free(1000);
    talker.until("keeping the server: ");
    free(8000);
    let third = launched(&mut talker, 3);
    assert_eq!((third.0, third.2), (first.0, false), "{}", talker.said);
    interrupt(&talker.child);
    let (code, said) = talker.end();
    assert_eq!((code, said.matches("planning again").count()), (Some(130), 3), "{said}");
    is_in_the_manual("2.93 GiB of CUDA0", &said);
}

/// `run` without a terminal.
fn piped(folder: &Path, more: &[&str]) -> Talker {
    let words = words(folder, more);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::piped());
    Talker::new(&mut command, |child| Box::new(child.stderr.take().expect("stderr")))
}

/// `run` on a terminal of so many columns, which `script` makes.
fn on_a_terminal(folder: &Path, columns: u16, more: &[&str]) -> Talker {
    let script = Command::new("script").arg("--version").stdout(Stdio::null()).status();
    assert!(script.is_ok(), "nothing makes a terminal here: install `script` (util-linux; in Debian bsdutils)");
    let line = format!("stty cols {columns} rows 30; exec {}", words(folder, more).join(" "));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    command.stdout(Stdio::piped());
    Talker::new(&mut command, |child| Box::new(child.stdout.take().expect("stdout")))
}

#[test]
fn on_a_terminal_the_panel_stays_below_the_log_and_leaves_with_ctrl_c() {
    for (columns, more, has_color) in [(80, &["--log"][..], true), (40, &["--color", "never"], false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut talker = on_a_terminal(folder.path(), columns, more);
        // The panel is there before the first request.
        talker.until("0 running, 0 served");
        talker.ask();
        let said = talker.until("1 served");
        assert_eq!(said.contains("processing task"), more.contains(&"--log"), "{said}");
        let (_, panel) = said.split_once("Ctrl-C stops").expect("the line before it");
        assert_eq!(panel.contains("\u{1b}[1m"), has_color, "{said}");
        assert_eq!(panel.contains("budget"), columns == 80, "{said}");
        // What a terminal takes for Ctrl-C.
        talker.child.stdin.as_mut().expect("stdin").write_all(b"\x03").expect("Ctrl-C");
        let (code, said) = talker.end();
        assert_eq!(code, Some(130), "{said}");
        let (_, after) = said.rsplit_once("stopping llama-server").expect("that it stops");
        assert!(!after.contains("served") && !after.contains("predicted"), "{after}");
    }
}

#[test]
fn without_a_terminal_there_are_lines() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut talker = piped(folder.path(), &[]);
    talker.ask();
    let said = talker.until("; Host ");
    let line = said.lines().find(|line| line.starts_with("up 0:")).expect("a line");
    let expected = "; 0 running, 1 served; latest pp 2,000 t/s of 512 tokens and tg 100 t/s of 6 tokens; Host ";
    assert!(line.contains(expected), "{line}");
    assert!(!said.contains('\u{1b}'), "{said}");
    interrupt(&talker.child);
    assert_eq!(talker.end().0, Some(130));
}

#[test]
fn with_quiet_there_is_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let answer = folder.path().join("run.json");
    let talker = piped(folder.path(), &["-q", "--json", "-o", &answer.display().to_string()]);
    let start = Instant::now();
    let document = loop {
        match std::fs::read_to_string(&answer) {
            Ok(text) => break text,
            Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let (_, from_endpoint) = document.split_once("\"endpoint\"").expect("an endpoint");
    ask(from_endpoint.lines().next().expect("a line"));
    // Longer than the panel's owner waits between two looks.
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&talker.child);
    assert_eq!(talker.end(), (Some(130), String::new()));
}

fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
}
