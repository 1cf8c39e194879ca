//! When an event happened, from clocks that may be wrong.
//!
//! Place on the path: staging calls it once per event. Pure: what the agent wrote down at the arrival
//! decides, so staging a batch again gives the same times. Promise: no event lies more than
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
    /// Smallest `received_at - sent_at` that the agent saw lately from this device; a retry's delay
    /// only adds to it. `None` when the agent could not tell.
    pub device_skew: Option<Micros>,
    /// `received_at - sent_at` of this event alone.
    pub own_skew: Option<Micros>,
    /// How often the client had tried before, where it says so.
    pub attempt: Option<u32>,
}

/// Returns whether a column can hold the time (years 1 to 9999).
pub fn is_representable(time: Micros) -> bool {
    (EARLIEST..TOO_LATE).contains(&time)
}

/// Returns whether an agent can have accepted an event at this time: from the Unix epoch, at which clocks
/// begin that nobody has set, to the year 9999. Beyond it no partition has a name.
pub fn is_arrival(time: Micros) -> bool {
    (0..TOO_LATE).contains(&time)
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
    // What the agent tells of a device rests on a first attempt; an event alone may be a retry.
    let is_delay = observed.device_skew.is_none() && observed.attempt.unwrap_or(0) > 0;
    let skew = observed.device_skew.or(observed.own_skew)?;
    (skew < -AHEAD_MAX || (skew > BEHIND_MAX && !is_delay)).then_some(skew)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = 1_800_000_000 * SECOND;
    const HOUR: Micros = 3600 * SECOND;
    const DAY: Micros = 24 * HOUR;

    fn browser(original: Option<Micros>, own_skew: Option<Micros>) -> Observed<'static> {
        Observed {
            source_kind: SourceKind::Browser,
            library: None,
            original,
            received_at: NOW,
            device_skew: None,
            own_skew,
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
        let known = |observed, skew| Observed {
            device_skew: Some(skew),
            ..observed
        };
        let ahead = browser(Some(NOW + 3 * DAY), Some(-3 * DAY));
        let behind = browser(Some(NOW - 3 * DAY), Some(3 * DAY));
        // Sent six hours ago with that `sentAt`, and only now received.
        let frozen = browser(Some(NOW - 6 * HOUR), Some(6 * HOUR));
        let (trusted, corrected) = (TimeRule::Trusted, TimeRule::SkewCorrected);
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
            (ahead, NOW, corrected),
            (behind, NOW, corrected),
            (retry(behind), NOW - 3 * DAY, trusted),
            (retry(known(behind, 3 * DAY)), NOW, corrected),
            (retry(frozen), NOW - 6 * HOUR, trusted),
            (known(frozen, SECOND), NOW - 6 * HOUR, trusted),
            (server(frozen), NOW - 6 * HOUR, trusted),
            (library(frozen), NOW - 6 * HOUR, trusted),
            (server(known(behind, 3 * DAY)), NOW - 3 * DAY, trusted),
            (library(behind), NOW - 3 * DAY, trusted),
            (server(ahead), NOW, TimeRule::ClampedFuture),
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

    #[test]
    fn bounds_of_the_correction_are_exact() {
        for (skew, rule) in [
            (-AHEAD_MAX - 1, TimeRule::SkewCorrected),
            (-AHEAD_MAX, TimeRule::Trusted),
            (BEHIND_MAX, TimeRule::Trusted),
            (BEHIND_MAX + 1, TimeRule::SkewCorrected),
        ] {
            let observed = browser(Some(NOW - DAY), Some(skew));
            assert_eq!(resolve(&observed).1, rule, "{skew}");
        }
    }

    fn kinds() -> impl proptest::strategy::Strategy<Value = SourceKind> {
        proptest::sample::select(vec![
            SourceKind::Server,
            SourceKind::Browser,
            SourceKind::Mobile,
        ])
    }

    proptest::proptest! {
        #[test]
        fn no_event_lies_in_the_future(
            source_kind in kinds(),
            original in proptest::option::of(proptest::num::i64::ANY),
            own in proptest::option::of(proptest::num::i64::ANY),
            device_skew in proptest::option::of(proptest::num::i64::ANY),
            attempt in proptest::option::of(0u32..4),
        ) {
            let observed = Observed { source_kind, attempt, device_skew, ..browser(original, own) };
            let (time, _) = resolve(&observed);
            proptest::prop_assert!(time <= NOW + FUTURE_MAX);
            proptest::prop_assert!(is_representable(time));
        }

        /// A browser that is wrong by up to three days, whose network takes up to two seconds and
        /// which retries for up to six hours with its first `sentAt`.
        #[test]
        fn the_truth_is_found_whatever_the_clock_says(
            wrong_by in -3 * DAY..=3 * DAY,
            network in 0..2 * SECOND,
            queued in 0..DAY,
            delay in 0..6 * HOUR,
            known in proptest::bool::ANY,
        ) {
            let truth = NOW - delay - network - queued;
            let sent_at = NOW - delay - network + wrong_by;
            let delay_is_told = u32::from(delay > 0);
            let observed = Observed {
                device_skew: known.then_some(network - wrong_by),
                attempt: Some(delay_is_told),
                ..browser(Some(truth + wrong_by), Some(NOW - sent_at))
            };
            let (time, rule) = resolve(&observed);
            // Below the thresholds the device is believed, and without a batch before it a retry
            // tells nothing of the clock.
            let skew = network - wrong_by;
            let is_small = (-AHEAD_MAX..=BEHIND_MAX).contains(&skew);
            if known && !is_small {
                proptest::prop_assert!((time - truth).abs() <= 2 * SECOND, "{time} {truth}");
                proptest::prop_assert_eq!(rule, TimeRule::SkewCorrected);
            } else if known || (delay > 0 && NOW - sent_at > BEHIND_MAX) {
                proptest::prop_assert!(rule != TimeRule::SkewCorrected);
            } else if delay == 0 && !is_small {
                proptest::prop_assert!((time - truth).abs() <= 2 * SECOND, "{time} {truth}");
            }
        }

        /// Servers are never corrected, whatever the skews say.
        #[test]
        fn a_server_is_believed(past in 0..365 * DAY, own in proptest::num::i64::ANY, device in proptest::num::i64::ANY) {
            let observed = Observed {
                source_kind: SourceKind::Server,
                device_skew: Some(device),
                ..browser(Some(NOW - past), Some(own))
            };
            proptest::prop_assert_eq!(resolve(&observed), (NOW - past, TimeRule::Trusted));
        }
    }
}
