//! TCP connections in, connections whose other end is known out; and the side that connects.
//!
//! A handshake has a time, and a number of them run at once and begin in a second. One more waits in the kernel's queue, as a connection
//! that was not accepted yet: what strangers can make this node hold is bounded.

use crate::security::allowance::Allowance;
use crate::security::link::Link;
use crate::security::places::{Place, Places};
use crate::security::role::PeerIdentity;
use crate::security::tls::{ClientTls, ServerTls, explain};
use rustls::pki_types::ServerName;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// After an accept(2) that failed (no descriptors left), so that the next one is not tried at once and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is read of an end that was refused, so that it gets to read why.
const REFUSED_READ_MAX_BYTES: u64 = 64 << 10;
const REFUSED_READ_TIMEOUT: Duration = Duration::from_secs(1);

/// What the other ends may take of a node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time of a handshake.
    pub handshake_timeout: Duration,
    /// Handshakes at once.
    pub handshakes_max: usize,
    /// Handshakes in a second: each costs a good part of a millisecond of the thread that serves.
    pub handshakes_per_s: u32,
    /// Connections in all.
    pub connections_max: usize,
    /// Connections of one client.
    pub of_client_max: usize,
    /// Connections without a certificate.
    pub strangers_max: usize,
    /// How long one without a certificate may last: enough to join.
    pub stranger_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 64,
            handshakes_per_s: 200,
            connections_max: 1_024,
            of_client_max: 16,
            strangers_max: 64,
            stranger_time: Duration::from_secs(30),
        }
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
    link: Link<server::TlsStream<TcpStream>>,
    remote: Remote,
    _place: Place,
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

/// What a handshake needs.
struct Door {
    tls: ServerTls,
    limits: Limits,
    places: Arc<Places>,
}

/// Accepts until the stream is dropped. `on_refused` is told of each end that was refused, and why.
pub fn incoming(
    listener: TcpListener,
    tls: ServerTls,
    limits: Limits,
    on_refused: impl Fn(SocketAddr, &str) + Send + Sync + 'static,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(limits.handshakes_max);
    let handshakes = Arc::new(Semaphore::new(limits.handshakes_max));
    let door = Arc::new(Door { tls, limits, places: Places::new(limits) });
    let on_refused = Arc::new(on_refused);
    let mut allowance = Allowance::new(limits.handshakes_per_s, limits.handshakes_per_s, Instant::now());
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = accept_one(&listener, &handshakes, &mut allowance) => accepted,
                () = sender.closed() => return,
            };
            let Some((socket, address, permit)) = accepted else { continue };
            let (door, sender, on_refused) = (door.clone(), sender.clone(), on_refused.clone());
            tokio::spawn(async move {
                match handshake(&door, socket, address).await {
                    // The permit is given back once the server has the connection, so that a server that takes
                    // none accepts none.
                    Ok(connection) => drop(sender.send(Ok(connection)).await),
                    Err(reason) => on_refused(address, &reason),
                }
                drop(permit);
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept_one(
    listener: &TcpListener,
    handshakes: &Arc<Semaphore>,
    allowance: &mut Allowance,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = handshakes.clone().acquire_owned().await.ok()?;
    while let Err(wait) = allowance.take(Instant::now()) {
        sleep(wait).await;
    }
    match listener.accept().await {
        Ok((socket, address)) => Some((socket, address, permit)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn handshake(door: &Door, socket: TcpStream, address: SocketAddr) -> Result<Connection, String> {
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    let limit = door.limits.handshake_timeout;
    let accept = TlsAcceptor::from(door.tls.config.clone()).accept(socket).into_fallible();
    let stream = match timeout(limit, accept).await {
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
    let remote = Remote { identity: identity.map_err(|error| error.to_string())?, address };
    let place = door.places.take(&remote)?;
    let link = match remote.identity {
        Some(identity) => Link::known(stream, door.tls.credentials.clone(), identity),
        None => Link::stranger(stream, door.limits.stranger_time),
    };
    Ok(Connection { link, remote, _place: place })
}

/// Ends a connection so that the other end reads the alert that was written. Closing a socket with bytes unread
/// resets the connection, which would throw the alert away.
async fn let_read(mut socket: TcpStream) -> io::Result<()> {
    socket.shutdown().await?;
    tokio::io::copy(&mut socket.take(REFUSED_READ_MAX_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Connects to a node; answers the connection and who answers there. The node looks at our certificate only after
/// our side is done: a refusal of ours comes with the first read. `from` is the own address to connect from; one of
/// the other family than the node's is not used.
pub async fn connect(
    address: SocketAddr,
    from: Option<IpAddr>,
    tls: &ClientTls,
    limit: Duration,
) -> io::Result<(Link<client::TlsStream<TcpStream>>, PeerIdentity)> {
    let connect = async {
        let socket = match from.filter(|from| from.is_ipv4() == address.is_ipv4()) {
            Some(from) => connect_from(from, address).await?,
            None => TcpStream::connect(address).await?,
        };
        socket.set_nodelay(true)?;
        TlsConnector::from(tls.config.clone()).connect(ServerName::IpAddress(address.ip().into()), socket).await
    };
    let late = || io::Error::new(ErrorKind::TimedOut, format!("no handshake within {} ms", limit.as_millis()));
    let stream = timeout(limit, connect).await.map_err(|_| late())??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.ok_or_else(|| io::Error::other("the node has shown no certificate"))?;
    let identity = PeerIdentity::of_certificate(certificate).map_err(io::Error::other)?;
    let link = match &tls.credentials {
        Some(credentials) => Link::known(stream, credentials.clone(), identity),
        None => Link::endless(stream),
    };
    Ok((link, identity))
}

async fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.link.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
