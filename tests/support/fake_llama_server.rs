//! A llama-server that fails on command: replays a log, speaks HTTP, and does what `--fake MODE` says, for tests/server.rs and tests/server/live.rs.

#![expect(clippy::print_stdout, clippy::print_stderr, clippy::exit, reason = "a program that stands for another")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What it was started with.
struct Options {
    mode: String,
    port: u16,
    /// Where a start leaves a mark, so that the next one behaves differently.
    state: Option<PathBuf>,
    log: PathBuf,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let after = |flag: &str| words.iter().rposition(|word| word == flag).and_then(|at| words.get(at + 1)).cloned();
    if words.iter().any(|word| word == "--version") {
        eprintln!("version: 0.6.0-dev (build 11434, commit fake)");
        return;
    }
    if words.iter().any(|word| word == "--help") {
        println!("-h,    --help                            print usage and exit");
        for flag in [
            "-m FILE",
            "-c N",
            "-np N",
            "-ngl N",
            "-lm MODE",
            "--load-mode MODE",
            "-fit on|off",
            "-lv N",
            "-t N",
            "-cmoe",
            "-ncmoe N",
        ] {
            println!("{flag}                             as ever");
        }
        println!(
            "-dev NAMES   x\n-b N   x\n-ub N   x\n-fa X   x\n--embedding   x\n-tb N   x\n-nr   x\n-nkvo   x\n--no-op-offload   x\n--cache-ram N   x\n--host HOST   x\n--port PORT   x\n-ot, --override-tensor X   x\n-kvu x\n-ts X x\n--list-devices x\n--offline x\n--no-mmproj x\n--spec-type X x\n--spec-draft-n-max N x"
        );
        return;
    }
    if words.iter().any(|word| word == "--list-devices") {
        println!("Available devices:\n  (none)");
        return;
    }
    let options = Options {
        mode: after("--fake").or_else(|| std::env::var("FAKE_LLAMA_SERVER").ok()).unwrap_or_default(),
        port: after("--port").and_then(|port| port.parse().ok()).unwrap_or(8080),
        state: after("--fake-state").map(PathBuf::from).or_else(state),
        log: Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/logs/b11434-cpu-lv4.log"),
    };
    run(&options);
}

/// The folder for marks that the environment names.
fn state() -> Option<PathBuf> {
    std::env::var_os("FAKE_LLAMA_SERVER_STATE").map(PathBuf::from)
}

/// `hang-at-N` hangs in the Nth request, counted over all launches that leave their marks in one place.
fn hang_at(mode: &str) {
    let Some((n, state)) = mode.strip_prefix("hang-at-").and_then(|n| n.parse::<u64>().ok()).zip(state()) else {
        return;
    };
    let marks = std::fs::File::options().create(true).append(true).open(state.join("requests")).expect("a mark");
    (&marks).write_all(b".").expect("a mark");
    if marks.metadata().expect("marks").len() >= n {
        std::fs::write(state.join("hangs"), "").expect("a mark");
        sleep_for_ever();
    }
}

/// Loads as the mode says, then serves.
fn run(options: &Options) {
    match options.mode.as_str() {
        "oom" => {
            say(
                "0.00.100.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 12288.00 MiB on device 0: cudaMalloc failed: out of memory",
            );
            say("0.00.100.001 E alloc_tensor_range: failed to allocate CUDA0 buffer of size 12884901888");
            say("0.00.100.002 E llama_model_load: error loading model: unable to allocate CUDA0 buffer");
            leave("srv  llama_server: exiting due to model loading error");
        }
        "bad-model" => {
            say(
                "0.00.012.015 E llama_model_load: error loading model: tensor 'token_embd.weight' data is not within the file bounds, model is corrupted or incomplete",
            );
            leave("srv  llama_server: exiting due to model loading error");
        }
        "port-taken-once" => {
            let mark = options.state.as_ref().expect("--fake-state").join("started");
            if !mark.exists() {
                std::fs::write(&mark, "").expect("a mark");
                say(&format!(
                    "0.00.001.000 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: {}",
                    options.port
                ));
                leave("srv  llama_server: exiting due to HTTP server error");
            }
        }
        "crash" => {
            say("0.00.050.000 I load_tensors: loading model tensors");
            std::process::abort();
        }
        "silent-exit" => std::process::exit(3),
        "hang" => sleep_for_ever(),
        "fetch" => {
            let mut file =
                std::fs::File::create(options.state.as_ref().expect("a state").join("fetched")).expect("a file");
            for _ in 0..70 {
                file.write_all(&vec![0; 1 << 16]).expect("a piece");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        "garbage-log" => {
            let noise: Vec<u8> =
                (0..200_000_u32).map(|i| u8::try_from(i.wrapping_mul(2_654_435_761) >> 24).unwrap_or(0)).collect();
            let _ = std::io::stderr().write_all(&noise);
            say("");
        }
        "stubborn" | "hang-mid-stream" => {
            // The signal to stop is heard and not heeded.
            ctrlc::set_handler(|| say("no")).expect("a handler");
        }
        _ => {}
    }
    if let Some(state) = &options.state {
        std::fs::write(state.join("pid"), std::process::id().to_string()).expect("a mark");
    }
    if options.mode == "slow" {
        sleep_for_ever();
    }
    let listener = TcpListener::bind(("127.0.0.1", options.port)).expect("the port");
    replay(&options.log, options.port);
    for stream in listener.incoming().map_while(Result::ok) {
        let mode = options.mode.clone();
        std::thread::spawn(move || answer(stream, &mode));
    }
}

/// A line of log; a full disk is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn leave(last: &str) -> ! {
    say(last);
    std::process::exit(1);
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_mins(1));
    }
}

/// The log of a real launch up to the line that says it listens, at the port that was asked for.
fn replay(log: &Path, port: u16) {
    let text = std::fs::read_to_string(log).expect("a captured log");
    for line in text.lines() {
        if let Some((before, _)) = line.split_once("listening on ") {
            say(&format!("{before}listening on http://127.0.0.1:{port}"));
            return;
        }
        say(line);
    }
    say(&format!("0.01.000.000 I srv  llama_server: listening on http://127.0.0.1:{port}"));
}

/// One request a connection.
fn answer(stream: TcpStream, mode: &str) {
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    let mut first = String::new();
    let _ = reader.read_line(&mut first);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    let path = first.split_whitespace().nth(1).unwrap_or_default();
    match path {
        "/health" => send(&stream, 200, r#"{"status":"ok"}"#),
        "/v1/models" => send(&stream, 200, r#"{"data":[{"meta":{"n_vocab":1024}}]}"#),
        "/completion" => {
            hang_at(mode);
            complete(stream, mode);
        }
        "/v1/chat/completions" => {
            hang_at(mode);
            chat(&stream, &String::from_utf8_lossy(&body));
        }
        _ => send(&stream, 404, r#"{"error":{"code":404,"message":"File Not Found"}}"#),
    }
}

/// A chat completion of three words.
fn chat(mut stream: &TcpStream, body: &str) {
    let totals = r#""usage":{"prompt_tokens":9,"completion_tokens":3},"timings":{"prompt_n":9,"prompt_per_second":90.0,"predicted_n":3,"predicted_ms":50.0,"predicted_per_second":60.0}"#;
    if body.contains("\"stream\":false") {
        let message = r#"{"role":"assistant","content":"The sea sleeps."}"#;
        let choice = format!(r#"{{"index":0,"finish_reason":"stop","message":{message}}}"#);
        return send(stream, 200, &format!(r#"{{"choices":[{choice}],{totals}}}"#));
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n");
    for word in ["The ", "sea ", "sleeps."] {
        let delta = format!(r#"{{"delta":{{"content":"{word}"}},"finish_reason":null}}"#);
        let _ = write!(stream, "data: {{\"choices\":[{delta}]}}\n\n");
        std::thread::sleep(Duration::from_millis(5));
    }
    let last = r#"{"delta":{},"finish_reason":"stop"}"#;
    let _ = write!(stream, "data: {{\"choices\":[{last}]}}\n\ndata: {{\"choices\":[],{totals}}}\n\ndata: [DONE]\n\n");
}

fn send(mut stream: &TcpStream, status: u16, body: &str) {
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}

/// A stream of events, at a pace, with what the mode does to it.
fn complete(mut stream: TcpStream, mode: &str) {
    if mode == "refuse" {
        return send(
            &stream,
            400,
            r#"{"error":{"code":400,"message":"request (9 tokens) exceeds the available context size"}}"#,
        );
    }
    say("0.01.000.100 I slot launch_slot_: id  0 | task 0 | processing task, is_child = 0");
    if let Some(state) = state().filter(|_| mode == "held") {
        std::fs::write(state.join("asked"), "").expect("a mark");
        while !state.join("go").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n");
    for token in 0..6 {
        if token == 3 {
            match mode {
                "die-mid-stream" => std::process::abort(),
                "card-error-mid-stream" => {
                    say("/ggml/src/ggml-cuda/ggml-cuda.cu:109: CUDA error");
                    say("0.19.737.089 E CUDA error: an illegal instruction was encountered");
                    std::process::abort();
                }
                "cut-mid-stream" => return,
                "hang-mid-stream" => sleep_for_ever(),
                "garbage-stream" => {
                    let _ = stream.write_all(b"data: \xff\xfe{{{\n\n");
                    return;
                }
                "error-mid-stream" => {
                    let _ = stream.write_all(b"data: {\"error\":{\"code\":500,\"message\":\"context is full\"}}\n\n");
                    return;
                }
                "huge-line" => {
                    let text = "y".repeat(8 << 20);
                    let _ = write!(stream, "data: {{\"content\":\"{text}\",\"stop\":false}}\n\n");
                }
                "endless-line" => loop {
                    if stream.write_all(&vec![b'z'; 1 << 16]).is_err() {
                        return;
                    }
                },
                _ => {}
            }
        }
        // Cut in the middle of a character, a moment apart.
        let event = format!("data: {{\"content\":\"\u{f6}{token}\",\"tokens\":[{token}],\"stop\":false}}\n\n");
        let (start, end) = event.as_bytes().split_at(20);
        let _ = stream.write_all(start);
        let _ = stream.flush();
        std::thread::sleep(Duration::from_millis(5));
        let _ = stream.write_all(end);
    }
    // Drafts of six tokens are the fastest, and of each half is taken.
    let words: Vec<String> = std::env::args().collect();
    let length =
        words.iter().position(|word| word == "--spec-draft-n-max").and_then(|at| words.get(at + 1)?.parse().ok());
    let (rate, drafts) = match length.filter(|_| words.iter().any(|word| word == "--spec-type")) {
        Some(length) => {
            let length: u32 = length;
            let rate = if length == 6 { 200 } else { 150 };
            (rate, format!(",\"draft_n\":{},\"draft_n_accepted\":{length}", 2 * length))
        }
        None => (100, String::new()),
    };
    let _ = write!(
        stream,
        "data: {{\"content\":\"\",\"tokens\":[],\"stop\":true,\"timings\":{{\"cache_n\":0,\"prompt_n\":512,\
         \"prompt_ms\":256.0,\"prompt_per_second\":2000.0,\"predicted_n\":6,\"predicted_ms\":50.0,\
         \"predicted_per_second\":{rate}.0{drafts}}}}}\n\n"
    );
    for line in [
        "print_timing: id  0 | task 0 | prompt eval time =     256.00 ms /   512 tokens (    0.50 ms per token,  2000.00 tokens per second)",
        "print_timing: id  0 | task 0 |        eval time =      50.00 ms /     6 tokens (   10.00 ms per token,   100.00 tokens per second)",
        "     release: id  0 | task 0 | stop processing: n_tokens = 518, truncated = 0",
    ] {
        say(&format!("0.02.000.000 I slot {line}"));
    }
}
