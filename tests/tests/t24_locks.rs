//! Locks between mounts: fcntl(2) and flock(2) are one table on the file's home; what was written under a lock is seen
//! by who gets it next; locks outlive a restart of `brickd` and end with the lease of a client that is gone.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::eventually::eventually;
use brickfs_tests::locks::{self, Found, Lock, is_refused};
use brickfs_tests::mount::Mount;
use brickfs_tests::needs::MOUNT;
use brickfs_tests::process::sleeping_in;
use rustix::fs::FlockOperation;
use rustix::process::Signal;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// All bytes.
const ALL: (i64, i64) = (0, 0);
const SOON: Duration = Duration::from_secs(10);
/// A client's lease, with what may pass before somebody looks.
const LEASE: Duration = Duration::from_secs(25);

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).at(path)
}

/// A volume with two mounts, and a file opened through each.
fn two_mounts(case: &Case) -> anyhow::Result<(Cluster, Mount, File, File)> {
    let cluster = Cluster::in_memory(case)?;
    let other = cluster.second_mount("other", &[])?;
    let (ours, theirs) = (open(&cluster.mount().join("file"))?, open(&other.path().join("file"))?);
    Ok((cluster, other, ours, theirs))
}

/// `flock(1)` on a file: takes the lock and sleeps, or waits for it.
fn flock_process(path: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new("flock");
    command.args(["-x", "--no-fork"]).arg(path).args(["sleep", "1000"]).stdin(Stdio::null());
    Ok(command.spawn()?)
}

/// The process sleeps in a request to the mount, which is for the lock.
fn waits_for_a_lock(pid: u32) -> anyhow::Result<()> {
    let is_in_flock = || {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        call.starts_with(&format!("{} ", libc::SYS_flock))
    };
    eventually("it waits for the lock", SOON, || is_in_flock() && sleeping_in(pid).contains("request_wait_answer"))
}

#[test]
fn ranges_are_locked_between_mounts_as_within_one() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        locks::set(&ours, Lock::Exclusive, (10, 10))?;
        ensure!(is_refused(&locks::set(&theirs, Lock::Shared, (19, 1))));
        locks::set(&theirs, Lock::Exclusive, (20, 5))?;
        let found = locks::test(&theirs, Lock::Shared, ALL)?;
        ensure!(found == Some(Found { lock: Lock::Exclusive, start: 10, len: 10 }), "{found:?}");
        ensure!(locks::test(&theirs, Lock::Exclusive, (0, 10))?.is_none());
        // In place of the old one, and split in the middle.
        locks::set(&ours, Lock::Shared, (12, 4))?;
        locks::set(&theirs, Lock::Shared, (12, 4))?;
        ensure!(is_refused(&locks::set(&ours, Lock::Exclusive, (12, 1))), "theirs is in the way");
        locks::set(&theirs, Lock::None, (12, 4))?;
        locks::set(&ours, Lock::Exclusive, (12, 1))?;
        locks::set(&ours, Lock::None, ALL)?;
        locks::set(&theirs, Lock::Exclusive, (0, 100))?;
        // A close of any descriptor of the file gives all of the process's locks on it back.
        drop(open(&other.path().join("file"))?);
        locks::set(&ours, Lock::Exclusive, ALL)?;
        drop((ours, theirs));
        other.unmount()
    });
}

#[test]
fn flock_and_fcntl_exclude_each_other_between_mounts() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        let (exclusive, shared) = (FlockOperation::NonBlockingLockExclusive, FlockOperation::NonBlockingLockShared);
        rustix::fs::flock(&ours, shared)?;
        rustix::fs::flock(&theirs, shared)?;
        ensure!(rustix::fs::flock(&theirs, exclusive) == Err(rustix::io::Errno::AGAIN));
        rustix::fs::flock(&ours, FlockOperation::Unlock)?;
        rustix::fs::flock(&theirs, exclusive)?;
        ensure!(rustix::fs::flock(&ours, shared) == Err(rustix::io::Errno::AGAIN));
        ensure!(is_refused(&locks::set(&ours, Lock::Shared, (5, 1))), "as on NFS");
        // It is the open file's: a copy of the descriptor keeps it, the last close gives it back.
        let copy = theirs.try_clone()?;
        drop(theirs);
        ensure!(rustix::fs::flock(&ours, shared) == Err(rustix::io::Errno::AGAIN));
        drop(copy);
        eventually("the last close gives the lock back", SOON, || rustix::fs::flock(&ours, exclusive).is_ok())?;
        drop(ours);
        other.unmount()
    });
}

#[test]
fn who_waits_gets_the_lock_when_it_is_given_back_and_not_before() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        locks::set(&ours, Lock::Exclusive, ALL)?;
        let (sender, told) = mpsc::channel();
        std::thread::scope(|scope| -> anyhow::Result<()> {
            scope.spawn(|| {
                let result = locks::wait(&theirs, Lock::Exclusive, (7, 1));
                sender.send(result).ok();
            });
            ensure!(told.recv_timeout(Duration::from_millis(300)).is_err(), "it has the lock too early");
            locks::set(&ours, Lock::None, (0, 7))?;
            ensure!(told.recv_timeout(Duration::from_millis(300)).is_err(), "that was another part of the file");
            locks::set(&ours, Lock::None, ALL)?;
            told.recv_timeout(SOON)?.context("waiting for the lock")
        })?;
        ensure!(is_refused(&locks::set(&ours, Lock::Shared, ALL)));
        drop((ours, theirs));
        other.unmount()
    });
}

#[test]
fn a_circle_of_waiting_is_refused() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        locks::set(&ours, Lock::Exclusive, (0, 1))?;
        locks::set(&theirs, Lock::Exclusive, (1, 1))?;
        std::thread::scope(|scope| -> anyhow::Result<()> {
            // Whoever closes the circle is told, and gives up what it has; the other goes on then.
            fn ask(file: &File, at: (i64, i64)) -> std::io::Result<()> {
                let result = locks::wait(file, Lock::Exclusive, at);
                locks::set(file, Lock::None, ALL).and(result)
            }
            let waiting = scope.spawn(|| ask(&ours, (1, 1)));
            let result = ask(&theirs, (0, 1));
            let ours = waiting.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))?;
            let is_deadlock =
                |result: &std::io::Result<()>| result.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EDEADLK));
            ensure!(is_deadlock(&result) != is_deadlock(&ours), "theirs: {result:?}, ours: {ours:?}");
            Ok(())
        })?;
        drop((ours, theirs));
        other.unmount()
    });
}

#[test]
fn a_process_that_waits_for_a_lock_dies_by_a_signal_and_gets_nothing() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        rustix::fs::flock(&ours, FlockOperation::LockExclusive)?;
        for signal in [Signal::TERM, Signal::KILL] {
            let mut waiting = flock_process(&other.path().join("file"))?;
            waits_for_a_lock(waiting.id())?;
            rustix::process::kill_process(
                rustix::process::Pid::from_raw(waiting.id().cast_signed()).context("a process has a number")?,
                signal,
            )?;
            eventually("it ends", SOON, || waiting.try_wait().is_ok_and(|status| status.is_some()))?;
        }
        rustix::fs::flock(&ours, FlockOperation::Unlock)?;
        rustix::fs::flock(&theirs, FlockOperation::NonBlockingLockExclusive).context("somebody has got the lock")?;
        drop((ours, theirs));
        other.unmount()
    });
}

#[test]
fn the_locks_of_a_process_that_is_killed_are_given_back() {
    case(MOUNT, |case| {
        let (cluster, other, ours, theirs) = two_mounts(case)?;
        let mut holder = flock_process(&cluster.mount().join("file"))?;
        eventually("it holds the lock", SOON, || {
            rustix::fs::flock(&theirs, FlockOperation::NonBlockingLockShared).is_err()
                || rustix::fs::flock(&theirs, FlockOperation::Unlock).is_err()
        })?;
        holder.kill()?;
        holder.wait()?;
        eventually("its lock is given back", SOON, || {
            rustix::fs::flock(&theirs, FlockOperation::NonBlockingLockExclusive).is_ok()
        })?;
        drop((ours, theirs));
        other.unmount()
    });
}

#[test] // PROTOCOL 16, 32
fn who_gets_a_lock_sees_all_that_was_written_under_it_before() {
    case(MOUNT, |case| {
        const TURNS: u64 = 400;
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        ours.write_all_at(&[0; 8192], 0)?;
        let third = open(&other.path().join("file"))?;
        let count_up = |file: &File| -> anyhow::Result<()> {
            for turn in 0..TURNS {
                // An owner of its own for each thread: the open file.
                rustix::fs::flock(file, FlockOperation::LockExclusive)?;
                let mut bytes = [0; 8];
                // On two pages, so that a page of before would show.
                for offset in [0, 5000] {
                    file.read_exact_at(&mut bytes, offset)?;
                    let next = u64::from_le_bytes(bytes) + 1;
                    file.write_all_at(&next.to_le_bytes(), offset)?;
                }
                rustix::fs::flock(file, FlockOperation::Unlock).with_context(|| format!("turn {turn}"))?;
            }
            Ok(())
        };
        let results = std::thread::scope(|scope| {
            let threads = [&ours, &theirs, &third].map(|file| scope.spawn(|| count_up(file)));
            threads.map(|thread| thread.join())
        });
        for result in results {
            result.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        let bytes = fs::read(other.path().join("file"))?;
        for offset in [0, 5000] {
            let count = u64::from_le_bytes(bytes[offset..offset + 8].try_into()?);
            ensure!(count == 3 * TURNS, "{count} of {} turns are seen at {offset}", 3 * TURNS);
        }
        drop((ours, theirs, third));
        other.unmount()
    });
}

#[test] // PROTOCOL 33
fn who_gets_a_lock_sees_the_files_beside_it_as_they_are() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let other = cluster.second_mount("other", &[])?;
        for round in 0..6 {
            // Each of the two has made the directory in half of the rounds: it knows all names that are not there.
            let dirs = [cluster.mount(), other.path()].map(|root| root.join(format!("db{round}")));
            fs::create_dir(&dirs[round % 2]).at(&dirs[round % 2])?;
            let locked = [open(&dirs[0].join("database"))?, open(&dirs[1].join("database"))?];
            let journals = dirs.map(|dir| dir.join("journal"));
            if round < 4 {
                fs::write(&journals[0], b"old").at(&journals[0])?;
            }
            let look = |who: usize| fs::read(&journals[who]).ok();
            for turn in 0..24 {
                let (ours, theirs) = (turn % 2, 1 - turn % 2);
                // As new as can be, and from before; what was just read is held open for a while, too.
                let before = look(theirs);
                locks::wait(&locked[ours], Lock::Exclusive, ALL)?;
                change_beside(&journals[ours], (round / 2 + turn / 2) % 4, turn)?;
                let wanted = look(ours);
                locks::set(&locked[ours], Lock::None, ALL)?;
                locks::wait(&locked[theirs], Lock::Shared, ALL)?;
                let (exists, seen) = (journals[theirs].exists(), look(theirs));
                locks::set(&locked[theirs], Lock::None, ALL)?;
                let is_right = seen == wanted && exists == wanted.is_some();
                ensure!(is_right, "round {round}, turn {turn}: {seen:?}, not {wanted:?}; before {before:?}");
            }
        }
        other.unmount()
    });
}

/// Changes a file as programs do that keep a journal: removes it, makes it, lets it grow, replaces it.
fn change_beside(path: &Path, how: usize, turn: usize) -> anyhow::Result<()> {
    let data = format!("turn {turn} ").repeat(turn + 1);
    match how {
        0 if path.exists() => fs::remove_file(path).at(path),
        0 | 1 => fs::write(path, data).at(path),
        2 => {
            let mut file = OpenOptions::new().append(true).create(true).open(path).at(path)?;
            std::io::Write::write_all(&mut file, data.as_bytes()).at(path)
        }
        _ => {
            let new = path.with_extension("new");
            fs::write(&new, data).and_then(|()| fs::rename(&new, path)).at(path)
        }
    }
}

#[test] // PROTOCOL 32
fn a_lock_for_reading_in_place_of_one_for_writing_shows_what_was_written() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        for turn in 0..60u8 {
            locks::wait(&ours, Lock::Exclusive, ALL)?;
            for page in 0..64 {
                ours.write_all_at(&[turn; 4096], page * 4096)?;
            }
            locks::set(&ours, Lock::Shared, ALL)?;
            locks::set(&theirs, Lock::Shared, ALL)?;
            let mut bytes = vec![0; 64 * 4096];
            theirs.read_exact_at(&mut bytes, 0)?;
            ensure!(bytes.iter().all(|byte| *byte == turn), "turn {turn}: something of before is read");
            locks::set(&theirs, Lock::None, ALL)?;
        }
        drop((ours, theirs));
        other.unmount()
    });
}

#[test]
fn what_one_thread_gets_after_another_has_unlocked_is_given_back_at_its_own_unlock() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        for _ in 0..20 {
            locks::set(&theirs, Lock::Exclusive, ALL)?;
            std::thread::scope(|scope| -> anyhow::Result<()> {
                let waiting = scope.spawn(|| locks::wait(&ours, Lock::Exclusive, (0, 1)));
                // Another thread of the same process gives back all that the process has, which is nothing yet or all.
                locks::set(&ours, Lock::None, (100, 1))?;
                drop(ours.try_clone()?);
                locks::set(&theirs, Lock::None, ALL)?;
                waiting.join().map_err(|_| anyhow::anyhow!("the waiting thread panicked"))??;
                Ok(())
            })?;
            locks::set(&ours, Lock::None, ALL)?;
        }
        locks::set(&theirs, Lock::Exclusive, ALL).context("a lock was left behind")?;
        drop((ours, theirs));
        other.unmount()
    });
}

#[test] // PROTOCOL 16
fn locks_outlive_a_restart_of_brickd() {
    case(MOUNT, |case| {
        let (mut cluster, other, ours, theirs) = two_mounts(case)?;
        for round in 0..3 {
            locks::set(&ours, Lock::Exclusive, (0, 10))?;
            locks::set(&theirs, Lock::Shared, (20, 10))?;
            let (sender, told) = mpsc::channel();
            std::thread::scope(|scope| -> anyhow::Result<()> {
                scope.spawn(|| sender.send(locks::wait(&theirs, Lock::Exclusive, (5, 1))).ok());
                ensure!(told.recv_timeout(Duration::from_millis(100)).is_err());
                match round {
                    0 => cluster.stop_brickd()?,
                    _ => cluster.kill_brickd()?,
                }
                cluster.start_brickd()?;
                // Nobody gets what somebody else held before, whoever comes back first.
                ensure!(is_refused(&locks::set(&theirs, Lock::Shared, (0, 1))));
                ensure!(is_refused(&locks::set(&ours, Lock::Exclusive, (29, 1))));
                ensure!(told.try_recv().is_err(), "who waits has got it though it is held");
                locks::set(&ours, Lock::None, ALL)?;
                told.recv_timeout(SOON)?.context("waiting over a restart")
            })?;
            locks::set(&theirs, Lock::None, ALL)?;
        }
        drop((ours, theirs));
        other.unmount()
    });
}

#[test] // PROTOCOL 16
fn the_locks_of_a_mount_that_is_gone_end_with_its_lease() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        locks::set(&theirs, Lock::Exclusive, ALL)?;
        other.kill()?;
        ensure!(is_refused(&locks::set(&ours, Lock::Exclusive, ALL)), "its lease has not ended yet");
        eventually("its lease ends", LEASE, || locks::set(&ours, Lock::Exclusive, ALL).is_ok())
    });
}

#[test] // PROTOCOL 16
fn a_mount_that_comes_back_after_its_lease_has_lost_its_locks_and_says_so() {
    case(MOUNT, |case| {
        let (_cluster, other, ours, theirs) = two_mounts(case)?;
        theirs.write_all_at(b"before", 0)?;
        locks::set(&theirs, Lock::Exclusive, ALL)?;
        let unlocked = open(&other.path().join("unlocked"))?;
        let process = other.process()?;
        process.signal(Signal::STOP)?;
        let taken = eventually("its lease ends", LEASE, || locks::set(&ours, Lock::Exclusive, ALL).is_ok());
        let written = taken.and_then(|()| Ok(ours.write_all_at(b"ours, ", 0)?));
        process.signal(Signal::CONT)?;
        written?;
        eventually("it is told", SOON, || {
            theirs.write_all_at(b"theirs", 0).is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
        })?;
        ensure!(theirs.read_at(&mut [0; 6], 0).is_err_and(|error| error.raw_os_error() == Some(libc::EIO)));
        // Nothing else is hurt: other files, and the same one opened anew.
        unlocked.write_all_at(b"x", 0)?;
        let anew = open(&other.path().join("file"))?;
        let mut bytes = [0; 6];
        anew.read_exact_at(&mut bytes, 0)?;
        ensure!(&bytes == b"ours, ", "{:?}", bytes.escape_ascii().to_string());
        ensure!(is_refused(&locks::set(&anew, Lock::Shared, ALL)));
        drop((theirs, unlocked, anew));
        other.unmount()
    });
}
