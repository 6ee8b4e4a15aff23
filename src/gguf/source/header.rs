//! One file's header over HTTP: windows that grow until it is whole, resumed where they break. [I/O]

use std::io::Read;

use super::super::{Fault, Header, ModelFile, Start, TensorInfo, UNKNOWN};
use super::cache::Entry;
use super::client::{Answer, Client, Event, header, refuse_encoding};
use super::error::{Error, Failure};
use super::url::Url;

/// The start of a file, as far as it came.
#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    /// The file's length, where the server says it.
    file_bytes: Option<u64>,
    etag: Option<String>,
    /// The rest of an answer, and where in the file it ends, where the server says it.
    body: Option<(Box<dyn Read + Send>, Option<u64>)>,
    /// The server ignored a range: its one answer cannot be resumed.
    is_stream: bool,
    ended: bool,
    /// Whether a part of it is another file's.
    is_spliced: bool,
}

impl Part {
    fn have(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn is_whole(&self) -> bool {
        self.ended || self.file_bytes.is_some_and(|length| self.have() >= length)
    }
}

type Opened = (Part, Header, ModelFile);

impl Client {
    /// The header of the file at `url`. `oid`: what the hub's list says about its content, which saves asking again; `known`: the
    /// header of another quantisation.
    pub(super) fn header(
        &self,
        url: &Url,
        oid: Option<&str>,
        known: Option<&Known>,
    ) -> Result<(Header, ModelFile), Error> {
        let cached = self.cache.as_ref().and_then(|cache| cache.load(url.as_str()));
        let cached =
            cached.and_then(|entry| parse(url, &entry.bytes, entry.file_bytes).ok().map(|parsed| (entry, parsed)));
        match &cached {
            Some((entry, parsed)) if self.offline || (oid.is_some() && entry.oid.as_deref() == oid) => {
                return Ok(parsed.clone());
            }
            None if self.offline => return Err(Failure::Offline.of(url)),
            _ => {}
        }
        let etag = cached.as_ref().and_then(|(entry, _)| entry.etag.as_deref());
        let Some((part, header, file)) = self.windows(url, etag, known)? else {
            return cached.map(|(_, parsed)| parsed).ok_or_else(|| Failure::Changed.of(url));
        };
        if let Some(cache) = self.cache.as_ref().filter(|_| !part.is_spliced) {
            let end = usize::try_from(header.data_offset).unwrap_or(usize::MAX);
            let bytes = part.bytes.get(..end).unwrap_or(&part.bytes).to_vec();
            let (url, etag, oid) = (url.to_string(), part.etag, oid.map(str::to_string));
            // A cache that cannot be written is not an error.
            let _ = cache.store(&Entry { url, etag, oid, file_bytes: part.file_bytes, bytes });
        }
        Ok((header, file))
    }

    /// Reads until the header is whole; `None` where the file still has the cached `etag`.
    fn windows(&self, url: &Url, etag: Option<&str>, mut known: Option<&Known>) -> Result<Option<Opened>, Error> {
        let mut part = Part::default();
        let mut goal = self.limits.first_window;
        let mut failed = 0;
        for _ in 0..self.limits.requests {
            let before = part.have();
            match self.extend(url, &mut part, goal, etag) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(failure) => {
                    let anew = matches!(failure, Failure::Changed) || part.is_stream;
                    if part.have() > before && !anew {
                        failed = 0;
                    }
                    self.again(&mut failed, url, failure).map_err(|failure| failure.of(url))?;
                    if anew {
                        part = Part { is_stream: part.is_stream, ..Part::default() };
                    }
                    continue;
                }
            }
            if part.have() < goal && !part.is_whole() {
                continue;
            }
            match parse(url, &part.bytes, part.file_bytes.or(part.ended.then_some(part.have()))) {
                Ok((header, file)) => return Ok(Some((part, header, file))),
                Err(Error::Gguf(fault)) if fault.at.what == Fault::Ends && !part.is_whole() => {
                    if let Some(spliced) = known.take().and_then(|known| self.splice(url, &part, known)) {
                        return Ok(Some(spliced));
                    }
                    if goal >= self.limits.header {
                        return Err(Failure::TooLong(self.limits.header).of(url));
                    }
                    goal = goal.saturating_mul(4).min(goal.saturating_add(self.limits.step)).min(self.limits.header);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Failure::Requests(self.limits.requests).of(url))
    }

    /// The header with a known one's vocabulary; `None` where the two do not agree.
    fn splice(&self, url: &Url, part: &Part, known: &Known) -> Option<Opened> {
        const SPARE: usize = 16 << 10;
        let (file_bytes, etag) = (part.file_bytes?, part.etag.as_deref()?);
        let (from, to) = known.wanted(&part.bytes, SPARE)?;
        let (first, end) = (from as u64, (to as u64).min(file_bytes));
        let last = end.checked_sub(1).filter(|last| first < *last)?;
        let headers = [("range", format!("bytes={first}-{last}")), ("if-range", etag.to_string())];
        let mut answer = self.get(url, &headers).ok()?;
        let is_same = answer.status == 206 && header(&answer, "etag") == Some(etag) && refuse_encoding(&answer).is_ok();
        if !is_same || content_range(&answer, first, last).ok()? != (last, Some(file_bytes)) {
            return None;
        }
        let mut bytes = Vec::new();
        self.fill(&mut *answer.body, &mut bytes, end.saturating_sub(first)).ok()?;
        let bytes = known.joined(&part.bytes, &bytes)?;
        let (header, file) = parse(url, &bytes, Some(file_bytes)).ok()?;
        Some((Part { bytes, file_bytes: Some(file_bytes), is_spliced: true, ..Part::default() }, header, file))
    }

    /// Brings the part to `goal` bytes, or closer to it; `false` where the file still has the cached `etag`.
    fn extend(&self, url: &Url, part: &mut Part, goal: u64, etag: Option<&str>) -> Result<bool, Failure> {
        if part.body.is_none() && !self.ask(url, part, goal, etag)? {
            return Ok(false);
        }
        let Some((mut body, end)) = part.body.take() else { return Ok(true) };
        let ended = self.fill(&mut *body, &mut part.bytes, goal.min(end.unwrap_or(u64::MAX)))?;
        if ended && end.is_some_and(|end| part.have() < end) {
            return Err(Failure::Dropped { have: part.have() });
        }
        part.ended = ended && part.is_stream;
        part.body = Some((body, end)).filter(|_| !ended && part.is_stream);
        Ok(true)
    }

    /// Asks for the bytes up to `goal`; `false` where the file still has the cached `etag`.
    fn ask(&self, url: &Url, part: &mut Part, goal: u64, etag: Option<&str>) -> Result<bool, Failure> {
        let have = part.have();
        let etag = etag.filter(|_| have == 0);
        let last = part.file_bytes.unwrap_or(u64::MAX).min(goal).saturating_sub(1);
        let mut headers = vec![("range", format!("bytes={have}-{last}"))];
        headers.extend(etag.map(|etag| ("if-none-match", etag.to_string())));
        let strong = part.etag.iter().filter(|etag| have > 0 && !etag.starts_with("W/"));
        headers.extend(strong.map(|etag| ("if-range", etag.clone())));
        let answer = self.get(url, &headers)?;
        if answer.status == 304 {
            return if etag.is_some() { Ok(false) } else { Err(Failure::Changed) };
        }
        refuse_encoding(&answer)?;
        if header(&answer, "content-type").is_some_and(|kind| kind.trim_start().starts_with("text/html")) {
            return Err(Failure::Page);
        }
        let found = header(&answer, "etag").map(str::to_string);
        if etag.is_some() && found.as_deref() == etag {
            return Ok(false);
        }
        if have > 0 && (answer.status == 200 || (part.etag.is_some() && found.is_some() && part.etag != found)) {
            return Err(Failure::Changed);
        }
        part.etag = part.etag.take().or(found);
        if answer.status == 200 {
            if !part.is_stream {
                (self.watch)(&Event::NoRanges(url.to_string()));
            }
            part.is_stream = true;
            part.file_bytes = header(&answer, "content-length").and_then(|text| text.trim().parse().ok());
            part.body = Some((answer.body, part.file_bytes));
            return Ok(true);
        }
        let (last, length) = content_range(&answer, have, last)?;
        if length.is_some() && part.file_bytes.is_some() && length != part.file_bytes {
            return Err(Failure::Changed);
        }
        part.file_bytes = part.file_bytes.or(length);
        part.is_stream = false;
        part.body = Some((answer.body, last.checked_add(1)));
        Ok(true)
    }
}

/// The last byte and the whole length of `Content-Range: bytes first-last/length`; the range must be as asked.
fn content_range(answer: &Answer, first: u64, last: u64) -> Result<(u64, Option<u64>), Failure> {
    let text = header(answer, "content-range").unwrap_or_default();
    let read = || {
        let (range, length) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
        let (from, to) = range.split_once('-')?;
        let length = if length == "*" { None } else { Some(length.parse().ok()?) };
        Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?, length))
    };
    let is_as_asked = |(from, to, length): &(u64, u64, Option<u64>)| {
        *from == first && *to >= first && *to <= last && length.is_none_or(|length| *to < length)
    };
    let (_, to, length) = read()
        .filter(is_as_asked)
        .ok_or_else(|| Failure::Range { asked: first, found: text.chars().take(80).collect() })?;
    Ok((to, length))
}

/// The header of a file's first bytes; without a length from the server, the length is what the tensors need.
fn parse(url: &Url, bytes: &[u8], file_bytes: Option<u64>) -> Result<(Header, ModelFile), Error> {
    Ok(Start { path: url.as_str(), file_bytes, bytes }.read()?)
}

/// A header that was read, and where its last part starts: the vocabulary between its first and last part is not moved again.
///
/// The quantisations of a repository have the same vocabulary at nearly the same place, which is most of a header, and of which
/// only lengths matter here. What is taken for it must fit between two parts of the file's own bytes, both of which continue
/// the known header's bytes exactly, and the whole must be a good header; else it is read as usual.
pub struct Known {
    bytes: Vec<u8>,
    /// Before the tensors and so many bytes of keys before them.
    tail: usize,
}

/// Bytes that must agree where the parts meet.
const SEAM: usize = 512;

impl Known {
    /// Of the bytes of a whole header; the last part holds its tensors and `keys` bytes before them.
    pub fn new(bytes: Vec<u8>, keys: u64) -> Option<Self> {
        let header = Header::read(&bytes, UNKNOWN).ok()?;
        // Lengths of the name and itself, of the dimensions and their number, of type and offset.
        let info = |tensor: &TensorInfo| {
            u64::from(tensor.n_dims).saturating_mul(8).saturating_add(tensor.name.len() as u64).saturating_add(24)
        };
        let tensors = header.tensors.iter().map(info).fold(header.alignment, u64::saturating_add);
        let tail = header.data_offset.checked_sub(tensors)?.checked_sub(keys)?;
        Some(Self { bytes, tail: usize::try_from(tail).ok()? })
    }

    /// Where in the known header the bytes after `start`, the first ones of another, go on: the end of its last bytes.
    fn continues(&self, start: &[u8]) -> Option<usize> {
        let seam = start.len().checked_sub(SEAM).and_then(|at| start.get(at..))?;
        let from = start.len().saturating_sub(SEAM).checked_sub(start.len() / 2)?;
        let to = start.len().saturating_add(start.len() / 2).min(self.tail);
        let mut places = self.bytes.get(from..to)?.windows(SEAM).enumerate().filter(|(_, part)| *part == seam);
        let (place, _) = places.next()?;
        // Bytes that repeat say nothing about the place.
        places.next().is_none().then_some(from.saturating_add(place).saturating_add(SEAM))
    }

    /// The range of the other file that has to be read, with so many bytes to spare, once its `start` is there.
    pub fn wanted(&self, start: &[u8], spare: usize) -> Option<(usize, usize)> {
        let moved = self.tail.checked_sub(self.continues(start)?)?;
        let from = start.len().checked_add(moved)?;
        Some((from, from.checked_add(self.bytes.len().checked_sub(self.tail)?)?.checked_add(spare)?))
    }

    /// The other header's bytes, of its `start` and its `end`.
    pub fn joined(&self, start: &[u8], end: &[u8]) -> Option<Vec<u8>> {
        let between = self.bytes.get(self.continues(start)?..self.tail)?;
        let agrees = end.get(..SEAM)? == self.bytes.get(self.tail..)?.get(..SEAM)?;
        agrees.then(|| [start, between, end].concat())
    }
}
