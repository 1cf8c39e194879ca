//! Configuration: one TOML file, then `HEADWATER__SECTION__KEY` from the environment.
//!
//! Unknown keys are refused (the settings types deny them), so a typing error is found at start and
//! not at 3 a.m.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Prefix of environment variables that override the file.
pub const ENV_PREFIX: &str = "HEADWATER__";

/// Why a configuration cannot be used. Every message names the place and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read config file `{}`: {source}; check the path given to --config", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or holds an unknown key or a value of the wrong type.
    #[error("config file `{}`: {message}", path.display())]
    Invalid {
        /// The file asked for.
        path: PathBuf,
        /// What is wrong, with line and column where known.
        message: String,
    },
    /// An environment override names an unknown key or has a value of the wrong type.
    #[error("configuration with environment overrides (`HEADWATER__...`): {message}")]
    Override {
        /// What is wrong.
        message: String,
    },
    /// The values do not fit together.
    #[error("configuration key `{key}`: {message}")]
    Value {
        /// Dotted name of the key.
        key: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// Reads `T` from `path` (or from nothing: all defaults) and the process environment.
///
/// # Errors
/// See [`ConfigError`]; none is worth a retry.
pub fn load<T: DeserializeOwned>(path: Option<&Path>) -> Result<T, ConfigError> {
    load_with(path, std::env::vars())
}

/// As [`load`], with the environment given: `HEADWATER__BUFFER__DISK_BYTES_MAX=1` sets
/// `buffer.disk_bytes_max`. A value is read as TOML, and as a plain string where it is not TOML.
///
/// # Errors
/// See [`ConfigError`].
pub fn load_with<T: DeserializeOwned>(
    path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let mut table = match path {
        None => toml::Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?;
            // Read once as `T`, because only then does the message carry line and column.
            toml::from_str::<T>(&text).map_err(|error| ConfigError::Invalid {
                path: path.to_owned(),
                message: one_line(&error),
            })?;
            text.parse::<toml::Table>()
                .map_err(|error| ConfigError::Invalid {
                    path: path.to_owned(),
                    message: one_line(&error),
                })?
        }
    };
    for (name, value) in environment {
        if let Some(key) = name.strip_prefix(ENV_PREFIX) {
            let keys: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
            set(&mut table, &keys, parse_value(&value));
        }
    }
    T::deserialize(table).map_err(|error| ConfigError::Override {
        message: one_line(&error),
    })
}

fn set(table: &mut toml::Table, keys: &[String], value: toml::Value) {
    match keys {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let entry = table
                .entry(first.clone())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if !entry.is_table() {
                *entry = toml::Value::Table(toml::Table::new());
            }
            if let Some(inner) = entry.as_table_mut() {
                set(inner, rest, value);
            }
        }
    }
}

fn parse_value(text: &str) -> toml::Value {
    format!("value = {text}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

/// Folds TOML's picture of the place into one line, so that an error stays one clear line.
fn one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let place = text
        .lines()
        .next()
        .filter(|line| line.starts_with("TOML parse error"));
    match place {
        Some(place) => {
            let at = place.trim_start_matches("TOML parse error").trim();
            format!("{at}: {}", error.message())
        }
        None => error.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        buffer: Buffer,
    }

    #[derive(Debug, Deserialize, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Buffer {
        disk_bytes_max: u64,
        name: String,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn environment_overrides_the_file() {
        let file = file("[buffer]\ndisk_bytes_max = 1\nname = \"a\"\n");
        let environment = [
            (
                "HEADWATER__BUFFER__DISK_BYTES_MAX".to_owned(),
                "2".to_owned(),
            ),
            (
                "HEADWATER__BUFFER__NAME".to_owned(),
                "plain text".to_owned(),
            ),
            ("PATH".to_owned(), "ignored".to_owned()),
        ];
        let settings: Settings = load_with(Some(file.path()), environment.into_iter()).unwrap();
        assert_eq!(settings.buffer.disk_bytes_max, 2);
        assert_eq!(settings.buffer.name, "plain text");
    }

    #[test]
    fn unknown_key_is_refused_with_its_line() {
        let file = file("[buffer]\ndisk_bytes = 1\n");
        let error = load_with::<Settings>(Some(file.path()), std::iter::empty()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("line 2") && text.contains("disk_bytes"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn unknown_override_is_refused() {
        let environment = [("HEADWATER__BUFER__NAME".to_owned(), "x".to_owned())];
        let error = load_with::<Settings>(None, environment.into_iter()).unwrap_err();
        assert!(error.to_string().contains("bufer"), "{error}");
    }

    #[test]
    fn missing_file_says_which() {
        let error =
            load_with::<Settings>(Some(Path::new("no-such.toml")), std::iter::empty()).unwrap_err();
        assert!(error.to_string().contains("no-such.toml"), "{error}");
    }
}
