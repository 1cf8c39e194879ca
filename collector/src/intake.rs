//! One batch: header → admission → body → staging → wait for the commit → answer.
//!
//! Place on the path: between a session's streams and the committer; no socket is known here. Promises: **EO-2** Ack is sent only after
//! the ledger says that the batch's last sequence is committed; every batch whose connection lives
//! gets exactly one answer; a body is read only when there is room for it among the staged bytes, so
//! that QUIC's flow control slows the agent down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::{AgentId, BatchHeader, BatchReply, Epoch, Limits, RefusalCause, Sequence};
use headwater_tables::blocking;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::admission::Span;
use crate::commit::{self, HeadError, StagedBatch};
use crate::engine::Shared;
use crate::ledger::{Admitted, Committed, Entry, Key, Outcome, Turn};
use crate::metrics as names;
use crate::plan::Plan;
use crate::refusal::Refusal;
use crate::room::{Early, Memory, Share};
use crate::staging::{self, BatchOrigin, Rows, StageError};

/// Epochs of one agent that a session may speak of. An agent has one; two while it moves on.
const EPOCHS_MAX: usize = 8;

/// How often an epoch is looked up when other answers of the table contradict the one that was waited for.
/// They come about once in a commit.
const LOOKS_MAX: usize = 5;

/// Room that an event takes at least, in bytes: about what the columns of a row need whose record says
/// next to nothing. Ten thousand slots without a record make as many rows and may be one byte on the wire.
const EVENT_BYTES_MIN: u64 = 512;

/// Where the bytes of one batch come from.
pub trait Source: Send {
    /// Returns the header of the batch, or why it did not come, in one line for the agent.
    fn header(&mut self) -> impl Future<Output = Result<BatchHeader, String>> + Send;

    /// Returns what comes after the header, if it is at most `bytes_max` bytes.
    fn body(&mut self, bytes_max: usize) -> impl Future<Output = Result<Vec<u8>, BodyCut>> + Send;
}

/// Why a body did not come whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyCut {
    /// It is longer than it may be.
    TooLong,
    /// Its sender is gone or has given it up.
    Lost,
}

/// The batches of one session.
pub struct Intake {
    shared: Arc<Shared>,
    agent: AgentId,
    share: Arc<Share>,
    /// What its Welcome speaks of.
    greeted: Option<Entry>,
    epochs: tokio::sync::Mutex<HashMap<Epoch, Entry>>,
}

/// How a batch left admission and staging.
enum Admission {
    /// It is staged or was before: answer when it is committed.
    Wait {
        entry: Entry,
        resets: u64,
        last: Sequence,
    },
    /// Answer now.
    Answer(BatchReply),
}

/// A batch that is read and turned into rows.
struct Prepared {
    rows: Rows,
    /// What they were judged by.
    plan: Arc<Plan>,
    memory: Memory,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake")
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

impl Intake {
    pub(crate) fn new(shared: Arc<Shared>, agent: AgentId) -> Self {
        Self {
            share: shared.room.share(&agent),
            shared,
            agent,
            greeted: None,
            epochs: tokio::sync::Mutex::default(),
        }
    }

    /// Opens the epoch of the agent's Hello and returns what the table says about it now. The error is one
    /// line for the agent's log.
    pub(crate) async fn greet(&mut self, epoch: Epoch) -> Result<(Entry, Committed), String> {
        let (entry, committed) = self.look(epoch).await?;
        self.epochs.get_mut().insert(epoch, entry.clone());
        self.greeted = Some(entry.clone());
        Ok((entry, committed))
    }

    /// Waits until the table turns out to have been set back since the agent was greeted: what it was told
    /// is not so any more. Cancellation safe.
    pub(crate) async fn until_set_back(&self) {
        match &self.greeted {
            Some(entry) => entry.until_set_back().await,
            None => std::future::pending().await,
        }
    }

    /// Returns the ledger entry of `epoch`, with the table's watermark at its first use. The error
    /// is one line for the agent's log.
    async fn epoch(&self, epoch: Epoch) -> Result<Entry, String> {
        let mut epochs = self.epochs.lock().await;
        if let Some(entry) = epochs.get(&epoch) {
            return Ok(entry.clone());
        }
        if epochs.len() >= EPOCHS_MAX {
            Refusal::OverLimit.count();
            return Err(format!("more than {EPOCHS_MAX} epochs in one session"));
        }
        let (entry, _) = self.look(epoch).await?;
        epochs.insert(epoch, entry.clone());
        Ok(entry)
    }

    /// Returns whose batches these are.
    pub(crate) fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// Takes one batch and returns the answer, after its commit where it is taken. When the future is
    /// dropped, the batch may or may not be committed.
    pub async fn reply(&self, source: &mut impl Source) -> BatchReply {
        let admitting = self.shared.admitting.token();
        let admission = tokio::select! {
            biased;
            admission = self.admit(source) => admission,
            () = self.shared.stopping.cancelled() => {
                Ok(Admission::Answer(self.retry("the collector stops")))
            }
        };
        drop(admitting);
        let (entry, resets, last) = match admission {
            Ok(Admission::Answer(reply)) | Err(reply) => return reply,
            Ok(Admission::Wait {
                entry,
                resets,
                last,
            }) => (entry, resets, last),
        };
        let outcome = tokio::select! {
            // First: what is committed is acked, even when the collector ends in the same moment.
            biased;
            outcome = entry.until_committed(last, resets) => outcome,
            () = self.shared.abandoned.cancelled() => Outcome::GivenUp,
        };
        match outcome {
            Outcome::Committed(committed) => {
                debug_assert!(committed.through >= last, "EO-2");
                BatchReply::Ack {
                    committed_through: committed.through,
                    snapshot_id: committed.snapshot_id,
                }
            }
            Outcome::GivenUp => self.retry("the batch was not committed"),
        }
    }

    fn retry(&self, reason: &str) -> BatchReply {
        BatchReply::Retry {
            after_ms: self.shared.config.limits.retry_after_ms,
            reason: reason.to_owned(),
        }
    }

    /// Takes the batch up to its place in the committer's queue.
    async fn admit(&self, source: &mut impl Source) -> Result<Admission, BatchReply> {
        let limits = &self.shared.config.limits;
        let header: BatchHeader = timeout(limits.body_timeout(), source.header())
            .await
            .map_err(|_| {
                Refusal::HeaderTimeout.count();
                self.retry("the header did not come in time")
            })?
            // Its source has counted what was malformed.
            .map_err(|error| protocol(format!("batch header: {error}")))?;
        let span = check(&header, &limits.on_the_wire())?;
        let entry = self
            .epoch(header.epoch)
            .await
            .map_err(|reason| self.retry(&reason))?;
        entry.offer(span.last);
        let resets = entry.resets();
        let wait = Admission::Wait {
            entry: entry.clone(),
            resets,
            last: span.last,
        };
        // An early batch is read and turned into rows while it waits, where there is room.
        let room = room(&header, limits.batch_bytes_max);
        let ahead = match self.reserve_ahead(room) {
            Some((memory, early)) if !entry.is_known(span) => {
                Some((self.prepare(source, &header, memory).await?, early))
            }
            _ => None,
        };
        match self.turn(&entry, header.epoch, span).await {
            Admitted::Duplicate => {
                metrics::counter!(names::EVENTS_DUPLICATE).increment(u64::from(header.count));
                Ok(wait)
            }
            Admitted::Gap { expected } => Ok(Admission::Answer(self.retry(&format!(
                "sequence `{expected}` comes first, not `{}`",
                span.first
            )))),
            Admitted::Turn(turn) => {
                let prepared = match ahead {
                    Some((prepared, early)) => {
                        drop(early);
                        prepared
                    }
                    None => {
                        let memory = self.reserve(room).await?;
                        self.prepare(source, &header, memory).await?
                    }
                };
                self.enqueue(&header, span, turn, prepared).await?;
                Ok(wait)
            }
        }
    }

    /// Waits for the batch's turn. A gap may only mean that another collector was faster, so the
    /// table is asked before it is believed.
    async fn turn(&self, entry: &Entry, epoch: Epoch, span: Span) -> Admitted {
        let _parked = names::Held::new(names::PARKED_BATCHES, 1.0);
        let admitted = entry.turn(span, self.shared.config.limits.park()).await;
        if !matches!(admitted, Admitted::Gap { .. }) {
            return admitted;
        }
        match self.look(epoch).await {
            Ok(_) => entry.turn(span, Duration::ZERO).await,
            Err(_) => admitted,
        }
    }

    /// Reads from the table how far an epoch is committed, tells the ledger, and returns both. The error
    /// is one line for the agent.
    async fn look(&self, epoch: Epoch) -> Result<(Entry, Committed), String> {
        let key = Key::new(&self.agent, epoch)?;
        let ledger = &self.shared.ledger;
        for _ in 0..LOOKS_MAX {
            let asked = ledger.moment();
            let read = commit::committed(&self.shared.catalog, &key).await;
            let committed = read.map_err(|error| not_read(&error))?;
            if let Some(entry) = ledger.open(&key, committed, asked) {
                return Ok((entry, committed));
            }
        }
        Err("the table changes while it is read; come again".to_owned())
    }

    /// Reads how far an epoch has come in `raw.quarantine`, which is ahead of `raw.events` after a crash
    /// between the two commits. The error is one line for the agent.
    pub(crate) async fn quarantined(&self, epoch: Epoch) -> Result<Sequence, String> {
        let key = Key::new(&self.agent, epoch)?;
        let read = commit::quarantined_through(&self.shared.catalog, &key).await;
        read.map_err(|error| not_read(&error))
    }

    /// Reads the body and turns it into rows.
    async fn prepare(
        &self,
        source: &mut impl Source,
        header: &BatchHeader,
        memory: Memory,
    ) -> Result<Prepared, BatchReply> {
        let body = self.body(source, header).await?;
        metrics::counter!(names::RECEIVED_BYTES).increment(body.len() as u64);
        let plan = self.shared.plan.now();
        let judging = Arc::clone(&plan);
        let (rows, memory) = self.rows(header, body, judging, memory).await?;
        Ok(Prepared { rows, plan, memory })
    }

    /// Puts the batch whose turn it is into the committer's queue.
    async fn enqueue(
        &self,
        header: &BatchHeader,
        span: Span,
        turn: Turn,
        prepared: Prepared,
    ) -> Result<(), BatchReply> {
        let key = Key::new(&self.agent, header.epoch).map_err(misspoken)?;
        let queue = self.shared.queue.reserve().await;
        let queue = queue.map_err(|_| self.retry("the collector stops"))?;
        // The committer leaves out what comes before the position, as it does after a lost race.
        let from = turn.next_sequence().max(span.first);
        let batch = StagedBatch {
            key,
            span,
            rows: prepared.rows,
            plan: prepared.plan,
            staged_at: Instant::now(),
            memory: prepared.memory,
        };
        if turn.stage(span, || queue.send(batch)) {
            metrics::counter!(names::EVENTS_STAGED).increment((span.last + 1).saturating_sub(from));
            metrics::counter!(names::EVENTS_DUPLICATE).increment(from - span.first);
            Ok(())
        } else {
            Err(self.retry("a batch before this one was given up"))
        }
    }

    /// Takes room for a batch whose turn has not come, if there is some now.
    fn reserve_ahead(&self, bytes: u64) -> Option<(Memory, Early)> {
        let bytes = u32::try_from(bytes).ok()?;
        self.shared.room.take_ahead(&self.share, bytes)
    }

    /// Waits for room among the staged bytes; meanwhile nothing is read from the agent.
    async fn reserve(&self, bytes: u64) -> Result<Memory, BatchReply> {
        let bytes = u32::try_from(bytes)
            .map_err(|_| refused(Refusal::OverLimit, "body too long".to_owned()))?;
        let memory = self.shared.room.take(&self.share, bytes).await;
        memory.map_err(|_| self.retry("the collector stops"))
    }

    /// Returns the most bytes that the body of any batch may have on the wire.
    pub(crate) fn wire_bytes_max(&self) -> usize {
        body_bytes_max(u64::from(self.shared.config.limits.batch_bytes_max))
    }

    async fn body(
        &self,
        source: &mut impl Source,
        header: &BatchHeader,
    ) -> Result<Vec<u8>, BatchReply> {
        let bytes_max = body_bytes_max(header.body_bytes);
        let bound = self.shared.config.limits.body_timeout();
        match timeout(bound, source.body(bytes_max)).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(BodyCut::TooLong)) => Err(refused(
                Refusal::BodyTooLong,
                format!("compressed body is longer than `{bytes_max}` bytes"),
            )),
            Ok(Err(BodyCut::Lost)) => Err(self.retry("the body was cut off")),
            Err(_) => {
                Refusal::BodyTimeout.count();
                Err(self.retry("the body did not come in time"))
            }
        }
    }

    /// Turns the body into rows on a blocking thread, at most one per core. The thread has the core and
    /// the `memory`, and works on when this future ends before it, with its connection.
    async fn rows(
        &self,
        header: &BatchHeader,
        body: Vec<u8>,
        plan: Arc<Plan>,
        memory: Memory,
    ) -> Result<(Rows, Memory), BatchReply> {
        let started = Instant::now();
        let core = Arc::clone(&self.shared.cores).acquire_owned().await;
        let origin = BatchOrigin::new(
            self.agent.clone(),
            header.epoch,
            header,
            self.shared.clock.now(),
        )
        .kept_for_days(self.shared.config.quarantine.retention_days);
        let header = header.clone();
        let work = move || {
            let rows = staging::stage(&origin, &header, &body, &plan);
            drop(core);
            (rows, memory)
        };
        let staged = blocking(work).await;
        metrics::histogram!(names::STAGE_SECONDS).record(started.elapsed().as_secs_f64());
        match staged {
            Ok((Ok(rows), memory)) => Ok((rows, memory)),
            Ok((Err(StageError::Body(error)), _)) => {
                Err(refused(Refusal::BodyMalformed, error.to_string()))
            }
            // Staging depends on the events alone: it would end in the same way again, for ever.
            Ok((Err(error), _)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "batch not staged");
                let reason = "the events cannot be turned into rows";
                Err(refused(Refusal::Rows, reason.to_owned()))
            }
            Err(error) => {
                tracing::error!(%error, "staging died");
                let reason = "staging died of the events";
                Err(refused(Refusal::Rows, reason.to_owned()))
            }
        }
    }
}

/// The answer to events that cannot be taken; smaller batches may be.
fn refused(why: Refusal, reason: String) -> BatchReply {
    why.count();
    BatchReply::Refused {
        reason,
        cause: RefusalCause::Events,
    }
}

/// The answer to a header that no batch should have.
fn misspoken(reason: String) -> BatchReply {
    Refusal::HeaderRejected.count();
    protocol(reason)
}

fn protocol(reason: String) -> BatchReply {
    BatchReply::Refused {
        reason,
        cause: RefusalCause::Protocol,
    }
}

/// Returns the room that a batch takes until it is committed: never more than the largest batch, which
/// always fits.
fn room(header: &BatchHeader, batch_bytes_max: u32) -> u64 {
    let rows = u64::from(header.count) * EVENT_BYTES_MIN;
    header.body_bytes.max(rows.min(batch_bytes_max.into()))
}

/// Room for zstd's worst case.
fn body_bytes_max(uncompressed: u64) -> usize {
    usize::try_from(uncompressed + uncompressed / 128 + 512).unwrap_or(usize::MAX)
}

/// Checks a header against the protocol and the limits.
fn check(header: &BatchHeader, limits: &Limits) -> Result<Span, BatchReply> {
    let last = header
        .first_sequence
        .checked_add(u64::from(header.count))
        .map(|end| end.saturating_sub(1))
        .filter(|last| i64::try_from(*last).is_ok());
    let Some(last) = last else {
        let reason = "the last sequence does not fit the tables";
        return Err(misspoken(reason.to_owned()));
    };
    if i64::try_from(header.epoch).is_err() {
        Err(misspoken("the epoch does not fit the tables".to_owned()))
    } else if header.first_sequence == 0 {
        Err(misspoken("sequences begin at `1`".to_owned()))
    } else if header.count == 0 {
        Err(misspoken("a batch holds at least `1` event".to_owned()))
    } else if header.count > limits.batch_events_max {
        let (count, max) = (header.count, limits.batch_events_max);
        let reason = format!("`{count}` events are above the limit of `{max}`");
        Err(refused(Refusal::OverLimit, reason))
    } else if header.body_bytes > limits.batch_bytes_max {
        let (bytes, max) = (header.body_bytes, limits.batch_bytes_max);
        let reason = format!("body of `{bytes}` bytes is above the limit of `{max}`");
        Err(refused(Refusal::OverLimit, reason))
    } else {
        Ok(Span {
            first: header.first_sequence,
            last,
        })
    }
}

/// Returns what the agent is told of a watermark that cannot be read.
fn not_read(error: &HeadError) -> String {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "watermark not read"
    );
    "the catalog cannot be read now".to_owned()
}

/// Bounds how many bodies are turned into rows at once.
pub(crate) fn cores() -> Arc<Semaphore> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(cores))
}

#[cfg(test)]
mod tests {
    use super::*;
    use headwater_protocol::Codec;

    #[test]
    fn a_batch_takes_room_for_its_rows_however_short_its_body_is() {
        let room = |count, body_bytes| {
            let header = BatchHeader {
                epoch: 1,
                first_sequence: 1,
                count,
                codec: Codec::Zstd,
                body_bytes,
            };
            room(&header, 1 << 20)
        };
        assert_eq!(room(1, 900), 900);
        assert_eq!(room(1000, 700_000), 700_000);
        assert_eq!(room(1000, 1), 512_000);
        // The largest batch.
        assert_eq!(room(10_000, 1), 1 << 20);
        assert_eq!(room(u32::MAX, 1 << 20), 1 << 20);
    }

    #[test]
    fn headers_beyond_the_limits_are_refused() {
        let limits = Limits {
            batch_bytes_max: 100,
            batch_events_max: 10,
            batches_in_flight_max: 1,
        };
        let header = |first_sequence, count, body_bytes| BatchHeader {
            epoch: 1,
            first_sequence,
            count,
            codec: Codec::Zstd,
            body_bytes,
        };
        let span = |first_sequence, count, body_bytes| {
            let header = header(first_sequence, count, body_bytes);
            check(&header, &limits).ok().map(|it| (it.first, it.last))
        };
        assert_eq!(span(1, 10, 100), Some((1, 10)));
        assert!(
            check(
                &BatchHeader {
                    epoch: u64::MAX,
                    ..header(1, 1, 1)
                },
                &limits
            )
            .is_err()
        );
        assert_eq!(span(0, 1, 1), None);
        assert_eq!(span(1, 0, 1), None);
        assert_eq!(span(1, 11, 1), None);
        assert_eq!(span(1, 1, 101), None);
        assert_eq!(span(i64::MAX as u64, 2, 1), None);
        assert_eq!(span(u64::MAX, 2, 1), None);
    }
}
