//! What the data directory remembers of the sample: its seed, its days and whether it is complete.
//!
//! Written before the play begins, so that a run that was interrupted resumes with the same events,
//! even on another day; marked complete only after everything has been checked.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use crate::world::time::Window;

/// Why the note cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The file cannot be read or written.
    #[error("cannot {action} `{}`: {source}; check the directory's owner and its free space", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("`{}` is damaged: {source}; restore it, or move the data directory away and start again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// The note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Seed of world and desk.
    pub seed: u64,
    /// Last day of the play.
    pub last_day: NaiveDate,
    /// Whether everything was played, built and checked.
    pub is_complete: bool,
}

impl Sample {
    /// Returns the file in the data directory `root`.
    pub fn file(root: &Path) -> PathBuf {
        root.join("sample.json")
    }

    /// Reads the note of `root`; `None` when there is none yet.
    ///
    /// # Errors
    /// See [`SampleError`].
    pub fn read(root: &Path) -> Result<Option<Self>, SampleError> {
        let path = Self::file(root);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|source| SampleError::File {
                action: "read",
                path: path.clone(),
                source,
            })?,
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|source| SampleError::Damaged { path, source })
    }

    /// Writes the note in one step.
    ///
    /// # Errors
    /// [`SampleError::File`].
    pub fn write(&self, root: &Path) -> Result<(), SampleError> {
        let path = Self::file(root);
        let temporary = path.with_extension("new");
        let text = serde_json::to_string_pretty(self).expect("a plain struct is JSON");
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        });
        written.map_err(|source| SampleError::File {
            action: "write",
            path,
            source,
        })
    }

    /// Returns the days of the play.
    pub fn window(&self) -> Window {
        Window {
            last: self.last_day,
        }
    }
}
