//! A connection to one collector, and the first words on it.
//!
//! Connecting proves that the collector is who it should be. Hello and Welcome say how far this
//! buffer is committed; only then may batches follow.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_ok;
use headwater_protocol::frame;
use headwater_protocol::{AgentId, Hello, HelloReply, Limits as WireLimits, PROTOCOL_VERSION};
use metrics::counter;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::time::Instant;
use tracing::info;

use super::credentials::Credentials;
use super::error::SessionError;
use super::wire::{blocking, read_frame, write};
use crate::buffer::{Buffer, Position, Stretch};
use crate::config::CollectorConfig;
use crate::metrics::SESSIONS;

/// How long the last packet of a closed connection may take to leave.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// Time between attempts at the addresses of one name (RFC 8305, section 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// A connection to the collector at `index` of the list. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Link {
    endpoint: Endpoint,
    pub(super) connection: Connection,
    /// Place in `collector.addresses`.
    pub(super) index: usize,
    /// Its entry there.
    pub(super) collector: String,
    pub(super) since: Instant,
    pub(super) credentials: Arc<Credentials>,
    /// Kept open as long as the session.
    hello: Option<(SendStream, RecvStream)>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.close(0_u32.into(), b"session ends");
    }
}

impl Link {
    /// Connects to the collector at `index`, without a word yet.
    ///
    /// The collector's certificate is checked here. Whether it likes ours shows at the first answer.
    pub(super) async fn connect(
        config: &CollectorConfig,
        credentials: Arc<Credentials>,
        index: usize,
    ) -> Result<Self, SessionError> {
        let collector = config.addresses[index].clone();
        let resolve = |error| SessionError::Resolve(collector.clone(), error);
        let resolved = tokio::net::lookup_host(&collector).await;
        let addresses: Vec<SocketAddr> = resolved.map_err(resolve)?.collect();
        if addresses.is_empty() {
            return Err(resolve(std::io::ErrorKind::NotFound.into()));
        }
        let (endpoint, connection) = dial_any(config, &credentials, &addresses).await?;
        Ok(Self {
            endpoint,
            connection,
            index,
            collector,
            since: Instant::now(),
            credentials,
            hello: None,
        })
    }

    /// Returns what to wait on, so that the collector hears of the end.
    pub(super) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }
}

/// Connects to whichever of the addresses answers first. Each has a head start on the next, so that
/// the resolver's order counts.
async fn dial_any(
    config: &CollectorConfig,
    credentials: &Credentials,
    addresses: &[SocketAddr],
) -> Result<(Endpoint, Connection), SessionError> {
    let mut client = quinn::ClientConfig::new(credentials.client.clone());
    client.transport_config(Arc::new(transport(config)?));
    let attempts = (0..).zip(addresses).map(|(place, &address)| {
        let client = client.clone();
        Box::pin(async move {
            tokio::time::sleep(HEAD_START * place).await;
            dial(client, address, &config.server_name).await
        })
    });
    let (connected, _given_up) = select_ok(attempts).await?;
    Ok(connected)
}

async fn dial(
    client: quinn::ClientConfig,
    address: SocketAddr,
    server_name: &str,
) -> Result<(Endpoint, Connection), SessionError> {
    let local = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let setup = |error: String| SessionError::Setup(error);
    let endpoint = Endpoint::client(local).map_err(|error| setup(error.to_string()))?;
    let connection = endpoint
        .connect_with(client, address, server_name)
        .map_err(|error| setup(error.to_string()))?
        .await?;
    Ok((endpoint, connection))
}

/// Waits a moment for the last packets of closed connections to leave: a dead collector never answers.
pub(super) async fn idle(endpoint: Endpoint) {
    drop(tokio::time::timeout(CLOSE_WAIT, endpoint.wait_idle()).await);
}

/// Every window is bounded; the collector may open no streams.
fn transport(config: &CollectorConfig) -> Result<quinn::TransportConfig, SessionError> {
    let idle = quinn::IdleTimeout::try_from(Duration::from_millis(config.idle_timeout_ms))
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
        mut link: Link,
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
        let (mut send, mut receive) = link.connection.open_bi().await?;
        write(&mut send, &frame::encode(&hello)).await?;
        let welcome = match read_frame(&mut receive).await? {
            HelloReply::Welcome(welcome) => welcome,
            HelloReply::Refused { reason } => return Err(SessionError::HelloRefused(reason)),
        };
        let watermark = head.stretch.position(welcome.committed_through);
        let sent = buffer.head().sent;
        // Legitimate watermarks lie between the last ack before Hello and the last event sent. Above:
        // another incarnation of this disk used these numbers. Below: the table was set back.
        if watermark > sent.max(head.acked) || watermark < head.acked {
            let buffer = buffer.clone();
            blocking(move || buffer.renumber()).await;
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
            remote = %link.connection.remote_address(),
            "session is open"
        );
        link.hello = Some((send, receive));
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

#[cfg(test)]
mod tests {
    use headwater_service::tls::{self, TlsFiles};
    use quinn::crypto::rustls::QuicServerConfig;

    use super::*;

    /// Makes one self-signed certificate that both sides use and trust.
    fn files(directory: &std::path::Path) -> TlsFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let files = TlsFiles {
            certificate: directory.join("leaf.pem"),
            key: directory.join("leaf.key"),
            ca: directory.join("ca.pem"),
        };
        std::fs::write(&files.certificate, leaf.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(&files.ca, ca.pem()).unwrap();
        files
    }

    fn server(files: &TlsFiles, listen: &str) -> std::io::Result<Endpoint> {
        let server = tls::mutual_server(files, headwater_protocol::ALPN).unwrap();
        let crypto = QuicServerConfig::try_from(server).unwrap();
        let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        Endpoint::server(server, listen.parse().unwrap())
    }

    #[tokio::test]
    async fn all_addresses_of_a_name_are_tried() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let credentials = Credentials::read(&files).unwrap();
        let config = CollectorConfig::default();
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let silent = silent.local_addr().unwrap();
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(server) = server(&files, listen) else {
                println!("this machine has no address for {listen}");
                continue;
            };
            let alive = server.local_addr().unwrap();
            let accepting = tokio::spawn(async move {
                while let Some(incoming) = server.accept().await {
                    incoming.await.unwrap();
                }
            });
            for addresses in [[silent, alive], [alive, silent]] {
                let dialled = dial_any(&config, &credentials, &addresses).await;
                let (_, connection) = dialled.unwrap();
                assert_eq!(connection.remote_address(), alive);
            }
            accepting.abort();
        }
    }

    /// Sends 4 MiB and returns packets and system calls for them.
    async fn packets_and_calls(files: &TlsFiles, segmentation_offload: bool) -> (u64, u64) {
        let server = server(files, "127.0.0.1:0").unwrap();
        let config = CollectorConfig {
            addresses: vec![server.local_addr().unwrap().to_string()],
            segmentation_offload,
            ..CollectorConfig::default()
        };
        let receiving = tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            let (_send, mut receive) = connection.accept_bi().await.unwrap();
            receive.read_to_end(8 << 20).await.unwrap().len()
        });
        let credentials = Credentials::read(files).unwrap();
        let link = Link::connect(&config, credentials, 0).await.unwrap();
        let (mut send, _receive) = link.connection.open_bi().await.unwrap();
        write(&mut send, &vec![7; 4 << 20]).await.unwrap();
        send.finish().unwrap();
        assert_eq!(receiving.await.unwrap(), 4 << 20);
        let sent = link.connection.stats().udp_tx;
        (sent.datagrams, sent.ios)
    }

    #[tokio::test]
    async fn segmentation_offload_can_be_switched_off() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let (packets, calls) = packets_and_calls(&files, false).await;
        assert!(packets > 1000, "{packets}");
        assert_eq!(packets, calls, "one packet each");
        let (packets, calls) = packets_and_calls(&files, true).await;
        assert!(calls < packets, "the kernel splits: {calls} for {packets}");
    }
}
