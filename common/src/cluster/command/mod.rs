//! The commands that change the cluster state, and the one pure function that applies them: old state
//! and command in, new state or a refusal out. Ids, weights, times and checked paths are decided by the
//! sender, so that every node that applies a command gets the same state.
//!
//! One file for each topic has the operands of its commands and what they do.

pub mod client;
pub mod node;
pub mod path;
pub mod refusal;
pub mod set;
pub mod token;
pub mod volume;

pub use client::AddClient;
pub use node::{AddNode, RenewCertificate};
pub use path::{PathRelation, check_apart, compare_paths, is_normal_path};
pub use refusal::Refusal;
pub use set::{ChangeSet, NodeLost, SetAt};
pub use token::AddToken;
pub use volume::{CreateVolume, NewBrick, check_new_volume};

use crate::cluster::state::{ClusterState, REVOKED_MAX};
use crate::ids::{CertSerial, NodeId, VolumeId};
use serde::{Deserialize, Serialize};

/// A change of the cluster state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// A new volume, stopped.
    CreateVolume(CreateVolume),
    /// Serve a volume's bricks.
    StartVolume {
        /// The volume.
        name: String,
    },
    /// Serve them no more.
    StopVolume {
        /// The volume.
        name: String,
    },
    /// Forget a stopped volume; what its bricks hold stays there.
    DeleteVolume {
        /// The volume.
        name: String,
    },
    /// Set a volume option.
    SetOption {
        /// The volume.
        name: String,
        /// The option.
        key: String,
        /// Its value, in any accepted form.
        value: String,
    },
    /// Give one option, or all, its default again.
    ResetOption {
        /// The volume.
        name: String,
        /// The option; `None` for all.
        key: Option<String>,
    },
    /// Give a node another name.
    RenameNode {
        /// The node.
        node: NodeId,
        /// Its new name.
        name: String,
    },
    /// A token that lets one node join.
    AddToken(AddToken),
    /// A node joins with a token.
    AddNode(AddNode),
    /// Where the others reach a node.
    SetAddresses {
        /// The node.
        node: NodeId,
        /// All its addresses.
        addresses: Vec<String>,
    },
    /// Forget a node and revoke its certificates.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// The time of the sender, in milliseconds since 1970.
        now_ms: u64,
    },
    /// A node has a new certificate.
    RenewCertificate(RenewCertificate),
    /// What a node's `brickd` supports, after it was upgraded.
    SetSupports {
        /// The node.
        node: NodeId,
        /// The highest cluster version.
        supports: u32,
    },
    /// Use the commands of a higher cluster version from now on.
    RaiseVersion {
        /// The version.
        version: u32,
    },
    /// Let a client in.
    AddClient(AddClient),
    /// Forget a client and revoke its certificate.
    RemoveClient {
        /// The client.
        name: String,
        /// The time of the sender, in milliseconds since 1970.
        now_ms: u64,
    },
    /// A change of one set's membership.
    ChangeSet(ChangeSet),
    /// The loss of a node.
    NodeLost(NodeLost),
    /// Give up a create whose maker was interrupted. Proposed under the id of the create's own command: whichever of
    /// the two is applied first decides what both are answered. Always refused.
    GiveUpCreate {
        /// The volume that was to be made.
        volume: VolumeId,
    },
    /// Drop the tokens and revocations that are over. Other commands do the same where they need room; this
    /// one is for a cluster in which nothing else happens.
    DropEnded {
        /// The time of the sender, in milliseconds since 1970.
        now_ms: u64,
    },
}

impl Command {
    /// The cluster version that this command came with: it is refused below it, because a node that
    /// supports less would not know it.
    pub fn needs_version(&self) -> u32 {
        1
    }
}

/// Applies a command: the next state, or why it is refused. The only way to change the cluster state. The
/// cost of the copy is that of the nodes, clients and revocations and of one pointer for each volume.
pub fn apply(state: &ClusterState, command: &Command) -> Result<ClusterState, Refusal> {
    let needed = command.needs_version();
    if needed > state.cluster_version {
        return Err(Refusal::NeedsVersion { needed, version: state.cluster_version });
    }
    let mut next = state.clone();
    match command {
        Command::CreateVolume(create) => volume::create(&mut next, create)?,
        Command::StartVolume { name } => volume::start(&mut next, name)?,
        Command::StopVolume { name } => volume::stop(&mut next, name)?,
        Command::DeleteVolume { name } => volume::delete(&mut next, name)?,
        Command::SetOption { name, key, value } => volume::set_option(&mut next, name, key, value)?,
        Command::ResetOption { name, key } => volume::reset_option(&mut next, name, key.as_deref())?,
        Command::RenameNode { node, name } => node::rename(&mut next, *node, name)?,
        Command::AddToken(add) => token::add(&mut next, add)?,
        Command::AddNode(add) => node::add(&mut next, add)?,
        Command::SetAddresses { node, addresses } => node::set_addresses(&mut next, *node, addresses)?,
        Command::RemoveNode { node, now_ms } => node::remove(&mut next, *node, *now_ms)?,
        Command::RenewCertificate(renew) => node::renew(&mut next, renew)?,
        Command::SetSupports { node, supports } => node::set_supports(&mut next, *node, *supports)?,
        Command::RaiseVersion { version } => node::raise_version(&mut next, *version)?,
        Command::AddClient(add) => client::add(&mut next, add)?,
        Command::RemoveClient { name, now_ms } => client::remove(&mut next, name, *now_ms)?,
        Command::ChangeSet(change) => set::change(&mut next, change)?,
        Command::NodeLost(lost) => set::node_lost(&mut next, lost)?,
        Command::GiveUpCreate { .. } => return Err(Refusal::GivenUp),
        Command::DropEnded { now_ms } => drop_ended(&mut next, *now_ms),
    }
    next.applied += 1;
    Ok(next)
}

fn drop_ended(state: &mut ClusterState, now_ms: u64) {
    state.tokens.retain(|_, token| token.ends_ms > now_ms);
    state.revoked.retain(|_, ends_ms| *ends_ms > now_ms);
}

/// Revokes certificates until they end. Refused, instead of forgotten, where too many are revoked: an old
/// one that is dropped too early would be let in again.
fn revoke(state: &mut ClusterState, serial: CertSerial, ends_ms: u64, now_ms: u64) -> Result<(), Refusal> {
    if ends_ms <= now_ms {
        return Ok(());
    }
    if state.revoked.len() >= REVOKED_MAX {
        state.revoked.retain(|_, ends_ms| *ends_ms > now_ms);
    }
    if state.revoked.len() >= REVOKED_MAX {
        return Err(Refusal::TooManyRevoked);
    }
    state.revoked.insert(serial, ends_ms);
    Ok(())
}

/// Refuses a serial number that another certificate has or had: the two could not be told apart.
fn check_new_serial(state: &ClusterState, serial: CertSerial) -> Result<(), Refusal> {
    let of_node = state.nodes.values().flat_map(|node| &node.certificates).any(|used| used.serial == serial);
    let of_client = state.clients.values().any(|client| client.certificate.serial == serial);
    match of_node || of_client || state.revoked.contains_key(&serial) {
        true => Err(Refusal::SerialUsed(serial)),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_cluster;
