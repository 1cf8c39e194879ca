//! Names of all metrics of the collector, each with what it tells.
//!
//! Each stage on the path counts what goes in, out and aside. Promise of balance, once nothing is in
//! flight: events received = committed + quarantined + duplicate + dropped unanswered (which come
//! again).

use metrics::Unit;

/// Sessions that are open now.
pub const SESSIONS_OPEN: &str = "collector_sessions_open";
/// Sessions by `outcome`: `welcome`, `refused`, `full`, `handshake_failed`.
pub const SESSIONS: &str = "collector_sessions_total";
/// Sessions that the collector closed, by `reason`: `replaced`, `age`, `untrusted`, `set_back`.
pub const SESSIONS_CLOSED: &str = "collector_sessions_closed_total";
/// Changed certificate files by `result`: `taken`, `refused`.
pub const CERTIFICATE_RELOADS: &str = "collector_certificate_reloads_total";
/// When the collector's certificate expires, seconds since the Unix epoch.
pub const CERTIFICATE_EXPIRES: &str = "collector_certificate_expires_timestamp_seconds";
/// When the first of the revocation lists is due to be renewed, seconds since the Unix epoch; 0 without.
pub const REVOCATIONS_EXPIRE: &str = "collector_revocations_expire_timestamp_seconds";
/// Batches by `outcome`: `ack`, `retry`, `refused`, `dropped`.
pub const BATCHES: &str = "collector_batches_total";
/// What was not taken from peers, by `reason`; see `docs/collector.md`.
pub const REFUSALS: &str = "collector_refusals_total";
/// Compressed bytes of bodies read.
pub const RECEIVED_BYTES: &str = "collector_received_bytes_total";
/// Events in batches that were staged.
pub const EVENTS_STAGED: &str = "collector_events_staged_total";
/// Events committed to `raw.events`.
pub const EVENTS_COMMITTED: &str = "collector_events_committed_total";
/// Events committed to `raw.quarantine`, by `reason`, which is the column `failure_type`.
pub const EVENTS_QUARANTINED: &str = "collector_events_quarantined_total";
/// Events that came again and were left out.
pub const EVENTS_DUPLICATE: &str = "collector_events_duplicate_total";
/// `track` calls whose name no file of the tracking plan has, counted when they are staged.
pub const EVENTS_UNPLANNED: &str = "collector_events_unplanned_total";
/// Breaks of the tracking plan by `event` (its canonical name) and `keyword`, counted when the event is
/// staged.
pub const PLAN_VIOLATIONS: &str = "collector_plan_violations_total";
/// Reloads of the tracking plan by `result`: `applied`, `unchanged`, `invalid`.
pub const PLAN_RELOADS: &str = "collector_plan_reloads_total";
/// Events in the tracking plan that is in force.
pub const PLAN_EVENTS: &str = "collector_plan_events";
/// Uncompressed bytes that are staged and not committed, at least 512 for each event.
pub const STAGED_BYTES: &str = "collector_staged_bytes";
/// Batches whose body is not read for want of room, by `for`: `agent` (its own share is full), `all`.
pub const WAITING_BATCHES: &str = "collector_waiting_batches";
/// Batches that came too early and wait for the one before them.
pub const PARKED_BATCHES: &str = "collector_parked_batches";
/// Age of the oldest batch that is staged and not committed, set at each commit.
pub const STAGED_OLDEST_SECONDS: &str = "collector_staged_oldest_seconds";
/// Time that a batch takes from body to rows.
pub const STAGE_SECONDS: &str = "collector_stage_seconds";
/// Attempts to commit by `outcome`: `ok`, `conflict`, `unknown`, `failed`.
pub const COMMITS: &str = "collector_commits_total";
/// Time from the start of a group's first attempt until it is committed and read back.
pub const COMMIT_SECONDS: &str = "collector_commit_seconds";
/// Looks at the tables while nobody committed, by `outcome`: `ok`, `failed`.
pub const LOOKS: &str = "collector_table_looks_total";
/// Age of each event of `raw.events` when its commit was read back: since its agent accepted it.
pub const FRESHNESS_SECONDS: &str = "collector_freshness_seconds";
/// Events that an `agent` has offered and that are not committed: the agents furthest behind.
pub const AGENT_LAG_EVENTS: &str = "collector_agent_lag_events";
/// How long the watermark of an `agent` has not moved although it has offered events: the same agents.
pub const AGENT_LAG_SECONDS: &str = "collector_agent_lag_seconds";
/// Events committed to `raw.events`, by `company`: those with the most.
pub const COMPANY_EVENTS: &str = "collector_company_events_total";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// A distribution.
    Histogram,
}

impl Kind {
    /// Returns the word of the text format.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Every metric: name, kind, unit and description.
pub const ALL: &[(&str, Kind, Unit, &str)] = &[
    (
        SESSIONS_OPEN,
        Kind::Gauge,
        Unit::Count,
        "Sessions that are open now",
    ),
    (
        SESSIONS,
        Kind::Counter,
        Unit::Count,
        "Sessions by outcome: welcome, refused, full, handshake_failed",
    ),
    (
        SESSIONS_CLOSED,
        Kind::Counter,
        Unit::Count,
        "Sessions that the collector closed, by reason: replaced, age, untrusted, set_back",
    ),
    (
        CERTIFICATE_RELOADS,
        Kind::Counter,
        Unit::Count,
        "Changed certificate files by result: taken, refused",
    ),
    (
        CERTIFICATE_EXPIRES,
        Kind::Gauge,
        Unit::Seconds,
        "When the collector's certificate expires, Unix time",
    ),
    (
        REVOCATIONS_EXPIRE,
        Kind::Gauge,
        Unit::Seconds,
        "When the first revocation list is due to be renewed, Unix time; 0 without",
    ),
    (
        BATCHES,
        Kind::Counter,
        Unit::Count,
        "Batches by outcome: ack, retry, refused, dropped",
    ),
    (
        REFUSALS,
        Kind::Counter,
        Unit::Count,
        "What was not taken from peers, by reason",
    ),
    (
        RECEIVED_BYTES,
        Kind::Counter,
        Unit::Bytes,
        "Compressed bytes of bodies read",
    ),
    (
        EVENTS_STAGED,
        Kind::Counter,
        Unit::Count,
        "Events in batches that were staged",
    ),
    (
        EVENTS_COMMITTED,
        Kind::Counter,
        Unit::Count,
        "Events committed to raw.events",
    ),
    (
        EVENTS_QUARANTINED,
        Kind::Counter,
        Unit::Count,
        "Events committed to raw.quarantine by reason (failure_type)",
    ),
    (
        EVENTS_DUPLICATE,
        Kind::Counter,
        Unit::Count,
        "Events that came again and were left out",
    ),
    (
        EVENTS_UNPLANNED,
        Kind::Counter,
        Unit::Count,
        "Calls of track whose name no file of the tracking plan has",
    ),
    (
        PLAN_VIOLATIONS,
        Kind::Counter,
        Unit::Count,
        "Breaks of the tracking plan by event and keyword",
    ),
    (
        PLAN_RELOADS,
        Kind::Counter,
        Unit::Count,
        "Reloads of the tracking plan by result: applied, unchanged, invalid",
    ),
    (
        PLAN_EVENTS,
        Kind::Gauge,
        Unit::Count,
        "Events in the tracking plan that is in force",
    ),
    (
        STAGED_BYTES,
        Kind::Gauge,
        Unit::Bytes,
        "Uncompressed bytes that are staged and not committed, at least 512 for each event",
    ),
    (
        WAITING_BATCHES,
        Kind::Gauge,
        Unit::Count,
        "Batches whose body is not read for want of room, by for: agent, all",
    ),
    (
        PARKED_BATCHES,
        Kind::Gauge,
        Unit::Count,
        "Batches that wait for the one before them",
    ),
    (
        STAGED_OLDEST_SECONDS,
        Kind::Gauge,
        Unit::Seconds,
        "Age of the oldest batch that is staged and not committed",
    ),
    (
        STAGE_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Time that a batch takes from body to rows",
    ),
    (
        COMMITS,
        Kind::Counter,
        Unit::Count,
        "Attempts to commit by outcome: ok, conflict, unknown, failed",
    ),
    (
        COMMIT_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Time of a group from its first attempt until it is committed and read back",
    ),
    (
        LOOKS,
        Kind::Counter,
        Unit::Count,
        "Looks at the tables while nobody committed, by outcome: ok, failed",
    ),
    (
        FRESHNESS_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Age of each committed event, since its agent accepted it",
    ),
    (
        AGENT_LAG_EVENTS,
        Kind::Gauge,
        Unit::Count,
        "Events offered and not committed, of the agents furthest behind",
    ),
    (
        AGENT_LAG_SECONDS,
        Kind::Gauge,
        Unit::Seconds,
        "Time for which the watermark of an agent that is behind has not moved",
    ),
    (
        COMPANY_EVENTS,
        Kind::Counter,
        Unit::Count,
        "Events committed to raw.events, of the companies with the most",
    ),
];

/// Tells the recorder what every metric is.
pub(crate) fn describe() {
    for (name, kind, unit, description) in ALL {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *unit, *description),
            Kind::Gauge => metrics::describe_gauge!(*name, *unit, *description),
            Kind::Histogram => metrics::describe_histogram!(*name, *unit, *description),
        }
    }
}

/// Raises a gauge for as long as it lives.
pub(crate) struct Held {
    gauge: metrics::Gauge,
    by: f64,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("by", &self.by)
            .finish_non_exhaustive()
    }
}

impl Held {
    pub(crate) fn new(name: &'static str, by: f64) -> Self {
        Self::of(metrics::gauge!(name), by)
    }

    pub(crate) fn of(gauge: metrics::Gauge, by: f64) -> Self {
        gauge.increment(by);
        Self { gauge, by }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.decrement(self.by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_metric_and_every_refusal() {
        let text = include_str!("../../docs/collector.md");
        for (name, ..) in ALL {
            let is_listed = [format!("|`{name}`|"), format!("|`{name}{{")]
                .iter()
                .any(|cell| text.contains(cell));
            assert!(is_listed, "{name}");
        }
        for refusal in crate::refusal::Refusal::ALL {
            let reason = refusal.as_str();
            assert!(text.contains(&format!("|`{reason}`|")), "{reason}");
        }
    }

    #[test]
    fn names_carry_crate_and_unit() {
        for (name, kind, unit, _) in ALL {
            assert!(name.starts_with("collector_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            let stem = name.trim_end_matches("_total");
            match unit {
                Unit::Seconds => assert!(stem.ends_with("_seconds"), "{name}"),
                Unit::Bytes => assert!(stem.ends_with("_bytes"), "{name}"),
                _ => {}
            }
        }
    }
}
