//! The metrics of this crate: one constant each, described in [`ALL`].
//!
//! Place on the event's path: recorded by [`Catalog::commit`](crate::Catalog::commit),
//! [`write_batches`](crate::write::write_batches) and [`Store`](crate::Store). Promise: the sum of all outcomes of
//! [`COMMITS`] is the number of commits tried.

use std::time::Duration;

/// How long one commit took, from building manifests to reading the catalog back. Label `table`.
pub const COMMIT_SECONDS: &str = "tables_commit_seconds";
/// Commits by `outcome`: `committed`, `conflict`, `unknown`, `failed`. Label `table`.
pub const COMMITS: &str = "tables_commits_total";
/// Commits whose outcome had to be found out by reading the table. Label `table`.
pub const COMMITS_RESOLVED: &str = "tables_commits_resolved_by_reading_total";
/// Snapshots kept in the metadata of the table after its last commit. Label `table`.
pub const SNAPSHOTS: &str = "tables_snapshots";
/// Open connections to the catalog's database, or open requests to its REST server; their bound is
/// `catalog.connections_max`.
pub const CATALOG_CONNECTIONS: &str = "tables_catalog_connections_open";
/// Questions to the catalog that got no answer within `catalog.connect_timeout_ms` or
/// `catalog.timeout_ms`.
pub const CATALOG_UNANSWERED: &str = "tables_catalog_unanswered_total";
/// Answers of a REST catalog that were larger than `catalog.rest.answer_bytes_max`.
pub const CATALOG_TOO_LARGE: &str = "tables_catalog_answers_too_large_total";
/// Tokens for a REST catalog that were read or asked for.
pub const CATALOG_TOKENS: &str = "tables_catalog_tokens_fetched_total";
/// Data files written, committed or not. Label `table`.
pub const FILES_WRITTEN: &str = "tables_files_written_total";
/// Bytes of data files written, committed or not. Label `table`.
pub const BYTES_WRITTEN: &str = "tables_written_bytes_total";
/// Rows written, committed or not. Label `table`.
pub const ROWS_WRITTEN: &str = "tables_rows_written_total";

/// Requests to the store that have ended. Labels `operation` (`put`, `begin_parts`, `put_part`,
/// `complete_parts`, `abort_parts`, `get`, `head`, `list`, `delete`, `copy`) and `outcome` (`ok`,
/// `not_found`, `denied`, `failed`, `given_up`).
pub const STORE_REQUESTS: &str = "tables_store_requests_total";
/// How long a request to the store took, with its retries, and until its answer was read. Label
/// `operation`.
pub const STORE_SECONDS: &str = "tables_store_seconds";
/// Requests to the store on their way; their bound is `catalog.s3.requests_max`.
pub const STORE_OPEN: &str = "tables_store_requests_open";
/// What went over the wire for them, retries and questions for credentials included. Label `result`:
/// `answered`, `refused`, `busy`, `unreachable`, `silent`, `cut`.
pub const STORE_TRIES: &str = "tables_store_tries_total";
/// Bytes that the store took.
pub const STORE_WRITTEN: &str = "tables_store_written_bytes_total";
/// Bytes that the store gave.
pub const STORE_READ: &str = "tables_store_read_bytes_total";

/// Every metric of this crate with its description.
pub const ALL: &[(&str, &str)] = &[
    (
        COMMIT_SECONDS,
        "Time of one table commit, until the catalog was read back, by table",
    ),
    (
        COMMITS,
        "Table commits by table and outcome (committed, conflict, unknown, failed)",
    ),
    (
        COMMITS_RESOLVED,
        "Commits whose outcome was found out by reading the table, by table",
    ),
    (
        SNAPSHOTS,
        "Snapshots in the table metadata after the last commit, by table",
    ),
    (
        CATALOG_CONNECTIONS,
        "Open connections to the catalog's database, or requests to its REST server",
    ),
    (
        CATALOG_UNANSWERED,
        "Questions to the catalog that got no answer in time",
    ),
    (
        CATALOG_TOO_LARGE,
        "Answers of a REST catalog that were larger than allowed",
    ),
    (
        CATALOG_TOKENS,
        "Tokens for a REST catalog that were read or asked for",
    ),
    (
        FILES_WRITTEN,
        "Data files written, committed or not, by table",
    ),
    (
        BYTES_WRITTEN,
        "Bytes of data files written, committed or not, by table",
    ),
    (
        ROWS_WRITTEN,
        "Rows written to data files, committed or not, by table",
    ),
    (
        STORE_REQUESTS,
        "Requests to the store by operation and outcome (ok, not_found, denied, failed, given_up)",
    ),
    (
        STORE_SECONDS,
        "Time of one request to the store, retries included, by operation",
    ),
    (STORE_OPEN, "Requests to the store that are on their way"),
    (
        STORE_TRIES,
        "Requests on the wire, retries included, by result (answered, refused, busy, unreachable, silent, cut)",
    ),
    (STORE_WRITTEN, "Bytes that the store took"),
    (STORE_READ, "Bytes that the store gave"),
];

/// Gives the metrics recorder the description of every metric.
pub fn describe() {
    for (name, description) in ALL {
        if [COMMIT_SECONDS, STORE_SECONDS].contains(name) {
            ::metrics::describe_histogram!(*name, ::metrics::Unit::Seconds, *description);
        } else if [SNAPSHOTS, CATALOG_CONNECTIONS, STORE_OPEN].contains(name) {
            ::metrics::describe_gauge!(*name, *description);
        } else {
            ::metrics::describe_counter!(*name, *description);
        }
    }
}

pub(crate) fn commit_ended(table: &str, outcome: &'static str, took: Duration) {
    ::metrics::counter!(COMMITS, "table" => table.to_owned(), "outcome" => outcome).increment(1);
    ::metrics::histogram!(COMMIT_SECONDS, "table" => table.to_owned()).record(took.as_secs_f64());
}

pub(crate) fn commit_resolved(table: &str) {
    ::metrics::counter!(COMMITS_RESOLVED, "table" => table.to_owned()).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub(crate) fn catalog_connections(open: usize) {
    ::metrics::gauge!(CATALOG_CONNECTIONS).set(open as f64);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub(crate) fn snapshots_kept(table: &str, snapshots: usize) {
    ::metrics::gauge!(SNAPSHOTS, "table" => table.to_owned()).set(snapshots as f64);
}

pub(crate) fn catalog_unanswered() {
    ::metrics::counter!(CATALOG_UNANSWERED).increment(1);
}

pub(crate) fn catalog_answer_too_large() {
    ::metrics::counter!(CATALOG_TOO_LARGE).increment(1);
}

pub(crate) fn catalog_token_fetched() {
    ::metrics::counter!(CATALOG_TOKENS).increment(1);
}

pub(crate) fn file_written(table: &str, rows: u64, bytes: u64) {
    ::metrics::counter!(FILES_WRITTEN, "table" => table.to_owned()).increment(1);
    ::metrics::counter!(BYTES_WRITTEN, "table" => table.to_owned()).increment(bytes);
    ::metrics::counter!(ROWS_WRITTEN, "table" => table.to_owned()).increment(rows);
}

pub(crate) fn store_began() {
    ::metrics::gauge!(STORE_OPEN).increment(1.0);
}

pub(crate) fn store_ended(operation: &'static str, outcome: &'static str, took: Duration) {
    ::metrics::gauge!(STORE_OPEN).decrement(1.0);
    ::metrics::counter!(STORE_REQUESTS, "operation" => operation, "outcome" => outcome)
        .increment(1);
    ::metrics::histogram!(STORE_SECONDS, "operation" => operation).record(took.as_secs_f64());
}

pub(crate) fn store_tried(result: &'static str) {
    ::metrics::counter!(STORE_TRIES, "result" => result).increment(1);
}

pub(crate) fn store_wrote(bytes: usize) {
    ::metrics::counter!(STORE_WRITTEN).increment(bytes as u64);
}

pub(crate) fn store_read(bytes: usize) {
    ::metrics::counter!(STORE_READ).increment(bytes as u64);
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_metric_is_documented() {
        let document = include_str!("../../docs/catalogs.md");
        for (name, _) in super::ALL {
            let row = document.lines().any(|line| {
                line.strip_prefix("| `")
                    .and_then(|line| line.strip_prefix(name))
                    .is_some_and(|rest| rest.starts_with(['`', '{']))
            });
            assert!(row, "docs/catalogs.md does not list `{name}`");
        }
    }
}
