//! An OpenAI-compatible endpoint in a thread, that answers as its manner says: soundly, like shimmy 1.8, or with one fault.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// What it says, a delta a word.
const WORDS: [&str; 12] = ["The ", "sea ", "sea ", "— ", "na", "ï", "ve ", "at ", "night ", "is ", "a ", "door."];

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Sound,
    /// As shimmy 1.8.1 answered: zeros for counts, an empty delta for a token without text, all deltas at once.
    Shimmy,
    /// Sound, but for counts and timings that are not there.
    Uncounted,
    NoDone,
    NoFinish,
    Duplicated,
    EmptyDelta,
    SplitCharacter,
    BrokenGrapheme,
    Burst,
    Differs,
    Garbage,
    NotEvents,
    ErrorMidStream,
    BreaksOff,
    Hangs,
    Refuses,
    IgnoresStreamFalse,
}

/// Starts it; it lives as long as the test.
pub fn start(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = answer(&stream, manner);
            });
        }
    });
    format!("http://{address}")
}

/// One request: its path and body.
fn request(stream: &TcpStream) -> std::io::Result<(String, String)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((path, String::from_utf8_lossy(&body).into_owned()))
}

fn answer(mut stream: &TcpStream, manner: Manner) -> std::io::Result<()> {
    let (path, body) = request(stream)?;
    let json = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    match path.as_str() {
        "/v1/models" if manner == Manner::Shimmy => {
            return stream.write_all(json(r#"{"data":[{"id":"phi3-lora"},{"id":"tiny-moe"}]}"#).as_bytes());
        }
        "/health" if manner == Manner::Shimmy => {
            return stream.write_all(json(r#"{"service":"shimmy","status":"ok","version":"1.8.1"}"#).as_bytes());
        }
        "/v1/models" => return stream.write_all(json(r#"{"data":[{"id":"fake"}]}"#).as_bytes()),
        "/tokenize" if manner == Manner::Sound => {
            let content = body.split("\"content\":\"").nth(1).unwrap_or_default();
            let tokens = vec!["1"; content.split(' ').count()].join(",");
            return stream.write_all(json(&format!("{{\"tokens\":[{tokens}]}}")).as_bytes());
        }
        "/v1/chat/completions" => {}
        _ => return stream.write_all(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"),
    }
    if manner == Manner::Hangs {
        std::thread::sleep(Duration::from_mins(1));
        return Ok(());
    }
    if manner == Manner::Refuses {
        let body = r#"{"error":{"message":"no such <b>model</b>"}}"#;
        return write!(
            stream,
            "HTTP/1.1 500 Oops\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    // shimmy streams unless it is told not to.
    let streams = if body.contains("\"stream\":false") { manner == Manner::IgnoresStreamFalse } else { true };
    if streams { events(stream, manner) } else { stream.write_all(json(&whole(manner)).as_bytes()) }
}

const TOTALS: &str = r#""usage":{"prompt_tokens":9,"completion_tokens":12},"timings":{"prompt_n":9,"prompt_per_second":90.0,"predicted_n":12,"predicted_ms":10.0,"predicted_per_second":60.0}"#;

/// What shimmy 1.8.1 counts in an answer in one piece; its streams have no usage.
const ZEROS: &str = r#""usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#;

fn whole(manner: Manner) -> String {
    let totals = if matches!(manner, Manner::Shimmy | Manner::Uncounted) { ZEROS } else { TOTALS };
    let text = if manner == Manner::Differs { "The land".to_string() } else { WORDS.concat() };
    format!(
        r#"{{"choices":[{{"index":0,"finish_reason":"stop","message":{{"role":"assistant","content":"{text}"}}}}],{totals}}}"#
    )
}

fn events(mut stream: &TcpStream, manner: Manner) -> std::io::Result<()> {
    let kind = if manner == Manner::NotEvents { "text/plain" } else { "text/event-stream" };
    let cut = if manner == Manner::BreaksOff { "transfer-encoding: chunked\r\n" } else { "" };
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{cut}connection: close\r\n\r\n")?;
    let role = if manner == Manner::Shimmy { r#""role":null,"# } else { "" };
    let content = |text: &str| {
        format!("data: {{\"choices\":[{{\"delta\":{{{role}\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n")
    };
    let opening = r#"data: {"choices":[{"delta":{"role":"assistant","content":null},"finish_reason":null}]}"#;
    let mut pieces = vec![format!("{opening}\n\n")];
    pieces.extend(WORDS.iter().map(|word| content(word)));
    match manner {
        Manner::Duplicated => pieces.insert(3, content("sea ")),
        Manner::EmptyDelta | Manner::Shimmy => pieces.insert(3, content("")),
        Manner::SplitCharacter => pieces.insert(3, content("\u{fffd}")),
        Manner::BrokenGrapheme => pieces[6] = content("i") + &content("\\u0308"),
        Manner::Garbage => pieces.insert(3, "data: {nonsense\n\n".to_string()),
        Manner::ErrorMidStream => pieces[3] = "data: {\"error\":{\"message\":\"out of memory\"}}\n\n".to_string(),
        _ => {}
    }
    if manner != Manner::NoFinish {
        let last = if manner == Manner::Shimmy { r#""role":null,"content":null"# } else { "" };
        pieces.push(format!("data: {{\"choices\":[{{\"delta\":{{{last}}},\"finish_reason\":\"stop\"}}]}}\n\n"));
    }
    if !matches!(manner, Manner::Shimmy | Manner::Uncounted) {
        let slow = TOTALS.replace("\"predicted_ms\":10.0", "\"predicted_ms\":400.0");
        let totals = if manner == Manner::Burst { slow.as_str() } else { TOTALS };
        pieces.push(format!("data: {{\"choices\":[],{totals}}}\n\n"));
    }
    if manner != Manner::NoDone {
        pieces.push("data: [DONE]\n\n".to_string());
    }
    if manner == Manner::BreaksOff {
        let piece = &pieces[1];
        return write!(stream, "{:x}\r\n{piece}\r\nff\r\nhalf", piece.len());
    }
    if matches!(manner, Manner::Burst | Manner::Shimmy) {
        std::thread::sleep(Duration::from_millis(50));
        return stream.write_all(pieces.concat().as_bytes());
    }
    for piece in pieces {
        stream.write_all(piece.as_bytes())?;
        stream.flush()?;
        std::thread::sleep(Duration::from_millis(4));
    }
    Ok(())
}
