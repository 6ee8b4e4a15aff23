//! What commands that measure share: a lock, so that one of them measures on a machine at a time, and the time that is left. [I/O]

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Output;
use crate::evidence::store::now;
use crate::number;
use crate::suggest::Refusal;

/// Names the folder of the lock, for machines that share a card and not their temporary folder, and for tests.
const FOLDER: &str = "MOEPLAN_LOCK_DIR";
/// The most that is read of what a holder says of itself, in bytes: any user may have written it.
const SAID: u64 = 1 << 10;

/// The right to measure. It ends when this is dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct Measuring(File);

impl Drop for Measuring {
    fn drop(&mut self) {
        // Whoever holds it next says its own name.
        let _ = self.0.set_len(0);
    }
}

/// Who holds the lock, as its file says.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    process: u32,
    /// What it runs: the command alone, since its arguments are its user's own.
    command: String,
    /// Since when, in seconds since 1970.
    since: u64,
}

/// Takes the lock for `command`, or refuses and says who holds it. `None` where no lock can be had, which is said and keeps nobody
/// from measuring.
pub fn begin(command: &str, output: &Output) -> Result<Option<Measuring>, Refusal> {
    let path = path();
    let warn = |error: io::Error| {
        output.say(&format!(
            "warning: other measurements may run at the same time: cannot lock `{}` ({error}; {FOLDER} names another folder)",
            path.display()
        ));
        Ok(None)
    };
    let mut file = match open(&path) {
        Ok(file) => file,
        Err(error) => return warn(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(held(&mut file, &path)),
        Err(TryLockError::Error(error)) => return warn(error),
    }
    let holder = Holder { process: std::process::id(), command: command.to_string(), since: now() };
    // The lock holds without its words.
    let _ = file.set_len(0).and_then(|()| file.write_all(&serde_json::to_vec(&holder)?));
    Ok(Some(Measuring(file)))
}

/// The same place for every user: the system's folder for temporary files, whatever a session's own is.
fn path() -> PathBuf {
    let shared = || if cfg!(unix) { PathBuf::from("/tmp") } else { std::env::temp_dir() };
    let folder = std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()).map_or_else(shared, PathBuf::from);
    folder.join("moeplan-measuring.lock")
}

/// Opens the file, which the first user makes for all. No link is followed and nothing but a file is opened, since anybody may put
/// something there.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags.cast_signed());
    }
    // Made apart from being opened: Linux refuses O_CREAT on another user's file in such a folder (fs.protected_regular).
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match options.clone().create_new(true).open(path) {
            Ok(file) => {
                #[cfg(unix)]
                file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
                file
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path)?,
            Err(error) => return Err(error),
        },
        // A file of another user's that is only to be read can be locked as well.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => options.write(false).open(path)?,
        other => other?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a file")) }
}

fn held(file: &mut File, path: &Path) -> Refusal {
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(SAID).read_to_end(&mut text));
    let holder = read.ok().and_then(|_| serde_json::from_slice(&text).ok());
    let Some(Holder { process, command, since }) = holder else {
        return Refusal::new(
            "another moeplan is measuring on this machine; two at once would disturb each other",
            format!("wait until it has ended; it holds `{}`", path.display()),
        );
    };
    // A clock that was set back meanwhile makes it begin now.
    let seconds = Duration::from_secs(now().saturating_sub(since)).as_secs_f64();
    Refusal::new(
        format!(
            "`moeplan {command}` (process {process}) has been measuring on this machine for {}; two at once would disturb each other",
            number::seconds(seconds)
        ),
        format!("wait until it has ended, or stop it with `kill -INT {process}`"),
    )
}

/// What is left of some launches, by those that are done.
#[derive(Debug)]
pub struct TimeLeft {
    begin: Instant,
    done: u32,
    of: u32,
}

impl TimeLeft {
    pub fn new(of: u32) -> Self {
        Self { begin: Instant::now(), done: 0, of }
    }

    /// Leaves out a launch that takes no time.
    pub fn skip(&mut self) {
        self.of = self.of.saturating_sub(1);
    }

    /// Begins a launch: `; about 3 min left`, and nothing before the first has shown how long one takes.
    pub fn begin(&mut self) -> String {
        let left = left(self.begin.elapsed(), self.done, self.of);
        self.done += 1;
        left.map_or_else(String::new, |left| format!("; about {} left", roughly(left)))
    }
}

/// A time to wait: `90 s`, `4 min`.
pub fn roughly(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

/// The time of what is not done, as fast as what is.
fn left(elapsed: Duration, done: u32, of: u32) -> Option<Duration> {
    elapsed.checked_div(done)?.checked_mul(of.saturating_sub(done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_is_done() {
        let after = |done| left(Duration::from_mins(1), done, 6).map(|left| left.as_secs());
        assert_eq!([0, 1, 2, 6, 7].map(after), [None, Some(300), Some(120), Some(0), Some(0)]);
        assert_eq!([119, 120, 121].map(|seconds| roughly(Duration::from_secs(seconds))), ["119 s", "2 min", "3 min"]);
    }

    #[test]
    fn a_holder_that_does_not_say_its_name_is_told_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let mut first = open(&path).unwrap();
        let told = |first: &mut File| held(first, &path).message;
        assert!(told(&mut first).starts_with("another moeplan is measuring"));
        first.write_all(br#"{"process":7,"command":"tune","since":1}"#).unwrap();
        assert!(told(&mut first).starts_with("`moeplan tune` (process 7) has been measuring on this machine for "));
    }

    #[cfg(unix)]
    #[test]
    fn what_others_may_have_put_there_is_not_followed_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("target"), "mine").unwrap();
        std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("lost")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        for name in ["link", "lost", "fifo"] {
            assert!(open(&at(name)).is_err(), "{name}");
        }
        assert!(!at("nothing").exists() && std::fs::read(at("target")).unwrap() == b"mine");
    }
}
