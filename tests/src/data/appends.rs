//! Records that several writers append to one file: each says who wrote it and which of that writer's it is.

use crate::at::At as _;
use crate::load::Progress;
use anyhow::{Context as _, ensure};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A record: number of its writer, number of the record, how many bytes follow, and that many of a letter.
fn record(writer: usize, number: u64) -> Vec<u8> {
    // From a few bytes to most of one request of the kernel.
    let max = if number % 50 == 7 { 200_000 } else { 3000 };
    let length = 1 + (number as usize * 7919 + writer * 31) % max;
    let mut record = format!("{writer} {number} {length} ").into_bytes();
    record.resize(record.len() + length, b'a' + (number % 26) as u8);
    record.push(b'\n');
    record
}

/// Appends so many records, opening the file with further flags now and then.
pub fn append_records(
    path: &Path,
    writer: usize,
    records: u64,
    flags: &[i32],
    progress: &Progress,
) -> anyhow::Result<()> {
    let open = |flags| File::options().append(true).custom_flags(flags).open(path).at(path);
    let mut file = open(0)?;
    for number in 0..records {
        if number % 40 == 39 {
            file = open(flags[number as usize / 40 % flags.len()])?;
        }
        let record = record(writer, number);
        let count = file.write(&record).at(path)?;
        ensure!(count == record.len(), "{count} bytes of {} appended", record.len());
        progress.step()?;
    }
    Ok(())
}

/// Every record is whole and there once, those of each writer are in their order, and there is nothing else.
pub fn check_records(mut found: &[u8], writers: usize, records: u64) -> anyhow::Result<()> {
    let (size, mut next) = (found.len(), vec![0u64; writers]);
    while !found.is_empty() {
        let at = size - found.len();
        let head = found.split(|byte| *byte == b' ').next().unwrap_or_default();
        let writer: usize = std::str::from_utf8(head).ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        let number = next.get_mut(writer).with_context(|| format!("no record begins at {at}"))?;
        let wanted = record(writer, *number);
        ensure!(found.starts_with(&wanted), "at {at} is not record {number} of writer {writer}, which must come next");
        found = &found[wanted.len()..];
        *number += 1;
    }
    ensure!(next.iter().all(|number| *number == records), "the writers have {next:?} records, not {records}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_lost_doubled_and_swapped_records_are_noticed() {
        let log = |order: &[(usize, u64)]| -> Vec<u8> { order.iter().flat_map(|(w, n)| record(*w, *n)).collect() };
        let right = [(0, 0), (1, 0), (1, 1), (0, 1)];
        check_records(&log(&right), 2, 2).unwrap();
        for wrong in [&right[..3], &[(0, 0), (0, 0), (1, 0), (1, 1), (0, 1)], &[(0, 1), (0, 0), (1, 0), (1, 1)]] {
            assert!(check_records(&log(wrong), 2, 2).is_err(), "{wrong:?}");
        }
        let mut torn = log(&right);
        torn[20] = b'?';
        assert!(check_records(&torn, 2, 2).is_err());
        torn = log(&right);
        torn.insert(20, b'c');
        assert!(check_records(&torn, 2, 2).is_err());
    }
}
