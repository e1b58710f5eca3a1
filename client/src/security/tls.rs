//! The settings of TLS for both sides of a connection: 1.3 alone, since all ends are ours, and a certificate of
//! the cluster on both.
//!
//! There is no resumption of sessions, neither by tickets nor by a cache: a resumed one would not look at the
//! certificate again, and so could outlive a revocation or an end. A connection lives long, so that a whole
//! handshake for each costs nothing that counts.

use crate::security::identity::Identity;
use crate::security::revocation::Revocations;
use crate::security::verify::{OfClients, OfServers, PROVIDER};
use brickfs_common::ids::NodeId;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, Error, ServerConfig, SignatureScheme, version};
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// gRPC is HTTP/2; naming it keeps these certificates from being used for another protocol.
const PROTOCOL: &[u8] = b"h2";

/// What the own side has and whom it refuses. Both can be replaced at any time: handshakes from then on use the
/// new ones, connections that are open live on.
pub struct Credentials {
    identity: RwLock<Arc<Identity>>,
    revocations: RwLock<Arc<Revocations>>,
    changed: watch::Sender<()>,
}

impl Credentials {
    /// Those at the start.
    pub fn new(identity: Identity, revocations: Revocations) -> Arc<Credentials> {
        let (identity, revocations) = (RwLock::new(Arc::new(identity)), RwLock::new(Arc::new(revocations)));
        Arc::new(Credentials { identity, revocations, changed: watch::Sender::new(()) })
    }

    /// The certificate in use.
    pub fn identity(&self) -> Arc<Identity> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whom we refuse.
    pub fn revocations(&self) -> Arc<Revocations> {
        self.revocations.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses another certificate from now on: a renewed one, or one of the cluster that was joined.
    pub fn replace_identity(&self, identity: Identity) {
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
    }

    /// Takes over what the cluster state has revoked. Open connections of those that are new in it end.
    pub fn replace_revocations(&self, revocations: Revocations) {
        *self.revocations.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(revocations);
        self.changed.send_replace(());
    }

    /// Tells of each change of the revocations.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Keys stay out of every log.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?})", self.identity())
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.identity().certified.clone())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _root_hint_subjects: &[&[u8]], _sigschemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.identity().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The settings of the side that is connected to.
#[derive(Clone)]
pub struct ServerTls {
    pub(super) config: Arc<ServerConfig>,
    pub(super) credentials: Arc<Credentials>,
}

impl ServerTls {
    /// Those of a node.
    pub fn new(credentials: &Arc<Credentials>) -> Result<ServerTls, Error> {
        ServerTls::of_protocol(credentials, PROTOCOL)
    }

    /// Those of a listener for something else than gRPC.
    pub fn of_protocol(credentials: &Arc<Credentials>, protocol: &[u8]) -> Result<ServerTls, Error> {
        let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(OfClients(credentials.clone())))
            .with_cert_resolver(credentials.clone());
        config.alpn_protocols = vec![protocol.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(ServerTls { config: Arc::new(config), credentials: credentials.clone() })
    }
}

/// The settings of the side that connects.
#[derive(Clone)]
pub struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) credentials: Option<Arc<Credentials>>,
}

impl ClientTls {
    /// To any node of the own cluster, or to this one alone where one is given.
    pub fn member(credentials: &Arc<Credentials>, expected: Option<NodeId>) -> Result<ClientTls, Error> {
        let verifier = OfServers::Member { credentials: credentials.clone(), expected };
        let config = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(credentials.clone());
        Ok(ClientTls { config: finish(config), credentials: Some(credentials.clone()) })
    }

    /// The same for another protocol than gRPC.
    pub fn of_protocol(self, protocol: &[u8]) -> ClientTls {
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        ClientTls { config: Arc::new(config), ..self }
    }

    /// Of a node that has a token and no certificate yet: `authority_hash` is the one in the token.
    pub fn joining(authority_hash: [u8; 32]) -> Result<ClientTls, Error> {
        let config = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(OfServers::Joining(authority_hash)))
            .with_no_client_auth();
        Ok(ClientTls { config: finish(config), credentials: None })
    }
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

/// Why a connection was refused, in one line for a person: by us, or by the other end.
pub fn explain(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => explain_tls(error),
        None => error.to_string(),
    }
}

/// The same for what TLS itself says.
pub fn explain_tls(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the certificate is not signed by this cluster's authority".to_owned()
            }
            CertificateError::Expired => "the certificate has expired".to_owned(),
            CertificateError::ExpiredContext { time, not_after } => {
                let ago_s = time.as_secs().saturating_sub(not_after.as_secs());
                format!("the certificate has expired {ago_s} s ago by the clock of this node")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet by the clock of this node: compare the clocks".to_owned()
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "the certificate is not one of a node".to_owned()
            }
            CertificateError::Revoked => "the certificate was revoked".to_owned(),
            CertificateError::Other(other) => other.to_string(),
            other => other.to_string(),
        },
        Error::AlertReceived(alert) => format!("the other end refused: {alert:?}"),
        Error::InvalidMessage(_) => "the other end does not speak TLS".to_owned(),
        other => other.to_string(),
    }
}
