//! Reads a SQLite file: one deferred transaction is one snapshot of it.

use std::str::FromStr;
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Row};

use super::columns::TableReader;
use super::{Snapshot, SourceError, SourceTable, TABLES, check_columns, reason};
use crate::config::SourceConfig;
use crate::progress::Progress;

pub(super) async fn snapshot(
    config: &SourceConfig,
    progress: &dyn Progress,
) -> Result<Snapshot, SourceError> {
    let unreachable = |error: &sqlx::Error| SourceError::Unreachable {
        place: format!("`{}`", config.uri),
        reason: reason(error),
    };
    let options = SqliteConnectOptions::from_str(&config.uri)
        .map_err(|error| unreachable(&error))?
        .read_only(true)
        .create_if_missing(false)
        .busy_timeout(Duration::from_millis(config.connect_timeout_ms));
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .map_err(|error| unreachable(&error))?;
    // Deferred: the first read takes the snapshot that all later reads see.
    sqlx::query("BEGIN DEFERRED")
        .execute(&mut connection)
        .await
        .map_err(|error| unreachable(&error))?;
    let mut snapshot = Snapshot::default();
    for (index, table) in TABLES.iter().enumerate() {
        let batches = read_table(&mut connection, table, config).await?;
        snapshot.tables.insert(table.name, batches);
        progress.advanced("source", index as u64 + 1);
    }
    // Closing ends the transaction; a failure here cannot change what was read.
    if let Err(error) = connection.close().await {
        tracing::debug!(error = %error, "closing the operational database failed");
    }
    Ok(snapshot)
}

async fn read_table(
    connection: &mut SqliteConnection,
    table: &'static SourceTable,
    config: &SourceConfig,
) -> Result<Vec<arrow::record_batch::RecordBatch>, SourceError> {
    let failed = |error: sqlx::Error| SourceError::Read {
        table: table.name,
        reason: reason(&error),
    };
    let present: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info(?)")
        .bind(table.name)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    check_columns(table, &present)?;
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|(name, _)| format!("CAST(\"{name}\" AS TEXT)"))
        .collect();
    let sql = format!(
        "SELECT {} FROM \"{}\" ORDER BY {}",
        columns.join(", "),
        table.name,
        table.key.join(", ")
    );
    let mut reader = TableReader::new(table, config.batch_rows, config.table_rows_max);
    let mut rows = sqlx::query(&sql).fetch(&mut *connection);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        for index in 0..table.columns.len() {
            let value: Option<&str> = row.try_get(index).map_err(failed)?;
            reader.value(index, value)?;
        }
        reader.end_row()?;
    }
    reader.finish()
}
