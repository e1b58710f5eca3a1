//! The layout: which set a slot belongs to, as runs of slots, with its generation.

use crate::ids::{Gfid, SetId};
use crate::layout::slots::{SLOT_COUNT, Slot, compute_slot};
use crate::name::Name;
use serde::{Deserialize, Serialize};

/// A layout of one generation: `runs` are (first slot, set), ascending, the first at slot 0; a run ends
/// where the next begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// Counts the layouts of a volume, from 1.
    pub generation: u64,
    /// (first slot, set) in ascending order of slots.
    pub runs: Vec<(u16, SetId)>,
}

impl Layout {
    /// The first layout: each set gets a run of slots in proportion to its weight (largest remainders;
    /// every set gets at least one slot). Weights of zero count as one.
    pub fn first(weights: &[u64]) -> Layout {
        assert!(!weights.is_empty() && weights.len() <= SLOT_COUNT, "1 to 16384 sets");
        let weights: Vec<u128> = weights.iter().map(|w| u128::from((*w).max(1))).collect();
        let total: u128 = weights.iter().sum();
        let spare = (SLOT_COUNT - weights.len()) as u128;
        let mut shares: Vec<(u128, u128)> = weights.iter().map(|w| (w * spare / total, w * spare % total)).collect();
        let given: u128 = shares.iter().map(|s| s.0).sum();
        let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
        by_remainder.sort_by_key(|i| (std::cmp::Reverse(shares[*i].1), *i));
        for i in by_remainder.into_iter().take((spare - given) as usize) {
            shares[i].0 += 1;
        }
        let mut next = 0u128;
        let runs = shares
            .iter()
            .enumerate()
            .map(|(i, share)| {
                let first = next as u16;
                next += share.0 + 1;
                (first, SetId(i as u16))
            })
            .collect();
        Layout { generation: 1, runs }
    }

    /// The set of a slot.
    pub fn set_of_slot(&self, slot: Slot) -> SetId {
        let run = self.runs.partition_point(|(first, _)| *first <= slot.0);
        self.runs[run.saturating_sub(1)].1
    }

    /// The dentry set of (parent, name): it alone answers whether that name exists.
    pub fn dentry_set(&self, parent: &Gfid, name: &Name) -> SetId {
        self.set_of_slot(compute_slot(parent, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_set_and_shares_follow_the_weights() {
        for weights in [vec![1], vec![1, 1, 1, 1], vec![5, 1, 0], vec![1; 64], vec![u64::MAX, 1, u64::MAX]] {
            let layout = Layout::first(&weights);
            let mut counts = vec![0u64; weights.len()];
            for slot in 0..SLOT_COUNT as u16 {
                counts[layout.set_of_slot(Slot(slot)).0 as usize] += 1;
            }
            assert_eq!(counts.iter().sum::<u64>(), SLOT_COUNT as u64);
            assert!(counts.iter().all(|c| *c > 0), "{weights:?} {counts:?}");
        }
        let layout = Layout::first(&[3, 1]);
        assert_eq!(layout.runs[1], (12288, SetId(1)));
    }
}
