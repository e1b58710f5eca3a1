//! The session stream: decodes calls, runs them inline in the stream's task, sends replies. What may sleep
//! on the disk goes to a small fixed pool of threads.

use crate::brick::host::{Host, SessionHandle};
use crate::brick::volume::dispatch::Outcome;
use brickfs_client::descriptors::Outbox;
use brickfs_client::lent::Lender;
use brickfs_client::polling::Activity;
use brickfs_client::quiet_socket::Peer;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{FEATURE_LENT_DATA, FopReply, GREETING_MAX_BYTES, MESSAGE_MAX_BYTES, Welcome};
use brickfs_proto::convert::fops::{ClientMessage, ServerMessage};
use brickfs_proto::v1::fops_server::{Fops, FopsServer};
use brickfs_proto::v1::{Call, Op, Reply};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Replies that wait to be sent; beyond it no further call is read.
const REPLIES_MAX: usize = 1024;
/// Threads for work that sleeps.
const POOL_THREADS: usize = 4;
/// Works that wait for a thread or run; beyond it streams wait.
const POOL_QUEUE: usize = 4096;

type Work = Box<dyn FnOnce() + Send>;

/// Where the replies of a session go.
#[derive(Clone)]
struct Replies {
    sender: mpsc::Sender<Result<Reply, Status>>,
    /// Files that go beside them, where the client is on this machine.
    outbox: Option<Arc<Outbox>>,
}

impl Replies {
    /// The reply as it is sent; its file goes ahead.
    fn to_wire(&self, reply: FopReply) -> Reply {
        let file = reply.descriptor.clone();
        let mut wire = Reply::from(ServerMessage::Reply(reply));
        let file = file.and_then(|file| Arc::into_inner(file.0));
        if let (Some(file), Some(outbox)) = (file, &self.outbox) {
            wire.descriptor = outbox.pass(file).unwrap_or_default();
        }
        wire
    }

    /// Greets; a client of this machine that knows how to use it is lent memory for the data of its writes.
    async fn welcome(&self, welcome: Welcome, takes_memory: bool) -> Result<Option<Lender>, Status> {
        let mut wire = Reply::from(ServerMessage::Welcome(welcome));
        let outbox = self.outbox.as_ref().filter(|_| takes_memory);
        let lent = outbox.and_then(|outbox| match Lender::lend() {
            Ok((lender, memory)) => {
                wire.descriptor = outbox.pass(memory)?;
                Some(lender)
            }
            Err(error) => {
                tracing::warn!("no memory can be lent, data goes over the socket: {error}");
                None
            }
        });
        self.sender.send(Ok(wire)).await.map_err(|_| Status::cancelled("the client is gone"))?;
        Ok(lent)
    }

    async fn send(&self, message: ServerMessage) -> Result<(), Status> {
        let message = match message {
            ServerMessage::Reply(reply) => self.to_wire(reply),
            other => other.into(),
        };
        self.sender.send(Ok(message)).await.map_err(|_| Status::cancelled("the client is gone"))
    }
}

/// Threads for file calls that may sleep.
#[derive(Clone)]
struct Pool {
    queue: std_mpsc::Sender<Work>,
    room: Arc<Semaphore>,
}

impl Pool {
    fn start() -> Pool {
        let (sender, receiver) = std_mpsc::channel::<Work>();
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
        Pool { queue: sender, room: Arc::new(Semaphore::new(POOL_QUEUE)) }
    }

    /// Has the work done by a thread; waits while too many others wait for one.
    async fn run(&self, work: Work) {
        // Never closed.
        let Ok(room) = self.room.clone().acquire_owned().await else { return };
        let work = Box::new(move || {
            work();
            drop(room);
        });
        if self.queue.send(work).is_err() {
            tracing::error!("no thread for file calls is left");
        }
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
        .max_decoding_message_size(GREETING_MAX_BYTES)
        .max_encoding_message_size(2 * MESSAGE_MAX_BYTES)
}

#[tonic::async_trait]
impl Fops for FopsService {
    type SessionStream = ReceiverStream<Result<Reply, Status>>;

    async fn session(&self, request: Request<Streaming<Call>>) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::channel(REPLIES_MAX);
        let replies = Replies { sender, outbox: request.extensions().get::<Peer>().map(|peer| peer.outbox.clone()) };
        let (host, pool, activity) = (self.host.clone(), self.pool.clone(), self.activity.clone());
        tokio::spawn(async move {
            if let Err(status) = run_session(&host, &pool, &activity, request.into_inner(), &replies).await {
                tracing::info!("a session ended: {}", status.message());
                // The client may be gone already.
                replies.sender.send(Err(status)).await.ok();
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
    replies: &Replies,
) -> Result<(), Status> {
    let first = calls.message().await?.ok_or_else(|| Status::invalid_argument("the stream is empty"))?;
    let Ok(ClientMessage::Hello(hello)) = ClientMessage::try_from(first) else {
        return Err(Status::invalid_argument("the first message must be a well-formed Hello"));
    };
    let lender;
    let session = match host.hello(&hello) {
        Ok((mut welcome, session)) => {
            if replies.outbox.is_some() {
                welcome.identity_path = host.identity_path().to_owned();
            }
            lender = replies.welcome(welcome, hello.features & FEATURE_LENT_DATA != 0).await?;
            session
        }
        Err(reason) => {
            tracing::info!(client = %hello.client, "a client was refused: {reason}");
            return replies.send(ServerMessage::Refused(reason)).await;
        }
    };
    let mut stopped = pin!(session.stopped());
    let mut is_stopped = false;
    let ended = loop {
        let message = tokio::select! {
            biased;
            message = calls.message() => message,
            () = &mut stopped, if !is_stopped => {
                // What it asks for from now on fails; what it has here already it would go on reading.
                is_stopped = true;
                replies.send(ServerMessage::FilesVoid).await?;
                continue;
            }
        };
        match message {
            Ok(Some(mut call)) => {
                if call.lent_length > 0 {
                    match lender.as_ref().and_then(|lender| lender.bytes(call.lent_offset, call.lent_length)) {
                        Some(data) => call.data = data,
                        None => break Err(Status::invalid_argument("data in memory that was not lent")),
                    }
                }
                let bulk_bytes = call.data.len().max(if call.op() == Op::Read { call.length as usize } else { 0 });
                activity.message(bulk_bytes);
                match run_call(host, &session, call, replies) {
                    Ran::Reply(reply) => replies.send(ServerMessage::Reply(reply)).await?,
                    Ran::Later => {}
                    Ran::Work(work) => pool.run(work).await,
                    Ran::SessionOver => break Err(Status::unavailable("the client's lease has ended: greet again")),
                }
            }
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    host.session_ended(session);
    ended
}

/// What has become of a call.
#[allow(clippy::large_enum_variant)] // made and taken apart once a call: a box would cost more
enum Ran {
    Reply(FopReply),
    /// The reply comes when what it waits for has happened.
    Later,
    /// The work sends the reply; it may sleep.
    Work(Work),
    /// No call of this session is run any more.
    SessionOver,
}

fn run_call(host: &Arc<Host>, session: &SessionHandle, call: Call, replies: &Replies) -> Ran {
    let (header, fop) = match ClientMessage::try_from(call) {
        Ok(ClientMessage::Call(header, fop)) => (header, fop),
        Ok(ClientMessage::Hello(_)) => return Ran::Reply(FopReply::failed(0, Errno::EPROTO)),
        Err(malformed) => return Ran::Reply(FopReply::failed(malformed.request, malformed.errno)),
    };
    match host.call(session, &header, fop) {
        Outcome::Reply(reply) => Ran::Reply(reply),
        Outcome::SessionOver => Ran::SessionOver,
        Outcome::Waiting(reply) => {
            let replies = replies.clone();
            tokio::spawn(async move {
                let reply = ServerMessage::Reply(reply.await);
                // Fails only when the client is gone.
                replies.send(reply).await.ok();
            });
            Ran::Later
        }
        Outcome::Later(work) => {
            let replies = replies.clone();
            Ran::Work(Box::new(move || {
                // Fails only when the client is gone.
                let reply = replies.to_wire(work());
                replies.sender.blocking_send(Ok(reply)).ok();
            }))
        }
    }
}
