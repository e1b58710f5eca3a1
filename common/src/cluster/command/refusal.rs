//! Why a command is refused: one line for people, with what is wrong and what to do.

use crate::cluster::address::BadAddress;
use crate::cluster::command::set::SETS_PER_COMMAND_MAX;
use crate::cluster::state::{ADDRESSES_MAX, CLIENTS_MAX, NODES_MAX, REVOKED_MAX, TOKENS_MAX, VOLUMES_MAX};
use crate::ids::{CertSerial, NodeId, SetId, VolumeId};
use crate::membership::transition::SetRefusal;
use crate::volume_spec::{BadOption, VOLUME_BRICKS_MAX};

/// Why a command was refused. One line: what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A create that was interrupted and given up.
    #[error("the create was interrupted and given up: nothing of it is left, give it again")]
    GivenUp,
    /// The name cannot be a volume's.
    #[error("'{0}' cannot name a volume: give 1 to 64 letters, digits, '_' or '-', not starting with '-'")]
    BadVolumeName(String),
    /// The name is taken.
    #[error("volume '{0}' exists already: choose another name, or see 'brickctl volume info {0}'")]
    VolumeExists(String),
    /// No such volume.
    #[error("there is no volume '{0}': 'brickctl volume list' shows the volumes")]
    NoSuchVolume(String),
    /// A count of bricks that no volume has.
    #[error("a volume has 1 to {VOLUME_BRICKS_MAX} bricks, not {0}")]
    BadBrickCount(usize),
    /// A replica or stripe count of nothing.
    #[error("--{0} must be at least 1")]
    ZeroCount(&'static str),
    /// Bricks that do not fill whole groups.
    #[error(
        "the number of bricks ({bricks}) is not a multiple of replica x stripe ({replica} x {stripe}): add or remove bricks"
    )]
    NotAMultiple {
        /// How many were given.
        bricks: usize,
        /// The replica count.
        replica: u16,
        /// The stripe count.
        stripe: u16,
    },
    /// Replication does not exist yet.
    #[error("--replica {0} comes with replication, which this version does not have: leave --replica out")]
    NoReplicas(u16),
    /// Stripes do not exist yet.
    #[error("--stripe {0} comes with striped volumes, which this version does not have: leave --stripe out")]
    NoStripes(u16),
    /// A brick on an unknown node.
    #[error("brick {path}: node {node} is not in this cluster")]
    NoSuchNode {
        /// The node.
        node: NodeId,
        /// The brick's path.
        path: String,
    },
    /// A path that is not in its normal form.
    #[error("brick path '{0}' must be absolute, without '.', '..' or empty components, and not '/'")]
    BadPath(String),
    /// A brick given twice.
    #[error("brick {0} is given twice: every brick needs a directory of its own")]
    BrickTwice(String),
    /// A brick of a volume already.
    #[error("brick {brick} is used by volume '{volume}' already: use another directory")]
    BrickUsed {
        /// `node:/path`.
        brick: String,
        /// Who uses it.
        volume: String,
    },
    /// A brick inside or around another.
    #[error("brick {brick} is {side} brick {other} of volume '{volume}': use a directory apart from it")]
    BrickOverlaps {
        /// `node:/path`.
        brick: String,
        /// "in" or "above".
        side: &'static str,
        /// The other brick.
        other: String,
        /// The other's volume.
        volume: String,
    },
    /// The same id again.
    #[error("the id {0} is in use already: try again")]
    IdUsed(String),
    /// Started already.
    #[error("volume '{0}' is started already")]
    AlreadyStarted(String),
    /// Stopped already.
    #[error("volume '{0}' is not started")]
    NotStarted(String),
    /// Deleting a started volume.
    #[error("volume '{0}' is started: stop it first with 'brickctl volume stop {0}'")]
    StillStarted(String),
    /// A bad option or value.
    #[error(transparent)]
    Option(#[from] BadOption),
    /// A bad node name.
    #[error("'{0}' cannot name a node: give 1 to 253 letters, digits, '.', '_' or '-'")]
    BadNodeName(String),
    /// A node name that is taken.
    #[error("another node is called '{0}' already")]
    NodeNameUsed(String),
    /// Renaming an unknown node.
    #[error("there is no node {0} in this cluster")]
    UnknownNode(NodeId),
    /// A brick on a node that has none.
    #[error("node '{0}' is a witness and has no bricks: name a server")]
    WitnessBrick(String),
    /// A set that is not there.
    #[error("there is no set {set} of a volume with id {volume}")]
    NoSuchSet {
        /// The volume.
        volume: VolumeId,
        /// The set.
        set: SetId,
    },
    /// A change of a set that is refused.
    #[error("set {set} of volume '{volume}': {reason}")]
    Set {
        /// The volume.
        volume: String,
        /// The set.
        set: SetId,
        /// Why.
        reason: SetRefusal,
    },
    /// More sets than a command may have.
    #[error("a command changes at most {SETS_PER_COMMAND_MAX} sets: send several")]
    TooManySets,
    /// Too many volumes.
    #[error("this cluster has {VOLUMES_MAX} volumes, the most that there can be: delete one first")]
    TooManyVolumes,
    /// A command of a newer version than all nodes support.
    #[error(
        "this command needs cluster version {needed}, the cluster is at {version}: upgrade every node, then run 'brickctl cluster raise-version'"
    )]
    NeedsVersion {
        /// The version that the command came with.
        needed: u32,
        /// The version in force.
        version: u32,
    },
    /// A raise of the version that would lower it.
    #[error("the cluster is at version {0} already, and a version is never taken back")]
    VersionNotHigher(u32),
    /// A raise of the version that a node cannot follow.
    #[error("node '{node}' supports cluster versions up to {supports}, not {wanted}: upgrade its brickd first")]
    VersionUnsupported {
        /// The node that is too old.
        node: String,
        /// What it supports.
        supports: u32,
        /// What was asked for.
        wanted: u32,
    },
    /// A node that says it supports less than is in force.
    #[error(
        "node '{node}' supports cluster versions up to {supports}, this cluster is at {version}: run a newer brickd there"
    )]
    NodeTooOld {
        /// The node.
        node: String,
        /// What it supports.
        supports: u32,
        /// The version in force.
        version: u32,
    },
    /// Too many nodes.
    #[error("this cluster has {NODES_MAX} nodes, the most that there can be")]
    TooManyNodes,
    /// A node that is a member already.
    #[error("node {0} is a member of this cluster already: remove it first with 'brickctl peer remove'")]
    NodeExists(NodeId),
    /// Removing the only node.
    #[error("node '{0}' is the last one of this cluster and cannot be removed")]
    LastNode(String),
    /// Removing a node that has bricks.
    #[error(
        "node '{node}' still has bricks: {bricks}; replace them with 'brickctl volume replace-brick' or delete the volume first"
    )]
    NodeHasBricks {
        /// The node.
        node: String,
        /// The first of them, by volume.
        bricks: String,
    },
    /// Too many addresses.
    #[error("a node has at most {ADDRESSES_MAX} addresses, not {0}")]
    TooManyAddresses(usize),
    /// A node that others could not reach.
    #[error("a node that joins needs at least one address where the others reach it")]
    NoAddress,
    /// A text that is no address.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// A token that nobody made, or that is gone.
    #[error("this join token is not known here or is over: make another one with 'brickctl peer token'")]
    UnknownToken,
    /// A token that is too old.
    #[error("this join token is over: make another one with 'brickctl peer token'")]
    TokenEnded,
    /// A token that another node used.
    #[error("this join token was used already: every node needs one of its own, from 'brickctl peer token'")]
    TokenUsed,
    /// The same token again.
    #[error("this join token exists already: try again")]
    TokenExists,
    /// Too many open tokens.
    #[error("{TOKENS_MAX} join tokens are open, the most that there can be: use them or wait until they are over")]
    TooManyTokens,
    /// An end that has passed or is too far away.
    #[error("the end of a {0} must lie ahead, and not further than is allowed")]
    BadEnd(&'static str),
    /// A serial number that a certificate has or had.
    #[error("the certificate number {0} is in use or revoked already: try again")]
    SerialUsed(CertSerial),
    /// Too many revoked certificates.
    #[error("{REVOKED_MAX} revoked certificates have not ended yet, the most that are kept: wait until some have")]
    TooManyRevoked,
    /// A text about who did it that does not fit.
    #[error("the name of who made a token is at most 256 bytes without control characters")]
    BadMaker,
    /// A name that cannot be a client's.
    #[error("'{0}' cannot name a client: give 1 to 253 letters, digits, '.', '_' or '-'")]
    BadClientName(String),
    /// The name is taken.
    #[error("there is a client '{0}' already: choose another name, or remove it with 'brickctl client remove {0}'")]
    ClientExists(String),
    /// No such client.
    #[error("there is no client '{0}': 'brickctl client list' shows the clients")]
    NoSuchClient(String),
    /// Too many clients.
    #[error("this cluster has {CLIENTS_MAX} clients, the most that there can be: remove one first")]
    TooManyClients,
    /// A directory without the volume that it is in.
    #[error("a client's directory needs the volume that it is in: name one")]
    SubdirWithoutVolume,
    /// A directory that is no path.
    #[error("the directory '{0}' must be absolute, without '.', '..' or empty components, and not '/'")]
    BadSubdir(String),
}
