//! Members that were away for longer than the log reaches back.

use super::mesh::{Mesh, TIMING, name_in, node, rename, soon};
use crate::manager::raft::RaftStatus;
use crate::manager::raft::network::SNAPSHOT_PIECE_BYTES;
use brickfs_common::cluster::command::{Command, CreateVolume, NewBrick};
use brickfs_common::ids::{BrickId, VolumeId};

/// More than a snapshot and the entries kept before it.
const MANY: u32 = 3 * (TIMING.snapshot_entries + TIMING.kept_entries) as u32;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_that_was_away_for_long_catches_up_by_snapshot() {
    let mut mesh = Mesh::new(3, true).await;
    let leader = mesh.leader(&[]).await;
    let away = leader % 3 + 1;
    let first = mesh.member(leader).propose(rename(1, "alpha"), soon()).await.unwrap();
    mesh.caught_up(leader).await;
    let sent_before = mesh.snapshot_bytes(away);
    let old_end = mesh.member(away).status().await.last_log;
    mesh.kill(away);
    mesh.rename_often(leader, MANY).await;
    let purged = |status: &RaftStatus| status.purged > old_end;
    mesh.member(leader).wait_for(soon(), purged).await.expect("the log is purged");
    mesh.start(away);
    mesh.caught_up(leader).await;
    assert!(mesh.snapshot_bytes(away) > sent_before, "it caught up without a snapshot");
    assert_eq!(mesh.member(away).state(), mesh.member(leader).state());
    // The remembered commands came with it: it answers a repetition as the leader that it replaces did.
    mesh.kill(leader);
    let other = (1..=3).find(|number| ![leader, away].contains(number)).unwrap();
    let new = mesh.leader(&[leader]).await;
    assert!([away, other].contains(&new));
    assert_eq!(mesh.member(new).propose(rename(1, "alpha"), soon()).await.unwrap(), first);
    mesh.kill(away);
    mesh.start(away);
    mesh.caught_up(mesh.leader(&[leader]).await).await;
    assert_eq!(mesh.member(away).state(), mesh.member(other).state());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_large_state_goes_in_pieces() {
    let mut mesh = Mesh::new(1, true).await;
    let bricks = |volume: u16| {
        let brick = |number: u16| NewBrick {
            brick: BrickId((u128::from(volume) << 16 | u128::from(number)).to_be_bytes()),
            node: node(1),
            path: format!("/{}/{volume}/{number}", "long".repeat(240)),
            weight: 1,
        };
        (0..64).map(brick).collect()
    };
    for volume in 1..=24_u16 {
        let create = CreateVolume {
            name: format!("volume-{volume}"),
            id: VolumeId(u128::from(volume).to_be_bytes()),
            replica: 1,
            stripe: 1,
            force: false,
            bricks: bricks(volume),
        };
        let proposal = crate::manager::raft::Proposal {
            command: Command::CreateVolume(create),
            ..rename(u128::from(volume), "unused")
        };
        assert_eq!(mesh.member(1).propose(proposal, soon()).await.unwrap().refusal, None);
    }
    mesh.rename_often(1, TIMING.snapshot_entries as u32).await;
    mesh.member(1).wait_for(soon(), |status| status.purged > Some(10)).await.expect("the log is purged");
    mesh.add(2).await;
    mesh.caught_up(1).await;
    assert!(mesh.snapshot_bytes(2) as u64 > SNAPSHOT_PIECE_BYTES * 3 / 2, "{} bytes", mesh.snapshot_bytes(2));
    assert_eq!(mesh.member(2).state(), mesh.member(1).state());
    let name = name_in(&mesh.member(2));
    mesh.kill(2);
    mesh.start(2);
    assert_eq!(name_in(&mesh.member(2)), name);
}
