//! One session: batches of one epoch go out in order, each on a stream of its own, and their answers
//! come back in any order.
//!
//! ```text
//!   reader ── prepared batches ──▶ session ── a task per batch ──▶ connection
//!                                    │ ▲                              │
//!                     flight (pure) ─┘ └───────── answers ────────────┘
//! ```
//!
//! An ack moves the buffer's low mark. Retry sends the same events again later; so does an answer
//! that does not come, on another stream. A refused batch is halved until the event that nobody takes
//! stands alone: it is kept in `refused/`, and a substitute takes its sequence. The session outlives
//! its connection when a successor is welcomed before the old one goes.
//!
//! Here is what goes out; `answers` acts on what comes back, `handover` goes over to another
//! connection.

mod answers;
mod handover;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::Limits as WireLimits;
use metrics::gauge;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Shipper;
use super::error::SessionError;
use super::flight::{Again, Attempt, Flight};
use super::link::{Link, Welcomed};
use super::reader::{Ahead, Fresh, Reader};
use super::silence::{Retries, Silence};
use super::wire::{Delivery, Packed, blocking, deliver, pack, pack_substitute};
use crate::buffer::{Buffer, Limits, Stretch};
use crate::metrics::{BATCHES_IN_FLIGHT, BATCHES_PREPARED};
use crate::reload::Live;

/// Most batches in flight, whatever both sides are configured with.
const IN_FLIGHT_MAX: u32 = 4096;

/// No connection is closed for its age before this one.
const AGE_MIN: Duration = Duration::from_secs(1);

/// Batches that are sent again at once, beside the lowest one.
const REPEATS_MAX: usize = 2;

/// How a session ended without a failure.
#[derive(Debug)]
pub(super) enum End {
    Stopped,
    /// The epoch has ended.
    EpochEnded,
    /// The connection was closed for its age: the next one is due.
    Aged,
    /// Other settings or limits: what is in flight is sent again on this connection.
    Replaced(Box<Welcomed>, Arc<Live>),
}

/// A connection that another one has replaced: answers are still on their way.
struct Retired {
    link: Link,
    until: Instant,
}

/// A task that sends a batch and waits for its answer.
struct Sending {
    task: AbortHandle,
    channel: usize,
    started: Instant,
}

type Place = Arc<OwnedSemaphorePermit>;

/// An open session.
pub(super) struct Session<'a> {
    shipper: &'a Shipper,
    live: Arc<Live>,
    link: Link,
    /// The connection is gone, and its successor may be welcomed in a moment.
    is_broken: bool,
    retired: Option<Retired>,
    stretch: Stretch,
    theirs: WireLimits,
    flight: Flight<Place>,
    sendings: HashMap<Attempt, Sending>,
    tasks: JoinSet<(Attempt, Delivery)>,
    repeats: Arc<Semaphore>,
    /// Places for new batches in memory; the reader takes them.
    prepared: Arc<Semaphore>,
    ahead: mpsc::Receiver<Ahead>,
    reader: JoinHandle<()>,
    acked: Arc<Notify>,
    /// When anything was answered last.
    answered_at: Instant,
    silence: Silence,
    retries: Retries,
    handover_failures: u32,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.reader.abort();
        gauge!(BATCHES_IN_FLIGHT).set(0.0);
        gauge!(BATCHES_PREPARED).set(0.0);
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(shipper: &'a Shipper, live: Arc<Live>, welcomed: Welcomed) -> Self {
        let Welcomed {
            link,
            stretch,
            watermark,
            limits: theirs,
        } = welcomed;
        let config = &live.collector;
        let in_flight = config
            .batches_in_flight_max
            .min(theirs.batches_in_flight_max);
        let acked = Arc::new(Notify::new());
        let prepared = Arc::new(Semaphore::new(config.batches_prepared_max as usize));
        let reader = Reader {
            buffer: shipper.buffer.clone(),
            durable: shipper.buffer.durable(),
            acked: acked.clone(),
            stretch,
            cursor: watermark + 1,
            limits: Limits {
                events: config.batch_events_max.min(theirs.batch_events_max).max(1),
                bytes: config.batch_bytes_max.min(theirs.batch_bytes_max),
            },
            linger: Duration::from_millis(config.linger_ms),
            in_flight: Arc::new(Semaphore::new(in_flight.clamp(1, IN_FLIGHT_MAX) as usize)),
            prepared: prepared.clone(),
        };
        let (out, ahead) = mpsc::channel(1);
        Self {
            shipper,
            link,
            is_broken: false,
            retired: None,
            stretch,
            theirs,
            flight: Flight::new(),
            sendings: HashMap::new(),
            tasks: JoinSet::new(),
            repeats: Arc::new(Semaphore::new(REPEATS_MAX)),
            prepared,
            ahead,
            reader: tokio::spawn(reader.run(out)),
            acked,
            answered_at: Instant::now(),
            silence: handover::silence(&live),
            retries: Retries::default(),
            handover_failures: 0,
            live,
        }
    }

    fn buffer(&self) -> &Buffer {
        &self.shipper.buffer
    }

    /// Returns which collector of the list the events go to.
    pub(super) fn index(&self) -> usize {
        self.link.index
    }

    /// Ships until the session fails, is replaced, or `stop`; then waits for answers at most
    /// `collector.stop_drain_ms`.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> Result<End, SessionError> {
        let mut successor = self.successor(Duration::ZERO, None);
        loop {
            self.send_again();
            self.let_retired_go();
            self.show();
            let urgent = self.urgent();
            if urgent != successor.urgent() && !successor.is_greeting() {
                successor = self.successor(self.handover_delay(), urgent);
            }
            let now = Instant::now();
            let wakes_at = self.flight.wakes_at(now);
            let retired_until = self.retired.as_ref().map(|retired| retired.until);
            let looks_at = self.looks_at();
            let wants_slot = !self.is_broken && self.flight.due(now).is_some();
            let (channel, repeats) = (self.link.channel.clone(), self.repeats.clone());
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.drain().await,
                Some(done) = self.tasks.join_next() => self.settle(done).await?,
                error = channel.closed(), if !self.is_broken => {
                    if !successor.is_greeting() {
                        return self.ended_by(error);
                    }
                    debug!("the collector has let the old connection go");
                    self.is_broken = true;
                }
                made = successor.made() => match self.succeed(made)? {
                    Some(end) => return Ok(end),
                    None => successor = self.successor(self.handover_delay(), None),
                },
                Some(ahead) = self.ahead.recv(), if !self.is_broken => match ahead {
                    Ahead::Fresh(fresh) => self.send(fresh),
                    Ahead::EpochEnded => return Ok(End::EpochEnded),
                    Ahead::Failed(error) => return Err(error),
                },
                _ = repeats.acquire(), if wants_slot => {}
                () = at(wakes_at) => {}
                () = at(retired_until) => {}
                () = at(looks_at) => self.look(),
            }
        }
    }

    /// A collector that closes a connection for its age has answered what it took, and is there: no failure,
    /// unless it does so again and again.
    fn ended_by(&self, error: SessionError) -> Result<End, SessionError> {
        let is_old = self.link.since.elapsed() >= AGE_MIN;
        match error {
            SessionError::Aged if is_old => Ok(End::Aged),
            error => Err(error),
        }
    }

    /// Sends a new batch.
    fn send(&mut self, fresh: Fresh) {
        let Fresh {
            packed,
            place,
            slot,
        } = fresh;
        let attempt = self
            .flight
            .launch(packed.first, packed.last, Arc::new(place));
        let channel = self.link.channel.clone();
        self.start(
            attempt,
            deliver(channel, packed, self.reply_timeout(), slot),
        );
    }

    /// Sends batches again whose wait is over: a few at a time, because each is read from the buffer
    /// once more; the lowest at once, because all others wait for it.
    fn send_again(&mut self) {
        while !self.is_broken && !self.link.channel.is_closed() {
            let Some(again) = self.flight.due(Instant::now()) else {
                return;
            };
            let slot = self.repeats.clone().try_acquire_owned().ok();
            if slot.is_none() && !again.is_lowest {
                return;
            }
            let attempt = self.flight.relaunch(again.first);
            let (buffer, stretch) = (self.buffer().clone(), self.stretch);
            let (channel, bound) = (self.link.channel.clone(), self.reply_timeout());
            let sending = async move {
                match blocking(move || pack_again(&buffer, stretch, again)).await {
                    Ok(Some(packed)) => deliver(channel, packed, bound, slot).await,
                    Ok(None) => Delivery::Nothing,
                    Err(error) => Delivery::Unreadable(error),
                }
            };
            self.start(attempt, sending);
        }
    }

    fn start(
        &mut self,
        attempt: Attempt,
        sending: impl Future<Output = Delivery> + Send + 'static,
    ) {
        if self.sendings.is_empty() {
            self.silence.end(Instant::now());
        }
        let task = self.tasks.spawn(async move { (attempt, sending.await) });
        let sending = Sending {
            task,
            channel: self.link.channel.id(),
            started: Instant::now(),
        };
        self.sendings.insert(attempt, sending);
    }

    /// Waits for the answers to what is underway, at most `collector.stop_drain_ms`. What is left is
    /// sent again after the next start.
    async fn drain(&mut self) -> Result<End, SessionError> {
        self.reader.abort();
        let until = Instant::now() + Duration::from_millis(self.live.collector.stop_drain_ms);
        while self.flight.underway() > 0 {
            tokio::select! {
                biased;
                Some(done) = self.tasks.join_next() => self.settle(done).await?,
                () = sleep_until(until) => break,
            }
        }
        Ok(End::Stopped)
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    fn show(&self) {
        gauge!(BATCHES_IN_FLIGHT).set(self.flight.len() as f64);
        let places = self.live.collector.batches_prepared_max as usize;
        let taken = places.saturating_sub(self.prepared.available_permits());
        gauge!(BATCHES_PREPARED).set(taken as f64);
    }

    fn reply_timeout(&self) -> Duration {
        Duration::from_millis(self.live.collector.reply_timeout_ms)
    }

    fn retry_min(&self) -> Duration {
        Duration::from_millis(self.live.collector.backoff_min_ms)
    }

    /// Ends the connection so that the collector hears of it.
    pub(super) async fn close(self) {
        let left = self.link.channel.left();
        drop(self);
        left.await;
    }
}

/// Reads a batch again as it was, or its substitute. Blocks.
fn pack_again(
    buffer: &Buffer,
    stretch: Stretch,
    again: Again,
) -> Result<Option<Packed>, SessionError> {
    if again.is_substitute {
        return pack_substitute(buffer, stretch, again.first);
    }
    let limits = Limits {
        events: u32::try_from(again.last + 1 - again.first).unwrap_or(u32::MAX),
        bytes: u64::MAX,
    };
    pack(buffer, stretch, again.first, limits)
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
