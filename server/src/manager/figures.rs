//! What this node measures of itself for `metrics`.

use crate::brick::host::BrickStatus;
use crate::manager::Manager;
use crate::metrics::Source;
use crate::metrics::text::{BrickFigures, ClusterFigures, Figures, ProcessFigures, VolumeFigures};
use crate::security::audit::Audit;
use crate::security::tls::Credentials;
use brickfs_common::cluster::state::VolumeState;
use std::fs;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// When this process was started, or nearly: the first look at it is made when metrics are.
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
/// How long to wait for others who look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// Looks at disks at once. A disk that hangs keeps one for good, and the next ones are told so.
static LOOKS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(2)));

impl Manager {
    /// What those who listen for others need.
    pub fn doors(&self) -> (Arc<Credentials>, Arc<Audit>) {
        LazyLock::force(&STARTED);
        (self.node.credentials.clone(), self.node.audit.clone())
    }

    async fn cluster_figures(&self) -> ClusterFigures {
        let look = self.node.look().await;
        let raft = look.raft;
        let (now, expires) = (SystemTime::now(), self.node.credentials.identity().expires());
        let seconds = |left: Duration| i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        ClusterFigures {
            term: raft.term,
            is_leader: raft.leader == Some(self.node.id),
            knows_leader: raft.leader.is_some(),
            last_log: raft.last_log,
            committed: raft.committed,
            applied: raft.applied,
            commands: look.commands,
            nodes: self.state().map_or(0, |state| state.nodes.len() as u64),
            reachable_peers: look.sights.iter().filter(|sight| sight.is_reachable).count() as u64,
            certificate_left_s: expires.duration_since(now).map_or_else(|past| -seconds(past.duration()), seconds),
            audit_lines_lost: self.node.audit.lost_count(),
        }
    }

    /// Asks the file systems of the bricks: on a thread that may block.
    fn volume_figures(&self) -> Vec<VolumeFigures> {
        let Ok(state) = self.state() else { return Vec::new() };
        state.volumes.values().map(|volume| self.figures_of(volume)).collect()
    }

    fn figures_of(&self, volume: &VolumeState) -> VolumeFigures {
        let (id, is_started) = (volume.map.id, volume.started);
        let bricks = if is_started { self.bricks.status(id) } else { Vec::new() };
        VolumeFigures {
            name: volume.map.name.clone(),
            is_started,
            clients: self.bricks.clients_count(id) as u64,
            bricks: bricks.iter().map(figures_of_brick).collect(),
        }
    }
}

impl Source for Manager {
    async fn figures(self: Arc<Self>) -> Option<Figures> {
        let permit = timeout(LOOK_TIMEOUT, LOOKS.clone().acquire_owned()).await.ok()?.ok()?;
        let cluster = self.cluster_figures().await;
        // The permit goes along: who asked may have gone long before a disk answers.
        let look = move |permit: OwnedSemaphorePermit| {
            let figures = (self.volume_figures(), process_figures());
            drop(permit);
            figures
        };
        let (volumes, process) = tokio::task::spawn_blocking(move || look(permit)).await.ok()?;
        Some(Figures { process, cluster, volumes })
    }
}

fn figures_of_brick(brick: &BrickStatus) -> BrickFigures {
    BrickFigures {
        set: brick.set.0,
        brick: brick.brick.to_string(),
        is_online: brick.online,
        total_bytes: brick.total_bytes,
        free_bytes: brick.free_bytes,
        damaged: brick.damage.len() as u64,
        is_mending: brick.is_mending,
    }
}

fn process_figures() -> ProcessFigures {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // The directory that is being read is one of them.
    let descriptors = fs::read_dir("/proc/self/fd").map(|entries| entries.count().saturating_sub(1) as u64);
    ProcessFigures {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: STARTED.elapsed().as_secs_f64(),
        resident_bytes: resident_bytes(&status),
        descriptors: descriptors.ok(),
    }
}

/// Out of `/proc/self/status`: `VmRSS:     1234 kB`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_own_figures() {
        assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t    1234 kB\n"), Some(1_234 * 1_024));
        assert_eq!(resident_bytes("VmRSS: many kB"), None);
        let figures = process_figures();
        assert!(figures.resident_bytes.is_some_and(|bytes| bytes > 1 << 20));
        assert!(figures.descriptors.is_some_and(|count| count >= 3));
    }
}
