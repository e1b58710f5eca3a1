//! What the authority signs and what it refuses.

use super::*;
use crate::security::identity::NewKey;
use crate::security::role::PeerIdentity;
use crate::security::testing::{DAYS_90, authority, grant, holder};
use rcgen::{PKCS_ECDSA_P384_SHA384, SanType};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn der_of(certificate: &str) -> Vec<u8> {
    pem::decode(certificate, [pem::CERTIFICATE]).unwrap()[0].to_vec()
}

#[test]
fn an_authority_is_founded_once_and_opened_again() {
    let state = tempfile::tempdir().unwrap();
    let cluster = ClusterId([7; 16]);
    assert!(Authority::open(state.path()).unwrap().is_none());
    let founded = Authority::found(cluster, state.path()).unwrap();
    let tls = state.path().join(TLS_DIR);
    assert_eq!((mode(&tls), mode(&tls.join(KEY_FILE)), mode(&tls.join(CERTIFICATE_FILE))), (0o700, 0o600, 0o600));
    let opened = Authority::open(state.path()).unwrap().unwrap();
    assert_eq!(opened.certificate(), founded.certificate());
    assert_eq!((opened.certificate().cluster(), opened.certificate().hash()), (cluster, founded.certificate().hash()));
    assert!(Authority::found(cluster, state.path()).unwrap_err().to_string().contains("exists already"));

    Authority::drop_key(state.path()).unwrap();
    Authority::drop_key(state.path()).unwrap();
    assert!(!tls.join(KEY_FILE).exists() && Authority::open(state.path()).unwrap().is_none());
    founded.store(state.path()).unwrap();
    assert!(Authority::open(state.path()).unwrap().is_some(), "a node that votes again has the key again");
}

#[test]
fn key_and_certificate_of_different_authorities_are_refused() {
    let (one, other) = (authority(1), authority(1));
    let wrong = Authority::from_pem(&one.certificate().pem(), &other.key_pem());
    assert!(wrong.unwrap_err().to_string().contains("does not belong"));
    assert!(Authority::from_pem(&one.certificate().pem(), &one.key_pem()).is_ok());
    // A certificate that the authority has signed is none of an authority.
    let node = one.sign(NewKey::make().unwrap().request(), &grant(Role::Peer, 1), SystemTime::now()).unwrap();
    assert!(AuthorityCertificate::from_pem(&node).is_err());
}

#[test]
fn a_certificate_of_another_kind_is_none_of_an_authority() {
    let (key, id) = (KeyPair::generate().unwrap(), ClusterId([1; 16]).to_string());
    let make = |parts: [&str; 3], is_ca: IsCa, usage: KeyUsagePurpose| {
        let mut params = certificate_params(parts, Serial(1));
        (params.is_ca, params.key_usages) = (is_ca, vec![usage]);
        AuthorityCertificate::from_der(params.self_signed(&key).unwrap().der())
    };
    let ca = || IsCa::Ca(BasicConstraints::Constrained(0));
    assert!(make([&id, UNIT, &id], ca(), KeyUsagePurpose::KeyCertSign).is_ok());
    assert!(make([&id, "peer", &id], ca(), KeyUsagePurpose::KeyCertSign).is_err());
    assert!(make([&id, UNIT, "other"], ca(), KeyUsagePurpose::KeyCertSign).is_err());
    assert!(make(["other", UNIT, "other"], ca(), KeyUsagePurpose::KeyCertSign).is_err());
    assert!(make([&id, UNIT, &id], IsCa::ExplicitNoCa, KeyUsagePurpose::KeyCertSign).is_err());
    assert!(make([&id, UNIT, &id], ca(), KeyUsagePurpose::DigitalSignature).is_err());
}

#[test]
fn another_certificate_takes_the_key_of_the_old_authority_along() {
    let state = tempfile::tempdir().unwrap();
    let (alone, joined) = (Authority::found(ClusterId([1; 16]), state.path()).unwrap(), authority(2));
    Authority::store_certificate(alone.certificate(), state.path()).unwrap();
    assert!(Authority::open(state.path()).unwrap().is_some(), "the same certificate leaves the key");
    Authority::store_certificate(joined.certificate(), state.path()).unwrap();
    assert!(Authority::open(state.path()).unwrap().is_none());
    joined.store(state.path()).unwrap();
    assert_eq!(Authority::open(state.path()).unwrap().unwrap().certificate(), joined.certificate());
}

#[test]
fn keys_are_not_shown() {
    let authority = authority(1);
    let shown = format!("{authority:?} {:?} {:?}", authority.certificate(), NewKey::make().unwrap());
    assert_eq!(shown.matches("0101").count(), 2 * ClusterId([1; 16]).to_string().matches("0101").count());
    assert!(shown.len() < 160 && !shown.contains("PRIVATE"), "{shown}");
}

#[test]
fn nothing_of_a_request_but_its_key_is_taken() {
    let authority = authority(1);
    let key = KeyPair::generate().unwrap();
    let mut wish = certificate_params(["someone else", "admin", "root"], Serial(9));
    wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wish.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    wish.subject_alt_names = vec![SanType::DnsName("node-1".try_into().unwrap())];
    wish.serial_number = None;
    let request = pem::encode(pem::REQUEST, wish.serialize_request(&key).unwrap().der());
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let grant = Grant { serial: Serial(5), ..grant(Role::Client, 3) };
    let der = der_of(&authority.sign(&request, &grant, at).unwrap());

    let certificate = parse(&der).unwrap();
    assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
    let who = PeerIdentity::of_certificate(&der).unwrap();
    assert_eq!((who.cluster, who.holder(), who.serial), (ClusterId([1; 16]), holder(Role::Client, 3), Serial(5)));
    assert_eq!(certificate.validity().not_before.timestamp(), 1_800_000_000 - 300);
    assert_eq!(who.not_after_s, 1_800_000_000 + DAYS_90.as_secs());
    assert!(!certificate.is_ca() && certificate.subject_alternative_name().unwrap().is_none());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.flags.count_ones() == 1);
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth && !extended.any && extended.other.is_empty());
}

#[test]
fn only_nodes_may_answer() {
    let authority = authority(1);
    for (role, answers) in [(Role::Peer, true), (Role::Admin, false), (Role::Client, false)] {
        let pem = authority.sign(NewKey::make().unwrap().request(), &grant(role, 1), SystemTime::now()).unwrap();
        let der = der_of(&pem);
        let certificate = parse(&der).unwrap();
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((usage.client_auth, usage.server_auth), (true, answers), "{role}");
    }
}

#[test]
fn bad_requests_are_refused() {
    let authority = authority(1);
    let sign = |request: &str| authority.sign(request, &grant(Role::Peer, 1), SystemTime::now());
    let reason = |request: &str| sign(request).unwrap_err().to_string();
    let good = NewKey::make().unwrap();
    assert!(sign(good.request()).is_ok());

    let [der] = pem::decode(good.request(), [pem::REQUEST]).unwrap();
    let mut forged = der.to_vec();
    // The last byte is one of the signature.
    *forged.last_mut().unwrap() ^= 1;
    assert!(reason(&pem::encode(pem::REQUEST, &forged)).contains("not signed with the key"));
    let key_at = |der: &[u8]| der.windows(2).position(|two| two == [0x00, 0x04]).unwrap() + 2;
    let other = NewKey::make().unwrap();
    let [other] = pem::decode(other.request(), [pem::REQUEST]).unwrap();
    let mut stolen = der.to_vec();
    let (to, from) = (key_at(&der), key_at(&other));
    stolen[to..to + 64].copy_from_slice(&other[from..from + 64]);
    assert!(reason(&pem::encode(pem::REQUEST, &stolen)).contains("not signed with the key"), "another's public key");

    let mut longer = der.to_vec();
    longer.push(0);
    assert!(reason(&pem::encode(pem::REQUEST, &longer)).contains("not a request"));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default().serialize_request(&p384).unwrap();
    assert!(reason(&pem::encode(pem::REQUEST, p384.der())).contains("P-256"));
    assert!(reason(&"x".repeat(REQUEST_MAX_BYTES + 1)).contains("at most"));
    assert!(reason("junk").contains("PEM"));
    let none = Grant { serial: Serial(0), ..grant(Role::Peer, 1) };
    assert!(authority.sign(good.request(), &none, SystemTime::now()).is_err());
}

#[test]
fn nothing_lasts_longer_than_the_authority() {
    let authority = authority(1);
    let key = NewKey::make().unwrap();
    let end = authority.certificate.not_after_s;
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let late = authority.sign(key.request(), &grant(Role::Peer, 1), at(end - 60)).unwrap();
    assert_eq!(PeerIdentity::of_certificate(&der_of(&late)).unwrap().not_after_s, end);
    let after = authority.sign(key.request(), &grant(Role::Peer, 1), at(end));
    assert!(after.unwrap_err().to_string().contains("expired"));
}
