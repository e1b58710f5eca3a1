//! What sets of different nodes ask of each other, on its way: a question is sent once, and whether it was carried out
//! where no answer comes nobody knows. The transactions between sets are made for that.

use crate::brick::host::Host;
use crate::brick::open::AskNode;
use crate::brick::volume::{PeerCall, PeerReply};
use crate::manager::peers::{Peers, describe};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{NodeId, SetId, VolumeId};
use brickfs_proto::v1::{AskSetReply, AskSetRequest};
use bytes::Bytes;
use futures::executor::block_on;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tonic::Status;

/// Version of the form of questions and answers: they are postcard of the types themselves.
const FORM_VERSION: u32 = 1;
/// The other node cannot be asked now. No program gets to see this: the client sends what failed so again.
const AWAY: Errno = Errno::EHOSTDOWN;
/// How long a set may take to answer: it may wait for a transaction to end, or for its disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl Peers {
    /// The way to sets of other nodes, over connections on this runtime, which is that of most who ask.
    pub fn ask_sets(self: &Arc<Self>, runtime: Handle) -> AskNode {
        let peers = self.clone();
        Arc::new(move |node, volume, set, call| {
            // A task of that runtime: the threads of barriers have none.
            let (asked, connections) = (peers.clone(), runtime.clone());
            let task = runtime.spawn(async move { asked.ask_set(&connections, node, volume, set, call).await });
            Box::pin(async move { task.await.unwrap_or(Err(AWAY)) })
        })
    }

    async fn ask_set(
        &self,
        runtime: &Handle,
        node: NodeId,
        volume: VolumeId,
        set: SetId,
        call: PeerCall,
    ) -> Result<PeerReply, Errno> {
        // One that is known to be away is not waited for.
        let reachable = self.is_reachable(node).then(|| self.client_for_sets(node, runtime)).flatten();
        let Some(mut client) = reachable else { return Err(AWAY) };
        tracing::trace!(%node, %set, ?call, "asks");
        let call = postcard::to_allocvec(&call).map_err(|_| Errno::EPROTO)?;
        let (version, volume) = (FORM_VERSION, Bytes::copy_from_slice(&volume.0));
        let request = AskSetRequest { version, volume, set: u32::from(set.0), call: call.into() };
        let reply = match timeout(ANSWER_TIMEOUT, client.ask_set(request)).await {
            Ok(Ok(reply)) => reply.into_inner().reply,
            Ok(Err(status)) => {
                tracing::debug!(%node, %set, "a set of another node did not answer: {}", describe(&status));
                return Err(AWAY);
            }
            Err(_) => return Err(AWAY),
        };
        let reply: Result<PeerReply, i32> = postcard::from_bytes(&reply).map_err(|_| Errno::EPROTO)?;
        reply.map_err(Errno)
    }
}

/// Answers a set of another node.
pub async fn answer(host: &Arc<Host>, request: AskSetRequest) -> Result<AskSetReply, Status> {
    if request.version != FORM_VERSION {
        return Err(Status::failed_precondition("the nodes are of different releases"));
    }
    let volume = VolumeId::from_slice(&request.volume).ok_or_else(|| Status::invalid_argument("no volume"))?;
    let set = u16::try_from(request.set).map(SetId).map_err(|_| Status::invalid_argument("no set"))?;
    let call: PeerCall = postcard::from_bytes(&request.call).map_err(|_| Status::invalid_argument("not a question"))?;
    let reply = match call {
        // It sleeps on the disk, and this thread serves files.
        PeerCall::Barrier => {
            let host = host.clone();
            let flush = move || block_on(host.serve_peer(volume, set, PeerCall::Barrier));
            tokio::task::spawn_blocking(flush).await.unwrap_or(Err(Errno::EIO))
        }
        call => host.serve_peer(volume, set, call).await,
    };
    let reply = postcard::to_allocvec(&reply.map_err(|errno| errno.0));
    let reply = reply.map_err(|error| Status::internal(error.to_string()))?;
    Ok(AskSetReply { reply: reply.into() })
}
