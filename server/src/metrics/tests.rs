//! Requests over real sockets: what is answered, and to whom.

use super::text::ClusterFigures;
use super::text::tests::parse;
use super::*;
use crate::security::accept::connect;
use crate::security::authority::{Authority, Grant};
use crate::security::identity::{Identity, NewKey};
use crate::security::revocation::Revocations;
use crate::security::role::{Holder, Role, Serial};
use crate::security::tls::{ClientTls, explain};
use brickfs_common::ids::{ClusterId, NodeId};
use std::time::SystemTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A test that hangs is red.
const LIMIT: Duration = Duration::from_secs(30);
const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// Has figures, or waits for a disk that hangs.
struct Fake {
    hangs: bool,
}

impl Source for Fake {
    async fn figures(self: Arc<Self>) -> Option<Figures> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Some(Figures { cluster: ClusterFigures { term: 7, ..ClusterFigures::default() }, ..Figures::default() })
    }
}

/// Listens on an address of the machine: of the loopback interface alone, or of every one.
async fn listen(ip: &str, hangs: bool) -> (SocketAddr, Arc<Credentials>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let audit = Arc::new(Audit::open(dir.path()).unwrap());
    let credentials = credentials(Role::Peer);
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let limit = if hangs { Duration::from_millis(500) } else { LIMIT };
    serve(listener, Arc::new(Fake { hangs }), &credentials, audit, limit).unwrap();
    (SocketAddr::from(([127, 0, 0, 1], port)), credentials, dir)
}

async fn talk(mut socket: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    let mut answer = Vec::new();
    let talk = async {
        // An end that has refused us may be gone before all is said.
        let _ = socket.write_all(request).await;
        let _ = socket.read_to_end(&mut answer).await;
    };
    timeout(LIMIT, talk).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    talk(TcpStream::connect(address).await.unwrap(), request).await
}

async fn ask_tls(address: SocketAddr, tls: &ClientTls, protocol: &[u8]) -> Result<String, String> {
    let tls = tls.clone().of_protocol(protocol);
    match connect(address, None, &tls, LIMIT).await {
        Ok((stream, _)) => Ok(talk(stream, GET).await),
        Err(error) => Err(explain(&error)),
    }
}

/// A new authority of the same cluster, and a member by it.
fn credentials(role: Role) -> Arc<Credentials> {
    let (now, key) = (SystemTime::now(), NewKey::make().unwrap());
    let authority = Authority::make(ClusterId([1; 16]), now).unwrap();
    let holder = Holder { role, id: NodeId([1; 16]) };
    let grant = Grant { holder, serial: Serial::random(), lifetime: Duration::from_secs(3_600) };
    let certificate = authority.sign(key.request(), &grant, now).unwrap();
    let identity = Identity::new(&key.pem(), &certificate, authority.certificate(), holder, now).unwrap();
    Credentials::new(identity, Revocations::default())
}

#[test]
fn the_setting_is_an_address_with_a_port() {
    assert_eq!(parse_setting(None).unwrap(), None);
    assert_eq!(parse_setting(Some("none")).unwrap(), None);
    assert_eq!(parse_setting(Some("[::1]:9")).unwrap(), "[::1]:9".parse().ok());
    for bad in ["", "127.0.0.1", "127.0.0.1:0", "host:9", ":9", "9"] {
        assert!(parse_setting(Some(bad)).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn programs_of_this_machine_read_them_in_plain_http() {
    let (address, ..) = listen("127.0.0.1", false).await;
    let answer = ask(address, GET).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert_eq!(parse(body)["brickfs_raft_term"], 7.0);
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /metrics/../etc HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", "405"),
        ("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = ask(address, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_large_head_is_refused() {
    let (address, ..) = listen("127.0.0.1", false).await;
    let long = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_MAX_BYTES));
    let answer = ask(address, long.as_bytes()).await;
    assert!(!answer.contains("brickfs_"), "{answer}");
    assert!(ask(address, GET).await.contains("brickfs_"), "the next one is answered");
}

#[tokio::test]
async fn who_says_nothing_and_disks_that_hang_keep_no_place() {
    let (address, ..) = listen("127.0.0.1", true).await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(ask(address, GET).await, "", "after the silent ones it has its turn, and its own time ends");
    for mut socket in silent {
        let mut answer = Vec::new();
        let _ = timeout(LIMIT, socket.read_to_end(&mut answer)).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn elsewhere_they_are_for_holders_of_a_certificate() {
    let (address, own, dir) = listen("0.0.0.0", false).await;
    assert!(!ask(address, GET).await.contains("brickfs_"), "in clear");
    let hash = own.identity().authority().hash();
    let stranger = ClientTls::joining(hash).unwrap();
    let answer = ask_tls(address, &stranger, PROTOCOL).await.unwrap_or_default();
    assert_eq!(answer, "", "without a certificate");
    let other = ClientTls::member(&credentials(Role::Admin), None).unwrap();
    assert!(ask_tls(address, &other, PROTOCOL).await.is_err(), "another cluster's node is not believed either");
    let member = ClientTls::member(&own, None).unwrap();
    let answer = ask_tls(address, &member, PROTOCOL).await.unwrap();
    assert_eq!(parse(answer.split_once("\r\n\r\n").unwrap().1)["brickfs_raft_term"], 7.0);
    assert!(ask_tls(address, &member, b"h2").await.is_err(), "a certificate for another protocol");
    let log = timeout(LIMIT, async {
        loop {
            let log = std::fs::read_to_string(dir.path().join("audit.log")).unwrap_or_default();
            if log.lines().filter(|line| line.contains("connection for metrics")).count() >= 3 {
                return log;
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(log.await.unwrap().contains("it has shown no certificate of the cluster"));
}
