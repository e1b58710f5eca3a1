//! Every way to mount, typed as people type it after `make install`: by hand, with mount(8) in four forms, from an
//! fstab; what a mount says when it cannot be; and that nothing is left when it ends.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::{Cluster, VOLUME};
use brickfs_tests::eventually::eventually;
use brickfs_tests::install::{Installed, make_command};
use brickfs_tests::kernel_mounts;
use brickfs_tests::needs::MOUNT;
use brickfs_tests::process::find_processes;
use brickfs_tests::run::{Ran, program, run, shell};
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
/// What one mount does another sees at most 1 s later.
const LATE_MAX: Duration = Duration::from_secs(2);

/// The volume is mounted on `point` as `source`, works, and is gone after umount(8), its process too.
fn works_and_goes(point: &Path, source: &str) -> anyhow::Result<()> {
    let mount = kernel_mounts::find(point).context("it is not mounted")?;
    ensure!(mount.fs_type == "fuse.brickfs" && mount.source == source, "the kernel shows {mount:?}, not {source}");
    let path = point.join("file");
    fs::write(&path, source).at(&path)?;
    ensure!(fs::read_to_string(&path).at(&path)? == source);
    fs::remove_file(&path).at(&path)?;
    ensure!(find_processes("brickfs", point).len() == 1, "processes: {:?}", find_processes("brickfs", point));
    run(Command::new("umount").arg(point))?.ok()?;
    ensure!(kernel_mounts::find(point).is_none(), "it is still mounted");
    eventually("the mount's process ends", SOON, || find_processes("brickfs", point).is_empty())
}

/// A cluster where an installed one listens, or `None` with a word why.
fn installed_cluster(case: &Case, dir: &Path) -> anyhow::Result<Option<(Installed, Cluster)>> {
    let installed = Installed::new()?;
    let Some(cluster) = Cluster::on_default_socket(dir)? else {
        say(&format!("SKIPPED {}: a brickd of this machine listens on the default socket", case.name()));
        return Ok(None);
    };
    Ok(Some((installed, cluster)))
}

fn make_point(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let point = dir.join(name);
    fs::create_dir_all(&point).at(&point)?;
    Ok(point)
}

#[test]
fn the_four_forms_of_mount_work_as_typed() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let Some((_installed, cluster)) = installed_cluster(case, &dir)? else { return Ok(()) };
        let point = make_point(&dir, "point")?;
        let sub = cluster.second_mount("whole", &[])?;
        fs::create_dir_all(sub.path().join("sub/deep")).at(sub.path())?;
        sub.unmount()?;
        let forms = [
            ("mount -t fuse brickfs \"$1\"", "localhost:/vol"),
            ("brickfs \"$1\"", "localhost:/vol"),
            ("mount -t fuse 'brickfs#nobody.invalid,localhost:/vol/sub' \"$1\"", "nobody.invalid,localhost:/vol/sub"),
            ("mount -t fuse.brickfs localhost:/vol \"$1\"", "localhost:/vol"),
            ("mount -t brickfs node-1:/vol \"$1\"", "node-1:/vol"),
            ("mount -t brickfs localhost:/vol/sub/deep \"$1\" -o noatime,_netdev,nofail", "localhost:/vol/sub/deep"),
            ("mount -t brickfs localhost:/vol/ \"$1\"", "localhost:/vol/"),
        ];
        for (line, source) in forms {
            shell(line, &[&point])?.ok()?;
            works_and_goes(&point, source).with_context(|| line.to_owned())?;
        }
        // A volume of another machine is not one of this machine that has its name.
        let line = shell("mount -t brickfs nobody.invalid:/vol \"$1\"", &[&point])?.refused(32)?;
        ensure!(line.contains("'nobody.invalid' is not this machine"), "{line}");
        Ok(())
    });
}

#[test]
fn an_fstab_line_is_mounted_once() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let Some((_installed, _cluster)) = installed_cluster(case, &dir)? else { return Ok(()) };
        let (fstab, one, two) = (dir.join("fstab"), make_point(&dir, "one")?, make_point(&dir, "two")?);
        let options = "defaults,_netdev,nofail,x-systemd.automount,x-systemd.requires=brickd.service";
        let text = format!(
            "# a comment\nlocalhost:/vol {} brickfs {options} 0 0\nlocalhost:/vol {} fuse.brickfs nodev,ro 0 0\n",
            one.display(),
            two.display()
        );
        fs::write(&fstab, text).at(&fstab)?;
        for _ in 0..2 {
            shell("mount -T \"$1\" -a", &[&fstab])?.ok()?;
            let count = |point: &Path| kernel_mounts::all().iter().filter(|mount| mount.point == point).count();
            ensure!(count(&one) == 1 && count(&two) == 1, "mounted {} and {} times", count(&one), count(&two));
        }
        let options = kernel_mounts::find(&two).context("two is not mounted")?.options;
        ensure!(options.split(',').any(|o| o == "ro") && options.split(',').any(|o| o == "nodev"), "{options}");
        ensure!(rustix::fs::mkdir(two.join("d"), rustix::fs::Mode::RWXU) == Err(Errno::ROFS));
        shell("umount \"$1\"", &[&two])?.ok()?;
        works_and_goes(&one, "localhost:/vol")
    });
}

#[test]
fn a_configured_volume_is_the_default() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let config = Path::new("/etc/brickfs/client.toml");
        let Some((_installed, mut cluster)) = installed_cluster(case, &dir)? else { return Ok(()) };
        if config.exists() {
            say(&format!("SKIPPED {}: {} is there already", case.name(), config.display()));
            return Ok(());
        }
        cluster.add_started_volume("other", &[dir.join("o1")])?;
        let point = make_point(&dir, "point")?;
        // With two volumes and none configured nobody knows which is meant.
        let line = run(Command::new(program("brickfs")?).arg(&point))?.refused(32)?;
        ensure!(line.contains("volume"), "{line}");
        let _guard = ConfigFile::write(config, "volume = \"other\"\n")?;
        for line in ["brickfs \"$1\"", "mount -t fuse brickfs \"$1\""] {
            shell(line, &[&point])?.ok()?;
            works_and_goes(&point, "localhost:/other").with_context(|| line.to_owned())?;
        }
        fs::write(config, "colour = \"red\"\n").at(config)?;
        let line = run(Command::new(program("brickfs")?).arg(&point))?;
        let code = line.code.context("killed")?;
        let line = line.refused(code)?;
        ensure!(code != 0 && line.contains("client.toml") && line.contains("colour"), "{line}");
        Ok(())
    });
}

/// A file of the machine's configuration, for as long as a test needs it.
struct ConfigFile {
    path: PathBuf,
    is_dir_made: bool,
}

impl ConfigFile {
    fn write(path: &Path, text: &str) -> anyhow::Result<ConfigFile> {
        let dir = path.parent().context("no parent")?;
        let is_dir_made = fs::create_dir(dir).is_ok();
        fs::write(path, text).at(path)?;
        Ok(ConfigFile { path: path.to_owned(), is_dir_made })
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        if let Some(dir) = self.path.parent().filter(|_| self.is_dir_made) {
            let _ = fs::remove_dir(dir); // stays if somebody has put something in
        }
    }
}

/// Runs `brickfs` in the background form.
fn brickfs(cluster: &Cluster, args: &[&str], point: &Path) -> anyhow::Result<Ran> {
    run(Command::new(program("brickfs")?).arg("--socket").arg(cluster.socket()).args(args).arg(point))
}

#[test]
fn a_mount_that_cannot_be_says_so_in_one_line_and_ends_with_32() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let dir = case.in_memory()?;
        let point = make_point(&dir, "point")?;
        let none = dir.join("none.sock");
        let tries: [(&[&str], PathBuf, &str); 5] = [
            (&["localhost:/nope"], point.clone(), "nope"),
            (&["localhost:/vol/none"], point.clone(), "none"),
            (&["localhost:/vol"], dir.join("missing"), "missing"),
            (&["localhost:/vol", "-o", "socket=/none.sock"], point.clone(), "/none.sock"),
            (&["localhost:/vol"], dir.join("file"), "file"),
        ];
        File::create(dir.join("file")).at(&dir)?;
        for (args, point, word) in &tries {
            for foreground in [&[][..], &["--foreground"]] {
                let ran = brickfs(&cluster, &[foreground, *args].concat(), point)?;
                if foreground.is_empty() {
                    let line = ran.refused(32)?;
                    ensure!(line.contains(word) && line.starts_with("brickfs: "), "{args:?}: {line}");
                } else {
                    // In the foreground the log is on standard error, too.
                    ensure!(ran.code == Some(32) && ran.stderr.contains(word), "{args:?}: {ran:?}");
                }
            }
        }
        let mut command = Command::new(program("brickfs")?);
        let line = run(command.arg("--socket").arg(&none).arg("localhost:/vol").arg(&point))?.refused(32)?;
        ensure!(line.contains("none.sock"), "{line}");
        cluster.brickctl(&["volume", "create", "stopped", &format!("node-1:{}", dir.join("b").display())])?.ok()?;
        let line = brickfs(&cluster, &["localhost:/stopped"], &point)?.refused(32)?;
        ensure!(line.contains("stopped"), "{line}");
        ensure!(kernel_mounts::find(&point).is_none(), "something is mounted");
        ensure!(find_processes("brickfs", &dir).is_empty(), "a process is left");
        Ok(())
    });
}

#[test]
fn what_cannot_be_understood_is_wrong_use() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let point = make_point(&case.in_memory()?, "point")?;
        let tries: [(&[&str], &str); 5] = [
            (&["nonsense"], "nonsense"),
            (&["localhost:/vol", "-o", "colour=red"], "colour"),
            (&["localhost:/vol", "-o", "timeout=soon"], "soon"),
            (&["localhost:/vol/../x"], ".."),
            (&["localhost:/vol/sub/."], "."),
        ];
        for (args, word) in tries {
            let line = brickfs(&cluster, args, &point)?.refused(1)?;
            ensure!(line.contains(word), "{args:?}: {line}");
        }
        let help = run(Command::new(program("brickfs")?).arg("--help"))?.ok()?;
        for word in ["brickfs", "MOUNTPOINT", "--foreground", "--timeout", "strict", "mount -t brickfs"] {
            ensure!(help.contains(word), "the help lacks {word}: {help}");
        }
        ensure!(run(Command::new(program("brickfs")?).arg("--version"))?.ok()?.starts_with("brickfs "));
        Ok(())
    });
}

#[test]
fn a_background_mount_answers_when_the_command_returns_and_ends_with_its_umount() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let dir = case.in_memory()?;
        for round in 0..10 {
            let point = make_point(&dir, &format!("point{round}"))?;
            brickfs(&cluster, &["localhost:/vol"], &point)?.ok()?;
            works_and_goes(&point, "localhost:/vol")?;
        }
        // A relative mount point is that of the directory where the command was typed.
        let point = make_point(&dir, "relative")?;
        let mut command = Command::new(program("brickfs")?);
        command.current_dir(&dir).arg("--socket").arg(cluster.socket()).args(["localhost:/vol", "relative"]);
        run(&mut command)?.ok()?;
        ensure!(kernel_mounts::find(&point).is_some(), "the relative point is not mounted");
        run(Command::new("umount").arg(&point))?.ok()?;
        eventually("the mount's process ends", SOON, || find_processes("brickfs", Path::new("relative")).is_empty())?;
        // Two mounts on one point, as on any directory.
        let point = make_point(&dir, "twice")?;
        brickfs(&cluster, &["localhost:/vol"], &point)?.ok()?;
        brickfs(&cluster, &["localhost:/vol"], &point)?.ok()?;
        run(Command::new("umount").arg(&point))?.ok()?;
        works_and_goes(&point, "localhost:/vol")
    });
}

#[test]
fn a_mount_in_use_is_busy_and_one_that_is_told_to_end_unmounts() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let mount = cluster.second_mount("busy", &[])?;
        let path = mount.path().join("file");
        let open = File::create(&path).at(&path)?;
        let busy = rustix::mount::unmount(mount.path(), rustix::mount::UnmountFlags::NOFOLLOW);
        ensure!(busy == Err(Errno::BUSY), "unmounting a mount in use: {busy:?}");
        drop(open);
        mount.unmount()?;
        // From the moment when it is mounted.
        for signal in [Signal::TERM, Signal::INT].into_iter().cycle().take(20) {
            let mount = cluster.second_mount("told", &[])?;
            let process = mount.process()?;
            process.signal(signal)?;
            ensure!(process.has_ended_within(SOON)?, "brickfs does not end after {signal:?}");
            ensure!(kernel_mounts::find(mount.path()).is_none(), "a mount is left after {signal:?}");
        }
        Ok(())
    });
}

#[test]
fn options_of_mount_are_passed_on_and_can_be_changed() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let Some((_installed, _cluster)) = installed_cluster(case, &dir)? else { return Ok(()) };
        let point = make_point(&dir, "point")?;
        let shown = || kernel_mounts::find(&point).map(|mount| mount.options).context("not mounted");
        let has = |option: &str| shown().map(|options| options.split(',').any(|one| one == option));
        shell("mount -t brickfs localhost:/vol \"$1\" -o ro,nosuid,nodev,noexec,noatime", &[&point])?.ok()?;
        for option in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
            ensure!(has(option)?, "{option} is not among {}", shown()?);
        }
        ensure!(rustix::fs::mkdir(point.join("d"), rustix::fs::Mode::RWXU) == Err(Errno::ROFS));
        shell("mount -o remount,rw \"$1\"", &[&point])?.ok()?;
        fs::create_dir(point.join("d")).at(&point)?;
        shell("mount -o remount,ro \"$1\"", &[&point])?.ok()?;
        ensure!(rustix::fs::rmdir(point.join("d")) == Err(Errno::ROFS));
        shell("mount -o remount,rw \"$1\" && umount \"$1\"", &[&point])?.ok()?;
        // Without options root's mounts serve everybody, with suid and devices.
        shell("mount -t brickfs localhost:/vol \"$1\"", &[&point])?.ok()?;
        ensure!(!has("nosuid")? && !has("nodev")?, "a plain mount has {}", shown()?);
        ensure!(fs::read_dir(&point).at(&point)?.count() == 1);
        works_and_goes(&point, "localhost:/vol")
    });
}

#[test]
fn a_subdirectory_is_the_root_of_its_mount() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        fs::create_dir_all(cluster.mount().join("a/b")).at(cluster.mount())?;
        fs::write(cluster.mount().join("a/b/file"), b"content").at(cluster.mount())?;
        let point = make_point(&case.in_memory()?, "point")?;
        brickfs(&cluster, &["localhost:/vol/a/b"], &point)?.ok()?;
        let names: Vec<_> = fs::read_dir(&point).at(&point)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(names == ["file"], "the subdirectory lists {names:?}");
        ensure!(fs::read(point.join("../point/file")).at(&point)? == b"content");
        fs::rename(point.join("file"), point.join("moved")).at(&point)?;
        let moved = cluster.mount().join("a/b/moved");
        eventually("the other mount sees the new name", LATE_MAX, || {
            fs::read(&moved).is_ok_and(|text| text == b"content")
        })?;
        works_and_goes(&point, "localhost:/vol/a/b")
    });
}

#[test]
fn a_playground_leaves_nothing_behind() {
    case(MOUNT, |case| {
        let dir = case.in_memory()?;
        let cluster = Cluster::playground(&dir, 2, &[])?;
        let (mount, state) = (cluster.mount().to_owned(), cluster.dir().to_owned());
        fs::write(mount.join("file"), b"content").at(&mount)?;
        let pid = cluster.brickd()?.pid();
        cluster.brickctl(&["playground", "stop"])?.ok()?;
        ensure!(kernel_mounts::find(&mount).is_none(), "the mount is left");
        ensure!(brickfs_tests::process::state_of(pid).is_none(), "brickd runs on");
        eventually("the mount's process ends", SOON, || find_processes("brickfs", &dir).is_empty())?;
        ensure!(!state.exists() && !mount.exists(), "directories are left");
        Ok(())
    });
}

#[test]
fn a_volume_is_served_again_after_a_restart_and_gone_after_stop_and_delete() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let path = cluster.mount().join("file");
        fs::write(&path, b"content").at(&path)?;
        cluster.brickctl(&["volume", "set", VOLUME, "comment", "kept"])?.ok()?;
        cluster.stop_brickd()?;
        cluster.start_brickd()?;
        ensure!(fs::read(&path).at(&path)? == b"content");
        let info = cluster.brickctl(&["volume", "info", VOLUME, "-o", "json"])?.ok()?;
        let info: serde_json::Value = serde_json::from_str(&info)?;
        ensure!(info["options"]["comment"] == "kept" && info["type"] == "Distribute", "{info:#}");
        ensure!(info["bricks"][2]["set"] == 2 && info["bricks"][2]["node"] == "node-1", "{info:#}");
        cluster.brickctl(&["volume", "stop", VOLUME, "-y"])?.ok()?;
        eventually("a stopped volume is not read", Duration::from_secs(1), || fs::read(&path).is_err())?;
        cluster.brickctl(&["volume", "start", VOLUME])?.ok()?;
        cluster.remount()?;
        ensure!(fs::read(&path).at(&path)? == b"content");
        cluster.brickctl(&["volume", "stop", VOLUME, "-y"])?.ok()?;
        cluster.brickctl(&["volume", "delete", VOLUME, "-y"])?.ok()?;
        ensure!(cluster.brickctl(&["volume", "list", "-o", "json"])?.ok()?.trim() == "[]");
        let left = cluster.bricks().iter().filter(|brick| brick.join("file").exists()).count();
        ensure!(left == 1, "the files of a deleted volume are on {left} bricks");
        Ok(())
    });
}

#[test]
fn make_install_places_everything_and_uninstall_takes_it_away() {
    case(MOUNT, |case| {
        let destination = case.in_memory()?.join("package");
        let make = |target: &str| {
            let mut command = make_command();
            command.arg(target);
            run(command.arg("PREFIX=/opt/brickfs").arg(format!("DESTDIR={}", destination.display())))
        };
        make("install")?.ok()?;
        for name in ["brickd", "brickfs", "brickctl"] {
            let path = destination.join("opt/brickfs/bin").join(name);
            ensure!(run(Command::new(&path).arg("--version"))?.ok()?.starts_with(name), "{name} does not run");
        }
        let helper = fs::read_to_string(destination.join("sbin/mount.brickfs")).at(&destination)?;
        ensure!(helper.contains("/opt/brickfs/bin") && !helper.contains("@BINDIR@"), "the helper is {helper}");
        // mount(8) looks in few directories: with another prefix there is a link in one of them.
        let link = destination.join("usr/bin/brickfs");
        ensure!(fs::read_link(&link).at(&link)? == Path::new("/opt/brickfs/bin/brickfs"));
        make("uninstall")?.ok()?;
        let left = run(Command::new("find").arg(&destination).args(["-not", "-type", "d"]))?.ok()?;
        ensure!(left.is_empty(), "uninstall leaves {left}");
        Ok(())
    });
}

#[test]
fn a_volume_has_up_to_64_bricks_and_brickd_listens_on_no_port() {
    case(MOUNT, |case| {
        const BRICKS: usize = 64;
        let mut cluster = Cluster::playground(&case.in_memory()?.join("p"), BRICKS, &[])?;
        let dir = cluster.mount().join("dir");
        fs::create_dir(&dir).at(&dir)?;
        for number in 0..20 * BRICKS {
            let path = dir.join(format!("f{number}"));
            fs::write(&path, number.to_string()).at(&path)?;
        }
        for brick in cluster.bricks() {
            let count = fs::read_dir(brick.join("dir")).at(brick)?.count();
            ensure!((1..=100).contains(&count), "{} has {count} of {} files", brick.display(), 20 * BRICKS);
        }
        let sockets = sockets_of(cluster.brickd()?.pid())?;
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            let path = Path::new("/proc/net").join(table);
            let Ok(text) = fs::read_to_string(&path) else { continue }; // a kernel without it
            let inodes = text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(9));
            let open: Vec<&str> = inodes.filter(|inode| sockets.contains(*inode)).collect();
            ensure!(open.is_empty(), "brickd has {} sockets in {}", open.len(), path.display());
        }
        ensure!(!sockets.is_empty(), "not even its Unix socket is seen");
        cluster.kill_brickd()?;
        cluster.start_brickd()?;
        cluster.remount()?;
        ensure!(fs::read_dir(&dir).at(&dir)?.count() == 20 * BRICKS);
        for number in 0..20 * BRICKS {
            let path = dir.join(format!("f{number}"));
            ensure!(fs::read_to_string(&path).at(&path)? == number.to_string());
        }
        Ok(())
    });
}

/// The inodes of a process's sockets.
fn sockets_of(pid: u32) -> anyhow::Result<HashSet<String>> {
    let fds = PathBuf::from(format!("/proc/{pid}/fd"));
    let targets = fs::read_dir(&fds).at(&fds)?.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    let inode = |target: PathBuf| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    Ok(targets.filter_map(inode).collect())
}
