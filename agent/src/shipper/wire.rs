//! One batch on one stream: bytes out, answer in.

use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::{BatchHeader, BatchReply, Codec, batch};
use metrics::counter;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::timeout;

use super::channel::Channel;
use super::error::SessionError;
use crate::buffer::{Buffer, Limits, Position, Stretch};
use crate::metrics::{BATCH_BYTES_SENT, BATCHES_SENT, EVENTS_SENT};

/// A batch as it leaves: read, numbered and compressed.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) first: Position,
    pub(super) last: Position,
    header: BatchHeader,
    body: Vec<u8>,
}

/// What came of sending a batch.
#[derive(Debug)]
pub(super) enum Delivery {
    Answered(BatchReply),
    /// Neither an answer nor an error in time.
    Unanswered,
    /// The buffer has nothing to send there now.
    Nothing,
    /// The connection or its stream broke.
    Broken(SessionError),
    /// The buffer cannot be read.
    Unreadable(SessionError),
}

/// Reads and compresses a batch, and writes down that it may be sent. `None` when there is nothing:
/// a generation was set aside, or the epoch was replaced. Blocks.
pub(super) fn pack(
    buffer: &Buffer,
    stretch: Stretch,
    first: Position,
    limits: Limits,
) -> Result<Option<Packed>, SessionError> {
    let Some(read) = buffer.read(first, limits)? else {
        return Ok(None);
    };
    if read.last() > buffer.head().sent {
        buffer.note_sent().map_err(SessionError::Marks)?;
    }
    seal(stretch, first, read.count, &read.body).map(Some)
}

/// As [`pack`], for one event that the collector refuses: what it quarantines stands in its place.
pub(super) fn pack_substitute(
    buffer: &Buffer,
    stretch: Stretch,
    position: Position,
) -> Result<Option<Packed>, SessionError> {
    let Some(read) = buffer.read(position, ONE)? else {
        return Ok(None);
    };
    seal(stretch, position, 1, &batch::substitute(&read.body)).map(Some)
}

/// One event, however large.
pub(super) const ONE: Limits = Limits {
    events: 1,
    bytes: 0,
};

fn seal(
    stretch: Stretch,
    first: Position,
    count: u32,
    records: &[u8],
) -> Result<Packed, SessionError> {
    let header = BatchHeader {
        epoch: stretch.epoch,
        first_sequence: stretch.sequence(first),
        count,
        codec: Codec::Zstd,
        body_bytes: records.len() as u64,
    };
    Ok(Packed {
        first,
        last: first + u64::from(count) - 1,
        header,
        body: batch::compress(records).map_err(SessionError::Compress)?,
    })
}

/// Sends a batch on a stream of its own and waits for the answer, for each at most `bound`. Gives
/// `slot` back when the last byte is handed over.
pub(super) async fn deliver<S>(
    channel: Arc<dyn Channel>,
    packed: Packed,
    bound: Duration,
    slot: S,
) -> Delivery {
    let (count, bytes) = (packed.header.count, packed.body.len() as u64);
    let handed_over = timeout(bound, channel.send(packed.header, packed.body)).await;
    let mut awaited = match handed_over {
        Err(_) => return Delivery::Unanswered,
        Ok(Err(error)) => return Delivery::Broken(error),
        Ok(Ok(awaited)) => awaited,
    };
    drop(slot);
    counter!(BATCHES_SENT).increment(1);
    counter!(EVENTS_SENT).increment(u64::from(count));
    counter!(BATCH_BYTES_SENT).increment(bytes);
    match timeout(bound, awaited.reply()).await {
        Err(_) => Delivery::Unanswered,
        Ok(Err(error)) => Delivery::Broken(error),
        Ok(Ok(reply)) => Delivery::Answered(reply),
    }
}

/// Runs work that waits for the disk on a thread that may block; in place on a runtime of one thread,
/// where nothing else goes on meanwhile and the order of events is that of the program.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .expect("the work does not panic and is never aborted")
}
