//! Starts, and starts after something was cut short.

use super::*;
use brickfs_common::cluster::command::apply;
use std::fs;

fn settings(name: Option<&str>) -> Settings {
    Settings {
        name: name.map(str::to_owned),
        default_name: "node-1".to_owned(),
        addresses: Vec::new(),
        connect_from: None,
        certificate_life: Duration::from_secs(3_600),
    }
}

fn own_name(opened: &Opened) -> String {
    opened.node.name()
}

#[test]
fn a_node_keeps_its_id_its_cluster_its_certificate_and_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), &settings(Some("alpha"))).unwrap();
    let (id, cluster, serial) = (opened.node.id, opened.cluster, opened.node.credentials.identity().who().serial);
    let state = opened.node.state().unwrap();
    assert_eq!(state.nodes[&id].certificates[0].serial, serial.in_state(), "the state knows the certificate");
    opened.stop();
    let opened = open(dir.path(), &settings(None)).unwrap();
    assert_eq!((opened.node.id, opened.cluster, own_name(&opened).as_str()), (id, cluster, "alpha"));
    assert_eq!(opened.node.credentials.identity().who().serial, serial);
    assert_eq!(opened.records.own().unwrap(), Some(Own { node: id, cluster, is_founding: false }));
    opened.stop();
    let opened = open(dir.path(), &settings(Some("beta"))).unwrap();
    assert_eq!(own_name(&opened), "beta");
    let json = fs::read(dir.path().join("cluster.json")).unwrap();
    assert_eq!(serde_json::from_slice::<ClusterState>(&json).unwrap(), *opened.node.state().unwrap());
    opened.stop();
}

#[test]
fn a_lost_store_is_not_taken_for_a_new_cluster() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), &settings(None)).unwrap().stop();
    fs::remove_dir_all(dir.path().join(DB_NAME)).unwrap();
    let error = open(dir.path(), &settings(None)).err().unwrap().to_string();
    assert!(error.contains("cluster.json"), "{error}");
}

#[test]
fn the_state_of_a_release_without_raft_becomes_the_first_one() {
    let dir = tempfile::tempdir().unwrap();
    let (node, cluster) = (NodeId([1; 16]), ClusterId([2; 16]));
    let state = ClusterState::of_one_node(cluster, node, "old");
    let state = apply(&state, &Command::RenameNode { node, name: "older".to_owned() }).unwrap();
    {
        let db = sled::Config::new().path(dir.path().join("cluster.sled")).flush_every_ms(None).open().unwrap();
        db.insert(b"node", &node.0).unwrap();
        db.insert(b"state", serde_json::to_vec(&state).unwrap()).unwrap();
        db.flush().unwrap();
    }
    let opened = open(dir.path(), &settings(None)).unwrap();
    assert_eq!((opened.node.id, opened.cluster, own_name(&opened).as_str()), (node, cluster, "older"));
    opened.stop();
    assert!(!dir.path().join("cluster.sled").exists());
    let opened = open(dir.path(), &settings(None)).unwrap();
    assert_eq!(own_name(&opened), "older");
    opened.stop();
}

#[test]
fn a_join_that_was_cut_short_after_its_certificate_is_finished() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let opened = open(dir.path(), &settings(None)).unwrap();
    let id = opened.node.id;
    opened.stop();
    let (theirs, own, id) = (ClusterId([7; 16]), id, NodeId([8; 16]));
    let authority = Authority::found(theirs, other.path()).unwrap();
    let (key, holder, now) = (NewKey::make().unwrap(), Holder { role: Role::Peer, id }, SystemTime::now());
    let grant = Grant { holder, serial: Serial::random(), lifetime: Duration::from_secs(60) };
    let certificate = authority.sign(key.request(), &grant, now).unwrap();
    Identity::install(dir.path(), &key, &certificate, authority.certificate(), holder, now).unwrap();
    let opened = open(dir.path(), &settings(None)).unwrap();
    assert_eq!((opened.cluster, opened.node.id), (theirs, id), "under the id of the certificate");
    assert_ne!(id, own);
    assert!(opened.node.state().is_err(), "it waits for the state of its new cluster");
    assert!(opened.node.authority().is_none(), "the key of its own cluster is gone");
    opened.stop();
}

#[test]
fn an_expired_certificate_of_a_voter_is_signed_anew_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path(), &settings(None)).unwrap();
    let (id, cluster) = (opened.node.id, opened.cluster);
    opened.stop();
    let authority = Authority::open(dir.path()).unwrap().unwrap();
    let (key, holder) = (NewKey::make().unwrap(), Holder { role: Role::Peer, id });
    let then = SystemTime::now() - Duration::from_secs(3_600);
    let grant = Grant { holder, serial: Serial::random(), lifetime: Duration::from_secs(60) };
    let certificate = authority.sign(key.request(), &grant, then).unwrap();
    Identity::install(dir.path(), &key, &certificate, authority.certificate(), holder, then).unwrap();
    let opened = open(dir.path(), &settings(None)).unwrap();
    assert_eq!(opened.cluster, cluster);
    assert!(opened.node.credentials.identity().expires() > SystemTime::now());
    opened.stop();
}
