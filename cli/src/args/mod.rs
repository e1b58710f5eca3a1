//! The command line as typed.

mod peer;
mod playground;

pub use peer::PeerCommand;
pub use playground::{NODES_MAX, PlaygroundCommand, PlaygroundStart};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// brickctl: administrates a BrickFS cluster
#[derive(Parser, Debug)]
#[command(name = "brickctl", version, after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 degraded (with --check).")]
pub struct Args {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub group: Group,
}

/// Options of every command.
#[derive(ClapArgs, Debug, Default)]
pub struct Global {
    /// Talk to the playground with this state directory [default: the playground that is running, if one is]
    #[arg(long, value_name = "STATE", env = "BRICKFS_PLAYGROUND", global = true)]
    pub dir: Option<PathBuf>,
    /// Talk to the brickd that listens here [default: /run/brickfs/brickd.sock]
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// How to print
    #[arg(short = 'o', long, value_name = "FORMAT", value_enum, default_value = "text", global = true)]
    pub output: Format,
    /// Answer every question with yes
    #[arg(short = 'y', long, global = true)]
    pub yes: bool,
}

/// How to print.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Tables for people
    #[default]
    Text,
    /// JSON with a stable schema
    Json,
}

/// The groups of commands.
#[derive(Subcommand, Debug)]
pub enum Group {
    /// Volumes: make, start, stop, look at, set options
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// The cluster: its nodes, and how they agree
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// The nodes of the cluster: let one join, list them, remove one
    #[command(subcommand)]
    Peer(PeerCommand),
    /// A whole cluster on this machine, to try things out
    #[command(subcommand)]
    Playground(PlaygroundCommand),
}

/// `brickctl volume ...`
#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    /// Make a volume of bricks; it is stopped at first
    Create {
        /// Name of the new volume
        name: String,
        /// Bricks of a replica set
        #[arg(long, default_value_t = 1, value_name = "R")]
        replica: u16,
        /// Replica sets of a stripe group
        #[arg(long, default_value_t = 1, value_name = "S")]
        stripe: u16,
        /// Also take bricks on the root file system
        #[arg(long)]
        force: bool,
        /// The bricks in order, NODE:/PATH each; the last directory of a path is made
        #[arg(required = true, value_name = "BRICK")]
        bricks: Vec<String>,
    },
    /// Serve a volume
    Start {
        /// The volume
        name: String,
    },
    /// Serve a volume no more; mounts of it get errors
    Stop {
        /// The volume
        name: String,
    },
    /// Forget a stopped volume; what its bricks hold stays there
    Delete {
        /// The volume
        name: String,
    },
    /// List the volumes
    List,
    /// Show type, bricks and options of a volume, or of all
    Info {
        /// The volume
        name: Option<String>,
    },
    /// Show how the bricks of a volume are
    Status {
        /// The volume
        name: String,
        /// Exit with 3 if anything is not as it should be
        #[arg(long)]
        check: bool,
    },
    /// Set an option
    Set {
        /// The volume
        name: String,
        /// The option
        key: String,
        /// Its value
        value: String,
    },
    /// Show options and their values
    Get {
        /// The volume
        name: String,
        /// The option [default: all]
        key: Option<String>,
    },
    /// Give an option, or all, its default again
    Reset {
        /// The volume
        name: String,
        /// The option [default: all]
        key: Option<String>,
    },
}

/// `brickctl cluster ...`
#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    /// Show the nodes: who leads, who votes, who can be reached
    Status {
        /// Exit with 3 if anything is not as it should be
        #[arg(long)]
        check: bool,
    },
    /// Show Raft on each node: term, vote, leader, log
    Raft {
        /// Go on, a table whenever something changes, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Write the configuration of the cluster to a file: nodes, volumes, options, clients; not what volumes hold
    Backup {
        /// The file
        file: PathBuf,
        /// File with the passphrase that encrypts the authority's key; without one the key is not in the backup
        #[arg(long, value_name = "F")]
        passphrase_file: Option<PathBuf>,
    },
    /// Begin the cluster anew on this node, which is alone, from a backup: for when too many nodes are lost
    Restore {
        /// The file
        file: PathBuf,
        /// File with the passphrase of the authority's key
        #[arg(long, value_name = "F")]
        passphrase_file: Option<PathBuf>,
        /// Whose place this node takes [default: the only one, or the one with this node's name]
        #[arg(long = "as", value_name = "NODE")]
        as_node: Option<String>,
        /// Make a new authority although the backup has one: clients need new bundles
        #[arg(long, conflicts_with = "passphrase_file")]
        new_authority: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent_and_reads_what_scripts_type() {
        Args::command().debug_assert();
        let typed = "brickctl playground start --nodes 1 --bricks 4 --replica 1 --stripe 1 --volume v --mount /m \
                     --dir /d --no-mount --base-port 30000";
        let args = Args::try_parse_from(typed.split_whitespace()).unwrap();
        assert_eq!(args.global.dir.as_deref(), Some(std::path::Path::new("/d")));
        let args = Args::try_parse_from(["brickctl", "volume", "info", "v", "-o", "json"]).unwrap();
        assert_eq!(args.global.output, Format::Json);
        let args = Args::try_parse_from(["brickctl", "volume", "stop", "v", "-y"]).unwrap();
        assert!(args.global.yes);
        assert!(Args::try_parse_from(["brickctl", "volume", "create", "v"]).is_err());
    }
}
