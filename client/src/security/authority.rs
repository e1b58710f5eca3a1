//! The cluster's certificate authority. Every node has its certificate; voters have its key too, and sign.
//!
//! The signer decides all that a certificate says. Of a request nothing is taken but the public key, and only after
//! the request's own signature has shown that who asks has the private one.

use crate::security::role::{BadIdentity, Holder, Role, Serial, parse, parse_id, seconds, subject_parts};
use crate::security::{files, pem};
use anyhow::{Context as _, bail};
use brickfs_common::ids::ClusterId;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer};
use rcgen::{KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber, SubjectPublicKeyInfo};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

/// Directory of keys and certificates within the state directory.
pub const TLS_DIR: &str = "tls";
/// How long before its making a certificate is valid already, because clocks differ.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);
const LIFETIME: Duration = Duration::from_secs(3_653 * 24 * 3_600);
const CERTIFICATE_FILE: &str = "ca.crt";
const KEY_FILE: &str = "ca.key";
/// The word in the place where other certificates have a role.
const UNIT: &str = "authority";
/// A request for a P-256 key has about 300 bytes.
const REQUEST_MAX_BYTES: usize = 4 << 10;

/// The authority's certificate, which all of the cluster know.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityCertificate {
    der: CertificateDer<'static>,
    cluster: ClusterId,
    not_after_s: u64,
}

impl AuthorityCertificate {
    /// Takes a certificate only if it is one of an authority of ours and signed by itself.
    pub fn from_der(der: &[u8]) -> anyhow::Result<AuthorityCertificate> {
        let certificate = parse(der)?;
        let [cluster, unit, id] = subject_parts(certificate.subject())?;
        let is_root = certificate.is_ca() && certificate.subject() == certificate.issuer();
        let may_sign = certificate.key_usage()?.is_some_and(|usage| usage.value.key_cert_sign());
        if unit != UNIT || id != cluster || !is_root || !may_sign || certificate.verify_signature(None).is_err() {
            bail!("this is not the certificate of a cluster's authority");
        }
        Ok(AuthorityCertificate {
            cluster: parse_id("O", cluster)?,
            not_after_s: seconds(certificate.validity().not_after.timestamp()),
            der: CertificateDer::from(der).into_owned(),
        })
    }

    /// The same for PEM.
    pub fn from_pem(text: &str) -> anyhow::Result<AuthorityCertificate> {
        let [der] = pem::decode(text, [pem::CERTIFICATE])?;
        AuthorityCertificate::from_der(&der)
    }

    /// The certificate as it goes over the wire and into files.
    pub fn pem(&self) -> String {
        pem::encode(pem::CERTIFICATE, &self.der).to_string()
    }

    /// The certificate in DER form.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Whose authority it is.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// SHA-256 of the certificate, which join tokens pin.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }
}

impl fmt::Debug for AuthorityCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthorityCertificate({})", self.cluster)
    }
}

/// What a certificate is to say.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// Whose it is.
    pub holder: Holder,
    /// Its number, never given out before.
    pub serial: Serial,
    /// How long it lasts from now; never longer than the authority.
    pub lifetime: Duration,
}

/// The authority with its key.
pub struct Authority {
    certificate: AuthorityCertificate,
    key: Zeroizing<KeyPair>,
}

impl Authority {
    /// Makes the authority of a new cluster, in the state directory. One that is there already is never replaced.
    pub fn found(cluster: ClusterId, state: &Path) -> anyhow::Result<Authority> {
        let path = state.join(TLS_DIR).join(CERTIFICATE_FILE);
        if files::read(&path)?.is_some() {
            bail!("{} exists already: an authority is not replaced by another", path.display());
        }
        let authority = Authority::make(cluster, SystemTime::now())?;
        authority.store(state)?;
        Ok(authority)
    }

    /// Makes the authority of a cluster, in memory alone.
    pub fn make(cluster: ClusterId, now: SystemTime) -> anyhow::Result<Authority> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let cluster_text = cluster.to_string();
        let mut params = certificate_params([&cluster_text, UNIT, &cluster_text], Serial::random());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = seconds_of(now - BACKDATED)?;
        params.not_after = seconds_of(now + LIFETIME)?;
        let certificate = AuthorityCertificate::from_der(params.self_signed(&*key)?.der())?;
        Ok(Authority { certificate, key })
    }

    /// Opens the authority in the state directory; `None` without a key, as on nodes that are no voters.
    pub fn open(state: &Path) -> anyhow::Result<Option<Authority>> {
        let (Some(certificate), Some(key)) = (
            files::read(&state.join(TLS_DIR).join(CERTIFICATE_FILE))?,
            files::read(&state.join(TLS_DIR).join(KEY_FILE))?,
        ) else {
            return Ok(None);
        };
        Authority::from_pem(&certificate, &key).map(Some).context("the authority's files")
    }

    /// The authority out of certificate and key, which must belong together: what a new voter is given.
    pub fn from_pem(certificate: &str, key: &str) -> anyhow::Result<Authority> {
        let certificate = AuthorityCertificate::from_pem(certificate)?;
        let [der] = pem::decode(key, [pem::PRIVATE_KEY])?;
        let der = PrivatePkcs8KeyDer::from(der.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
        let key = Zeroizing::new(key.map_err(|_| anyhow::anyhow!("the key is not an ECDSA P-256 one"))?);
        if parse(&certificate.der)?.public_key().raw != key.subject_public_key_info() {
            bail!("the authority's key does not belong to its certificate");
        }
        Ok(Authority { certificate, key })
    }

    /// Writes both files. The key is first: a certificate with no key beside it is a node that is no voter.
    pub fn store(&self, state: &Path) -> anyhow::Result<()> {
        let dir = state.join(TLS_DIR);
        files::make_dir(&dir)?;
        files::write(&dir.join(KEY_FILE), self.key_pem().as_bytes())?;
        files::write(&dir.join(CERTIFICATE_FILE), self.certificate.pem().as_bytes())
    }

    /// Writes the certificate alone, on a node that is no voter. A key of another authority would not belong to
    /// it and goes before it.
    pub fn store_certificate(certificate: &AuthorityCertificate, state: &Path) -> anyhow::Result<()> {
        let (dir, text) = (state.join(TLS_DIR), certificate.pem());
        files::make_dir(&dir)?;
        if files::read(&dir.join(CERTIFICATE_FILE))?.is_none_or(|old| *old != text) {
            Authority::drop_key(state)?;
        }
        files::write(&dir.join(CERTIFICATE_FILE), text.as_bytes())
    }

    /// Removes the key's file, on a node that is a voter no more. Drop the `Authority` too.
    pub fn drop_key(state: &Path) -> anyhow::Result<()> {
        let dir = state.join(TLS_DIR);
        if dir.exists() { files::remove(&dir.join(KEY_FILE)) } else { Ok(()) }
    }

    /// The key, for a new voter.
    pub fn key_pem(&self) -> Zeroizing<String> {
        pem::encode(pem::PRIVATE_KEY, self.key.serialized_der())
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    /// Signs a certificate (PEM) for the key of a request (PEM). `now` is the signer's clock.
    pub fn sign(&self, request: &str, grant: &Grant, now: SystemTime) -> anyhow::Result<String> {
        let key = requested_key(request)?;
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(self.certificate.not_after_s);
        if end <= now {
            bail!("the cluster's authority has expired: nothing can be signed with it");
        }
        if grant.serial.0 == 0 {
            return Err(BadIdentity::Serial.into());
        }
        let parts = [&self.certificate.cluster.to_string(), grant.holder.role.as_str(), &grant.holder.id.to_string()];
        let mut params = certificate_params(parts, grant.serial);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match grant.holder.role {
            Role::Peer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Role::Admin | Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.not_before = seconds_of(now - BACKDATED)?;
        params.not_after = seconds_of(end.min(now + grant.lifetime))?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate.der, &*self.key)?;
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(pem::encode(pem::CERTIFICATE, certificate.der()).to_string())
    }
}

/// The key stays out of every log.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.certificate.cluster)
    }
}

/// Subject and number. There are no alternative names: addresses change, and nobody is believed for one.
fn certificate_params(parts: [&str; 3], serial: Serial) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let types = [DnType::OrganizationName, DnType::OrganizationalUnitName, DnType::CommonName];
    types.into_iter().zip(parts).for_each(|(part, text)| params.distinguished_name.push(part, text));
    params.serial_number = Some(SerialNumber::from_slice(&serial.0.to_be_bytes()));
    params
}

/// The public key of a request that was signed with its private one.
fn requested_key(request: &str) -> anyhow::Result<SubjectPublicKeyInfo> {
    if request.len() > REQUEST_MAX_BYTES {
        bail!("a request for a certificate has at most {REQUEST_MAX_BYTES} bytes");
    }
    let [der] = pem::decode(request, [pem::REQUEST])?;
    let request = match X509CertificationRequest::from_der(&der) {
        Ok(([], request)) => request,
        _ => bail!("this is not a request for a certificate"),
    };
    if request.verify_signature().is_err() {
        bail!("the request is not signed with the key that it names");
    }
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        bail!("the key of a certificate is an ECDSA P-256 one");
    }
    Ok(key)
}

/// A certificate's times are whole seconds.
fn seconds_of(time: SystemTime) -> anyhow::Result<OffsetDateTime> {
    Ok(OffsetDateTime::from(time).replace_nanosecond(0)?)
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
