//! Why something that a peer sent, or did not send in time, is not taken: one counter, one reason each.
//!
//! Beside the path: [`crate::endpoint`], [`crate::session`], [`crate::stream`] and [`crate::intake`] count
//! here where they refuse. Promise: whatever a peer does, the bound that stops it shows in
//! [`names::REFUSALS`](crate::metrics::REFUSALS).

use crate::metrics as names;

/// A reason, the label `reason` of [`names::REFUSALS`](crate::metrics::REFUSALS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `quic.sessions_max` is reached.
    SessionsFull,
    /// `quic.handshakes_max` is reached.
    HandshakesFull,
    /// No handshake in time, or none at all: no certificate, one of another CA, a revoked one.
    Handshake,
    /// No whole Hello in time.
    HelloTimeout,
    /// Bytes that are no Hello, or the first part of one.
    HelloMalformed,
    /// A Hello that gets no Welcome: somebody else's name, no such version.
    HelloRejected,
    /// An answer that the peer does not take in time.
    AnswerTimeout,
    /// No whole header in time.
    HeaderTimeout,
    /// Bytes that are no header, or the first part of one.
    HeaderMalformed,
    /// A header that no batch should have.
    HeaderRejected,
    /// More events or bytes than `limits` allow.
    OverLimit,
    /// No whole body in time.
    BodyTimeout,
    /// More bytes than the header announces.
    BodyTooLong,
    /// Bytes that do not decompress, or do not hold what the header announces.
    BodyMalformed,
    /// Events that no rows can be made of.
    Rows,
}

impl Refusal {
    pub(crate) const ALL: [Self; 15] = [
        Self::SessionsFull,
        Self::HandshakesFull,
        Self::Handshake,
        Self::HelloTimeout,
        Self::HelloMalformed,
        Self::HelloRejected,
        Self::AnswerTimeout,
        Self::HeaderTimeout,
        Self::HeaderMalformed,
        Self::HeaderRejected,
        Self::OverLimit,
        Self::BodyTimeout,
        Self::BodyTooLong,
        Self::BodyMalformed,
        Self::Rows,
    ];

    /// Returns the value of the label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SessionsFull => "sessions_full",
            Self::HandshakesFull => "handshakes_full",
            Self::Handshake => "handshake",
            Self::HelloTimeout => "hello_timeout",
            Self::HelloMalformed => "hello_malformed",
            Self::HelloRejected => "hello_rejected",
            Self::AnswerTimeout => "answer_timeout",
            Self::HeaderTimeout => "header_timeout",
            Self::HeaderMalformed => "header_malformed",
            Self::HeaderRejected => "header_rejected",
            Self::OverLimit => "over_limit",
            Self::BodyTimeout => "body_timeout",
            Self::BodyTooLong => "body_too_long",
            Self::BodyMalformed => "body_malformed",
            Self::Rows => "rows",
        }
    }

    /// Counts one more.
    pub(crate) fn count(self) {
        metrics::counter!(names::REFUSALS, "reason" => self.as_str()).increment(1);
    }
}

/// Shows every reason with 0, so that an alarm can be set before the first one.
pub(crate) fn show_all() {
    for refusal in Refusal::ALL {
        metrics::counter!(names::REFUSALS, "reason" => refusal.as_str()).increment(0);
    }
}
