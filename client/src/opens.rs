//! What the server counts as open for this client, as far as the client knows. A greeting announces it, and
//! the server takes it as the whole truth (PROTOCOL 16); calls sent again after it count on top. So an open
//! counts from its answer on, and a release until its answer.

use brickfs_common::fop::{Fop, FopReply, Making, ObjectRef};
use brickfs_common::ids::Gfid;
use std::collections::HashMap;

/// Calls that were given up and may still have opened something; above it the oldest ones are left to the
/// next greeting, which tells the server what is open.
const ABANDONED_MAX: usize = 4096;

/// What the success of a call does to the objects that are open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenEffect {
    /// Nothing.
    None,
    /// This object was opened once more.
    Opens(ObjectRef),
    /// The object that the reply names was.
    Makes,
    /// The object that the reply names was, if the reply says so.
    MayOpen,
    /// This object was closed once.
    Releases(ObjectRef),
}

impl OpenEffect {
    /// The effect of an operation.
    pub fn of(fop: &Fop) -> OpenEffect {
        match fop {
            Fop::Open { object, .. } => OpenEffect::Opens(*object),
            Fop::Make { making: Making::File { open: true, .. }, .. } => OpenEffect::Makes,
            Fop::LookupOpen { .. } => OpenEffect::MayOpen,
            Fop::Release { object } => OpenEffect::Releases(*object),
            _ => OpenEffect::None,
        }
    }
}

/// The objects that are open, and calls given up that may have opened one.
#[derive(Default)]
pub struct Opens {
    counts: HashMap<Gfid, (ObjectRef, u32)>,
    abandoned: HashMap<u64, OpenEffect>,
}

impl Opens {
    /// A call was answered.
    pub fn answered(&mut self, effect: OpenEffect, reply: &FopReply) {
        if reply.result.is_err() {
            return;
        }
        match effect {
            OpenEffect::MayOpen if !reply.opened => {}
            OpenEffect::None => {}
            OpenEffect::Opens(object) => self.count(object),
            OpenEffect::Makes | OpenEffect::MayOpen => {
                if let Some(attr) = &reply.attr {
                    self.count(ObjectRef { gfid: attr.gfid, home: attr.home });
                }
            }
            OpenEffect::Releases(object) => {
                if let Some(entry) = self.counts.get_mut(&object.gfid) {
                    entry.1 -= 1;
                    if entry.1 == 0 {
                        self.counts.remove(&object.gfid);
                    }
                }
            }
        }
    }

    fn count(&mut self, object: ObjectRef) {
        self.counts.entry(object.gfid).or_insert((object, 0)).1 += 1;
    }

    /// Whether an object is open.
    pub fn is_open(&self, gfid: &Gfid) -> bool {
        self.counts.contains_key(gfid)
    }

    /// Nobody waits for this call any more, but it may still run.
    pub fn abandon(&mut self, request: u64, effect: OpenEffect) {
        let may_open = matches!(effect, OpenEffect::Opens(_) | OpenEffect::Makes | OpenEffect::MayOpen);
        if may_open && self.abandoned.len() < ABANDONED_MAX {
            self.abandoned.insert(request, effect);
        }
    }

    /// A reply came that nobody waits for: the object that it opened, to be released.
    pub fn answered_late(&mut self, reply: &FopReply) -> Option<ObjectRef> {
        let effect = self.abandoned.remove(&reply.request)?;
        self.answered(effect, reply);
        let attr = reply.result.is_ok().then_some(reply.attr.as_ref()).flatten();
        match effect {
            OpenEffect::Opens(object) if reply.result.is_ok() => Some(object),
            OpenEffect::MayOpen if !reply.opened => None,
            OpenEffect::Makes | OpenEffect::MayOpen => attr.map(|attr| ObjectRef { gfid: attr.gfid, home: attr.home }),
            _ => None,
        }
    }

    /// What a greeting announces. It tells the server of no call that was given up.
    pub fn announce(&mut self) -> Vec<(ObjectRef, u32)> {
        self.abandoned.clear();
        self.counts.values().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::attr::{Attr, Kind, Timestamp};
    use brickfs_common::errno::Errno;
    use brickfs_common::ids::SetId;

    fn object(n: u8) -> ObjectRef {
        ObjectRef { gfid: Gfid([n; 16]), home: SetId(0) }
    }

    fn done(request: u64) -> FopReply {
        FopReply::done(request)
    }

    #[test] // PROTOCOL 16
    fn an_open_counts_from_its_answer_and_a_release_until_its_answer() {
        let mut opens = Opens::default();
        let open =
            OpenEffect::of(&Fop::Open { object: object(1), truncate: false, writes: false, wants_descriptor: false });
        opens.answered(open, &FopReply::failed(1, Errno::ESTALE));
        assert!(opens.announce().is_empty());
        opens.answered(open, &done(2));
        opens.answered(open, &done(3));
        let release = OpenEffect::of(&Fop::Release { object: object(1) });
        assert_eq!(opens.announce(), [(object(1), 2)], "a release on its way will be sent again");
        opens.answered(release, &done(4));
        assert_eq!(opens.announce(), [(object(1), 1)]);
        opens.answered(release, &done(5));
        opens.answered(release, &done(6));
        assert!(opens.announce().is_empty());
    }

    #[test]
    fn a_lookup_counts_as_an_open_where_its_reply_says_so() {
        let mut opens = Opens::default();
        let time = Timestamp { sec: 0, nsec: 0 };
        let attr = Attr {
            gfid: object(1).gfid,
            home: SetId(0),
            kind: Kind::File,
            perm: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            blocks: 0,
            rdev: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            project: 0,
            has_capability: false,
            has_acl: false,
            change: 0,
        };
        let found = FopReply { attr: Some(attr), ..done(1) };
        opens.answered(OpenEffect::MayOpen, &found);
        assert!(opens.announce().is_empty());
        let opened = FopReply { opened: true, ..found };
        opens.answered(OpenEffect::MayOpen, &opened);
        assert_eq!(opens.announce(), [(object(1), 1)]);
        opens.abandon(1, OpenEffect::MayOpen);
        assert_eq!(opens.answered_late(&opened), Some(object(1)), "to be released");
        opens.abandon(1, OpenEffect::MayOpen);
        assert_eq!(opens.answered_late(&FopReply { opened: false, ..opened }), None);
    }

    #[test]
    fn what_a_call_given_up_has_opened_is_released() {
        let mut opens = Opens::default();
        opens.abandon(7, OpenEffect::Opens(object(1)));
        opens.abandon(8, OpenEffect::Opens(object(2)));
        opens.abandon(9, OpenEffect::Releases(object(3)));
        assert_eq!(opens.answered_late(&done(7)), Some(object(1)));
        assert_eq!(opens.announce(), [(object(1), 1)]);
        assert_eq!(opens.answered_late(&done(8)), None, "a greeting has said what is open");
        assert_eq!(opens.answered_late(&done(9)), None);
    }
}
