//! `[http]`, `[company]`, `[admin]`, and what is decided about an event before it is stored: `[dedup]`,
//! `[event_time]`, `[suppression]`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use headwater_service::admin::Bounds;
use serde::Deserialize;

use super::MIB;

/// `[http]`: the ingest API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address of the ingest API. Default `127.0.0.1:7070`: only this machine.
    pub listen: SocketAddr,
    /// Unix socket for the same, beside the port; `""` for none. Default `""`. Its directory must
    /// exist; under systemd `/run/headwater/agent.sock` fits the unit.
    pub socket: PathBuf,
    /// Permissions of the socket's file: who may send. Default `0o660`: the agent's user and group.
    pub socket_mode: u32,
    /// Largest request body as sent, in bytes; above it 413, which SDKs take as permanent loss.
    /// Default 4 MiB: eight times what the largest SDK sends.
    pub body_bytes_max: u64,
    /// Largest body after gzip, in bytes. Default 20 MiB. Higher lets a small request cost more memory.
    pub inflated_bytes_max: u64,
    /// Largest single event, in bytes. A larger one is kept as its first 64 KiB and quarantined.
    /// Default 1 MiB: thirty times what SDKs allow. Must stay below `collector.batch_bytes_max`.
    pub event_bytes_max: u64,
    /// Most events in one request; above it 413. Default 20000: eight times what Segment allows. A
    /// small body could otherwise become a large list in memory.
    pub request_events_max: usize,
    /// Most open connections; more wait in the kernel's queue. Default 2048.
    pub connections_max: usize,
    /// Time after which a connection is closed that is silent, or leaves its answer unread, in milliseconds.
    /// Default 75000: longer than the
    /// keep-alive of common clients. Must be above the longest commit.
    pub idle_timeout_ms: u64,
    /// Memory that requests in progress may take together, in bytes, from the first byte of a body to
    /// the last of its answer; above it 429, and 413 for one that would not fit alone. Default 128 MiB:
    /// about twice the largest request. At least `body_bytes_max` and three times `inflated_bytes_max`; with
    /// a high `request_events_max` some hundred bytes more for each event.
    pub memory_bytes_max: u64,
    /// Longest time to read a body, in milliseconds; then 408. Default 30000.
    pub read_timeout_ms: u64,
    /// Seconds of `Retry-After` with a 503. Default 5. Segment SDKs wait up to 300.
    pub retry_after_s: u32,
    /// Take the client's address from the last entry of `X-Forwarded-For`. Default false: only right
    /// behind a proxy that always sets it.
    pub trust_forwarded_for: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            socket: PathBuf::new(),
            socket_mode: 0o660,
            body_bytes_max: 4 * MIB,
            inflated_bytes_max: 20 * MIB,
            event_bytes_max: MIB,
            request_events_max: 20_000,
            connections_max: 2048,
            idle_timeout_ms: 75_000,
            memory_bytes_max: 128 * MIB,
            read_timeout_ms: 30_000,
            retry_after_s: 5,
            trust_forwarded_for: false,
        }
    }
}

/// `[company]`: what one company may take where several send to this agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompanyConfig {
    /// Part of `buffer.queue_requests_max` and `buffer.queue_bytes_max` that one company may take, in
    /// percent, where the write keys name several; above it 429. Default 50: a flood of one leaves half
    /// of the queue to the others. 100 turns it off.
    pub queue_percent: u8,
    /// Events a second that one company may send, over time; above it 429 with the `Retry-After` that
    /// brings the rate down. Default 0: no limit. Each agent counts for itself.
    pub events_per_s: u32,
    /// How long a company may send faster than `events_per_s` allows, in seconds of that rate. Default 10.
    /// Higher lets larger bursts through, lower answers an SDK's batch after a pause with 429.
    pub burst_s: u32,
}

impl Default for CompanyConfig {
    fn default() -> Self {
        Self {
            queue_percent: 50,
            events_per_s: 0,
            burst_s: 10,
        }
    }
}

/// `[admin]`: metrics and readiness.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Address of `/metrics`, `/healthz`, `/readyz`. Default `127.0.0.1:7071`.
    pub listen: SocketAddr,
    /// As [`Bounds::connections_max`].
    pub connections_max: usize,
    /// As [`Bounds::timeout_ms`].
    pub timeout_ms: u64,
    /// As [`Bounds::request_bytes_max`].
    pub request_bytes_max: u64,
    /// Without a session, how old the oldest unacknowledged event may be before `/readyz` fails, in
    /// seconds. Default 60. Lower alarms on every collector restart.
    pub unacknowledged_age_max_s: u64,
}

impl Default for AdminConfig {
    fn default() -> Self {
        let bounds = Bounds::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7071)),
            connections_max: bounds.connections_max,
            timeout_ms: bounds.timeout_ms,
            request_bytes_max: bounds.request_bytes_max,
            unacknowledged_age_max_s: 60,
        }
    }
}

impl AdminConfig {
    /// Returns the bounds of its connections.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            connections_max: self.connections_max,
            timeout_ms: self.timeout_ms,
            request_bytes_max: self.request_bytes_max,
        }
    }
}

/// `[dedup]`: an SDK's retry is not stored twice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DedupConfig {
    /// Recent events that the agent recognises when they come again byte for byte. Default 400000:
    /// at least ten seconds at 20,000 events/s and an hour at 50; takes 10 MB of memory and up to
    /// 13 MB of `buffer.disk_bytes_max`. 0 turns it off: what comes twice is then stored twice and
    /// found by message id in the tables. More reaches further back.
    pub ids_max: usize,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { ids_max: 400_000 }
    }
}

/// `[event_time]`: what the clocks of browsers and phones are worth.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventTimeConfig {
    /// Devices whose clock is remembered. Default 50000: 8 MB of memory. 0 turns it off: each event
    /// is judged by its own `sentAt`. Fewer take the delay of a retry for a wrong clock more often.
    pub devices_max: usize,
}

impl Default for EventTimeConfig {
    fn default() -> Self {
        Self {
            devices_max: 50_000,
        }
    }
}

/// `[suppression]`: subjects whose events are refused before the disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SuppressionConfig {
    /// File with one subject per line, `company<TAB>id`, read again within three seconds of a change.
    /// Empty by default: nobody is suppressed. Replace it by renaming another file over it.
    pub file: PathBuf,
    /// Most subjects; a longer list is refused as broken. Default 500000: 9 MB of memory when full,
    /// twice that while a new list is read.
    pub subjects_max: usize,
}

impl SuppressionConfig {
    pub(crate) fn path(&self) -> Option<&Path> {
        (!self.file.as_os_str().is_empty()).then_some(&self.file)
    }
}

impl Default for SuppressionConfig {
    fn default() -> Self {
        Self {
            file: PathBuf::new(),
            subjects_max: 500_000,
        }
    }
}
