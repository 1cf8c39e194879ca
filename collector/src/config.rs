//! Settings of the collector: values with defaults, checked once by [`Config::validate`].
//!
//! Not on an event's path. Promise: every queue, body, wait and retry of the collector has its bound
//! here; `deploy/config/collector.toml` shows them all.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use headwater_protocol::Limits;
use headwater_service::admin;
use headwater_service::config::ConfigError;
use headwater_service::logging::LogConfig;
use headwater_service::tls::TlsFiles;
use headwater_tables::CatalogConfig;
use serde::Deserialize;

/// The whole configuration. Only `[tls]` has no default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where agents connect.
    #[serde(default)]
    pub quic: QuicConfig,
    /// Where metrics and health are served.
    #[serde(default)]
    pub admin: AdminConfig,
    /// The collector's certificate and the CA that signs agents.
    pub tls: TlsConfig,
    /// The catalog and the warehouse that events are committed to.
    #[serde(default)]
    pub catalog: CatalogConfig,
    /// When and how to commit.
    #[serde(default)]
    pub commit: CommitConfig,
    /// The tracking plan that events are judged by.
    #[serde(default)]
    pub plan: PlanConfig,
    /// How long what could not be stored should be kept.
    #[serde(default)]
    pub quarantine: QuarantineConfig,
    /// Bounds on what agents may send.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Logs.
    #[serde(default)]
    pub log: LogConfig,
}

/// The `[tls]` section. The files are taken up again, all together, when one of them changes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// As [`TlsFiles::certificate`].
    pub certificate: PathBuf,
    /// As [`TlsFiles::key`].
    pub key: PathBuf,
    /// As [`TlsFiles::ca`].
    pub ca: PathBuf,
    /// Revocation lists (CRL) of the CAs in `ca`, PEM (any number) or DER (one): agents in them are not
    /// let in, and open sessions end when a list that names them is taken up. Default none. A CA without
    /// a list has revoked nobody; a list past its next update counts all the same.
    #[serde(default)]
    pub revoked: Option<PathBuf>,
    /// How often the files are looked at, in milliseconds; at SIGHUP they are as well. Default 1000:
    /// four to five looks at names in the file system. Higher leaves revoked agents in for longer.
    #[serde(default = "reload_interval_ms")]
    pub reload_interval_ms: u64,
}

fn reload_interval_ms() -> u64 {
    1_000
}

impl TlsConfig {
    /// Returns the files that every program has.
    pub fn files(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            ca: self.ca.clone(),
        }
    }
}

impl From<TlsFiles> for TlsConfig {
    fn from(files: TlsFiles) -> Self {
        Self {
            certificate: files.certificate,
            key: files.key,
            ca: files.ca,
            revoked: None,
            reload_interval_ms: reload_interval_ms(),
        }
    }
}

/// The `[quic]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuicConfig {
    /// UDP address to listen on. Default `127.0.0.1:7080`: loopback, until told otherwise.
    pub listen: SocketAddr,
    /// Most agents connected at once; more are refused. Default 1024. Times `session_window_bytes` it
    /// bounds the memory of unread bytes.
    pub sessions_max: usize,
    /// Most connections that have not said Hello yet; more are refused. Default 256. From half of it on,
    /// an address that is new has to show that answers reach it. Lower keeps agents out when many come
    /// back at once; higher lets strangers keep more of the processor busy with handshakes.
    pub handshakes_max: usize,
    /// A connection without any packet for this long is dropped. Default 30000 ms: three lost
    /// keep-alives. Lower drops agents on short outages; higher keeps dead ones longer.
    pub idle_timeout_ms: u64,
    /// Time between keep-alives. Default 10000 ms: keeps NAT entries alive. Must be below half of
    /// the idle timeout.
    pub keep_alive_ms: u64,
    /// Time for an agent to say Hello. Default 5000 ms.
    pub hello_timeout_ms: u64,
    /// Age at which a connection is closed, in milliseconds, so that an expired certificate has an end.
    /// Default 7200000: two hours, twice what the agents' `collector.session_age_max_s` is, so that they
    /// come again by themselves. In its last `commit.stop_within_ms` (at most a quarter of the age) no new
    /// batch is taken, and those that were taken are answered.
    pub connection_age_max_ms: u64,
    /// Unread bytes per stream. Default 2 MiB: 100 Mbit/s at 160 ms. Lower slows agents that are far
    /// away; higher costs memory per agent.
    pub stream_window_bytes: u32,
    /// Unread bytes per session, of all its streams. Default 8 MiB: 80 MB/s at 100 ms. Lower slows
    /// agents that are far away; higher costs memory per agent while commits are held up.
    pub session_window_bytes: u32,
    /// Lets the kernel cut packets (GSO). Default true; switch it off where a network card or a
    /// container answers EIO.
    pub segmentation_offload: bool,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7080)),
            sessions_max: 1024,
            handshakes_max: 256,
            idle_timeout_ms: 30_000,
            keep_alive_ms: 10_000,
            hello_timeout_ms: 5_000,
            connection_age_max_ms: 7_200_000,
            stream_window_bytes: 2 * 1024 * 1024,
            session_window_bytes: 8 * 1024 * 1024,
            segmentation_offload: true,
        }
    }
}

/// The `[admin]` section.
pub type AdminConfig = admin::AdminConfig<7081>;

/// The `[commit]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommitConfig {
    /// Shortest time between the starts of two commits. Default 5000 ms: events are queryable within
    /// about ten seconds. Lower makes more and smaller files; higher delays acks and fills buffers. The
    /// agents' `collector.stall_timeout_ms` should be four times this.
    pub interval_ms: u64,
    /// Staged bytes (uncompressed bodies) that start a commit before the interval is over. Default
    /// 128 MiB, which become a data file of about 14 MB. Never more than half of what one agent may stage.
    pub staged_bytes: u64,
    /// First wait after a commit that did not succeed; doubles up to `retry_max_ms`, with jitter.
    /// Default 100 ms.
    pub retry_min_ms: u64,
    /// Longest wait between attempts. Default 10000 ms.
    pub retry_max_ms: u64,
    /// Time for a graceful stop: commit what is staged, answer, close. Default 10000 ms. What is not
    /// committed by then stays in the agents' buffers.
    pub stop_within_ms: u64,
    /// Failed attempts in a row after which `/readyz` says no. Default 3.
    pub failures_not_ready: u32,
    /// How often the tables are looked at while nobody commits, and how long a look may take. Default
    /// 10000 ms. `/readyz` says no after a look that failed. Lower asks the catalog and the store more often.
    pub look_interval_ms: u64,
    /// Age of the oldest staged batch above which `/readyz` says no. Default 60000 ms.
    pub staged_age_max_ms: u64,
}

impl Default for CommitConfig {
    fn default() -> Self {
        Self {
            interval_ms: 5_000,
            staged_bytes: 128 * 1024 * 1024,
            retry_min_ms: 100,
            retry_max_ms: 10_000,
            stop_within_ms: 10_000,
            failures_not_ready: 3,
            look_interval_ms: 10_000,
            staged_age_max_ms: 60_000,
        }
    }
}

/// The `[plan]` section.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanConfig {
    /// Directory of the plan's JSON files. Default empty: the plan that is compiled in, which is
    /// `deploy/plan/` of the sources. SIGHUP reads the files again.
    pub directory: PathBuf,
}

impl PlanConfig {
    /// Returns the directory, `None` for the plan that is compiled in.
    pub fn directory(&self) -> Option<PathBuf> {
        let directory = &self.directory;
        (!directory.as_os_str().is_empty()).then(|| directory.clone())
    }
}

/// The `[quarantine]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuarantineConfig {
    /// Days after its judgement until which a quarantined event should be kept: `retention_until` of its
    /// row says when they are over. Default 90: time to mend a sender or a plan and replay. Nothing
    /// deletes a row yet. Lower leaves less time, higher keeps personal data for longer.
    pub retention_days: u32,
}

impl Default for QuarantineConfig {
    fn default() -> Self {
        Self { retention_days: 90 }
    }
}

/// The `[limits]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Largest uncompressed body of a batch; agents are told in Welcome. Default 8 MiB.
    pub batch_bytes_max: u32,
    /// Most events in a batch; agents are told in Welcome. Default 10000.
    pub batch_events_max: u32,
    /// Most batches of one agent without an answer; agents are told in Welcome. Default 64. Answers
    /// come only after a commit, so this times the batch size bounds what one agent moves per commit.
    pub batches_in_flight_max: u32,
    /// Uncompressed bytes of batches that are staged and not committed, of all agents; an event counts as
    /// 512 at least, as far as its batch stays within `batch_bytes_max`. Default 512 MiB. When it is
    /// reached, no further body is read, which slows the agents down; nothing is lost. The process takes up
    /// to four times as much memory.
    pub staged_bytes_max: u32,
    /// The same of one agent. Default 256 MiB: half of all. An agent that sends more waits alone; the
    /// others have room at once. Must hold two of the largest batches; above `staged_bytes_max` it bounds
    /// nothing. Lower lets one agent move less per commit.
    pub agent_staged_bytes_max: u32,
    /// How long a batch that came too early waits for the one before it. Default 2000 ms.
    pub park_ms: u64,
    /// Time for a body to arrive once it is read. Default 30000 ms.
    pub body_timeout_ms: u64,
    /// Most agents, and most companies, that `/metrics` names: the agents furthest behind and the companies
    /// with the most events. Default 20. Each is a series or two in the store of metrics.
    pub series_max: usize,
    /// Wait that a Retry asks of the agent. Default 1000 ms.
    pub retry_after_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            batch_bytes_max: 8 * 1024 * 1024,
            batch_events_max: 10_000,
            batches_in_flight_max: 64,
            staged_bytes_max: 512 * 1024 * 1024,
            agent_staged_bytes_max: 256 * 1024 * 1024,
            park_ms: 2_000,
            body_timeout_ms: 30_000,
            series_max: 20,
            retry_after_ms: 1_000,
        }
    }
}

impl LimitsConfig {
    /// Returns what agents are told.
    pub(crate) fn on_the_wire(&self) -> Limits {
        Limits {
            batch_bytes_max: u64::from(self.batch_bytes_max),
            batch_events_max: self.batch_events_max,
            batches_in_flight_max: self.batches_in_flight_max,
        }
    }

    pub(crate) fn park(&self) -> Duration {
        Duration::from_millis(self.park_ms)
    }

    pub(crate) fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }
}

impl Config {
    /// Checks that the values fit together.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the first key at fault and what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self {
            quic,
            tls,
            commit,
            limits,
            ..
        } = self;
        self.admin.bounds().validate()?;
        self.catalog
            .validate()
            .map_err(|error| ConfigError::Value {
                key: error.key,
                message: error.message,
            })?;
        let rules = [
            (
                "quic.sessions_max",
                quic.sessions_max > 0,
                "must be at least 1",
            ),
            (
                "quic.handshakes_max",
                quic.handshakes_max > 0,
                "must be at least 1",
            ),
            (
                "quic.hello_timeout_ms",
                quic.hello_timeout_ms > 0,
                "must be above 0",
            ),
            (
                "quic.keep_alive_ms",
                quic.keep_alive_ms > 0
                    && quic.keep_alive_ms.saturating_mul(2) < quic.idle_timeout_ms,
                "must be above 0 and below half of quic.idle_timeout_ms",
            ),
            (
                "quic.connection_age_max_ms",
                quic.connection_age_max_ms >= 1_000,
                "must be at least 1000",
            ),
            (
                "tls.reload_interval_ms",
                (1..=3_600_000).contains(&tls.reload_interval_ms),
                "must be from 1 to 3600000",
            ),
            (
                "quic.stream_window_bytes",
                quic.stream_window_bytes >= 16 * 1024,
                "must be at least 16384",
            ),
            (
                "quic.session_window_bytes",
                quic.session_window_bytes >= quic.stream_window_bytes,
                "must be at least quic.stream_window_bytes",
            ),
            (
                "commit.interval_ms",
                commit.interval_ms <= 600_000,
                "must be at most 600000: agents keep everything that is not committed",
            ),
            (
                "commit.retry_min_ms",
                commit.retry_min_ms > 0 && commit.retry_min_ms <= commit.retry_max_ms,
                "must be above 0 and at most commit.retry_max_ms",
            ),
            (
                "commit.failures_not_ready",
                commit.failures_not_ready > 0,
                "must be at least 1",
            ),
            (
                "commit.look_interval_ms",
                commit.look_interval_ms > 0,
                "must be above 0",
            ),
            (
                "quarantine.retention_days",
                (1..=36_500).contains(&self.quarantine.retention_days),
                "must be from 1 to 36500",
            ),
            (
                "limits.batch_bytes_max",
                (1024..=256 * 1024 * 1024).contains(&limits.batch_bytes_max),
                "must be from 1024 to 268435456",
            ),
            (
                "limits.batch_events_max",
                limits.batch_events_max > 0,
                "must be at least 1",
            ),
            (
                "limits.batches_in_flight_max",
                (1..=1024).contains(&limits.batches_in_flight_max),
                "must be from 1 to 1024",
            ),
            (
                "limits.body_timeout_ms",
                limits.body_timeout_ms > 0,
                "must be above 0",
            ),
            (
                "limits.staged_bytes_max",
                limits.staged_bytes_max / 2 >= limits.batch_bytes_max,
                "must be at least twice limits.batch_bytes_max, or the largest batch never fits",
            ),
            (
                "limits.agent_staged_bytes_max",
                limits.agent_staged_bytes_max / 2 >= limits.batch_bytes_max,
                "must be at least twice limits.batch_bytes_max, or the largest batch never fits",
            ),
        ];
        for (key, holds, message) in rules {
            if !holds {
                return Err(ConfigError::Value {
                    key,
                    message: message.to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: &str = "[tls]\ncertificate = 'c'\nkey = 'k'\nca = 'ca'\n";

    #[test]
    fn defaults_are_valid() {
        toml::from_str::<Config>(TLS).unwrap().validate().unwrap();
    }

    #[test]
    fn values_that_do_not_fit_are_named() {
        let cases = [
            ("[quic]\nkeep_alive_ms = 20000\n", "quic.keep_alive_ms"),
            ("[quic]\nsessions_max = 0\n", "quic.sessions_max"),
            ("[commit]\nretry_min_ms = 0\n", "commit.retry_min_ms"),
            ("[catalog]\ntimeout_ms = 0\n", "catalog.timeout_ms"),
            (
                "[quarantine]\nretention_days = 0\n",
                "quarantine.retention_days",
            ),
            (
                "[limits]\nagent_staged_bytes_max = 2048\n",
                "limits.agent_staged_bytes_max",
            ),
            (
                "[limits]\nstaged_bytes_max = 2048\n",
                "limits.staged_bytes_max",
            ),
        ];
        for (text, key) in cases {
            let config: Config = toml::from_str(&format!("{TLS}{text}")).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn the_example_shows_every_default() {
        let text = include_str!("../../deploy/config/collector.toml");
        let example: Config = toml::from_str(text).unwrap();
        example.validate().unwrap();
        let defaults: Config = toml::from_str(TLS).unwrap();
        assert_eq!(
            example.tls.reload_interval_ms,
            defaults.tls.reload_interval_ms
        );
        assert_eq!(example.tls.revoked, defaults.tls.revoked);
        let without_tls = |config: &Config| {
            let mut config = config.clone();
            config.tls = defaults.tls.clone();
            format!("{config:?}")
        };
        assert_eq!(without_tls(&example), without_tls(&defaults));
    }
}
