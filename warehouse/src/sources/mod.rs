//! Copies the operational database: every declared table, in one consistent read-only transaction.
//!
//! Place on the path: the first step of the night. Nothing is written before the last row of the
//! last table has been read and its type checked.

mod columns;
mod postgres;
mod sqlite;
mod tables;

use std::collections::BTreeMap;

use arrow::record_batch::RecordBatch;

pub use columns::ColumnType;
pub use tables::{SourceTable, TABLES};

use crate::config::SourceConfig;
use crate::progress::Progress;

/// One consistent copy of all tables.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Rows of each table, ordered by its key.
    pub tables: BTreeMap<&'static str, Vec<RecordBatch>>,
}

/// Why the operational database could not be copied. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No connection: check host, port, name, password and that the server is up.
    #[error("cannot open the operational database {place}: {reason}; check `source.uri`")]
    Unreachable {
        /// The address without user and password.
        place: String,
        /// What the driver said.
        reason: String,
    },
    /// A table is missing or not readable.
    #[error("the operational database has no readable table `{table}`; create it or grant SELECT")]
    MissingTable {
        /// The table.
        table: &'static str,
    },
    /// A declared column is missing.
    #[error("table `{table}` of the operational database has no column `{column}`")]
    MissingColumn {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
    /// A value does not have the declared type.
    #[error("`{table}.{column}` of the operational database: `{value}` is not {expected}")]
    BadValue {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The value, cut to 64 characters.
        value: String,
        /// The declared type, in words.
        expected: &'static str,
    },
    /// A key column is null.
    #[error("`{table}.{column}` of the operational database is null, but it is part of the key")]
    NullKey {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
    /// A table is larger than the bound.
    #[error(
        "table `{table}` has more than {max} rows; raise `source.table_rows_max` and the memory"
    )]
    TooLarge {
        /// The table.
        table: &'static str,
        /// The bound.
        max: u64,
    },
    /// The database failed while it was read.
    #[error("reading table `{table}` of the operational database failed: {reason}")]
    Read {
        /// The table.
        table: &'static str,
        /// What the driver said.
        reason: String,
    },
}

/// Reads all declared tables in one read-only transaction.
///
/// # Errors
/// See [`SourceError`].
pub async fn snapshot(
    config: &SourceConfig,
    progress: &dyn Progress,
) -> Result<Snapshot, SourceError> {
    progress.started("source", Some(TABLES.len() as u64));
    let snapshot = if config.uri.starts_with("sqlite:") {
        sqlite::snapshot(config, progress).await?
    } else {
        postgres::snapshot(config, progress).await?
    };
    let rows: usize = snapshot
        .tables
        .values()
        .flatten()
        .map(RecordBatch::num_rows)
        .sum();
    progress.finished("source", &format!("{rows} rows of {} tables", TABLES.len()));
    Ok(snapshot)
}

/// Fails when the database's table lacks a declared column.
fn check_columns(table: &SourceTable, present: &[String]) -> Result<(), SourceError> {
    if present.is_empty() {
        return Err(SourceError::MissingTable { table: table.name });
    }
    let missing = table
        .columns
        .iter()
        .find(|(name, _)| !present.iter().any(|column| column == name));
    match missing {
        Some((column, _)) => Err(SourceError::MissingColumn {
            table: table.name,
            column,
        }),
        None => Ok(()),
    }
}

/// Keeps the cause of a driver's error, without the lines that follow it.
fn reason(error: &sqlx::Error) -> String {
    let text = match error {
        sqlx::Error::Database(database) => database.message().to_owned(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}
