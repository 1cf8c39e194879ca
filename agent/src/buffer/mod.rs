//! The buffer: the only log in the system. An event is here from before its 200 until its ack.
//!
//! One writer (the [`Appender`], owned by the sequencer's thread) appends groups of records; readers
//! take them in order; an ack moves the low mark. Three numbers order everything:
//!
//! ```text
//!   acked  ≤  sent  ≤  durable          positions, counted from 1 for as long as the directory lives
//!     │         │        └ fdatasync has returned; readers see nothing beyond it (D-1)
//!     │         └ may have reached a collector; written down before the first byte leaves
//!     └ committed; generations wholly below it are deleted (D-3)
//!
//!   DIR/lock                 held by the running agent
//!   DIR/buffer.json          agent id and epochs: how positions are numbered on the wire
//!   DIR/marks                the three positions, outside the store
//!   DIR/reserve              room to give back when the disk is full
//!   DIR/generations/START/   one store per ~100,000 events, named by its first position
//!   DIR/quarantine/          generations that could not be read; nothing deletes them
//!   DIR/window/              ids of recent events; the sequencer's, see `crate::window`
//!   DIR/refused/             events that the collector does not take; nothing deletes them
//! ```
//!
//! What is lost with a damaged generation is counted and logged, and the events after it get a new
//! epoch, so that the collector never waits for sequences that cannot come. A single damaged key
//! leaves nils in its place. Generations between the oldest and the newest stay closed: an outage
//! costs disk, not memory.

mod appender;
mod batch;
mod chunk;
mod epochs;
mod export;
mod files;
mod generation;
mod inspect;
mod marks;
mod open;
mod reader;
mod refused;
mod stopped;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use headwater_protocol::{AgentId, Record};
use headwater_service::clock::{Micros, SharedClock};
use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::metrics::{EPOCHS_OPENED, EVENTS_ACKNOWLEDGED};

pub use appender::{AppendError, Appender};
pub use batch::{Batch, Limits};
pub use chunk::{Position, RECORD_BYTES_MAX};
pub use epochs::Stretch;
pub use inspect::{Contents, GenerationView, Inspection, Quarantined, SourceView};
pub use open::OpenError;
pub use reader::ReadError;
pub use refused::{Refused, export_refused};
pub use stopped::{Check, Damage, Stopped, StoppedError};

use epochs::Epochs;
use files::Identity;
use generation::Generation;
use marks::{Marks, MarksFile};

/// A handle on the buffer; clones are the same buffer.
#[derive(Debug, Clone)]
pub struct Buffer {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    agent_id: AgentId,
    clock: SharedClock,
    durable: watch::Sender<Position>,
    state: Mutex<State>,
    /// Held while a generation is opened for reading; never taken under `state`.
    opening: Mutex<()>,
    /// Held while marks are written, so that they reach the disk in order; never taken under `state`.
    marks: Mutex<MarksFile>,
    _lock: fs::File,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    epochs: Epochs,
    acked: Position,
    /// As written to the marks.
    sent: Position,
    /// Every generation on disk by its first position; the last is the one being written.
    generations: BTreeMap<Position, Slot>,
    /// Drained generations that still take their bytes of the disk.
    leaving: BTreeMap<Position, u64>,
    /// Bytes of everything else below the directory, the reserve excepted, when last measured.
    around_bytes: u64,
    /// Bytes of these in `refused/`.
    refused_bytes: u64,
    /// Room for `refused/`, set apart from the bound of the directory.
    refused_bytes_max: u64,
    /// What was durable at open; marks never fall behind it.
    durable_floor: Position,
    /// Damaged events up to here are counted.
    damage_counted: Position,
    /// A generation could not be opened for want of room: the reserve is for that.
    wants_room: bool,
    /// A generation being written that cannot be read; the appender turns to a new one.
    tail_damaged: bool,
    /// Generations that are read in part; once drained they go to `quarantine/`.
    damaged: BTreeSet<Position>,
    /// Why events are refused at present, as of the last maintenance.
    refusal: Option<String>,
}

#[derive(Debug)]
enum Slot {
    Open(Arc<Generation>),
    Closed { disk_bytes: u64 },
}

impl Slot {
    fn disk_bytes(&self) -> u64 {
        match self {
            Self::Open(generation) => generation.disk_bytes(),
            Self::Closed { disk_bytes } => *disk_bytes,
        }
    }
}

/// What the shipper has to know before it opens a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The oldest epoch that still holds events (or the growing one).
    pub stretch: Stretch,
    /// Everything up to here is acknowledged.
    pub acked: Position,
    /// Nothing above this has ever been sent.
    pub sent: Position,
}

impl Buffer {
    /// Returns the highest durable position as a value to wait on.
    pub fn durable(&self) -> watch::Receiver<Position> {
        self.shared.durable.subscribe()
    }

    /// Returns the number of events accepted and not yet acknowledged. Exact.
    pub fn buffered(&self) -> u64 {
        let state = self.shared.state.lock();
        state
            .epochs
            .count(state.acked, *self.shared.durable.borrow())
    }

    /// Returns where shipping stands.
    pub fn head(&self) -> Head {
        let state = self.shared.state.lock();
        Head {
            stretch: state.epochs.head(),
            acked: state.acked,
            sent: state.sent,
        }
    }

    /// Returns the bytes on disk, without the reserve: generations as of their last commit, all else
    /// as last measured.
    pub fn disk_bytes(&self) -> u64 {
        let state = self.shared.state.lock();
        let generations: u64 = state.generations.values().map(Slot::disk_bytes).sum();
        generations + state.leaving.values().sum::<u64>() + state.around_bytes
    }

    /// Measures what lies around the generations, and those that are open: a store also writes on its
    /// own.
    fn measure(&self) {
        let mut state = self.shared.state.lock();
        for slot in state.generations.values() {
            if let Slot::Open(generation) = slot
                && let Err(error) = generation.measure()
            {
                tracing::warn!(%error, "a generation cannot be measured");
            }
        }
        state.around_bytes = files::disk_bytes_around(&self.shared.directory);
        // Somebody may have taken files away.
        state.refused_bytes = files::disk_bytes(&self.shared.directory.join("refused"));
    }

    /// Returns the number of generations on disk.
    pub fn generations(&self) -> usize {
        let state = self.shared.state.lock();
        state.generations.len() + state.leaving.len()
    }

    /// Returns when the oldest unacknowledged event was accepted, if there is one. Reads the disk.
    pub fn oldest_received_at(&self) -> Option<Micros> {
        let head = self.head();
        let limits = Limits {
            events: 1,
            bytes: 0,
        };
        let batch = self.read(head.acked + 1, limits).ok()??;
        // A damaged record has no time; it counts as very old, which is what an operator must see.
        Some(Record::decode(&batch.body).map_or(0, |record| record.received_at))
    }

    /// Starts a new epoch for everything unacknowledged: the collector's watermark does not fit this
    /// buffer (a disk or a table restored from a backup). Nothing is lost; an event that the collector
    /// has under its old number is found again by its message id.
    ///
    /// # Errors
    /// Returns the error of the file; then nothing has a new number. Were it only in memory, a restart
    /// would take the watermark of the old epoch for one of what was sent under the new one.
    pub fn renumber(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let mut epochs = state.epochs.clone();
        epochs.renumber(state.acked, now_ms(&self.shared.clock));
        let acked = epochs.acknowledge(state.acked);
        self.write_epochs(&epochs)?;
        state.epochs = epochs;
        state.acked = acked;
        counter!(EPOCHS_OPENED).increment(1);
        Ok(())
    }

    fn write_epochs(&self, epochs: &Epochs) -> io::Result<()> {
        let identity = Identity::new(self.shared.agent_id.clone(), epochs.clone());
        identity.write(&self.shared.directory)
    }

    /// Writes down what was found on this disk itself.
    fn write_identity(&self, state: &State) {
        if let Err(error) = self.write_epochs(&state.epochs) {
            // Memory is right; after a restart the same finding is made again.
            tracing::error!(%error, "buffer.json cannot be written");
        }
    }

    /// Writes down that everything durable now may be sent. Call it before a batch leaves that ends
    /// above [`Head::sent`]. Blocks on the disk.
    ///
    /// # Errors
    /// Returns the error of the file; the batch must not be sent then.
    pub fn note_sent(&self) -> io::Result<()> {
        let durable = *self.shared.durable.borrow();
        self.write_marks(durable)?;
        let mut state = self.shared.state.lock();
        state.sent = state.sent.max(durable);
        Ok(())
    }

    /// Returns why appends are refused at present, about a second old.
    pub fn refusal(&self) -> Option<String> {
        self.shared.state.lock().refusal.clone()
    }

    /// Writes the marks with the present positions.
    fn write_marks(&self, sent: Position) -> io::Result<()> {
        let mut file = self.shared.marks.lock();
        let marks = {
            let state = self.shared.state.lock();
            Marks {
                acked: state.acked,
                sent: state.sent.max(sent),
                durable: state.durable_floor.max(*self.shared.durable.borrow()),
            }
        };
        file.write(marks)
    }

    /// Takes an ack: everything up to `position` is committed. Deletes drained generations, the one
    /// being written excepted. Blocks on the disk when a generation goes.
    pub fn acknowledge(&self, position: Position) {
        let durable = *self.shared.durable.borrow();
        let drained: Vec<Position> = {
            let mut state = self.shared.state.lock();
            let before = state.acked;
            let position = position.min(durable).max(before);
            counter!(EVENTS_ACKNOWLEDGED).increment(state.epochs.count(before, position));
            state.acked = state.epochs.acknowledge(position);
            let acked = state.acked;
            let starts: Vec<Position> = state.generations.keys().copied().collect();
            let drained = starts.windows(2).take_while(|pair| pair[1] <= acked + 1);
            drained.map(|pair| pair[0]).collect()
        };
        if drained.is_empty() {
            return;
        }
        // First the mark: a generation missing below it is drained, not lost.
        if let Err(error) = self.write_marks(0) {
            return tracing::warn!(%error, "marks cannot be written; drained generations stay until the next ack");
        }
        for start in drained {
            let mut state = self.shared.state.lock();
            if state.damaged.remove(&start) {
                drop(state);
                self.quarantine(start);
            } else if let Some(slot) = state.generations.remove(&start) {
                // Counted until it is gone (D-3).
                state.leaving.insert(start, slot.disk_bytes());
                drop(state);
                drop(slot);
                self.delete_generation(start);
            }
        }
    }

    fn delete_generation(&self, start: Position) {
        let path = generation::directory(&self.generations_directory(), start);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(start, %error, "a drained generation cannot be deleted yet");
            }
            _ => drop(self.shared.state.lock().leaving.remove(&start)),
        }
    }

    /// Deletes what could not be deleted before.
    fn delete_leftovers(&self) {
        let leaving: Vec<Position> = self.shared.state.lock().leaving.keys().copied().collect();
        for start in leaving {
            self.delete_generation(start);
        }
    }

    fn generations_directory(&self) -> PathBuf {
        self.shared.directory.join("generations")
    }
}

fn now_ms(clock: &SharedClock) -> u64 {
    u64::try_from(clock.now() / 1000).unwrap_or(0)
}
