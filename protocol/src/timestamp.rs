//! Timestamps as clients write them.

use chrono::{DateTime, NaiveDateTime};

/// Reads an ISO-8601 timestamp (`2026-11-20T10:00:00.123Z`, offset or none, `T` or a space) and
/// returns microseconds since the Unix epoch. Without an offset it is UTC. `None` when it is no
/// timestamp.
pub fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    [
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%dT%H:%M:%S%.fZ",
    ]
    .iter()
    .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
    .map(|time| time.and_utc().timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::parse;

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
