//! The dice of one run, and what the real code draws from them.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use headwater_service::chance::Chance;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Draws everything that a run leaves to chance; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Dice(Arc<Mutex<StdRng>>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Says yes `per_mille` times of a thousand.
    pub(crate) fn says(&self, per_mille: u32) -> bool {
        self.0.lock().random_range(0..1000) < per_mille
    }

    pub(crate) fn within(&self, range: RangeInclusive<u64>) -> u64 {
        self.0.lock().random_range(range)
    }

    /// Returns an index below `count`, which is not 0.
    pub(crate) fn index(&self, count: usize) -> usize {
        self.0.lock().random_range(0..count)
    }

    pub(crate) fn ms(&self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }
}

impl Chance for Dice {
    fn within(&self, range: RangeInclusive<u64>) -> u64 {
        self.0.lock().random_range(range)
    }
}
