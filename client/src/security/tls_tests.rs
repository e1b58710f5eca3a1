//! Both sides of TLS over real sockets.

use crate::security::accept::{Limits, connect};
use crate::security::authority::Authority;
use crate::security::identity::NewKey;
use crate::security::pem;
use crate::security::revocation::Revocations;
use crate::security::role::{Role, Serial};
use crate::security::testing::{
    DAYS_90, LIMIT, authority, credentials, echo, grant, identity_of, listen, listen_with, talk,
};
use crate::security::tls::{ClientTls, Credentials, ServerTls};
use crate::security::verify::{OfServers, PROVIDER};
use brickfs_common::ids::NodeId;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, HandshakeKind, ServerConfig, version};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

fn key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()))
}

/// A client that shows any certificate.
fn showing(believed: &Arc<Credentials>, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> ClientTls {
    let verifier = OfServers::Member { credentials: believed.clone(), expected: None };
    let config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = Arc::new(config.with_client_auth_cert(chain, key_der(key)).unwrap());
    ClientTls { config, credentials: Some(believed.clone()) }
}

/// A server that shows any certificate and asks for none.
fn answering_with(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> ServerTls {
    let config = ServerConfig::builder_with_provider(PROVIDER.clone()).with_protocol_versions(&[&version::TLS13]);
    let config = Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain, key_der(key)).unwrap());
    // It knows nobody by certificate, so that these are never looked at.
    ServerTls { config, credentials: credentials(&authority(9), Role::Peer, 9) }
}

fn params(parts: [&str; 3]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let types = [DnType::OrganizationName, DnType::OrganizationalUnitName, DnType::CommonName];
    types.into_iter().zip(parts).for_each(|(part, text)| params.distinguished_name.push(part, text));
    params.serial_number = Some(5.into());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// What an authority's key can sign, but `Authority` never does.
fn signed_by(authority: &Authority, params: &CertificateParams, key: &impl PublicKeyData) -> CertificateDer<'static> {
    let ca_key = KeyPair::from_pem(&authority.key_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(authority.certificate().der(), ca_key).unwrap();
    params.signed_by(key, &issuer).unwrap().der().clone()
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let authority = authority(1);
    let (server, client) = (credentials(&authority, Role::Peer, 1), credentials(&authority, Role::Client, 2));
    let mut listener = listen(&server).await;
    let config = ClientTls::member(&client, Some(NodeId([1; 16]))).unwrap();
    let (mut stream, node) = connect(listener.address, None, &config, LIMIT).await.unwrap();
    echo(&mut stream).await.unwrap();
    assert_eq!(node, *server.identity().who());
    assert_eq!(stream.stream().get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(stream.stream().get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let remote = listener.accepted.recv().await.unwrap();
    assert_eq!(remote.identity, Some(*client.identity().who()));
    assert_eq!(remote.address, stream.stream().get_ref().0.local_addr().unwrap());
}

#[tokio::test]
async fn one_without_a_certificate_is_a_stranger_who_can_check_the_pinned_authority() {
    let authority = authority(1);
    let mut listener = listen(&credentials(&authority, Role::Peer, 1)).await;
    talk(&listener, ClientTls::joining(authority.certificate().hash()).unwrap()).await.unwrap();
    assert_eq!(listener.accepted.recv().await.unwrap().identity, None);

    let refused = talk(&listener, ClientTls::joining([9; 32]).unwrap()).await.unwrap_err();
    assert_eq!(refused, "the node that answers is not of the token's cluster");
    assert!(listener.refused.recv().await.unwrap().starts_with("the other end refused"));
}

#[tokio::test]
async fn showing_the_pinned_certificate_without_being_vouched_for_by_it_is_refused() {
    let authority = authority(1);
    let key = KeyPair::generate().unwrap();
    let who = [&authority.certificate().cluster().to_string(), "peer", &NodeId([1; 16]).to_string()];
    let forged = params(who).self_signed(&key).unwrap().der().clone();
    let chain = vec![forged, authority.certificate().der().clone()];
    let listener = listen_with(answering_with(chain, &key), Limits::default()).await;
    let refused = talk(&listener, ClientTls::joining(authority.certificate().hash()).unwrap()).await.unwrap_err();
    assert_eq!(refused, "the certificate is not signed by this cluster's authority");
}

#[tokio::test]
async fn certificates_of_another_cluster_are_refused_by_both_ends() {
    let (ours, theirs) = (authority(1), authority(2));
    let (server, stranger) = (credentials(&ours, Role::Peer, 1), credentials(&theirs, Role::Peer, 2));
    let mut listener = listen(&server).await;
    let refused = talk(&listener, ClientTls::member(&stranger, None).unwrap()).await.unwrap_err();
    assert_eq!(refused, "the certificate is not signed by this cluster's authority");
    assert!(listener.refused.recv().await.unwrap().starts_with("the other end refused"));

    let key = NewKey::make().unwrap();
    let certificate = theirs.sign(key.request(), &grant(Role::Peer, 2), SystemTime::now()).unwrap();
    let [der] = pem::decode(&certificate, [pem::CERTIFICATE]).unwrap();
    let config = showing(&server, vec![der.to_vec().into()], &KeyPair::from_pem(&key.pem()).unwrap());
    let refused = talk(&listener, config).await.unwrap_err();
    assert!(refused.starts_with("the other end refused"), "{refused}");
    assert_eq!(listener.refused.recv().await.unwrap(), "the certificate is not signed by this cluster's authority");
}

#[tokio::test]
async fn forgeries_are_refused_by_both_ends() {
    // Another authority with the same name, and a certificate that signs itself: the subjects are the right ones.
    let (ours, same_name) = (authority(1), authority(1));
    let server = credentials(&ours, Role::Peer, 1);
    let mut listener = listen(&server).await;
    let key = KeyPair::generate().unwrap();
    let cluster = ours.certificate().cluster().to_string();
    let params = params([&cluster, "peer", &NodeId([1; 16]).to_string()]);
    for forged in [params.self_signed(&key).unwrap().der().clone(), signed_by(&same_name, &params, &key)] {
        let chain = vec![forged, same_name.certificate().der().clone()];
        let refused = talk(&listener, showing(&server, chain.clone(), &key)).await.unwrap_err();
        assert!(refused.starts_with("the other end refused"), "{refused}");
        assert_eq!(listener.refused.recv().await.unwrap(), "the certificate is not signed by this cluster's authority");
        let forger = listen_with(answering_with(chain, &key), Limits::default()).await;
        let refused = talk(&forger, ClientTls::member(&server, None).unwrap()).await.unwrap_err();
        assert_eq!(refused, "the certificate is not signed by this cluster's authority");
    }
}

#[tokio::test]
async fn expired_certificates_are_refused_by_both_ends() {
    let authority = authority(1);
    let good = credentials(&authority, Role::Peer, 1);
    let long_ago = SystemTime::now() - DAYS_90 - Duration::from_secs(60);
    let expired = identity_of(&authority, &grant(Role::Peer, 2), long_ago);
    let expired = Credentials::new(expired, Revocations::default());
    let mut listener = listen(&good).await;
    let refused = talk(&listener, ClientTls::member(&expired, None).unwrap()).await.unwrap_err();
    assert_eq!(refused, "the other end refused: CertificateExpired");
    let reason = listener.refused.recv().await.unwrap();
    assert!(reason.starts_with("the certificate has expired 6"), "{reason}");
    let refused = talk(&listen(&expired).await, ClientTls::member(&good, None).unwrap()).await.unwrap_err();
    assert!(refused.starts_with("the certificate has expired 6"), "{refused}");
}

#[tokio::test]
async fn only_a_node_may_answer_and_where_one_is_expected_only_that() {
    let authority = authority(1);
    let (node, client) = (credentials(&authority, Role::Peer, 1), credentials(&authority, Role::Client, 2));
    let to_any = ClientTls::member(&node, None).unwrap();
    let refused = talk(&listen(&client).await, to_any.clone()).await.unwrap_err();
    assert_eq!(refused, "the certificate is not one of a node");
    // Even if it were allowed to serve.
    let key = KeyPair::generate().unwrap();
    let cluster = authority.certificate().cluster().to_string();
    let admin = signed_by(&authority, &params([&cluster, "admin", &NodeId([2; 16]).to_string()]), &key);
    let listener = listen_with(answering_with(vec![admin], &key), Limits::default()).await;
    let refused = talk(&listener, to_any.clone()).await.unwrap_err();
    assert_eq!(refused, "a node was expected to answer, not one with the role admin");
    let foreign = signed_by(&authority, &params([&NodeId([7; 16]).to_string(), "peer", &cluster]), &key);
    let listener = listen_with(answering_with(vec![foreign], &key), Limits::default()).await;
    assert!(talk(&listener, to_any).await.unwrap_err().contains("of another cluster"));

    let listener = listen(&node).await;
    let refused = talk(&listener, ClientTls::member(&client, Some(NodeId([3; 16]))).unwrap()).await.unwrap_err();
    let (is, wanted) = (NodeId([1; 16]), NodeId([3; 16]));
    assert_eq!(refused, format!("the node {is} answers where {wanted} was expected"));
}

#[tokio::test]
async fn a_node_cannot_sign_for_others() {
    let authority = authority(1);
    let server = credentials(&authority, Role::Peer, 1);
    let mut listener = listen(&server).await;
    let key = NewKey::make().unwrap();
    let node = authority.sign(key.request(), &grant(Role::Peer, 2), SystemTime::now()).unwrap();
    let [node] = pem::decode(&node, [pem::CERTIFICATE]).unwrap();
    let node = CertificateDer::from(node.to_vec());
    let issuer = Issuer::from_ca_cert_der(&node, KeyPair::from_pem(&key.pem()).unwrap()).unwrap();
    let cluster = authority.certificate().cluster().to_string();
    let key = KeyPair::generate().unwrap();
    let admin = params([&cluster, "admin", &NodeId([3; 16]).to_string()]).signed_by(&key, &issuer).unwrap();
    let refused = talk(&listener, showing(&server, vec![admin.der().clone(), node], &key)).await.unwrap_err();
    assert!(refused.starts_with("the other end refused"), "{refused}");
    assert_eq!(listener.refused.recv().await.unwrap(), "the certificate is not signed by this cluster's authority");
}

#[tokio::test]
async fn revoked_certificates_are_refused_by_both_ends() {
    let authority = authority(1);
    let (server, client) = (credentials(&authority, Role::Peer, 1), credentials(&authority, Role::Peer, 2));
    let mut listener = listen(&server).await;
    let config = ClientTls::member(&client, None).unwrap();
    talk(&listener, config.clone()).await.unwrap();
    let revoke = |who: &Arc<Credentials>| {
        let who = *who.identity().who();
        Revocations::new([(who.serial, who.not_after_s), (Serial(1), 0)])
    };
    server.replace_revocations(revoke(&client));
    let refused = talk(&listener, config.clone()).await.unwrap_err();
    assert_eq!(refused, "the other end refused: CertificateRevoked");
    assert_eq!(listener.refused.recv().await.unwrap(), "the certificate was revoked");

    server.replace_revocations(Revocations::default());
    client.replace_revocations(revoke(&server));
    assert_eq!(talk(&listener, config).await.unwrap_err(), "the certificate was revoked");
}

#[tokio::test]
async fn a_replaced_certificate_is_used_by_the_next_connection_and_open_ones_live_on() {
    let authority = authority(1);
    let (server, client) = (credentials(&authority, Role::Peer, 1), credentials(&authority, Role::Peer, 2));
    let mut listener = listen(&server).await;
    let config = ClientTls::member(&client, Some(NodeId([1; 16]))).unwrap();
    let (mut old, before) = connect(listener.address, None, &config, LIMIT).await.unwrap();
    echo(&mut old).await.unwrap();
    let seen_before = listener.accepted.recv().await.unwrap().identity.unwrap();
    for (credentials, id) in [(&server, 1), (&client, 2)] {
        credentials.replace_identity(identity_of(&authority, &grant(Role::Peer, id), SystemTime::now()));
    }
    let (mut new, after) = connect(listener.address, None, &config, LIMIT).await.unwrap();
    echo(&mut new).await.unwrap();
    echo(&mut old).await.unwrap();
    assert_eq!((after.id, after.serial), (before.id, server.identity().who().serial));
    assert_ne!(after.serial, before.serial);
    let seen_after = listener.accepted.recv().await.unwrap().identity.unwrap();
    assert_eq!(seen_after, *client.identity().who());
    assert_ne!(seen_after.serial, seen_before.serial);
}

#[tokio::test]
async fn a_node_that_joins_another_cluster_believes_that_one_from_then_on() {
    let (alone, joined) = (authority(1), authority(2));
    let node = credentials(&alone, Role::Peer, 1);
    let listener = listen(&node).await;
    let config = ClientTls::member(&credentials(&joined, Role::Peer, 2), None).unwrap();
    assert!(talk(&listener, config.clone()).await.is_err());
    node.replace_identity(identity_of(&joined, &grant(Role::Peer, 1), SystemTime::now()));
    talk(&listener, config).await.unwrap();
    let of_old = ClientTls::member(&credentials(&alone, Role::Peer, 3), None).unwrap();
    assert!(talk(&listener, of_old).await.is_err());
}

#[tokio::test]
async fn no_session_is_resumed() {
    let authority = authority(1);
    let (server, client) = (credentials(&authority, Role::Peer, 1), credentials(&authority, Role::Peer, 2));
    let listener = listen(&server).await;
    let config = ClientTls::member(&client, None).unwrap();
    // One that would resume, if the server let it.
    let mut eager = (*config.config).clone();
    eager.resumption = rustls::client::Resumption::in_memory_sessions(16);
    let eager = ClientTls { config: Arc::new(eager), ..config.clone() };
    for config in [config, eager] {
        for _ in 0..2 {
            let stream = talk(&listener, config.clone()).await.unwrap();
            assert_eq!(stream.stream().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
}
