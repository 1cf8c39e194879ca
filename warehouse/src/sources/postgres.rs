//! Reads PostgreSQL: one REPEATABLE READ READ ONLY transaction is one snapshot of all tables.

use std::str::FromStr;
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor, Row};

use super::columns::{ColumnType, TableReader};
use super::{Snapshot, SourceError, SourceTable, TABLES, check_columns, reason};
use crate::config::SourceConfig;
use crate::progress::Progress;

pub(super) async fn snapshot(
    config: &SourceConfig,
    progress: &dyn Progress,
) -> Result<Snapshot, SourceError> {
    let mut connection = connect(config).await?;
    let mut snapshot = Snapshot::default();
    for (index, table) in TABLES.iter().enumerate() {
        let batches = read_table(&mut connection, table, config).await?;
        snapshot.tables.insert(table.name, batches);
        progress.advanced("source", index as u64 + 1);
    }
    // Closing ends the read-only transaction; a failure here cannot change what was read.
    if let Err(error) = connection.close().await {
        tracing::debug!(error = %error, "closing the operational database failed");
    }
    Ok(snapshot)
}

async fn connect(config: &SourceConfig) -> Result<PgConnection, SourceError> {
    let options =
        PgConnectOptions::from_str(&config.uri).map_err(|_| SourceError::Unreachable {
            place: "(the address cannot be read)".to_owned(),
            reason: "write `postgres://user:password@host:port/database`".to_owned(),
        })?;
    let place = format!(
        "`postgres://{}:{}/{}`",
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or_default()
    );
    let unreachable = |reason: String| SourceError::Unreachable {
        place: place.clone(),
        reason,
    };
    let bound = Duration::from_millis(config.connect_timeout_ms);
    let mut connection = tokio::time::timeout(bound, PgConnection::connect_with(&options))
        .await
        .map_err(|_| unreachable(format!("no answer in {} ms", config.connect_timeout_ms)))?
        .map_err(|error| unreachable(reason(&error)))?;
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
         SET LOCAL TIME ZONE 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; \
         SET LOCAL statement_timeout = {}",
        config.statement_timeout_ms
    );
    connection
        .execute(begin.as_str())
        .await
        .map_err(|error| unreachable(reason(&error)))?;
    Ok(connection)
}

async fn read_table(
    connection: &mut PgConnection,
    table: &'static SourceTable,
    config: &SourceConfig,
) -> Result<Vec<arrow::record_batch::RecordBatch>, SourceError> {
    let failed = |error: sqlx::Error| SourceError::Read {
        table: table.name,
        reason: reason(&error),
    };
    let present: Vec<String> = sqlx::query_scalar(
        "SELECT attname::text FROM pg_attribute \
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
    )
    .bind(table.name)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    check_columns(table, &present)?;
    let columns: Vec<String> = table.columns.iter().map(as_text).collect();
    // Byte order, so that the same rows have the same order in every locale.
    let order: Vec<String> = table
        .key
        .iter()
        .map(|name| format!("CAST(\"{name}\" AS text) COLLATE \"C\""))
        .collect();
    let sql = format!(
        "SELECT {} FROM \"{}\" ORDER BY {}",
        columns.join(", "),
        table.name,
        order.join(", ")
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

/// Asks for a column as text that the one parser of both databases reads.
fn as_text((name, kind): &(&str, ColumnType)) -> String {
    match kind {
        ColumnType::Timestamp => {
            format!("to_char(\"{name}\"::timestamptz, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
        }
        _ => format!("CAST(\"{name}\" AS text)"),
    }
}
