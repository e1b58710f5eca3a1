//! `.brickfs/format`: what makes a directory a brick, and of whom. JSON in one file, written last when a
//! brick is made; a later version or an unknown feature is refused and nothing is written.

use crate::brick::log::EffectLog;
use crate::brick::meta::{META_XATTR, Meta, Position};
use anyhow::{Context as _, bail};
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::ids::{BrickId, ClusterId, Gfid, SetId, VolumeId};
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::Path;

/// Version of the brick's format that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// The directory of ours at a brick's root.
pub const DOT_DIR: &str = ".brickfs";

/// Whose brick a directory is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BrickIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's name when the brick was made.
    pub volume_name: String,
    /// The brick.
    pub brick: BrickId,
    /// Counts the disks that this brick has had (R7).
    pub incarnation: u64,
    /// Its set within the volume.
    pub set: SetId,
    /// Whether the root directory's inode lives here.
    pub is_root_home: bool,
}

#[derive(Serialize, Deserialize)]
struct FormatFile {
    version: u32,
    features: Vec<String>,
    #[serde(flatten)]
    identity: BrickIdentity,
}

/// Makes `brick_dir`, an empty directory, a brick.
pub fn initialise(brick_dir: &Path, identity: &BrickIdentity) -> anyhow::Result<()> {
    let dot = brick_dir.join(DOT_DIR);
    std::fs::create_dir(&dot).with_context(|| format!("cannot make {}", dot.display()))?;
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&dot, std::fs::Permissions::from_mode(0o700))?;
    for name in ["handles", "orphans", "limbo", "claims", "tmp", "pending", "commits", "parked", "clients"] {
        std::fs::create_dir(dot.join(name))?;
    }
    EffectLog::create(&dot.join("log"))?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let time = Timestamp { sec: now.tv_sec, nsec: now.tv_nsec as u32 };
    let meta = Meta {
        gfid: Gfid::ROOT,
        kind: Kind::Directory,
        flags: 0,
        project: 0,
        btime: time,
        ctime: time,
        position: Position::default(),
        rdev: 0,
        home: if identity.is_root_home { identity.set } else { SetId(u16::MAX) },
        subdirs: 0,
        spread: Vec::new(),
    };
    rustix::fs::setxattr(brick_dir, META_XATTR, &meta.encode(), rustix::fs::XattrFlags::empty()).with_context(
        || {
            format!(
                "{}: the file system takes no trusted.* extended attributes; use ext4, xfs, btrfs or tmpfs",
                brick_dir.display()
            )
        },
    )?;
    std::fs::set_permissions(brick_dir, std::fs::Permissions::from_mode(0o755))?;
    let file = FormatFile { version: FORMAT_VERSION, features: Vec::new(), identity: identity.clone() };
    let tmp = dot.join("format.tmp");
    let mut out = std::fs::File::create(&tmp)?;
    out.write_all(&serde_json::to_vec_pretty(&file)?)?;
    out.sync_all()?;
    std::fs::rename(&tmp, dot.join("format"))?;
    let dir = std::fs::File::open(brick_dir)?;
    rustix::fs::syncfs(&dir).context("cannot flush the new brick")?;
    Ok(())
}

/// Whose brick `brick_dir` is; `None` if it has no `.brickfs`.
pub fn read_identity(brick_dir: &Path) -> anyhow::Result<Option<BrickIdentity>> {
    let dot = brick_dir.join(DOT_DIR);
    if !dot.try_exists().with_context(|| format!("cannot look into {}", brick_dir.display()))? {
        return Ok(None);
    }
    let path = dot.join("format");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let version = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if version != u64::from(FORMAT_VERSION) {
        bail!("{} has format version {version}, this brickd reads version {FORMAT_VERSION}", brick_dir.display());
    }
    let file: FormatFile = serde_json::from_value(value).with_context(|| format!("{} is damaged", path.display()))?;
    if let Some(feature) = file.features.first() {
        bail!("{} needs the feature '{feature}', which this brickd does not have", brick_dir.display());
    }
    Ok(Some(file.identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> BrickIdentity {
        BrickIdentity {
            cluster: ClusterId([1; 16]),
            volume: VolumeId([2; 16]),
            volume_name: "demo".into(),
            brick: BrickId([3; 16]),
            incarnation: 1,
            set: SetId(0),
            is_root_home: true,
        }
    }

    const GOLDEN: &str = r#"{
  "version": 1,
  "features": [],
  "cluster": "01010101-0101-0101-0101-010101010101",
  "volume": "02020202-0202-0202-0202-020202020202",
  "volume_name": "demo",
  "brick": "03030303-0303-0303-0303-030303030303",
  "incarnation": 1,
  "set": 0,
  "is_root_home": true
}"#;

    #[test]
    fn a_brick_knows_whose_it_is_and_a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_identity(dir.path()).unwrap(), None);
        if let Err(error) = initialise(dir.path(), &identity()) {
            eprintln!("SKIPPED a_brick_knows_whose_it_is: {error:#}");
            return;
        }
        assert_eq!(read_identity(dir.path()).unwrap(), Some(identity()));
        let path = dir.path().join(".brickfs/format");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, GOLDEN);
        std::fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        let error = read_identity(dir.path()).unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains("version 1"), "{error}");
        std::fs::write(&path, text.replace("\"features\": []", "\"features\": [\"x\"]")).unwrap();
        assert!(read_identity(dir.path()).unwrap_err().to_string().contains("feature 'x'"));
    }
}
