//! Names of the agent's metrics, with what they mean. Each stage shows what came in, went out, was
//! refused, and how old the oldest event is.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};

/// Requests answered, label `code`: the HTTP status.
pub const REQUESTS: &str = "agent_requests_total";
/// Open connections on the port and the socket; bounded by `http.connections_max`.
pub const CONNECTIONS: &str = "agent_connections_open";
/// Connections that were closed at a bound, label `reason`: `timeout`.
pub const CONNECTIONS_CLOSED: &str = "agent_connections_closed_total";
/// Requests answered with 429 because of one company, labels `company` and `reason`: `queue`, `rate`.
pub const COMPANY_LIMITED: &str = "agent_company_limited_requests_total";
/// Memory that requests in progress take; bounded by `http.memory_bytes_max`.
pub const REQUEST_BYTES: &str = "agent_request_memory_bytes";
/// Requests that wait for the disk; bounded by `buffer.queue_requests_max`.
pub const QUEUE_REQUESTS: &str = "agent_queue_requests";
/// Event bytes that wait for the disk; bounded by `buffer.queue_bytes_max`.
pub const QUEUE_BYTES: &str = "agent_queue_bytes";
/// Events answered with 200, label `verdict`: `accepted`, `rejected` (stored for quarantine),
/// `duplicate` (durable already, not stored again) or `suppressed` (refused before the disk).
pub const EVENTS_RECEIVED: &str = "agent_events_received_total";
/// Event bytes appended durably, before the store's own overhead.
pub const APPENDED_BYTES: &str = "agent_appended_bytes_total";
/// Group commits: one fdatasync each.
pub const COMMITS: &str = "agent_commits_total";
/// Time of a group commit from the first write to the return of fdatasync.
pub const COMMIT_SECONDS: &str = "agent_commit_duration_seconds";
/// Appends that the buffer refused, label `reason`: `full`, `disk`, `store`, `overload`, `stopped`.
pub const APPENDS_REFUSED: &str = "agent_appends_refused_total";
/// Recent events that the window knows by their fingerprint.
pub const WINDOW_IDS: &str = "agent_window_ids";
/// Failures around the window's files, label `reason`: `write`, `sync`, `damaged` (read in part),
/// `forgotten` (not read). Each may let a retry be stored twice; none loses an event.
pub const WINDOW_FAILURES: &str = "agent_window_failures_total";
/// Devices whose clock is remembered.
pub const SKEW_DEVICES: &str = "agent_skew_devices";
/// Subjects of the suppression list in force.
pub const SUPPRESSION_SUBJECTS: &str = "agent_suppression_subjects";
/// Suppression lists that could not be used; the one before stays in force.
pub const SUPPRESSION_FAILURES: &str = "agent_suppression_failures_total";
/// Events accepted and not yet acknowledged.
pub const BUFFERED_EVENTS: &str = "agent_buffered_events";
/// Disk that the buffer directory takes, quarantine and reserve included.
pub const BUFFER_DISK_BYTES: &str = "agent_buffer_disk_bytes";
/// Disk that `refused/` takes, a part of the above; bounded by `buffer.refused_bytes_max`.
pub const REFUSED_DISK_BYTES: &str = "agent_refused_disk_bytes";
/// Free bytes of the buffer's file system; below `buffer.disk_free_bytes_min` events are refused.
pub const DISK_FREE_BYTES: &str = "agent_disk_free_bytes";
/// Generations on disk.
pub const GENERATIONS: &str = "agent_buffer_generations";
/// Generations that could not be opened and were moved to `quarantine/`.
pub const GENERATIONS_QUARANTINED: &str = "agent_generations_quarantined_total";
/// Events that the store lost or damaged; each is an alarm.
pub const EVENTS_LOST: &str = "agent_events_lost_total";
/// New epochs opened for events that were already numbered (lost generation, restored disk).
pub const EPOCHS_OPENED: &str = "agent_epochs_opened_total";
/// Age of the oldest event without an ack; 0 when the buffer is empty.
pub const OLDEST_AGE_SECONDS: &str = "agent_oldest_unacknowledged_age_seconds";
/// 1 while a session with the collector is open.
pub const SESSION_OPEN: &str = "agent_session_open";
/// Sessions opened.
pub const SESSIONS: &str = "agent_sessions_total";
/// 1 for the collector that events go to now, 0 for the others; label `collector`: its address.
pub const COLLECTOR_CONNECTED: &str = "agent_collector_connected";
/// Connections replaced by another without a break, labels `reason`: `certificates`, `age`,
/// `preferred`, `settings`, `stalled`, `retries`, and `result`: `done`, `failed`.
pub const HANDOVERS: &str = "agent_handovers_total";
/// Certificate sets found on disk, label `result`: `taken`, `refused`.
pub const CERTIFICATE_RELOADS: &str = "agent_certificate_reloads_total";
/// When the certificate in use expires, seconds since the Unix epoch.
pub const CERTIFICATE_EXPIRES: &str = "agent_certificate_expires_timestamp_seconds";
/// Sessions or attempts that ended in an error, label `reason`.
pub const SESSION_FAILURES: &str = "agent_session_failures_total";
/// Batches sent, repeats included.
pub const BATCHES_SENT: &str = "agent_batches_sent_total";
/// Compressed bytes of batches sent, repeats included.
pub const BATCH_BYTES_SENT: &str = "agent_batch_sent_bytes_total";
/// Events sent, repeats included.
pub const EVENTS_SENT: &str = "agent_events_sent_total";
/// New batches in memory, being read, compressed or written to the network; bounded by
/// `collector.batches_prepared_max`.
pub const BATCHES_PREPARED: &str = "agent_batches_prepared";
/// Batches sent and not acknowledged yet.
pub const BATCHES_IN_FLIGHT: &str = "agent_batches_in_flight";
/// Events that the collector refused alone; kept in `refused/`, each is an alarm.
pub const EVENTS_REFUSED: &str = "agent_events_refused_total";
/// Answers to batches, label `reply`: `ack`, `retry`, `refused`, `timeout`.
pub const BATCH_REPLIES: &str = "agent_batch_replies_total";
/// Events acknowledged: committed to the tables.
pub const EVENTS_ACKNOWLEDGED: &str = "agent_events_acknowledged_total";
/// Settings read again after a SIGHUP, label `result`: `applied`, `restart_needed`, `invalid`.
pub const RELOADS: &str = "agent_reloads_total";
/// Time from sending a batch to its ack.
pub const ACK_SECONDS: &str = "agent_batch_ack_duration_seconds";

/// Every metric: name, kind, unit and description. The reference in `docs/agent.md` lists the same.
pub const ALL: &[(&str, Kind, &str)] = &[
    (
        REQUESTS,
        Kind::Counter,
        "Requests answered, by HTTP status `code`",
    ),
    (
        CONNECTIONS,
        Kind::Gauge,
        "Open connections on the port and the socket",
    ),
    (
        CONNECTIONS_CLOSED,
        Kind::Counter,
        "Connections closed at a bound, by `reason`: timeout",
    ),
    (
        COMPANY_LIMITED,
        Kind::Counter,
        "Requests answered with 429 because of one `company`, by `reason`: queue, rate",
    ),
    (
        REQUEST_BYTES,
        Kind::Gauge,
        "Memory that requests in progress take",
    ),
    (
        QUEUE_REQUESTS,
        Kind::Gauge,
        "Requests that wait for the disk",
    ),
    (
        QUEUE_BYTES,
        Kind::Gauge,
        "Event bytes that wait for the disk",
    ),
    (
        EVENTS_RECEIVED,
        Kind::Counter,
        "Events answered with 200, by `verdict`: accepted, rejected, duplicate, suppressed",
    ),
    (
        APPENDED_BYTES,
        Kind::Counter,
        "Event bytes appended durably",
    ),
    (COMMITS, Kind::Counter, "Group commits, one fdatasync each"),
    (
        COMMIT_SECONDS,
        Kind::Histogram,
        "Duration of a group commit",
    ),
    (
        APPENDS_REFUSED,
        Kind::Counter,
        "Appends refused, by `reason`: full, disk, store, overload, stopped",
    ),
    (
        WINDOW_IDS,
        Kind::Gauge,
        "Recent events that the window knows",
    ),
    (
        WINDOW_FAILURES,
        Kind::Counter,
        "Window files not written or not read, by `reason`: write, sync, damaged, forgotten",
    ),
    (
        SKEW_DEVICES,
        Kind::Gauge,
        "Devices whose clock is remembered",
    ),
    (
        SUPPRESSION_SUBJECTS,
        Kind::Gauge,
        "Subjects of the suppression list in force",
    ),
    (
        SUPPRESSION_FAILURES,
        Kind::Counter,
        "Suppression lists that could not be used",
    ),
    (
        BUFFERED_EVENTS,
        Kind::Gauge,
        "Events accepted and not yet acknowledged",
    ),
    (
        BUFFER_DISK_BYTES,
        Kind::Gauge,
        "Disk that the buffer directory takes",
    ),
    (
        REFUSED_DISK_BYTES,
        Kind::Gauge,
        "Disk that refused/ takes, a part of the buffer directory",
    ),
    (
        DISK_FREE_BYTES,
        Kind::Gauge,
        "Free bytes of the buffer's file system",
    ),
    (GENERATIONS, Kind::Gauge, "Generations on disk"),
    (
        GENERATIONS_QUARANTINED,
        Kind::Counter,
        "Generations set aside because they cannot be read",
    ),
    (
        EVENTS_LOST,
        Kind::Counter,
        "Events that the store lost or damaged",
    ),
    (
        EPOCHS_OPENED,
        Kind::Counter,
        "New epochs opened for events already numbered",
    ),
    (
        OLDEST_AGE_SECONDS,
        Kind::Gauge,
        "Age of the oldest event without an ack",
    ),
    (
        SESSION_OPEN,
        Kind::Gauge,
        "1 while a session with the collector is open",
    ),
    (SESSIONS, Kind::Counter, "Sessions opened"),
    (
        SESSION_FAILURES,
        Kind::Counter,
        "Sessions or attempts that failed, by `reason`",
    ),
    (
        BATCHES_SENT,
        Kind::Counter,
        "Batches sent, repeats included",
    ),
    (
        BATCH_BYTES_SENT,
        Kind::Counter,
        "Compressed bytes of batches sent, repeats included",
    ),
    (EVENTS_SENT, Kind::Counter, "Events sent, repeats included"),
    (
        BATCHES_PREPARED,
        Kind::Gauge,
        "New batches in memory, being read, compressed or sent",
    ),
    (
        BATCHES_IN_FLIGHT,
        Kind::Gauge,
        "Batches sent and not acknowledged yet",
    ),
    (
        BATCH_REPLIES,
        Kind::Counter,
        "Answers to batches, by `reply`: ack, retry, refused, timeout",
    ),
    (
        EVENTS_REFUSED,
        Kind::Counter,
        "Events that the collector refused alone, kept in refused/",
    ),
    (
        COLLECTOR_CONNECTED,
        Kind::Gauge,
        "1 for the `collector` that events go to now, 0 for the others",
    ),
    (
        HANDOVERS,
        Kind::Counter,
        "Connections replaced without a break, by `reason`: certificates, age, preferred, settings, stalled, retries; and `result`: done, failed",
    ),
    (
        CERTIFICATE_RELOADS,
        Kind::Counter,
        "Certificate sets found on disk, by `result`: taken, refused",
    ),
    (
        CERTIFICATE_EXPIRES,
        Kind::Gauge,
        "When the certificate in use expires, Unix time",
    ),
    (
        EVENTS_ACKNOWLEDGED,
        Kind::Counter,
        "Events acknowledged by the collector",
    ),
    (
        RELOADS,
        Kind::Counter,
        "Reloads of the settings, by `result`: applied, restart_needed, invalid",
    ),
    (
        ACK_SECONDS,
        Kind::Histogram,
        "Time from sending a batch to its ack",
    ),
];

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// Label values that a counter shows from the start, so that an alarm on its growth sees the first one.
const SHOWN_FROM_THE_START: &[(&str, &str, &[&str])] = &[
    (
        REQUESTS,
        "code",
        &["200", "400", "401", "408", "413", "429", "503"],
    ),
    (CONNECTIONS_CLOSED, "reason", &["timeout"]),
    (
        EVENTS_RECEIVED,
        "verdict",
        &["accepted", "rejected", "duplicate", "suppressed"],
    ),
    (
        APPENDS_REFUSED,
        "reason",
        &["full", "disk", "store", "overload", "stopped"],
    ),
    (
        SESSION_FAILURES,
        "reason",
        &["connect_timeout", "refused_full", "reply_timeout"],
    ),
    (
        BATCH_REPLIES,
        "reply",
        &["ack", "retry", "refused", "timeout"],
    ),
];

/// Describes every metric to the recorder, and shows those that need no event to have a value.
pub fn describe() {
    for &(name, kind, text) in ALL {
        let unit = if name.contains("_seconds") {
            Unit::Seconds
        } else if name.contains("_bytes") {
            Unit::Bytes
        } else {
            Unit::Count
        };
        match kind {
            Kind::Counter => describe_counter!(name, unit, text),
            Kind::Gauge => describe_gauge!(name, unit, text),
            Kind::Histogram => describe_histogram!(name, unit, text),
        }
    }
    for &(name, label, values) in SHOWN_FROM_THE_START {
        for &value in values {
            counter!(name, label => value).increment(0);
        }
    }
    for name in [
        CONNECTIONS,
        REQUEST_BYTES,
        QUEUE_REQUESTS,
        QUEUE_BYTES,
        BATCHES_PREPARED,
        BATCHES_IN_FLIGHT,
        SKEW_DEVICES,
        WINDOW_IDS,
    ] {
        gauge!(name).increment(0.0);
    }
    for name in [
        COMMITS,
        EVENTS_SENT,
        BATCHES_SENT,
        SUPPRESSION_FAILURES,
        EVENTS_LOST,
        EVENTS_REFUSED,
    ] {
        counter!(name).increment(0);
    }
}
