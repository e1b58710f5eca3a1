//! Keys and certificates on disk.

use super::*;
use crate::security::authority::{Authority, Grant};
use crate::security::role::{Role, Serial};
use crate::security::testing::{DAYS_90, authority, grant, holder, identity_of};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

const HOUR: Duration = Duration::from_secs(3_600);

fn install(state: &Path, authority: &Authority, grant: &Grant) -> anyhow::Result<Identity> {
    let key = NewKey::make().unwrap();
    let certificate = authority.sign(key.request(), grant, SystemTime::now()).unwrap();
    Identity::install(state, &key, &certificate, authority.certificate(), grant.holder, SystemTime::now())
}

#[test]
fn what_was_installed_is_loaded() {
    let state = tempfile::tempdir().unwrap();
    assert!(Identity::load(state.path()).unwrap().is_none());
    let (authority, grant) = (authority(1), grant(Role::Peer, 4));
    let installed = install(state.path(), &authority, &grant).unwrap();
    let loaded = Identity::load(state.path()).unwrap().unwrap();
    assert_eq!((loaded.who(), loaded.authority()), (installed.who(), authority.certificate()));
    assert_eq!((loaded.who().holder(), loaded.who().serial), (grant.holder, grant.serial));
    assert!(loaded.certified.keys_match().is_ok());
    let path = state.path().join(TLS_DIR).join(FILE);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let shown = format!("{loaded:?}");
    assert_eq!(shown, format!("Identity(peer {})", loaded.who().id));
}

#[test]
fn what_does_not_belong_together_changes_nothing() {
    let state = tempfile::tempdir().unwrap();
    let (authority, other) = (authority(1), authority(1));
    install(state.path(), &authority, &grant(Role::Peer, 1)).unwrap();
    let path = state.path().join(TLS_DIR).join(FILE);
    let before = fs::read(&path).unwrap();
    let now = SystemTime::now();
    let (key, of_other_key) = (NewKey::make().unwrap(), NewKey::make().unwrap());
    let sign = |by: &Authority, key: &NewKey, at| by.sign(key.request(), &grant(Role::Peer, 1), at).unwrap();
    let try_install = |certificate: &str, holder| {
        let installed = Identity::install(state.path(), &key, certificate, authority.certificate(), holder, now);
        format!("{:#}", installed.unwrap_err())
    };
    let peer = holder(Role::Peer, 1);
    assert!(try_install(&sign(&authority, &of_other_key, now), peer).contains("key does not belong"));
    assert!(try_install(&sign(&other, &key, now), peer).contains("not signed by this cluster"));
    assert!(try_install(&sign(&authority, &key, now - 2 * DAYS_90), peer).contains("expired"));
    assert!(try_install(&sign(&authority, &key, now + HOUR), peer).contains("not valid yet"));
    assert!(try_install(&sign(&authority, &key, now), holder(Role::Peer, 2)).contains("not of peer 0202"));
    assert!(try_install(&sign(&authority, &key, now), holder(Role::Admin, 1)).contains("not of admin"));
    assert!(try_install("junk", peer).contains("PEM"));
    assert!(try_install(&authority.certificate().pem(), peer).contains("authority"));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_file_is_refused_and_an_expired_certificate_loads() {
    let state = tempfile::tempdir().unwrap();
    let long_ago = SystemTime::now() - 2 * DAYS_90;
    let (key, one, other) = (NewKey::make().unwrap(), authority(1), authority(1));
    let grant = grant(Role::Peer, 1);
    let certificate = one.sign(key.request(), &grant, long_ago).unwrap();
    Identity::install(state.path(), &key, &certificate, one.certificate(), grant.holder, long_ago).unwrap();
    let expired = Identity::load(state.path()).unwrap().unwrap();
    assert!(expired.expires() < SystemTime::now() && expired.wants_renewal(SystemTime::now()));

    let path = state.path().join(TLS_DIR).join(FILE);
    let text = fs::read_to_string(&path).unwrap();
    let with_other_authority = text.replace(&one.certificate().pem(), &other.certificate().pem());
    for damaged in [&text[..text.len() / 2], "", &with_other_authority, &format!("{text}more")] {
        fs::write(&path, damaged).unwrap();
        assert!(format!("{:#}", Identity::load(state.path()).unwrap_err()).contains(FILE));
    }
}

#[test]
fn a_renewal_is_due_when_a_third_of_the_time_is_left() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let authority = authority(1);
    let of = |lifetime| identity_of(&authority, &Grant { lifetime, ..grant(Role::Peer, 1) }, now);
    let long = of(DAYS_90);
    assert!(!long.wants_renewal(now) && !long.wants_renewal(now + DAYS_90 * 2 / 3 - Duration::from_secs(1)));
    assert!(long.wants_renewal(now + DAYS_90 * 2 / 3) && long.wants_renewal(now + 2 * DAYS_90));
    assert_eq!(long.renewal_pause(), HOUR);
    let short = of(Duration::from_secs(6));
    assert!(!short.wants_renewal(now) && !short.wants_renewal(now + Duration::from_secs(3)));
    assert!(short.wants_renewal(now + Duration::from_secs(4)));
    assert_eq!(short.renewal_pause(), Duration::from_millis(600));
}

#[test]
fn certificates_of_a_few_seconds_are_renewed_again_and_again() {
    let state = tempfile::tempdir().unwrap();
    let authority = authority(1);
    let mut now = SystemTime::now();
    let mut last = Serial(0);
    for _ in 0..5 {
        let key = NewKey::make().unwrap();
        let grant = Grant { lifetime: Duration::from_secs(3), ..grant(Role::Peer, 1) };
        let certificate = authority.sign(key.request(), &grant, now).unwrap();
        let renewed =
            Identity::install(state.path(), &key, &certificate, authority.certificate(), grant.holder, now).unwrap();
        assert_ne!(renewed.who().serial, last);
        last = Identity::load(state.path()).unwrap().unwrap().who().serial;
        assert_eq!(renewed.who().serial, last);
        assert!(!renewed.wants_renewal(now));
        now += Duration::from_secs(2);
        assert!(renewed.wants_renewal(now) && now < renewed.expires());
    }
}
