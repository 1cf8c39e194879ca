//! The marks: how far the buffer is acknowledged, sent and durable, kept outside the store.
//!
//! A damaged store can open with a silently lost tail, or empty: comparing with the marks at open is
//! what notices it. They are never ahead of the store, because a mark is written after what it says.
//!
//! ```text
//! DIR/marks      0  counter, acked, sent, durable   written in turn with fdatasync, so that a torn
//!              512  the same, one write older       write leaves the other one
//!             4096  durable                         written after each group commit, not synced: it
//!                                                   survives a kill, and costs some microseconds
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::chunk::Position;
use super::files::sync_parent;

/// Positions that outlive the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Everything up to here is committed; never read again.
    pub(super) acked: Position,
    /// Everything that may have reached a collector is at most this.
    pub(super) sent: Position,
    /// Everything up to here was durable; fewer at open means loss.
    pub(super) durable: Position,
}

const SLOT_BYTES: usize = 512;
/// The unsynced mark has a page of its own: its writer never waits for the page of the others.
const DURABLE_OFFSET: usize = 4096;
const FILE_BYTES: usize = DURABLE_OFFSET + SLOT_BYTES;

/// The file `marks`. Its blocks are allocated once, so it can be written on a full disk.
#[derive(Debug)]
pub(super) struct MarksFile {
    file: File,
    counter: u64,
}

impl MarksFile {
    /// Opens or makes the file and returns the newest sound marks, if there are any.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Option<Marks>)> {
        let path = directory.join("marks");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let newest = newest(&bytes);
        if bytes.len() < FILE_BYTES {
            file.write_all_at(&[b' '; FILE_BYTES][bytes.len()..], bytes.len() as u64)?;
            file.sync_all()?;
            sync_parent(&path)?;
        }
        let counter = newest.map_or(0, |newest| newest.0);
        Ok((Self { file, counter }, newest.map(|newest| newest.1)))
    }

    /// Writes `marks` durably.
    pub(super) fn write(&mut self, marks: Marks) -> io::Result<()> {
        self.counter += 1;
        let Marks {
            acked,
            sent,
            durable,
        } = marks;
        let slot = seal(&format!(
            "{} acked {acked} sent {sent} durable {durable}",
            self.counter
        ));
        let offset = (self.counter % 2) * SLOT_BYTES as u64;
        self.file.write_all_at(&slot, offset)?;
        self.file.sync_data()
    }

    /// Returns the writer of the unsynced mark. There must be one only.
    pub(super) fn durable_mark(&self) -> io::Result<DurableMark> {
        Ok(DurableMark(self.file.try_clone()?))
    }
}

impl Marks {
    /// Reads the newest sound marks of a buffer without changing it.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(directory.join("marks")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => Ok(newest(&bytes?).map(|newest| newest.1)),
        }
    }
}

/// Returns the newest sound marks in a file, with their counter.
fn newest(bytes: &[u8]) -> Option<(u64, Marks)> {
    let slots = bytes.chunks(SLOT_BYTES).filter_map(parse_slot);
    let (counter, mut marks) = slots.max_by_key(|slot| slot.0)?;
    let durable = bytes.get(DURABLE_OFFSET..).and_then(parse_durable);
    marks.durable = marks.durable.max(durable.unwrap_or(0));
    Some((counter, marks))
}

/// Writes the mark that survives a kill. After a power cut it may be older than the synced ones.
#[derive(Debug)]
pub(super) struct DurableMark(File);

impl DurableMark {
    /// Writes that everything up to `durable` is durable, which it must be.
    pub(super) fn write(&self, durable: Position) -> io::Result<()> {
        let slot = seal(&format!("durable {durable}"));
        self.0.write_all_at(&slot, DURABLE_OFFSET as u64)
    }
}

fn seal(text: &str) -> [u8; SLOT_BYTES] {
    let line = format!("{text} crc {:08x}", crc32fast::hash(text.as_bytes()));
    let mut slot = [b' '; SLOT_BYTES];
    slot[..line.len()].copy_from_slice(line.as_bytes());
    slot[SLOT_BYTES - 1] = b'\n';
    slot
}

fn unseal(slot: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(slot).ok()?.trim();
    let (text, crc) = line.split_once(" crc ")?;
    (u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(text.as_bytes())).then_some(text)
}

fn parse_slot(slot: &[u8]) -> Option<(u64, Marks)> {
    let words: Vec<&str> = unseal(slot)?.split(' ').collect();
    let &[counter, "acked", acked, "sent", sent, "durable", durable] = words.as_slice() else {
        return None;
    };
    let marks = Marks {
        acked: acked.parse().ok()?,
        sent: sent.parse().ok()?,
        durable: durable.parse().ok()?,
    };
    Some((counter.parse().ok()?, marks))
}

fn parse_durable(slot: &[u8]) -> Option<Position> {
    unseal(slot)?.strip_prefix("durable ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_mark_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, marks) = MarksFile::open(directory.path()).unwrap();
        assert_eq!(marks, None);
        let first = Marks {
            acked: 1,
            sent: 2,
            durable: 3,
        };
        let second = Marks {
            acked: 4,
            sent: 5,
            durable: 6,
        };
        file.write(first).unwrap();
        file.write(second).unwrap();
        assert_eq!(MarksFile::open(directory.path()).unwrap().1, Some(second));
        file.file.write_all_at(b"XX", 0).unwrap();
        assert_eq!(MarksFile::open(directory.path()).unwrap().1, Some(first));
        file.file.write_all_at(b"XX", 512).unwrap();
        assert_eq!(MarksFile::open(directory.path()).unwrap().1, None);
    }

    #[test]
    fn unsynced_mark_counts_when_it_is_ahead_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, _) = MarksFile::open(directory.path()).unwrap();
        let mark = file.durable_mark().unwrap();
        let marks = Marks {
            acked: 1,
            sent: 2,
            durable: 30,
        };
        file.write(marks).unwrap();
        for (unsynced, expected) in [(7, 30), (31, 31)] {
            mark.write(unsynced).unwrap();
            let found = MarksFile::open(directory.path()).unwrap().1.unwrap();
            assert_eq!(
                found,
                Marks {
                    durable: expected,
                    ..marks
                }
            );
        }
        file.file.write_all_at(b"X", 4096 + 10).unwrap();
        let found = MarksFile::open(directory.path()).unwrap().1.unwrap();
        assert_eq!(found, marks);
    }
}
