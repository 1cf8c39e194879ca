//! One session: Hello, then a stream per batch with several in flight, and their answers.
//!
//! Batches leave in order; answers come in any order. An ack moves the buffer's low mark, a Retry
//! sends the same events again later, anything else ends the session. A batch is read from the buffer
//! again when it has to be repeated, so that memory does not grow with the batches in flight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::frame;
use headwater_protocol::{
    BatchHeader, BatchReply, Codec, Hello, HelloReply, Limits as WireLimits, PROTOCOL_VERSION,
    batch,
};
use metrics::{counter, histogram};
use quinn::{Connection, RecvStream, SendStream};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::{SessionError, Shipper};
use crate::batcher::{self, Decision};
use crate::buffer::{Batch, Buffer, Limits, Position, Stretch};
use crate::config::CollectorConfig;
use crate::metrics::{
    ACK_SECONDS, BATCH_BYTES_SENT, BATCH_REPLIES, BATCHES_SENT, EVENTS_SENT, SESSIONS,
};
use crate::reload::{Live, Settings};

/// Wait before the buffer is asked again after it had nothing where something was expected.
const READ_AGAIN: Duration = Duration::from_millis(50);

/// Longest wait that a Retry can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Most batches in flight, whatever both sides are configured with.
const IN_FLIGHT_MAX: u32 = 4096;

/// An open session.
pub(super) struct Session {
    shared: Arc<Shared>,
    live: Arc<Live>,
    settings: Settings,
    connection: Connection,
    /// Kept open: its end would end the session.
    _hello: (SendStream, RecvStream),
    durable: watch::Receiver<Position>,
    in_flight: Arc<Semaphore>,
    in_flight_max: u32,
    limits: Limits,
    /// First position that has not been sent in this session.
    cursor: Position,
    waiting_since: Option<Instant>,
    resends: mpsc::Receiver<Work>,
    failures: mpsc::Receiver<SessionError>,
}

/// What the tasks that wait for answers share with the sender.
struct Shared {
    buffer: Buffer,
    stretch: Stretch,
    resend: mpsc::Sender<Work>,
    failure: mpsc::Sender<SessionError>,
    acked: Notify,
    reply_timeout: Duration,
    retry_min: Duration,
}

/// Events to send, and the place in flight that they hold until they are acknowledged.
struct Work {
    first: Position,
    /// `None` for new events: as many as fit.
    last: Option<Position>,
    _permit: OwnedSemaphorePermit,
}

enum Step {
    Send(Work),
    /// The epoch is drained or was replaced, or the session is old.
    Renew,
    Stop,
}

impl Session {
    /// Sends Hello, checks the collector's watermark against the buffer and trims.
    pub(super) async fn open(
        shipper: &Shipper,
        live: &Arc<Live>,
        connection: Connection,
    ) -> Result<Self, SessionError> {
        let buffer = shipper.buffer.clone();
        let head = buffer.head();
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_id: shipper.agent_id.clone(),
            epoch: head.stretch.epoch,
            lowest_unacknowledged: head.stretch.sequence(head.acked + 1),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            host: host(),
        };
        let (mut send, mut receive) = connection.open_bi().await?;
        write(&mut send, &frame::encode(&hello)).await?;
        let welcome = match read_frame(&mut receive).await? {
            HelloReply::Welcome(welcome) => welcome,
            HelloReply::Refused { reason } => return Err(SessionError::HelloRefused(reason)),
        };
        let watermark = head.stretch.position(welcome.committed_through);
        // Legitimate watermarks lie between the last ack and the last event sent. Above: another
        // incarnation of this disk used these numbers. Below: the table was set back.
        if watermark > head.sent.max(head.acked) || watermark < head.acked {
            blocking(move || buffer.renumber()).await;
            return Err(SessionError::Watermark {
                watermark: welcome.committed_through,
            });
        }
        let trimmed = buffer.clone();
        blocking(move || trimmed.acknowledge(watermark)).await;
        counter!(SESSIONS).increment(1);
        info!(
            epoch = head.stretch.epoch,
            committed_through = welcome.committed_through,
            collector = %connection.remote_address(),
            "session is open"
        );
        Ok(Self::new(
            shipper,
            live.clone(),
            connection,
            (send, receive),
            head.stretch,
            watermark,
            welcome.limits,
        ))
    }

    fn new(
        shipper: &Shipper,
        live: Arc<Live>,
        connection: Connection,
        hello: (SendStream, RecvStream),
        stretch: Stretch,
        acked: Position,
        theirs: WireLimits,
    ) -> Self {
        let config = &live.collector;
        let in_flight_max = config
            .batches_in_flight_max
            .min(theirs.batches_in_flight_max)
            .clamp(1, IN_FLIGHT_MAX);
        let capacity = in_flight_max as usize;
        let (resend, resends) = mpsc::channel(capacity);
        let (failure, failures) = mpsc::channel(1);
        let limits = Limits {
            events: config.batch_events_max.min(theirs.batch_events_max).max(1),
            bytes: config.batch_bytes_max.min(theirs.batch_bytes_max),
        };
        Self {
            shared: Arc::new(Shared {
                buffer: shipper.buffer.clone(),
                stretch,
                resend,
                failure,
                acked: Notify::new(),
                reply_timeout: Duration::from_millis(config.reply_timeout_ms),
                retry_min: Duration::from_millis(config.backoff_min_ms),
            }),
            durable: shipper.buffer.durable(),
            live,
            settings: shipper.settings.clone(),
            connection,
            _hello: hello,
            in_flight: Arc::new(Semaphore::new(capacity)),
            in_flight_max,
            limits,
            cursor: acked + 1,
            waiting_since: None,
            resends,
            failures,
        }
    }

    /// Returns the address of the collector.
    pub(super) fn collector(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Sends until the session fails, the epoch is drained, the session is too old, or `stop`.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> Result<(), SessionError> {
        let age = tokio::time::sleep(Duration::from_secs(self.live.collector.session_age_max_s));
        tokio::pin!(age);
        loop {
            let connection = self.connection.clone();
            let live = self.live.clone();
            let step = tokio::select! {
                biased;
                Some(error) = self.failures.recv() => return Err(error),
                () = stop.cancelled() => Step::Stop,
                () = &mut age => Step::Renew,
                () = self.settings.until_shipping_differs(&live) => Step::Renew,
                error = connection.closed() => return Err(error.into()),
                Some(work) = self.resends.recv() => Step::Send(work),
                step = next_step(
                    &self.shared, &live.collector, &mut self.durable, &self.in_flight,
                    self.cursor, self.limits, &mut self.waiting_since,
                ) => step,
            };
            match step {
                Step::Send(work) => self.send(work, stop).await?,
                Step::Renew => {
                    debug!("session is renewed");
                    let bound = Duration::from_millis(live.collector.reply_timeout_ms);
                    return self.drain(bound, Some(stop)).await;
                }
                Step::Stop => {
                    let bound = Duration::from_millis(live.collector.stop_drain_ms);
                    return self.drain(bound, None).await;
                }
            }
        }
    }

    /// Waits until nothing is in flight, at most `bound`. What is left is sent again later.
    async fn drain(
        &mut self,
        bound: Duration,
        stop: Option<&CancellationToken>,
    ) -> Result<(), SessionError> {
        let stopped = async {
            match stop {
                Some(stop) => stop.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Answers that ask for a repeat give their place back by being dropped here.
            () = async { while self.resends.recv().await.is_some() {} } => Ok(()),
            all = self.in_flight.acquire_many(self.in_flight_max) => { drop(all); Ok(()) }
            Some(error) = self.failures.recv() => Err(error),
            () = stopped => Ok(()),
            () = tokio::time::sleep(bound) => Ok(()),
        }
    }

    async fn send(&mut self, work: Work, stop: &CancellationToken) -> Result<(), SessionError> {
        let limits = match work.last {
            None => self.limits,
            Some(last) => Limits {
                events: u32::try_from(last + 1 - work.first).unwrap_or(u32::MAX),
                bytes: u64::MAX,
            },
        };
        if work
            .last
            .is_some_and(|last| last <= self.shared.buffer.head().acked)
        {
            return Ok(());
        }
        let first = work.first;
        let shared = self.shared.clone();
        let Some((batch, body)) = blocking(move || prepare(&shared.buffer, first, limits)).await?
        else {
            // A generation was set aside, or the epoch was replaced: the next step sees which.
            tokio::time::sleep(READ_AGAIN).await;
            return Ok(());
        };
        let header = BatchHeader {
            epoch: self.shared.stretch.epoch,
            first_sequence: self.shared.stretch.sequence(batch.first),
            count: batch.count,
            codec: Codec::Zstd,
            body_bytes: batch.body.len() as u64,
        };
        let last = batch.last();
        drop(batch);
        let started = Instant::now();
        let receive = tokio::select! {
            sent = transmit(&self.connection, &header, &body) => sent?,
            Some(error) = self.failures.recv() => return Err(error),
            () = tokio::time::sleep(self.shared.reply_timeout) => {
                return Err(SessionError::ReplyTimeout(self.shared.reply_timeout));
            }
            () = stop.cancelled() => return Ok(()),
        };
        counter!(BATCHES_SENT).increment(1);
        counter!(EVENTS_SENT).increment(u64::from(header.count));
        counter!(BATCH_BYTES_SENT).increment(body.len() as u64);
        if work.last.is_none() {
            self.cursor = last + 1;
            self.waiting_since = None;
        }
        let work = Work {
            last: Some(last),
            ..work
        };
        tokio::spawn(await_reply(self.shared.clone(), receive, work, started));
        Ok(())
    }
}

/// Waits until a batch is due and there is a place in flight for it.
async fn next_step(
    shared: &Shared,
    config: &CollectorConfig,
    durable: &mut watch::Receiver<Position>,
    in_flight: &Arc<Semaphore>,
    cursor: Position,
    limits: Limits,
    waiting_since: &mut Option<Instant>,
) -> Step {
    let linger = Duration::from_millis(config.linger_ms);
    loop {
        let acked = shared.acked.notified();
        let head = shared.buffer.head();
        if head.stretch.epoch != shared.stretch.epoch {
            return Step::Renew;
        }
        let durable_through = *durable.borrow_and_update();
        let end = head
            .stretch
            .through
            .map_or(durable_through, |end| end.min(durable_through));
        let available = (end + 1).saturating_sub(cursor);
        let waited = match (available, &waiting_since) {
            (0, _) => Duration::ZERO,
            (_, Some(since)) => since.elapsed(),
            (_, None) => {
                *waiting_since = Some(Instant::now());
                Duration::ZERO
            }
        };
        let closing = head.stretch.through.is_some();
        match batcher::decide(available, waited, limits.events, linger, closing) {
            Decision::Send => {
                let permit = in_flight
                    .clone()
                    .acquire_owned()
                    .await
                    .expect("never closed");
                return Step::Send(Work {
                    first: cursor,
                    last: None,
                    _permit: permit,
                });
            }
            Decision::Linger(rest) => tokio::select! {
                () = tokio::time::sleep(rest) => {}
                _ = durable.changed() => {}
                () = acked => {}
            },
            Decision::Idle => tokio::select! {
                _ = durable.changed() => {}
                () = acked => {}
            },
        }
    }
}

/// Reads and compresses a batch, and writes down that it may be sent.
fn prepare(
    buffer: &Buffer,
    first: Position,
    limits: Limits,
) -> Result<Option<(Batch, Vec<u8>)>, SessionError> {
    let Some(read) = buffer.read(first, limits)? else {
        return Ok(None);
    };
    if read.last() > buffer.head().sent {
        buffer.note_sent().map_err(SessionError::Marks)?;
    }
    let body = batch::compress(&read.body).map_err(SessionError::Compress)?;
    Ok(Some((read, body)))
}

async fn transmit(
    connection: &Connection,
    header: &BatchHeader,
    body: &[u8],
) -> Result<RecvStream, SessionError> {
    let (mut send, receive) = connection.open_bi().await?;
    write(&mut send, &frame::encode(header)).await?;
    write(&mut send, body).await?;
    send.finish()
        .map_err(|error| SessionError::Stream(error.to_string()))?;
    Ok(receive)
}

/// Waits for the answer to one batch and acts on it. The place in flight is free when this returns
/// without a repeat.
async fn await_reply(shared: Arc<Shared>, mut receive: RecvStream, work: Work, started: Instant) {
    let reply = tokio::time::timeout(shared.reply_timeout, read_frame(&mut receive)).await;
    let outcome = match reply {
        Err(_) => Err(SessionError::ReplyTimeout(shared.reply_timeout)),
        Ok(Err(error)) => Err(error),
        Ok(Ok(reply)) => shared.take_reply(reply, work, started).await,
    };
    if let Err(error) = outcome {
        // The first failure ends the session; those after it say the same.
        drop(shared.failure.try_send(error));
    }
}

impl Shared {
    async fn take_reply(
        &self,
        reply: BatchReply,
        work: Work,
        started: Instant,
    ) -> Result<(), SessionError> {
        let last = work.last.unwrap_or(work.first);
        match reply {
            BatchReply::Ack {
                committed_through, ..
            } => {
                counter!(BATCH_REPLIES, "reply" => "ack").increment(1);
                histogram!(ACK_SECONDS).record(started.elapsed());
                let position = self.stretch.position(committed_through);
                if position > self.buffer.head().sent {
                    return Err(SessionError::Protocol(
                        "an ack covers events that were never sent",
                    ));
                }
                let buffer = self.buffer.clone();
                blocking(move || buffer.acknowledge(position)).await;
                self.acked.notify_one();
                if position < last {
                    self.repeat(work, self.retry_min).await;
                }
                Ok(())
            }
            BatchReply::Retry { after_ms, reason } => {
                counter!(BATCH_REPLIES, "reply" => "retry").increment(1);
                debug!(after_ms, reason, "collector asks for a repeat");
                let after = Duration::from_millis(after_ms).clamp(self.retry_min, RETRY_AFTER_MAX);
                self.repeat(work, after).await;
                Ok(())
            }
            BatchReply::Refused { reason } => {
                counter!(BATCH_REPLIES, "reply" => "refused").increment(1);
                let first = self.stretch.sequence(work.first);
                error!(
                    first,
                    reason, "collector refused a batch; it stays in the buffer"
                );
                Err(SessionError::BatchRefused { first, reason })
            }
        }
    }

    async fn repeat(&self, work: Work, after: Duration) {
        tokio::time::sleep(after).await;
        // Fails only when the session has ended; the next one starts after the last ack.
        drop(self.resend.send(work).await);
    }
}

async fn write(send: &mut SendStream, bytes: &[u8]) -> Result<(), SessionError> {
    send.write_all(bytes)
        .await
        .map_err(|error| SessionError::Stream(error.to_string()))
}

async fn read_frame<T: DeserializeOwned>(receive: &mut RecvStream) -> Result<T, SessionError> {
    let stream = |error: quinn::ReadExactError| SessionError::Stream(error.to_string());
    let mut prefix = [0; 4];
    receive.read_exact(&mut prefix).await.map_err(stream)?;
    let length =
        frame::length(prefix).map_err(|_| SessionError::Protocol("a frame is too long"))?;
    let mut bytes = vec![0; length];
    receive.read_exact(&mut bytes).await.map_err(stream)?;
    frame::decode(&bytes).map_err(|_| SessionError::Protocol("a message cannot be decoded"))
}

/// Runs work that waits for the disk on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("the work does not panic and is never aborted")
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().take(255).collect()
}
