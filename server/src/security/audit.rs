//! The audit log: a line of JSON for each refusal and each change, in `audit.log` of the state directory and in the
//! four files before it, `audit.log.1` to `.4`.
//!
//! ```text
//! serving threads ── record() ──▶ queue, 1,024 lines ──▶ writer thread ──▶ file; flushed when the queue is empty
//! ```
//! Serving never waits for it: a line that finds the queue full, or the disk, is counted, and the log says how many
//! it misses. What strangers do is noted so many times a second at most: who knocks often enough would otherwise
//! rotate the lines that count away. Lines are for people and programs; secrets are never put in.

use crate::security::allowance::Allowance;
use serde::Serialize;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};
use time::OffsetDateTime;

const FILE: &str = "audit.log";
const FILE_MAX_BYTES: u64 = 16 << 20;
const FILES: usize = 5;
const QUEUE_LINES: usize = 1_024;
/// A megabyte an hour.
const OF_STRANGERS_PER_S: u32 = 1;
const OF_STRANGERS_AT_ONCE: u32 = 100;
const FIELD_MAX_CHARS: usize = 256;

/// One line without its time. Longer texts are cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Who it was: the id of a certificate, the user of a local call.
    pub who: String,
    /// Its role: that of the certificate, `local` or `stranger`.
    pub role: &'static str,
    /// Where it came from: an address, or `local`.
    pub from: String,
    /// What was asked for.
    pub what: String,
    /// What became of it: `ok`, or why not.
    pub result: String,
}

#[derive(Serialize)]
struct Line {
    time: String,
    who: String,
    role: &'static str,
    from: String,
    what: String,
    result: String,
}

/// The log. Dropping it writes what is queued.
pub struct Audit {
    queue: Option<SyncSender<Line>>,
    strangers: Mutex<(Allowance, u64)>,
    lost_count: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

impl Audit {
    /// Opens the log in the state directory.
    pub fn open(state: &Path) -> io::Result<Audit> {
        let mut files = Files::open(&state.join(FILE), FILE_MAX_BYTES)?;
        Audit::start(QUEUE_LINES, move |line| match line {
            Some(line) => files.write(line),
            None => files.flush(),
        })
    }

    /// `write` gets each line, and `None` when there is no other for now.
    fn start(
        queue_lines: usize,
        write: impl FnMut(Option<&[u8]>) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Audit> {
        let (queue, lines) = sync_channel(queue_lines);
        let lost_count = Arc::new(AtomicU64::new(0));
        let lost = lost_count.clone();
        let writer = std::thread::Builder::new().name("audit".to_owned()).spawn(move || run(&lines, &lost, write))?;
        let strangers = Mutex::new((Allowance::new(OF_STRANGERS_PER_S, OF_STRANGERS_AT_ONCE, Instant::now()), 0));
        Ok(Audit { queue: Some(queue), strangers, lost_count, writer: Some(writer) })
    }

    /// Notes something. Never waits.
    pub fn record(&self, entry: Entry) {
        let Entry { who, role, from, what, result } = entry;
        let (who, from, what, result) = (cut(who), cut(from), cut(what), cut(result));
        let line = Line { time: timestamp(SystemTime::now()), who, role, from, what, result };
        if self.queue.as_ref().is_none_or(|queue| queue.try_send(line).is_err()) {
            self.lost_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Notes what one without a certificate that counts here has tried; beyond an allowance it is only counted, and
    /// the next line says how many there were.
    pub fn record_stranger(&self, entry: Entry) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        let (allowance, unsaid_count) = &mut *strangers;
        if allowance.take(Instant::now()).is_err() {
            *unsaid_count += 1;
            return;
        }
        let entry = match std::mem::take(unsaid_count) {
            0 => entry,
            count => Entry { result: format!("{} (and {count} like it were not noted)", cut(entry.result)), ..entry },
        };
        self.record(entry);
    }

    /// How many lines are missing since the start.
    pub fn lost_count(&self) -> u64 {
        self.lost_count.load(Ordering::Relaxed)
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The writer thread: until the queue has ended.
fn run(lines: &Receiver<Line>, lost: &AtomicU64, mut write: impl FnMut(Option<&[u8]>) -> io::Result<()>) {
    let mut told_count = 0;
    let mut is_failing = false;
    while let Ok(first) = lines.recv() {
        let mut failed = None;
        // No longer than the queue, so that what is lost is told of also where it never runs empty.
        for line in std::iter::once(first).chain(lines.try_iter().take(QUEUE_LINES)) {
            if let Err(error) = encode(&line).and_then(|line| write(Some(&line))) {
                lost.fetch_add(1, Ordering::Relaxed);
                failed = Some(error);
            }
        }
        let lost_count = lost.load(Ordering::Relaxed);
        if lost_count > told_count {
            tracing::error!(count = lost_count - told_count, "lines are missing in the audit log");
            let told = encode(&line_of_loss(lost_count - told_count)).and_then(|line| write(Some(&line)));
            told_count = if told.is_ok() { lost_count } else { told_count };
        }
        if let Err(error) = write(None) {
            failed = Some(error);
        }
        match &failed {
            Some(error) if !is_failing => tracing::error!(%error, "the audit log cannot be written"),
            None if is_failing => tracing::info!("the audit log is written again"),
            _ => (),
        }
        is_failing = failed.is_some();
    }
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn line_of_loss(count: u64) -> Line {
    let (who, what) = ("brickd".to_owned(), "audit log".to_owned());
    let (time, result) = (timestamp(SystemTime::now()), format!("{count} lines are missing before this one"));
    Line { time, who, role: "local", from: "local".to_owned(), what, result }
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(FIELD_MAX_CHARS) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// RFC 3339, in UTC with milliseconds.
fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let (date, [h, m, s]) = (at.date(), [at.hour(), at.minute(), at.second()]);
    let month = u8::from(date.month());
    format!("{:04}-{month:02}-{:02}T{h:02}:{m:02}:{s:02}.{:03}Z", date.year(), date.day(), at.millisecond())
}

/// The newest file, and those before it.
struct Files {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    file_max_bytes: u64,
}

impl Files {
    fn open(path: &Path, file_max_bytes: u64) -> io::Result<Files> {
        let mut files = Files { path: path.to_owned(), file: None, bytes: 0, file_max_bytes };
        files.file()?;
        Ok(files)
    }

    fn file(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                // Not through a link, which would make us write elsewhere.
                let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
                let mut options = OpenOptions::new();
                options.read(true).append(true).create(true).mode(0o600).custom_flags(flags);
                let mut file = options.open(&self.path)?;
                if !file.metadata()?.is_file() {
                    return Err(io::Error::other(format!("{} is not a file", self.path.display())));
                }
                file.set_permissions(Permissions::from_mode(0o600))?;
                self.bytes = file.metadata()?.len();
                self.bytes += end_last_line(&mut file, self.bytes)?;
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// Writes a line whole, or takes back what was written of it.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let line_bytes = line.len() as u64;
        self.file()?;
        if self.bytes > 0 && self.bytes + line_bytes > self.file_max_bytes {
            self.rotate()?;
        }
        let old_bytes = self.bytes;
        let written = self.file()?.write_all(line);
        if written.is_err() {
            if let Some(file) = self.file.take() {
                let _ = file.set_len(old_bytes);
            }
            return written;
        }
        self.bytes += line_bytes;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.flush()?;
        self.file = None;
        for number in (1..FILES).rev() {
            let from = if number == 1 { self.path.clone() } else { self.numbered(number - 1) };
            match fs::rename(from, self.numbered(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => (),
            }
        }
        self.file().map(drop)
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }
}

/// Ends a line that a crash has cut; answers the bytes written.
fn end_last_line(file: &mut File, bytes: u64) -> io::Result<u64> {
    let mut last = [b'\n'];
    if bytes > 0 {
        file.seek(SeekFrom::Start(bytes - 1))?;
        file.read_exact(&mut last)?;
    }
    if last == *b"\n" {
        return Ok(0);
    }
    file.write_all(b"\n").map(|()| 1)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
