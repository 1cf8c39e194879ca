//! `[collector]`: where events go, and how fast.

use serde::Deserialize;

use super::MIB;

/// `[collector]`: shipping.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollectorConfig {
    /// `host:port` (UDP) of each collector, the preferred one first; resolved at each connect, and all
    /// addresses of a name are tried. The next collector is tried when one fails. Default
    /// `["127.0.0.1:7080"]`; at most 16. All must write to the same tables: their watermarks decide what
    /// is sent again.
    pub addresses: Vec<String>,
    /// Name that the certificate of each collector must carry. Default `localhost`.
    pub server_name: String,
    /// While shipping to another collector, how often those before it are tried, in milliseconds.
    /// Default 30000. Lower returns sooner and asks a dead collector more often.
    pub preferred_probe_ms: u64,
    /// How long a collector may neither answer nor read while batches wait for it, or answer nothing but
    /// Retry, in milliseconds; then the next that can be had takes over. The one that was left is not
    /// gone back to for `preferred_probe_ms`, each time twice as long, up to 32 times. One that hangs and
    /// is alone gets a new connection, with the same pauses. Default 20000: four times the collector's
    /// commit interval. Lower leaves a loaded collector too soon.
    pub stall_timeout_ms: u64,
    /// Most events in a batch; the collector may lower it. Default 5000.
    pub batch_events_max: u32,
    /// Most bytes in a batch before compression; the collector may lower it. Default 4 MiB.
    pub batch_bytes_max: u64,
    /// Longest wait for a batch to fill, in milliseconds. Default 200: a fifth of a second of
    /// freshness against many small batches.
    pub linger_ms: u64,
    /// Most batches without an answer; the collector may lower it. Default 64: an answer comes only
    /// after a commit, so this times `batch_events_max` bounds the throughput per commit interval.
    pub batches_in_flight_max: u32,
    /// Most new batches in memory, being read, compressed or written to the network. Default 4: the
    /// next ones are ready while one is sent. Times `batch_bytes_max` bounds the memory of shipping.
    pub batches_prepared_max: u32,
    /// Longest wait for a connection and its Welcome, in milliseconds. Default 10000.
    pub connect_timeout_ms: u64,
    /// Longest wait for the answer to a batch, in milliseconds; then it is sent again on another
    /// stream, or, when no other batch is answered either, the session ends. Default 120000. Must be
    /// well above the collector's commit interval.
    pub reply_timeout_ms: u64,
    /// Longest wait for answers on a connection that another one has replaced, in milliseconds; then
    /// they are asked for on the new one. Default 10000: twice the collector's commit interval.
    pub handover_drain_ms: u64,
    /// First wait after a failed session, in milliseconds; doubles with each round over all
    /// collectors, with full jitter. Default 200.
    pub backoff_min_ms: u64,
    /// Longest wait between sessions, in milliseconds. Default 30000.
    pub backoff_max_ms: u64,
    /// Interval of keep-alive packets, in milliseconds. Default 10000; keep below half of
    /// `idle_timeout_ms`.
    pub keep_alive_ms: u64,
    /// Silence after which the connection counts as lost, in milliseconds. Default 30000.
    pub idle_timeout_ms: u64,
    /// Bytes sent but not received yet, per connection. Default 8 MiB: 80 MB/s at 100 ms.
    pub send_window_bytes: u64,
    /// Age at which a connection is replaced by a new one, in seconds, so that a revoked certificate
    /// is noticed. Default 3600.
    pub session_age_max_s: u64,
    /// Let the kernel split packets (GSO). Default true; set false where a network card or container
    /// answers with EIO.
    pub segmentation_offload: bool,
    /// How long a stop waits for answers to batches in flight, in milliseconds. Default 1500; what is
    /// not acknowledged by then is sent again after the next start.
    pub stop_drain_ms: u64,
}

impl Default for CollectorConfig {
    fn default() -> Self {
        Self {
            addresses: vec!["127.0.0.1:7080".to_owned()],
            server_name: "localhost".to_owned(),
            preferred_probe_ms: 30_000,
            stall_timeout_ms: 20_000,
            batch_events_max: 5000,
            batch_bytes_max: 4 * MIB,
            linger_ms: 200,
            batches_in_flight_max: 64,
            batches_prepared_max: 4,
            connect_timeout_ms: 10_000,
            reply_timeout_ms: 120_000,
            handover_drain_ms: 10_000,
            backoff_min_ms: 200,
            backoff_max_ms: 30_000,
            keep_alive_ms: 10_000,
            idle_timeout_ms: 30_000,
            send_window_bytes: 8 * MIB,
            session_age_max_s: 3600,
            segmentation_offload: true,
            stop_drain_ms: 1500,
        }
    }
}
