//! Logs to standard error, pretty for people or JSON for machines.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `pretty` or `json`. Default `pretty`.
    pub format: LogFormat,
    /// A level (`off`, `error`, `warn`, `info`, `debug`, `trace`) or a filter such as
    /// `info,quinn=warn`. Default `info`. More than `debug` costs throughput.
    #[serde(deserialize_with = "level")]
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

/// Reads a filter and refuses what would silently log nothing: a misspelt level is a valid name of a
/// module to the filter's own parser.
fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let known = text.split(',').all(|part| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        !level.trim().is_empty() && level.trim().parse::<LevelFilter>().is_ok()
    });
    if known && EnvFilter::try_new(&text).is_ok() {
        Ok(text)
    } else {
        Err(D::Error::custom(format!(
            "`{text}` is no log level; use error, warn, info, debug or trace, or a filter such as `info,quinn=warn`"
        )))
    }
}

/// Puts another filter in force.
type SetFilter = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Starts logging for the whole process. Later calls change nothing.
pub fn init(config: &LogConfig) {
    let builder = tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second call in one process (tests, the all-in-one binary) keeps the first subscriber.
    let (already_set, set_filter): (bool, SetFilter) = match config.format {
        LogFormat::Pretty => {
            let builder = builder
                .with_env_filter(filter(&config.level))
                .with_filter_reloading();
            let handle = builder.reload_handle();
            let set = Box::new(move |filter| handle.reload(filter).is_ok());
            (builder.try_init().is_err(), set)
        }
        LogFormat::Json => {
            let builder = builder
                .json()
                .with_env_filter(filter(&config.level))
                .with_filter_reloading();
            let handle = builder.reload_handle();
            let set = Box::new(move |filter| handle.reload(filter).is_ok());
            (builder.try_init().is_err(), set)
        }
    };
    if already_set {
        tracing::debug!("logging was already initialised");
    } else {
        SET_FILTER.get_or_init(|| set_filter);
    }
}

/// Changes the level of a process whose logging [`init`] has started.
pub fn set_level(level: &str) {
    if SET_FILTER.get().is_some_and(|set| !set(filter(level))) {
        tracing::warn!(level, "the log level cannot be changed");
    }
}

/// Reads a level that [`LogConfig`] has checked.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused() {
        let read = |level: &str| toml::from_str::<LogConfig>(&format!("level = \"{level}\""));
        for level in [
            "info",
            "WARN",
            "off",
            "info,quinn=warn",
            "headwater_agent::shipper=trace",
        ] {
            assert_eq!(read(level).unwrap().level, level);
        }
        for level in ["verbse", "a=b=c", "info,quinn", ""] {
            let error = read(level).unwrap_err().to_string();
            assert!(error.contains("is no log level"), "{level}: {error}");
        }
    }
}
