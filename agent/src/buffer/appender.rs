//! The one writer of the buffer: turns groups of records into durable positions, keeps the disk
//! bound, and brings the store back after an error.

mod attach;
mod room;

use std::sync::Arc;

use headwater_protocol::Epoch;
use metrics::{counter, gauge};
use tracing::{error, info, warn};

use super::chunk::{Packer, Position, RECORD_BYTES_MAX};
use super::files::Reserve;
use super::generation::{self, Generation, StoreError};
use super::marks::DurableMark;
use super::{Buffer, Slot};
use crate::config::BufferConfig;
use crate::metrics::{
    APPENDED_BYTES, BUFFER_DISK_BYTES, BUFFERED_EVENTS, GENERATIONS, REFUSED_DISK_BYTES,
};

/// A drained generation above this is left for a new one even when there is nothing to append, so
/// that the disk comes back (D-3).
const DRAINED_BYTES_MAX: u64 = 32 << 20;

/// Why records were not accepted. The client is told to come back; nothing that was accepted before
/// is touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The buffer has reached its bound. Space comes back with acks.
    #[error("buffer holds `{used}` bytes of at most `{bound}`")]
    Full {
        /// Bytes taken now.
        used: u64,
        /// `buffer.disk_bytes_max`.
        bound: u64,
    },
    /// The file system is full or nearly so.
    #[error("disk is full; events are taken again when `{wanted}` bytes are free")]
    DiskFull {
        /// `buffer.disk_free_bytes_min` and room for the reserve.
        wanted: u64,
    },
    /// The store failed; another generation follows. It is not known whether these records are durable.
    #[error("{0}")]
    Store(String),
    /// A record is larger than the buffer can cut.
    #[error("record of `{0}` bytes is too large for the buffer")]
    TooLarge(usize),
    /// More waits for the disk than is allowed.
    #[error("too many events wait for the disk")]
    Overload,
    /// The agent stops.
    #[error("the agent is stopping")]
    Stopped,
}

impl AppendError {
    /// Returns the value of the metric label `reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Full { .. } => "full",
            Self::DiskFull { .. } => "disk",
            Self::Store(_) | Self::TooLarge(_) => "store",
            Self::Overload => "overload",
            Self::Stopped => "stopped",
        }
    }
}

/// The writer. There is one per buffer.
#[derive(Debug)]
pub struct Appender {
    buffer: Buffer,
    config: BufferConfig,
    packer: Packer,
    /// `None` after an error until the store is open again.
    tail: Option<Arc<Generation>>,
    /// First position of the generation being written.
    tail_start: Position,
    tail_bytes: u64,
    next: Position,
    reserve: Reserve,
    disk_low: bool,
    /// Size of the group that the bound refused last; 0 when the last one fitted.
    refused_bytes: u64,
    marks_written: (Position, Position),
    durable_mark: DurableMark,
    /// The newest generation cannot be opened for want of room; no position up to this one may be
    /// used again.
    unattached_floor: Option<Position>,
}

impl Appender {
    /// Takes other bounds; the directory and the size of the reserve stay as they are.
    pub fn configure(&mut self, config: &BufferConfig) {
        if self.config != *config {
            self.config.clone_from(config);
            self.buffer.shared.state.lock().refused_bytes_max = config.refused_room_bytes();
        }
    }

    fn generation_bytes_max(&self) -> u64 {
        let config = &self.config;
        config.generation_bytes_max.min(config.disk_bytes_max / 8)
    }

    /// Returns the epoch of the next record. Another one than before means that positions were lost
    /// or renumbered.
    pub fn epoch(&self) -> Epoch {
        self.buffer.shared.state.lock().epochs.newest()
    }

    /// Returns the position that the next record gets.
    pub fn next(&self) -> Position {
        self.next
    }

    /// Appends records in order and makes them durable: on `Ok` they survive a power cut (D-1) and
    /// readers see them. Blocks on the disk.
    ///
    /// # Errors
    /// See [`AppendError`]. After [`AppendError::Store`] some of the records may be in the buffer all
    /// the same: a client that sends them again makes duplicates, which are found by message id.
    pub fn append(&mut self, records: &[&[u8]]) -> Result<(), AppendError> {
        let Some(largest) = records.iter().map(|record| record.len()).max() else {
            return Ok(());
        };
        if largest > RECORD_BYTES_MAX {
            return Err(AppendError::TooLarge(largest));
        }
        let bytes: u64 = records.iter().map(|record| record.len() as u64).sum();
        if self.disk_low {
            return Err(self.disk_full());
        }
        self.recover()?;
        self.refused_bytes = bytes;
        self.check_bound(bytes)?;
        self.refused_bytes = 0;
        self.rotate_if_due(records.len() as u64, bytes)?;
        let Some(tail) = self.tail.clone() else {
            return Err(AppendError::Store(
                "there is no generation to append to".to_owned(),
            ));
        };
        if let Err(error) = tail.append(&mut self.packer, self.next, records.iter().copied()) {
            drop(tail);
            return Err(self.fail(&error));
        }
        self.next += records.len() as u64;
        self.tail_bytes += bytes;
        counter!(APPENDED_BYTES).increment(bytes);
        // D-1: only now may anybody see or acknowledge them.
        self.buffer.shared.durable.send_replace(self.next - 1);
        if let Err(error) = self.durable_mark.write(self.next - 1) {
            warn!(%error, "the durable mark cannot be written; the next second's mark covers it");
        }
        Ok(())
    }

    fn is_drained(&self) -> bool {
        self.buffer.head().acked + 1 >= self.next
    }

    fn rotate_if_due(&mut self, events: u64, bytes: u64) -> Result<(), AppendError> {
        let held = self.next - self.tail_start;
        let due = held + events > self.config.generation_events_max
            || self.tail_bytes + bytes > self.generation_bytes_max()
            || self.tail.as_ref().is_some_and(|tail| !tail.takes_more())
            || self.buffer.shared.state.lock().tail_damaged;
        if due && held > 0 {
            self.rotate().map_err(|error| self.fail(&error))?;
        }
        Ok(())
    }

    /// Begins a new generation at the next position.
    fn rotate(&mut self) -> Result<(), StoreError> {
        let parent = self.buffer.generations_directory();
        let path = generation::directory(&parent, self.next);
        if path.exists() {
            // Left by an attempt that failed before anything was accepted into it.
            std::fs::remove_dir_all(&path)?;
        }
        let created = Generation::create(&parent, self.next);
        if created.is_err() && path.exists() {
            // Gives its room back at once; a leftover would go with the next attempt.
            drop(std::fs::remove_dir_all(&path));
        }
        let generation = Arc::new(created?);
        let mut state = self.buffer.shared.state.lock();
        let acked = state.acked;
        if let Some(previous) = state.generations.get_mut(&self.tail_start)
            && acked + 1 < self.tail_start
        {
            // Not the oldest: it stays closed until shipping comes to it.
            *previous = Slot::Closed {
                disk_bytes: previous.disk_bytes(),
            };
        }
        state
            .generations
            .insert(self.next, Slot::Open(generation.clone()));
        state.tail_damaged = false;
        drop(state);
        self.tail = Some(generation);
        self.tail_start = self.next;
        self.tail_bytes = 0;
        // Lets a predecessor that is already drained go.
        self.buffer.acknowledge(acked);
        Ok(())
    }

    /// Gives the generation up after an error; [`Self::recover`] begins another.
    fn fail(&mut self, error: &StoreError) -> AppendError {
        error!(%error, "appending failed; another generation follows");
        self.tail = None;
        let mut state = self.buffer.shared.state.lock();
        if let Some(slot) = state.generations.get_mut(&self.tail_start) {
            *slot = Slot::Closed {
                disk_bytes: slot.disk_bytes(),
            };
        }
        drop(state);
        if error.is_disk_full() {
            // The room is for opening and draining what is there: intake waits until it is back.
            self.reserve.release();
            self.disk_low = true;
            return self.disk_full();
        }
        AppendError::Store(error.to_string())
    }

    /// Begins a new generation after an error. The failed one keeps what was acknowledged; what its
    /// last, unacknowledged group left in it lies beyond the new start and is never read.
    fn recover(&mut self) -> Result<(), AppendError> {
        if self.tail.is_some() {
            return Ok(());
        }
        let recovered = match self.unattached_floor {
            Some(floor) => self.attach(floor),
            None => self.rotate(),
        };
        if let Err(error) = recovered {
            return Err(self.fail(&error));
        }
        self.unattached_floor = None;
        info!(next = self.next, "appending goes on");
        Ok(())
    }

    /// Does what is due about once a second: marks, free disk, recovery, space to give back.
    pub fn maintain(&mut self) {
        self.buffer.delete_leftovers();
        self.buffer.measure();
        if std::mem::take(&mut self.buffer.shared.state.lock().wants_room) {
            self.reserve.release();
        }
        self.watch_disk();
        if !self.disk_low
            && let Err(error) = self.recover()
        {
            warn!(%error, "no generation can be begun yet");
        }
        let marks = (self.buffer.head().acked, self.next);
        if marks != self.marks_written {
            match self.buffer.write_marks(0) {
                Ok(()) => self.marks_written = marks,
                Err(error) => warn!(%error, "marks cannot be written"),
            }
        }
        let large = DRAINED_BYTES_MAX.min(self.config.disk_bytes_max / 8);
        let drained = self.is_drained()
            && self
                .tail
                .as_ref()
                .is_some_and(|tail| tail.disk_bytes() > large)
            && self.tail_start < self.next;
        let damaged = self.buffer.shared.state.lock().tail_damaged && self.tail_start < self.next;
        if (drained || damaged)
            && let Err(error) = self.rotate()
        {
            warn!(%error, "a new generation cannot be begun");
        }
        let refusal = if self.disk_low {
            Some(self.disk_full())
        } else {
            self.check_bound(self.refused_bytes).err()
        };
        self.buffer.shared.state.lock().refusal = refusal.map(|error| error.to_string());
        self.show();
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    fn show(&self) {
        gauge!(BUFFERED_EVENTS).set(self.buffer.buffered() as f64);
        gauge!(BUFFER_DISK_BYTES).set(self.used_bytes() as f64);
        gauge!(REFUSED_DISK_BYTES).set(self.buffer.shared.state.lock().refused_bytes as f64);
        gauge!(GENERATIONS).set(self.buffer.generations() as f64);
    }

    /// Writes the marks for the last time. Events are durable already.
    pub fn close(self) {
        if let Err(error) = self.buffer.write_marks(0) {
            warn!(%error, "marks cannot be written at the stop");
        }
    }
}
