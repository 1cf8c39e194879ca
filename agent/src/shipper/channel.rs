//! What the shipper needs of a network: somebody to connect to, and a channel that carries messages.
//!
//! `shipper/quic.rs` is the one that is shipped; a simulation brings another. Bytes in packets, windows
//! and handshakes are below this line, everything that decides what is sent when is above it.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use headwater_protocol::{BatchHeader, BatchReply, Hello, HelloReply};

use super::credentials::Credentials;
use super::error::SessionError;
use crate::config::CollectorConfig;

/// Where collectors can be reached.
pub trait Network: Debug + Send + Sync {
    /// Connects to `collector`, an entry of `collector.addresses`, without a word yet.
    fn connect<'a>(
        &'a self,
        config: &'a CollectorConfig,
        credentials: &'a Credentials,
        collector: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, SessionError>>;
}

/// A connection to one collector.
pub trait Channel: Debug + Send + Sync {
    /// Returns a number that no other channel has at the same time.
    fn id(&self) -> usize;

    /// Returns where the collector is.
    fn remote_address(&self) -> SocketAddr;

    /// Says Hello, once, and returns the answer.
    fn greet<'a>(&'a self, hello: &'a Hello) -> BoxFuture<'a, Result<HelloReply, SessionError>>;

    /// Hands a batch over, to its last byte. Dropping the future takes it back: the collector does
    /// not take half a batch for a whole one.
    fn send(
        &self,
        header: BatchHeader,
        body: Vec<u8>,
    ) -> BoxFuture<'_, Result<Box<dyn Awaited>, SessionError>>;

    /// Says whether the channel is of no further use.
    fn is_closed(&self) -> bool;

    /// Resolves when the channel is of no further use, with the reason.
    fn closed(&self) -> BoxFuture<'_, SessionError>;

    /// Returns how often the collector has granted credit since it was connected.
    fn grants(&self) -> u64;

    /// Closes it, from this side.
    fn close(&self);

    /// Resolves when the last packets of the closed channel have left, or after a moment.
    fn left(&self) -> BoxFuture<'static, ()>;
}

/// The answer to a batch that was handed over.
pub trait Awaited: Send {
    /// Waits for it. Cancellation safe.
    fn reply(&mut self) -> BoxFuture<'_, Result<BatchReply, SessionError>>;
}
