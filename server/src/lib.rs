//! `brickd`: one daemon a node. It holds the lock of its state directory, serves the bricks of its started
//! volumes and answers `brickctl`, all on one Unix socket and one thread. A library beside the binary, so that
//! benchmarks can work with a brick.

pub mod bench;
mod brick;
mod config;
mod manager;
mod priority;
#[cfg_attr(not(test), expect(dead_code, reason = "the peers of the cluster are built on it"))]
mod security;

use anyhow::{Context as _, bail};
use brick::host::Host;
use brickfs_client::open_files;
use brickfs_client::polling::{self, Activity};
use brickfs_client::quiet_socket::QuietSocket;
use config::Config;
use manager::Manager;
use manager::store::Store;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

const FRAME_MAX_BYTES: u32 = 1 << 20;
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How long calls under way may take once the end was asked for.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The whole of `brickd`, from its arguments to its exit code.
pub fn run() -> ExitCode {
    let result = Config::load().and_then(|config| serve_until_stopped(&config));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("brickd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve_until_stopped(config: &Config) -> anyhow::Result<()> {
    start_log(&config.log)?;
    open_files::prepare();
    // Modes on bricks are decided by operations; what is ours lies in a directory that is closed to others.
    rustix::process::umask(rustix::fs::Mode::empty());
    let _lock = lock_state(&config.state)?;
    let default_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let store = Store::open(&config.state, config.node_name.as_deref(), &default_name)?;
    let host = Host::new(store.state().cluster, store.node());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let manager = {
        let _inside = runtime.enter();
        Arc::new(Mutex::new(Manager::start(store, host.clone())?))
    };
    let result = runtime.block_on(serve(config, manager.clone(), host));
    // Connections end before volumes do, so that a mount sees a lost server and waits for the next one.
    runtime.shutdown_timeout(STOP_TIMEOUT);
    manager.lock().unwrap_or_else(PoisonError::into_inner).stop();
    tracing::info!("stopped");
    result
}

fn start_log(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).with_context(|| format!("log filter '{filter}'"))?;
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal).init();
    Ok(())
}

/// Makes the state directory and takes its lock, which the file's descriptor holds until the process ends.
fn lock_state(state: &Path) -> anyhow::Result<File> {
    make_private_dir(state)?;
    let path = state.join("brickd.lock");
    let open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "another brickd (pid {}) runs on {}: stop it first, or give another --state",
                pid.trim(),
                state.display()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

fn make_private_dir(dir: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot make {}", dir.display()))
}

/// Binds the socket. The lock says that no other brickd of this state lives, so a socket that nobody
/// answers on is a remnant; one that somebody answers on belongs to a brickd with another state.
async fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        make_private_dir(dir)?;
    }
    match fs::symlink_metadata(socket) {
        Ok(meta) if !meta.file_type().is_socket() => bail!("{} exists and is not a socket", socket.display()),
        Ok(_) if tokio::net::UnixStream::connect(socket).await.is_ok() => {
            bail!("another process answers on {}: give another --socket", socket.display())
        }
        Ok(_) => fs::remove_file(socket).with_context(|| format!("cannot remove the old {}", socket.display()))?,
        Err(_) => (),
    }
    let old_mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(old_mask);
    listener.with_context(|| format!("cannot listen on {}", socket.display()))
}

/// Serves until SIGTERM or SIGINT.
async fn serve(config: &Config, manager: Arc<Mutex<Manager>>, host: Arc<Host>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = listen(&config.socket).await?;
    let activity = Arc::new(Activity::new());
    if config.poll {
        let activity = activity.clone();
        tokio::spawn(async move { polling::poll(&activity).await });
    }
    let server = Server::builder()
        .max_frame_size(Some(FRAME_MAX_BYTES))
        .initial_stream_window_size(Some(STREAM_WINDOW_BYTES))
        .initial_connection_window_size(Some(CONNECTION_WINDOW_BYTES))
        .add_service(manager::service::admin_service(manager))
        .add_service(brick::session::fops_service(host, activity.clone()))
        .serve_with_incoming(UnixListenerStream::new(listener).map(|socket| socket.and_then(QuietSocket::new)));
    priority::serve_with(config.nice);
    tracing::info!(socket = %config.socket.display(), state = %config.state.display(), "serving");
    let result = tokio::select! {
        ended = server => ended.context("the server ended"),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    let _ = fs::remove_file(&config.socket);
    result
}
