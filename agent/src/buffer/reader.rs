//! Reading the buffer, and what happens when a part of it cannot be read: it is written off, set
//! aside and counted, and reading goes on behind it (D-4).

use std::fs;
use std::sync::Arc;

use metrics::counter;

use super::batch::{Batch, Limits};
use super::chunk::Position;
use super::files;
use super::generation::{self, Generation, StoreError};
use super::{Buffer, Slot, now_ms};
use crate::metrics::{EPOCHS_OPENED, EVENTS_LOST, GENERATIONS_QUARANTINED};

/// Why events cannot be read now. Worth a retry after a moment.
#[derive(Debug, thiserror::Error)]
#[error("buffer cannot be read at position `{position}`: {message}")]
pub struct ReadError {
    /// First position wanted.
    pub position: Position,
    /// What failed.
    pub message: String,
}

impl Buffer {
    /// Reads durable events from `from` on, all of one epoch; `None` when there are none. Blocks on
    /// the disk. Opens the generation if needed; one that cannot be opened is set aside, and what
    /// cannot be read is written off, which shows as a changed `Head`.
    ///
    /// # Errors
    /// [`ReadError`] when the store fails; the next read works on a fresh one.
    pub fn read(&self, from: Position, limits: Limits) -> Result<Option<Batch>, ReadError> {
        let mut batch = Batch::starting(from);
        loop {
            let durable = *self.shared.durable.borrow();
            let Some((generation, end)) = self.generation_at(batch.next(), durable)? else {
                break;
            };
            let outcome = generation.read(&mut batch, end, limits);
            let complete = match outcome {
                Ok(complete) => complete,
                Err(error) if error.is_transient() => {
                    // A store that met a full disk fails for ever; what it holds is whole.
                    self.give_up(&generation);
                    return Err(read_error(batch.next(), &error));
                }
                Err(error) => {
                    self.write_off_damaged(&generation, batch.next(), &error);
                    return Err(read_error(batch.next(), &error));
                }
            };
            if !complete || batch.count >= limits.events || batch.body.len() as u64 >= limits.bytes
            {
                break;
            }
            if batch.next() <= end {
                // The generation ends before its successor begins. What was read goes first.
                if batch.count > 0 {
                    break;
                }
                let error = StoreError::Incomplete {
                    position: batch.next(),
                };
                self.write_off_damaged(&generation, batch.next(), &error);
                return Err(read_error(batch.next(), &error));
            }
        }
        self.count_damage(&batch);
        Ok((batch.count > 0).then_some(batch))
    }

    /// Returns the open generation that holds `position` and the last position to read in it.
    fn generation_at(
        &self,
        position: Position,
        durable: Position,
    ) -> Result<Option<(Arc<Generation>, Position)>, ReadError> {
        let state = self.shared.state.lock();
        let head = state.epochs.head();
        let end = head.through.unwrap_or(durable).min(durable);
        // What is acknowledged may be deleted already: it is not lost.
        if position > end || position <= head.after || position <= state.acked {
            return Ok(None);
        }
        let Some(start) = state
            .generations
            .range(..=position)
            .next_back()
            .map(|entry| *entry.0)
        else {
            let first = state.generations.keys().next().copied();
            drop(state);
            if let Some(first) = first {
                self.lose(position, first - 1);
            }
            return Ok(None);
        };
        let successor = state
            .generations
            .range(position + 1..)
            .next()
            .map(|entry| *entry.0);
        let end = successor.map_or(end, |successor| end.min(successor - 1));
        if let Some(Slot::Open(generation)) = state.generations.get(&start) {
            return Ok(Some((generation.clone(), end)));
        }
        drop(state);
        match self.open_generation(start) {
            Ok(generation) => Ok(generation.map(|generation| (generation, end))),
            Err(error) if error.is_transient() => Err(read_error(position, &error)),
            Err(error) => {
                tracing::error!(start, %error, "a generation cannot be opened");
                let last = successor.map_or(durable, |successor| successor - 1);
                self.quarantine(start);
                self.lose(position, last);
                Ok(None)
            }
        }
    }

    /// Opens a closed generation, which may take a while: appends and acks go on meanwhile. `None`
    /// when it has been drained since.
    fn open_generation(&self, start: Position) -> Result<Option<Arc<Generation>>, StoreError> {
        let _one_at_a_time = self.shared.opening.lock();
        match self.shared.state.lock().generations.get(&start) {
            Some(Slot::Open(generation)) => return Ok(Some(generation.clone())),
            Some(Slot::Closed { .. }) => {}
            None => return Ok(None),
        }
        let opened = Generation::open(&self.generations_directory(), start);
        let mut state = self.shared.state.lock();
        state.wants_room |= opened.as_ref().is_err_and(StoreError::is_disk_full);
        let Some(slot) = state.generations.get_mut(&start) else {
            return Ok(None);
        };
        let generation = Arc::new(opened?);
        *slot = Slot::Open(generation.clone());
        Ok(Some(generation))
    }

    /// Counts the damaged events of a batch, each once however often it is read.
    fn count_damage(&self, batch: &Batch) {
        let (Some(first), Some(last)) = (batch.damaged.first(), batch.damaged.last()) else {
            return;
        };
        let mut state = self.shared.state.lock();
        let counted = state.damage_counted;
        let new = batch.damaged.iter().filter(|position| **position > counted);
        let new = new.count() as u64;
        state.damage_counted = counted.max(*last);
        for position in &batch.damaged {
            let holder = state.generations.range(..=position).next_back();
            if let Some(start) = holder.map(|entry| *entry.0) {
                state.damaged.insert(start);
            }
        }
        drop(state);
        if new > 0 {
            counter!(EVENTS_LOST).increment(new);
            tracing::error!(first, last, lost = new, "events in the buffer are damaged");
        }
    }

    /// Closes a generation whose store is dead, so that the next read opens it afresh. The one being
    /// written is first left by the appender.
    fn give_up(&self, generation: &Arc<Generation>) {
        let mut state = self.shared.state.lock();
        let newest = state.generations.keys().next_back().copied();
        if newest == Some(generation.start()) {
            state.tail_damaged = true;
        } else if let Some(slot) = state.generations.get_mut(&generation.start()) {
            *slot = Slot::Closed {
                disk_bytes: slot.disk_bytes(),
            };
        }
    }

    /// Writes off what cannot be read of a generation. What lies before may be in flight and is read
    /// again after a failed session, so the generation stays until it is drained. The one being
    /// written is first left by the appender.
    fn write_off_damaged(
        &self,
        generation: &Arc<Generation>,
        position: Position,
        error: &StoreError,
    ) {
        let start = generation.start();
        let mut state = self.shared.state.lock();
        let successor = state.generations.range(start + 1..).next();
        let Some(successor) = successor.map(|entry| *entry.0) else {
            state.tail_damaged = true;
            return;
        };
        state.damaged.insert(start);
        drop(state);
        tracing::error!(start, %error, "a generation cannot be read to its end");
        self.lose(position, successor - 1);
    }

    /// Moves a generation to `quarantine/`.
    pub(super) fn quarantine(&self, start: Position) {
        let from = generation::directory(&self.generations_directory(), start);
        let quarantine = self.shared.directory.join("quarantine");
        // Moved under the lock, so that it is counted at every moment (D-3). Rare, so it may take long.
        let mut state = self.shared.state.lock();
        state.generations.remove(&start);
        let moved = (0..)
            .map(|number| quarantine.join(format!("{start:020}-{number}")))
            .find(|path| !path.exists())
            .map_or(Ok(()), |to| {
                fs::rename(&from, to)?;
                files::sync_directory(&quarantine)?;
                files::sync_parent(&from)
            });
        state.around_bytes = files::disk_bytes_around(&self.shared.directory);
        drop(state);
        counter!(GENERATIONS_QUARANTINED).increment(1);
        match moved {
            Err(error) => {
                tracing::error!(start, %error, "a damaged generation cannot be moved to quarantine/");
            }
            Ok(()) => tracing::error!(start, "a damaged generation is set aside in quarantine/"),
        }
    }

    /// Writes the positions `first..=last` off and lets what follows start a new epoch.
    pub(super) fn lose(&self, first: Position, last: Position) {
        let mut state = self.shared.state.lock();
        let durable = state.durable_floor.max(*self.shared.durable.borrow());
        let held = last.min(durable.max(state.sent));
        let lost = state.epochs.count(first - 1, held);
        state.epochs.lose(first, last, now_ms(&self.shared.clock));
        let acked = state.acked;
        state.acked = state.epochs.acknowledge(acked);
        counter!(EVENTS_LOST).increment(lost);
        counter!(EPOCHS_OPENED).increment(1);
        tracing::error!(
            first,
            last,
            lost,
            "positions are lost; what follows starts a new epoch"
        );
        self.write_identity(&state);
    }
}

fn read_error(position: Position, error: &StoreError) -> ReadError {
    ReadError {
        position,
        message: error.to_string(),
    }
}
