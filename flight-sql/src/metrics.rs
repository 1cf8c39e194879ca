//! Names and meanings of the metrics this crate shows.
//!
//! Place on the event's path: beside it. Promise: every queue, table and refusal has a number here.

/// Queries that hold a place and may run.
pub const QUERIES_ACTIVE: &str = "flight_sql_queries_active";
/// Queries that wait for a place.
pub const QUERIES_WAITING: &str = "flight_sql_queries_waiting";
/// Queries refused because the queue was full or the wait too long; label `reason`: full, wait.
pub const QUERIES_REFUSED: &str = "flight_sql_queries_refused_total";
/// Results that ended; label `outcome`: ok, error, cancelled, dropped.
pub const QUERIES: &str = "flight_sql_queries_total";
/// Time from the start of a result to its end, seconds.
pub const QUERY_SECONDS: &str = "flight_sql_query_seconds";
/// Time a query waited for its place, seconds.
pub const QUEUE_SECONDS: &str = "flight_sql_queue_seconds";
/// Rows sent to clients.
pub const ROWS: &str = "flight_sql_rows_total";
/// Bytes of column data sent to clients.
pub const BYTES: &str = "flight_sql_result_bytes_total";
/// Statements refused because they could write or change something.
pub const STATEMENTS_REFUSED: &str = "flight_sql_statements_refused_total";
/// Results planned and not yet forgotten.
pub const STATEMENTS: &str = "flight_sql_statements";
/// Planned results forgotten because the table was full.
pub const STATEMENTS_EVICTED: &str = "flight_sql_statements_evicted_total";
/// Prepared statements kept.
pub const PREPARED: &str = "flight_sql_prepared_statements";
/// Prepared statements forgotten because the table was full.
pub const PREPARED_EVICTED: &str = "flight_sql_prepared_statements_evicted_total";
/// Sessions kept.
pub const SESSIONS: &str = "flight_sql_sessions";
/// Sessions ended because the table was full.
pub const SESSIONS_EVICTED: &str = "flight_sql_sessions_evicted_total";
/// Calls refused for missing or wrong credentials.
pub const AUTH_REFUSED: &str = "flight_sql_auth_refused_total";
/// RPCs answered; labels `rpc` and `code` (gRPC status).
pub const RPCS: &str = "flight_sql_rpcs_total";
/// 1 while the catalog can be read, else 0.
pub const CATALOG_READABLE: &str = "flight_sql_catalog_readable";

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution.
    Histogram,
}

/// Every metric with its kind and meaning.
pub const ALL: [(&str, Kind, &str); 18] = [
    (
        QUERIES_ACTIVE,
        Kind::Gauge,
        "Queries that hold a place and may run",
    ),
    (
        QUERIES_WAITING,
        Kind::Gauge,
        "Queries that wait for a place",
    ),
    (
        QUERIES_REFUSED,
        Kind::Counter,
        "Queries refused by the queue (reason: full, wait)",
    ),
    (
        QUERIES,
        Kind::Counter,
        "Results that ended (outcome: ok, error, cancelled, dropped)",
    ),
    (
        QUERY_SECONDS,
        Kind::Histogram,
        "Time from the start of a result to its end",
    ),
    (
        QUEUE_SECONDS,
        Kind::Histogram,
        "Time a query waited for its place",
    ),
    (ROWS, Kind::Counter, "Rows sent to clients"),
    (BYTES, Kind::Counter, "Bytes of column data sent to clients"),
    (
        STATEMENTS_REFUSED,
        Kind::Counter,
        "Statements refused because they could write",
    ),
    (
        STATEMENTS,
        Kind::Gauge,
        "Results planned and not yet forgotten",
    ),
    (
        STATEMENTS_EVICTED,
        Kind::Counter,
        "Planned results forgotten because the table was full",
    ),
    (PREPARED, Kind::Gauge, "Prepared statements kept"),
    (
        PREPARED_EVICTED,
        Kind::Counter,
        "Prepared statements forgotten because the table was full",
    ),
    (SESSIONS, Kind::Gauge, "Sessions kept"),
    (
        SESSIONS_EVICTED,
        Kind::Counter,
        "Sessions ended because the table was full",
    ),
    (
        AUTH_REFUSED,
        Kind::Counter,
        "Calls refused for missing or wrong credentials",
    ),
    (RPCS, Kind::Counter, "RPCs answered (rpc, code)"),
    (
        CATALOG_READABLE,
        Kind::Gauge,
        "1 while the catalog can be read, else 0",
    ),
];

/// Tells the recorder what each metric means.
pub fn describe() {
    for (name, kind, text) in ALL {
        match kind {
            Kind::Counter => ::metrics::describe_counter!(name, text),
            Kind::Gauge => ::metrics::describe_gauge!(name, text),
            Kind::Histogram => ::metrics::describe_histogram!(name, text),
        }
    }
}
