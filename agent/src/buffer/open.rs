//! Taking up the directory: who owns it, what lies in it, and how far it had come.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use headwater_protocol::AgentId;
use headwater_service::clock::SharedClock;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::appender::Appender;
use super::chunk::Position;
use super::epochs::Epochs;
use super::files::{self, Identity};
use super::marks::{Marks, MarksFile};
use super::{Buffer, Shared, Slot, State, generation, now_ms};
use crate::config::BufferConfig;

/// Why a buffer cannot be opened. Nothing was changed, or it was changed so that opening again works.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory.
    #[error("buffer `{}` is in use by another process; stop it or set another buffer.directory", .0.display())]
    Locked(PathBuf),
    /// The directory holds events of another agent.
    #[error("buffer `{}` belongs to agent `{owner}`, the certificate names `{agent_id}`; use that agent's certificate or set another buffer.directory", directory.display())]
    OtherAgent {
        /// The directory.
        directory: PathBuf,
        /// Agent that made it.
        owner: AgentId,
        /// Agent of the certificate.
        agent_id: AgentId,
    },
    /// A file cannot be read or written.
    #[error("buffer `{}` cannot be opened: {source}; check its owner, mount and free space", directory.display())]
    Io {
        /// The directory.
        directory: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The newest generation can be neither opened nor replaced.
    #[error("buffer `{}` cannot open its store: {message}; check the disk and free some space", directory.display())]
    Store {
        /// The directory.
        directory: PathBuf,
        /// What the store said.
        message: String,
    },
}

impl Buffer {
    /// Opens the buffer of `agent_id`, or makes it, and returns its handle and its one writer.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        config: &BufferConfig,
        agent_id: &AgentId,
        clock: SharedClock,
    ) -> Result<(Self, Appender), OpenError> {
        let directory = config.directory.clone();
        let failed = |source| OpenError::Io {
            directory: directory.clone(),
            source,
        };
        let generations_directory = directory.join("generations");
        for path in [
            &directory,
            &generations_directory,
            &directory.join("quarantine"),
            &directory.join("refused"),
        ] {
            files::create_directory(path).map_err(failed)?;
        }
        let lock = files::lock_patiently(&directory)
            .map_err(failed)?
            .ok_or_else(|| OpenError::Locked(directory.clone()))?;
        let identity = read_identity(&directory).map_err(failed)?;
        if let Some(identity) = identity
            .as_ref()
            .filter(|found| found.agent_id != *agent_id)
        {
            return Err(OpenError::OtherAgent {
                directory,
                owner: identity.agent_id.clone(),
                agent_id: agent_id.clone(),
            });
        }
        let (marks_file, marks) = MarksFile::open(&directory).map_err(failed)?;
        let starts = list_generations(&generations_directory).map_err(failed)?;
        let known = identity.is_some() && (marks.is_some() || starts.is_empty());
        let marks = marks.unwrap_or_else(|| guess_marks(&starts));
        let epochs = epochs(identity, known, marks.acked, now_ms(&clock));
        let closed = |start| {
            let path = generation::directory(&generations_directory, start);
            let disk_bytes = files::disk_bytes(&path);
            (start, Slot::Closed { disk_bytes })
        };
        let state = State {
            epochs,
            acked: marks.acked,
            sent: marks.sent,
            generations: starts.into_iter().map(closed).collect(),
            leaving: BTreeMap::new(),
            around_bytes: files::disk_bytes_around(&directory),
            refused_bytes: files::disk_bytes(&directory.join("refused")),
            refused_bytes_max: config.refused_room_bytes(),
            durable_floor: marks.durable,
            damage_counted: 0,
            wants_room: false,
            tail_damaged: false,
            damaged: BTreeSet::new(),
            refusal: None,
        };
        let buffer = Self {
            shared: Arc::new(Shared {
                directory: directory.clone(),
                agent_id: agent_id.clone(),
                clock,
                durable: watch::Sender::new(0),
                state: Mutex::new(state),
                opening: Mutex::default(),
                marks: Mutex::new(marks_file),
                _lock: lock,
            }),
        };
        let appender = Appender::open(buffer.clone(), config, marks)?;
        Ok((buffer, appender))
    }
}

/// Returns how positions are numbered. When what is `known` does not say it, what is left starts over in
/// an epoch that no one has seen.
fn epochs(identity: Option<Identity>, known: bool, acked: Position, now_ms: u64) -> Epochs {
    match identity {
        Some(identity) if known => identity.epochs,
        Some(identity) => {
            let mut epochs = identity.epochs;
            epochs.renumber(acked, now_ms);
            epochs
        }
        None => Epochs::starting(now_ms, acked),
    }
}

/// Reads `buffer.json`; one that cannot be understood is moved aside.
fn read_identity(directory: &Path) -> io::Result<Option<Identity>> {
    match Identity::read(directory) {
        Err(error)
            if error.kind() == io::ErrorKind::InvalidData
                || error.kind() == io::ErrorKind::UnexpectedEof =>
        {
            tracing::error!(%error, "buffer.json is damaged and set aside; a new epoch begins");
            fs::rename(
                directory.join("buffer.json"),
                directory.join("quarantine/buffer.json"),
            )?;
            Ok(None)
        }
        other => other,
    }
}

pub(super) fn list_generations(directory: &Path) -> io::Result<Vec<Position>> {
    let mut starts = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        match name.to_str().and_then(|name| name.parse().ok()) {
            Some(start) => starts.push(start),
            None => tracing::warn!(?name, "a foreign entry lies among the generations"),
        }
    }
    starts.sort_unstable();
    Ok(starts)
}

/// Without marks nothing is known to be acknowledged, and everything may have been sent.
pub(super) fn guess_marks(starts: &[Position]) -> Marks {
    let acked = starts.first().map_or(0, |start| start.saturating_sub(1));
    Marks {
        acked,
        sent: 0,
        durable: 0,
    }
}
