//! Whom a side of a connection believes. A certificate counts only if the cluster's authority itself has signed it
//! (there is no one between), for the use it is put to, and it is valid now, was not revoked, and says a cluster,
//! a role and an id that are known here.

use crate::security::authority::AuthorityCertificate;
use crate::security::role::{PeerIdentity, Role};
use crate::security::tls::Credentials;
use brickfs_common::ids::{ClusterId, NodeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError};
use rustls::{PeerIncompatible, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::{Arc, LazyLock};

/// What TLS is made of; the same for all, and not the process-wide default that somebody else may set.
pub static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

fn algorithms() -> WebPkiSupportedAlgorithms {
    PROVIDER.signature_verification_algorithms
}

/// Why a certificate that its authority vouches for is refused all the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refusal(reason: impl Into<String>) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refusal(reason.into())))))
}

/// The authority, ready to verify with.
#[derive(Clone)]
pub struct Chain {
    cluster: ClusterId,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Chain {
    /// The one root is the authority's certificate.
    pub fn new(authority: &AuthorityCertificate) -> anyhow::Result<Chain> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone())?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), PROVIDER.clone()).build()?;
        Ok(Chain { cluster: authority.cluster(), roots, clients })
    }

    /// Who the holder of a certificate is, as one that connects.
    pub fn check_client(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<PeerIdentity, Error> {
        self.clients.verify_client_cert(certificate, &[], now)?;
        self.identity(certificate)
    }

    /// Who the holder of a certificate is, as one that is connected to: always a node.
    pub fn check_server(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<PeerIdentity, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, &[], now, algorithms().all)?;
        let identity = self.identity(certificate)?;
        match identity.role {
            Role::Peer => Ok(identity),
            role => Err(refusal(format!("a node was expected to answer, not one with the role {role}"))),
        }
    }

    fn identity(&self, certificate: &CertificateDer<'_>) -> Result<PeerIdentity, Error> {
        let identity = PeerIdentity::of_certificate(certificate).map_err(|error| refusal(error.to_string()))?;
        if identity.cluster != self.cluster {
            return Err(refusal(format!("the certificate is of another cluster, {}", identity.cluster)));
        }
        Ok(identity)
    }
}

/// Of the side that is connected to. No certificate is let in too: whom the rules take for a stranger.
pub struct OfClients(pub Arc<Credentials>);

impl ClientCertVerifier for OfClients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: who connects has one certificate for this cluster, and strangers need not know of it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let identity = self.0.identity().chain.check_client(end_entity, now)?;
        check_revoked(&self.0, &identity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Of the side that connects. Host names count for nothing, since a node's addresses may change: its certificate
/// says that it is a node of the cluster, and which.
pub enum OfServers {
    /// With a certificate of the cluster.
    Member {
        /// Has the authority that is believed.
        credentials: Arc<Credentials>,
        /// The one node that may answer; else any may.
        expected: Option<NodeId>,
    },
    /// To join: believed is who shows the authority's certificate with this SHA-256 and is vouched for by it.
    Joining([u8; 32]),
}

impl ServerCertVerifier for OfServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self {
            OfServers::Member { credentials, expected } => {
                let identity = credentials.identity().chain.check_server(end_entity, now)?;
                check_revoked(credentials, &identity)?;
                if let Some(expected) = expected.filter(|expected| *expected != identity.id) {
                    return Err(refusal(format!("the node {} answers where {expected} was expected", identity.id)));
                }
            }
            OfServers::Joining(hash) => {
                let is_pinned = |given: &&CertificateDer<'_>| <[u8; 32]>::from(Sha256::digest(given)) == *hash;
                let pinned = intermediates.iter().find(is_pinned);
                let pinned = pinned.ok_or_else(|| refusal("the node that answers is not of the token's cluster"))?;
                let authority = AuthorityCertificate::from_der(pinned).map_err(|error| refusal(error.to_string()))?;
                let chain = Chain::new(&authority).map_err(|error| refusal(error.to_string()))?;
                chain.check_server(end_entity, now)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn check_revoked(credentials: &Credentials, identity: &PeerIdentity) -> Result<(), Error> {
    match credentials.revocations().is_revoked(identity.serial) {
        true => Err(CertificateError::Revoked.into()),
        false => Ok(()),
    }
}

fn no_tls12() -> Error {
    PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into()
}

impl fmt::Debug for OfClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfClients")
    }
}

impl fmt::Debug for OfServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfServers")
    }
}
