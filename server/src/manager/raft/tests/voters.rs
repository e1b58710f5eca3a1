//! Changes of the members.

use super::mesh::{Mesh, name_in, node, rename, soon};
use crate::manager::raft::{ChangeError, RaftStatus, Role};
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn voters_go_from_one_to_three_and_back() {
    let mut mesh = Mesh::new(3, false).await;
    let one = mesh.member(1);
    mesh.rename_often(1, 3).await;
    mesh.caught_up(1).await;
    let learners: BTreeSet<_> = [node(2), node(3)].into();
    let status = mesh.member(2).status().await;
    assert_eq!((status.role, &status.learners), (Role::Learner, &learners));
    assert_eq!(mesh.member(2).state(), one.state());
    one.change_voters((1..=3).map(node).collect(), soon()).await.unwrap();
    let all_vote = |status: &RaftStatus| status.voters.len() == 3 && !status.is_changing_voters;
    for member in mesh.members() {
        member.wait_for(soon(), all_vote).await.unwrap();
    }
    let leader = mesh.leader(&[]).await;
    let left = leader % 3 + 1;
    mesh.member(leader).change_voters([node(left)].into(), soon()).await.unwrap();
    let alone = |status: &RaftStatus| status.role == Role::Leader && status.voters.len() == 1;
    let status = mesh.member(left).wait_for(soon(), alone).await.unwrap();
    assert_eq!(status.learners.len(), 2);
    mesh.member(left).propose(rename(1, "alone"), soon()).await.unwrap();
    for number in (1..=3).filter(|number| *number != left) {
        mesh.member(left).remove_learner(node(number), soon()).await.unwrap();
        mesh.kill(number);
    }
    mesh.member(left).propose(rename(2, "the last"), soon()).await.unwrap();
    assert_eq!(mesh.member(left).propose(rename(3, "the-last"), soon()).await.unwrap().refusal, None);
    assert_eq!(name_in(&mesh.member(left)), "the-last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stranger_is_not_made_a_voter() {
    let mesh = Mesh::new(1, true).await;
    let change = mesh.member(1).change_voters([node(1), node(9)].into(), soon()).await;
    assert_eq!(change, Err(ChangeError::NoLearner(node(9))));
    assert_eq!(mesh.member(1).change_voters(BTreeSet::new(), soon()).await, Err(ChangeError::NoVoters));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn founding_again_changes_nothing() {
    let mesh = Mesh::new(3, true).await;
    mesh.member(mesh.leader(&[]).await).propose(rename(1, "alpha"), soon()).await.unwrap();
    for member in mesh.members() {
        member.found(super::mesh::first_state(), soon()).await.unwrap();
    }
    mesh.caught_up(mesh.leader(&[]).await).await;
    assert!(mesh.members().iter().all(|member| name_in(member) == "alpha"));
}
