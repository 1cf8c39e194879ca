//! Taking the buffer up for writing: what was drained before the stop is deleted, what has vanished is
//! written off, and the newest generation is opened and repaired, or left for another.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::super::chunk::{Packer, Position};
use super::super::files::Reserve;
use super::super::generation::{Generation, StoreError};
use super::super::marks::Marks;
use super::super::{Buffer, OpenError, Slot};
use super::Appender;
use crate::config::BufferConfig;

impl Appender {
    pub(in super::super) fn open(
        buffer: Buffer,
        config: &BufferConfig,
        marks: Marks,
    ) -> Result<Self, OpenError> {
        let directory = config.directory.clone();
        let failed = |source| OpenError::Io {
            directory: config.directory.clone(),
            source,
        };
        let durable_mark = buffer.shared.marks.lock().durable_mark();
        let mut appender = Self {
            durable_mark: durable_mark.map_err(failed)?,
            unattached_floor: None,
            packer: Packer::new().map_err(failed)?,
            reserve: Reserve::open(&directory, config.reserve_bytes),
            config: config.clone(),
            tail: None,
            tail_start: 0,
            tail_bytes: 0,
            next: 0,
            disk_low: false,
            refused_bytes: 0,
            marks_written: (0, 0),
            buffer,
        };
        appender.drop_drained_and_missing(marks);
        let floor = marks.durable.max(marks.sent).max(marks.acked);
        let opened = appender.attach(floor).or_else(|error| {
            if error.is_disk_full() {
                appender.reserve.release();
                return appender.attach(floor);
            }
            Err(error)
        });
        match opened {
            Err(error) if error.is_disk_full() => appender.wait_for_room(floor, &error),
            opened => opened.map_err(|error| OpenError::Store {
                directory: directory.clone(),
                message: error.to_string(),
            })?,
        }
        {
            let mut state = appender.buffer.shared.state.lock();
            let acked = state.acked;
            state.acked = state.epochs.acknowledge(acked);
            appender.buffer.write_identity(&state);
        }
        appender.buffer.write_marks(0).map_err(failed)?;
        appender.watch_disk();
        let head = appender.buffer.head();
        info!(
            epoch = head.stretch.epoch,
            events = appender.buffer.buffered(),
            generations = appender.buffer.generations(),
            "buffer is open"
        );
        Ok(appender)
    }

    /// Lets the agent start although the newest generation cannot be opened: what lies before it
    /// ships, and events are taken when there is room ([`Self::recover`]).
    fn wait_for_room(&mut self, floor: Position, error: &StoreError) {
        warn!(%error, "disk is full; the newest generation is opened when there is room");
        let newest = {
            let state = self.buffer.shared.state.lock();
            state.generations.keys().next_back().copied()
        };
        let before = newest.map_or(floor, |start| start - 1);
        self.buffer.shared.durable.send_replace(before);
        self.next = floor + 1;
        self.unattached_floor = Some(floor);
        self.disk_low = true;
    }

    /// Deletes what was acknowledged before the last stop and writes off what has vanished.
    fn drop_drained_and_missing(&mut self, marks: Marks) {
        let (drained, first) = {
            let mut state = self.buffer.shared.state.lock();
            let starts: Vec<Position> = state.generations.keys().copied().collect();
            let drained: Vec<Position> = starts
                .windows(2)
                .take_while(|pair| pair[1] <= marks.acked + 1)
                .map(|pair| pair[0])
                .collect();
            for start in &drained {
                if let Some(slot) = state.generations.remove(start) {
                    state.leaving.insert(*start, slot.disk_bytes());
                }
            }
            (drained, state.generations.keys().next().copied())
        };
        for start in drained {
            self.buffer.delete_generation(start);
        }
        if let Some(first) = first.filter(|first| *first > marks.acked + 1) {
            self.buffer.lose(marks.acked + 1, first - 1);
        }
    }

    /// Opens the newest generation for writing, or begins one, so that no position up to `floor` is
    /// used again. What is missing up to `floor` is lost.
    pub(super) fn attach(&mut self, floor: Position) -> Result<(), StoreError> {
        let newest = {
            let state = self.buffer.shared.state.lock();
            state.generations.keys().next_back().copied()
        };
        let mut last = None;
        if let Some(start) = newest {
            match self.attach_to(start) {
                Ok(through) => last = Some(through),
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    error!(start, %error, "the newest generation cannot be opened");
                    self.buffer.quarantine(start);
                    let acked = self.buffer.head().acked;
                    last = Some((start - 1).max(acked));
                    self.tail = None;
                    // Its end is unknown: keep clear of every position it may have held.
                    let floor = floor.max(start);
                    return self.begin_after(last, floor);
                }
            }
        }
        self.begin_after(last, floor)
    }

    fn attach_to(&mut self, start: Position) -> Result<Position, StoreError> {
        let generation = Arc::new(Generation::open(
            &self.buffer.generations_directory(),
            start,
        )?);
        let through = generation.repair()?;
        self.tail_bytes = generation.disk_bytes() / 2;
        self.tail_start = start;
        self.tail = Some(generation.clone());
        self.buffer
            .shared
            .state
            .lock()
            .generations
            .insert(start, Slot::Open(generation));
        Ok(through)
    }

    fn begin_after(&mut self, last: Option<Position>, floor: Position) -> Result<(), StoreError> {
        let last = last.unwrap_or_else(|| self.buffer.head().acked);
        self.next = last.max(floor) + 1;
        self.buffer.shared.durable.send_replace(self.next - 1);
        if last < floor {
            self.buffer.lose(last + 1, floor);
            if self.tail.take().is_some() {
                let mut state = self.buffer.shared.state.lock();
                state.damaged.insert(self.tail_start);
            }
        }
        if self.tail.is_none() {
            self.rotate()?;
        }
        Ok(())
    }
}
