//! A client of the wire that keeps no rules: it sends any bytes as HTTP/2 or gRPC to `brickd`'s socket.

use crate::eventually::eventually_ok;
use anyhow::{Context as _, bail, ensure};
use brickfs_proto::v1::{Call, Hello, Reply};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message as _;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The stream of file operations.
pub const SESSION: &str = "/brickfs.v1.Fops/Session";
/// The unary call of administration.
pub const ADMIN: &str = "/brickfs.v1.Admin/Run";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PREFIX_BYTES: usize = 5;

/// How a call ended.
#[derive(Debug, Default)]
pub struct Answer {
    /// HTTP status.
    pub http: u16,
    /// gRPC status; 0 is success.
    pub grpc: Option<i32>,
    /// Bytes in the body.
    pub body_bytes: usize,
}

/// One HTTP/2 connection.
pub struct Connection {
    requests: SendRequest<Bytes>,
}

/// One call that is under way.
pub struct OpenCall {
    response: ResponseFuture,
    /// Where the request's bytes go.
    pub send: SendStream<Bytes>,
}

impl Connection {
    /// Connects to `brickd`.
    pub async fn open(socket: &Path) -> anyhow::Result<Connection> {
        Connection::over(UnixStream::connect(socket).await?).await
    }

    /// Speaks HTTP/2 over a connection that is there.
    pub async fn over<S>(stream: S) -> anyhow::Result<Connection>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = h2::client::handshake(stream).await?;
        // Its error is that of the calls on it.
        tokio::spawn(async move { connection.await.ok() });
        Ok(Connection { requests })
    }

    /// Opens a call of a method.
    pub async fn call(&mut self, method: &str) -> anyhow::Result<OpenCall> {
        let request = http::Request::post(format!("http://localhost{method}"));
        let request = request.header("content-type", "application/grpc").header("te", "trailers").body(())?;
        let mut ready = self.requests.clone().ready().await?;
        let (response, send) = ready.send_request(request, false)?;
        Ok(OpenCall { response, send })
    }
}

impl OpenCall {
    /// Sends bytes, as much as the other side takes; ends the request if `is_last`.
    pub async fn send(&mut self, bytes: Bytes, is_last: bool) -> anyhow::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            self.send.reserve_capacity(rest.len());
            let free = std::future::poll_fn(|context| self.send.poll_capacity(context));
            let free = timeout(ANSWER_TIMEOUT, free).await.context("the server takes nothing more")?;
            let free = free.context("the call has ended")??;
            let piece = rest.split_to(free.min(rest.len()));
            self.send.send_data(piece, false)?;
        }
        if is_last {
            self.send.send_data(Bytes::new(), true)?;
        }
        Ok(())
    }

    /// Waits for the call's end.
    pub async fn finish(self) -> anyhow::Result<Answer> {
        timeout(ANSWER_TIMEOUT, read_answer(self.response)).await.context("no answer")?
    }

    /// Goes on to read the body while more is sent.
    pub async fn start_reading(self) -> anyhow::Result<(SendStream<Bytes>, RecvStream)> {
        let response = timeout(ANSWER_TIMEOUT, self.response).await.context("no answer")??;
        ensure!(response.status() == 200, "HTTP status {}", response.status());
        Ok((self.send, response.into_body()))
    }
}

async fn read_answer(response: ResponseFuture) -> anyhow::Result<Answer> {
    let response = response.await?;
    let mut answer = Answer { http: response.status().as_u16(), ..Answer::default() };
    answer.grpc = grpc_status(response.headers());
    let mut body = response.into_body();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        answer.body_bytes += bytes.len();
    }
    if let Some(trailers) = body.trailers().await? {
        answer.grpc = grpc_status(&trailers);
    }
    Ok(answer)
}

fn grpc_status(headers: &http::HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// A gRPC message: flag, length, bytes. `length` may be a lie.
pub fn framed(flag: u8, length: u32, bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + bytes.len());
    framed.extend([flag]);
    framed.extend(length.to_be_bytes());
    framed.extend(bytes);
    framed.freeze()
}

/// A well-formed gRPC message.
pub fn message(message: &impl prost::Message) -> Bytes {
    let bytes = message.encode_to_vec();
    framed(0, bytes.len() as u32, &bytes)
}

/// A greeting as a client of this build sends it.
pub fn hello(volume: &str, client: [u8; 16]) -> Call {
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        volume: volume.to_owned(),
        client: client.to_vec().into(),
        session: 1,
        lowest_unanswered: 1,
        ..Hello::default()
    };
    Call { hello: Some(hello), ..Call::default() }
}

/// A greeted session whose calls are sent one at a time.
pub struct Session {
    send: SendStream<Bytes>,
    body: RecvStream,
    received: BytesMut,
    request: u64,
    _connection: Connection,
}

impl Session {
    /// Greets; an error if the greeting is refused.
    pub async fn open(socket: &Path, greeting: &Call) -> anyhow::Result<Session> {
        let mut connection = Connection::open(socket).await?;
        let mut call = connection.call(SESSION).await?;
        call.send(message(greeting), false).await?;
        let (send, body) = call.start_reading().await?;
        let mut session = Session { send, body, received: BytesMut::new(), request: 0, _connection: connection };
        let reply = session.read().await?;
        ensure!(reply.welcome.is_some(), "not welcome: {}", reply.refused);
        Ok(session)
    }

    /// Sends a call with the next request number and gives the reply to it.
    pub async fn ask(&mut self, mut call: Call) -> anyhow::Result<Reply> {
        self.request += 1;
        (call.request, call.lowest_unanswered) = (self.request, self.request);
        (call.deadline_ms, call.epoch, call.generation) = (10_000, 1, 1);
        self.send.reserve_capacity(64 << 10);
        self.send.send_data(message(&call), false)?;
        loop {
            let reply = self.read().await?;
            if reply.request == self.request {
                return Ok(reply);
            }
        }
    }

    async fn read(&mut self) -> anyhow::Result<Reply> {
        loop {
            if let Some(length) = self.received.get(1..PREFIX_BYTES).map(|mut bytes| bytes.get_u32() as usize)
                && self.received.len() >= PREFIX_BYTES + length
            {
                self.received.advance(PREFIX_BYTES);
                return Ok(Reply::decode(self.received.split_to(length))?);
            }
            match timeout(ANSWER_TIMEOUT, self.body.data()).await.context("no reply")? {
                Some(bytes) => {
                    let bytes = bytes?;
                    self.body.flow_control().release_capacity(bytes.len())?;
                    self.received.extend(bytes);
                }
                None => bail!("the session was ended by the server"),
            }
        }
    }
}

/// Runs a client's code to its end.
pub fn block_on<T>(code: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(code)
}

/// Waits until the memory of a process is below a limit; gives it in bytes.
pub fn memory_below(pid: u32, limit_bytes: u64, patience: Duration) -> anyhow::Result<u64> {
    eventually_ok("the process gives memory back", patience, || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        ensure!(kib * 1024 < limit_bytes, "{kib} KiB");
        Ok(kib * 1024)
    })
}
