//! The times and counts that Raft runs with.

use crate::manager::raft::network::SNAPSHOT_PIECE_BYTES;
use anyhow::Context as _;
use openraft::{Config, SnapshotPolicy};

/// How long the leader gives a node to store one piece of a snapshot, the last with its installation.
const SNAPSHOT_TIMEOUT_MS: u64 = 10_000;
/// Most entries of one message; their bytes are limited as well.
const ENTRIES_MAX: u64 = 300;

/// Raft's times and counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// The leader's sign of life. openraft looks at its clock each 1.5 of these.
    pub heartbeat_ms: u64,
    /// A follower elects this long after the leader's lease ended; the lease is `election_max_ms`.
    pub election_min_ms: u64,
    /// See `election_min_ms`.
    pub election_max_ms: u64,
    /// A snapshot is taken each time this many entries were applied.
    pub snapshot_entries: u64,
    /// How many entries before the snapshot stay in the log.
    pub kept_entries: u64,
}

impl Default for Timing {
    /// A new leader within 2 s of the old one's death: a follower waits for the lease (700), its own
    /// timeout (400 to 700) and the next look at the clock (300).
    fn default() -> Timing {
        Timing {
            heartbeat_ms: 200,
            election_min_ms: 400,
            election_max_ms: 700,
            snapshot_entries: 5000,
            kept_entries: 1000,
        }
    }
}

/// openraft's form.
pub fn config_of(timing: Timing) -> anyhow::Result<Config> {
    let config = Config {
        cluster_name: "brickfs".to_owned(),
        heartbeat_interval: timing.heartbeat_ms,
        election_timeout_min: timing.election_min_ms,
        election_timeout_max: timing.election_max_ms,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        max_payload_entries: ENTRIES_MAX,
        // A node that needs entries which are purged gets the snapshot whatever this says.
        replication_lag_threshold: timing.snapshot_entries + timing.kept_entries,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timing.snapshot_entries),
        snapshot_max_chunk_size: SNAPSHOT_PIECE_BYTES,
        max_in_snapshot_log_to_keep: timing.kept_entries,
        ..Config::default()
    };
    config.validate().context("Raft's times do not fit together")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_leader_is_due_within_two_seconds_of_the_old_ones_death() {
        let Timing { heartbeat_ms, election_min_ms, election_max_ms, .. } = Timing::default();
        config_of(Timing::default()).unwrap();
        let look_ms = heartbeat_ms * 3 / 2;
        let lease_ms = election_max_ms;
        assert!(lease_ms + election_max_ms + look_ms < 2000);
        // A leader is not given up for two signs of life that were lost.
        assert!(lease_ms + election_min_ms > 3 * look_ms);
    }
}
