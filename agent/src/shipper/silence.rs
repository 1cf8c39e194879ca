//! How long a collector has done nothing with the batches that wait for it: it shows no sign of life, or
//! it only ever puts them off.
//!
//! An answer is a sign of life, and so is credit: a collector that reads a large batch slowly lets the
//! agent send more. Packets that keep the connection alive are none, a hung process sends them too.

use std::time::Duration;

use tokio::time::Instant;

/// How often credit is looked at within the bound.
const LOOKS: u32 = 4;

/// The silence on one connection. Pure.
#[derive(Debug)]
pub(super) struct Silence {
    bound: Duration,
    since: Instant,
    looks_at: Instant,
    /// Grants of credit counted at the last look after the last answer.
    grants: Option<u64>,
}

impl Silence {
    /// A collector is silent after `bound` without a sign.
    pub(super) fn new(bound: Duration, now: Instant) -> Self {
        Self {
            bound,
            since: now,
            looks_at: now + bound / LOOKS,
            grants: None,
        }
    }

    /// Notes an answer, or that nothing was waited for until now.
    pub(super) fn end(&mut self, now: Instant) {
        *self = Self::new(self.bound, now);
    }

    /// Returns when to look at the credit again.
    pub(super) fn looks_at(&self) -> Instant {
        self.looks_at
    }

    /// Notes how often the collector has granted credit since it was connected.
    pub(super) fn look(&mut self, grants: u64, now: Instant) {
        if self.grants.is_some_and(|before| before != grants) {
            self.since = now;
        }
        self.grants = Some(grants);
        self.looks_at = now + self.bound / LOOKS;
    }

    /// Says whether it has lasted for the bound.
    pub(super) fn is_long(&self, now: Instant) -> bool {
        now >= self.since + self.bound
    }
}

/// How long a collector has answered nothing but Retry. Pure.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// When the first and the last one came.
    span: Option<(Instant, Instant)>,
}

impl Retries {
    /// Notes a Retry.
    pub(super) fn note(&mut self, now: Instant) {
        let (first, _) = self.span.unwrap_or((now, now));
        self.span = Some((first, now));
    }

    /// Notes another answer.
    pub(super) fn end(&mut self) {
        self.span = None;
    }

    /// Says whether the last answer was one.
    pub(super) fn goes_on(&self) -> bool {
        self.span.is_some()
    }

    /// Says whether they have lasted for `bound`. While something `is_underway` only the last one counts:
    /// the collector may be reading.
    pub(super) fn are_long(&self, bound: Duration, now: Instant, is_underway: bool) -> bool {
        self.span.is_some_and(|(first, last)| {
            let until = if is_underway { last } else { now };
            until >= first + bound
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(20);

    /// Looks when due until `until`, with the grants that `granted` returns for the seconds passed.
    fn watch(granted: impl Fn(u64) -> u64, until: Duration) -> bool {
        let start = Instant::now();
        let mut silence = Silence::new(BOUND, start);
        while silence.looks_at() <= start + until {
            let now = silence.looks_at();
            silence.look(granted((now - start).as_secs()), now);
        }
        silence.is_long(start + until)
    }

    #[test]
    fn silence_is_long_after_its_bound() {
        assert!(!watch(|_| 7, BOUND - Duration::from_millis(1)));
        assert!(watch(|_| 7, BOUND));
    }

    #[test]
    fn credit_ends_silence() {
        assert!(!watch(|second| second / 8, BOUND * 10));
        assert!(!watch(|second| second.min(10), BOUND));
        assert!(watch(|second| second.min(10), BOUND * 2));
    }

    #[test]
    fn retries_are_long_when_no_other_answer_comes_between() {
        let start = Instant::now();
        let mut retries = Retries::default();
        assert!(!retries.are_long(BOUND, start + BOUND, false));
        retries.note(start);
        retries.note(start + BOUND / 2);
        assert!(!retries.are_long(BOUND, start + BOUND - Duration::from_millis(1), false));
        assert!(retries.goes_on() && retries.are_long(BOUND, start + BOUND, false));
        assert!(
            !retries.are_long(BOUND, start + BOUND, true),
            "it may be reading"
        );
        retries.note(start + BOUND);
        assert!(retries.are_long(BOUND, start + BOUND, true));
        retries.end();
        assert!(!retries.goes_on() && !retries.are_long(BOUND, start + BOUND, false));
    }

    #[test]
    fn answer_ends_silence() {
        let start = Instant::now();
        let mut silence = Silence::new(BOUND, start);
        silence.end(start + BOUND);
        assert!(!silence.is_long(start + BOUND));
        assert!(silence.is_long(start + BOUND * 2));
    }
}
