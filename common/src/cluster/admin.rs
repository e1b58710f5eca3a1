//! What `brickctl` asks of `brickd` and what it gets: the JSON inside the unary admin call.

use crate::cluster::backup::{BackupText, Passphrase, Restored};
use crate::cluster::report::{ClusterReport, RaftReport};
use crate::cluster::state::{NodeRole, VolumeState};
use crate::ids::{BrickId, ClusterId, NodeId, SetId, VolumeId};
use crate::volume_spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of these forms; `brickd` refuses another.
pub const ADMIN_VERSION: u32 = 1;

/// One question or order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)] // the operands are those of the commands of `brickctl`
pub enum AdminCall {
    /// Who answers. Also the sign that `brickd` is ready.
    Node {},
    VolumeCreate {
        name: String,
        replica: u16,
        stripe: u16,
        force: bool,
        bricks: Vec<String>,
    },
    VolumeStart {
        name: String,
    },
    VolumeStop {
        name: String,
    },
    VolumeDelete {
        name: String,
    },
    VolumeList {},
    VolumeInfo {
        name: String,
    },
    VolumeStatus {
        name: String,
    },
    VolumeSet {
        name: String,
        key: String,
        value: String,
    },
    VolumeGet {
        name: String,
        key: Option<String>,
    },
    VolumeReset {
        name: String,
        key: Option<String>,
    },
    ClusterStatus {},
    ClusterRaft {},
    /// A token that lets one node join, for this long; `None` for an hour. Each call makes a new one.
    PeerToken {
        valid_s: Option<u64>,
    },
    /// The node that is asked joins the cluster of a token. `address` is `host:port` or `host`; without one the
    /// token's own addresses are tried.
    PeerJoin {
        address: Option<String>,
        token: String,
    },
    PeerList {},
    PeerRemove {
        node: String,
    },
    /// The text of a backup; with a passphrase the authority's key is in it.
    ClusterBackup {
        passphrase: Option<Passphrase>,
    },
    /// The node that is asked, alone until now, begins a cluster anew with the state of a backup.
    ClusterRestore {
        text: String,
        passphrase: Option<Passphrase>,
        as_node: Option<String>,
        new_authority: bool,
    },
}

impl AdminCall {
    /// Whether the call changes the cluster state: it then carries a command id and runs once.
    pub fn is_change(&self) -> bool {
        match self {
            AdminCall::Node {} | AdminCall::VolumeList {} | AdminCall::VolumeInfo { .. } => false,
            AdminCall::VolumeStatus { .. } | AdminCall::VolumeGet { .. } => false,
            AdminCall::ClusterStatus {} | AdminCall::ClusterRaft {} | AdminCall::PeerList {} => false,
            // Neither has to run once: an unused token ends by itself, and a node that has joined says so.
            AdminCall::PeerToken { .. } | AdminCall::PeerJoin { .. } => false,
            AdminCall::ClusterBackup { .. } => false,
            // Its id tells a repetition from a restore on a node that has volumes.
            AdminCall::PeerRemove { .. } | AdminCall::ClusterRestore { .. } => true,
            AdminCall::VolumeCreate { .. } | AdminCall::VolumeStart { .. } | AdminCall::VolumeStop { .. } => true,
            AdminCall::VolumeDelete { .. } | AdminCall::VolumeSet { .. } | AdminCall::VolumeReset { .. } => true,
        }
    }
}

/// The answer to a call that did not fail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminResult {
    /// To `Node`.
    Node(NodeInfo),
    /// To changes: nothing more to say.
    Done {},
    /// To `VolumeInfo`, `VolumeCreate`.
    Volume(VolumeInfo),
    /// To `VolumeList`.
    Volumes(Vec<VolumeInfo>),
    /// To `VolumeStatus`, `VolumeStart`.
    Status(VolumeStatus),
    /// To `VolumeGet`.
    Options(Vec<OptionValue>),
    /// To `ClusterStatus`.
    Cluster(ClusterReport),
    /// To `ClusterRaft`.
    Raft(RaftReport),
    /// To `PeerToken`.
    Token(JoinToken),
    /// To `PeerJoin`.
    Joined(Joined),
    /// To `PeerList`.
    Peers(Vec<PeerInfo>),
    /// To `ClusterBackup`.
    Backup(BackupText),
    /// To `ClusterRestore`.
    Restored(Restored),
}

/// A join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// The text to carry to the new node. A secret.
    pub token: String,
    /// When it is over, in milliseconds since 1970.
    pub ends_ms: u64,
    /// The addresses in it.
    pub addresses: Vec<String>,
}

/// The secret stays out of every log.
impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken").field("ends_ms", &self.ends_ms).finish_non_exhaustive()
    }
}

/// A node is a member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its name there.
    pub name: String,
    /// All nodes by name.
    pub nodes: Vec<String>,
}

/// A node as `peer list` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerInfo {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: NodeId,
    /// What it is for.
    pub role: NodeRole,
    /// `host:port` where other nodes reach it.
    pub addresses: Vec<String>,
    /// How many bricks it has.
    pub bricks_count: usize,
    /// Since when it is a member, in milliseconds since 1970; 0 where nobody knows.
    pub joined_ms: u64,
    /// When its certificate ends, in milliseconds since 1970; none without one.
    pub certificate_ends_ms: Option<u64>,
}

/// The node that answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeInfo {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Version of its `brickd`.
    pub version: String,
    /// Its process.
    pub pid: u32,
}

/// A volume as `volume info` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: VolumeId,
    /// Its type, such as `Distribute`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `started` or `stopped`.
    pub status: String,
    /// Bricks of a replica set.
    pub replica: u16,
    /// Sets of a stripe group.
    pub stripe: u16,
    /// Generation of its layout.
    pub generation: u64,
    /// Its bricks in order.
    pub bricks: Vec<BrickInfo>,
    /// The options that were set.
    pub options: BTreeMap<String, String>,
}

/// A brick as `volume info` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrickInfo {
    /// Name of its node.
    pub node: String,
    /// Its directory there.
    pub path: String,
    /// Its set.
    pub set: SetId,
    /// Its id.
    pub brick: BrickId,
}

/// A volume as `volume status` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Whether it is started.
    pub started: bool,
    /// Whether everything that should work does.
    pub healthy: bool,
    /// Its bricks in order.
    pub bricks: Vec<BrickReport>,
}

/// How one brick is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrickReport {
    /// Name of its node.
    pub node: String,
    /// Its directory there.
    pub path: String,
    /// Its set.
    pub set: SetId,
    /// Its id.
    pub brick: BrickId,
    /// Whether it is served.
    pub online: bool,
    /// Why not.
    pub error: Option<String>,
    /// Size of its file system.
    pub total_bytes: u64,
    /// What is free there.
    pub free_bytes: u64,
    /// What was found damaged, by gfid and path.
    pub damage: Vec<String>,
    /// It is being looked through for what a loss of power left; it is served meanwhile.
    pub mending: bool,
}

/// One option as `volume get` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptionValue {
    /// Its name.
    pub key: String,
    /// The value in force.
    pub value: String,
    /// Whether that is the default.
    pub is_default: bool,
    /// What it does.
    pub help: String,
}

impl From<&VolumeState> for VolumeInfo {
    fn from(volume: &VolumeState) -> VolumeInfo {
        let brick_of = |set: SetId, member: &crate::cluster::map::MemberMap| BrickInfo {
            node: member.node_name.clone(),
            path: member.path.clone(),
            set,
            brick: member.brick,
        };
        let sets = volume.map.sets.iter();
        VolumeInfo {
            name: volume.map.name.clone(),
            id: volume.map.id,
            kind: volume.type_name().to_owned(),
            status: if volume.started { "started" } else { "stopped" }.to_owned(),
            replica: volume.replica,
            stripe: volume.stripe,
            generation: volume.map.layout.generation,
            bricks: sets.flat_map(|set| set.members.iter().map(|member| brick_of(set.id, member))).collect(),
            options: volume.map.options.clone(),
        }
    }
}

/// The values in force of one option or of all.
pub fn option_values(
    options: &BTreeMap<String, String>,
    key: Option<&str>,
) -> Result<Vec<OptionValue>, volume_spec::BadOption> {
    if let Some(key) = key {
        volume_spec::find_option(key)?;
    }
    let wanted = volume_spec::OPTIONS.iter().filter(|option| key.is_none_or(|key| key == option.key));
    Ok(wanted
        .map(|option| OptionValue {
            key: option.key.to_owned(),
            value: options.get(option.key).map_or(option.default, String::as_str).to_owned(),
            is_default: !options.contains_key(option.key),
            help: format!("{} ({})", option.help, option.kind.describe()),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_a_fixed_form_and_unknown_fields_are_refused() {
        let call = AdminCall::VolumeStart { name: "demo".to_owned() };
        assert_eq!(serde_json::to_string(&call).unwrap(), r#"{"volume_start":{"name":"demo"}}"#);
        assert!(serde_json::from_str::<AdminCall>(r#"{"volume_start":{"name":"demo","now":1}}"#).is_err());
        assert!(serde_json::from_str::<AdminCall>(r#"{"volume_explode":{}}"#).is_err());
        assert!(serde_json::from_str::<AdminCall>(r#"{"node":{"x":1}}"#).is_err());
    }

    #[test]
    fn options_are_listed_with_their_values_in_force() {
        let set = BTreeMap::from([("reserve".to_owned(), "5%".to_owned())]);
        let all = option_values(&set, None).unwrap();
        assert_eq!(all.len(), volume_spec::OPTIONS.len());
        let reserve = option_values(&set, Some("reserve")).unwrap().remove(0);
        assert_eq!((reserve.value.as_str(), reserve.is_default), ("5%", false));
        assert!(option_values(&set, Some("colour")).is_err());
    }
}
