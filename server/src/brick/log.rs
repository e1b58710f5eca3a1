//! The effect log of a brick: two preallocated segments used in turn, one record for each effect, written
//! before the effect is applied (PROTOCOL 1). A plain `pwrite` survives SIGKILL; space is taken when the
//! brick is made, so a full disk cannot keep an effect from being logged.
//!
//! Segment: 32 bytes of header (magic, version, generation), then records of
//! (length u32, crc32c u32, postcard bytes); a zero length ends the segment.

use crate::brick::effect::Effect;
use anyhow::Context as _;
use brickfs_common::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes of one segment.
pub const SEGMENT_BYTES: u64 = 4 << 20;
const MAGIC: &[u8; 8] = b"BFSLOG01";
const HEADER_BYTES: u64 = 32;
/// Longest record: an xattr of 64 KiB with names, with room.
const RECORD_MAX_BYTES: u64 = 512 << 10;

/// The open effect log of one brick.
pub struct EffectLog {
    segments: [File; 2],
    current: usize,
    generation: u64,
    end: u64,
    buffer: Vec<u8>,
}

fn header(generation: u64) -> [u8; HEADER_BYTES as usize] {
    let mut bytes = [0u8; HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    bytes
}

impl EffectLog {
    /// Makes the two segments in `dir` (a brick's `.brickfs/log`).
    pub fn create(dir: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(dir)?;
        for (index, name) in ["0", "1"].iter().enumerate() {
            let file = File::create_new(dir.join(name))?;
            if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SEGMENT_BYTES).is_err() {
                file.write_all_at(&vec![0u8; SEGMENT_BYTES as usize], 0)
                    .context("no room for the effect log (2 x 4 MiB)")?;
            }
            file.write_all_at(&header(1 - index as u64), 0)?;
            file.sync_all()?;
        }
        Ok(())
    }

    /// Opens the log and reads every record, oldest first.
    pub fn open(dir: &Path) -> anyhow::Result<(EffectLog, Vec<Effect>)> {
        let open = |name: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(dir.join(name))
                .with_context(|| format!("effect log segment {} is missing", dir.join(name).display()))
        };
        let segments = [open("0")?, open("1")?];
        let mut generations = [0u64; 2];
        for (file, generation) in segments.iter().zip(generations.iter_mut()) {
            let mut head = [0u8; HEADER_BYTES as usize];
            file.read_exact_at(&mut head, 0).context("effect log segment is cut short")?;
            anyhow::ensure!(
                &head[..8] == MAGIC,
                "effect log segment has the format '{}', this brickd reads '{}'",
                head[..8].escape_ascii(),
                MAGIC.escape_ascii()
            );
            *generation = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
        }
        let current = usize::from(generations[1] > generations[0]);
        let mut effects = Vec::new();
        read_records(&segments[1 - current], &mut effects);
        let end = read_records(&segments[current], &mut effects);
        let generation = generations[current];
        Ok((EffectLog { segments, current, generation, end, buffer: Vec::with_capacity(4096) }, effects))
    }

    /// Whether the current segment has no room for one more record of any size.
    pub fn is_full(&self) -> bool {
        self.end + RECORD_MAX_BYTES + 8 > SEGMENT_BYTES
    }

    /// Turns to the other segment, which loses its old records; `kept` are written at its head: the
    /// results that clients have not acknowledged yet, the first ones if there are too many (PROTOCOL 13).
    pub fn turn(&mut self, kept: &[Effect]) -> Result<(), Errno> {
        let next = 1 - self.current;
        let file = &self.segments[next];
        // The end mark first: a crash before the header leaves the old generation with no records.
        file.write_all_at(&[0u8; 8], HEADER_BYTES)?;
        self.generation += 1;
        file.write_all_at(&header(self.generation), 0)?;
        self.current = next;
        self.end = HEADER_BYTES;
        for (index, effect) in kept.iter().enumerate() {
            // Half is for what comes.
            if self.end > SEGMENT_BYTES / 2 {
                tracing::warn!(
                    left_out = kept.len() - index,
                    "the effect log has no room for all unacknowledged results"
                );
                break;
            }
            self.append(effect)?;
        }
        Ok(())
    }

    /// Writes one record. It survives the death of this process from here on.
    pub fn append(&mut self, effect: &Effect) -> Result<(), Errno> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&[0u8; 8]);
        let mut buffer = postcard::to_extend(effect, buffer).map_err(|_| Errno::EIO)?;
        let length = (buffer.len() - 8) as u32;
        let crc = crc32c::crc32c(&buffer[8..]);
        buffer[..4].copy_from_slice(&length.to_le_bytes());
        buffer[4..8].copy_from_slice(&crc.to_le_bytes());
        buffer.extend_from_slice(&[0u8; 8]); // the end mark moves with the record
        if u64::from(length) > RECORD_MAX_BYTES || self.end + buffer.len() as u64 > SEGMENT_BYTES {
            self.buffer = buffer;
            return Err(Errno::EFBIG);
        }
        self.segments[self.current].write_all_at(&buffer, self.end)?;
        self.end += u64::from(length) + 8;
        self.buffer = buffer;
        Ok(())
    }
}

/// Reads the records of a segment into `effects`; answers the offset behind the last good one.
fn read_records(file: &File, effects: &mut Vec<Effect>) -> u64 {
    let mut bytes = vec![0u8; SEGMENT_BYTES as usize];
    let mut filled = 0;
    while let Ok(n @ 1..) = file.read_at(&mut bytes[filled..], filled as u64) {
        filled += n;
    }
    let mut at = HEADER_BYTES as usize;
    while at + 8 <= filled {
        let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        let (length, crc) = (word(at) as usize, word(at + 4));
        if length == 0 || length as u64 > RECORD_MAX_BYTES || at + 8 + length > filled {
            break;
        }
        let body = &bytes[at + 8..at + 8 + length];
        if crc32c::crc32c(body) != crc {
            break;
        }
        let Ok(effect) = postcard::from_bytes(body) else { break };
        effects.push(effect);
        at += 8 + length;
    }
    at as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brick::effect::{Outcome, Step};
    use crate::brick::meta::Position;
    use brickfs_common::attr::Timestamp;

    fn effect(stamp: u64) -> Effect {
        let step = Step::TouchDir { gfid: [1; 16], subdirs: None };
        Effect {
            position: Position { epoch: 1, seq: stamp },
            time: Timestamp { sec: 5, nsec: 6 },
            client: [7; 16],
            request: stamp,
            steps: vec![step],
            outcome: Outcome::default(),
        }
    }

    #[test]
    fn segments_and_records_keep_their_golden_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        EffectLog::create(&path).unwrap();
        EffectLog::open(&path).unwrap().0.append(&effect(300)).unwrap();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let segment = std::fs::read(path.join("0")).unwrap();
        assert_eq!(segment.len() as u64, SEGMENT_BYTES);
        assert_eq!(hex(&segment[..32]), format!("{:0<64}", "4246534c4f47303101"));
        let golden = "2f00000036c6ce5201ac020a0607070707070707070707070707070707ac02010a01010101010101010101010101010101\
                      000000000000";
        assert_eq!(hex(&segment[32..32 + 8 + 0x2f]), golden);
        assert!(segment[32 + 8 + 0x2f..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_log_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        EffectLog::create(&path).unwrap();
        std::fs::OpenOptions::new().write(true).open(path.join("0")).unwrap().write_all_at(b"BFSLOG02", 0).unwrap();
        let error = EffectLog::open(&path).err().unwrap().to_string();
        assert!(error.contains("02") && error.contains("01"), "{error}");
    }

    #[test] // PROTOCOL 1, 13
    fn records_survive_reopening_and_a_turn_keeps_what_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        EffectLog::create(&path).unwrap();
        let (mut log, before) = EffectLog::open(&path).unwrap();
        assert!(before.is_empty());
        for stamp in 1..=3 {
            log.append(&effect(stamp)).unwrap();
        }
        let (mut log, read) = EffectLog::open(&path).unwrap();
        assert_eq!(read, [effect(1), effect(2), effect(3)]);
        log.turn(&[effect(2)]).unwrap();
        log.append(&effect(4)).unwrap();
        let (mut log, read) = EffectLog::open(&path).unwrap();
        assert_eq!(read.iter().map(|e| e.position.seq).collect::<Vec<_>>(), [1, 2, 3, 2, 4]);
        log.turn(&[]).unwrap();
        let (_, read) = EffectLog::open(&path).unwrap();
        assert_eq!(read.iter().map(|e| e.position.seq).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn a_torn_record_ends_the_log_and_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        EffectLog::create(&path).unwrap();
        let (mut log, _) = EffectLog::open(&path).unwrap();
        log.append(&effect(1)).unwrap();
        let end = log.end;
        log.append(&effect(2)).unwrap();
        log.segments[log.current].write_all_at(&[0xff], end + 12).unwrap();
        let (mut log, read) = EffectLog::open(&path).unwrap();
        assert_eq!(read, [effect(1)]);
        log.append(&effect(3)).unwrap();
        assert_eq!(EffectLog::open(&path).unwrap().1, [effect(1), effect(3)]);
    }
}
