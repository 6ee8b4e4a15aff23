//! A small HTTP server on the loopback address that serves files, well or badly, and counts what it sends.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    /// How many requests for this path came before.
    pub earlier: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// First and last byte of `Range: bytes=first-last`.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// An answer: head lines, body, and how the body is sent.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Say this length instead of the body's.
    pub length: Option<u64>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Send no more after so many bytes of the body, and keep the connection.
    pub stall: Option<usize>,
    /// After the body, zeros until nobody takes them.
    pub endless: bool,
    /// Close the connection before any answer.
    pub hang_up: bool,
    /// These bytes as they are instead of an answer, then the end of the connection.
    pub raw: Option<Vec<u8>>,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn redirect(location: &str) -> Self {
        Self::status(302).header("Location", location)
    }

    /// The range that was asked for, as a good server answers it.
    pub fn range(request: &Request, file: &[u8], etag: &str) -> Self {
        if request.header("if-none-match") == Some(etag) {
            return Self::status(304).header("ETag", etag);
        }
        let is_same = request.header("if-range").is_none_or(|known| known == etag);
        match request.range().filter(|_| is_same) {
            Some((first, _)) if first >= file.len() => Self::status(416),
            Some((first, last)) => {
                let last = last.min(file.len() - 1);
                Self::status(206)
                    .header("ETag", etag)
                    .header("Content-Range", format!("bytes {first}-{last}/{}", file.len()))
                    .body(&file[first..=last])
            }
            None => Self::status(200).header("ETag", etag).body(file),
        }
    }
}

/// The server; it ends with the test process.
#[derive(Debug)]
pub struct Server {
    pub address: String,
    /// Bytes of bodies that were handed to the network.
    pub sent: Arc<AtomicU64>,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn new(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::over("http", handler, Some)
    }

    /// The same behind TLS.
    pub fn tls(config: Arc<ServerConfig>, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::over("https", handler, move |stream| {
            let mut session = ServerConnection::new(config.clone()).unwrap();
            let mut stream = stream;
            // A client that trusts nobody here hangs up.
            session.complete_io(&mut stream).ok().map(|_| StreamOwned::new(session, stream))
        })
    }

    fn over<S: Read + Write>(
        scheme: &str,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
        open: impl Fn(TcpStream) -> Option<S> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let server = Self { address, sent: Arc::default(), requests: Arc::default() };
        let open = Arc::new(open);
        let (sent, requests, handler) = (server.sent.clone(), server.requests.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (sent, requests, handler, open) = (sent.clone(), requests.clone(), handler.clone(), open.clone());
                std::thread::spawn(move || {
                    if let Some(stream) = open(stream) {
                        serve(stream, &sent, &requests, &*handler);
                    }
                });
            }
        });
        server
    }

    /// Files by path, served as they should be.
    pub fn of_files(files: Vec<(String, Vec<u8>)>) -> Self {
        Self::new(move |request| {
            let path = request.path.split('?').next().unwrap();
            match files.iter().find(|(known, _)| known == path) {
                Some((name, file)) => Answer::range(request, file, &format!("\"{name}\"")),
                None => Answer::status(404),
            }
        })
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    pub fn paths(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|request| request.path.clone()).collect()
    }
}

/// Answers until the connection ends, or an answer ends it.
fn serve(
    stream: impl Read + Write,
    sent: &AtomicU64,
    requests: &Mutex<Vec<Request>>,
    handler: &(dyn Fn(&Request) -> Answer + Send + Sync),
) {
    let mut reader = BufReader::new(stream);
    while let Some(mut request) = read_request(&mut reader) {
        {
            let mut requests = requests.lock().unwrap();
            request.earlier = requests.iter().filter(|earlier| earlier.path == request.path).count();
            requests.push(request.clone());
        }
        if !write_answer(reader.get_mut(), &handler(&request), sent) {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<impl Read>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let path = line.split(' ').nth(1)?.to_string();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
    }
    Some(Request { path, headers, earlier: 0 })
}

/// Whether the connection may serve another request.
fn write_answer(stream: &mut impl Write, answer: &Answer, sent: &AtomicU64) -> bool {
    if answer.hang_up {
        return false;
    }
    if let Some(raw) = &answer.raw {
        let _ = stream.write_all(raw);
        return false;
    }
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    for (name, value) in &answer.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if !answer.endless {
        let _ = write!(head, "Content-Length: {}\r\n", answer.length.unwrap_or(answer.body.len() as u64));
    }
    if stream.write_all(format!("{head}\r\n").as_bytes()).is_err() {
        return false;
    }
    let body = &answer.body[..answer.cut.or(answer.stall).unwrap_or(answer.body.len()).min(answer.body.len())];
    for part in body.chunks(1 << 16) {
        if stream.write_all(part).is_err() {
            return false;
        }
        sent.fetch_add(part.len() as u64, Ordering::SeqCst);
    }
    if answer.stall.is_some() {
        std::thread::sleep(Duration::from_mins(5));
    }
    if answer.endless {
        while stream.write_all(&[0; 1 << 14]).is_ok() {
            sent.fetch_add(1 << 14, Ordering::SeqCst);
        }
        return false;
    }
    answer.cut.or(answer.stall).is_none() && answer.length.is_none_or(|length| length == answer.body.len() as u64)
}
