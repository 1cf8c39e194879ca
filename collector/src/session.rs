//! Sessions: who may speak, Hello and Welcome.
//!
//! Place on the path: after [`crate::endpoint`], where an agent's bytes enter the collector. Promise: nobody is heard whose
//! certificate does not carry the id that its Hello claims; each session's memory is bounded by its
//! windows; each batch stream gets one answer (see [`crate::stream`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::frame::{self, FrameError};
use headwater_protocol::{AgentId, Hello, HelloReply, Welcome, close};
use quinn::{Connection, Incoming, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::engine::{Engine, Shared};
use crate::intake::Intake;
use crate::metrics as names;
use crate::refusal::Refusal;
use crate::stream::Streams;

/// Longest wait until a peer has taken the last answer before a close.
const LAST_ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Why a message did not come. The connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the stream ended early: {0}")]
    Stream(#[from] quinn::ReadExactError),
    #[error("the stream broke: {0}")]
    Broken(#[from] quinn::ReadError),
    #[error("the stream ended within the message")]
    Cut,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl ReadError {
    /// Says whether the peer sent what is no message, and did not just go away.
    pub(crate) fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::Frame(_) | Self::Cut | Self::Stream(quinn::ReadExactError::FinishedEarly(_))
        )
    }
}

/// Reads one framed message; never more than a frame may hold. Takes memory for what has come, not for
/// what is announced.
pub(crate) async fn read_frame<T: DeserializeOwned>(recv: &mut RecvStream) -> Result<T, ReadError> {
    let mut prefix = [0; 4];
    recv.read_exact(&mut prefix).await?;
    let length = frame::length(prefix)?;
    let mut message = Vec::new();
    while message.len() < length {
        let chunk = recv.read_chunk(length - message.len(), true).await?;
        message.extend_from_slice(&chunk.ok_or(ReadError::Cut)?.bytes);
    }
    Ok(frame::decode(&message)?)
}

/// Places for connections before and after their Hello.
pub(crate) struct Places {
    pub(crate) handshake: OwnedSemaphorePermit,
    pub(crate) sessions: Arc<Semaphore>,
}

pub(crate) fn count(outcome: &'static str) {
    metrics::counter!(names::SESSIONS, "outcome" => outcome).increment(1);
}

/// One session, from its handshake to its end.
pub(crate) async fn run(engine: &Engine, incoming: Incoming, places: Places) {
    let bound = Duration::from_millis(engine.shared.config.quic.hello_timeout_ms);
    let remote = incoming.remote_address();
    let (connection, send, hello) = match open(incoming, Instant::now() + bound).await {
        Ok(opened) => opened,
        Err(error) => {
            count("handshake_failed");
            if let Some(refusal) = error.refusal() {
                refusal.count();
            }
            tracing::warn!(%remote, %error, "session not opened");
            return error.tell().await;
        }
    };
    let Ok(_place) = places.sessions.try_acquire_owned() else {
        count("full");
        Refusal::SessionsFull.count();
        return refuse(&connection, send, "the collector is full".to_owned()).await;
    };
    drop(places.handshake);
    match welcome(engine, &connection, &hello).await {
        Ok((intake, welcome)) => {
            count("welcome");
            serve(&engine.shared, connection, send, intake, &hello, welcome).await;
        }
        Err(reason) => {
            count("refused");
            Refusal::HelloRejected.count();
            tracing::warn!(%remote, claimed = %hello.agent_id, reason, "session refused");
            refuse(&connection, send, reason).await;
        }
    }
}

/// Waits until `deadline` for the handshake and a Hello.
async fn open(
    incoming: Incoming,
    deadline: Instant,
) -> Result<(Connection, SendStream, Hello), OpenError> {
    let connecting = async { incoming.accept()?.await };
    let connection = timeout_at(deadline, connecting)
        .await
        .map_err(|_| OpenError::HandshakeTimeout)??;
    let first = async {
        let (send, mut recv) = connection.accept_bi().await?;
        let hello = read_frame(&mut recv).await;
        Ok((send, hello))
    };
    match timeout_at(deadline, first).await {
        Ok(Ok((send, Ok(hello)))) => Ok((connection, send, hello)),
        Ok(Ok((send, Err(error)))) => Err(OpenError::Hello(error, connection, send)),
        Ok(Err(error)) => Err(OpenError::Gone(error)),
        Err(_) => Err(OpenError::HelloTimeout(connection)),
    }
}

/// Why a session did not come to its Hello.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("the handshake failed: {0}")]
    Handshake(#[from] quinn::ConnectionError),
    #[error("no handshake within quic.hello_timeout_ms")]
    HandshakeTimeout,
    #[error("gone before its Hello: {0}")]
    Gone(#[source] quinn::ConnectionError),
    #[error("no Hello within quic.hello_timeout_ms")]
    HelloTimeout(Connection),
    #[error("Hello cannot be read: {0}")]
    Hello(#[source] ReadError, Connection, SendStream),
}

impl OpenError {
    /// Returns what was refused; nothing was where the peer just went away.
    fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Handshake(_) | Self::HandshakeTimeout => Some(Refusal::Handshake),
            Self::HelloTimeout(_) => Some(Refusal::HelloTimeout),
            Self::Hello(error, ..) if error.is_malformed() => Some(Refusal::HelloMalformed),
            Self::Hello(..) | Self::Gone(_) => None,
        }
    }

    /// Tells the peer, where it can be told.
    async fn tell(self) {
        let reason = self.to_string();
        match self {
            Self::Hello(_, connection, send) => refuse(&connection, send, reason).await,
            Self::HelloTimeout(connection) => {
                connection.close(close::REFUSED.into(), reason.as_bytes());
            }
            Self::Handshake(_) | Self::HandshakeTimeout | Self::Gone(_) => {}
        }
    }
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
    connection.close(close::REFUSED.into(), b"refused");
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
            old.close(close::REPLACED.into(), b"replaced by a new session");
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
