//! How many files a process may have open: `brickd` has those of its bricks open, a mount those that its programs read.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::io;

/// Open files asked for, for the caches of a `brickd` with 64 bricks: the most that the kernel allows without
/// being told otherwise (`fs.nr_open`).
const OPEN_FILES: u64 = 1 << 20;
/// The kernel's table of descriptors is made for this many at once (8 bytes each); above it it doubles.
const TABLE: u64 = 1 << 16;

/// Open files that caches may hold together: half of what the process may have. One that has less than its share may add
/// that before others give up theirs.
pub fn for_caches() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(OPEN_FILES);
    usize::try_from(limit / 2).unwrap_or(usize::MAX)
}

/// Raises the limit of open files, and has the table of descriptors made in one go. Called before there are
/// threads: where several share the table, each doubling of it stops whoever opens a file until all CPUs
/// have passed an RCU grace period (`expand_fdtable`), 15 ms and more.
pub fn prepare() {
    let wanted = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
            tracing::warn!("the limit of open files could not be raised: {error}");
        }
    }
    if let Err(error) = make_table() {
        tracing::info!("the table of open files will grow by and by: {error}");
    }
}

fn make_table() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(TABLE);
    let highest = TABLE.min(limit).saturating_sub(1) as i32;
    // The table is as large as its highest descriptor needs, and never shrinks.
    drop(rustix::io::fcntl_dupfd_cloexec(File::open("/")?, highest)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_room_for_what_the_limit_allows() {
        prepare();
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        assert!(size() >= TABLE.min(getrlimit(Resource::Nofile).current.unwrap_or(TABLE)));
    }
}
