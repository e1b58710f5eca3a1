//! The admin service: takes `brickctl`'s calls off the wire and runs them away from the thread that serves files, for
//! a command waits for disks and other nodes. Who may call it was decided before (`security::rules`).

use crate::manager::{CommandId, Manager};
use crate::security::audit::{Audit, Entry};
use crate::security::layer::entry_of;
use brickfs_common::cluster::admin::{ADMIN_VERSION, AdminCall, AdminResult};
use brickfs_proto::v1::admin_server::{Admin, AdminServer};
use brickfs_proto::v1::{AdminReply, AdminRequest};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

/// Largest admin request: a backup of 4,096 volumes fits. Only who may administrate gets to send one.
const REQUEST_MAX_BYTES: usize = 16 << 20;
/// Calls at once; each has a thread while it waits. More of them wait for their turn.
const CALLS_MAX: usize = 32;

/// The service around a manager.
pub struct AdminService {
    manager: Arc<Manager>,
    audit: Arc<Audit>,
    turns: Semaphore,
}

/// The service, ready for a server.
pub fn admin_service(manager: Arc<Manager>, audit: Arc<Audit>) -> AdminServer<AdminService> {
    let service = AdminService { manager, audit, turns: Semaphore::new(CALLS_MAX) };
    AdminServer::new(service).max_decoding_message_size(REQUEST_MAX_BYTES)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn run(&self, request: Request<AdminRequest>) -> Result<Response<AdminReply>, Status> {
        let entry = entry_of(request.extensions());
        let (id, call) = decode(request.into_inner())?;
        let what = describe(&call);
        let (manager, caller) = (self.manager.clone(), format!("{} {}", entry.role, entry.who));
        let _turn = self.turns.acquire().await.map_err(|_| Status::unavailable("brickd is stopping"))?;
        let run = move || manager.run(id, call, caller.trim());
        let result = tokio::task::spawn_blocking(run).await;
        let result = result.map_err(|_| Status::internal("the call failed inside brickd; see its log"))?;
        if let Some(what) = what {
            let result = result.as_ref().map_or_else(|error| format!("{error:#}"), |_| "ok".to_owned());
            self.audit.record(Entry { what, result, ..entry });
        }
        Ok(Response::new(encode(result)?))
    }
}

/// A change as the audit log says it, without secrets; `None` for what changes nothing.
fn describe(call: &AdminCall) -> Option<String> {
    Some(match call {
        AdminCall::VolumeCreate { name, bricks, .. } => format!("volume create {name} ({} bricks)", bricks.len()),
        AdminCall::VolumeStart { name } => format!("volume start {name}"),
        AdminCall::VolumeStop { name } => format!("volume stop {name}"),
        AdminCall::VolumeDelete { name } => format!("volume delete {name}"),
        AdminCall::VolumeSet { name, key, value } => format!("volume set {name} {key} {value}"),
        AdminCall::VolumeReset { name, key } => {
            format!("volume reset {name} {}", key.as_deref().unwrap_or("(all options)"))
        }
        AdminCall::PeerToken { valid_s } => match valid_s {
            Some(valid_s) => format!("peer token for {valid_s} s"),
            None => "peer token".to_owned(),
        },
        AdminCall::PeerJoin { address, .. } => {
            format!("peer join {}", address.as_deref().unwrap_or("by the token's addresses"))
        }
        AdminCall::PeerRemove { node } => format!("peer remove {node}"),
        AdminCall::ClusterBackup { passphrase: None } => "cluster backup".to_owned(),
        AdminCall::ClusterBackup { passphrase: Some(_) } => "cluster backup with the authority's key".to_owned(),
        AdminCall::ClusterRestore { as_node, .. } => {
            format!("cluster restore as {}", as_node.as_deref().unwrap_or("the node of this name"))
        }
        AdminCall::Node {} | AdminCall::VolumeList {} | AdminCall::VolumeInfo { .. } => return None,
        AdminCall::VolumeStatus { .. } | AdminCall::VolumeGet { .. } => return None,
        AdminCall::ClusterStatus {} | AdminCall::ClusterRaft {} | AdminCall::PeerList {} => return None,
    })
}

fn decode(request: AdminRequest) -> Result<(Option<CommandId>, AdminCall), Status> {
    if request.version != ADMIN_VERSION {
        let given = request.version;
        return Err(Status::failed_precondition(format!(
            "brickctl speaks admin version {given}, this brickd version {ADMIN_VERSION}: use the same release of both"
        )));
    }
    let id = match request.command_id.len() {
        0 => None,
        16 => CommandId::try_from(request.command_id.as_ref()).ok(),
        _ => return Err(Status::invalid_argument("a command id has 16 bytes")),
    };
    let call = serde_json::from_slice(&request.json)
        .map_err(|error| Status::invalid_argument(format!("not an admin call: {error}")))?;
    Ok((id, call))
}

fn encode(result: anyhow::Result<AdminResult>) -> Result<AdminReply, Status> {
    Ok(match result {
        Ok(result) => {
            let json = serde_json::to_vec(&result).map_err(|error| Status::internal(error.to_string()))?;
            AdminReply { ok: true, error: String::new(), json: json.into() }
        }
        Err(error) => AdminReply { ok: false, error: format!("{error:#}"), json: Vec::new().into() },
    })
}
