//! The QUIC endpoint: its bounds, and who may try to open a session.
//!
//! Place on the path: where packets enter the collector, before [`crate::session`]. Promise: connections
//! that never say Hello are bounded in number and time and take no place of a session.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, Incoming};
use tokio::sync::Semaphore;

use crate::certificates::Certificates;
use crate::config::Config;
use crate::engine::Engine;
use crate::refusal::Refusal;
use crate::session::{self, Door};

/// Most connections whose first packet waits to be looked at. They are looked at as fast as they come.
const INCOMING_MAX: usize = 1024;

/// Most bytes that all of them may have sent until then.
const INCOMING_BYTES_MAX: u64 = 16 << 20;

/// Returns the endpoint's configuration.
pub(crate) fn server_config(crypto: QuicServerConfig, config: &Config) -> quinn::ServerConfig {
    let Config { quic, limits, .. } = config;
    let streams = limits.batches_in_flight_max + 1;
    let idle = Duration::from_millis(quic.idle_timeout_ms);
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u8.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(quic.stream_window_bytes.into())
        .receive_window(quic.session_window_bytes.into())
        .keep_alive_interval(Some(Duration::from_millis(quic.keep_alive_ms)))
        .max_idle_timeout(quinn::IdleTimeout::try_from(idle).ok())
        .enable_segmentation_offload(quic.segmentation_offload);
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    config
}

/// Accepts sessions until the collector stops.
pub(crate) async fn accept(engine: Engine, endpoint: Endpoint, certificates: Arc<Certificates>) {
    let quic = &engine.shared.config.quic;
    let sessions = Arc::new(Semaphore::new(quic.sessions_max));
    let handshakes = Arc::new(Semaphore::new(quic.handshakes_max));
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = engine.shared.stopping.cancelled() => None,
        };
        let Some(incoming) = incoming else {
            return;
        };
        // Before a handshake is paid for.
        if sessions.available_permits() == 0 {
            refuse(incoming, Refusal::SessionsFull);
            continue;
        }
        let Ok(handshake) = Arc::clone(&handshakes).try_acquire_owned() else {
            refuse(incoming, Refusal::HandshakesFull);
            continue;
        };
        // Whoever wants one of the last places shows first that it gets answers at its address.
        if handshakes.available_permits() < quic.handshakes_max / 2 && incoming.may_retry() {
            // Fails only where it may not be asked for.
            incoming.retry().ok();
            continue;
        }
        let door = Door {
            handshake,
            sessions: Arc::clone(&sessions),
            trust: certificates.current(),
            certificates: Arc::clone(&certificates),
        };
        let engine = engine.clone();
        tokio::spawn(async move { session::run(&engine, incoming, door).await });
    }
}

fn refuse(incoming: Incoming, why: Refusal) {
    session::count("full");
    why.count();
    incoming.refuse();
}
