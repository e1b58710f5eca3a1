//! TCP connections in, connections whose other end is known out; and the side that connects.
//!
//! A handshake has a time, and a number of them run at once. One more waits in the kernel's queue, as a connection
//! that was not accepted yet: what strangers can make this node hold is bounded.

use crate::security::role::PeerIdentity;
use crate::security::tls::explain;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// After an accept(2) that failed (no descriptors left), so that the next one is not tried at once and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is read of an end that was refused, so that it gets to read why.
const REFUSED_READ_MAX_BYTES: u64 = 64 << 10;
const REFUSED_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// What handshakes may take.
#[derive(Clone, Copy, Debug)]
pub struct HandshakeLimits {
    /// Time of one.
    pub timeout: Duration,
    /// How many run at once.
    pub count_max: usize,
}

impl Default for HandshakeLimits {
    fn default() -> HandshakeLimits {
        HandshakeLimits { timeout: Duration::from_secs(5), count_max: 64 }
    }
}

/// The other end, as requests that come over the connection know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// What its certificate says; `None` for an end without one.
    pub identity: Option<PeerIdentity>,
    /// Where it is.
    pub address: SocketAddr,
}

/// A connection that was accepted.
pub struct Connection {
    stream: server::TlsStream<TcpStream>,
    remote: Remote,
}

impl Connection {
    /// The other end.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }
}

impl Connected for Connection {
    type ConnectInfo = Remote;

    fn connect_info(&self) -> Remote {
        self.remote
    }
}

/// Accepts until the stream is dropped. `on_refused` is told of each end that was refused, and why.
pub fn incoming(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: HandshakeLimits,
    on_refused: impl Fn(SocketAddr, &str) + Send + Sync + 'static,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(limits.count_max);
    let acceptor = TlsAcceptor::from(config);
    let places = Arc::new(Semaphore::new(limits.count_max));
    let on_refused = Arc::new(on_refused);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = accept_one(&listener, &places) => accepted,
                () = sender.closed() => return,
            };
            let Some((socket, address, place)) = accepted else { continue };
            let (acceptor, sender, on_refused) = (acceptor.clone(), sender.clone(), on_refused.clone());
            tokio::spawn(async move {
                match handshake(&acceptor, socket, address, limits.timeout).await {
                    // The place is given back once the server has the connection, so that a server that takes
                    // none accepts none.
                    Ok(connection) => drop(sender.send(Ok(connection)).await),
                    Err(reason) => on_refused(address, &reason),
                }
                drop(place);
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept_one(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, address)) => Some((socket, address, place)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    socket: TcpStream,
    address: SocketAddr,
    limit: Duration,
) -> Result<Connection, String> {
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = match timeout(limit, acceptor.accept(socket).into_fallible()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, socket))) => {
            let _ = timeout(REFUSED_READ_TIMEOUT, let_read(socket)).await;
            return Err(explain(&error));
        }
        Err(_) => return Err(format!("no handshake within {} ms", limit.as_millis())),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    // Verified in the handshake, which has read it too.
    let identity = certificate.map(|certificate| PeerIdentity::of_certificate(certificate)).transpose();
    let identity = identity.map_err(|error| error.to_string())?;
    Ok(Connection { stream, remote: Remote { identity, address } })
}

/// Ends a connection so that the other end reads the alert that was written. Closing a socket with bytes unread
/// resets the connection, which would throw the alert away.
async fn let_read(mut socket: TcpStream) -> io::Result<()> {
    socket.shutdown().await?;
    tokio::io::copy(&mut socket.take(REFUSED_READ_MAX_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Connects to a node; answers the connection and who answers there. The node looks at our certificate only after
/// our side is done: a refusal of ours comes with the first read.
pub async fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    limit: Duration,
) -> io::Result<(client::TlsStream<TcpStream>, PeerIdentity)> {
    let connect = async {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        TlsConnector::from(config).connect(ServerName::IpAddress(address.ip().into()), socket).await
    };
    let late = || io::Error::new(ErrorKind::TimedOut, format!("no handshake within {} ms", limit.as_millis()));
    let stream = timeout(limit, connect).await.map_err(|_| late())??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.ok_or_else(|| io::Error::other("the node has shown no certificate"))?;
    let identity = PeerIdentity::of_certificate(certificate).map_err(io::Error::other)?;
    Ok((stream, identity))
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
