//! Names of the metrics that a night sets, with what each means.

/// Rows copied from the operational database. Labels: `table`.
pub const SOURCE_ROWS: &str = "warehouse_source_rows_total";
/// Rows of `raw.events` that a night has taken into `core.events`.
pub const EVENTS_ADDED: &str = "warehouse_events_added_total";
/// Rows written by a night. Labels: `table`.
pub const ROWS_WRITTEN: &str = "warehouse_rows_written_total";
/// Commits made by a night. Labels: `table`.
pub const COMMITS: &str = "warehouse_commits_total";
/// Seconds the last night took, in this process.
pub const NIGHT_SECONDS: &str = "warehouse_night_seconds";

/// Every metric of this crate with its description.
pub const ALL: &[(&str, &str)] = &[
    (
        SOURCE_ROWS,
        "rows copied from the operational database, by table",
    ),
    (EVENTS_ADDED, "raw events taken into core.events"),
    (ROWS_WRITTEN, "rows written, by table"),
    (COMMITS, "commits made, by table"),
    (NIGHT_SECONDS, "seconds the last night took"),
];
