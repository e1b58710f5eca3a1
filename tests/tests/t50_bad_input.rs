//! Bad input of operators and users: one clear line, the right exit code or errno, and nothing changed.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case};
use brickfs_tests::cluster::{Cluster, VOLUME, brick_argument};
use brickfs_tests::needs::MOUNT;
use brickfs_tests::run::{program, run, shell};
use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use rustix::io::Errno;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A cluster with one volume, and a directory beside it for further bricks.
struct Place {
    cluster: Cluster,
    dir: PathBuf,
}

/// Everything that a refused command must leave as it was.
type Snapshot = (Value, BTreeSet<PathBuf>);

impl Place {
    fn new(case: &Case) -> anyhow::Result<Place> {
        let (cluster, dir) = (Cluster::in_memory(case)?, case.in_memory()?);
        Ok(Place { cluster, dir })
    }

    fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let mut paths = BTreeSet::new();
        let mut waiting = vec![self.dir.clone(), self.cluster.dir().join("bricks")];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(&directory).at(&directory)? {
                let entry = entry.at(&directory)?;
                if entry.file_type().at(&directory)?.is_dir() {
                    waiting.push(entry.path());
                }
                paths.insert(entry.path());
            }
        }
        Ok((self.cluster.cluster_json()?, paths))
    }

    /// The command ends with this code and one line with all of `words`, and changes nothing.
    #[track_caller]
    fn refuses(&self, args: &[&str], code: i32, words: &[&str]) -> anyhow::Result<()> {
        let caller = std::panic::Location::caller();
        let before = self.snapshot()?;
        let line = self.cluster.brickctl(args)?.refused(code).with_context(|| format!("{caller}"))?;
        for word in words {
            ensure!(line.contains(word), "{caller}: the line lacks '{word}': {line}");
        }
        ensure!(line.starts_with("brickctl: "), "{caller}: {line}");
        ensure!(self.snapshot()? == before, "{caller}: {args:?} was refused and changed something");
        Ok(())
    }

    /// `volume create NAME` over this brick is refused; the line names the brick.
    #[track_caller]
    fn refuses_brick(&self, brick: &Path, words: &[&str]) -> anyhow::Result<()> {
        let (brick, other) = (brick_argument(brick), brick_argument(&self.dir.join("other")));
        // The good brick beside the bad one must not be made either.
        self.refuses(&["volume", "create", "v", &other, &brick], 1, words)
    }
}

#[test]
fn bricks_that_cannot_be_are_refused() {
    case(MOUNT, |case| {
        let place = Place::new(case)?;
        let (dir, used) = (&place.dir, place.cluster.bricks()[0].clone());
        let text = |path: &Path| path.display().to_string();
        place.refuses_brick(&used, &["used", VOLUME])?;
        place.refuses_brick(&used.join("inside"), &["in brick", VOLUME])?;
        place.refuses_brick(&used.join(".brickfs/inside"), &[])?;
        place.refuses_brick(&place.cluster.dir().join("bricks"), &["above", VOLUME])?;
        place.refuses_brick(&dir.join("other"), &["twice"])?;
        place.refuses_brick(&dir.join("other/inside"), &[])?;
        place.refuses_brick(&dir.join("none/brick"), &["parent", &text(&dir.join("none"))])?;
        fs::write(dir.join("file"), b"").at(dir)?;
        place.refuses_brick(&dir.join("file"), &["directory", &text(&dir.join("file"))])?;
        place.refuses_brick(&dir.join("file/brick"), &["directory"])?;
        fs::create_dir_all(dir.join("full/something")).at(dir)?;
        place.refuses_brick(&dir.join("full"), &["empty", &text(&dir.join("full"))])?;
        std::os::unix::fs::symlink(&used, dir.join("link")).at(dir)?;
        place.refuses_brick(&dir.join("link"), &[])?;
        place.refuses_brick(&dir.join("link/inside"), &[])?;
        place.refuses_brick(place.cluster.mount(), &[])?;
        place.refuses_brick(Path::new("/proc/brick"), &[])?;
        let create = |brick: &str, words: &[&str]| place.refuses(&["volume", "create", "v", brick], 1, words);
        create("nonsense", &["nonsense", "NODE:/PATH"])?;
        create("node-1:relative", &["relative", "absolute"])?;
        create(&format!("node-9:{}", text(&dir.join("b"))), &["node-9"])?;
        create(&format!("node-1:{}/../b", text(dir)), &["'..'"])?;
        create(&format!("node-1:{}/a\nb", text(dir)), &[])?;
        create("node-1:/", &[])?;
        create(&format!("node-1:{}/{}", text(dir), "x".repeat(256)), &[])
    });
}

#[test]
fn a_brick_of_a_deleted_volume_is_no_empty_directory() {
    case(MOUNT, |case| {
        let place = Place::new(case)?;
        let bricks = [place.dir.join("b1"), place.dir.join("b2")];
        place.cluster.make_volume("old", &bricks)?.ok()?;
        place.cluster.brickctl(&["volume", "delete", "old", "-y"])?.ok()?;
        ensure!(bricks[0].join(".brickfs/format").exists(), "deleting a volume empties its bricks");
        place.refuses_brick(&bricks[0], &["b1"])?;
        place.refuses_brick(&bricks[0].join("inside"), &[])
    });
}

#[test]
fn the_root_file_system_takes_bricks_only_by_force() {
    case(MOUNT, |case| {
        let place = Place::new(case)?;
        let disk = case.on_disk()?;
        let is_root = rustix::fs::stat("/").at("/")?.st_dev == rustix::fs::stat(&disk).at(&disk)?.st_dev;
        if !is_root {
            brickfs_tests::case::say(&format!("SKIPPED {}: /var/tmp is no part of /", case.name()));
            return Ok(());
        }
        let brick = disk.join("brick");
        place.refuses(&["volume", "create", "v", &brick_argument(&brick)], 1, &["root file system", "--force"])?;
        ensure!(!brick.exists(), "a refused brick is made");
        place.cluster.make_volume("v", &[brick])?.ok().map(|_| ())
    });
}

#[test]
fn volumes_that_cannot_be_are_refused() {
    case(MOUNT, |case| {
        let place = Place::new(case)?;
        let bricks: Vec<String> =
            (1..=65).map(|number| brick_argument(&place.dir.join(format!("b{number}")))).collect();
        let create = |options: &[&str], count: usize, code: i32, words: &[&str]| {
            let mut args = vec!["volume", "create"];
            args.extend(options);
            args.extend(bricks[..count].iter().map(String::as_str));
            place.refuses(&args, code, words)
        };
        create(&["v", "--replica", "2"], 3, 1, &["multiple", "3"])?;
        create(&["v", "--stripe", "2"], 3, 1, &["multiple"])?;
        create(&["v", "--replica", "2", "--stripe", "2"], 6, 1, &["multiple"])?;
        create(&["v", "--replica", "0"], 2, 1, &["--replica"])?;
        create(&["v", "--stripe", "0"], 2, 1, &["--stripe"])?;
        create(&["v"], 65, 1, &["64"])?;
        create(&[VOLUME], 2, 1, &["exists"])?;
        for name in ["a/b", "..", "", "a b", ".brickfs", "a\nb", "ä", &"x".repeat(65)] {
            create(&["--", name], 2, 1, &["volume"])?;
        }
        Ok(())
    });
}

#[test]
fn unknown_volumes_and_options_are_refused() {
    case(MOUNT, |case| {
        let place = Place::new(case)?;
        for command in ["info", "start", "status", "get", "reset"] {
            place.refuses(&["volume", command, "nope"], 1, &["nope"])?;
        }
        place.refuses(&["volume", "stop", "nope", "-y"], 1, &["nope"])?;
        place.refuses(&["volume", "delete", "nope", "-y"], 1, &["nope"])?;
        place.refuses(&["volume", "set", "nope", "comment", "x"], 1, &["nope"])?;
        place.refuses(&["volume", "get", VOLUME, "colour"], 1, &["colour", "reserve"])?;
        place.refuses(&["volume", "reset", VOLUME, "colour"], 1, &["colour"])?;
        place.refuses(&["volume", "start", VOLUME], 1, &[VOLUME])?;
        place.refuses(&["volume", "delete", VOLUME, "-y"], 1, &["stop"])?;
        // Without a terminal and without -y nobody said yes.
        place.refuses(&["volume", "stop", VOLUME], 2, &["-y"])?;
        let bad = [
            ("colour", "red", "colour"),
            ("read-only", "perhaps", "read-only"),
            ("atime", "never", "atime"),
            ("reserve", "51%", "reserve"),
            ("reserve", "-1", "reserve"),
            ("reserve", "many", "reserve"),
            ("comment", "two\nlines", "comment"),
            ("comment", &"x".repeat(257), "comment"),
        ];
        for (key, value, word) in bad {
            place.refuses(&["volume", "set", VOLUME, "--", key, value], 1, &[word])?;
        }
        Ok(())
    });
}

#[test]
fn commands_without_a_server_or_a_playground_say_so() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let brickctl = |args: &[&str]| run(Command::new(program("brickctl")?).args(args));
        let text = dir.display().to_string();
        let line = brickctl(&["--socket", &format!("{text}/none.sock"), "volume", "list"])?.refused(1)?;
        ensure!(line.contains("none.sock"), "{line}");
        for command in ["status", "remount", "stop"] {
            let line = brickctl(&["--dir", &text, "playground", command])?.refused(1)?;
            ensure!(line.contains(&text), "{line}");
        }
        let start = ["--dir", &text, "playground", "start", "--no-mount"];
        for (option, value) in [("--bricks", "0"), ("--bricks", "65"), ("--volume", "a/b"), ("--replica", "3")] {
            let ran = brickctl(&[&start[..], &[option, value]].concat())?;
            let code = ran.code.context("killed")?;
            ensure!(code == 1 || code == 2, "{option} {value} ended with {code}");
            ran.refused(code)?;
            let left: Vec<_> = fs::read_dir(&dir).at(&dir)?.flatten().map(|entry| entry.path()).collect();
            ensure!(left.is_empty(), "a playground that did not start left {left:?}");
        }
        let cluster = Cluster::playground(&dir, 1, &[])?;
        let state = cluster.dir().display().to_string();
        let line = brickctl(&["--dir", &state, "playground", "start"])?.refused(1)?;
        ensure!(line.contains("running"), "{line}");
        ensure!(cluster.status()?["healthy"] == true, "the running playground is hurt");
        Ok(())
    });
}

#[test]
fn names_that_cannot_be_are_refused_by_the_mount() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let root = cluster.mount();
        let file = root.join("file");
        fs::write(&file, b"content").at(&file)?;
        fs::create_dir(root.join("dir")).at(root)?;
        for (name, errno) in [(".brickfs".to_owned(), Errno::PERM), ("x".repeat(256), Errno::NAMETOOLONG)] {
            let path = root.join(&name);
            let tries: [(&str, Result<(), Errno>); 7] = [
                ("create", rustix::fs::open(&path, rustix::fs::OFlags::CREATE, Mode::RWXU).map(drop)),
                ("mkdir", rustix::fs::mkdir(&path, Mode::RWXU)),
                ("symlink", rustix::fs::symlink("target", &path)),
                ("mknod", rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0)),
                ("link", rustix::fs::link(&file, &path)),
                ("rename", rustix::fs::rename(&file, &path)),
                ("rename of a directory", rustix::fs::rename(root.join("dir"), &path)),
            ];
            for (what, result) in tries {
                ensure!(result == Err(errno), "{what} of {name}: {result:?}");
            }
            let exchanged = rustix::fs::renameat_with(CWD, &file, CWD, &path, RenameFlags::EXCHANGE);
            ensure!(exchanged.is_err(), "EXCHANGE with {name}");
            ensure!(fs::symlink_metadata(&path).is_err() && fs::read_dir(&path).is_err(), "{name} can be looked at");
        }
        // Elsewhere than in the root the name is like any other.
        fs::create_dir(root.join("dir/.brickfs")).at(root)?;
        fs::rename(root.join("dir/.brickfs"), root.join("dir/other")).at(root)?;
        let mut listed: Vec<_> = fs::read_dir(root).at(root)?.flatten().map(|entry| entry.file_name()).collect();
        listed.sort();
        ensure!(listed == ["dir", "file"], "the root lists {listed:?}");
        ensure!(fs::read(&file).at(&file)? == b"content");
        shell("rm -rf \"$1\"/*", &[&root])?.ok().map(|_| ())
    });
}

#[test]
fn a_read_only_volume_refuses_every_change() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let (root, file) = (cluster.mount(), cluster.mount().join("file"));
        fs::write(&file, b"content").at(&file)?;
        cluster.brickctl(&["volume", "set", VOLUME, "read-only", "on"])?.ok()?;
        cluster.remount()?;
        let is_erofs = |what: &str, result: Result<(), Errno>| {
            ensure!(result == Err(Errno::ROFS), "{what}: {result:?}");
            Ok(())
        };
        is_erofs("create", rustix::fs::open(root.join("n"), rustix::fs::OFlags::CREATE, Mode::RWXU).map(drop))?;
        is_erofs("open to write", rustix::fs::open(&file, rustix::fs::OFlags::WRONLY, Mode::empty()).map(drop))?;
        is_erofs("mkdir", rustix::fs::mkdir(root.join("n"), Mode::RWXU))?;
        is_erofs("unlink", rustix::fs::unlink(&file))?;
        is_erofs("rename", rustix::fs::rename(&file, root.join("n")))?;
        is_erofs("chmod", rustix::fs::chmod(&file, Mode::RWXU))?;
        let flags = rustix::fs::XattrFlags::empty();
        is_erofs("setxattr", rustix::fs::setxattr(&file, "trusted.x", b"x", flags))?;
        ensure!(fs::read(&file).at(&file)? == b"content");
        cluster.brickctl(&["volume", "reset", VOLUME, "read-only"])?.ok()?;
        cluster.remount()?;
        File::create(root.join("n")).at(root).map(drop)
    });
}
