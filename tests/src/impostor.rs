//! Connections to a node over TCP with whatever certificate a test wants to show: signed by the cluster's own authority
//! (whose key lies in the state directory of a voter) or by another one, for any role, of any age.

use crate::at::At as _;
use crate::wire::{Answer, Connection, message};
use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, version};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const LIMIT: Duration = Duration::from_secs(10);

/// Who signs: the certificate and key of an authority.
pub struct Signer {
    cluster: String,
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// What is shown.
pub struct Shown {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl Signer {
    /// The authority of the cluster that a voter is in.
    pub fn of_node(state_dir: &Path) -> anyhow::Result<Signer> {
        let read = |name: &str| {
            let path = state_dir.join("tls").join(name);
            fs::read_to_string(&path).at(&path)
        };
        let key = KeyPair::from_pem(&read("ca.key")?)?;
        let certificate = pem_body(&read("ca.crt")?)?;
        let state: serde_json::Value = serde_json::from_slice(&fs::read(state_dir.join("cluster.json"))?)?;
        let cluster = state["cluster"].as_str().context("the state names no cluster")?.to_owned();
        Ok(Signer { cluster, certificate, key })
    }

    /// Another authority that calls itself that of the same cluster.
    pub fn pretended(&self) -> anyhow::Result<Signer> {
        let key = KeyPair::generate()?;
        let mut params = params_of([&self.cluster, "authority", &self.cluster]);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Signer { cluster: self.cluster.clone(), certificate, key })
    }

    /// A certificate for a role (`peer`, `admin`, `client`) and an id, that ends so many seconds from now.
    pub fn sign(&self, role: &str, id: &str, ends_in_s: i64) -> anyhow::Result<Shown> {
        let key = KeyPair::generate()?;
        let mut params = params_of([&self.cluster, role, id]);
        params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(ends_in_s);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let certificate = params.signed_by(&key, &issuer)?.der().clone();
        Ok(Shown { certificates: vec![certificate, self.certificate.clone()], key: key.serialize_der().into() })
    }
}

impl Shown {
    /// What a node has: its own key and certificate.
    pub fn of_node(state_dir: &Path) -> anyhow::Result<Shown> {
        let path = state_dir.join("tls/node.pem");
        let text = fs::read_to_string(&path).at(&path)?;
        let parts: Vec<&str> = text.split_inclusive("-----END ").collect();
        let key = KeyPair::from_pem(&text[..text.find("-----BEGIN CERTIFICATE").context("no certificate")?])?;
        let certificates: anyhow::Result<Vec<CertificateDer<'static>>> =
            text.match_indices("-----BEGIN CERTIFICATE").map(|(at, _)| pem_body(&text[at..])).collect();
        anyhow::ensure!(parts.len() > 2, "{} has too few parts", path.display());
        Ok(Shown { certificates: certificates?, key: key.serialize_der().into() })
    }
}

fn params_of(parts: [&str; 3]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let types = [DnType::OrganizationName, DnType::OrganizationalUnitName, DnType::CommonName];
    types.into_iter().zip(parts).for_each(|(part, text)| params.distinguished_name.push(part, text));
    let mut serial: [u8; 16] = rand::random();
    serial[0] = 1;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// The first PEM block's bytes.
fn pem_body(text: &str) -> anyhow::Result<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| anyhow::anyhow!("not PEM: {error}"))
}

/// Connects and calls methods with an empty message; `None` shows no certificate. The error is that of the connection.
pub async fn call_all(address: &str, shown: Option<&Shown>, methods: &[String]) -> anyhow::Result<Vec<Answer>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => builder.with_client_auth_cert(shown.certificates.clone(), shown.key.clone_key().into())?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    let socket = timeout(LIMIT, TcpStream::connect(address)).await??;
    let name = ServerName::IpAddress(socket.peer_addr()?.ip().into());
    let stream = timeout(LIMIT, TlsConnector::from(Arc::new(config)).connect(name, socket)).await??;
    let mut connection = timeout(LIMIT, Connection::over(stream)).await??;
    let mut answers = Vec::new();
    for method in methods {
        let mut call = connection.call(method).await?;
        // A refused call may be answered before it is sent.
        call.send(message(&()), true).await.ok();
        answers.push(call.finish().await?);
    }
    Ok(answers)
}

/// The tests ask what the node thinks of us, not we of it.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
