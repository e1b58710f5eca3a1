//! What transactions hold on one set: names, objects that lose or change a name, directories that are
//! closed (PROTOCOL 5, 7, 9). Pure: no I/O.
//!
//! ```text
//!            prepare                 finish                    release
//!  (nothing) -------> Held --------------------> Finished ------------> (nothing)
//!                       |   committed: done here,    ^  kept while it can still be undone
//!                       |   or undone                |  because of other disks (PROTOCOL 8)
//!                       +-- not parked --> (nothing)-+
//! ```

use crate::brick::effect::{Item, Old, Place};
use brickfs_common::ids::{Gfid, SetId, TxId};
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Most transactions that one set takes part in at once; above it a preparation is refused as busy.
pub const HELD_MAX: usize = 65536;

/// A transaction that this set takes part in.
pub struct Holding {
    /// The set that decides it.
    pub coordinator: SetId,
    /// What it means here.
    pub items: Vec<Item>,
    /// How many parts of it are recorded on the brick; 0 where the coordinator shares this set's fate.
    pub parts: u16,
    /// It is done here and only what it parked is kept.
    pub is_finished: bool,
    waiters: Vec<oneshot::Sender<()>>,
}

/// What is held.
#[derive(Default)]
pub struct Held {
    txs: HashMap<TxId, Holding>,
    names: HashMap<Place, TxId>,
    objects: HashMap<[u8; 16], TxId>,
}

/// What an item holds.
enum Key<'a> {
    Name(&'a Place),
    Object(&'a [u8; 16]),
}

/// Whoever has gone meanwhile needs no waking.
fn wake(waiters: &mut Vec<oneshot::Sender<()>>) {
    for waiter in waiters.drain(..) {
        waiter.send(()).ok();
    }
}

fn key(item: &Item) -> Key<'_> {
    match item {
        Item::Name { place, .. } => Key::Name(place),
        Item::Drop { gfid, .. } | Item::Move { gfid, .. } | Item::Close { gfid } => Key::Object(gfid),
    }
}

impl Held {
    /// Whether nothing at all is held: the usual case, asked before any key is made.
    pub fn is_empty(&self) -> bool {
        self.txs.is_empty()
    }

    /// The transaction that stands in the way of an item, if one does.
    pub fn blocker(&self, tx: &TxId, items: &[Item]) -> Option<TxId> {
        let holder = |item| match key(item) {
            Key::Name(place) => self.names.get(place),
            Key::Object(gfid) => self.objects.get(gfid),
        };
        items.iter().filter_map(holder).find(|other| *other != tx).copied()
    }

    /// The transaction that holds a name.
    pub fn name_holder(&self, place: &Place) -> Option<TxId> {
        self.names.get(place).copied()
    }

    /// The transaction that holds an object.
    pub fn object_holder(&self, gfid: &Gfid) -> Option<TxId> {
        self.objects.get(&gfid.0).copied()
    }

    /// The transaction that will give an object another name, or takes this one from it.
    pub fn mover(&self, gfid: &Gfid, place: &Place) -> Option<TxId> {
        let concerns = |item: &Item| match item {
            Item::Move { gfid: moved, from, to } => *moved == gfid.0 && (from == place || to == place),
            _ => false,
        };
        let tx = self.object_holder(gfid)?;
        self.txs.get(&tx).is_some_and(|holding| holding.items.iter().any(concerns)).then_some(tx)
    }

    /// Transactions that hold names of a directory, or change what is in it.
    pub fn holders_in(&self, dir: &Gfid) -> Vec<TxId> {
        let concerns = |item: &Item| match item {
            Item::Move { from, to, .. } => from.parent == dir.0 || to.parent == dir.0,
            Item::Drop { place, .. } => place.parent == dir.0,
            Item::Name { .. } | Item::Close { .. } => false,
        };
        let is_moving = |holding: &Holding| !holding.is_finished && holding.items.iter().any(concerns);
        let mut txs: Vec<_> = self.names.iter().filter(|(place, _)| place.parent == dir.0).map(|(_, tx)| *tx).collect();
        txs.extend(self.txs.iter().filter(|(_, holding)| is_moving(holding)).map(|(tx, _)| *tx));
        txs.sort_unstable();
        txs.dedup();
        txs
    }

    /// Whether any transaction concerns an object, or has done so and may have to undo it.
    pub fn concerns(&self, gfid: &Gfid) -> bool {
        let is_it = |item: &Item| match item {
            Item::Name { new, old, .. } => {
                new.is_some_and(|claim| claim.gfid == gfid.0)
                    || matches!(old, Old::Native(other, _) if *other == gfid.0)
            }
            Item::Drop { gfid: other, .. } | Item::Move { gfid: other, .. } | Item::Close { gfid: other } => {
                *other == gfid.0
            }
        };
        self.txs.values().any(|holding| holding.items.iter().any(is_it))
    }

    /// Adds items to a transaction. The caller has seen that nothing is in the way.
    pub fn hold(&mut self, tx: TxId, coordinator: SetId, items: Vec<Item>, parts: u16) {
        assert!(self.blocker(&tx, &items).is_none(), "what is held is not held twice");
        for item in &items {
            match key(item) {
                Key::Name(place) => drop(self.names.insert(place.clone(), tx)),
                Key::Object(gfid) => drop(self.objects.insert(*gfid, tx)),
            }
        }
        let holding = self.holding(tx, coordinator);
        holding.items.extend(items);
        holding.parts += parts;
    }

    /// Adds a part of a transaction that is done here: it keeps nobody out.
    pub fn hold_finished(&mut self, tx: TxId, coordinator: SetId, items: Vec<Item>) {
        let holding = self.holding(tx, coordinator);
        holding.is_finished = true;
        holding.items.extend(items);
        holding.parts += 1;
    }

    fn holding(&mut self, tx: TxId, coordinator: SetId) -> &mut Holding {
        let new = || Holding { coordinator, items: Vec::new(), parts: 0, is_finished: false, waiters: Vec::new() };
        self.txs.entry(tx).or_insert_with(new)
    }

    /// A transaction.
    pub fn get(&self, tx: &TxId) -> Option<&Holding> {
        self.txs.get(tx)
    }

    /// Number of transactions.
    pub fn len(&self) -> usize {
        self.txs.len()
    }

    /// All transactions that another set decides, with that set: what is finished here may have to be undone
    /// after a power loss there.
    pub fn decided_elsewhere(&self, here: SetId) -> Vec<(TxId, SetId)> {
        let others = self.txs.iter().filter(|(_, holding)| holding.coordinator != here);
        let mut txs: Vec<_> = others.map(|(tx, holding)| (*tx, holding.coordinator)).collect();
        txs.sort_unstable();
        txs
    }

    fn free_keys(&mut self, tx: &TxId) {
        self.names.retain(|_, holder| holder != tx);
        self.objects.retain(|_, holder| holder != tx);
    }

    /// The transaction is done here; what it parked may still be given back.
    pub fn finish(&mut self, tx: &TxId) {
        self.free_keys(tx);
        if let Some(holding) = self.txs.get_mut(tx) {
            holding.is_finished = true;
            wake(&mut holding.waiters);
        }
    }

    /// Forgets a transaction and wakes who waited for it.
    pub fn release(&mut self, tx: &TxId) -> Option<Holding> {
        self.free_keys(tx);
        let mut holding = self.txs.remove(tx)?;
        wake(&mut holding.waiters);
        Some(holding)
    }

    /// Resolves when the transaction is done here; `None` if it is.
    pub fn wait(&mut self, tx: &TxId) -> Option<oneshot::Receiver<()>> {
        let holding = self.txs.get_mut(tx).filter(|holding| !holding.is_finished)?;
        let (sender, receiver) = oneshot::channel();
        holding.waiters.retain(|waiter| !waiter.is_closed());
        holding.waiters.push(sender);
        Some(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brick::effect::Old;

    fn name(n: &str) -> Item {
        let place = Place { parent: [0; 16], name: n.as_bytes().to_vec() };
        Item::Name { place, new: None, old: Old::Absent }
    }

    #[test] // PROTOCOL 7
    fn one_transaction_holds_a_key_until_it_is_done() {
        let (a, b) = (TxId([1; 16]), TxId([2; 16]));
        let mut held = Held::default();
        held.hold(a, SetId(0), vec![name("x"), Item::Close { gfid: [9; 16] }], 1);
        held.hold(a, SetId(0), vec![name("y")], 1);
        assert_eq!(held.blocker(&b, &[name("z"), name("y")]), Some(a));
        assert_eq!(
            held.blocker(&b, &[Item::Drop { place: Place { parent: [0; 16], name: vec![] }, gfid: [9; 16] }]),
            Some(a)
        );
        assert_eq!(held.blocker(&a, &[name("x")]), None);
        assert_eq!(held.holders_in(&Gfid([0; 16])), [a]);
        let mut waiting = held.wait(&a).unwrap();
        assert!(waiting.try_recv().is_err());
        held.finish(&a);
        assert!(waiting.try_recv().is_ok());
        assert_eq!(held.blocker(&b, &[name("x"), name("y")]), None);
        assert!(held.wait(&a).is_none(), "a finished transaction keeps nobody");
        assert_eq!(held.release(&a).map(|h| (h.parts, h.items.len())), Some((2, 3)));
        assert!(held.is_empty() && held.decided_elsewhere(SetId(1)).is_empty());
    }
}
