//! The next connection of a running session: when it is due, and to whom.
//!
//! Make before break: the connection in use ships on while the next one is opened and welcomed. If
//! that fails, nothing has happened. Why a connection is replaced: its certificate files were, it is
//! old, its collector hangs or only puts off, one that is preferred may be back, or the settings changed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use headwater_protocol::AgentId;
use headwater_service::chance::SharedChance;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Shipper;
use super::channel::Network;
use super::credentials::Credentials;
use super::error::SessionError;
use super::link::{Link, Welcomed};
use super::pauses::Pauses;
use crate::buffer::Buffer;
use crate::reload::{Live, Settings};

/// Why a connection is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Certificates,
    Age,
    Preferred,
    Settings,
    /// The collector shows no sign of life.
    Stalled,
    /// The collector answers nothing but Retry.
    Retries,
}

impl Reason {
    /// Returns the value of the metric label `reason`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Certificates => "certificates",
            Self::Age => "age",
            Self::Preferred => "preferred",
            Self::Settings => "settings",
            Self::Stalled => "stalled",
            Self::Retries => "retries",
        }
    }

    /// Returns which collectors to try, in this order, when events go to number `current` of `count`.
    pub(super) fn candidates(self, current: usize, count: usize) -> Vec<usize> {
        match self {
            // Whoever comes before the present one.
            Self::Preferred => (0..current).collect(),
            // The list may be another one: from its beginning.
            Self::Settings => (0..count).collect(),
            // Alone, it may do better on another connection.
            Self::Stalled if count == 1 => vec![current],
            Self::Stalled | Self::Retries => (current + 1..count).chain(0..current).collect(),
            Self::Certificates | Self::Age => vec![current],
        }
    }

    /// Says whether a collector that was left lately is passed over.
    fn heeds_pauses(self) -> bool {
        self == Self::Preferred || self.is_idle_collector()
    }

    /// Says whether the present collector does nothing with what waits for it.
    pub(super) fn is_idle_collector(self) -> bool {
        matches!(self, Self::Stalled | Self::Retries)
    }
}

/// What came of it.
pub(super) struct Succession {
    pub(super) reason: Reason,
    /// The settings that the new connection was made with.
    pub(super) live: Arc<Live>,
    pub(super) outcome: Result<Welcomed, SessionError>,
}

/// The next connection in the making. Resolves once; cancellation safe while it is kept.
pub(super) struct Successor {
    future: Pin<Box<dyn Future<Output = Succession> + Send>>,
    greeting: Arc<AtomicBool>,
    urgent: Option<Reason>,
}

impl Successor {
    /// Prepares to replace `link`, but not within the next `delay`; then at once if there is an `urgent`
    /// reason, else when there is one.
    pub(super) fn of(
        shipper: &Shipper,
        live: &Arc<Live>,
        link: &Link,
        delay: Duration,
        urgent: Option<Reason>,
    ) -> Self {
        let greeting = Arc::new(AtomicBool::new(false));
        let search = Search {
            buffer: shipper.buffer.clone(),
            agent_id: shipper.agent_id.clone(),
            settings: shipper.settings.clone(),
            credentials: shipper.watched.clone(),
            pauses: shipper.pauses.clone(),
            network: shipper.network.clone(),
            chance: shipper.chance.clone(),
            greeting: greeting.clone(),
            held: live.clone(),
            used: link.credentials.clone(),
            index: link.index,
            old_at: link.since + Duration::from_secs(live.collector.session_age_max_s),
        };
        let future = Box::pin(async move {
            tokio::time::sleep(delay).await;
            search.run(urgent).await
        });
        Self {
            future,
            greeting,
            urgent,
        }
    }

    /// Resolves when there is a next connection, or none could be made although one was due.
    pub(super) async fn made(&mut self) -> Succession {
        (&mut self.future).await
    }

    /// Says whether Hello may have been sent: the collector then closes the connection in use, which
    /// is no failure.
    pub(super) fn is_greeting(&self) -> bool {
        self.greeting.load(Ordering::Relaxed)
    }

    /// Returns the urgent reason that it was prepared for.
    pub(super) fn urgent(&self) -> Option<Reason> {
        self.urgent
    }
}

struct Search {
    buffer: Buffer,
    agent_id: AgentId,
    settings: Settings,
    credentials: watch::Receiver<Arc<Credentials>>,
    pauses: Arc<Pauses>,
    network: Arc<dyn Network>,
    chance: SharedChance,
    greeting: Arc<AtomicBool>,
    held: Arc<Live>,
    used: Arc<Credentials>,
    index: usize,
    old_at: Instant,
}

impl Search {
    async fn run(mut self, urgent: Option<Reason>) -> Succession {
        let reason = match urgent {
            // Others may stand in new settings, and a certificate can run out meanwhile.
            Some(urgent) => self.changed().now_or_never().unwrap_or(urgent),
            None => self.due().await,
        };
        let live = self.settings.now();
        let config = &live.collector;
        let bound = Duration::from_millis(config.connect_timeout_ms);
        let last = config.addresses.len() - 1;
        let mut outcome = Err(SessionError::ConnectTimeout(bound));
        for index in reason.candidates(self.index.min(last), config.addresses.len()) {
            if reason.heeds_pauses() && self.is_paused(&config.addresses[index]) {
                continue;
            }
            let credentials = self.credentials.borrow().clone();
            let attempt = self.attempt(&live, credentials, index);
            outcome = timeout(bound, attempt)
                .await
                .unwrap_or(Err(SessionError::ConnectTimeout(bound)));
            if outcome.is_ok() || self.greeting.load(Ordering::Relaxed) {
                break;
            }
        }
        Succession {
            reason,
            live,
            outcome,
        }
    }

    /// Waits until the settings or the certificates differ from those in use.
    async fn changed(&mut self) -> Reason {
        let used = self.used.clone();
        let newer = |now: &Arc<Credentials>| !Arc::ptr_eq(now, &used);
        tokio::select! {
            biased;
            () = self.settings.until_shipping_differs(&self.held) => Reason::Settings,
            Ok(_) = self.credentials.wait_for(newer) => Reason::Certificates,
        }
    }

    /// Waits until the connection in use should be replaced.
    async fn due(&mut self) -> Reason {
        let probe = self.held.collector.preferred_probe_ms;
        // A collector that comes back must not meet all its agents in the same moment.
        let probe = Duration::from_millis(self.chance.within(probe / 2..=probe));
        let now = Instant::now();
        let preferred = &self.held.collector.addresses[..self.index];
        let ends = preferred.iter().map(|it| self.pauses.end_of(it, now));
        let returns_at = ends.min().map_or(now, |end| end.max(now + probe));
        let (index, old_at) = (self.index, self.old_at);
        tokio::select! {
            biased;
            reason = self.changed() => reason,
            () = sleep_until(old_at) => Reason::Age,
            () = sleep_until(returns_at), if index > 0 => Reason::Preferred,
        }
    }

    fn is_paused(&self, collector: &str) -> bool {
        let now = Instant::now();
        self.pauses.end_of(collector, now) > now
    }

    async fn attempt(
        &self,
        live: &Live,
        credentials: Arc<Credentials>,
        index: usize,
    ) -> Result<Welcomed, SessionError> {
        let link = Link::connect(&*self.network, &live.collector, credentials, index).await?;
        self.greeting.store(true, Ordering::Relaxed);
        Welcomed::greet(link, &self.buffer, &self.agent_id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_stand_in_the_order_of_preference() {
        let list = |reason: Reason, current| reason.candidates(current, 3);
        assert_eq!(list(Reason::Preferred, 1), [0]);
        assert_eq!(list(Reason::Preferred, 2), [0, 1]);
        assert_eq!(list(Reason::Settings, 1), [0, 1, 2]);
        for reason in [Reason::Stalled, Reason::Retries] {
            assert_eq!(list(reason, 0), [1, 2]);
            assert_eq!(list(reason, 1), [2, 0]);
        }
        assert_eq!(Reason::Stalled.candidates(0, 1), [0]);
        assert!(Reason::Retries.candidates(0, 1).is_empty());
        for reason in [Reason::Certificates, Reason::Age] {
            assert_eq!(list(reason, 2), [2]);
        }
    }
}
