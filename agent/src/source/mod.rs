//! The source: the HTTP API that analytics SDKs already speak.
//!
//! Answers are made for how SDKs react, not for how HTTP reads: exactly 200 with JSON, and only after
//! the events are durable (D-1); 429 or 503 with an integer `Retry-After` for all that passes; a 4xx
//! means loss in most SDKs and is kept for what can never work.
//!
//! | status | when |
//! |---|---|
//! | 200 | every event of the request is durable; bad ones are listed in `rejected` and quarantined later |
//! | 400 | the body as a whole cannot be read, or is not what the path takes |
//! | 401 | no write key, or one that is not configured |
//! | 404, 405 | no such path; not POST |
//! | 408 | the body did not arrive in time |
//! | 413 | the body is above a hard cap, of bytes or of events, or could never fit into memory or the buffer |
//! | 429 | too much is waiting, or the company sends more than its part |
//! | 503 | the buffer or the disk is full, or the agent stops |

mod answer;
mod body;
mod body_form;
mod door;
mod endpoint;
mod facts;
mod memory;
mod msgpack;
mod prepared;
mod privacy;
mod request;
pub(crate) mod scan;
mod skew;
mod socket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::Method;
use axum::response::Response;
use headwater_service::clock::SharedClock;
use headwater_service::connections::{Bounds, Connections, Patience, Shown};
use headwater_service::places::Places;
use metrics::counter;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::companies::Companies;
use crate::metrics::{CONNECTIONS, CONNECTIONS_CLOSED, EVENTS_RECEIVED, REQUESTS};
use crate::reload::{Live, Settings};
use crate::sequencer::Sequencer;
use crate::suppression::Suppression;
use crate::window::Fingerprinter;

use answer::Answer;
use door::{Door, Peer};
use endpoint::Endpoint;
use facts::Facts;
use memory::Memory;
use prepared::Prepared;
use skew::Skews;
pub use socket::{Socket, SocketError};

/// Bodies up to this are parsed where they arrive; larger ones on a thread that may block.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// The ingest API.
#[derive(Clone)]
pub struct Source {
    shared: Arc<Shared>,
    sequencer: Sequencer,
}

struct Shared {
    settings: Settings,
    memory: Memory,
    companies: Companies,
    skews: Skews,
    suppression: Arc<Suppression>,
    /// `None` when the window is off.
    fingerprinter: Option<Fingerprinter>,
    clock: SharedClock,
}

impl Source {
    /// Makes the API; it holds `sequencer` until the last request has ended.
    pub fn new(
        settings: Settings,
        sequencer: Sequencer,
        fingerprinter: Option<Fingerprinter>,
        suppression: Arc<Suppression>,
        clock: SharedClock,
    ) -> Self {
        let live = settings.now();
        let shared = Shared {
            memory: Memory::new(live.http.memory_bytes_max),
            companies: Companies::new(&live),
            skews: Skews::new(live.event_time.devices_max),
            suppression,
            fingerprinter,
            settings,
            clock,
        };
        Self {
            shared: Arc::new(shared),
            sequencer,
        }
    }

    /// Serves on both until `stop`, then finishes the requests in progress.
    ///
    /// # Errors
    /// Returns the error of the accept loop.
    pub async fn serve(
        self,
        listener: TcpListener,
        socket: Option<Socket>,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let settings = self.shared.settings.clone();
        let places = Places::new(settings.now().http.connections_max);
        let router = Router::new().fallback(handle).with_state(self);
        let service = router.into_make_service_with_connect_info::<Peer>();
        let serve = |door| {
            let settings = settings.clone();
            let bounds = move || bounds(&settings);
            let shown = Shown {
                open: CONNECTIONS,
                closed: CONNECTIONS_CLOSED,
            };
            let connections = Connections::new(door, places.clone(), bounds, shown);
            axum::serve(connections, service.clone())
                .with_graceful_shutdown(stop.clone().cancelled_owned())
                .into_future()
        };
        let tcp = serve(Door::Tcp(listener));
        match socket {
            None => tcp.await,
            Some(socket) => tokio::try_join!(tcp, serve(Door::Unix(socket))).map(|_| ()),
        }
    }

    async fn accept(&self, peer: Option<SocketAddr>, request: Request) -> Answer {
        let Some(endpoint) = Endpoint::of(request.uri().path()) else {
            return Answer::NotFound;
        };
        match *request.method() {
            Method::OPTIONS => return Answer::Preflight,
            Method::POST => {}
            _ => return Answer::MethodNotAllowed,
        }
        match endpoint {
            Endpoint::Flags => return Answer::Flags,
            Endpoint::SelfReport => return Answer::Ignored,
            _ => {}
        }
        let live = self.shared.settings.now();
        let config = &live.http;
        self.shared.memory.set_bytes_max(config.memory_bytes_max);
        let facts = Facts::of(
            &request,
            peer.map(|peer| peer.ip()),
            config.trust_forwarded_for,
            self.shared.clock.now(),
        );
        let timeout = Duration::from_millis(config.read_timeout_ms);
        let reading = body::read(
            request.into_body(),
            config.body_bytes_max,
            &self.shared.memory,
        );
        let body = match tokio::time::timeout(timeout, reading).await {
            Err(_) => return Answer::Timeout,
            Ok(Err(answer)) => return answer,
            Ok(Ok(body)) => body,
        };
        let prepared = if body.bytes.len() <= INLINE_BYTES_MAX {
            request::prepare(&self.shared, &live, endpoint, &facts, body)
        } else {
            let work = {
                let (shared, live) = (self.shared.clone(), live.clone());
                move || request::prepare(&shared, &live, endpoint, &facts, body)
            };
            tokio::task::spawn_blocking(work)
                .await
                .unwrap_or(Err(Answer::Stopping))
        };
        match prepared {
            Ok(prepared) => self.append(&live, prepared).await,
            Err(answer) => answer,
        }
    }

    async fn append(&self, live: &Live, mut prepared: Prepared) -> Answer {
        let entries = std::mem::take(&mut prepared.entries);
        let count = entries.len();
        let (bytes_max, setting) = live.request_bytes_max();
        if prepared.bytes > bytes_max {
            // No drain would make room for it: a client must not try for ever.
            return Answer::TooLarge { bytes_max, setting };
        }
        let place =
            self.shared
                .companies
                .enter(live, &prepared.company, count as u64, prepared.bytes);
        let place = match place {
            Ok(place) => place,
            Err(limited) => return Answer::CompanyBusy(limited),
        };
        match self.sequencer.append(entries, Some(place)).await {
            Ok(duplicates) => {
                let counts = prepared.counts(count, &duplicates);
                for (verdict, count) in [
                    ("accepted", counts.accepted),
                    ("rejected", counts.rejected),
                    ("duplicate", counts.duplicates),
                    ("suppressed", counts.suppressed),
                ] {
                    counter!(EVENTS_RECEIVED, "verdict" => verdict).increment(count);
                }
                prepared.into_answer(&duplicates, counts)
            }
            Err(error) => Answer::of_append_error(&error, live.http.retry_after_s),
        }
    }
}

/// Returns the bounds in force. A large body may come slowly, so only silence ends a connection.
fn bounds(settings: &Settings) -> Bounds {
    let live = settings.now();
    Bounds {
        connections_max: live.http.connections_max,
        timeout: Duration::from_millis(live.http.idle_timeout_ms),
        patience: Patience::Bytes,
    }
}

async fn handle(
    State(source): State<Source>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let answer = source.accept(peer, request).await;
    let response = answer.into_response();
    counter!(REQUESTS, "code" => response.status().as_str().to_owned()).increment(1);
    response
}
