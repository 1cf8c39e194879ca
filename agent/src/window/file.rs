//! The window on disk: append-only files of fingerprints, groups with a checksum.
//!
//! ```text
//!   header   magic 8 | epoch 8 | key 16 | crc32 4
//!   group    count 4 | through 8 | count × id 16 | crc32 4      integers little-endian
//! ```
//!
//! A group is written after the fdatasync of its events, so whatever can be read here is durable
//! there. A torn tail, a damaged group, another epoch: what follows is not believed, and the window is
//! only shorter. The files lie below the buffer's directory and count against `buffer.disk_bytes_max`;
//! a file holds `dedup.ids_max` / 2 ids at most, 32 bytes each when every group has one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use headwater_protocol::Epoch;
use tracing::warn;

use super::failed;
use crate::buffer::Position;

pub(super) const KEY_BYTES: usize = 16;
const MAGIC: &[u8; 8] = b"hwwindow";
const HEADER_BYTES: usize = 8 + 8 + KEY_BYTES + 4;
const ID_BYTES: usize = 16;
/// Count and position before the ids of a group.
const GROUP_HEAD_BYTES: usize = 4 + 8;
const CRC_BYTES: usize = 4;

/// Returns what the files of a window of `ids_max` ids take on disk at most, the directory included.
pub(crate) fn disk_bytes_max(ids_max: usize) -> u64 {
    const BLOCKS_BYTES: u64 = 4 * 4096;
    if ids_max == 0 {
        return 0;
    }
    (ids_max as u64) * (GROUP_HEAD_BYTES + ID_BYTES + CRC_BYTES) as u64 + BLOCKS_BYTES
}

/// The buffer that the ids belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) epoch: Epoch,
    pub(super) durable: Position,
}

/// The files; the last one grows.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    half_max: usize,
    epoch: Epoch,
    key: [u8; KEY_BYTES],
    /// Number of the newest file.
    number: u64,
    /// `None` after a failure, until [`Self::sync`] could begin another.
    tail: Option<File>,
    tail_bytes: u64,
    tail_ids: usize,
    is_dirty: bool,
    is_entry_dirty: bool,
}

impl Files {
    /// Opens the files of `origin` and returns their ids, oldest first; deletes all others.
    pub(super) fn open(directory: PathBuf, half_max: usize, origin: Origin) -> (Self, Vec<u128>) {
        let mut found = BTreeMap::new();
        for (number, path) in numbered(&directory) {
            match fs::read(&path)
                .ok()
                .and_then(|bytes| Contents::read(&bytes, origin))
            {
                Some(contents) => {
                    if contents.is_cut {
                        warn!(path = %path.display(), "a window file is damaged; what follows the damage is forgotten");
                        failed("damaged");
                    }
                    found.insert(number, contents);
                }
                None => {
                    warn!(path = %path.display(), "a window file is of another epoch or damaged, and forgotten");
                    failed("forgotten");
                    remove(&path);
                }
            }
        }
        let newest = found.last_key_value();
        let key = newest.map_or_else(rand::random, |(_, contents)| contents.key);
        let mut files = Self {
            directory,
            half_max,
            epoch: origin.epoch,
            key,
            number: newest.map_or(0, |(number, _)| *number),
            tail: None,
            tail_bytes: 0,
            tail_ids: 0,
            is_dirty: false,
            is_entry_dirty: false,
        };
        // Ids under another key mean nothing here.
        found.retain(|_, contents| contents.key == key);
        files.resume(found.get(&files.number));
        let ids = found.into_values().flat_map(|contents| contents.ids);
        (files, ids.collect())
    }

    /// Goes on at the end of what could be read of the newest file, or begins another.
    fn resume(&mut self, newest: Option<&Contents>) {
        let Some(contents) = newest.filter(|contents| contents.ids.len() < self.half_max) else {
            return self.begin();
        };
        let opened = OpenOptions::new().append(true).open(self.path(self.number));
        let cut = opened.and_then(|file| file.set_len(contents.bytes).map(|()| file));
        match cut {
            Ok(file) => {
                self.tail = Some(file);
                self.tail_bytes = contents.bytes;
                self.tail_ids = contents.ids.len();
            }
            Err(error) => self.fail("write", &error),
        }
    }

    pub(super) fn key(&self) -> [u8; KEY_BYTES] {
        self.key
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("ids-{number:010}"))
    }

    /// Begins the next file and deletes all but the one before it. When that fails, what is there
    /// stays, and [`Self::sync`] tries again.
    fn begin(&mut self) {
        self.tail_bytes = HEADER_BYTES as u64;
        self.tail_ids = 0;
        let created = self.create(self.number + 1);
        match created {
            Ok(file) => {
                self.number += 1;
                self.tail = Some(file);
                let kept = self.number - 1;
                for (_, path) in numbered(&self.directory).range(..kept) {
                    remove(path);
                }
            }
            Err(error) => {
                self.tail = None;
                remove(&self.path(self.number + 1));
                self.fail("write", &error);
            }
        }
    }

    fn create(&mut self, number: u64) -> io::Result<File> {
        fs::create_dir_all(&self.directory)?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&self.epoch.to_le_bytes());
        header.extend_from_slice(&self.key);
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        let mut file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(number))?;
        file.write_all(&header)?;
        (self.is_dirty, self.is_entry_dirty) = (true, true);
        Ok(file)
    }

    /// Writes the ids of one durable group; the kernel has them when this returns.
    pub(super) fn append(&mut self, ids: &[u128], through: Position) {
        // A group larger than a file fills it; the rest of its ids is known in memory alone.
        let count = ids.len().min(self.half_max);
        if self.tail_ids > 0 && self.tail_ids + count > self.half_max {
            self.begin();
        }
        let mut group = Vec::with_capacity(GROUP_HEAD_BYTES + count * ID_BYTES + CRC_BYTES);
        let wire_count = u32::try_from(count).unwrap_or(u32::MAX);
        group.extend_from_slice(&wire_count.to_le_bytes());
        group.extend_from_slice(&through.to_le_bytes());
        for id in &ids[..count] {
            group.extend_from_slice(&id.to_le_bytes());
        }
        group.extend_from_slice(&crc32fast::hash(&group).to_le_bytes());
        self.tail_ids += count;
        let Some(tail) = &mut self.tail else { return };
        match tail.write_all(&group) {
            Ok(()) => {
                self.tail_bytes += group.len() as u64;
                self.is_dirty = true;
            }
            Err(error) => {
                // A torn group would hide those after it.
                if tail.set_len(self.tail_bytes).is_err() {
                    self.tail = None;
                }
                self.fail("write", &error);
            }
        }
    }

    /// Makes what was written durable, or begins a file after a failure.
    pub(super) fn sync(&mut self) {
        let Some(tail) = &self.tail else {
            return self.begin();
        };
        if !self.is_dirty {
            return;
        }
        let synced = tail.sync_data().and_then(|()| {
            if self.is_entry_dirty {
                File::open(&self.directory)?.sync_all()?;
            }
            Ok(())
        });
        match synced {
            Ok(()) => (self.is_dirty, self.is_entry_dirty) = (false, false),
            Err(error) => self.fail("sync", &error),
        }
    }

    /// Deletes everything and begins again under another epoch.
    pub(super) fn restart(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.begin();
        for (_, path) in numbered(&self.directory).range(..self.number) {
            remove(path);
        }
    }

    fn fail(&self, reason: &'static str, error: &io::Error) {
        warn!(%error, "the window cannot be written; a retry after a restart may be stored twice");
        failed(reason);
    }
}

/// What could be read of a file.
struct Contents {
    key: [u8; KEY_BYTES],
    ids: Vec<u128>,
    /// Length up to which it is sound.
    bytes: u64,
    /// Something followed that is not.
    is_cut: bool,
}

impl Contents {
    /// Reads a file; `None` when its header is damaged or of another epoch.
    fn read(bytes: &[u8], origin: Origin) -> Option<Self> {
        let (header, mut rest) = bytes.split_at_checked(HEADER_BYTES)?;
        let (header, crc) = header.split_at(HEADER_BYTES - CRC_BYTES);
        let is_ours = header.starts_with(MAGIC)
            && crc == crc32fast::hash(header).to_le_bytes()
            && header[8..16] == origin.epoch.to_le_bytes();
        let key = header[16..].try_into().ok().filter(|_| is_ours)?;
        let mut ids = Vec::new();
        while let Some((group, after)) = split_group(rest) {
            let through = u64::from_le_bytes(group[4..GROUP_HEAD_BYTES].try_into().ok()?);
            if through > origin.durable {
                break;
            }
            let (chunks, _) = group[GROUP_HEAD_BYTES..].as_chunks::<ID_BYTES>();
            ids.extend(chunks.iter().map(|id| u128::from_le_bytes(*id)));
            rest = after;
        }
        Some(Self {
            key,
            ids,
            bytes: (bytes.len() - rest.len()) as u64,
            is_cut: !rest.is_empty(),
        })
    }
}

/// Splits the first group off, without its checksum; `None` when it is torn or damaged.
fn split_group(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let count = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    let ids_bytes = usize::try_from(count).ok()?.checked_mul(ID_BYTES)?;
    let (group, after) = bytes.split_at_checked(GROUP_HEAD_BYTES.checked_add(ids_bytes)?)?;
    let (crc, after) = after.split_at_checked(CRC_BYTES)?;
    (crc == crc32fast::hash(group).to_le_bytes()).then_some((group, after))
}

/// Returns the files of the directory by their number.
fn numbered(directory: &Path) -> BTreeMap<u64, PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let number = name.to_str()?.strip_prefix("ids-")?.parse().ok()?;
        Some((number, entry.path()))
    };
    entries.filter_map(number).collect()
}

/// Deletes a file, or a directory with all in it; what is gone already is no failure.
pub(super) fn remove(path: &Path) {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "a window file cannot be deleted");
    }
}
