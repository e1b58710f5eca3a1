//! Cutting nodes off: packets between them are dropped by nftables, in a table of the playground's own. A node listens
//! on its port of 127.0.0.1 and connects from an address of its own, so that a packet tells sender and receiver. Only
//! TCP on the loopback interface between two nodes of this playground is ever matched.

use super::record::{Cut, LISTEN_ADDRESS, Playground, node_name, port_of, source_of};
use anyhow::{Context as _, bail};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where the program is; the second is not in everybody's PATH.
const NFT_PLACES: [&str; 2] = ["nft", "/usr/sbin/nft"];
const NFT_MISSING: &str = "cutting nodes off needs the program nft: install the package nftables";

/// A sender and a receiver whose packets are dropped.
type Pair = (u16, u16);

/// Makes the kernel drop what the record's cuts say, and nothing else any more.
pub fn apply(dir: &Path, record: &Playground) -> anyhow::Result<()> {
    let table = table_name(dir);
    let pairs = pairs_of(&record.cuts, &record.indexes());
    let rules = match record.base_port {
        Some(base_port) if !pairs.is_empty() => rules_of(&table, base_port, &pairs),
        _ => removal_of(&table),
    };
    run_nft(&rules)
}

/// Removes the table, also one that a playground left when it could not be stopped. Without nft there is none.
pub fn remove_table(dir: &Path) -> anyhow::Result<()> {
    if nft_version().is_none() {
        return Ok(());
    }
    run_nft(&removal_of(&table_name(dir)))
}

/// Fails, with what to do, if nodes cannot be cut off on this machine.
pub fn require_nft() -> anyhow::Result<()> {
    nft_version().map(|_| ()).context(NFT_MISSING)
}

/// A name that depends on the directory alone: FNV-1a, 64 bits.
fn table_name(dir: &Path) -> String {
    let hash = dir
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("brickfs_playground_{hash:016x}")
}

/// Who is dropped to whom.
fn pairs_of(cuts: &[Cut], nodes: &[u16]) -> BTreeSet<Pair> {
    let mut pairs = BTreeSet::new();
    for cut in cuts {
        for other in nodes.iter().filter(|other| **other != cut.node && cut.from.is_none_or(|from| from == **other)) {
            pairs.insert((cut.node, *other));
            if !cut.one_way {
                pairs.insert((*other, cut.node));
            }
        }
    }
    pairs
}

/// The names of the nodes that a node does not reach, or is not reached by.
pub fn cut_from(record: &Playground, node: u16) -> Vec<String> {
    let pairs = pairs_of(&record.cuts, &record.indexes());
    let is_cut = |other: &u16| pairs.contains(&(node, *other)) || pairs.contains(&(*other, node));
    record.indexes().into_iter().filter(is_cut).map(node_name).collect()
}

fn removal_of(table: &str) -> String {
    // Declared first, for one that is not there cannot be deleted.
    format!("table ip {table}\ndelete table ip {table}\n")
}

/// The whole table, in the place of the old one at once. A packet is dropped when it arrives, as if it had been lost
/// on the way: the sender gets no error.
fn rules_of(table: &str, base_port: u16, pairs: &BTreeSet<Pair>) -> String {
    let mut text = removal_of(table);
    text.push_str(&format!("table ip {table} {{\n  chain arriving {{\n"));
    text.push_str("    type filter hook input priority 0; policy accept;\n");
    for (sender, receiver) in pairs {
        let (from, to) = (source_of(*sender), source_of(*receiver));
        let (from_port, to_port) = (port_of(base_port, *sender), port_of(base_port, *receiver));
        // On a connection that the sender made, and on one that the receiver made.
        text.push_str(&format!(
            "    iif \"lo\" ip saddr {from} ip daddr {LISTEN_ADDRESS} tcp dport {to_port} counter drop\n    \
             iif \"lo\" ip saddr {LISTEN_ADDRESS} ip daddr {to} tcp sport {from_port} counter drop\n"
        ));
    }
    text.push_str("  }\n}\n");
    text
}

fn nft_version() -> Option<String> {
    NFT_PLACES.iter().find_map(|nft| {
        let output = Command::new(nft).arg("--version").stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    })
}

fn run_nft(rules: &str) -> anyhow::Result<()> {
    for nft in NFT_PLACES {
        let child = Command::new(nft)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .current_dir("/")
            .spawn();
        let mut child = match child {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            child => child.with_context(|| format!("cannot run {nft}"))?,
        };
        // Dropped when it is written: nft reads to the end. If it ended before, its status says why.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(rules.as_bytes()));
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("nft does not take the rules: {}", said.lines().next().unwrap_or("it does not say why"));
        }
        return Ok(());
    }
    bail!("{NFT_MISSING}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(node: u16, from: Option<u16>, one_way: bool) -> Cut {
        Cut { node, from, one_way }
    }

    #[test]
    fn cuts_are_pairs_of_sender_and_receiver() {
        let nodes = [1, 2, 3];
        let pairs = |cuts: &[Cut]| pairs_of(cuts, &nodes).into_iter().collect::<Vec<_>>();
        assert_eq!(pairs(&[cut(2, None, false)]), [(1, 2), (2, 1), (2, 3), (3, 2)]);
        assert_eq!(pairs(&[cut(2, Some(3), false)]), [(2, 3), (3, 2)]);
        assert_eq!(pairs(&[cut(2, None, true)]), [(2, 1), (2, 3)]);
        assert_eq!(pairs(&[cut(2, Some(1), true), cut(1, Some(2), true)]), [(1, 2), (2, 1)]);
        assert!(pairs(&[cut(2, Some(2), false), cut(2, Some(9), false)]).is_empty());
    }

    #[test]
    fn rules_name_only_loopback_tcp_of_two_nodes() {
        let text = rules_of("t", 10000, &BTreeSet::from([(2, 1)]));
        let expected = "table ip t\ndelete table ip t\ntable ip t {\n  chain arriving {\n    \
             type filter hook input priority 0; policy accept;\n    \
             iif \"lo\" ip saddr 127.0.1.2 ip daddr 127.0.0.1 tcp dport 10000 counter drop\n    \
             iif \"lo\" ip saddr 127.0.0.1 ip daddr 127.0.1.1 tcp sport 10001 counter drop\n  }\n}\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_table_is_named_after_its_directory() {
        let name = table_name(Path::new("/a"));
        assert_eq!(name, table_name(Path::new("/a")));
        assert_ne!(name, table_name(Path::new("/b")));
        assert!(name.len() == "brickfs_playground_".len() + 16 && name.starts_with("brickfs_playground_"));
    }
}
