//! Times for people: points in time in UTC, spans in the unit that fits.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-03-01 14:02:59 UTC`.
pub fn date(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    let Ok(at) = OffsetDateTime::from_unix_timestamp(seconds) else { return format!("{ms} ms after 1970") };
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// `59 min`, `3.2 s`.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..90 => format!("{:.1} s", span.as_secs_f64()),
        90..7200 => format!("{} min", (seconds + 30) / 60),
        7200..172_800 => format!("{} h", (seconds + 1800) / 3600),
        _ => format!("{} days", (seconds + 43_200) / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(1_772_373_779_999), "2026-03-01 14:02:59 UTC");
        assert_eq!(date(u64::MAX), format!("{} ms after 1970", u64::MAX));
        assert_eq!(span(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(span(Duration::from_secs(3599)), "60 min");
        assert_eq!(span(Duration::from_secs(86_400)), "24 h");
        assert_eq!(span(Duration::from_secs(90 * 86_400)), "90 days");
    }
}
