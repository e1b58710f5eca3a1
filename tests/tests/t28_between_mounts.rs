//! What one mount sees of another's changes (PROTOCOL 31, 33): with `-o strict` all of them at once, without it at most
//! a second later; and who wins a race for a name.

use anyhow::{Context as _, bail, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::eventually::eventually;
use brickfs_tests::load::{Progress, run_under_faults};
use brickfs_tests::mount::Mount;
use brickfs_tests::needs::{MOUNT, is_soak};
use rand::Rng as _;
use rand::rngs::StdRng;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Files and directories that change.
const FILES: [&str; 4] = ["a", "b", "c", "d"];
const DIRS: [&str; 2] = ["x", "y"];
/// Errors of changes that do not fit what is there.
const IN_THE_WAY: [ErrorKind; 3] = [ErrorKind::NotFound, ErrorKind::AlreadyExists, ErrorKind::DirectoryNotEmpty];
/// What one mount may be behind another, and what the kernel's clock and a busy machine add to it.
const LATE_MAX: Duration = Duration::from_millis(1000 + 100);
/// Who race for names.
const RACERS: usize = 8;

fn scaled(count: u64) -> u64 {
    if is_soak() { count * 10 } else { count }
}

/// What a mount shows of a name; `None` if it shows nothing.
#[derive(PartialEq, Debug)]
struct Seen {
    ino: u64,
    mode: u32,
    links: u64,
    owner: u32,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
    /// The file's data, or the names in the directory.
    content: Vec<u8>,
}

fn absent<T>(result: std::io::Result<T>, path: &Path) -> anyhow::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(path),
    }
}

/// Looks at a name as a program does: opens it, reads it, asks for its attributes.
fn look(path: &Path) -> anyhow::Result<Option<Seen>> {
    let Some(meta) = absent(fs::symlink_metadata(path), path)? else { return Ok(None) };
    let content = if meta.is_dir() { Some(list(path)?.join(&b'/')) } else { absent(fs::read(path), path)? };
    let content = content.with_context(|| format!("{} can be seen and not be opened", path.display()))?;
    Ok(Some(Seen {
        ino: meta.ino(),
        mode: meta.mode(),
        links: meta.nlink(),
        owner: meta.uid(),
        size: if meta.is_dir() { 0 } else { meta.size() },
        changed: (meta.ctime(), meta.ctime_nsec()),
        modified: (meta.mtime(), meta.mtime_nsec()),
        content,
    }))
}

fn list(dir: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let name = entry.at(dir)?.file_name().into_encoded_bytes();
        let shown = String::from_utf8_lossy(&name).into_owned();
        ensure!(names.insert(name), "{shown} is listed twice");
    }
    Ok(names.into_iter().filter(|name| !name.starts_with(b"load")).collect())
}

/// Everything that a mount shows of the directory.
fn look_around(dir: &Path) -> anyhow::Result<Vec<(String, Option<Seen>)>> {
    let mut seen = Vec::new();
    for name in FILES.iter().chain(&DIRS) {
        seen.push(((*name).to_owned(), look(&dir.join(name))?));
    }
    let listed = list(dir)?;
    let mut found: Vec<Vec<u8>> =
        seen.iter().filter(|(_, seen)| seen.is_some()).map(|(n, _)| n.clone().into()).collect();
    found.sort();
    ensure!(listed == found, "{}: {found:?} are found, {listed:?} listed", dir.display());
    Ok(seen)
}

/// Changes something below `dir`; says what, or `None` if what it wanted to change is not there.
fn change(dir: &Path, rng: &mut StdRng, round: u64) -> anyhow::Result<Option<String>> {
    let file = FILES[rng.random_range(0..FILES.len())];
    let (path, other) = (dir.join(file), dir.join(FILES[rng.random_range(0..FILES.len())]));
    let (sub, new_sub) = (dir.join(DIRS[0]), dir.join(DIRS[1]));
    let data = format!("{round} ").repeat(rng.random_range(1..2000));
    let (what, result) = match rng.random_range(0..14) {
        0 | 1 => ("write", fs::write(&path, &data)),
        2 => ("append", File::options().append(true).open(&path).and_then(|mut file| file.write_all(data.as_bytes()))),
        3 => ("truncate", File::options().write(true).open(&path).and_then(|file| file.set_len(7))),
        4 => ("unlink", fs::remove_file(&path)),
        5 => {
            let new = dir.join("load.new");
            ("replace", fs::write(&new, &data).and_then(|()| fs::rename(&new, &path)))
        }
        6 => ("rename", fs::rename(&path, &other)),
        7 => ("link", fs::hard_link(&path, &other)),
        8 => ("chmod", fs::set_permissions(&path, fs::Permissions::from_mode(0o600 + round as u32 % 64))),
        9 => ("chown", std::os::unix::fs::chown(&path, Some(round as u32), None)),
        10 => {
            let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_millis(round));
            ("utimes", File::open(&path).and_then(|file| file.set_times(times)))
        }
        11 => {
            let exchanged = rustix::fs::renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE);
            ("exchange", exchanged.map_err(Into::into))
        }
        12 if sub.exists() => ("rename of a directory", fs::rename(&sub, &new_sub)),
        12 => ("mkdir", fs::create_dir(&sub).and_then(|()| fs::write(sub.join("entry"), &data))),
        _ if new_sub.exists() => ("removal of a directory", fs::remove_dir_all(&new_sub)),
        _ => {
            let set = rustix::fs::setxattr(&path, "user.round", round.to_string().as_bytes(), XattrFlags::empty());
            ("setxattr", set.map_err(Into::into))
        }
    };
    match result {
        Ok(()) => Ok(Some(format!("round {round}: {what} of {file}"))),
        Err(error) if IN_THE_WAY.contains(&error.kind()) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("round {round}: {what}")).at(&path),
    }
}

/// Makes and removes files in a directory of its own and in `shared`, until it is told to end.
fn load(dir: &Path, shared: &Path, is_over: &AtomicBool) -> anyhow::Result<u64> {
    fs::create_dir(dir).at(dir)?;
    let own = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for number in 0u64.. {
        if is_over.load(Ordering::Relaxed) {
            return Ok(number);
        }
        for path in [dir.join(number.to_string()), shared.join(format!("{own}-{number}"))] {
            fs::write(&path, vec![1; 10_000]).at(&path)?;
            fs::remove_file(&path).at(&path)?;
        }
    }
    Ok(0)
}

fn two_mounts(cluster: &Cluster, args: &[&str]) -> anyhow::Result<[Mount; 2]> {
    Ok([cluster.second_mount("one", args)?, cluster.second_mount("two", args)?])
}

/// Runs `checks` while both mounts have other things to do.
fn under_load<T>(mounts: &[Mount; 2], checks: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loads: Vec<_> = mounts
            .iter()
            .enumerate()
            .map(|(number, mount)| {
                let (dir, shared) = (mount.path().join(format!("load{number}")), mount.path().join("shared"));
                let is_over = &is_over;
                scope.spawn(move || load(&dir, &shared, is_over))
            })
            .collect();
        let result = checks();
        is_over.store(true, Ordering::Relaxed);
        for load in loads {
            let count = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
            ensure!(count > 0, "there was no load");
        }
        result
    })
}

#[test] // PROTOCOL 33
fn strict_mounts_see_each_others_changes_at_once() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let mounts = two_mounts(&cluster, &["-o", "strict"])?;
        let dirs = [0, 1].map(|number: usize| mounts[number].path().join("shared"));
        fs::create_dir(&dirs[0]).at(&dirs[0])?;
        // A file that both have open for all of the time.
        let open = |number: usize| {
            let path = dirs[number].join("load.open");
            File::options().read(true).append(true).create(true).open(&path).at(&path)
        };
        let opened = [open(0)?, open(1)?];
        let mut changes = 0;
        under_load(&mounts, || {
            let mut rng = case.rng(0);
            for round in 0..scaled(1500) {
                let (ours, theirs) = (&dirs[rng.random_range(0..2)], &dirs[rng.random_range(0..2)]);
                let Some(what) = change(ours, &mut rng, round)? else { continue };
                changes += 1;
                (&opened[changes % 2]).write_all(b"grows").at("an open file")?;
                let sizes = [opened[1 - changes % 2].metadata()?.len(), opened[changes % 2].metadata()?.len()];
                ensure!(sizes == [5 * changes as u64; 2], "sizes of an open file after {changes} writes: {sizes:?}");
                // The other mount first: it has seen nothing since the change.
                let order = if ours == theirs { [&dirs[1], &dirs[0]] } else { [theirs, ours] };
                let (seen, known) = (look_around(order[0])?, look_around(order[1])?);
                ensure!(seen == known, "{what} through {ours:?}: {order:?} show\n{seen:?}\n{known:?}");
            }
            Ok(())
        })?;
        say(&format!("{}: {changes} changes", case.name()));
        drop(opened);
        mounts.into_iter().try_for_each(Mount::unmount)
    });
}

#[test] // PROTOCOL 33
fn other_mounts_see_changes_a_second_later_at_most() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let mounts = two_mounts(&cluster, &[])?;
        let dirs = [0, 1].map(|number: usize| mounts[number].path().join("shared"));
        fs::create_dir(&dirs[0]).at(&dirs[0])?;
        under_load(&mounts, || {
            let mut rng = case.rng(0);
            for round in 0..scaled(10) {
                let (ours, theirs) = (&dirs[round as usize % 2], &dirs[1 - round as usize % 2]);
                // What the other mount knows is as new as can be, and from before the changes.
                look_around_for(theirs, Duration::ZERO)?;
                let mut changes = Vec::new();
                for _ in 0..8 {
                    changes.extend(change(ours, &mut rng, round)?);
                }
                // It goes on asking, so that what it knows is as new as can be all the time.
                look_around_for(theirs, LATE_MAX)?;
                let (seen, known) = (look_around(theirs)?, look_around(ours)?);
                ensure!(seen == known, "{changes:?}: a second later there are\n{seen:?}\n{known:?}");
            }
            Ok(())
        })?;
        mounts.into_iter().try_for_each(Mount::unmount)
    });
}

/// Looks at everything again and again for so long, and at once at least.
fn look_around_for(dir: &Path, time: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        for name in FILES.iter().chain(&DIRS) {
            let path = dir.join(name);
            absent(fs::symlink_metadata(&path), &path)?;
            absent(File::open(&path), &path)?;
        }
        list(dir)?;
        if started.elapsed() >= time {
            return Ok(());
        }
    }
}

#[test]
fn of_those_who_race_for_a_name_one_wins() {
    case(MOUNT, |case| {
        race(case, &[], 2500, 3)?;
        race(case, &["-o", "strict"], 1000, 0)
    });
}

fn race(case: &Case, args: &[&str], rounds: u64, kills: u64) -> anyhow::Result<()> {
    let mut cluster = Cluster::in_memory(case)?;
    let mounts = two_mounts(&cluster, args)?;
    let dirs = [0, 1].map(|number: usize| mounts[number].path().join("race"));
    fs::create_dir(&dirs[0]).at(&dirs[0])?;
    let rounds = scaled(rounds);
    let arrived = AtomicU64::new(0);
    let work = (0..RACERS).map(|racer| {
        let (dir, arrived) = (dirs[racer % 2].clone(), &arrived);
        move |progress: &Progress| run_races(&dir, racer, rounds, arrived, progress)
    });
    let won = run_under_faults(work.collect(), rounds * RACERS as u64, kills, |_| {
        cluster.kill_brickd()?;
        cluster.start_brickd()
    })?;
    // This mount has seen nothing of it.
    let dir = cluster.mount().join("race");
    for round in 0..rounds {
        let winners: Vec<usize> = (0..RACERS).filter(|racer| won[*racer].contains(&round)).collect();
        ensure!(winners.len() == 1, "round {round} of {args:?} was won by {winners:?}");
        check_prize(&dir, round, winners[0])?;
    }
    let counts: Vec<usize> = won.iter().map(BTreeSet::len).collect();
    say(&format!("{}: {rounds} rounds with {args:?}, won by {counts:?}", case.name()));
    fs::remove_dir_all(&dirs[0]).at(&dirs[0])?;
    mounts.into_iter().try_for_each(Mount::unmount)?;
    bricks::emptied(cluster.bricks())
}

/// In each round all racers make the same name, as soon as all have come to it. Gives which rounds were won.
fn run_races(
    dir: &Path,
    racer: usize,
    rounds: u64,
    arrived: &AtomicU64,
    progress: &Progress,
) -> anyhow::Result<BTreeSet<u64>> {
    let own = dir.join(format!("own{racer}"));
    fs::write(&own, racer.to_string()).at(&own)?;
    let mut won = BTreeSet::new();
    for round in 0..rounds {
        arrived.fetch_add(1, Ordering::AcqRel);
        while arrived.load(Ordering::Acquire) < (round + 1) * RACERS as u64 {
            ensure!(!progress.is_over(), "stopped: something else failed first");
            std::thread::yield_now();
        }
        let path = dir.join(format!("prize{round}"));
        let result = match round % 5 {
            0 | 1 => File::create_new(&path).and_then(|mut file| file.write_all(racer.to_string().as_bytes())),
            2 => fs::hard_link(&own, &path),
            3 => std::os::unix::fs::symlink(racer.to_string(), &path),
            _ => fs::create_dir(&path).and_then(|()| fs::write(path.join(racer.to_string()), b"")),
        };
        match result {
            Ok(()) => drop(won.insert(round)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => bail!("racer {racer} in round {round}: {error}"),
        }
        progress.step()?;
    }
    fs::remove_file(&own).at(&own)?;
    Ok(won)
}

/// The prize is the winner's.
fn check_prize(dir: &Path, round: u64, winner: usize) -> anyhow::Result<()> {
    let path: PathBuf = dir.join(format!("prize{round}"));
    let found = match round % 5 {
        0..=2 => fs::read(&path).at(&path)?,
        3 => fs::read_link(&path).at(&path)?.into_os_string().into_encoded_bytes(),
        _ => list(&path)?.join(&b'/'),
    };
    ensure!(found == winner.to_string().as_bytes(), "{winner} has won {path:?}, which is {}", found.escape_ascii());
    Ok(())
}

/// Whether a call on a directory that is gone says so.
fn is_stale<T>(what: &str, result: Result<T, Errno>) -> anyhow::Result<()> {
    let error = result.err();
    ensure!(error == Some(Errno::STALE), "{what} of a directory that is gone: {error:?}");
    Ok(())
}

#[test]
fn an_open_directory_that_another_mount_removes_is_stale() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        for (round, args) in [&[][..], &["-o", "strict"]].into_iter().enumerate() {
            let mounts = [cluster.second_mount(&format!("a{round}"), args)?, cluster.second_mount("b", args)?];
            let paths = [0, 1].map(|number: usize| mounts[number].path().join("dir"));
            fs::create_dir(&paths[0]).at(&paths[0])?;
            let dir = File::open(&paths[0]).at(&paths[0])?;
            fs::remove_dir(&paths[1]).at(&paths[1])?;
            eventually("the directory is gone", LATE_MAX, || rustix::fs::fstat(&dir).is_err())?;
            is_stale("fstat", rustix::fs::fstat(&dir))?;
            is_stale("fchmod", rustix::fs::fchmod(&dir, Mode::RWXU))?;
            is_stale("openat", rustix::fs::openat(&dir, "x", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR))?;
            is_stale("mkdirat", rustix::fs::mkdirat(&dir, "x", Mode::RWXU))?;
            is_stale("statat", rustix::fs::statat(&dir, "x", AtFlags::empty()))?;
            is_stale("openat of itself", rustix::fs::openat(&dir, ".", OFlags::RDONLY, Mode::empty()))?;
            absent(fs::symlink_metadata(&paths[0]), &paths[0])?.map_or(Ok(()), |_| bail!("its name is still there"))?;
            fs::create_dir(&paths[1]).at(&paths[1])?;
            is_stale("fstat beside a new one of that name", rustix::fs::fstat(&dir))?;
            fs::remove_dir(&paths[1]).at(&paths[1])?;
            drop(dir);
            mounts.into_iter().try_for_each(Mount::unmount)?;
        }
        Ok(())
    });
}
