//! Who may call what: one table of RPCs and callers. What has no row is refused to all, and a test fails for an RPC
//! without a row. What a caller may do within a call (a client with its volumes) is the call's own matter.

use crate::security::role::{PeerIdentity, Role};
use Caller::{Admin, Client, Local, Peer, Stranger};

/// Who calls, as the table knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// Root, or the user that `brickd` runs as, over the node's own Unix socket.
    Local,
    /// A node of the cluster.
    Peer,
    /// An operator from elsewhere.
    Admin,
    /// A client.
    Client,
    /// Somebody over TLS without a certificate. For joining: the call itself asks for a token.
    Stranger,
}

/// One row: who may call an RPC.
struct Rule {
    path: &'static str,
    callers: &'static [Caller],
}

/// The table, sorted by path.
const RULES: &[Rule] = &[
    Rule { path: "/brickfs.v1.Admin/Run", callers: &[Local, Admin] },
    Rule { path: "/brickfs.v1.Cluster/AskSet", callers: &[Peer] },
    Rule { path: "/brickfs.v1.Cluster/Bricks", callers: &[Peer] },
    // A joining node has a token and no certificate; a node that cannot sign passes the call on.
    Rule { path: "/brickfs.v1.Cluster/Join", callers: &[Stranger, Peer] },
    Rule { path: "/brickfs.v1.Cluster/Look", callers: &[Peer] },
    Rule { path: "/brickfs.v1.Cluster/Propose", callers: &[Peer] },
    Rule { path: "/brickfs.v1.Cluster/Raft", callers: &[Peer] },
    Rule { path: "/brickfs.v1.Cluster/Renew", callers: &[Peer] },
    Rule { path: "/brickfs.v1.Cluster/TakeAuthorityKey", callers: &[Peer] },
    // A node mounts with its own certificate.
    Rule { path: "/brickfs.v1.Fops/Session", callers: &[Local, Peer] },
];

/// Rows of services that are not there yet: each moves up with its RPC, and a test says when. Until then they
/// allow nothing.
#[cfg(test)]
const PLANNED: &[Rule] = &[Rule { path: "/brickfs.v1.Cluster/WatchMap", callers: &[Local, Peer, Client] }];

/// What the table says of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It may go on.
    Allowed,
    /// It may not.
    Refused(Refusal),
}

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such call, or none that anybody may make.
    #[error("there is no such call")]
    NoRule,
    /// A user of this machine who has no business here.
    #[error("only root may call this over the local socket, not the user {0}")]
    User(u32),
    /// Over TLS without a certificate.
    #[error("this call needs a certificate of the cluster")]
    NoCertificate,
    /// With a certificate of another role.
    #[error("the role {0} may not call this")]
    Role(Role),
    /// Over the local socket what only comes from other nodes.
    #[error("this call is made by other nodes only")]
    NotLocal,
}

/// Whether a call may go on. `path` is `/package.Service/Method`; `via_unix_socket` is the user who calls over the
/// node's own socket, and `identity` what the certificate of one who calls over TLS says.
pub fn check(path: &str, identity: Option<&PeerIdentity>, via_unix_socket: Option<u32>) -> Verdict {
    check_in(RULES, path, identity, via_unix_socket)
}

fn check_in(rules: &[Rule], path: &str, identity: Option<&PeerIdentity>, via_unix_socket: Option<u32>) -> Verdict {
    let (caller, refusal) = match (via_unix_socket, identity) {
        (Some(uid), None) if uid == 0 || uid == rustix::process::geteuid().as_raw() => (Local, Refusal::NotLocal),
        // No connection is both; if one were, neither would be believed.
        (Some(uid), _) => return Verdict::Refused(Refusal::User(uid)),
        (None, None) => (Stranger, Refusal::NoCertificate),
        (None, Some(identity)) => (of_role(identity.role), Refusal::Role(identity.role)),
    };
    match rules.iter().find(|rule| rule.path == path) {
        None => Verdict::Refused(Refusal::NoRule),
        Some(rule) if rule.callers.contains(&caller) => Verdict::Allowed,
        Some(_) => Verdict::Refused(refusal),
    }
}

fn of_role(role: Role) -> Caller {
    match role {
        Role::Peer => Peer,
        Role::Admin => Admin,
        Role::Client => Client,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::role::Serial;
    use brickfs_common::ids::{ClusterId, NodeId};
    use prost::Message as _;
    use std::collections::BTreeSet;

    fn identity(role: Role) -> PeerIdentity {
        let (cluster, id) = (ClusterId([1; 16]), NodeId([2; 16]));
        PeerIdentity { cluster, role, id, serial: Serial(1), not_after_s: 0 }
    }

    /// The paths of all RPCs of the compiled services.
    fn rpcs() -> BTreeSet<String> {
        let set = prost_types::FileDescriptorSet::decode(brickfs_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut paths = BTreeSet::new();
        for file in &set.file {
            for service in &file.service {
                let of = |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
                paths.extend(service.method.iter().map(|method| of(method.name())));
            }
        }
        assert!(!paths.is_empty());
        paths
    }

    #[test]
    fn every_rpc_has_one_row_and_every_row_an_rpc() {
        let rules: BTreeSet<String> = RULES.iter().map(|rule| rule.path.to_owned()).collect();
        assert_eq!(rules.len(), RULES.len(), "one row each");
        assert!(RULES.is_sorted_by_key(|rule| rule.path));
        let rpcs = rpcs();
        let without: Vec<_> = rpcs.difference(&rules).collect();
        assert!(without.is_empty(), "give these RPCs a row in RULES: {without:?}");
        let gone: Vec<_> = rules.difference(&rpcs).collect();
        assert!(gone.is_empty(), "these rows of RULES have no RPC: {gone:?}");
        let there: Vec<_> = PLANNED.iter().map(|rule| rule.path).filter(|path| rpcs.contains(*path)).collect();
        assert!(there.is_empty(), "move these rows from PLANNED to RULES: {there:?}");
        assert!(RULES.iter().chain(PLANNED).all(|rule| !rule.callers.is_empty()));
    }

    #[test]
    fn strangers_and_unknown_calls_are_refused() {
        for rpc in rpcs().into_iter().filter(|rpc| rpc != "/brickfs.v1.Cluster/Join") {
            assert_eq!(check(&rpc, None, None), Verdict::Refused(Refusal::NoCertificate), "{rpc}");
        }
        let planned = PLANNED.iter().map(|rule| rule.path);
        for path in planned.chain(["", "/", "/brickfs.v1.Admin/", "/brickfs.v1.Admin/run", "brickfs.v1.Admin/Run"]) {
            for identity in [None, Some(identity(Role::Admin)), Some(identity(Role::Peer))] {
                assert_eq!(check(path, identity.as_ref(), None), Verdict::Refused(Refusal::NoRule), "{path}");
            }
            assert_eq!(check(path, None, Some(0)), Verdict::Refused(Refusal::NoRule), "{path}");
        }
    }

    #[test]
    fn each_role_has_its_calls() {
        let verdict = |path: &str, role: Role| check(path, Some(&identity(role)), None);
        let (admin, session) = ("/brickfs.v1.Admin/Run", "/brickfs.v1.Fops/Session");
        assert_eq!(verdict(admin, Role::Admin), Verdict::Allowed);
        assert_eq!(verdict(admin, Role::Client), Verdict::Refused(Refusal::Role(Role::Client)));
        assert_eq!(verdict(admin, Role::Peer), Verdict::Refused(Refusal::Role(Role::Peer)));
        for rpc in rpcs().iter().filter(|rpc| rpc.starts_with("/brickfs.v1.Cluster/")) {
            assert_eq!(verdict(rpc, Role::Peer), Verdict::Allowed, "{rpc}");
            assert_eq!(verdict(rpc, Role::Client), Verdict::Refused(Refusal::Role(Role::Client)), "{rpc}");
            assert_eq!(verdict(rpc, Role::Admin), Verdict::Refused(Refusal::Role(Role::Admin)), "{rpc}");
        }
        assert_eq!(verdict(session, Role::Client), Verdict::Refused(Refusal::Role(Role::Client)));
        assert_eq!(verdict(session, Role::Peer), Verdict::Allowed);
        assert_eq!(verdict(session, Role::Admin), Verdict::Refused(Refusal::Role(Role::Admin)));
    }

    #[test]
    fn on_the_local_socket_root_and_our_own_user_count() {
        let own = rustix::process::geteuid().as_raw();
        for rpc in ["/brickfs.v1.Admin/Run", "/brickfs.v1.Fops/Session"] {
            assert_eq!(check(rpc, None, Some(0)), Verdict::Allowed);
            assert_eq!(check(rpc, None, Some(own)), Verdict::Allowed);
            assert_eq!(check(rpc, None, Some(own + 1)), Verdict::Refused(Refusal::User(own + 1)));
            let both = check(rpc, Some(&identity(Role::Admin)), Some(0));
            assert_eq!(both, Verdict::Refused(Refusal::User(0)));
        }
        assert_eq!(check("/brickfs.v1.Cluster/Raft", None, Some(0)), Verdict::Refused(Refusal::NotLocal));
        assert_eq!(check("/brickfs.v1.Cluster/Join", None, None), Verdict::Allowed);
    }
}
