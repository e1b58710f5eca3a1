//! `brickctl playground` as typed.

use clap::{Args as ClapArgs, Subcommand};
use std::path::PathBuf;

/// Most nodes of a playground: their names, ports and addresses end in one digit.
pub const NODES_MAX: u16 = 9;

/// `brickctl playground ...`
#[derive(Subcommand, Debug)]
pub enum PlaygroundCommand {
    /// Start brickd processes, make a volume over new bricks, and mount it
    Start(PlaygroundStart),
    /// Show what runs
    Status,
    /// Unmount and mount again, for a client with cold caches
    Remount,
    /// End a node at once (SIGKILL), as a loss of power would
    KillNode {
        /// The node: 2 or node-2
        #[arg(value_name = "I", value_parser = parse_node)]
        node: u16,
    },
    /// Start a node that is not running
    StartNode {
        /// The node: 2 or node-2
        #[arg(value_name = "I", value_parser = parse_node)]
        node: u16,
    },
    /// Stop a node in its tracks (SIGSTOP): its connections stay, but it does nothing
    PauseNode {
        /// The node: 2 or node-2
        #[arg(value_name = "I", value_parser = parse_node)]
        node: u16,
    },
    /// Let a paused node go on (SIGCONT)
    ResumeNode {
        /// The node: 2 or node-2
        #[arg(value_name = "I", value_parser = parse_node)]
        node: u16,
    },
    /// Cut a node off: packets between it and the other nodes are dropped (by nftables)
    CutNode {
        /// The node: 2 or node-2
        #[arg(value_name = "I", value_parser = parse_node)]
        node: u16,
        /// Cut it off from this node only [default: from all others]
        #[arg(long, value_name = "J", value_parser = parse_node)]
        from: Option<u16>,
        /// Drop only what node I sends; what is sent to it arrives
        #[arg(long)]
        one_way: bool,
    },
    /// End all cuts of a node
    HealNode {
        /// The node: 2 or node-2
        #[arg(value_name = "I", value_parser = parse_node)]
        node: u16,
    },
    /// Start one more node, and let it join
    JoinNode {
        /// The node: the next free number [default: that one]
        #[arg(value_name = "I", value_parser = parse_node)]
        node: Option<u16>,
    },
    /// Show how nodes agree, step by step: election, log, loss of the leader, merge
    Raft,
    /// Unmount, stop the processes and remove what was made
    Stop,
}

/// `brickctl playground start ...`
#[derive(ClapArgs, Debug)]
pub struct PlaygroundStart {
    /// How many brickd processes, 1 to 9
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub nodes: u16,
    /// How many bricks
    #[arg(long, default_value_t = 4, value_name = "B")]
    pub bricks: u16,
    /// Bricks of a replica set
    #[arg(long, default_value_t = 1, value_name = "R")]
    pub replica: u16,
    /// Replica sets of a stripe group
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub stripe: u16,
    /// Name of the volume
    #[arg(long, default_value = "demo", value_name = "V")]
    pub volume: String,
    /// Where to mount it; made if missing
    #[arg(long, default_value = "/mnt/brickfs", value_name = "DIR")]
    pub mount: PathBuf,
    /// Do not mount it
    #[arg(long)]
    pub no_mount: bool,
    /// TCP port of node-1; node I has the one I-1 above it [default: 10000, with one node no port]
    #[arg(long, value_name = "P")]
    pub base_port: Option<u16>,
}

/// `2` or `node-2`.
fn parse_node(text: &str) -> Result<u16, String> {
    let number = text.strip_prefix("node-").unwrap_or(text);
    match number.as_bytes() {
        [digit @ b'1'..=b'9'] => Ok(u16::from(digit - b'0')),
        _ => Err(format!("'{text}' is no node of a playground: give 1 to {NODES_MAX}, or node-1 to node-{NODES_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_number_or_a_name() {
        assert_eq!((parse_node("2"), parse_node("node-9")), (Ok(2), Ok(9)));
        for bad in ["", "0", "10", "node-", "node-0", "node-12", "two", "node2", "+1"] {
            assert!(parse_node(bad).is_err(), "{bad}");
        }
    }
}
