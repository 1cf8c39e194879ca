//! Collectors that were left because they hung or put everything off, and until when the agent does not go
//! back to them.
//!
//! A hung collector may still say Welcome, and one under load may be slow for a while. The pause doubles
//! each time, so that neither draws the events to and fro.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest pause is the first one doubled this often.
const DOUBLINGS_MAX: u32 = 5;

/// No pause is longer, whatever the first one is.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
struct Pause {
    until: Instant,
    doublings: u32,
    /// A collector that did not hang again until then starts with a first pause.
    forgotten_at: Instant,
}

/// Pauses by address.
#[derive(Debug, Default)]
pub(super) struct Pauses(Mutex<HashMap<String, Pause>>);

impl Pauses {
    /// Begins a pause of `collector`: `first`, or twice its last one.
    pub(super) fn begin(&self, collector: &str, first: Duration, now: Instant) {
        let doubled = |times: u32| first.saturating_mul(1 << times).min(PAUSE_MAX);
        let mut pauses = self.0.lock();
        pauses.retain(|_, pause| now < pause.forgotten_at);
        let last = pauses.get(collector).map(|pause| pause.doublings);
        let doublings = last.map_or(0, |last| (last + 1).min(DOUBLINGS_MAX));
        let until = now + doubled(doublings);
        let pause = Pause {
            until,
            doublings,
            forgotten_at: until + doubled(DOUBLINGS_MAX),
        };
        pauses.insert(collector.to_owned(), pause);
    }

    /// Returns when the pause of `collector` is over: `now` when it is.
    pub(super) fn end_of(&self, collector: &str, now: Instant) -> Instant {
        let until = self.0.lock().get(collector).map(|pause| pause.until);
        until.map_or(now, |until| until.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_forgotten() {
        let first = Duration::from_secs(30);
        let pauses = Pauses::default();
        let mut now = Instant::now();
        assert_eq!(pauses.end_of("a", now), now);
        for factor in [1, 2, 4, 8, 16, 32, 32, 32] {
            pauses.begin("a", first, now);
            let end = pauses.end_of("a", now);
            assert_eq!(end - now, first * factor);
            assert_eq!(pauses.end_of("b", now), now);
            // It hangs again as soon as the agent is back.
            now = end;
        }
        now += first * 32;
        pauses.begin("a", first, now);
        assert_eq!(pauses.end_of("a", now) - now, first);
    }

    #[test]
    fn pause_of_any_length_has_an_end() {
        let pauses = Pauses::default();
        let now = Instant::now();
        pauses.begin("a", Duration::MAX, now);
        assert_eq!(pauses.end_of("a", now) - now, PAUSE_MAX);
    }
}
