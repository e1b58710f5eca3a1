//! Nodes: joining, leaving, their names, addresses, certificates, and the cluster version.

use crate::cluster::address::parse_address;
use crate::cluster::command::{Refusal, check_new_serial, revoke, token};
use crate::cluster::state::{
    ADDRESSES_MAX, Certificate, ClusterState, NODE_CERTIFICATES_MAX, NODES_MAX, NodeRole, NodeState,
};
use crate::cluster::token::TokenHash;
use crate::ids::{CertSerial, NodeId};
use crate::volume_spec::{is_node_name, shorten};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How many bricks a refused removal names.
const BRICKS_NAMED: usize = 4;

/// A node that joins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddNode {
    /// Hash of the token that it showed.
    pub token: TokenHash,
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where the others reach it.
    pub addresses: Vec<String>,
    /// What it is for.
    pub role: NodeRole,
    /// Number of its first certificate.
    pub serial: CertSerial,
    /// When that ends, in milliseconds since 1970.
    pub serial_ends_ms: u64,
    /// The highest cluster version that it supports.
    pub supports: u32,
    /// The time of the sender, in milliseconds since 1970.
    pub now_ms: u64,
}

/// A further certificate of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewCertificate {
    /// The node.
    pub node: NodeId,
    /// The certificate's number.
    pub serial: CertSerial,
    /// When it ends, in milliseconds since 1970.
    pub ends_ms: u64,
    /// The time of the sender, in milliseconds since 1970.
    pub now_ms: u64,
}

pub(super) fn add(state: &mut ClusterState, add: &AddNode) -> Result<(), Refusal> {
    let joined_before = token::check(state, &add.token, add.node, add.now_ms)?;
    let certificate = Certificate { serial: add.serial, ends_ms: add.serial_ends_ms };
    if joined_before {
        // The reply was lost. What the node is stays as it was; the certificate that was signed for this
        // repetition is another one.
        return add_certificate(state, add.node, certificate, add.now_ms);
    }
    if state.nodes.get(&add.node).is_some_and(NodeState::waits_to_join) {
        return come_back(state, add);
    }
    if state.nodes.contains_key(&add.node) {
        return Err(Refusal::NodeExists(add.node));
    }
    check_name(state, add.node, &add.name)?;
    check_addresses(&add.addresses)?;
    if add.addresses.is_empty() {
        return Err(Refusal::NoAddress);
    }
    if state.nodes.len() >= NODES_MAX {
        return Err(Refusal::TooManyNodes);
    }
    check_supports(state, &add.name, add.supports)?;
    let node = NodeState {
        name: add.name.clone(),
        addresses: add.addresses.clone(),
        role: add.role,
        certificates: Vec::new(),
        joined_ms: add.now_ms,
        supports: add.supports,
    };
    state.nodes.insert(add.node, node);
    add_certificate(state, add.node, certificate, add.now_ms)?;
    if let Some(token) = state.tokens.get_mut(&add.token) {
        token.used_by = Some(add.node);
    }
    token::drop_ended(state, add.now_ms);
    Ok(())
}

/// A member of a restored cluster joins again: it keeps its name and what it is for, since bricks are named by it.
fn come_back(state: &mut ClusterState, add: &AddNode) -> Result<(), Refusal> {
    check_addresses(&add.addresses)?;
    if add.addresses.is_empty() {
        return Err(Refusal::NoAddress);
    }
    check_supports(state, &add.name, add.supports)?;
    let node = node_mut(state, add.node)?;
    node.addresses = add.addresses.clone();
    node.joined_ms = add.now_ms;
    node.supports = add.supports;
    let certificate = Certificate { serial: add.serial, ends_ms: add.serial_ends_ms };
    add_certificate(state, add.node, certificate, add.now_ms)?;
    if let Some(token) = state.tokens.get_mut(&add.token) {
        token.used_by = Some(add.node);
    }
    token::drop_ended(state, add.now_ms);
    Ok(())
}

pub(super) fn set_addresses(state: &mut ClusterState, node: NodeId, addresses: &[String]) -> Result<(), Refusal> {
    check_addresses(addresses)?;
    let node_state = state.nodes.get(&node).ok_or(Refusal::UnknownNode(node))?;
    // A cluster of one may listen on its own socket alone.
    if addresses.is_empty() && state.nodes.len() > 1 && !node_state.addresses.is_empty() {
        return Err(Refusal::NoAddress);
    }
    node_mut(state, node)?.addresses = addresses.to_vec();
    Ok(())
}

pub(super) fn remove(state: &mut ClusterState, node: NodeId, now_ms: u64) -> Result<(), Refusal> {
    let name = node_mut(state, node)?.name.clone();
    if state.nodes.len() == 1 {
        return Err(Refusal::LastNode(name));
    }
    let bricks: Vec<String> = state
        .bricks()
        .filter(|(_, brick)| brick.node == node)
        .map(|(volume, brick)| format!("{} of volume '{volume}'", brick.path))
        .collect();
    if !bricks.is_empty() {
        let mut named = bricks[..bricks.len().min(BRICKS_NAMED)].join(", ");
        if bricks.len() > BRICKS_NAMED {
            named.push_str(&format!(" and {} more", bricks.len() - BRICKS_NAMED));
        }
        return Err(Refusal::NodeHasBricks { node: name, bricks: named });
    }
    let removed = state.nodes.remove(&node).ok_or(Refusal::UnknownNode(node))?;
    for certificate in removed.certificates {
        revoke(state, certificate.serial, certificate.ends_ms, now_ms)?;
    }
    Ok(())
}

pub(super) fn renew(state: &mut ClusterState, renew: &RenewCertificate) -> Result<(), Refusal> {
    let certificate = Certificate { serial: renew.serial, ends_ms: renew.ends_ms };
    add_certificate(state, renew.node, certificate, renew.now_ms)
}

/// Gives a node one more certificate. Those that ended are dropped; of more than a node may have the
/// oldest is revoked.
fn add_certificate(state: &mut ClusterState, node: NodeId, new: Certificate, now_ms: u64) -> Result<(), Refusal> {
    if let Some(known) = node_mut(state, node)?.certificates.iter_mut().find(|known| known.serial == new.serial) {
        // Signed again for a repeated request: revoked is what ends last.
        known.ends_ms = known.ends_ms.max(new.ends_ms);
        return Ok(());
    }
    if new.ends_ms <= now_ms {
        return Err(Refusal::BadEnd("certificate"));
    }
    check_new_serial(state, new.serial)?;
    let certificates = &mut node_mut(state, node)?.certificates;
    certificates.retain(|certificate| certificate.ends_ms > now_ms);
    certificates.push(new);
    if certificates.len() > NODE_CERTIFICATES_MAX {
        let oldest = certificates.remove(0);
        revoke(state, oldest.serial, oldest.ends_ms, now_ms)?;
    }
    Ok(())
}

pub(super) fn set_supports(state: &mut ClusterState, node: NodeId, supports: u32) -> Result<(), Refusal> {
    let name = node_mut(state, node)?.name.clone();
    check_supports(state, &name, supports)?;
    node_mut(state, node)?.supports = supports;
    Ok(())
}

pub(super) fn raise_version(state: &mut ClusterState, version: u32) -> Result<(), Refusal> {
    if version <= state.cluster_version {
        return Err(Refusal::VersionNotHigher(state.cluster_version));
    }
    if let Some(node) = state.nodes.values().find(|node| node.supports < version) {
        let (node, supports) = (node.name.clone(), node.supports);
        return Err(Refusal::VersionUnsupported { node, supports, wanted: version });
    }
    state.cluster_version = version;
    Ok(())
}

pub(super) fn rename(state: &mut ClusterState, node: NodeId, name: &str) -> Result<(), Refusal> {
    check_name(state, node, name)?;
    node_mut(state, node)?.name = name.to_owned();
    // A volume is copied only where it has a brick there.
    let touched = state.volumes.values_mut().filter(|volume| volume.members().any(|member| member.node == node));
    for volume in touched {
        let sets = &mut Arc::make_mut(volume).map.sets;
        for member in sets.iter_mut().flat_map(|set| &mut set.members).filter(|member| member.node == node) {
            member.node_name = name.to_owned();
        }
    }
    Ok(())
}

fn node_mut(state: &mut ClusterState, node: NodeId) -> Result<&mut NodeState, Refusal> {
    state.nodes.get_mut(&node).ok_or(Refusal::UnknownNode(node))
}

fn check_name(state: &ClusterState, node: NodeId, name: &str) -> Result<(), Refusal> {
    if !is_node_name(name) {
        return Err(Refusal::BadNodeName(shorten(name)));
    }
    match state.node_by_name(name) {
        Some(other) if other != node => Err(Refusal::NodeNameUsed(name.to_owned())),
        _ => Ok(()),
    }
}

fn check_addresses(addresses: &[String]) -> Result<(), Refusal> {
    if addresses.len() > ADDRESSES_MAX {
        return Err(Refusal::TooManyAddresses(addresses.len()));
    }
    for address in addresses {
        parse_address(address)?;
    }
    Ok(())
}

fn check_supports(state: &ClusterState, node: &str, supports: u32) -> Result<(), Refusal> {
    if supports < state.cluster_version {
        let (node, version) = (node.to_owned(), state.cluster_version);
        return Err(Refusal::NodeTooOld { node, supports, version });
    }
    Ok(())
}
