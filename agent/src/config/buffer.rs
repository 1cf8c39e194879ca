//! `[buffer]`: durability and its price.

use std::path::PathBuf;

use serde::Deserialize;

use super::{GIB, KIB, MIB};

/// `[buffer]`: durability and its price.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BufferConfig {
    /// Directory of the buffer; belongs to one agent id. Default `headwater-data/agent`.
    pub directory: PathBuf,
    /// Most bytes the directory may take, in bytes (D-3); above it 503. Default 8 GiB, about ten
    /// million events of 450 bytes.
    pub disk_bytes_max: u64,
    /// Free bytes of the file system below which requests get 503. Default 256 MiB. 0 turns it off.
    pub disk_free_bytes_min: u64,
    /// Size of the file that is deleted when the disk is full all the same, so that the buffer can be
    /// reopened and drained, in bytes. Default 40 MiB. 0 turns it off. Counts as part of the bound.
    pub reserve_bytes: u64,
    /// Bytes that events may take in `refused/`, which the collector does not take even alone. Default
    /// 64 MiB, and never more than an eighth of `disk_bytes_max`, of which it is a part. When it is
    /// used up, shipping stops at the next such event until a person looks.
    pub refused_bytes_max: u64,
    /// Events after which a new generation begins. Default 100000. More keeps disk longer after a
    /// drain; fewer costs a rotation (about 5 ms) more often.
    pub generation_events_max: u64,
    /// Event bytes after which a new generation begins. Default 64 MiB, and never more than an eighth
    /// of `disk_bytes_max`.
    pub generation_bytes_max: u64,
    /// Requests that may wait for the disk; above it 429. Default 4096.
    pub queue_requests_max: usize,
    /// Event bytes that may wait for the disk; above it 429. Default 64 MiB.
    pub queue_bytes_max: u64,
    /// Event bytes at which a group commit stops gathering. Default 512 KiB.
    pub group_bytes_max: u64,
    /// How long a group commit gathers when more than one request was waiting last time, in
    /// microseconds. Default 500. Higher makes larger groups and slower answers; 2000 at most.
    pub group_wait_us: u64,
}

impl BufferConfig {
    /// Returns the bytes that `refused/` may take.
    pub(crate) fn refused_room_bytes(&self) -> u64 {
        self.refused_bytes_max.min(self.disk_bytes_max / 8)
    }
}

impl Default for BufferConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("headwater-data/agent"),
            disk_bytes_max: 8 * GIB,
            disk_free_bytes_min: 256 * MIB,
            reserve_bytes: 40 * MIB,
            refused_bytes_max: 64 * MIB,
            generation_events_max: 100_000,
            generation_bytes_max: 64 * MIB,
            queue_requests_max: 4096,
            queue_bytes_max: 64 * MIB,
            group_bytes_max: 512 * KIB,
            group_wait_us: 500,
        }
    }
}
