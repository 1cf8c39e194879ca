//! A connection to one collector, and the first words on it.
//!
//! Hello and Welcome say how far this
//! buffer is committed; only then may batches follow.

use std::sync::Arc;

use headwater_protocol::{AgentId, Hello, HelloReply, Limits as WireLimits, PROTOCOL_VERSION};
use metrics::counter;
use tokio::time::Instant;
use tracing::info;

use super::channel::{Channel, Network};
use super::credentials::Credentials;
use super::error::SessionError;
use super::wire::blocking;
use crate::buffer::{Buffer, Position, Stretch};
use crate::config::CollectorConfig;
use crate::metrics::SESSIONS;

/// A connection to the collector at `index` of the list. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) channel: Arc<dyn Channel>,
    /// Place in `collector.addresses`.
    pub(super) index: usize,
    /// Its entry there.
    pub(super) collector: String,
    pub(super) since: Instant,
    pub(super) credentials: Arc<Credentials>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.channel.close();
    }
}

impl Link {
    /// Connects to the collector at `index`, without a word yet.
    pub(super) async fn connect(
        network: &dyn Network,
        config: &CollectorConfig,
        credentials: Arc<Credentials>,
        index: usize,
    ) -> Result<Self, SessionError> {
        let collector = config.addresses[index].clone();
        let channel = network.connect(config, &credentials, &collector).await?;
        Ok(Self {
            channel,
            index,
            collector,
            since: Instant::now(),
            credentials,
        })
    }
}

/// A connection whose collector has said Welcome.
#[derive(Debug)]
pub(super) struct Welcomed {
    pub(super) link: Link,
    /// The epoch that the session is about.
    pub(super) stretch: Stretch,
    /// Everything up to here is committed.
    pub(super) watermark: Position,
    pub(super) limits: WireLimits,
}

impl Welcomed {
    /// Sends Hello, checks the collector's watermark against the buffer and trims. Batches may be in
    /// flight on another connection meanwhile.
    pub(super) async fn greet(
        link: Link,
        buffer: &Buffer,
        agent_id: &AgentId,
    ) -> Result<Self, SessionError> {
        let head = buffer.head();
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_id: agent_id.clone(),
            epoch: head.stretch.epoch,
            lowest_unacknowledged: head.stretch.sequence(head.acked + 1),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            host: host(),
        };
        let welcome = match link.channel.greet(&hello).await? {
            HelloReply::Welcome(welcome) => welcome,
            HelloReply::Refused { reason } => return Err(SessionError::HelloRefused(reason)),
        };
        let watermark = head.stretch.position(welcome.committed_through);
        let used = head.stretch.position(welcome.used_through.unwrap_or(0));
        let sent = buffer.head().sent;
        // Legitimate watermarks lie between the last ack before Hello and the last event sent. Above:
        // another incarnation of this disk used these numbers, if only for events that are not committed
        // yet. Below: the table was set back.
        if watermark.max(used) > sent.max(head.acked) || watermark < head.acked {
            let buffer = buffer.clone();
            blocking(move || buffer.renumber())
                .await
                .map_err(SessionError::Renumber)?;
            return Err(SessionError::Watermark {
                watermark: welcome.committed_through,
            });
        }
        let trimmed = buffer.clone();
        blocking(move || trimmed.acknowledge(watermark)).await;
        counter!(SESSIONS).increment(1);
        info!(
            epoch = head.stretch.epoch,
            committed_through = welcome.committed_through,
            collector = link.collector,
            remote = %link.channel.remote_address(),
            "session is open"
        );
        Ok(Self {
            link,
            stretch: head.stretch,
            watermark,
            limits: welcome.limits,
        })
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().take(255).collect()
}
