//! The volume of a playground: which node has which brick, making and mounting it.

use super::mounts;
use super::record::{NodePaths, node_name};
use crate::admin::{call, unexpected};
use crate::args::PlaygroundStart;
use anyhow::bail;
use brickfs_common::cluster::admin::{AdminCall, AdminResult};
use std::path::Path;

/// The node of a brick; both are counted from 1.
fn node_of_brick(brick: u16, nodes: u16) -> u16 {
    (brick - 1) % nodes + 1
}

/// Makes and starts the volume over fresh bricks.
pub fn make(dir: &Path, options: &PlaygroundStart) -> anyhow::Result<()> {
    let socket = NodePaths::of(dir, &node_name(1)).socket;
    let nodes = options.nodes;
    let brick = |i: u16| {
        let path = dir.join("bricks").join(format!("b{i}"));
        format!("{}:{}", node_name(node_of_brick(i, nodes)), path.display())
    };
    let create = AdminCall::VolumeCreate {
        name: options.volume.clone(),
        replica: options.replica,
        stripe: options.stripe,
        force: true,
        bricks: (1..=options.bricks).map(brick).collect(),
    };
    call(&socket, &create)?;
    match call(&socket, &AdminCall::VolumeStart { name: options.volume.clone() })? {
        AdminResult::Status(status) => match status.bricks.iter().find(|brick| !brick.online) {
            Some(brick) => {
                bail!("brick {} is not served: {}", brick.path, brick.error.as_deref().unwrap_or("unknown reason"))
            }
            None => Ok(()),
        },
        other => Err(unexpected(&other)),
    }
}

/// Mounts it by the node that has the bricks.
pub fn mount(dir: &Path, volume: &str, point: &Path) -> anyhow::Result<()> {
    let node = node_name(1);
    mounts::mount_volume(dir, &NodePaths::of(dir, &node).socket, &node, volume, point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bricks_go_round_the_nodes() {
        let nodes = |count: u16| (1..=5).map(|brick| node_of_brick(brick, count)).collect::<Vec<_>>();
        assert_eq!(nodes(3), [1, 2, 3, 1, 2]);
        assert_eq!(nodes(1), [1, 1, 1, 1, 1]);
    }
}
