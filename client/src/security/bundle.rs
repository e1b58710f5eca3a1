//! The bundle of a client: all it needs to mount, in one text that `brickctl client add` prints and an operator
//! carries there. A small TOML head, then certificate, key and authority as PEM, in this order:
//!
//! ```text
//! version = 1
//! cluster = "<id>"
//! volume = "<name>"
//! addresses = ["<host:port>", ...]
//!
//! -----BEGIN CERTIFICATE-----  ...  -----BEGIN PRIVATE KEY-----  ...  -----BEGIN CERTIFICATE-----  ...
//! ```
//! Who has it is that client: it is written for its owner alone.

use crate::security::authority::AuthorityCertificate;
use crate::security::identity::Identity;
use crate::security::role::{BadIdentity, PeerIdentity, Role};
use crate::security::token::is_address;
use crate::security::{files, pem};
use anyhow::{Context as _, bail};
use brickfs_common::ids::ClusterId;
use brickfs_common::volume_spec::is_volume_name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use zeroize::Zeroizing;

const VERSION: u32 = 1;
const TEXT_MAX_BYTES: usize = 64 << 10;
const ADDRESSES_MAX: usize = 64;
const PEM_START: &str = "-----BEGIN ";
const NOTE: &str = "# BrickFS client bundle. Whoever has it can mount the volume: keep it private.\n";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    cluster: ClusterId,
    volume: String,
    addresses: Vec<String>,
}

/// A client's bundle. Its parts belong together.
pub struct Bundle {
    /// The volume that it is for.
    pub volume: String,
    /// `host:port` of nodes that can be asked.
    pub addresses: Vec<String>,
    who: PeerIdentity,
    certificate: String,
    key: Zeroizing<String>,
    authority: AuthorityCertificate,
}

impl Bundle {
    /// Puts the parts (PEM) together, if they belong together.
    pub fn new(
        volume: &str,
        addresses: Vec<String>,
        certificate: &str,
        key: &str,
        authority: &AuthorityCertificate,
    ) -> anyhow::Result<Bundle> {
        if !is_volume_name(volume) {
            bail!("'{}' is not the name of a volume", volume.escape_debug());
        }
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX || !addresses.iter().all(|a| is_address(a)) {
            bail!("a bundle has 1 to {ADDRESSES_MAX} addresses of the form host:port");
        }
        let who = Identity::whole(key, certificate, authority)?;
        if who.role != Role::Client {
            return Err(BadIdentity::Part { part: "OU", value: who.role.to_string() }.into());
        }
        let (certificate, key) = (certificate.to_owned(), Zeroizing::new(key.to_owned()));
        Ok(Bundle { volume: volume.to_owned(), addresses, who, certificate, key, authority: authority.clone() })
    }

    /// The text.
    pub fn text(&self) -> anyhow::Result<Zeroizing<String>> {
        let (volume, addresses) = (self.volume.clone(), self.addresses.clone());
        let head = toml::to_string(&Head { version: VERSION, cluster: self.authority.cluster(), volume, addresses })?;
        let parts = [NOTE, &head, "\n", &self.certificate, &self.key, &self.authority.pem()];
        Ok(Zeroizing::new(parts.concat()))
    }

    /// Reads a text. An error says nothing of its contents: they are secret.
    pub fn parse(text: &str) -> anyhow::Result<Bundle> {
        if text.len() > TEXT_MAX_BYTES {
            bail!("a client bundle has at most {TEXT_MAX_BYTES} bytes");
        }
        let start = text.find(PEM_START).context("this is not a client bundle: it has no certificate")?;
        let (head, sections) = text.split_at(start);
        let head: Head = toml::from_str(head).map_err(|_| {
            anyhow::anyhow!("this is not a client bundle: it starts with version, cluster, volume and addresses")
        })?;
        if head.version != VERSION {
            bail!("the client bundle is of version {}, and this release knows version {VERSION}", head.version);
        }
        let labels = [pem::CERTIFICATE, pem::PRIVATE_KEY, pem::CERTIFICATE];
        let [certificate, key, authority] = pem::decode(sections, labels).context("the client bundle")?;
        let authority = AuthorityCertificate::from_der(&authority)?;
        if authority.cluster() != head.cluster {
            bail!("the client bundle names the cluster {}, its authority {}", head.cluster, authority.cluster());
        }
        let certificate = pem::encode(pem::CERTIFICATE, &certificate);
        Bundle::new(&head.volume, head.addresses, &certificate, &pem::encode(pem::PRIVATE_KEY, &key), &authority)
    }

    /// Writes it to a file that its owner alone may read, whole or not at all.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        files::write(path, self.text()?.as_bytes())
    }

    /// Reads such a file; `None` if there is none.
    pub fn read(path: &Path) -> anyhow::Result<Option<Bundle>> {
        let Some(text) = files::read(path)? else { return Ok(None) };
        Bundle::parse(&text).map(Some).with_context(|| format!("the file {}", path.display()))
    }

    /// Whose it is.
    pub fn who(&self) -> &PeerIdentity {
        &self.who
    }

    /// The identity to connect with, if the certificate is valid now.
    pub fn identity(&self, now: std::time::SystemTime) -> anyhow::Result<Identity> {
        Identity::new(&self.key, &self.certificate, &self.authority, self.who.holder(), now)
    }
}

/// The key stays out of every log.
impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({} of {})", self.who, self.volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::authority::{Authority, Grant};
    use crate::security::identity::NewKey;
    use crate::security::testing::{authority, grant};
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::LazyLock;
    use std::time::SystemTime;

    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| authority(1));

    fn parts(grant: &Grant) -> (String, Zeroizing<String>) {
        let key = NewKey::make().unwrap();
        (AUTHORITY.sign(key.request(), grant, SystemTime::now()).unwrap(), key.pem())
    }

    fn bundle(grant: &Grant) -> anyhow::Result<Bundle> {
        let (certificate, key) = parts(grant);
        Bundle::new("vol", vec!["node-1:24180".to_owned()], &certificate, &key, AUTHORITY.certificate())
    }

    static TEXT: LazyLock<String> =
        LazyLock::new(|| bundle(&grant(Role::Client, 3)).unwrap().text().unwrap().to_string());

    fn refused(text: &str) -> String {
        format!("{:#}", Bundle::parse(text).unwrap_err())
    }

    #[test]
    fn what_is_written_is_read_and_connects() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.bundle");
        assert!(Bundle::read(&path).unwrap().is_none());
        let grant = grant(Role::Client, 3);
        let written = bundle(&grant).unwrap();
        written.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let read = Bundle::read(&path).unwrap().unwrap();
        assert_eq!((&read.volume, &read.addresses, read.who()), (&written.volume, &written.addresses, written.who()));
        assert_eq!(read.text().unwrap(), written.text().unwrap());
        assert_eq!(read.identity(SystemTime::now()).unwrap().who().holder(), grant.holder);
        assert!(read.identity(SystemTime::now() + grant.lifetime * 2).is_err(), "expired");
        assert!(Bundle::parse(&TEXT.replace('\n', "\r\n")).is_ok());
        assert_eq!(format!("{read:?}"), format!("Bundle(client {} of vol)", grant.holder.id));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        assert!(bundle(&grant(Role::Peer, 3)).is_err() && bundle(&grant(Role::Admin, 3)).is_err());
        let ((certificate, key), (_, other_key)) = (parts(&grant(Role::Client, 3)), parts(&grant(Role::Client, 3)));
        let make = |volume: &str, address: &str, key: &str, authority: &Authority| {
            Bundle::new(volume, vec![address.to_owned()], &certificate, key, authority.certificate())
        };
        assert!(make("vol", "a:1", &key, &AUTHORITY).is_ok());
        assert!(make("vol", "a:1", &other_key, &AUTHORITY).is_err());
        assert!(make("vol", "a:1", &key, &authority(1)).is_err());
        assert!(make("a/b", "a:1", &key, &AUTHORITY).is_err());
        assert!(make("vol", "a", &key, &AUTHORITY).is_err());
        assert!(Bundle::new("vol", Vec::new(), &certificate, &key, AUTHORITY.certificate()).is_err());
    }

    #[test]
    fn other_texts_are_refused_and_not_repeated() {
        assert!(refused("").contains("not a client bundle"));
        assert!(refused(&TEXT.replace("version = 1", "version = 2")).contains("version 2"));
        assert!(refused(&TEXT.replace("volume", "colour")).contains("starts with version"));
        assert!(refused(&TEXT.replace("version = 1", "version = 1\nmore = 1")).contains("starts with version"));
        assert!(refused(&TEXT.replace("cluster = \"01", "cluster = \"02")).contains("names the cluster"));
        assert!(refused(&format!("{}more", *TEXT)).contains("PEM"));
        assert!(refused(&TEXT[..TEXT.len() - 40]).contains("PEM"));
        assert!(refused(&TEXT.replace("-----BEGIN PRIVATE KEY-----\n", "")).contains("PEM"));
        assert!(refused(&"x".repeat(TEXT_MAX_BYTES + 1)).contains("at most"));
        let key = TEXT.split("PRIVATE KEY-----\n").nth(1).unwrap();
        let key_line = key.lines().next().unwrap();
        let moved = TEXT.replacen("volume =", key_line, 1);
        assert!(!refused(&moved).contains(key_line));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_text_makes_it_panic(at in any::<prop::sample::Index>(), cut in 0usize..80, with in "\\PC{0,12}") {
            let start = at.index(TEXT.len());
            let end = (start + cut).min(TEXT.len());
            let changed = format!("{}{with}{}", &TEXT[..start], &TEXT[end..]);
            let _ = Bundle::parse(&changed);
        }

        #[test]
        fn any_addresses_are_read_again(addresses in prop::collection::vec("[a-z0-9.-]{1,30}:[1-9][0-9]{0,3}", 1..9)) {
            let first = Bundle::parse(&TEXT).unwrap();
            let given = Bundle { addresses, ..first };
            let read = Bundle::parse(&given.text().unwrap()).unwrap();
            prop_assert_eq!(read.addresses, given.addresses);
        }
    }
}
