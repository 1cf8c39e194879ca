//! How wrong each device's clock is, so that a retry's stale `sentAt` is not taken for a wrong clock.
//!
//! Place on the path: the source notes `received_at - sent_at` of each browser's and phone's event and
//! writes the smallest of the last few into its record; the collector's event-time rule is a pure
//! function of the record. Delay only ever adds to that difference, so the smallest is the nearest to
//! the truth. Promise: bounded memory; what is forgotten costs the smoothing of one device.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use headwater_service::clock::Micros;
use metrics::gauge;
use parking_lot::Mutex;

use crate::metrics::SKEW_DEVICES;

/// Batches kept per device; a clock that was set right is believed again after this many.
const SAMPLES: usize = 4;

/// Batches older than this are not used, in milliseconds: one day, longer than a night offline.
const AGE_MAX_MS: i64 = 86_400_000;

/// One batch of a device, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    sent_at: i64,
    skew: i64,
    /// The client did not say that it had tried before.
    is_first_attempt: bool,
}

impl Sample {
    fn received_at(&self) -> i64 {
        self.sent_at.saturating_add(self.skew)
    }
}

#[derive(Debug, Clone, Copy)]
struct Device {
    samples: [Sample; SAMPLES],
    next: usize,
}

impl Device {
    fn new(sample: Sample) -> Self {
        Self {
            samples: [sample; SAMPLES],
            next: 1,
        }
    }

    /// Takes a batch in. The events of one batch, and its retries with a frozen `sentAt`, are one.
    fn note(&mut self, sample: Sample) {
        let mut is_known = false;
        for known in &mut self.samples {
            if known.sent_at == sample.sent_at {
                known.skew = known.skew.min(sample.skew);
                known.is_first_attempt |= sample.is_first_attempt;
                is_known = true;
            }
        }
        if !is_known {
            self.samples[self.next] = sample;
            self.next = (self.next + 1) % SAMPLES;
        }
    }

    /// Returns the smallest skew; `None` when it may be nothing but the delay of retries.
    fn skew(&self, now: i64) -> Option<i64> {
        let recent = || {
            let is_recent = |it: &&Sample| it.received_at().saturating_add(AGE_MAX_MS) >= now;
            self.samples.iter().filter(is_recent)
        };
        let smallest = recent().map(|sample| sample.skew).min()?;
        let is_told = smallest <= 0 || recent().any(|sample| sample.is_first_attempt);
        is_told.then_some(smallest)
    }
}

#[derive(Debug, Default)]
struct Halves {
    newer: HashMap<u64, Device>,
    older: HashMap<u64, Device>,
}

/// The clocks of the devices seen last.
#[derive(Debug)]
pub(super) struct Skews {
    hasher: RandomState,
    halves: Mutex<Halves>,
    half_max: usize,
}

/// What one event says about the clock of its device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Observation<'a> {
    pub(super) company: &'a str,
    pub(super) device: &'a str,
    pub(super) received_at: Micros,
    pub(super) sent_at: Micros,
    /// How often the client had tried before, where it says so.
    pub(super) attempt: Option<u32>,
}

impl Skews {
    /// Remembers up to `devices_max` devices, and at least the last half of them.
    pub(super) fn new(devices_max: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            halves: Mutex::default(),
            half_max: devices_max.div_ceil(2),
        }
    }

    /// Notes an event and returns the skew of its device in milliseconds (negative: its clock is
    /// ahead), `None` when nothing is known but the delay of a retry.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    pub(super) fn observe(&self, seen: Observation<'_>) -> Option<i64> {
        if self.half_max == 0 {
            return None;
        }
        let (received_at, sent_at) = (seen.received_at / 1000, seen.sent_at / 1000);
        let sample = Sample {
            sent_at,
            skew: received_at.saturating_sub(sent_at),
            is_first_attempt: seen.attempt.unwrap_or(0) == 0,
        };
        let key = self.hasher.hash_one((seen.company, seen.device));
        let mut halves = self.halves.lock();
        let Halves { newer, older } = &mut *halves;
        if let Some(device) = newer.get_mut(&key) {
            device.note(sample);
            return device.skew(received_at);
        }
        if newer.len() >= self.half_max {
            std::mem::swap(newer, older);
            newer.clear();
        }
        let mut device = older.remove(&key).unwrap_or_else(|| Device::new(sample));
        device.note(sample);
        newer.insert(key, device);
        gauge!(SKEW_DEVICES).set((newer.len() + older.len()) as f64);
        device.skew(received_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;
    const HOUR: Micros = 3600 * SECOND;
    const DAY: Micros = 24 * HOUR;

    fn seen(sent_at: Micros, received_at: Micros, attempt: Option<u32>) -> Observation<'static> {
        Observation {
            company: "acme",
            device: "anonymous-1",
            received_at,
            sent_at,
            attempt,
        }
    }

    #[test]
    fn a_retry_does_not_raise_the_skew() {
        let skews = Skews::new(10);
        let first = skews.observe(seen(99 * SECOND, 100 * SECOND, None));
        assert_eq!(first, Some(1000));
        // The same `sentAt` again six hours later, and another batch that waited as long.
        let later = 100 * SECOND + 6 * HOUR;
        assert_eq!(skews.observe(seen(99 * SECOND, later, None)), Some(1000));
        assert_eq!(
            skews.observe(seen(120 * SECOND, later, Some(7))),
            Some(1000)
        );
    }

    #[test]
    fn delay_alone_tells_nothing_of_the_clock() {
        let skews = Skews::new(10);
        assert_eq!(skews.observe(seen(0, 6 * HOUR, Some(1))), None);
        // A clock that is ahead of a retry is certainly ahead.
        let ahead = skews.observe(seen(9 * HOUR, 6 * HOUR, Some(1)));
        assert_eq!(ahead, Some(-3 * 3_600_000));
        // The first attempt of the next batch tells.
        let skews = Skews::new(10);
        skews.observe(seen(0, 6 * HOUR, Some(1)));
        let next = skews.observe(seen(7 * HOUR, 7 * HOUR + SECOND, Some(0)));
        assert_eq!(next, Some(1000));
    }

    #[test]
    fn three_days_off_are_seen_in_both_directions() {
        for wrong in [3 * DAY, -3 * DAY] {
            let skews = Skews::new(10);
            let now = 1000 * DAY;
            let skew = skews.observe(seen(now + wrong, now + SECOND / 5, None));
            assert_eq!(skew, Some(-wrong / 1000 + 200));
            // A retry after six hours changes nothing.
            let skew = skews.observe(seen(now + wrong, now + 6 * HOUR, Some(3)));
            assert_eq!(skew, Some(-wrong / 1000 + 200));
        }
    }

    #[test]
    fn a_clock_set_right_is_believed_after_a_few_batches() {
        let skews = Skews::new(10);
        assert_eq!(skews.observe(seen(900 * SECOND, 0, None)), Some(-900_000));
        let after: Vec<Option<i64>> = (1..=SAMPLES as i64)
            .map(|n| skews.observe(seen(n * SECOND, n * SECOND, None)))
            .collect();
        let wrong = Some(-900_000);
        assert_eq!(after, [wrong, wrong, wrong, Some(0)]);
    }

    #[test]
    fn a_day_old_batch_does_not_count() {
        let skews = Skews::new(10);
        skews.observe(seen(SECOND, 0, None));
        let later = DAY + HOUR;
        assert_eq!(skews.observe(seen(later - SECOND, later, None)), Some(1000));
    }

    #[test]
    fn devices_and_companies_are_apart() {
        let skews = Skews::new(10);
        skews.observe(seen(9 * HOUR, 0, None));
        for (company, device) in [("acme", "anonymous-2"), ("globex", "anonymous-1")] {
            let other = Observation {
                company,
                device,
                ..seen(0, SECOND, None)
            };
            assert_eq!(skews.observe(other), Some(1000));
        }
    }

    #[test]
    fn memory_stays_bounded_and_the_last_half_is_kept() {
        let skews = Skews::new(1000);
        let observe = |n: usize, skew| {
            let device = n.to_string();
            let one = Observation {
                device: &device,
                ..seen(0, skew, None)
            };
            skews.observe(one)
        };
        for n in 0..10_000 {
            observe(n, SECOND);
            let halves = skews.halves.lock();
            assert!(halves.newer.len() + halves.older.len() <= 1000);
        }
        assert!((9501..10_000).all(|n| observe(n, HOUR) == Some(1000)));
        assert_eq!(Skews::new(0).observe(seen(0, SECOND, None)), None);
    }

    proptest::proptest! {
        /// The skew is never below the truth by more than the truth's own batch says, and with one
        /// undelayed first attempt among the last batches it is the truth.
        #[test]
        fn delay_only_adds(
            clock in -3 * DAY..3 * DAY,
            delays in proptest::collection::vec(0..6 * HOUR, SAMPLES - 1),
            at in 0..SAMPLES,
        ) {
            let skews = Skews::new(10);
            let mut delays: Vec<(Micros, u32)> = delays.into_iter().map(|delay| (delay, 1)).collect();
            delays.insert(at, (0, 0));
            let mut last = None;
            for (n, (delay, attempt)) in (0..).zip(delays) {
                let sent = 1000 * DAY + n * SECOND;
                last = skews.observe(seen(sent - clock, sent + delay, Some(attempt)));
                if let Some(skew) = last {
                    proptest::prop_assert!(skew >= clock / 1000 - 1);
                }
            }
            let skew = last.unwrap();
            proptest::prop_assert!((skew - clock / 1000).abs() <= 1, "{} {}", skew, clock / 1000);
        }
    }
}
