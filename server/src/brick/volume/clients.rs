//! The clients of a volume on this node: sessions, leases, what they have open, and results of requests
//! that they have not acknowledged (R6; PROTOCOL 13, 16).

use crate::brick::effect::{Effect, Outcome};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a silent client keeps what it has open.
pub const CLIENT_LEASE: Duration = Duration::from_secs(15);

/// A look for silent clients that comes so late was held up.
const STALL: Duration = Duration::from_secs(4);
/// Most results kept for one client. It asks again for what was on its way when a connection broke, which is never
/// more than it lets wait; what is older has been answered.
const RESULTS_MAX: usize = 65_536;

/// One client.
#[derive(Default)]
pub struct Client {
    /// Number of the newest session.
    pub session: u64,
    /// When its last message came.
    pub last_seen: Option<Instant>,
    /// Requests below this one have been answered and are never run again.
    pub lowest_unanswered: u64,
    /// Open counts by object.
    pub opens: HashMap<Gfid, (SetId, u32)>,
    /// Results of mutations that the client has not acknowledged, with the set whose log has them.
    pub results: BTreeMap<u64, (SetId, Outcome)>,
}

/// All clients.
pub struct Clients {
    /// By id.
    pub by_id: HashMap<ClientId, Client>,
    /// Clients whose lease has ended since somebody looked: their records on the bricks go.
    pub ended: Vec<ClientId>,
    open_counts: Arc<HashMap<Gfid, u32>>,
    /// Clients of an earlier process that have not announced what they have open (PROTOCOL 16).
    expected: HashSet<ClientId>,
    /// Until then they may.
    grace_until: Instant,
    /// When somebody last looked who has been silent.
    looked_at: Instant,
}

/// Which objects are open, as a set sees it that decides what becomes of a file without a name.
#[derive(Clone)]
pub struct OpenObjects {
    counts: Arc<HashMap<Gfid, u32>>,
    is_grace: bool,
}

impl OpenObjects {
    /// Whether any client has the object open, or may still say so after a restart.
    pub fn is_open(&self, gfid: &Gfid) -> bool {
        self.is_grace || self.counts.contains_key(gfid)
    }
}

impl Clients {
    /// No clients.
    pub fn new() -> Clients {
        Clients {
            by_id: HashMap::new(),
            ended: Vec::new(),
            expected: HashSet::new(),
            open_counts: Arc::new(HashMap::new()),
            grace_until: Instant::now() + CLIENT_LEASE,
            looked_at: Instant::now(),
        }
    }

    /// Clients of an earlier process may come back within a lease.
    pub fn expect(&mut self, ids: impl IntoIterator<Item = ClientId>) {
        self.expected.extend(ids);
        self.grace_until = Instant::now() + CLIENT_LEASE;
    }

    /// Whether what a client had is still its own: it has greeted, or had before a restart, and not been silent since.
    pub fn has_lease(&self, id: &ClientId) -> bool {
        // Results of its requests may be kept for longer.
        self.expected.contains(id) || self.by_id.get(id).is_some_and(|client| client.session > 0)
    }

    /// How many have greeted.
    pub fn sessions_count(&self) -> usize {
        self.by_id.values().filter(|client| client.session > 0).count()
    }

    /// A client, known from now on.
    pub fn client(&mut self, id: ClientId) -> &mut Client {
        self.by_id.entry(id).or_default()
    }

    /// Which objects are open now.
    pub fn opens(&self) -> OpenObjects {
        OpenObjects { counts: self.open_counts.clone(), is_grace: self.is_grace() }
    }

    /// Whether clients may still announce themselves.
    pub fn is_grace(&self) -> bool {
        // Until `end_silent` has seen that the time is over, and has forgiven what this process stood still.
        !self.expected.is_empty()
    }

    /// Changes how often a client has an object open; true if nobody has it open any more.
    pub fn count_open(&mut self, id: ClientId, gfid: Gfid, home: SetId, delta: i32) -> bool {
        let opens = &mut self.by_id.entry(id).or_default().opens;
        let entry = opens.entry(gfid).or_insert((home, 0));
        let before = entry.1;
        entry.1 = before.saturating_add_signed(delta);
        let after = entry.1;
        if after == 0 {
            opens.remove(&gfid);
        }
        self.add_open(gfid, i64::from(after) - i64::from(before))
    }

    /// Replaces all that a client has open by what it announces; answers what nobody has open any more.
    pub fn announce(&mut self, id: ClientId, opens: HashMap<Gfid, (SetId, u32)>) -> Vec<(Gfid, SetId)> {
        for (gfid, (_, count)) in &opens {
            self.add_open(*gfid, i64::from(*count));
        }
        let before = std::mem::replace(&mut self.client(id).opens, opens);
        self.expected.remove(&id);
        self.close_all(before)
    }

    /// Ends clients that have been silent for a lease; answers what nobody has open any more.
    pub fn end_silent(&mut self, now: Instant) -> Vec<(Gfid, SetId)> {
        self.forgive_stall(now);
        let silent = |client: &Client| client.last_seen.is_none_or(|at| now.duration_since(at) > CLIENT_LEASE);
        let ended: Vec<ClientId> = self.by_id.iter().filter(|(_, c)| silent(c)).map(|(id, _)| *id).collect();
        let mut closed = Vec::new();
        if now >= self.grace_until {
            self.ended.extend(self.expected.drain());
        }
        for id in ended {
            self.ended.push(id);
            tracing::info!(client = %id, "the lease of a client has ended");
            if let Some(client) = self.by_id.remove(&id) {
                closed.extend(self.close_all(client.opens));
            }
        }
        closed
    }

    /// Called every second; where that took longer it is this process that stood still, stopped or waiting for a disk,
    /// and what clients sent meanwhile may not have been read.
    fn forgive_stall(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.looked_at);
        self.looked_at = now;
        if gap <= STALL {
            return;
        }
        tracing::warn!(seconds = gap.as_secs(), "brickd stood still: the leases of its clients go on for so long");
        self.grace_until += gap;
        for client in self.by_id.values_mut() {
            client.last_seen = client.last_seen.map(|at| at + gap);
        }
    }

    fn close_all(&mut self, opens: HashMap<Gfid, (SetId, u32)>) -> Vec<(Gfid, SetId)> {
        let close = |(gfid, (home, count)): (Gfid, (SetId, u32))| {
            self.add_open(gfid, -i64::from(count)).then_some((gfid, home))
        };
        opens.into_iter().filter_map(close).collect()
    }

    fn add_open(&mut self, gfid: Gfid, delta: i64) -> bool {
        if delta == 0 {
            return !self.open_counts.contains_key(&gfid);
        }
        // Shared only while a set decides, so this is a plain change of the map.
        let counts = Arc::make_mut(&mut self.open_counts);
        let count = counts.entry(gfid).or_insert(0);
        *count = u32::try_from(i64::from(*count) + delta).unwrap_or(0);
        if *count == 0 {
            counts.remove(&gfid);
            return true;
        }
        false
    }

    /// Keeps the result of an effect for retries of its request.
    pub fn remember(&mut self, set: SetId, effect: &Effect) {
        let Some(id) = effect.client() else { return };
        let client = self.by_id.entry(id).or_default();
        client.last_seen.get_or_insert_with(Instant::now);
        if effect.outcome.aborted {
            client.results.remove(&effect.request);
        } else {
            client.results.insert(effect.request, (set, effect.outcome.clone()));
            if client.results.len() > RESULTS_MAX {
                client.results.pop_first();
            }
        }
    }

    /// Records without steps that carry the results still needed from a segment of a set's log: of each client the
    /// newest first, for it is those that it may ask for again, should there not be room for all.
    pub fn kept_results(&self, set: SetId) -> Vec<Effect> {
        let record = |id: &ClientId, request: u64, outcome: &Outcome| Effect {
            position: Default::default(),
            time: Default::default(),
            client: id.0,
            request,
            steps: Vec::new(),
            outcome: outcome.clone(),
        };
        let mut kept = Vec::new();
        for (id, client) in &self.by_id {
            let results = client.results.iter().rev().filter(|(_, (on, _))| *on == set);
            let records = results.map(|(request, (_, outcome))| record(id, *request, outcome));
            kept.extend(records.enumerate());
        }
        kept.sort_by_key(|(age, _)| *age);
        kept.into_iter().map(|(_, record)| record).collect()
    }
}

impl Client {
    /// A message came: the lease goes on, results that the client has seen are dropped.
    pub fn seen(&mut self, lowest_unanswered: u64) {
        self.last_seen = Some(Instant::now());
        self.lowest_unanswered = self.lowest_unanswered.max(lowest_unanswered);
        if self.results.first_key_value().is_some_and(|(request, _)| *request < lowest_unanswered) {
            self.results = self.results.split_off(&lowest_unanswered);
        }
    }
}

#[cfg(test)]
impl Clients {
    /// The time for announcements after a start is over: simulated time has no 15 s.
    pub(super) fn end_grace(&mut self) {
        self.grace_until = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId([1; 16]);
    const B: ClientId = ClientId([2; 16]);
    const F: Gfid = Gfid([7; 16]);

    #[test] // PROTOCOL 16
    fn an_object_is_open_as_long_as_any_client_has_it_open() {
        let mut clients = Clients::new();
        assert!(!clients.count_open(A, F, SetId(0), 1));
        assert!(!clients.count_open(B, F, SetId(0), 1));
        assert!(!clients.count_open(A, F, SetId(0), -1));
        assert!(clients.opens().is_open(&F));
        let closed = clients.announce(B, HashMap::new());
        assert_eq!(closed, [(F, SetId(0))]);
        assert!(!clients.opens().is_open(&F));
        clients.announce(B, HashMap::from([(F, (SetId(0), 2))]));
        assert!(clients.announce(B, HashMap::from([(F, (SetId(0), 1))])).is_empty());
        let end = Instant::now() + CLIENT_LEASE + Duration::from_secs(1);
        assert_eq!(looks_until(&mut clients, end), [(F, SetId(0))]);
        assert!(clients.by_id.is_empty());
    }

    /// Looks for silent clients every second until then.
    fn looks_until(clients: &mut Clients, end: Instant) -> Vec<(Gfid, SetId)> {
        let mut closed = Vec::new();
        while clients.looked_at < end {
            closed.extend(clients.end_silent(clients.looked_at + Duration::from_secs(1)));
        }
        closed
    }

    #[test]
    fn a_server_that_stood_still_does_not_take_its_clients_for_silent() {
        let mut clients = Clients::new();
        clients.expect([B]);
        clients.client(A).seen(1);
        assert!(!clients.count_open(A, F, SetId(0), 1));
        let back = Instant::now() + 10 * CLIENT_LEASE;
        assert!(clients.end_silent(back).is_empty());
        assert!(clients.opens().is_open(&F) && clients.expected.contains(&B));
        clients.client(A).last_seen = Some(back);
        assert!(looks_until(&mut clients, back + CLIENT_LEASE / 2).is_empty());
        assert_eq!(looks_until(&mut clients, back + 2 * CLIENT_LEASE), [(F, SetId(0))]);
        assert!(clients.expected.is_empty());
    }

    #[test] // PROTOCOL 16
    fn after_a_restart_everything_is_open_until_the_known_clients_have_spoken() {
        let mut clients = Clients::new();
        clients.expect([A, B]);
        assert!(clients.opens().is_open(&F));
        clients.announce(A, HashMap::new());
        assert!(clients.opens().is_open(&F));
        clients.grace_until = Instant::now();
        clients.end_silent(Instant::now());
        assert!(!clients.opens().is_open(&F));
        assert!(clients.ended.contains(&B));
    }

    #[test] // PROTOCOL 13
    fn results_are_kept_until_the_client_has_seen_them() {
        let mut clients = Clients::new();
        for request in 1..=3 {
            let outcome = Outcome { written: Some((1, request)), ..Outcome::default() };
            let effect = Effect {
                position: Default::default(),
                time: Default::default(),
                client: A.0,
                request,
                steps: Vec::new(),
                outcome,
            };
            clients.remember(SetId(1), &effect);
        }
        clients.client(A).seen(3);
        assert_eq!(clients.kept_results(SetId(1)).iter().map(|e| e.request).collect::<Vec<_>>(), [3]);
        assert!(clients.kept_results(SetId(0)).is_empty());
        clients.remember(SetId(1), &clients.kept_results(SetId(1)).pop().map(|e| Effect { request: 9, ..e }).unwrap());
        assert_eq!(
            clients.kept_results(SetId(1)).iter().map(|e| e.request).collect::<Vec<_>>(),
            [9, 3],
            "newest first"
        );
        assert_eq!(clients.client(A).lowest_unanswered, 3);
    }
}
