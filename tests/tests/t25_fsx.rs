//! fsx (the Rust one, 0.3.2) on a mount of four bricks: random reads, writes, mappings, truncations, holes and copies of
//! one file, each read compared with what was written. Every operation that fsx has is in it.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::needs::{MOUNT, is_soak};
use brickfs_tests::run::{project_dir, run};
use rand::Rng as _;
use std::fs;
use std::process::Command;

/// All 14 weights, none of them 0: mappings and calls alike, what changes the size less often than what fills it.
const WEIGHTS: &str = "[opsize]
max = 65536
[weights]
close_open = 1
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 3
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
";

/// Seeds that fsx may end itself.
const OWN_FAULTS_MAX: u32 = 10;

/// Once in some 400,000 operations fsx 0.3.2 asks posix_fallocate(3) for no bytes, which is EINVAL everywhere, and takes that
/// for a file system that has no allocation.
fn asked_for_nothing(said: &str) -> bool {
    let last = said.lines().rfind(|line| line.contains(" => ")).unwrap_or_default();
    said.contains("does not support posix_fallocate")
        && last.contains("POSIX_FALLOCATE")
        && last.contains("(    0x0 bytes)")
}

fn fsx_passes(case: &Case, file_mib: u64) -> anyhow::Result<()> {
    let (seeds, operations) = if is_soak() { (5u32, 200_000) } else { (1, 20_000) };
    let program = project_dir().join("target/tools/bin/fsx");
    ensure!(program.exists(), "{} is missing: run make tools", program.display());
    let cluster = Cluster::in_memory(case)?;
    let dir = case.in_memory()?;
    let settings = dir.join("fsx.toml");
    fs::write(&settings, format!("flen = {}\n{WEIGHTS}", file_mib << 20)).at(&settings)?;
    let mut rng = case.rng(0);
    let mut passed = 0;
    for _ in 0..seeds + OWN_FAULTS_MAX {
        let seed: u32 = rng.random();
        let mut command = Command::new(&program);
        command.arg("-f").arg(&settings).args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"]);
        let ran = run(command.arg(&dir).arg(cluster.mount().join(format!("file{seed}"))))?;
        match ran.ok().with_context(|| format!("fsx with {file_mib} MiB and seed {seed}")) {
            Err(error) if asked_for_nothing(&format!("{error:#}")) => {
                say(&format!("{}: fsx ended seed {seed} itself, by an allocation of no bytes", case.name()));
                continue;
            }
            said => ensure!(said?.contains("A-OK"), "fsx does not say that all is well"),
        }
        passed += 1;
        if passed == seeds {
            break;
        }
    }
    ensure!(passed == seeds, "fsx has ended {OWN_FAULTS_MAX} seeds itself");
    say(&format!("{}: {seeds} seeds of {operations} operations", case.name()));
    Ok(())
}

#[test]
fn fsx_passes_on_a_file_of_8_mib() {
    case(MOUNT, |case| fsx_passes(case, 8));
}

#[test]
fn fsx_passes_on_a_file_of_64_mib() {
    case(MOUNT, |case| fsx_passes(case, 64));
}

#[test]
fn only_an_allocation_of_no_bytes_is_fsx_s_own_fault() {
    let said = |bytes: &str| {
        format!(
            "Test file system does not support posix_fallocate.\n[ERROR fsx] 7 POSIX_FALLOCATE 0x3 => 0x2 ({bytes} bytes)\n"
        )
    };
    assert!(asked_for_nothing(&said("    0x0")) && !asked_for_nothing(&said("    0x9")));
    assert!(!asked_for_nothing("Size error\n[ERROR fsx] 7 POSIX_FALLOCATE 0x3 => 0x2 (    0x0 bytes)"));
}
