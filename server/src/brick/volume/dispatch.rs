//! From a client's call to the operation: who asks, whether it ran before, what can run at once.

use super::data::Reply;
use super::ranges::Span;
use super::{Ask, BoxFuture, Ran, Stop, Volume};
use crate::brick::store::BrickStore;
use crate::brick::store::posix::PosixStore;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{CallHeader, Fop, FopReply, Making};
use brickfs_common::ids::{ClientId, Gfid};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot;

/// What a call is answered with.
#[allow(clippy::large_enum_variant)] // made and taken apart once a call: a box would cost more
pub enum Outcome {
    /// The reply.
    Reply(FopReply),
    /// Computes the reply; may sleep on the disk, so it runs in the pool.
    Later(Box<dyn FnOnce() -> FopReply + Send>),
    /// The reply comes when other sets have answered, or a lock is free.
    Waiting(BoxFuture<FopReply>),
    /// The client's lease has ended: it has to greet again.
    SessionOver,
}

/// What the volume's lock section says of a call before it runs.
pub(super) enum Admission {
    Run,
    Failed(Errno),
    /// The client is not known, or not any more.
    SessionOver,
    /// It ran before: answer from its result.
    Again(crate::brick::effect::Outcome),
    /// It runs now: its reply goes here too.
    Join(oneshot::Receiver<FopReply>),
}

impl Volume<PosixStore> {
    /// Runs one operation of a client's session.
    pub fn call(self: &Arc<Self>, client: ClientId, session: u64, header: &CallHeader, fop: Fop) -> Outcome {
        let request = header.request;
        match self.admit(client, session, header, &fop) {
            Admission::Run => {}
            Admission::Failed(errno) => return Outcome::Reply(FopReply::failed(request, errno)),
            Admission::SessionOver => return Outcome::SessionOver,
            Admission::Again(outcome) => {
                let me = self.clone();
                return self.start(client, request, async move { Ok(me.reply_again(request, &outcome).await) });
            }
            Admission::Join(receiver) => {
                let joined = async move { receiver.await.unwrap_or_else(|_| FopReply::failed(request, Errno::EIO)) };
                return Outcome::Waiting(Box::pin(joined));
            }
        }
        let ask = Ask::new(client, header);
        if let Some(outcome) = self.run_locks(&ask, &fop) {
            return outcome;
        }
        match self.run_at_once(&ask, &fop) {
            Some(Reply::Now(reply)) => Outcome::Reply(reply),
            Some(Reply::Later(work)) => Outcome::Later(work),
            None => {
                let me = self.clone();
                self.start(client, request, async move { me.run(ask, fop).await })
            }
        }
    }

    /// Operations on one object at its home.
    fn run_at_once(self: &Arc<Self>, ask: &Ask, fop: &Fop) -> Option<Reply> {
        let (asker, request) = (ask.asker, ask.asker.request);
        match fop {
            Fop::Fsync { object, data_only } => return Some(self.fsync(request, *object, *data_only)),
            Fop::Write { object, offset, data, flags } if flags.sync => {
                return Some(self.write_through(asker, *object, *offset, data, *flags));
            }
            _ => {}
        }
        let mut state = self.lock();
        let result = match fop {
            Fop::GetAttr { object } => state.get_attr(request, *object),
            Fop::ReadLink { object } => state.read_link(request, *object),
            Fop::Open { object, truncate, wants_descriptor, .. } => {
                state.open_file(ask, *object, *truncate, *wants_descriptor)
            }
            Fop::Release { object } => Ok(state.release(asker, *object)),
            Fop::Read { object, offset, size, wants_descriptor } => {
                return Some(state.read(request, *object, (*offset, *size), *wants_descriptor));
            }
            Fop::Write { object, offset, data, flags } => state.write(asker, *object, *offset, data, *flags),
            Fop::Fallocate { object, mode, offset, length } => state.fallocate(ask, *object, *mode, (*offset, *length)),
            Fop::CopyRange { object, offset, source, source_offset, length } => {
                let target = Span { object: *object, offset: *offset };
                state.copy_range(ask, target, Span { object: *source, offset: *source_offset }, *length)
            }
            Fop::Seek { object, offset, whence } => state.seek(request, *object, *offset, *whence),
            Fop::StatFs => state.stat_fs(request),
            Fop::GetXattr { object, name } => state.get_xattr(request, *object, name),
            Fop::ListXattr { object } => state.list_xattr(request, *object),
            Fop::Renew => Ok(super::done(request)),
            _ => return None,
        };
        Some(Reply::of(request, result))
    }

    /// Operations that may concern several sets.
    async fn run(&self, ask: Ask, fop: Fop) -> Ran {
        match fop {
            Fop::LookupOpen { parent, name } => {
                let found = self.lookup(ask, parent, &name).await?;
                Ok(self.lock().open_found(&ask, found))
            }
            Fop::SetAttr { object, set } => self.set_attr(ask, object, set).await,
            Fop::SetXattr { object, name, value, flags } => {
                self.change_xattr(ask, object, &name, Some(&value), flags).await
            }
            Fop::RemoveXattr { object, name } => self.change_xattr(ask, object, &name, None, 0).await,
            Fop::ReadDir { directory, after, limit, plus } => {
                Ok(self.read_dir(ask.asker.request, ask.set, directory, after, (limit, plus)).await?)
            }
            other => self.run_names(ask, other).await,
        }
    }

    /// Runs an operation as far as it goes now; usually to its end.
    fn start(
        self: &Arc<Self>,
        client: ClientId,
        request: u64,
        operation: impl Future<Output = Ran> + Send + 'static,
    ) -> Outcome {
        let mut reply: BoxFuture<FopReply> = Box::pin(async move {
            match operation.await {
                Ok(reply) => reply,
                Err(Stop::Errno(errno)) => FopReply::failed(request, errno),
                Err(Stop::GoTo(set)) => FopReply { go_to: Some(set), ..FopReply::failed(request, Errno::EIO) },
            }
        });
        match Pin::as_mut(&mut reply).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => Outcome::Reply(reply),
            Poll::Pending => {
                let me = self.clone();
                self.lock().running.entry((client, request)).or_default();
                Outcome::Waiting(Box::pin(async move {
                    let reply = reply.await;
                    let waiters = me.lock().running.remove(&(client, request)).unwrap_or_default();
                    waiters.into_iter().for_each(|waiter| drop(waiter.send(reply.clone())));
                    reply
                }))
            }
        }
    }
}

impl<S: BrickStore> Volume<S> {
    /// A late duplicate in an old connection must not run over newer data, a retry gets the result of the
    /// first try, who knows an old layout or epoch is sent back (PROTOCOL 10, 13; R2).
    pub(super) fn admit(&self, client: ClientId, session: u64, header: &CallHeader, fop: &Fop) -> Admission {
        let mut state = self.lock();
        let generation = state.map.layout.generation;
        let epoch = state.map.sets.get(usize::from(header.set)).map(|set| set.epoch);
        if state.is_stopped {
            return Admission::Failed(Errno::EIO);
        }
        // What it had is others' by now: nothing of this session may land any more (PROTOCOL 16).
        let known = state.clients.by_id.get_mut(&client).filter(|known| known.session > 0);
        let Some(known) = known else { return Admission::SessionOver };
        // What waits for a lock is not counted among what is unanswered.
        if known.session > session || (fop.is_mutation() && header.request < known.lowest_unanswered) {
            return Admission::Failed(Errno::ESTALE);
        }
        known.session = session;
        known.seen(header.lowest_unanswered);
        if !fop.is_mutation() {
            let is_refused = state.read_only && matches!(fop, Fop::Open { writes: true, .. });
            return if is_refused { Admission::Failed(Errno::EROFS) } else { Admission::Run };
        }
        if let Some((_, outcome)) = known.results.get(&header.request).cloned() {
            let opens = matches!(fop, Fop::Make { making: Making::File { open: true, .. }, .. } | Fop::Open { .. });
            if let Some((gfid, home)) = outcome.object.filter(|_| opens) {
                // The greeting that came before this retry announced only what the client knows to be open.
                state.clients.count_open(client, Gfid(gfid), home, 1);
            }
            return Admission::Again(outcome);
        }
        if let Some(waiters) = state.running.get_mut(&(client, header.request)) {
            let (sender, receiver) = oneshot::channel();
            waiters.push(sender);
            return Admission::Join(receiver);
        }
        match epoch {
            None => Admission::Failed(Errno::EINVAL),
            Some(epoch) if header.epoch < epoch || header.generation != generation => Admission::Failed(Errno::ESTALE),
            Some(_) if state.read_only => Admission::Failed(Errno::EROFS),
            Some(_) => Admission::Run,
        }
    }
}
