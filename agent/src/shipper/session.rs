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

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::{BatchReply, Limits as WireLimits, RefusalCause};
use metrics::{counter, gauge, histogram};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Shipper;
use super::error::SessionError;
use super::flight::{Again, Attempt, Flight, Verdict};
use super::link::{self, Link, Welcomed};
use super::reader::{Ahead, Fresh, READ_AGAIN, Reader};
use super::route::backoff;
use super::successor::{Succession, Successor};
use super::wire::{Delivery, ONE, Packed, blocking, deliver, pack, pack_substitute};
use crate::buffer::{Buffer, Limits, Position, Stretch};
use crate::metrics::{ACK_SECONDS, BATCH_REPLIES, BATCHES_IN_FLIGHT, HANDOVERS};
use crate::reload::Live;

/// Longest wait that a Retry can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Most batches in flight, whatever both sides are configured with.
const IN_FLIGHT_MAX: u32 = 4096;

/// Batches that are sent again at once, beside the lowest one.
const REPEATS_MAX: usize = 2;

/// Sendings of a batch without an answer after which the session ends, whatever else is answered.
const UNANSWERED_MAX: u32 = 3;

/// How a session ended without a failure.
#[derive(Debug)]
pub(super) enum End {
    Stopped,
    /// The epoch has ended.
    EpochEnded,
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
    connection: usize,
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
    ahead: mpsc::Receiver<Ahead>,
    reader: JoinHandle<()>,
    acked: Arc<Notify>,
    /// When anything was answered last.
    answered_at: Instant,
    handover_failures: u32,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.reader.abort();
        gauge!(BATCHES_IN_FLIGHT).set(0.0);
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
            prepared: Arc::new(Semaphore::new(config.batches_prepared_max as usize)),
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
            ahead,
            reader: tokio::spawn(reader.run(out)),
            acked,
            answered_at: Instant::now(),
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
        let mut successor = self.successor(Duration::ZERO);
        loop {
            self.send_again();
            self.let_retired_go();
            self.show();
            let now = Instant::now();
            let wakes_at = self.flight.wakes_at(now);
            let retired_until = self.retired.as_ref().map(|retired| retired.until);
            let wants_slot = !self.is_broken && self.flight.due(now).is_some();
            let (connection, repeats) = (self.link.connection.clone(), self.repeats.clone());
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.drain().await,
                Some(done) = self.tasks.join_next() => self.settle(done).await?,
                error = connection.closed(), if !self.is_broken => {
                    if !successor.is_greeting() {
                        return Err(error.into());
                    }
                    debug!("the collector has let the old connection go");
                    self.is_broken = true;
                }
                made = successor.made() => match self.succeed(made)? {
                    Some(end) => return Ok(end),
                    None => successor = self.successor(self.handover_delay()),
                },
                Some(ahead) = self.ahead.recv(), if !self.is_broken => match ahead {
                    Ahead::Fresh(fresh) => self.send(fresh),
                    Ahead::EpochEnded => return Ok(End::EpochEnded),
                    Ahead::Failed(error) => return Err(error),
                },
                _ = repeats.acquire(), if wants_slot => {}
                () = at(wakes_at) => {}
                () = at(retired_until) => {}
            }
        }
    }

    fn successor(&self, delay: Duration) -> Successor {
        Successor::of(self.shipper, &self.live, &self.link, delay)
    }

    fn handover_delay(&self) -> Duration {
        match self.handover_failures {
            0 => Duration::ZERO,
            failures => backoff(failures - 1, 1, &self.live.collector),
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
        let connection = self.link.connection.clone();
        self.start(
            attempt,
            deliver(connection, packed, self.reply_timeout(), slot),
        );
    }

    /// Sends batches again whose wait is over: a few at a time, because each is read from the buffer
    /// once more; the lowest at once, because all others wait for it.
    fn send_again(&mut self) {
        while !self.is_broken && self.link.connection.close_reason().is_none() {
            let Some(again) = self.flight.due(Instant::now()) else {
                return;
            };
            let slot = self.repeats.clone().try_acquire_owned().ok();
            if slot.is_none() && !again.is_lowest {
                return;
            }
            let attempt = self.flight.relaunch(again.first);
            let (buffer, stretch) = (self.buffer().clone(), self.stretch);
            let (connection, bound) = (self.link.connection.clone(), self.reply_timeout());
            let sending = async move {
                match blocking(move || pack_again(&buffer, stretch, again)).await {
                    Ok(Some(packed)) => deliver(connection, packed, bound, slot).await,
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
        let task = self.tasks.spawn(async move { (attempt, sending.await) });
        let sending = Sending {
            task,
            connection: self.link.connection.stable_id(),
            started: Instant::now(),
        };
        self.sendings.insert(attempt, sending);
    }

    /// Acts on what came of one sending.
    async fn settle(
        &mut self,
        done: Result<(Attempt, Delivery), JoinError>,
    ) -> Result<(), SessionError> {
        let (attempt, delivery) = match done {
            Ok(done) => done,
            Err(error) if error.is_cancelled() => return Ok(()),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        let (Some(sending), Some((first, last))) = (
            self.sendings.remove(&attempt),
            self.flight.batch_of(attempt),
        ) else {
            return Ok(());
        };
        let now = Instant::now();
        match delivery {
            Delivery::Answered(reply) => {
                self.answered_at = now;
                self.flight.answered(first);
                self.take(first, last, reply, sending.started).await
            }
            Delivery::Unanswered => self.unanswered(first, &sending),
            Delivery::Nothing => {
                self.flight.wait(first, now + READ_AGAIN);
                Ok(())
            }
            Delivery::Broken(error) => self.broken(first, &sending, error),
            Delivery::Unreadable(error) => Err(error),
        }
    }

    /// One stuck answer costs only its own place, as long as others come. Those behind the lowest
    /// batch wait for it and say nothing by being late.
    fn unanswered(&mut self, first: Position, sending: &Sending) -> Result<(), SessionError> {
        counter!(BATCH_REPLIES, "reply" => "timeout").increment(1);
        let others_are = self.answered_at > sending.started;
        if self.flight.is_lowest(first)
            && (!others_are || self.flight.unanswered(first) >= UNANSWERED_MAX)
        {
            return Err(SessionError::ReplyTimeout(self.reply_timeout()));
        }
        warn!(
            first = self.stretch.sequence(first),
            "a batch is not answered; it is sent again on another stream"
        );
        self.flight.wait(first, Instant::now());
        Ok(())
    }

    fn broken(
        &mut self,
        first: Position,
        sending: &Sending,
        error: SessionError,
    ) -> Result<(), SessionError> {
        let now = Instant::now();
        let connection = &self.link.connection;
        if sending.connection != connection.stable_id() || connection.close_reason().is_some() {
            // Sent again on the next connection, or the session ends with this one.
            self.flight.wait(first, now);
            return Ok(());
        }
        if matches!(error, SessionError::Protocol(_))
            || self.flight.unanswered(first) >= UNANSWERED_MAX
        {
            return Err(error);
        }
        debug!(%error, "a stream broke; its batch is sent again");
        self.flight.wait(first, now + self.retry_min());
        Ok(())
    }

    /// Acts on the answer to the batch `first..=last`.
    async fn take(
        &mut self,
        first: Position,
        last: Position,
        reply: BatchReply,
        started: Instant,
    ) -> Result<(), SessionError> {
        match reply {
            BatchReply::Ack {
                committed_through, ..
            } => {
                counter!(BATCH_REPLIES, "reply" => "ack").increment(1);
                histogram!(ACK_SECONDS).record(started.elapsed());
                let through = self.stretch.position(committed_through);
                if through > self.buffer().head().sent {
                    let what = "an ack covers events that were never sent";
                    return Err(SessionError::Protocol(what));
                }
                let buffer = self.buffer().clone();
                blocking(move || buffer.acknowledge(through)).await;
                self.forget(through);
                if through < last {
                    let rest = first.max(through + 1);
                    self.flight.wait(rest, Instant::now() + self.retry_min());
                }
                Ok(())
            }
            BatchReply::Retry { after_ms, reason } => {
                counter!(BATCH_REPLIES, "reply" => "retry").increment(1);
                debug!(after_ms, reason, "collector asks for a repeat");
                let after =
                    Duration::from_millis(after_ms).clamp(self.retry_min(), RETRY_AFTER_MAX);
                self.flight.wait(first, Instant::now() + after);
                Ok(())
            }
            BatchReply::Refused { reason, cause } => {
                counter!(BATCH_REPLIES, "reply" => "refused").increment(1);
                self.refused(first, reason, cause).await
            }
        }
    }

    /// Forgets what is committed; answers to it are not waited for.
    fn forget(&mut self, through: Position) {
        for attempt in self.flight.acknowledge(through, Instant::now()) {
            if let Some(sending) = self.sendings.remove(&attempt) {
                sending.task.abort();
            }
        }
        self.acked.notify_one();
    }

    async fn refused(
        &mut self,
        first: Position,
        reason: String,
        cause: RefusalCause,
    ) -> Result<(), SessionError> {
        let sequence = self.stretch.sequence(first);
        let refused = |reason| SessionError::BatchRefused {
            first: sequence,
            reason,
        };
        if cause == RefusalCause::Protocol {
            return Err(refused(reason));
        }
        let (buffer, stretch) = (self.buffer().clone(), self.stretch);
        match self.flight.refused(first, Instant::now()) {
            Verdict::Halved => {
                debug!(sequence, reason, "a batch is refused; its halves are sent");
                Ok(())
            }
            Verdict::Later => {
                let due = Instant::now() + self.retry_min();
                self.flight.wait(first, due);
                Ok(())
            }
            Verdict::Alone => {
                let why = reason.clone();
                if blocking(move || keep(&buffer, stretch, first, &why)).await? {
                    error!(
                        sequence,
                        epoch = stretch.epoch,
                        reason,
                        "the collector refuses an event; it is kept in refused/ and quarantined"
                    );
                    self.flight.substitute(first);
                }
                Ok(())
            }
            Verdict::NotTheEvent => {
                let forgotten = blocking(move || buffer.forget_refused(stretch, first)).await;
                if let Err(error) = forgotten {
                    warn!(%error, sequence, "a kept event cannot be removed from refused/");
                }
                Err(refused(reason))
            }
        }
    }

    /// Goes over to the next connection, if there is one.
    fn succeed(&mut self, made: Succession) -> Result<Option<End>, SessionError> {
        let Succession {
            reason,
            live,
            outcome,
        } = made;
        let result = if outcome.is_ok() { "done" } else { "failed" };
        counter!(HANDOVERS, "reason" => reason.as_str(), "result" => result).increment(1);
        let welcomed = match outcome {
            Ok(welcomed) => welcomed,
            Err(error) if self.is_broken || matches!(error, SessionError::Watermark { .. }) => {
                return Err(error);
            }
            Err(error) => {
                let reason = reason.as_str();
                warn!(%error, reason, "no other connection; the one in use stays");
                self.handover_failures += 1;
                return Ok(None);
            }
        };
        self.handover_failures = 0;
        info!(
            reason = reason.as_str(),
            collector = welcomed.link.collector,
            "events go over another connection"
        );
        let fits = welcomed.stretch.epoch == self.stretch.epoch
            && welcomed.limits == self.theirs
            && live.collector == self.live.collector;
        if !fits {
            return Ok(Some(End::Replaced(Box::new(welcomed), live)));
        }
        self.live = live;
        let old = std::mem::replace(&mut self.link, welcomed.link);
        let was_broken = std::mem::replace(&mut self.is_broken, false);
        if !was_broken {
            let drain = Duration::from_millis(self.live.collector.handover_drain_ms);
            self.retired = Some(Retired {
                link: old,
                until: Instant::now() + drain,
            });
        }
        self.forget(welcomed.watermark);
        self.shipper.show_collector(&self.live, Some(&self.link));
        Ok(None)
    }

    /// Closes the connection before this one when nothing is awaited on it any more. What it did not
    /// answer is then sent again on this one.
    fn let_retired_go(&mut self) {
        let Some(retired) = &self.retired else {
            return;
        };
        let connection = retired.link.connection.stable_id();
        let is_awaited = self
            .sendings
            .values()
            .any(|sending| sending.connection == connection);
        if !is_awaited || Instant::now() >= retired.until {
            self.retired = None;
        }
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
    }

    fn reply_timeout(&self) -> Duration {
        Duration::from_millis(self.live.collector.reply_timeout_ms)
    }

    fn retry_min(&self) -> Duration {
        Duration::from_millis(self.live.collector.backoff_min_ms)
    }

    /// Ends the connection so that the collector hears of it.
    pub(super) async fn close(self) {
        let endpoint = self.link.endpoint();
        drop(self);
        link::idle(endpoint).await;
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

/// Keeps the event at `position` in `refused/`; false when it is not there now. Blocks.
fn keep(
    buffer: &Buffer,
    stretch: Stretch,
    position: Position,
    reason: &str,
) -> Result<bool, SessionError> {
    let Some(read) = buffer.read(position, ONE)? else {
        return Ok(false);
    };
    let kept = buffer.keep_refused(stretch, position, &read.body, reason);
    kept.map_err(|source| SessionError::KeepRefused {
        sequence: stretch.sequence(position),
        source,
    })?;
    Ok(true)
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
