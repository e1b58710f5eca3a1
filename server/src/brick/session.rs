//! The session stream: decodes calls, runs them inline in the stream's task, sends replies. What may sleep
//! on the disk goes to a small fixed pool of threads.

use crate::brick::host::Host;
use crate::brick::volume::dispatch::Outcome;
use brickfs_client::polling::Activity;
use brickfs_common::fop::{FopReply, MESSAGE_MAX_BYTES};
use brickfs_proto::convert::fops::{ClientMessage, ServerMessage};
use brickfs_proto::v1::fops_server::{Fops, FopsServer};
use brickfs_proto::v1::{Call, Op, Reply};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Replies that wait to be sent; beyond it no further call is read.
const REPLIES_MAX: usize = 1024;
/// Threads for work that sleeps.
const POOL_THREADS: usize = 4;
/// Works that wait for a thread; beyond it the stream waits.
const POOL_QUEUE: usize = 4096;

type Work = Box<dyn FnOnce() + Send>;
type ReplySender = mpsc::Sender<Result<Reply, Status>>;

/// Threads for file calls that may sleep.
#[derive(Clone)]
struct Pool(std_mpsc::SyncSender<Work>);

impl Pool {
    fn start() -> Pool {
        let (sender, receiver) = std_mpsc::sync_channel::<Work>(POOL_QUEUE);
        let receiver = Arc::new(Mutex::new(receiver));
        for index in 0..POOL_THREADS {
            let receiver = receiver.clone();
            let run = move || loop {
                let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(work) = next else { return };
                work();
            };
            if let Err(error) = std::thread::Builder::new().name(format!("brick-io-{index}")).spawn(run) {
                tracing::error!("no thread for file calls: {error}");
            }
        }
        Pool(sender)
    }
}

/// The gRPC service of file operations.
pub struct FopsService {
    host: Arc<Host>,
    pool: Pool,
    activity: Arc<Activity>,
}

/// The service with its message limits.
pub fn fops_service(host: Arc<Host>, activity: Arc<Activity>) -> FopsServer<FopsService> {
    FopsServer::new(FopsService { host, pool: Pool::start(), activity })
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(2 * MESSAGE_MAX_BYTES)
}

#[tonic::async_trait]
impl Fops for FopsService {
    type SessionStream = ReceiverStream<Result<Reply, Status>>;

    async fn session(&self, request: Request<Streaming<Call>>) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::channel(REPLIES_MAX);
        let (host, pool, activity) = (self.host.clone(), self.pool.clone(), self.activity.clone());
        tokio::spawn(async move {
            if let Err(status) = run_session(&host, &pool, &activity, request.into_inner(), &sender).await {
                tracing::info!("a session ended: {}", status.message());
                // The client may be gone already.
                sender.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn run_session(
    host: &Arc<Host>,
    pool: &Pool,
    activity: &Activity,
    mut calls: Streaming<Call>,
    replies: &ReplySender,
) -> Result<(), Status> {
    let first = calls.message().await?.ok_or_else(|| Status::invalid_argument("the stream is empty"))?;
    let Ok(ClientMessage::Hello(hello)) = ClientMessage::try_from(first) else {
        return Err(Status::invalid_argument("the first message must be a well-formed Hello"));
    };
    let session = match host.hello(&hello) {
        Ok((welcome, session)) => {
            send(replies, ServerMessage::Welcome(welcome)).await?;
            session
        }
        Err(reason) => {
            tracing::info!(client = %hello.client, "a client was refused: {reason}");
            return send(replies, ServerMessage::Refused(reason)).await;
        }
    };
    let ended = loop {
        match calls.message().await {
            Ok(Some(call)) => {
                let bulk_bytes = call.data.len().max(if call.op() == Op::Read { call.length as usize } else { 0 });
                activity.message(bulk_bytes);
                if let Some(reply) = run_call(host, pool, &session, call, replies) {
                    send(replies, ServerMessage::Reply(reply)).await?;
                }
            }
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    host.session_ended(session);
    ended
}

/// Runs a call; `None` if its reply comes from the pool.
fn run_call(
    host: &Arc<Host>,
    pool: &Pool,
    session: &crate::brick::host::SessionHandle,
    call: Call,
    replies: &ReplySender,
) -> Option<FopReply> {
    let (header, fop) = match ClientMessage::try_from(call) {
        Ok(ClientMessage::Call(header, fop)) => (header, fop),
        Ok(ClientMessage::Hello(_)) => return Some(FopReply::failed(0, brickfs_common::errno::Errno::EPROTO)),
        Err(malformed) => return Some(FopReply::failed(malformed.request, malformed.errno)),
    };
    let request = header.request;
    match host.call(session, &header, fop) {
        Outcome::Reply(reply) => Some(reply),
        Outcome::Waiting(reply) => {
            let replies = replies.clone();
            tokio::spawn(async move {
                let reply = ServerMessage::Reply(reply.await);
                // Fails only when the client is gone.
                send(&replies, reply).await.ok();
            });
            None
        }
        Outcome::Later(work) => {
            let replies = replies.clone();
            let job: Work = Box::new(move || {
                // Fails only when the client is gone.
                replies.blocking_send(Ok(Reply::from(ServerMessage::Reply(work())))).ok();
            });
            match pool.0.try_send(job) {
                Ok(()) => None,
                Err(std_mpsc::TrySendError::Full(job)) => {
                    tracing::warn!(request, "all threads for file calls are busy");
                    std::thread::spawn(job);
                    None
                }
                Err(std_mpsc::TrySendError::Disconnected(_)) => {
                    Some(FopReply::failed(request, brickfs_common::errno::Errno::EIO))
                }
            }
        }
    }
}

async fn send(replies: &ReplySender, message: ServerMessage) -> Result<(), Status> {
    replies.send(Ok(message.into())).await.map_err(|_| Status::cancelled("the client is gone"))
}
