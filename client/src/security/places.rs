//! How many connections a node holds: in all, of one client, and of strangers, who could otherwise take the places
//! of those that belong here.

use crate::security::accept::{Limits, Remote};
use crate::security::role::Role;
use brickfs_common::ids::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections that there are.
pub struct Places {
    limits: Limits,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    count: usize,
    strangers_count: usize,
    clients: HashMap<NodeId, usize>,
}

/// One connection's place; dropping it gives it back.
pub struct Place {
    places: Arc<Places>,
    whose: Whose,
}

#[derive(Clone, Copy)]
enum Whose {
    Stranger,
    Client(NodeId),
    Other,
}

impl Places {
    /// None are taken.
    pub fn new(limits: Limits) -> Arc<Places> {
        Arc::new(Places { limits, taken: Mutex::default() })
    }

    /// A place for a connection, or why there is none.
    pub fn take(self: &Arc<Self>, remote: &Remote) -> Result<Place, String> {
        let whose = match remote.identity {
            None => Whose::Stranger,
            Some(identity) if identity.role == Role::Client => Whose::Client(identity.id),
            Some(_) => Whose::Other,
        };
        let (mut taken, limits) = (self.taken(), &self.limits);
        let (count, count_max, what) = match whose {
            Whose::Stranger => (taken.strangers_count, limits.strangers_max, "without a certificate"),
            Whose::Client(id) => (taken.clients.get(&id).copied().unwrap_or(0), limits.of_client_max, "of this client"),
            Whose::Other => (taken.count, limits.connections_max, "in all"),
        };
        if count_max == 0 && matches!(whose, Whose::Stranger) {
            return Err("it has shown no certificate of the cluster".to_owned());
        }
        if count >= count_max {
            return Err(format!("there are {count_max} connections {what} already"));
        }
        if taken.count >= limits.connections_max {
            return Err(format!("there are {} connections in all already", limits.connections_max));
        }
        taken.count += 1;
        match whose {
            Whose::Stranger => taken.strangers_count += 1,
            Whose::Client(id) => *taken.clients.entry(id).or_default() += 1,
            Whose::Other => (),
        }
        Ok(Place { places: self.clone(), whose })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.count -= 1;
        match self.whose {
            Whose::Stranger => taken.strangers_count -= 1,
            Whose::Client(id) => match taken.clients.get_mut(&id) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(taken.clients.remove(&id)),
            },
            Whose::Other => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::role::{PeerIdentity, Serial};
    use brickfs_common::ids::ClusterId;

    fn remote(who: Option<(Role, u8)>) -> Remote {
        let identity = who.map(|(role, id)| PeerIdentity {
            cluster: ClusterId([1; 16]),
            role,
            id: NodeId([id; 16]),
            serial: Serial(1),
            not_after_s: 0,
        });
        Remote { identity, address: "127.0.0.1:1".parse().unwrap() }
    }

    #[test]
    fn neither_strangers_nor_one_client_take_the_places_of_others() {
        let limits = Limits { connections_max: 6, of_client_max: 2, strangers_max: 1, ..Limits::default() };
        let places = Places::new(limits);
        let (client, other) = (remote(Some((Role::Client, 1))), remote(Some((Role::Client, 2))));
        let (peer, stranger) = (remote(Some((Role::Peer, 1))), remote(None));
        let take = |remote: &Remote| places.take(remote);
        let refused = |remote: &Remote| places.take(remote).err().unwrap();
        let first = take(&client).ok().unwrap();
        let mut kept: Vec<_> = [take(&client), take(&stranger), take(&other)].into_iter().flatten().collect();
        assert_eq!(kept.len(), 3);
        assert_eq!(refused(&client), "there are 2 connections of this client already");
        assert_eq!(refused(&stranger), "there are 1 connections without a certificate already");
        drop(first);
        kept.extend([take(&client), take(&peer), take(&peer)].into_iter().flatten());
        assert_eq!(kept.len(), 6);
        assert_eq!(refused(&peer), "there are 6 connections in all already");
        assert_eq!(refused(&other), "there are 6 connections in all already");
        let without = Places::new(Limits { strangers_max: 0, ..limits });
        assert_eq!(without.take(&stranger).err().unwrap(), "it has shown no certificate of the cluster");
        kept.clear();
        let taken = places.taken();
        assert_eq!((taken.count, taken.strangers_count, taken.clients.len()), (0, 0, 0));
    }
}
