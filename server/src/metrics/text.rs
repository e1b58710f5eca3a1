//! The text that Prometheus reads (exposition format 0.0.4): figures in, text out. Names begin with `brickfs_`, labels
//! are a volume's name, the number of a set and the id of a brick. Neither paths nor names of files are ever put in.

use std::fmt::{Display, Write as _};

/// What a node has measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Of its process.
    pub process: ProcessFigures,
    /// Of its part in the cluster.
    pub cluster: ClusterFigures,
    /// Of the volumes of the cluster.
    pub volumes: Vec<VolumeFigures>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessFigures {
    /// Version of `brickd`.
    pub version: String,
    /// Seconds since its start.
    pub uptime_s: f64,
    /// What it has in memory.
    pub resident_bytes: Option<u64>,
    /// Its open file descriptors.
    pub descriptors: Option<u64>,
}

/// A node's part in the cluster. Indexes of Raft's log that it does not have yet are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterFigures {
    /// See `RaftStatus`.
    pub term: u64,
    /// Whether it leads.
    pub is_leader: bool,
    /// Whether it knows who leads.
    pub knows_leader: bool,
    /// The last entry of its log.
    pub last_log: Option<u64>,
    /// The last one that it knows to be committed.
    pub committed: Option<u64>,
    /// The last one in its state.
    pub applied: Option<u64>,
    /// Commands that made its state.
    pub commands: u64,
    /// Nodes, itself counted.
    pub nodes: u64,
    /// Other nodes that it reaches.
    pub reachable_peers: u64,
    /// Seconds until its certificate ends; below 0 after that.
    pub certificate_left_s: i64,
    /// Lines that the audit log misses.
    pub audit_lines_lost: u64,
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VolumeFigures {
    /// Its name.
    pub name: String,
    /// Whether it is started.
    pub is_started: bool,
    /// Clients that this node serves.
    pub clients: u64,
    /// Its bricks on this node, where it is started.
    pub bricks: Vec<BrickFigures>,
}

/// A brick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrickFigures {
    /// Number of its set.
    pub set: u16,
    /// Its id.
    pub brick: String,
    /// Whether it is served.
    pub is_online: bool,
    /// Size of its file system.
    pub total_bytes: u64,
    /// What is free there.
    pub free_bytes: u64,
    /// What was found damaged.
    pub damaged: u64,
    /// Whether it is looked through for what a loss of power left.
    pub is_mending: bool,
}

/// The text of figures.
pub fn write_text(figures: &Figures) -> String {
    let mut text = Text::default();
    text.process(&figures.process);
    text.cluster(&figures.cluster);
    text.volumes(&figures.volumes);
    text.0
}

#[derive(Default)]
struct Text(String);

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    fn process(&mut self, process: &ProcessFigures) {
        self.head("brickfs_build_info", "gauge", "The release of brickd, 1.");
        self.sample("brickfs_build_info", &[("version", &process.version)], 1);
        self.gauge("brickfs_uptime_seconds", "Seconds since brickd was started.", Some(process.uptime_s));
        self.gauge("brickfs_process_resident_bytes", "Memory of brickd.", process.resident_bytes);
        self.gauge("brickfs_process_open_descriptors", "Open file descriptors of brickd.", process.descriptors);
    }

    fn cluster(&mut self, c: &ClusterFigures) {
        self.gauge("brickfs_raft_term", "Term of this node's vote.", Some(c.term));
        self.gauge("brickfs_raft_is_leader", "Whether this node leads.", Some(u8::from(c.is_leader)));
        self.gauge("brickfs_raft_has_leader", "Whether this node knows who leads.", Some(u8::from(c.knows_leader)));
        self.gauge("brickfs_raft_last_log_index", "Last entry of this node's log.", c.last_log);
        self.gauge("brickfs_raft_committed_index", "Last entry that this node knows to be committed.", c.committed);
        self.gauge("brickfs_raft_applied_index", "Last entry in this node's state.", c.applied);
        self.counter("brickfs_cluster_commands_total", "Commands that made this node's state.", c.commands);
        self.gauge("brickfs_cluster_nodes", "Nodes of the cluster, this one counted.", Some(c.nodes));
        self.gauge("brickfs_peers_reachable", "Other nodes that this one reaches.", Some(c.reachable_peers));
        let help = "Seconds until this node's certificate ends.";
        self.gauge("brickfs_certificate_left_seconds", help, Some(c.certificate_left_s));
        let help = "Lines that the audit log misses since the start of brickd.";
        self.counter("brickfs_audit_lines_lost_total", help, c.audit_lines_lost);
    }

    fn volumes(&mut self, volumes: &[VolumeFigures]) {
        self.per_volume(volumes, "brickfs_volume_started", "Whether the volume is started.", |volume| {
            u64::from(volume.is_started)
        });
        self.per_volume(volumes, "brickfs_volume_clients", "Clients of the volume that this node serves.", |volume| {
            volume.clients
        });
        self.per_brick(volumes, "brickfs_brick_online", "Whether the brick is served.", |brick| brick.is_online.into());
        self.per_brick(volumes, "brickfs_brick_total_bytes", "Size of the brick's file system.", |b| b.total_bytes);
        self.per_brick(volumes, "brickfs_brick_free_bytes", "What is free there.", |brick| brick.free_bytes);
        self.per_brick(volumes, "brickfs_brick_damaged", "What was found damaged.", |brick| brick.damaged);
        let help = "Whether the brick is looked through for what a loss of power left.";
        self.per_brick(volumes, "brickfs_brick_mending", help, |brick| brick.is_mending.into());
    }

    fn per_volume(&mut self, volumes: &[VolumeFigures], name: &str, help: &str, of: impl Fn(&VolumeFigures) -> u64) {
        self.head(name, "gauge", help);
        for volume in volumes {
            self.sample(name, &[("volume", &volume.name)], of(volume));
        }
    }

    fn per_brick(&mut self, volumes: &[VolumeFigures], name: &str, help: &str, of: impl Fn(&BrickFigures) -> u64) {
        self.head(name, "gauge", help);
        for volume in volumes {
            for brick in &volume.bricks {
                let set = brick.set.to_string();
                let labels: Labels<'_> = &[("volume", &volume.name), ("set", &set), ("brick", &brick.brick)];
                self.sample(name, labels, of(brick));
            }
        }
    }

    fn gauge<T: Display>(&mut self, name: &str, help: &str, value: Option<T>) {
        if let Some(value) = value {
            self.head(name, "gauge", help);
            self.sample(name, &[], value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
pub mod tests;
