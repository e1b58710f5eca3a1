//! Open directories: pages asked of all sets, merged, and given to the kernel as it asks.

use super::dir_stream::{DOT, DOT_DOT, DirStream, Listed, Next};
use super::{Fs, TIMEOUT, lock};
use crate::tables::Asked;
use brickfs_client::volume::Caller;
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Fop, FopReply, ObjectRef};
use brickfs_common::ids::SetId;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Entries asked of a set at once.
const PAGE_ENTRIES: u32 = 1024;

/// One entry for the kernel.
pub struct Item<'a> {
    /// The inode number that this mount shows.
    pub ino: u64,
    /// Where the listing goes on after it.
    pub offset: u64,
    /// The name.
    pub name: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Attributes and how long they hold; `None` if the kernel must look it up to know them.
    pub attr: Option<(&'a Attr, Duration)>,
}

/// Where a listing goes: a reply of the size that the kernel asked for.
pub trait Listing: Send {
    /// Adds an entry; true if it did not fit.
    fn add(&mut self, item: &Item<'_>) -> bool;
    /// Sends the reply.
    fn finish(self: Box<Self>, result: Result<(), Errno>);
}

/// An open directory.
pub struct OpenDir {
    ino: u64,
    object: ObjectRef,
    stream: DirStream,
    /// Pages asked for and not yet there.
    asked: usize,
    /// The reply that waits for them.
    filling: Option<Filling>,
}

/// A reply being filled.
struct Filling {
    reply: Box<dyn Listing>,
    /// With attributes: an entry that is added counts as a lookup.
    plus: bool,
    caller: Caller,
    /// Offset of the last entry in the reply, or of where the kernel asked to go on.
    offset: u64,
    has_entries: bool,
}

impl Fs {
    /// Opens a directory.
    pub fn open_dir(&self, ino: u64) -> Result<u64, Errno> {
        let object = self.object(ino)?;
        let stream = DirStream::new(self.backend.set_count());
        let dir = OpenDir { ino, object, stream, asked: 0, filling: None };
        Ok(lock(&self.dirs).open(Arc::new(Mutex::new(dir))))
    }

    /// Closes a directory.
    pub fn release_dir(&self, handle: u64) {
        lock(&self.dirs).close(handle);
    }

    /// Lists a directory from `offset` on, with attributes if `plus`.
    pub fn list(self: &Arc<Self>, caller: Caller, handle: u64, (offset, plus): (u64, bool), reply: Box<dyn Listing>) {
        let dir = lock(&self.dirs).get(handle);
        let Some(dir) = dir else { return reply.finish(Err(Errno::EBADF)) };
        {
            let mut dir = lock(&dir);
            dir.stream.seek(offset);
            dir.filling = Some(Filling { reply, plus, caller, offset, has_entries: false });
        }
        self.fill(&dir);
    }

    /// Fills the waiting reply from the stream; asks the sets for more where it is dry.
    fn fill(self: &Arc<Self>, dir: &Arc<Mutex<OpenDir>>) {
        let mut guard = lock(dir);
        let dir_now = &mut *guard;
        if dir_now.asked > 0 {
            return;
        }
        let Some(mut filling) = dir_now.filling.take() else { return };
        let asks = match self.fill_from(dir_now, &mut filling) {
            Ok(asks) if !asks.is_empty() => asks,
            outcome => {
                drop(guard);
                return filling.reply.finish(outcome.map(|_| ()));
            }
        };
        dir_now.asked = asks.len();
        let (object, plus, caller) = (dir_now.object, filling.plus, filling.caller);
        dir_now.filling = Some(filling);
        drop(guard);
        // A write that has not been sent yet would be missing in the attributes.
        let actions = lock(&self.writes).send_held();
        self.perform(actions);
        for (set, after) in asks {
            self.ask_page(dir.clone(), (object, SetId(set as u16)), after, plus, caller);
        }
    }

    /// Adds what is there; answers whom to ask for more, or nobody when the reply is full or all is listed.
    fn fill_from(&self, dir: &mut OpenDir, filling: &mut Filling) -> Result<Vec<(usize, u64)>, Errno> {
        if filling.add_dots(dir.ino) {
            return Ok(Vec::new());
        }
        loop {
            match dir.stream.next() {
                Next::Entry(listed) => {
                    if self.add(dir.ino, &listed, filling) {
                        return Ok(Vec::new());
                    }
                    dir.stream.advance();
                }
                Next::Ask(sets) => return Ok(sets),
                Next::End => return Ok(Vec::new()),
                // What was listed is given first: the error is never a shorter list.
                Next::Failed(_) if filling.has_entries => return Ok(Vec::new()),
                Next::Failed(errno) => return Err(errno),
            }
        }
    }

    fn ask_page(
        self: &Arc<Self>,
        dir: Arc<Mutex<OpenDir>>,
        (directory, set): (ObjectRef, SetId),
        after: u64,
        plus: bool,
        caller: Caller,
    ) {
        let (fs, asked) = (self.clone(), self.asked());
        let fop = Fop::ReadDir { directory, after, limit: PAGE_ENTRIES, plus };
        let done = move |reply: FopReply| {
            {
                let mut dir = lock(&dir);
                dir.asked -= 1;
                let page = match reply.result {
                    Ok(Answer::Entries { entries, end }) => Ok((entries, end)),
                    Ok(_) => Err(Errno::EIO),
                    Err(errno) => Err(errno),
                };
                dir.stream.page(usize::from(set.0), asked, page);
            }
            fs.fill(&dir);
        };
        self.backend.submit_to(set, caller, fop, Box::new(done));
    }

    /// Adds an entry; true if it did not fit. Only an entry that fits counts as a lookup.
    fn add(&self, parent: u64, listed: &Listed<'_>, filling: &mut Filling) -> bool {
        let (entry, now) = (listed.entry, Instant::now());
        let ino = lock(&self.tables).ino(&entry.gfid);
        let is_busy = entry.kind == Kind::File && self.is_busy(ino);
        let mut tables = lock(&self.tables);
        // Attributes that are old, or older than what the kernel knows, are left out: it asks when it needs them.
        let is_told = |attr: &&Attr| !is_busy && tables.is_current(attr, listed.asked) && !is_past(listed.asked, now);
        let attr = entry.attr.as_ref().filter(is_told);
        let ino = match (filling.plus, attr) {
            (false, _) => ino,
            (true, None) => tables.enter_bare(ObjectRef { gfid: entry.gfid, home: listed.home }),
            (true, Some(attr)) => {
                let key = tables.key(parent, entry.name.as_bytes());
                tables.enter(key, attr, listed.asked)
            }
        };
        let told = attr.filter(|_| filling.plus);
        let name = (parent, entry.name.as_bytes());
        let ttl = told.map(|attr| tables.tell(ino, attr.kind, Some(name), listed.asked, now)).unwrap_or_default();
        let item = Item {
            ino,
            offset: listed.offset,
            name: entry.name.as_bytes(),
            kind: entry.kind,
            attr: attr.map(|attr| (attr, ttl)),
        };
        let is_full = filling.reply.add(&item);
        if is_full && filling.plus {
            tables.forget(ino, 1);
        }
        if !is_full {
            (filling.offset, filling.has_entries) = (listed.offset, true);
        }
        is_full
    }
}

/// Whether a page has waited so long for the kernel that its attributes are left out.
fn is_past(asked: Asked, now: Instant) -> bool {
    now.saturating_duration_since(asked.at) >= TIMEOUT
}

impl Filling {
    /// Adds `.` and `..` where the kernel starts; true if the reply is full.
    fn add_dots(&mut self, ino: u64) -> bool {
        for (offset, name) in [(DOT, &b"."[..]), (DOT_DOT, b"..")] {
            if self.offset >= offset {
                continue;
            }
            if self.reply.add(&Item { ino, offset, name, kind: Kind::Directory, attr: None }) {
                return true;
            }
            (self.offset, self.has_entries) = (offset, true);
        }
        false
    }
}
