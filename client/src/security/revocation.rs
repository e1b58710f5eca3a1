//! Certificates that are refused although they have not ended yet: those of removed nodes and clients. The
//! cluster state has them; what is here is what it says, ready to be asked.

use crate::security::role::Serial;
use std::collections::BTreeMap;

/// The revoked serial numbers, each with the end of its certificate in seconds since 1970. After that the
/// certificate itself is refused, so the number need not be known any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    end_s: BTreeMap<Serial, u64>,
}

impl Revocations {
    /// Those of the cluster state: serial number and end of the certificate.
    pub fn new(serials: impl IntoIterator<Item = (Serial, u64)>) -> Revocations {
        Revocations { end_s: serials.into_iter().collect() }
    }

    /// Whether a certificate was revoked. Its own end is not looked at.
    pub fn is_revoked(&self, serial: Serial) -> bool {
        self.end_s.contains_key(&serial)
    }

    /// The numbers that may be forgotten: their certificates ended more than `margin_s` ago, which is what the
    /// clocks of two nodes may differ by.
    pub fn ended(&self, now_s: u64, margin_s: u64) -> impl Iterator<Item = Serial> {
        self.end_s.iter().filter(move |(_, end_s)| end_s.saturating_add(margin_s) < now_s).map(|(serial, _)| *serial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_number_is_kept_until_its_certificate_has_ended_on_every_clock() {
        let revocations = Revocations::new([(Serial(1), 1_000), (Serial(2), 2_000)]);
        assert!(revocations.is_revoked(Serial(1)) && revocations.is_revoked(Serial(2)));
        assert!(!revocations.is_revoked(Serial(3)));
        assert_eq!(revocations.ended(1_060, 60).count(), 0);
        assert_eq!(revocations.ended(1_061, 60).collect::<Vec<_>>(), [Serial(1)]);
        assert_eq!(revocations.ended(u64::MAX, 60).count(), 2);
    }
}
