//! When an event happened, from clocks that may be wrong.
//!
//! Place on the path: staging calls it once per event. Pure. Promise: no event lies more than
//! [`FUTURE_MAX`] after its arrival, and a retry with a stale `sentAt` does not move an event of a
//! trusted source.

use headwater_protocol::SourceKind;

/// Microseconds.
type Micros = i64;

const SECOND: Micros = 1_000_000;

/// How far ahead of its arrival an event may lie: five minutes, in microseconds.
pub const FUTURE_MAX: Micros = 300 * SECOND;

/// A device clock that is further ahead than this is corrected: five seconds.
const AHEAD_MAX: Micros = 5 * SECOND;

/// A device clock that is further behind than this is corrected, unless a retry explains it: one
/// minute.
const BEHIND_MAX: Micros = 60 * SECOND;

/// First moment that a column may hold: 0001-01-01T00:00:00Z.
const EARLIEST: Micros = -62_135_596_800 * SECOND;

/// First moment that a column may not hold: 10000-01-01T00:00:00Z.
const TOO_LATE: Micros = 253_402_300_800 * SECOND;

/// Libraries that run on servers, whose clocks are trusted whatever the source is set to.
const SERVER_LIBRARIES: &[&str] = &[
    "@segment/analytics-node",
    "analytics-node",
    "analytics-python",
    "segment-analytics-python",
    "analytics-ruby",
    "analytics-java",
    "analytics-go",
    "analytics-php",
    "analytics.NET",
    "@rudderstack/rudder-sdk-node",
    "rudder-sdk-node",
    "rudder-sdk-python",
    "rudder-analytics-python",
    "rudder-sdk-go",
    "rudder-sdk-java",
    "posthog-node",
    "posthog-python",
];

/// How the time of an event was found: the `time_rule` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeRule {
    /// As the client said.
    Trusted,
    /// As the client said, moved by the skew of its clock.
    SkewCorrected,
    /// The client said nothing: the arrival.
    Received,
    /// The client said a time in the future: the arrival.
    ClampedFuture,
}

impl TimeRule {
    /// Returns the value of the `time_rule` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::SkewCorrected => "skew_corrected",
            Self::Received => "received",
            Self::ClampedFuture => "clamped_future",
        }
    }
}

/// What is known about the time of an event; all times in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Where the source runs.
    pub source_kind: SourceKind,
    /// `context.library.name`.
    pub library: Option<&'a str>,
    /// What the client's clock said at the event.
    pub original: Option<Micros>,
    /// When the agent accepted it.
    pub received_at: Micros,
    /// Smallest `received_at - sent_at` seen lately from this device; retries only add to it.
    pub skew_min: Option<Micros>,
    /// How often the client had tried before, where it says so.
    pub attempt: Option<u32>,
}

/// Returns whether a column can hold the time (years 1 to 9999).
pub fn is_representable(time: Micros) -> bool {
    (EARLIEST..TOO_LATE).contains(&time)
}

/// Returns whether the clock behind this event is a server's.
pub fn is_server(kind: SourceKind, library: Option<&str>) -> bool {
    kind == SourceKind::Server || library.is_some_and(|name| SERVER_LIBRARIES.contains(&name))
}

/// Returns the time of an event and the rule that gave it.
pub fn resolve(observed: &Observed<'_>) -> (Micros, TimeRule) {
    let received = observed.received_at;
    let Some(original) = observed.original.filter(|time| is_representable(*time)) else {
        return (received, TimeRule::Received);
    };
    let (time, rule) = match correction(observed) {
        Some(skew) => (original.saturating_add(skew), TimeRule::SkewCorrected),
        None => (original, TimeRule::Trusted),
    };
    if time > received.saturating_add(FUTURE_MAX) {
        (received, TimeRule::ClampedFuture)
    } else if is_representable(time) {
        (time, rule)
    } else {
        (received, TimeRule::Received)
    }
}

/// Returns by how much the device's clock must be corrected, `None` when it is to be believed.
fn correction(observed: &Observed<'_>) -> Option<Micros> {
    if is_server(observed.source_kind, observed.library) {
        return None;
    }
    let skew = observed.skew_min?;
    let first_attempt = observed.attempt.unwrap_or(0) == 0;
    (skew < -AHEAD_MAX || (skew > BEHIND_MAX && first_attempt)).then_some(skew)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = 1_800_000_000 * SECOND;
    const DAY: Micros = 86_400 * SECOND;

    fn browser(original: Option<Micros>, skew_min: Option<Micros>) -> Observed<'static> {
        Observed {
            source_kind: SourceKind::Browser,
            library: None,
            original,
            received_at: NOW,
            skew_min,
            attempt: None,
        }
    }

    #[test]
    fn rules_follow_the_source_and_its_clock() {
        let retry = |observed| Observed {
            attempt: Some(2),
            ..observed
        };
        let server = |observed| Observed {
            source_kind: SourceKind::Server,
            ..observed
        };
        let library = |observed| Observed {
            library: Some("analytics-python"),
            ..observed
        };
        let three_days_ahead = browser(Some(NOW + 3 * DAY), Some(-3 * DAY));
        let three_days_behind = browser(Some(NOW - 3 * DAY), Some(3 * DAY));
        let cases = [
            (browser(None, None), NOW, TimeRule::Received),
            (
                browser(Some(NOW - SECOND), None),
                NOW - SECOND,
                TimeRule::Trusted,
            ),
            (
                browser(Some(NOW - SECOND), Some(SECOND)),
                NOW - SECOND,
                TimeRule::Trusted,
            ),
            (three_days_ahead, NOW, TimeRule::SkewCorrected),
            (three_days_behind, NOW, TimeRule::SkewCorrected),
            (retry(three_days_behind), NOW - 3 * DAY, TimeRule::Trusted),
            (server(three_days_behind), NOW - 3 * DAY, TimeRule::Trusted),
            (library(three_days_behind), NOW - 3 * DAY, TimeRule::Trusted),
            (server(three_days_ahead), NOW, TimeRule::ClampedFuture),
            (
                browser(Some(NOW + 6 * 60 * SECOND), None),
                NOW,
                TimeRule::ClampedFuture,
            ),
            (
                browser(Some(NOW + 4 * 60 * SECOND), None),
                NOW + 4 * 60 * SECOND,
                TimeRule::Trusted,
            ),
            (
                browser(Some(i64::MAX), Some(i64::MIN)),
                NOW,
                TimeRule::Received,
            ),
            (browser(Some(i64::MIN), None), NOW, TimeRule::Received),
        ];
        for (observed, time, rule) in cases {
            assert_eq!(resolve(&observed), (time, rule), "{observed:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_event_lies_in_the_future(
            original in proptest::option::of(proptest::num::i64::ANY),
            skew in proptest::option::of(proptest::num::i64::ANY),
            attempt in proptest::option::of(0u32..4),
        ) {
            let observed = Observed { attempt, ..browser(original, skew) };
            let (time, _) = resolve(&observed);
            proptest::prop_assert!(time <= NOW + FUTURE_MAX);
            proptest::prop_assert!(is_representable(time));
        }
    }
}
