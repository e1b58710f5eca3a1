//! Three members: elections, cuts, kills, and what becomes of commands meanwhile.

use super::mesh::{Mesh, PATIENCE, name_in, node, rename, soon};
use crate::manager::raft::{Follower, Outcome, ProposeError, Published, RaftStatus, Role};
use brickfs_common::cluster::state::ClusterState;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_the_leader_was_told_is_the_state_of_all() {
    let mesh = Mesh::new(3, true).await;
    let leader = mesh.leader(&[]).await;
    let mut seen: watch::Receiver<Published> = mesh.member(leader % 3 + 1).watch();
    let outcome = mesh.member(leader).propose(rename(1, "alpha"), soon()).await.unwrap();
    assert_eq!(outcome, Outcome { number: 1, refusal: None });
    mesh.member(leader).read_barrier(soon()).await.unwrap();
    mesh.caught_up(leader).await;
    for number in 1..=3 {
        let member = mesh.member(number);
        assert_eq!(member.state(), mesh.member(leader).state());
        assert_eq!(name_in(&member), "alpha");
        assert_eq!(member.leader(), Some(node(leader)));
        let json = std::fs::read(mesh.json_path(number)).unwrap();
        assert_eq!(serde_json::from_slice::<ClusterState>(&json).unwrap(), *member.state().unwrap());
    }
    let renamed = |state: &Published| state.as_ref().is_some_and(|state| state.applied == 1);
    timeout(PATIENCE, seen.wait_for(renamed)).await.unwrap().unwrap();
    let follower = mesh.member(leader % 3 + 1);
    let asked_wrongly = ProposeError::NotLeader { leader: Some(node(leader)) };
    assert_eq!(follower.propose(rename(2, "beta"), soon()).await, Err(asked_wrongly.clone()));
    assert_eq!(follower.read_barrier(soon()).await, Err(asked_wrongly));
    let status = mesh.member(leader).status().await;
    assert_eq!((status.role, status.voters.len()), (Role::Leader, 3));
    assert!(status.last_log.is_some() && status.committed == status.last_log, "{status:?}");
    let caught_up = Follower { matched: status.last_log, lag: 0 };
    assert_eq!(status.followers.values().collect::<Vec<_>>(), [&caught_up; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_leader_that_was_cut_off_gives_up_its_uncommitted_command() {
    let mesh = Mesh::new(3, true).await;
    let old = mesh.leader(&[]).await;
    mesh.cut_off(old);
    let lost_index = mesh.member(old).status().await.last_log.unwrap() + 1;
    let proposer = mesh.member(old);
    let lost = tokio::spawn(async move { proposer.propose(rename(1, "lost"), soon()).await });
    let appended = |status: &RaftStatus| status.last_log >= Some(lost_index);
    mesh.member(old).wait_for(soon(), appended).await.unwrap();
    let new = mesh.leader(&[old]).await;
    mesh.member(new).propose(rename(2, "kept"), soon()).await.unwrap();
    // Cut off, the old one sees that no quorum answers it, says so and answers no reads.
    mesh.member(old).wait_for(soon(), |status| status.leader.is_none()).await.unwrap();
    let in_a_while = Instant::now() + Duration::from_millis(200);
    assert_eq!(mesh.member(old).propose(rename(3, "x"), in_a_while).await, Err(ProposeError::NoQuorum));
    assert_eq!(mesh.member(old).read_barrier(soon()).await, Err(ProposeError::NoQuorum));
    assert_eq!(name_in(&mesh.member(old)), "first");
    assert!(!lost.is_finished());
    mesh.reconnect(old);
    let told = lost.await.unwrap();
    assert!(matches!(told, Err(ProposeError::NotLeader { .. })), "{told:?}");
    let new = mesh.leader(&[]).await;
    mesh.caught_up(new).await;
    for member in mesh.members() {
        assert_eq!(name_in(&member), "kept");
        assert_eq!(member.state().unwrap().applied, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_repeated_command_runs_once_also_after_the_leader_died() {
    let mut mesh = Mesh::new(3, true).await;
    let old = mesh.leader(&[]).await;
    let first = mesh.member(old).propose(rename(1, "alpha"), soon()).await.unwrap();
    let refused = mesh.member(old).propose(rename(2, "a:b"), soon()).await.unwrap();
    assert!(refused.refusal.is_some());
    mesh.member(old).propose(rename(3, "beta"), soon()).await.unwrap();
    assert_eq!(mesh.member(old).propose(rename(1, "alpha"), soon()).await.unwrap(), first);
    mesh.kill(old);
    let new = mesh.leader(&[old]).await;
    assert_eq!(mesh.member(new).propose(rename(1, "alpha"), soon()).await.unwrap(), first);
    assert_eq!(mesh.member(new).propose(rename(2, "a:b"), soon()).await.unwrap(), refused);
    mesh.start(old);
    mesh.caught_up(new).await;
    for member in mesh.members() {
        assert_eq!((name_in(&member).as_str(), member.state().unwrap().applied), ("beta", 2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn outcomes_are_the_same_whoever_leads() {
    let mut mesh = Mesh::new(3, true).await;
    let names = ["alpha", "a:b", "beta", "", "gamma"];
    let mut first = Vec::new();
    for round in 0..3 {
        let mut outcomes = Vec::new();
        for (id, name) in (1..).zip(names) {
            outcomes.push(mesh.propose(rename(id, name)).await);
        }
        if round == 0 {
            first = outcomes;
            assert_eq!(first.iter().filter(|outcome| outcome.refusal.is_some()).count(), 2);
        } else {
            assert_eq!(outcomes, first);
        }
        let leader = mesh.leader(&[]).await;
        mesh.kill(leader);
        mesh.leader(&[leader]).await;
        mesh.start(leader);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_majority_nothing_is_done() {
    let mut mesh = Mesh::new(3, true).await;
    let leader = mesh.leader(&[]).await;
    let others: Vec<u64> = (1..=3).filter(|number| *number != leader).collect();
    others.iter().for_each(|number| mesh.kill(*number));
    let deadline = Instant::now() + Duration::from_secs(2);
    assert_eq!(mesh.member(leader).propose(rename(1, "alone"), deadline).await, Err(ProposeError::NoQuorum));
    assert_eq!(name_in(&mesh.member(leader)), "first");
    mesh.start(others[0]);
    mesh.leader(&[others[1]]).await;
}
