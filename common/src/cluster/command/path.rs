//! Paths of bricks as the cluster state holds them: their normal form, and how two lie to each other.

use crate::cluster::command::Refusal;
use std::path::Path;

/// Where one path lies relative to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathRelation {
    /// The same path.
    Same,
    /// Below the other.
    In,
    /// A directory on the way to the other.
    Above,
    /// Neither.
    Apart,
}

/// Compares two normalised paths component by component (`/a/bc` is not in `/a/b`).
pub fn compare_paths(path: &Path, other: &Path) -> PathRelation {
    match (path.starts_with(other), other.starts_with(path)) {
        (true, true) => PathRelation::Same,
        (true, false) => PathRelation::In,
        (false, true) => PathRelation::Above,
        (false, false) => PathRelation::Apart,
    }
}

/// Whether a path is absolute, not the root, and without `.`, `..`, empty components or control characters.
pub fn is_normal_path(path: &str) -> bool {
    path.len() <= 1024
        && !path.chars().any(char::is_control)
        && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|c| !matches!(c, "" | "." | "..")))
}

/// Refuses a brick path that is, is in or is above that of another brick of the same node.
pub fn check_apart(shown: &str, path: &str, other_volume: &str, other_path: &str) -> Result<(), Refusal> {
    // Most of many bricks are told apart by this, which costs far less than to compare by components.
    if !path.starts_with(other_path) && !other_path.starts_with(path) {
        return Ok(());
    }
    let side = match compare_paths(Path::new(path), Path::new(other_path)) {
        PathRelation::Apart => return Ok(()),
        PathRelation::Same => {
            return Err(Refusal::BrickUsed { brick: shown.to_owned(), volume: other_volume.to_owned() });
        }
        PathRelation::In => "in",
        PathRelation::Above => "above",
    };
    Err(Refusal::BrickOverlaps {
        brick: shown.to_owned(),
        side,
        other: other_path.to_owned(),
        volume: other_volume.to_owned(),
    })
}
