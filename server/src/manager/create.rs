//! Makes a volume: every check of every brick first, then a record of what is about to be made, then the
//! bricks, then the command. What an interrupted or failed create leaves is put away by that record.

use crate::brick::format::{BrickIdentity, DOT_DIR, initialise, read_identity};
use crate::manager::CommandId;
use crate::manager::brick_path::{BrickPath, CheckedBrick, check_brick, check_each_other, parse_brick};
use crate::manager::records::{PendingBrick, PendingCreate, Records};
use anyhow::{Context as _, bail};
use brickfs_common::cluster::command::{Command, CreateVolume, NewBrick, apply, check_new_volume};
use brickfs_common::cluster::state::{ClusterState, NodeRole, VolumeState};
use brickfs_common::ids::{BrickId, NodeId, VolumeId};
use brickfs_common::volume_spec::shorten;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// What was asked for.
pub struct Order<'a> {
    /// Name of the volume.
    pub name: &'a str,
    /// Bricks of a set.
    pub replica: u16,
    /// Sets of a stripe group.
    pub stripe: u16,
    /// Take doubtful bricks.
    pub force: bool,
    /// The bricks as typed.
    pub bricks: &'a [String],
}

/// A brick that passed the checks of its node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Site {
    /// The node.
    pub node: NodeId,
    /// The directory, normalised.
    pub path: String,
    /// Device of its file system: bricks of one share its room.
    pub device: u64,
    /// Size of that file system.
    pub total_bytes: u64,
}

/// The bricks of an order with their nodes, in order, as far as that can be said without a look at any disk.
pub fn parse_bricks(state: &ClusterState, order: &Order<'_>) -> anyhow::Result<Vec<(NodeId, BrickPath)>> {
    check_new_volume(state, order.name, order.replica, order.stripe, order.bricks.len())?;
    let mut parsed: Vec<(NodeId, BrickPath)> = Vec::with_capacity(order.bricks.len());
    for text in order.bricks {
        let brick = parse_brick(text)?;
        let Some(node) = state.node_by_name(&brick.node) else {
            let names: Vec<&str> = state.nodes.values().map(|node| node.name.as_str()).collect();
            bail!("brick {brick}: there is no node '{}'; there is {}", brick.node, shorten(&names.join(", ")));
        };
        if state.nodes.get(&node).is_some_and(|node| node.role == NodeRole::Witness) {
            bail!("brick {brick}: node '{}' is a witness, which votes and has no bricks", brick.node);
        }
        if parsed.iter().any(|(_, other)| *other == brick) {
            bail!("brick {brick} is given twice: every brick needs a directory of its own");
        }
        parsed.push((node, brick));
    }
    Ok(parsed)
}

/// Checks bricks of this node against its disks. Changes nothing.
pub fn check_here(
    state: &ClusterState,
    node: NodeId,
    volume: &str,
    force: bool,
    bricks: Vec<BrickPath>,
) -> anyhow::Result<Vec<Site>> {
    let checked: anyhow::Result<Vec<CheckedBrick>> =
        bricks.into_iter().map(|brick| check_brick(brick, state, force)).collect();
    let checked = checked?;
    check_each_other(&checked, volume)?;
    let site = |one: &CheckedBrick| {
        let path = one.brick.path.clone();
        Site { node, path, device: one.device, total_bytes: one.total_bytes }
    };
    Ok(checked.iter().map(site).collect())
}

/// Decides weights and ids of the bricks. Bricks that share a disk share its capacity. The volume has the id of its
/// command, so that a repetition finds it.
pub fn decide(id: &CommandId, order: &Order<'_>, sites: &[Site]) -> CreateVolume {
    let bricks = sites
        .iter()
        .map(|one| {
            let shares = |other: &&Site| (other.node, other.device) == (one.node, one.device);
            let sharing = sites.iter().filter(shares).count() as u64;
            NewBrick {
                brick: BrickId(rand::random()),
                node: one.node,
                path: one.path.clone(),
                weight: one.total_bytes / sharing.max(1),
            }
        })
        .collect();
    CreateVolume {
        name: order.name.to_owned(),
        id: VolumeId(*id),
        replica: order.replica,
        stripe: order.stripe,
        force: order.force,
        bricks,
    }
}

/// Makes this node's bricks of a volume that is to be committed then. On an error nothing is left of them; whatever
/// becomes of the command, `end_create` has to be told.
pub fn make_here(
    records: &Records,
    state: &ClusterState,
    node: NodeId,
    id: &CommandId,
    create: &CreateVolume,
) -> anyhow::Result<()> {
    let name = |node: &NodeId| state.nodes.get(node).map(|node| node.name.clone()).unwrap_or_default();
    let own = create.bricks.iter().filter(|brick| brick.node == node);
    let own: Vec<BrickPath> = own.map(|brick| BrickPath { node: name(&node), path: brick.path.clone() }).collect();
    let mut pending = PendingCreate { volume: create.id, command: Some(*id), bricks: Vec::with_capacity(own.len()) };
    for brick in own {
        // Looked at once more: this may be another node than the one that has asked for the checks.
        let checked = check_brick(brick, state, create.force)?;
        let old_mode = checked.existing.map(|(mode, _)| mode);
        pending.bricks.push(PendingBrick { path: checked.brick.path.into(), old_mode });
    }
    let next = apply(state, &Command::CreateVolume(create.clone()))?;
    let Some(volume) = next.volumes.get(&create.name) else { bail!("the new volume is not in the new state") };
    records.put_pending(&pending)?;
    if let Err(error) = make_bricks(volume, node, &pending) {
        undo(&pending);
        records.drop_pending(&pending.volume)?;
        return Err(error);
    }
    Ok(())
}

/// The command was applied: its bricks are the volume's. Or it was refused: they are nobody's and put away.
pub fn end_create(records: &Records, volume: VolumeId, is_done: bool) -> anyhow::Result<()> {
    if !is_done {
        let pending = records.pending()?;
        pending.iter().filter(|pending| pending.volume == volume).for_each(undo);
    }
    records.drop_pending(&volume)
}

fn make_bricks(volume: &VolumeState, node: NodeId, pending: &PendingCreate) -> anyhow::Result<()> {
    for set in &volume.map.sets {
        for member in set.members.iter().filter(|member| member.node == node) {
            let path = Path::new(&member.path);
            let existed = pending.bricks.iter().any(|brick| brick.path == path && brick.old_mode.is_some());
            if !existed {
                let made = fs::DirBuilder::new().mode(0o755).create(path);
                made.with_context(|| format!("cannot make brick directory {}", path.display()))?;
                if let Some(parent) = path.parent() {
                    File::open(parent)?.sync_all()?;
                }
            }
            let identity = BrickIdentity {
                cluster: volume.map.cluster,
                volume: volume.map.id,
                volume_name: volume.map.name.clone(),
                brick: member.brick,
                incarnation: member.incarnation,
                set: set.id,
                is_root_home: set.id == volume.map.root_home,
            };
            initialise(path, &identity)
                .with_context(|| format!("cannot make brick {}:{}", member.node_name, member.path))?;
        }
    }
    Ok(())
}

fn undo(pending: &PendingCreate) {
    for brick in &pending.bricks {
        if let Err(error) = undo_brick(&pending.volume, brick) {
            let path = brick.path.display().to_string();
            tracing::warn!(path, error = format!("{error:#}"), "a brick directory was left behind");
        }
    }
}

/// Takes our marks off one brick directory, unless it is another volume's by now.
fn undo_brick(volume: &VolumeId, brick: &PendingBrick) -> anyhow::Result<()> {
    let path = &brick.path;
    if !path.is_dir() {
        return Ok(());
    }
    let dot = path.join(DOT_DIR);
    // `format` is written last: without it the create did not finish this brick, and it is nobody's.
    if dot.join("format").exists() {
        match read_identity(path)? {
            Some(identity) if identity.volume != *volume => bail!("it belongs to volume '{}'", identity.volume_name),
            _ => (),
        }
    }
    // A create takes empty directories alone. What has come since came through a volume, whatever the record says.
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name != DOT_DIR {
            bail!("'{}' is in it, so it was used: nothing of it is removed", name.to_string_lossy());
        }
    }
    if dot.exists() {
        fs::remove_dir_all(&dot)?;
    }
    match brick.old_mode {
        None => fs::remove_dir(path)?,
        Some(mode) => {
            remove_our_xattrs(path)?;
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

fn remove_our_xattrs(path: &Path) -> anyhow::Result<()> {
    let mut names = vec![0u8; 1 << 16];
    let length = match rustix::fs::listxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    for name in names[..length].split(|b| *b == 0).filter(|name| name.starts_with(b"trusted.brickfs.")) {
        rustix::fs::removexattr(path, name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::cluster_db::ClusterDb;
    use brickfs_common::ids::ClusterId;

    const NODE: NodeId = NodeId([1; 16]);

    fn records(dir: &Path) -> Records {
        Records::open(&ClusterDb::open(&dir.join("db")).unwrap()).unwrap()
    }

    fn state() -> ClusterState {
        ClusterState::of_one_node(ClusterId([2; 16]), NODE, "node-1")
    }

    fn prepare(records: &Records, bricks: &[String]) -> anyhow::Result<CreateVolume> {
        let order = Order { name: "demo", replica: 1, stripe: 1, force: true, bricks };
        let parsed = parse_bricks(&state(), &order)?.into_iter().map(|(_, brick)| brick).collect();
        let sites = check_here(&state(), NODE, order.name, order.force, parsed)?;
        let create = decide(&[1; 16], &order, &sites);
        make_here(records, &state(), NODE, &[1; 16], &create)?;
        Ok(create)
    }

    #[test]
    fn a_failed_check_of_one_brick_leaves_nothing_of_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(dir.path());
        fs::write(dir.path().join("b2"), "a file").unwrap();
        let bricks = ["b1", "b2"].map(|name| format!("node-1:{}/{name}", dir.path().display()));
        assert!(prepare(&records, &bricks).is_err());
        assert!(!dir.path().join("b1").exists() && records.pending().unwrap().is_empty());
        let error = prepare(&records, &["node-9:/x".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("node-9"), "{error}");
    }

    #[test]
    fn a_refused_create_is_put_away_and_a_done_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(dir.path());
        let bricks = [format!("node-1:{}/b1", dir.path().display())];
        let refused = prepare(&records, &bricks).unwrap();
        assert!(dir.path().join("b1/.brickfs").exists() && records.pending().unwrap().len() == 1);
        end_create(&records, refused.id, false).unwrap();
        assert!(!dir.path().join("b1").exists() && records.pending().unwrap().is_empty());
        let done = prepare(&records, &bricks).unwrap();
        end_create(&records, done.id, true).unwrap();
        assert!(dir.path().join("b1/.brickfs").exists() && records.pending().unwrap().is_empty());
    }

    #[test]
    fn a_brick_with_files_is_never_put_away() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(dir.path());
        let create = prepare(&records, &[format!("node-1:{}/b1", dir.path().display())]).unwrap();
        fs::write(dir.path().join("b1/file"), "data").unwrap();
        end_create(&records, create.id, false).unwrap();
        assert!(dir.path().join("b1/.brickfs/format").exists());
        assert_eq!(fs::read(dir.path().join("b1/file")).unwrap(), b"data");
    }

    #[test]
    fn what_an_interrupted_create_left_is_put_away() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(dir.path());
        let (made, kept) = (dir.path().join("made"), dir.path().join("kept"));
        for brick in [&made, &kept] {
            fs::create_dir_all(brick.join(".brickfs/handles")).unwrap();
        }
        let bricks = vec![
            PendingBrick { path: made.clone(), old_mode: None },
            PendingBrick { path: kept.clone(), old_mode: Some(0o700) },
            PendingBrick { path: dir.path().join("never"), old_mode: None },
        ];
        let volume = VolumeId([5; 16]);
        records.put_pending(&PendingCreate { volume, command: None, bricks }).unwrap();
        end_create(&records, volume, false).unwrap();
        assert!(!made.exists() && kept.is_dir() && !kept.join(".brickfs").exists());
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o7777, 0o700);
        assert!(records.pending().unwrap().is_empty());
    }
}
