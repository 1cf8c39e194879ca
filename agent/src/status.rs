//! What the agent tells about itself: `/readyz` and `/status`. The truth about shipping, not only that
//! the process runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use headwater_protocol::AgentId;
use headwater_service::admin;
use headwater_service::clock::{Micros, SharedClock};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::buffer::{Buffer, Position};
use crate::metrics::{APPENDS_REFUSED, EVENTS_LOST, GENERATIONS_QUARANTINED};
use crate::reload::Settings;

/// What readiness is told from.
pub(crate) struct Status {
    agent_id: AgentId,
    buffer: Buffer,
    clock: SharedClock,
    settings: Settings,
    started: Instant,
    session: Mutex<Session>,
    progress: Mutex<Progress>,
}

/// How shipping stands.
#[derive(Debug, Clone, Default)]
struct Session {
    collector: Option<SocketAddr>,
    /// Why the last session or attempt failed; none since the last one opened.
    failure: Option<String>,
}

/// Since when shipping has not moved on.
struct Progress {
    acked: Position,
    since: Micros,
}

/// The document of `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the program.
    pub version: String,
    /// The agent's id.
    pub agent_id: AgentId,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Why `/readyz` fails; `None` when it does not.
    pub not_ready: Option<String>,
    /// Collector of the open session.
    pub session: Option<SocketAddr>,
    /// Why there is no session, as far as the last attempt tells.
    pub session_failure: Option<String>,
    /// Everything up to this position is acknowledged.
    pub acked: Position,
    /// Nothing above this position has ever been sent.
    pub sent: Position,
    /// Everything up to this position is durable.
    pub durable: Position,
    /// Events accepted and not acknowledged.
    pub events: u64,
    /// Age of the oldest of them, in seconds.
    pub oldest_age_s: u64,
    /// Generations on disk.
    pub generations: usize,
    /// Bytes that the buffer's directory takes on disk.
    pub disk_bytes: u64,
    /// `buffer.disk_bytes_max`.
    pub disk_bytes_max: u64,
    /// Appends refused since the start, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Events lost or damaged since the start.
    pub lost: u64,
    /// Generations set aside since the start.
    pub quarantined: u64,
}

impl Report {
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always serialise")
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl Status {
    pub(crate) fn new(
        agent_id: AgentId,
        buffer: Buffer,
        clock: SharedClock,
        settings: Settings,
    ) -> Self {
        let progress = Progress {
            acked: buffer.head().acked,
            since: clock.now(),
        };
        Self {
            agent_id,
            buffer,
            clock,
            settings,
            started: Instant::now(),
            session: Mutex::default(),
            progress: Mutex::new(progress),
        }
    }

    /// Notes the collector of the session that is open now, or that there is none.
    pub(crate) fn set_session(&self, collector: Option<SocketAddr>) {
        let mut session = self.session.lock();
        session.collector = collector;
        if collector.is_some() {
            session.failure = None;
        }
    }

    /// Notes why a session or an attempt failed.
    pub(crate) fn session_failed(&self, reason: String) {
        self.session.lock().failure = Some(reason);
    }

    /// Returns the age of the oldest event without an ack, in seconds; 0 when there is none. Reads
    /// the disk. Call it every few seconds: it also notes whether acks come.
    pub(crate) fn observe(&self) -> u64 {
        self.stalled_s();
        let age = |received_at| self.clock.now().saturating_sub(received_at).max(0);
        seconds(self.buffer.oldest_received_at().map_or(0, age))
    }

    /// Returns for how long no ack has come although events wait, in seconds.
    fn stalled_s(&self) -> u64 {
        let now = self.clock.now();
        let acked = self.buffer.head().acked;
        let mut progress = self.progress.lock();
        if acked != progress.acked || self.buffer.buffered() == 0 {
            *progress = Progress { acked, since: now };
        }
        seconds(now - progress.since)
    }

    /// Says whether events are taken and leave the host; the reason when not.
    pub(crate) fn ready(&self) -> Result<(), String> {
        self.ready_with(&self.session())
    }

    fn session(&self) -> Session {
        self.session.lock().clone()
    }

    fn ready_with(&self, session: &Session) -> Result<(), String> {
        let facts = Facts {
            refusal: self.buffer.refusal(),
            session_open: session.collector.is_some(),
            failure: session.failure.clone(),
            oldest_age_s: self.observe(),
            stalled_s: self.stalled_s(),
        };
        facts.ready(self.settings.now().admin.unacknowledged_age_max_s)
    }

    /// Returns the document of `/status`.
    pub(crate) fn report(&self) -> Report {
        let head = self.buffer.head();
        // Once, so that the document agrees with itself.
        let session = self.session();
        let refused = admin::samples(APPENDS_REFUSED)
            .into_iter()
            .map(|(labels, value)| {
                let reason = labels.trim_start_matches("reason=").trim_matches('"');
                (reason.to_owned(), value as u64)
            });
        let total = |name| {
            let values = admin::samples(name).into_iter().map(|(_, value)| value);
            values.sum::<f64>() as u64
        };
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_id: self.agent_id.clone(),
            uptime_s: self.started.elapsed().as_secs(),
            not_ready: self.ready_with(&session).err(),
            session: session.collector,
            session_failure: session.failure,
            acked: head.acked,
            sent: head.sent,
            durable: *self.buffer.durable().borrow(),
            events: self.buffer.buffered(),
            oldest_age_s: self.observe(),
            generations: self.buffer.generations(),
            disk_bytes: self.buffer.measured_disk_bytes(),
            disk_bytes_max: self.settings.now().buffer.disk_bytes_max,
            refused: refused.collect(),
            lost: total(EVENTS_LOST),
            quarantined: total(GENERATIONS_QUARANTINED),
        }
    }

    /// Returns the document of `/inspect`.
    pub(crate) fn inspect(&self) -> String {
        serde_json::to_string(&self.buffer.inspect()).expect("strings and numbers always serialise")
    }
}

fn seconds(micros: Micros) -> u64 {
    u64::try_from(micros / 1_000_000).unwrap_or(0)
}

/// What readiness follows from.
struct Facts {
    refusal: Option<String>,
    session_open: bool,
    failure: Option<String>,
    oldest_age_s: u64,
    stalled_s: u64,
}

impl Facts {
    /// Not ready: events are refused; or they have waited for longer than `bound_s` while there is no
    /// session, or while a session brings no ack. A backlog that drains is old and ready.
    fn ready(&self, bound_s: u64) -> Result<(), String> {
        let age = self.oldest_age_s;
        if let Some(reason) = &self.refusal {
            return Err(format!("events are refused: {reason}"));
        }
        if !self.session_open && age > bound_s {
            let why = self.failure.iter().map(|it| format!(" ({it})"));
            return Err(format!(
                "no session with the collector{}; the oldest event has waited {age} s (bound {bound_s} s)",
                why.collect::<String>()
            ));
        }
        if self.session_open && age > bound_s && self.stalled_s > bound_s {
            return Err(format!(
                "the collector acknowledges nothing; no ack for {} s, the oldest event has waited {age} s (bound {bound_s} s)",
                self.stalled_s
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_events_leave_the_host() {
        let cases = [
            ((false, 0, 0), None),
            ((false, 60, 60), None),
            ((false, 61, 0), Some("no session with the collector")),
            ((true, 61, 61), Some("acknowledges nothing")),
            // An old backlog drains, or a young event waits for its commit.
            ((true, 5000, 2), None),
            ((true, 2, 5000), None),
        ];
        for ((session_open, oldest_age_s, stalled_s), expected) in cases {
            let facts = Facts {
                refusal: None,
                session_open,
                failure: None,
                oldest_age_s,
                stalled_s,
            };
            match (facts.ready(60), expected) {
                (Ok(()), None) => {}
                (Err(reason), Some(expected)) => assert!(reason.contains(expected), "{reason}"),
                (told, expected) => panic!("{told:?}, expected {expected:?}"),
            }
        }
        let refusing = Facts {
            refusal: Some("buffer is full".to_owned()),
            session_open: true,
            failure: None,
            oldest_age_s: 0,
            stalled_s: 0,
        };
        assert_eq!(
            refusing.ready(60).unwrap_err(),
            "events are refused: buffer is full"
        );
    }
}
