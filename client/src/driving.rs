//! Who runs the session. Its tasks live on a runtime that one thread at a time runs, and waking another
//! thread costs more than most calls. So a thread that has submitted a call and would only wait takes the
//! wheel: it writes the call to the socket and reads the answer itself, until no call waits. Whoever comes
//! meanwhile submits and is free to do other things. Where calls wait for long, or ever new ones come, the
//! session's thread takes over, so that a thread that serves a kernel is never away for long.
//!
//! ```text
//!           submits, nobody drives             no call waits
//!  Free -------------------------> Taken --------------------> Free
//!                                    | DRIVE_MAX
//!                                    v          session's thread
//!                                  Left ------------------------> Taken
//! ```
//! The session's thread also looks after a free wheel a few times a second, for what comes by itself: the
//! ticks, the end of a connection.

use crate::shared::Shared;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// A thread that submitted calls drives for this long at most.
const DRIVE_MAX: Duration = Duration::from_millis(4);
/// How often the session's thread looks after a free wheel.
const LOOK_AFTER: Duration = Duration::from_millis(250);

/// Runs the session on this thread until no call waits, unless somebody does so already.
pub fn drive(shared: &Shared, runtime: &Runtime) {
    if !shared.take_wheel() {
        return;
    }
    let quiet = async { tokio::time::timeout(DRIVE_MAX, until_quiet(shared)).await };
    if runtime.block_on(quiet).is_err() {
        shared.leave_wheel();
    }
}

/// The session's thread: runs until shutdown.
pub fn look_after(shared: &Arc<Shared>, runtime: &Runtime) {
    while shared.wait_for_wheel(LOOK_AFTER) {
        runtime.block_on(async {
            // Lets the runtime look at its sockets and timers and run what is ready.
            tokio::task::yield_now().await;
            until_quiet(shared).await;
        });
    }
}

async fn until_quiet(shared: &Shared) {
    while !shared.leave_wheel_when_quiet() {
        shared.quiet.notified().await;
    }
}
