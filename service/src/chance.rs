//! Chance, as a value that tests and simulation can replace: waits that are spread so that not all do
//! the same thing in the same moment.

use std::ops::RangeInclusive;
use std::sync::Arc;

/// Draws numbers. Everything that leaves a wait to chance takes one of these.
pub trait Chance: Send + Sync + 'static {
    /// Returns a number of `range`, each with the same chance. The range is not empty.
    fn within(&self, range: RangeInclusive<u64>) -> u64;
}

/// A shared source of chance.
pub type SharedChance = Arc<dyn Chance>;

/// The generator of the thread, seeded by the operating system.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemChance;

impl SystemChance {
    /// Returns the system's chance as a shared value.
    pub fn shared() -> SharedChance {
        Arc::new(Self)
    }
}

impl Chance for SystemChance {
    fn within(&self, range: RangeInclusive<u64>) -> u64 {
        rand::random_range(range)
    }
}
