//! One generation: a sled database that takes about 100,000 events and is deleted whole.
//!
//! The only file that knows sled. What sled 0.34.7 does not do is done here: `flush` is followed by
//! fdatasync on an own descriptor, new directories are fsynced up to the parent, opening is guarded
//! against panics, values stay in the synced log. Events are never deleted one by one: sled would not
//! give the disk back.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::ops::{ControlFlow, RangeBounds};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sled::IVec;

use super::batch::{self, Batch, Limits, Pieces};
use super::chunk::{self, Chunk, Key, Packer, Position, Unpacker};
use super::files;

/// Bytes of a segment, the unit in which the store's log takes and reuses room.
pub(super) const SEGMENT_BYTES: usize = 2 << 20;

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

/// Waits for a store that is still closing: 2 s in all.
const LOCK_ATTEMPTS_MAX: u32 = 200;
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// Why a store cannot be used. Treat it as dead: drop it and open it again.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The store reports an error.
    #[error("store failed: {0}")]
    Sled(#[from] sled::Error),
    /// The store panicked, which is how it meets most damage.
    #[error("store panicked: {0}")]
    Panicked(String),
    /// It holds fewer events than it was given.
    #[error("store has lost its events from position `{position}` on")]
    Incomplete {
        /// First position that is missing.
        position: Position,
    },
    /// The file system around it failed.
    #[error("store file failed: {0}")]
    Io(#[from] io::Error),
}

impl StoreError {
    /// Says whether the disk is full.
    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Sled(sled::Error::Io(error)) | Self::Io(error) => {
                error.kind() == io::ErrorKind::StorageFull
            }
            _ => false,
        }
    }

    fn is_locked(&self) -> bool {
        matches!(self, Self::Sled(sled::Error::Io(error)) if error.to_string().contains("acquire lock"))
    }

    /// Says whether opening again later may help although nothing is damaged (full disk, too many
    /// files, store still closing).
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Sled(sled::Error::Io(error)) | Self::Io(error) => !matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
            ),
            _ => false,
        }
    }
}

/// Segments that stores had at first, too small for what stands above. They are read; nothing is appended
/// to them.
const EARLIER_SEGMENT_BYTES: usize = 512 << 10;

/// Returns the size of the segments of the store in `path`: its settings say it, and the store takes no
/// other.
fn segment_bytes(path: &Path) -> usize {
    let settings = fs::read(path.join("conf")).unwrap_or_default();
    let earlier = format!("segment_size: {EARLIER_SEGMENT_BYTES}\n");
    if String::from_utf8_lossy(&settings).contains(&earlier) {
        EARLIER_SEGMENT_BYTES
    } else {
        SEGMENT_BYTES
    }
}

fn settings(path: &Path, segment_bytes: usize) -> sled::Config {
    sled::Config::new()
        .path(path)
        .cache_capacity(4 << 20)
        .segment_size(segment_bytes)
        // The store's own thread would move pages between our syncs.
        .flush_every_ms(None)
}

fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(StoreError::Panicked(panic_text(payload.as_ref()))))
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").chars().take(200).collect()
}

/// An open generation.
#[derive(Debug)]
pub(super) struct Generation {
    start: Position,
    path: PathBuf,
    takes_more: bool,
    /// Taken out at drop, on a thread of its own: a store that failed can hang there.
    db: Option<sled::Db>,
    sync: File,
    /// Bytes of the files around the log, as they were at open.
    around_bytes: u64,
    disk_bytes: AtomicU64,
}

impl Generation {
    /// Makes the generation whose first event is `start`; every entry of it is durable on return.
    pub(super) fn create(parent: &Path, start: Position) -> Result<Self, StoreError> {
        let path = directory(parent, start);
        let generation = Self::open_at(path.clone(), start, SEGMENT_BYTES)?;
        guarded(|| Ok(generation.db().flush().map(drop)?))?;
        for entry in fs::read_dir(&path)? {
            let entry = entry?.path();
            File::open(entry)?.sync_all()?;
        }
        files::sync_directory(&path)?;
        files::sync_directory(parent)?;
        Ok(generation)
    }

    /// Opens an existing generation. When that fails the store's snapshot and settings are moved aside
    /// once: the log alone holds everything, and the settings are always the same.
    pub(super) fn open(parent: &Path, start: Position) -> Result<Self, StoreError> {
        let path = directory(parent, start);
        let segment_bytes = segment_bytes(&path);
        match Self::open_at(path.clone(), start, segment_bytes) {
            Err(error) if !error.is_transient() && set_aside_all_but_the_log(&path)? => {
                tracing::warn!(start, %error, "a generation is opened again from its log alone");
                Self::open_at(path, start, segment_bytes)
            }
            other => other,
        }
    }

    fn open_at(path: PathBuf, start: Position, segment_bytes: usize) -> Result<Self, StoreError> {
        let mut attempt = 0;
        let db = loop {
            match guarded(|| Ok(settings(&path, segment_bytes).open()?)) {
                Err(error) if error.is_locked() && attempt < LOCK_ATTEMPTS_MAX => {
                    // Closed a moment ago on its own thread.
                    attempt += 1;
                    std::thread::sleep(LOCK_WAIT);
                }
                other => break other?,
            }
        };
        let sync = File::open(path.join("db"))?;
        let disk_bytes = files::disk_bytes(&path);
        let around_bytes = disk_bytes.saturating_sub(sync.metadata()?.blocks() * 512);
        Ok(Self {
            start,
            path,
            takes_more: segment_bytes == SEGMENT_BYTES,
            db: Some(db),
            sync,
            around_bytes,
            disk_bytes: AtomicU64::new(disk_bytes),
        })
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("taken out only by drop")
    }

    /// Returns the first position.
    pub(super) fn start(&self) -> Position {
        self.start
    }

    /// Says whether events may be appended; one with segments of an earlier size is only read.
    pub(super) fn takes_more(&self) -> bool {
        self.takes_more
    }

    /// Returns the bytes on disk as of the last commit.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
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
            let mut writing = Writing::begin(self, first)?;
            let mut outcome = Ok(());
            packer.pack(first, records, |key, value| {
                if outcome.is_ok() {
                    outcome = writing.put(key, value);
                }
            });
            outcome?;
            self.sync()
        })
    }

    /// Keys and values in order, without the fences.
    fn entries(
        &self,
        range: impl RangeBounds<Key>,
    ) -> impl DoubleEndedIterator<Item = sled::Result<(IVec, IVec)>> {
        let is_value = |entry: &sled::Result<(IVec, _)>| !matches!(entry, Ok((key, _)) if chunk::is_fence(key));
        self.db().range(range).filter(is_value)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db().flush()?;
        self.sync.sync_data()?;
        self.measure()
    }

    /// Takes the size on disk as it is now.
    pub(super) fn measure(&self) -> Result<(), StoreError> {
        let bytes = self.sync.metadata()?.blocks() * 512 + self.around_bytes;
        self.disk_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
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
                    self.db().apply_batch(batch)?;
                    last - 1
                }
                // Damaged values keep their place; reading counts them.
                _ => last,
            };
            self.sync()?;
            // The store makes files that are missing.
            files::sync_directory(&self.path)?;
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
    pub(super) fn close(mut self) {
        let db = self.db.take();
        let closed = guarded(|| {
            drop(db);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "a store did not close cleanly");
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        let dropped = std::thread::Builder::new()
            .name("store-close".to_owned())
            .spawn(move || {
                let closed = guarded(|| {
                    drop(db);
                    Ok(())
                });
                if let Err(error) = closed {
                    tracing::warn!(%error, "a store did not close cleanly");
                }
            });
        if let Err(error) = dropped {
            tracing::warn!(%error, path = %self.path.display(), "no thread to close a store");
        }
    }
}

/// Returns the directory of the generation that begins at `start`.
pub(super) fn directory(parent: &Path, start: Position) -> PathBuf {
    parent.join(format!("{start:020}"))
}

fn set_aside_all_but_the_log(path: &Path) -> io::Result<bool> {
    let mut found = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") || name == "conf" {
            fs::rename(entry.path(), path.join(format!("damaged-{name}")))?;
            found = true;
        }
    }
    Ok(found)
}

/// One append. Values go in one after the other in the order of their keys: a batch of the store has an
/// order of its own, by chance, and pages that are filled at random are written anew more often.
///
/// The store splits a page above 16 values and writes it whole, which would write each value three
/// times. So *fences*, keys without a value, are put far enough ahead of the events that pages are
/// split while there is nothing but fences in them; each then takes its share of values beside nine
/// fences and is not written again.
struct Writing<'a> {
    generation: &'a Generation,
    /// Position of the last fence.
    fence: Position,
    unsynced_bytes: usize,
}

impl<'a> Writing<'a> {
    fn begin(generation: &'a Generation, first: Position) -> Result<Self, StoreError> {
        let last = generation.db().last()?;
        let last = last.and_then(|(key, _)| chunk::position_of(&key));
        Ok(Self {
            generation,
            fence: last.unwrap_or(first),
            unsynced_bytes: 0,
        })
    }

    fn put(&mut self, key: Key, value: Vec<u8>) -> Result<(), StoreError> {
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
            self.generation.sync()?;
            self.unsynced_bytes = 0;
        }
        self.unsynced_bytes += bytes;
        self.generation.db().insert(key, value)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};

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
        let earlier = Generation::open_at(path, 1, EARLIER_SEGMENT_BYTES).unwrap();
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
