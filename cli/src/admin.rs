//! The way to `brickd`: one unary call over its Unix socket. A change carries a command id and is sent
//! again under the same id when its reply is lost, so that it runs once.

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

/// Sends a call and waits for its answer.
pub fn call(socket: &Path, call: &AdminCall) -> anyhow::Result<AdminResult> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(send(socket, call))
}

/// The error for an answer that does not fit the call.
pub fn unexpected(result: &AdminResult) -> anyhow::Error {
    anyhow::anyhow!("brickd gave an answer that does not fit: {result:?}")
}

async fn send(socket: &Path, call: &AdminCall) -> anyhow::Result<AdminResult> {
    let command_id = if call.is_change() { rand::random::<[u8; 16]>().to_vec() } else { Vec::new() };
    let request =
        AdminRequest { version: ADMIN_VERSION, command_id: command_id.into(), json: serde_json::to_vec(call)?.into() };
    let started = Instant::now();
    let mut is_sent = false;
    loop {
        let lost = match connect(socket).await {
            Ok(mut client) => {
                is_sent = true;
                match client.run(request.clone()).await {
                    Ok(reply) => return read_reply(reply.into_inner()),
                    Err(status) if !matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                        bail!("{}", status.message())
                    }
                    Err(status) => anyhow::anyhow!("the connection to brickd was lost: {}", status.message()),
                }
            }
            Err(error) if !is_sent => return Err(error),
            Err(error) => error,
        };
        if started.elapsed() > RETRY_FOR {
            return Err(lost.context("no reply came, and whether the command ran is unknown: look before trying again"));
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
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
