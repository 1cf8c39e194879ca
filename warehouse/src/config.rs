//! Settings of the nightly batch, checked once before anything is opened.
//!
//! Promise: a password in `source.uri` is never printed, not even by `Debug`.

use std::fmt;
use std::path::PathBuf;

use headwater_service::config::ConfigError;
use headwater_service::logging::LogConfig;
use headwater_tables::CatalogConfig;
use serde::Deserialize;

/// The whole configuration file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the tables are.
    pub catalog: CatalogConfig,
    /// The operational database.
    pub source: SourceConfig,
    /// How the reports are computed.
    pub reports: ReportsConfig,
    /// Bounds on memory and work.
    pub limits: Limits,
    /// Log format and level.
    pub log: LogConfig,
}

/// The `[source]` section: the operational database that is copied each night.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// `postgres://user:password@host:port/database` or `sqlite://PATH`. Default
    /// `sqlite://headwater-data/operational.db`. Put the password into the environment:
    /// `HEADWATER__SOURCE__URI`.
    pub uri: String,
    /// Longest wait for a connection, in milliseconds. Default 10 000: a database that is up answers
    /// in far less. Lower fails on a slow network; higher delays the error of a dead host.
    pub connect_timeout_ms: u64,
    /// Longest time one statement may run, in milliseconds (PostgreSQL). Default 600 000. Lower
    /// fails on large tables; higher holds the read transaction open longer.
    pub statement_timeout_ms: u64,
    /// Rows per Arrow batch. Default 8 192. Lower costs time; higher costs memory while reading.
    pub batch_rows: usize,
    /// Most rows one table may have. Default 20 000 000: a copied table is held in memory until all
    /// tables have been read. More needs more memory.
    pub table_rows_max: u64,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            uri: "sqlite://headwater-data/operational.db".to_owned(),
            connect_timeout_ms: 10_000,
            statement_timeout_ms: 600_000,
            batch_rows: 8_192,
            table_rows_max: 20_000_000,
        }
    }
}

impl fmt::Debug for SourceConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SourceConfig")
            .field("uri", &"(hidden)")
            .field("batch_rows", &self.batch_rows)
            .field("table_rows_max", &self.table_rows_max)
            .finish_non_exhaustive()
    }
}

/// The `[reports]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportsConfig {
    /// Directory of further report models (`*.sql`); a file there becomes a table, and replaces the
    /// built-in report of the same name. Default: none.
    pub models_directory: Option<PathBuf>,
    /// How many days before the date of the night are computed again, because their events arrive
    /// late. Default 3, as an event may wait 72 hours in an agent. Lower misses late events; higher
    /// costs time.
    pub late_days: u32,
}

impl Default for ReportsConfig {
    fn default() -> Self {
        Self {
            models_directory: None,
            late_days: 3,
        }
    }
}

/// The `[limits]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory that sorting, joining and grouping may use before they spill to disk, in bytes.
    /// Default 2 GiB. Lower spills earlier; higher needs the memory.
    pub query_memory_bytes: usize,
    /// Rows per data file at most. Default 1 000 000, about 100 MB of events. Lower makes small
    /// files; higher holds more rows in memory while writing.
    pub file_rows_max: usize,
    /// Rows that one report may return for one run. Default 10 000 000: they are held in memory to be
    /// compared with what is published.
    pub report_rows_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            query_memory_bytes: 2 << 30,
            file_rows_max: 1_000_000,
            report_rows_max: 10_000_000,
        }
    }
}

impl Config {
    /// Checks that the values can be used together.
    ///
    /// # Errors
    /// Names the first key that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let catalog = self.catalog.validate();
        catalog.map_err(|error| invalid(error.key, &error.message))?;
        let uri = &self.source.uri;
        let known = ["postgres://", "postgresql://", "sqlite://"];
        if !known.iter().any(|scheme| uri.starts_with(scheme)) {
            return Err(invalid(
                "source.uri",
                "must begin with `postgres://` or `sqlite://`",
            ));
        }
        positive("source.batch_rows", self.source.batch_rows as u64)?;
        positive("source.table_rows_max", self.source.table_rows_max)?;
        positive("source.connect_timeout_ms", self.source.connect_timeout_ms)?;
        positive("limits.file_rows_max", self.limits.file_rows_max as u64)?;
        positive("limits.report_rows_max", self.limits.report_rows_max as u64)?;
        if self.limits.query_memory_bytes < 64 << 20 {
            return Err(invalid(
                "limits.query_memory_bytes",
                "must be at least 67108864 (64 MiB)",
            ));
        }
        if self.reports.late_days > 366 {
            return Err(invalid("reports.late_days", "must be at most 366"));
        }
        Ok(())
    }
}

fn positive(key: &'static str, value: u64) -> Result<(), ConfigError> {
    if value == 0 {
        return Err(invalid(key, "must be greater than 0"));
    }
    Ok(())
}

fn invalid(key: &'static str, message: &str) -> ConfigError {
    ConfigError::Value {
        key,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_not_in_the_debug_text() {
        let config = Config {
            source: SourceConfig {
                uri: "postgres://me:secret@host/db".to_owned(),
                ..SourceConfig::default()
            },
            ..Config::default()
        };
        assert!(config.validate().is_ok());
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn other_databases_are_refused() {
        let mut config = Config::default();
        config.source.uri = "mysql://host/db".to_owned();
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("source.uri"), "{error}");
    }
}
