//! From one connection to the next within a session: make before break.

use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{End, Retired, Session};
use crate::metrics::HANDOVERS;
use crate::reload::Live;
use crate::shipper::error::SessionError;
use crate::shipper::route::backoff;
use crate::shipper::silence::Silence;
use crate::shipper::successor::{Reason, Succession, Successor};

impl Session<'_> {
    pub(super) fn successor(&self, delay: Duration, urgent: Option<Reason>) -> Successor {
        Successor::of(self.shipper, &self.live, &self.link, delay, urgent)
    }

    /// Returns when to look whether the collector does something; never when nothing waits for it.
    pub(super) fn looks_at(&self) -> Option<Instant> {
        let waits = !self.is_broken && (!self.sendings.is_empty() || self.retries.goes_on());
        waits.then(|| self.silence.looks_at())
    }

    pub(super) fn look(&mut self) {
        self.silence
            .look(self.link.channel.grants(), Instant::now());
    }

    /// Returns why another connection is to be tried at once: the collector does nothing with what waits
    /// for it, and there is one to try that was not left lately.
    pub(super) fn urgent(&self) -> Option<Reason> {
        let now = Instant::now();
        let (addresses, pauses) = (&self.live.collector.addresses, &self.shipper.pauses);
        let may_try = |reason: &Reason| {
            let mut candidates = reason
                .candidates(self.link.index, addresses.len())
                .into_iter();
            candidates.any(|it| pauses.end_of(&addresses[it], now) <= now)
        };
        let is_underway = !self.sendings.is_empty();
        let bound = stall_timeout(&self.live);
        let reason = if self.is_broken {
            None
        } else if is_underway && self.silence.is_long(now) {
            Some(Reason::Stalled)
        } else if self.retries.are_long(bound, now, is_underway) {
            Some(Reason::Retries)
        } else {
            None
        };
        reason.filter(may_try)
    }

    pub(super) fn handover_delay(&self) -> Duration {
        match self.handover_failures {
            0 => Duration::ZERO,
            failures => {
                let chance = self.shipper.chance.as_ref();
                backoff(failures - 1, 1, &self.live.collector, chance)
            }
        }
    }

    /// Goes over to the next connection, if there is one.
    pub(super) fn succeed(&mut self, made: Succession) -> Result<Option<End>, SessionError> {
        let Succession {
            reason,
            live,
            outcome,
        } = made;
        let result = if outcome.is_ok() { "done" } else { "failed" };
        counter!(HANDOVERS, "reason" => reason.as_str(), "result" => result).increment(1);
        let welcomed = match outcome {
            Ok(welcomed) => welcomed,
            Err(error) if self.is_broken || matches!(error, SessionError::Watermark { .. }) => {
                return Err(error);
            }
            Err(error) => {
                let reason = reason.as_str();
                warn!(%error, reason, "no other connection; the one in use stays");
                self.handover_failures += 1;
                return Ok(None);
            }
        };
        self.handover_failures = 0;
        let was_idle = reason.is_idle_collector();
        if was_idle {
            let collector = &self.link.collector;
            match reason {
                Reason::Retries => warn!(
                    collector,
                    "the collector asks for everything again and takes nothing; another one takes over"
                ),
                _ => warn!(
                    collector,
                    "the collector neither answers nor reads; another connection takes over"
                ),
            }
            let first = Duration::from_millis(live.collector.preferred_probe_ms);
            self.shipper.pauses.begin(collector, first, Instant::now());
        }
        info!(
            reason = reason.as_str(),
            collector = welcomed.link.collector,
            "events go over another connection"
        );
        let fits = welcomed.stretch.epoch == self.stretch.epoch
            && welcomed.limits == self.theirs
            && live.collector == self.live.collector;
        if !fits {
            return Ok(Some(End::Replaced(Box::new(welcomed), live)));
        }
        self.live = live;
        let old = std::mem::replace(&mut self.link, welcomed.link);
        let was_broken = std::mem::replace(&mut self.is_broken, false);
        // What an idle collector was sent, or has put off, goes out again at once.
        if was_idle {
            self.flight.hasten(Instant::now());
        } else if !was_broken {
            let drain = Duration::from_millis(self.live.collector.handover_drain_ms);
            self.retired = Some(Retired {
                link: old,
                until: Instant::now() + drain,
            });
        }
        self.silence = silence(&self.live);
        self.retries.end();
        self.forget(welcomed.watermark);
        self.shipper.show_collector(&self.live, Some(&self.link));
        Ok(None)
    }

    /// Closes the connection before this one when nothing is awaited on it any more. What it did not
    /// answer is then sent again on this one.
    pub(super) fn let_retired_go(&mut self) {
        let Some(retired) = &self.retired else {
            return;
        };
        let channel = retired.link.channel.id();
        let is_awaited = self
            .sendings
            .values()
            .any(|sending| sending.channel == channel);
        if !is_awaited || Instant::now() >= retired.until {
            self.retired = None;
        }
    }
}

/// Returns the silence on a connection that has just come into use.
pub(super) fn silence(live: &Live) -> Silence {
    Silence::new(stall_timeout(live), Instant::now())
}

fn stall_timeout(live: &Live) -> Duration {
    Duration::from_millis(live.collector.stall_timeout_ms)
}
