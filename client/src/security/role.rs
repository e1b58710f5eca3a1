//! What a certificate says of its holder. It is in the subject, which the authority alone writes:
//! `O=<cluster id>, OU=peer|admin|client, CN=<id>`, these three and in this order.

use brickfs_common::ids::{CertSerial, ClusterId, NodeId};
use std::fmt;
use std::str::FromStr;
use x509_parser::der_parser::asn1_rs::{Oid, Tag};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME, OID_X509_ORGANIZATIONAL_UNIT};
use x509_parser::prelude::{X509Certificate, X509Name};

/// What the holder of a certificate is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Role {
    /// A node of the cluster.
    Peer,
    /// An operator who administrates from elsewhere.
    Admin,
    /// A client that mounts volumes.
    Client,
}

impl Role {
    /// The word in the certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Peer => "peer",
            Role::Admin => "admin",
            Role::Client => "client",
        }
    }

    fn parse(text: &str) -> Option<Role> {
        [Role::Peer, Role::Admin, Role::Client].into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Serial number of a certificate, never 0. A number is random, not counted: after a cluster was brought back from
/// a backup, a counter would give numbers out again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(pub u128);

impl Serial {
    /// A new number. Its first byte is 1 to 127, as the cluster state wants it.
    pub fn random() -> Serial {
        let mut bytes: [u8; 16] = rand::random();
        bytes[0] = (bytes[0] & 0x7f).max(1);
        Serial(u128::from_be_bytes(bytes))
    }

    /// As the cluster state has it.
    pub fn in_state(self) -> CertSerial {
        CertSerial(self.0.to_be_bytes())
    }
}

impl From<CertSerial> for Serial {
    fn from(serial: CertSerial) -> Serial {
        Serial(u128::from_be_bytes(serial.0))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// Who holds a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// What it is.
    pub role: Role,
    /// Its id: a node's for a peer, else the one that the cluster state gave it.
    pub id: NodeId,
}

/// The other end of a connection, out of its certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerIdentity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// What it is.
    pub role: Role,
    /// Its id: a node's for a peer, else the one that the cluster state gave it.
    pub id: NodeId,
    /// The certificate's serial number.
    pub serial: Serial,
    /// The certificate's last second, since 1970.
    pub not_after_s: u64,
}

/// Why a certificate says nothing that counts here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadIdentity {
    /// Not a certificate, or something behind it.
    #[error("this is not one certificate in DER form")]
    Encoding,
    /// The subject has not exactly the three parts.
    #[error("the certificate's subject is not O=<cluster>, OU=<role>, CN=<id> alone")]
    Subject,
    /// A part has no value that is known.
    #[error("the certificate's {part} is '{value}', which says nothing here")]
    Part {
        /// Which one.
        part: &'static str,
        /// What it says, shortened.
        value: String,
    },
    /// The serial number is zero, negative or longer than 16 bytes.
    #[error("the certificate's serial number is not one of this cluster's")]
    Serial,
}

impl PeerIdentity {
    /// Who the holder is.
    pub fn holder(&self) -> Holder {
        Holder { role: self.role, id: self.id }
    }

    /// Reads a certificate that was verified before: nothing is verified here.
    pub fn of_certificate(der: &[u8]) -> Result<PeerIdentity, BadIdentity> {
        let certificate = parse(der)?;
        let [cluster, role, id] = subject_parts(certificate.subject())?;
        Ok(PeerIdentity {
            cluster: parse_id("O", cluster)?,
            role: Role::parse(role).ok_or_else(|| bad_part("OU", role))?,
            id: parse_id("CN", id)?,
            serial: serial_of(&certificate)?,
            not_after_s: seconds(certificate.validity().not_after.timestamp()),
        })
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.id)
    }
}

/// A certificate and nothing behind it.
pub fn parse(der: &[u8]) -> Result<X509Certificate<'_>, BadIdentity> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(BadIdentity::Encoding),
    }
}

/// Organisation, unit and common name of a subject that has these and nothing else.
pub fn subject_parts<'a>(subject: &'a X509Name<'_>) -> Result<[&'a str; 3], BadIdentity> {
    let wanted: [Oid<'_>; 3] = [OID_X509_ORGANIZATION_NAME, OID_X509_ORGANIZATIONAL_UNIT, OID_X509_COMMON_NAME];
    let mut parts = [""; 3];
    let mut given = subject.iter_rdn();
    for (part, oid) in parts.iter_mut().zip(wanted) {
        let mut attributes = given.next().ok_or(BadIdentity::Subject)?.iter();
        let attribute = attributes.next().ok_or(BadIdentity::Subject)?;
        let is_text = attribute.attr_value().header.tag() == Tag::Utf8String;
        if *attribute.attr_type() != oid || !is_text || attributes.next().is_some() {
            return Err(BadIdentity::Subject);
        }
        *part = attribute.as_str().map_err(|_| BadIdentity::Subject)?;
    }
    if given.next().is_some() { Err(BadIdentity::Subject) } else { Ok(parts) }
}

/// An id in the one form in which ids are written.
pub fn parse_id<T: FromStr + ToString>(part: &'static str, text: &str) -> Result<T, BadIdentity> {
    let id: T = text.parse().map_err(|_| bad_part(part, text))?;
    if id.to_string() == text { Ok(id) } else { Err(bad_part(part, text)) }
}

/// Seconds since 1970 of a certificate's time; before that nothing is.
pub fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

fn bad_part(part: &'static str, value: &str) -> BadIdentity {
    BadIdentity::Part { part, value: value.chars().take(64).flat_map(char::escape_default).collect() }
}

fn serial_of(certificate: &X509Certificate<'_>) -> Result<Serial, BadIdentity> {
    // DER: the shortest form, with a zero in front where the first bit would say "negative".
    let bytes = match certificate.raw_serial() {
        [0, rest @ ..] => rest,
        [first, ..] if *first >= 0x80 => return Err(BadIdentity::Serial),
        bytes => bytes,
    };
    if bytes.is_empty() || bytes.len() > 16 {
        return Err(BadIdentity::Serial);
    }
    let serial = bytes.iter().fold(0, |serial: u128, byte| serial << 8 | u128::from(*byte));
    if serial == 0 { Err(BadIdentity::Serial) } else { Ok(Serial(serial)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    const CLUSTER: &str = "00112233-4455-6677-8899-aabbccddeeff";
    const ID: &str = "ffeeddcc-bbaa-9988-7766-554433221100";

    fn certificate(subject: &[(DnType, DnValue)], serial: &[u8]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        subject.iter().for_each(|(part, value)| params.distinguished_name.push(part.clone(), value.clone()));
        params.serial_number = Some(rcgen::SerialNumber::from_slice(serial));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn named(parts: [&str; 3]) -> Vec<(DnType, DnValue)> {
        let types = [DnType::OrganizationName, DnType::OrganizationalUnitName, DnType::CommonName];
        types.into_iter().zip(parts.map(DnValue::from)).collect()
    }

    #[test]
    fn a_certificate_says_who_holds_it() {
        for (word, role) in [("peer", Role::Peer), ("admin", Role::Admin), ("client", Role::Client)] {
            let identity =
                PeerIdentity::of_certificate(&certificate(&named([CLUSTER, word, ID]), &[0xff; 16])).unwrap();
            assert_eq!((identity.cluster.to_string(), identity.id.to_string()), (CLUSTER.to_owned(), ID.to_owned()));
            assert_eq!((identity.role, identity.serial), (role, Serial(u128::MAX)));
            assert_eq!(identity.to_string(), format!("{word} {ID}"));
        }
        let small = PeerIdentity::of_certificate(&certificate(&named([CLUSTER, "peer", ID]), &[0, 0, 5])).unwrap();
        assert_eq!(small.serial, Serial(5));
    }

    #[test]
    fn anything_else_in_the_subject_is_refused() {
        let good = || named([CLUSTER, "peer", ID]);
        let refused =
            |subject: Vec<(DnType, DnValue)>| PeerIdentity::of_certificate(&certificate(&subject, &[1])).unwrap_err();
        let mut more = good();
        more.push((DnType::CountryName, DnValue::PrintableString("DE".try_into().unwrap())));
        assert_eq!(refused(more), BadIdentity::Subject);
        assert_eq!(refused(good()[..2].to_vec()), BadIdentity::Subject);
        assert_eq!(refused(Vec::new()), BadIdentity::Subject);
        let mut order = good();
        order.swap(0, 2);
        assert_eq!(refused(order), BadIdentity::Subject);
        let mut kind = good();
        kind[1].1 = DnValue::PrintableString("peer".try_into().unwrap());
        assert_eq!(refused(kind), BadIdentity::Subject);
        for parts in [
            [CLUSTER, "root", ID],
            [CLUSTER, "Peer", ID],
            [CLUSTER, "peer ", ID],
            ["", "peer", ID],
            [CLUSTER, "peer", "node-1"],
            [&CLUSTER.to_uppercase(), "peer", ID],
            [CLUSTER, "peer", &ID.replace('-', "")],
        ] {
            assert!(matches!(refused(named(parts)), BadIdentity::Part { .. }), "{parts:?}");
        }
    }

    #[test]
    fn foreign_serial_numbers_and_bytes_behind_are_refused() {
        let subject = named([CLUSTER, "peer", ID]);
        assert_eq!(PeerIdentity::of_certificate(&certificate(&subject, &[1; 17])), Err(BadIdentity::Serial));
        assert_eq!(PeerIdentity::of_certificate(&certificate(&subject, &[0])), Err(BadIdentity::Serial));
        let mut der = certificate(&subject, &[1]);
        der.push(0);
        assert_eq!(PeerIdentity::of_certificate(&der), Err(BadIdentity::Encoding));
        assert_eq!(PeerIdentity::of_certificate(b"junk"), Err(BadIdentity::Encoding));
    }
}
