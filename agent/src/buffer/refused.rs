//! Events that the collector refuses even alone. Their bytes are kept here, so that nothing accepted
//! is dropped, while something that the collector can quarantine takes their place on the wire.
//!
//! ```text
//! DIR/refused/EPOCH-SEQUENCE   the record as it stood in the buffer, MessagePack
//! ```
//!
//! Nothing deletes these files. Room for them is set apart from the buffer's bound (D-3), so that a
//! full buffer can still be drained past an event that cannot be shipped.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use metrics::counter;

use super::chunk::Position;
use super::epochs::Stretch;
use super::{Buffer, files};
use crate::metrics::EVENTS_REFUSED;

/// What a file of this many bytes takes on disk at most, beside its data.
const FILE_OVERHEAD_BYTES: u64 = 8 * 1024;

impl Buffer {
    /// Keeps `record`, the event at `position`, durably. Does nothing when it is kept already (a
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
    ) -> io::Result<()> {
        let path = self.refused_path(stretch, position);
        if path.exists() {
            return Ok(());
        }
        let bytes = record.len() as u64 + FILE_OVERHEAD_BYTES;
        if self.refused_room() < bytes {
            // Somebody may have taken files away.
            self.measure_refused();
        }
        if self.refused_room() < bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "refused/ has reached its bound; move its files away or raise buffer.refused_bytes_max",
            ));
        }
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(record)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        files::sync_parent(&path)?;
        self.measure_refused();
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
        self.measure_refused();
        Ok(())
    }

    fn measure_refused(&self) {
        let held = files::disk_bytes(&self.refused_directory());
        self.shared.state.lock().refused_bytes = held;
        self.measure();
    }

    /// Returns the bytes that refused events may still take.
    pub(super) fn refused_room(&self) -> u64 {
        let held = self.shared.state.lock().refused_bytes;
        self.shared.refused_bytes_max.saturating_sub(held)
    }

    fn refused_directory(&self) -> PathBuf {
        self.shared.directory.join("refused")
    }

    fn refused_path(&self, stretch: Stretch, position: Position) -> PathBuf {
        let name = format!("{}-{:020}", stretch.epoch, stretch.sequence(position));
        self.refused_directory().join(name)
    }
}
