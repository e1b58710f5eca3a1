//! A member that is closed and opened again has the log, the state and the remembered commands it had.

use super::mesh::{NoLink, Node, TIMING, first_state, name_in, node, open_member, rename, soon};
use crate::manager::cluster_db::ClusterDb;
use crate::manager::raft::log_store::LogStore;
use crate::manager::raft::state_machine::StateMachine;
use crate::manager::raft::types::{SnapshotMeta, Types};
use crate::manager::raft::{MESSAGE_MAX_BYTES, RaftCall, ReceiveError, Role, forget_cluster};
use openraft::RaftSnapshotBuilder;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::testing::blank_ent;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn open(dir: &Path) -> Node {
    open_member(dir, node(1), Arc::new(NoLink), TIMING).unwrap()
}

#[tokio::test]
async fn everything_is_there_after_each_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut outcomes = Vec::new();
    // Past the snapshots and purges of TIMING.
    for id in 0..60_u128 {
        let name = if id % 7 == 3 { "a:b".to_owned() } else { format!("name-{id}") };
        let running = open(dir.path());
        let member = &running.member;
        member.found(first_state(), soon()).await.unwrap();
        let before = member.status().await;
        outcomes.push(member.propose(rename(id, &name), soon()).await.unwrap());
        let again = member.propose(rename(id / 2, "other"), soon()).await.unwrap();
        assert_eq!(again, outcomes[id as usize / 2]);
        let (state, after) = (member.state(), member.status().await);
        assert!(after.last_log > before.last_log && after.term == before.term);
        drop(running);
        let running = open(dir.path());
        running.member.wait_leader(soon()).await.unwrap();
        let status = running.member.status().await;
        assert_eq!(running.member.state(), state);
        assert!(status.last_log >= after.last_log && status.applied >= after.applied, "{status:?} after {after:?}");
        assert_eq!(status.role, Role::Leader);
    }
    let refused = outcomes.iter().filter(|outcome| outcome.refusal.is_some()).count();
    assert_eq!(refused, (0..60).filter(|id| id % 7 == 3).count());
}

#[tokio::test]
async fn a_member_that_is_dropped_in_the_middle_loses_nothing_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0_u128;
    for round in 0..20_u64 {
        let running = open(dir.path());
        let member = running.member.clone();
        member.found(first_state(), soon()).await.unwrap();
        if acknowledged > 0 {
            let name = name_in(&member);
            let number: u128 = name.strip_prefix("name-").unwrap().parse().unwrap();
            assert!(number >= acknowledged, "{name} but {acknowledged} was acknowledged");
            acknowledged = number;
        }
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let proposer = tokio::spawn(async move {
            for id in acknowledged + 1.. {
                match member.propose(rename(id, &format!("name-{id}")), soon()).await {
                    Ok(outcome) => drop(sender.send((id, outcome))),
                    Err(_) => return,
                }
            }
        });
        for _ in 0..=round % 5 {
            acknowledged = receiver.recv().await.unwrap().0;
        }
        drop(running);
        proposer.await.unwrap();
        while let Ok((id, _)) = receiver.try_recv() {
            acknowledged = id;
        }
    }
    assert!(acknowledged >= 20);
}

#[tokio::test]
async fn an_installation_that_a_crash_cut_short_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from.sled"), dir.path().join("to.sled"));
    let json = dir.path().join("cluster.json");
    let db = ClusterDb::open(&from).unwrap();
    let mut machine = StateMachine::open(&db, json.clone()).unwrap();
    machine.apply((0..5).map(|index| blank_ent::<Types>(1, node(1), index))).await.unwrap();
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let db = ClusterDb::open(&to).unwrap();
    let tree = db.tree("snapshot").unwrap();
    tree.insert("meta", serde_json::to_vec::<SnapshotMeta>(&snapshot.meta).unwrap()).unwrap();
    tree.insert("data", snapshot.snapshot.into_inner()).unwrap();
    let mut machine = StateMachine::open(&db, json).unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, snapshot.meta.last_log_id);
}

#[tokio::test]
async fn a_cluster_is_forgotten_whole() {
    let dir = tempfile::tempdir().unwrap();
    {
        let running = open(dir.path());
        running.member.found(first_state(), soon()).await.unwrap();
    }
    {
        let db = ClusterDb::open(&dir.path().join("cluster.sled")).unwrap();
        // A crash after the first of the trees went.
        db.tree("raft").unwrap().insert("forgetting", b"").unwrap();
        db.tree("machine").unwrap().clear().unwrap();
    }
    {
        let running = open(dir.path());
        assert_eq!(running.member.state(), None);
        let status = running.member.status().await;
        assert_eq!((status.last_log, status.voters.len(), status.term), (None, 0, 0));
        running.member.found(first_state(), soon()).await.unwrap();
    }
    let db = ClusterDb::open(&dir.path().join("cluster.sled")).unwrap();
    forget_cluster(&db).await.unwrap();
    let mut log = LogStore::open(&db).unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, None);
    assert_eq!(log.read_vote().await.unwrap(), None);
}

#[tokio::test]
async fn a_stopped_member_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let running = open(dir.path());
    running.member.found(first_state(), soon()).await.unwrap();
    running.member.stop().await;
    let told = tokio::time::timeout(Duration::from_secs(5), running.member.propose(rename(1, "alpha"), soon()));
    assert_eq!(told.await.unwrap(), Err(crate::manager::raft::ProposeError::Stopped));
    assert_eq!(running.member.leader(), None);
}

#[tokio::test]
async fn a_message_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = open(dir.path());
    for call in [RaftCall::Append, RaftCall::Vote, RaftCall::Snapshot] {
        let large = vec![0; MESSAGE_MAX_BYTES + 1];
        let refused = running.member.receive(call, large.into()).await;
        assert_eq!(refused, Err(ReceiveError::TooLarge(MESSAGE_MAX_BYTES + 1)));
        let refused = running.member.receive(call, vec![b'{'; 100].into()).await;
        assert!(matches!(refused, Err(ReceiveError::Malformed(_))), "{refused:?}");
    }
    running.member.found(first_state(), soon()).await.unwrap();
}
