//! The files of a plan: one JSON file per event, and `plan.json` for what holds for all of them.
//!
//! Not on an event's path: read at start and at a reload. Promise: a directory is a plan or it is
//! refused with the file, the place in it and the reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use headwater_protocol::json::{self, Object};
use headwater_tables::CatalogError;
use headwater_tables::promoted::ColumnType;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::schema::SchemaError;
use crate::staging::actor::Actor;

/// The file of what holds for all events.
pub(super) const COMMON_FILE: &str = "plan.json";

/// Most events of a plan: names of events are labels of metrics.
pub const EVENTS_MAX: usize = 1000;

/// Largest file of a plan: 1 MiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is done with an event that is not as the plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is stored, and nothing is checked.
    Allow,
    /// It is stored, and what is wrong is noted in its row.
    #[default]
    Note,
    /// It is stored without the properties that are at fault, and they are noted in its row.
    Omit,
    /// It goes to `raw.quarantine`.
    Quarantine,
}

/// One file of an event.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventFile {
    pub(super) event: String,
    #[serde(default, rename = "description")]
    _description: String,
    pub(super) version: i32,
    #[serde(default)]
    pub(super) mode: Mode,
    #[serde(default)]
    pub(super) actors: Vec<Actor>,
    #[serde(default)]
    pub(super) schema: Value,
    /// Properties that get a column of their own.
    #[serde(default)]
    pub(super) promote: BTreeMap<String, ColumnType>,
}

/// The file [`COMMON_FILE`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommonFile {
    #[serde(default, rename = "description")]
    _description: String,
    /// What is done with a `track` whose name no file has.
    #[serde(default = "allow")]
    pub(super) unplanned_events: Mode,
    /// Schemas of properties that every event may have.
    #[serde(default)]
    pub(super) common: Map<String, Value>,
    #[serde(default)]
    pub(super) promote: BTreeMap<String, ColumnType>,
}

fn allow() -> Mode {
    Mode::Allow
}

/// Why a plan cannot be used. The plan before it stays in force.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A file or the directory cannot be read.
    #[error("tracking plan: `{path}` cannot be read: {source}; check [plan] directory")]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file says something that cannot be.
    #[error("tracking plan: file `{file}`, {error}")]
    File {
        /// The file's name.
        file: String,
        /// Where in it, and what to change.
        #[source]
        error: SchemaError,
    },
    /// The columns that it promotes cannot be added to `raw.events`.
    #[error("tracking plan: `raw.events` cannot have the promoted columns: {0}")]
    Columns(#[source] Box<CatalogError>),
    /// The directory holds no event.
    #[error("tracking plan: `{path}` holds no JSON file of an event; check [plan] directory")]
    Empty {
        /// The directory.
        path: PathBuf,
    },
}

impl PlanError {
    pub(super) fn file(file: &str, path: &str, reason: impl Into<String>) -> Self {
        Self::File {
            file: file.to_owned(),
            error: SchemaError::new(path, reason),
        }
    }
}

/// A file as it lies there: its name and its text.
pub(super) type Text = (String, String);

/// Reads the JSON files of a directory, in order of their names. Other files are left alone.
pub(super) fn read(directory: &Path) -> Result<Vec<Text>, PlanError> {
    let error = |path: &Path, source| PlanError::Read {
        path: path.to_owned(),
        source,
    };
    let entries = std::fs::read_dir(directory).map_err(|source| error(directory, source))?;
    let mut files = Vec::new();
    let mut events = 0;
    for entry in entries {
        let path = entry.map_err(|source| error(directory, source))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| name.ends_with(".json") && !name.starts_with('.'))
        else {
            continue;
        };
        let size = std::fs::metadata(&path).map_err(|source| error(&path, source))?;
        events += usize::from(name != COMMON_FILE);
        if size.len() > FILE_BYTES_MAX || events > EVENTS_MAX {
            let reason = format!(
                "a plan has at most {EVENTS_MAX} events in files of at most {FILE_BYTES_MAX} bytes"
            );
            return Err(PlanError::file(name, "$", reason));
        }
        let text = std::fs::read_to_string(&path).map_err(|source| error(&path, source))?;
        files.push((name.to_owned(), text));
    }
    if events == 0 {
        return Err(PlanError::Empty {
            path: directory.to_owned(),
        });
    }
    files.sort_unstable();
    Ok(files)
}

/// Reads the text of a file. Returns it also as an object, of which the plan's fingerprint is made.
pub(super) fn parse<'a, T: DeserializeOwned>(
    file: &str,
    text: &'a str,
) -> Result<(T, Object<'a>), PlanError> {
    let wrong = |error: serde_json::Error| PlanError::file(file, "$", error.to_string());
    // Into a value first: a key that comes twice is its last here, too.
    let value: Value = serde_json::from_str(text).map_err(wrong)?;
    let parsed = T::deserialize(value).map_err(wrong)?;
    match json::Value::parse(text.as_bytes()).map_err(wrong)? {
        json::Value::Object(object) => Ok((parsed, object)),
        _ => Err(PlanError::file(file, "$", "is not a JSON object")),
    }
}
