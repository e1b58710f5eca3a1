//! Which node a session is with, and what it has told of the others.

use super::Shared;
use crate::links::Links;
use crate::volume::ConnectError;
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::fop::Welcome;
use brickfs_common::ids::NodeId;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak};

/// The other nodes of a volume, as a node has told of them.
#[derive(Clone, Default, Debug)]
pub(crate) struct Neighbours {
    /// Where they are reached.
    pub nodes: BTreeMap<NodeId, Vec<String>>,
    /// The file with the key and certificate to show them; none where nobody has told of one.
    pub identity_path: Option<PathBuf>,
}

impl Shared {
    /// The node that this is a session with; `None` before its first greeting, where it could be any.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.node.get().copied()
    }

    /// Says which node this has to be a session with, and what the volume's map is until that has greeted.
    pub(crate) fn expect(&self, node: NodeId, map: Arc<VolumeMap>) {
        self.node.set(node).ok();
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Some(map.clone());
        self.lock().map = Some(map);
    }

    /// What the node has told of the others.
    pub(crate) fn neighbours(&self) -> Neighbours {
        self.neighbours.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whom to give calls that belong to sets of other nodes.
    pub(crate) fn set_siblings(&self, siblings: Weak<Links>) {
        // The first ones stay: a session belongs to one volume.
        self.siblings.set(siblings).ok();
    }

    /// Takes over what a greeting says of nodes; another node than the one that was here is not taken.
    pub(super) fn note_nodes(&self, welcome: &Welcome) -> Result<(), ConnectError> {
        if *self.node.get_or_init(|| welcome.node) != welcome.node {
            return Err(ConnectError::Refused(format!("node {} answers where another one was", welcome.node)));
        }
        let mut neighbours = self.neighbours.lock().unwrap_or_else(PoisonError::into_inner);
        neighbours.nodes = welcome.nodes.iter().cloned().collect();
        let path = &welcome.identity_path;
        neighbours.identity_path = (!path.is_empty()).then(|| PathBuf::from(path));
        Ok(())
    }
}
