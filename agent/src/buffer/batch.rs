//! What is read of a generation: consecutive records as the wire carries them, cut records put together
//! again, damaged ones kept as places.

use super::chunk::{Chunk, Position};

/// MessagePack nil: stands in a batch where a damaged event was, so that the sequence stays whole and
/// the collector quarantines the place.
const DAMAGED: u8 = 0xc0;

/// The record that is being put together from its pieces.
#[derive(Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    next: u16,
}

impl Pieces {
    /// Returns true when the record is complete.
    pub(super) fn add(&mut self, piece: u16, total: u16, bytes: &[u8]) -> bool {
        if piece == 0 {
            self.bytes.clear();
            self.next = 0;
        }
        if piece != self.next {
            self.spoil();
            return false;
        }
        self.bytes.extend_from_slice(bytes);
        self.next += 1;
        self.next == total
    }

    pub(super) fn spoil(&mut self) {
        self.bytes.clear();
        self.next = u16::MAX;
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        self.next = 0;
        std::mem::take(&mut self.bytes)
    }
}

/// Bounds of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most events.
    pub events: u32,
    /// Most bytes; a single larger event is read all the same.
    pub bytes: u64,
}

/// Consecutive records as the wire carries them: one MessagePack value after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Position of the first record.
    pub first: Position,
    /// Number of records.
    pub count: u32,
    /// The records.
    pub body: Vec<u8>,
    /// Positions of those that were damaged and are nil.
    pub damaged: Vec<Position>,
}

impl Batch {
    /// Starts an empty batch at `first`.
    pub(super) fn starting(first: Position) -> Self {
        Self {
            first,
            count: 0,
            body: Vec::new(),
            damaged: Vec::new(),
        }
    }

    /// Returns the position after the last record.
    pub fn next(&self) -> Position {
        self.first + u64::from(self.count)
    }

    /// Returns the last position; `first - 1` when the batch is empty.
    pub fn last(&self) -> Position {
        self.next() - 1
    }

    fn push(&mut self, record: &[u8], limits: Limits) -> bool {
        let bytes = (self.body.len() + record.len()) as u64;
        if self.count >= limits.events || (self.count > 0 && bytes > limits.bytes) {
            return false;
        }
        self.body.extend_from_slice(record);
        self.count += 1;
        true
    }

    fn damaged_until(&mut self, position: Position, limits: Limits) -> bool {
        while self.next() < position {
            let damaged = self.next();
            if !self.push(&[DAMAGED], limits) {
                return false;
            }
            self.damaged.push(damaged);
        }
        true
    }
}

/// Adds what a key holds to `batch`; one step of [`Generation::read`].
pub(super) fn add(
    batch: &mut Batch,
    pieces: &mut Pieces,
    position: Position,
    chunk: Option<Chunk<'_>>,
    through: Position,
    limits: Limits,
) -> bool {
    let mut room = true;
    let wanted = position.max(batch.next());
    match chunk {
        Some(Chunk::Events(events)) => {
            room = batch.damaged_until(wanted, limits);
            for (place, record) in (position..).zip(events.iter()) {
                if room && place == batch.next() && place <= through {
                    room = batch.push(record, limits);
                }
            }
        }
        Some(Chunk::Piece {
            piece,
            total,
            bytes,
        }) if position >= batch.next() => {
            room = batch.damaged_until(position, limits);
            if room && pieces.add(piece, total, bytes) {
                room = batch.push(&pieces.take(), limits);
            }
        }
        Some(Chunk::Piece { .. }) => {}
        // Its place is filled when the next sound key shows how many events it held.
        None => pieces.spoil(),
    }
    room
}
