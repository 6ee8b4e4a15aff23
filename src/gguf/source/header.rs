//! One file's header over HTTP: windows that grow until it is whole, resumed where they break. [I/O]

use std::io::Read;

use super::super::{Fault, Header, ModelFile};
use super::cache::Entry;
use super::client::{Answer, Client, Event, Tries, header, refuse_encoding};
use super::error::{Error, Failure};
use super::splice::Known;
use super::url::Url;
use crate::bytes::Bytes;

/// The start of a file, as far as it came.
#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    /// The file's length, where the server says it.
    file_bytes: Option<u64>,
    etag: Option<String>,
    /// The rest of an answer to a request whose range the server ignored.
    stream: Option<Box<dyn Read + Send>>,
    /// Whether the server takes ranges, once known.
    ranges: Option<bool>,
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

enum Step {
    More,
    /// The cached entry is the file as it is.
    NotModified,
}

impl Client {
    /// The header of the file at `url`. `oid`: what the hub's list says about its content, which saves asking again.
    pub fn header(&self, url: &Url, oid: Option<&str>) -> Result<(Header, ModelFile), Error> {
        self.header_beside(url, oid, None)
    }

    /// The same, where the header of another quantisation is known.
    pub(super) fn header_beside(
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
        let etag = cached.as_ref().and_then(|(entry, _)| entry.etag.clone());
        match self.windows(url, etag.as_deref(), known)? {
            Some((part, header, file)) => {
                self.keep(url, oid, &part, &header);
                Ok((header, file))
            }
            None => cached.map(|(_, parsed)| parsed).ok_or_else(|| Failure::Changed.of(url)),
        }
    }

    /// Remembers the header's bytes; a cache that cannot be written is no error.
    fn keep(&self, url: &Url, oid: Option<&str>, part: &Part, header: &Header) {
        let Some(cache) = self.cache.as_ref().filter(|_| !part.is_spliced) else { return };
        let end = usize::try_from(header.data_offset).unwrap_or(usize::MAX);
        let bytes = part.bytes.get(..end).unwrap_or(&part.bytes).to_vec();
        let (etag, oid) = (part.etag.clone(), oid.map(str::to_string));
        let _ = cache.store(&Entry { url: url.to_string(), etag, oid, file_bytes: part.file_bytes, bytes });
    }

    /// Reads until the header is whole; `None` where the file still has the cached `etag`.
    fn windows(
        &self,
        url: &Url,
        etag: Option<&str>,
        mut known: Option<&Known>,
    ) -> Result<Option<(Part, Header, ModelFile)>, Error> {
        let mut part = Part::default();
        let mut goal = self.limits.first_window;
        let mut tries = Tries::new(&self.limits);
        for _ in 0..self.limits.requests {
            let before = part.have();
            match self.extend(url, &mut part, goal, etag) {
                Ok(Step::NotModified) => return Ok(None),
                Ok(Step::More) => {}
                Err(failure) => {
                    let changed = matches!(failure, Failure::Changed) || part.stream.is_some();
                    if part.have() > before && !changed && failure.is_transient() {
                        tries = Tries::new(&self.limits);
                    }
                    self.again(&mut tries, url, failure).map_err(|failure| failure.of(url))?;
                    if changed {
                        part = Part { ranges: part.ranges.filter(|_| part.stream.is_some()), ..Part::default() };
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
    fn splice(&self, url: &Url, part: &Part, known: &Known) -> Option<(Part, Header, ModelFile)> {
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
        let part = Part { bytes, file_bytes: Some(file_bytes), is_spliced: true, ..Part::default() };
        Some((part, header, file))
    }

    /// Brings the part to `goal` bytes, or closer to it.
    fn extend(&self, url: &Url, part: &mut Part, goal: u64, etag: Option<&str>) -> Result<Step, Failure> {
        if let Some(mut stream) = part.stream.take() {
            let result = self.fill(&mut *stream, &mut part.bytes, goal);
            part.stream = Some(stream);
            return ended(part, result?);
        }
        let have = part.have();
        let last = part.file_bytes.unwrap_or(u64::MAX).min(goal).saturating_sub(1);
        let mut headers = vec![("range", format!("bytes={have}-{last}"))];
        if have == 0 {
            headers.extend(etag.map(|etag| ("if-none-match", etag.to_string())));
        } else {
            headers
                .extend(part.etag.iter().filter(|etag| !etag.starts_with("W/")).map(|etag| ("if-range", etag.clone())));
        }
        let mut answer = self.get(url, &headers)?;
        if answer.status == 304 {
            return if have == 0 && etag.is_some() { Ok(Step::NotModified) } else { Err(Failure::Changed) };
        }
        refuse_encoding(&answer)?;
        if header(&answer, "content-type").is_some_and(|kind| kind.trim_start().starts_with("text/html")) {
            return Err(Failure::Page);
        }
        let found = header(&answer, "etag").map(str::to_string);
        if have == 0 && etag.is_some() && found.as_deref() == etag {
            return Ok(Step::NotModified);
        }
        if have > 0 && (answer.status == 200 || (part.etag.is_some() && found.is_some() && part.etag != found)) {
            return Err(Failure::Changed);
        }
        part.etag = part.etag.take().or(found);
        if answer.status == 200 {
            return self.whole(url, part, answer, goal);
        }
        let (end, length) = content_range(&answer, have, last)?;
        if length.is_some() && part.file_bytes.is_some() && length != part.file_bytes {
            return Err(Failure::Changed);
        }
        part.file_bytes = part.file_bytes.or(length);
        part.ranges = Some(true);
        let goal = end.saturating_add(1);
        if self.fill(&mut *answer.body, &mut part.bytes, goal)? && part.have() < goal {
            return Err(Failure::Dropped { have: part.have() });
        }
        Ok(Step::More)
    }

    /// The start of an answer that is the whole file.
    fn whole(&self, url: &Url, part: &mut Part, mut answer: Answer, goal: u64) -> Result<Step, Failure> {
        if part.ranges.is_none() {
            (self.watch)(&Event::NoRanges(url.to_string()));
        }
        part.ranges = Some(false);
        part.file_bytes = header(&answer, "content-length").and_then(|text| text.trim().parse().ok());
        let result = self.fill(&mut *answer.body, &mut part.bytes, goal);
        part.stream = Some(answer.body);
        ended(part, result?)
    }
}

/// Notes the end of a stream, which must not come before the stated length.
fn ended(part: &mut Part, ended: bool) -> Result<Step, Failure> {
    part.ended = ended;
    match part.file_bytes {
        Some(length) if ended && part.have() < length => Err(Failure::Dropped { have: part.have() }),
        _ => Ok(Step::More),
    }
}

/// The last byte and the whole length of `Content-Range: bytes first-last/length`; the range must be as asked.
fn content_range(answer: &Answer, first: u64, last: u64) -> Result<(u64, Option<u64>), Failure> {
    let text = header(answer, "content-range").unwrap_or_default();
    let wrong = || Failure::Range { asked: first, found: text.chars().take(80).collect() };
    let read = || {
        let (range, length) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
        let (from, to) = range.split_once('-')?;
        let length = if length == "*" { None } else { Some(length.parse().ok()?) };
        Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?, length))
    };
    let (from, to, length): (u64, u64, Option<u64>) = read().ok_or_else(wrong)?;
    let is_as_asked = from == first && to >= from && to <= last && length.is_none_or(|length| to < length);
    if is_as_asked { Ok((to, length)) } else { Err(wrong()) }
}

/// The header of a file's first bytes; without a length from the server, the length is what the tensors need.
fn parse(url: &Url, bytes: &[u8], file_bytes: Option<u64>) -> Result<(Header, ModelFile), Error> {
    // No file is longer, and no sum of its offsets passes 64 bits.
    const UNKNOWN: u64 = 1 << 62;
    let header = Header::read(bytes, file_bytes.unwrap_or(UNKNOWN)).map_err(|fault| fault.in_file(url.as_str()))?;
    let needed = || header.tensors.last().map_or(0, |last| last.offset.saturating_add(last.bytes.0));
    let file_bytes = file_bytes.unwrap_or_else(|| header.data_offset.saturating_add(needed()));
    let file = ModelFile { path: url.as_str().into(), bytes: Bytes(file_bytes), data_offset: header.data_offset };
    Ok((header, file))
}
