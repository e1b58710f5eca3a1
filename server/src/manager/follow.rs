//! How the bricks of a node follow the cluster state: two states in, what to do between them out. The state may have
//! moved by any number of commands since it was last looked at.

use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::cluster::state::{ClusterState, VolumeState};
use brickfs_common::ids::VolumeId;
use std::sync::Arc;

/// Something that a node does with its bricks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Serve the volume's bricks no more.
    Stop(VolumeId),
    /// Serve them.
    Start(VolumeMap),
    /// Go on serving them, by another map.
    Update(VolumeMap),
}

/// What leads from one state to the next. Stops come first: a brick may have gone from one volume to another.
pub fn plan_steps(old: &ClusterState, new: &ClusterState) -> Vec<Step> {
    let stops =
        started(old).filter(|volume| find(new, volume.map.id).is_none()).map(|volume| Step::Stop(volume.map.id));
    let others = started(new).filter_map(|volume| match find(old, volume.map.id) {
        None => Some(Step::Start(volume.map.clone())),
        Some(before) if before.map != volume.map => Some(Step::Update(volume.map.clone())),
        Some(_) => None,
    });
    stops.chain(others).collect()
}

fn started(state: &ClusterState) -> impl Iterator<Item = &VolumeState> {
    state.volumes.values().map(Arc::as_ref).filter(|volume| volume.started)
}

/// The started volume of an id: a volume that was deleted and made again under its name is another one.
fn find(state: &ClusterState, id: VolumeId) -> Option<&VolumeState> {
    started(state).find(|volume| volume.map.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::cluster::command::{Command, CreateVolume, NewBrick, apply};
    use brickfs_common::ids::{BrickId, ClusterId, NodeId};

    const NODE: NodeId = NodeId([1; 16]);

    fn run(state: &ClusterState, commands: &[Command]) -> ClusterState {
        commands.iter().fold(state.clone(), |state, command| apply(&state, command).unwrap())
    }

    fn create(name: &str, id: u8) -> Command {
        let brick = NewBrick { brick: BrickId([id; 16]), node: NODE, path: format!("/b/{name}/{id}"), weight: 1 };
        let (id, bricks) = (VolumeId([id; 16]), vec![brick]);
        Command::CreateVolume(CreateVolume { name: name.into(), id, replica: 1, stripe: 1, force: false, bricks })
    }

    fn start(name: &str) -> Command {
        Command::StartVolume { name: name.into() }
    }

    fn stop(name: &str) -> Command {
        Command::StopVolume { name: name.into() }
    }

    fn map(state: &ClusterState, name: &str) -> VolumeMap {
        state.volumes[name].map.clone()
    }

    #[test]
    fn bricks_follow_whatever_happened_in_between() {
        let empty = ClusterState::of_one_node(ClusterId([9; 16]), NODE, "node-1");
        let made = run(&empty, &[create("a", 1), create("b", 2)]);
        assert_eq!(plan_steps(&empty, &made), [], "nothing is served before it is started");
        let both = run(&made, &[start("a"), start("b")]);
        assert_eq!(plan_steps(&made, &both), [Step::Start(map(&both, "a")), Step::Start(map(&both, "b"))]);
        assert_eq!(plan_steps(&empty, &both).len(), 2, "as at the start of a node");
        let option = Command::SetOption { name: "a".into(), key: "reserve".into(), value: "5%".into() };
        let changed = run(&both, &[option, stop("b")]);
        let b = VolumeId([2; 16]);
        assert_eq!(plan_steps(&both, &changed), [Step::Stop(b), Step::Update(map(&changed, "a"))]);
        let again = run(&both, &[stop("b"), start("b")]);
        assert_eq!(plan_steps(&both, &again), [], "stopped and started while nobody looked");
        let other = run(&both, &[stop("b"), Command::DeleteVolume { name: "b".into() }, create("b", 3), start("b")]);
        assert_eq!(plan_steps(&both, &other), [Step::Stop(b), Step::Start(map(&other, "b"))], "another volume");
    }
}
