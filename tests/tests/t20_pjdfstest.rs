//! pjdfstest (the Rust one, 0.2.2) whole on a mount of four bricks, on tmpfs and on the machine's disk. Nothing is left
//! out but what the kernel's FUSE interface cannot do, each with its reason.

use anyhow::{Context as _, bail, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::install::Installed;
use brickfs_tests::needs::MOUNT;
use brickfs_tests::run::{project_dir, run};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tests that cannot run on any FUSE file system, with the reason.
const LIMITS_OF_FUSE: &[(&str, &str)] = &[(
    "link::link_count_max",
    "pathconf(_PC_LINK_MAX) is made up by the C library from the file system's number; it has none for FUSE",
)];

/// Fewer than this and the suite did not run whole.
const TESTS_MIN: usize = 398;

/// The tests of EROFS have this in their names. They remount, which mount(8) does with an installed `brickfs`. Other
/// tests leave files open for writing, after which no file system lets itself be remounted read-only (ext4 fails the
/// same six then): so these run in a process of their own.
const EROFS: &str = "erofs";

/// Both users exist on every Debian.
const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.001
allow_remount = ALLOW_REMOUNT

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

#[derive(PartialEq, Eq, Debug)]
enum Outcome {
    Ok,
    Skipped(String),
    Failed(String),
}

#[test]
fn pjdfstest_passes_with_bricks_in_memory() {
    case(MOUNT, |case| run_suite(case, &Cluster::in_memory(case)?));
}

#[test]
fn pjdfstest_passes_with_bricks_on_disk() {
    case(MOUNT, |case| run_suite(case, &Cluster::on_disk(case)?));
}

fn run_suite(case: &Case, cluster: &Cluster) -> anyhow::Result<()> {
    let _installed = Installed::new()?;
    let dir = case.in_memory()?;
    let mut outcomes = run_tests(&dir, cluster.mount(), None)?;
    ensure!(outcomes.len() >= TESTS_MIN, "only {} tests ran: {:?}", outcomes.len(), outcomes.keys());
    outcomes.extend(run_tests(&dir, cluster.mount(), Some(EROFS))?);
    let unexpected: Vec<String> = outcomes.iter().filter_map(|(name, outcome)| complain(name, outcome)).collect();
    say(&format!("{}: pjdfstest: {} tests, {} unexpected", case.name(), outcomes.len(), unexpected.len()));
    ensure!(unexpected.is_empty(), "{} tests of pjdfstest:\n{}", unexpected.len(), unexpected.join("\n"));
    bricks::emptied(cluster.bricks())
}

/// Runs the tests with `pattern` in their name, or all; only with a pattern they may remount.
fn run_tests(dir: &Path, mount: &Path, pattern: Option<&str>) -> anyhow::Result<BTreeMap<String, Outcome>> {
    let (settings, other_fs) = (dir.join("pjdfstest.toml"), dir.join("other"));
    let text = SETTINGS.replace("ALLOW_REMOUNT", if pattern.is_some() { "true" } else { "false" });
    fs::write(&settings, text).at(&settings)?;
    fs::create_dir_all(&other_fs).at(&other_fs)?;
    let mut command = Command::new(find_suite()?);
    command.arg("-c").arg(&settings).arg("-p").arg(mount).arg("-s").arg(&other_fs).args(pattern);
    let ran = run(command.env_remove("RUST_BACKTRACE").env("NO_COLOR", "1").current_dir(dir))?;
    let outcomes = read_outcomes(&ran.stdout).with_context(|| ran.stderr.clone())?;
    let failed = outcomes.values().any(|outcome| matches!(outcome, Outcome::Failed(_)));
    ensure!(failed == (ran.code != Some(0)), "pjdfstest ended with {:?}: {}", ran.code, ran.stderr);
    Ok(outcomes)
}

/// Installed by `make tools`.
fn find_suite() -> anyhow::Result<PathBuf> {
    let path = project_dir().join("target/tools/bin/pjdfstest");
    ensure!(Path::exists(&path), "{} is missing: 'make tools' installs it", path.display());
    Ok(path)
}

/// Each test has a line `name   ok|skipped|FAILED`; indented lines after it say why.
fn read_outcomes(output: &str) -> anyhow::Result<BTreeMap<String, Outcome>> {
    let mut outcomes: BTreeMap<String, Outcome> = BTreeMap::new();
    let mut last = String::new();
    for line in output.lines() {
        if let Some(reason) = line.strip_prefix('\t') {
            match outcomes.get_mut(&last) {
                Some(Outcome::Skipped(text) | Outcome::Failed(text)) => *text = format!("{text} {reason}"),
                _ => bail!("a reason without its test: {line}"),
            }
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(name), Some(word), None) = (words.next(), words.next(), words.next()) else { continue };
        let outcome = match word {
            "ok" => Outcome::Ok,
            "skipped" => Outcome::Skipped(String::new()),
            "FAILED" => Outcome::Failed(String::new()),
            _ => continue,
        };
        last = name.to_owned();
        ensure!(outcomes.insert(last.clone(), outcome).is_none(), "{name} ran twice");
    }
    outcomes.first_key_value().context("pjdfstest printed no test")?;
    Ok(outcomes)
}

fn complain(name: &str, outcome: &Outcome) -> Option<String> {
    let is_limit = LIMITS_OF_FUSE.iter().any(|(limit, _)| *limit == name);
    match outcome {
        Outcome::Ok if is_limit => Some(format!("  {name} passes: take it off the list of exclusions")),
        Outcome::Ok => None,
        Outcome::Failed(_) | Outcome::Skipped(_) if is_limit => None,
        Outcome::Failed(why) => Some(format!("  {name} failed:{why}")),
        Outcome::Skipped(why) => Some(format!("  {name} was skipped:{why}")),
    }
}
