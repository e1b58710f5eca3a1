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

fn fsx_passes(case: &Case, file_mib: u64) -> anyhow::Result<()> {
    let (seeds, operations) = if is_soak() { (5, 200_000) } else { (1, 20_000) };
    let program = project_dir().join("target/tools/bin/fsx");
    ensure!(program.exists(), "{} is missing: run make tools", program.display());
    let cluster = Cluster::in_memory(case)?;
    let dir = case.in_memory()?;
    let settings = dir.join("fsx.toml");
    fs::write(&settings, format!("flen = {}\n{WEIGHTS}", file_mib << 20)).at(&settings)?;
    let mut rng = case.rng(0);
    for _ in 0..seeds {
        let seed: u32 = rng.random();
        let mut command = Command::new(&program);
        command.arg("-f").arg(&settings).args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"]);
        let ran = run(command.arg(&dir).arg(cluster.mount().join(format!("file{seed}"))))?;
        let said = ran.ok().with_context(|| format!("fsx with {file_mib} MiB and seed {seed}"))?;
        ensure!(said.contains("A-OK"), "fsx says: {said}");
    }
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
