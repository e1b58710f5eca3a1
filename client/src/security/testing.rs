//! Authorities, certificates and listeners for tests.

use crate::security::accept::{Limits, Remote, connect, incoming};
use crate::security::authority::{Authority, Grant};
use crate::security::identity::{Identity, NewKey};
use crate::security::link::Link;
use crate::security::revocation::Revocations;
use crate::security::role::{Holder, Role, Serial};
use crate::security::tls::{ClientTls, Credentials, ServerTls, explain};
use brickfs_common::ids::{ClusterId, NodeId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt as _;

/// What a node's certificate lasts.
pub const DAYS_90: Duration = Duration::from_secs(90 * 24 * 3_600);

/// The authority of a cluster; another call makes another one, of the same name.
pub fn authority(cluster: u8) -> Authority {
    Authority::make(ClusterId([cluster; 16]), SystemTime::now()).unwrap()
}

pub fn holder(role: Role, id: u8) -> Holder {
    Holder { role, id: NodeId([id; 16]) }
}

pub fn grant(role: Role, id: u8) -> Grant {
    Grant { holder: holder(role, id), serial: Serial::random(), lifetime: DAYS_90 }
}

/// A key with its certificate, made at a time.
pub fn identity_of(authority: &Authority, grant: &Grant, at: SystemTime) -> Identity {
    let key = NewKey::make().unwrap();
    let certificate = authority.sign(key.request(), grant, at).unwrap();
    Identity::new(&key.pem(), &certificate, authority.certificate(), grant.holder, at).unwrap()
}

/// One made now, which revokes nobody.
pub fn credentials(authority: &Authority, role: Role, id: u8) -> Arc<Credentials> {
    Credentials::new(identity_of(authority, &grant(role, id), SystemTime::now()), Revocations::default())
}

pub const LIMIT: Duration = Duration::from_secs(30);

/// A listener that answers each connection with what it reads.
pub struct Listener {
    pub address: SocketAddr,
    pub accepted: UnboundedReceiver<Remote>,
    pub refused: UnboundedReceiver<String>,
}

pub async fn listen_with(tls: ServerTls, limits: Limits) -> Listener {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let ((accepted_sender, accepted), (refused_sender, refused)) = (unbounded_channel(), unbounded_channel());
    let mut connections = incoming(socket, tls, limits, move |from, reason| {
        assert!(from.ip().is_loopback());
        let _ = refused_sender.send(reason.to_owned());
    });
    tokio::spawn(async move {
        while let Some(connection) = connections.next().await {
            let connection = connection.unwrap();
            let _ = accepted_sender.send(*connection.remote());
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(connection);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    Listener { address, accepted, refused }
}

pub async fn listen(credentials: &Arc<Credentials>) -> Listener {
    let limits = Limits { handshake_timeout: LIMIT, ..Limits::default() };
    listen_with(ServerTls::new(credentials).unwrap(), limits).await
}

pub async fn echo(stream: &mut Link<TlsStream<TcpStream>>) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

/// Connects and says something: a refusal by the other end is seen only then.
pub async fn talk(listener: &Listener, tls: ClientTls) -> Result<Link<TlsStream<TcpStream>>, String> {
    let connected = connect(listener.address, None, &tls, LIMIT).await;
    let (mut stream, _) = connected.map_err(|error| explain(&error))?;
    echo(&mut stream).await.map_err(|error| explain(&error))?;
    Ok(stream)
}
