//! The file of evidence: one JSON record a line in the state folder, only ever added to. [I/O]

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Record, SCHEMA, records};
use crate::files;
use crate::measurement::Expected;
use crate::runtime::{Launch, Observation, nvml};

/// The most that is read: the end of the file.
const READ: u64 = 4 << 20;

/// Where the records are: `moeplan/evidence.jsonl` in the state folder (XDG_STATE_HOME).
pub fn path() -> Option<PathBuf> {
    use etcetera::BaseStrategy as _;
    let folders = etcetera::choose_base_strategy().ok()?;
    let folder = folders.state_dir().unwrap_or_else(|| folders.data_dir());
    Some(folder.join("moeplan").join("evidence.jsonl"))
}

/// Every record that can be read; none where there is no file.
pub fn read() -> Vec<Record> {
    path().and_then(|path| read_from(&path).ok()).unwrap_or_default()
}

/// Keeps what a run showed of the devices; says where, or `None` where no driver showed any.
pub fn keep(seen: &Observation, expected: &Expected, launch: &Launch) -> io::Result<Option<PathBuf>> {
    let records = records(seen, expected, launch, nvml::driver().as_deref(), now());
    if records.is_empty() {
        return Ok(None);
    }
    let path = path().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no home folder"))?;
    append_to(&path, &records)?;
    Ok(Some(path))
}

/// In seconds since 1970; 0 on a computer whose clock is before that.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Lines that are no record of this schema are passed over: a torn one, a later version's, a person's.
fn read_from(path: &Path) -> io::Result<Vec<Record>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(READ)))?;
    let mut bytes = Vec::new();
    file.take(READ).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let record = |line: &str| serde_json::from_str::<Record>(line).ok().filter(|record| record.schema == SCHEMA);
    Ok(text.lines().filter_map(record).collect())
}

/// One write for all of them.
fn append_to(path: &Path, records: &[Record]) -> io::Result<()> {
    let lines = records.iter().map(|record| Ok(serde_json::to_string(record)? + "\n"));
    let text: String = lines.collect::<io::Result<_>>()?;
    if text.is_empty() { Ok(()) } else { files::append(path, &text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_other_lines_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new").join("evidence.jsonl");
        assert!(read_from(&path).is_err());
        let record = |time| Record { device: "a \"card\"\n".into(), ..crate::evidence::tests::run(time, 800, 4096) };
        append_to(&path, &[record(1), record(2)]).unwrap();
        let torn = b"\n{\"schema\":\"moeplan/evidence/9\"}\nnot json\xff\n{\"schema\":\"moeplan/evid";
        io::Write::write_all(&mut File::options().append(true).open(&path).unwrap(), torn).unwrap();
        append_to(&path, &[record(3)]).unwrap();
        append_to(&path, &[]).unwrap();
        assert_eq!(read_from(&path).unwrap(), [record(1), record(2), record(3)]);
        // Only the end of a long file is read.
        std::fs::write(&path, "x".repeat(usize::try_from(READ).unwrap() + 1)).unwrap();
        append_to(&path, &[record(7)]).unwrap();
        assert_eq!(read_from(&path).unwrap(), [record(7)]);
    }
}
