//! Checks of a brick given as `node:/path`, before anything is made on it: the path's form, that its
//! directory can be made or is empty, whose it is, and that no other brick is in or around it. Nothing
//! here changes anything.

use crate::brick::format::{DOT_DIR, read_identity};
use anyhow::{Context as _, bail};
use brickfs_common::cluster::command::{check_apart, is_normal_path};
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::volume_spec::{is_node_name, shorten};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A brick as typed: the node's name and the normalised path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BrickPath {
    /// The node.
    pub node: String,
    /// The directory.
    pub path: String,
}

/// A brick path that passed every check.
#[derive(Debug)]
pub struct CheckedBrick {
    /// The brick as it was given.
    pub brick: BrickPath,
    /// Where it really is, with no symbolic link on the way.
    pub resolved: PathBuf,
    /// The directory's mode and (device, inode), or `None` where it is to be made.
    pub existing: Option<(u32, (u64, u64))>,
    /// Device of the file system that it is or will be on.
    pub device: u64,
    /// Size of that file system.
    pub total_bytes: u64,
}

impl std::fmt::Display for BrickPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.node, self.path)
    }
}

/// Reads `node:/path`. Doubled and trailing slashes and `.` are taken out; `..` is refused, because where
/// it leads depends on links.
pub fn parse_brick(text: &str) -> anyhow::Result<BrickPath> {
    let Some((node, path)) = text.split_once(':') else {
        bail!("'{}' is not a brick: give NODE:/PATH", shorten(text));
    };
    if !is_node_name(node) || !path.starts_with('/') {
        bail!("'{}' is not a brick: give NODE:/PATH with an absolute path", shorten(text));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let path = format!("/{}", parts.join("/"));
    if !is_normal_path(&path) {
        bail!("brick '{}': a path must not be '/' or hold '..' or control characters", shorten(text));
    }
    Ok(BrickPath { node: node.to_owned(), path })
}

/// Checks a brick of this node against its disk and the bricks of `state`.
pub fn check_brick(brick: BrickPath, state: &ClusterState, force: bool) -> anyhow::Result<CheckedBrick> {
    let path = Path::new(&brick.path);
    let (Some(parent), Some(last)) = (path.parent(), path.file_name()) else { bail!("brick {brick}: not a path") };
    let parent_meta = match fs::metadata(parent) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => bail!("brick {brick}: {} is not a directory", parent.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("brick {brick}: its parent directory {} does not exist: make it first", parent.display())
        }
        Err(error) => bail!("brick {brick}: cannot look at {}: {error}", parent.display()),
    };
    let resolved = fs::canonicalize(parent).with_context(|| format!("brick {brick}: cannot resolve"))?.join(last);
    let existing = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => bail!("brick {brick} is a symbolic link: give the directory itself"),
        Ok(meta) if !meta.is_dir() => bail!("brick {brick} is not a directory"),
        Ok(meta) => Some(meta),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => bail!("brick {brick}: {error}"),
    };
    check_against_bricks(&brick, &resolved, state)?;
    check_ancestors(&brick, &resolved)?;
    if existing.is_some() {
        check_contents(&brick, state)?;
    }
    let device = existing.as_ref().map_or(parent_meta.dev(), |meta| meta.dev());
    if !force && device == fs::metadata("/").context("cannot look at /")?.dev() {
        bail!(
            "brick {brick} is on the root file system, which a full volume would fill: give a directory on a disk of \
             its own, or --force"
        );
    }
    let statvfs = rustix::fs::statvfs(if existing.is_some() { path } else { parent })?;
    Ok(CheckedBrick {
        resolved,
        existing: existing.map(|meta| (meta.permissions().mode() & 0o7777, (meta.dev(), meta.ino()))),
        device,
        total_bytes: statvfs.f_blocks.saturating_mul(statvfs.f_frsize),
        brick,
    })
}

/// Refuses bricks of one order that are the same directory or in each other once links are followed.
pub fn check_each_other(bricks: &[CheckedBrick], volume: &str) -> anyhow::Result<()> {
    for (i, one) in bricks.iter().enumerate() {
        for other in &bricks[..i] {
            if one.brick == other.brick {
                bail!("brick {} is given twice: every brick needs a directory of its own", one.brick);
            }
            let same = |existing: &Option<(u32, (u64, u64))>| existing.as_ref().map(|(_, identity)| *identity);
            if one.existing.is_some() && same(&one.existing) == same(&other.existing) {
                bail!("bricks {} and {} are the same directory", other.brick, one.brick);
            }
            check_apart(&one.brick.to_string(), &text(&one.resolved), volume, &text(&other.resolved))?;
        }
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn check_against_bricks(brick: &BrickPath, resolved: &Path, state: &ClusterState) -> anyhow::Result<()> {
    let node = state.node_by_name(&brick.node);
    for (volume, used) in state.bricks().filter(|(_, used)| Some(used.node) == node) {
        let used_resolved = fs::canonicalize(&used.path).unwrap_or_else(|_| PathBuf::from(&used.path));
        check_apart(&brick.to_string(), &brick.path, volume, &used.path)?;
        check_apart(&brick.to_string(), &text(resolved), volume, &text(&used_resolved))?;
    }
    Ok(())
}

/// No directory on the way may be a brick, of whatever cluster.
fn check_ancestors(brick: &BrickPath, resolved: &Path) -> anyhow::Result<()> {
    for ancestor in resolved.ancestors().skip(1) {
        if ancestor.join(DOT_DIR).join("format").exists() {
            let whose = read_identity(ancestor).ok().flatten().map(|identity| identity.volume_name);
            let whose = whose.map_or_else(String::new, |name| format!(" of volume '{name}'"));
            bail!("brick {brick} is in {}, a brick{whose}: use a directory apart from it", ancestor.display());
        }
    }
    Ok(())
}

/// An existing directory must be nobody's brick and empty.
fn check_contents(brick: &BrickPath, state: &ClusterState) -> anyhow::Result<()> {
    let path = Path::new(&brick.path);
    match read_identity(path) {
        Ok(None) => (),
        Ok(Some(identity)) => {
            let known = state.volumes.values().any(|volume| volume.map.id == identity.volume);
            let whose = match (identity.cluster == state.cluster, known) {
                (true, true) => format!("volume '{}'", identity.volume_name),
                (true, false) => format!("the deleted volume '{}'", identity.volume_name),
                (false, _) => format!("volume '{}' of another cluster ({})", identity.volume_name, identity.cluster),
            };
            bail!(
                "brick {brick} holds a brick of {whose}: use another directory, or empty this one if nobody needs it"
            );
        }
        Err(error) => bail!(
            "brick {brick} holds a {DOT_DIR} that cannot be read ({error:#}): use another directory, or empty this one \
             if nobody needs it"
        ),
    }
    let mut entries = fs::read_dir(path).with_context(|| format!("brick {brick}: cannot list it"))?;
    if let Some(entry) = entries.next() {
        let name = entry.with_context(|| format!("brick {brick}: cannot list it"))?.file_name();
        let name = shorten(&name.to_string_lossy());
        bail!("brick {brick} is not empty (it holds '{name}'): use an empty directory, such as one made in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::ids::{ClusterId, NodeId};

    fn state() -> ClusterState {
        ClusterState::of_one_node(ClusterId([1; 16]), NodeId([2; 16]), "node-1")
    }

    fn check(path: &Path) -> anyhow::Result<CheckedBrick> {
        check_brick(parse_brick(&format!("node-1:{}", path.display()))?, &state(), true)
    }

    fn error_of(path: &Path) -> String {
        let error = format!("{:#}", check(path).unwrap_err());
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn a_brick_is_a_node_and_a_normal_path() {
        let brick = parse_brick("node-1://a/./b//").unwrap();
        assert_eq!((brick.node.as_str(), brick.path.as_str()), ("node-1", "/a/b"));
        for bad in ["/a", "a", ":/a", "node-1:a", "node-1:/", "node-1:/a/../b", "node-1:/a\nb", "n/1:/a", ""] {
            assert!(parse_brick(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_last_component_may_be_missing_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let checked = check(&dir.path().join("b1")).unwrap();
        assert!(checked.existing.is_none() && checked.total_bytes > 0);
        assert!(!dir.path().join("b1").exists());
        assert!(error_of(&dir.path().join("no/b1")).contains("parent directory"));
        fs::create_dir(dir.path().join("b1")).unwrap();
        assert!(check(&dir.path().join("b1")).unwrap().existing.is_some());
    }

    #[test]
    fn what_is_no_empty_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        assert!(error_of(&dir.path().join("file")).contains("not a directory"));
        assert!(error_of(&dir.path().join("file/b")).contains("not a directory"));
        assert!(error_of(dir.path()).contains("holds 'file'"));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(error_of(&dir.path().join("link")).contains("symbolic link"));
        fs::create_dir_all(dir.path().join("half/.brickfs")).unwrap();
        assert!(error_of(&dir.path().join("half")).contains("cannot be read"));
    }

    #[test]
    fn links_do_not_hide_that_bricks_overlap() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
        let bricks = [check(&dir.path().join("real/b")).unwrap(), check(&dir.path().join("link/b")).unwrap()];
        assert!(check_each_other(&bricks, "x").is_err());
        let bricks = [check(&dir.path().join("real/b")).unwrap(), check(&dir.path().join("link/c")).unwrap()];
        check_each_other(&bricks, "x").unwrap();
        fs::create_dir_all(dir.path().join("real/.brickfs")).unwrap();
        fs::write(dir.path().join("real/.brickfs/format"), "{}").unwrap();
        assert!(error_of(&dir.path().join("link/b")).contains("a brick"));
    }
}
