//! The small files around the store: the lock, the identity `buffer.json` and the reserve; and what
//! files take on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use headwater_protocol::AgentId;
use serde::{Deserialize, Serialize};

use super::epochs::Epochs;

/// Makes `directory`, readable by its owner alone, and its parents, all as durable entries.
pub(super) fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        create_directory(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_parent(directory)
}

/// Makes the entry of `path` in its directory durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    sync_directory(parent.unwrap_or_else(|| Path::new(".")))
}

/// Makes the entries of `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Takes the lock of the buffer; it is released when the file is dropped or the process ends.
/// `None` when another process holds it.
pub(super) fn lock(directory: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("lock"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The same after up to half a second: whoever held it may be about to end, and a child that is being
/// started shares it for a moment.
pub(super) fn lock_patiently(directory: &Path) -> io::Result<Option<File>> {
    for _ in 0..50 {
        if let Some(lock) = lock(directory)? {
            return Ok(Some(lock));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    lock(directory)
}

/// Returns the bytes that `path` and all below it take on disk; 0 for what vanishes meanwhile.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

/// Returns the bytes that the buffer's directory takes on disk without the generations and the
/// reserve, which are counted as they change. Whatever else lies there belongs to the bound (D-3).
pub(super) fn disk_bytes_around(directory: &Path) -> u64 {
    let own = |path: &Path| fs::symlink_metadata(path).map_or(0, |file| file.blocks() * 512);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let below = entries.map(|entry| match entry.file_name().to_str() {
        Some("reserve") => 0,
        Some("generations") => own(&entry.path()),
        _ => disk_bytes(&entry.path()),
    });
    own(directory) + below.sum::<u64>()
}

/// Returns the bytes of the file system that a program without privileges may still use.
pub(super) fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Who the buffer belongs to and how its positions are numbered on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    version: u32,
    pub(super) agent_id: AgentId,
    pub(super) epochs: Epochs,
    /// CRC-32 of agent id and epochs: a flipped digit must not give events wrong numbers.
    crc: u32,
}

impl Identity {
    pub(super) fn new(agent_id: AgentId, epochs: Epochs) -> Self {
        Self {
            version: 1,
            crc: Self::checksum(&agent_id, &epochs),
            agent_id,
            epochs,
        }
    }

    fn checksum(agent_id: &AgentId, epochs: &Epochs) -> u32 {
        crc32fast::hash(format!("{agent_id} {epochs:?}").as_bytes())
    }

    /// Reads the file; `Ok(None)` when there is none, an error of kind `InvalidData` when it cannot be
    /// understood.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(directory.join("buffer.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let identity: Self = serde_json::from_slice(&bytes).map_err(io::Error::from)?;
        let crc = Self::checksum(&identity.agent_id, &identity.epochs);
        if identity.version == 1 && identity.crc == crc && identity.epochs.is_sound() {
            Ok(Some(identity))
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// Replaces the file in one step and makes that durable.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join("buffer.json");
        let new = directory.join("buffer.json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_directory(directory)
    }
}

/// A file that only takes room, so that there is some to give back when the disk is full.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Reserve {
    /// Returns the reserve of `directory`: held when an earlier run left it. Takes no room yet,
    /// because opening the store may need what is left of the disk.
    pub(super) fn open(directory: &Path, bytes: u64) -> Self {
        let path = directory.join("reserve");
        let held = bytes > 0
            && fs::metadata(&path)
                .is_ok_and(|file| file.len() == bytes && file.blocks() * 512 >= bytes);
        let mut reserve = Self { path, bytes, held };
        if !held {
            reserve.release();
        }
        reserve
    }

    /// Takes the room; does nothing while it is held.
    pub(super) fn take(&mut self) {
        if !self.held && self.bytes > 0 {
            self.held = self.allocate().is_ok();
            if !self.held {
                self.release();
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&self.path)?;
        file.set_len(0)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeros = vec![0; 1 << 20];
                let mut left = self.bytes;
                while left > 0 {
                    let part = left.min(zeros.len() as u64);
                    (&file).write_all(&zeros[..usize::try_from(part).unwrap_or(zeros.len())])?;
                    left -= part;
                }
            }
            other => other?,
        }
        file.sync_all()
    }

    /// Gives the room back.
    pub(super) fn release(&mut self) {
        self.held = false;
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "reserve file cannot be deleted");
        }
    }

    /// Returns the bytes held.
    pub(super) fn held_bytes(&self) -> u64 {
        if self.held { self.bytes } else { 0 }
    }

    /// Says whether the room is missing.
    pub(super) fn is_missing(&self) -> bool {
        self.bytes > 0 && !self.held
    }

    /// Returns the bytes wanted.
    pub(super) fn wanted_bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_process_cannot_take_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        assert!(held.is_some());
        assert!(lock(directory.path()).unwrap().is_none());
        drop(held);
        assert!(lock(directory.path()).unwrap().is_some());
    }
}
