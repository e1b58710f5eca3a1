//! Several real `brickd`: each with its own state directory, socket and address, one cluster or each for itself. Nodes
//! are called by their numbers, from 1: `node-1` and so on. What ends, ends with the value, also after a panic.

use crate::admin::Admin;
use crate::at::At as _;
use crate::eventually::eventually_ok;
use crate::launcher::Launcher;
use crate::process::{Process, state_of};
use crate::run::{Ran, program, run};
use anyhow::{Context as _, ensure};
use rand::Rng as _;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a node may take to start: it waits up to 3 s for its cluster.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long nodes may take to be a healthy cluster.
pub const HEALTHY_TIMEOUT: Duration = Duration::from_secs(30);
/// Not among those that the kernel gives to connections.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// The volume that commands are about.
pub const VOLUME: &str = "vol";

/// Where a node is to be found, and how its process is started.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it listens, and what the others are told.
    pub address: String,
    /// Words that go before `brickd`, such as those that enter a network namespace.
    pub words_before: Vec<String>,
    /// Further arguments.
    pub args: Vec<String>,
}

struct Node {
    /// The directory with its state, log and socket.
    home: PathBuf,
    /// Where its state is.
    state: PathBuf,
    place: Place,
    process: Option<Process>,
}

/// Nodes of one test.
pub struct Nodes {
    dir: PathBuf,
    launcher: Launcher,
    nodes: Vec<Node>,
}

/// A port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> anyhow::Result<u16> {
    eventually_ok("a free port", READY_TIMEOUT, || {
        let port = rand::rng().random_range(PORTS);
        TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("port {port}"))?;
        Ok(port)
    })
}

/// `node-2` for 2.
pub fn name_of(number: usize) -> String {
    format!("node-{number}")
}

impl Nodes {
    /// No node yet.
    pub fn none(dir: &Path) -> anyhow::Result<Nodes> {
        Ok(Nodes { dir: dir.to_owned(), launcher: Launcher::start()?, nodes: Vec::new() })
    }

    /// So many nodes, each a cluster of its own.
    pub fn apart(dir: &Path, count: usize) -> anyhow::Result<Nodes> {
        let mut nodes = Nodes::none(dir)?;
        (0..count).try_for_each(|_| nodes.add(&[]).map(drop))?;
        Ok(nodes)
    }

    /// A healthy cluster of so many nodes.
    pub fn cluster(dir: &Path, count: usize) -> anyhow::Result<Nodes> {
        let nodes = Nodes::apart(dir, count)?;
        nodes.join_all()?;
        Ok(nodes)
    }

    /// Starts one more node on a free port, alone, with further arguments; its number.
    pub fn add(&mut self, args: &[&str]) -> anyhow::Result<usize> {
        let number = self.nodes.len() + 1;
        let from = ["--connect-from".to_owned(), format!("127.0.1.{number}")];
        let args = from.into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect();
        let address = format!("127.0.0.1:{}", free_port()?);
        self.add_at(Place { address, words_before: Vec::new(), args }, None)
    }

    /// Starts one more node at a place, alone, its state where it is said; its number.
    pub fn add_at(&mut self, place: Place, state: Option<PathBuf>) -> anyhow::Result<usize> {
        let number = self.nodes.len() + 1;
        let home = self.dir.join(name_of(number));
        fs::create_dir_all(&home).at(&home)?;
        let state = state.unwrap_or_else(|| home.join("state"));
        self.nodes.push(Node { home, state, place, process: None });
        self.start(number)?;
        Ok(number)
    }

    /// Lets all others join the first and waits until all is well.
    pub fn join_all(&self) -> anyhow::Result<()> {
        (2..=self.count()).try_for_each(|number| self.join(number, 1))?;
        self.wait_healthy()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// All numbers.
    pub fn numbers(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.count()
    }

    /// The numbers of those whose process is there and goes on.
    pub fn running(&self) -> Vec<usize> {
        self.numbers().filter(|number| self.is_running(*number)).collect()
    }

    fn is_running(&self, number: usize) -> bool {
        self.node(number).process.as_ref().and_then(|process| state_of(process.pid())).is_some_and(|state| state != 'T')
    }

    fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// The socket of a node.
    pub fn socket(&self, number: usize) -> PathBuf {
        self.node(number).home.join("brickd.sock")
    }

    /// All sockets.
    pub fn sockets(&self) -> Vec<PathBuf> {
        self.numbers().map(|number| self.socket(number)).collect()
    }

    /// The state directory of a node.
    pub fn state_dir(&self, number: usize) -> &Path {
        &self.node(number).state
    }

    /// The log of a node, all its lives.
    pub fn log(&self, number: usize) -> String {
        fs::read_to_string(self.node(number).home.join("brickd.log")).unwrap_or_default()
    }

    /// Where a node is; what is changed counts from its next start on.
    pub fn place_mut(&mut self, number: usize) -> &mut Place {
        &mut self.nodes[number - 1].place
    }

    /// Where a node is.
    pub fn address(&self, number: usize) -> &str {
        &self.node(number).place.address
    }

    /// A connection for commands of the test's own.
    pub fn admin(&self, number: usize) -> anyhow::Result<Admin> {
        Admin::new(&self.socket(number))
    }

    /// Runs `brickctl` against a node.
    pub fn brickctl(&self, number: usize, args: &[&str]) -> anyhow::Result<Ran> {
        let mut command = Command::new(program("brickctl")?);
        command.env_remove("BRICKFS_PLAYGROUND").arg("--socket").arg(self.socket(number)).arg("-y");
        run(command.args(args))
    }

    /// Runs `brickctl` against a node; what it prints as JSON.
    pub fn json(&self, number: usize, args: &[&str]) -> anyhow::Result<Value> {
        let text = self.brickctl(number, &[args, &["-o", "json"]].concat())?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("{args:?}: {text}"))
    }

    /// `cluster status` as a node sees it.
    pub fn status(&self, number: usize) -> anyhow::Result<Value> {
        self.json(number, &["cluster", "status"])
    }

    /// A node's own row of `cluster raft`.
    pub fn raft(&self, number: usize) -> anyhow::Result<Value> {
        let report = self.json(number, &["cluster", "raft"])?;
        let rows = report["nodes"].as_array().context("no nodes")?;
        let own = rows.iter().find(|row| row["name"] == name_of(number).as_str()).context("not its own row")?;
        ensure!(own["raft"].is_object(), "{number} says nothing of itself: {own}");
        Ok(own["raft"].clone())
    }

    /// A new token, made by a node.
    pub fn token(&self, number: usize) -> anyhow::Result<String> {
        Ok(self.brickctl(number, &["peer", "token"])?.ok()?.trim().to_owned())
    }

    /// Lets a node join with a token of another.
    pub fn join(&self, number: usize, through: usize) -> anyhow::Result<()> {
        let token = self.token(through)?;
        self.brickctl(number, &["peer", "join", "--token", &token])?.ok().map(drop)
    }

    /// Waits until the nodes that run are well, as each of them sees it.
    pub fn wait_healthy(&self) -> anyhow::Result<()> {
        for number in self.running() {
            eventually_ok("the cluster is healthy", HEALTHY_TIMEOUT, || {
                let status = self.status(number)?;
                ensure!(status["healthy"] == true, "node-{number} says {status:#}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The node that leads, as it says itself and the running ones agree.
    pub fn leader(&self) -> anyhow::Result<usize> {
        eventually_ok("a leader that all know", HEALTHY_TIMEOUT, || {
            let mut leaders = BTreeSet::new();
            for number in self.running() {
                let raft = self.raft(number)?;
                leaders.insert(raft["leader"].as_str().context("no leader")?.to_owned());
            }
            ensure!(leaders.len() == 1, "{leaders:?}");
            let leader = leaders.first().context("nobody runs")?;
            let leader = self.numbers().find(|number| name_of(*number) == *leader).context("a stranger leads")?;
            ensure!(self.raft(leader)?["role"] == "leader", "it does not say so itself");
            Ok(leader)
        })
    }

    /// The names of the voters, as a node sees them.
    pub fn voters(&self, number: usize) -> anyhow::Result<Vec<String>> {
        let status = self.status(number)?;
        let nodes = status["nodes"].as_array().context("no nodes")?;
        let voters = nodes.iter().filter(|node| node["is_voter"] == true);
        Ok(voters.filter_map(|node| node["name"].as_str().map(str::to_owned)).collect())
    }

    /// The readable state of a node.
    pub fn cluster_json(&self, number: usize) -> anyhow::Result<Value> {
        let path = self.state_dir(number).join("cluster.json");
        Ok(serde_json::from_slice(&fs::read(&path).at(&path)?)?)
    }

    /// How many commands have made the state of a node.
    pub fn commands(&self, number: usize) -> anyhow::Result<u64> {
        self.raft(number)?["commands"].as_u64().context("no count of commands")
    }

    /// Waits until the nodes that run have the same state, and gives it.
    pub fn wait_equal(&self) -> anyhow::Result<Value> {
        self.wait_equal_of(&self.running())
    }

    /// Waits until these nodes have the same state, and gives it.
    pub fn wait_equal_of(&self, nodes: &[usize]) -> anyhow::Result<Value> {
        eventually_ok("the nodes have the same state", HEALTHY_TIMEOUT, || {
            let first = nodes.first().context("nobody runs")?;
            let (state, count) = (self.cluster_json(*first)?, self.commands(*first)?);
            for number in &nodes[1..] {
                let others = self.commands(*number)?;
                ensure!(others == count, "node-{first} has {count} commands, node-{number} has {others}");
                ensure!(self.cluster_json(*number)? == state, "node-{first} and node-{number} differ");
            }
            Ok(state)
        })
    }

    /// Makes a volume of one brick on a node; it is not started.
    pub fn make_volume(&self, number: usize, name: &str) -> anyhow::Result<()> {
        let brick = format!("{}:{}", name_of(number), self.node(number).home.join(format!("brick-{name}")).display());
        self.brickctl(number, &["volume", "create", name, "--force", &brick])?.ok().map(drop)
    }

    /// SIGKILL.
    pub fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        let process = self.nodes[number - 1].process.take().with_context(|| format!("node-{number} does not run"))?;
        ensure!(state_of(process.pid()).is_some(), "node-{number} ended by itself: {}", self.last_lines(number));
        process.kill()
    }

    /// SIGTERM: it must end by itself.
    pub fn stop(&mut self, number: usize) -> anyhow::Result<()> {
        let process = self.nodes[number - 1].process.take().with_context(|| format!("node-{number} does not run"))?;
        process.signal(Signal::TERM)?;
        ensure!(process.has_ended_within(STOP_TIMEOUT)?, "node-{number} does not end after SIGTERM");
        Ok(())
    }

    /// SIGSTOP; on return it does nothing more.
    pub fn pause(&self, number: usize) -> anyhow::Result<()> {
        let process = self.process(number)?;
        process.signal(Signal::STOP)?;
        crate::eventually::eventually("the process stands still", STOP_TIMEOUT, || state_of(process.pid()) == Some('T'))
    }

    /// SIGCONT.
    pub fn resume(&self, number: usize) -> anyhow::Result<()> {
        self.process(number)?.signal(Signal::CONT)
    }

    /// The process of a node.
    pub fn process(&self, number: usize) -> anyhow::Result<&Process> {
        self.node(number).process.as_ref().with_context(|| format!("node-{number} does not run"))
    }

    /// Starts a node, and waits until it answers.
    pub fn start(&mut self, number: usize) -> anyhow::Result<()> {
        self.launch(number)?;
        self.wait_ready(number)
    }

    /// Starts a node and does not wait: several that need each other can start at once.
    pub fn launch(&mut self, number: usize) -> anyhow::Result<()> {
        let (socket, node) = (self.socket(number), &self.nodes[number - 1]);
        ensure!(node.process.is_none(), "node-{number} runs already");
        let (log, state, name) = (node.home.join("brickd.log"), node.state.display().to_string(), name_of(number));
        let mut line = node.place.words_before.clone();
        line.push(program("brickd")?.display().to_string());
        let listen = &node.place.address;
        let socket = socket.display().to_string();
        let own = ["--state", &state, "--socket", &socket, "--node-name", &name, "--listen", listen];
        line.extend(own.iter().map(|word| (*word).to_owned()));
        line.extend(node.place.args.iter().cloned());
        let line: Vec<&Path> = line.iter().map(Path::new).collect();
        let pid = self.launcher.launch(&line, &log)?;
        self.nodes[number - 1].process = Some(Process::open(pid)?);
        Ok(())
    }

    /// Waits until a node that was launched answers.
    pub fn wait_ready(&self, number: usize) -> anyhow::Result<()> {
        let (pid, socket) = (self.process(number)?.pid(), self.socket(number));
        eventually_ok("brickd answers", READY_TIMEOUT, || {
            // One that has ended will not answer any more.
            ensure!(state_of(pid).is_some(), "node-{number} ended: {}", self.last_lines(number));
            UnixStream::connect(&socket).at(&socket)
        })?;
        Ok(())
    }

    /// A node loses its disk: it is killed, and its state directory is gone.
    pub fn wipe(&mut self, number: usize) -> anyhow::Result<()> {
        self.kill(number)?;
        let state = self.state_dir(number);
        fs::remove_dir_all(state).at(state)
    }

    /// The end of a node's log, for messages.
    pub fn last_lines(&self, number: usize) -> String {
        let log = self.log(number);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.take()) {
            let _ = process.kill(); // the directory's clearing looks again
        }
    }
}
