//! What the file system needs of a volume. The real one is `Volume`; tests answer by hand.

use brickfs_client::volume::{Caller, Done, Volume};
use brickfs_common::fop::Fop;
use brickfs_common::ids::SetId;

/// See the file's head.
pub trait Backend: Send + Sync {
    /// Sends an operation to the set that it belongs to; `done` runs later, or here if it fails at once.
    fn submit(&self, caller: Caller, fop: Fop, done: Done);
    /// Sends an operation to a set.
    fn submit_to(&self, set: SetId, caller: Caller, fop: Fop, done: Done);
    /// Does on this thread what other threads would have to be woken for: sends what was submitted, hands
    /// out answers.
    fn drive(&self);
    /// Whether small operations share the session with bulk: large writes are sent in smaller pieces then.
    fn is_crowded(&self) -> bool;
    /// Number of sets.
    fn set_count(&self) -> usize;
    /// Counts the sessions.
    fn session(&self) -> u64;
    /// The session, if there is one and the client's lease is good for a while yet.
    fn session_with_lease(&self) -> Option<u64>;
}

impl Backend for Volume {
    fn submit(&self, caller: Caller, fop: Fop, done: Done) {
        Volume::submit(self, caller, fop, done);
    }

    fn submit_to(&self, set: SetId, caller: Caller, fop: Fop, done: Done) {
        Volume::submit_to(self, set, caller, fop, done);
    }

    fn drive(&self) {
        Volume::drive(self);
    }

    fn is_crowded(&self) -> bool {
        Volume::is_crowded(self)
    }

    fn set_count(&self) -> usize {
        self.map().sets.len()
    }

    fn session(&self) -> u64 {
        Volume::session(self)
    }

    fn session_with_lease(&self) -> Option<u64> {
        Volume::session_with_lease(self)
    }
}
