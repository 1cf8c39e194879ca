//! Sessions: who may speak, Hello and Welcome.
//!
//! Place on the path: after [`crate::endpoint`], where an agent's bytes enter the collector. Promise: nobody is heard whose
//! certificate does not carry the id that its Hello claims; each session's memory is bounded by its
//! windows; each batch stream gets one answer (see [`crate::stream`]).

use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::frame::{self, FrameError};
use headwater_protocol::{AgentId, Hello, HelloReply, Welcome, close};
use quinn::{Connection, Incoming, RecvStream, SendStream};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificates::{self, Certificates, Trust};
use crate::config::Config;
use crate::engine::{Engine, Shared};
use crate::intake::Intake;
use crate::metrics as names;
use crate::refusal::Refusal;
use crate::sessions;
use crate::stream::Streams;

/// Longest wait until a peer has taken the answer to its Hello. It decides itself how fast it takes bytes.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

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

/// What a connection comes in with.
pub(crate) struct Door {
    /// Its place until its Hello.
    pub(crate) handshake: OwnedSemaphorePermit,
    /// The places after that.
    pub(crate) sessions: Arc<Semaphore>,
    /// Whom the collector believed when it came.
    pub(crate) trust: Arc<Trust>,
    /// Whom it believes now.
    pub(crate) certificates: Arc<Certificates>,
}

pub(crate) fn count(outcome: &'static str) {
    metrics::counter!(names::SESSIONS, "outcome" => outcome).increment(1);
}

/// One session, from its handshake to its end.
pub(crate) async fn run(engine: &Engine, incoming: Incoming, door: Door) {
    let bound = Duration::from_millis(engine.shared.config.quic.hello_timeout_ms);
    let remote = incoming.remote_address();
    let (connection, send, hello) = match open(incoming, &door.trust, Instant::now() + bound).await
    {
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
    let Ok(_place) = Arc::clone(&door.sessions).try_acquire_owned() else {
        count("full");
        Refusal::SessionsFull.count();
        return refuse(&connection, send, "the collector is full".to_owned()).await;
    };
    let Door {
        handshake,
        trust,
        certificates,
        ..
    } = door;
    drop(handshake);
    match welcome(engine, &connection, &hello).await {
        Ok((intake, welcome)) => {
            count("welcome");
            let session = Session {
                shared: &engine.shared,
                connection,
                trust,
                certificates,
            };
            session.serve(send, intake, &hello, welcome).await;
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
    trust: &Trust,
    deadline: Instant,
) -> Result<(Connection, SendStream, Hello), OpenError> {
    let connecting = async { incoming.accept_with(Arc::clone(&trust.server))?.await };
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
    let chain = certificates::peer_chain(connection).ok_or("no client certificate")?;
    common_name(chain.first().ok_or("no client certificate")?)
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
    let taken = async {
        // The peer may be gone already; then nobody reads the reason.
        if send.write_all(&message).await.is_ok() && send.finish().is_ok() {
            send.stopped().await.ok();
        }
    };
    // A refusal is counted where it is decided.
    timeout(ANSWER_WAIT, taken).await.ok();
    connection.close(close::REFUSED.into(), b"refused");
}

/// A connection whose agent is welcome.
struct Session<'a> {
    shared: &'a Arc<Shared>,
    connection: Connection,
    trust: Arc<Trust>,
    certificates: Arc<Certificates>,
}

impl Session<'_> {
    /// Welcomes the agent and takes its batches until the connection or the collector ends, or the
    /// connection is old.
    #[tracing::instrument(level = "debug", skip_all, fields(agent_id = %hello.agent_id, epoch = hello.epoch))]
    async fn serve(self, mut send: SendStream, intake: Intake, hello: &Hello, welcome: Welcome) {
        let (connection, shared) = (&self.connection, self.shared);
        let _open = names::Held::new(names::SESSIONS_OPEN, 1.0);
        let _registered = shared.sessions.register(&hello.agent_id, connection);
        // From here on, whoever takes up new certificate files sees this session.
        if let Err(error) = self.certificates.still_accepts(&self.trust, connection) {
            sessions::close_untrusted(&hello.agent_id, connection, &error);
            return;
        }
        let committed_through = welcome.committed_through;
        let message = frame::encode(&HelloReply::Welcome(welcome));
        match timeout(ANSWER_WAIT, send.write_all(&message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                Refusal::AnswerTimeout.count();
                tracing::warn!(agent_id = %hello.agent_id, "the agent did not take its Welcome in time");
                connection.close(close::REFUSED.into(), b"the Welcome was not taken");
                return;
            }
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
        self.take_batches(intake).await;
    }

    async fn take_batches(&self, intake: Intake) {
        let (age, last_answers) = ages(&self.shared.config);
        let agent_id = intake.agent().clone();
        let batches = Arc::new(Streams {
            intake,
            connection: self.connection.clone(),
            killed: self.shared.killed.clone(),
        });
        let underway = TaskTracker::new();
        let old = tokio::time::sleep(age);
        let set_back = batches.intake.until_set_back();
        tokio::pin!(old, set_back);
        loop {
            tokio::select! {
                stream = self.connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        let (batch, underway) = (Arc::clone(&batches), underway.token());
                        self.shared.streams.spawn(async move {
                            batch.serve(send, recv).await;
                            drop(underway);
                        });
                    }
                    Err(error) => {
                        tracing::info!(%agent_id, reason = %error, "session closed");
                        return;
                    }
                },
                () = &mut old => break,
                () = &mut set_back => {
                    tracing::info!(%agent_id, "session closed: the table was set back");
                    sessions::Reason::SetBack.close(&self.connection);
                    return;
                }
                () = self.shared.stopping.cancelled() => {
                    // Streams that wait for their ack still use the connection.
                    self.connection.closed().await;
                    return;
                }
            }
        }
        underway.close();
        tokio::select! {
            _ = timeout(last_answers, underway.wait()) => {}
            _ = self.connection.closed() => {}
        }
        tracing::info!(%agent_id, "session closed for its age");
        sessions::Reason::Age.close(&self.connection);
    }
}

/// Returns for how long a connection takes batches, and then waits for the last answers.
fn ages(config: &Config) -> (Duration, Duration) {
    let age = Duration::from_millis(config.quic.connection_age_max_ms);
    let last_answers = Duration::from_millis(config.commit.stop_within_ms).min(age / 4);
    (age - last_answers, last_answers)
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
