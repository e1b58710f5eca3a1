//! Who has which lock on the files of a volume, and who waits for one (PROTOCOL 16). No I/O, no clock: what is asked
//! comes in, answers go out through the channels that came along. `locks` is the volume's side of it.
//!
//! A lock is granted when nothing that is held is in its way, whoever else waits, as Linux does it; who waits is
//! looked at in the order of asking whenever something was given back.

use brickfs_common::errno::Errno;
use brickfs_common::fop::{LOCKS_OF_CLIENT_MAX, OwnedLock};
use brickfs_common::ids::{ClientId, Gfid};
use brickfs_common::locks::{FileLocks, HeldLock, LockKind, LockRange};
use std::collections::{HashMap, HashSet};
use tokio::sync::oneshot;

/// Most requests of a volume that wait for locks; beyond it ENOLCK.
const WAITING_MAX: usize = 65_536;

/// Who holds locks: an owner as its client numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LockOwner {
    /// The client.
    pub client: ClientId,
    /// Its number for the process, or for the open file (flock, OFD locks).
    pub number: u64,
}

/// A lock that somebody asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// For whom.
    pub owner: LockOwner,
    /// Where.
    pub range: LockRange,
    /// How.
    pub kind: LockKind,
    /// The process, for F_GETLK.
    pub pid: u32,
}

/// The answer to who asks for a lock.
#[derive(Debug)]
pub enum Asked {
    /// It was granted or refused.
    Now(Result<(), Errno>),
    /// It comes here.
    Later(oneshot::Receiver<Result<(), Errno>>),
}

struct Waiting {
    request: u64,
    wanted: Wanted,
    /// Until it is free; otherwise it waits only for the end of the grace.
    waits: bool,
    answer: oneshot::Sender<Result<(), Errno>>,
}

/// One file's locks, and who waits for one, in the order of asking.
#[derive(Default)]
struct File {
    held: FileLocks<LockOwner>,
    waiting: Vec<Waiting>,
}

/// The locks of a volume.
#[derive(Default)]
pub struct LockTable {
    files: HashMap<Gfid, File>,
    /// The files on which owners wait, once for each request.
    waiting_on: HashMap<LockOwner, Vec<Gfid>>,
    waiting_count: usize,
    /// How many locks each client has.
    of_client: HashMap<ClientId, usize>,
    /// After a start nobody gets a lock until all who may have had one have said so.
    is_grace: bool,
}

impl LockTable {
    /// Asks for a lock. With `waits` the answer comes when it is granted, which may be never.
    pub fn ask(&mut self, gfid: Gfid, request: u64, wanted: Wanted, waits: bool) -> Asked {
        let file = self.files.entry(gfid).or_default();
        if !self.is_grace {
            if file.conflicts(&wanted).next().is_none() {
                let granted = file.grant(&wanted, &mut self.of_client);
                self.look_again(gfid);
                return Asked::Now(granted);
            }
            if !waits {
                return Asked::Now(Err(Errno::EAGAIN));
            }
            if self.is_deadlock(gfid, &wanted) {
                return Asked::Now(Err(Errno::EDEADLK));
            }
        }
        if self.waiting_count >= WAITING_MAX {
            self.look_again(gfid);
            return Asked::Now(Err(Errno::ENOLCK));
        }
        let (answer, answered) = oneshot::channel();
        self.waiting_count += 1;
        self.waiting_on.entry(wanted.owner).or_default().push(gfid);
        let file = self.files.entry(gfid).or_default();
        file.waiting.push(Waiting { request, wanted, waits, answer });
        Asked::Later(answered)
    }

    /// Takes an owner's locks in a range away. ENOLCK if that would leave two of one, one too many for the client.
    pub fn unlock(&mut self, gfid: Gfid, owner: LockOwner, range: LockRange) -> Result<(), Errno> {
        let Some(file) = self.files.get_mut(&gfid) else { return Ok(()) };
        let is_full = self.of_client.get(&owner.client).is_some_and(|count| *count >= LOCKS_OF_CLIENT_MAX);
        if is_full && file.held.splits(owner, range) {
            return Err(Errno::ENOLCK);
        }
        let changed = file.change(owner, range, None, 0, &mut self.of_client);
        self.look_again(gfid);
        changed
    }

    /// The first lock in a file that is in the way of one.
    pub fn in_the_way(&self, gfid: &Gfid, wanted: &Wanted) -> Option<HeldLock> {
        let conflicts = self.files.get(gfid)?.conflicts(wanted);
        conflicts.map(|(_, lock)| lock).min_by_key(|lock| lock.range)
    }

    /// A client does not wait for a lock any more; EINTR goes to who does.
    pub fn cancel(&mut self, gfid: Gfid, client: ClientId, request: u64) {
        self.end_waiting(gfid, |waiting| {
            (waiting.wanted.owner.client == client && waiting.request == request).then_some(Errno::EINTR)
        });
        self.look_again(gfid);
    }

    /// All that a client has is what it says it has; what it waited for is asked again.
    pub fn announce(&mut self, client: ClientId, locks: &[OwnedLock]) {
        let mut touched = self.take_of(client, |_| true);
        for OwnedLock { gfid, owner, lock } in locks.iter().copied() {
            let owner = LockOwner { client, number: owner };
            let wanted = Wanted { owner, range: lock.range, kind: lock.kind, pid: lock.pid };
            if self.files.entry(gfid).or_default().grant(&wanted, &mut self.of_client).is_err() {
                tracing::error!(%client, %gfid, "a lock that was announced is one too many");
            }
            touched.push(gfid);
        }
        touched.into_iter().for_each(|gfid| self.look_again(gfid));
    }

    /// A client is gone.
    pub fn end_client(&mut self, client: ClientId) {
        let touched = self.take_of(client, |_| true);
        touched.into_iter().for_each(|gfid| self.look_again(gfid));
    }

    /// A client has closed a file.
    pub fn end_file(&mut self, client: ClientId, gfid: Gfid) {
        if self.files.contains_key(&gfid) {
            let touched = self.take_of(client, |other| *other == gfid);
            touched.into_iter().for_each(|gfid| self.look_again(gfid));
        }
    }

    /// Whether clients may still announce locks that they had before the start.
    pub fn set_grace(&mut self, is_grace: bool) {
        if std::mem::replace(&mut self.is_grace, is_grace) && !is_grace {
            let all: Vec<Gfid> = self.files.keys().copied().collect();
            all.into_iter().for_each(|gfid| self.look_again(gfid));
        }
    }

    /// Ends everything: who waits is told EIO.
    pub fn clear(&mut self) {
        *self = LockTable::default();
    }

    /// Files with locks or with somebody who waits, and how many wait.
    #[cfg(test)]
    fn counts(&self) -> (usize, usize) {
        (self.files.len(), self.waiting_count)
    }

    /// Takes a client's locks and ends its waiting; answers the files.
    fn take_of(&mut self, client: ClientId, is_meant: impl Fn(&Gfid) -> bool) -> Vec<Gfid> {
        let meant: Vec<Gfid> = self.files.keys().filter(|gfid| is_meant(gfid)).copied().collect();
        let mut touched = Vec::new();
        for gfid in meant {
            let has_ended =
                self.end_waiting(gfid, |waiting| (waiting.wanted.owner.client == client).then_some(Errno::EIO));
            let Some(file) = self.files.get_mut(&gfid) else { continue };
            let dropped = file.held.drop_owners(|owner| owner.client == client);
            count(&mut self.of_client, client, -(dropped as isize));
            if dropped > 0 || has_ended {
                touched.push(gfid);
            }
        }
        touched
    }

    /// Ends the waiting of those for whom there is an error.
    fn end_waiting(&mut self, gfid: Gfid, error: impl Fn(&Waiting) -> Option<Errno>) -> bool {
        let Some(file) = self.files.get_mut(&gfid) else { return false };
        let (ended, kept) = std::mem::take(&mut file.waiting).into_iter().partition(|waiting| error(waiting).is_some());
        file.waiting = kept;
        let ended: Vec<Waiting> = ended;
        let has_ended = !ended.is_empty();
        for waiting in ended {
            let errno = error(&waiting).unwrap_or(Errno::EIO);
            self.answer(gfid, waiting, Err(errno));
        }
        has_ended
    }

    fn answer(&mut self, gfid: Gfid, waiting: Waiting, result: Result<(), Errno>) {
        self.waiting_count -= 1;
        let owner = waiting.wanted.owner;
        if let Some(files) = self.waiting_on.get_mut(&owner) {
            if let Some(at) = files.iter().position(|other| *other == gfid) {
                files.swap_remove(at);
            }
            if files.is_empty() {
                self.waiting_on.remove(&owner);
            }
        }
        // Nobody listens once the volume is stopped.
        waiting.answer.send(result).ok();
    }

    /// Grants what can be granted now, first come, first served; forgets the file if nothing is left of it.
    fn look_again(&mut self, gfid: Gfid) {
        if self.is_grace {
            return;
        }
        let mut may_grant = true;
        while may_grant {
            may_grant = false;
            let Some(file) = self.files.get_mut(&gfid) else { return };
            let mut answers = Vec::new();
            for waiting in std::mem::take(&mut file.waiting) {
                let wanted = waiting.wanted;
                if file.conflicts(&wanted).next().is_none() {
                    // A lock for reading in place of one for writing may let those in that wait before it.
                    let held = file.held.of(wanted.owner);
                    may_grant |= held.iter().any(|lock| lock.kind > wanted.kind && lock.range.overlaps(&wanted.range));
                    let result = file.grant(&wanted, &mut self.of_client);
                    answers.push((waiting, result));
                } else if waiting.waits {
                    file.waiting.push(waiting);
                } else {
                    answers.push((waiting, Err(Errno::EAGAIN)));
                }
            }
            for (waiting, result) in answers {
                self.answer(gfid, waiting, result);
            }
        }
        if self.files.get(&gfid).is_some_and(|file| file.held.is_empty() && file.waiting.is_empty()) {
            self.files.remove(&gfid);
        }
    }

    /// Whether those in the way of a lock wait, perhaps over others, for its owner. Owners of one client on one
    /// volume: a circle through another volume is not seen, as on NFS.
    fn is_deadlock(&self, gfid: Gfid, wanted: &Wanted) -> bool {
        let in_way = |gfid: &Gfid, wanted: &Wanted| -> Vec<LockOwner> {
            self.files.get(gfid).map_or(Vec::new(), |file| file.conflicts(wanted).map(|(owner, _)| owner).collect())
        };
        let mut seen = HashSet::new();
        let mut to_look_at = in_way(&gfid, wanted);
        while let Some(owner) = to_look_at.pop() {
            if owner == wanted.owner {
                return true;
            }
            if !seen.insert(owner) {
                continue;
            }
            let files: HashSet<&Gfid> = self.waiting_on.get(&owner).into_iter().flatten().collect();
            for on in files {
                let Some(file) = self.files.get(on) else { continue };
                let of_owner = file.waiting.iter().filter(|waiting| waiting.wanted.owner == owner);
                of_owner.for_each(|waiting| to_look_at.extend(in_way(on, &waiting.wanted)));
            }
        }
        false
    }
}

impl File {
    fn conflicts(&self, wanted: &Wanted) -> impl Iterator<Item = (LockOwner, HeldLock)> {
        self.held.conflicts(wanted.owner, wanted.range, wanted.kind)
    }

    fn grant(&mut self, wanted: &Wanted, of_client: &mut HashMap<ClientId, usize>) -> Result<(), Errno> {
        if of_client.get(&wanted.owner.client).is_some_and(|count| *count >= LOCKS_OF_CLIENT_MAX) {
            return Err(Errno::ENOLCK);
        }
        self.change(wanted.owner, wanted.range, Some(wanted.kind), wanted.pid, of_client)
    }

    fn change(
        &mut self,
        owner: LockOwner,
        range: LockRange,
        kind: Option<LockKind>,
        pid: u32,
        of_client: &mut HashMap<ClientId, usize>,
    ) -> Result<(), Errno> {
        let before = self.held.of(owner).len();
        self.held.set(owner, range, kind, pid)?;
        count(of_client, owner.client, self.held.of(owner).len() as isize - before as isize);
        Ok(())
    }
}

fn count(of_client: &mut HashMap<ClientId, usize>, client: ClientId, delta: isize) {
    let count = of_client.entry(client).or_default();
    *count = count.saturating_add_signed(delta);
    if *count == 0 {
        of_client.remove(&client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockKind::{Exclusive, Shared};

    const F: Gfid = Gfid([1; 16]);
    const G: Gfid = Gfid([2; 16]);

    fn owner(client: u8, number: u64) -> LockOwner {
        LockOwner { client: ClientId([client; 16]), number }
    }

    fn wanted(client: u8, number: u64, first: u64, last: u64, kind: LockKind) -> Wanted {
        Wanted { owner: owner(client, number), range: LockRange::new(first, last).unwrap(), kind, pid: 0 }
    }

    /// Asks; the answer is there, or the channel on which it comes.
    fn now(asked: Asked) -> Result<(), Errno> {
        match asked {
            Asked::Now(result) => result,
            Asked::Later(_) => panic!("it waits"),
        }
    }

    fn later(asked: Asked) -> oneshot::Receiver<Result<(), Errno>> {
        match asked {
            Asked::Later(answer) => answer,
            Asked::Now(result) => panic!("it does not wait: {result:?}"),
        }
    }

    fn lock(table: &mut LockTable, gfid: Gfid, wanted: Wanted) {
        now(table.ask(gfid, 0, wanted, false)).unwrap();
    }

    #[test]
    fn who_waits_gets_the_lock_in_the_order_of_asking() {
        let mut table = LockTable::default();
        lock(&mut table, F, wanted(1, 1, 0, 9, Exclusive));
        assert_eq!(now(table.ask(F, 1, wanted(2, 1, 5, 5, Shared), false)), Err(Errno::EAGAIN));
        let mut second = later(table.ask(F, 2, wanted(2, 1, 5, 5, Exclusive), true));
        let mut third = later(table.ask(F, 3, wanted(3, 1, 5, 5, Exclusive), true));
        let mut elsewhere = later(table.ask(F, 4, wanted(3, 2, 9, 20, Shared), true));
        table.unlock(F, owner(1, 1), LockRange::new(0, 5).unwrap()).unwrap();
        assert_eq!(second.try_recv(), Ok(Ok(())));
        assert!(third.try_recv().is_err() && elsewhere.try_recv().is_err());
        table.unlock(F, owner(2, 1), LockRange::ALL).unwrap();
        table.unlock(F, owner(1, 1), LockRange::ALL).unwrap();
        assert_eq!((third.try_recv(), elsewhere.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
        table.end_client(ClientId([3; 16]));
        assert_eq!(table.counts(), (0, 0));
    }

    #[test]
    fn a_lock_for_reading_in_place_of_one_for_writing_lets_readers_in() {
        let mut table = LockTable::default();
        lock(&mut table, F, wanted(1, 1, 0, 9, Exclusive));
        let mut reader = later(table.ask(F, 1, wanted(2, 1, 0, 9, Shared), true));
        let mut writer = later(table.ask(F, 2, wanted(3, 1, 0, 9, Exclusive), true));
        lock(&mut table, F, wanted(1, 1, 0, 9, Shared));
        assert_eq!(reader.try_recv(), Ok(Ok(())));
        assert!(writer.try_recv().is_err());
    }

    #[test]
    fn a_circle_of_waiting_is_refused_to_who_would_close_it() {
        let mut table = LockTable::default();
        lock(&mut table, F, wanted(1, 1, 0, 9, Exclusive));
        lock(&mut table, G, wanted(2, 1, 0, 9, Exclusive));
        lock(&mut table, G, wanted(3, 1, 10, 19, Exclusive));
        let _one = later(table.ask(G, 1, wanted(1, 1, 0, 0, Shared), true));
        let _two = later(table.ask(G, 2, wanted(2, 1, 10, 10, Shared), true));
        assert_eq!(now(table.ask(F, 3, wanted(3, 1, 5, 5, Shared), true)), Err(Errno::EDEADLK));
        // Who holds nothing may wait.
        let _four = later(table.ask(F, 4, wanted(4, 1, 5, 5, Shared), true));
        // Two that read and both want to write.
        lock(&mut table, F, wanted(5, 1, 50, 50, Shared));
        lock(&mut table, F, wanted(6, 1, 50, 50, Shared));
        let _five = later(table.ask(F, 5, wanted(5, 1, 50, 50, Exclusive), true));
        assert_eq!(now(table.ask(F, 6, wanted(6, 1, 50, 50, Exclusive), true)), Err(Errno::EDEADLK));
    }

    #[test]
    fn who_gives_up_waiting_gets_nothing() {
        let mut table = LockTable::default();
        lock(&mut table, F, wanted(1, 1, 0, 9, Exclusive));
        let mut answer = later(table.ask(F, 7, wanted(2, 1, 0, 9, Exclusive), true));
        table.cancel(F, ClientId([2; 16]), 6);
        assert!(answer.try_recv().is_err());
        table.cancel(F, ClientId([2; 16]), 7);
        assert_eq!(answer.try_recv(), Ok(Err(Errno::EINTR)));
        table.unlock(F, owner(1, 1), LockRange::ALL).unwrap();
        assert_eq!(table.counts(), (0, 0));
    }

    #[test] // PROTOCOL 16
    fn in_the_grace_only_what_was_held_before_is_held() {
        let mut table = LockTable::default();
        table.set_grace(true);
        let mut blocking = later(table.ask(F, 1, wanted(2, 1, 0, 0, Shared), true));
        let mut trying = later(table.ask(F, 2, wanted(2, 2, 0, 0, Shared), false));
        let mut free = later(table.ask(F, 3, wanted(2, 3, 5, 5, Exclusive), false));
        let held = HeldLock { range: LockRange::new(0, 0).unwrap(), kind: Exclusive, pid: 4 };
        table.announce(ClientId([1; 16]), &[OwnedLock { gfid: F, owner: 1, lock: held }]);
        assert!([&mut blocking, &mut trying, &mut free].into_iter().all(|answer| answer.try_recv().is_err()));
        table.set_grace(false);
        assert!(blocking.try_recv().is_err());
        assert_eq!((trying.try_recv(), free.try_recv()), (Ok(Err(Errno::EAGAIN)), Ok(Ok(()))));
        assert_eq!(table.in_the_way(&F, &wanted(3, 1, 0, 9, Shared)).map(|lock| lock.pid), Some(4));
        table.end_client(ClientId([1; 16]));
        assert_eq!(blocking.try_recv(), Ok(Ok(())));
    }

    #[test] // PROTOCOL 16
    fn what_a_client_announces_is_all_that_it_has() {
        let mut table = LockTable::default();
        lock(&mut table, F, wanted(1, 1, 0, 9, Exclusive));
        lock(&mut table, G, wanted(1, 1, 0, 9, Exclusive));
        let mut other = later(table.ask(F, 1, wanted(2, 1, 0, 0, Shared), true));
        let mut own = later(table.ask(G, 2, wanted(3, 1, 0, 9, Shared), true));
        let held = HeldLock { range: LockRange::ALL, kind: Exclusive, pid: 0 };
        table.announce(ClientId([1; 16]), &[OwnedLock { gfid: G, owner: 1, lock: held }]);
        assert_eq!(other.try_recv(), Ok(Ok(())));
        assert!(own.try_recv().is_err());
        table.announce(ClientId([3; 16]), &[]);
        assert_eq!(own.try_recv(), Ok(Err(Errno::EIO)), "the stream that asked is over");
        table.end_file(ClientId([1; 16]), G);
        table.end_client(ClientId([2; 16]));
        assert_eq!(table.counts(), (0, 0));
    }

    #[test]
    fn a_client_has_so_many_locks_and_no_more() {
        let mut table = LockTable::default();
        for n in 0..LOCKS_OF_CLIENT_MAX as u64 {
            lock(&mut table, [F, G][n as usize % 2], wanted(1, n % 3, 2 * n, 2 * n, Exclusive));
        }
        assert_eq!(now(table.ask(F, 0, wanted(1, 9, 1, 1, Shared), true)), Err(Errno::ENOLCK));
        // Neither by taking away in the middle; at an edge, or the whole, always.
        table.end_file(ClientId([1; 16]), G);
        for n in 0..LOCKS_OF_CLIENT_MAX as u64 / 2 - 1 {
            lock(&mut table, G, wanted(1, 1, 2 * n, 2 * n, Exclusive));
        }
        lock(&mut table, G, wanted(1, 2, 1 << 30, (1 << 30) + 9, Exclusive));
        let middle = LockRange::new((1 << 30) + 4, (1 << 30) + 4).unwrap();
        assert_eq!(table.unlock(G, owner(1, 2), middle), Err(Errno::ENOLCK));
        table.unlock(G, owner(1, 2), LockRange::new((1 << 30) + 9, (1 << 30) + 20).unwrap()).unwrap();
        table.unlock(G, owner(1, 2), LockRange::ALL).unwrap();
        lock(&mut table, F, wanted(2, 9, 1, 1, Shared));
        table.end_file(ClientId([1; 16]), G);
        lock(&mut table, G, wanted(1, 9, 1, 1, Shared));
        table.end_client(ClientId([1; 16]));
        table.end_client(ClientId([2; 16]));
        assert!(table.of_client.is_empty() && table.waiting_on.is_empty());
    }
}
