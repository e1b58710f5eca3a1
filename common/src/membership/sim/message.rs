//! What members and the manager say to each other, and the set of writes that a member has.

use crate::cluster::map::SetMap;
use crate::ids::BrickId;
use crate::membership::lease::{Grant, GrantRequest};
use crate::membership::transition::SetChange;
use std::rc::Rc;

/// The writes that a member has applied, one bit each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Writes(Vec<u64>);

impl Writes {
    pub fn insert(&mut self, write: u32) {
        let word = write as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (write % 64);
    }

    /// What is here and not there, one of them.
    pub fn first_not_in(&self, other: &Writes) -> Option<u32> {
        let word = |i: usize| other.0.get(i).copied().unwrap_or(0);
        let missing = self.0.iter().enumerate().map(|(i, bits)| (i, bits & !word(i))).find(|(_, bits)| *bits != 0);
        missing.map(|(i, bits)| i as u32 * 64 + bits.trailing_zeros())
    }
}

/// Which stream of effects a message is of: the epoch, and the process that leads in it.
pub type Stream = (u64, u64);

#[derive(Clone, Debug)]
pub enum Message {
    Request(GrantRequest),
    Grant(Grant),
    /// All that the primary has, as the beginning of a stream.
    Sync {
        stream: Stream,
        from: BrickId,
        writes: Rc<Writes>,
    },
    Synced {
        stream: Stream,
        from: BrickId,
    },
    Apply {
        stream: Stream,
        from: BrickId,
        write: u32,
    },
    Applied {
        stream: Stream,
        from: BrickId,
        write: u32,
    },
    /// From the manager: its state after so many commits.
    Map {
        index: u64,
        set: Rc<SetMap>,
    },
    /// To the manager.
    Ping {
        from: BrickId,
    },
    Ask {
        epoch: u64,
        change: SetChange,
    },
}

/// Whom a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    Member(BrickId),
    Manager,
}
