//! The sequencer: gathers the requests that wait, gives their events positions in one order and
//! answers each of them only after its events are durable (D-1).
//!
//! One thread of its own owns the buffer's [`Appender`]. While it waits for the disk the next group
//! gathers by itself; under load it waits a moment longer, up to `buffer.group_wait_us` or
//! `buffer.group_bytes_max`. The thread also asks the [`Window`] which events it has stored lately: an
//! SDK's retry is answered like the first copy and not stored again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater_protocol::Epoch;
use metrics::{counter, gauge, histogram};
use tokio::sync::oneshot;

use crate::buffer::{AppendError, Appender, Position};
use crate::companies::Place;
use crate::config::BufferConfig;
use crate::metrics::{APPENDS_REFUSED, COMMIT_SECONDS, COMMITS, QUEUE_BYTES, QUEUE_REQUESTS};
use crate::reload::Settings;
use crate::window::{Fingerprint, Window};

const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// What the thread writes to: the buffer's [`Appender`], or what a bench holds against it.
pub trait Append: Send + 'static {
    /// Makes `records` durable, in order. Blocks on the disk.
    ///
    /// # Errors
    /// See [`AppendError`]; none of the records is promised then.
    fn append(&mut self, records: &[&[u8]]) -> Result<(), AppendError>;

    /// Returns the epoch of the next record; another one than before means that records were lost.
    fn epoch(&self) -> Epoch {
        0
    }

    /// Returns the position of the last durable record.
    fn durable(&self) -> Position {
        0
    }

    /// Does what is due about once a second, under the settings as they are now.
    fn maintain(&mut self, _settings: &BufferConfig) {}

    /// Ends it, after the last append.
    fn close(self)
    where
        Self: Sized,
    {
    }
}

impl Append for Appender {
    fn append(&mut self, records: &[&[u8]]) -> Result<(), AppendError> {
        Self::append(self, records)
    }

    fn epoch(&self) -> Epoch {
        Self::epoch(self)
    }

    fn durable(&self) -> Position {
        self.next() - 1
    }

    fn maintain(&mut self, settings: &BufferConfig) {
        self.configure(settings);
        Self::maintain(self);
    }

    fn close(self) {
        Self::close(self);
    }
}

/// One event on its way to the buffer.
#[derive(Debug)]
pub struct Entry {
    /// The encoded record.
    pub record: Vec<u8>,
    /// What a copy of the event would have in common with it; `None` when it must always be stored.
    pub fingerprint: Option<Fingerprint>,
}

/// Places in a request, from 0, of the events that are durable already and were not stored again.
pub type Duplicates = Vec<usize>;

struct Request {
    entries: Vec<Entry>,
    waiting: Waiting,
    /// The company's part of the queue, let go with the request.
    place: Option<Place>,
    answer: oneshot::Sender<Result<Duplicates, AppendError>>,
}

/// What a request counts for in the queue, until it is dropped.
struct Waiting {
    bytes: u64,
    queued_bytes: Arc<AtomicU64>,
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
impl Waiting {
    /// Returns `None` when there would be more than `bound` bytes with it.
    fn begin(bytes: u64, queued_bytes: &Arc<AtomicU64>, bound: u64) -> Option<Self> {
        gauge!(QUEUE_REQUESTS).increment(1.0);
        gauge!(QUEUE_BYTES).increment(bytes as f64);
        let before = queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let waiting = Self {
            bytes,
            queued_bytes: queued_bytes.clone(),
        };
        (before + bytes <= bound).then_some(waiting)
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
impl Drop for Waiting {
    fn drop(&mut self) {
        self.queued_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        gauge!(QUEUE_BYTES).decrement(self.bytes as f64);
        gauge!(QUEUE_REQUESTS).decrement(1.0);
    }
}

/// Takes records to the sequencer's thread; clones share the queue.
#[derive(Debug, Clone)]
pub struct Sequencer {
    queue: SyncSender<Request>,
    queued_bytes: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    settings: Settings,
}

impl Sequencer {
    /// Starts the thread. It ends, with everything answered, after [`Self::stop`] or when the last
    /// clone is dropped.
    ///
    /// # Errors
    /// Fails when the operating system gives no thread.
    pub fn start(
        appender: impl Append,
        window: Option<Window>,
        settings: Settings,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, requests) = sync_channel(settings.now().buffer.queue_requests_max);
        let queued_bytes = Arc::new(AtomicU64::new(0));
        let stopping = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            appender,
            window,
            requests,
            stopping: stopping.clone(),
            settings: settings.clone(),
            busy: false,
        };
        let thread = std::thread::Builder::new()
            .name("sequencer".to_owned())
            .spawn(move || worker.run())?;
        Ok((
            Self {
                queue,
                queued_bytes,
                stopping,
                settings,
            },
            thread,
        ))
    }

    /// Lets the thread end after what waits now, whoever still holds a clone; later appends fail with
    /// [`AppendError::Stopped`].
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // A request without events only wakes the thread; a full queue means that it is awake.
        if let Some(waiting) = Waiting::begin(0, &self.queued_bytes, u64::MAX) {
            drop(self.queue.try_send(Request {
                entries: Vec::new(),
                waiting,
                place: None,
                answer: oneshot::channel().0,
            }));
        }
    }

    /// Appends events as one request; returns when all of them are durable, and which of them were so
    /// before. When the future is dropped the events may or may not become part of the buffer.
    ///
    /// # Errors
    /// See [`AppendError`]; all of them are worth a retry by the client.
    pub async fn append(
        &self,
        entries: Vec<Entry>,
        place: Option<Place>,
    ) -> Result<Duplicates, AppendError> {
        let result = self.enqueue_and_wait(entries, place).await;
        if let Err(error) = &result {
            counter!(APPENDS_REFUSED, "reason" => error.reason()).increment(1);
        }
        result
    }

    async fn enqueue_and_wait(
        &self,
        entries: Vec<Entry>,
        place: Option<Place>,
    ) -> Result<Duplicates, AppendError> {
        if entries.is_empty() {
            return Ok(Duplicates::new());
        }
        let bytes = entries.iter().map(|entry| entry.record.len() as u64).sum();
        let bound = self.settings.now().buffer.queue_bytes_max;
        let waiting =
            Waiting::begin(bytes, &self.queued_bytes, bound).ok_or(AppendError::Overload)?;
        let (answer, answered) = oneshot::channel();
        let request = Request {
            entries,
            waiting,
            place,
            answer,
        };
        self.queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => AppendError::Overload,
            TrySendError::Disconnected(_) => AppendError::Stopped,
        })?;
        answered.await.unwrap_or(Err(AppendError::Stopped))
    }
}

struct Worker<A> {
    appender: A,
    window: Option<Window>,
    requests: Receiver<Request>,
    stopping: Arc<AtomicBool>,
    settings: Settings,
    /// More than one request was waiting last time: a longer wait pays.
    busy: bool,
}

impl<A: Append> Worker<A> {
    fn run(mut self) {
        let mut maintained = Instant::now();
        loop {
            match self.requests.recv_timeout(MAINTENANCE_INTERVAL) {
                Ok(first) => self.commit(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.stopping.load(Ordering::Acquire) {
                self.commit_what_waits();
                break;
            }
            if maintained.elapsed() >= MAINTENANCE_INTERVAL {
                self.appender.maintain(&self.settings.now().buffer);
                if let Some(window) = &mut self.window {
                    window.maintain(self.appender.epoch());
                }
                maintained = Instant::now();
            }
        }
        self.appender.close();
    }

    /// Commits what is in the queue now. What comes later is told that the agent has stopped.
    fn commit_what_waits(&mut self) {
        for _ in 0..self.settings.now().buffer.queue_requests_max {
            match self.requests.try_recv() {
                Ok(first) => self.commit(first),
                Err(_) => break,
            }
        }
    }

    fn commit(&mut self, first: Request) {
        let group = self.gather(first);
        self.busy = group.len() > 1;
        let started = Instant::now();
        let mut records = Vec::new();
        let duplicates: Vec<Duplicates> = group
            .iter()
            .map(|request| admit(&mut self.window, &request.entries, &mut records))
            .collect();
        let result = self.appender.append(&records);
        if let Some(window) = &mut self.window {
            match &result {
                // Only now: an id without its event would lose the event's next copy.
                Ok(()) => window.commit(self.appender.durable()),
                Err(_) => window.abort(),
            }
        }
        counter!(COMMITS).increment(1);
        histogram!(COMMIT_SECONDS).record(started.elapsed());
        for (request, duplicates) in group.into_iter().zip(duplicates) {
            let Request {
                entries,
                waiting,
                place,
                answer,
            } = request;
            drop((waiting, place));
            let result = match &result {
                Err(error) if !self.is_durable(&entries) => Err(error.clone()),
                _ => Ok(duplicates),
            };
            // A client that has gone away hears nothing; its events are kept.
            drop(answer.send(result));
        }
    }

    /// Says whether all of these events were durable before their group.
    fn is_durable(&self, entries: &[Entry]) -> bool {
        self.window.as_ref().is_some_and(|window| {
            entries
                .iter()
                .all(|entry| entry.fingerprint.is_some_and(|id| window.holds(id)))
        })
    }

    fn gather(&self, first: Request) -> Vec<Request> {
        let live = self.settings.now();
        let wait_us = if self.busy {
            live.buffer.group_wait_us
        } else {
            0
        };
        let deadline = Instant::now() + Duration::from_micros(wait_us);
        let mut bytes = first.waiting.bytes;
        let mut group = vec![first];
        while bytes < live.buffer.group_bytes_max {
            let wait = deadline.saturating_duration_since(Instant::now());
            let next = if wait.is_zero() {
                self.requests.try_recv().ok()
            } else {
                self.requests.recv_timeout(wait).ok()
            };
            let Some(request) = next else { break };
            bytes += request.waiting.bytes;
            group.push(request);
        }
        group
    }
}

/// Adds the records that are not stored yet to `records` and returns the places of the others.
fn admit<'a>(
    window: &mut Option<Window>,
    entries: &'a [Entry],
    records: &mut Vec<&'a [u8]>,
) -> Duplicates {
    let mut duplicates = Duplicates::new();
    for (index, entry) in entries.iter().enumerate() {
        let is_new = match (window.as_mut(), entry.fingerprint) {
            (Some(window), Some(id)) => window.admit(id),
            _ => true,
        };
        if is_new {
            records.push(&entry.record);
        } else {
            duplicates.push(index);
        }
    }
    duplicates
}
