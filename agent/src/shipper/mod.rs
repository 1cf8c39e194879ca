//! The shipper: keeps one session with a collector for as long as the agent runs.
//!
//! It never drops an event: whatever the collector or the network answers, the events stay in the
//! buffer, and the next session starts after the last ack. A session that fails is followed by one
//! with the next collector of the list, after a back-off with full jitter.
//!
//! ```text
//!   route        which collector, after what wait            (pure)
//!   pauses       collectors that did nothing rest
//!   channel      what is needed of a network                 quic: the one that is shipped
//!   link         connection, Hello, Welcome
//!   session      batches out                                 flight: its bookkeeping (pure)
//!     answers      what comes back, and what follows
//!     handover     to the next connection                    silence: no sign of life (pure)
//!     reader       reads and compresses ahead of the network
//!     wire         one batch on one stream
//!     successor    the next connection, before the present one goes
//!   credentials  certificate, key and CA, as they are on disk now
//! ```

pub mod channel;
mod credentials;
mod error;
mod flight;
mod link;
mod pauses;
mod quic;
mod reader;
mod route;
mod session;
mod silence;
mod successor;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::AgentId;
use headwater_service::chance::SharedChance;
use headwater_service::clock::SharedClock;
use metrics::{counter, gauge};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::buffer::Buffer;
use crate::metrics::{COLLECTOR_CONNECTED, SESSION_FAILURES, SESSION_OPEN};
use crate::reload::{Live, Settings};
use crate::status::Status;

pub use credentials::Credentials;
pub use error::SessionError;
pub(crate) use quic::Quic;

use channel::Network;
use link::{Link, Welcomed};
use pauses::Pauses;
use session::{End, Session};

/// A session that lived this long was sound: the next back-off starts small again.
const SOUND_SESSION: Duration = Duration::from_secs(10);

/// Ships what the buffer holds.
pub(crate) struct Shipper {
    buffer: Buffer,
    agent_id: AgentId,
    settings: Settings,
    watched: watch::Receiver<Arc<Credentials>>,
    pauses: Arc<Pauses>,
    network: Arc<dyn Network>,
    chance: SharedChance,
    status: Arc<Status>,
}

/// What a shipper is made of.
pub struct Parts {
    /// Where the events are.
    pub buffer: Buffer,
    /// Whose they are.
    pub agent_id: AgentId,
    /// The settings in force.
    pub settings: Settings,
    /// The certificate files as they were at the start.
    pub credentials: Arc<Credentials>,
    /// Where the collectors are.
    pub network: Arc<dyn Network>,
    /// The wall clock.
    pub clock: SharedClock,
    /// Spreads the waits.
    pub chance: SharedChance,
}

/// Runs until `stop` is cancelled, then waits for answers at most `collector.stop_drain_ms`. Other
/// certificate files are taken up as they come.
pub(crate) async fn run(parts: Parts, status: Arc<Status>, stop: CancellationToken) {
    let (current, watched) = watch::channel(parts.credentials.clone());
    let watch = credentials::watch(
        current,
        parts.settings.clone(),
        parts.agent_id.clone(),
        parts.clock.clone(),
    );
    tokio::select! {
        () = watch => {}
        () = ship(parts, watched, status, &stop) => {}
    }
}

/// As the agent does, without a look at the certificate files: what a simulation drives.
pub async fn run_over(parts: Parts, stop: CancellationToken) {
    let status = Status::new(
        parts.agent_id.clone(),
        parts.buffer.clone(),
        parts.clock.clone(),
        parts.settings.clone(),
    );
    let watched = watch::Sender::new(parts.credentials.clone()).subscribe();
    ship(parts, watched, Arc::new(status), &stop).await;
}

async fn ship(
    parts: Parts,
    watched: watch::Receiver<Arc<Credentials>>,
    status: Arc<Status>,
    stop: &CancellationToken,
) {
    let shipper = Shipper {
        buffer: parts.buffer,
        agent_id: parts.agent_id,
        settings: parts.settings,
        watched,
        pauses: Arc::default(),
        network: parts.network,
        chance: parts.chance,
        status,
    };
    shipper.run(stop).await;
    info!(buffered = shipper.buffer.buffered(), "shipping has stopped");
}

impl Shipper {
    async fn run(&self, stop: &CancellationToken) {
        let mut settings = self.settings.clone();
        self.show_collector(&self.settings.now(), None);
        let mut failures = 0_u32;
        let mut index = 0;
        while !stop.is_cancelled() {
            let started = Instant::now();
            let live = settings.now();
            let outcome = self.ship(&live, &mut index, stop).await;
            self.show_collector(&live, None);
            let Err(error) = outcome else { continue };
            if started.elapsed() > SOUND_SESSION {
                failures = 0;
            }
            self.status.session_failed(error.to_string());
            counter!(SESSION_FAILURES, "reason" => error.reason()).increment(1);
            let collectors = live.collector.addresses.len();
            let chance = self.chance.as_ref();
            let wait = route::backoff(failures, collectors, &live.collector, chance);
            failures = failures.saturating_add(1);
            let collector = &live.collector.addresses[index.min(collectors - 1)];
            if error.needs_a_person() {
                tracing::error!(%error, collector, ?wait, "session failed");
            } else {
                warn!(%error, collector, ?wait, failures, "session failed");
            }
            index = route::after(index, collectors);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                // What was wrong may be mended: no need to wait for it.
                () = settings.until_shipping_differs(&live) => (failures, index) = (0, 0),
            }
        }
    }

    /// Opens a session with the collector at `index` and ships until it fails, the epoch ends, or
    /// `stop`. `index` follows the session to where it went.
    async fn ship(
        &self,
        live: &Arc<Live>,
        index: &mut usize,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        *index = (*index).min(live.collector.addresses.len() - 1);
        let bound = Duration::from_millis(live.collector.connect_timeout_ms);
        let mut welcomed = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            opened = timeout(bound, self.open(live, *index)) => {
                opened.map_err(|_| SessionError::ConnectTimeout(bound))??
            }
        };
        let mut live = live.clone();
        loop {
            self.show_collector(&live, Some(&welcomed.link));
            let mut session = Session::new(self, live, welcomed);
            let outcome = session.run(stop).await;
            *index = session.index();
            match outcome? {
                End::Replaced(next, settings) => (welcomed, live) = (*next, settings),
                End::EpochEnded | End::Aged | End::Stopped => {
                    session.close().await;
                    return Ok(());
                }
            }
        }
    }

    async fn open(&self, live: &Live, index: usize) -> Result<Welcomed, SessionError> {
        let credentials = self.watched.borrow().clone();
        let link = Link::connect(&*self.network, &live.collector, credentials, index).await?;
        Welcomed::greet(link, &self.buffer, &self.agent_id).await
    }

    /// Shows which collector the events go to.
    fn show_collector(&self, live: &Live, link: Option<&Link>) {
        self.status
            .set_session(link.map(|link| link.channel.remote_address()));
        gauge!(SESSION_OPEN).set(if link.is_some() { 1.0 } else { 0.0 });
        let connected = link.map(|link| link.index);
        for (index, collector) in live.collector.addresses.iter().enumerate() {
            let value = if connected == Some(index) { 1.0 } else { 0.0 };
            gauge!(COLLECTOR_CONNECTED, "collector" => collector.clone()).set(value);
        }
    }
}
