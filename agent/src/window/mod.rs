//! The window: which events became durable lately, so that an SDK's retry is not stored twice.
//!
//! Place on the path: the source computes an event's [`Fingerprint`]; the sequencer asks
//! [`Window::admit`] for each event of a group, and calls [`Window::commit`] once the group is durable
//! or [`Window::abort`] when it is not. Promise: between groups an id is in the window only when its
//! event is durable, so a duplicate is never all that is left of an event. Forgetting is harmless: what
//! comes twice then is found by message id in the tables.
//!
//! ```text
//!   DIR/window/ids-NUMBER    at most two files, the older half and the newer half
//! ```
//!
//! Memory and disk are bounded by `dedup.ids_max`: two halves, the older one is dropped when the newer
//! one is full. The ids belong to the buffer's newest epoch: a new buffer, or one that lost or
//! renumbered events, begins with an empty window.

mod file;

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;

use headwater_protocol::{Epoch, Record};
use metrics::{counter, gauge};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::buffer::Position;
use crate::metrics::{WINDOW_FAILURES, WINDOW_IDS};

pub(crate) use file::disk_bytes_max;
use file::{Files, KEY_BYTES, Origin};

/// What tells one event from another: a keyed 128-bit hash over company, source, type and the exact
/// bytes of the event, its message id among them. The same id with other bytes is another event, which
/// the tables must see to quarantine it as `id_collision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u128);

/// Computes fingerprints under the key of one buffer, which no client knows, so that nobody can make
/// two events with one fingerprint.
#[derive(Debug, Clone, Copy)]
pub struct Fingerprinter {
    key: [u8; KEY_BYTES],
}

impl Fingerprinter {
    /// Returns the fingerprint of a record whose event carries a message id.
    pub fn fingerprint(&self, record: &Record) -> Fingerprint {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        let kind = record.event_type.map_or("", |kind| kind.as_str());
        for part in [&record.company_id, &record.source_id, kind] {
            hasher.write_u64(part.len() as u64);
            hasher.write(part.as_bytes());
        }
        hasher.write(&record.body);
        Fingerprint(hasher.finish128().as_u128())
    }
}

/// Fingerprints are evenly spread already.
#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half is spread")]
    fn write_u128(&mut self, id: u128) {
        self.0 = id as u64;
    }
}

type Ids = HashSet<u128, BuildHasherDefault<Spread>>;

/// Ids of a group above this give their memory back afterwards.
const GROUP_KEPT: usize = 16 * 1024;

/// The recent fingerprints. One owner: the sequencer's thread.
#[derive(Debug)]
pub struct Window {
    half_max: usize,
    newer: Ids,
    older: Ids,
    /// Those of the group that is being written, which are among the others already: the tables are
    /// larger than a core's cache, and each access to them costs more than computing the id.
    group: Vec<u128>,
    files: Files,
}

impl Window {
    /// Opens the window below the buffer's `directory`, or returns `None` when `ids_max` is 0. Never
    /// fails: files that cannot be read or written only make the window forget, which is logged and
    /// counted.
    ///
    /// `epoch` is the newest of the buffer, `durable` its last durable position: ids of another epoch
    /// or of later positions are not believed.
    pub fn open(
        directory: &Path,
        ids_max: usize,
        epoch: Epoch,
        durable: Position,
    ) -> Option<(Self, Fingerprinter)> {
        let directory = directory.join("window");
        if ids_max == 0 {
            file::remove(&directory);
            return None;
        }
        let half_max = ids_max.div_ceil(2);
        let (files, ids) = Files::open(directory, half_max, Origin { epoch, durable });
        let fingerprinter = Fingerprinter { key: files.key() };
        let mut window = Self {
            half_max,
            newer: Ids::with_capacity_and_hasher(half_max, BuildHasherDefault::default()),
            older: Ids::with_capacity_and_hasher(half_max, BuildHasherDefault::default()),
            group: Vec::new(),
            files,
        };
        for id in ids {
            window.remember(id);
        }
        window.show();
        Some((window, fingerprinter))
    }

    /// Says whether the event is durable. To be asked between groups.
    pub fn holds(&self, id: Fingerprint) -> bool {
        self.newer.contains(&id.0) || self.older.contains(&id.0)
    }

    /// Takes an event into the group that is about to be written; `false` when it is a duplicate: it
    /// is durable, or in this group already.
    pub fn admit(&mut self, id: Fingerprint) -> bool {
        let is_new = !self.older.contains(&id.0) && self.remember(id.0);
        if is_new {
            self.group.push(id.0);
        }
        is_new
    }

    /// The group is durable up to position `through`: its ids are written down. Call it before the
    /// answers leave, so that a kill after them finds the ids again.
    pub fn commit(&mut self, through: Position) {
        if !self.group.is_empty() {
            self.files.append(&self.group, through);
            self.begin_group();
        }
    }

    /// The group is not durable, or nobody knows: none of its ids is remembered.
    pub fn abort(&mut self) {
        for id in &self.group {
            self.newer.remove(id);
            self.older.remove(id);
        }
        self.begin_group();
    }

    fn begin_group(&mut self) {
        self.group.clear();
        self.group.shrink_to(GROUP_KEPT);
    }

    /// Returns `false` when the newer half has it.
    fn remember(&mut self, id: u128) -> bool {
        if self.newer.len() >= self.half_max && !self.newer.contains(&id) {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
        }
        self.newer.insert(id)
    }

    /// Does what is due about once a second: makes the files durable, and forgets everything when the
    /// buffer has opened a new epoch.
    pub fn maintain(&mut self, epoch: Epoch) {
        if self.files.epoch() != epoch {
            tracing::warn!("the buffer opened a new epoch; the window begins empty");
            self.newer.clear();
            self.older.clear();
            self.files.restart(epoch);
        }
        self.files.sync();
        self.show();
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    fn show(&self) {
        gauge!(WINDOW_IDS).set((self.newer.len() + self.older.len()) as f64);
    }
}

/// Counts a failure of the files.
fn failed(reason: &'static str) {
    counter!(WINDOW_FAILURES, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests;
