//! What else programs do with files' data and expect of a local file system: room that is really reserved, copies on the
//! brick, sparse files, writes that are on the disk when they are answered, mappings, access times, and the bits and
//! capabilities that a change of the data takes away.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::case;
use brickfs_tests::cluster::{Cluster, VOLUME};
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::loop_fs::{Kind, LoopFs};
use brickfs_tests::mapping::Mapping;
use brickfs_tests::needs::{LOOP_MOUNT, MOUNT, Need};
use brickfs_tests::run::shell;
use rustix::fs::{FallocateFlags, SeekFrom, Timespec, Timestamps, fallocate};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// XFS makes no file system below 300 MiB.
const DISK_MIB: u64 = 320;
const FRESH: Duration = Duration::from_secs(5);

fn open_new(path: &Path) -> anyhow::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path).at(path)
}

/// The file that a brick has under a name at its root.
fn on_brick(bricks: &[PathBuf], name: &str) -> anyhow::Result<PathBuf> {
    bricks.iter().map(|brick| brick.join(name)).find(|path| path.exists()).context("no brick has the file")
}

#[test]
fn ranges_are_reserved_zeroed_and_freed_on_every_disk() {
    case(LOOP_MOUNT, |case| {
        let dir = case.in_memory()?;
        for (name, kind) in [("tmpfs", None), ("ext4", Some(Kind::Ext4)), ("xfs", Some(Kind::Xfs))] {
            let place = dir.join(name);
            fs::create_dir(&place).at(&place)?;
            let disk = kind.map(|kind| LoopFs::make(&place, "disk", kind, DISK_MIB)).transpose()?;
            let bricks = [disk.as_ref().map_or(place.join("b"), |disk| disk.path().join("b"))];
            let cluster = Cluster::over(&place, &bricks)?;
            let mount = cluster.second_mount("mnt", &[])?;
            check_ranges(&bricks[0], mount.path()).with_context(|| name.to_owned())?;
            mount.unmount()?;
        }
        Ok(())
    });
}

fn check_ranges(brick: &Path, root: &Path) -> anyhow::Result<()> {
    let path = root.join("file");
    let file = open_new(&path)?;
    let blocks = || Ok::<u64, anyhow::Error>(fs::metadata(brick.join("file")).at(brick)?.blocks() * 512);
    let (reserve, keep) = (FallocateFlags::empty(), FallocateFlags::KEEP_SIZE);
    // More than is done at once.
    fallocate(&file, reserve, 3, 100 * MIB).at(&path)?;
    ensure!(file.metadata().at(&path)?.len() == 100 * MIB + 3 && blocks()? >= 100 * MIB, "{} bytes", blocks()?);
    file.write_all_at(&[7; 3000], 50 * MIB).at(&path)?;
    fallocate(&file, FallocateFlags::ZERO_RANGE, 10 * MIB + 1, 100 * MIB).at(&path)?;
    let mut seen = [1; 3000];
    file.read_exact_at(&mut seen, 50 * MIB).at(&path)?;
    ensure!(seen == [0; 3000] && file.metadata().at(&path)?.len() == 110 * MIB + 1, "zeroing");
    ensure!(blocks()? >= 110 * MIB, "what is zeroed is reserved: {} bytes", blocks()?);
    fallocate(&file, FallocateFlags::ZERO_RANGE | keep, 110 * MIB, 2 * MIB).at(&path)?;
    fallocate(&file, keep, 112 * MIB, 20 * MIB).at(&path)?;
    ensure!(file.metadata().at(&path)?.len() == 110 * MIB + 1 && blocks()? >= 130 * MIB, "{} bytes", blocks()?);
    fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 0, 140 * MIB).at(&path)?;
    ensure!(file.metadata().at(&path)?.len() == 110 * MIB + 1 && blocks()? < 24 * MIB, "{} bytes are left", blocks()?);
    // ext4 keeps what is reserved beyond the end.
    let left = blocks()?;
    for (flags, at, length, wanted) in [
        (FallocateFlags::COLLAPSE_RANGE, 0, MIB, Errno::OPNOTSUPP),
        (FallocateFlags::INSERT_RANGE, 0, MIB, Errno::OPNOTSUPP),
        (FallocateFlags::PUNCH_HOLE, 0, MIB, Errno::OPNOTSUPP),
        (reserve, 0, 0, Errno::INVAL),
        (reserve, 1 << 45, MIB, Errno::FBIG),
        (reserve, 0, 1 << 40, Errno::NOSPC),
        (FallocateFlags::ZERO_RANGE, 0, 1 << 40, Errno::NOSPC),
    ] {
        let refused = fallocate(&file, flags, at, length);
        ensure!(refused == Err(wanted), "{flags:?} of {length} at {at}: {refused:?}");
    }
    ensure!(blocks()? == left && file.metadata().at(&path)?.len() == 110 * MIB + 1, "what was refused has changed it");
    drop(file);
    fs::remove_file(&path).at(&path)?;
    bricks::emptied(&[brick.to_owned()])
}

#[test]
fn a_copy_within_a_brick_shares_the_blocks_of_an_xfs_disk() {
    case(LOOP_MOUNT, |case| {
        let dir = case.in_memory()?;
        let disk = LoopFs::make(&dir, "disk", Kind::Xfs, DISK_MIB)?;
        let bricks = [disk.path().join("b")];
        let cluster = Cluster::over(&dir, &bricks)?;
        let mount = cluster.second_mount("mnt", &[])?;
        let (from, to) = (mount.path().join("from"), mount.path().join("to"));
        let content: Vec<u8> = (0..40 * MIB).map(|n| (n % 251) as u8).collect();
        fs::write(&from, &content).at(&from)?;
        shell("sync -f \"$1\"", &[&disk.path()])?.ok()?;
        let free = || rustix::fs::statvfs(disk.path()).map(|stat| stat.f_bavail * stat.f_frsize).at(disk.path());
        let before = free()?;
        shell("cp \"$1\" \"$2\"", &[&from, &to])?.ok()?;
        ensure!(fs::read(&to).at(&to)? == content, "the copy differs");
        shell("sync -f \"$1\"", &[&disk.path()])?.ok()?;
        let taken = before.saturating_sub(free()?);
        ensure!(taken < 4 * MIB, "the copy took {taken} bytes");
        // Neither changes with the other.
        File::options().write(true).open(&from).and_then(|file| file.write_all_at(&[0xff; 10], MIB)).at(&from)?;
        ensure!(fs::read(&to).at(&to)? == content, "the copy changes with its source");
        mount.unmount()
    });
}

#[test]
fn copies_have_the_errors_and_ends_that_linux_gives_them() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let root = cluster.mount();
        let copy = |from: &File, mut at: u64, to: &File, mut offset: u64, length: usize| {
            rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut offset), length)
        };
        // Five files on four bricks: some share one, some do not.
        let files: Vec<File> =
            (0..5).map(|number| open_new(&root.join(format!("f{number}")))).collect::<Result<_, _>>()?;
        for (number, file) in files.iter().enumerate() {
            file.write_all_at(&[number as u8 + 1; 10_000], 0)?;
        }
        for (number, from) in files.iter().enumerate() {
            for (other, to) in files.iter().enumerate().filter(|(other, _)| *other != number) {
                // What has just been written and is still queued is copied, and to its end.
                from.write_all_at(b"new", 9_000)?;
                to.write_all_at(b"old", 20_001)?;
                let mut copied = 0;
                while let count @ 1.. = copy(from, 9_000 + copied, to, 20_000 + copied, 5_000)? {
                    copied += count as u64;
                }
                ensure!(copied == 1000 || number == other, "{number} to {other}: {copied} bytes");
                let mut seen = [0; 4];
                to.read_exact_at(&mut seen, 20_000)?;
                ensure!(seen[..3] == *b"new" && seen[3] == number as u8 + 1, "{number} to {other}: {seen:?}");
                ensure!(to.metadata()?.len() == 21_000, "{number} to {other}");
                to.set_len(10_000)?;
            }
            ensure!(copy(from, 100, from, 200, 5000) == Err(Errno::INVAL), "over itself");
            ensure!(copy(from, 10_000, from, 0, 5000) == Ok(0), "behind the end");
            let read_only = File::open(root.join(format!("f{number}")))?;
            ensure!(copy(from, 0, &read_only, 0, 10) == Err(Errno::BADF));
        }
        Ok(())
    });
}

#[test]
fn sparse_files_stay_sparse_when_they_are_copied() {
    case(MOUNT, |case| {
        // On a disk: what is sparse there counts blocks as disks do.
        let cluster = Cluster::on_disk(case)?;
        let root = cluster.mount();
        let source = root.join("source");
        let file = open_new(&source)?;
        for at in [0, 20 * MIB, 40 * MIB - 4096] {
            file.write_all_at(&[9; 4096], at).at(&source)?;
        }
        // Still queued, and never reported as a hole.
        file.write_all_at(&[8; 4096], 30 * MIB).at(&source)?;
        ensure!(rustix::fs::seek(&file, SeekFrom::Data(21 * MIB)) == Ok(30 * MIB), "what is queued is data");
        ensure!(rustix::fs::seek(&file, SeekFrom::Hole(30 * MIB)) == Ok(30 * MIB + 4096));
        for beyond in [40 * MIB, 41 * MIB] {
            ensure!(rustix::fs::seek(&file, SeekFrom::Data(beyond)) == Err(Errno::NXIO), "data beyond the end");
            ensure!(rustix::fs::seek(&file, SeekFrom::Hole(beyond)) == Err(Errno::NXIO), "a hole beyond the end");
        }
        let zeros = root.join("zeros");
        fs::write(&zeros, vec![0; 8 << 20]).at(&zeros)?;
        let lines = "cd \"$1\" && cp --sparse=always source always && cp --sparse=auto source auto && \
                     cp --sparse=always zeros nothing && mkdir t && tar -cSf t.tar source && tar -xSf t.tar -C t && \
                     for copy in always auto t/source; do cmp source $copy || exit 1; done; cmp zeros nothing";
        shell(lines, &[&root])?.ok()?;
        for (name, most) in [("source", MIB), ("always", MIB), ("auto", MIB), ("nothing", 65_536), ("t/source", MIB)] {
            let path = on_brick(cluster.bricks(), name)?;
            File::open(&path).and_then(|file| file.sync_all()).at(&path)?;
            let meta = fs::metadata(&path).at(&path)?;
            ensure!(meta.blocks() * 512 <= most, "{name} takes {} bytes of its brick", meta.blocks() * 512);
        }
        let tar = fs::metadata(root.join("t.tar")).at(root)?.len();
        ensure!(tar < MIB, "tar has found no holes: {tar} bytes");
        Ok(())
    });
}

/// Capabilities for everybody to read sockets, as setcap(8) writes them.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Changes of a file that may take its capabilities and setuid bits away, as lines of shell on `$1`.
const CHANGES: [(&str, &str); 13] = [
    ("write", "printf x | dd of=\"$1\" conv=notrunc status=none"),
    ("write with O_DIRECT", "dd if=/dev/zero of=\"$1\" bs=4096 count=1 oflag=direct conv=notrunc status=none"),
    ("append", "printf x >>\"$1\""),
    ("write with O_SYNC", "printf x | dd of=\"$1\" conv=notrunc oflag=sync status=none"),
    ("truncate", "truncate -s 3 \"$1\""),
    ("truncate to more", "truncate -s 9000 \"$1\""),
    ("open with O_TRUNC", ": >\"$1\""),
    ("chmod", "chmod u+r \"$1\""),
    ("touch", "touch \"$1\""),
    ("fallocate", "fallocate -l 100000 \"$1\""),
    ("punch a hole", "fallocate -p -o 0 -l 4096 \"$1\""),
    ("zero a range", "fallocate -z -o 0 -l 4096 \"$1\""),
    ("copy_file_range", "PATH=$PATH:/usr/sbin:/sbin; xfs_io -c \"copy_range -l 4096 $1.source\" \"$1\""),
];

#[test]
fn changes_of_data_take_setuid_bits_and_capabilities_as_on_ext4() {
    case(LOOP_MOUNT, |case| {
        let dir = case.in_memory()?;
        let disk = LoopFs::make(&dir, "ext4", Kind::Ext4, 64)?;
        let cluster = Cluster::in_memory(case)?;
        for user in [0, 1000] {
            for (number, (what, line)) in CHANGES.iter().chain(&[("chown", "chown 1000:1000 \"$1\"")]).enumerate() {
                if *what == "chown" && user != 0 {
                    continue;
                }
                let after = |root: &Path| -> anyhow::Result<(u32, bool)> {
                    let path = root.join(format!("file{user}-{number}"));
                    fs::write(&path, vec![b'a'; 8192]).at(&path)?;
                    let source = path.with_extension("source");
                    fs::write(&source, vec![b'b'; 8192]).at(&source)?;
                    std::os::unix::fs::chown(&path, Some(1000), Some(1000)).at(&path)?;
                    let mode = |mode| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode));
                    mode(0o6777).at(&path)?;
                    let empty = rustix::fs::XattrFlags::empty();
                    rustix::fs::setxattr(&path, "security.capability", CAPABILITY, empty).at(&path)?;
                    let line = line.replace("$1.source", &source.display().to_string());
                    let run = "setpriv --reuid \"$2\" --regid \"$2\" --clear-groups sh -c \"$3\" sh \"$1\"";
                    shell(run, &[&path, &user.to_string(), &line])?.ok()?;
                    let mut value = [0u8; 64];
                    let has = match rustix::fs::getxattr(&path, "security.capability", &mut value) {
                        Ok(_) => true,
                        Err(Errno::NODATA) => false,
                        Err(error) => return Err(error).at(&path),
                    };
                    Ok((fs::metadata(&path).at(&path)?.mode() & 0o7777, has))
                };
                fs::set_permissions(disk.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).at(disk.path())?;
                let (wanted, found) = (after(disk.path())?, after(cluster.mount())?);
                ensure!(
                    wanted == found,
                    "{what} by user {user}: mode {:o} and capability {}, on ext4 {:o} and {}",
                    found.0,
                    found.1,
                    wanted.0,
                    wanted.1
                );
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_mapped_is_shared_between_processes_or_private() {
    let needs: &[Need] = &[Need::Root, Need::Fuse, Need::Program("xfs_io")];
    case(needs, |case| {
        let cluster = Cluster::in_memory(case)?;
        for flags in [0, libc::O_DIRECT] {
            let path = cluster.mount().join(format!("mapped{flags}"));
            fs::write(&path, vec![b'a'; 16384]).at(&path)?;
            let file = File::options().read(true).write(true).custom_flags(flags).open(&path).at(&path)?;
            let mut shared = Mapping::of(&file, 16384, true).at(&path)?;
            let mut private = Mapping::of(&file, 16384, false).at(&path)?;
            ensure!((shared.get(4096), private.get(4096)) == (b'a', b'a'), "what is in the file");
            private.set(0, b'p');
            shared.set(8192, b's');
            // Another process maps the same file, writes, and sees what this one wrote.
            let line = "PATH=$PATH:/usr/sbin:/sbin; xfs_io -c 'mmap -rw 0 16k' -c 'mwrite -S 0x62 4096 4' \
                        -c 'mread -v 8192 4' \"$1\"";
            let said = shell(line, &[&path])?.ok()?;
            ensure!(said.contains("73 61 61 61"), "the other process sees {said}");
            ensure!((shared.get(4096), private.get(4096)) == (b'b', b'b'), "what another process wrote");
            ensure!((shared.get(0), private.get(0)) == (b'a', b'p'), "what is private is nobody else's");
            shared.sync().at(&path)?;
            let mut seen = [0; 16384];
            file.read_exact_at(&mut seen, 0).at(&path)?;
            ensure!((seen[0], seen[4096], seen[8192]) == (b'a', b'b', b's'), "what is in the file afterwards");
            drop((shared, private));
            let on_brick = fs::read(on_brick(cluster.bricks(), &format!("mapped{flags}"))?).at(&path)?;
            ensure!(on_brick == seen, "what is on the brick afterwards");
        }
        Ok(())
    });
}

/// Sets a file's times: accessed, modified. Its ctime is now.
fn set_times(path: &Path, accessed: i64, modified: i64) -> anyhow::Result<()> {
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).at(path)
}

fn read_cold(path: &Path) -> anyhow::Result<()> {
    // O_DIRECT: what the kernel has cached is no read of the brick.
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path);
    file.and_then(|mut file| file.read_exact(&mut [0; 100])).at(path)
}

#[test]
fn access_times_follow_the_volumes_option() {
    case(MOUNT, |case| {
        for in_memory in [true, false] {
            let cluster = if in_memory { Cluster::in_memory(case)? } else { Cluster::on_disk(case)? };
            for policy in ["relatime", "noatime", "strict"] {
                cluster.brickctl(&["volume", "set", VOLUME, "atime", policy])?.ok()?;
                check_policy(&cluster, policy).with_context(|| format!("{policy}, in memory: {in_memory}"))?;
            }
            cluster.brickctl(&["volume", "reset", VOLUME, "atime"])?.ok()?;
            check_policy(&cluster, "relatime").context("the default")?;
        }
        Ok(())
    });
}

fn check_policy(cluster: &Cluster, policy: &str) -> anyhow::Result<()> {
    let path = cluster.mount().join("file");
    fs::write(&path, vec![1; 1000]).at(&path)?;
    let accessed = || Ok::<_, anyhow::Error>(fs::metadata(&path).at(&path)?.atime());
    // Attributes may be a second old.
    let moves = |from: i64, what: &str| {
        eventually_ok(what, FRESH, || {
            ensure!(accessed()? != from, "it is still {from}");
            Ok(())
        })
    };
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let long_ago = now - 100 * 24 * 3600;
    // Older than the last change, which was in an earlier tick of the clock.
    set_times(&path, long_ago, long_ago + 5)?;
    wait_for_next_second(fs::metadata(&path).at(&path)?.ctime())?;
    read_cold(&path)?;
    if policy == "noatime" {
        stays(&path, long_ago)?;
    } else {
        moves(long_ago, "a first read shows")?;
    }
    // Younger than every change: the second read and those that follow, which the mount answers from the brick's file.
    let before = accessed()?;
    wait_for_next_second(before)?;
    (0..3).try_for_each(|_| read_cold(&path))?;
    if policy == "strict" {
        moves(before, "each read shows")?;
    } else {
        stays(&path, before)?;
    }
    fs::remove_file(&path).at(&path)
}

/// By the clock of access times, which is behind the other one by up to a tick.
fn wait_for_next_second(second: i64) -> anyhow::Result<()> {
    eventually_ok("the clock goes on", FRESH, || {
        ensure!(rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse).tv_sec > second);
        Ok(())
    })
}

/// The access time stays, also on a mount that has nothing cached: a stat of another name of the file asks the brick.
fn stays(path: &Path, wanted: i64) -> anyhow::Result<()> {
    let link = path.with_extension("link");
    fs::hard_link(path, &link).at(path)?;
    let found = fs::metadata(&link).at(&link)?.atime();
    fs::remove_file(&link).at(&link)?;
    ensure!(found == wanted, "the access time is {found}, not {wanted}");
    Ok(())
}
