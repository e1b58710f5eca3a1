//! Space: what statfs says of disks that bricks share, the reserve, and a brick that is full while others are not
//! (PROTOCOL 22, 37, 40).

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::case;
use brickfs_tests::close::close;
use brickfs_tests::cluster::{Cluster, VOLUME};
use brickfs_tests::eventually::{eventually, eventually_ok};
use brickfs_tests::mount::Mount;
use brickfs_tests::needs::MOUNT;
use brickfs_tests::run::shell;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Figures of statfs may be 2 s old (PROTOCOL 40).
const FRESH: Duration = Duration::from_secs(5);

/// A file system in memory of this size, with `bricks` directories for bricks.
fn small_disk(dir: &Path, name: &str, mib: u64, bricks: usize) -> anyhow::Result<Vec<PathBuf>> {
    let disk = dir.join(name);
    fs::create_dir(&disk).at(&disk)?;
    shell("mount -t tmpfs -o size=\"$2\"m tmpfs \"$1\"", &[&disk, &mib.to_string()])?.ok()?;
    Ok((1..=bricks).map(|number| disk.join(format!("b{number}"))).collect())
}

#[derive(Debug)]
struct Space {
    total: u64,
    available: u64,
}

fn space_of(path: &Path) -> anyhow::Result<Space> {
    let stat = statvfs(path).at(path)?;
    Ok(Space { total: stat.f_blocks * stat.f_frsize, available: stat.f_bavail * stat.f_frsize })
}

fn is_near(value: u64, wanted: u64) -> bool {
    value.abs_diff(wanted) <= wanted / 50 + MIB
}

#[test]
fn statfs_counts_a_shared_disk_once_and_takes_the_reserve_off() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let mut bricks = small_disk(&dir, "one", 100, 3)?;
        bricks.extend(small_disk(&dir, "two", 200, 1)?);
        let cluster = Cluster::over(&dir, &bricks)?;
        let mount = cluster.second_mount("mnt", &[])?;
        let is_right = |reserve_percent: u64| {
            eventually_ok("the space that is available", FRESH, || {
                let (space, disks) =
                    (space_of(mount.path())?, [space_of(&dir.join("one"))?, space_of(&dir.join("two"))?]);
                let (total, free) = (disks[0].total + disks[1].total, disks[0].available + disks[1].available);
                let wanted = free - total * reserve_percent / 100;
                ensure!(is_near(space.available, wanted), "{space:?} available, not {wanted}");
                ensure!(is_near(space.total, total), "{space:?} in all, not {total}");
                Ok(())
            })
        };
        // 1% is reserved unless one says otherwise.
        is_right(1)?;
        cluster.brickctl(&["volume", "set", VOLUME, "reserve", "10%"])?.ok()?;
        is_right(10)?;
        let path = mount.path().join("file");
        let file = File::create(&path).at(&path)?;
        file.write_all_at(&vec![1; 40 << 20], 0).and_then(|()| file.sync_all()).at(&path)?;
        is_right(10)?;
        let with_file = space_of(mount.path())?.available;
        drop(file);
        fs::remove_file(&path).at(&path)?;
        let has_room = || space_of(mount.path()).is_ok_and(|space| space.available > with_file + 38 * MIB);
        eventually("the space of a removed file is available", FRESH, has_room)?;
        mount.unmount()
    });
}

#[test]
fn no_data_is_written_into_the_reserve() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let bricks = small_disk(&dir, "disk", 200, 4)?;
        let cluster = Cluster::over(&dir, &bricks)?;
        cluster.brickctl(&["volume", "set", VOLUME, "reserve", "20%"])?.ok()?;
        let mount = cluster.second_mount("mnt", &[])?;
        let mut refused = 0;
        for number in 0..210 {
            let path = mount.path().join(format!("f{number}"));
            refused += u64::from(write_mib(&path)? == Some(libc::ENOSPC));
        }
        let left = space_of(&dir.join("disk"))?.available;
        ensure!((38 * MIB..=43 * MIB).contains(&left), "{left} bytes are left of 40 MiB, {refused} files refused");
        ensure!(space_of(mount.path())?.available < 3 * MIB, "{:?}", space_of(mount.path())?);
        mount.unmount()
    });
}

/// Writes and syncs a new file of 1 MiB; gives the errno if that fails.
fn write_mib(path: &Path) -> anyhow::Result<Option<i32>> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(&vec![b'x'; MIB as usize])?;
        file.sync_all()
    });
    match written.map_err(|error| error.raw_os_error()) {
        Ok(()) => Ok(None),
        Err(Some(errno)) => Ok(Some(errno)),
        Err(None) => Err(anyhow::anyhow!("no errno")).at(path),
    }
}

/// A volume with one small brick, which is full.
struct FullBrick {
    mount: Mount,
    /// Files on the full brick.
    on_full: Vec<PathBuf>,
    /// Empty files on the others.
    elsewhere: Vec<PathBuf>,
    _cluster: Cluster,
}

fn fill_a_brick(dir: &Path) -> anyhow::Result<FullBrick> {
    let mut bricks = small_disk(dir, "small", 40, 1)?;
    bricks.extend(small_disk(dir, "large", 400, 3)?);
    let cluster = Cluster::over(dir, &bricks)?;
    let mount = cluster.second_mount("mnt", &[])?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for number in 0..500 {
        paths.push(mount.path().join(format!("f{number}")));
        File::create(&paths[number]).at(&paths[number])?;
    }
    // Few names are the small brick's: its share follows its size.
    let is_on_small = |path: &PathBuf| bricks[0].join(path.file_name().unwrap_or_default()).exists();
    let (on_full, elsewhere): (Vec<_>, Vec<_>) = paths.into_iter().partition(is_on_small);
    ensure!(on_full.len() >= 10 && elsewhere.len() > 300, "{} files are on the small brick", on_full.len());
    let count = fill(&on_full)?;
    ensure!((20..40).contains(&count), "{count} MiB went on a brick of 40 MiB");
    Ok(FullBrick { mount, on_full, elsewhere, _cluster: cluster })
}

#[test]
fn a_full_brick_refuses_data_while_the_others_go_on() {
    case(MOUNT, |case| {
        let full = fill_a_brick(&case.in_memory()?)?;
        for path in &full.elsewhere[..100] {
            let errno = write_mib(path)?;
            ensure!(errno.is_none(), "a file on another brick: {errno:?}");
        }
        full_brick_lets_go(full.mount.path(), &full.on_full)?;
        let has_room = || write_mib(&full.on_full[9]).is_ok_and(|errno| errno.is_none());
        eventually("the brick takes data again after an unlink", FRESH, has_room)?;
        full.mount.unmount()
    });
}

#[test]
fn a_full_brick_lets_one_write_over_what_is_there() {
    case(MOUNT, |case| {
        let full = fill_a_brick(&case.in_memory()?)?;
        for path in &full.on_full[..4] {
            let file = File::options().read(true).write(true).open(path).at(path)?;
            file.write_all_at(b"over", 1000).and_then(|()| file.sync_all()).at(path)?;
            let mut content = [0; 4];
            file.read_exact_at(&mut content, 1000).at(path)?;
            ensure!(&content == b"over");
        }
        full.mount.unmount()
    });
}

/// The call that tells of an error.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Teller {
    Write,
    Fsync,
    Close,
}

#[test] // PROTOCOL 32
fn an_error_of_a_queued_write_is_told_once_on_each_descriptor_that_wrote() {
    case(MOUNT, |case| {
        let full = fill_a_brick(&case.in_memory()?)?;
        fill_to_the_end(&full.on_full[0])?;
        for (number, teller) in [Teller::Write, Teller::Fsync, Teller::Close].into_iter().enumerate() {
            let path = &full.on_full[number + 1];
            let before = fs::read(path).at(path)?;
            let open = || File::options().read(true).write(true).open(path).at(path);
            let (one, two, idle) = (open()?, open()?, open()?);
            let copy = one.try_clone().at(path)?;
            let end = before.len() as u64;
            for (file, offset) in [(&one, end), (&two, end + 8 * MIB)] {
                file.write_all_at(&vec![b'q'; MIB as usize / 4], offset)
                    .context("a write that is only queued")
                    .at(path)?;
            }
            // All is written or has failed then; who wrote nothing is told nothing.
            idle.sync_all().context("fsync of a descriptor that wrote nothing").at(path)?;
            told_once(teller, one).at(path)?;
            // The same open file, told already; and one of its own.
            close(copy).context("the last close of what was told").at(path)?;
            told_once(teller, two).at(path)?;
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut &idle, &mut content).at(path)?;
            ensure!(content == before, "{teller:?}: what was never written can be read");
            close(idle).at(path)?;
        }
        full.mount.unmount()
    });
}

/// ENOSPC comes with this call on the file, and no other.
fn told_once(teller: Teller, file: File) -> anyhow::Result<()> {
    let calls: [(Teller, &dyn Fn() -> std::io::Result<()>); 2] =
        [(Teller::Write, &|| file.write_all_at(b"x", 0)), (Teller::Fsync, &|| file.sync_all())];
    let from = calls.iter().position(|(call, _)| *call == teller).unwrap_or(calls.len());
    for (call, run) in &calls[from..] {
        let errno = run().err().and_then(|error| error.raw_os_error());
        let wanted = (*call == teller).then_some(libc::ENOSPC);
        ensure!(errno == wanted, "{call:?} tells {errno:?}, where {teller:?} should tell");
    }
    if teller == Teller::Fsync {
        file.write_all_at(b"x", 0).context("a write after the error")?;
        file.sync_all().context("the error is told twice")?;
    }
    let errno = close(file).err().and_then(|error| error.raw_os_error());
    let wanted = (teller == Teller::Close).then_some(libc::ENOSPC);
    ensure!(errno == wanted, "close tells {errno:?}, where {teller:?} should tell");
    Ok(())
}

/// Takes what space is left, block by block.
fn fill_to_the_end(path: &Path) -> anyhow::Result<()> {
    let mut file = File::options().append(true).open(path).at(path)?;
    for bytes in [64 << 10, 4096] {
        let mut is_full =
            |_: &u32| file.write_all(&vec![b'x'; bytes]).is_err_and(|e| e.raw_os_error() == Some(libc::ENOSPC));
        ensure!((0..10_000).any(|number| is_full(&number)), "the brick takes more and more");
    }
    Ok(())
}

/// Appends 1 MiB to each in turn until there is no space; gives how many times that went well. Each is then whole.
fn fill(paths: &[PathBuf]) -> anyhow::Result<u64> {
    for count in 0..200 {
        let path = &paths[count as usize % paths.len()];
        let mut file = File::options().append(true).open(path).at(path)?;
        let Err(error) = file.write_all(&vec![b'x'; MIB as usize]).and_then(|()| file.sync_all()) else { continue };
        ensure!(error.raw_os_error() == Some(libc::ENOSPC), "after {count} MiB: {error}");
        for (number, path) in paths.iter().enumerate() {
            let content = fs::read(path).at(path)?;
            let least = MIB * ((count + paths.len() as u64 - 1 - number as u64) / paths.len() as u64);
            ensure!(content.len() as u64 >= least && content.iter().all(|byte| *byte == b'x'), "{path:?} is not whole");
        }
        return Ok(count);
    }
    Err(anyhow::anyhow!("200 MiB went on a brick of 40 MiB"))
}

/// On a full brick one can still shorten, rename and remove what is there; errors of queued writes are told.
fn full_brick_lets_go(root: &Path, on_full: &[PathBuf]) -> anyhow::Result<()> {
    // Room for metadata is kept: names of files that are elsewhere come and go.
    for (number, path) in on_full.iter().enumerate().take(6) {
        let moved = root.join(format!("moved{number}"));
        fs::rename(path, &moved).at(path)?;
        fs::rename(&moved, path).at(&moved)?;
    }
    // A write that is queued and cannot be done: its error comes with the write, the fsync or the close, and only once.
    let growing = File::options().append(true).open(&on_full[1]).at(&on_full[1])?;
    let errno = (&growing).write_all(&vec![0; 4 << 20]).and_then(|()| growing.sync_all()).err();
    let errno = errno.and_then(|error| error.raw_os_error());
    ensure!(errno == Some(libc::ENOSPC), "growing a file on a full brick: {errno:?}");
    growing.sync_all().context("the error is told twice").at(&on_full[1])?;
    let space = fallocate(&growing, FallocateFlags::empty(), 0, 64 * MIB);
    ensure!(space == Err(rustix::io::Errno::NOSPC), "fallocate on a full brick: {space:?}");
    growing.set_len(MIB / 2).at(&on_full[1])?;
    on_full[2..8].iter().try_for_each(|path| fs::remove_file(path).at(path))
}
