//! Mounting, in the foreground or in the background: the command returns when the mount answers.

use crate::adapter::Mount;
use crate::cli::{DEFAULT_SOCKET, MountPlan};
use crate::fs::Fs;
use crate::hosts::is_this_machine;
use crate::kernel_mount::{KernelOptions, change_flags, start_session};
use anyhow::{Context as _, bail, ensure};
use brickfs_client::open_files;
use brickfs_client::volume::{Caller, ConnectOptions, Target, Volume};
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::fop::{Fop, ObjectRef};
use brickfs_common::ids::Gfid;
use brickfs_common::name::Name;
use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Readahead of the kernel: two of these are asked for ahead of a reader, and small requests wait behind them.
const READAHEAD_KIB: u32 = 1024;
/// What a background mount writes when it is up.
const UP: &[u8] = b"up";

/// Changes the flags of a mount that is there.
pub fn remount(plan: &MountPlan) -> anyhow::Result<()> {
    let options = KernelOptions { source: plan.source.clone(), read_only: plan.read_only, flags: plan.flags.clone() };
    change_flags(&plan.mountpoint, &options)
}

/// Starts this program again in a session of its own and waits until it has mounted or failed.
pub fn run_background(plan: &MountPlan) -> anyhow::Result<()> {
    check_mountpoint(&plan.mountpoint)?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let writer_fd = writer.as_raw_fd();
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(std::env::args_os().skip(1)).arg("--foreground").arg("--status-fd").arg(writer_fd.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    // Names are made absolute, since the mount's process leaves this directory.
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).context("cannot hand on the pipe")?;
    command.process_group(0);
    command.env("BRICKFS_MOUNTPOINT", std::path::absolute(&plan.mountpoint)?);
    command.spawn().context("cannot start the mount's process")?;
    drop(writer);
    let mut said = Vec::new();
    let mut reader = reader;
    reader.read_to_end(&mut said).context("cannot hear from the mount's process")?;
    match said.as_slice() {
        UP => Ok(()),
        b"" => bail!("the mount's process ended without a word; see its log"),
        reason => bail!("{}", String::from_utf8_lossy(reason)),
    }
}

/// Mounts and serves until unmounted.
pub fn run_foreground(plan: &MountPlan) -> anyhow::Result<()> {
    let mut plan = plan.clone();
    let status = plan.status_fd.take().map(status_pipe);
    if status.is_some() {
        if let Some(path) = std::env::var_os("BRICKFS_MOUNTPOINT") {
            plan.mountpoint = path.into();
        }
        rustix::process::setsid().ok(); // fails only where it is one already
    }
    start_log(&plan)?;
    open_files::prepare();
    // Before there is a mount: a signal from the first moment on unmounts it.
    let signals = hear_signals()?;
    let session = mount(&plan);
    let session = session.and_then(|up| obey_signals(signals, &plan.mountpoint, &up.2).map(|()| up));
    if let Some(mut pipe) = status {
        let word = match &session {
            Ok(_) => UP.to_vec(),
            Err(error) => format!("{error:#}").into_bytes(),
        };
        pipe.write_all(&word).ok(); // whoever started us may be gone
    }
    let (session, volume, fs) = session?;
    let ended = session.join();
    volume.shutdown();
    fs.invalidations.end();
    ended.context("the FUSE session failed")
}

#[allow(unsafe_code)]
fn status_pipe(fd: i32) -> std::fs::File {
    // SAFETY: the number was handed over by `run_background`, which opened the pipe for this process
    // alone; nothing else here owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok();
    fd.into()
}

fn start_log(plan: &MountPlan) -> anyhow::Result<()> {
    // fuser answers FUSE_INTERRUPT on a descriptor that need not be the one of the request: the kernel then says
    // ENOENT, which is no error to show.
    let filter = tracing_subscriber::EnvFilter::try_from_env("BRICKFS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,fuser::reply=off"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    match &plan.log_file {
        Some(path) => {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot open the log {}", path.display()))?;
            builder.with_writer(std::sync::Mutex::new(file)).init();
        }
        None => builder.with_writer(std::io::stderr).init(),
    }
    Ok(())
}

fn check_mountpoint(path: &Path) -> anyhow::Result<()> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTCONN) => {
            anyhow::anyhow!("mount point {0}: a dead mount is there; run umount {0} first", path.display())
        }
        _ => anyhow::Error::new(error).context(format!("mount point {}", path.display())),
    })?;
    ensure!(metadata.is_dir(), "mount point {} is not a directory", path.display());
    Ok(())
}

/// Refuses a volume of another machine: `brickd` is reached on its own one only.
fn check_hosts(plan: &MountPlan, map: &VolumeMap) -> anyhow::Result<()> {
    let Some((hosts, _)) = plan.source.split_once(":/") else { return Ok(()) };
    let members = || map.sets.iter().flat_map(|set| &set.members);
    let is_node = |host: &str| members().any(|member| member.node_name.eq_ignore_ascii_case(host));
    ensure!(
        plan.socket.is_some() || hosts.split(',').any(|host| is_node(host) || is_this_machine(host)),
        "'{hosts}' is not this machine, and its brickd can be reached there only: to mount a volume of this machine write \
         localhost:/VOLUME"
    );
    Ok(())
}

fn mount(plan: &MountPlan) -> anyhow::Result<(fuser::BackgroundSession, Volume, Arc<Fs>)> {
    check_mountpoint(&plan.mountpoint)?;
    let options = ConnectOptions {
        target: Target::Sockets(vec![plan.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into())]),
        volume: plan.volume.clone(),
        timeout: plan.timeout,
        poll: plan.poll,
    };
    let volume = Volume::connect(options)?;
    check_hosts(plan, &volume.map())?;
    let root = find_root(&volume, &plan.subdirectory)?;
    let source = match plan.source.strip_suffix(":/") {
        Some(host) => format!("{host}:/{}", volume.map().name),
        None => plan.source.clone(),
    };
    let options = KernelOptions { source, read_only: plan.read_only, flags: plan.flags.clone() };
    let fs = Fs::new(volume.clone(), root, plan.strict);
    let ticking = Arc::downgrade(&fs);
    volume.on_tick(move |now| {
        if let Some(fs) = ticking.upgrade() {
            fs.tick(now);
        }
    });
    let losing = Arc::downgrade(&fs);
    volume.on_locks_lost(move |objects| {
        if let Some(fs) = losing.upgrade() {
            fs.lose_locks(objects);
        }
    });
    let session = start_session(Mount(fs.clone()), &plan.mountpoint, &options)?;
    let session = session.spawn().context("cannot start the FUSE session")?;
    invalidate_as_asked(fs.clone(), session.notifier())?;
    // Answers only when the session serves; from here on the mount is usable.
    let device = rustix::fs::stat(&plan.mountpoint).context("the mount does not answer")?.st_dev;
    raise_readahead(device);
    Ok((session, volume, fs))
}

/// Tells the kernel to drop the pages of inodes whose writes failed or that are locked. This may wait for a page that is
/// being read through this mount, hence a thread of its own.
fn invalidate_as_asked(fs: Arc<Fs>, notifier: fuser::Notifier) -> anyhow::Result<()> {
    let run = move || {
        while let Some((ino, then)) = fs.invalidations.next() {
            for (parent, name) in fs.invalidations.names_of(ino) {
                // An error says that it has forgotten the name by itself.
                let _ = notifier.inval_entry(fuser::INodeNo(parent), OsStr::from_bytes(&name));
            }
            if let Err(error) = notifier.inval_inode(fuser::INodeNo(ino), 0, 0) {
                tracing::warn!(ino, "the kernel keeps pages that may be wrong: {error}");
            }
            then.into_iter().for_each(|then| then());
        }
    };
    std::thread::Builder::new().name("brickfs-inval".into()).spawn(run).context("no thread for the kernel's cache")?;
    Ok(())
}

/// Walks to the directory that becomes the mount's root.
fn find_root(volume: &Volume, subdirectory: &[String]) -> anyhow::Result<ObjectRef> {
    let mut at = ObjectRef { gfid: Gfid::ROOT, home: volume.map().root_home };
    for part in subdirectory {
        let name = Name::new(part.clone().into_bytes()).with_context(|| format!("bad name '{part}'"))?;
        let reply = volume.call(Caller::default(), Fop::Lookup { parent: at, name });
        let attr = match (reply.result, reply.attr) {
            (Ok(_), Some(attr)) => attr,
            (result, _) => bail!(
                "subdirectory '{part}' of the volume: {}",
                result.err().map_or("no answer".into(), |e| e.to_string())
            ),
        };
        at = ObjectRef { gfid: attr.gfid, home: attr.home };
    }
    Ok(at)
}

/// INIT alone leaves the kernel's readahead at 128 KiB.
fn raise_readahead(device: u64) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", rustix::fs::major(device), rustix::fs::minor(device));
    if let Err(error) = std::fs::write(&path, READAHEAD_KIB.to_string()) {
        tracing::info!("readahead stays as it is: {path}: {error}");
    }
}

/// Signals that are heard and not yet obeyed.
struct Signals {
    runtime: tokio::runtime::Runtime,
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    usr1: tokio::signal::unix::Signal,
}

fn hear_signals() -> anyhow::Result<Signals> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (term, int, usr1) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::user_defined1())?)
    };
    Ok(Signals { runtime, term, int, usr1 })
}

/// SIGTERM and SIGINT unmount, SIGUSR1 logs how much the mount remembers.
fn obey_signals(signals: Signals, mountpoint: &Path, fs: &Arc<Fs>) -> anyhow::Result<()> {
    let (mountpoint, fs) = (mountpoint.to_owned(), Arc::downgrade(fs));
    let Signals { runtime, mut term, mut int, mut usr1 } = signals;
    std::thread::Builder::new().name("brickfs-signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = term.recv() => return,
                    _ = int.recv() => return,
                    _ = usr1.recv() => match fs.upgrade() {
                        Some(fs) => tracing::info!("remembered: {:?}", fs.counts()),
                        None => return,
                    },
                }
            }
        });
        if let Err(error) = rustix::mount::unmount(&mountpoint, rustix::mount::UnmountFlags::DETACH) {
            tracing::error!("cannot unmount {}: {error}", mountpoint.display());
        }
    })?;
    Ok(())
}
