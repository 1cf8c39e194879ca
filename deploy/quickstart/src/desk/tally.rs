//! What was put into the batches, counted while they are packed.

use std::collections::BTreeMap;

use super::disturbance::Flaw;
use crate::world::time::{HOUR, Millis};

/// An event counts as late when it is sent this long after it happened.
pub(super) const LATE: Millis = HOUR;

/// Exact counts of what was sent; what comes out at the other end must equal them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Good events with a message id of their own.
    pub distinct: u64,
    /// Further copies of them.
    pub copies: u64,
    /// Broken events by flaw.
    pub invalid: BTreeMap<Flaw, u64>,
    /// Of the broken events, those that are sent a second time. The agent recognises the ones with a
    /// message id.
    pub invalid_again: u64,
    /// Good events sent more than an hour after they happened.
    pub late: u64,
    /// Good events of browsers whose clock is wrong.
    pub wrong_clock: u64,
    /// Good events of servers stamped in the future.
    pub future: u64,
}

impl Tally {
    /// Returns how many events were broken: at most so many are quarantined.
    pub fn broken(&self) -> u64 {
        self.invalid.values().sum()
    }

    /// Returns how many events were sent.
    pub fn sent(&self) -> u64 {
        self.distinct + self.copies + self.broken()
    }
}
