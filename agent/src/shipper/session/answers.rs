//! What comes back for a batch, and what follows from it: forget it, send it again, halve it, or end the
//! session.

use std::time::Duration;

use headwater_protocol::{BatchReply, RefusalCause};
use metrics::{counter, histogram};
use tokio::task::JoinError;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::{Sending, Session};
use crate::buffer::{Buffer, Position, Stretch};
use crate::metrics::{ACK_SECONDS, BATCH_REPLIES};
use crate::shipper::error::SessionError;
use crate::shipper::flight::{Attempt, Verdict};
use crate::shipper::reader::READ_AGAIN;
use crate::shipper::wire::{Delivery, ONE, blocking};

/// Longest wait that a Retry can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// Sendings of a batch without an answer after which the session ends, whatever else is answered.
const UNANSWERED_MAX: u32 = 3;

impl Session<'_> {
    /// Acts on what came of one sending.
    pub(super) async fn settle(
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
                self.silence.end(now);
                if sending.channel == self.link.channel.id() {
                    match reply {
                        BatchReply::Retry { .. } => self.retries.note(now),
                        _ => self.retries.end(),
                    }
                }
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
        let channel = &self.link.channel;
        if sending.channel != channel.id() || channel.is_closed() {
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
    pub(super) fn forget(&mut self, through: Position) {
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
