//! A playground of several nodes: its nodes are killed, paused, cut off and joined by command, `playground raft` shows
//! election, log and merge, and `stop` leaves nothing behind.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::needs::{Need, find_program};
use brickfs_tests::process::find_processes;
use brickfs_tests::run::{Ran, program, run};
use rand::Rng as _;
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Root, Need::Program("nft")];
const SEEN_WITHIN: Duration = Duration::from_secs(10);
const FAILED: i32 = 1;
const DEGRADED: i32 = 3;
/// Where `brickctl` remembers the playground that was started last.
const REMEMBERED: &str = "/run/brickfs/playground";
/// Where a play that brings its own nodes has them.
const FIRST_PORT: u16 = 10_000;

/// A playground in a directory of the test. Whoever has one of their own goes on with that one.
struct Playground {
    dir: PathBuf,
    remembered: Option<Vec<u8>>,
    tables: Vec<String>,
}

impl Playground {
    fn new(case: &Case) -> anyhow::Result<Playground> {
        let dir = case.in_memory()?.join("p");
        Ok(Playground { dir, remembered: fs::read(REMEMBERED).ok(), tables: nft_tables()? })
    }

    /// Starts so many nodes on ports that are free.
    fn start(case: &Case, nodes: usize) -> anyhow::Result<Playground> {
        let playground = Playground::new(case)?;
        let port = eventually_ok("free ports", SEEN_WITHIN, || {
            let port = rand::rng().random_range(20_000..30_000u16);
            are_free(port, 9).then_some(port).with_context(|| format!("port {port}"))
        })?;
        let (nodes, port) = (nodes.to_string(), port.to_string());
        let args = ["start", "--nodes", &nodes, "--base-port", &port, "--bricks", "2", "--no-mount", "--volume", "vol"];
        playground.run(&args)?.ok()?;
        Ok(playground)
    }

    /// `brickctl playground ...`
    fn run(&self, args: &[&str]) -> anyhow::Result<Ran> {
        self.brickctl(&[&["playground"], args].concat())
    }

    fn brickctl(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let mut command = Command::new(program("brickctl")?);
        run(command.env_remove("BRICKFS_PLAYGROUND").arg("--dir").arg(&self.dir).args(args))
    }

    /// `cluster status --check` as a node sees it.
    fn status(&self, number: usize) -> anyhow::Result<(Option<i32>, Value)> {
        let mut command = Command::new(program("brickctl")?);
        command.arg("--socket").arg(self.dir.join(format!("node-{number}/brickd.sock")));
        let ran = run(command.args(["cluster", "status", "--check", "-o", "json"]))?;
        let status = serde_json::from_str(&ran.stdout).with_context(|| format!("{ran:?}"))?;
        Ok((ran.code, status))
    }

    fn healthy(&self, by: usize) -> anyhow::Result<()> {
        eventually_ok("the playground is healthy", Duration::from_secs(30), || {
            let (code, status) = self.status(by)?;
            ensure!(code == Some(0), "{status:#}");
            Ok(())
        })
    }

    /// Whether a node reaches another, as it says itself.
    fn seen(&self, by: usize, about: usize, is_reachable: bool) -> anyhow::Result<()> {
        eventually_ok("a node is seen or not", SEEN_WITHIN, || {
            let (code, status) = self.status(by)?;
            let node = &status["nodes"][about - 1];
            ensure!(node["is_reachable"] == is_reachable, "node-{by} sees node-{about}: {status:#}");
            ensure!(is_reachable || code == Some(DEGRADED), "exit code {code:?}: {status:#}");
            Ok(())
        })
    }

    /// One node of `playground status`.
    fn shown(&self, number: usize) -> anyhow::Result<Value> {
        let status: Value = serde_json::from_str(&self.run(&["status", "-o", "json"])?.ok()?)?;
        Ok(status["nodes"][number - 1].clone())
    }

    /// Stops it; nothing of it is left.
    fn stop(&self) -> anyhow::Result<()> {
        self.run(&["stop"])?.ok()?;
        self.nothing_is_left()
    }

    fn nothing_is_left(&self) -> anyhow::Result<()> {
        ensure!(!self.dir.exists(), "{} is left", self.dir.display());
        let brickds = find_processes("brickd", &self.dir);
        ensure!(brickds.is_empty(), "processes are left: {brickds:?}");
        let tables = nft_tables()?;
        let left: Vec<&String> = tables.iter().filter(|table| !self.tables.contains(table)).collect();
        ensure!(left.is_empty(), "tables of nft are left: {left:?}");
        let remembered = fs::read_to_string(REMEMBERED).unwrap_or_default();
        ensure!(Path::new(remembered.trim_end()) != self.dir, "it is remembered");
        Ok(())
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if self.dir.exists()
            && let Err(error) = self.run(&["stop"]).and_then(Ran::ok)
        {
            eprintln!("the playground does not stop: {error:#}");
        }
        let restored = match &self.remembered {
            Some(theirs) => fs::write(REMEMBERED, theirs),
            None => fs::remove_file(REMEMBERED),
        };
        drop(restored); // there may be none
    }
}

fn are_free(first: u16, count: u16) -> bool {
    (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
}

/// The tables of playgrounds that nft has.
fn nft_tables() -> anyhow::Result<Vec<String>> {
    let nft = find_program("nft").context("nft is gone")?;
    let text = run(Command::new(nft).args(["list", "tables"]))?.ok()?;
    Ok(text.lines().filter(|line| line.contains("brickfs_playground")).map(str::to_owned).collect())
}

/// What `playground raft` showed: each step as it has to be.
fn check_play(text: &str) -> anyhow::Result<()> {
    let steps: Value = serde_json::from_str(text)?;
    let steps = steps.as_array().context("no steps")?;
    ensure!(steps.len() == 4, "{} steps", steps.len());
    let number = |step: usize, name: &str| {
        let figure = &steps[step - 1]["figures"][name];
        figure.as_u64().with_context(|| format!("step {step} has no number {name}: {figure}"))
    };
    let name = |step: usize, name: &str| steps[step - 1]["figures"][name].as_str().context("no name");
    // Somebody leads, and a command is in every log.
    ensure!(name(1, "leader")? == name(2, "leader")?);
    ensure!(number(2, "index")? > number(2, "last_log_before")?);
    for node in steps[1]["raft"]["nodes"].as_array().context("no nodes")? {
        ensure!(node["raft"]["applied"].as_u64() >= Some(number(2, "index")?), "{node}");
    }
    // The leader was killed, the others said why they cannot reach it and have another.
    ensure!(name(3, "killed")? == name(2, "leader")? && name(3, "leader")? != name(3, "killed")?);
    ensure!(number(3, "term")? > number(3, "old_term")?);
    let said =
        steps[2]["figures"].as_object().context("no figures")?.iter().filter(|(key, _)| key.starts_with("said_by"));
    ensure!(said.clone().count() > 0 && said.clone().all(|(_, why)| why.as_str().is_some_and(|why| !why.is_empty())));
    // A leader cut off has an entry that it cannot commit; another is committed at its index, and replaces it.
    ensure!(number(4, "stale_index")? > number(4, "stale_committed")?);
    ensure!(number(4, "stale_index_term")? == number(4, "old_term")?);
    ensure!(number(4, "committed_index")? >= number(4, "stale_index")?);
    ensure!(number(4, "committed_index_term")? > number(4, "stale_index_term")?);
    ensure!(number(4, "merged_last_log")? >= number(4, "committed_index")?);
    ensure!(number(4, "merged_last_log_term")? >= number(4, "committed_index_term")?);
    say(&format!(
        "playground raft: elected {} ms after a kill, {} ms after a cut, merged in {} ms",
        number(3, "elected_after_ms")?,
        number(4, "elected_after_ms")?,
        number(4, "merged_after_ms")?
    ));
    Ok(())
}

#[test]
fn the_play_shows_election_log_and_merge_on_a_playground_that_runs() {
    case(NEEDS, |case| {
        let playground = Playground::start(case, 3)?;
        check_play(&playground.run(&["raft", "-o", "json"])?.ok()?)?;
        // It is as it was, and can be played again, for people this time.
        playground.healthy(1)?;
        let text = playground.run(&["raft"])?.ok()?;
        ensure!(text.contains("4. The leader is cut off") && text.contains("as it should"), "{text}");
        playground.healthy(1)?;
        // What is not well is not played on.
        playground.run(&["kill-node", "2"])?.ok()?;
        let line = playground.run(&["raft"])?.refused(FAILED)?;
        ensure!(line.contains("start-node node-2"), "{line}");
        playground.stop()
    });
}

#[test]
fn the_play_brings_its_own_nodes_and_takes_them_away() {
    case(NEEDS, |case| {
        if !are_free(FIRST_PORT, 3) {
            say(&format!("SKIPPED {}: somebody listens on the ports from {FIRST_PORT} on", case.name()));
            return Ok(());
        }
        let playground = Playground::new(case)?;
        check_play(&playground.run(&["raft", "-o", "json"])?.ok()?)?;
        playground.nothing_is_left()
    });
}

#[test]
fn nodes_are_killed_paused_cut_off_and_joined_by_command() {
    case(NEEDS, |case| {
        let playground = Playground::start(case, 3)?;
        playground.healthy(3)?;
        // Killed, and started.
        playground.run(&["kill-node", "2"])?.ok()?;
        ensure!(playground.shown(2)?["state"] == "not running");
        playground.seen(1, 2, false)?;
        ensure!(playground.run(&["kill-node", "2"])?.refused(FAILED)?.contains("not running"));
        playground.run(&["start-node", "node-2"])?.ok()?;
        playground.seen(1, 2, true)?;
        ensure!(playground.run(&["start-node", "2"])?.refused(FAILED)?.contains("running already"));
        // Paused, and resumed.
        playground.run(&["pause-node", "3"])?.ok()?;
        ensure!(playground.shown(3)?["state"] == "paused");
        playground.seen(1, 3, false)?;
        ensure!(playground.run(&["pause-node", "3"])?.refused(FAILED)?.contains("paused already"));
        ensure!(playground.run(&["start-node", "3"])?.refused(FAILED)?.contains("resume-node"));
        playground.run(&["resume-node", "3"])?.ok()?;
        playground.seen(1, 3, true)?;
        playground.healthy(3)?;
        // Cut off from one, then from all, then from nobody.
        playground.run(&["cut-node", "1", "--from", "2"])?.ok()?;
        ensure!(playground.shown(1)?["cut_from"] == serde_json::json!(["node-2"]));
        playground.seen(1, 2, false)?;
        playground.seen(2, 1, false)?;
        playground.seen(3, 1, true)?;
        playground.run(&["cut-node", "1"])?.ok()?;
        playground.seen(1, 3, false)?;
        playground.seen(3, 1, false)?;
        playground.seen(3, 2, true)?;
        ensure!(nft_tables()?.len() == playground.tables.len() + 1, "{:?}", nft_tables()?);
        playground.run(&["heal-node", "1"])?.ok()?;
        ensure!(playground.shown(1)?["cut_from"] == serde_json::json!([]));
        playground.healthy(1)?;
        playground.run(&["cut-node", "3", "--one-way"])?.ok()?;
        playground.seen(1, 3, false)?;
        playground.run(&["heal-node", "3"])?.ok()?;
        playground.healthy(3)?;
        // Joined: the next number alone.
        let line = playground.run(&["join-node", "7"])?.refused(2)?;
        ensure!(line.contains("node-4"), "{line}");
        for number in [4, 5] {
            let line = playground.run(&["join-node"])?.ok()?;
            ensure!(line.contains(&format!("node-{number}")), "{line}");
            playground.healthy(number)?;
        }
        let (_, status) = playground.status(5)?;
        let voters = status["nodes"].as_array().context("no nodes")?.iter().filter(|node| node["is_voter"] == true);
        ensure!(voters.count() == 5, "{status:#}");
        ensure!(playground.brickctl(&["peer", "list"])?.ok()?.lines().count() == 6);
        playground.stop()
    });
}

#[test]
fn a_playground_in_any_condition_is_stopped_and_leaves_nothing() {
    case(NEEDS, |case| {
        let playground = Playground::start(case, 3)?;
        playground.run(&["cut-node", "2"])?.ok()?;
        playground.run(&["pause-node", "3"])?.ok()?;
        playground.run(&["kill-node", "1"])?.ok()?;
        playground.stop()?;
        // Without its record there is nothing to stop; what others put there stays.
        let line = playground.run(&["stop"])?.refused(FAILED)?;
        ensure!(line.contains("no playground"), "{line}");
        let again = Playground::start(case, 2)?;
        let mine = again.dir.join("mine");
        fs::write(&mine, "kept").at(&mine)?;
        again.run(&["stop"])?.ok()?;
        ensure!(fs::read_to_string(&mine).at(&mine)? == "kept");
        fs::remove_file(&mine).and_then(|()| fs::remove_dir(&again.dir)).at(&again.dir)?;
        again.nothing_is_left()
    });
}
