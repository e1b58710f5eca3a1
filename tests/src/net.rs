//! A network of the test's own: a namespace for each node, and a bridge in one more, so that nothing of it is in the
//! namespace of this machine. Packets from one node to another are dropped where they arrive, as if they had been lost
//! on the way: the sender gets no error.

use crate::nodes::Place;
use crate::process::state_of;
use crate::run::{Ran, run};
use anyhow::Context as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

const PREFIX: &str = "brickfs-test-";
const TABLE: &str = "brickfs_test";
const NAMED: &str = "/run/netns";
const SUBNET: &str = "10.77.0";
const PORT: u16 = 24_180;

/// Namespaces that go with the value.
pub struct Net {
    /// Of the nodes, by their numbers from 1; the bridge's is the first.
    names: Vec<String>,
    /// Rules are handed to nft in a file.
    rules: std::path::PathBuf,
}

fn program(name: &str) -> Command {
    let mut command = Command::new(crate::needs::find_program(name).unwrap_or_else(|| name.into()));
    command.current_dir("/");
    command
}

fn ip(args: &[&str]) -> anyhow::Result<Ran> {
    run(program("ip").args(args))
}

impl Net {
    /// A network of so many nodes that all reach each other.
    pub fn make(dir: &Path, count: usize) -> anyhow::Result<Net> {
        clear_abandoned();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let own = format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut net = Net { names: Vec::new(), rules: dir.join("rules.nft") };
        for number in 0..=count {
            let name = format!("{own}-{number}");
            ip(&["netns", "add", &name])?.ok()?;
            net.names.push(name);
        }
        let bridge = net.names[0].clone();
        ip(&["-n", &bridge, "link", "add", "br0", "type", "bridge"])?.ok()?;
        ip(&["-n", &bridge, "link", "set", "br0", "up"])?.ok()?;
        for number in 1..=count {
            let (name, port) = (net.names[number].as_str(), format!("port{number}"));
            let pair = ["link", "add", &port, "type", "veth", "peer", "name", "lan", "netns", name];
            ip(&[&["-n", &bridge], &pair[..]].concat())?.ok()?;
            ip(&["-n", &bridge, "link", "set", &port, "master", "br0", "up"])?.ok()?;
            ip(&["-n", name, "address", "add", &format!("{SUBNET}.{number}/24"), "dev", "lan"])?.ok()?;
            ip(&["-n", name, "link", "set", "lan", "up"])?.ok()?;
            ip(&["-n", name, "link", "set", "lo", "up"])?.ok()?;
        }
        Ok(net)
    }

    /// The place of a node.
    pub fn place(&self, number: usize) -> Place {
        let enter = format!("--net={NAMED}/{}", self.names[number]);
        Place {
            address: format!("{SUBNET}.{number}:{PORT}"),
            words_before: vec!["nsenter".to_owned(), enter],
            args: Vec::new(),
        }
    }

    /// From now on packets from the first to the second of each of these pairs are lost, and no others.
    pub fn lose(&self, pairs: &[(usize, usize)]) -> anyhow::Result<()> {
        for receiver in 1..self.names.len() {
            let mut rules = format!("table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n");
            rules.push_str("  chain arriving {\n    type filter hook input priority 0; policy accept;\n");
            for (sender, _) in pairs.iter().filter(|(_, to)| *to == receiver) {
                rules.push_str(&format!("    ip saddr {SUBNET}.{sender} counter drop\n"));
            }
            rules.push_str("  }\n}\n");
            File::create(&self.rules).and_then(|mut file| file.write_all(rules.as_bytes()))?;
            let mut nft = program("nsenter");
            nft.arg(format!("--net={NAMED}/{}", self.names[receiver]));
            nft.arg(crate::needs::find_program("nft").context("nft is gone")?).arg("-f").arg(&self.rules);
            run(&mut nft)?.ok()?;
        }
        Ok(())
    }

    /// All reach each other again.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.lose(&[])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| remove(name));
    }
}

fn remove(name: &str) {
    if let Err(error) = ip(&["netns", "delete", name]).and_then(|ran| ran.ok()) {
        eprintln!("cannot remove the network namespace {name}: {error:#}");
    }
}

/// Those of tests that were killed.
fn clear_abandoned() {
    for entry in fs::read_dir(NAMED).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if owner.is_some_and(|pid| state_of(pid).is_none()) {
            remove(&name);
        }
    }
}
