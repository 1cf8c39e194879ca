//! Points in time as clients write them, read for promoted columns of type `timestamp`.
//!
//! Place on the event's path: the collector fills such a column by it, the view `events` reads the JSON
//! by it. Pure. Promise: it reads what `format: date-time` of a tracking plan accepts, and the same time,
//! because both ask `headwater_protocol`. What no reader of the tables could show is no time.

use headwater_protocol::timestamp;

/// First moment that a column may hold: 0001-01-01T00:00:00Z, in microseconds since the Unix epoch.
const EARLIEST: i64 = -62_135_596_800_000_000;

/// First moment that a column may not hold: 10000-01-01T00:00:00Z.
const TOO_LATE: i64 = 253_402_300_800_000_000;

/// Reads a time and returns microseconds since the Unix epoch; finer digits are cut off. `None` when it
/// is no time, or none of the years 1 to 9999.
pub(crate) fn parse(text: &str) -> Option<i64> {
    timestamp::parse(text).filter(|time| (EARLIEST..TOO_LATE).contains(time))
}

#[cfg(test)]
mod tests {
    use super::parse;

    /// A text and its microseconds, `-` where it is no time; the collector reads the same file.
    const CASES: &str = include_str!("../testdata/timestamps.txt");

    #[test]
    fn texts_are_read_as_written_down() {
        let cases: Vec<_> = CASES
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_once('|').unwrap())
            .collect();
        assert!(cases.len() > 20);
        for (micros, text) in cases {
            assert_eq!(parse(text), micros.parse().ok(), "{text}");
        }
    }
}
