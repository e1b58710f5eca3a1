//! `brickctl cluster backup` and `restore`: the file of a backup is written and read here, what is in it is `brickd`'s
//! matter. A passphrase comes from a file, never from the command line, where other users could see it.

use crate::admin::{call, unexpected};
use crate::args::{Format, Global};
use crate::output::{confirm, print_json, write_out};
use crate::{Outcome, UsageError, playground};
use anyhow::{Context as _, bail};
use brickfs_common::cluster::admin::{AdminCall, AdminResult};
use brickfs_common::cluster::backup::{BackupText, Passphrase, Restored};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Mode of a backup: it says who is in the cluster and where.
const FILE_MODE: u32 = 0o600;
/// A backup of the largest cluster has less; its text is quoted once more on its way to `brickd`.
const BACKUP_MAX_BYTES: u64 = 12 << 20;
const PASSPHRASE_MAX_BYTES: u64 = 4 << 10;

/// `brickctl cluster backup`.
pub fn backup(global: &Global, file: &Path, passphrase_file: Option<&Path>) -> anyhow::Result<Outcome> {
    let passphrase = passphrase_file.map(read_passphrase).transpose()?;
    check_target(file)?;
    let backup = match call(&playground::socket_of(global)?, &AdminCall::ClusterBackup { passphrase })? {
        AdminResult::Backup(backup) => backup,
        other => return Err(unexpected(&other)),
    };
    write_file(file, backup.text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))?;
    match global.output {
        Format::Json => print_json(&serde_json::json!({
            "file": file.display().to_string(),
            "cluster": backup.cluster,
            "nodes": backup.nodes_count,
            "volumes": backup.volumes_count,
            "has_key": backup.has_key,
        }))?,
        Format::Text => write_out(&describe_backup(file, &backup))?,
    }
    Ok(Outcome::Fine)
}

/// What `cluster restore` was given.
pub struct Order<'a> {
    /// The backup.
    pub file: &'a Path,
    /// Where its passphrase is.
    pub passphrase_file: Option<&'a Path>,
    /// Whose place the node takes.
    pub as_node: Option<&'a str>,
    /// Do without the authority in the backup.
    pub new_authority: bool,
}

/// `brickctl cluster restore`.
pub fn restore(global: &Global, order: &Order<'_>) -> anyhow::Result<Outcome> {
    let passphrase = order.passphrase_file.map(read_passphrase).transpose()?;
    let text = read_text(order.file, BACKUP_MAX_BYTES)?;
    confirm(
        global,
        "A restore begins the cluster anew on this node. No old node of it may run now, nor ever again with its old state \
         directory. Go on?",
    )?;
    let (as_node, new_authority) = (order.as_node.map(str::to_owned), order.new_authority);
    let restore = AdminCall::ClusterRestore { text, passphrase, as_node, new_authority };
    let restored = match call(&playground::socket_of(global)?, &restore)? {
        AdminResult::Restored(restored) => restored,
        other => return Err(unexpected(&other)),
    };
    match global.output {
        Format::Json => print_json(&restored)?,
        Format::Text => write_out(&describe_restored(&restored))?,
    }
    Ok(Outcome::Fine)
}

fn describe_backup(file: &Path, backup: &BackupText) -> String {
    let key = match backup.has_key {
        true => "the authority's key is in it, encrypted: keep the passphrase elsewhere",
        false => "without the authority's key: a restore makes a new authority, and clients need new bundles",
    };
    let (file, cluster) = (file.display(), backup.cluster);
    let (nodes, volumes) = (count(backup.nodes_count, "node"), count(backup.volumes_count, "volume"));
    format!("Cluster {cluster} ({nodes}, {volumes}) is in {file}, {key}.\n")
}

fn describe_restored(restored: &Restored) -> String {
    let Restored { cluster, name, waits_for, dropped, .. } = restored;
    let volumes = count(restored.volumes_count, "volume");
    let mut text = format!("This node is node '{name}' of cluster {cluster} now, with {volumes}.\n");
    if !restored.keeps_authority {
        text.push_str("The authority is a new one: clients need new bundles.\n");
    }
    if !waits_for.is_empty() {
        text.push_str(&format!("These nodes have bricks and are waited for: {}.\n", waits_for.join(", ")));
    }
    if !dropped.is_empty() {
        text.push_str(&format!("These nodes are members no more: {}.\n", dropped.join(", ")));
    }
    let old: Vec<&str> = waits_for.iter().chain(dropped).chain([name]).map(String::as_str).collect();
    text.push_str(&format!(
        "Before an old node ({}) is started again, move its state directory away: it has the log of the old cluster.\n",
        old.join(", ")
    ));
    text
}

fn count(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// A passphrase is one line.
fn read_passphrase(path: &Path) -> anyhow::Result<Passphrase> {
    let text = read_text(path, PASSPHRASE_MAX_BYTES)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    if line.is_empty() || line.contains('\n') {
        let text = format!("--passphrase-file: {} is not one line with a passphrase", path.display());
        return Err(UsageError(text).into());
    }
    Ok(Passphrase(line.to_owned()))
}

fn read_text(path: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(bytes_max + 1).read_to_string(&mut text));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() as u64 > bytes_max {
        bail!("{} has more than {bytes_max} bytes: it is something else", path.display());
    }
    Ok(text)
}

/// A rename would put a file in the place of a device.
fn check_target(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => bail!("{} is there and is not a file", path.display()),
        _ => Ok(()),
    }
}

/// Writes a file that only its owner may read: the old one stays until the new one is on the disk.
fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let tmp = PathBuf::from(name);
    match fs::remove_file(&tmp) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&tmp)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&tmp, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&tmp);
        return Err(error);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::ids::ClusterId;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_backup_is_replaced_whole_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        write_file(&path, b"one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(read_text(&path, 3).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, FILE_MODE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary stays");
        assert!(read_text(&path, 2).unwrap_err().to_string().contains("more than 2 bytes"));
        assert!(check_target(dir.path()).is_err() && check_target(Path::new("/dev/null")).is_err());
        check_target(&path).unwrap();
        check_target(&dir.path().join("new")).unwrap();
        assert!(write_file(dir.path(), b"x").is_err());
    }

    #[test]
    fn a_passphrase_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        fs::write(&path, " correct horse \n").unwrap();
        assert_eq!(read_passphrase(&path).unwrap().0, " correct horse ");
        for bad in ["", "\n", "two\nlines\n"] {
            fs::write(&path, bad).unwrap();
            assert!(read_passphrase(&path).unwrap_err().is::<UsageError>(), "{bad:?}");
        }
    }

    #[test]
    fn what_a_restore_made_is_said() {
        let restored = Restored {
            cluster: ClusterId([1; 16]),
            name: "node-1".to_owned(),
            volumes_count: 2,
            waits_for: vec!["node-2".to_owned()],
            dropped: vec!["node-3".to_owned()],
            keeps_authority: false,
            is_done: true,
        };
        let text = describe_restored(&restored);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("now, with 2 volumes.") && lines[1].contains("new bundles"), "{text}");
        assert_eq!(lines[2], "These nodes have bricks and are waited for: node-2.");
        assert_eq!(lines[3], "These nodes are members no more: node-3.");
        assert!(lines[4].starts_with("Before an old node (node-2, node-3, node-1) is started again"), "{text}");
        let alone = Restored { waits_for: vec![], dropped: vec![], keeps_authority: true, ..restored };
        assert_eq!(describe_restored(&alone).lines().count(), 2);
    }
}
