//! Connections over real sockets: who they are of, how many, and how they end.

use super::*;
use crate::security::revocation::Revocations;
use crate::security::role::Role;
use crate::security::testing::{LIMIT, authority, credentials, echo, listen, listen_with, talk};
use crate::security::tls::Credentials;
use crate::security::verify::{OfServers, PROVIDER};
use brickfs_proto::v1::admin_client::AdminClient;
use brickfs_proto::v1::admin_server::{Admin, AdminServer};
use brickfs_proto::v1::{AdminReply, AdminRequest};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, version};
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
    let connections = incoming(socket, ServerTls::new(&server).unwrap(), Limits::default(), |_, _| ());
    tokio::spawn(Server::builder().add_service(AdminServer::new(Mirror)).serve_with_incoming(connections));
    let joining = ClientTls::joining(authority.certificate().hash()).unwrap();
    let who = [admin.identity().who().to_string(), "a stranger".to_owned()];
    for (config, who) in [ClientTls::member(&admin, None).unwrap(), joining].into_iter().zip(who) {
        let connector = tower::service_fn(move |_| {
            let config = config.clone();
            async move { connect(address, None, &config, LIMIT).await.map(|(stream, _)| TokioIo::new(stream)) }
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
    let server = ServerTls::new(&credentials(&authority(1), Role::Peer, 1)).unwrap();
    let connections = incoming(socket, server, Limits::default(), |_, _| ());
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
    assert!(
        talk(&listener, ClientTls { config: Arc::new(old), credentials: None })
            .await
            .unwrap_err()
            .contains("ProtocolVersion")
    );
    assert!(listener.refused.recv().await.unwrap().contains("incompatible"));
}

#[tokio::test]
async fn one_that_says_nothing_is_dropped_in_time() {
    let authority = authority(1);
    let limits = Limits { handshake_timeout: Duration::from_millis(50), ..Limits::default() };
    let server = ServerTls::new(&credentials(&authority, Role::Peer, 1)).unwrap();
    let mut listener = listen_with(server, limits).await;
    let mut silent = TcpStream::connect(listener.address).await.unwrap();
    // A head of a record that never comes counts no more than silence.
    silent.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    assert_eq!(listener.refused.recv().await.unwrap(), "no handshake within 50 ms");
    assert!(matches!(silent.read(&mut [0]).await, Ok(0) | Err(_)));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = ClientTls::member(&credentials(&authority, Role::Peer, 2), None).unwrap();
    let late = connect(nobody.local_addr().unwrap(), None, &config, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(explain(&late), "no handshake within 50 ms");
}

#[tokio::test]
async fn one_handshake_more_than_may_run_waits() {
    let authority = authority(1);
    let mut listener = listen(&credentials(&authority, Role::Peer, 1)).await;
    let mut silent = Vec::new();
    for _ in 0..Limits::default().handshakes_max {
        silent.push(TcpStream::connect(listener.address).await.unwrap());
    }
    let config = ClientTls::member(&credentials(&authority, Role::Peer, 2), None).unwrap();
    let mut waiting = Box::pin(talk(&listener, config));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    silent.pop();
    (&mut waiting).await.unwrap();
    drop(waiting);
    assert!(listener.refused.recv().await.is_some(), "the one that left");
    assert!(listener.refused.try_recv().is_err(), "the others still have their places");
}

#[tokio::test]
async fn a_revocation_ends_open_connections_of_both_directions() {
    let authority = authority(1);
    let (server, client) = (credentials(&authority, Role::Peer, 1), credentials(&authority, Role::Client, 2));
    let other = credentials(&authority, Role::Client, 3);
    let listener = listen(&server).await;
    let revoke = |who: &Arc<Credentials>| Revocations::new([(who.identity().who().serial, u64::MAX)]);
    let mut stays = talk(&listener, ClientTls::member(&other, None).unwrap()).await.unwrap();
    let mut revoked = talk(&listener, ClientTls::member(&client, None).unwrap()).await.unwrap();
    server.replace_revocations(revoke(&client));
    // It says nothing: the other side ends it by itself.
    assert!(matches!(timeout(LIMIT, revoked.read(&mut [0])).await.unwrap(), Ok(0) | Err(_)));
    echo(&mut stays).await.unwrap();

    let mut to_revoked = talk(&listener, ClientTls::member(&other, None).unwrap()).await.unwrap();
    other.replace_revocations(revoke(&server));
    let error = timeout(LIMIT, to_revoked.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the certificate of the other end was revoked");
    assert!(to_revoked.read(&mut [0]).await.is_err(), "it does not come back");
}

#[tokio::test]
async fn a_stranger_has_a_short_time() {
    let authority = authority(1);
    let limits = Limits { stranger_time: Duration::from_millis(20), ..Limits::default() };
    let listener = listen_with(ServerTls::new(&credentials(&authority, Role::Peer, 1)).unwrap(), limits).await;
    let joining = ClientTls::joining(authority.certificate().hash()).unwrap();
    let (mut stranger, _) = connect(listener.address, None, &joining, LIMIT).await.unwrap();
    assert!(matches!(stranger.read(&mut [0]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn one_client_gets_so_many_connections_and_no_more() {
    let authority = authority(1);
    let (server, client) = (credentials(&authority, Role::Peer, 1), credentials(&authority, Role::Client, 2));
    let mut listener =
        listen_with(ServerTls::new(&server).unwrap(), Limits { of_client_max: 2, ..Limits::default() }).await;
    let tls = ClientTls::member(&client, None).unwrap();
    let (_one, two) = (talk(&listener, tls.clone()).await.unwrap(), talk(&listener, tls.clone()).await.unwrap());
    assert!(talk(&listener, tls.clone()).await.is_err());
    assert_eq!(listener.refused.recv().await.unwrap(), "there are 2 connections of this client already");
    drop(two);
    // The place is free once the server has seen the end.
    while talk(&listener, tls.clone()).await.is_err() {}
}

#[tokio::test]
async fn handshakes_beyond_the_allowance_wait_for_it() {
    let authority = authority(1);
    let limits = Limits { handshakes_per_s: 2, ..Limits::default() };
    let start = Instant::now();
    let listener = listen_with(ServerTls::new(&credentials(&authority, Role::Peer, 1)).unwrap(), limits).await;
    let tls = ClientTls::member(&credentials(&authority, Role::Peer, 2), None).unwrap();
    for _ in 0..3 {
        talk(&listener, tls.clone()).await.unwrap();
    }
    // Two are there, and half a second gives the third.
    assert!(start.elapsed() >= Duration::from_millis(499), "{:?}", start.elapsed());
}
