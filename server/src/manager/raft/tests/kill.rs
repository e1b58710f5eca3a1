//! Real deaths: a process of its own proposes without end; it is stopped at arbitrary moments, its database
//! is copied as it is at that moment, which is what a kill would leave, and at last it is killed.

use super::mesh::{NoLink, TIMING, first_state, name_in, node, open_member, rename, soon};
use brickfs_common::cluster::state::{ClusterState, NodeState};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const DIR_VARIABLE: &str = "BRICKFS_TEST_RAFT_DIR";
/// The file that says how many commands were acknowledged, 8 bytes big-endian: written after each.
const COUNT_VARIABLE: &str = "BRICKFS_TEST_RAFT_COUNT";
/// How many nodes the state has.
const NODES_VARIABLE: &str = "BRICKFS_TEST_RAFT_NODES";
/// Kills of the same database, one after another, and copies before each.
const KILLS: u64 = 4;
const COPIES: u64 = 8;

/// The proposing process: this test binary, started again by the test below.
#[test]
fn proposer_process() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else { return };
    let running = open_member(Path::new(&dir), node(1), Arc::new(NoLink), TIMING).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        running.member.found(state_of_size(), soon()).await.unwrap();
        let count = File::create(std::env::var_os(COUNT_VARIABLE).unwrap()).unwrap();
        let done = running.member.state().unwrap().applied;
        for id in done + 1.. {
            // Of all sizes, so that the copies fall into long and short writes.
            let name = format!("{id}-{}", "x".repeat((id * 37 % 200) as usize));
            let outcome = running.member.propose(rename(id.into(), &name), soon()).await.unwrap();
            assert_eq!(outcome.number, id);
            count.write_all_at(&id.to_be_bytes(), 0).unwrap();
        }
    });
}

/// The first state, with as many nodes as asked for.
fn state_of_size() -> ClusterState {
    let mut state = first_state();
    let nodes: u64 = std::env::var(NODES_VARIABLE).unwrap().parse().unwrap();
    for number in 2..=nodes {
        let other = NodeState::first(&format!("node-{number}"), vec!["192.0.2.1:24180".to_owned(); 2]);
        state.nodes.insert(node(number), other);
    }
    state
}

struct Proposer {
    child: Child,
    count_path: PathBuf,
}

impl Proposer {
    fn start(dir: &Path, count_path: PathBuf, nodes: u64) -> Proposer {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "manager::raft::tests::kill::proposer_process"])
            .env(DIR_VARIABLE, dir)
            .env(COUNT_VARIABLE, &count_path)
            .env(NODES_VARIABLE, nodes.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Proposer { child, count_path }
    }

    /// How many commands were acknowledged to it.
    fn acknowledged(&self) -> u64 {
        let count = fs::read(&self.count_path).unwrap_or_default();
        count.try_into().map_or(0, u64::from_be_bytes)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops the process and waits until all of its threads stand.
    fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let stands = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T') || rest.is_empty())
        };
        while !fs::read_dir(&tasks).unwrap().all(|task| stands(task.unwrap())) {
            std::thread::yield_now();
        }
    }

    fn wait_acknowledged(&mut self, count: u64) {
        let give_up = soon();
        while self.acknowledged() < count {
            assert!(self.child.try_wait().unwrap().is_none(), "the proposer ended by itself");
            assert!(std::time::Instant::now() < give_up, "no progress");
            std::thread::yield_now();
        }
    }
}

impl Drop for Proposer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Opens what a death left: every acknowledged command is there, at most the one under way besides, and
/// opening has checked that the log has no hole.
fn check(dir: &Path, acknowledged: u64) {
    let running = open_member(dir, node(1), Arc::new(NoLink), TIMING)
        .unwrap_or_else(|error| panic!("after {acknowledged} commands: {error:#}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        running.member.found(first_state(), soon()).await.unwrap();
        running.member.read_barrier(soon()).await.unwrap();
        let applied = running.member.state().unwrap().applied;
        assert!(applied == acknowledged || applied == acknowledged + 1, "{applied}, acknowledged {acknowledged}");
        let name = name_in(&running.member);
        assert!(applied == 0 || name.starts_with(&format!("{applied}-")), "{name}");
        if let Some(recent) = acknowledged.checked_sub(1).filter(|recent| *recent > 0) {
            let again = running.member.propose(rename(recent.into(), "again"), soon()).await.unwrap();
            assert_eq!((again.number, name_in(&running.member)), (recent, name));
        }
    });
}

#[test]
fn every_acknowledged_command_survives_a_kill_at_any_moment() {
    kill_often(1);
}

/// The same where the state is so large that sled keeps it in files of its own.
#[test]
fn every_acknowledged_command_survives_a_kill_where_the_state_is_large() {
    kill_often(2000);
}

fn kill_often(nodes: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (live, count) = (dir.path().join("live"), dir.path().join("acknowledged"));
    fs::create_dir(&live).unwrap();
    let mut copies = Vec::new();
    let mut acknowledged = 0;
    for kill in 0..KILLS {
        let mut proposer = Proposer::start(&live, count.clone(), nodes);
        for copy in 0..COPIES {
            proposer.wait_acknowledged(acknowledged + 1 + copy * 11);
            // Another moment of a command's life each time: when it is frozen is what varies, nothing waits for anything.
            std::thread::sleep(Duration::from_micros(copy * 397 % 5000));
            proposer.freeze();
            let to = dir.path().join(format!("copy-{kill}-{copy}"));
            copy_dir(&live, &to);
            copies.push((to, proposer.acknowledged()));
            proposer.signal(rustix::process::Signal::CONT);
        }
        proposer.signal(rustix::process::Signal::KILL);
        proposer.child.wait().unwrap();
        acknowledged = proposer.acknowledged();
        check(&live, acknowledged);
        acknowledged += 1;
    }
    for (copy, acknowledged) in copies {
        check(&copy, acknowledged);
    }
}
