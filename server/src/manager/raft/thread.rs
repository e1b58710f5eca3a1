//! The manager thread: a runtime of its own for everything that may wait for a disk or for other nodes, so
//! that the thread that serves files never does.

use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The owner of the thread. Dropping it ends the thread and everything that still runs there, and waits for
/// that.
pub struct ManagerThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ManagerThread {
    /// Starts the thread.
    pub fn start(name: &str) -> io::Result<ManagerThread> {
        let runtime = Builder::new_current_thread().enable_all().thread_name(format!("{name}-disk")).build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Ends by the message or by the sender's drop, both of which say the same.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(ManagerThread { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// For what wants to run there.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs a future on the thread. The returned future may be awaited in any runtime; it is `None` if the
    /// thread ended first or the future panicked.
    pub fn run<F>(&self, future: F) -> impl Future<Output = Option<F::Output>> + Send + use<F>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let task = self.handle.spawn(future);
        async move { task.await.ok() }
    }

    /// Runs a future on the thread and blocks until it is done: for threads without a runtime. `None` as of
    /// `run`.
    pub fn block_on<F>(&self, future: F) -> Option<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.handle.spawn(async move { drop(sender.send(future.await)) });
        receiver.recv().ok()
    }
}

impl Drop for ManagerThread {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn futures_run_on_the_named_thread() {
        let thread = ManagerThread::start("manager").unwrap();
        let name = thread.block_on(async { std::thread::current().name().map(str::to_owned) });
        assert_eq!(name.flatten().as_deref(), Some("manager"));
        let other = Builder::new_current_thread().build().unwrap();
        assert_eq!(other.block_on(thread.run(async { 5 })), Some(5));
    }

    #[test]
    fn dropping_the_owner_ends_what_runs_there() {
        let thread = ManagerThread::start("manager").unwrap();
        let (sender, receiver) = mpsc::channel::<()>();
        drop(thread.run(async move {
            let _sender = sender;
            std::future::pending::<()>().await;
        }));
        drop(thread);
        assert!(receiver.recv().is_err());
    }
}
