//! Clients: who may mount, with which certificate, and what they may do.

use crate::cluster::command::{Refusal, check_new_serial, is_normal_path, revoke};
use crate::cluster::state::{CLIENTS_MAX, Certificate, ClientState, ClusterState};
use crate::ids::CertSerial;
use crate::volume_spec::{is_node_name, shorten};
use serde::{Deserialize, Serialize};

/// A client that is let in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddClient {
    /// Its name.
    pub name: String,
    /// The volume that it may use; `None` for all.
    pub volume: Option<String>,
    /// Whether it may change nothing.
    pub read_only: bool,
    /// The directory of the volume that it sees as its root.
    pub subdir: Option<String>,
    /// Whether its root is nobody on the volume.
    pub squash_root: bool,
    /// Number of its certificate.
    pub serial: CertSerial,
    /// When that ends, in milliseconds since 1970.
    pub ends_ms: u64,
    /// The time of the sender, in milliseconds since 1970.
    pub now_ms: u64,
}

pub(super) fn add(state: &mut ClusterState, add: &AddClient) -> Result<(), Refusal> {
    if !is_node_name(&add.name) {
        return Err(Refusal::BadClientName(shorten(&add.name)));
    }
    if state.clients.contains_key(&add.name) {
        return Err(Refusal::ClientExists(add.name.clone()));
    }
    if state.clients.len() >= CLIENTS_MAX {
        return Err(Refusal::TooManyClients);
    }
    let volume = match &add.volume {
        None => None,
        Some(name) => {
            let volume = state.volumes.get(name).ok_or_else(|| Refusal::NoSuchVolume(shorten(name)))?;
            Some(volume.map.id)
        }
    };
    if let Some(subdir) = &add.subdir {
        if volume.is_none() {
            return Err(Refusal::SubdirWithoutVolume);
        }
        if !is_normal_path(subdir) {
            return Err(Refusal::BadSubdir(shorten(subdir)));
        }
    }
    if add.ends_ms <= add.now_ms {
        return Err(Refusal::BadEnd("certificate"));
    }
    check_new_serial(state, add.serial)?;
    let client = ClientState {
        volume,
        read_only: add.read_only,
        subdir: add.subdir.clone(),
        squash_root: add.squash_root,
        certificate: Certificate { serial: add.serial, ends_ms: add.ends_ms },
    };
    state.clients.insert(add.name.clone(), client);
    Ok(())
}

pub(super) fn remove(state: &mut ClusterState, name: &str, now_ms: u64) -> Result<(), Refusal> {
    let client = state.clients.remove(name).ok_or_else(|| Refusal::NoSuchClient(shorten(name)))?;
    revoke(state, client.certificate.serial, client.certificate.ends_ms, now_ms)
}
