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
    pub(super) fn successor(&self, delay: Duration, is_stalled: bool) -> Successor {
        Successor::of(self.shipper, &self.live, &self.link, delay, is_stalled)
    }

    /// Returns when to look for signs of life; never when there is nothing to wait for, or nobody else
    /// to go to.
    pub(super) fn looks_at(&self) -> Option<Instant> {
        let others = self.live.collector.addresses.len() - 1;
        let waits = others > 0 && !self.is_broken && !self.sendings.is_empty();
        waits.then(|| self.silence.looks_at())
    }

    pub(super) fn look(&mut self) {
        let received = self.link.connection.stats().frame_rx;
        let grants = received.max_data + received.max_stream_data;
        self.silence.look(grants, Instant::now());
    }

    /// Says whether the collector hangs and another one may be tried.
    pub(super) fn is_stalled(&self) -> bool {
        let now = Instant::now();
        let pauses = &self.shipper.pauses;
        let may_take = |it: &&String| **it != self.link.collector && pauses.end_of(it, now) <= now;
        self.looks_at().is_some()
            && self.silence.is_long(now)
            && self.live.collector.addresses.iter().any(|it| may_take(&it))
    }

    pub(super) fn handover_delay(&self) -> Duration {
        match self.handover_failures {
            0 => Duration::ZERO,
            failures => backoff(failures - 1, 1, &self.live.collector),
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
        let is_stalled = reason == Reason::Stalled;
        if is_stalled {
            let collector = &self.link.collector;
            warn!(
                collector,
                "the collector neither answers nor reads; another one takes over"
            );
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
        // What a stalled collector was sent goes to the other one at once.
        if !was_broken && !is_stalled {
            let drain = Duration::from_millis(self.live.collector.handover_drain_ms);
            self.retired = Some(Retired {
                link: old,
                until: Instant::now() + drain,
            });
        }
        self.silence = silence(&self.live);
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
        let connection = retired.link.connection.stable_id();
        let is_awaited = self
            .sendings
            .values()
            .any(|sending| sending.connection == connection);
        if !is_awaited || Instant::now() >= retired.until {
            self.retired = None;
        }
    }
}

/// Returns the silence on a connection that has just come into use.
pub(super) fn silence(live: &Live) -> Silence {
    let bound = Duration::from_millis(live.collector.stall_timeout_ms);
    Silence::new(bound, Instant::now())
}
