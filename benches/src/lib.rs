//! What the benchmarks share: names, operations, and a `brickd` of their own.

use anyhow::{Context as _, ensure};
use brickfs_client::volume::{ConnectError, ConnectOptions, Target, Volume};
use brickfs_common::attr::Attr;
use brickfs_common::fop::{Fop, FopReply, Making, ObjectRef, WriteFlags};
use brickfs_common::name::Name;
use brickfs_server::bench::{Bricks, NODE, VOLUME, state_dir};
use bytes::Bytes;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Bricks of a benchmark's volume.
pub const BRICKS: usize = 4;
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// A name, another one for each number.
pub fn name(prefix: &str, number: u64) -> anyhow::Result<Name> {
    Name::new(format!("{prefix}-{number}").into_bytes()).map_err(|errno| anyhow::anyhow!("a bad name: {errno}"))
}

/// Makes a file and leaves it open.
pub fn create(parent: ObjectRef, name: Name) -> Fop {
    let making = Making::File { open: true, exclusive: true, truncate: false };
    Fop::Make { parent, name, making, perm: 0o644, umask: 0o022 }
}

/// Writes at an offset.
pub fn write(object: ObjectRef, offset: u64, data: Bytes) -> Fop {
    Fop::Write { object, offset, data, flags: WriteFlags::default() }
}

/// The object of a reply that must have one.
pub fn object_of(reply: FopReply) -> anyhow::Result<ObjectRef> {
    let attr: Attr = done(reply)?.attr.context("a reply without attributes")?;
    Ok(ObjectRef { gfid: attr.gfid, home: attr.home })
}

/// A reply that must be no error.
pub fn done(reply: FopReply) -> anyhow::Result<FopReply> {
    match &reply.result {
        Ok(_) => Ok(reply),
        Err(errno) => anyhow::bail!("refused: {errno}"),
    }
}

/// A `brickd` in a directory, which ends with it.
pub struct Brickd {
    child: Child,
}

impl Brickd {
    /// Makes a volume in `dir`, starts a `brickd` that serves it, and a session with that.
    pub fn start(dir: &Path) -> anyhow::Result<(Brickd, Volume)> {
        Bricks::make(dir, BRICKS)?.close();
        let socket = dir.join("brickd.sock");
        let bench = std::env::current_exe()?;
        let build = bench.parent().and_then(Path::parent).context("the benchmark lies in no build directory")?;
        let program = build.join("brickd");
        ensure!(program.is_file(), "{} is missing: run 'make build' first", program.display());
        let mut command = Command::new(program);
        command.arg("--state").arg(state_dir(dir)).arg("--socket").arg(&socket).args([
            "--node-name",
            NODE,
            "--listen",
            "none",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let brickd = Brickd { child: command.spawn().context("cannot start brickd")? };
        let options = || ConnectOptions {
            target: Target::Sockets(vec![socket.clone()]),
            volume: VOLUME.into(),
            timeout: Some(READY_TIMEOUT),
            poll: false,
        };
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match Volume::connect(options()) {
                Ok(volume) => return Ok((brickd, volume)),
                Err(ConnectError::NoServer { .. }) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Brickd {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
