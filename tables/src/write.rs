//! Writing and listing data files.

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use iceberg::spec::DataFile;
use iceberg::table::Table;

/// Why files could not be written or listed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The iceberg crate failed.
    #[error(transparent)]
    Iceberg(#[from] iceberg::Error),
    /// Arrow failed.
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
}

/// Writes rows as data files of the table, which nothing refers to until they are committed.
#[expect(
    clippy::todo,
    clippy::unused_async,
    unused_variables,
    reason = "skeleton"
)]
pub async fn write_batches(
    table: &Table,
    batches: Vec<RecordBatch>,
) -> Result<Vec<DataFile>, WriteError> {
    todo!()
}

/// Returns the table's schema in Arrow.
#[expect(clippy::todo, unused_variables, reason = "skeleton")]
pub fn arrow_schema(table: &Table) -> Result<SchemaRef, WriteError> {
    todo!()
}

/// Returns the files of the current snapshot.
#[expect(
    clippy::todo,
    clippy::unused_async,
    unused_variables,
    reason = "skeleton"
)]
pub async fn live_files(table: &Table) -> Result<Vec<DataFile>, WriteError> {
    todo!()
}
