//! Nodes, tokens, clients, versions, and what a command costs.

use super::volume::NewBrick;
use super::*;
use crate::cluster::state::{CLIENTS_MAX, NODE_CERTIFICATES_MAX, NODES_MAX, NodeRole, TOKENS_MAX};
use crate::cluster::stored::read_state;
use crate::cluster::token::TokenHash;
use crate::ids::{BrickId, ClusterId, VolumeId};

const FIRST: NodeId = NodeId([1; 16]);
const HOUR_MS: u64 = 3_600_000;

fn id16(n: u64) -> [u8; 16] {
    u128::from(n).to_be_bytes()
}

fn serial(n: u64) -> CertSerial {
    CertSerial(id16(n))
}

fn hash(n: u8) -> TokenHash {
    TokenHash([n; 32])
}

fn token(n: u8, now_ms: u64) -> Command {
    Command::AddToken(AddToken { hash: hash(n), ends_ms: now_ms + HOUR_MS, made_by: "root@node-1".to_owned(), now_ms })
}

fn join(n: u8, now_ms: u64) -> AddNode {
    AddNode {
        token: hash(n),
        node: NodeId([n; 16]),
        name: format!("node-{n}"),
        addresses: vec![format!("10.0.0.{n}:24180")],
        role: NodeRole::Server,
        serial: serial(u64::from(n)),
        serial_ends_ms: now_ms + 90 * 24 * HOUR_MS,
        supports: 1,
        now_ms,
    }
}

fn client(name: &str, n: u64) -> AddClient {
    AddClient {
        name: name.to_owned(),
        volume: None,
        read_only: false,
        subdir: None,
        squash_root: true,
        serial: serial(n),
        ends_ms: 100 * HOUR_MS,
        now_ms: 5,
    }
}

fn new_volume(n: u64, bricks: u64, node: NodeId) -> Command {
    let brick = |i| NewBrick { brick: BrickId(id16(n * 100 + i)), node, path: format!("/bricks/{n}/{i}"), weight: 100 };
    Command::CreateVolume(CreateVolume {
        name: format!("v{n}"),
        id: VolumeId(id16(n)),
        replica: 1,
        stripe: 1,
        force: false,
        bricks: (1..=bricks).map(brick).collect(),
    })
}

fn one_node() -> ClusterState {
    ClusterState::of_one_node(ClusterId([9; 16]), FIRST, "node-1")
}

fn after(state: &ClusterState, commands: &[Command]) -> ClusterState {
    commands.iter().fold(state.clone(), |state, command| apply(&state, command).unwrap())
}

/// Nodes 1 and 2.
fn two_nodes() -> ClusterState {
    after(&one_node(), &[token(2, 0), Command::AddNode(join(2, 5))])
}

fn refusal(state: &ClusterState, command: Command) -> Refusal {
    let refusal = apply(state, &command).unwrap_err();
    assert!(!refusal.to_string().contains('\n'), "{refusal}");
    refusal
}

#[test]
fn a_node_joins_with_a_token_and_is_answered_again() {
    let state = two_nodes();
    let node = &state.nodes[&NodeId([2; 16])];
    assert_eq!((node.name.as_str(), node.joined_ms, node.addresses[0].as_str()), ("node-2", 5, "10.0.0.2:24180"));
    assert!(state.is_node_certificate(NodeId([2; 16]), serial(2)));
    let again = apply(&state, &Command::AddNode(AddNode { now_ms: 6, ..join(2, 5) })).unwrap();
    assert_eq!(again.nodes, state.nodes);
    let resigned = AddNode { serial: serial(77), ..join(2, 6) };
    let again = apply(&state, &Command::AddNode(resigned)).unwrap();
    assert!(again.is_node_certificate(NodeId([2; 16]), serial(77)));
    let text = serde_json::to_vec(&again).unwrap();
    assert_eq!(read_state(&text).unwrap(), again);
}

#[test]
fn strangers_do_not_join() {
    let state = after(&two_nodes(), &[token(3, 10)]);
    let with = |token: u8, change: fn(&mut AddNode)| {
        let mut add = AddNode { token: hash(token), ..join(3, 20) };
        change(&mut add);
        refusal(&state, Command::AddNode(add))
    };
    assert_eq!(with(9, |_| ()), Refusal::UnknownToken);
    assert_eq!(with(2, |_| ()), Refusal::TokenUsed);
    assert_eq!(with(3, |add| add.now_ms = 10 + HOUR_MS), Refusal::TokenEnded);
    assert!(matches!(with(3, |add| add.name = "node-1".to_owned()), Refusal::NodeNameUsed(_)));
    assert!(matches!(with(3, |add| add.name = "a\nb".to_owned()), Refusal::BadNodeName(_)));
    let second = NodeId([2; 16]);
    assert_eq!(with(3, |add| add.node = NodeId([2; 16])), Refusal::NodeExists(second));
    assert_eq!(with(3, |add| add.serial = serial(2)), Refusal::SerialUsed(serial(2)));
    assert!(matches!(with(3, |add| add.serial_ends_ms = 20), Refusal::BadEnd(_)));
    assert!(matches!(with(3, |add| add.addresses = vec!["nowhere".to_owned()]), Refusal::Address(_)));
    assert_eq!(with(3, |add| add.addresses.clear()), Refusal::NoAddress);
    assert_eq!(with(3, |add| add.addresses = vec!["a:1".to_owned(); 9]), Refusal::TooManyAddresses(9));
    assert!(matches!(with(3, |add| add.supports = 0), Refusal::NodeTooOld { .. }));
}

#[test]
fn tokens_end_and_are_bounded() {
    let open: Vec<Command> = (0..TOKENS_MAX as u8).map(|n| token(n, 0)).collect();
    let full = after(&one_node(), &open);
    assert_eq!(refusal(&full, token(200, 1)), Refusal::TooManyTokens);
    assert_eq!(after(&full, &[token(200, HOUR_MS)]).tokens.len(), 1);
    assert_eq!(refusal(&full, token(3, 1)), Refusal::TokenExists);
    assert!(after(&full, &[Command::DropEnded { now_ms: HOUR_MS }]).tokens.is_empty());
    let joined = after(&full, &[token(2, HOUR_MS), Command::AddNode(join(2, 2 * HOUR_MS - 1))]);
    assert_eq!(joined.tokens.len(), 1);
    let endless = AddToken { hash: hash(1), ends_ms: u64::MAX, made_by: String::new(), now_ms: 0 };
    assert!(matches!(refusal(&one_node(), Command::AddToken(endless.clone())), Refusal::BadEnd(_)));
    let odd = AddToken { ends_ms: 5, made_by: "a\nb".to_owned(), ..endless };
    assert_eq!(refusal(&one_node(), Command::AddToken(odd)), Refusal::BadMaker);
}

#[test]
fn a_node_leaves_without_bricks_and_its_certificates_are_revoked() {
    let (second, ends_ms) = (NodeId([2; 16]), 50 * HOUR_MS);
    let remove = |node| Command::RemoveNode { node, now_ms: 9 };
    let state = after(&two_nodes(), &[new_volume(7, 6, second)]);
    let refused = refusal(&state, remove(second)).to_string();
    assert!(refused.contains("/bricks/7/1 of volume 'v7'") && refused.contains("and 2 more"), "{refused}");
    let renew = Command::RenewCertificate(RenewCertificate { node: second, serial: serial(80), ends_ms, now_ms: 8 });
    let gone = after(&state, &[Command::DeleteVolume { name: "v7".to_owned() }, renew, remove(second)]);
    assert_eq!(gone.revoked.keys().copied().collect::<Vec<_>>(), [serial(2), serial(80)]);
    assert!(!gone.is_node_certificate(second, serial(80)));
    assert!(matches!(refusal(&gone, remove(FIRST)), Refusal::LastNode(_)));
    assert_eq!(refusal(&gone, remove(second)), Refusal::UnknownNode(second));
    // The token that it used does not let it in again, a new one does, with another certificate.
    assert_eq!(refusal(&gone, Command::AddNode(join(2, 10))), Refusal::TokenUsed);
    let fresh = AddNode { token: hash(3), ..join(2, 10) };
    let open = after(&gone, &[token(3, 9)]);
    assert_eq!(refusal(&open, Command::AddNode(fresh.clone())), Refusal::SerialUsed(serial(2)));
    assert!(apply(&open, &Command::AddNode(AddNode { serial: serial(81), ..fresh })).is_ok());
    let later = after(&gone, &[Command::DropEnded { now_ms: ends_ms }]);
    assert_eq!(later.revoked.keys().copied().collect::<Vec<_>>(), [serial(2)]);
}

#[test]
fn of_too_many_certificates_the_oldest_is_revoked() {
    let renew = |n: u64| {
        Command::RenewCertificate(RenewCertificate { node: FIRST, serial: serial(n), ends_ms: 10 * n, now_ms: 1 })
    };
    let all: Vec<Command> = (1..=NODE_CERTIFICATES_MAX as u64 + 1).map(renew).collect();
    let state = after(&one_node(), &all);
    assert_eq!(state.nodes[&FIRST].certificates.len(), NODE_CERTIFICATES_MAX);
    assert!(state.revoked.contains_key(&serial(1)) && !state.is_node_certificate(FIRST, serial(1)));
    assert_eq!(refusal(&state, renew(1)), Refusal::SerialUsed(serial(1)));
}

#[test]
fn clients_are_let_in_and_revoked() {
    let state = after(&one_node(), &[new_volume(7, 1, FIRST)]);
    let on_volume = AddClient { volume: Some("v7".to_owned()), subdir: Some("/home".to_owned()), ..client("alpha", 1) };
    let with = after(&state, &[Command::AddClient(on_volume.clone())]);
    let (name, found) = with.client_by_serial(serial(1)).unwrap();
    assert_eq!((name, found.volume), ("alpha", Some(VolumeId(id16(7)))));
    let refused = |add: AddClient| refusal(&with, Command::AddClient(add));
    assert!(matches!(refused(on_volume.clone()), Refusal::ClientExists(_)));
    assert_eq!(refused(client("beta", 1)), Refusal::SerialUsed(serial(1)));
    assert!(matches!(refused(client("b c", 2)), Refusal::BadClientName(_)));
    assert!(matches!(refused(AddClient { volume: Some("x".to_owned()), ..client("b", 2) }), Refusal::NoSuchVolume(_)));
    assert_eq!(refused(AddClient { subdir: Some("/x".to_owned()), ..client("b", 2) }), Refusal::SubdirWithoutVolume);
    let beside = AddClient { subdir: Some("/a/../b".to_owned()), name: "b".to_owned(), serial: serial(2), ..on_volume };
    assert!(matches!(refused(beside), Refusal::BadSubdir(_)));
    assert!(matches!(refused(AddClient { ends_ms: 5, ..client("b", 2) }), Refusal::BadEnd(_)));
    let remove = Command::RemoveClient { name: "alpha".to_owned(), now_ms: 10 };
    let gone = after(&with, std::slice::from_ref(&remove));
    assert!(gone.client_by_serial(serial(1)).is_none() && gone.revoked.contains_key(&serial(1)));
    assert!(matches!(refusal(&gone, remove), Refusal::NoSuchClient(_)));
}

#[test]
fn nodes_clients_and_revocations_are_bounded() {
    let mut state = one_node();
    for n in 2..=NODES_MAX as u8 {
        state = after(&state, &[token(n, 0), Command::AddNode(join(n, 5)), Command::DropEnded { now_ms: HOUR_MS }]);
    }
    state = after(&state, &[token(99, 0)]);
    assert_eq!(refusal(&state, Command::AddNode(join(99, 5))), Refusal::TooManyNodes);
    let clients: Vec<Command> =
        (0..CLIENTS_MAX as u64).map(|n| Command::AddClient(client(&n.to_string(), 1000 + n))).collect();
    let mut state = after(&state, &clients);
    assert_eq!(refusal(&state, Command::AddClient(client("more", 1))), Refusal::TooManyClients);
    state.revoked = (0..REVOKED_MAX as u64).map(|n| (serial(90_000 + n), 20)).collect();
    let remove = |now_ms| Command::RemoveClient { name: "7".to_owned(), now_ms };
    assert_eq!(refusal(&state, remove(10)), Refusal::TooManyRevoked);
    assert_eq!(after(&state, &[remove(20)]).revoked.len(), 1);
}

#[test]
fn addresses_change_and_versions_rise_with_all_nodes() {
    let state = two_nodes();
    let set = |addresses: &[&str]| Command::SetAddresses {
        node: NodeId([2; 16]),
        addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
    };
    let moved = after(&state, &[set(&["[::1]:24180", "host-2:24180"])]);
    assert_eq!(moved.nodes[&NodeId([2; 16])].addresses.len(), 2);
    assert!(matches!(refusal(&state, set(&["[::1]"])), Refusal::Address(_)));
    assert_eq!(refusal(&state, set(&[])), Refusal::NoAddress);
    let raise = |version| Command::RaiseVersion { version };
    assert_eq!(refusal(&state, raise(1)), Refusal::VersionNotHigher(1));
    let supports = |node, supports| Command::SetSupports { node, supports };
    let half = after(&state, &[supports(FIRST, 3)]);
    assert!(matches!(refusal(&half, raise(2)), Refusal::VersionUnsupported { supports: 1, wanted: 2, .. }));
    let raised = after(&half, &[supports(NodeId([2; 16]), 2), raise(2)]);
    assert_eq!(raised.cluster_version, 2);
    assert!(matches!(refusal(&raised, supports(FIRST, 1)), Refusal::NodeTooOld { .. }));
    assert!(matches!(refusal(&raised, raise(3)), Refusal::VersionUnsupported { .. }));
}

#[test]
fn commands_have_a_fixed_form() {
    let form = |command: &Command| serde_json::to_string(command).unwrap();
    let node = "01010101-0101-0101-0101-010101010101";
    assert_eq!(
        form(&Command::RemoveNode { node: FIRST, now_ms: 5 }),
        format!(r#"{{"remove_node":{{"node":"{node}","now_ms":5}}}}"#)
    );
    for command in
        [token(2, 0), Command::AddNode(join(2, 5)), Command::AddClient(client("a", 4)), new_volume(1, 1, FIRST)]
    {
        assert_eq!(serde_json::from_str::<Command>(&form(&command)).unwrap(), command);
    }
    assert!(serde_json::from_str::<Command>(r#"{"remove_node":{"node":"x","now_ms":5}}"#).is_err());
    assert!(serde_json::from_str::<Command>(r#"{"raise_version":{"version":1,"force":true}}"#).is_err());
}

/// A command copies what it changes, not the cluster: 1,000 volumes of 4 bricks, full books of clients and
/// revocations. The bounds are wide for a busy machine and a build without optimisation.
#[test]
fn a_command_in_a_large_cluster_is_cheap() {
    let mut state = one_node();
    for n in 1..=1000 {
        state = after(&state, &[new_volume(n, 4, FIRST)]);
    }
    state.revoked = (0..REVOKED_MAX as u64).map(|n| (serial(90_000 + n), 20)).collect();
    let start = Command::StartVolume { name: "v500".to_owned() };
    let cases = [("start", start, 1), ("token", token(1, 0), 1), ("create", new_volume(2000, 4, FIRST), 20)];
    for (what, command, bound_ms) in cases {
        let times = (0..20).map(|_| {
            let begun = std::time::Instant::now();
            apply(&state, &command).unwrap();
            begun.elapsed()
        });
        let least = times.min().unwrap();
        println!("{what}: {least:?}");
        assert!(least.as_millis() < bound_ms * 4, "{what}: {least:?}");
    }
}

#[test]
fn a_node_that_a_restored_cluster_waits_for_comes_back_under_its_id() {
    let mut state = after(&two_nodes(), &[new_volume(1, 1, NodeId([2; 16])), token(3, 5)]);
    let second = NodeId([2; 16]);
    let again = AddNode { token: hash(3), addresses: vec!["10.9.9.9:1".into()], serial: serial(50), ..join(2, 6) };
    let stranger = NodeId([77; 16]);
    assert_eq!(state.id_to_join(stranger, "node-2", &hash(3)), stranger, "a member is a member");
    assert!(matches!(apply(&state, &Command::AddNode(again.clone())), Err(Refusal::NodeExists(_))));
    state.nodes.get_mut(&second).unwrap().certificates.clear();
    assert_eq!(state.id_to_join(stranger, "node-2", &hash(3)), second);
    assert_eq!(state.id_to_join(stranger, "node-3", &hash(3)), stranger);
    let none = AddNode { addresses: Vec::new(), ..again.clone() };
    assert_eq!(apply(&state, &Command::AddNode(none)), Err(Refusal::NoAddress));
    let back = after(&state, &[Command::AddNode(again.clone())]);
    let node = &back.nodes[&second];
    assert_eq!((node.name.as_str(), node.addresses[0].as_str(), node.joined_ms), ("node-2", "10.9.9.9:1", 6));
    assert!(back.is_node_certificate(second, serial(50)) && back.volumes == state.volumes);
    assert_eq!(back.id_to_join(stranger, "node-2", &hash(3)), second, "its reply was lost");
    assert_eq!(back.id_to_join(stranger, "node-2", &hash(4)), stranger);
    let third = AddNode { node: stranger, serial: serial(51), ..again };
    assert!(apply(&back, &Command::AddNode(third)).is_err(), "a token is for one node");
}
