//! Sessions: the QUIC endpoint, who may speak, Hello and Welcome.
//!
//! Place on the path: where an agent's bytes enter the collector. Promise: nobody is heard whose
//! certificate does not carry the id that its Hello claims; each session's memory is bounded by its
//! windows; each batch stream gets one answer (see [`crate::stream`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::frame::{self, FrameError};
use headwater_protocol::{ALPN, AgentId, Hello, HelloReply, Welcome};
use headwater_service::tls::{self, TlsError, TlsFiles};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{LimitsConfig, QuicConfig};
use crate::engine::{Engine, Shared};
use crate::intake::Intake;
use crate::metrics as names;
use crate::stream::Streams;

/// Close codes of a connection.
const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);
const CLOSE_REPLACED: VarInt = VarInt::from_u32(2);

/// Longest wait until a peer has taken the last answer before a close.
const LAST_ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Why a message did not come. The connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the stream ended early: {0}")]
    Stream(#[from] quinn::ReadExactError),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads one framed message; never more than a frame may hold.
pub(crate) async fn read_frame<T: DeserializeOwned>(recv: &mut RecvStream) -> Result<T, ReadError> {
    let mut prefix = [0; 4];
    recv.read_exact(&mut prefix).await?;
    let mut message = vec![0; frame::length(prefix)?];
    recv.read_exact(&mut message).await?;
    Ok(frame::decode(&message)?)
}

/// Returns the endpoint's configuration.
///
/// # Errors
/// [`TlsError`] when the certificate files cannot be used.
pub(crate) fn server_config(
    files: &TlsFiles,
    quic: &QuicConfig,
    limits: &LimitsConfig,
) -> Result<quinn::ServerConfig, TlsError> {
    let tls = tls::mutual_server(files, ALPN)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| TlsError::Unusable {
        path: files.certificate.clone(),
        source: rustls::Error::General(error.to_string()),
    })?;
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
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Accepts sessions until the collector stops.
pub(crate) async fn accept(engine: Engine, endpoint: Endpoint) {
    let free = Arc::new(Semaphore::new(engine.shared.config.quic.sessions_max));
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = engine.shared.stopping.cancelled() => None,
        };
        let Some(incoming) = incoming else {
            return;
        };
        let Ok(place) = Arc::clone(&free).try_acquire_owned() else {
            count("full");
            incoming.refuse();
            continue;
        };
        let engine = engine.clone();
        tokio::spawn(async move {
            run(&engine, incoming).await;
            drop(place);
        });
    }
}

fn count(outcome: &'static str) {
    metrics::counter!(names::SESSIONS, "outcome" => outcome).increment(1);
}

/// One session, from its handshake to its end.
async fn run(engine: &Engine, incoming: Incoming) {
    let bound = Duration::from_millis(engine.shared.config.quic.hello_timeout_ms);
    let remote = incoming.remote_address();
    let opened = tokio::time::timeout(bound, open(incoming)).await;
    let Ok(Ok((connection, send, hello))) = opened else {
        count("handshake_failed");
        let error = opened.err().map_or_else(
            || "handshake or Hello failed".to_owned(),
            |_| format!("no Hello within {} ms", bound.as_millis()),
        );
        tracing::warn!(%remote, error, "session not opened");
        return;
    };
    match welcome(engine, &connection, &hello).await {
        Ok((intake, welcome)) => {
            count("welcome");
            serve(&engine.shared, connection, send, intake, &hello, welcome).await;
        }
        Err(reason) => {
            count("refused");
            tracing::warn!(%remote, claimed = %hello.agent_id, reason, "session refused");
            refuse(&connection, send, reason).await;
        }
    }
}

async fn open(incoming: Incoming) -> Result<(Connection, SendStream, Hello), OpenError> {
    let connection = incoming.accept()?.await?;
    let (send, mut recv) = connection.accept_bi().await?;
    let hello = read_frame(&mut recv).await?;
    Ok((connection, send, hello))
}

/// Why a session did not come to its Hello.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Hello(#[from] ReadError),
}

/// Decides whether the agent is served; the error is one line for its log.
async fn welcome(
    engine: &Engine,
    connection: &Connection,
    hello: &Hello,
) -> Result<(Intake, Welcome), String> {
    engine.welcome(&certified_agent(connection)?, hello).await
}

/// Returns the agent that the client's certificate names.
fn certified_agent(connection: &Connection) -> Result<AgentId, String> {
    let identity = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("no client certificate")?;
    let leaf = identity.first().ok_or("no client certificate")?;
    common_name(leaf)
}

fn common_name(certificate: &[u8]) -> Result<AgentId, String> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| "certificate cannot be read")?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next().ok_or("certificate has no common name")?;
    let name = name.as_str().map_err(|_| "common name is no text")?;
    name.parse()
        .map_err(|error| format!("common name of the certificate: {error}"))
}

async fn refuse(connection: &Connection, mut send: SendStream, reason: String) {
    let message = frame::encode(&HelloReply::Refused { reason });
    // The peer may be gone already; then nobody reads the reason.
    if send.write_all(&message).await.is_ok() && send.finish().is_ok() {
        tokio::time::timeout(LAST_ANSWER_WAIT, send.stopped())
            .await
            .ok();
    }
    connection.close(CLOSE_REFUSED, b"refused");
}

/// Welcomes the agent and takes its batches until the connection or the collector ends.
#[tracing::instrument(level = "debug", skip_all, fields(agent_id = %hello.agent_id, epoch = hello.epoch))]
async fn serve(
    shared: &Arc<Shared>,
    connection: Connection,
    mut send: SendStream,
    intake: Intake,
    hello: &Hello,
    welcome: Welcome,
) {
    let _open = names::Held::new(names::SESSIONS_OPEN, 1.0);
    let _registered = shared.sessions.register(&hello.agent_id, &connection);
    let committed_through = welcome.committed_through;
    let message = frame::encode(&HelloReply::Welcome(welcome));
    if send.write_all(&message).await.is_err() {
        return;
    }
    tracing::info!(
        agent_id = %hello.agent_id,
        epoch = hello.epoch,
        remote = %connection.remote_address(),
        build = hello.build,
        host = hello.host,
        committed_through,
        "session open"
    );
    let batches = Arc::new(Streams {
        intake,
        connection: connection.clone(),
        killed: shared.killed.clone(),
    });
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let batch = Arc::clone(&batches);
                    shared.streams.spawn(async move { batch.serve(send, recv).await });
                }
                Err(error) => {
                    tracing::info!(agent_id = %hello.agent_id, reason = %error, "session closed");
                    return;
                }
            },
            () = shared.stopping.cancelled() => {
                // Streams that wait for their ack still use the connection.
                connection.closed().await;
                return;
            }
        }
    }
}

/// The open session of each agent. A new one replaces the old: an agent that comes back over another
/// network must not wait until its dead connection times out.
#[derive(Debug, Default)]
pub(crate) struct Sessions(parking_lot::Mutex<HashMap<AgentId, Connection>>);

impl Sessions {
    fn register<'a>(&'a self, agent: &AgentId, connection: &Connection) -> Registered<'a> {
        let old = self.0.lock().insert(agent.clone(), connection.clone());
        if let Some(old) = old {
            tracing::warn!(agent_id = %agent, "a new session replaces an open one");
            old.close(CLOSE_REPLACED, b"replaced by a new session");
        }
        Registered {
            sessions: self,
            agent: agent.clone(),
            connection: connection.stable_id(),
        }
    }
}

/// A place in [`Sessions`], given up when dropped.
struct Registered<'a> {
    sessions: &'a Sessions,
    agent: AgentId,
    connection: usize,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut sessions = self.sessions.0.lock();
        let ours = sessions
            .get(&self.agent)
            .is_some_and(|open| open.stable_id() == self.connection);
        if ours {
            sessions.remove(&self.agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_name_is_the_agent() {
        let named = |name: &str| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            let key = rcgen::KeyPair::generate().unwrap();
            common_name(params.self_signed(&key).unwrap().der())
        };
        assert_eq!(named("web-1").unwrap().as_str(), "web-1");
        assert!(named("Not An Agent").is_err());
        assert!(common_name(b"garbage").is_err());
    }
}
