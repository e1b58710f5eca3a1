//! One volume on this node: its sets, and the engine that decides an operation and applies its effect.
//!
//! An operation is decided under the volume's lock: checks, gfid, times, append offset and result. The
//! decision is one `Effect`, logged on the coordinator's set (the home of the object concerned) and
//! then applied step by step. N1-N5 hold because nobody else sees the volume between the steps and
//! because the last effect is applied again after a crash, before anybody asks.

mod attrs;
mod data;
mod listing;
mod namespace;
mod rename;

use crate::brick::effect::{Effect, NewObject, Outcome, Place, Step};
use crate::brick::format::{BrickIdentity, DOT_DIR, read_identity};
use crate::brick::log::EffectLog;
use crate::brick::meta::Meta;
use crate::brick::store::Store;
use anyhow::{Context as _, ensure};
use brickfs_common::attr::{Attr, Kind, Timestamp};
use brickfs_common::cluster::map::{SetMap, VolumeMap};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, CallHeader, Fop, FopReply, ObjectRef};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use brickfs_common::name::Name;
use listing::Snapshots;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a silent client keeps what it has open.
pub const CLIENT_LEASE: Duration = Duration::from_secs(15);
/// Figures of free space are at most this old, or this many written bytes.
const SPACE_AGE: Duration = Duration::from_secs(1);
const SPACE_WRITTEN_BYTES: u64 = 4 << 20;

/// What a call is answered with: at once, or by work that may sleep and runs elsewhere.
pub enum Reply {
    /// The reply.
    Now(FopReply),
    /// Computes the reply; may sleep on the disk.
    Later(Box<dyn FnOnce() -> FopReply + Send>),
}

impl From<Result<FopReply, (u64, Errno)>> for Reply {
    fn from(result: Result<FopReply, (u64, Errno)>) -> Reply {
        Reply::Now(result.unwrap_or_else(|(request, errno)| FopReply::failed(request, errno)))
    }
}

/// A set as this node serves it.
pub struct SetState {
    /// The open store, or why there is none.
    pub store: Result<Store, String>,
    space: Option<(Instant, u64, rustix::fs::StatVfs)>,
}

/// One client of the volume.
#[derive(Default)]
pub struct Client {
    /// Number of the newest session.
    pub session: u64,
    /// When its last message came.
    pub last_seen: Option<Instant>,
    /// Open counts by object.
    pub opens: HashMap<Gfid, (SetId, u32)>,
    /// Results of mutations that the client has not acknowledged, with the set whose log has them.
    pub results: BTreeMap<u64, (SetId, Outcome)>,
}

/// Who asked, for the effect's record.
#[derive(Clone, Copy)]
pub struct Asker {
    /// The client.
    pub client: ClientId,
    /// Its request number.
    pub request: u64,
}

/// What a name leads to.
#[derive(Clone)]
pub struct Found {
    /// The object and its home.
    pub object: ObjectRef,
    /// What it is.
    pub kind: Kind,
}

/// The engine of one volume.
pub struct Volume {
    /// The volume map.
    pub map: VolumeMap,
    /// The sets, by number.
    pub sets: Vec<SetState>,
    /// The clients.
    pub clients: HashMap<ClientId, Client>,
    stamp: u64,
    last_time: Timestamp,
    /// Until then clients of an earlier process may announce what they have open (PROTOCOL 16).
    grace_until: Instant,
    snapshots: Snapshots,
    read_only: bool,
    reserve_percent: f64,
}

impl Volume {
    /// Opens the bricks of the volume and finishes what an earlier process left half done.
    pub fn open(map: VolumeMap) -> Volume {
        let mut effects = Vec::new();
        let sets = map
            .sets
            .iter()
            .map(|set| {
                let store = open_store(&map, set, &mut effects).map_err(|error| {
                    let line = format!("{error:#}");
                    tracing::error!(volume = %map.name, set = %set.id, "brick is not served: {line}");
                    line
                });
                SetState { store, space: None }
            })
            .collect();
        let mut volume = Volume {
            map,
            sets,
            clients: HashMap::new(),
            stamp: 0,
            last_time: Timestamp::default(),
            grace_until: Instant::now() + CLIENT_LEASE,
            snapshots: Snapshots::new(),
            read_only: false,
            reserve_percent: 1.0,
        };
        volume.read_options();
        volume.recover(effects);
        volume
    }

    /// Takes over a changed map: options may have changed.
    pub fn update_map(&mut self, map: VolumeMap) {
        self.map = map;
        self.read_options();
    }

    fn read_options(&mut self) {
        let option = |key: &str| self.map.options.get(key).map(String::as_str);
        self.read_only = option("read-only") == Some("on");
        self.reserve_percent =
            option("reserve").and_then(|text| text.trim_end_matches('%').trim().parse().ok()).unwrap_or(1.0);
    }

    /// Takes the results of all records, then applies the last effect again.
    fn recover(&mut self, mut effects: Vec<(SetId, Effect)>) {
        effects.sort_by_key(|(_, effect)| effect.stamp);
        for (set, effect) in &effects {
            self.stamp = self.stamp.max(effect.stamp);
            if let Ok(store) = &mut self.sets[usize::from(set.0)].store {
                store.seq = store.seq.max(effect.seq);
                store.changes_count = self.stamp;
            }
            self.remember(*set, effect);
        }
        let Some((_, last)) = effects.last().cloned() else { return };
        for (set, step) in &last.steps {
            let Ok(store) = self.store(*set) else { continue };
            match store.redo(step) {
                Ok(true) => {}
                Ok(false) => {
                    let client = self.clients.entry(last.client()).or_default();
                    client.results.remove(&last.request);
                }
                Err(error) => {
                    let line = format!("the last effect before the restart could not be finished: {step:?}: {error}");
                    store.report_damage(line);
                }
            }
        }
    }

    fn remember(&mut self, set: SetId, effect: &Effect) {
        if effect.client().0 == [0; 16] {
            return;
        }
        let client = self.clients.entry(effect.client()).or_default();
        client.last_seen.get_or_insert_with(Instant::now);
        if effect.outcome.aborted {
            client.results.remove(&effect.request);
        } else {
            client.results.insert(effect.request, (set, effect.outcome.clone()));
        }
    }

    /// The store of a set: EIO if its brick is not served.
    pub fn store(&mut self, set: SetId) -> Result<&mut Store, Errno> {
        let state = self.sets.get_mut(usize::from(set.0)).ok_or(Errno::ESTALE)?;
        state.store.as_mut().map_err(|_| Errno::EIO)
    }

    /// The time of a decision: the clock, never before an earlier decision's.
    fn now(&mut self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let now = Timestamp { sec: now.tv_sec, nsec: now.tv_nsec as u32 };
        self.last_time = self.last_time.max(now);
        self.last_time
    }

    /// The object with the home that is true, if the one the client named is.
    fn meta(&mut self, object: ObjectRef) -> Result<Meta, Errno> {
        match self.store(object.home)?.meta(&object.gfid) {
            Ok(meta) if meta.kind == Kind::Directory && meta.home != object.home && object.gfid != Gfid::ROOT => {
                Err(Errno::ESTALE)
            }
            other => other,
        }
    }

    /// The record of a directory in which names are to be changed or looked up.
    fn directory(&mut self, object: ObjectRef) -> Result<Meta, Errno> {
        match self.meta(object) {
            Ok(meta) if meta.kind != Kind::Directory => Err(Errno::ENOTDIR),
            Err(Errno::ESTALE) => Err(Errno::ENOENT),
            other => other,
        }
    }

    /// Attributes of an object, as its home knows them.
    pub fn attr(&mut self, object: ObjectRef) -> Result<Attr, Errno> {
        self.store(object.home)?.attr(&object.gfid)
    }

    /// What (parent, name) leads to: the dentry set alone answers; its claims are confirmed by the
    /// home (PROTOCOL 6).
    fn resolve(&mut self, parent: Gfid, name: &Name) -> Result<Option<Found>, Errno> {
        if parent == Gfid::ROOT && name.is_reserved_in_root() {
            return Ok(None);
        }
        let set = self.map.layout.dentry_set(&parent, name);
        let store = self.store(set)?;
        if let Some(meta) = store.entry(&parent, name.as_bytes())?
            && (meta.kind != Kind::Directory || meta.home == set)
        {
            return Ok(Some(Found { object: ObjectRef { gfid: meta.gfid, home: set }, kind: meta.kind }));
        }
        let Some((gfid, home)) = store.claim(&parent, name.as_bytes())? else { return Ok(None) };
        let home_store = self.store(home)?;
        if !home_store.bears(&gfid, &parent, name.as_bytes())? {
            return Ok(None);
        }
        let kind = home_store.meta(&gfid)?.kind;
        Ok(Some(Found { object: ObjectRef { gfid, home }, kind }))
    }

    /// Adds the steps that give `set` a copy of a directory and of what is above it.
    fn plan_copy(&mut self, set: SetId, dir: ObjectRef, steps: &mut Vec<(SetId, Step)>) -> Result<(), Errno> {
        let is_planned = steps
            .iter()
            .any(|(on, step)| *on == set && matches!(step, Step::Make { object, .. } if object.gfid == dir.gfid.0));
        if is_planned || self.store(set)?.has_dir(&dir.gfid)? {
            return Ok(());
        }
        let home = self.store(dir.home)?;
        let (parent, name) = home.dir_place(&dir.gfid)?.ok_or(Errno::ENOENT)?;
        let parent_home = if parent == Gfid::ROOT { self.map.root_home } else { home.meta(&parent)?.home };
        self.plan_copy(set, ObjectRef { gfid: parent, home: parent_home }, steps)?;
        let object = NewObject {
            gfid: dir.gfid.0,
            kind: Kind::Directory,
            perm: 0o755,
            uid: 0,
            gid: 0,
            project: 0,
            rdev: 0,
            target: Vec::new(),
            access_acl: None,
            default_acl: None,
            time: self.now(),
            home: dir.home,
        };
        steps.push((set, Step::Make { place: Place { parent: parent.0, name }, object }));
        Ok(())
    }

    /// The step that tells a directory's home of a change of its entries.
    fn plan_touch(&mut self, dir: ObjectRef, time: Timestamp, subdirs_delta: i32) -> Result<(SetId, Step), Errno> {
        let subdirs = match subdirs_delta {
            0 => None,
            delta => Some(self.directory(dir)?.subdirs.saturating_add_signed(delta)),
        };
        Ok((dir.home, Step::TouchDir { gfid: dir.gfid.0, time, subdirs }))
    }

    /// Refuses what needs room on a set whose free space is below the reserve (PROTOCOL 22, 40).
    fn check_space(&mut self, set: SetId, bytes: u64) -> Result<(), Errno> {
        let reserve_percent = self.reserve_percent;
        let state = self.sets.get_mut(usize::from(set.0)).ok_or(Errno::ESTALE)?;
        let store = state.store.as_ref().map_err(|_| Errno::EIO)?;
        let is_fresh =
            |(at, written, _): &(Instant, u64, _)| at.elapsed() < SPACE_AGE && *written < SPACE_WRITTEN_BYTES;
        if !state.space.as_ref().is_some_and(is_fresh) {
            state.space = Some((Instant::now(), 0, store.space()?));
        }
        let Some((_, written, space)) = &mut state.space else { return Err(Errno::EIO) };
        *written += bytes;
        let free = space.f_bavail.saturating_mul(space.f_frsize).saturating_sub(*written);
        let reserve = (space.f_blocks.saturating_mul(space.f_frsize) as f64 * reserve_percent / 100.0) as u64;
        let inodes_gone = space.f_files > 0 && space.f_ffree == 0;
        if free < reserve || inodes_gone { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Logs a decided effect on its coordinator's set and applies it. An error of a step takes the
    /// result back: a retry runs as if new.
    fn commit(
        &mut self,
        asker: Asker,
        coordinator: SetId,
        steps: Vec<(SetId, Step)>,
        outcome: Outcome,
    ) -> Result<(), Errno> {
        for (set, _) in &steps {
            self.store(*set)?;
        }
        let effect = self.log(asker, coordinator, steps, outcome)?;
        for (set, step) in &effect.steps {
            let result = self.store(*set).and_then(|store| store.apply(step));
            if let Err(error) = result {
                self.take_back(asker, coordinator, &effect, *set, step);
                return Err(error);
            }
        }
        self.remember(coordinator, &effect);
        Ok(())
    }

    fn log(
        &mut self,
        asker: Asker,
        coordinator: SetId,
        steps: Vec<(SetId, Step)>,
        outcome: Outcome,
    ) -> Result<Effect, Errno> {
        self.stamp += 1;
        let stamp = self.stamp;
        let epoch = self.map.sets[usize::from(coordinator.0)].epoch;
        if self.store(coordinator)?.log.is_full() {
            let kept = self.kept_results(coordinator);
            self.store(coordinator)?.log.turn(&kept)?;
        }
        let store = self.store(coordinator)?;
        store.seq += 1;
        let effect =
            Effect { stamp, epoch, seq: store.seq, client: asker.client.0, request: asker.request, steps, outcome };
        store.log.append(&effect)?;
        Ok(effect)
    }

    /// Records without steps that carry the results still needed from a log segment (PROTOCOL 13).
    fn kept_results(&self, set: SetId) -> Vec<Effect> {
        let mut kept = Vec::new();
        for (client, state) in &self.clients {
            for (request, (on, outcome)) in &state.results {
                if *on == set {
                    kept.push(Effect {
                        stamp: 0,
                        epoch: 0,
                        seq: 0,
                        client: client.0,
                        request: *request,
                        steps: Vec::new(),
                        outcome: outcome.clone(),
                    });
                }
            }
        }
        kept
    }

    fn take_back(&mut self, asker: Asker, coordinator: SetId, effect: &Effect, set: SetId, failed: &Step) {
        if let (Step::Make { object, .. }, Ok(store)) = (failed, self.store(set)) {
            store.undo_make(&Gfid(object.gfid), object.kind);
        }
        tracing::warn!(volume = %self.map.name, %set, stamp = effect.stamp, "effect taken back at {failed:?}");
        let aborted = Outcome { aborted: true, ..Outcome::default() };
        if let Err(error) = self.log(asker, coordinator, Vec::new(), aborted) {
            tracing::error!(volume = %self.map.name, "the effect log cannot be written: {error}");
        }
    }

    /// Answers a request that ran before, from its kept result.
    fn reply_again(&mut self, request: u64, outcome: &Outcome) -> FopReply {
        let mut attr = |object: Option<([u8; 16], SetId)>| {
            object.and_then(|(gfid, home)| self.attr(ObjectRef { gfid: Gfid(gfid), home }).ok())
        };
        let answer = match outcome.written {
            Some((count, offset)) => Answer::Written { count, offset },
            None => Answer::Done,
        };
        FopReply {
            request,
            attr: attr(outcome.object),
            parent: attr(outcome.parent),
            new_parent: attr(outcome.new_parent),
            result: Ok(answer),
        }
    }

    /// Runs one operation of a client.
    pub fn call(&mut self, client: ClientId, header: &CallHeader, fop: Fop) -> Reply {
        let request = header.request;
        let is_mutation = fop.is_mutation();
        if is_mutation {
            let state = self.clients.entry(client).or_default();
            if let Some((_, outcome)) = state.results.get(&request).cloned() {
                if let Fop::Open { object, .. } | Fop::Make { parent: object, .. } = &fop {
                    self.open_again(client, &fop, *object, &outcome);
                }
                return Reply::Now(self.reply_again(request, &outcome));
            }
            if self.read_only {
                return Reply::Now(FopReply::failed(request, Errno::EROFS));
            }
        }
        let asker = Asker { client, request };
        self.dispatch(asker, header, fop)
    }

    fn open_again(&mut self, client: ClientId, fop: &Fop, object: ObjectRef, outcome: &Outcome) {
        use brickfs_common::fop::Making;
        match (fop, outcome.object) {
            (Fop::Make { making: Making::File { open: true, .. }, .. }, Some((gfid, home))) => {
                self.count_open(client, ObjectRef { gfid: Gfid(gfid), home }, 1);
            }
            (Fop::Open { .. }, _) => self.count_open(client, object, 1),
            _ => {}
        }
    }

    fn dispatch(&mut self, asker: Asker, header: &CallHeader, fop: Fop) -> Reply {
        let request = asker.request;
        let result = match fop {
            Fop::Lookup { parent, name } => self.lookup(asker, parent, &name),
            Fop::GetAttr { object } => self.get_attr(asker, object),
            Fop::SetAttr { object, set } => self.set_attr(asker, object, set),
            Fop::ReadLink { object } => self.read_link(asker, object),
            Fop::Make { parent, name, making, perm, umask } => {
                self.make(asker, header, parent, &name, making, (perm, umask))
            }
            Fop::Unlink { parent, name } => self.unlink(asker, parent, &name),
            Fop::Rmdir { parent, name } => self.rmdir(asker, parent, &name),
            Fop::Rename { parent, name, new_parent, new_name, flags } => {
                self.rename(asker, header, (parent, &name), (new_parent, &new_name), flags)
            }
            Fop::Link { object, new_parent, new_name } => self.link(asker, object, new_parent, &new_name),
            Fop::Open { object, truncate } => self.open_file(asker, object, truncate),
            Fop::Release { object } => self.release(asker, object),
            Fop::Read { object, offset, size } => return self.read(request, object, offset, size),
            Fop::Write { object, offset, data, flags } => return self.write(asker, object, offset, data, flags),
            Fop::Fallocate { object, mode, offset, length } => self.fallocate(asker, object, mode, offset, length),
            Fop::Seek { object, offset, whence } => self.seek(asker, object, offset, whence),
            Fop::Fsync { object, data_only } => return self.fsync(request, object, data_only),
            Fop::ReadDir { directory, after, limit, plus } => {
                self.read_dir(asker, SetId(header.set), directory, after, limit, plus)
            }
            Fop::StatFs => self.stat_fs(asker),
            Fop::SetXattr { object, name, value, flags } => self.set_xattr(asker, object, &name, Some(&value), flags),
            Fop::RemoveXattr { object, name } => self.set_xattr(asker, object, &name, None, 0),
            Fop::GetXattr { object, name } => self.get_xattr(asker, object, &name),
            Fop::ListXattr { object } => self.list_xattr(asker, object),
            Fop::Renew => Ok(done(request)),
        };
        Reply::from(result.map_err(|errno| (request, errno)))
    }

    /// Changes how often a client has an object open; the last close of an orphan deletes it.
    pub fn count_open(&mut self, client: ClientId, object: ObjectRef, delta: i32) {
        let opens = &mut self.clients.entry(client).or_default().opens;
        let entry = opens.entry(object.gfid).or_insert((object.home, 0));
        entry.1 = entry.1.saturating_add_signed(delta);
        if entry.1 == 0 {
            opens.remove(&object.gfid);
            self.delete_if_orphan(object);
        }
    }

    /// Whether any client has the object open, or may still say so after a restart.
    fn is_open(&self, gfid: &Gfid) -> bool {
        Instant::now() < self.grace_until || self.clients.values().any(|client| client.opens.contains_key(gfid))
    }

    fn delete_if_orphan(&mut self, object: ObjectRef) {
        if self.is_open(&object.gfid) {
            return;
        }
        if let Ok(store) = self.store(object.home)
            && let Err(error) = store.delete_orphan(&object.gfid)
        {
            tracing::warn!(gfid = %object.gfid, "an orphan could not be deleted: {error}");
        }
    }

    /// Ends what silent clients hold and deletes orphans that nobody has open. Called every second.
    pub fn tick(&mut self) {
        let now = Instant::now();
        let silent = |client: &Client| client.last_seen.is_none_or(|at| now.duration_since(at) > CLIENT_LEASE);
        let ended: Vec<ClientId> = self.clients.iter().filter(|(_, c)| silent(c)).map(|(id, _)| *id).collect();
        for id in ended {
            tracing::info!(client = %id, "the lease of a client has ended");
            self.clients.remove(&id);
        }
        if now < self.grace_until {
            return;
        }
        for index in 0..self.sets.len() {
            let home = SetId(index as u16);
            let orphans = self.store(home).and_then(|store| store.orphan_ids()).unwrap_or_default();
            for gfid in orphans {
                self.delete_if_orphan(ObjectRef { gfid, home });
            }
        }
    }
}

/// A reply without attributes.
fn done(request: u64) -> FopReply {
    FopReply { request, result: Ok(Answer::Done), attr: None, parent: None, new_parent: None }
}

/// Opens the brick of a set of one; it must be the brick that the map names (R7).
fn open_store(map: &VolumeMap, set: &SetMap, effects: &mut Vec<(SetId, Effect)>) -> anyhow::Result<Store> {
    let member = set.members.first().context("the set has no brick")?;
    let path = Path::new(&member.path);
    let found = read_identity(path)?
        .with_context(|| format!("{} has no .brickfs: is its disk mounted? Nothing was made in it", path.display()))?;
    let is_root_home = map.root_home == set.id;
    let expected = BrickIdentity {
        cluster: map.cluster,
        volume: map.id,
        volume_name: found.volume_name.clone(),
        brick: member.brick,
        incarnation: member.incarnation,
        set: set.id,
        is_root_home,
    };
    ensure!(
        found == expected,
        "{} is brick {} of volume {}, expected brick {}",
        path.display(),
        found.brick,
        found.volume_name,
        member.brick
    );
    let (log, read) = EffectLog::open(&path.join(DOT_DIR).join("log"))?;
    effects.extend(read.into_iter().map(|effect| (set.id, effect)));
    Store::open(path, set.id, log).map_err(|error| anyhow::anyhow!("cannot open {}: {error}", path.display()))
}
