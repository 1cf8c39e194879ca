//! One generation: a store that takes about 100,000 events and is deleted whole.
//!
//! It, `store` and `writing` are the only files that know sled. Values stay in the synced log. Events are
//! never deleted one by one: sled would not give the disk back.

mod store;
mod writing;

use std::ops::{ControlFlow, RangeBounds};
use std::path::{Path, PathBuf};

use sled::IVec;

use super::batch::{self, Batch, Limits, Pieces};
use super::chunk::{self, Chunk, Key, Packer, Position, Unpacker};

pub(super) use store::{SEGMENT_BYTES, StoreError};

use store::{Store, guarded};
use writing::Writing;

/// An open generation.
#[derive(Debug)]
pub(super) struct Generation {
    start: Position,
    store: Store,
}

impl Generation {
    /// Makes the generation whose first event is `start`; every entry of it is durable on return.
    pub(super) fn create(parent: &Path, start: Position) -> Result<Self, StoreError> {
        let store = Store::create(directory(parent, start))?;
        Ok(Self { start, store })
    }

    /// Opens an existing generation; when that fails, once more from its log alone.
    pub(super) fn open(parent: &Path, start: Position) -> Result<Self, StoreError> {
        let path = directory(parent, start);
        let segment_bytes = store::segment_bytes(&path);
        let store = match Store::open(path.clone(), segment_bytes) {
            Err(error) if !error.is_transient() && store::set_aside_all_but_the_log(&path)? => {
                tracing::warn!(start, %error, "a generation is opened again from its log alone");
                Store::open(path, segment_bytes)
            }
            other => other,
        };
        let store = store?;
        Ok(Self { start, store })
    }

    /// Returns the first position.
    pub(super) fn start(&self) -> Position {
        self.start
    }

    /// Says whether events may be appended; one with segments of an earlier size is only read.
    pub(super) fn takes_more(&self) -> bool {
        self.store.takes_more()
    }

    /// Returns the bytes on disk as of the last commit.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.store.disk_bytes()
    }

    /// Takes the size on disk as it is now.
    pub(super) fn measure(&self) -> Result<(), StoreError> {
        self.store.measure()
    }

    /// Appends `records` from `first` on. On return they survive a power cut (D-1); after an error it
    /// is not known which of them do.
    pub(super) fn append<'a>(
        &self,
        packer: &mut Packer,
        first: Position,
        records: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), StoreError> {
        guarded(|| {
            let mut writing = Writing::begin(&self.store, first)?;
            let mut outcome = Ok(());
            packer.pack(first, records, |key, value| {
                if outcome.is_ok() {
                    outcome = writing.put(key, value);
                }
            });
            outcome?;
            self.store.sync()
        })
    }

    /// Keys and values in order, without the fences.
    fn entries(
        &self,
        range: impl RangeBounds<Key>,
    ) -> impl DoubleEndedIterator<Item = sled::Result<(IVec, IVec)>> {
        let is_value = |entry: &sled::Result<(IVec, _)>| !matches!(entry, Ok((key, _)) if chunk::is_fence(key));
        self.store.db().range(range).filter(is_value)
    }

    /// Removes a record at the end that was cut off in the middle (it was never acknowledged), makes
    /// all else durable and returns the last position; `start - 1` when there is none.
    pub(super) fn repair(&self) -> Result<Position, StoreError> {
        guarded(|| {
            let Some((last, _)) = self.entries(..).next_back().transpose()? else {
                return Ok(self.start - 1);
            };
            let last = chunk::position_of(&last).unwrap_or(self.start);
            let keys: Vec<_> = self
                .entries(chunk::key(last, 0)..)
                .collect::<Result<_, _>>()?;
            let mut unpacker = Unpacker::new()?;
            let through = match keys
                .first()
                .and_then(|(key, value)| unpacker.unpack(key, value))
            {
                Some(Chunk::Events(events)) => last + events.len() as u64 - 1,
                Some(Chunk::Piece { total, .. }) if keys.len() < usize::from(total) => {
                    let mut batch = sled::Batch::default();
                    keys.iter().for_each(|(key, _)| batch.remove(key));
                    self.store.db().apply_batch(batch)?;
                    last - 1
                }
                // Damaged values keep their place; reading counts them.
                _ => last,
            };
            self.store.sync()?;
            self.store.sync_directory()?;
            Ok(through)
        })
    }

    /// Adds records to `batch`, from the one it ends before, up to position `through`. Returns
    /// whether there was room for all that this generation holds.
    pub(super) fn read(
        &self,
        batch: &mut Batch,
        through: Position,
        limits: Limits,
    ) -> Result<bool, StoreError> {
        guarded(|| {
            let upper = chunk::key(batch.next(), u16::MAX);
            let floor = self.entries(..=upper).next_back().transpose()?;
            // The key before may share its value with the first record wanted. A cut record begins
            // at piece 0.
            let from = floor
                .and_then(|(key, _)| chunk::position_of(&key))
                .unwrap_or_else(|| batch.next());
            let mut pieces = Pieces::default();
            let mut unpacker = Unpacker::new()?;
            for entry in self.entries(chunk::key(from, 0)..) {
                let (key, value) = entry?;
                let Some(position) = chunk::position_of(&key) else {
                    continue;
                };
                if position > through {
                    return Ok(true);
                }
                let chunk = unpacker.unpack(&key, &value);
                if !batch::add(batch, &mut pieces, position, chunk, through, limits) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Calls `visit` with what every key holds (`None`: damaged), in order, until it breaks.
    pub(super) fn scan(
        &self,
        mut visit: impl FnMut(Position, Option<Chunk<'_>>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        guarded(|| {
            let mut unpacker = Unpacker::new()?;
            for entry in self.entries(..) {
                let (key, value) = entry?;
                let Some(position) = chunk::position_of(&key) else {
                    continue;
                };
                if visit(position, unpacker.unpack(&key, &value)).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Closes the store and waits for it, which a store that failed may never end.
    pub(super) fn close(self) {
        self.store.close();
    }
}

/// Returns the directory of the generation that begins at `start`.
pub(super) fn directory(parent: &Path, start: Position) -> PathBuf {
    parent.join(format!("{start:020}"))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};

    use super::store::EARLIER_SEGMENT_BYTES;
    use super::*;

    /// Appends groups of `events` records that do not compress; returns the bytes of values.
    fn fill(generation: &Generation, groups: u64, events: u64) -> u64 {
        let mut packer = Packer::new().unwrap();
        let mut dice = StdRng::seed_from_u64(7);
        let mut next = generation.start();
        for _ in 0..groups {
            let records: Vec<_> = (0..events)
                .map(|_| {
                    let mut record = vec![0; 200];
                    dice.fill_bytes(&mut record);
                    record
                })
                .collect();
            let slices = records.iter().map(Vec::as_slice);
            generation.append(&mut packer, next, slices).unwrap();
            next += events;
        }
        groups * events * 200
    }

    #[test]
    fn values_are_written_little_more_than_once() {
        let parent = tempfile::tempdir().unwrap();
        let generation = Generation::create(parent.path(), 1).unwrap();
        let empty = generation.disk_bytes();
        let bytes = fill(&generation, 40, 480);
        let written = generation.disk_bytes() - empty;
        assert!(written >= bytes, "{written} of {bytes}");
        assert!(written < bytes * 3 / 2, "{written} for {bytes}");
    }

    #[test]
    fn fences_are_no_events() {
        let parent = tempfile::tempdir().unwrap();
        let generation = Generation::create(parent.path(), 1).unwrap();
        fill(&generation, 3, 50);
        assert!(
            generation
                .store
                .db()
                .iter()
                .flatten()
                .any(|(key, _)| chunk::is_fence(&key))
        );
        generation.close();
        let generation = Generation::open(parent.path(), 1).unwrap();
        assert_eq!(generation.repair().unwrap(), 150);
        let mut positions = Vec::new();
        generation
            .scan(|position, chunk| {
                assert!(chunk.is_some(), "nothing is damaged");
                positions.push(position);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(
            positions
                .iter()
                .all(|position| (1..=150).contains(position))
        );
        fill(&generation, 1, 50);
        assert_eq!(
            generation.repair().unwrap(),
            150,
            "written once more in its place"
        );
    }

    #[test]
    fn store_with_segments_of_the_earlier_size_is_read_and_takes_no_more() {
        let parent = tempfile::tempdir().unwrap();
        let path = directory(parent.path(), 1);
        let earlier = Generation {
            start: 1,
            store: Store::open(path, EARLIER_SEGMENT_BYTES).unwrap(),
        };
        let records = [b"\xa1a".as_slice(), b"\xa1b"];
        let mut packer = Packer::new().unwrap();
        earlier.append(&mut packer, 1, records.into_iter()).unwrap();
        earlier.close();
        let earlier = Generation::open(parent.path(), 1).unwrap();
        assert!(!earlier.takes_more());
        let limits = Limits {
            events: 10,
            bytes: 100,
        };
        let mut batch = Batch::starting(1);
        earlier.read(&mut batch, 2, limits).unwrap();
        assert_eq!(batch.body, records.concat());
        earlier.close();
        let parent = tempfile::tempdir().unwrap();
        drop(Generation::create(parent.path(), 1).unwrap());
        let later = Generation::open(parent.path(), 1).unwrap();
        assert!(later.takes_more());
    }
}
