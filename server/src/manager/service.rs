//! The admin service: takes `brickctl`'s calls off the wire and runs them one at a time, away from the
//! thread that serves files, because a commit waits for the disk.

use crate::manager::{CommandId, Manager};
use brickfs_client::quiet_socket::Peer;
use brickfs_common::cluster::admin::{ADMIN_VERSION, AdminCall, AdminResult};
use brickfs_proto::v1::admin_server::{Admin, AdminServer};
use brickfs_proto::v1::{AdminReply, AdminRequest};
use std::sync::{Arc, Mutex, PoisonError};
use tonic::{Request, Response, Status};

/// Largest admin request: 64 bricks with the longest paths fit.
const REQUEST_MAX_BYTES: usize = 256 << 10;

/// The service around a manager.
pub struct AdminService {
    manager: Arc<Mutex<Manager>>,
}

/// The service, ready for a server.
pub fn admin_service(manager: Arc<Mutex<Manager>>) -> AdminServer<AdminService> {
    let service = AdminService { manager };
    AdminServer::new(service).max_decoding_message_size(REQUEST_MAX_BYTES)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn run(&self, request: Request<AdminRequest>) -> Result<Response<AdminReply>, Status> {
        check_peer(&request)?;
        let (id, call) = decode(request.into_inner())?;
        let manager = self.manager.clone();
        let run = move || {
            // A panic in one call must not end administration: the state is replaced whole or not at all.
            let mut manager = manager.lock().unwrap_or_else(PoisonError::into_inner);
            manager.run(id, call)
        };
        let result = tokio::task::spawn_blocking(run).await;
        let result = result.map_err(|_| Status::internal("the call failed inside brickd; see its log"))?;
        Ok(Response::new(encode(result)?))
    }
}

/// Only root and the user that `brickd` runs as may administrate.
fn check_peer(request: &Request<AdminRequest>) -> Result<(), Status> {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.credentials);
    match peer.map(|peer| peer.uid()) {
        Some(uid) if uid == 0 || uid == rustix::process::geteuid().as_raw() => Ok(()),
        _ => Err(Status::permission_denied("only root may administrate")),
    }
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
