//! Room on the disk: whether a group fits below the bound, and whether the file system is full.
//!
//! The bound holds at every moment (D-3), so what an append may add at most is reckoned with before it.

use metrics::gauge;
use tracing::warn;

use super::super::files;
use super::super::generation::SEGMENT_BYTES;
use super::{AppendError, Appender};
use crate::config::BufferConfig;
use crate::metrics::DISK_FREE_BYTES;

/// What one commit adds at most, in bytes on disk per byte of events: measured up to 2.0 in one commit of
/// 20 MB, 1.7 over many commits; the rest is for what the store moves later.
const GROWTH_FACTOR: u64 = 3;

/// What a new generation and the log's granularity may add on top of the events, in bytes.
const GROWTH_SLACK_BYTES: u64 = 2 * SEGMENT_BYTES as u64;

/// Room for what grows besides appends, in bytes: a store writes up to a segment and its snapshot when
/// it is opened, `buffer.json` is replaced by a second file.
const OPENING_BYTES: u64 = SEGMENT_BYTES as u64 + (1 << 20);

/// What an empty generation and the small files take on disk, in bytes; generous.
const EMPTY_BYTES: u64 = 1 << 20;

/// So near the bound every file is measured before each append, not once a second, in bytes. Other
/// files below the directory must grow less than this in a second.
const NEAR_BYTES: u64 = 16 << 20;

impl Appender {
    /// Returns the largest request, in bytes of records, that fits when everything before it has been
    /// shipped. `beside_bytes` is what else lies below the directory then. A group holds less than
    /// `group_bytes_max` before its last request.
    pub(crate) fn request_bytes_max(config: &BufferConfig, beside_bytes: u64) -> u64 {
        let taken = Self::taken_bytes(config, beside_bytes) + config.refused_room_bytes();
        let room = config.disk_bytes_max.saturating_sub(taken) / GROWTH_FACTOR;
        room.saturating_sub(config.group_bytes_max)
    }

    /// Returns the least `disk_bytes_max` under which a request of `bytes` fits.
    pub(crate) fn disk_bytes_min(config: &BufferConfig, beside_bytes: u64, bytes: u64) -> u64 {
        let growth = bytes.saturating_add(config.group_bytes_max);
        let taken = growth
            .saturating_mul(GROWTH_FACTOR)
            .saturating_add(Self::taken_bytes(config, beside_bytes));
        // `refused_room_bytes` depends on the bound itself.
        let eighth = taken / 7 + 1;
        taken.saturating_add(config.refused_bytes_max.min(eighth))
    }

    fn taken_bytes(config: &BufferConfig, beside_bytes: u64) -> u64 {
        let growth = GROWTH_SLACK_BYTES + OPENING_BYTES + EMPTY_BYTES;
        config.reserve_bytes.saturating_add(beside_bytes + growth)
    }

    /// Says whether a group of `bytes` fits; begins another generation where that makes room.
    pub(super) fn check_bound(&mut self, bytes: u64) -> Result<(), AppendError> {
        // Room for refused events is kept free: a full buffer must drain past them.
        let room = self.buffer.refused_room();
        let bound = self.config.disk_bytes_max.saturating_sub(room);
        let growth = bytes.saturating_mul(GROWTH_FACTOR) + GROWTH_SLACK_BYTES + OPENING_BYTES;
        if self.used_bytes() + growth + NEAR_BYTES <= bound {
            return Ok(());
        }
        self.buffer.measure();
        if self.used_bytes() + growth <= bound {
            return Ok(());
        }
        if self.is_drained() && self.tail_start < self.next {
            self.rotate().map_err(|error| self.fail(&error))?;
        }
        let used = self.used_bytes();
        if used + growth <= bound {
            Ok(())
        } else {
            Err(AppendError::Full { used, bound })
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.buffer.disk_bytes() + self.reserve.held_bytes()
    }

    pub(super) fn disk_full(&self) -> AppendError {
        AppendError::DiskFull {
            wanted: self.config.disk_free_bytes_min + self.reserve.wanted_bytes() * 2,
        }
    }

    /// Takes the reserve when there is room for it, and decides whether the disk is full.
    pub(super) fn watch_disk(&mut self) {
        let wanted = self.config.disk_free_bytes_min;
        let free = match files::free_bytes(&self.config.directory) {
            Ok(free) => free,
            Err(error) => return warn!(%error, "free disk space cannot be read"),
        };
        #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
        gauge!(DISK_FREE_BYTES).set(free as f64);
        let reserve = self.reserve.wanted_bytes();
        let in_bound = self.used_bytes() + reserve + OPENING_BYTES <= self.config.disk_bytes_max;
        let took_it = self.reserve.is_missing() && in_bound && free >= wanted + reserve * 2 && {
            self.reserve.take();
            !self.reserve.is_missing()
        };
        // Without the reserve a full disk can only be told by its free space.
        let left = if took_it { free - reserve } else { free };
        let low = left < wanted || (self.reserve.is_missing() && free < wanted + reserve * 2);
        if low != self.disk_low {
            warn!(free, wanted, low, "free disk space crossed its bound");
        }
        self.disk_low = low;
    }
}
