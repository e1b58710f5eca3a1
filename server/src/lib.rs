//! `brickd`: one daemon a node. It holds the lock of its state directory, serves the bricks of its started
//! volumes and answers `brickctl`, all on one Unix socket and one thread. A library beside the binary, so that
//! benchmarks can work with a brick.

pub mod bench;
mod brick;
mod config;
mod manager;
mod metrics;
mod priority;
mod security;

use anyhow::{Context as _, bail};
use brick::host::Host;
use brickfs_client::open_files;
use brickfs_client::polling::{self, Activity};
use brickfs_client::quiet_socket::QuietSocket;
use config::Config;
use manager::Manager;
use manager::peers::service::cluster_service;
use manager::startup::{self, Opened, Settings};
use security::accept::{Limits, incoming};
use security::audit::{Audit, Entry};
use security::layer::RulesLayer;
use security::tls::ServerTls;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

const FRAME_MAX_BYTES: u32 = 1 << 20;
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Calls at once of one connection over TCP.
const STREAMS_MAX: u32 = 64;
/// An end that has gone without a word is noticed after at most twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
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

/// Why serving ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// It was asked to.
    Stopped,
    /// The node is a member of another cluster now.
    Rejoined,
}

fn serve_until_stopped(config: &Config) -> anyhow::Result<()> {
    start_log(&config.log)?;
    open_files::prepare();
    // Modes on bricks are decided by operations; what is ours lies in a directory that is closed to others.
    rustix::process::umask(rustix::fs::Mode::empty());
    let _lock = lock_state(&config.state)?;
    while serve_once(config)? == End::Rejoined {
        tracing::info!("starting anew");
    }
    tracing::info!("stopped");
    Ok(())
}

/// From the opening of the state to its closing.
fn serve_once(config: &Config) -> anyhow::Result<End> {
    let opened = startup::open(&config.state, &Settings::of(config))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ask = opened.node.peers.ask_sets(runtime.handle().clone());
    let host = Host::new(opened.cluster, opened.node.id, opened.identity_path(), ask);
    let manager = {
        let _inside = runtime.enter();
        Manager::start(&opened, host.clone(), config.role, config.addresses.clone())
    };
    let result = runtime.block_on(serve(config, &opened, manager.clone(), host));
    // Connections end before volumes do, so that a mount sees a lost server and waits for the next one.
    runtime.shutdown_timeout(STOP_TIMEOUT);
    manager.stop();
    drop(manager);
    opened.stop();
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

/// Listens for other nodes and clients. An address of every interface is one of both families, where the machine has
/// both.
async fn listen_tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        Err(error) if error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            if address.ip().is_unspecified() { TcpListener::bind(v4).await } else { Err(error) }
        }
        bound => bound,
    };
    listener.with_context(|| {
        format!("cannot listen on {address} for other nodes: give another --listen, or --listen none to be alone")
    })
}

/// Serves until SIGTERM or SIGINT, or until the node has joined a cluster.
async fn serve(config: &Config, opened: &Opened, manager: Arc<Manager>, host: Arc<Host>) -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let activity = Arc::new(Activity::new());
    if config.poll {
        let activity = activity.clone();
        tokio::spawn(async move { polling::poll(&activity).await });
    }
    let node = opened.node.clone();
    metrics::start(config.metrics, &manager).await?;
    let admin = manager::service::admin_service(manager.clone(), node.audit.clone());
    let fops = brick::session::fops_service(host.clone(), activity.clone());
    let server = || {
        Server::builder()
            .max_frame_size(Some(FRAME_MAX_BYTES))
            .initial_stream_window_size(Some(STREAM_WINDOW_BYTES))
            .initial_connection_window_size(Some(CONNECTION_WINDOW_BYTES))
            .layer(RulesLayer::new(node.audit.clone()))
    };
    let local = server().add_service(admin.clone()).add_service(fops.clone());
    let remote = match config.listen {
        None => None,
        Some(address) => {
            let tls = ServerTls::new(&node.credentials)?;
            let incoming = incoming(listen_tcp(address).await?, tls, Limits::default(), refused_by(&node.audit));
            let router = server()
                .max_concurrent_streams(Some(STREAMS_MAX))
                .http2_keepalive_interval(Some(KEEP_ALIVE))
                .http2_keepalive_timeout(Some(KEEP_ALIVE))
                .add_service(admin)
                .add_service(fops)
                .add_service(cluster_service(node.clone(), host, manager.clone()));
            Some(router.serve_with_incoming(incoming))
        }
    };
    // Other nodes can ask already; programs of this machine once its bricks are served.
    let local = async {
        node.hear().await;
        tokio::task::spawn_blocking(move || manager.serve_bricks()).await?;
        let listener = listen(&config.socket).await?;
        priority::serve_with(config.nice);
        let listening = config.listen.map_or_else(|| "none".to_owned(), |address| address.to_string());
        tracing::info!(socket = %config.socket.display(), listen = listening, state = %config.state.display(), "serving");
        let sockets = UnixListenerStream::new(listener).map(|socket| socket.and_then(QuietSocket::new));
        local.serve_with_incoming(sockets).await.context("the server ended")
    };
    let result = tokio::select! {
        ended = local => ended.map(|()| End::Stopped),
        ended = run_if_some(remote) => ended.context("the server for other nodes ended").map(|()| End::Stopped),
        _ = terminate.recv() => Ok(End::Stopped),
        _ = interrupt.recv() => Ok(End::Stopped),
        () = node.rejoined() => Ok(End::Rejoined),
    };
    let _ = fs::remove_file(&config.socket);
    result
}

async fn run_if_some<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Notes ends of connections that were refused before they could ask anything.
fn refused_by(audit: &Arc<Audit>) -> impl Fn(SocketAddr, &str) + Send + Sync + 'static {
    let audit = audit.clone();
    move |from, reason| {
        let (what, result) = ("connection".to_owned(), format!("refused: {reason}"));
        audit.record_stranger(Entry { role: "stranger", from: from.to_string(), what, result, ..Entry::default() });
    }
}
