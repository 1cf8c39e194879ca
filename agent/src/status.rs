//! What `/readyz` says: the truth about shipping, not only that the process runs.

use std::sync::atomic::{AtomicBool, Ordering};

use headwater_service::clock::SharedClock;

use crate::buffer::Buffer;
use crate::reload::Settings;

/// What readiness is told from.
pub(crate) struct Status {
    buffer: Buffer,
    clock: SharedClock,
    session_open: AtomicBool,
    settings: Settings,
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status")
            .field("session_open", &self.session_open)
            .finish_non_exhaustive()
    }
}

impl Status {
    pub(crate) fn new(buffer: Buffer, clock: SharedClock, settings: Settings) -> Self {
        Self {
            buffer,
            clock,
            session_open: AtomicBool::new(false),
            settings,
        }
    }

    pub(crate) fn set_session(&self, open: bool) {
        self.session_open.store(open, Ordering::Relaxed);
    }

    /// Returns the age of the oldest event without an ack, in seconds; 0 when there is none. Reads
    /// the disk.
    pub(crate) fn oldest_age_s(&self) -> u64 {
        let age = |received_at| self.clock.now().saturating_sub(received_at).max(0);
        let micros = self.buffer.oldest_received_at().map_or(0, age);
        u64::try_from(micros / 1_000_000).unwrap_or(0)
    }

    /// Not ready: events are refused, or there is no session and events have waited for longer than
    /// the bound.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if let Some(reason) = self.buffer.refusal() {
            return Err(format!("events are refused: {reason}"));
        }
        if self.session_open.load(Ordering::Relaxed) {
            return Ok(());
        }
        let age = self.oldest_age_s();
        let bound = self.settings.now().admin.unacknowledged_age_max_s;
        if age > bound {
            return Err(format!(
                "no session with the collector; the oldest event has waited {age} s (bound {bound} s)"
            ));
        }
        Ok(())
    }
}
