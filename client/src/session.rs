//! The session's thread: one connection, one stream. The reader of the stream answers the waiting party
//! itself. A lost session is replaced, what waits is sent again under its old numbers.

use crate::volume::{ConnectError, Shared, wire_hello};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, FopReply, MESSAGE_MAX_BYTES};
use brickfs_proto::convert::fops::ServerMessage;
use brickfs_proto::v1::fops_client::FopsClient;
use brickfs_proto::v1::{Call, Reply};
use brickfs_proto::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, STREAM_WINDOW_BYTES};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// First and longest pause between attempts to connect.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// How long a node may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// A greeted session.
struct Session {
    sender: UnboundedSender<Call>,
    replies: Streaming<Reply>,
    lease: Duration,
}

/// Runs until shutdown. The first greeting's outcome goes to `greeted`; without a first session the
/// thread ends.
pub fn run(shared: &Arc<Shared>, greeted: &Sender<Result<(), ConnectError>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            greeted.send(Err(ConnectError::Runtime(error))).ok();
            return;
        }
    };
    runtime.block_on(async {
        let mut session = match greet(shared).await {
            Ok(session) => {
                greeted.send(Ok(())).ok();
                session
            }
            Err(error) => {
                greeted.send(Err(error)).ok();
                return;
            }
        };
        loop {
            serve(shared, &mut session).await;
            shared.lost_session();
            if shared.is_shut_down() {
                break;
            }
            tracing::info!(volume = %shared.options.volume, "the session was lost, connecting again");
            match reconnect(shared).await {
                Some(next) => session = next,
                None => break,
            }
        }
    });
    for pending in shared.take_all() {
        let request = pending.call.request;
        (pending.done)(FopReply::failed(request, Errno::EIO));
    }
}

async fn reconnect(shared: &Arc<Shared>) -> Option<Session> {
    let mut pause = BACKOFF_FIRST;
    loop {
        match greet(shared).await {
            Ok(session) => {
                tracing::info!("connected again");
                return Some(session);
            }
            Err(error) => tracing::debug!("not connected: {error}"),
        }
        shared.expire(Instant::now());
        tokio::select! {
            () = shared.stop.notified() => return None,
            () = tokio::time::sleep(pause) => {}
        }
        if shared.is_shut_down() {
            return None;
        }
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// Tries each socket in turn.
async fn greet(shared: &Arc<Shared>) -> Result<Session, ConnectError> {
    let mut last = ConnectError::NoServer { path: PathBuf::new(), reason: "no socket was given".into() };
    for path in &shared.options.sockets {
        match tokio::time::timeout(GREETING_TIMEOUT, greet_at(shared, path)).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => last = error,
            Err(_) => last = ConnectError::NoServer { path: path.clone(), reason: "it does not answer".into() },
        }
    }
    Err(last)
}

async fn greet_at(shared: &Arc<Shared>, path: &Path) -> Result<Session, ConnectError> {
    let no_server = |reason: String| ConnectError::NoServer { path: path.to_owned(), reason };
    // Tried apart first: tonic's own error does not say why.
    tokio::net::UnixStream::connect(path).await.map_err(|error| no_server(error.to_string()))?;
    let socket = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://brickd")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .connect_with_connector(connector)
        .await
        .map_err(|error| no_server(error.to_string()))?;
    let mut client = FopsClient::new(channel)
        .max_decoding_message_size(2 * MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let (sender, receiver) = unbounded_channel();
    sender.send(wire_hello(shared)).ok();
    let answer = client.session(UnboundedReceiverStream::new(receiver)).await;
    let mut replies = answer.map_err(|status| no_server(status.message().to_owned()))?.into_inner();
    let first = replies.message().await.map_err(|status| no_server(status.message().to_owned()))?;
    let first = first.ok_or_else(|| no_server("it closed the stream".into()))?;
    match ServerMessage::try_from(first) {
        Ok(ServerMessage::Welcome(welcome)) => {
            shared.welcomed(&welcome)?;
            let lease = Duration::from_millis(u64::from(welcome.lease_ms));
            shared.resume(&sender);
            Ok(Session { sender, replies, lease })
        }
        Ok(ServerMessage::Refused(reason)) => Err(ConnectError::Refused(reason)),
        _ => Err(no_server("it does not greet as a brickd does".into())),
    }
}

/// Reads replies until the stream ends or the volume is shut down.
async fn serve(shared: &Arc<Shared>, session: &mut Session) {
    let mut ticks = tokio::time::interval(TICK);
    let mut renewed = Instant::now();
    loop {
        tokio::select! {
            reply = session.replies.message() => match reply {
                Ok(Some(reply)) => finish(shared, reply),
                Ok(None) => return,
                Err(status) => {
                    tracing::info!("the stream failed: {}", status.message());
                    return;
                }
            },
            _ = ticks.tick() => {
                shared.expire(Instant::now());
                if renewed.elapsed() > session.lease / 3 {
                    renewed = Instant::now();
                    shared.submit(0, crate::volume::Caller::default(), Fop::Renew, Box::new(|_| ()));
                }
                if session.sender.is_closed() {
                    return;
                }
            }
            () = shared.stop.notified() => return,
        }
    }
}

fn finish(shared: &Arc<Shared>, reply: Reply) {
    let reply = match ServerMessage::try_from(reply) {
        Ok(ServerMessage::Reply(reply)) => reply,
        Ok(_) => return,
        Err(malformed) => {
            tracing::error!("{malformed}");
            FopReply::failed(malformed.request, Errno::EIO)
        }
    };
    if let Some(pending) = shared.take(reply.request) {
        (pending.done)(reply);
    }
}
