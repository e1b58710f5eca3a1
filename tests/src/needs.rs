//! What a machine must have for a test. Where it lacks that, the test says so and is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Something that a test needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// To be root.
    Root,
    /// /dev/fuse.
    Fuse,
    /// Loop devices, and being allowed to mount file systems.
    Loop,
    /// A program in PATH, or in /sbin or /usr/sbin.
    Program(&'static str),
    /// PostgreSQL's server.
    Postgres,
    /// Network namespaces, and being allowed to make them.
    NetNamespaces,
}

/// What a test with a cluster and a mount needs.
pub const MOUNT: &[Need] = &[Need::Root, Need::Fuse];
/// What a test with loop file systems and a mount needs.
pub const LOOP_MOUNT: &[Need] = &[
    Need::Root,
    Need::Fuse,
    Need::Loop,
    Need::Program("mkfs.ext4"),
    Need::Program("mkfs.xfs"),
    Need::Program("xfs_io"),
    Need::Program("losetup"),
];

/// What a test with nodes that are cut off from each other needs.
pub const CUTS: &[Need] =
    &[Need::Root, Need::NetNamespaces, Need::Program("ip"), Need::Program("nft"), Need::Program("nsenter")];

impl Need {
    /// Why this machine lacks it; `None` if it has it.
    pub fn what_lacks(&self) -> Option<String> {
        match self {
            Need::Root => (!rustix::process::geteuid().is_root()).then(|| "it needs root".to_owned()),
            Need::Fuse => (!Path::new("/dev/fuse").exists()).then(|| "there is no /dev/fuse".to_owned()),
            Need::Loop => {
                (!Path::new("/dev/loop-control").exists()).then(|| "there is no /dev/loop-control".to_owned())
            }
            Need::Postgres => (!crate::postgres::is_here()).then(|| "PostgreSQL is not installed".to_owned()),
            Need::NetNamespaces => {
                let made = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
                (!made.is_ok_and(|status| status.success())).then(|| "it may not make network namespaces".to_owned())
            }
            Need::Program(name) => find_program(name).is_none().then(|| format!("{name} is not installed")),
        }
    }
}

/// Whether the long tests run too.
pub fn is_soak() -> bool {
    std::env::var_os("SOAK").is_some_and(|value| value == "1")
}

/// Where a program of the system is.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.find_map(|dir| {
        let path = dir.join(name);
        fs::metadata(&path).is_ok_and(|meta| meta.is_file()).then_some(path)
    })
}
