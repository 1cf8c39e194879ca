//! Settings of the agent: read at start and at a reload, checked each time, then only values.
//!
//! Every bound of the event's path stands here with its default and the reason for it. The example
//! file `deploy/config/agent.toml` shows all of them and is parsed by a test.

mod buffer;
mod collector;
mod intake;
mod validate;

use headwater_protocol::SourceKind;
use headwater_service::logging::LogConfig;
use headwater_service::tls::TlsFiles;
use serde::Deserialize;

use crate::buffer::Appender;
use crate::window;

pub use buffer::BufferConfig;
pub use collector::CollectorConfig;
pub use intake::{
    AdminConfig, CompanyConfig, DedupConfig, EventTimeConfig, HttpConfig, SuppressionConfig,
};

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
    /// What one company may take.
    #[serde(default)]
    pub company: CompanyConfig,
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

impl Config {
    /// Returns the defaults with the two things that have none.
    pub fn new(tls: TlsFiles, write_keys: Vec<WriteKey>) -> Self {
        Self {
            http: HttpConfig::default(),
            company: CompanyConfig::default(),
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
}
