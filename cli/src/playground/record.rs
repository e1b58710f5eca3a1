//! `playground.json`: what a playground is made of, so that any later `brickctl` can go on with it and take it down.
//! It is saved before what it names is made.

use super::process::{self, Life};
use crate::args::NODES_MAX;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub const RECORD_NAME: &str = "playground.json";
/// Version 1 knew one node, no ports and no cuts; it is read as such.
pub const RECORD_VERSION: u32 = 2;
/// Where brickd listens for other nodes; their own connections come from 127.0.1.I, so that they can be told apart.
pub const LISTEN_ADDRESS: &str = "127.0.0.1";

/// What runs here.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Playground {
    pub version: u32,
    pub volume: String,
    /// Where it is mounted, absolute; none with `--no-mount`.
    pub mount: Option<PathBuf>,
    /// Whether the mount point was made, and goes with the playground.
    pub is_mount_dir_made: bool,
    /// Whether the state directory was made, and goes with the playground.
    pub is_dir_made: bool,
    /// TCP port of node-1; none if brickd listens on its Unix socket alone.
    #[serde(default)]
    pub base_port: Option<u16>,
    pub nodes: Vec<PlaygroundNode>,
    /// Who is cut off from whom.
    #[serde(default)]
    pub cuts: Vec<Cut>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct PlaygroundNode {
    pub name: String,
    /// Its process, or the last that it had; 0 before the first.
    pub pid: u32,
}

/// Packets that are dropped.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The node that is cut off.
    pub node: u16,
    /// The node from which; none is all others.
    pub from: Option<u16>,
    /// Only what `node` sends is dropped.
    pub one_way: bool,
}

/// Where the files of one node are.
pub struct NodePaths {
    pub dir: PathBuf,
    pub state: PathBuf,
    pub socket: PathBuf,
    pub log: PathBuf,
    pub pid: PathBuf,
}

impl NodePaths {
    pub fn of(playground: &Path, name: &str) -> NodePaths {
        let dir = playground.join(name);
        NodePaths {
            state: dir.join("state"),
            socket: dir.join("brickd.sock"),
            log: dir.join("brickd.log"),
            pid: dir.join("brickd.pid"),
            dir,
        }
    }
}

/// `node-2` for 2.
pub fn node_name(index: u16) -> String {
    format!("node-{index}")
}

impl PlaygroundNode {
    /// 2 for `node-2`.
    pub fn index(&self) -> anyhow::Result<u16> {
        let index = (1..=NODES_MAX).find(|index| node_name(*index) == self.name);
        index.with_context(|| format!("'{}' cannot name a node of a playground", self.name))
    }
}

impl Playground {
    pub fn load(dir: &Path) -> anyhow::Result<Option<Playground>> {
        let path = dir.join(RECORD_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut record: Playground =
            serde_json::from_slice(&text).with_context(|| format!("{} cannot be read", path.display()))?;
        if !(1..=RECORD_VERSION).contains(&record.version) {
            bail!("{} has version {}, this brickctl reads {RECORD_VERSION}", path.display(), record.version);
        }
        record.version = RECORD_VERSION;
        for node in &record.nodes {
            node.index().with_context(|| format!("{} cannot be read", path.display()))?;
        }
        Ok(Some(record))
    }

    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let (path, tmp) = (dir.join(RECORD_NAME), dir.join("playground.json.tmp"));
        fs::write(&tmp, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&tmp, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn node(&self, index: u16) -> anyhow::Result<&PlaygroundNode> {
        let name = node_name(index);
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("there is no {name} in this playground, it has {}", names.join(", "))
        })
    }

    /// Notes the process of a node, a new one or one of those that are there.
    pub fn note_pid(&mut self, index: u16, pid: u32) {
        let name = node_name(index);
        match self.nodes.iter_mut().find(|node| node.name == name) {
            Some(node) => node.pid = pid,
            None => self.nodes.push(PlaygroundNode { name, pid }),
        }
    }

    /// The numbers of its nodes.
    pub fn indexes(&self) -> Vec<u16> {
        self.nodes.iter().filter_map(|node| node.index().ok()).collect()
    }

    pub fn life_of(&self, dir: &Path, node: &PlaygroundNode) -> Life {
        process::look(node.pid, &NodePaths::of(dir, &node.name).state)
    }

    /// Whether any of its processes is there, paused or not.
    pub fn is_running(&self, dir: &Path) -> bool {
        self.nodes.iter().any(|node| self.life_of(dir, node) != Life::Gone)
    }

    /// The first node that can answer.
    pub fn living_node(&self, dir: &Path) -> Option<&PlaygroundNode> {
        self.nodes.iter().find(|node| self.life_of(dir, node) == Life::Running)
    }
}

/// The port of a node. The record was checked to have room for all of them.
pub fn port_of(base_port: u16, index: u16) -> u16 {
    base_port.saturating_add(index - 1)
}

/// Where the connections that a node makes come from.
pub fn source_of(index: u16) -> String {
    format!("127.0.1.{index}")
}

/// The options of `brickd` about other nodes.
pub fn listen_options(base_port: Option<u16>, index: u16) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match base_port {
        None => words(&["--listen", "none"]),
        Some(base_port) => {
            let address = format!("{LISTEN_ADDRESS}:{}", port_of(base_port, index));
            words(&["--listen", &address, "--connect-from", &source_of(index)])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Playground {
        Playground {
            version: RECORD_VERSION,
            volume: "demo".to_owned(),
            mount: Some("/m".into()),
            is_mount_dir_made: true,
            is_dir_made: false,
            base_port: Some(10000),
            nodes: vec![PlaygroundNode { name: node_name(1), pid: std::process::id() }],
            cuts: vec![Cut { node: 1, from: None, one_way: false }],
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Playground::load(dir.path()).unwrap(), None);
        let record = record();
        record.save(dir.path()).unwrap();
        assert_eq!(Playground::load(dir.path()).unwrap().as_ref(), Some(&record));
        assert!(!record.is_running(dir.path()), "this test is no brickd");
        let next = Playground { version: RECORD_VERSION + 1, ..record.clone() };
        next.save(dir.path()).unwrap();
        assert!(Playground::load(dir.path()).is_err());
        let other = Playground { nodes: vec![PlaygroundNode { name: "../x".to_owned(), pid: 1 }], ..record };
        other.save(dir.path()).unwrap();
        assert!(Playground::load(dir.path()).is_err());
        fs::write(dir.path().join(RECORD_NAME), "{").unwrap();
        assert!(Playground::load(dir.path()).is_err());
    }

    #[test]
    fn a_record_of_the_version_before_is_one_node_on_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"version":1,"volume":"demo","mount":null,"is_mount_dir_made":false,"is_dir_made":true,
                       "nodes":[{"name":"node-1","pid":7}]}"#;
        fs::write(dir.path().join(RECORD_NAME), text).unwrap();
        let record = Playground::load(dir.path()).unwrap().unwrap();
        assert_eq!((record.version, record.base_port, record.cuts.len()), (RECORD_VERSION, None, 0));
        assert_eq!(listen_options(record.base_port, 1), ["--listen", "none"]);
    }

    #[test]
    fn a_node_is_started_by_its_number_alone() {
        let mut record = record();
        record.note_pid(2, 11);
        record.note_pid(1, 12);
        assert_eq!((record.indexes(), record.node(1).unwrap().pid), (vec![1, 2], 12));
        assert!(record.node(3).unwrap_err().to_string().contains("it has node-1, node-2"));
        let options = listen_options(record.base_port, 2);
        assert_eq!(options, ["--listen", "127.0.0.1:10001", "--connect-from", "127.0.1.2"]);
    }
}
