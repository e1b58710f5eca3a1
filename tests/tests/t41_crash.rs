//! `brickd` is killed under load and started again: no application sees an error, nothing runs twice, nothing is lost
//! (R6, PROTOCOL 13, 20). A server that stays away ends in EIO after `--timeout`, or earlier on a signal. A killed
//! client leaves nothing behind once its lease has ended.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks::{self, Bricks};
use brickfs_tests::case::{case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::eventually::eventually;
use brickfs_tests::load::{Progress, run_under_faults};
use brickfs_tests::mount::Mount;
use brickfs_tests::needs::{MOUNT, is_soak};
use brickfs_tests::process::{Process, sleeping_in};
use brickfs_tests::writer::Writer;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const WRITERS: usize = 4;
/// Of DESIGN 7: after so long a client that says nothing is gone.
const LEASE: Duration = Duration::from_secs(15);
/// What `--timeout 3` may be late or early.
const WAIT_MIN: Duration = Duration::from_millis(2500);
const WAIT_MAX: Duration = Duration::from_secs(7);
const RECORD_BYTES: usize = 64;
/// In so long a mount has looked after who waits.
const LOOKED_AFTER: Duration = Duration::from_secs(1);

fn scaled(count: u64) -> u64 {
    if is_soak() { count * 10 } else { count }
}

/// Kills `brickd`, every third time ends it in good order, and starts it again.
fn restart(cluster: &mut Cluster, number: u64) -> anyhow::Result<()> {
    if number.is_multiple_of(3) {
        cluster.stop_brickd()?;
    } else {
        cluster.kill_brickd()?;
    }
    cluster.start_brickd()
}

#[test]
fn applications_notice_nothing_when_brickd_is_killed_under_load() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let second = cluster.second_mount("second", &[])?;
        let steps = scaled(10_000);
        let roots = [cluster.mount().to_owned(), second.path().to_owned()];
        let mut writers = Vec::new();
        for number in 0..WRITERS {
            let root = roots[number % 2].join(format!("w{number}"));
            writers.push(Writer::new(&root, case.rng(number as u64))?);
        }
        let work = writers.into_iter().map(|writer| move |progress: &Progress| write(writer, steps, progress));
        let started = Instant::now();
        let writers = run_under_faults(work.collect(), steps * WRITERS as u64, scaled(20), |number| {
            restart(&mut cluster, number)
        })?;
        say(&format!("{}: {} steps in {:?}", case.name(), steps * WRITERS as u64, started.elapsed()));
        check_writers(&cluster, writers, &second)?;
        for number in 0..WRITERS {
            let path = cluster.mount().join(format!("w{number}"));
            fs::remove_dir_all(&path).at(&path)?;
        }
        second.unmount()?;
        bricks::emptied(cluster.bricks())
    });
}

fn write(mut writer: Writer, steps: u64, progress: &Progress) -> anyhow::Result<Writer> {
    for _ in 0..steps {
        writer.step()?;
        progress.step()?;
    }
    Ok(writer)
}

/// What each writer wrote is there on both mounts, in its open files, and on a cold mount.
fn check_writers(cluster: &Cluster, mut writers: Vec<Writer>, second: &Mount) -> anyhow::Result<()> {
    for root in [cluster.mount(), second.path()] {
        for (number, writer) in writers.iter().enumerate() {
            writer.check_all(&root.join(format!("w{number}")))?;
        }
    }
    writers.iter_mut().for_each(Writer::close);
    cluster.remount()?;
    for (number, writer) in writers.iter().enumerate() {
        writer.check_all(&cluster.mount().join(format!("w{number}")))?;
    }
    Ok(())
}

#[test]
fn appends_from_two_mounts_are_never_doubled_nor_lost_when_brickd_is_killed() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let second = cluster.second_mount("second", &[])?;
        let records = scaled(10_000);
        let roots = [cluster.mount().to_owned(), second.path().to_owned()];
        File::create(roots[0].join("log")).at(&roots[0])?;
        let work = (0..WRITERS).map(|number| {
            let path = roots[number % 2].join("log");
            move |progress: &Progress| append_records(&path, number, records, progress)
        });
        run_under_faults(work.collect(), records * WRITERS as u64, scaled(12), |number| restart(&mut cluster, number))?;
        cluster.remount()?;
        let log = fs::read(roots[0].join("log")).at(&roots[0])?;
        check_records(&log, records)
    });
}

/// Records of a fixed length that say who wrote them and which of that writer's they are.
fn record(writer: usize, count: u64) -> Vec<u8> {
    let mut record = format!("{writer} {count} ").into_bytes();
    record.resize(RECORD_BYTES - 1, b'.');
    record.push(b'\n');
    record
}

fn append_records(path: &Path, writer: usize, records: u64, progress: &Progress) -> anyhow::Result<()> {
    let mut file = File::options().append(true).open(path).at(path)?;
    for count in 0..records {
        file.write_all(&record(writer, count)).at(path)?;
        progress.step()?;
    }
    Ok(())
}

fn check_records(log: &[u8], records: u64) -> anyhow::Result<()> {
    let mut next = [0u64; WRITERS];
    for (index, found) in log.chunks(RECORD_BYTES).enumerate() {
        let text = String::from_utf8_lossy(found);
        let writer: usize = text.split(' ').next().and_then(|word| word.parse().ok()).context("a torn record")?;
        let count = next.get_mut(writer).context("a torn record")?;
        ensure!(found == record(writer, *count), "record {index} is {text:?}; writer {writer} was at {count}");
        *count += 1;
    }
    ensure!(next == [records; WRITERS], "of {records} records each there are {next:?}");
    Ok(())
}

#[test]
fn a_change_whose_reply_was_lost_runs_once() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let rounds = scaled(2500);
        let root = cluster.mount().to_owned();
        let work = (0..WRITERS).map(|number| {
            let root = root.join(format!("w{number}"));
            move |progress: &Progress| make_and_remove(&root, rounds, progress)
        });
        // Each kill finds about as many changes under way as there are workers: many kills, few changes.
        run_under_faults(work.collect(), rounds * WRITERS as u64, scaled(25), |number| restart(&mut cluster, number))?;
        bricks::emptied(cluster.bricks())
    });
}

/// Changes that say EEXIST or ENOENT when they run twice.
fn make_and_remove(root: &Path, rounds: u64, progress: &Progress) -> anyhow::Result<()> {
    fs::create_dir(root).at(root)?;
    for round in 0..rounds {
        let path = |what: &str| root.join(format!("{what}{round}"));
        fs::create_dir(path("d")).at(path("d"))?;
        File::create_new(path("f")).at(path("f"))?;
        std::os::unix::fs::symlink("target", path("s")).at(path("s"))?;
        fs::hard_link(path("f"), path("l")).at(path("l"))?;
        fs::rename(path("f"), path("d").join("moved")).at(path("f"))?;
        fs::remove_file(path("l")).at(path("l"))?;
        fs::remove_file(path("s")).at(path("s"))?;
        fs::remove_file(path("d").join("moved")).at(path("d"))?;
        fs::remove_dir(path("d")).at(path("d"))?;
        progress.step()?;
    }
    fs::remove_dir(root).at(root)
}

#[test]
fn a_mount_waits_as_long_as_it_was_told_and_then_says_eio() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let mount = cluster.second_mount("impatient", &["--timeout", "3", "-o", "strict"])?;
        let path = mount.path().join("file");
        fs::write(&path, b"before").at(&path)?;
        let file = File::options().read(true).write(true).open(&path).at(&path)?;
        cluster.kill_brickd()?;
        must_give_up("stat", || fs::symlink_metadata(mount.path().join("other")).map(drop))?;
        must_give_up("create", || File::create(mount.path().join("new")).map(drop))?;
        let started = Instant::now();
        let _ = file.write_all_at(b"during", 0); // queued, or refused: the fsync tells
        ensure!(started.elapsed() < WAIT_MAX, "write waited {:?}", started.elapsed());
        must_give_up("fsync", || file.sync_all())?;
        must_give_up("readdir", || fs::read_dir(mount.path())?.try_for_each(|entry| entry.map(drop)))?;
        cluster.start_brickd()?;
        // The same mount goes on; the write that was reported as failed may be there or not.
        let names: Vec<_> = fs::read_dir(mount.path()).at(mount.path())?.flatten().map(|e| e.file_name()).collect();
        ensure!(names.contains(&"file".into()), "listed: {names:?}");
        file.write_all_at(b"after!", 0).and_then(|()| file.sync_all()).at(&path)?;
        ensure!(fs::read(&path).at(&path)? == b"after!");
        drop(file);
        mount.unmount()
    });
}

fn must_give_up(what: &str, call: impl FnOnce() -> std::io::Result<()>) -> anyhow::Result<()> {
    let started = Instant::now();
    let result = call();
    let (waited, errno) = (started.elapsed(), result.err().and_then(|error| error.raw_os_error()));
    ensure!(errno == Some(libc::EIO), "{what} gave {errno:?} after {waited:?}, not EIO");
    ensure!(waited > WAIT_MIN && waited < WAIT_MAX, "{what} waited {waited:?}");
    Ok(())
}

#[test]
fn a_process_that_waits_for_an_absent_server_ends_on_a_signal() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let mount = cluster.second_mount("patient", &["--timeout", "0", "-o", "strict"])?;
        let path = mount.path().join("file");
        fs::write(&path, b"content").at(&path)?;
        cluster.kill_brickd()?;
        let waits: [(&str, &[&str]); 5] = [
            ("stat", &["stat", "file"]),
            ("ls", &["ls", "."]),
            ("touch", &["touch", "new"]),
            ("mkdir", &["mkdir", "dir"]),
            ("cat", &["cat", "file"]),
        ];
        let mut deaf = Vec::new();
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            for (name, words) in waits {
                let waiting = start_waiting(words, mount.path())?;
                deaf.extend(end_by(waiting, signal).err().map(|error| format!("{name} at {signal:?}: {error:#}")));
            }
        }
        ensure!(deaf.is_empty(), "{} of 15 do not end:\n  {}", deaf.len(), deaf.join("\n  "));
        let still = start_waiting(&["cat", "file"], mount.path())?;
        cluster.start_brickd()?;
        let output = still.wait_with_output()?;
        ensure!(output.stdout == b"content", "a process that waited on got {output:?}");
        mount.unmount()
    });
}

/// Starts a command that soon waits for the file system.
/// A program that starts another closes its copies of files within execve(2), under a lock that the kernel takes to say how
/// the program is. Whoever in the mount asks for that while such a close waits for the server waits for itself.
#[test]
fn a_program_that_is_started_beside_an_open_file_does_not_hang_the_mount() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let path = cluster.mount().join("file");
        let file = File::create(&path).at(&path)?;
        cluster.kill_brickd()?;
        file.write_all_at(b"queued", 0).at(&path)?;
        let (sender, started) = mpsc::channel();
        thread::spawn(move || drop(sender.send(Command::new("true").status())));
        // The mount looks after who has waited for 200 ms, four times a second.
        let since = Instant::now();
        eventually("the mount looks after who waits", Duration::from_secs(10), || since.elapsed() > LOOKED_AFTER)?;
        ensure!(started.try_recv().is_err(), "the program was started without the server: nothing is shown");
        cluster.start_brickd()?;
        let status = started.recv_timeout(Duration::from_secs(20)).context("the mount hangs")??;
        ensure!(status.success(), "{status}");
        drop(file);
        ensure!(fs::read(&path).at(&path)? == b"queued", "what was written is not there");
        Ok(())
    });
}

fn start_waiting(words: &[&str], dir: &Path) -> anyhow::Result<Child> {
    // The working directory would be a lookup of its own, in this process: the shell goes there. What runs in the
    // background of a script ignores SIGINT, and so would its children.
    let line = format!("cd {} && exec {}", dir.display(), words.join(" "));
    let words = ["--default-signal=INT", "sh", "-c", &line];
    let child = Command::new("env").args(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let waits = || sleeping_in(child.id()).contains("request_wait") || sleeping_in(child.id()).contains("fuse");
    eventually("the command waits for the file system", Duration::from_secs(10), waits)?;
    Ok(child)
}

fn end_by(mut waiting: Child, signal: Signal) -> anyhow::Result<()> {
    let process = Process::open(waiting.id())?;
    process.signal(signal)?;
    let has_ended = process.has_ended_within(Duration::from_secs(3))?;
    ensure!(has_ended, "it still waits in {} 3 s after the signal", sleeping_in(waiting.id()));
    waiting.wait()?;
    Ok(())
}

#[test]
fn a_killed_client_leaves_nothing_behind_and_a_living_one_keeps_its_files() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let (killed, living) = (cluster.second_mount("killed", &[])?, cluster.second_mount("living", &[])?);
        let (theirs, ours) = (open_and_unlink(killed.path(), "theirs")?, open_and_unlink(living.path(), "ours")?);
        let orphans = |cluster: &Cluster| -> anyhow::Result<Vec<PathBuf>> {
            let seen = Bricks::look(cluster.bricks())?;
            Ok(seen.unfinished.into_iter().filter(|path| path.to_string_lossy().contains("orphans")).collect())
        };
        ensure!(orphans(&cluster)?.len() == 2, "open files without a name: {:?}", orphans(&cluster)?);
        // The server forgets who had what; the living client says so again.
        cluster.kill_brickd()?;
        cluster.start_brickd()?;
        killed.kill()?;
        drop(theirs);
        let lapses = LEASE + Duration::from_secs(10);
        eventually("the killed client's file is gone", lapses, || orphans(&cluster).is_ok_and(|left| left.len() < 2))?;
        let mut content = [0; 5];
        ours.read_exact_at(&mut content, 0).at("the living client's file")?;
        ensure!(&content == b"hello" && orphans(&cluster)?.len() == 1, "left: {:?}", orphans(&cluster)?);
        drop(ours);
        let soon = Duration::from_secs(3);
        eventually("the closed file is gone at once", soon, || orphans(&cluster).is_ok_and(|left| left.is_empty()))?;
        living.unmount()?;
        bricks::emptied(cluster.bricks())
    });
}

fn open_and_unlink(root: &Path, name: &str) -> anyhow::Result<File> {
    let path = root.join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path).at(&path)?;
    file.write_all_at(b"hello", 0).and_then(|()| file.sync_all()).at(&path)?;
    fs::remove_file(&path).at(&path)?;
    Ok(file)
}
