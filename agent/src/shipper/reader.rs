//! Prepares new batches ahead of the network: waits until one is due, reads and compresses it.
//!
//! While a batch is being sent, the next ones are made ready, at most `batches_prepared_max` of them
//! in memory. A batch takes its place in flight before it is read, so that nothing is prepared that
//! may not be sent.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::error::SessionError;
use super::wire::{Packed, blocking, pack};
use crate::batcher::{self, Decision};
use crate::buffer::{Buffer, Limits, Position, Stretch};

/// Wait before the buffer is asked again after it had nothing where something was expected.
pub(super) const READ_AGAIN: Duration = Duration::from_millis(50);

/// A new batch, ready to be sent.
pub(super) struct Fresh {
    pub(super) packed: Packed,
    /// Its place in flight, until the ack.
    pub(super) place: OwnedSemaphorePermit,
    /// Its place in memory, until it is sent.
    pub(super) slot: OwnedSemaphorePermit,
}

/// What the reader hands over.
pub(super) enum Ahead {
    Fresh(Fresh),
    /// The epoch is drained or was replaced: another session follows.
    EpochEnded,
    Failed(SessionError),
}

/// Reads from `cursor` on until the epoch ends.
pub(super) struct Reader {
    pub(super) buffer: Buffer,
    pub(super) durable: watch::Receiver<Position>,
    /// Rings when the low mark has moved.
    pub(super) acked: Arc<tokio::sync::Notify>,
    pub(super) stretch: Stretch,
    /// First position that was not handed over.
    pub(super) cursor: Position,
    pub(super) limits: Limits,
    pub(super) linger: Duration,
    pub(super) in_flight: Arc<Semaphore>,
    pub(super) prepared: Arc<Semaphore>,
}

impl Reader {
    pub(super) async fn run(mut self, out: mpsc::Sender<Ahead>) {
        loop {
            let ahead = self.next().await;
            let is_last = !matches!(ahead, Ahead::Fresh(_));
            // Fails when the session has ended.
            if out.send(ahead).await.is_err() || is_last {
                return;
            }
        }
    }

    async fn next(&mut self) -> Ahead {
        loop {
            if !self.until_due().await {
                return Ahead::EpochEnded;
            }
            let (place, slot) = (self.in_flight.clone(), self.prepared.clone());
            let place = place.acquire_owned().await.expect("never closed");
            let slot = slot.acquire_owned().await.expect("never closed");
            let (buffer, stretch, first, limits) =
                (self.buffer.clone(), self.stretch, self.cursor, self.limits);
            match blocking(move || pack(&buffer, stretch, first, limits)).await {
                Err(error) => return Ahead::Failed(error),
                // A generation was set aside, the epoch was replaced, or an ack came first.
                Ok(None) => tokio::time::sleep(READ_AGAIN).await,
                Ok(Some(packed)) => {
                    self.cursor = packed.last + 1;
                    return Ahead::Fresh(Fresh {
                        packed,
                        place,
                        slot,
                    });
                }
            }
        }
    }

    /// Waits until a batch is due; false when the epoch has ended.
    async fn until_due(&mut self) -> bool {
        let mut waiting_since = None;
        loop {
            let acked = self.acked.clone();
            let acked = acked.notified();
            let head = self.buffer.head();
            if head.stretch.epoch != self.stretch.epoch {
                return false;
            }
            // An ack can cover what this session has not sent: the one before it did.
            self.cursor = self.cursor.max(head.acked + 1);
            let durable_through = *self.durable.borrow_and_update();
            let end = head
                .stretch
                .through
                .map_or(durable_through, |end| end.min(durable_through));
            let available = (end + 1).saturating_sub(self.cursor);
            let since = *waiting_since.get_or_insert_with(Instant::now);
            if available == 0 {
                waiting_since = None;
            }
            let closing = head.stretch.through.is_some();
            let events_max = self.limits.events;
            match batcher::decide(available, since.elapsed(), events_max, self.linger, closing) {
                Decision::Send => return true,
                Decision::Linger(rest) => tokio::select! {
                    () = tokio::time::sleep(rest) => {}
                    _ = self.durable.changed() => {}
                    () = acked => {}
                },
                Decision::Idle => tokio::select! {
                    _ = self.durable.changed() => {}
                    () = acked => {}
                },
            }
        }
    }
}
