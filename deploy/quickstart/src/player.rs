//! Plays the desk's requests through the agent's HTTP port, as SDKs would: several connections,
//! honouring `Retry-After`, counting only what was answered with 200.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use headwater_service::clock::SharedClock;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_util::sync::CancellationToken;

use crate::desk::{Batch, Desk};

/// Connections that send at the same time: enough for group commit, few enough for a laptop.
const CONNECTIONS: usize = 24;
/// Longest wait for one answer. The agent answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Tries of one request before the play is given up.
const TRIES_MAX: u32 = 20;
/// Longest `Retry-After` that is honoured, in seconds, as in Segment's SDKs.
const RETRY_AFTER_MAX: u64 = 300;

/// Why the play stopped. Starting again plays it from the beginning: what was stored already is
/// recognised by its message ids.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// No answer: the events may be stored or not.
    #[error("no answer from the agent: {0}; start again to resume")]
    NoAnswer(#[source] reqwest::Error),
    /// An answer that no retry helps against.
    #[error("the agent answered {status} to a batch: {body}; start again to resume")]
    Refused {
        /// Status of the answer.
        status: StatusCode,
        /// Its first bytes.
        body: String,
    },
    /// Busy for too long.
    #[error(
        "the agent answered {status} {tries} times in a row; see its /readyz, then start again"
    )]
    Busy {
        /// Status of the last answer.
        status: StatusCode,
        /// How often.
        tries: u32,
    },
    /// Ctrl-C.
    #[error("stopped; start again to resume")]
    Stopped,
}

/// What was sent and acknowledged.
#[derive(Debug, Default)]
pub struct Played {
    /// Events in requests that were answered with 200.
    pub sent: AtomicU64,
    /// Events that the agent took as valid.
    pub accepted: AtomicU64,
    /// Events that the agent itself recognised as duplicates and did not store.
    pub duplicates_at_agent: AtomicU64,
    /// Events that the agent took for quarantine.
    pub rejected: AtomicU64,
    /// Requests that were answered with 200.
    pub requests: AtomicU64,
    /// Answers that asked for a later try.
    pub retries: AtomicU64,
}

/// The agent's answer to a batch.
#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Verdict {
    accepted: u64,
    duplicates: u64,
    rejected: Vec<IgnoredAny>,
}

struct Player<'a> {
    desk: &'a Desk,
    url: String,
    client: Client,
    clock: SharedClock,
    next: AtomicUsize,
    played: &'a Played,
}

/// Sends all of `desk` to the agent at `address` and adds to `played` while it does.
///
/// # Errors
/// See [`PlayError`]; the first one ends all connections.
pub async fn play(
    desk: &Desk,
    address: std::net::SocketAddr,
    clock: SharedClock,
    stop: CancellationToken,
    played: &Played,
) -> Result<(), PlayError> {
    let client = Client::builder()
        .timeout(ANSWER_TIMEOUT)
        .pool_max_idle_per_host(CONNECTIONS)
        .no_proxy()
        .build()
        .map_err(PlayError::NoAnswer)?;
    let player = Player {
        desk,
        url: format!("http://{address}/v1/batch"),
        client,
        clock,
        next: AtomicUsize::new(0),
        played,
    };
    let connections = (0..CONNECTIONS).map(|_| player.connection());
    tokio::select! {
        all = futures::future::try_join_all(connections) => all.map(|_| ()),
        () = stop.cancelled() => Err(PlayError::Stopped),
    }
}

impl Player<'_> {
    /// Sends one request after the other until none is left.
    async fn connection(&self) -> Result<(), PlayError> {
        while let Some(batch) = self
            .desk
            .batches
            .get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            let verdict = self.deliver(batch).await?;
            let played = self.played;
            for (counter, events) in [
                (&played.sent, batch.items.len() as u64),
                (&played.requests, 1),
                (&played.accepted, verdict.accepted),
                (&played.duplicates_at_agent, verdict.duplicates),
                (&played.rejected, verdict.rejected.len() as u64),
            ] {
                counter.fetch_add(events, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Sends one request until it is taken.
    async fn deliver(&self, batch: &Batch) -> Result<Verdict, PlayError> {
        let key = batch.write_key(&self.desk.world);
        let mut status = StatusCode::OK;
        for attempt in 0..TRIES_MAX {
            let answer = self.send(batch, &key, attempt).await?;
            status = answer.status();
            match status.as_u16() {
                200 => return answer.json_or_default().await,
                408 | 429 | 500 | 502 | 503 | 504 => {
                    self.played.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(retry_after(&answer)).await;
                }
                _ => {
                    let body = answer.text().await.unwrap_or_default();
                    let body = body.chars().take(200).collect();
                    return Err(PlayError::Refused { status, body });
                }
            }
        }
        Err(PlayError::Busy {
            status,
            tries: TRIES_MAX,
        })
    }

    async fn send(&self, batch: &Batch, key: &str, attempt: u32) -> Result<Response, PlayError> {
        let now = self.clock.now() / 1_000;
        let mut request = self
            .client
            .post(&self.url)
            .basic_auth(key, Some(""))
            .header(CONTENT_TYPE, batch.sdk.content_type())
            .header(USER_AGENT, batch.sdk.user_agent());
        let attempt = batch.attempt + attempt;
        if attempt > 0 {
            request = request.header("X-Retry-Count", attempt);
        }
        request
            .body(batch.render(key, now))
            .send()
            .await
            .map_err(PlayError::NoAnswer)
    }
}

trait JsonOrDefault {
    async fn json_or_default(self) -> Result<Verdict, PlayError>;
}

impl JsonOrDefault for Response {
    async fn json_or_default(self) -> Result<Verdict, PlayError> {
        let bytes = self.bytes().await.map_err(PlayError::NoAnswer)?;
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }
}

fn retry_after(answer: &Response) -> Duration {
    let seconds = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(1);
    Duration::from_secs(seconds.clamp(1, RETRY_AFTER_MAX))
}
