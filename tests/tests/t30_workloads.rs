//! What people do with a file system: git, cargo, tar. Each is looked at from a second mount or a cold one.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::{case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::eventually::eventually;
use brickfs_tests::needs::{MOUNT, Need};
use brickfs_tests::run::{Ran, project_dir, run, shell};
use brickfs_tests::tree::{Detail, Tree, hash_of};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const GIT: &[Need] = &[Need::Root, Need::Fuse, Need::Program("git")];

/// Runs git apart from the settings of the machine.
fn git(dir: &Path, args: &[&str]) -> anyhow::Result<Ran> {
    let mut command = Command::new("git");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    command.args(["-c", "safe.directory=*", "-c", "user.name=Test", "-c", "user.email=test@example.org"]);
    command.args(["-c", "gc.auto=0"]).current_dir(dir).args(args);
    run(&mut command)
}

#[test]
fn a_git_clone_is_whole_and_can_be_worked_in() {
    case(GIT, |case| {
        let project = project_dir();
        if !project.join(".git").exists() {
            say(&format!("SKIPPED {}: {} is no git repository", case.name(), project.display()));
            return Ok(());
        }
        let cluster = Cluster::on_disk(case)?;
        let clone = cluster.mount().join("clone");
        let source = project.to_str().context("the project's path is not text")?;
        git(cluster.mount(), &["clone", "-q", "--no-hardlinks", source, "clone"])?.ok()?;
        git(&clone, &["fsck", "--full", "--strict"])?.ok()?;
        git(&clone, &["checkout", "-q", "-b", "work"])?.ok()?;
        fs::write(clone.join("new-file"), b"new").at(&clone)?;
        fs::remove_file(clone.join("README.md")).at(&clone)?;
        git(&clone, &["add", "-A"])?.ok()?;
        git(&clone, &["commit", "-q", "-m", "a change"])?.ok()?;
        git(&clone, &["gc", "-q", "--prune=now"])?.ok()?;
        cluster.remount()?;
        ensure!(git(&clone, &["status", "--porcelain"])?.ok()?.is_empty(), "the clone is not clean");
        git(&clone, &["fsck", "--full", "--strict"])?.ok()?;
        let (ours, theirs) = (git(&clone, &["rev-parse", "HEAD~1"])?, git(&project, &["rev-parse", "HEAD"])?);
        ensure!(ours.ok()? == theirs.ok()?, "the clone has another history");
        fs::remove_dir_all(&clone).at(&clone)?;
        bricks::emptied(cluster.bricks())
    });
}

/// Runs the cargo that runs this test, apart from its settings.
fn cargo(dir: &Path, args: &[&str]) -> anyhow::Result<Ran> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if (text.starts_with("CARGO_") && text != "CARGO_HOME") || text.starts_with("RUSTFLAGS") {
            command.env_remove(&name);
        }
    }
    run(command.args(args).arg("--offline").current_dir(dir))
}

#[test]
fn a_crate_is_built_and_run_on_a_mount() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let dir = cluster.mount().join("crate");
        fs::create_dir_all(dir.join("src")).at(&dir)?;
        let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
        fs::write(dir.join("Cargo.toml"), manifest).at(&dir)?;
        let mut main = String::new();
        for number in 0..20 {
            let text = format!("pub fn value() -> u64 {{ (0..{number}u64).map(|n| n * n).sum() }}\n");
            fs::write(dir.join(format!("src/part{number}.rs")), text).at(&dir)?;
            main.push_str(&format!("mod part{number};\n"));
        }
        let sum: Vec<String> = (0..20).map(|number| format!("part{number}::value()")).collect();
        main.push_str(&format!("fn main() {{ println!(\"{{}}\", {}); }}\n", sum.join(" + ")));
        fs::write(dir.join("src/main.rs"), main).at(&dir)?;
        let wanted: u64 = (0..20u64).map(|number| (0..number).map(|n| n * n).sum::<u64>()).sum();
        ensure!(cargo(&dir, &["run", "-q"])?.ok()? == format!("{wanted}\n"), "the program prints something else");
        // The times tell cargo that nothing has changed, also on a cold mount; then that something has.
        cluster.remount()?;
        let again = cargo(&dir, &["build"])?;
        ensure!(again.code == Some(0) && !again.stderr.contains("Compiling"), "it is built again: {}", again.stderr);
        fs::write(dir.join("src/part3.rs"), "pub fn value() -> u64 { 1000 }\n").at(&dir)?;
        ensure!(cargo(&dir, &["run", "-q"])?.ok()? == format!("{}\n", wanted - 5 + 1000), "a change is not seen");
        cargo(&dir, &["test", "-q"])?.ok().map(|_| ())
    });
}

#[test]
fn an_unpacked_archive_is_the_same_on_a_second_mount() {
    case(MOUNT, |case| {
        let cluster = Cluster::on_disk(case)?;
        let source = Path::new("/usr/include");
        let second = cluster.second_mount("second", &[])?;
        shell(
            "set -e; mkdir \"$2/include\"; tar -C \"$1\" -cf - . | tar -C \"$2/include\" -xpf -",
            &[&source, &cluster.mount()],
        )?
        .ok()?;
        let copy = second.path().join("include");
        let original = Tree::of(source, Detail::Times)?;
        say(&format!("{}: {} files and directories", case.name(), original.0.len()));
        original.must_equal(&Tree::of(&copy, Detail::Times)?)?;
        let dir = case.on_disk()?;
        let archives = [dir.join("original.tar"), dir.join("copy.tar")];
        for (from, archive) in [source, &copy].into_iter().zip(&archives) {
            shell("tar --sort=name --format=gnu -C \"$1\" -cf \"$2\" .", &[&from, archive])?.ok()?;
        }
        ensure!(hash_of(&archives[0])? == hash_of(&archives[1])?, "the archives of both differ");
        // Once more from memory to memory, and away with it while the second mount has it cached.
        shell("cp -a \"$1\" \"$1.copy\" && rm -rf \"$1\"", &[&cluster.mount().join("include")])?.ok()?;
        let copy = second.path().join("include.copy");
        // What one mount does another sees at most 1 s later.
        eventually("the second mount sees the copy", Duration::from_secs(2), || copy.exists())?;
        original.must_equal(&Tree::of(&copy, Detail::Times)?)?;
        fs::remove_dir_all(second.path().join("include.copy")).at(second.path())?;
        second.unmount()?;
        bricks::emptied(cluster.bricks())
    });
}
