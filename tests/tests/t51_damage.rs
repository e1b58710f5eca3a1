//! Bricks that were damaged, exchanged, written by a later version, or whose disk is not mounted: what is wrong is
//! said, what is right is served, and nothing is written where it does not belong.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case};
use brickfs_tests::cluster::{Cluster, VOLUME};
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::needs::MOUNT;
use brickfs_tests::run::shell;
use brickfs_tests::tree::{Detail, Tree, xattrs_of};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FILES: usize = 40;
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// Long enough for a brick that is served, short for one that is not.
const PATIENCE: [&str; 2] = ["--timeout", "3"];

/// A volume with `dir/f0` and so on, each with its name in it.
fn filled(case: &Case) -> anyhow::Result<Cluster> {
    let cluster = Cluster::in_memory(case)?;
    let dir = cluster.mount().join("dir");
    fs::create_dir(&dir).at(&dir)?;
    for number in 0..FILES {
        // Half of the names are on another brick than their file.
        let (name, first) = (dir.join(format!("f{number}")), dir.join(format!("first{number}")));
        fs::write(&first, format!("f{number}")).at(&first)?;
        fs::rename(&first, &name).at(&first)?;
    }
    shell("umount \"$1\"", &[&cluster.mount()])?.ok()?;
    Ok(cluster)
}

/// Files that cannot be read, with the errno.
type Failures = Vec<(usize, Option<i32>)>;

/// The files whose content can be read on a new mount, and the errno of the others.
fn read_all(cluster: &Cluster, name: &str) -> anyhow::Result<(Vec<usize>, Failures)> {
    let mount = cluster.second_mount(name, &PATIENCE)?;
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for number in 0..FILES {
        match fs::read_to_string(mount.path().join(format!("dir/f{number}"))) {
            Ok(text) => {
                ensure!(text == format!("f{number}"), "f{number} holds {text:?}");
                good.push(number);
            }
            Err(error) => bad.push((number, error.raw_os_error())),
        }
    }
    mount.unmount()?;
    Ok((good, bad))
}

/// A file on the first brick: its path there, its number, and its handle.
fn find_victim(cluster: &Cluster) -> anyhow::Result<(PathBuf, usize, PathBuf)> {
    let dir = cluster.bricks()[0].join("dir");
    let entry = fs::read_dir(&dir).at(&dir)?.flatten().next().context("the first brick has no file")?;
    let number = entry.file_name().to_string_lossy().trim_start_matches('f').parse()?;
    let inode = entry.metadata().at(entry.path())?.ino();
    let find = "find \"$1/.brickfs/handles\" -inum \"$2\" -type f";
    let handle = shell(find, &[&cluster.bricks()[0], &inode.to_string()])?.ok()?;
    Ok((entry.path(), number, handle.trim().into()))
}

/// What `volume status` can know of a damaged file.
#[derive(PartialEq, Eq)]
enum Known {
    /// Its record is readable.
    GfidAndPath,
    /// Its record, which holds the gfid, is what is damaged.
    Path,
}

/// `damage` of a file on the first brick: the brick is served, everything else can be read, and `volume status` says
/// gfid and path of what is damaged, unless the brick could repair it.
fn after_damage(
    case: &Case,
    known: Known,
    damage: impl FnOnce(&Path, &Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut cluster = filled(case)?;
    let (path, number, handle) = find_victim(&cluster)?;
    cluster.stop_brickd()?;
    damage(&path, &handle)?;
    cluster.start_brickd()?;
    let (good, bad) = read_all(&cluster, "after")?;
    ensure!(bad.iter().all(|(bad, _)| *bad == number), "f{number} is damaged, and these fail: {bad:?}");
    ensure!(good.len() >= FILES - 1);
    let status = cluster.status()?;
    ensure!(status["bricks"][0]["online"] == true, "the brick is not served: {status:#}");
    if bad.is_empty() {
        return Ok(());
    }
    ensure!(bad[0].1 == Some(libc::EIO), "a damaged file gives {:?}, not EIO", bad[0].1);
    let said = status["bricks"][0]["damage"].to_string();
    let gfid = handle.file_name().context("no handle")?.to_string_lossy().into_owned();
    ensure!(said.contains(&format!("dir/f{number}")), "the damage of dir/f{number} is told as {said}");
    ensure!(known == Known::Path || said.replace('-', "").contains(&gfid), "the damage of {gfid} is told as {said}");
    let check = cluster.brickctl(&["volume", "status", VOLUME, "--check"])?;
    ensure!(check.code == Some(3), "volume status --check gives {:?} with damage", check.code);
    Ok(())
}

/// The attribute in which a brick keeps what a file is.
fn own_attribute(path: &Path) -> anyhow::Result<String> {
    let names = xattrs_of(path)?.into_keys();
    names.into_iter().find(|name| name.starts_with("trusted.brickfs.")).context("the file has no attribute of BrickFS")
}

#[test]
fn a_file_with_a_garbled_record_is_reported_and_the_rest_served() {
    case(MOUNT, |case| {
        after_damage(case, Known::Path, |path, _| {
            rustix::fs::setxattr(path, own_attribute(path)?, b"garbage", rustix::fs::XattrFlags::empty()).at(path)
        })
    });
}

#[test]
fn a_file_whose_record_was_cut_is_reported_and_the_rest_served() {
    case(MOUNT, |case| {
        after_damage(case, Known::Path, |path, _| {
            let name = own_attribute(path)?;
            let record = xattrs_of(path)?.remove(&name).context("no record")?;
            let cut = &record[..record.len() / 2];
            rustix::fs::setxattr(path, &name, cut, rustix::fs::XattrFlags::empty()).at(path)
        })
    });
}

#[test]
fn a_file_without_a_record_is_reported_and_the_rest_served() {
    case(MOUNT, |case| {
        after_damage(case, Known::Path, |path, _| rustix::fs::removexattr(path, own_attribute(path)?).at(path))
    });
}

#[test]
fn a_file_without_a_handle_is_reported_or_repaired() {
    case(MOUNT, |case| after_damage(case, Known::GfidAndPath, |_, handle| fs::remove_file(handle).at(handle)));
}

#[test]
fn a_handle_of_another_file_is_reported_or_repaired() {
    case(MOUNT, |case| {
        after_damage(case, Known::GfidAndPath, |path, handle| {
            fs::remove_file(handle).at(handle)?;
            fs::copy(path, handle).at(handle).map(drop)
        })
    });
}

#[test]
fn a_garbled_claim_is_reported_and_the_rest_served() {
    case(MOUNT, |case| {
        let mut cluster = filled(case)?;
        let claims = shell("find \"$1/.brickfs/claims\" -type l -name 'f*'", &[&cluster.bricks()[0]])?.ok()?;
        let claim = PathBuf::from(claims.lines().next().context("the first brick has no claim")?);
        let number: usize = claim.file_name().context("name")?.to_string_lossy().trim_start_matches('f').parse()?;
        cluster.stop_brickd()?;
        fs::remove_file(&claim).at(&claim)?;
        std::os::unix::fs::symlink("garbage", &claim).at(&claim)?;
        cluster.start_brickd()?;
        let (_, bad) = read_all(&cluster, "after")?;
        // The name is not answered as absent: that would let another file take it.
        ensure!(bad == [(number, Some(libc::EIO))], "f{number} is damaged, and these fail: {bad:?}");
        let said = cluster.status()?["bricks"][0]["damage"].to_string();
        ensure!(said.contains(&format!("f{number}")), "the damage of f{number} is told as {said}");
        Ok(())
    });
}

#[test]
fn what_a_hand_has_put_among_the_records_of_transactions_is_reported_and_the_rest_served() {
    case(MOUNT, |case| {
        let mut cluster = filled(case)?;
        cluster.stop_brickd()?;
        let dot = cluster.bricks()[0].join(".brickfs");
        fs::write(dot.join("pending/note"), "x").at(&dot)?;
        std::os::unix::fs::symlink("garbage", dot.join("commits/00000000000000000000000000000000")).at(&dot)?;
        fs::create_dir_all(dot.join("tmp/a/b")).at(&dot)?;
        cluster.start_brickd()?;
        let (good, bad) = read_all(&cluster, "after")?;
        ensure!(good.len() == FILES && bad.is_empty(), "these fail: {bad:?}");
        let status = cluster.status()?;
        ensure!(status["bricks"][0]["online"] == true, "{status:#}");
        let said = status["bricks"][0]["damage"].to_string();
        ensure!(said.contains("pending note") && said.contains("commit 0000"), "the damage is told as {said}");
        ensure!(!dot.join("tmp/a").exists());
        Ok(())
    });
}

#[test]
fn a_directory_of_ours_that_is_missing_is_made_again_and_filled() {
    for missing in ["pending", "commits", "parked", "clients", "handles", "orphans", "claims", "limbo", "tmp"] {
        case(MOUNT, |case| {
            let mut cluster = filled(case)?;
            cluster.stop_brickd()?;
            let dir = cluster.bricks()[0].join(".brickfs").join(missing);
            fs::remove_dir_all(&dir).at(&dir)?;
            cluster.start_brickd()?;
            let told = cluster.status()?["bricks"][0]["damage"].to_string();
            ensure!(told.contains(&format!("{missing} was missing")), "{missing}: {told}");
            eventually_ok("the brick has been looked through", LOOK_TIMEOUT, || {
                let status = cluster.status()?;
                ensure!(status["bricks"][0]["mending"] == false, "{status:#}");
                Ok(())
            })?;
            let (good, bad) = read_all(&cluster, "after").with_context(|| missing.to_owned())?;
            ensure!(good.len() == FILES && bad.is_empty(), "{missing}: these fail: {bad:?}");
            Ok(())
        });
    }
}

/// The first brick must be refused at start with all of `words`, nothing written there, and the others served.
fn brick_is_refused(cluster: &mut Cluster, words: &[&str]) -> anyhow::Result<()> {
    let brick = cluster.bricks()[0].clone();
    let before = Tree::of(&brick, Detail::Everything)?;
    cluster.start_brickd()?;
    let status = cluster.status()?;
    let (first, others) = status["bricks"].as_array().and_then(|all| all.split_first()).context("no bricks")?;
    ensure!(first["online"] == false, "the brick is served: {first:#}");
    let error = first["error"].as_str().context("no reason is given")?;
    for word in words {
        ensure!(error.contains(word), "the reason lacks '{word}': {error}");
    }
    ensure!(others.iter().all(|brick: &Value| brick["online"] == true), "other bricks are not served: {status:#}");
    let check = cluster.brickctl(&["volume", "status", VOLUME, "--check"])?;
    ensure!(check.code == Some(3), "volume status --check gives {:?} with a brick missing", check.code);
    cluster.stop_brickd()?;
    before.must_equal(&Tree::of(&brick, Detail::Everything)?)
}

fn change_format(brick: &Path, change: impl FnOnce(&mut Value)) -> anyhow::Result<()> {
    let path = brick.join(".brickfs/format");
    let mut format: Value = serde_json::from_slice(&fs::read(&path).at(&path)?)?;
    change(&mut format);
    fs::write(&path, serde_json::to_vec_pretty(&format)?).at(&path)
}

#[test]
fn a_brick_of_a_later_version_is_refused_and_not_touched() {
    case(MOUNT, |case| {
        let mut cluster = filled(case)?;
        cluster.stop_brickd()?;
        let brick = cluster.bricks()[0].clone();
        let mut own = Value::Null;
        change_format(&brick, |format| own = std::mem::replace(&mut format["version"], 99.into()))?;
        let own = own.to_string();
        brick_is_refused(&mut cluster, &["99", own.trim_matches('"')])?;
        change_format(&brick, |format| {
            format["version"] = own.parse().unwrap_or(Value::Null);
            format["features"] = serde_json::json!(["time-travel"]);
        })?;
        brick_is_refused(&mut cluster, &["time-travel"])?;
        change_format(&brick, |format| format["features"] = serde_json::json!([]))?;
        cluster.start_brickd()?;
        ensure!(read_all(&cluster, "after")?.1.is_empty(), "the brick is not served again");
        Ok(())
    });
}

#[test]
fn a_brick_without_a_readable_format_is_refused_and_not_touched() {
    case(MOUNT, |case| {
        let mut cluster = filled(case)?;
        cluster.stop_brickd()?;
        let format = cluster.bricks()[0].join(".brickfs/format");
        fs::write(&format, b"{").at(&format)?;
        brick_is_refused(&mut cluster, &["format"])?;
        fs::remove_file(&format).at(&format)?;
        brick_is_refused(&mut cluster, &[])
    });
}

#[test]
fn exchanged_bricks_are_strangers() {
    case(MOUNT, |case| {
        let mut cluster = filled(case)?;
        cluster.stop_brickd()?;
        let (one, two, aside) = (&cluster.bricks()[0], &cluster.bricks()[1], cluster.dir().join("aside"));
        for (from, to) in [(one, &aside), (two, one), (&aside, two)] {
            fs::rename(from, to).at(from)?;
        }
        cluster.start_brickd()?;
        let status = cluster.status()?;
        for (index, online) in [(0, false), (1, false), (2, true), (3, true)] {
            let brick = &status["bricks"][index];
            ensure!(brick["online"] == online, "exchanged bricks: {status:#}");
            ensure!(online || brick["error"].is_string(), "no reason is given: {brick:#}");
        }
        Ok(())
    });
}

#[test]
fn a_brick_whose_disk_is_not_mounted_is_not_served_and_nothing_is_made_there() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let disk = dir.join("disk");
        fs::create_dir(&disk).at(&disk)?;
        shell("mount -t tmpfs -o size=64m tmpfs \"$1\"", &[&disk])?.ok()?;
        // What a disk's file system keeps must outlive its mount: a second one of the same, elsewhere, sees to that.
        let kept = dir.join("kept");
        fs::create_dir(&kept).at(&kept)?;
        shell("mount --bind \"$1\" \"$2\"", &[&disk, &kept])?.ok()?;
        let bricks = [disk.join("brick"), dir.join("b2"), dir.join("b3"), dir.join("b4")];
        let mut cluster = Cluster::over(&dir, &bricks)?;
        let mount = cluster.second_mount("mnt", &PATIENCE)?;
        for number in 0..FILES {
            let path = mount.path().join(format!("f{number}"));
            fs::write(&path, format!("f{number}")).at(&path)?;
        }
        let there: Vec<bool> = (0..FILES).map(|number| bricks[0].join(format!("f{number}")).exists()).collect();
        mount.unmount()?;
        cluster.stop_brickd()?;
        shell("umount \"$1\"", &[&disk])?.ok()?;
        cluster.start_brickd()?;
        let status = cluster.status()?;
        ensure!(status["bricks"][0]["online"] == false && status["bricks"][1]["online"] == true, "{status:#}");
        ensure!(fs::read_dir(&disk).at(&disk)?.next().is_none(), "something was made where the disk belongs");
        let root_is_lost = bricks_of_root(&cluster)? == 0;
        if !root_is_lost {
            let mount = cluster.second_mount("mnt", &PATIENCE)?;
            for (number, on_disk) in there.iter().enumerate().filter(|(number, on_disk)| !**on_disk || *number < 20) {
                let read = fs::read(mount.path().join(format!("f{number}")));
                let errno = read.err().and_then(|error| error.raw_os_error());
                ensure!(errno == on_disk.then_some(libc::EIO), "f{number}, on the lost disk: {on_disk}: {errno:?}");
            }
            let names: Result<Vec<_>, _> = fs::read_dir(mount.path()).at(mount.path())?.collect();
            ensure!(names.is_err(), "a listing without a brick ends as if it were whole");
            mount.unmount()?;
        }
        cluster.stop_brickd()?;
        shell("mount --bind \"$1\" \"$2\"", &[&kept, &disk])?.ok()?;
        cluster.start_brickd()?;
        let mount = cluster.second_mount("mnt", &PATIENCE)?;
        for number in 0..FILES {
            let path = mount.path().join(format!("f{number}"));
            ensure!(fs::read_to_string(&path).at(&path)? == format!("f{number}"));
        }
        mount.unmount()
    });
}

/// The set on which the root directory lives.
fn bricks_of_root(cluster: &Cluster) -> anyhow::Result<u64> {
    cluster.cluster_json()?["volumes"][VOLUME]["map"]["root_home"].as_u64().context("no home of the root")
}
