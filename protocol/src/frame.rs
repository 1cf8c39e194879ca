//! Messages of a session, and the frame around them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::id::{AgentId, Epoch, Sequence};

/// Longest message in a frame, in bytes. Bodies of batches are not framed.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Deepest nesting of a message or a record: twice what they have. The decoder calls itself at each level,
/// and what is deeper would overflow the stack.
pub(crate) const VALUE_DEPTH_MAX: usize = 16;

/// First message of a session, agent → collector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the agent.
    pub protocol_version: u16,
    /// Must be the common name of the agent's certificate.
    pub agent_id: AgentId,
    /// Incarnation of the agent's buffer.
    pub epoch: Epoch,
    /// Lowest sequence that the agent still holds; all before it are committed.
    pub lowest_unacknowledged: Sequence,
    /// Version of the agent's program.
    pub build: String,
    /// Host the agent runs on.
    pub host: String,
}

/// Answer to [`Hello`], collector → agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    /// The session is open.
    Welcome(Welcome),
    /// The collector does not serve this agent; it may try again after a back-off.
    Refused {
        /// One line for the agent's log.
        reason: String,
    },
}

/// What the collector knows and allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Everything up to this sequence of the epoch is committed; 0 when nothing is. If it is ahead of
    /// the agent's own last sequence (a disk restored from a backup), the agent opens a new epoch.
    pub committed_through: Sequence,
    /// Bounds that the agent keeps to.
    pub limits: Limits,
    /// The highest sequence of the epoch that the collector knows of, where that is above
    /// `committed_through`: quarantined before a crash, or staged at present. If it is ahead of the agent's
    /// own last sequence, the agent opens a new epoch as well. Only for agents of [`USED_THROUGH_SINCE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_through: Option<Sequence>,
}

/// [`crate::PROTOCOL_VERSION`] of the first agents that read [`Welcome::used_through`]; others would take a
/// Welcome with one more field for no message.
pub const USED_THROUGH_SINCE: u16 = 2;

/// Bounds of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest uncompressed body, in bytes.
    pub batch_bytes_max: u64,
    /// Most events in a batch.
    pub batch_events_max: u32,
    /// Most batches without an answer.
    pub batches_in_flight_max: u32,
}

/// Encoding of a batch body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// Records one after the other, in one zstd frame.
    Zstd,
}

/// Head of a batch stream; the compressed body follows until the end of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchHeader {
    /// Incarnation of the agent's buffer.
    pub epoch: Epoch,
    /// Sequence of the first event.
    pub first_sequence: Sequence,
    /// Number of events, at least 1; their sequences follow the first without holes.
    pub count: u32,
    /// Encoding of the body.
    pub codec: Codec,
    /// Length of the body before compression, in bytes.
    pub body_bytes: u64,
}

impl BatchHeader {
    /// Returns the sequence of the last event.
    pub fn last_sequence(&self) -> Sequence {
        self.first_sequence
            .saturating_add(u64::from(self.count))
            .saturating_sub(1)
    }
}

/// Answer to a batch, on its own stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchReply {
    /// Everything up to `committed_through` is committed and read back (EO-2, EO-3).
    Ack {
        /// The watermark of the agent's epoch.
        committed_through: Sequence,
        /// Snapshot of `raw.events` that holds the watermark.
        snapshot_id: i64,
    },
    /// Nothing was decided; send the batch again.
    Retry {
        /// Shortest wait before that, in milliseconds.
        after_ms: u64,
        /// One line for the agent's log.
        reason: String,
    },
    /// The batch will never be taken in this form.
    Refused {
        /// One line for the agent's log.
        reason: String,
        /// Says whether a part of the batch may be taken.
        #[serde(default)]
        cause: RefusalCause,
    },
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RefusalCause {
    /// The events in the batch, or how many they are: halving it finds what cannot be taken.
    #[default]
    Events,
    /// The header: both sides do not speak the same protocol, and no other batch fares better.
    Protocol,
}

/// Why a message cannot be read. The connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length prefix is above [`FRAME_BYTES_MAX`].
    #[error("frame of `{0}` bytes is above the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// The bytes are not the message expected.
    #[error("message cannot be decoded")]
    Decode(#[from] rmp_serde::decode::Error),
}

/// Returns `message` as a frame: length prefix and MessagePack.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut out = vec![0; 4];
    rmp_serde::encode::write(&mut out, message).expect("writing to memory cannot fail");
    let length = u32::try_from(out.len() - 4).expect("messages are far below 4 GiB");
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// Returns the length that a frame's first four bytes announce.
///
/// # Errors
/// [`FrameError::TooLong`] above [`FRAME_BYTES_MAX`].
pub fn length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > FRAME_BYTES_MAX {
        Err(FrameError::TooLong(length))
    } else {
        Ok(length)
    }
}

/// Reads the message inside a frame (without its length prefix).
///
/// # Errors
/// [`FrameError::Decode`] when the bytes are no such message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(VALUE_DEPTH_MAX);
    Ok(T::deserialize(&mut decoder)?)
}
