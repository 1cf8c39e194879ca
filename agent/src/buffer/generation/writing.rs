//! How values go into a store so that each is written little more than once.

use super::super::chunk::{self, Key, Position};
use super::store::{Store, StoreError};

/// Bytes of values between two fdatasyncs, so few that less than one segment is written meanwhile. If it
/// were more, a power cut could keep the head of a segment that was overwritten in place and lose the
/// segment before it, without which the store ignores everything it holds; or lose what had replaced
/// the overwritten bytes. Values take up to 5 times their bytes in the log (measured): as they come; when a
/// page is split, which no fence prevents among the pieces of a large event; and for a page that is moved
/// out of an old segment with each of them.
const UNSYNCED_BYTES_MAX: usize = 300 * 1024;

/// Positions from one fence to the next: a page gets nine of them, and six or seven values of as many
/// events as share a key.
const FENCE_DISTANCE: Position = 16;

/// How far the fences are ahead of the events, in positions: three pages of fences.
const FENCED_AHEAD: Position = 32 * FENCE_DISTANCE;

/// What a fence counts for between two fdatasyncs, with its share of the pages it splits.
const FENCE_BYTES: usize = 64;

/// One append. Values go in one after the other in the order of their keys: a batch of the store has an
/// order of its own, by chance, and pages that are filled at random are written anew more often.
///
/// The store splits a page above 16 values and writes it whole, which would write each value three
/// times. So *fences*, keys without a value, are put far enough ahead of the events that pages are
/// split while there is nothing but fences in them; each then takes its share of values beside nine
/// fences and is not written again.
pub(super) struct Writing<'a> {
    store: &'a Store,
    /// Position of the last fence.
    fence: Position,
    unsynced_bytes: usize,
}

impl<'a> Writing<'a> {
    /// Begins an append of events from `first` on.
    pub(super) fn begin(store: &'a Store, first: Position) -> Result<Self, StoreError> {
        let last = store.db().last()?;
        let last = last.and_then(|(key, _)| chunk::position_of(&key));
        Ok(Self {
            store,
            fence: last.unwrap_or(first),
            unsynced_bytes: 0,
        })
    }

    /// Puts a value in, and fences ahead of it. Syncs where more would wait for it than may.
    pub(super) fn put(&mut self, key: Key, value: Vec<u8>) -> Result<(), StoreError> {
        let position = chunk::position_of(&key).expect("a key of ours");
        while self.fence < position + FENCED_AHEAD {
            self.fence += FENCE_DISTANCE;
            self.insert(chunk::fence(self.fence), Vec::new())?;
        }
        self.insert(key, value)
    }

    fn insert(&mut self, key: Key, value: Vec<u8>) -> Result<(), StoreError> {
        let bytes = value.len().max(FENCE_BYTES);
        if self.unsynced_bytes > 0 && self.unsynced_bytes + bytes > UNSYNCED_BYTES_MAX {
            self.store.sync()?;
            self.unsynced_bytes = 0;
        }
        self.unsynced_bytes += bytes;
        self.store.db().insert(key, value)?;
        Ok(())
    }
}
