//! Logs to standard error, pretty for people or JSON for machines.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text per event, for a person.
    #[default]
    Pretty,
    /// One JSON object per event, for a log store.
    Json,
}

/// Settings of the `[log]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `pretty` or `json`. Default `pretty`.
    pub format: LogFormat,
    /// A level or a filter such as `info,quinn=warn`. Default `info`. More than `debug` costs
    /// throughput.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Pretty,
            level: "info".to_owned(),
        }
    }
}

/// Starts logging for the whole process. Later calls change nothing.
pub fn init(config: &LogConfig) {
    let filter = EnvFilter::try_new(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second call in one process (tests, the all-in-one binary) keeps the first subscriber.
    let already_set = match config.format {
        LogFormat::Pretty => builder.try_init().is_err(),
        LogFormat::Json => builder.json().try_init().is_err(),
    };
    if already_set {
        tracing::debug!("logging was already initialised");
    }
}
