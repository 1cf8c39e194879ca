//! Events that the collector refuses even alone. Their bytes are kept here, so that nothing accepted
//! is dropped, while something that the collector can quarantine takes their place on the wire.
//!
//! ```text
//! DIR/refused/EPOCH-SEQUENCE   one line of JSON: position, crc, reason
//!                              then the record as it stood in the buffer, MessagePack
//! ```
//!
//! Nothing deletes these files. Room for them is set apart from the buffer's bound (D-3), so that a
//! full buffer can still be drained past an event that cannot be shipped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use headwater_protocol::{Epoch, Record, Sequence};
use metrics::counter;
use serde::{Deserialize, Serialize};

use super::chunk::Position;
use super::epochs::Stretch;
use super::export::Export;
use super::stopped::StoppedError;
use super::{Buffer, files};
use crate::metrics::EVENTS_REFUSED;

/// What a file takes on disk at most, beside its record: the first line and the rest of a block.
const FILE_OVERHEAD_BYTES: u64 = 8 * 1024;

/// Most characters of the collector's reason that are kept.
const REASON_CHARS_MAX: usize = 400;

/// Longest first line: every character of the reason escaped.
const HEADER_BYTES_MAX: u64 = 4096;

/// First line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    position: Position,
    /// CRC-32 of the record.
    crc: u32,
    /// What the collector said.
    reason: String,
}

/// What lies in `refused/`. No payloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Events.
    pub events: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Files whose first line cannot be read.
    pub unreadable: u64,
    /// Events by what the collector said.
    pub reasons: BTreeMap<String, u64>,
}

/// A file of `refused/`.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) epoch: Epoch,
    pub(super) sequence: Sequence,
    pub(super) position: Position,
    pub(super) reason: String,
    pub(super) record: Record,
}

impl Buffer {
    /// Keeps `record`, the event at `position`, durably and with the collector's `reason`. Does nothing when it is kept already (a
    /// session ended in between). Blocks on the disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when the room for refused events is used up; else the error of
    /// the file system. The event must stay in the buffer then.
    pub fn keep_refused(
        &self,
        stretch: Stretch,
        position: Position,
        record: &[u8],
        reason: &str,
    ) -> io::Result<()> {
        let path = self.refused_path(stretch, position);
        if path.exists() {
            return Ok(());
        }
        let bytes = record.len() as u64 + FILE_OVERHEAD_BYTES;
        if self.refused_room() < bytes {
            self.measure();
        }
        if self.refused_room() < bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "refused/ has reached its bound; move its files away or raise buffer.refused_bytes_max",
            ));
        }
        let new = path.with_extension("new");
        let header = Header {
            position,
            crc: crc32fast::hash(record),
            reason: reason.chars().take(REASON_CHARS_MAX).collect(),
        };
        let mut file = File::create(&new)?;
        serde_json::to_writer(&file, &header)?;
        file.write_all(b"\n")?;
        file.write_all(record)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        files::sync_parent(&path)?;
        self.measure();
        counter!(EVENTS_REFUSED).increment(1);
        Ok(())
    }

    /// Forgets a kept event that was not replaced after all.
    ///
    /// # Errors
    /// Returns the error of the file system.
    pub fn forget_refused(&self, stretch: Stretch, position: Position) -> io::Result<()> {
        let path = self.refused_path(stretch, position);
        fs::remove_file(path)?;
        self.measure();
        Ok(())
    }

    /// Returns the bytes that refused events may still take.
    pub(super) fn refused_room(&self) -> u64 {
        let state = self.shared.state.lock();
        state.refused_bytes_max.saturating_sub(state.refused_bytes)
    }

    fn refused_directory(&self) -> PathBuf {
        self.shared.directory.join("refused")
    }

    fn refused_path(&self, stretch: Stretch, position: Position) -> PathBuf {
        let name = format!("{}-{:020}", stretch.epoch, stretch.sequence(position));
        self.refused_directory().join(name)
    }
}

/// Counts what lies in `refused/` below `directory`; reads the first line of each file.
pub(super) fn summary(directory: &Path) -> Refused {
    let mut refused = Refused::default();
    for path in files_in(directory).unwrap_or_default() {
        refused.events += 1;
        refused.disk_bytes += files::disk_bytes(&path);
        match File::open(&path).and_then(|file| read_header(&mut BufReader::new(file))) {
            Ok(header) => *refused.reasons.entry(header.reason).or_default() += 1,
            Err(_) => refused.unreadable += 1,
        }
    }
    refused
}

/// Reads every file of `refused/` below `directory`, one at a time: its name, and the event or what
/// is wrong with it.
pub(super) fn read_all(directory: &Path) -> impl Iterator<Item = (String, Result<Kept, String>)> {
    let paths = files_in(directory).unwrap_or_default();
    paths.into_iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (name.clone().into_owned(), read(&path, &name))
    })
}

/// Writes the events of `refused/` below `directory` whose positions are asked for to `out`, one JSON
/// object per line. Returns how many there were. An agent may run meanwhile: a file never changes.
///
/// # Errors
/// [`StoppedError`] when there is no such directory or `out` fails.
pub fn export_refused(
    directory: &Path,
    positions: RangeInclusive<Position>,
    out: &mut dyn Write,
) -> Result<u64, StoppedError> {
    files_in(directory).map_err(|source| StoppedError::Io {
        directory: directory.to_owned(),
        source,
    })?;
    let mut export = Export::new(positions, 0, out);
    for kept in read_all(directory).filter_map(|(_, kept)| kept.ok()) {
        if export.write_refused(&kept).is_break() {
            break;
        }
    }
    export.finish()
}

/// Lists the files, oldest first. One that is still being written has another name.
fn files_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory.join("refused"))? {
        let path = entry?.path();
        if path.extension().is_none() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_header(file: &mut impl BufRead) -> io::Result<Header> {
    let mut line = Vec::new();
    file.take(HEADER_BYTES_MAX).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn read(path: &Path, name: &str) -> Result<Kept, String> {
    let number = |text: &str| text.parse::<u64>().ok();
    let (epoch, sequence) = name
        .split_once('-')
        .and_then(|(epoch, sequence)| Some((number(epoch)?, number(sequence)?)))
        .ok_or("is not named EPOCH-SEQUENCE")?;
    let unreadable = |error: io::Error| format!("cannot be read ({error})");
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let header = read_header(&mut file).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    if crc32fast::hash(&bytes) != header.crc {
        return Err("is damaged: its checksum differs".to_owned());
    }
    Ok(Kept {
        epoch,
        sequence,
        position: header.position,
        reason: header.reason,
        record: Record::decode(&bytes).map_err(|_| "holds no event".to_owned())?,
    })
}
