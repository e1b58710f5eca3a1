//! What small operations take while others work: a worker goes through the same cycle of them again and again and
//! notes how long each took.

use crate::at::At as _;
use crate::mount::Mount;
use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

/// The operations of a cycle.
pub const KINDS: [&str; 6] = ["stat", "create", "read", "rename", "unlink", "list"];
/// Bytes written to a file and read again.
const CONTENT_BYTES: usize = 4096;
/// Files of the directory that is listed.
const LISTED: usize = 100;
/// Every so many cycles a directory is listed.
const LIST_EVERY: usize = 4;
/// Threads that make files for a crowd.
const MAKERS: usize = 4;

/// How long operations took, by kind.
#[derive(Clone, Default, Debug)]
pub struct Times(pub [Vec<Duration>; KINDS.len()]);

impl Times {
    /// Takes what another has noted, too.
    pub fn add(&mut self, other: &Times) {
        self.0.iter_mut().zip(&other.0).for_each(|(all, more)| all.extend_from_slice(more));
    }

    /// The time below which so many per mille of the operations of a kind stayed.
    pub fn quantile(&self, kind: usize, per_mille: usize) -> Duration {
        quantile(self.0[kind].clone(), per_mille)
    }

    /// The same of the operations of all kinds.
    pub fn quantile_of_all(&self, per_mille: usize) -> Duration {
        quantile(self.0.concat(), per_mille)
    }

    /// Operations of all kinds.
    pub fn count(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

fn quantile(mut times: Vec<Duration>, per_mille: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((times.len() * per_mille / 1000).min(last)).copied().unwrap_or_default()
}

/// The middle one of several figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

/// Names that a mount has not seen: made through another one, each looked at once.
pub struct FreshNames {
    directory: &'static str,
    next: AtomicUsize,
    count: usize,
}

impl FreshNames {
    /// Makes them, and a directory to list, through `maker`.
    pub fn make(maker: &Mount, count: usize) -> anyhow::Result<FreshNames> {
        let directory = "fresh";
        let (path, listed) = (maker.path().join(directory), maker.path().join("listed"));
        fs::create_dir(&path).at(&path)?;
        make_files(&path, count)?;
        fs::create_dir(&listed).at(&listed)?;
        make_files(&listed, LISTED)?;
        Ok(FreshNames { directory, next: AtomicUsize::new(0), count })
    }

    fn next(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        ensure!(number < self.count, "{} fresh names are not enough", self.count);
        Ok(root.join(self.directory).join(number.to_string()))
    }
}

/// Makes empty files with numbers as names.
pub fn make_files(directory: &Path, count: usize) -> anyhow::Result<()> {
    let make = |maker: usize| -> anyhow::Result<()> {
        for number in (maker..count).step_by(MAKERS) {
            let path = directory.join(number.to_string());
            File::create_new(&path).at(&path)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS).map(|maker| scope.spawn(move || make(maker))).collect();
        makers.into_iter().try_for_each(|maker| maker.join().map_err(|_| anyhow::anyhow!("a maker panicked"))?)
    })
}

/// Goes through cycles of small operations in a directory of its own below `root` until `goes_on` says no; it is
/// asked before each cycle with the count of those that are done.
pub fn work(
    root: &Path,
    name: &str,
    fresh: &FreshNames,
    mut goes_on: impl FnMut(usize) -> bool,
) -> anyhow::Result<Times> {
    let own = root.join(name);
    match fs::create_dir(&own) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => (),
        made => made.at(&own)?,
    }
    let (content, mut read, mut times) = ([7; CONTENT_BYTES], Vec::new(), Times::default());
    let (path, moved, listed) = (own.join("file"), own.join("moved"), root.join("listed"));
    let mut cycles = 0;
    while goes_on(cycles) {
        let seen = fresh.next(root)?;
        times.note(0, || fs::metadata(&seen).at(&seen).map(|_| ()))?;
        times.note(1, || File::create_new(&path).and_then(|mut file| file.write_all(&content)).at(&path))?;
        times.note(2, || {
            read.clear();
            File::open(&path).and_then(|mut file| file.read_to_end(&mut read)).at(&path).map(|_| ())
        })?;
        ensure!(read == content, "{} has other bytes", path.display());
        times.note(3, || fs::rename(&path, &moved).at(&path))?;
        times.note(4, || fs::remove_file(&moved).at(&moved))?;
        if cycles % LIST_EVERY == 0 {
            let mut names = 0;
            times.note(5, || {
                names = fs::read_dir(&listed).at(&listed)?.count();
                Ok(())
            })?;
            ensure!(names == LISTED, "{names} of {LISTED} names are listed");
        }
        cycles += 1;
    }
    Ok(times)
}

impl Times {
    fn note(&mut self, kind: usize, operation: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let started = Instant::now();
        operation()?;
        self.0[kind].push(started.elapsed());
        Ok(())
    }
}

/// A worker of each of these roots, all at once, for so long; what each noted.
pub fn work_together(roots: &[&Path], fresh: &FreshNames, length: Duration) -> anyhow::Result<Vec<Times>> {
    let (start, ends) = (Barrier::new(roots.len()), OnceLock::new());
    std::thread::scope(|scope| {
        let (start, ends) = (&start, &ends);
        let run = |(number, root): (usize, &Path)| {
            let root = root.to_owned();
            scope.spawn(move || {
                start.wait();
                let end = *ends.get_or_init(|| Instant::now() + length);
                work(&root, &format!("worker-{number}"), fresh, |_| Instant::now() < end)
            })
        };
        let workers: Vec<_> = roots.iter().copied().enumerate().map(run).collect();
        workers.into_iter().map(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?).collect()
    })
}

/// A line of shell that runs beside others until it is dropped.
pub struct Neighbour {
    shell: Child,
    what: &'static str,
}

impl Neighbour {
    /// Runs it again and again; `$1` and so on are `args`.
    pub fn start(what: &'static str, line: &str, args: &[&Path]) -> anyhow::Result<Neighbour> {
        Neighbour::once(what, &format!("while :; do {line} || exit 1; done"), args)
    }

    /// Runs it once.
    pub fn once(what: &'static str, line: &str, args: &[&Path]) -> anyhow::Result<Neighbour> {
        let mut command = Command::new("sh");
        command.args(["-c", line, "sh"]).args(args).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Neighbour { shell: command.spawn().context(what)?, what })
    }

    /// It still runs.
    pub fn check(&mut self) -> anyhow::Result<()> {
        ensure!(!self.has_ended()?, "{} ended", self.what);
        Ok(())
    }

    /// Whether it has run to its end; an error if that was one.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        let ended = self.shell.try_wait()?;
        ensure!(ended.is_none_or(|status| status.success()), "{} ended: {ended:?}", self.what);
        Ok(ended.is_some())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.shell.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL); // it may have ended
        }
        let _ = self.shell.wait();
    }
}
