//! BrickFS installed in the places where mount(8) looks, for as long as a test needs it. Tests of other working
//! copies on the same machine wait for their turn.

use crate::at::At as _;
use crate::run::{project_dir, run};
use std::fs::File;
use std::process::Command;

const LOCK: &str = "/run/lock/brickfs-tests-install";
const PREFIX: &str = "PREFIX=/usr/local";

/// BrickFS is installed while this lives.
pub struct Installed {
    _lock: File,
}

impl Installed {
    /// `make install PREFIX=/usr/local`.
    pub fn new() -> anyhow::Result<Installed> {
        let lock = File::create(LOCK).at(LOCK)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).at(LOCK)?;
        let installed = Installed { _lock: lock };
        make("install")?;
        Ok(installed)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if let Err(error) = make("uninstall") {
            eprintln!("cannot uninstall: {error:#}");
        }
    }
}

fn make(target: &str) -> anyhow::Result<()> {
    run(make_command().args([target, PREFIX]))?.ok().map(|_| ())
}

/// The project's `make`, without the variables of the make and cargo around this test: some build scripts look at them,
/// and everything that depends on those would be built anew.
pub fn make_command() -> Command {
    let mut command = Command::new("make");
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_build_variable(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.arg("-s").arg("-C").arg(project_dir());
    command
}

fn is_build_variable(name: &str) -> bool {
    matches!(name, "MAKEFLAGS" | "MAKELEVEL" | "MFLAGS") || (name.starts_with("CARGO_") && name != "CARGO_HOME")
}
