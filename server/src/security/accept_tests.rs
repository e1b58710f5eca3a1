use super::*;
use crate::security::role::Role;
use crate::security::testing::{LIMIT, authority, credentials, listen, listen_with, talk};
use crate::security::tls::{client_config, joining_config, server_config};
use crate::security::verify::{OfServers, PROVIDER};
use brickfs_proto::v1::admin_client::AdminClient;
use brickfs_proto::v1::admin_server::{Admin, AdminServer};
use brickfs_proto::v1::{AdminReply, AdminRequest};
use hyper_util::rt::TokioIo;
use rustls::version;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

/// Tells its callers who they are.
struct Mirror;

#[tonic::async_trait]
impl Admin for Mirror {
    async fn run(&self, request: Request<AdminRequest>) -> Result<Response<AdminReply>, Status> {
        let remote = request.extensions().get::<Remote>().ok_or_else(|| Status::internal("nobody known"))?;
        let who = remote.identity.map_or("a stranger".to_owned(), |identity| identity.to_string());
        Ok(Response::new(AdminReply { error: format!("{who} from {}", remote.address.ip()), ..AdminReply::default() }))
    }
}

#[tokio::test]
async fn a_service_knows_who_calls() {
    let authority = authority(1);
    let (server, admin) = (credentials(&authority, Role::Peer, 1), credentials(&authority, Role::Admin, 2));
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let connections = incoming(socket, server_config(&server).unwrap(), HandshakeLimits::default(), |_, _| ());
    tokio::spawn(Server::builder().add_service(AdminServer::new(Mirror)).serve_with_incoming(connections));
    let joining = joining_config(authority.certificate().hash()).unwrap();
    let who = [admin.identity().who().to_string(), "a stranger".to_owned()];
    for (config, who) in [client_config(&admin, None).unwrap(), joining].into_iter().zip(who) {
        let connector = tower::service_fn(move |_| {
            let config = config.clone();
            async move { connect(address, config, LIMIT).await.map(|(stream, _)| TokioIo::new(stream)) }
        });
        let channel = Endpoint::from_static("http://brickd").connect_with_connector(connector).await.unwrap();
        let reply = AdminClient::new(channel).run(AdminRequest::default()).await.unwrap();
        assert_eq!(reply.into_inner().error, format!("{who} from 127.0.0.1"));
    }
}

#[tokio::test]
async fn nobody_is_accepted_any_more_once_the_connections_are_dropped() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let server = server_config(&credentials(&authority(1), Role::Peer, 1)).unwrap();
    let connections = incoming(socket, server, HandshakeLimits::default(), |_, _| ());
    TcpStream::connect(address).await.unwrap();
    drop(connections);
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn plain_text_and_old_tls_are_refused() {
    let authority = authority(1);
    let server = credentials(&authority, Role::Peer, 1);
    let mut listener = listen(&server).await;
    let mut socket = TcpStream::connect(listener.address).await.unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert_eq!(listener.refused.recv().await.unwrap(), "the other end does not speak TLS");
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    assert!(answer.len() < 16, "nothing but an alert comes back");

    let verifier = OfServers::Member { credentials: server.clone(), expected: None };
    let old = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    assert!(talk(&listener, Arc::new(old)).await.unwrap_err().contains("ProtocolVersion"));
    assert!(listener.refused.recv().await.unwrap().contains("incompatible"));
}

#[tokio::test]
async fn one_that_says_nothing_is_dropped_in_time() {
    let authority = authority(1);
    let limits = HandshakeLimits { timeout: Duration::from_millis(50), ..HandshakeLimits::default() };
    let server = server_config(&credentials(&authority, Role::Peer, 1)).unwrap();
    let mut listener = listen_with(server, limits).await;
    let mut silent = TcpStream::connect(listener.address).await.unwrap();
    // A head of a record that never comes counts no more than silence.
    silent.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    assert_eq!(listener.refused.recv().await.unwrap(), "no handshake within 50 ms");
    assert!(matches!(silent.read(&mut [0]).await, Ok(0) | Err(_)));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = client_config(&credentials(&authority, Role::Peer, 2), None).unwrap();
    let late = connect(nobody.local_addr().unwrap(), config, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(explain(&late), "no handshake within 50 ms");
}

#[tokio::test]
async fn one_handshake_more_than_may_run_waits() {
    let authority = authority(1);
    let mut listener = listen(&credentials(&authority, Role::Peer, 1)).await;
    let mut silent = Vec::new();
    for _ in 0..HandshakeLimits::default().count_max {
        silent.push(TcpStream::connect(listener.address).await.unwrap());
    }
    let config = client_config(&credentials(&authority, Role::Peer, 2), None).unwrap();
    let mut waiting = Box::pin(talk(&listener, config));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    silent.pop();
    (&mut waiting).await.unwrap();
    drop(waiting);
    assert!(listener.refused.recv().await.is_some(), "the one that left");
    assert!(listener.refused.try_recv().is_err(), "the others still have their places");
}
