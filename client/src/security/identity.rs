//! The own key and certificate: `tls/node.pem` in the state directory has key, certificate and the authority's
//! certificate in one file, so that a renewal, and joining another cluster, is one rename: there is no moment at
//! which the parts do not belong together.
//!
//! A key that has no certificate yet is in memory only. If the process dies then, it asks again with another one.

use crate::security::authority::{AuthorityCertificate, BACKDATED, TLS_DIR};
use crate::security::role::{Holder, PeerIdentity, parse, seconds};
use crate::security::tls::explain_tls;
use crate::security::verify::Chain;
use crate::security::{files, pem};
use anyhow::{Context as _, bail};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use zeroize::{Zeroize as _, Zeroizing};

const FILE: &str = "node.pem";
/// How long after a renewal that failed the next one is tried, at most.
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// A new key, and the request for its certificate.
pub struct NewKey {
    key: Zeroizing<KeyPair>,
    request: String,
}

impl NewKey {
    /// Makes both. The request names nobody: the signer decides whose the certificate is.
    pub fn make() -> anyhow::Result<NewKey> {
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = pem::encode(pem::REQUEST, params.serialize_request(&*key)?.der());
        Ok(NewKey { key, request: request.to_string() })
    }

    /// The request (PEM).
    pub fn request(&self) -> &str {
        &self.request
    }

    /// The key (PEM), for a client's bundle.
    pub fn pem(&self) -> Zeroizing<String> {
        pem::encode(pem::PRIVATE_KEY, self.key.serialized_der())
    }
}

/// The key stays out of every log.
impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey")
    }
}

/// A key with its certificate, and the authority that both sides believe.
pub struct Identity {
    who: PeerIdentity,
    issued_s: u64,
    authority: AuthorityCertificate,
    pub(super) chain: Chain,
    pub(super) certified: Arc<CertifiedKey>,
}

impl Identity {
    /// Puts the parts (PEM) together if they belong together: the key is the certificate's, and the authority has
    /// signed it for this holder, and it is valid now.
    pub fn new(
        key: &str,
        certificate: &str,
        authority: &AuthorityCertificate,
        holder: Holder,
        now: SystemTime,
    ) -> anyhow::Result<Identity> {
        let identity = Identity::assemble(key, certificate, authority)?;
        if identity.who.holder() != holder {
            bail!("the certificate is one of {}, not of {} {}", identity.who, holder.role, holder.id);
        }
        identity.verify(unix(now))?;
        Ok(identity)
    }

    /// The parts without a look at the clock.
    fn assemble(key: &str, certificate: &str, authority: &AuthorityCertificate) -> anyhow::Result<Identity> {
        let [key] = pem::decode(key, [pem::PRIVATE_KEY])?;
        let [der] = pem::decode(certificate, [pem::CERTIFICATE])?;
        let who = PeerIdentity::of_certificate(&der)?;
        let issued_s = seconds(parse(&der)?.validity().not_before.timestamp()) + BACKDATED.as_secs();
        let mut pkcs8 = PrivatePkcs8KeyDer::from(key.to_vec());
        let mut private = PrivateKeyDer::Pkcs8(pkcs8.clone_key());
        let signing = any_ecdsa_type(&private);
        pkcs8.zeroize();
        private.zeroize();
        let signing = signing.map_err(|_| anyhow::anyhow!("the key is not an ECDSA one"))?;
        let sent = vec![CertificateDer::from(der.to_vec()), authority.der().clone()];
        let certified = CertifiedKey::new(sent, signing);
        if certified.keys_match().is_err() {
            bail!("the key does not belong to the certificate");
        }
        let chain = Chain::new(authority)?;
        Ok(Identity { who, issued_s, authority: authority.clone(), chain, certified: Arc::new(certified) })
    }

    /// Whether the parts belong together, at whatever time; answers whose they are.
    pub(super) fn whole(
        key: &str,
        certificate: &str,
        authority: &AuthorityCertificate,
    ) -> anyhow::Result<PeerIdentity> {
        let identity = Identity::assemble(key, certificate, authority)?;
        identity.verify_at_its_end()?;
        Ok(identity.who)
    }

    /// Verifies at a time at which the certificate is valid.
    fn verify_at_its_end(&self) -> anyhow::Result<()> {
        self.verify(UnixTime::since_unix_epoch(Duration::from_secs(self.who.not_after_s)))
    }

    fn verify(&self, now: UnixTime) -> anyhow::Result<()> {
        let [certificate, ..] = self.certified.cert.as_slice() else { bail!("there is no certificate") };
        let verified = self.chain.check_client(certificate, now);
        verified.map(drop).map_err(|error| anyhow::anyhow!("it does not hold: {}", explain_tls(&error)))
    }

    /// Checks like [`Identity::new`] and then replaces what is in the state directory. After an error that is as
    /// it was.
    pub fn install(
        state: &Path,
        key: &NewKey,
        certificate: &str,
        authority: &AuthorityCertificate,
        holder: Holder,
        now: SystemTime,
    ) -> anyhow::Result<Identity> {
        let key = key.pem();
        let identity = Identity::new(&key, certificate, authority, holder, now)?;
        let dir = state.join(TLS_DIR);
        files::make_dir(&dir)?;
        let text = Zeroizing::new([key.as_str(), certificate, &authority.pem()].concat());
        files::write(&dir.join(FILE), text.as_bytes())?;
        Ok(identity)
    }

    /// Where it lies in a state directory.
    pub fn path(state: &Path) -> PathBuf {
        state.join(TLS_DIR).join(FILE)
    }

    /// Loads what is in the state directory, if anything. One that has expired is loaded too: it says so.
    pub fn load(state: &Path) -> anyhow::Result<Option<Identity>> {
        Identity::load_file(&Identity::path(state))
    }

    /// Loads such a file.
    pub fn load_file(path: &Path) -> anyhow::Result<Option<Identity>> {
        let Some(text) = files::read(path)? else { return Ok(None) };
        let load = || -> anyhow::Result<Identity> {
            let [key, certificate, authority] =
                pem::decode(&text, [pem::PRIVATE_KEY, pem::CERTIFICATE, pem::CERTIFICATE])?;
            let authority = AuthorityCertificate::from_der(&authority)?;
            let (key, certificate) = (pem::encode(pem::PRIVATE_KEY, &key), pem::encode(pem::CERTIFICATE, &certificate));
            let identity = Identity::assemble(&key, &certificate, &authority)?;
            identity.verify_at_its_end()?;
            Ok(identity)
        };
        load().map(Some).with_context(|| format!("the file {}", path.display()))
    }

    /// Removes what is in the state directory, on a node that becomes another one.
    pub fn remove(state: &Path) -> anyhow::Result<()> {
        let dir = state.join(TLS_DIR);
        if dir.exists() { files::remove(&dir.join(FILE)) } else { Ok(()) }
    }

    /// Whose a certificate (PEM) says that it is. Nothing is verified.
    pub fn holder_in(certificate: &str) -> anyhow::Result<Holder> {
        let [der] = pem::decode(certificate, [pem::CERTIFICATE])?;
        Ok(PeerIdentity::of_certificate(&der)?.holder())
    }

    /// What the certificate says of us.
    pub fn who(&self) -> &PeerIdentity {
        &self.who
    }

    /// The authority that signed it.
    pub fn authority(&self) -> &AuthorityCertificate {
        &self.authority
    }

    /// The certificate's end.
    pub fn expires(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.who.not_after_s)
    }

    /// Whether a third of the time, or less, is left.
    pub fn wants_renewal(&self, now: SystemTime) -> bool {
        let left = self.expires().duration_since(now).unwrap_or_default();
        left <= self.lifetime() / 3
    }

    /// How long to wait between two tries to renew: an hour, for short certificates a tenth of their time.
    pub fn renewal_pause(&self) -> Duration {
        (self.lifetime() / 10).min(RENEWAL_PAUSE_MAX)
    }

    /// What the signer meant: the time by which certificates are backdated is not part of it.
    fn lifetime(&self) -> Duration {
        Duration::from_secs(self.who.not_after_s.saturating_sub(self.issued_s))
    }
}

/// The key stays out of every log.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.who)
    }
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
