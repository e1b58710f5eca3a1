//! The session: one connection, one stream. The reader of the stream answers the waiting party
//! itself. A lost session is replaced, what waits is sent again under its old numbers. Beside it a tick
//! looks after calls that wait for long, whatever the connection does.

use crate::descriptors::Inbox;
use crate::driving;
use crate::lent::Borrowed;
use crate::polling::poll;
use crate::quiet_socket::QuietSocket;
use crate::security::connect::{connect_to_any, describe};
use crate::security::identity::Identity;
use crate::security::revocation::Revocations;
use crate::security::tls::{ClientTls, Credentials};
use crate::shared::Shared;
use crate::volume::{ConnectError, Target};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Descriptor, FopReply, GREETING_MAX_BYTES, MESSAGE_MAX_BYTES};
use brickfs_proto::convert::fops::ServerMessage;
use brickfs_proto::v1::fops_client::FopsClient;
use brickfs_proto::v1::reply::Answer;
use brickfs_proto::v1::{Call, Reply};
use brickfs_proto::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, STREAM_WINDOW_BYTES};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// How often calls that wait for long are looked at.
const TICK: Duration = Duration::from_millis(250);
/// First and longest pause between attempts to connect.
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// A connection over which nothing comes back is given up after at most twice this.
const KEEP_ALIVE: Duration = Duration::from_millis(2_000);
/// How long a node may take to greet.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// A greeted session; `Shared` has the calls for it.
struct Session {
    replies: Streaming<Reply>,
    /// Files that come beside the replies.
    inbox: Arc<Inbox>,
}

/// The session's thread. The first greeting's outcome goes to `greeted`; without a first session the thread
/// ends, else it runs until shutdown.
pub fn run(shared: &Arc<Shared>, greeted: &Sender<Result<Arc<Runtime>, ConnectError>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => Arc::new(runtime),
        Err(error) => {
            greeted.send(Err(ConnectError::Runtime(error))).ok();
            return;
        }
    };
    let session = match runtime.block_on(greet(shared)) {
        Ok(session) => session,
        Err(error) => {
            greeted.send(Err(error)).ok();
            return;
        }
    };
    greeted.send(Ok(runtime.clone())).ok();
    drive_until_shut_down(shared, &runtime, Some(session));
}

/// The thread of a further session, which may begin later than the volume is connected. Runs until shutdown.
pub fn run_beside(shared: &Arc<Shared>, runtime: &Arc<Runtime>) {
    shared.lost_session("not connected yet".into());
    drive_until_shut_down(shared, runtime, None);
}

fn drive_until_shut_down(shared: &Arc<Shared>, runtime: &Arc<Runtime>, session: Option<Session>) {
    let mut tasks = vec![runtime.spawn(tick(shared.clone()))];
    if shared.options.poll {
        let polled = shared.clone();
        tasks.push(runtime.spawn(async move { poll(&polled.activity).await }));
    }
    let kept = shared.clone();
    tasks.push(runtime.spawn(async move { keep_sessions(&kept, session).await }));
    driving::look_after(shared, runtime);
    tasks.iter().for_each(JoinHandle::abort);
    for task in tasks {
        // The task's end, which drops what it held; that it was aborted is no news.
        runtime.block_on(task).ok();
    }
    shared.fail_all();
}

async fn tick(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.tick(Instant::now());
    }
}

async fn keep_sessions(shared: &Arc<Shared>, session: Option<Session>) {
    let mut session = match session {
        Some(session) => session,
        None => reconnect(shared).await,
    };
    loop {
        let trouble = serve(shared, &mut session).await;
        tracing::info!(volume = %shared.options.volume, "the session was lost ({trouble}), connecting again");
        shared.lost_session(trouble);
        session = reconnect(shared).await;
    }
}

async fn reconnect(shared: &Arc<Shared>) -> Session {
    let mut pause = BACKOFF_FIRST;
    loop {
        match greet(shared).await {
            Ok(session) => {
                tracing::info!("connected again");
                return session;
            }
            Err(error) => shared.lost_session(error.to_string()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

async fn greet(shared: &Arc<Shared>) -> Result<Session, ConnectError> {
    match &shared.options.target {
        Target::Sockets(sockets) => greet_at_any(shared, sockets).await,
        Target::Beside(first) => greet_beside(shared, first).await,
    }
}

/// Tries each socket in turn.
async fn greet_at_any(shared: &Arc<Shared>, sockets: &[PathBuf]) -> Result<Session, ConnectError> {
    let mut last = ConnectError::NoServer { path: PathBuf::new(), reason: "no socket was given".into() };
    for path in sockets {
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
    let inbox = Arc::new(Inbox::default());
    let theirs = inbox.clone();
    let connector = tower::service_fn(move |_| {
        let (socket, inbox) = (socket.clone(), theirs.clone());
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            QuietSocket::with_inbox(stream, inbox).map(TokioIo::new)
        }
    });
    let channel = endpoint().connect_with_connector(connector).await.map_err(|error| no_server(error.to_string()))?;
    greet_over(shared, channel, inbox, &no_server).await
}

/// A node over TLS, with the certificate of this machine's own one; by where the first session's node says it is. The
/// certificate is read each time, for it is renewed now and then.
async fn greet_beside(shared: &Arc<Shared>, first: &Arc<Shared>) -> Result<Session, ConnectError> {
    let node = shared.node().unwrap_or_default();
    let no_node = |reason: String| ConnectError::NoNode { node, reason };
    let neighbours = first.neighbours();
    let addresses = neighbours.nodes.get(&node).cloned().unwrap_or_default();
    let path = neighbours.identity_path.ok_or_else(|| no_node("this machine has no certificate for it".into()))?;
    let identity = Identity::load_file(&path).map_err(|error| no_node(format!("{error:#}")))?;
    let identity = identity.ok_or_else(|| no_node(format!("{} is not there", path.display())))?;
    let credentials = Credentials::new(identity, Revocations::default());
    let tls = ClientTls::member(&credentials, Some(node)).map_err(|error| no_node(error.to_string()))?;
    let connect = async {
        let connector = tower::service_fn(move |_| {
            let (addresses, tls) = (addresses.clone(), tls.clone());
            async move { connect_to_any(&addresses, &tls, None).await }
        });
        let endpoint =
            endpoint().http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE).keep_alive_while_idle(true);
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| no_node(describe(&Status::from_error(Box::new(error)))))?;
        greet_over(shared, channel, Arc::default(), &no_node).await
    };
    let greeted = tokio::time::timeout(GREETING_TIMEOUT, connect).await;
    greeted.unwrap_or_else(|_| Err(no_node("it does not answer in time".into())))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://brickd")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
}

async fn greet_over(
    shared: &Arc<Shared>,
    channel: Channel,
    inbox: Arc<Inbox>,
    no_server: &impl Fn(String) -> ConnectError,
) -> Result<Session, ConnectError> {
    let mut client = FopsClient::new(channel)
        .max_decoding_message_size(2 * MESSAGE_MAX_BYTES)
        .max_encoding_message_size(GREETING_MAX_BYTES);
    let (session, hello) = shared.hello();
    let calls = tokio_stream::once(hello).chain(outgoing(shared.clone(), session));
    let answer = client.session(calls).await;
    let mut replies = answer.map_err(|status| no_server(status.message().to_owned()))?.into_inner();
    let first = replies.message().await.map_err(|status| no_server(status.message().to_owned()))?;
    let first = first.ok_or_else(|| no_server("it closed the stream".into()))?;
    let borrowed = inbox.take(first.descriptor).and_then(|memory| match Borrowed::map(memory) {
        Ok(borrowed) => Some(borrowed),
        Err(error) => {
            tracing::warn!("the node's memory for data cannot be used: {error}");
            None
        }
    });
    match ServerMessage::try_from(first) {
        Ok(ServerMessage::Welcome(welcome)) => {
            shared.welcomed(&welcome, borrowed)?;
            shared.resume();
            Ok(Session { replies, inbox })
        }
        Ok(ServerMessage::Refused(reason)) => Err(ConnectError::Refused(reason)),
        _ => Err(no_server("it does not greet as a brickd does".into())),
    }
}

/// The calls of a session as its stream takes them.
fn outgoing(shared: Arc<Shared>, session: u64) -> impl Stream<Item = Call> {
    futures::stream::poll_fn(move |cx| {
        let polled = shared.poll_outgoing(session, cx);
        if let Poll::Ready(Some(call)) = &polled {
            shared.activity.message(call.data.len().max(call.lent_length as usize));
        }
        polled
    })
}

/// Reads replies until the stream ends; answers why it did.
async fn serve(shared: &Arc<Shared>, session: &mut Session) -> String {
    loop {
        match session.replies.message().await {
            Ok(Some(reply)) => finish(shared, &session.inbox, reply),
            Ok(None) => return "the node closed the stream".into(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

fn finish(shared: &Arc<Shared>, inbox: &Inbox, reply: Reply) {
    let data_bytes = match &reply.answer {
        Some(Answer::Data(data)) => data.len(),
        _ => 0,
    };
    shared.activity.message(data_bytes);
    let file = if reply.descriptor == 0 { None } else { inbox.take(reply.descriptor) };
    let descriptor = file.map(|file| Descriptor(Arc::new(file)));
    let reply = match ServerMessage::try_from(reply) {
        Ok(ServerMessage::Reply(reply)) => FopReply { descriptor, ..reply },
        Ok(ServerMessage::FilesVoid) => return shared.void_files(),
        Ok(_) => return,
        Err(malformed) => {
            tracing::error!("{malformed}");
            FopReply::failed(malformed.request, Errno::EIO)
        }
    };
    shared.finish(reply);
}
