//! Why shipping fails. Nothing is lost by it: the events stay in the buffer.

use std::time::Duration;

use crate::buffer::ReadError;

/// Why a session, or an attempt at one, ended. All of them lead to the next attempt.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("collector address `{0}` cannot be resolved: {1}")]
    Resolve(String, std::io::Error),
    #[error("connection cannot be set up: {0}")]
    Setup(String),
    #[error("no connection and Welcome within `{0:?}`")]
    ConnectTimeout(Duration),
    #[error("connection failed: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("stream failed: {0}")]
    Stream(String),
    #[error("collector refused the session: {0}")]
    HelloRefused(String),
    #[error("collector refused the batch from sequence `{first}` on: {reason}")]
    BatchRefused { first: u64, reason: String },
    #[error("event at sequence `{sequence}` is refused and cannot be set aside: {source}")]
    KeepRefused {
        sequence: u64,
        #[source]
        source: std::io::Error,
    },
    #[error("collector's watermark `{watermark}` does not fit this buffer; a new epoch begins")]
    Watermark { watermark: u64 },
    #[error("no answer to a batch within `{0:?}`")]
    ReplyTimeout(Duration),
    #[error("collector breaks the protocol: {0}")]
    Protocol(&'static str),
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("marks cannot be written: {0}")]
    Marks(std::io::Error),
    #[error("batch cannot be compressed: {0}")]
    Compress(std::io::Error),
}

impl SessionError {
    /// Returns the value of the metric label `reason`.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Resolve(..) => "resolve",
            Self::Setup(_) => "setup",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::Connection(_) | Self::Stream(_) => "connection",
            Self::HelloRefused(_) => "session_refused",
            Self::BatchRefused { .. } => "batch_refused",
            Self::KeepRefused { .. } => "refused_full",
            Self::Watermark { .. } => "watermark",
            Self::ReplyTimeout(_) => "reply_timeout",
            Self::Protocol(_) => "protocol",
            Self::Read(_) | Self::Marks(_) | Self::Compress(_) => "buffer",
        }
    }

    /// Says whether a person has to act; the rest heals by itself.
    pub(super) fn needs_a_person(&self) -> bool {
        matches!(
            self,
            Self::BatchRefused { .. }
                | Self::KeepRefused { .. }
                | Self::Watermark { .. }
                | Self::Protocol(_)
        )
    }
}
