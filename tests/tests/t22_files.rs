//! Files beyond what pjdfstest asks: appends from two mounts, open files without a name, holes, special files, the
//! flags of rename, names as bytes, mappings, and all of it together as an overlay's upper layer.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks::{self, Bricks};
use brickfs_tests::case::case;
use brickfs_tests::cluster::Cluster;
use brickfs_tests::eventually::eventually;
use brickfs_tests::needs::{MOUNT, Need};
use brickfs_tests::run::shell;
use brickfs_tests::tree::{Detail, Tree};
use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// So many names fall on four bricks.
const SPREAD: usize = 16;

fn errno_of<T>(result: Result<T, Errno>) -> Option<Errno> {
    result.err()
}

fn errno_of_io<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn appends_of_any_length_from_two_mounts_do_not_overlap() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let second = cluster.second_mount("second", &[])?;
        let paths = [cluster.mount().join("log"), second.path().join("log")];
        fs::write(&paths[0], b"").at(&paths[0])?;
        let append = |who: usize| -> anyhow::Result<()> {
            let mut file = File::options().append(true).open(&paths[who]).at(&paths[who])?;
            for count in 0..300usize {
                // From a few bytes to more than one request of the kernel.
                let length = 1 + (count * 7919) % if count % 20 == 0 { 300_000 } else { 5000 };
                let line = format!("{who} {length} {}\n", char::from(b'a' + who as u8).to_string().repeat(length));
                std::io::Write::write_all(&mut file, line.as_bytes()).at(&paths[who])?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| append(1));
            append(0)?;
            other.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?
        })?;
        cluster.remount()?;
        let text = fs::read_to_string(&paths[0]).at(&paths[0])?;
        let mut lines = 0;
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let is_whole = words.len() == 3 && words[1].parse() == Ok(words[2].len());
            let letter = if words[0] == "0" { "a" } else { "b" };
            ensure!(
                is_whole && words[2].trim_matches(letter.chars().next().unwrap()).is_empty(),
                "torn at line {lines}"
            );
            lines += 1;
        }
        ensure!(lines == 600, "{lines} lines");
        second.unmount()
    });
}

/// Also by an open that reads and truncates: the kernel asks for that before it looks whether somebody runs the file,
/// if a file system says that it truncates in the open.
#[test]
fn a_program_that_runs_is_not_cut_to_nothing() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let (program, source) = (cluster.mount().join("program"), Path::new("/bin/sleep"));
        fs::copy(source, &program).at(&program)?;
        let mut running = std::process::Command::new(&program).arg("60").spawn().at(&program)?;
        let opens = [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDONLY | libc::O_TRUNC];
        let refused: Vec<Option<Errno>> = opens
            .iter()
            .map(|flags| {
                let flags = rustix::fs::OFlags::from_bits_retain(flags.cast_unsigned());
                errno_of(rustix::fs::open(&program, flags, Mode::empty()))
            })
            .collect();
        let same = fs::read(&program).at(&program)? == fs::read(source).at(source)?;
        let ended = running.try_wait()?;
        running.kill().ok();
        running.wait()?;
        ensure!(refused == [Some(Errno::TXTBSY); 4] && same && ended.is_none(), "{refused:?} {same} {ended:?}");
        // Once nobody runs it, it is cut as any file.
        File::options().write(true).truncate(true).open(&program).at(&program)?;
        ensure!(fs::metadata(&program).at(&program)?.len() == 0);
        Ok(())
    });
}

#[test]
fn an_open_file_works_on_after_its_name_is_gone() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let root = cluster.mount();
        for number in 0..SPREAD {
            let (path, other) = (root.join(format!("f{number}")), root.join(format!("o{number}")));
            fs::write(&path, b"one").at(&path)?;
            fs::write(&other, b"other").at(&other)?;
            let file = File::options().read(true).write(true).open(&path).at(&path)?;
            if number % 2 == 0 {
                fs::remove_file(&path).at(&path)?;
            } else {
                fs::rename(&other, &path).at(&other)?;
            }
            ensure!(file.metadata().at(&path)?.nlink() == 0, "links of a file without a name");
            file.write_all_at(b"more", 3).at(&path)?;
            let mut content = [0; 7];
            file.read_exact_at(&mut content, 0).at(&path)?;
            ensure!(&content == b"onemore");
            file.set_len(2).at(&path)?;
            file.set_permissions(fs::Permissions::from_mode(0o600)).at(&path)?;
            file.sync_all().at(&path)?;
            ensure!(file.metadata().at(&path)?.len() == 2);
            ensure!(number % 2 == 0 || fs::read(&path).at(&path)? == b"other", "the new name gives the old file");
        }
        let dir = root.join("dir");
        fs::create_dir(&dir).at(&dir)?;
        let open_dir = File::open(&dir).at(&dir)?;
        fs::remove_dir(&dir).at(&dir)?;
        ensure!(open_dir.metadata().at(&dir)?.is_dir());
        let made = rustix::fs::openat(&open_dir, "x", rustix::fs::OFlags::CREATE, Mode::RWXU);
        ensure!(errno_of(made) == Some(Errno::NOENT), "a file can be made in a removed directory");
        Ok(())
    });
}

#[test]
fn the_space_of_a_removed_file_is_free_at_once() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let path = cluster.mount().join("file");
        for kind in ["unlink", "replace", "last close"] {
            fs::write(&path, vec![7; 1 << 20]).at(&path)?;
            let open = (kind == "last close").then(|| File::open(&path)).transpose().at(&path)?;
            if kind == "replace" {
                fs::write(cluster.mount().join("new"), b"").at(&path)?;
                fs::rename(cluster.mount().join("new"), &path).at(&path)?;
            }
            fs::remove_file(&path).at(&path)?;
            drop(open);
            let is_empty = || Bricks::look(cluster.bricks()).is_ok_and(|seen| seen.check_empty().is_ok());
            eventually(kind, Duration::from_secs(2), is_empty)?;
        }
        Ok(())
    });
}

#[test]
fn sparse_files_have_holes() {
    case(MOUNT, |case| {
        let cluster = Cluster::on_disk(case)?;
        let path = cluster.mount().join("sparse");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).at(&path)?;
        let (tib, mib) = (1u64 << 40, 1u64 << 20);
        file.write_all_at(b"start", 0).at(&path)?;
        file.write_all_at(b"end", tib).at(&path)?;
        file.sync_all().at(&path)?;
        let meta = file.metadata().at(&path)?;
        ensure!(meta.len() == tib + 3 && meta.blocks() * 512 < mib, "{} bytes, {} blocks", meta.len(), meta.blocks());
        let mut middle = [1; 4096];
        file.read_exact_at(&mut middle, tib / 2).at(&path)?;
        ensure!(middle == [0; 4096], "a hole does not read as zeros");
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).at(&path)?;
        let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(hole)).at(&path)?;
        ensure!(hole < mib && data > tib - mib && data <= tib, "hole at {hole}, data at {data}");
        file.set_len(tib / 2).at(&path)?;
        ensure!(errno_of(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(hole))) == Some(Errno::NXIO));
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, mib).at(&path)?;
        ensure!(file.metadata().at(&path)?.blocks() * 512 >= mib, "fallocate took no space");
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 0, mib).at(&path)?;
        file.read_exact_at(&mut middle, 0).at(&path)?;
        ensure!(middle == [0; 4096] && file.metadata().at(&path)?.len() == tib / 2, "punching a hole");
        Ok(())
    });
}

#[test]
fn special_files_are_records_and_work() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let root = cluster.mount();
        for number in 0..SPREAD as u64 {
            let make = |name: &str, kind: FileType, device: u64| {
                let path = root.join(format!("{name}{number}"));
                rustix::fs::mknodat(CWD, &path, kind, Mode::from(0o600), device).at(&path)
            };
            make("fifo", FileType::Fifo, 0)?;
            make("socket", FileType::Socket, 0)?;
            make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3))?;
            make("block", FileType::BlockDevice, rustix::fs::makedev(259, 1_048_575))?;
            make("whiteout", FileType::CharacterDevice, 0)?;
            let (from, to) = (root.join(format!("null{number}")), root.join(format!("moved{number}")));
            fs::rename(&from, &to).at(&from)?;
            fs::hard_link(&to, &from).at(&to)?;
        }
        let warm = Tree::of(root, Detail::Everything)?;
        cluster.remount()?;
        warm.must_equal(&Tree::of(root, Detail::Everything)?)?;
        check_special(root)?;
        // On the bricks there is nothing that the kernel would open as a device.
        for brick in cluster.bricks() {
            for entry in fs::read_dir(brick).at(brick)? {
                let kind = entry.at(brick)?.file_type().at(brick)?;
                ensure!(!kind.is_char_device() && !kind.is_block_device() && !kind.is_fifo() && !kind.is_socket());
            }
        }
        Ok(())
    });
}

fn check_special(root: &Path) -> anyhow::Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(root).at(root)? {
        let entry = entry.at(root)?;
        let (path, listed) = (entry.path(), entry.file_type().at(root)?);
        let meta = fs::symlink_metadata(&path).at(&path)?;
        ensure!(listed == meta.file_type(), "{path:?} is listed as {listed:?}");
        let name = entry.file_name().to_string_lossy().trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let (is_right, wanted) = match name.as_str() {
            "fifo" => (listed.is_fifo(), (0, 0)),
            "socket" => (listed.is_socket(), (0, 0)),
            "block" => (listed.is_block_device(), (259, 1_048_575)),
            "whiteout" => (listed.is_char_device(), (0, 0)),
            _ => (listed.is_char_device() && meta.nlink() == 2, (1, 3)),
        };
        ensure!(is_right && device == wanted, "{path:?} is {listed:?} {device:?}, {} links", meta.nlink());
        count += 1;
    }
    ensure!(count == 6 * SPREAD, "{count} special files");
    fs::write(root.join("moved0"), b"into /dev/null").at(root)?;
    let line = "cd \"$1\" && (cat fifo0 & echo through >fifo0; wait)";
    ensure!(shell(line, &[&root])?.ok()? == "through\n", "a fifo gives nothing");
    let path = root.join("listening");
    let listener = std::os::unix::net::UnixListener::bind(&path).at(&path)?;
    std::os::unix::net::UnixStream::connect(&path).at(&path)?;
    drop(listener);
    fs::remove_file(&path).at(&path)
}

#[test]
fn the_flags_of_rename_do_what_they_say() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let root = cluster.mount();
        for number in 0..SPREAD {
            let path = |name: &str| root.join(format!("{name}{number}"));
            let (a, b, dir, other) = (path("a"), path("b"), path("dir"), path("other"));
            let rename = |from: &Path, to: &Path, flags| rustix::fs::renameat_with(CWD, from, CWD, to, flags);
            fs::write(&a, b"a").at(&a)?;
            fs::write(&b, b"b").at(&b)?;
            fs::create_dir_all(dir.join("sub")).at(&dir)?;
            fs::create_dir(&other).at(&other)?;
            ensure!(errno_of(rename(&a, &b, RenameFlags::NOREPLACE)) == Some(Errno::EXIST), "NOREPLACE replaces");
            rename(&a, &path("c"), RenameFlags::NOREPLACE).at(&a)?;
            rename(&path("c"), &a, RenameFlags::empty()).at(&a)?;
            rename(&a, &b, RenameFlags::EXCHANGE).at(&a)?;
            ensure!(fs::read(&a).at(&a)? == b"b" && fs::read(&b).at(&b)? == b"a", "EXCHANGE of files");
            rename(&a, &dir, RenameFlags::EXCHANGE).at(&a)?;
            ensure!(fs::read(&dir).at(&dir)? == b"b" && a.join("sub").is_dir(), "EXCHANGE of file and directory");
            rename(&a, &other, RenameFlags::EXCHANGE).at(&a)?;
            ensure!(other.join("sub").is_dir() && fs::read_dir(&a).at(&a)?.next().is_none(), "EXCHANGE of directories");
            ensure!(errno_of(rename(&a, &path("none"), RenameFlags::EXCHANGE)) == Some(Errno::NOENT));
            ensure!(errno_of(rename(&other, &other.join("sub"), RenameFlags::EXCHANGE)) == Some(Errno::INVAL));
            ensure!(errno_of(rename(&other, &other.join("sub/x"), RenameFlags::empty())) == Some(Errno::INVAL));
            rename(&b, &path("d"), RenameFlags::WHITEOUT).at(&b)?;
            let left = fs::symlink_metadata(&b).at(&b)?;
            ensure!(left.file_type().is_char_device() && left.rdev() == 0, "WHITEOUT leaves {:?}", left.file_type());
            ensure!(fs::read(path("d")).at(path("d"))? == b"a", "WHITEOUT moves the file");
            let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
            ensure!(errno_of(rename(&a, &other, both)) == Some(Errno::INVAL), "NOREPLACE with EXCHANGE");
            ensure!(errno_of(rename(&a, &other, RenameFlags::from_bits_retain(64))) == Some(Errno::INVAL));
        }
        let warm = Tree::of(root, Detail::Everything)?;
        cluster.remount()?;
        warm.must_equal(&Tree::of(root, Detail::Everything)?)?;
        shell("rm -rf \"$1\"/*", &[&root])?.ok()?;
        bricks::emptied(cluster.bricks())
    });
}

#[test]
fn names_are_bytes() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let root = cluster.mount();
        let long = [b'x'; 255];
        let composed = "\u{e9}".as_bytes();
        let decomposed = "e\u{301}".as_bytes();
        let odd: [&[u8]; 14] = [
            b"\xff\xfe",
            b"new\nline",
            b" ",
            b"\\",
            b"a",
            b"A",
            b"\x01",
            b"-rf",
            b"*",
            b"..x",
            b"...",
            composed,
            decomposed,
            &long,
        ];
        for name in odd {
            let name = OsString::from_vec(name.to_vec());
            fs::write(root.join(&name), name.as_encoded_bytes()).at(root)?;
            fs::create_dir(root.join("d")).at(root)?;
            fs::rename(root.join(&name), root.join("d").join(&name)).at(root)?;
            fs::rename(root.join("d").join(&name), root.join(&name)).at(root)?;
            fs::remove_dir(root.join("d")).at(root)?;
        }
        cluster.remount()?;
        let mut listed = Vec::new();
        for entry in fs::read_dir(root).at(root)? {
            let entry = entry.at(root)?;
            ensure!(fs::read(entry.path()).at(entry.path())? == entry.file_name().as_encoded_bytes());
            listed.push(entry.file_name().into_vec());
        }
        let mut wanted: Vec<Vec<u8>> = odd.iter().map(|name| name.to_vec()).collect();
        listed.sort();
        wanted.sort();
        ensure!(listed == wanted, "listed: {listed:?}");
        let too_long = root.join("x".repeat(256));
        ensure!(errno_of_io(File::create(&too_long)) == Some(libc::ENAMETOOLONG));
        ensure!(errno_of_io(fs::rename(root.join("a"), &too_long)) == Some(libc::ENAMETOOLONG));
        Ok(())
    });
}

#[test]
fn mapped_files_are_written_and_read() {
    let needs: &[Need] = &[Need::Root, Need::Fuse, Need::Program("xfs_io")];
    case(needs, |case| {
        let cluster = Cluster::in_memory(case)?;
        let path = cluster.mount().join("mapped");
        let line = "PATH=$PATH:/usr/sbin:/sbin; xfs_io -f -c 'truncate 300k' -c 'mmap -rw 0 300k' \
                    -c 'mwrite -S 0x61 1k 298k' -c 'msync -s' -c 'munmap' \"$1\"";
        shell(line, &[&path])?.ok()?;
        let second = cluster.second_mount("second", &[])?;
        let content = fs::read(second.path().join("mapped")).at(&path)?;
        let wanted: Vec<u8> =
            (0..300 << 10).map(|i| if (1 << 10..299 << 10).contains(&i) { b'a' } else { 0 }).collect();
        ensure!(content == wanted, "what was written through a mapping is not there");
        second.unmount()
    });
}

/// Writes `rounds` times through `writer`, and looks each time through `reader`, which the kernel keeps pages
/// for, while another thread has them read again and again. The page at the end is where both meet.
fn write_beside_readers(path: &Path, writer: &File, rounds: usize) -> anyhow::Result<()> {
    let reader = File::open(path).at(path)?;
    let end = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let busy_reader = || -> anyhow::Result<()> {
        let mut page = [0; 4096];
        while !is_over.load(Ordering::Relaxed) {
            // A little before and behind the end.
            let offset = end.load(Ordering::Relaxed).saturating_sub(64);
            reader.read_at(&mut page[..128], offset).at(path)?;
        }
        Ok(())
    };
    let write = || -> anyhow::Result<()> {
        for round in 0..rounds {
            let record = format!("{round:0width$}\n", width = 8 + round * 7919 % 200);
            let offset = end.load(Ordering::Relaxed);
            writer.write_all_at(record.as_bytes(), offset).at(path)?;
            let mut seen = vec![0; record.len()];
            reader.read_exact_at(&mut seen, offset).at(path)?;
            ensure!(seen == record.as_bytes(), "round {round}: something else than what was written at {offset}");
            end.store(offset + record.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let busy = scope.spawn(busy_reader);
        let written = write();
        is_over.store(true, Ordering::Relaxed);
        written.and(busy.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?)
    })
}

#[test]
fn what_is_written_shows_at_once_in_what_others_have_open() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let path = cluster.mount().join("file");
        for (how, options) in [
            ("written only", File::options().write(true)),
            ("appended", File::options().append(true)),
            ("read and written", File::options().read(true).write(true)),
        ] {
            let writer = options.create(true).open(&path).at(&path)?;
            write_beside_readers(&path, &writer, 3000).with_context(|| how.to_owned())?;
            fs::remove_file(&path).at(&path)?;
        }
        Ok(())
    });
}

#[test]
fn a_mount_can_be_the_upper_layer_of_an_overlay() {
    case(MOUNT, |case| {
        let filesystems = fs::read_to_string("/proc/filesystems").at("/proc/filesystems")?;
        if !filesystems.contains("overlay") && shell("modprobe overlay", &[])?.code != Some(0) {
            brickfs_tests::case::say(&format!("SKIPPED {}: the kernel has no overlayfs", case.name()));
            return Ok(());
        }
        let cluster = Cluster::on_disk(case)?;
        let dir = case.in_memory()?;
        let (lower, merged) = (dir.join("lower"), dir.join("merged"));
        let (upper, work) = (cluster.mount().join("upper"), cluster.mount().join("work"));
        for path in [&lower, &merged, &upper, &work, &lower.join("dir"), &lower.join("opaque")] {
            fs::create_dir(path).at(path)?;
        }
        for name in ["a", "b", "dir/c", "opaque/d"] {
            fs::write(lower.join(name), name).at(&lower)?;
        }
        let line = "mount -t overlay overlay -o lowerdir=\"$1\",upperdir=\"$2\",workdir=\"$3\" \"$4\"";
        shell(line, &[&lower, &upper, &work, &merged])?.ok()?;
        fs::remove_file(merged.join("a")).at(&merged)?;
        fs::write(merged.join("b"), b"changed").at(&merged)?;
        fs::remove_dir_all(merged.join("opaque")).at(&merged)?;
        fs::create_dir(merged.join("opaque")).at(&merged)?;
        fs::rename(merged.join("dir/c"), merged.join("moved")).at(&merged)?;
        let warm = Tree::of(&merged, Detail::Contents)?;
        shell("umount \"$1\"", &[&merged])?.ok()?;
        cluster.remount()?;
        ensure!(fs::symlink_metadata(upper.join("a")).at(&upper)?.file_type().is_char_device(), "no whiteout of a");
        shell(line, &[&lower, &upper, &work, &merged])?.ok()?;
        warm.must_equal(&Tree::of(&merged, Detail::Contents)?)?;
        let names: Vec<&Path> = warm.0.keys().map(PathBuf::as_path).collect();
        ensure!(names == ["b", "dir", "moved", "opaque"].map(Path::new), "the overlay has {names:?}");
        shell("umount \"$1\"", &[&merged])?.ok().map(|_| ())
    });
}
