//! A sled database that keeps what it has taken.
//!
//! What sled 0.34.7 does not do is done here: `flush` is followed by fdatasync on an own descriptor, new
//! directories are fsynced up to the parent, opening and all work is guarded against panics, and a
//! store that failed is closed on a thread of its own.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::chunk::Position;
use super::super::files;

/// Bytes of a segment, the unit in which the store's log takes and reuses room.
pub(in super::super) const SEGMENT_BYTES: usize = 2 << 20;

/// Waits for a store that is still closing: 2 s in all.
const LOCK_ATTEMPTS_MAX: u32 = 200;
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// Segments that stores had at first, too small for what stands above. They are read; nothing is appended
/// to them.
pub(super) const EARLIER_SEGMENT_BYTES: usize = 512 << 10;

/// Why a store cannot be used. Treat it as dead: drop it and open it again.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum StoreError {
    /// The store reports an error.
    #[error("store failed: {0}")]
    Sled(#[from] sled::Error),
    /// The store panicked, which is how it meets most damage.
    #[error("store panicked: {0}")]
    Panicked(String),
    /// It holds fewer events than it was given.
    #[error("store has lost its events from position `{position}` on")]
    Incomplete {
        /// First position that is missing.
        position: Position,
    },
    /// The file system around it failed.
    #[error("store file failed: {0}")]
    Io(#[from] io::Error),
}

impl StoreError {
    /// Says whether the disk is full.
    pub(in super::super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Sled(sled::Error::Io(error)) | Self::Io(error) => {
                error.kind() == io::ErrorKind::StorageFull
            }
            _ => false,
        }
    }

    fn is_locked(&self) -> bool {
        matches!(self, Self::Sled(sled::Error::Io(error)) if error.to_string().contains("acquire lock"))
    }

    /// Says whether opening again later may help although nothing is damaged (full disk, too many
    /// files, store still closing). A sector that the disk cannot read is damage: the kernel has tried
    /// again already, and everything behind it would wait for ever.
    pub(in super::super) fn is_transient(&self) -> bool {
        match self {
            Self::Sled(sled::Error::Io(error)) | Self::Io(error) => {
                error.raw_os_error() != Some(libc::EIO)
                    && !matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
                    )
            }
            _ => false,
        }
    }
}

/// An open store.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    segment_bytes: usize,
    /// Taken out at drop, on a thread of its own: a store that failed can hang there.
    db: Option<sled::Db>,
    sync: File,
    /// Bytes of the files around the log, as they were at open.
    around_bytes: u64,
    disk_bytes: AtomicU64,
}

impl Store {
    /// Makes a store in `path`; every entry of it is durable on return.
    pub(super) fn create(path: PathBuf) -> Result<Self, StoreError> {
        let store = Self::open(path, SEGMENT_BYTES)?;
        guarded(|| Ok(store.db().flush().map(drop)?))?;
        for entry in fs::read_dir(&store.path)? {
            let entry = entry?.path();
            File::open(entry)?.sync_all()?;
        }
        store.sync_directory()?;
        if let Some(parent) = store.path.parent() {
            files::sync_directory(parent)?;
        }
        Ok(store)
    }

    /// Opens the store in `path`, or makes it.
    pub(super) fn open(path: PathBuf, segment_bytes: usize) -> Result<Self, StoreError> {
        let mut attempt = 0;
        let db = loop {
            match guarded(|| Ok(settings(&path, segment_bytes).open()?)) {
                Err(error) if error.is_locked() && attempt < LOCK_ATTEMPTS_MAX => {
                    // Closed a moment ago on its own thread.
                    attempt += 1;
                    std::thread::sleep(LOCK_WAIT);
                }
                other => break other?,
            }
        };
        let sync = File::open(path.join("db"))?;
        let disk_bytes = files::disk_bytes(&path);
        let around_bytes = disk_bytes.saturating_sub(sync.metadata()?.blocks() * 512);
        Ok(Self {
            path,
            segment_bytes,
            db: Some(db),
            sync,
            around_bytes,
            disk_bytes: AtomicU64::new(disk_bytes),
        })
    }

    pub(super) fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("taken out only by drop")
    }

    /// Says whether its segments are of the present size.
    pub(super) fn takes_more(&self) -> bool {
        self.segment_bytes == SEGMENT_BYTES
    }

    /// Returns the bytes on disk as of the last sync or measurement.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Makes everything durable that was put into it (D-1).
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.db().flush()?;
        self.sync.sync_data()?;
        self.measure()
    }

    /// Takes the size on disk as it is now.
    pub(super) fn measure(&self) -> Result<(), StoreError> {
        let bytes = self.sync.metadata()?.blocks() * 512 + self.around_bytes;
        self.disk_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the names of its files durable: it makes those that are missing.
    pub(super) fn sync_directory(&self) -> io::Result<()> {
        files::sync_directory(&self.path)
    }

    /// Closes the store and waits for it, which a store that failed may never end.
    pub(super) fn close(mut self) {
        let db = self.db.take();
        let closed = guarded(|| {
            drop(db);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "a store did not close cleanly");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        let dropped = std::thread::Builder::new()
            .name("store-close".to_owned())
            .spawn(move || {
                let closed = guarded(|| {
                    drop(db);
                    Ok(())
                });
                if let Err(error) = closed {
                    tracing::warn!(%error, "a store did not close cleanly");
                }
            });
        if let Err(error) = dropped {
            tracing::warn!(%error, path = %self.path.display(), "no thread to close a store");
        }
    }
}

/// Does work on a store; a panic of it becomes an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|payload| Err(StoreError::Panicked(panic_text(payload.as_ref()))))
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").chars().take(200).collect()
}

/// Returns the size of the segments of the store in `path`: its settings say it, and the store takes no
/// other.
pub(super) fn segment_bytes(path: &Path) -> usize {
    let settings = fs::read(path.join("conf")).unwrap_or_default();
    let earlier = format!("segment_size: {EARLIER_SEGMENT_BYTES}\n");
    if String::from_utf8_lossy(&settings).contains(&earlier) {
        EARLIER_SEGMENT_BYTES
    } else {
        SEGMENT_BYTES
    }
}

fn settings(path: &Path, segment_bytes: usize) -> sled::Config {
    sled::Config::new()
        .path(path)
        .cache_capacity(4 << 20)
        .segment_size(segment_bytes)
        // The store's own thread would move pages between our syncs.
        .flush_every_ms(None)
}

/// Moves snapshot and settings aside; false when there are none. The log alone holds everything, and
/// the settings are always the same.
pub(super) fn set_aside_all_but_the_log(path: &Path) -> io::Result<bool> {
    let mut found = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") || name == "conf" {
            fs::rename(entry.path(), path.join(format!("damaged-{name}")))?;
            found = true;
        }
    }
    Ok(found)
}
