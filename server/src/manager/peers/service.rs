//! What other nodes ask of this one. Who may call what was decided before (`security::rules`); here only a member's own
//! identity counts, for its certificate.

use crate::brick::host::Host;
use crate::manager::Manager;
use crate::manager::brick_orders::BrickOrder;
use crate::manager::node::{COMMAND_TIMEOUT, Node, write_reply};
use crate::manager::peers::{WIRE_MAX_BYTES, sets};
use crate::manager::raft::RaftCall;
use crate::security::accept::Remote;
use crate::security::audit::Entry;
use crate::security::authority::Authority;
use crate::security::layer::entry_of;
use brickfs_common::cluster::command::Command;
use brickfs_proto::v1::cluster_server::{Cluster, ClusterServer};
use brickfs_proto::v1::raft_request::Kind;
use brickfs_proto::v1::{
    AskSetReply, AskSetRequest, BricksReply, BricksRequest, JoinReply, JoinRequest, LookReply, LookRequest,
    ProposeReply, ProposeRequest, RaftReply, RaftRequest, RenewReply, RenewRequest, TakeAuthorityKeyReply,
    TakeAuthorityKeyRequest,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::{Request, Response, Status};

/// The service around a node.
pub struct ClusterService {
    node: Arc<Node>,
    host: Arc<Host>,
    manager: Arc<Manager>,
}

/// The service, ready for a server.
pub fn cluster_service(node: Arc<Node>, host: Arc<Host>, manager: Arc<Manager>) -> ClusterServer<ClusterService> {
    let service = ClusterServer::new(ClusterService { node, host, manager });
    service.max_decoding_message_size(WIRE_MAX_BYTES).max_encoding_message_size(WIRE_MAX_BYTES)
}

impl ClusterService {
    fn note<T>(&self, request: &Request<T>, what: String, result: String) {
        self.node.audit.record(Entry { what, result, ..entry_of(request.extensions()) });
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn ask_set(&self, request: Request<AskSetRequest>) -> Result<Response<AskSetReply>, Status> {
        sets::answer(&self.host, request.into_inner()).await.map(Response::new)
    }

    async fn bricks(&self, request: Request<BricksRequest>) -> Result<Response<BricksReply>, Status> {
        let order: BrickOrder = serde_json::from_slice(&request.get_ref().json)
            .map_err(|error| Status::invalid_argument(format!("not an order: {error}")))?;
        let (manager, what) = (self.manager.clone(), order.describe());
        let result = tokio::task::spawn_blocking(move || manager.carry_out(order)).await;
        let result = result.map_err(|_| Status::internal("the order failed inside brickd; see its log"))?;
        if let Some(what) = what {
            let result = result.as_ref().map_or_else(|error| format!("{error:#}"), |_| "ok".to_owned());
            self.note(&request, what, result);
        }
        Ok(Response::new(match result {
            Ok(json) => BricksReply { refusal: String::new(), json: json.into() },
            Err(error) => BricksReply { refusal: format!("{error:#}"), ..BricksReply::default() },
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let admitted = self.node.admit(request.get_ref()).await;
        let result = match &admitted {
            Ok(reply) if reply.refusal.is_empty() => "ok".to_owned(),
            Ok(reply) => reply.refusal.clone(),
            Err(error) => format!("{error:#}"),
        };
        let name = request.get_ref().name.escape_debug().to_string();
        tracing::info!(node = name, result, "a node wants to join");
        self.note(&request, format!("join of node '{name}'"), result);
        match admitted {
            Ok(reply) => Ok(Response::new(reply)),
            Err(error) => Err(Status::failed_precondition(format!("{error:#}"))),
        }
    }

    async fn look(&self, _request: Request<LookRequest>) -> Result<Response<LookReply>, Status> {
        let json = serde_json::to_vec(&self.node.look().await).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(LookReply { json: json.into() }))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let ProposeRequest { id, command, timeout_ms, may_pass_on } = request.into_inner();
        let id = id.as_ref().try_into().map_err(|_| Status::invalid_argument("a command id has 16 bytes"))?;
        let command: Command = serde_json::from_slice(&command)
            .map_err(|error| Status::invalid_argument(format!("not a command: {error}")))?;
        let limit = Duration::from_millis(timeout_ms.into()).min(COMMAND_TIMEOUT);
        let deadline = Instant::now() + limit;
        let outcome = match may_pass_on {
            true => self.node.pass_on(id, command, deadline).await,
            false => self.node.propose_here(id, command, deadline).await,
        };
        Ok(Response::new(write_reply(outcome)))
    }

    async fn raft(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let RaftRequest { kind, body } = request.into_inner();
        let call = match Kind::try_from(kind) {
            Ok(Kind::Append) => RaftCall::Append,
            Ok(Kind::Vote) => RaftCall::Vote,
            Ok(Kind::Snapshot) => RaftCall::Snapshot,
            Ok(Kind::Unspecified) | Err(_) => return Err(Status::invalid_argument("not a message of Raft")),
        };
        match self.node.member.receive(call, body).await {
            Ok(body) => Ok(Response::new(RaftReply { body })),
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let identity = request.extensions().get::<Remote>().and_then(|remote| remote.identity);
        let Some(identity) = identity else { return Err(Status::permission_denied("this call needs a certificate")) };
        let signed = self.node.sign_renewal(identity.id, &request.get_ref().request).await;
        let result = signed.as_ref().map_or_else(|error| format!("{error:#}"), |_| "ok".to_owned());
        self.note(&request, "renewal of the certificate".to_owned(), result);
        match signed {
            Ok(certificate) => Ok(Response::new(RenewReply { certificate })),
            Err(error) => Err(Status::failed_precondition(format!("{error:#}"))),
        }
    }

    async fn take_authority_key(
        &self,
        request: Request<TakeAuthorityKeyRequest>,
    ) -> Result<Response<TakeAuthorityKeyReply>, Status> {
        let given = request.get_ref();
        let taken = Authority::from_pem(&given.certificate, &given.key).and_then(|authority| {
            if authority.certificate().hash() != self.node.credentials.identity().authority().hash() {
                anyhow::bail!("this is the key of another authority than this node's");
            }
            authority.store(&self.node.state_dir)?;
            self.node.set_authority(Some(authority));
            Ok(())
        });
        let result = taken.as_ref().map_or_else(|error| format!("{error:#}"), |()| "ok".to_owned());
        self.note(&request, "the authority's key".to_owned(), result);
        match taken {
            Ok(()) => Ok(Response::new(TakeAuthorityKeyReply {})),
            Err(error) => Err(Status::failed_precondition(format!("{error:#}"))),
        }
    }
}
