//! Files that nobody but `brickd` may read. They are replaced whole: a crash leaves the old one or the new one.

use anyhow::{Context as _, bail};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use zeroize::Zeroizing;

/// Mode of a private file.
pub const FILE_MODE: u32 = 0o600;
/// Mode of a private directory.
pub const DIR_MODE: u32 = 0o700;
/// No file that is read here comes near it.
const FILE_MAX_BYTES: u64 = 64 << 10;

/// Makes a directory that only its owner may enter, or closes the one that is there. Its entry is on disk after it.
pub fn make_dir(dir: &Path) -> anyhow::Result<()> {
    let make = || -> std::io::Result<()> {
        match DirBuilder::new().mode(DIR_MODE).create(dir) {
            Ok(()) => sync_dir_of(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::set_permissions(dir, Permissions::from_mode(DIR_MODE))
            }
            Err(error) => Err(error),
        }
    };
    make().with_context(|| format!("cannot make {}", dir.display()))
}

/// Writes a file that only its owner may read. It is on disk, whole, when this returns.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let tmp = Path::new(&name);
        // What a crash left there may have another owner's mode or be a link.
        remove_file(tmp)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(tmp, path)?;
        sync_dir_of(path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a private file; `None` if there is none. One that others may read is closed to them, and said.
pub fn read(path: &Path) -> anyhow::Result<Option<Zeroizing<String>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
    };
    let mut read = || -> anyhow::Result<Zeroizing<String>> {
        let meta = file.metadata()?;
        if meta.len() > FILE_MAX_BYTES {
            bail!("it has {} bytes, and at most {FILE_MAX_BYTES} are expected", meta.len());
        }
        if meta.permissions().mode() & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "others could read this private file; it is closed to them now");
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        }
        // Room first: a text that grows leaves copies of itself behind.
        let mut text = Zeroizing::new(String::with_capacity(FILE_MAX_BYTES as usize));
        (&mut file).take(FILE_MAX_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map(Some).with_context(|| format!("cannot read {}", path.display()))
}

/// Removes a file if it is there; it is gone from the disk's directory when this returns.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    let remove = || remove_file(path).and_then(|()| sync_dir_of(path));
    remove().with_context(|| format!("cannot remove {}", path.display()))
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_dir_of(path: &Path) -> std::io::Result<()> {
    File::open(dir_of(path))?.sync_all()
}

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn files_and_directories_are_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        make_dir(&tls).unwrap();
        fs::set_permissions(&tls, Permissions::from_mode(0o755)).unwrap();
        make_dir(&tls).unwrap();
        assert_eq!(mode(&tls), DIR_MODE);
        let path = tls.join("key");
        fs::write(tls.join("key.tmp"), "what a crash left").unwrap();
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!((read(&path).unwrap().unwrap().as_str(), mode(&path)), ("two", FILE_MODE));
        assert_eq!(fs::read_dir(&tls).unwrap().count(), 1, "nothing temporary stays");
    }

    #[test]
    fn a_file_that_was_open_is_closed_and_one_that_is_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(read(&path).unwrap().is_none());
        fs::write(&path, "text").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read(&path).unwrap().unwrap().as_str(), "text");
        assert_eq!(mode(&path), FILE_MODE);
        fs::write(&path, vec![b'x'; FILE_MAX_BYTES as usize + 1]).unwrap();
        assert!(read(&path).is_err());
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_name_alone_lies_in_the_working_directory() {
        assert_eq!(dir_of(Path::new("client.bundle")), Path::new("."));
        assert_eq!(dir_of(Path::new("/a/b")), Path::new("/a"));
    }
}
