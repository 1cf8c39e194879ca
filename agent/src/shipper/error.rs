//! Why shipping fails. Nothing is lost by it: the events stay in the buffer.

use std::time::Duration;

use crate::buffer::ReadError;

/// Why a session, or an attempt at one, ended. All of them lead to the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The name of the collector has no address.
    #[error("collector address `{0}` cannot be resolved: {1}")]
    Resolve(String, std::io::Error),
    /// The socket or its settings.
    #[error("connection cannot be set up: {0}")]
    Setup(String),
    /// Nobody answered in time.
    #[error("no connection and Welcome within `{0:?}`")]
    ConnectTimeout(Duration),
    /// The connection broke.
    #[error("connection failed: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The collector has closed it for its age.
    #[error("the collector has closed the connection for its age")]
    Aged,
    /// One stream of it broke.
    #[error("stream failed: {0}")]
    Stream(String),
    /// The collector does not serve this agent now.
    #[error("collector refused the session: {0}")]
    HelloRefused(String),
    /// Even a substitute is refused.
    #[error("collector refused the batch from sequence `{first}` on: {reason}")]
    BatchRefused {
        /// Sequence of its first event.
        first: u64,
        /// What the collector says.
        reason: String,
    },
    /// There is no room for a refused event.
    #[error("event at sequence `{sequence}` is refused and cannot be set aside: {source}")]
    KeepRefused {
        /// Its sequence.
        sequence: u64,
        /// What the disk says.
        #[source]
        source: std::io::Error,
    },
    /// The disk or the table was set back.
    #[error("collector's watermark `{watermark}` does not fit this buffer; a new epoch begins")]
    Watermark {
        /// What Welcome said.
        watermark: u64,
    },
    /// The disk does not take the new epoch.
    #[error("a new epoch has to begin, and `buffer.json` cannot be written: {0}")]
    Renumber(#[source] std::io::Error),
    /// The collector is silent.
    #[error("no answer to a batch within `{0:?}`")]
    ReplyTimeout(Duration),
    /// It says what no collector says.
    #[error("collector breaks the protocol: {0}")]
    Protocol(&'static str),
    /// The buffer cannot be read.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// The marks cannot be written; nothing may be sent.
    #[error("marks cannot be written: {0}")]
    Marks(std::io::Error),
    /// The encoder failed.
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
            Self::Connection(_) | Self::Aged | Self::Stream(_) => "connection",
            Self::HelloRefused(_) => "session_refused",
            Self::BatchRefused { .. } => "batch_refused",
            Self::KeepRefused { .. } => "refused_full",
            Self::Watermark { .. } => "watermark",
            Self::ReplyTimeout(_) => "reply_timeout",
            Self::Protocol(_) => "protocol",
            Self::Read(_) | Self::Marks(_) | Self::Compress(_) | Self::Renumber(_) => "buffer",
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
