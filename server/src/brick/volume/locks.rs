//! Locks between clients, as operations: who asks must have the file open, and what a client holds ends with its lease.

use super::dispatch::Outcome;
use super::lock_table::{Asked, LockOwner, Wanted};
use super::{Ask, State, Volume, done};
use crate::brick::store::BrickStore;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Fop, FopReply, ObjectRef};
use brickfs_common::locks::{LockKind, LockRange};
use std::sync::Arc;

/// A lock as a client asks for it.
struct Asking {
    object: ObjectRef,
    owner: LockOwner,
    range: LockRange,
    kind: Option<LockKind>,
    pid: u32,
    waits: bool,
}

impl<S: BrickStore + Send + 'static> Volume<S> {
    /// Runs an operation on locks; `None` if it is another one.
    pub(super) fn run_locks(self: &Arc<Self>, ask: &Ask, fop: &Fop) -> Option<Outcome> {
        let (client, request) = (ask.asker.client, ask.asker.request);
        let (Fop::Lock { object, .. } | Fop::TestLock { object, .. } | Fop::CancelLock { object, .. }) = fop else {
            return None;
        };
        let is_open = self.lock().clients.by_id.get(&client).is_some_and(|c| c.opens.contains_key(&object.gfid));
        if !is_open {
            return Some(Outcome::Reply(FopReply::failed(request, Errno::EBADF)));
        }
        let result = match *fop {
            Fop::Lock { object, owner, range, kind, pid, waits } => {
                let owner = LockOwner { client, number: owner };
                let asking = Asking { object, owner, range, kind, pid, waits };
                return Some(self.lock_file(request, asking));
            }
            Fop::TestLock { object, owner, range, kind } => {
                let wanted = Wanted { owner: LockOwner { client, number: owner }, range, kind, pid: 0 };
                let in_the_way = self.lock().locks.in_the_way(&object.gfid, &wanted);
                FopReply { result: Ok(Answer::InTheWay(in_the_way)), ..done(request) }
            }
            Fop::CancelLock { object, request: cancelled } => {
                self.lock().locks.cancel(object.gfid, client, cancelled);
                done(request)
            }
            _ => return None,
        };
        Some(Outcome::Reply(result))
    }

    fn lock_file(self: &Arc<Self>, request: u64, asking: Asking) -> Outcome {
        let object = asking.object;
        let asked = self.lock().ask_for_lock(request, asking);
        match asked {
            Asked::Now(result) => Outcome::Reply(self.lock().locked(request, object, result)),
            Asked::Later(answer) => {
                let me = self.clone();
                Outcome::Waiting(Box::pin(async move {
                    // Without an answer the volume is stopped.
                    let result = answer.await.unwrap_or(Err(Errno::EIO));
                    me.lock().locked(request, object, result)
                }))
            }
        }
    }
}

impl<S: BrickStore> State<S> {
    fn ask_for_lock(&mut self, request: u64, asking: Asking) -> Asked {
        let Asking { object, owner, range, kind, pid, waits } = asking;
        let Some(kind) = kind else {
            return Asked::Now(self.locks.unlock(object.gfid, owner, range));
        };
        self.locks.ask(object.gfid, request, Wanted { owner, range, kind, pid }, waits)
    }

    /// The reply, with the file as it is now: who has got a lock sees all that was written before.
    fn locked(&mut self, request: u64, object: ObjectRef, result: Result<(), Errno>) -> FopReply {
        match result {
            Ok(()) => FopReply { attr: self.attr_at_home(object).ok(), ..done(request) },
            Err(errno) => FopReply::failed(request, errno),
        }
    }

    /// Whether clients may still announce locks that they had before the start. Those whose time is over are first
    /// forgotten on the bricks.
    pub fn look_at_grace(&mut self) {
        self.locks.set_grace(self.clients.is_grace() || !self.clients.ended.is_empty());
    }
}
