//! What the clocks of devices said lately, so that a retry's stale `sentAt` is not taken for a skew.
//!
//! Place on the path: staging notes each browser's and phone's `received_at - sent_at` here and gets
//! the smallest of the last few back. Promise: bounded memory; what is forgotten only costs the
//! smoothing of one device.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

/// Samples kept per device; a clock that was set right is believed again after this many.
const SAMPLES: usize = 4;

/// Samples older than this are not used: one hour, in microseconds.
const AGE_MAX: i64 = 3_600_000_000;

/// Devices per generation; two generations are kept, about 8 MB in all.
const DEVICES_MAX: usize = 50_000;

#[derive(Debug, Clone, Copy)]
struct Sample {
    received_at: i64,
    skew: i64,
}

#[derive(Debug, Clone, Copy)]
struct Device {
    samples: [Sample; SAMPLES],
    next: usize,
}

#[derive(Debug, Default)]
struct Generations {
    current: HashMap<u64, Device>,
    previous: HashMap<u64, Device>,
}

/// The last skews of each device.
#[derive(Debug, Default)]
pub struct SkewMemory {
    hasher: RandomState,
    generations: Mutex<Generations>,
}

impl SkewMemory {
    /// Notes that a device's batch sent at `sent_at` arrived at `received_at` (microseconds) and
    /// returns the smallest skew of the device's last samples.
    pub fn observe(&self, device: (&str, &str, &str), received_at: i64, sent_at: i64) -> i64 {
        let sample = Sample {
            received_at,
            skew: received_at.saturating_sub(sent_at),
        };
        let key = self.hasher.hash_one(device);
        let mut generations = self.generations.lock();
        let Generations { current, previous } = &mut *generations;
        if current.len() >= DEVICES_MAX {
            *previous = std::mem::take(current);
        }
        let device = current.entry(key).or_insert_with(|| {
            previous.remove(&key).unwrap_or(Device {
                samples: [sample; SAMPLES],
                next: 0,
            })
        });
        device.samples[device.next] = sample;
        device.next = (device.next + 1) % SAMPLES;
        device
            .samples
            .iter()
            .filter(|old| old.received_at.saturating_add(AGE_MAX) >= received_at)
            .map(|old| old.skew)
            .min()
            .unwrap_or(sample.skew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: (&str, &str, &str) = ("acme", "web", "anonymous-1");
    const SECOND: i64 = 1_000_000;

    #[test]
    fn a_retry_does_not_raise_the_skew() {
        let memory = SkewMemory::default();
        assert_eq!(memory.observe(DEVICE, 100 * SECOND, 99 * SECOND), SECOND);
        // The same `sentAt` again, two minutes later.
        assert_eq!(memory.observe(DEVICE, 220 * SECOND, 99 * SECOND), SECOND);
    }

    #[test]
    fn a_clock_set_right_is_believed_after_a_few_batches() {
        let memory = SkewMemory::default();
        assert_eq!(memory.observe(DEVICE, 0, 900 * SECOND), -900 * SECOND);
        let seen: Vec<i64> = (1..=SAMPLES as i64)
            .map(|n| memory.observe(DEVICE, n * SECOND, n * SECOND))
            .collect();
        assert_eq!(seen, [-900 * SECOND, -900 * SECOND, -900 * SECOND, 0]);
    }

    #[test]
    fn old_samples_do_not_count() {
        let memory = SkewMemory::default();
        memory.observe(DEVICE, 0, SECOND);
        assert_eq!(memory.observe(DEVICE, AGE_MAX + 1, AGE_MAX), 1);
    }

    #[test]
    fn memory_stays_bounded() {
        let memory = SkewMemory::default();
        for n in 0..(2 * DEVICES_MAX + 10) {
            memory.observe(("acme", "web", &n.to_string()), 0, 0);
        }
        let generations = memory.generations.lock();
        assert!(generations.current.len() + generations.previous.len() <= 2 * DEVICES_MAX);
    }
}
