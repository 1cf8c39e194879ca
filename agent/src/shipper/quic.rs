//! Channels over QUIC, with mutual TLS: what the shipped agent uses.
//!
//! Connecting proves that the collector is who it should be.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, select_ok};
use headwater_protocol::{BatchHeader, BatchReply, Hello, HelloReply, close, frame};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use serde::de::DeserializeOwned;

use super::channel::{Awaited, Channel, Network};
use super::credentials::Credentials;
use super::error::SessionError;
use crate::config::CollectorConfig;

/// How long the last packet of a closed connection may take to leave.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// Time between attempts at the addresses of one name (RFC 8305, section 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// The network of the operating system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quic;

impl Network for Quic {
    /// The collector's certificate is checked here. Whether it likes ours shows at the first answer.
    fn connect<'a>(
        &'a self,
        config: &'a CollectorConfig,
        credentials: &'a Credentials,
        collector: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Channel>, SessionError>> {
        async move {
            let resolve = |error| SessionError::Resolve(collector.to_owned(), error);
            let resolved = tokio::net::lookup_host(collector).await;
            let addresses: Vec<SocketAddr> = resolved.map_err(resolve)?.collect();
            if addresses.is_empty() {
                return Err(resolve(std::io::ErrorKind::NotFound.into()));
            }
            let (endpoint, connection) = dial_any(config, credentials, &addresses).await?;
            let channel = QuicChannel {
                endpoint,
                connection,
                hello: Mutex::default(),
            };
            Ok(Arc::new(channel) as Arc<dyn Channel>)
        }
        .boxed()
    }
}

#[derive(Debug)]
struct QuicChannel {
    endpoint: Endpoint,
    connection: Connection,
    /// Kept open as long as the session.
    hello: Mutex<Option<(SendStream, RecvStream)>>,
}

impl Channel for QuicChannel {
    fn id(&self) -> usize {
        self.connection.stable_id()
    }

    fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    fn greet<'a>(&'a self, hello: &'a Hello) -> BoxFuture<'a, Result<HelloReply, SessionError>> {
        async move {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            write(&mut send, &frame::encode(hello)).await?;
            let reply = read_frame(&mut receive).await?;
            *self.hello.lock() = Some((send, receive));
            Ok(reply)
        }
        .boxed()
    }

    fn send(
        &self,
        header: BatchHeader,
        body: Vec<u8>,
    ) -> BoxFuture<'_, Result<Box<dyn Awaited>, SessionError>> {
        async move {
            let stream = transmit(&self.connection, &header, &body).await?;
            Ok(Box::new(stream) as Box<dyn Awaited>)
        }
        .boxed()
    }

    fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    fn closed(&self) -> BoxFuture<'_, SessionError> {
        async {
            match self.connection.closed().await {
                ConnectionError::ApplicationClosed(by) if by.error_code == close::AGED.into() => {
                    SessionError::Aged
                }
                error => error.into(),
            }
        }
        .boxed()
    }

    fn grants(&self) -> u64 {
        let received = self.connection.stats().frame_rx;
        received.max_data + received.max_stream_data
    }

    fn close(&self) {
        self.connection.close(0_u32.into(), b"session ends");
    }

    /// A dead collector never answers the close.
    fn left(&self) -> BoxFuture<'static, ()> {
        let endpoint = self.endpoint.clone();
        async move { drop(tokio::time::timeout(CLOSE_WAIT, endpoint.wait_idle()).await) }.boxed()
    }
}

impl Awaited for BatchStream {
    fn reply(&mut self) -> BoxFuture<'_, Result<BatchReply, SessionError>> {
        async {
            let reply = read_frame(&mut self.receive).await?;
            self.is_answered = true;
            Ok(reply)
        }
        .boxed()
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

struct BatchStream {
    send: SendStream,
    receive: RecvStream,
    is_answered: bool,
}

impl Drop for BatchStream {
    fn drop(&mut self) {
        if !self.is_answered {
            // Fails only when everything has arrived.
            drop(self.send.reset(0_u32.into()));
        }
    }
}

async fn transmit(
    connection: &Connection,
    header: &BatchHeader,
    body: &[u8],
) -> Result<BatchStream, SessionError> {
    let (send, receive) = connection.open_bi().await?;
    let mut stream = BatchStream {
        send,
        receive,
        is_answered: false,
    };
    write(&mut stream.send, &frame::encode(header)).await?;
    write(&mut stream.send, body).await?;
    let finished = stream.send.finish();
    finished.map_err(|error| SessionError::Stream(error.to_string()))?;
    Ok(stream)
}

async fn write(send: &mut SendStream, bytes: &[u8]) -> Result<(), SessionError> {
    match send.write_all(bytes).await {
        // The collector has answered early; the answer says why.
        Ok(()) | Err(quinn::WriteError::Stopped(_)) => Ok(()),
        Err(error) => Err(SessionError::Stream(error.to_string())),
    }
}

async fn read_frame<T: DeserializeOwned>(receive: &mut RecvStream) -> Result<T, SessionError> {
    let stream = |error: quinn::ReadExactError| SessionError::Stream(error.to_string());
    let mut prefix = [0; 4];
    receive.read_exact(&mut prefix).await.map_err(stream)?;
    let length =
        frame::length(prefix).map_err(|_| SessionError::Protocol("a frame is too long"))?;
    let mut bytes = vec![0; length];
    receive.read_exact(&mut bytes).await.map_err(stream)?;
    frame::decode(&bytes).map_err(|_| SessionError::Protocol("a message cannot be decoded"))
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
        let address = server.local_addr().unwrap();
        let config = CollectorConfig {
            segmentation_offload,
            ..CollectorConfig::default()
        };
        let receiving = tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            let (_send, mut receive) = connection.accept_bi().await.unwrap();
            receive.read_to_end(8 << 20).await.unwrap().len()
        });
        let credentials = Credentials::read(files).unwrap();
        let (_, connection) = dial_any(&config, &credentials, &[address]).await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        write(&mut send, &vec![7; 4 << 20]).await.unwrap();
        send.finish().unwrap();
        assert_eq!(receiving.await.unwrap(), 4 << 20);
        let sent = connection.stats().udp_tx;
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
