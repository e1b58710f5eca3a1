//! The way to `brickd`: one unary call over its Unix socket. A call whose reply was lost is sent again: a
//! change under the same command id, so that it runs once; the others may run twice.

use anyhow::{Context as _, bail};
use brickfs_common::cluster::admin::{ADMIN_VERSION, AdminCall, AdminResult};
use brickfs_proto::v1::admin_client::AdminClient;
use brickfs_proto::v1::{AdminReply, AdminRequest};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// How long a call may take; opening a volume replays the logs of its bricks.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a call whose reply was lost is sent again.
const RETRY_FOR: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_millis(100);
const REPLY_MAX_BYTES: usize = 16 << 20;

/// How long a node that joins or restores may be silent: it starts its services again as a member.
const JOIN_RETRY_FOR: Duration = Duration::from_secs(30);

/// Sends a call and waits for its answer.
pub fn call(socket: &Path, call: &AdminCall) -> anyhow::Result<AdminResult> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(send(socket, call))
}

/// Sends a call once, for those who look again anyway. A node that is paused takes connections and says nothing:
/// it fails after `within`.
pub async fn ask_once(socket: &Path, call: &AdminCall, within: Duration) -> anyhow::Result<AdminResult> {
    let request = request_of(call, Vec::new())?;
    let asked = async {
        let mut client = connect(socket).await?;
        match client.run(request).await {
            Ok(reply) => read_reply(reply.into_inner()),
            Err(status) => bail!("the connection to brickd was lost: {}", status.message()),
        }
    };
    match tokio::time::timeout(within, asked).await {
        Ok(result) => result,
        Err(_) => bail!("brickd at {} did not answer within {} ms", socket.display(), within.as_millis()),
    }
}

/// The error for an answer that does not fit the call.
pub fn unexpected(result: &AdminResult) -> anyhow::Error {
    anyhow::anyhow!("brickd gave an answer that does not fit: {result:?}")
}

async fn send(socket: &Path, call: &AdminCall) -> anyhow::Result<AdminResult> {
    let command_id = if call.is_change() { rand::random::<[u8; 16]>().to_vec() } else { Vec::new() };
    let request = request_of(call, command_id)?;
    let started = Instant::now();
    let mut is_sent = false;
    loop {
        let lost = match connect(socket).await {
            Ok(mut client) => {
                is_sent = true;
                match client.run(request.clone()).await {
                    Ok(reply) => match read_reply(reply.into_inner())? {
                        result if is_finished(&result) => return Ok(result),
                        _ => anyhow::anyhow!("the node starts anew, and does not answer as a member yet"),
                    },
                    Err(status) if is_lost(call, status.code()) => {
                        anyhow::anyhow!("the connection to brickd was lost: {}", status.message())
                    }
                    Err(status) => bail!("{}", status.message()),
                }
            }
            Err(error) if !is_sent => return Err(error),
            Err(error) => error,
        };
        if started.elapsed() > retry_for(call) {
            return Err(lost.context("no reply came, and whether the command ran is unknown: look before trying again"));
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// Whether a failed call says that its reply was lost. `brickd` answers with a refusal, not with such a code. A join or
/// a restore that succeeded ends its own connection, at any stage of the reply: sent again, it is told that it is done.
fn is_lost(call: &AdminCall, code: Code) -> bool {
    let is_lost = matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled);
    is_lost || starts_anew(call) && code == Code::Internal
}

/// A node that has just joined or restored starts its services again, and does not know its cluster until then.
fn is_finished(result: &AdminResult) -> bool {
    match result {
        AdminResult::Joined(joined) => !joined.nodes.is_empty(),
        AdminResult::Restored(restored) => restored.is_done,
        _ => true,
    }
}

fn retry_for(call: &AdminCall) -> Duration {
    if starts_anew(call) { JOIN_RETRY_FOR } else { RETRY_FOR }
}

/// Whether the node starts its services again when the call has succeeded.
fn starts_anew(call: &AdminCall) -> bool {
    matches!(call, AdminCall::PeerJoin { .. } | AdminCall::ClusterRestore { .. })
}

fn request_of(call: &AdminCall, command_id: Vec<u8>) -> anyhow::Result<AdminRequest> {
    let json = serde_json::to_vec(call)?;
    Ok(AdminRequest { version: ADMIN_VERSION, command_id: command_id.into(), json: json.into() })
}

async fn connect(socket: &Path) -> anyhow::Result<AdminClient<Channel>> {
    // Tried apart first: the error of a plain connect says more than the channel's.
    if let Err(error) = UnixStream::connect(socket).await {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "run brickctl as root",
            _ => "is it running? Start it with 'systemctl start brickd', or try 'brickctl playground start'",
        };
        bail!("cannot reach brickd at {}: {error}; {hint}", socket.display());
    }
    let path: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let endpoint = Endpoint::from_static("http://brickd").timeout(CALL_TIMEOUT);
    let channel = endpoint.connect_with_connector(connector).await;
    let channel = channel.with_context(|| format!("cannot talk to brickd at {}", socket.display()))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(REPLY_MAX_BYTES))
}

fn read_reply(reply: AdminReply) -> anyhow::Result<AdminResult> {
    if !reply.ok {
        bail!("{}", reply.error);
    }
    serde_json::from_slice(&reply.json).context("brickd's answer cannot be read: use the same release of both")
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::cluster::admin::Joined;
    use brickfs_common::ids::ClusterId;

    #[test]
    fn a_join_is_sent_again_however_its_connection_ended() {
        let join = AdminCall::PeerJoin { address: None, token: "t".to_owned() };
        let list = AdminCall::PeerList {};
        assert!(is_lost(&join, Code::Internal) && !is_lost(&list, Code::Internal));
        assert!(is_lost(&list, Code::Unavailable) && !is_lost(&join, Code::DeadlineExceeded));
        assert!(retry_for(&join) > retry_for(&list));
        let joined = |nodes: &[&str]| Joined {
            cluster: ClusterId([1; 16]),
            name: "node-2".to_owned(),
            nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert!(!is_finished(&AdminResult::Joined(joined(&[]))), "it does not know its cluster yet");
        assert!(is_finished(&AdminResult::Joined(joined(&["node-1"]))) && is_finished(&AdminResult::Done {}));
    }
}
