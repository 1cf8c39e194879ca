//! One QUIC stream per batch: bytes in, answer out.
//!
//! Place on the path: between a session and [`crate::intake`]. Promise: every batch whose connection
//! lives gets exactly one answer.

use std::time::Duration;

use headwater_protocol::frame;
use headwater_protocol::{BatchHeader, BatchReply};
use quinn::{Connection, ReadToEndError, RecvStream, SendStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::intake::{BodyCut, Intake, Source};
use crate::metrics as names;
use crate::refusal::Refusal;
use crate::session::read_frame;

/// Longest wait for the peer to take an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// The batch streams of one session.
pub(crate) struct Streams {
    pub(crate) intake: Intake,
    pub(crate) connection: Connection,
    /// End without a word.
    pub(crate) killed: CancellationToken,
}

impl Source for RecvStream {
    async fn header(&mut self) -> Result<BatchHeader, String> {
        read_frame(self).await.map_err(|error| {
            if error.is_malformed() {
                Refusal::HeaderMalformed.count();
            }
            error.to_string()
        })
    }

    async fn body(&mut self, bytes_max: usize) -> Result<Vec<u8>, BodyCut> {
        let read = self.read_to_end(bytes_max).await;
        read.map_err(|error| match error {
            ReadToEndError::TooLong => BodyCut::TooLong,
            ReadToEndError::Read(_) => BodyCut::Lost,
        })
    }
}

impl Streams {
    /// Serves one batch stream to its end.
    pub(crate) async fn serve(&self, send: SendStream, mut recv: RecvStream) {
        let reply = tokio::select! {
            biased;
            reply = self.intake.reply(&mut recv) => Some(reply),
            _ = self.connection.closed() => None,
            () = self.killed.cancelled() => None,
        };
        let outcome = match &reply {
            Some(BatchReply::Ack { .. }) => "ack",
            Some(BatchReply::Retry { .. }) => "retry",
            Some(BatchReply::Refused { reason, cause }) => {
                tracing::warn!(agent_id = %self.intake.agent(), reason, ?cause, "batch refused");
                "refused"
            }
            None => "dropped",
        };
        metrics::counter!(names::BATCHES, "outcome" => outcome).increment(1);
        if let Some(reply) = reply {
            self.answer(send, recv, &reply).await;
        }
    }

    /// Sends the answer. What the agent still sends of the body is read and thrown away, because an
    /// agent may look for the answer only after its last byte.
    async fn answer(&self, mut send: SendStream, mut recv: RecvStream, reply: &BatchReply) {
        let message = frame::encode(reply);
        let sent = async {
            let written = send.write_all(&message).await.is_ok() && send.finish().is_ok();
            // `stopped` resolves when the peer has everything.
            written && send.stopped().await.is_ok()
        };
        let both = async { tokio::join!(sent, discard(&mut recv, self.intake.wire_bytes_max())) };
        if timeout(ANSWER_WAIT, both).await.is_err() {
            Refusal::AnswerTimeout.count();
            let agent_id = self.intake.agent();
            tracing::debug!(%agent_id, "the agent did not take the answer in time");
        }
    }
}

/// Reads and forgets at most `bytes_max` bytes.
async fn discard(recv: &mut RecvStream, mut bytes_max: usize) {
    while let Ok(Some(chunk)) = recv.read_chunk(64 * 1024, false).await {
        let Some(left) = bytes_max.checked_sub(chunk.bytes.len()) else {
            // Already stopped is as good.
            recv.stop(0u8.into()).ok();
            return;
        };
        bytes_max = left;
    }
}
