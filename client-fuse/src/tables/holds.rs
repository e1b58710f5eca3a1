//! Which objects this mount has open on the brick, and keeps open for a moment after the last close: a file
//! that is opened again within a second is opened without asking, and an object that the brick counts as
//! open cannot vanish under a descriptor. No I/O; the clock comes in.
//!
//! A hold ends before this mount removes or replaces the object's name, so that its space is free at once.

use crate::local_file::LocalFile;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::Gfid;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most objects open on the brick: a greeting names them all, in one message.
pub const OPEN_MAX: usize = 24_000;
/// Most objects held that nobody has open.
const IDLE_MAX: usize = 4096;

struct Held {
    object: ObjectRef,
    /// Opens that the brick counts.
    brick_opens: u32,
    /// The brick's file, where it is on this machine.
    local: Option<Arc<LocalFile>>,
    /// Descriptors here.
    handles: u32,
    /// When the last descriptor was closed.
    idle_since: Option<Instant>,
    /// Stands in the queue of idle objects.
    is_queued: bool,
}

/// See the file's head.
pub struct Holds {
    held: HashMap<Gfid, Held>,
    /// Each idle object once, by the time at which it became idle when it was queued; it may have been opened
    /// and closed again since.
    idle: VecDeque<(Gfid, Instant)>,
    hold: Duration,
    /// Files of bricks that are kept, and may be: each is an open file of this process.
    local_count: usize,
    local_max: usize,
}

/// Releases to send: an object, and how often the brick counts it as open.
pub type Releases = Vec<(ObjectRef, u32)>;

impl Holds {
    /// Nothing is open. Objects are held for `hold` after the last close; zero: not at all. Of at most `local_max`
    /// objects the brick's file is kept.
    pub fn new(hold: Duration, local_max: usize) -> Holds {
        Holds { held: HashMap::new(), idle: VecDeque::new(), hold, local_count: 0, local_max }
    }

    /// Whether one more object may be opened.
    pub fn has_room(&self) -> bool {
        self.held.len() < OPEN_MAX
    }

    /// Opens a descriptor of an object that the brick counts as open; false if it does not.
    pub fn open_again(&mut self, gfid: &Gfid) -> bool {
        if self.hold.is_zero() {
            return false;
        }
        let Some(held) = self.held.get_mut(gfid) else { return false };
        held.handles += 1;
        held.idle_since = None;
        true
    }

    /// The brick has opened an object for a descriptor.
    pub fn opened(&mut self, object: ObjectRef) {
        let new = Held { object, brick_opens: 0, local: None, handles: 0, idle_since: None, is_queued: false };
        let held = self.held.entry(object.gfid).or_insert(new);
        held.brick_opens += 1;
        held.handles += 1;
        held.idle_since = None;
    }

    /// The brick has opened an object before anybody has asked for a descriptor.
    pub fn opened_ahead(&mut self, object: ObjectRef, now: Instant) -> Releases {
        self.opened(object);
        self.closed(&object.gfid, now)
    }

    /// The brick has passed the object's file. It is kept for as long as the object is.
    pub fn keep_file(&mut self, gfid: &Gfid, local: LocalFile) {
        let has_room = self.has_room_for_files();
        let Some(held) = self.held.get_mut(gfid) else { return };
        if held.local.is_some() {
            held.local = Some(Arc::new(local));
        } else if has_room {
            held.local = Some(Arc::new(local));
            self.local_count += 1;
        }
    }

    /// Whether another brick's file would be kept.
    pub fn has_room_for_files(&self) -> bool {
        self.local_count < self.local_max
    }

    /// The brick's file of an object, as passed over this session.
    pub fn local_file(&self, gfid: &Gfid, session: u64) -> Option<Arc<LocalFile>> {
        let local = self.held.get(gfid)?.local.as_ref()?;
        (local.session == session).then(|| local.clone())
    }

    /// A descriptor was closed. Answers what is to be released now.
    pub fn closed(&mut self, gfid: &Gfid, now: Instant) -> Releases {
        let Some(held) = self.held.get_mut(gfid) else { return Releases::new() };
        held.handles = held.handles.saturating_sub(1);
        if held.handles > 0 {
            return Releases::new();
        }
        held.idle_since = Some(now);
        if !std::mem::replace(&mut held.is_queued, true) {
            self.idle.push_back((*gfid, now));
        }
        if self.hold.is_zero() {
            return self.take_idle();
        }
        let mut due = Releases::new();
        while self.idle.len() > IDLE_MAX {
            self.take_oldest(&mut due);
        }
        due
    }

    /// What has been idle for long enough.
    pub fn take_due(&mut self, now: Instant) -> Releases {
        let mut due = Releases::new();
        while self.idle.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= self.hold) {
            self.take_oldest(&mut due);
        }
        if self.held.is_empty() && self.held.capacity() > IDLE_MAX {
            self.held.shrink_to(IDLE_MAX);
        }
        due
    }

    /// All that is idle.
    pub fn take_idle(&mut self) -> Releases {
        let mut due = Releases::new();
        for (gfid, _) in std::mem::take(&mut self.idle) {
            if let Some(held) = self.held.get_mut(&gfid) {
                held.is_queued = false;
                due.extend(self.take_idle_object(&gfid));
            }
        }
        due
    }

    /// One object, if it is idle.
    pub fn take_idle_object(&mut self, gfid: &Gfid) -> Releases {
        match self.held.get(gfid) {
            Some(held) if held.idle_since.is_some() => {
                let released = (held.object, held.brick_opens);
                self.local_count -= usize::from(held.local.is_some());
                self.held.remove(gfid);
                vec![released]
            }
            _ => Releases::new(),
        }
    }

    fn take_oldest(&mut self, due: &mut Releases) {
        let Some((gfid, queued_at)) = self.idle.pop_front() else { return };
        let Some(held) = self.held.get_mut(&gfid) else { return };
        match held.idle_since {
            None => held.is_queued = false,
            Some(since) if since > queued_at => self.idle.push_back((gfid, since)),
            Some(_) => due.extend(self.take_idle_object(&gfid)),
        }
    }

    /// Objects that the brick counts as open.
    pub fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::fop::Descriptor;
    use brickfs_common::ids::SetId;

    const HOLD: Duration = Duration::from_secs(1);

    fn object(n: u16) -> ObjectRef {
        let mut gfid = Gfid([0; 16]);
        gfid.0[..2].copy_from_slice(&n.to_be_bytes());
        ObjectRef { gfid, home: SetId(0) }
    }

    #[test]
    fn what_is_held_is_opened_again_without_asking() {
        let (mut holds, now, a) = (Holds::new(HOLD, 10), Instant::now(), object(1));
        assert!(!holds.open_again(&a.gfid));
        holds.opened(a);
        assert!(holds.open_again(&a.gfid));
        assert!(holds.closed(&a.gfid, now).is_empty() && holds.take_idle().is_empty(), "one is open");
        assert!(holds.closed(&a.gfid, now).is_empty());
        assert!(holds.open_again(&a.gfid));
        assert!(holds.closed(&a.gfid, now + HOLD / 2).is_empty());
        assert!(holds.take_due(now + HOLD).is_empty(), "idle since its second close only");
        assert_eq!(holds.take_due(now + 2 * HOLD), [(a, 1)]);
        assert!(!holds.open_again(&a.gfid));
        assert_eq!((holds.len(), holds.idle.len()), (0, 0));
    }

    #[test]
    fn a_release_is_owed_for_each_open_of_the_brick() {
        let (mut holds, now, a) = (Holds::new(HOLD, 10), Instant::now(), object(1));
        holds.opened(a);
        holds.opened(a);
        holds.closed(&a.gfid, now);
        holds.closed(&a.gfid, now);
        assert_eq!(holds.take_idle_object(&a.gfid), [(a, 2)]);
        assert!(holds.take_idle().is_empty());
        let mut strict = Holds::new(Duration::ZERO, 10);
        strict.opened(a);
        assert!(!strict.open_again(&a.gfid));
        assert_eq!(strict.closed(&a.gfid, now), [(a, 1)]);
    }

    #[test]
    fn files_of_bricks_are_kept_up_to_a_bound() {
        let (mut holds, now) = (Holds::new(HOLD, 10), Instant::now());
        let file = || LocalFile::new(Descriptor(Arc::new(std::fs::File::open("/").unwrap().into())), 1);
        for n in 0..12 {
            holds.opened(object(n));
            holds.keep_file(&object(n).gfid, file());
            holds.keep_file(&object(n).gfid, file());
        }
        assert!(holds.local_file(&object(9).gfid, 1).is_some() && holds.local_file(&object(10).gfid, 1).is_none());
        assert!(!holds.has_room_for_files());
        holds.closed(&object(3).gfid, now);
        assert_eq!(holds.take_idle().len(), 1);
        holds.keep_file(&object(11).gfid, file());
        assert!(holds.local_file(&object(11).gfid, 1).is_some());
    }

    #[test]
    fn what_is_held_is_bounded() {
        let (mut holds, now) = (Holds::new(HOLD, 10), Instant::now());
        let mut released = 0;
        for n in 0..IDLE_MAX as u16 + 10 {
            holds.opened(object(n));
            released += holds.closed(&object(n).gfid, now).len();
        }
        assert_eq!((released, holds.len()), (10, IDLE_MAX));
        assert!(holds.has_room());
        for n in 0..3 * IDLE_MAX as u64 {
            assert!(holds.open_again(&object(4000).gfid));
            assert!(holds.closed(&object(4000).gfid, now + Duration::from_nanos(n)).is_empty(), "others stay");
        }
        assert!(holds.idle.len() <= IDLE_MAX);
    }
}
