//! Raft's messages to and from the other members. openraft's messages become bytes here; how the bytes
//! travel is the `PeerLink`'s affair.
//!
//! A message is JSON; one with a piece of a snapshot is the length of its JSON (4 bytes, big-endian), the
//! JSON and then the piece as it is. A reply is the JSON of openraft's result.

use crate::manager::raft::types::Types;
use brickfs_common::ids::NodeId;
use bytes::Bytes;
use openraft::error::{
    InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{EmptyNode, Raft};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// Largest message. A piece of a snapshot and the entries of one message are each limited to 1 MiB, so only
/// a single large entry comes near it.
pub const MESSAGE_MAX_BYTES: usize = 4 << 20;
/// Largest piece of a snapshot.
pub const SNAPSHOT_PIECE_BYTES: u64 = 1 << 20;
/// How long a node that cannot be reached is left alone: less than an election, so that a node that comes
/// back hears of its leader before it makes an election of its own.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(250);

/// The kinds of messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RaftCall {
    /// Entries, or a heartbeat.
    Append,
    /// A request for a vote.
    Vote,
    /// A piece of a snapshot.
    Snapshot,
}

/// Why a call got no reply.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no connection: nothing was sent.
    #[error("node {0} cannot be reached")]
    Unreachable(NodeId),
    /// The reply did not come in time: the call may have been done.
    #[error("node {0} did not reply in time")]
    Timeout(NodeId),
    /// The connection broke or the other side failed: the call may have been done.
    #[error("the call to node {0} failed: {1}")]
    Broken(NodeId, String),
}

/// Why a message that came in was not handled.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It is above `MESSAGE_MAX_BYTES`.
    #[error("a Raft message of {0} bytes is above the limit of {MESSAGE_MAX_BYTES}")]
    TooLarge(usize),
    /// It does not decode.
    #[error("a Raft message does not decode: {0}")]
    Malformed(String),
}

/// Connections to the other nodes.
#[tonic::async_trait]
pub trait PeerLink: Send + Sync + 'static {
    /// Sends one message to a node and waits for its reply, at most for `timeout`. The reply is what the
    /// other node's `RaftMember::receive` returned.
    async fn call(&self, to: NodeId, call: RaftCall, body: Bytes, timeout: Duration) -> Result<Bytes, LinkError>;
}

/// Makes the connections that openraft asks for.
pub struct Network {
    link: Arc<dyn PeerLink>,
}

/// One connection.
pub struct Connection {
    to: NodeId,
    link: Arc<dyn PeerLink>,
}

impl Network {
    /// Connections over this link.
    pub fn new(link: Arc<dyn PeerLink>) -> Network {
        Network { link }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Connection {
        Connection { to: target, link: self.link.clone() }
    }
}

type CallError<E> = RPCError<NodeId, EmptyNode, RaftError<NodeId, E>>;

impl Connection {
    async fn call<R: DeserializeOwned, E: std::error::Error + DeserializeOwned>(
        &self,
        call: RaftCall,
        body: Vec<u8>,
        option: &RPCOption,
    ) -> Result<R, CallError<E>> {
        let reply =
            self.link.call(self.to, call, body.into(), option.hard_ttl()).await.map_err(|error| match error {
                LinkError::Unreachable(_) => RPCError::Unreachable(Unreachable::new(&error)),
                LinkError::Timeout(_) | LinkError::Broken(..) => RPCError::Network(NetworkError::new(&error)),
            })?;
        let reply: Result<R, RaftError<NodeId, E>> = serde_json::from_slice(&reply).map_err(network_error)?;
        reply.map_err(|error| RPCError::RemoteError(RemoteError::new(self.to, error)))
    }
}

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, CallError<openraft::error::Infallible>> {
        let body = serde_json::to_vec(&rpc).map_err(network_error)?;
        if body.len() > MESSAGE_MAX_BYTES && rpc.entries.len() > 1 {
            return Err(PayloadTooLarge::new_entries_hint(rpc.entries.len() as u64 / 2).into());
        }
        self.call(RaftCall::Append, body, &option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, CallError<InstallSnapshotError>> {
        let body = encode_piece(rpc).map_err(network_error)?;
        self.call(RaftCall::Snapshot, body, &option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, CallError<openraft::error::Infallible>> {
        let body = serde_json::to_vec(&rpc).map_err(network_error)?;
        self.call(RaftCall::Vote, body, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}

/// Hands a message of another member to this one; returns the reply for it.
pub async fn receive(raft: &Raft<Types>, call: RaftCall, body: &[u8]) -> Result<Bytes, ReceiveError> {
    if body.len() > MESSAGE_MAX_BYTES {
        return Err(ReceiveError::TooLarge(body.len()));
    }
    match call {
        RaftCall::Append => encode_reply(&raft.append_entries(decode(body)?).await),
        RaftCall::Vote => encode_reply(&raft.vote(decode(body)?).await),
        RaftCall::Snapshot => encode_reply(&raft.install_snapshot(decode_piece(body)?).await),
    }
}

fn encode_piece(mut request: InstallSnapshotRequest<Types>) -> serde_json::Result<Vec<u8>> {
    // As JSON the piece would be four times as large.
    let piece = std::mem::take(&mut request.data);
    let head = serde_json::to_vec(&request)?;
    Ok([&(head.len() as u32).to_be_bytes()[..], &head, &piece].concat())
}

fn decode_piece(body: &[u8]) -> Result<InstallSnapshotRequest<Types>, ReceiveError> {
    let cut = || ReceiveError::Malformed("it is cut off".to_owned());
    let (len, rest) = body.split_first_chunk::<4>().ok_or_else(cut)?;
    let (head, piece) = rest.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or_else(cut)?;
    let mut request: InstallSnapshotRequest<Types> = decode(head)?;
    request.data = piece.to_vec();
    Ok(request)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ReceiveError> {
    serde_json::from_slice(body).map_err(|error| ReceiveError::Malformed(error.to_string()))
}

fn encode_reply<T: Serialize>(reply: &T) -> Result<Bytes, ReceiveError> {
    serde_json::to_vec(reply).map(Bytes::from).map_err(|error| ReceiveError::Malformed(error.to_string()))
}

fn network_error<E: std::error::Error>(error: serde_json::Error) -> CallError<E> {
    RPCError::Network(NetworkError::new(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::{SnapshotMeta, Vote};

    #[test]
    fn a_piece_of_a_snapshot_reads_back_and_a_cut_one_is_refused() {
        let request = InstallSnapshotRequest::<Types> {
            vote: Vote::new(3, NodeId::from(1)),
            meta: SnapshotMeta::default(),
            offset: 1 << 20,
            data: vec![0xff; SNAPSHOT_PIECE_BYTES as usize],
            done: true,
        };
        let body = encode_piece(request.clone()).unwrap();
        assert!(body.len() < MESSAGE_MAX_BYTES);
        assert_eq!(decode_piece(&body).unwrap(), request);
        for len in [0, 3, 4, 20] {
            assert!(matches!(decode_piece(&body[..len]), Err(ReceiveError::Malformed(_))), "{len}");
        }
        assert!(decode_piece(&[0xff; 8]).is_err());
    }
}
