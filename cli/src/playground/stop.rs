//! Taking a playground down: mount, processes, cuts and files, also after a crash in the midst of anything.

use super::record::{NodePaths, Playground, PlaygroundNode, RECORD_NAME};
use super::{cut, forget, mounts, process, require_record};
use crate::args::Global;
use crate::output::print_done;
use anyhow::{Context as _, bail};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// What a playground makes in its directory beside its nodes' directories.
const MADE: [&str; 4] = ["bricks", "brickfs.log", "mount.err", RECORD_NAME];

/// Everything in its directory that a playground with these nodes makes, and `stop` removes. The record is last:
/// until then `stop` can be tried again.
pub fn made_names(nodes: impl Iterator<Item = String>) -> Vec<String> {
    nodes.chain(MADE.map(str::to_owned)).collect()
}

pub fn stop(global: &Global, dir: &Path) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    take_down(dir, &record)?;
    print_done(global, &format!("The playground in {} is stopped and removed.", dir.display()))
}

/// Unmounts, ends the processes and removes what the playground made; what others put into its
/// directory stays.
pub fn take_down(dir: &Path, record: &Playground) -> anyhow::Result<()> {
    if let Some(mount) = &record.mount {
        if mounts::is_brickfs_mount(mount) {
            mounts::unmount_even_if_busy(mount)?;
        }
        if record.is_mount_dir_made && mounts::find_mount(mount).is_none() {
            remove_if_empty(mount)?;
        }
    }
    // While nodes are cut off they may wait for each other at their end.
    if record.base_port.is_some() {
        cut::remove_table(dir)?;
    }
    end_nodes(dir, record)?;
    forget(dir);
    for name in made_names(record.nodes.iter().map(|node| node.name.clone())) {
        let path = dir.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => (),
        }
    }
    if record.is_dir_made {
        remove_if_empty(dir)?;
    }
    Ok(())
}

/// All at once: each may wait a while for calls of the others.
fn end_nodes(dir: &Path, record: &Playground) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let end = |node: &PlaygroundNode| process::end_brickd(node.pid, &NodePaths::of(dir, &node.name).state);
        let ends: Vec<_> = record.nodes.iter().map(|node| scope.spawn(move || end(node))).collect();
        ends.into_iter().try_for_each(|end| end.join().unwrap_or_else(|_| bail!("ending a node panicked")))
    })
}

fn remove_if_empty(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::playground::record::{RECORD_VERSION, node_name};

    #[test]
    fn taking_down_leaves_what_others_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("p");
        for made in ["bricks/b1", "node-1/state", "node-2"] {
            fs::create_dir_all(state.join(made)).unwrap();
        }
        fs::write(state.join("mine.txt"), "x").unwrap();
        let record = Playground {
            version: RECORD_VERSION,
            volume: "demo".to_owned(),
            mount: None,
            is_mount_dir_made: false,
            is_dir_made: true,
            base_port: None,
            nodes: vec![PlaygroundNode { name: node_name(1), pid: 0 }],
            cuts: Vec::new(),
        };
        record.save(&state).unwrap();
        take_down(&state, &record).unwrap();
        assert!(state.join("mine.txt").exists() && state.join("node-2").exists(), "not its own");
        assert!(!state.join("bricks").exists() && !state.join("node-1").exists());
        assert!(!state.join(RECORD_NAME).exists());
    }
}
