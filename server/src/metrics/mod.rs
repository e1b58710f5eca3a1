//! Metrics of this node for Prometheus: `GET /metrics`, in plain HTTP for programs of this machine, elsewhere over TLS
//! with a certificate of the cluster, of whatever role.
//!
//! ```text
//! mod.rs     listens, and answers few at a time, each for a short time
//! text.rs    figures in, text out (pure)
//! ```
//! Where the figures come from is `manager/figures.rs`.

pub mod text;

use crate::manager::Manager;
use crate::security::accept::{Limits, incoming};
use crate::security::audit::{Audit, Entry};
use crate::security::tls::{Credentials, ServerTls};
use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use text::{Figures, write_text};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;

/// Connections at once; one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;
/// How long one may last: a request and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of a request; no body is read.
const HEAD_MAX_BYTES: usize = 8 << 10;
/// What is spoken inside TLS; named so that these certificates are used for nothing else.
const PROTOCOL: &[u8] = b"http/1.1";
/// After an accept(2) that failed, so that the next one is not tried at once and again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const PATH: &str = "/metrics";
const TEXT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Reads the setting: `ADDRESS:PORT`, or `none`.
pub fn parse_setting(text: Option<&str>) -> anyhow::Result<Option<SocketAddr>> {
    match text {
        None | Some("none") => Ok(None),
        Some(text) => match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Some(address)),
            _ => bail!("metrics must be ADDRESS:PORT with numbers, as in 127.0.0.1:24181, or none, not '{text}'"),
        },
    }
}

/// What is measured.
pub trait Source: Send + Sync + 'static {
    /// The figures of now. May wait for disks; `None` while others wait for them already.
    fn figures(self: Arc<Self>) -> impl Future<Output = Option<Figures>> + Send;
}

/// Listens where the setting says and answers from then on, on this runtime.
pub async fn start(setting: Option<SocketAddr>, manager: &Arc<Manager>) -> anyhow::Result<()> {
    let Some(address) = setting else { return Ok(()) };
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.with_context(|| format!("cannot listen on {address} for metrics: give another --metrics"))?;
    let (credentials, audit) = manager.doors();
    serve(listener, manager.clone(), &credentials, audit, CONNECTION_TIMEOUT)
}

fn serve<S: Source>(
    listener: TcpListener,
    source: Arc<S>,
    credentials: &Arc<Credentials>,
    audit: Arc<Audit>,
    limit: Duration,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let is_plain = address.ip().is_loopback();
    match is_plain {
        true => drop(tokio::spawn(serve_plain(listener, source, limit))),
        false => {
            let tls = ServerTls::of_protocol(credentials, PROTOCOL)?;
            drop(tokio::spawn(serve_tls(listener, source, tls, audit, limit)));
        }
    }
    tracing::info!(%address, tls = !is_plain, "serving metrics");
    Ok(())
}

async fn serve_plain<S: Source>(listener: TcpListener, source: Arc<S>, limit: Duration) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((socket, _)) => {
                let source = source.clone();
                tokio::spawn(async move {
                    answer(socket, source, limit).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Over TLS: who shows no certificate is a stranger, and there is no place for one.
async fn serve_tls<S: Source>(
    listener: TcpListener,
    source: Arc<S>,
    tls: ServerTls,
    audit: Arc<Audit>,
    limit: Duration,
) {
    let limits = Limits {
        handshakes_max: CONNECTIONS_MAX,
        handshakes_per_s: CONNECTIONS_MAX as u32,
        connections_max: CONNECTIONS_MAX,
        strangers_max: 0,
        ..Limits::default()
    };
    let on_refused = move |from: SocketAddr, reason: &str| {
        let (what, result) = ("connection for metrics".to_owned(), format!("refused: {reason}"));
        audit.record_stranger(Entry { role: "stranger", from: from.to_string(), what, result, ..Entry::default() });
    };
    let mut connections = incoming(listener, tls, limits, on_refused);
    while let Some(connection) = connections.next().await {
        if let Ok(connection) = connection {
            tokio::spawn(answer(connection, source.clone(), limit));
        }
    }
}

/// Answers one request and ends the connection.
async fn answer<S: Source>(socket: impl AsyncRead + AsyncWrite + Unpin, source: Arc<S>, limit: Duration) {
    let service = service_fn(move |request: Request<Incoming>| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(respond(&request, source).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_buf_size(HEAD_MAX_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service);
    match timeout(limit, connection).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => tracing::debug!(%error, "a request for metrics was not answered"),
        Err(_) => tracing::debug!("a request for metrics took too long"),
    }
}

async fn respond<S: Source>(request: &Request<Incoming>, source: Arc<S>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "there is /metrics alone\n");
    }
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are read by GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match source.figures().await {
        Some(figures) => plain(StatusCode::OK, write_text(&figures)),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "the figures are being read already: ask later\n"),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT_TYPE);
    response
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
