//! The other nodes of the cluster: one connection to each, over TLS, and who of them can be reached.
//!
//! ```text
//! mod.rs      the connections; Raft's messages go over them
//! reach.rs    who answered, since when not, why (pure)
//! look.rs     what nodes tell each other of themselves
//! watch.rs    asks all others twice a second
//! service.rs  the other side: what other nodes ask of this one
//! sets.rs     what sets of different nodes ask of each other
//! ```
//!
//! Addresses come from the cluster state, so a node whose addresses change is found as soon as the state says so.

pub mod look;
pub mod reach;
pub mod service;
pub mod sets;
pub mod watch;

use crate::manager::raft::{LinkError, MESSAGE_MAX_BYTES, PeerLink, RaftCall};
use crate::security::connect::connect_to_any;
pub use crate::security::connect::describe;
use crate::security::tls::{ClientTls, Credentials};
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::ids::NodeId;
use brickfs_proto::v1::RaftRequest;
use brickfs_proto::v1::cluster_client::ClusterClient;
use brickfs_proto::v1::raft_request::Kind;
use bytes::Bytes;
use reach::{Reach, Sight};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// Largest message of the service: Raft's, and room for what is around it.
pub const WIRE_MAX_BYTES: usize = MESSAGE_MAX_BYTES + (64 << 10);
/// A connection over which nothing comes back any more (a cable, a frozen machine) is given up after at most twice
/// this, so that the next one is tried as soon as there is a way again; TCP itself would wait for minutes.
const KEEP_ALIVE: Duration = Duration::from_millis(1_000);

/// A client of another node's service.
pub type PeerClient = ClusterClient<Channel>;

/// The connections of a node.
pub struct Peers {
    own: NodeId,
    credentials: Arc<Credentials>,
    connect_from: Option<IpAddr>,
    /// Where the connections' tasks run.
    runtime: Handle,
    /// Guards the table alone, never held over a call.
    known: Mutex<HashMap<NodeId, Known>>,
    /// The connections that sets ask over, on the runtime of who asks; as `known`.
    known_to_sets: Mutex<HashMap<NodeId, Known>>,
    reach: Mutex<Reach>,
    /// The nodes that said last that they do not have the authority's key.
    keyless: Mutex<BTreeSet<NodeId>>,
}

struct Known {
    addresses: Vec<String>,
    client: PeerClient,
}

impl Peers {
    /// No node is known at first. `connect_from` is the address that connections are made from, where it matters.
    pub fn new(
        own: NodeId,
        credentials: Arc<Credentials>,
        connect_from: Option<IpAddr>,
        runtime: Handle,
    ) -> Arc<Peers> {
        let (known, known_to_sets) = (Mutex::default(), Mutex::default());
        let (reach, keyless) = (Mutex::default(), Mutex::default());
        Arc::new(Peers { own, credentials, connect_from, runtime, known, known_to_sets, reach, keyless })
    }

    /// Takes over who there is and where. Connections to addresses that stay are kept.
    pub fn follow(&self, state: &ClusterState) {
        let mut known = lock(&self.known);
        known.retain(|id, known| state.nodes.get(id).is_some_and(|node| node.addresses == known.addresses));
        for (id, node) in state.nodes.iter().filter(|(id, node)| **id != self.own && !node.addresses.is_empty()) {
            if !known.contains_key(id) {
                let client = self.make_client(*id, &node.addresses, &self.runtime);
                known.insert(*id, Known { addresses: node.addresses.clone(), client });
            }
        }
        drop(known);
        lock(&self.known_to_sets).retain(|id, _| state.nodes.contains_key(id));
        lock(&self.reach).retain(|id| state.nodes.contains_key(&id));
    }

    /// A client of a node, if it has an address. The connection is made by the first call and again after its loss.
    pub fn client(&self, node: NodeId) -> Option<PeerClient> {
        lock(&self.known).get(&node).map(|known| known.client.clone())
    }

    /// The own address that connections are made from, where it matters.
    pub fn connect_from(&self) -> Option<IpAddr> {
        self.connect_from
    }

    /// A client of a node whose connection lives on this runtime, for sets alone: one thread does all of a question.
    fn client_for_sets(&self, node: NodeId, runtime: &Handle) -> Option<PeerClient> {
        let addresses = lock(&self.known).get(&node)?.addresses.clone();
        let mut known = lock(&self.known_to_sets);
        if let Some(known) = known.get(&node).filter(|known| known.addresses == addresses) {
            return Some(known.client.clone());
        }
        let client = self.make_client(node, &addresses, runtime);
        known.insert(node, Known { addresses, client: client.clone() });
        Some(client)
    }

    /// The other nodes that have an address.
    pub fn others(&self) -> Vec<NodeId> {
        lock(&self.known).keys().copied().collect()
    }

    /// Whether a node answered the last time it was asked.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        lock(&self.reach).is_reachable(node)
    }

    /// Whether a node was asked and did not answer.
    fn is_known_away(&self, node: NodeId) -> bool {
        lock(&self.reach).is_known_away(node)
    }

    /// The nodes that said last that they do not have the authority's key.
    pub fn keyless(&self) -> BTreeSet<NodeId> {
        lock(&self.keyless).clone()
    }

    /// A node has been given the authority's key: until it is asked again, it counts as having it.
    pub fn note_key(&self, node: NodeId) {
        lock(&self.keyless).remove(&node);
    }

    /// How this node sees the others.
    pub fn sights(&self) -> Vec<Sight> {
        lock(&self.reach).sights(Instant::now())
    }

    fn make_client(&self, node: NodeId, addresses: &[String], runtime: &Handle) -> PeerClient {
        let _inside = runtime.enter();
        let (credentials, from, addresses) = (self.credentials.clone(), self.connect_from, addresses.to_vec());
        let connector = tower::service_fn(move |_| {
            let (credentials, addresses) = (credentials.clone(), addresses.clone());
            async move {
                let tls = ClientTls::member(&credentials, Some(node)).map_err(io::Error::other)?;
                connect_to_any(&addresses, &tls, from).await
            }
        });
        // The name is for HTTP alone: who is there, the certificate says.
        let endpoint = Endpoint::from_static("http://brickd")
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_with_connector_lazy(connector);
        ClusterClient::new(channel).max_decoding_message_size(WIRE_MAX_BYTES).max_encoding_message_size(WIRE_MAX_BYTES)
    }
}

#[tonic::async_trait]
impl PeerLink for Peers {
    async fn call(&self, to: NodeId, call: RaftCall, body: Bytes, limit: Duration) -> Result<Bytes, LinkError> {
        let kind = match call {
            RaftCall::Append => Kind::Append,
            RaftCall::Vote => Kind::Vote,
            RaftCall::Snapshot => Kind::Snapshot,
        };
        let mut client = self.client(to).ok_or(LinkError::Unreachable(to))?;
        let request = RaftRequest { kind: kind.into(), body };
        match timeout(limit, client.raft(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().body),
            Ok(Err(status)) if status.code() == Code::Unavailable => Err(LinkError::Unreachable(to)),
            Ok(Err(status)) => Err(LinkError::Broken(to, describe(&status))),
            Err(_) => Err(LinkError::Timeout(to)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in these sections can leave the tables half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
