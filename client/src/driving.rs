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
//! A lock that somebody else has may be waited for for ever. Once such a call has waited for a while it no longer keeps
//! the wheel from becoming free: threads that submit other calls drive as ever, and hear of a grant as well; when nobody
//! has for 2 ms, the session's thread watches, until it has served another call.
//!
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
    let wheel = Wheel(shared);
    let quiet = async {
        shared.wake_stream();
        tokio::time::timeout(DRIVE_MAX, until_quiet(shared)).await
    };
    if runtime.block_on(quiet).is_ok() {
        std::mem::forget(wheel);
    }
}

/// Left with calls waiting, also when what is called from the session panics.
struct Wheel<'a>(&'a Shared);

impl Drop for Wheel<'_> {
    fn drop(&mut self) {
        self.0.leave_wheel();
    }
}

/// The session's thread: runs until shutdown.
pub fn look_after(shared: &Arc<Shared>, runtime: &Runtime) {
    while shared.wait_for_wheel(LOOK_AFTER) {
        runtime.block_on(async {
            shared.wake_stream();
            // Lets the runtime look at its sockets and timers and run what is ready; some of it, such as a
            // new connection, goes on in several turns.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            watch(shared).await;
        });
    }
}

/// As `until_quiet`, for who may stay: until calls were served where locks are waited for, which may be for ever.
async fn watch(shared: &Shared) {
    while !shared.leave_wheel_when_quiet() {
        let changed = shared.quiet.notified();
        if !shared.expects_locks() {
            changed.await;
        } else if tokio::time::timeout(DRIVE_MAX, changed).await.is_err() {
            shared.settle_locks();
        }
    }
}

async fn until_quiet(shared: &Shared) {
    while !shared.leave_wheel_when_quiet() {
        shared.quiet.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Caller, ConnectOptions, Target};
    use brickfs_common::fop::{Fop, FopReply, ObjectRef};
    use brickfs_common::ids::{ClientId, Gfid, SetId};
    use brickfs_common::locks::{LockKind, LockRange};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::task::{Context, Poll, Wake};
    use std::thread;

    fn rig() -> (Arc<Shared>, Runtime) {
        let options =
            ConnectOptions { target: Target::Sockets(Vec::new()), volume: String::new(), timeout: None, poll: false };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        (Arc::new(Shared::new(options, ClientId([1; 16]))), runtime)
    }

    fn submit(shared: &Shared) -> mpsc::Receiver<FopReply> {
        let (sender, replies) = mpsc::channel();
        let done = Box::new(move |reply| drop(sender.send(reply)));
        shared.submit_to(SetId(0), Caller::default(), Fop::StatFs, done);
        replies
    }

    fn reply(request: u64) -> FopReply {
        FopReply::failed(request, brickfs_common::errno::Errno::ENOENT)
    }

    #[test]
    fn one_thread_drives_while_calls_wait_and_no_longer() {
        let (shared, _) = rig();
        assert!(!shared.take_wheel(), "nothing waits");
        let first = submit(&shared);
        assert!(shared.take_wheel());
        assert!(!shared.take_wheel(), "somebody has it");
        let second = submit(&shared);
        shared.finish(reply(1));
        assert!(!shared.leave_wheel_when_quiet());
        shared.finish(reply(2));
        assert!(shared.leave_wheel_when_quiet());
        assert!(!shared.take_wheel());
        assert!(first.try_recv().is_ok() && second.try_recv().is_ok());
    }

    /// A lock that somebody else has.
    fn wait_for_lock(shared: &Shared) -> mpsc::Receiver<FopReply> {
        let (sender, replies) = mpsc::channel();
        let done = Box::new(move |reply| drop(sender.send(reply)));
        let object = ObjectRef { gfid: Gfid::ROOT, home: SetId(0) };
        let (range, kind) = (LockRange::ALL, Some(LockKind::Exclusive));
        let fop = Fop::Lock { object, owner: 1, range, kind, pid: 0, waits: true };
        shared.submit_to(SetId(0), Caller::default(), fop, done);
        replies
    }

    #[test]
    fn who_waits_for_a_lock_does_not_keep_the_wheel_from_others() {
        let (shared, runtime) = rig();
        let lock = wait_for_lock(&shared);
        drive(&shared, &runtime); // for a while, then leaves it to the session's thread
        assert!(shared.wait_for_wheel(LOOK_AFTER));
        assert!(!shared.leave_wheel_when_quiet(), "nobody else would hear of the grant");
        let call = submit(&shared);
        assert!(!shared.leave_wheel_when_quiet());
        shared.finish(reply(2));
        assert!(shared.leave_wheel_when_quiet(), "others make calls: they drive");
        assert!(call.try_recv().is_ok() && !shared.take_wheel());
        let _next = submit(&shared);
        assert!(shared.take_wheel());
        shared.finish(reply(3));
        assert!(shared.leave_wheel_when_quiet());
        assert!(shared.wait_for_wheel(LOOK_AFTER), "nobody makes any: the session's thread watches again");
        shared.finish(reply(1));
        assert!(lock.try_recv().is_ok() && shared.leave_wheel_when_quiet());
    }

    #[test]
    fn a_lock_that_comes_while_the_session_s_thread_watches_is_watched_as_well() {
        let (shared, runtime) = rig();
        let _first = wait_for_lock(&shared);
        drive(&shared, &runtime);
        let session = {
            let shared = shared.clone();
            thread::spawn(move || look_after(&shared, &runtime))
        };
        let _second = wait_for_lock(&shared);
        let started = std::time::Instant::now();
        while shared.expects_locks() {
            assert!(started.elapsed() < Duration::from_secs(10), "it is waited for as if it came soon");
            thread::yield_now();
        }
        shared.shut_down();
        session.join().unwrap();
    }

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes all calls as the stream of a session does; answers how often that was woken since the last time.
    fn take_calls(shared: &Shared, session: u64, wakes: &Arc<Wakes>) -> u32 {
        let waker = wakes.clone().into();
        let mut cx = Context::from_waker(&waker);
        while let Poll::Ready(Some(_)) = shared.poll_outgoing(session, &mut cx) {}
        wakes.0.swap(0, Ordering::Relaxed)
    }

    #[test]
    fn the_stream_is_woken_by_who_drives_or_where_somebody_drives_already() {
        let (shared, runtime) = rig();
        let wakes = Arc::new(Wakes::default());
        let (session, _) = shared.hello();
        shared.resume();
        take_calls(&shared, session, &wakes);
        let _first = submit(&shared);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "nobody drives: a wake-up would be a system call");
        drive(&shared, &runtime);
        assert_eq!(take_calls(&shared, session, &wakes), 1);
        let session_thread = {
            let shared = shared.clone();
            thread::spawn(move || shared.wait_for_wheel(LOOK_AFTER))
        };
        assert!(session_thread.join().unwrap(), "left with a call that waits");
        let _second = submit(&shared);
        assert_eq!(take_calls(&shared, session, &wakes), 1, "somebody drives");
        shared.lost_session("test".into());
        assert_eq!(take_calls(&shared, session, &wakes), 1, "the stream ends");
    }

    #[test]
    fn calls_that_wait_for_long_go_to_the_session_s_thread() {
        let (shared, runtime) = rig();
        let replies = submit(&shared);
        drive(&shared, &runtime);
        assert!(replies.try_recv().is_err());
        let runtime = Arc::new(runtime);
        let session = {
            let (shared, runtime) = (shared.clone(), runtime.clone());
            thread::spawn(move || look_after(&shared, &runtime))
        };
        // What the session's reader would do, on the thread that drives.
        let (theirs, sender) = (shared.clone(), runtime.spawn(async {}));
        runtime.spawn(async move {
            sender.await.ok();
            theirs.finish(reply(1));
        });
        replies.recv().unwrap();
        shared.shut_down();
        session.join().unwrap();
        assert!(!shared.take_wheel());
    }
}
