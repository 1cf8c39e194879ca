//! Seeded chance: the same seed and purpose give the same draws.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::time::Millis;

/// A stream of draws of its own for one purpose, so that a change in one part of the world leaves
/// the others as they are.
#[derive(Debug)]
pub struct Chance(StdRng);

impl Chance {
    /// Returns the draws of `seed` for `purpose`.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a (64 bits): spreads the purposes, nothing more is asked of it.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
        for byte in purpose.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Self(StdRng::seed_from_u64(hash))
    }

    /// Returns true with probability `share`.
    pub fn hit(&mut self, share: f64) -> bool {
        self.0.random_bool(share.clamp(0.0, 1.0))
    }

    /// Returns a number from `low` up to and without `high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        self.0.random_range(low..high.max(low + 1))
    }

    /// Returns an index below `count`.
    pub fn index(&mut self, count: usize) -> usize {
        self.0.random_range(0..count.max(1))
    }

    /// Returns a fraction in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        self.0.random()
    }

    /// Returns one of `items`.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        *items.choose(&mut self.0).expect("the list has items")
    }

    /// Returns an index, the larger `weights` of it the likelier.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        let mut at = self.fraction() * total;
        for (index, weight) in weights.iter().enumerate() {
            at -= weight;
            if at < 0.0 {
                return index;
            }
        }
        weights.len().saturating_sub(1)
    }

    /// Returns a waiting time around `median`: mostly shorter than twice of it, now and then long.
    pub fn wait(&mut self, median: Millis) -> Millis {
        // A sum of uniform draws is close enough to a normal one to make a log-normal time.
        let normal: f64 = (0..6).map(|_| self.fraction()).sum::<f64>() - 3.0;
        ((median as f64) * (normal * 0.9).exp()) as Millis + 1
    }

    /// Returns a UUID (version 4 in form).
    pub fn uuid(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.0.random()).into_uuid()
    }

    /// Returns `prefix` and ten digits and letters.
    pub fn id(&mut self, prefix: &str) -> String {
        const ALPHABET: &[u8] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let mut id = String::with_capacity(prefix.len() + 10);
        id.push_str(prefix);
        for _ in 0..10 {
            id.push(char::from(ALPHABET[self.index(ALPHABET.len())]));
        }
        id
    }
}
