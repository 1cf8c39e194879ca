//! Names of the metrics that the read side records.
//!
//! Place on the event's path: scans write them, the admin endpoint shows them. Promise: a file is
//! counted at most once per scan, as read or as pruned.

/// Data files that scans planned to read or skipped. Label `outcome`: `read`, `pruned`.
pub const SCAN_FILES_TOTAL: &str = "tables_scan_files_total";
/// Manifests and manifest lists asked for. Label `source`: `cache`, `storage`.
pub const MANIFEST_LOADS_TOTAL: &str = "tables_manifest_loads_total";
/// Memory held by the manifest cache, estimated.
pub const MANIFEST_CACHE_BYTES: &str = "tables_manifest_cache_bytes";

/// Every metric of this module with its description.
pub const DESCRIPTIONS: [(&str, &str); 3] = [
    (
        SCAN_FILES_TOTAL,
        "Data files that scans planned to read or skipped (outcome: read, pruned)",
    ),
    (
        MANIFEST_LOADS_TOTAL,
        "Manifests and manifest lists asked for (source: cache, storage)",
    ),
    (
        MANIFEST_CACHE_BYTES,
        "Memory held by the manifest cache in bytes, estimated",
    ),
];
