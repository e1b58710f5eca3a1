//! The way to a node by its addresses, over TLS.

use crate::security::accept::connect;
use crate::security::link::Link;
use crate::security::tls::{ClientTls, explain};
use hyper_util::rt::TokioIo;
use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tonic::{Code, Status};

/// How long one address may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// A connection as HTTP takes it.
pub type TlsIo = TokioIo<Link<TlsStream<TcpStream>>>;

/// Connects to the first of these addresses (`host:port`) that answers; `from` as of `connect`.
pub async fn connect_to_any(addresses: &[String], tls: &ClientTls, from: Option<IpAddr>) -> io::Result<TlsIo> {
    let mut reasons = Vec::new();
    for address in addresses {
        match connect_to(address, tls, from).await {
            Ok(io) => return Ok(io),
            Err(error) => reasons.push(format!("{address}: {}", explain(&error))),
        }
    }
    if reasons.is_empty() {
        reasons.push("it has no address".to_owned());
    }
    Err(io::Error::new(io::ErrorKind::NotConnected, reasons.join("; ")))
}

async fn connect_to(address: &str, tls: &ClientTls, from: Option<IpAddr>) -> io::Result<TlsIo> {
    let found: Vec<SocketAddr> = timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "its name could not be looked up in time"))??
        .collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    for address in found {
        match connect(address, from, tls, CONNECT_TIMEOUT).await {
            Ok((link, _identity)) => return Ok(TokioIo::new(link)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Why a call to a node failed, in one line without what is between HTTP and the cause.
pub fn describe(status: &Status) -> String {
    let mut deepest: Option<&dyn std::error::Error> = status.source();
    while let Some(cause) = deepest.and_then(std::error::Error::source) {
        deepest = Some(cause);
    }
    match (status.code(), deepest) {
        (Code::Unavailable | Code::Unknown | Code::Cancelled, Some(cause)) => cause.to_string(),
        _ => status.message().to_owned(),
    }
}
