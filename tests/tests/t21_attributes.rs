//! Attributes beyond what pjdfstest asks: extended attributes, ACLs, times, groups. So many names are used that they
//! fall on all bricks, and what matters is looked at again on a cold mount.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::case;
use brickfs_tests::cluster::Cluster;
use brickfs_tests::needs::{MOUNT, Need};
use brickfs_tests::run::{Ran, run, shell};
use brickfs_tests::tree::xattrs_of;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// So many names fall on four bricks.
const SPREAD: usize = 16;
/// The users that every Debian has.
const DAEMON: u32 = 1;
const NOBODY: u32 = 65534;

fn errno_of<T>(result: Result<T, Errno>) -> Option<Errno> {
    result.err()
}

/// Runs a line of shell as another user.
fn shell_as(uid: u32, line: &str, path: &Path) -> anyhow::Result<Ran> {
    run(Command::new("sh").args(["-c", line, "sh"]).arg(path).uid(uid).gid(uid).current_dir("/"))
}

fn chmod(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at(path)
}

#[test]
fn extended_attributes_of_all_kinds_are_kept() {
    case(MOUNT, |case| {
        let cluster = Cluster::on_disk(case)?;
        let root = cluster.mount();
        for number in 0..SPREAD {
            let path = root.join(format!("f{number}"));
            File::create(&path).at(&path)?;
            set_and_change_xattrs(&path)?;
            fs::rename(&path, root.join(format!("g{number}"))).at(&path)?;
        }
        fs::create_dir(root.join("dir")).at(root)?;
        set_and_change_xattrs(&root.join("dir"))?;
        cluster.remount()?;
        for name in (0..SPREAD).map(|number| format!("g{number}")).chain(["dir".to_owned()]) {
            let found = xattrs_of(&root.join(&name))?;
            let names: Vec<&str> = found.keys().map(String::as_str).collect();
            ensure!(names == ["security.brick", "trusted.brick", "user.brick", "user.empty"], "{name} has {names:?}");
            ensure!(found["user.brick"] == b"second" && found["user.empty"].is_empty(), "{name}: {found:?}");
        }
        Ok(())
    });
}

fn set_and_change_xattrs(path: &Path) -> anyhow::Result<()> {
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(path, name, value, flags);
    for name in ["user.brick", "trusted.brick", "security.brick", "user.gone"] {
        set(name, b"first", XattrFlags::CREATE).at(path)?;
    }
    ensure!(errno_of(set("user.brick", b"x", XattrFlags::CREATE)) == Some(Errno::EXIST));
    ensure!(errno_of(set("user.none", b"x", XattrFlags::REPLACE)) == Some(Errno::NODATA));
    set("user.brick", b"second", XattrFlags::REPLACE).at(path)?;
    set("user.empty", b"", XattrFlags::empty()).at(path)?;
    rustix::fs::removexattr(path, "user.gone").at(path)?;
    ensure!(errno_of(rustix::fs::removexattr(path, "user.gone")) == Some(Errno::NODATA));
    let mut short = [0; 3];
    ensure!(errno_of(rustix::fs::getxattr(path, "user.brick", &mut short)) == Some(Errno::RANGE));
    let long_name = format!("user.{}", "n".repeat(251));
    ensure!(errno_of(set(&long_name, b"x", XattrFlags::empty())) == Some(Errno::RANGE), "a name of 256 bytes");
    let too_big = errno_of(set("user.big", &vec![0; (64 << 10) + 1], XattrFlags::empty()));
    ensure!(too_big == Some(Errno::TOOBIG), "a value of 64 KiB + 1: {too_big:?}");
    Ok(())
}

#[test]
fn extended_attributes_of_brickfs_itself_cannot_be_reached() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let path = cluster.mount().join("file");
        File::create(&path).at(&path)?;
        let at_brick = cluster.bricks().iter().find(|brick| brick.join("file").exists()).context("no brick has it")?;
        let own = xattrs_of(&at_brick.join("file"))?;
        ensure!(own.keys().any(|name| name.starts_with("trusted.brickfs.")), "the brick's file has {own:?}");
        for name in own.keys().chain(["trusted.brickfs.x".to_owned()].iter()) {
            let set = errno_of(rustix::fs::setxattr(&path, name, b"x", XattrFlags::empty()));
            ensure!(matches!(set, Some(Errno::PERM | Errno::OPNOTSUPP)), "setting {name}: {set:?}");
            let removed = errno_of(rustix::fs::removexattr(&path, name));
            ensure!(matches!(removed, Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NODATA)), "{name}: {removed:?}");
        }
        ensure!(xattrs_of(&path)?.is_empty(), "a new file shows {:?}", xattrs_of(&path)?);
        ensure!(own == xattrs_of(&at_brick.join("file"))?, "the brick's attributes changed");
        Ok(())
    });
}

#[test]
fn extended_attributes_obey_the_file_s_permissions() {
    case(MOUNT, |case| {
        let cluster = Cluster::on_disk(case)?;
        let path = cluster.mount().join("file");
        File::create(&path).at(&path)?;
        chmod(&path, 0o644)?;
        rustix::fs::setxattr(&path, "trusted.t", b"x", XattrFlags::empty()).at(&path)?;
        rustix::fs::setxattr(&path, "user.u", b"x", XattrFlags::empty()).at(&path)?;
        let listed = shell_as(DAEMON, "getfattr -m - -d --absolute-names \"$1\"", &path)?.ok()?;
        ensure!(listed.contains("user.u") && !listed.contains("trusted"), "another user sees {listed}");
        ensure!(shell_as(DAEMON, "setfattr -n user.u -v y \"$1\"", &path)?.code != Some(0), "set without permission");
        let link = cluster.mount().join("link");
        std::os::unix::fs::symlink("nowhere", &link).at(&link)?;
        ensure!(errno_of(rustix::fs::lsetxattr(&link, "user.u", b"x", XattrFlags::empty())) == Some(Errno::PERM));
        rustix::fs::lsetxattr(&link, "trusted.t", b"on a link", XattrFlags::empty()).at(&link)?;
        ensure!(xattrs_of(&link)?["trusted.t"] == b"on a link");
        Ok(())
    });
}

const ACL: &[Need] = &[Need::Root, Need::Fuse, Need::Program("setfacl"), Need::Program("getfacl")];

#[test]
fn access_acls_are_kept_and_obeyed() {
    case(ACL, |case| {
        let cluster = Cluster::in_memory(case)?;
        for number in 0..SPREAD {
            let path = cluster.mount().join(format!("f{number}"));
            fs::write(&path, b"secret").at(&path)?;
            chmod(&path, 0o600)?;
            ensure!(shell_as(DAEMON, "cat \"$1\"", &path)?.code != Some(0), "read without permission");
            shell("setfacl -m u:daemon:r,g:bin:rw \"$1\"", &[&path])?.ok()?;
            ensure!(shell_as(DAEMON, "cat \"$1\"", &path)?.ok()? == "secret");
            ensure!(shell_as(NOBODY, "cat \"$1\"", &path)?.code != Some(0), "someone else reads it");
            ensure!(shell_as(DAEMON, "echo x >>\"$1\"", &path)?.code != Some(0), "written with r only");
            // The group bits are the mask now: taking them away takes it from daemon, too.
            ensure!(fs::metadata(&path).at(&path)?.mode() & 0o777 == 0o660);
            chmod(&path, 0o600)?;
            ensure!(shell_as(DAEMON, "cat \"$1\"", &path)?.code != Some(0), "the mask is not obeyed");
            chmod(&path, 0o640)?;
            fs::rename(&path, cluster.mount().join(format!("g{number}"))).at(&path)?;
        }
        cluster.remount()?;
        for number in 0..SPREAD {
            let path = cluster.mount().join(format!("g{number}"));
            let acl = shell("getfacl -cpE \"$1\"", &[&path])?.ok()?;
            let lines: Vec<&str> = acl.lines().filter(|line| !line.is_empty()).collect();
            let wanted = ["user::rw-", "user:daemon:r--", "group::---", "group:bin:rw-", "mask::r--", "other::---"];
            ensure!(lines == wanted, "the ACL is {acl}");
            ensure!(shell_as(DAEMON, "cat \"$1\"", &path)?.ok()? == "secret");
            shell("setfacl -b \"$1\"", &[&path])?.ok()?;
            ensure!(xattrs_of(&path)?.is_empty(), "an ACL is left after setfacl -b");
        }
        Ok(())
    });
}

#[test]
fn default_acls_are_inherited_on_every_brick() {
    case(ACL, |case| {
        let cluster = Cluster::in_memory(case)?;
        let dir = cluster.mount().join("dir");
        fs::create_dir(&dir).at(&dir)?;
        chmod(&dir, 0o755)?;
        // Some names are there before: their bricks have the directory already when its default ACL comes.
        for number in 0..SPREAD {
            fs::write(dir.join(format!("before{number}")), b"").at(&dir)?;
        }
        shell("setfacl -d -m u::rwx,g::rx,o::-,u:daemon:rwx,m::rwx \"$1\"", &[&dir])?.ok()?;
        for number in 0..SPREAD {
            let line = "umask 077; echo x >\"$1/f$2\" && mkdir \"$1/d$2\" && mkdir \"$1/d$2/e\"";
            shell(line, &[&dir, &number.to_string()])?.ok()?;
        }
        cluster.remount()?;
        for number in 0..SPREAD {
            let acl = |name: String| shell("getfacl -cpE \"$1\"", &[&dir.join(name)])?.ok();
            let file = acl(format!("f{number}"))?;
            // The default ACL takes the place of the umask; the file was opened with 0666.
            for line in ["user:daemon:rwx", "mask::rw-", "other::---"] {
                ensure!(file.lines().any(|found| found == line), "f{number} lacks {line}: {file}");
            }
            for name in [format!("d{number}"), format!("d{number}/e")] {
                let directory = acl(name.clone())?;
                for line in ["user:daemon:rwx", "mask::rwx", "default:user:daemon:rwx", "default:other::---"] {
                    ensure!(directory.lines().any(|found| found == line), "{name} lacks {line}: {directory}");
                }
            }
            ensure!(!acl(format!("before{number}"))?.contains("daemon"), "a file from before has got the ACL");
            let path = dir.join(format!("d{number}/e"));
            shell_as(DAEMON, "touch \"$1/theirs\"", &path)?.ok()?;
            ensure!(shell_as(NOBODY, "touch \"$1/theirs\"", &path)?.code != Some(0), "someone else makes files");
        }
        Ok(())
    });
}

#[test]
fn times_are_kept_to_the_nanosecond_and_ctime_moves_with_every_change() {
    case(MOUNT, |case| {
        let cluster = Cluster::on_disk(case)?;
        let root = cluster.mount();
        // Before 1970, now, after 2038, with every digit of the nanoseconds.
        let times = [(-86_400 * 365, 1), (1_700_000_000, 123_456_789), (4_000_000_000, 999_999_999)];
        for (number, (sec, nsec)) in (0..SPREAD).map(|number| (number, times[number % times.len()])) {
            let (file, dir, link) =
                (root.join(format!("f{number}")), root.join(format!("d{number}")), root.join(format!("l{number}")));
            fs::write(&file, b"x").at(&file)?;
            fs::create_dir(&dir).at(&dir)?;
            std::os::unix::fs::symlink("x", &link).at(&link)?;
            for path in [&file, &dir, &link] {
                let before = fs::symlink_metadata(path).at(path)?;
                set_times(path, sec, nsec)?;
                let after = fs::symlink_metadata(path).at(path)?;
                ensure!(
                    (after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()),
                    "ctime of {path:?}"
                );
            }
            fs::rename(&file, root.join(format!("g{number}"))).at(&file)?;
        }
        let shown = |cluster: &Cluster| -> anyhow::Result<Vec<(PathBuf, i64, i64)>> {
            let mut all = Vec::new();
            for entry in fs::read_dir(cluster.mount()).at(cluster.mount())? {
                let path = entry.at(cluster.mount())?.path();
                let meta = fs::symlink_metadata(&path).at(&path)?;
                let number: usize = path.to_string_lossy().rsplit(['g', 'd', 'l']).next().context("name")?.parse()?;
                let (sec, nsec) = times[number % times.len()];
                ensure!((meta.mtime(), meta.mtime_nsec()) == (sec, nsec), "mtime of {path:?}");
                ensure!((meta.atime(), meta.atime_nsec()) == (sec, nsec), "atime of {path:?}");
                all.push((path, meta.ctime(), meta.ctime_nsec()));
            }
            all.sort();
            Ok(all)
        };
        let warm = shown(&cluster)?;
        ensure!(warm.len() == 3 * SPREAD);
        cluster.remount()?;
        let cold = shown(&cluster)?;
        ensure!(warm == cold, "ctimes differ after a remount:\n{warm:?}\n{cold:?}");
        Ok(())
    });
}

fn set_times(path: &Path, sec: i64, nsec: i64) -> anyhow::Result<()> {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).at(path)
}

#[test]
fn times_of_a_directory_follow_its_entries_and_a_set_time_stays() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let dir = cluster.mount().join("dir");
        fs::create_dir(&dir).at(&dir)?;
        let mtime = |dir: &Path| fs::metadata(dir).at(dir).map(|meta| (meta.mtime(), meta.mtime_nsec()));
        let second = cluster.second_mount("second", &["-o", "strict"])?;
        let there = second.path().join("dir");
        for number in 0..SPREAD {
            let (path, before) = (dir.join(format!("f{number}")), mtime(&dir)?);
            fs::write(&path, b"x").at(&path)?;
            ensure!(mtime(&dir)? > before, "mtime stays after creating {path:?}");
            let set = (1_000_000_000 + number as i64, 42);
            set_times(&dir, set.0, set.1)?;
            ensure!(mtime(&dir)? == set, "a set time is overwritten: {:?}", mtime(&dir)?);
            ensure!(mtime(&there)? == set, "another mount sees {:?}, not {set:?}", mtime(&there)?);
        }
        let set = mtime(&dir)?;
        // Nothing that comes later in the background may move it (PROTOCOL 28).
        cluster.remount()?;
        bricks::settled(cluster.bricks())?;
        ensure!(mtime(&dir)? == set && mtime(&there)? == set, "{:?} and {:?}", mtime(&dir)?, mtime(&there)?);
        let links = |dir: &Path| fs::metadata(dir).at(dir).map(|meta| meta.nlink());
        for number in 0..SPREAD as u64 {
            fs::create_dir(dir.join(format!("sub{number}"))).at(&dir)?;
            ensure!(links(&dir)? == number + 3 && links(&there)? == number + 3, "{} links", links(&dir)?);
        }
        second.unmount()
    });
}

#[test]
fn a_setgid_directory_gives_its_group_to_what_is_made_in_it() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let dir = cluster.mount().join("shared");
        fs::create_dir(&dir).at(&dir)?;
        for number in 0..SPREAD {
            fs::write(dir.join(format!("before{number}")), b"").at(&dir)?;
        }
        std::os::unix::fs::chown(&dir, None, Some(2)).at(&dir)?;
        chmod(&dir, 0o2777)?;
        for number in 0..SPREAD {
            let line = format!("umask 022; cd \"$1\" && touch f{number} && mkdir d{number} && touch d{number}/f");
            shell_as(DAEMON, &line, &dir)?.ok()?;
            for (name, mode) in
                [(format!("f{number}"), 0o644), (format!("d{number}"), 0o2755), (format!("d{number}/f"), 0o644)]
            {
                let meta = fs::metadata(dir.join(&name)).at(&name)?;
                ensure!((meta.uid(), meta.gid()) == (DAEMON, 2), "{name} belongs to {}:{}", meta.uid(), meta.gid());
                ensure!(meta.mode() & 0o7777 == mode, "{name} has mode {:o}", meta.mode());
            }
        }
        Ok(())
    });
}
