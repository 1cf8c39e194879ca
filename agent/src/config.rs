//! Settings of the agent: read once at start, checked once, then only values.
//!
//! Every bound of the event's path stands here with its default and the reason for it. The example
//! file `deploy/config/agent.toml` shows all of them and is parsed by a test.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use headwater_protocol::SourceKind;
use headwater_service::config::ConfigError;
use headwater_service::logging::LogConfig;
use headwater_service::tls::TlsFiles;
use serde::Deserialize;

use crate::buffer::Appender;
use crate::window;

/// Highest `http.request_events_max`.
pub(crate) const REQUEST_EVENTS_MAX: usize = 200_000;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// All settings of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where SDKs send events.
    #[serde(default)]
    pub http: HttpConfig,
    /// Metrics, health and readiness.
    #[serde(default)]
    pub admin: AdminConfig,
    /// The durable buffer on disk.
    #[serde(default)]
    pub buffer: BufferConfig,
    /// The window of recent events.
    #[serde(default)]
    pub dedup: DedupConfig,
    /// Clocks of devices.
    #[serde(default)]
    pub event_time: EventTimeConfig,
    /// Whose events are refused.
    #[serde(default)]
    pub suppression: SuppressionConfig,
    /// Where events go, and how fast.
    #[serde(default)]
    pub collector: CollectorConfig,
    /// The agent's certificate (its common name is the agent's id), key and the collector's CA.
    pub tls: TlsFiles,
    /// Who may send. An agent without keys refuses every request.
    #[serde(default)]
    pub write_keys: Vec<WriteKey>,
    /// Log lines.
    #[serde(default)]
    pub log: LogConfig,
}

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
    /// Silence after which a connection is closed, in milliseconds. Default 75000: longer than the
    /// keep-alive of common clients. Must be above the longest commit.
    pub idle_timeout_ms: u64,
    /// Memory that bodies in progress may take together, in bytes; above it 429. Default 128 MiB.
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

/// `[admin]`: metrics and readiness.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Address of `/metrics`, `/healthz`, `/readyz`. Default `127.0.0.1:7071`.
    pub listen: SocketAddr,
    /// Without a session, how old the oldest unacknowledged event may be before `/readyz` fails, in
    /// seconds. Default 60. Lower alarms on every collector restart.
    pub unacknowledged_age_max_s: u64,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7071)),
            unacknowledged_age_max_s: 60,
        }
    }
}

/// `[buffer]`: durability and its price.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BufferConfig {
    /// Directory of the buffer; belongs to one agent id. Default `headwater-data/agent`.
    pub directory: PathBuf,
    /// Most bytes the directory may take, in bytes (D-3); above it 503. Default 8 GiB, about ten
    /// million events of 450 bytes.
    pub disk_bytes_max: u64,
    /// Free bytes of the file system below which requests get 503. Default 256 MiB. 0 turns it off.
    pub disk_free_bytes_min: u64,
    /// Size of the file that is deleted when the disk is full all the same, so that the buffer can be
    /// reopened and drained, in bytes. Default 40 MiB. 0 turns it off. Counts as part of the bound.
    pub reserve_bytes: u64,
    /// Bytes that events may take in `refused/`, which the collector does not take even alone. Default
    /// 64 MiB, and never more than an eighth of `disk_bytes_max`, of which it is a part. When it is
    /// used up, shipping stops at the next such event until a person looks.
    pub refused_bytes_max: u64,
    /// Events after which a new generation begins. Default 100000. More keeps disk longer after a
    /// drain; fewer costs a rotation (about 5 ms) more often.
    pub generation_events_max: u64,
    /// Event bytes after which a new generation begins. Default 64 MiB, and never more than an eighth
    /// of `disk_bytes_max`.
    pub generation_bytes_max: u64,
    /// Requests that may wait for the disk; above it 429. Default 4096.
    pub queue_requests_max: usize,
    /// Event bytes that may wait for the disk; above it 429. Default 64 MiB.
    pub queue_bytes_max: u64,
    /// Event bytes at which a group commit stops gathering. Default 256 KiB.
    pub group_bytes_max: u64,
    /// How long a group commit gathers when more than one request was waiting last time, in
    /// microseconds. Default 500. Higher makes larger groups and slower answers; 2000 at most.
    pub group_wait_us: u64,
}

impl BufferConfig {
    /// Returns the bytes that `refused/` may take.
    pub(crate) fn refused_room_bytes(&self) -> u64 {
        self.refused_bytes_max.min(self.disk_bytes_max / 8)
    }
}

impl Default for BufferConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("headwater-data/agent"),
            disk_bytes_max: 8 * GIB,
            disk_free_bytes_min: 256 * MIB,
            reserve_bytes: 40 * MIB,
            refused_bytes_max: 64 * MIB,
            generation_events_max: 100_000,
            generation_bytes_max: 64 * MIB,
            queue_requests_max: 4096,
            queue_bytes_max: 64 * MIB,
            group_bytes_max: 256 * KIB,
            group_wait_us: 500,
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

/// Most ids: 400 MB of memory.
const DEDUP_IDS_MAX: usize = 16_000_000;

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

/// Most devices: 160 MB of memory.
const DEVICES_MAX: usize = 1_000_000;

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

/// `[collector]`: shipping.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollectorConfig {
    /// `host:port` (UDP) of each collector, the preferred one first; resolved at each connect, and
    /// all addresses of a name are tried. The next collector is tried when one fails. Default `["127.0.0.1:7080"]`; at most 16. All must write to
    /// the same tables: their watermarks decide what is sent again.
    pub addresses: Vec<String>,
    /// Name that the certificate of each collector must carry. Default `localhost`.
    pub server_name: String,
    /// While shipping to another collector, how often those before it are tried, in milliseconds.
    /// Default 30000. Lower returns sooner and asks a dead collector more often.
    pub preferred_probe_ms: u64,
    /// With more than one collector: how long one may neither answer nor read while batches wait for
    /// it, in milliseconds; then the next that can be had takes over. The one that was left is not gone
    /// back to for `preferred_probe_ms`, each time twice as long, up to 32 times. Default 20000: four
    /// times the collector's commit interval. Lower leaves a loaded collector too soon.
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

/// `[[write_keys]]`: one source that may send.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteKey {
    /// The key that SDKs are configured with.
    pub key: String,
    /// Paying company whose events these are.
    pub company: String,
    /// Source within the company.
    pub source: String,
    /// Where the source runs: `server`, `browser` or `mobile`. Decides whether its clock is trusted.
    pub kind: SourceKind,
}

/// Room that a record takes around the event's own bytes; generous.
const RECORD_OVERHEAD_BYTES: u64 = 8 * KIB;

impl Config {
    /// Returns the defaults with the two things that have none.
    pub fn new(tls: TlsFiles, write_keys: Vec<WriteKey>) -> Self {
        Self {
            http: HttpConfig::default(),
            admin: AdminConfig::default(),
            buffer: BufferConfig::default(),
            dedup: DedupConfig::default(),
            event_time: EventTimeConfig::default(),
            suppression: SuppressionConfig::default(),
            collector: CollectorConfig::default(),
            tls,
            write_keys,
            log: LogConfig::default(),
        }
    }

    /// Returns how many bytes a request may take in the buffer, and the setting that bounds it: a
    /// larger one would never fit, however often it came.
    pub fn request_bytes_max(&self) -> (u64, &'static str) {
        let window = window::disk_bytes_max(self.dedup.ids_max);
        let disk = Appender::request_bytes_max(&self.buffer, window);
        let queue = self.buffer.queue_bytes_max;
        (disk, "buffer.disk_bytes_max").min((queue, "buffer.queue_bytes_max"))
    }

    /// Checks what types cannot express.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the first key that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_sizes()?;
        self.validate_times()?;
        self.validate_collectors()?;
        let mut seen = HashSet::new();
        for entry in &self.write_keys {
            check(
                !entry.key.is_empty() && !entry.company.is_empty() && !entry.source.is_empty(),
                "write_keys",
                || "has an entry with an empty `key`, `company` or `source`; fill it in".to_owned(),
            )?;
            check(seen.insert(&entry.key), "write_keys", || {
                format!(
                    "holds a key of company `{}` twice; keys must differ",
                    entry.company
                )
            })?;
        }
        Ok(())
    }

    fn validate_collectors(&self) -> Result<(), ConfigError> {
        let collector = &self.collector;
        let addresses = &collector.addresses;
        check(
            (1..=16).contains(&addresses.len()),
            "collector.addresses",
            || format!("holds `{}` entries; use 1 to 16", addresses.len()),
        )?;
        let distinct: HashSet<&String> = addresses.iter().collect();
        check(
            distinct.len() == addresses.len() && addresses.iter().all(|it| it.contains(':')),
            "collector.addresses",
            || "needs `host:port`, each once".to_owned(),
        )?;
        check(
            (1..=64).contains(&collector.batches_prepared_max),
            "collector.batches_prepared_max",
            || "must lie between 1 and 64".to_owned(),
        )?;
        let within_a_day = 1..=86_400_000;
        check(
            within_a_day.contains(&collector.preferred_probe_ms)
                && within_a_day.contains(&collector.stall_timeout_ms),
            "collector.preferred_probe_ms",
            || "and `collector.stall_timeout_ms` must be above 0 and at most a day".to_owned(),
        )
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let Self {
            http,
            buffer,
            collector,
            ..
        } = self;
        check(
            (KIB..=64 * MIB).contains(&http.body_bytes_max),
            "http.body_bytes_max",
            || format!("is `{}`; use 1 KiB to 64 MiB", http.body_bytes_max),
        )?;
        check(
            (http.body_bytes_max..=256 * MIB).contains(&http.inflated_bytes_max),
            "http.inflated_bytes_max",
            || "must lie between `http.body_bytes_max` and 256 MiB".to_owned(),
        )?;
        check(
            http.memory_bytes_max >= http.inflated_bytes_max + http.body_bytes_max,
            "http.memory_bytes_max",
            || "must hold one largest body, packed and inflated".to_owned(),
        )?;
        check(
            http.event_bytes_max >= KIB
                && http.event_bytes_max + RECORD_OVERHEAD_BYTES <= collector.batch_bytes_max,
            "http.event_bytes_max",
            || "must be at least 1 KiB and 8 KiB below `collector.batch_bytes_max`".to_owned(),
        )?;
        check(http.socket_mode <= 0o777, "http.socket_mode", || {
            "must be permissions such as `0o660`, in octal".to_owned()
        })?;
        check(
            (1..=REQUEST_EVENTS_MAX).contains(&http.request_events_max),
            "http.request_events_max",
            || format!("must lie between 1 and {REQUEST_EVENTS_MAX}"),
        )?;
        check(
            (1..=65_536).contains(&http.connections_max),
            "http.connections_max",
            || "must lie between 1 and 65536".to_owned(),
        )?;
        let disk_bytes_min = Appender::disk_bytes_min(
            buffer,
            window::disk_bytes_max(self.dedup.ids_max),
            http.event_bytes_max + RECORD_OVERHEAD_BYTES,
        );
        check(
            buffer.disk_bytes_max >= disk_bytes_min,
            "buffer.disk_bytes_max",
            || {
                format!(
                    "must be at least `{disk_bytes_min}`, so that one event of `http.event_bytes_max` \
                     always fits beside `buffer.reserve_bytes`, `buffer.refused_bytes_max`, \
                     `buffer.group_bytes_max` and the window (`dedup.ids_max`)"
                )
            },
        )?;
        check(self.dedup.ids_max <= DEDUP_IDS_MAX, "dedup.ids_max", || {
            format!("is `{}`; use at most {DEDUP_IDS_MAX}", self.dedup.ids_max)
        })?;
        check(
            self.event_time.devices_max <= DEVICES_MAX,
            "event_time.devices_max",
            || format!("must be at most {DEVICES_MAX}"),
        )?;
        for (key, value) in [
            ("buffer.generation_events_max", buffer.generation_events_max),
            ("buffer.generation_bytes_max", buffer.generation_bytes_max),
            (
                "buffer.queue_requests_max",
                buffer.queue_requests_max as u64,
            ),
            ("buffer.group_bytes_max", buffer.group_bytes_max),
            (
                "collector.batch_events_max",
                u64::from(collector.batch_events_max),
            ),
            (
                "collector.batches_in_flight_max",
                u64::from(collector.batches_in_flight_max),
            ),
            ("collector.send_window_bytes", collector.send_window_bytes),
        ] {
            check(value > 0, key, || "must be above 0".to_owned())?;
        }
        check(
            buffer.queue_bytes_max >= http.inflated_bytes_max.saturating_mul(2),
            "buffer.queue_bytes_max",
            || "must be at least twice `http.inflated_bytes_max`".to_owned(),
        )
    }

    fn validate_times(&self) -> Result<(), ConfigError> {
        let Self {
            buffer, collector, ..
        } = self;
        check(buffer.group_wait_us <= 2000, "buffer.group_wait_us", || {
            format!(
                "is `{}`; more than 2000 slows every answer",
                buffer.group_wait_us
            )
        })?;
        check(
            collector.backoff_min_ms > 0 && collector.backoff_min_ms <= collector.backoff_max_ms,
            "collector.backoff_min_ms",
            || "must be above 0 and at most `collector.backoff_max_ms`".to_owned(),
        )?;
        check(
            collector.keep_alive_ms > 0
                && collector.keep_alive_ms.saturating_mul(2) < collector.idle_timeout_ms,
            "collector.keep_alive_ms",
            || "must be above 0 and below half of `collector.idle_timeout_ms`".to_owned(),
        )?;
        check(
            collector.connect_timeout_ms > 0 && collector.reply_timeout_ms > 0,
            "collector.connect_timeout_ms",
            || "and `collector.reply_timeout_ms` must be above 0".to_owned(),
        )?;
        check(
            collector.stop_drain_ms <= 3000,
            "collector.stop_drain_ms",
            || "must be at most 3000, so that a stop ends within 5 s".to_owned(),
        )?;
        check(
            self.http.idle_timeout_ms >= 1000,
            "http.idle_timeout_ms",
            || "must be at least 1000".to_owned(),
        )?;
        check(
            self.http.read_timeout_ms > 0,
            "http.read_timeout_ms",
            || "must be above 0".to_owned(),
        )
    }
}

fn check(
    holds: bool,
    key: &'static str,
    message: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::Value {
            key,
            message: message(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_disk_takes_one_largest_event_and_a_byte_less_is_refused() {
        let tls = TlsFiles {
            certificate: "a.pem".into(),
            key: "a.key".into(),
            ca: "ca.pem".into(),
        };
        for (reserve_bytes, refused_bytes_max, ids_max) in
            [(0, 0, 0), (40 * MIB, 64 * MIB, 400_000), (MIB, 4 * MIB, 1)]
        {
            let mut config = Config::new(tls.clone(), Vec::new());
            config.buffer.reserve_bytes = reserve_bytes;
            config.buffer.refused_bytes_max = refused_bytes_max;
            config.dedup.ids_max = ids_max;
            config.buffer.disk_bytes_max = 1;
            let refused = config.validate().unwrap_err().to_string();
            let mut parts = refused.split('`');
            let least = parts.find_map(|part| part.parse().ok()).unwrap();
            config.buffer.disk_bytes_max = least;
            config.validate().unwrap();
            let event = config.http.event_bytes_max + RECORD_OVERHEAD_BYTES;
            assert!(config.request_bytes_max().0 >= event, "{least}");
            config.buffer.disk_bytes_max = least - 1;
            assert!(config.validate().is_err(), "{least}");
        }
    }
}
