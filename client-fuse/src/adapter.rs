//! The FUSE adapter: decodes, asks the volume, replies. fuser's types stop here and in `convert`.
//!
//! No method blocks: the reply goes into the closure that the volume's session thread runs. Locks: `inodes`,
//! `handles`, `dirs` and `writes` are each held for a few lines and never together.

use crate::convert::{file_attr, file_type, fuse_errno, set_time};
use crate::dirs::{DOT, DOT_DOT, DirStream, Next};
use crate::inodes::{ATTR_AGE, InodeTable};
use crate::writes::WriteBehind;
use brickfs_client::volume::{Caller, Volume};
use brickfs_common::attr::{Kind, SetAttr};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, DirEntry, Fop, FopReply, Making, ObjectRef, PIECE_BYTES, RenameFlags, WriteFlags};
use brickfs_common::ids::SetId;
use brickfs_common::name::Name;
use bytes::Bytes;
use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Entries asked of a set at once.
const PAGE_ENTRIES: u32 = 1024;
/// Readahead asked of the kernel in bytes.
const READAHEAD_BYTES: u32 = 4 << 20;
/// Requests that the kernel may have in the background.
const BACKGROUND_MAX: u16 = 128;
/// Generation of inode numbers: gfids are never used again.
const GENERATION: Generation = Generation(0);

/// What an open file handle stands for.
#[derive(Clone, Copy)]
struct Handle {
    object: ObjectRef,
    /// O_APPEND: one FUSE write is one append.
    append: bool,
    /// O_DIRECT: answered when the brick has it.
    direct: bool,
    /// O_SYNC or O_DSYNC.
    sync: bool,
}

/// An open directory.
struct Dir {
    object: ObjectRef,
    stream: DirStream,
    plus: bool,
    /// Pages asked for and not yet there; the reply that waits for them.
    asked: usize,
    waiting: Option<Waiting>,
}

/// A listing reply being filled.
enum Waiting {
    Plain(ReplyDirectory, u64),
    Plus(ReplyDirectoryPlus, u64),
}

struct State {
    volume: Volume,
    inodes: Mutex<InodeTable>,
    handles: Mutex<HashMap<u64, Handle>>,
    dirs: Mutex<HashMap<u64, Arc<Mutex<Dir>>>>,
    writes: Mutex<WriteBehind>,
    next_handle: AtomicU64,
    ttl: Duration,
}

/// A mounted volume.
#[derive(Clone)]
pub struct Mount(Arc<State>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn name_of(name: &OsStr) -> Result<Name, Errno> {
    Name::new(name.as_bytes().to_vec())
}

/// Answers with the error and returns, or goes on with the value.
macro_rules! or_reply {
    ($reply:ident, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(errno) => return $reply.error(fuse_errno(errno)),
        }
    };
}

impl Mount {
    /// A mount of `root`, a directory of the volume.
    pub fn new(volume: Volume, root: ObjectRef, is_strict: bool) -> Mount {
        Mount(Arc::new(State {
            volume,
            inodes: Mutex::new(InodeTable::new(root, is_strict)),
            handles: Mutex::new(HashMap::new()),
            dirs: Mutex::new(HashMap::new()),
            writes: Mutex::new(WriteBehind::default()),
            next_handle: AtomicU64::new(1),
            ttl: if is_strict { Duration::ZERO } else { ATTR_AGE },
        }))
    }
}

impl State {
    fn object(&self, ino: INodeNo) -> Result<ObjectRef, Errno> {
        lock(&self.inodes).get(ino.0).map(|inode| inode.object).ok_or(Errno::ESTALE)
    }

    fn named(&self, parent: INodeNo, name: &OsStr) -> Result<(ObjectRef, Name), Errno> {
        Ok((self.object(parent)?, name_of(name)?))
    }

    /// Keeps what a reply says of directories, so that the kernel's next question is answered here.
    fn keep_parents(&self, reply: &FopReply) {
        let mut inodes = lock(&self.inodes);
        for attr in [&reply.parent, &reply.new_parent].into_iter().flatten() {
            inodes.keep_attr(attr);
        }
    }

    /// Takes the entry out of a reply and counts the kernel's lookup of it.
    fn entry(&self, reply: FopReply) -> Result<FileAttr, Errno> {
        self.keep_parents(&reply);
        reply.result?;
        let attr = reply.attr.ok_or(Errno::ESTALE)?;
        let ino = lock(&self.inodes).remember(&attr);
        Ok(file_attr(ino, &attr))
    }

    fn attr(&self, ino: u64, reply: FopReply) -> Result<FileAttr, Errno> {
        reply.result?;
        let attr = reply.attr.ok_or(Errno::EIO)?;
        lock(&self.inodes).keep_attr(&attr);
        Ok(file_attr(ino, &attr))
    }

    fn open_handle(&self, object: ObjectRef, flags: i32) -> (FileHandle, FopenFlags) {
        let has = |flag: i32| flags & flag == flag;
        let handle = Handle {
            object,
            append: has(libc::O_APPEND),
            direct: has(libc::O_DIRECT),
            sync: has(libc::O_SYNC) || has(libc::O_DSYNC),
        };
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.handles).insert(number, handle);
        self.volume.open_count(object, 1);
        let flags = match handle {
            Handle { append: true, .. } => FopenFlags::FOPEN_DIRECT_IO,
            Handle { direct: true, .. } => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            _ => FopenFlags::empty(),
        };
        (FileHandle(number), flags)
    }

    fn handle(&self, fh: FileHandle) -> Result<Handle, Errno> {
        lock(&self.handles).get(&fh.0).copied().ok_or(Errno::EBADF)
    }

    /// Runs `then` when no write of the inode is on its way.
    fn when_drained(&self, ino: u64, then: impl FnOnce() + Send + 'static) {
        let now = lock(&self.writes).when_drained(ino, Box::new(then));
        if let Some(now) = now {
            now();
        }
    }

    fn is_absent_locally(&self, ino: INodeNo, name: &OsStr) -> bool {
        let inodes = lock(&self.inodes);
        let Some(attr) = inodes.fresh_attr(ino.0) else { return false };
        match name.as_bytes() {
            b"security.capability" => !attr.has_capability,
            b"system.posix_acl_access" | b"system.posix_acl_default" => !attr.has_acl,
            _ => false,
        }
    }

    /// Submits an operation that makes a name, and replies with its entry.
    fn make(self: &Arc<Self>, caller: Caller, fop: Fop, reply: ReplyEntry) {
        let state = self.clone();
        self.volume.submit(caller, fop, move |answer| match state.entry(answer) {
            Ok(attr) => reply.entry(&state.ttl, &attr, GENERATION),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    /// Submits an operation that answers with success alone.
    fn simple(self: &Arc<Self>, caller: Caller, fop: Fop, keeps_attr: bool, reply: ReplyEmpty) {
        let state = self.clone();
        self.volume.submit(caller, fop, move |answer| {
            state.keep_parents(&answer);
            if keeps_attr && let Some(attr) = &answer.attr {
                lock(&state.inodes).keep_attr(attr);
            }
            match answer.result {
                Ok(_) => reply.ok(),
                Err(errno) => reply.error(fuse_errno(errno)),
            }
        });
    }

    /// Submits an operation that answers with bytes for an xattr reply of `size` (0: the length).
    fn xattr_bytes(&self, caller: Caller, fop: Fop, size: u32, reply: ReplyXattr) {
        self.volume.submit(caller, fop, move |answer| match answer.result {
            Ok(Answer::Data(data)) if size == 0 => reply.size(data.len() as u32),
            Ok(Answer::Data(data)) if data.len() > size as usize => reply.error(fuser::Errno::ERANGE),
            Ok(Answer::Data(data)) => reply.data(&data),
            Ok(_) => reply.error(fuser::Errno::EIO),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn open_dir(&self, object: ObjectRef) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let stream = DirStream::new(self.volume.map().sets.len());
        let dir = Dir { object, stream, plus: true, asked: 0, waiting: None };
        lock(&self.dirs).insert(number, Arc::new(Mutex::new(dir)));
        FileHandle(number)
    }

    fn list(self: &Arc<Self>, fh: FileHandle, offset: u64, plus: bool, waiting: Waiting) {
        let Some(dir) = lock(&self.dirs).get(&fh.0).cloned() else { return waiting.fail(Errno::EBADF) };
        {
            let mut dir = lock(&dir);
            dir.stream.seek(offset);
            dir.plus = plus;
            dir.waiting = Some(waiting);
        }
        self.fill(&dir);
    }

    /// Fills the waiting reply from the stream; asks the sets for more where it is dry.
    fn fill(self: &Arc<Self>, dir: &Arc<Mutex<Dir>>) {
        let mut guard = lock(dir);
        if guard.asked > 0 {
            return;
        }
        let Some(mut waiting) = guard.waiting.take() else { return };
        if waiting.add_dots(self, guard.object) {
            return waiting.ok();
        }
        loop {
            let before = guard.stream.position();
            match guard.stream.next() {
                Next::Entry(offset, entry) => {
                    if waiting.add(self, offset, &entry) {
                        guard.stream.put_back(before, offset, entry);
                        return waiting.ok();
                    }
                }
                Next::End => return waiting.ok(),
                Next::Failed(_) if waiting.has_entries() => return waiting.ok(),
                Next::Failed(errno) => return waiting.fail(errno),
                Next::Ask(sets) => {
                    guard.asked = sets.len();
                    guard.waiting = Some(waiting);
                    let (directory, plus) = (guard.object, guard.plus);
                    drop(guard);
                    for (set, after) in sets {
                        self.ask_page(dir.clone(), directory, set, after, plus);
                    }
                    return;
                }
            }
        }
    }

    fn ask_page(self: &Arc<Self>, dir: Arc<Mutex<Dir>>, directory: ObjectRef, set: usize, after: u64, plus: bool) {
        let state = self.clone();
        let fop = Fop::ReadDir { directory, after, limit: PAGE_ENTRIES, plus };
        self.volume.submit_to(SetId(set as u16), Caller::default(), fop, move |answer| {
            {
                let mut dir = lock(&dir);
                dir.asked -= 1;
                let page = match answer.result {
                    Ok(Answer::Entries { entries, end }) => Ok((entries, end)),
                    Ok(_) => Err(Errno::EIO),
                    Err(errno) => Err(errno),
                };
                dir.stream.page(set, page);
            }
            state.fill(&dir);
        });
    }
}

impl Waiting {
    fn ok(self) {
        match self {
            Waiting::Plain(reply, _) => reply.ok(),
            Waiting::Plus(reply, _) => reply.ok(),
        }
    }

    fn fail(self, errno: Errno) {
        match self {
            Waiting::Plain(reply, _) => reply.error(fuse_errno(errno)),
            Waiting::Plus(reply, _) => reply.error(fuse_errno(errno)),
        }
    }

    /// Offset of the last entry in the reply or of where the kernel asked to go on.
    fn last(&mut self) -> &mut u64 {
        match self {
            Waiting::Plain(_, last) | Waiting::Plus(_, last) => last,
        }
    }

    /// Whether anything beyond the asked offset is in the reply: its highest bit says so.
    fn has_entries(&mut self) -> bool {
        *self.last() & ADDED != 0
    }

    /// Adds `.` and `..` where the kernel starts; true if the reply is full.
    fn add_dots(&mut self, state: &State, directory: ObjectRef) -> bool {
        let ino = INodeNo(lock(&state.inodes).ino(&directory.gfid));
        for (offset, name) in [(DOT, "."), (DOT_DOT, "..")] {
            if *self.last() & !ADDED >= offset {
                continue;
            }
            let is_full = match self {
                Waiting::Plain(reply, _) => reply.add(ino, offset, FileType::Directory, name),
                Waiting::Plus(reply, _) => {
                    let attr = bare_attr(ino, FileType::Directory);
                    reply.add(ino, offset, name, &Duration::ZERO, &attr, GENERATION)
                }
            };
            if is_full {
                return true;
            }
            *self.last() = offset | ADDED;
        }
        false
    }

    /// Adds an entry; true if it did not fit. Only an entry that fits counts as a lookup.
    fn add(&mut self, state: &State, offset: u64, entry: &DirEntry) -> bool {
        let name = OsStr::from_bytes(entry.name.as_bytes());
        let is_full = match self {
            Waiting::Plain(reply, _) => {
                let ino = INodeNo(lock(&state.inodes).ino(&entry.gfid));
                reply.add(ino, offset, file_type(entry.kind), name)
            }
            Waiting::Plus(reply, _) => match &entry.attr {
                None => {
                    let ino = INodeNo(lock(&state.inodes).ino(&entry.gfid));
                    let attr = bare_attr(ino, file_type(entry.kind));
                    // Attributes unknown: no lookup is counted for a zero node id.
                    reply.add(INodeNo(0), offset, name, &Duration::ZERO, &attr, GENERATION)
                }
                Some(attr) => {
                    let ino = lock(&state.inodes).remember(attr);
                    let ttl = state.ttl;
                    let is_full = reply.add(INodeNo(ino), offset, name, &ttl, &file_attr(ino, attr), GENERATION);
                    if is_full {
                        lock(&state.inodes).forget(ino, 1);
                    }
                    is_full
                }
            },
        };
        if !is_full {
            *self.last() = offset | ADDED;
        }
        is_full
    }
}

/// Marks `Waiting`'s offset: an entry has been added. Offsets are below 2^63.
const ADDED: u64 = 1 << 63;

fn bare_attr(ino: INodeNo, kind: FileType) -> FileAttr {
    let t = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: t,
        mtime: t,
        ctime: t,
        crtime: t,
        kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Mount {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_ASYNC_DIO;
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::warn!("the kernel lacks {flag:?}");
            }
        }
        // Both answer with the nearest allowed value, which is what holds then.
        config.set_max_write(PIECE_BYTES as u32).ok();
        config.set_max_readahead(READAHEAD_BYTES).ok();
        config.set_max_background(BACKGROUND_MAX).ok();
        config.set_time_granularity(Duration::from_nanos(1)).ok();
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, name) = or_reply!(reply, self.0.named(parent, name));
        self.0.make(caller(req), Fop::Lookup { parent, name }, reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        lock(&self.0.inodes).forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let object = {
            let inodes = lock(&self.0.inodes);
            match inodes.fresh_attr(ino.0) {
                Some(attr) if attr.kind == Kind::Directory => {
                    return reply.attr(&self.0.ttl, &file_attr(ino.0, attr));
                }
                _ => inodes.get(ino.0).map(|inode| inode.object),
            }
        };
        let object = or_reply!(reply, object.ok_or(Errno::ESTALE));
        let state = self.0.clone();
        self.0.volume.submit(caller(req), Fop::GetAttr { object }, move |answer| match state.attr(ino.0, answer) {
            Ok(attr) => reply.attr(&state.ttl, &attr),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let object = or_reply!(reply, self.0.object(ino));
        let set = SetAttr {
            perm: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            kill_suidgid: size.is_some() && req.uid() != 0,
        };
        let state = self.0.clone();
        let fop = Fop::SetAttr { object, set };
        self.0.volume.submit(caller(req), fop, move |answer| match state.attr(ino.0, answer) {
            Ok(attr) => reply.attr(&state.ttl, &attr),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let object = or_reply!(reply, self.0.object(ino));
        self.0.volume.submit(caller(req), Fop::ReadLink { object }, move |answer| match answer.result {
            Ok(Answer::Data(target)) => reply.data(&target),
            Ok(_) => reply.error(fuser::Errno::EIO),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let (parent, name) = or_reply!(reply, self.0.named(parent, name));
        let kind = or_reply!(reply, Kind::from_mode(mode).ok_or(Errno::EINVAL));
        let making = match kind {
            Kind::File => Making::File { open: false, exclusive: true, truncate: false },
            kind => Making::Record(kind, rdev),
        };
        self.0.make(caller(req), Fop::Make { parent, name, making, perm: mode & 0o7777, umask }, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (parent, name) = or_reply!(reply, self.0.named(parent, name));
        let fop = Fop::Make { parent, name, making: Making::Directory, perm: mode & 0o7777, umask };
        self.0.make(caller(req), fop, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = or_reply!(reply, self.0.named(parent, name));
        self.0.simple(caller(req), Fop::Unlink { parent, name }, false, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (parent, name) = or_reply!(reply, self.0.named(parent, name));
        self.0.simple(caller(req), Fop::Rmdir { parent, name }, false, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (parent, name) = or_reply!(reply, self.0.named(parent, name));
        let making = Making::Symlink(Bytes::copy_from_slice(target.as_os_str().as_bytes()));
        self.0.make(caller(req), Fop::Make { parent, name, making, perm: 0o777, umask: 0 }, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (parent, name) = or_reply!(reply, self.0.named(parent, name));
        let (new_parent, new_name) = or_reply!(reply, self.0.named(newparent, newname));
        let flags = or_reply!(reply, RenameFlags::from_bits(flags.bits()));
        if flags.exchange {
            // The reply has the attributes of one of the two alone.
            lock(&self.0.inodes).drop_attrs();
        }
        self.0.simple(caller(req), Fop::Rename { parent, name, new_parent, new_name, flags }, true, reply);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let object = or_reply!(reply, self.0.object(ino));
        let (new_parent, new_name) = or_reply!(reply, self.0.named(newparent, newname));
        self.0.make(caller(req), Fop::Link { object, new_parent, new_name }, reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let object = or_reply!(reply, self.0.object(ino));
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let state = self.0.clone();
        self.0.volume.submit(caller(req), Fop::Open { object, truncate }, move |answer| match answer.result {
            Ok(_) => {
                let (fh, fopen) = state.open_handle(object, flags.0);
                reply.opened(fh, fopen);
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let object = or_reply!(reply, self.0.handle(fh).map(|h| h.object).or_else(|_| self.0.object(ino)));
        let fop = Fop::Read { object, offset, size };
        self.0.volume.submit(caller(req), fop, move |answer| match answer.result {
            Ok(Answer::Data(data)) => reply.data(&data),
            Ok(_) => reply.error(fuser::Errno::EIO),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let handle = or_reply!(reply, self.0.handle(fh));
        if let Some(errno) = lock(&self.0.writes).take_error(fh.0) {
            return reply.error(fuse_errno(errno));
        }
        let flags = WriteFlags {
            append: handle.append,
            kill_priv: write_flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            sync: handle.sync,
        };
        let size = data.len();
        let fop = Fop::Write { object: handle.object, offset, data: Bytes::copy_from_slice(data), flags };
        let state = self.0.clone();
        if handle.append || handle.direct || handle.sync {
            self.0.volume.submit(caller(req), fop, move |answer| match answer.result {
                Ok(Answer::Written { count, .. }) => reply.written(count),
                Ok(_) => reply.error(fuser::Errno::EIO),
                Err(errno) => reply.error(fuse_errno(errno)),
            });
            return;
        }
        // Counted before it is sent: its answer may come at once on the other thread.
        let ino = ino.0;
        lock(&self.0.writes).queued(ino, fh.0, size);
        self.0.volume.submit(caller(req), fop, move |answer| {
            let waiters = lock(&state.writes).answered(ino, size, answer.result.map(|_| ()));
            for waiter in waiters {
                waiter();
            }
        });
        lock(&self.0.writes).sent(ino, size, reply);
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let state = self.0.clone();
        self.0.when_drained(ino.0, move || match lock(&state.writes).take_error(fh.0) {
            None => reply.ok(),
            Some(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        let Some(handle) = lock(&self.0.handles).remove(&fh.0) else { return };
        let (state, caller) = (self.0.clone(), caller(req));
        self.0.when_drained(ino.0, move || {
            if let Some(errno) = lock(&state.writes).take_error(fh.0) {
                tracing::error!(gfid = %handle.object.gfid, "a write failed after the last close: {errno}");
            }
            state.volume.open_count(handle.object, -1);
            state.volume.submit(caller, Fop::Release { object: handle.object }, |_| ());
        });
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let handle = or_reply!(reply, self.0.handle(fh));
        let (state, caller) = (self.0.clone(), caller(req));
        self.0.when_drained(ino.0, move || {
            let queued = lock(&state.writes).take_error(fh.0);
            let fop = Fop::Fsync { object: handle.object, data_only: datasync };
            state.volume.submit(caller, fop, move |answer| match (queued, answer.result) {
                (None, Ok(_)) => reply.ok(),
                (Some(errno), _) | (None, Err(errno)) => reply.error(fuse_errno(errno)),
            });
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let object = or_reply!(reply, self.0.object(ino));
        reply.opened(self.0.open_dir(object), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.0.list(fh, offset, false, Waiting::Plain(reply, offset));
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.0.list(fh, offset, true, Waiting::Plus(reply, offset));
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        lock(&self.0.dirs).remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let object = or_reply!(reply, self.0.object(ino));
        self.0.simple(caller(req), Fop::Fsync { object, data_only: datasync }, false, reply);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.0.volume.submit(caller(req), Fop::StatFs, move |answer| match answer.result {
            Ok(Answer::Space(s)) => {
                let blocks = |bytes: u64| bytes / 4096;
                let (total, free, available) = (blocks(s.total_bytes), blocks(s.free_bytes), blocks(s.available_bytes));
                reply.statfs(total, free, available, s.total_inodes, s.free_inodes, 4096, 255, 4096);
            }
            Ok(_) => reply.error(fuser::Errno::EIO),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let object = or_reply!(reply, self.0.object(ino));
        let name = Bytes::copy_from_slice(name.as_bytes());
        let fop = Fop::SetXattr { object, name, value: Bytes::copy_from_slice(value), flags: flags as u32 };
        lock(&self.0.inodes).drop_attr(ino.0);
        self.0.simple(caller(req), fop, true, reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.0.is_absent_locally(ino, name) {
            return reply.error(fuse_errno(Errno::ENODATA));
        }
        let object = or_reply!(reply, self.0.object(ino));
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.0.xattr_bytes(caller(req), Fop::GetXattr { object, name }, size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let object = or_reply!(reply, self.0.object(ino));
        self.0.xattr_bytes(caller(req), Fop::ListXattr { object }, size, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let object = or_reply!(reply, self.0.object(ino));
        lock(&self.0.inodes).drop_attr(ino.0);
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.0.simple(caller(req), Fop::RemoveXattr { object, name }, true, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (parent, name) = or_reply!(reply, self.0.named(parent, name));
        let making =
            Making::File { open: true, exclusive: flags & libc::O_EXCL != 0, truncate: flags & libc::O_TRUNC != 0 };
        let state = self.0.clone();
        let fop = Fop::Make { parent, name, making, perm: mode & 0o7777, umask };
        self.0.volume.submit(caller(req), fop, move |answer| {
            let object = answer.attr.as_ref().map(|attr| ObjectRef { gfid: attr.gfid, home: attr.home });
            match (state.entry(answer), object) {
                (Ok(attr), Some(object)) => {
                    let (fh, fopen) = state.open_handle(object, flags);
                    reply.created(&state.ttl, &attr, GENERATION, fh, fopen);
                }
                (Err(errno), _) => reply.error(fuse_errno(errno)),
                (Ok(_), None) => reply.error(fuser::Errno::EIO),
            }
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let object = or_reply!(reply, self.0.handle(fh)).object;
        self.0.simple(caller(req), Fop::Fallocate { object, mode, offset, length }, false, reply);
    }

    fn lseek(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let object = or_reply!(reply, self.0.handle(fh)).object;
        let offset = or_reply!(reply, u64::try_from(offset).map_err(|_| Errno::ENXIO));
        self.0.volume.submit(caller(req), Fop::Seek { object, offset, whence }, move |answer| match answer.result {
            Ok(Answer::Offset(found)) => reply.offset(found as i64),
            Ok(_) => reply.error(fuser::Errno::EIO),
            Err(errno) => reply.error(fuse_errno(errno)),
        });
    }
}
