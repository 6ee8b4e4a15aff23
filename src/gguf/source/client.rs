//! Asking servers: limits, redirects, tokens, retries, and how many bytes moved. [I/O]

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::cache::Cache;
use super::error::{Error, Failure};
use super::url::Url;

/// Where Hugging Face repositories are, unless `HF_ENDPOINT` says otherwise.
pub const HUB: &str = "https://huggingface.co";

const MAX_REDIRECTS: u32 = 10;
/// Tries that bring no new byte, before it is an error.
const TRIES: u32 = 3;

/// The bounds of a remote read that callers may change; bytes and times.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of the first window of a header.
    pub first_window: u64,
    /// The window grows four times as large until it has so many bytes, then by so many at a time.
    pub step: u64,
    /// Bytes of keys before the tensors that are read of a header whose vocabulary is known from another quantisation.
    pub tail: u64,
    /// Longest header; the longest vocabularies known need 30 MB.
    pub header: u64,
    /// Longest answer of the hub's list of files, a page.
    pub listing: u64,
    /// Requests for one header, redirects not counted.
    pub requests: u32,
    /// Wait before the second try; doubled for each further one.
    pub backoff: Duration,
    /// The longest wait that a server's `Retry-After` may ask for.
    pub longest_wait: Duration,
    pub response: Duration,
    pub read: Duration,
    pub body: Duration,
    /// Shards asked for at the same time.
    pub parallel: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_window: 64 << 10,
            step: 4 << 20,
            tail: 128 << 10,
            header: 128 << 20,
            listing: 16 << 20,
            requests: 200,
            backoff: Duration::from_millis(500),
            longest_wait: Duration::from_secs(20),
            response: Duration::from_secs(30),
            read: Duration::from_secs(30),
            body: Duration::from_mins(2),
            parallel: 8,
        }
    }
}

pub struct Answer {
    pub status: u16,
    /// Header names in lower case, and their values.
    pub headers: Vec<(String, String)>,
    pub body: Box<dyn Read + Send>,
}

/// Sends one request: redirects are not followed, bodies not decompressed, a status is not an error.
pub trait Transport: Send + Sync {
    /// A GET request. `is_local` servers are asked without a proxy.
    fn get(&self, url: &str, headers: &[(&str, String)], is_local: bool) -> Result<Answer, Failure>;
}

/// Stands in for HTTP where moeplan is built without the feature `remote`.
#[cfg(not(feature = "remote"))]
struct NotBuilt;

#[cfg(not(feature = "remote"))]
impl Transport for NotBuilt {
    fn get(&self, _: &str, _: &[(&str, String)], _: bool) -> Result<Answer, Failure> {
        Err(Failure::NotBuilt)
    }
}

/// Something that a person may want to see while it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Bytes of headers that came, all together so far.
    Moved(u64),
    /// The server takes no range requests: the file is read from its start and left early.
    NoRanges(String),
    Again {
        url: String,
        why: String,
    },
}

/// Who wants to see events; called from several threads.
pub type Watch = Arc<dyn Fn(&Event) + Send + Sync>;

/// Reads headers over the network, and remembers them.
#[derive(Clone)]
pub struct Client {
    pub limits: Limits,
    /// Nothing is asked, only the cache is read.
    pub offline: bool,
    pub watch: Watch,
    pub(super) cache: Option<Cache>,
    pub(super) endpoint: Url,
    token: Option<String>,
    transport: Arc<dyn Transport>,
    moved: Arc<AtomicU64>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("limits", &self.limits).field("offline", &self.offline).finish_non_exhaustive()
    }
}

impl Client {
    /// With the bounds, a directory for the cache (or none), and the token for the hub (or none).
    pub fn new(limits: Limits, cache: Option<PathBuf>, endpoint: &str, token: Option<String>) -> Result<Self, Error> {
        #[cfg(feature = "remote")]
        let transport = super::transport::http(&limits);
        #[cfg(not(feature = "remote"))]
        let transport = Arc::new(NotBuilt);
        Self::over(transport, limits, cache, endpoint, token)
    }

    /// The same over another transport than HTTP.
    pub fn over(
        transport: Arc<dyn Transport>,
        limits: Limits,
        cache: Option<PathBuf>,
        endpoint: &str,
        token: Option<String>,
    ) -> Result<Self, Error> {
        let endpoint = Url::parse(endpoint.trim_end_matches('/')).map_err(|failure| failure.of(endpoint))?;
        let is_plain = |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        Ok(Self {
            transport,
            limits,
            offline: false,
            watch: Arc::new(|_| {}),
            cache: cache.map(Cache::new),
            endpoint,
            token: token.map(|token| token.trim().to_string()).filter(is_plain),
            moved: Arc::default(),
        })
    }

    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`, the XDG cache.
    pub fn from_environment() -> Result<Self, Error> {
        let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| HUB.to_string());
        Self::new(Limits::default(), crate::files::cache_folder(), &endpoint, text("HF_TOKEN"))
    }

    /// Bytes of bodies that came over the network so far.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// One request, redirects followed; the answer's status is 200, 206 or 304. The token goes to the hub's own host only.
    pub(super) fn get(&self, url: &Url, headers: &[(&'static str, String)]) -> Result<Answer, Failure> {
        if self.offline {
            return Err(Failure::Offline);
        }
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let is_hub = url.origin() == self.endpoint.origin();
            let token = self.token.as_ref().filter(|_| is_hub);
            let mut headers = headers.to_vec();
            headers.extend(token.map(|token| ("authorization", format!("Bearer {token}"))));
            let answer = self.transport.get(url.as_str(), &headers, url.is_local())?;
            match answer.status {
                301 | 302 | 303 | 307 | 308 => url = url.redirect(header(&answer, "location").unwrap_or_default())?,
                200 | 206 | 304 => return Ok(answer),
                code => {
                    let retry_after = header(&answer, "retry-after").and_then(|text| text.parse().ok());
                    return Err(Failure::Status { code, retry_after, with_token: token.is_some(), is_hub });
                }
            }
        }
        Err(Failure::Redirects(MAX_REDIRECTS))
    }

    /// Reads until `goal` bytes are there or the body ends; whether it ended.
    pub(super) fn fill(&self, body: &mut dyn Read, bytes: &mut Vec<u8>, goal: u64) -> Result<bool, Failure> {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let missing = goal.saturating_sub(bytes.len() as u64);
            if missing == 0 {
                return Ok(false);
            }
            let most = usize::try_from(missing).unwrap_or(usize::MAX).min(buffer.len());
            let window = buffer.get_mut(..most).unwrap_or_default();
            let count = match body.read(window) {
                Ok(0) => return Ok(true),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return Err(Failure::Timeout),
                Err(_) => return Err(Failure::Dropped { have: bytes.len() as u64 }),
            };
            bytes.extend(window.iter().take(count));
            let moved = self.moved.fetch_add(count as u64, Ordering::Relaxed).saturating_add(count as u64);
            (self.watch)(&Event::Moved(moved));
        }
    }

    /// A whole small answer, with its `Link` to the next page, retried.
    pub(super) fn listing(&self, url: &Url) -> Result<(Vec<u8>, Option<Url>), Failure> {
        let ask = || {
            let mut answer = self.get(url, &[("accept", "application/json".to_string())])?;
            refuse_encoding(&answer)?;
            let mut bytes = Vec::new();
            if !self.fill(&mut *answer.body, &mut bytes, self.limits.listing)? {
                return Err(Failure::Listing(format!("longer than {} bytes", self.limits.listing)));
            }
            let next = header(&answer, "link").and_then(next_link).map(|link| url.join(link)).transpose()?;
            if next.as_ref().is_some_and(|next| next.origin() != url.origin()) {
                return Err(Failure::Listing("its next page is on another host".into()));
            }
            Ok((bytes, next))
        };
        let mut failed = 0;
        loop {
            match ask() {
                Ok(page) => return Ok(page),
                Err(failure) => self.again(&mut failed, url, failure)?,
            }
        }
    }

    /// Waits before another try, after so many that failed in a row; or gives up with the failure.
    pub(super) fn again(&self, failed: &mut u32, url: &Url, failure: Failure) -> Result<(), Failure> {
        let wait = self.limits.backoff.saturating_mul(2_u32.saturating_pow(*failed));
        *failed = failed.saturating_add(1);
        let asked = match failure {
            Failure::Status { retry_after: Some(seconds), .. } => Duration::from_secs(seconds),
            _ => Duration::ZERO,
        };
        if !failure.is_transient() || *failed >= TRIES || asked > self.limits.longest_wait {
            return Err(failure);
        }
        (self.watch)(&Event::Again { url: url.to_string(), why: failure.to_string() });
        std::thread::sleep(wait.max(asked));
        Ok(())
    }
}

/// The value of a header.
pub(super) fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Compressed bytes have no place in a range.
pub(super) fn refuse_encoding(answer: &Answer) -> Result<(), Failure> {
    match header(answer, "content-encoding").map(str::trim) {
        None | Some("" | "identity") => Ok(()),
        Some(other) => Err(Failure::Encoding(other.chars().take(40).collect())),
    }
}

/// The address in `<…>; rel="next"`.
fn next_link(link: &str) -> Option<&str> {
    link.split(',').find(|part| part.contains("rel=\"next\""))?.split_once('<')?.1.split_once('>').map(|(url, _)| url)
}
