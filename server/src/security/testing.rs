//! Authorities and certificates for tests.

use crate::security::authority::{Authority, Grant};
use crate::security::identity::{Identity, NewKey};
use crate::security::revocation::Revocations;
use crate::security::role::{Holder, Role, Serial};
use crate::security::tls::Credentials;
use brickfs_common::ids::{ClusterId, NodeId};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What a node's certificate lasts.
pub const DAYS_90: Duration = Duration::from_secs(90 * 24 * 3_600);

/// The authority of a cluster; another call makes another one, of the same name.
pub fn authority(cluster: u8) -> Authority {
    Authority::make(ClusterId([cluster; 16]), SystemTime::now()).unwrap()
}

pub fn holder(role: Role, id: u8) -> Holder {
    Holder { role, id: NodeId([id; 16]) }
}

pub fn grant(role: Role, id: u8) -> Grant {
    Grant { holder: holder(role, id), serial: Serial::random(), lifetime: DAYS_90 }
}

/// A key with its certificate, made at a time.
pub fn identity_of(authority: &Authority, grant: &Grant, at: SystemTime) -> Identity {
    let key = NewKey::make().unwrap();
    let certificate = authority.sign(key.request(), grant, at).unwrap();
    Identity::new(&key.pem(), &certificate, authority.certificate(), grant.holder, at).unwrap()
}

/// One made now, which revokes nobody.
pub fn credentials(authority: &Authority, role: Role, id: u8) -> Arc<Credentials> {
    Credentials::new(identity_of(authority, &grant(role, id), SystemTime::now()), Revocations::default())
}
