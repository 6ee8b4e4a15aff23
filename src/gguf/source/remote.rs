//! A whole model over the network: the file that is named, then the other shards of it, side by side. [I/O]

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::error::{Error as GgufError, ErrorKind};
use super::super::shards::{self, Split};
use super::super::{Gguf, Header, ModelFile, path_of};
use super::client::Client;
use super::error::Error;
use super::splice::Known;
use super::url::Url;

/// A shard by its number, from 1.
type Numbered = (u64, (Header, ModelFile));

/// What the hub's list says about the content of files, by address.
pub(super) type Oids = HashMap<String, String>;

impl Client {
    /// The model at an address; of a split model, at the address of any of its shards.
    pub fn open(&self, url: &Url) -> Result<Gguf, Error> {
        self.open_known(url, &Oids::new(), None)
    }

    /// The model at an address, some contents known, perhaps the header of another quantisation too.
    pub(super) fn open_known(&self, url: &Url, oids: &Oids, known: Option<&Known>) -> Result<Gguf, Error> {
        let oid = |url: &Url| oids.get(url.as_str()).map(String::as_str);
        let (header, file) = self.header_beside(url, oid(url), known)?;
        let error = |kind| Error::Gguf(GgufError { path: url.as_str().into(), offset: None, kind });
        let Some(split) = Split::of(&header).map_err(error)? else {
            return Ok(Gguf { files: vec![file], header });
        };
        let name = url.file_name();
        let prefix = split.prefix(name).map_err(error)?;
        if hides_a_path(prefix) {
            return Err(error(ErrorKind::ShardName { number: split.number, count: split.count }));
        }
        let shard = |number| {
            let url = url.with_file_name(&split.name(prefix, number));
            self.header(&url, oid(&url))
        };
        let mut all = self.side_by_side(split, (header, file), &shard)?;
        all.sort_by_key(|(number, _)| *number);
        let (headers, files): (Vec<_>, Vec<_>) = all.into_iter().map(|(_, shard)| shard).unzip();
        match shards::join(headers) {
            Ok(header) => Ok(Gguf { files, header }),
            Err((shard, kind)) => Err(Error::Gguf(GgufError { path: path_of(&files, shard), offset: None, kind })),
        }
    }

    /// Every shard but the given one by `shard`, several at a time; the first error ends all.
    fn side_by_side(
        &self,
        split: Split,
        given: (Header, ModelFile),
        shard: &(dyn Fn(u64) -> Result<(Header, ModelFile), Error> + Sync),
    ) -> Result<Vec<Numbered>, Error> {
        let next = AtomicU64::new(1);
        let stop = AtomicBool::new(false);
        let done = Mutex::new(Ok(vec![(split.number, given)]));
        let lock = || done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number > split.count {
                    break;
                }
                if number == split.number {
                    continue;
                }
                let result = shard(number);
                let mut done = lock();
                match (result, done.as_mut()) {
                    (Ok(shard), Ok(all)) => all.push((number, shard)),
                    (Err(error), Ok(_)) => {
                        stop.store(true, Ordering::Relaxed);
                        *done = Err(error);
                    }
                    (_, Err(_)) => {}
                }
            }
        };
        let threads = self.limits.parallel.min(usize::try_from(split.count).unwrap_or(usize::MAX)).max(1);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether a server may read a path in a part of a file's name.
fn hides_a_path(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["/", "\\", "%2f", "%5c", "%00", ".."].iter().any(|part| lower.contains(part))
}
