//! Timestamps as clients write them.

use chrono::{DateTime, NaiveDateTime, SecondsFormat};

/// Forms without an offset, which are UTC, and one that is laxer than RFC 3339, such as a single digit.
const FORMS: [&str; 3] = [
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.fZ",
];

/// Reads an ISO-8601 timestamp (`2026-11-20T10:00:00.123Z`, offset or none, `T` or a space) and
/// returns microseconds since the Unix epoch; finer digits are cut off. Without an offset it is UTC.
/// `None` when it is no timestamp.
pub fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    FORMS
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .map(|time| time.and_utc().timestamp_micros())
}

/// Writes microseconds since the Unix epoch as ISO-8601 in UTC, `None` when no year can hold them.
pub fn format(micros: i64) -> Option<String> {
    let time = DateTime::from_timestamp_micros(micros)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

#[cfg(test)]
mod tests {
    use super::{format, parse};

    #[test]
    fn what_is_written_reads_back() {
        let text = format(1_770_000_000_123_456).unwrap();
        assert_eq!(text, "2026-02-02T02:40:00.123456Z");
        assert_eq!(parse(&text), Some(1_770_000_000_123_456));
        assert_eq!(format(i64::MAX), None);
    }

    #[test]
    fn forms_that_clients_send_are_read() {
        let expected = Some(1_770_000_000_123_000);
        for text in [
            "2026-02-02T02:40:00.123Z",
            "2026-02-02T02:40:00.123000+00:00",
            "2026-02-02T08:10:00.123+05:30",
            "2026-02-02T02:40:00.123",
            "2026-02-02 02:40:00.123",
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert_eq!(parse("yesterday"), None);
        assert_eq!(parse(""), None);
    }
}
