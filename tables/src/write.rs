//! Data files: rows become Parquet files that a commit can add, and a table tells which files it has.
//!
//! Place on the event's path: after staging (collector) or a query (warehouse), before the commit.
//! Promise: a file is complete and on the disk when [`write_batches`] returns it, carries the table's
//! field ids and covering statistics, and belongs to exactly one partition. Until it is committed
//! nothing refers to it. The order of the rows is the caller's.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, partition};
use arrow::datatypes::{Schema as ArrowSchema, SchemaRef};
use arrow::error::ArrowError;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::{BoxFuture, FutureExt};
use iceberg::arrow::{PartitionValueCalculator, RecordBatchPartitionSplitter};
use iceberg::io::FileWrite;
use iceberg::spec::{DataFile, ManifestContentType, PartitionKey, Struct};
use iceberg::table::Table;
use parquet::arrow::AsyncArrowWriter;
use parquet::arrow::async_writer::AsyncFileWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::blocking::in_place;
use crate::bounds::{self, WrittenFile};
use crate::manifests;
use crate::metrics;

/// Table property: size at which a file is closed and the next one begun.
const TARGET_BYTES: &str = "write.target-file-size-bytes";
/// Default of [`TARGET_BYTES`]: large enough for cheap planning, small enough to rewrite.
const TARGET_BYTES_DEFAULT: usize = 256 << 20;
/// Rows of one row group: the unit that readers share out to cores, and the most that is buffered.
const ROW_GROUP_ROWS: usize = 128 * 1024;
/// Rows that go to the encoder at once, so that files roll in time.
const SLICE_ROWS: usize = 16 * 1024;
/// Longest string bound, in bytes; Iceberg's own default.
const BOUND_BYTES: usize = 16;
const ZSTD_LEVEL: i32 = 3;

/// Why files were not written or listed. Nothing refers to what was written so far.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file or its description cannot be made or read.
    #[error("table `{table}`: {source}")]
    Iceberg {
        /// The table.
        table: String,
        /// What the iceberg crate said.
        #[source]
        source: Box<iceberg::Error>,
    },
    /// The rows do not fit the table.
    #[error("column `{column}` does not fit table `{table}`: {source}")]
    Column {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// What does not fit.
        #[source]
        source: ArrowError,
    },
    /// The rows have a column that the table does not have. Add it with `Catalog::ensure` first.
    #[error("table `{table}` has no column `{column}`: add it to the table first")]
    UnknownColumn {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// The rows lack a required column, or hold a null in it.
    #[error("rows for table `{table}` are incomplete: {source}")]
    Rows {
        /// The table.
        table: String,
        /// What is missing.
        #[source]
        source: ArrowError,
    },
    /// The Parquet encoder or the disk failed.
    #[error("writing a file of table `{table}` failed: {source}")]
    Parquet {
        /// The table.
        table: String,
        /// What failed.
        #[source]
        source: ParquetError,
    },
}

/// A live file and its age.
#[derive(Debug, Clone)]
pub struct LiveFile {
    /// The file.
    pub file: DataFile,
    /// Data sequence number: that of the commit that added the rows.
    pub sequence_number: i64,
}

/// Returns the table's schema in Arrow, with field ids.
pub fn arrow_schema(table: &Table) -> Result<SchemaRef, WriteError> {
    ArrowSchema::try_from(table.metadata().current_schema().as_ref())
        .map(Arc::new)
        .map_err(|source| iceberg_error(table, source))
}

/// Returns the files of the current snapshot.
pub async fn live_files(table: &Table) -> Result<Vec<DataFile>, WriteError> {
    let live = live_entries(table).await?;
    Ok(live.into_iter().map(|live| live.file).collect())
}

/// Returns the files of the current snapshot with their age.
pub async fn live_entries(table: &Table) -> Result<Vec<LiveFile>, WriteError> {
    list_live(table)
        .await
        .map_err(|source| iceberg_error(table, source))
}

async fn list_live(table: &Table) -> Result<Vec<LiveFile>, iceberg::Error> {
    let data: Vec<_> = manifests::list(table)
        .await?
        .into_iter()
        .filter(|manifest| manifest.content == ManifestContentType::Data)
        .filter(manifests::holds_live_files)
        .collect();
    let mut live = Vec::new();
    let mut loaded = std::pin::pin!(manifests::load(table, &data));
    while let Some((_, manifest)) = loaded.try_next().await? {
        let entries = manifest.entries().iter().filter(|entry| entry.is_alive());
        live.extend(entries.map(|entry| LiveFile {
            file: entry.data_file().clone(),
            sequence_number: entry.sequence_number().unwrap_or(0),
        }));
    }
    Ok(live)
}

/// Writes rows as data files of the table, which nothing refers to until they are committed.
///
/// Columns are matched by name and cast to the table's types; a value that does not fit is an error.
/// Missing nullable columns are null. Encoding runs on a thread for blocking work, one file at a time:
/// beyond `batches` and one copy of them, one row group is held in memory.
pub async fn write_batches(
    table: &Table,
    batches: Vec<RecordBatch>,
) -> Result<Vec<DataFile>, WriteError> {
    if in_place() {
        return write_partitions(table, batches).boxed().await;
    }
    let table = table.clone();
    let runtime = tokio::runtime::Handle::current();
    let write = move || runtime.block_on(write_partitions(&table, batches));
    match tokio::task::spawn_blocking(write).await {
        Ok(result) => result,
        Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
    }
}

async fn write_partitions(
    table: &Table,
    batches: Vec<RecordBatch>,
) -> Result<Vec<DataFile>, WriteError> {
    let schema = arrow_schema(table)?;
    let mut rows = Vec::with_capacity(batches.len());
    for batch in batches {
        if batch.num_rows() > 0 {
            rows.push(conform(table, &schema, &batch)?);
        }
    }
    let mut written = Vec::new();
    for part in split(table, rows).map_err(|source| iceberg_error(table, source))? {
        if let Err(error) = write_part(table, &schema, part, &mut written).await {
            // The caller never learns these names, so nothing can refer to the files.
            for file in &written {
                // What stays is an orphan that maintenance removes.
                table.file_io().delete(file.file_path()).await.ok();
            }
            return Err(error);
        }
    }
    Ok(written)
}

/// Returns the batch with exactly the table's columns and types.
fn conform(
    table: &Table,
    schema: &SchemaRef,
    batch: &RecordBatch,
) -> Result<RecordBatch, WriteError> {
    let name = || table.identifier().to_string();
    for field in batch.schema_ref().fields() {
        if schema.field_with_name(field.name()).is_err() {
            return Err(WriteError::UnknownColumn {
                table: name(),
                column: field.name().clone(),
            });
        }
    }
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => column.clone(),
            Some(column) => {
                cast_with_options(column, field.data_type(), &options).map_err(|source| {
                    WriteError::Column {
                        table: name(),
                        column: field.name().clone(),
                        source,
                    }
                })?
            }
            None => new_null_array(field.data_type(), batch.num_rows()),
        };
        columns.push(column);
    }
    RecordBatch::try_new(schema.clone(), columns).map_err(|source| WriteError::Rows {
        table: name(),
        source,
    })
}

/// Rows of one partition.
struct Part {
    /// `None` when the table is not partitioned.
    key: Option<PartitionKey>,
    batches: Vec<RecordBatch>,
}

/// Splits rows by partition and keeps their order.
fn split(table: &Table, batches: Vec<RecordBatch>) -> Result<Vec<Part>, iceberg::Error> {
    let metadata = table.metadata();
    let spec = metadata.default_partition_spec();
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    if spec.is_unpartitioned() {
        return Ok(vec![Part { key: None, batches }]);
    }
    let schema = metadata.current_schema();
    let calculator = PartitionValueCalculator::try_new(spec, schema)?;
    let splitter =
        RecordBatchPartitionSplitter::try_new_with_computed_values(schema.clone(), spec.clone())?;
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    for batch in batches {
        let split = if is_one_partition(&calculator, &batch)? {
            // The usual case: a batch of one day is not copied.
            let first = splitter.split(&batch.slice(0, 1))?;
            first
                .into_iter()
                .map(|(key, _)| (key, batch.clone()))
                .collect()
        } else {
            splitter.split(&batch)?
        };
        for (key, rows) in split {
            let part = parts.entry(key.to_path()).or_insert_with(|| Part {
                key: Some(key),
                batches: Vec::new(),
            });
            part.batches.push(rows);
        }
    }
    Ok(parts.into_values().collect())
}

fn is_one_partition(
    calculator: &PartitionValueCalculator,
    batch: &RecordBatch,
) -> Result<bool, iceberg::Error> {
    let values = calculator.calculate(batch)?;
    let Some(values) = values.as_any().downcast_ref::<arrow::array::StructArray>() else {
        return Ok(false);
    };
    // Neighbouring equal rows make one range; one range is one partition.
    Ok(partition(values.columns()).is_ok_and(|ranges| ranges.len() == 1))
}

async fn write_part(
    table: &Table,
    schema: &SchemaRef,
    part: Part,
    written: &mut Vec<DataFile>,
) -> Result<(), WriteError> {
    let rows = part.batches.iter().map(RecordBatch::num_rows).sum();
    let target = target_bytes(table);
    let mut open: Option<OpenFile> = None;
    for batch in part.batches {
        let mut start = 0;
        while start < batch.num_rows() {
            let length = SLICE_ROWS.min(batch.num_rows() - start);
            let mut file = match open.take() {
                Some(file) => file,
                None => OpenFile::create(table, schema, part.key.as_ref(), rows).await?,
            };
            file.write(table, &batch.slice(start, length)).await?;
            if file.size() >= target {
                written.push(file.close(table, part.key.as_ref()).await?);
            } else {
                open = Some(file);
            }
            start += length;
        }
    }
    if let Some(file) = open {
        written.push(file.close(table, part.key.as_ref()).await?);
    }
    Ok(())
}

/// A Parquet file that is being written.
struct OpenFile {
    path: String,
    writer: AsyncArrowWriter<StoreWriter>,
}

impl OpenFile {
    async fn create(
        table: &Table,
        schema: &SchemaRef,
        key: Option<&PartitionKey>,
        rows: usize,
    ) -> Result<Self, WriteError> {
        let directory = key.map_or_else(String::new, |key| format!("{}/", key.to_path()));
        let path = format!(
            "{}/data/{directory}{}.parquet",
            table.metadata().location(),
            uuid::Uuid::now_v7()
        );
        let error = |source| iceberg_error(table, source);
        let output = table.file_io().new_output(&path).map_err(error)?;
        let store = StoreWriter(output.writer().await.map_err(error)?);
        let properties = writer_properties(table, rows);
        let writer = AsyncArrowWriter::try_new(store, schema.clone(), Some(properties))
            .map_err(|source| parquet_error(table, source))?;
        Ok(Self { path, writer })
    }

    async fn write(&mut self, table: &Table, batch: &RecordBatch) -> Result<(), WriteError> {
        let written = self.writer.write(batch).await;
        written.map_err(|source| parquet_error(table, source))
    }

    fn size(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    async fn close(
        mut self,
        table: &Table,
        key: Option<&PartitionKey>,
    ) -> Result<DataFile, WriteError> {
        let footer = self.writer.finish().await;
        let footer = footer.map_err(|source| parquet_error(table, source))?;
        let file = WrittenFile {
            path: self.path,
            bytes: self.writer.bytes_written() as u64,
            partition: key.map_or_else(Struct::empty, |key| key.data().clone()),
            partition_spec_id: table.metadata().default_partition_spec_id(),
        };
        let file = bounds::describe(file, table.metadata().current_schema(), &footer)
            .map_err(|source| iceberg_error(table, source))?;
        let name = table.identifier().to_string();
        metrics::file_written(&name, file.record_count(), file.file_size_in_bytes());
        Ok(file)
    }
}

fn target_bytes(table: &Table) -> usize {
    let value = table.metadata().properties().get(TARGET_BYTES);
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(TARGET_BYTES_DEFAULT)
}

/// Returns how a file of `rows` rows is encoded, as the table's properties say it.
fn writer_properties(table: &Table, rows: usize) -> WriterProperties {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).expect("the level is in range");
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_truncate_length(Some(BOUND_BYTES))
        .set_column_index_truncate_length(Some(BOUND_BYTES))
        .set_created_by(concat!("headwater ", env!("CARGO_PKG_VERSION")).to_owned());
    for (column, value) in columns(
        table.metadata().properties(),
        "write.metadata.metrics.column.",
    ) {
        if value == "none" || value == "counts" {
            let none = EnabledStatistics::None;
            builder = builder.set_column_statistics_enabled(column, none);
        }
    }
    let blooms = "write.parquet.bloom-filter-enabled.column.";
    for (column, value) in columns(table.metadata().properties(), blooms) {
        if value == "true" {
            // Sized by the rows there are: the default size is a megabyte, whatever the file holds.
            let distinct = rows.clamp(1, ROW_GROUP_ROWS) as u64;
            builder = builder
                .set_column_bloom_filter_enabled(column.clone(), true)
                .set_column_bloom_filter_ndv(column, distinct);
        }
    }
    builder.build()
}

/// Returns the columns that properties beginning with `prefix` name.
fn columns<'a>(
    properties: &'a HashMap<String, String>,
    prefix: &'a str,
) -> impl Iterator<Item = (ColumnPath, &'a str)> {
    properties.iter().filter_map(move |(key, value)| {
        let column = key.strip_prefix(prefix)?;
        Some((ColumnPath::from(column), value.as_str()))
    })
}

/// A file of the table's store, as the Parquet encoder sees it. Closing it syncs a local file.
struct StoreWriter(Box<dyn FileWrite>);

impl AsyncFileWriter for StoreWriter {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), ParquetError>> {
        async move { self.0.write(bytes).await.map_err(external) }.boxed()
    }

    fn complete(&mut self) -> BoxFuture<'_, Result<(), ParquetError>> {
        async move { self.0.close().await.map_err(external) }.boxed()
    }
}

fn external(error: iceberg::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

fn iceberg_error(table: &Table, source: iceberg::Error) -> WriteError {
    WriteError::Iceberg {
        table: table.identifier().to_string(),
        source: Box::new(source),
    }
}

fn parquet_error(table: &Table, source: ParquetError) -> WriteError {
    WriteError::Parquet {
        table: table.identifier().to_string(),
        source,
    }
}
