//! Settings of the Flight SQL server: where it listens, who may ask, and every bound.
//!
//! Place on the event's path: read once by `main` and handed to [`crate::start`]. Promise: a value
//! that would make the server unsafe (clear text on a network, no users, a bound of zero) is refused
//! before anything listens.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use headwater_service::admin;
use headwater_service::config::ConfigError;
use headwater_service::logging::LogConfig;
use headwater_tables::CatalogConfig;
use serde::Deserialize;

/// Most queries at a time, and most threads for them.
pub(crate) const THREADS_MAX: usize = 1024;

/// The whole configuration file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The Flight SQL listener.
    pub flight: FlightConfig,
    /// The admin listener.
    pub admin: AdminConfig,
    /// Certificate and key of the server. Without this section `flight.plaintext` must be set.
    pub tls: Option<TlsConfig>,
    /// The catalog whose tables are served.
    pub catalog: CatalogConfig,
    /// Who may connect.
    pub users: Vec<UserConfig>,
    /// Every bound.
    pub limits: LimitsConfig,
    /// Logs.
    pub log: LogConfig,
}

/// Settings of the `[flight]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlightConfig {
    /// Address of the Flight SQL server. Default `127.0.0.1:7090`: this machine alone.
    pub listen: SocketAddr,
    /// Serves without TLS. Default false. Allowed on a loopback address alone, because passwords
    /// and results would cross the network readable.
    pub plaintext: bool,
}

impl Default for FlightConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7090)),
            plaintext: false,
        }
    }
}

/// Settings of the `[admin]` section.
pub type AdminConfig = admin::AdminConfig<7091>;

/// Settings of the `[tls]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate chain of the server, PEM, leaf first.
    pub certificate: PathBuf,
    /// Private key of the leaf, PEM.
    pub key: PathBuf,
}

/// One `[[users]]` entry.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// Name the client gives.
    pub name: String,
    /// Password, plain, or `sha256:SALT:HEX` where HEX is the SHA-256 of SALT followed by the
    /// password. The hash form is meant for long random passwords.
    pub password: String,
}

impl std::fmt::Debug for UserConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("UserConfig")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Settings of the `[limits]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Queries that run at the same time. Default 4: each takes all cores while it scans. More
    /// raises memory (`query_memory_bytes` each), fewer lengthens the queue.
    pub queries_max: usize,
    /// Queries that may wait for a place. Default 64; one more is answered UNAVAILABLE.
    pub queue_max: usize,
    /// Longest wait for a place, ms. Default 30000; after it the answer is UNAVAILABLE.
    pub queue_wait_ms: u64,
    /// Longest time from the start of a result to its last row, ms. Default 600000. A shorter
    /// `grpc-timeout` of the client wins.
    pub query_timeout_ms: u64,
    /// Memory of one query for sorts, joins and aggregates, bytes. Default 1 GiB. Sorts and
    /// aggregates spill to disk at the bound; a hash join fails with RESOURCE_EXHAUSTED.
    pub query_memory_bytes: usize,
    /// Disk that one query may spill to, bytes. Default 10 GiB.
    pub query_spill_bytes: u64,
    /// Directory for spilled data. Default: the system's temporary directory.
    pub spill_directory: Option<PathBuf>,
    /// Threads that plan and run queries. Default 0: `queries_max` per core and two more, so that
    /// planning always finds one. Fewer let one heavy join delay other queries.
    pub query_threads: usize,
    /// Longest SQL text, bytes. Default 1 MiB.
    pub statement_bytes_max: usize,
    /// Parameter rows bound to one prepared statement. Default 1000: each is one run.
    pub parameter_rows_max: usize,
    /// Largest gRPC message accepted, bytes. Default 16 MiB; only bound parameters are large.
    pub message_bytes_max: usize,
    /// Results that were planned and not yet forgotten. Default 1024; the least recently used is
    /// forgotten first.
    pub statements_max: usize,
    /// How long a planned result can be fetched, ms. Default 300000.
    pub statement_ttl_ms: u64,
    /// Prepared statements kept. Default 10000; the least recently used is forgotten first.
    pub prepared_max: usize,
    /// How long an unused prepared statement is kept, ms. Default 3600000.
    pub prepared_ttl_ms: u64,
    /// Sessions (bearer tokens) kept. Default 10000.
    pub sessions_max: usize,
    /// Sessions of one user. Default 1000; the least recently used ends first.
    pub sessions_per_user_max: usize,
    /// How long an unused session lives, ms. Default 43200000 (12 h).
    pub session_ttl_ms: u64,
    /// Time that running queries get at a stop, ms. Default 10000; then they end with an error.
    pub stop_ms: u64,
    /// How often the catalog is read for readiness, ms. Default 5000.
    pub probe_interval_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            queries_max: 4,
            queue_max: 64,
            queue_wait_ms: 30_000,
            query_timeout_ms: 600_000,
            query_memory_bytes: 1 << 30,
            query_spill_bytes: 10 << 30,
            spill_directory: None,
            query_threads: 0,
            statement_bytes_max: 1 << 20,
            parameter_rows_max: 1000,
            message_bytes_max: 16 << 20,
            statements_max: 1024,
            statement_ttl_ms: 300_000,
            prepared_max: 10_000,
            prepared_ttl_ms: 3_600_000,
            sessions_max: 10_000,
            sessions_per_user_max: 1000,
            session_ttl_ms: 43_200_000,
            stop_ms: 10_000,
            probe_interval_ms: 5_000,
        }
    }
}

impl LimitsConfig {
    /// Returns the longest wait for a place.
    pub fn queue_wait(&self) -> Duration {
        Duration::from_millis(self.queue_wait_ms)
    }

    /// Returns the longest time of one result.
    pub fn query_timeout(&self) -> Duration {
        Duration::from_millis(self.query_timeout_ms)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let positive: [(&'static str, u64); 15] = [
            ("limits.queries_max", self.queries_max as u64),
            ("limits.queue_wait_ms", self.queue_wait_ms),
            ("limits.query_timeout_ms", self.query_timeout_ms),
            ("limits.query_memory_bytes", self.query_memory_bytes as u64),
            (
                "limits.statement_bytes_max",
                self.statement_bytes_max as u64,
            ),
            ("limits.parameter_rows_max", self.parameter_rows_max as u64),
            ("limits.message_bytes_max", self.message_bytes_max as u64),
            ("limits.statements_max", self.statements_max as u64),
            ("limits.statement_ttl_ms", self.statement_ttl_ms),
            ("limits.prepared_max", self.prepared_max as u64),
            ("limits.prepared_ttl_ms", self.prepared_ttl_ms),
            ("limits.sessions_max", self.sessions_max as u64),
            (
                "limits.sessions_per_user_max",
                self.sessions_per_user_max as u64,
            ),
            ("limits.session_ttl_ms", self.session_ttl_ms),
            ("limits.probe_interval_ms", self.probe_interval_ms),
        ];
        let threads: [(&'static str, usize); 2] = [
            ("limits.queries_max", self.queries_max),
            ("limits.query_threads", self.query_threads),
        ];
        if let Some((key, _)) = threads.into_iter().find(|(_, value)| *value > THREADS_MAX) {
            return Err(refused(key, format!("must be at most {THREADS_MAX}")));
        }
        match positive.into_iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(refused(key, "must be at least 1".to_owned())),
            None => Ok(()),
        }
    }
}

impl Config {
    /// Checks that the values fit together.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the key and what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.limits.validate()?;
        self.admin.bounds().validate()?;
        let catalog = self.catalog.validate();
        catalog.map_err(|error| refused(error.key, error.message))?;
        self.validate_transport()?;
        self.validate_users()
    }

    fn validate_transport(&self) -> Result<(), ConfigError> {
        match (&self.tls, self.flight.plaintext) {
            (Some(_), true) => Err(refused(
                "flight.plaintext",
                "is set together with a [tls] section; remove one of them".to_owned(),
            )),
            (None, false) => Err(refused(
                "tls",
                "is missing; name certificate and key, or set flight.plaintext = true on a \
                 loopback address"
                    .to_owned(),
            )),
            (None, true) if !self.flight.listen.ip().is_loopback() => Err(refused(
                "flight.plaintext",
                format!(
                    "would send passwords readable over `{}`; add a [tls] section or listen on \
                     127.0.0.1",
                    self.flight.listen
                ),
            )),
            _ => Ok(()),
        }
    }

    fn validate_users(&self) -> Result<(), ConfigError> {
        if self.users.is_empty() {
            return Err(refused(
                "users",
                "is empty, so nobody could connect; add a [[users]] entry with name and password"
                    .to_owned(),
            ));
        }
        let mut names = std::collections::HashSet::new();
        for user in &self.users {
            if user.name.is_empty() || user.name.contains(':') {
                return Err(refused(
                    "users.name",
                    format!("`{}` must be non-empty and without a colon", user.name),
                ));
            }
            if user.password.is_empty() {
                return Err(refused(
                    "users.password",
                    format!("of `{}` must not be empty", user.name),
                ));
            }
            crate::auth::Secret::parse(&user.password).map_err(|message| {
                refused("users.password", format!("of `{}` {message}", user.name))
            })?;
            if !names.insert(&user.name) {
                return Err(refused(
                    "users.name",
                    format!("`{}` stands twice", user.name),
                ));
            }
        }
        Ok(())
    }
}

fn refused(key: &'static str, message: String) -> ConfigError {
    ConfigError::Value { key, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        headwater_service::config::load_with(Some(file.path()), std::iter::empty()).unwrap()
    }

    const USER: &str = "[[users]]\nname = \"a\"\npassword = \"b\"\n";

    #[test]
    fn plaintext_is_refused_beyond_loopback() {
        let text = format!("[flight]\nlisten = \"0.0.0.0:7090\"\nplaintext = true\n{USER}");
        let error = parse(&text).validate().unwrap_err().to_string();
        assert!(error.contains("flight.plaintext"), "{error}");
    }

    #[test]
    fn tls_is_needed_unless_plaintext_is_asked_for() {
        assert!(parse(USER).validate().is_err());
        assert!(
            parse(&format!("[flight]\nplaintext = true\n{USER}"))
                .validate()
                .is_ok()
        );
    }

    #[test]
    fn nobody_and_zero_bounds_are_refused() {
        assert!(parse("[flight]\nplaintext = true\n").validate().is_err());
        let text = format!("[flight]\nplaintext = true\n[limits]\nqueries_max = 0\n{USER}");
        assert!(parse(&text).validate().is_err());
    }

    #[test]
    fn debug_never_shows_a_password() {
        let config = parse("[[users]]\nname = \"a\"\npassword = \"hunter2\"\n");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
