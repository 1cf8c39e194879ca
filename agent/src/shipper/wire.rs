//! One batch on one stream: bytes out, answer in.

use std::time::Duration;

use headwater_protocol::{BatchHeader, BatchReply, Codec, batch, frame};
use metrics::counter;
use quinn::{Connection, RecvStream, SendStream};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

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
/// `slot` back when the last byte is handed over. Dropping it resets the stream, so that the
/// collector does not take half a batch for a whole one.
pub(super) async fn deliver<S>(
    connection: Connection,
    packed: Packed,
    bound: Duration,
    slot: S,
) -> Delivery {
    let (count, bytes) = (packed.header.count, packed.body.len() as u64);
    let mut stream = match timeout(bound, transmit(&connection, packed)).await {
        Err(_) => return Delivery::Unanswered,
        Ok(Err(error)) => return Delivery::Broken(error),
        Ok(Ok(stream)) => stream,
    };
    drop(slot);
    counter!(BATCHES_SENT).increment(1);
    counter!(EVENTS_SENT).increment(u64::from(count));
    counter!(BATCH_BYTES_SENT).increment(bytes);
    match timeout(bound, read_frame(&mut stream.receive)).await {
        Err(_) => Delivery::Unanswered,
        Ok(Err(error)) => Delivery::Broken(error),
        Ok(Ok(reply)) => {
            stream.is_answered = true;
            Delivery::Answered(reply)
        }
    }
}

struct BatchStream {
    send: SendStream,
    receive: RecvStream,
    is_answered: bool,
}

impl Drop for BatchStream {
    fn drop(&mut self) {
        if !self.is_answered {
            // Fails only when everything has arrived.
            drop(self.send.reset(0_u32.into()));
        }
    }
}

async fn transmit(connection: &Connection, packed: Packed) -> Result<BatchStream, SessionError> {
    let (send, receive) = connection.open_bi().await?;
    let mut stream = BatchStream {
        send,
        receive,
        is_answered: false,
    };
    write(&mut stream.send, &frame::encode(&packed.header)).await?;
    write(&mut stream.send, &packed.body).await?;
    let finished = stream.send.finish();
    finished.map_err(|error| SessionError::Stream(error.to_string()))?;
    Ok(stream)
}

pub(super) async fn write(send: &mut SendStream, bytes: &[u8]) -> Result<(), SessionError> {
    match send.write_all(bytes).await {
        // The collector has answered early; the answer says why.
        Ok(()) | Err(quinn::WriteError::Stopped(_)) => Ok(()),
        Err(error) => Err(SessionError::Stream(error.to_string())),
    }
}

pub(super) async fn read_frame<T: DeserializeOwned>(
    receive: &mut RecvStream,
) -> Result<T, SessionError> {
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
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("the work does not panic and is never aborted")
}
