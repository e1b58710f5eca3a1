//! What must be in a file, and what calls that look for data and holes may say of it.

use anyhow::{bail, ensure};
use rustix::io::Errno;

/// The contents of one file.
#[derive(Clone, Debug, Default)]
pub struct Oracle(Vec<u8>);

impl Oracle {
    /// The file's size.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Bytes of the file, as many as there are.
    pub fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        let end = offset.saturating_add(length).min(self.0.len());
        &self.0[offset.min(end)..end]
    }

    /// write(2), of no bytes too.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        if !data.is_empty() {
            self.grow(offset + data.len());
            self.0[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    /// The file has at least this size.
    pub fn grow(&mut self, size: usize) {
        self.0.resize(self.0.len().max(size), 0);
    }

    /// ftruncate(2)
    pub fn truncate(&mut self, size: usize) {
        self.0.resize(size, 0);
    }

    /// A range reads as zeros; the size stays.
    pub fn zero(&mut self, offset: usize, length: usize) {
        let end = (offset + length).min(self.0.len());
        self.0[offset.min(end)..end].fill(0);
    }

    /// What a read of `length` bytes has given.
    pub fn check_read(&self, offset: usize, length: usize, found: &[u8]) -> anyhow::Result<()> {
        let wanted = self.bytes(offset, length);
        let wrong: Vec<usize> = (0..wanted.len().min(found.len())).filter(|at| wanted[*at] != found[*at]).collect();
        if let (Some(first), Some(last)) = (wrong.first(), wrong.last()) {
            bail!(
                "{} bytes are wrong, from {} to {}: the first is {} and must be {}",
                wrong.len(),
                offset + first,
                offset + last,
                found[*first],
                wanted[*first]
            );
        }
        ensure!(wanted.len() == found.len(), "{} bytes of {length} at {offset}, not {}", found.len(), wanted.len());
        Ok(())
    }

    /// What SEEK_DATA has said: there is nothing but zeros before it.
    pub fn check_data(&self, from: usize, found: Result<u64, Errno>) -> anyhow::Result<()> {
        let data = match found {
            Ok(at) => at as usize,
            Err(Errno::NXIO) => self.size().max(from),
            Err(error) => bail!("SEEK_DATA from {from}: {error}"),
        };
        ensure!(data >= from, "SEEK_DATA from {from} goes back to {data}");
        ensure!(found.is_err() || data < self.size(), "SEEK_DATA from {from} says {data} in {} bytes", self.size());
        let skipped = self.bytes(from, data - from);
        if let Some(at) = skipped.iter().position(|byte| *byte != 0) {
            bail!("SEEK_DATA from {from} says {found:?}, but there is data at {}", from + at);
        }
        Ok(())
    }

    /// What SEEK_HOLE has said, and SEEK_DATA from there: a hole begins there, or the file ends.
    pub fn check_hole(
        &self,
        from: usize,
        found: Result<u64, Errno>,
        data_behind: Result<u64, Errno>,
    ) -> anyhow::Result<()> {
        let hole = match found {
            Ok(at) => at as usize,
            Err(Errno::NXIO) if from >= self.size() => return Ok(()),
            Err(error) => bail!("SEEK_HOLE from {from} of {} bytes: {error}", self.size()),
        };
        let (size, may_be) = (self.size(), from..=self.size());
        ensure!(from < size && may_be.contains(&hole), "SEEK_HOLE from {from} says {hole} in {size} bytes");
        ensure!(data_behind != Ok(hole as u64), "SEEK_HOLE from {from} says {hole}, and SEEK_DATA says so too");
        self.check_data(hole, data_behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 bytes of data, 20 of zeros, 10 of data.
    fn oracle() -> Oracle {
        let mut oracle = Oracle::default();
        oracle.write(0, &[1; 10]);
        oracle.write(30, &[2; 10]);
        oracle
    }

    #[test]
    fn a_wrong_byte_and_a_wrong_length_are_noticed() {
        let oracle = oracle();
        let mut read = oracle.bytes(5, 30).to_vec();
        oracle.check_read(5, 30, &read).unwrap();
        read[10] = 7;
        let told = oracle.check_read(5, 30, &read).unwrap_err().to_string();
        assert!(told.contains("from 15 to 15") && told.contains("is 7 and must be 0"), "{told}");
        assert!(oracle.check_read(30, 20, &[2; 9]).is_err());
        assert!(oracle.check_read(30, 20, &[2; 11]).is_err());
        oracle.check_read(40, 20, &[]).unwrap();
    }

    #[test]
    fn reports_of_data_that_hide_some_are_noticed() {
        let oracle = oracle();
        for (from, right) in
            [(0, Ok(0)), (10, Ok(10)), (10, Ok(30)), (15, Ok(22)), (35, Ok(35)), (40, Err(Errno::NXIO))]
        {
            oracle.check_data(from, right).unwrap();
        }
        for (from, wrong) in
            [(0, Ok(1)), (10, Ok(31)), (10, Ok(5)), (10, Err(Errno::NXIO)), (35, Ok(40)), (0, Err(Errno::IO))]
        {
            assert!(oracle.check_data(from, wrong).is_err(), "{from} {wrong:?}");
        }
    }

    #[test]
    fn reports_of_holes_that_are_none_are_noticed() {
        let oracle = oracle();
        let end = Err(Errno::NXIO);
        for (from, hole, data) in [(0, Ok(10), Ok(30)), (0, Ok(40), end), (12, Ok(12), Ok(30)), (40, end, end)] {
            oracle.check_hole(from, hole, data).unwrap();
        }
        for (from, hole, data) in [
            (0, Ok(9), Ok(30)),
            (0, Ok(10), Ok(10)),
            (0, Ok(10), end),
            (0, Ok(41), end),
            (12, Ok(10), Ok(30)),
            (39, end, end),
            (40, Ok(40), end),
        ] {
            assert!(oracle.check_hole(from, hole, data).is_err(), "{from} {hole:?} {data:?}");
        }
    }
}
