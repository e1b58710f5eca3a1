//! Attributes, extended attributes, link targets and space.

use super::{Asked, Fs, Reply, Told, lock};
use brickfs_client::volume::Caller;
use brickfs_client::write_behind::{Change, Range};
use brickfs_common::attr::{SetAttr, StatFs};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Fop, FopReply, ObjectRef};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What shows the mode, and more.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// What a write takes away.
const CAPABILITY: &[u8] = b"security.capability";

impl Fs {
    /// Attributes of an inode, from memory if they still hold there; all own writes show.
    pub fn get_attr(self: &Arc<Self>, caller: Caller, ino: u64, done: Reply<Told>) {
        if !self.is_busy(ino) {
            let known = lock(&self.tables).tell_known(ino, Instant::now());
            if let Some((attr, ttl)) = known {
                return done(Ok(Told { ino, attr, ttl }));
            }
        }
        self.behind_writes(ino, caller.pid, move |fs, waited| {
            let object = match waited.and_then(|()| fs.object(ino)) {
                Ok(object) => object,
                Err(errno) => return done(Err(errno)),
            };
            fs.submit(caller, Fop::GetAttr { object }, move |fs, reply, asked| {
                fs.tell_attr(ino, reply, asked, done);
            });
        });
    }

    /// Tells the kernel what a reply says of an inode.
    fn tell_attr(&self, ino: u64, reply: FopReply, asked: Asked, done: Reply<Told>) {
        match (reply.result, reply.attr) {
            (Ok(_), Some(attr)) => {
                self.learn(Some(&attr), asked);
                let ttl = {
                    let mut tables = lock(&self.tables);
                    tables.told_of(ino, &attr);
                    tables.tell(ino, attr.kind, None, asked, Instant::now())
                };
                done(Ok(Told { ino, attr, ttl }));
            }
            (Ok(_), None) => done(Err(Errno::EIO)),
            (Err(errno), _) => {
                if errno == Errno::ESTALE {
                    lock(&self.tables).gone(ino);
                }
                done(Err(errno));
            }
        }
    }

    /// Changes attributes.
    pub fn set_attr(self: &Arc<Self>, caller: Caller, ino: u64, set: SetAttr, done: Reply<Told>) {
        if let Some(told) = self.set_made(caller, ino, set) {
            return done(Ok(told));
        }
        let then = move |fs: &Arc<Fs>, waited: Result<(), Errno>| {
            let object = match waited.and_then(|()| fs.object(ino)) {
                Ok(object) => object,
                Err(errno) => return done(Err(errno)),
            };
            lock(&fs.tables).changed(ino);
            fs.submit(caller, Fop::SetAttr { object, set }, move |fs, reply, asked| {
                fs.tell_attr(ino, reply, asked, done);
            });
        };
        // Where a write fails that the cut would have come behind, the file is not cut.
        match set.size {
            Some(_) => self.after_writes(ino, Range::ALL, caller.pid, then),
            None => self.behind_writes(ino, caller.pid, then),
        }
    }

    /// Changes mode or times of a file that this mount has made and that is being written still, through its
    /// write-behind queue: an error is reported by the close, as a write's is. What is told holds for no time, for only
    /// the brick knows the ctime.
    fn set_made(self: &Arc<Self>, caller: Caller, ino: u64, set: SetAttr) -> Option<Told> {
        if set.size.is_some() {
            return None;
        }
        let (object, handle, attr) = lock(&self.tables).set_made(ino, (caller.uid, caller.pid), &set)?;
        let actions = lock(&self.writes).change(Change { ino, handle, object, caller, set });
        let Some(actions) = actions else {
            lock(&self.tables).changed(ino); // no room: it is asked for
            return None;
        };
        self.perform(actions);
        Some(Told { ino, attr, ttl: Duration::ZERO })
    }

    /// The target of a symbolic link.
    pub fn read_link(self: &Arc<Self>, caller: Caller, ino: u64, done: Reply<Bytes>) {
        self.about(caller, ino, |object| Fop::ReadLink { object }, done);
    }

    /// An extended attribute's value. What a write takes away, it has taken before it is asked for.
    pub fn get_xattr(self: &Arc<Self>, caller: Caller, ino: u64, name: &[u8], done: Reply<Bytes>) {
        let lacks_it = lock(&self.tables).lacks_xattr(ino, name, Instant::now());
        if lacks_it {
            return done(Err(Errno::ENODATA));
        }
        let name = Bytes::copy_from_slice(name);
        if &*name == ACCESS_ACL {
            // A change of the mode changes it.
            return self.behind_writes(ino, caller.pid, move |fs, waited| match waited {
                Ok(()) => fs.about(caller, ino, |object| Fop::GetXattr { object, name }, done),
                Err(errno) => done(Err(errno)),
            });
        }
        if &*name != CAPABILITY {
            return self.about(caller, ino, |object| Fop::GetXattr { object, name }, done);
        }
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| match waited {
            Ok(()) => fs.about(caller, ino, |object| Fop::GetXattr { object, name }, done),
            Err(errno) => done(Err(errno)),
        });
    }

    /// The names of all extended attributes, each ended by a NUL.
    pub fn list_xattr(self: &Arc<Self>, caller: Caller, ino: u64, done: Reply<Bytes>) {
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| match waited {
            Ok(()) => fs.about(caller, ino, |object| Fop::ListXattr { object }, done),
            Err(errno) => done(Err(errno)),
        });
    }

    /// Sets an extended attribute, or removes it if there is no value. That changes the ctime, and a write that came
    /// before it must not take away the capability that it sets.
    pub fn set_xattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: u64,
        name: &[u8],
        value: Option<(&[u8], u32)>,
        done: Reply<()>,
    ) {
        let name = Bytes::copy_from_slice(name);
        let value = value.map(|(value, flags)| (Bytes::copy_from_slice(value), flags));
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| {
            let object = match waited.and_then(|()| fs.object(ino)) {
                Ok(object) => object,
                Err(errno) => return done(Err(errno)),
            };
            let fop = match value {
                Some((value, flags)) => Fop::SetXattr { object, name, value, flags },
                None => Fop::RemoveXattr { object, name },
            };
            lock(&fs.tables).changed(ino);
            fs.submit(caller, fop, move |fs, reply, asked| {
                fs.learn(reply.attr.as_ref(), asked);
                done(reply.result.map(|_| ()));
            });
        });
    }

    /// Space of the volume.
    pub fn stat_fs(self: &Arc<Self>, caller: Caller, done: Reply<StatFs>) {
        self.submit(caller, Fop::StatFs, move |_, reply, _| {
            done(match reply.result {
                Ok(Answer::Space(space)) => Ok(space),
                Ok(_) => Err(Errno::EIO),
                Err(errno) => Err(errno),
            });
        });
    }

    /// Asks something of an object that is answered with bytes.
    fn about(self: &Arc<Self>, caller: Caller, ino: u64, fop: impl FnOnce(ObjectRef) -> Fop, done: Reply<Bytes>) {
        match self.object(ino) {
            Ok(object) => self.submit(caller, fop(object), move |_, reply, _| done(data_of(reply))),
            Err(errno) => done(Err(errno)),
        }
    }
}

/// The bytes that a reply brings.
pub(super) fn data_of(reply: FopReply) -> Result<Bytes, Errno> {
    match reply.result {
        Ok(Answer::Data(data)) => Ok(data),
        Ok(_) => Err(Errno::EIO),
        Err(errno) => Err(errno),
    }
}
