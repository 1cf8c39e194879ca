//! The shipper: keeps one session with the collector for as long as the agent runs.
//!
//! It never drops an event: whatever the collector or the network answers, the events stay in the
//! buffer, and the next session starts after the last ack. Sessions fail into a back-off with full
//! jitter, so that a thousand agents do not come back in the same moment.

mod session;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::{ALPN, AgentId};
use headwater_service::tls;
use metrics::{counter, gauge};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::buffer::{Buffer, ReadError};
use crate::config::CollectorConfig;
use crate::metrics::{SESSION_FAILURES, SESSION_OPEN};
use crate::reload::{Live, Settings};
use crate::status::Status;

/// A session that lived this long was sound: the next back-off starts small again.
const SOUND_SESSION: Duration = Duration::from_secs(10);

/// Why a session ended early. All of them lead to the next attempt after a back-off.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("collector address `{0}` cannot be resolved: {1}")]
    Resolve(String, std::io::Error),
    #[error("{0}")]
    Tls(#[from] tls::TlsError),
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
    fn reason(&self) -> &'static str {
        match self {
            Self::Resolve(..) => "resolve",
            Self::Tls(_) | Self::Setup(_) => "setup",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::Connection(_) | Self::Stream(_) => "connection",
            Self::HelloRefused(_) => "session_refused",
            Self::BatchRefused { .. } => "batch_refused",
            Self::Watermark { .. } => "watermark",
            Self::ReplyTimeout(_) => "reply_timeout",
            Self::Protocol(_) => "protocol",
            Self::Read(_) | Self::Marks(_) | Self::Compress(_) => "buffer",
        }
    }

    /// Says whether a person has to act; the rest heals by itself.
    fn needs_a_person(&self) -> bool {
        matches!(
            self,
            Self::Tls(_) | Self::BatchRefused { .. } | Self::Watermark { .. } | Self::Protocol(_)
        )
    }
}

/// Ships what the buffer holds.
#[derive(Debug)]
pub(crate) struct Shipper {
    pub(crate) buffer: Buffer,
    pub(crate) agent_id: AgentId,
    pub(crate) settings: Settings,
    pub(crate) status: Arc<Status>,
}

impl Shipper {
    /// Runs until `stop` is cancelled, then waits for answers at most `collector.stop_drain_ms`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut failures = 0_u32;
        while !stop.is_cancelled() {
            let started = Instant::now();
            let live = self.settings.now();
            let outcome = self.session(&live, &stop).await;
            self.status.set_session(None);
            gauge!(SESSION_OPEN).set(0.0);
            let Err(error) = outcome else { continue };
            if started.elapsed() > SOUND_SESSION {
                failures = 0;
            }
            counter!(SESSION_FAILURES, "reason" => error.reason()).increment(1);
            let wait = backoff(failures, &live.collector);
            failures = failures.saturating_add(1);
            if error.needs_a_person() {
                tracing::error!(%error, ?wait, "session failed");
            } else {
                warn!(%error, ?wait, failures, "session failed");
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                // What was wrong may be mended: no need to wait for it.
                () = self.settings.until_shipping_differs(&live) => failures = 0,
            }
        }
        info!(buffered = self.buffer.buffered(), "shipping has stopped");
    }

    /// Connects and runs one session. `Ok` means: begin the next one at once, or stop.
    async fn session(
        &self,
        live: &Arc<Live>,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let bound = Duration::from_millis(live.collector.connect_timeout_ms);
        let opening = tokio::time::timeout(bound, self.open(live));
        let (endpoint, session) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            opened = opening => opened.map_err(|_| SessionError::ConnectTimeout(bound))??,
        };
        self.status.set_session(Some(session.collector()));
        gauge!(SESSION_OPEN).set(1.0);
        let outcome = session.run(stop).await;
        // Tells the collector; the wait is short because a dead one does not answer.
        endpoint.close(0_u32.into(), b"session ends");
        drop(tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await);
        outcome
    }

    async fn open(
        &self,
        live: &Arc<Live>,
    ) -> Result<(quinn::Endpoint, session::Session), SessionError> {
        let (endpoint, address) = connect_endpoint(live).await?;
        let connecting = endpoint
            .connect(address, &live.collector.server_name)
            .map_err(|error| SessionError::Setup(error.to_string()))?;
        let connection = connecting.await?;
        let session = session::Session::open(self, live, connection).await?;
        Ok((endpoint, session))
    }
}

/// Reads the certificate files anew, so that a rotated certificate counts from the next session.
async fn connect_endpoint(live: &Live) -> Result<(quinn::Endpoint, SocketAddr), SessionError> {
    let setup = |error: String| SessionError::Setup(error);
    let address = tokio::net::lookup_host(&live.collector.address)
        .await
        .and_then(|mut found| {
            found
                .next()
                .ok_or_else(|| std::io::ErrorKind::NotFound.into())
        })
        .map_err(|error| SessionError::Resolve(live.collector.address.clone(), error))?;
    let tls = tls::mutual_client(&live.tls, ALPN)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| setup(error.to_string()))?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport(&live.collector)?));
    let local = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let mut endpoint = quinn::Endpoint::client(local).map_err(|error| setup(error.to_string()))?;
    endpoint.set_default_client_config(client);
    Ok((endpoint, address))
}

/// Every window is bounded; the collector may open no streams.
fn transport(config: &CollectorConfig) -> Result<quinn::TransportConfig, SessionError> {
    let idle = Duration::from_millis(config.idle_timeout_ms);
    let idle = quinn::IdleTimeout::try_from(idle)
        .map_err(|error| SessionError::Setup(error.to_string()))?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .keep_alive_interval(Some(Duration::from_millis(config.keep_alive_ms)))
        .max_idle_timeout(Some(idle))
        .send_window(config.send_window_bytes)
        .send_fairness(false)
        .stream_receive_window(quinn::VarInt::from_u32(128 << 10))
        .receive_window(quinn::VarInt::from_u32(1 << 20))
        .max_concurrent_bidi_streams(0_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(config.segmentation_offload);
    Ok(transport)
}
/// Returns the wait after `failures` failed sessions: anything up to a bound that doubles.
fn backoff(failures: u32, config: &CollectorConfig) -> Duration {
    let bound = config
        .backoff_min_ms
        .saturating_mul(1_u64.checked_shl(failures.min(32)).unwrap_or(u64::MAX))
        .min(config.backoff_max_ms);
    // Never zero: a collector that refuses at once must not be asked in a tight loop.
    Duration::from_millis(rand::random_range(bound / 10..=bound).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        let config = CollectorConfig::default();
        for failures in [0, 1, 5, 31, 32, 200, u32::MAX] {
            let wait = backoff(failures, &config);
            assert!(wait >= Duration::from_millis(20) && wait <= Duration::from_secs(30));
        }
        assert!(backoff(0, &config) <= Duration::from_millis(200));
    }
}
