//! Programs that find what is wrong with a file system: sqlite on two mounts, PostgreSQL over a restart of `brickd`, fio
//! with checksums, dbench, stress-ng.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::eventually::{eventually, eventually_ok};
use brickfs_tests::load::{Progress, run_under_faults};
use brickfs_tests::needs::{Need, is_soak};
use brickfs_tests::postgres::Postgres;
use brickfs_tests::run::run;
use brickfs_tests::sqlite::Sqlite;
use rand::Rng as _;
use rand::rngs::StdRng;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SQLITE: &[Need] = &[Need::Root, Need::Fuse, Need::Program("sqlite3")];
const POSTGRES: &[Need] = &[Need::Root, Need::Fuse, Need::Postgres];
const FIO: &[Need] = &[Need::Root, Need::Fuse, Need::Program("fio")];
const DBENCH: &[Need] = &[Need::Root, Need::Fuse, Need::Program("dbench")];
const STRESS_NG: &[Need] = &[Need::Root, Need::Fuse, Need::Program("stress-ng")];

/// Longer than pgbench or fio take to begin, and to go on after a restart of `brickd`.
const PATIENCE: Duration = Duration::from_secs(40);
/// Processes that write to one database, every other one on the second mount.
const SQLITE_WRITERS: usize = 4;
/// Rows of a transaction that never commits: more than the cache below holds, so that it changes the database before.
const UNCOMMITTED_ROWS: u64 = 60;

/// Processes that die in a transaction on each mount, at least.
const DEATHS_MIN: u64 = 5;
/// Rows that each writer commits.
const SQLITE_ROWS: u64 = 150;

fn scaled(count: u64) -> u64 {
    if is_soak() { count * 10 } else { count }
}

/// A database that processes on two mounts write to.
struct Shared {
    databases: [PathBuf; 2],
    logs: PathBuf,
}

impl Shared {
    fn open(&self, mount: usize, who: &str) -> anyhow::Result<Sqlite> {
        Sqlite::open(&self.databases[mount], &self.logs.join(format!("{who}.log")))
    }

    /// Commits `count` rows of a writer, one transaction each; a row counts as there when sqlite3 has said so.
    fn write(&self, writer: usize, count: u64, progress: &Progress) -> anyhow::Result<()> {
        let mut sqlite = self.open(writer % 2, &format!("writer{writer}"))?;
        for number in 0..count {
            let insert = format!("INSERT INTO entries VALUES({writer}, {number}, randomblob(3000));");
            let update = "UPDATE total SET count = count + 1;";
            sqlite.run(&format!("BEGIN IMMEDIATE;\n{insert}\n{update}\nCOMMIT;"))?;
            progress.step()?;
        }
        Ok(())
    }

    /// Starts transactions that reach the database file and kills their process before they commit: whoever is next,
    /// on either mount, has to find the journal and undo them.
    fn die(&self, mount: usize, mut rng: StdRng, progress: &Progress) -> anyhow::Result<()> {
        for round in 0.. {
            // sqlite's locks are not fair: who did not get one beside the writers gets it after them.
            let are_writers_done = progress.done() >= scaled(SQLITE_ROWS) * SQLITE_WRITERS as u64;
            if progress.is_over() || (are_writers_done && round >= DEATHS_MIN) {
                say(&format!("{round} processes died in a transaction on mount {mount}"));
                break;
            }
            let mut sqlite = self.open(mount, &format!("victim{mount}"))?;
            sqlite.run("PRAGMA cache_size = 5;\nBEGIN IMMEDIATE;\nUPDATE total SET count = count + 1000000;")?;
            for number in 0..rng.random_range(1..UNCOMMITTED_ROWS) {
                sqlite.run(&format!("INSERT INTO entries VALUES(1000, {number}, randomblob(3000));"))?;
            }
            sqlite.kill()?;
        }
        Ok(())
    }

    fn check(&self, mount: usize, rows: u64) -> anyhow::Result<()> {
        let mut sqlite = self.open(mount, &format!("check{mount}"))?;
        let report = sqlite.run("PRAGMA integrity_check;")?;
        ensure!(report == ["ok"], "integrity_check on mount {mount}: {report:?}");
        let total = sqlite.value("SELECT count FROM total;")?;
        ensure!(total == (rows * SQLITE_WRITERS as u64).to_string(), "the total is {total}");
        let query =
            "SELECT writer, count(*), count(DISTINCT number), max(number) FROM entries GROUP BY writer ORDER BY 1;";
        let found = sqlite.run(query)?;
        let wanted: Vec<String> =
            (0..SQLITE_WRITERS).map(|writer| format!("{writer}|{rows}|{rows}|{}", rows - 1)).collect();
        ensure!(found == wanted, "rows of each writer on mount {mount}: {found:?}");
        Ok(())
    }
}

/// Runs the writers on two mounts, with `brickd` killed so often, and processes that die in a transaction if asked for.
fn sqlite_on_two_mounts(case: &Case, kills: u64, with_deaths: bool) -> anyhow::Result<()> {
    let mut cluster = Cluster::in_memory(case)?;
    let second = cluster.second_mount("second", &[])?;
    let dir = cluster.mount().join("db");
    fs::create_dir(&dir).at(&dir)?;
    let databases = [dir.join("shared.db"), second.path().join("db/shared.db")];
    let shared = Shared { databases, logs: case.in_memory()? };
    let tables = "CREATE TABLE entries(writer INTEGER, number INTEGER, data BLOB, PRIMARY KEY(writer, number));
        CREATE TABLE total(count INTEGER);
        INSERT INTO total VALUES(0);";
    shared.open(0, "first")?.run(tables)?;
    let rows = scaled(SQLITE_ROWS);
    let ours = &shared;
    type Work<'a> = Box<dyn FnOnce(&Progress) -> anyhow::Result<()> + Send + 'a>;
    let mut work: Vec<Work<'_>> = Vec::new();
    for writer in 0..SQLITE_WRITERS {
        work.push(Box::new(move |progress| ours.write(writer, rows, progress)));
    }
    for mount in (0..2).filter(|_| with_deaths) {
        let rng = case.rng(mount as u64);
        work.push(Box::new(move |progress| ours.die(mount, rng, progress)));
    }
    run_under_faults(work, rows * SQLITE_WRITERS as u64, kills, |_| {
        cluster.kill_brickd()?;
        cluster.start_brickd()
    })?;
    shared.check(0, rows)?;
    shared.check(1, rows)?;
    cluster.remount()?;
    shared.check(0, rows)?;
    second.unmount()
}

#[test] // PROTOCOL 16, 32
fn sqlite_keeps_every_transaction_of_processes_on_two_mounts() {
    case(SQLITE, |case| sqlite_on_two_mounts(case, scaled(3), false));
}

#[test]
fn sqlite_undoes_what_died_on_the_other_mount() {
    case(SQLITE, |case| sqlite_on_two_mounts(case, 0, true));
}

#[test]
fn postgresql_loses_nothing_when_brickd_is_killed_under_pgbench() {
    case(POSTGRES, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let mut postgres = Postgres::init(&cluster.mount().join("data"), &case.in_memory()?.join("pg"))?;
        postgres.start()?;
        postgres.run("pgbench", &["-i", "-q", "-s", "2", "postgres"])?.ok()?;
        let rounds = scaled(2);
        for round in 1..=rounds {
            pgbench_under_kills(&mut cluster, &postgres, case)?;
            check_sums(&postgres)?;
            // Once in good order, once into the recovery from its log.
            postgres.stop(if round.is_multiple_of(2) { "immediate" } else { "fast" })?;
            if round.is_multiple_of(2) {
                cluster.remount()?;
            }
            postgres.start()?;
            postgres.run("pg_amcheck", &["--all", "--install-missing", "--heapallindexed"])?.ok()?;
            check_sums(&postgres)?;
        }
        postgres.stop("fast")
    });
}

/// Runs pgbench for some seconds, in which `brickd` is killed twice.
fn pgbench_under_kills(cluster: &mut Cluster, postgres: &Postgres, case: &Case) -> anyhow::Result<()> {
    let seconds = if is_soak() { "60" } else { "6" };
    let transactions =
        || -> anyhow::Result<u64> { Ok(postgres.value("SELECT count(*) FROM pgbench_history")?.parse()?) };
    let bench = |_: &Progress| -> anyhow::Result<String> {
        let args = ["-n", "-c", "4", "-j", "2", "-T", seconds, "postgres"];
        postgres.run("pgbench", &args)?.ok()
    };
    let (said, killed) = std::thread::scope(|scope| {
        let bench = scope.spawn(|| bench(&Progress::default()));
        let mut kills = || -> anyhow::Result<()> {
            for _ in 0..2 {
                // It is under way, and again after each kill.
                let before = transactions()?;
                eventually_ok("pgbench goes on", PATIENCE, || {
                    let done = transactions()? - before;
                    ensure!(done > 50, "{done} transactions");
                    Ok(())
                })?;
                cluster.kill_brickd()?;
                cluster.start_brickd()?;
            }
            Ok(())
        };
        let killed = kills();
        (bench.join(), killed)
    });
    let said = said.map_err(|_| anyhow::anyhow!("the thread of pgbench panicked"))??;
    killed?;
    ensure!(said.contains("number of failed transactions: 0 "), "pgbench says: {said}");
    let line = |start: &str| said.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    say(&format!("{}: {}, {}", case.name(), line("number of transactions actually"), line("tps")));
    Ok(())
}

/// Each of pgbench's transactions adds one amount to an account, a teller, a branch and the history.
fn check_sums(postgres: &Postgres) -> anyhow::Result<()> {
    let sum = |column: &str, table: &str| postgres.value(&format!("SELECT coalesce(sum({column}), 0) FROM {table}"));
    let history = sum("delta", "pgbench_history")?;
    for (column, table) in [("abalance", "accounts"), ("tbalance", "tellers"), ("bbalance", "branches")] {
        let found = sum(column, &format!("pgbench_{table}"))?;
        ensure!(found == history, "the sum of {table} is {found}, of the history {history}");
    }
    Ok(())
}

/// Writes with checksums in every way that programs write; `{size}` is what each job writes.
const FIO_JOBS: &str = "[global]
verify=crc32c
verify_fatal=1
verify_state_save=0
size={size}
ioengine=psync
[sequential-buffered]
rw=write
bs=64k
[sequential-direct]
rw=write
bs=128k
direct=1
ioengine=libaio
iodepth=8
[random-buffered]
rw=randwrite
bs=4k
numjobs=2
[random-sizes]
rw=randwrite
bsrange=1k-300k
fsync=16
[random-direct]
rw=randwrite
bs=4k
direct=1
ioengine=libaio
iodepth=16
numjobs=2
[random-mapped]
rw=randwrite
bs=4k
ioengine=mmap
";

#[test]
fn fio_reads_what_it_wrote() {
    case(FIO, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let jobs = case.in_memory()?.join("jobs.fio");
        let size = if is_soak() { "512m" } else { "24m" };
        fs::write(&jobs, FIO_JOBS.replace("{size}", size)).at(&jobs)?;
        let mount = cluster.mount().to_owned();
        let fio = |mode: &str| -> anyhow::Result<()> {
            let mut command = Command::new("fio");
            // Not below the mount: it leaves files where it works.
            command.current_dir(jobs.parent().unwrap_or(Path::new("/"))).args(["--output-format=terse", mode]);
            command.arg(format!("--directory={}", mount.display())).arg(&jobs);
            run(&mut command)?.ok().map(|_| ()).with_context(|| format!("fio {mode}"))
        };
        let is_under_way = || fs::read_dir(&mount).is_ok_and(|files| files.count() > 2);
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let writing = scope.spawn(|| fio("--do_verify=1"));
            eventually("fio writes", PATIENCE, is_under_way)?;
            cluster.kill_brickd()?;
            cluster.start_brickd()?;
            writing.join().map_err(|_| anyhow::anyhow!("the thread of fio panicked"))?
        })?;
        // Whatever was kept in memory is read from the bricks now.
        cluster.remount()?;
        fio("--verify_only")
    });
}

#[test]
fn dbench_runs_through() {
    case(DBENCH, |case| {
        let cluster = Cluster::in_memory(case)?;
        let dir = cluster.mount().join("dbench");
        fs::create_dir(&dir).at(&dir)?;
        let (seconds, clients) = if is_soak() { ("120", "8") } else { ("5", "4") };
        let mut command = Command::new("dbench");
        let load = "/usr/share/dbench/client.txt";
        let said = run(command.args(["-c", load, "-t", seconds, "-D"]).arg(&dir).arg(clients))?.ok()?;
        let throughput =
            said.lines().find(|line| line.starts_with("Throughput")).context("dbench tells no throughput")?;
        // Its semaphore is the machine's, not the file system's: it then starts its clients one by one.
        let is_trouble = |line: &&str| line.contains("failed") && !line.contains("barrier semaphore");
        let trouble: Vec<&str> = said.lines().filter(is_trouble).collect();
        ensure!(trouble.is_empty() && !said.contains("ERROR"), "dbench says: {trouble:?}");
        say(&format!("{}: {throughput}", case.name()));
        fs::remove_dir_all(&dir).at(&dir)?;
        bricks::emptied(cluster.bricks())
    });
}

/// What of stress-ng's class `filesystem` is left out, and why.
const STRESSORS_LEFT_OUT: [(&str, &str); 8] = [
    ("bind-mount", "makes bind mounts of / until memory ends"),
    ("binderfs", "mounts a file system of its own"),
    ("dup", "opens nothing in the directory that it is given"),
    ("eventfd", "has no files"),
    ("fiemap", "FUSE has no FIEMAP"),
    ("ioprio", "is about the scheduler"),
    ("procfs", "reads /proc"),
    ("verity", "FUSE has no fs-verity of its own"),
];

#[test]
fn stress_ng_finds_nothing_wrong() {
    case(STRESS_NG, |case| {
        let cluster = Cluster::in_memory(case)?;
        let dir = cluster.mount().join("stress");
        fs::create_dir(&dir).at(&dir)?;
        let (seconds, instances) = if is_soak() { ("20", "4") } else { ("1", "1") };
        let mut command = Command::new("stress-ng");
        command.args(["--class", "filesystem", "--sequential", instances, "--timeout", seconds, "--verify"]);
        let left_out = STRESSORS_LEFT_OUT.map(|(name, _)| name).join(",");
        command.args(["--exclude", &left_out, "--temp-path"]).arg(&dir).current_dir("/");
        let ran = run(&mut command)?;
        let said = format!("{}{}", ran.stdout, ran.stderr);
        let is_trouble = |line: &&str| line.contains("fail:") || line.contains("skipping") || line.contains("warn:");
        let trouble: Vec<&str> = said.lines().filter(is_trouble).collect();
        ensure!(ran.code == Some(0) && trouble.is_empty(), "stress-ng ended with {:?}: {trouble:#?}", ran.code);
        let line = said.lines().rfind(|line| line.contains("successful run")).context("stress-ng tells no success")?;
        say(&format!("{}: {line}", case.name()));
        fs::remove_dir(&dir).at(&dir)?;
        bricks::emptied(cluster.bricks())
    });
}
