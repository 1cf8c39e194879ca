//! The memory that requests take together, from the first byte of a body to the last of its answer.
//!
//! What a step is going to take is reserved before it is taken, with one addition for the whole request,
//! so that the bound holds however small a body was that becomes many events.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Gauge, gauge};

use super::answer::Answer;
use super::request::KEPT_BYTES;
use crate::metrics::REQUEST_BYTES;
use crate::sequencer::Entry;

/// What is reserved at a time for things that come one by one.
const STEP_BYTES: u64 = 16 * 1024;

/// Memory of an event on its way to the buffer beside its record, in bytes: what stands for it here and
/// in the lists of the sequencer.
pub(super) const ENTRY_BYTES: u64 = size_of::<Entry>() as u64 + 48;

/// The memory of all requests in progress; clones share it.
#[derive(Clone)]
pub(super) struct Memory(Arc<Shared>);

struct Shared {
    held: AtomicU64,
    bound: AtomicU64,
    shown: Gauge,
}

impl Memory {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Shared {
            held: AtomicU64::new(0),
            bound: AtomicU64::new(bytes_max),
            shown: gauge!(REQUEST_BYTES),
        }))
    }

    /// Changes the bound; what is held above a lower one stays until its request is done.
    pub(super) fn set_bytes_max(&self, bytes_max: u64) {
        self.0.bound.store(bytes_max, Ordering::Relaxed);
    }

    /// Begins a request, which holds nothing yet.
    pub(super) fn reservation(&self) -> Reservation {
        Reservation {
            memory: self.clone(),
            held: 0,
            used: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }
}

/// What one request holds, in bytes; given back when dropped.
pub(super) struct Reservation {
    memory: Memory,
    held: u64,
    /// How much of it is spoken for.
    used: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.held)
    }
}

impl Reservation {
    /// Holds `bytes` from now on, more or less than before.
    ///
    /// # Errors
    /// Less always succeeds. For more, [`Answer::Busy`] when others hold too much, and
    /// [`Answer::TooLarge`] when it would not fit even alone; what was held before stays.
    pub(super) fn hold(&mut self, bytes: u64) -> Result<(), Answer> {
        let shared = &self.memory.0;
        let Some(more) = bytes.checked_sub(self.held).filter(|more| *more > 0) else {
            self.release(bytes);
            self.used = bytes;
            return Ok(());
        };
        let bytes_max = shared.bound.load(Ordering::Relaxed);
        if bytes > bytes_max {
            return Err(Answer::TooLarge {
                bytes_max,
                setting: "http.memory_bytes_max",
            });
        }
        let before = shared.held.fetch_add(more, Ordering::Relaxed);
        if before + more > bytes_max {
            shared.held.fetch_sub(more, Ordering::Relaxed);
            return Err(Answer::Busy { retry_after_s: 1 });
        }
        shared.shown.increment(float(more));
        (self.held, self.used) = (bytes, bytes);
        Ok(())
    }

    /// Holds `bytes` more.
    ///
    /// # Errors
    /// As [`Self::hold`].
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), Answer> {
        self.hold(self.used + bytes)
    }

    /// As [`Self::grow`], for small things: most calls touch nothing that other requests touch.
    ///
    /// # Errors
    /// As [`Self::hold`].
    pub(super) fn add(&mut self, bytes: u64) -> Result<(), Answer> {
        let used = self.used + bytes;
        if used > self.held && self.hold(used + STEP_BYTES).is_err() {
            self.hold(used)?;
        }
        self.used = used;
        Ok(())
    }

    /// Holds `bytes` at most.
    pub(super) fn shrink(&mut self, bytes: u64) {
        self.release(bytes.min(self.held));
        self.used = self.used.min(self.held);
    }

    /// Gives back what is held above `bytes`.
    fn release(&mut self, bytes: u64) {
        let less = self.held - bytes;
        if less > 0 {
            self.memory.0.held.fetch_sub(less, Ordering::Relaxed);
            self.memory.0.shown.decrement(float(less));
            self.held = bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release(0);
    }
}

/// What making records of events takes, in bytes.
pub(super) struct Need {
    /// The list of events, what of them was rewritten, and copies of the one that is being looked at.
    pub(super) events: u64,
    /// What is made of them.
    pub(super) entries: u64,
}

impl Need {
    /// Reckons with records whose part beside the event takes `head_bytes`.
    pub(super) fn of(events: &[Cow<'_, [u8]>], head_bytes: u64, event_bytes_max: u64) -> Self {
        let (mut largest, mut rewritten, mut kept) = (0, 0, 0);
        for event in events {
            let length = event.len() as u64;
            largest = length.max(largest);
            kept += match length <= event_bytes_max {
                true => length,
                false => length.min(KEPT_BYTES as u64),
            };
            if let Cow::Owned(_) = event {
                rewritten += length;
            }
        }
        let count = events.len() as u64;
        // With its addresses cut, and in its record.
        let copies = largest + largest.min(event_bytes_max);
        Self {
            events: size_of_val(events) as u64 + rewritten + copies,
            entries: kept + count * (head_bytes + ENTRY_BYTES),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_more_than_there_is_and_all_of_it_comes_back() {
        let memory = Memory::new(100_000);
        let (mut one, mut other) = (memory.reservation(), memory.reservation());
        one.grow(40_000).unwrap();
        one.grow(20_000).unwrap();
        assert!(matches!(other.grow(40_001), Err(Answer::Busy { .. })));
        assert_eq!(memory.held(), 60_000, "a refusal holds nothing");
        other.grow(40_000).unwrap();
        one.hold(10_000).unwrap();
        assert_eq!(memory.held(), 50_000);
        assert!(matches!(one.hold(100_001), Err(Answer::TooLarge { .. })));
        memory.set_bytes_max(45_000);
        assert!(one.grow(1).is_err());
        one.shrink(20_000);
        assert_eq!(memory.held(), 50_000, "shrinking never grows");
        drop((one, other));
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn small_things_are_held_before_they_are_used() {
        let memory = Memory::new(100_000);
        let mut one = memory.reservation();
        let mut steps = 0;
        for thing in 1..=800_u64 {
            let before = memory.held();
            one.add(100).unwrap();
            steps += u64::from(memory.held() != before);
            assert!(memory.held() >= thing * 100);
        }
        assert!(steps <= 5, "{steps}");
        while one.add(100).is_ok() {}
        assert_eq!(one.used, 100_000, "to the last byte");
    }
}
