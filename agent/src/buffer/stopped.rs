//! The buffer of a stopped agent: read whole, and never changed.
//!
//! The store writes when it is opened, so each generation is copied to a temporary directory (`TMPDIR`)
//! and the copy is opened, one at a time: it takes the room of one generation there. The lock is held
//! meanwhile, so that no agent starts on the directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};

use headwater_protocol::{Record, timestamp};
use serde::Serialize;
use tempfile::TempDir;

use super::chunk::Position;
use super::epochs::Epochs;
use super::export::Export;
use super::files::{self, Identity};
use super::generation::{self, Generation, StoreError};
use super::inspect::{GenerationView, Inspection, Tally, Walked, quarantined, walk};
use super::marks::Marks;
use super::open::{guess_marks, list_generations};
use super::refused;

/// Why a stopped buffer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoppedError {
    /// An agent runs on it.
    #[error("buffer `{}` is in use by a running agent", .0.display())]
    InUse(PathBuf),
    /// There is no such buffer, or its files cannot be read.
    #[error("buffer `{}` cannot be read: {source}; check buffer.directory and run as its owner", directory.display())]
    Io {
        /// The directory.
        directory: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The temporary directory or the output failed.
    #[error("cannot go on: {0}")]
    Output(#[from] io::Error),
}

/// The buffer of a stopped agent, locked.
#[derive(Debug)]
pub struct Stopped {
    directory: PathBuf,
    /// The identity, or why it cannot be read.
    identity: Result<Identity, String>,
    marks: Marks,
    marks_known: bool,
    starts: Vec<Position>,
    _lock: Option<File>,
}

/// Something that is not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Positions concerned, first and last; `None` for a file around the events.
    pub positions: Option<(Position, Position)>,
    /// They are acknowledged already: nothing is lost with them.
    pub acknowledged: bool,
    /// What is wrong.
    pub what: String,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Generations that were read.
    pub generations: usize,
    /// Events that were read and are sound.
    pub events: u64,
    /// What is not whole.
    pub damage: Vec<Damage>,
    /// What was set aside before.
    pub quarantined: usize,
    /// Sound events in `refused/`.
    pub refused: u64,
}

impl Stopped {
    /// Locks the buffer in `directory` and reads the files around its store.
    ///
    /// # Errors
    /// See [`StoppedError`].
    pub fn open(directory: &Path) -> Result<Self, StoppedError> {
        let failed = |source| StoppedError::Io {
            directory: directory.to_owned(),
            source,
        };
        let lock = match File::open(directory.join("lock")) {
            Ok(file) => {
                let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
                match rustix::fs::flock(&file, operation) {
                    Ok(()) => Some(file),
                    Err(rustix::io::Errno::WOULDBLOCK) => {
                        return Err(StoppedError::InUse(directory.to_owned()));
                    }
                    Err(error) => return Err(failed(error.into())),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let starts = list_generations(&directory.join("generations")).map_err(failed)?;
        let identity = match Identity::read(directory) {
            Ok(Some(identity)) => Ok(identity),
            Ok(None) => Err("is missing".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(failed(error));
            }
            Err(error) => Err(format!("is damaged ({error})")),
        };
        let marks = Marks::read(directory).map_err(failed)?;
        Ok(Self {
            directory: directory.to_owned(),
            identity,
            marks_known: marks.is_some(),
            marks: marks.unwrap_or_else(|| guess_marks(&starts)),
            starts,
            _lock: lock,
        })
    }

    /// Returns what the buffer holds. Reads all of it.
    ///
    /// # Errors
    /// [`StoppedError::Output`] when there is no room for the copies.
    pub fn inspect(&self) -> Result<Inspection, StoppedError> {
        let mut inspection = Inspection {
            running: false,
            agent_id: self.identity.as_ref().ok().map(|it| it.agent_id.clone()),
            acked: self.marks.acked,
            sent: self.marks.sent,
            durable: self.marks.durable,
            events: 0,
            events_described: 0,
            disk_bytes: files::disk_bytes(&self.directory),
            oldest_received_at: None,
            newest_received_at: None,
            generations: Vec::new(),
            quarantined: quarantined(&self.directory),
            refused: refused::summary(&self.directory),
        };
        for (start, end) in self.generations() {
            let mut tally = Tally::after(self.marks.acked);
            let walked = self.walk(start, end, |position, record| {
                tally.add(position, record);
                ControlFlow::Continue(())
            })?;
            let last = end.unwrap_or(walked.next - 1);
            let events = self.count(self.marks.acked.max(start - 1), last);
            if inspection.oldest_received_at.is_none() {
                inspection.oldest_received_at = tally.oldest().and_then(timestamp::format);
            }
            inspection.durable = inspection.durable.max(walked.next - 1);
            inspection.events += events;
            inspection.generations.push(GenerationView {
                first: start,
                last,
                events,
                disk_bytes: files::disk_bytes(&self.directory_of(start)),
                error: walked.error.as_ref().map(ToString::to_string),
                contents: Some(tally.contents(&walked)),
            });
        }
        inspection.sum_up();
        Ok(inspection)
    }

    /// Reads every value, checks its checksum and that no position is missing.
    ///
    /// # Errors
    /// [`StoppedError::Output`] when there is no room for the copies.
    pub fn check(&self) -> Result<Check, StoppedError> {
        let mut check = Check {
            generations: self.starts.len(),
            events: 0,
            damage: Vec::new(),
            quarantined: quarantined(&self.directory).len(),
            refused: 0,
        };
        let around = |what: String| Damage {
            positions: None,
            acknowledged: false,
            what,
        };
        let is_used = !self.starts.is_empty() || self.marks_known;
        if let Err(reason) = &self.identity
            && is_used
        {
            check.damage.push(around(format!(
                "buffer.json {reason}: the next start opens a new epoch"
            )));
        }
        if !self.marks_known && !self.starts.is_empty() {
            check.damage.push(around(
                "marks cannot be read: everything on disk counts as unacknowledged and is sent again"
                    .to_owned(),
            ));
        }
        if let Some(&first) = self.starts.first() {
            self.note(
                &mut check,
                self.marks.acked + 1,
                first - 1,
                "no generation holds them",
            );
        } else {
            let (first, last) = (self.marks.acked + 1, self.marks.durable);
            self.note(&mut check, first, last, "there is no generation");
        }
        for (start, end) in self.generations() {
            let mut events = 0;
            let walked = self.walk(start, end, |position, record| {
                if Record::decode(record).is_ok() {
                    events += 1;
                } else {
                    self.note(&mut check, position, position, "no event in a sound value");
                }
                ControlFlow::Continue(())
            })?;
            check.events += events;
            let what = match &walked.error {
                Some(error) => format!("generation {start}: {error}"),
                None => format!("generation {start}: damaged or missing"),
            };
            for &(first, last) in &walked.unreadable {
                self.note(&mut check, first, last, &what);
            }
            if walked.error.is_some() && walked.unreadable.is_empty() {
                check.damage.push(around(what));
            }
        }
        for (name, kept) in refused::read_all(&self.directory) {
            match kept {
                Ok(_) => check.refused += 1,
                Err(what) => check.damage.push(around(format!(
                    "refused/{name} {what}; save what can be read of it, then delete it"
                ))),
            }
        }
        Ok(check)
    }

    /// Notes damage, unless the agent has written these positions off before.
    fn note(&self, check: &mut Check, first: Position, last: Position, what: &str) {
        if last < first || (self.identity.is_ok() && self.count(first - 1, last) == 0) {
            return;
        }
        check.damage.push(Damage {
            positions: Some((first, last)),
            acknowledged: last <= self.marks.acked,
            what: what.to_owned(),
        });
    }

    /// Writes the unacknowledged events in `positions` to `out`, one JSON object per line. Returns how
    /// many there were.
    ///
    /// # Errors
    /// [`StoppedError::Output`] when `out` fails or there is no room for the copies.
    pub fn export(
        &self,
        positions: RangeInclusive<Position>,
        out: &mut dyn Write,
    ) -> Result<u64, StoppedError> {
        let mut export = Export::new(positions, self.marks.acked, out);
        for (start, end) in self.generations() {
            if end.is_some_and(|end| end <= self.marks.acked.max(export.before())) {
                continue;
            }
            self.walk(start, end, |position, record| {
                export.write(position, record)
            })?;
            if export.is_over() {
                break;
            }
        }
        export.finish()
    }

    /// As [`Self::export`], for what lies in `quarantine/` and as far as it can be read, acknowledged
    /// or not.
    ///
    /// # Errors
    /// As [`Self::export`].
    pub fn export_quarantine(
        &self,
        positions: RangeInclusive<Position>,
        out: &mut dyn Write,
    ) -> Result<u64, StoppedError> {
        let mut export = Export::new(positions, 0, out);
        for entry in quarantined(&self.directory) {
            let start = entry.name.split('-').next().and_then(|it| it.parse().ok());
            let path = self.directory.join("quarantine").join(&entry.name);
            let Some(start) = start.filter(|_| path.is_dir()) else {
                continue;
            };
            walk_copy(&path, start, Position::MAX, |position, record| {
                export.write(position, record)
            })?;
        }
        export.finish()
    }

    /// Returns the first position of each generation, and the last of those that have a successor.
    fn generations(&self) -> impl Iterator<Item = (Position, Option<Position>)> {
        let ends = self.starts.iter().skip(1).map(|next| Some(next - 1));
        self.starts.iter().copied().zip(ends.chain([None]))
    }

    fn directory_of(&self, start: Position) -> PathBuf {
        generation::directory(&self.directory.join("generations"), start)
    }

    /// Counts the positions in (`after`, `last`] that are not written off.
    fn count(&self, after: Position, last: Position) -> u64 {
        match &self.identity {
            Ok(identity) => identity.epochs.count(after, last),
            Err(_) => Epochs::starting(1, 0).count(after, last),
        }
    }

    /// Walks over a copy of a generation. What the marks promise and is not there is unreadable.
    fn walk(
        &self,
        start: Position,
        end: Option<Position>,
        visit: impl FnMut(Position, &[u8]) -> ControlFlow<()>,
    ) -> Result<Walked, StoppedError> {
        let through = end.unwrap_or(Position::MAX);
        let mut stopped = false;
        let mut visit = visit;
        let mut walked = walk_copy(
            &self.directory_of(start),
            start,
            through,
            |position, record| {
                let flow = visit(position, record);
                stopped = flow.is_break();
                flow
            },
        )?;
        if !stopped {
            walked.expect_through(end.unwrap_or(self.marks.durable));
        }
        Ok(walked)
    }
}

/// Copies a generation, opens the copy as the agent would, walks over it and deletes it.
fn walk_copy(
    path: &Path,
    start: Position,
    through: Position,
    visit: impl FnMut(Position, &[u8]) -> ControlFlow<()>,
) -> Result<Walked, StoppedError> {
    let temporary = TempDir::with_prefix("headwater-")?;
    copy(path, &generation::directory(temporary.path(), start))?;
    match Generation::open(temporary.path(), start) {
        Ok(generation) => {
            let walked = walk(&generation, through, visit);
            generation.close();
            Ok(walked)
        }
        Err(StoreError::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {
            Err(error.into())
        }
        Err(error) => Ok(Walked {
            next: start,
            unreadable: Vec::new(),
            error: Some(error),
        }),
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
