//! What `brickctl cluster backup` and `restore` send and get.

use crate::ids::ClusterId;
use serde::{Deserialize, Serialize};

/// What encrypts the authority's key in a backup.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Passphrase(pub String);

/// The secret stays out of every log.
impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase")
    }
}

/// A backup.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupText {
    /// The whole file.
    pub text: String,
    /// Its cluster.
    pub cluster: ClusterId,
    /// How many nodes are in it.
    pub nodes_count: usize,
    /// How many volumes.
    pub volumes_count: usize,
    /// Whether the authority's key is in it.
    pub has_key: bool,
}

/// A text of megabytes is of no use in a line.
impl std::fmt::Debug for BackupText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupText").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// What a restore makes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node whose place the restoring one takes.
    pub name: String,
    /// How many volumes there are.
    pub volumes_count: usize,
    /// Nodes with bricks, which have to join again.
    pub waits_for: Vec<String>,
    /// Nodes without, which are members no more.
    pub dropped: Vec<String>,
    /// Whether the authority is the old one.
    pub keeps_authority: bool,
    /// Whether the node serves the restored state; before that it starts anew.
    pub is_done: bool,
}
