//! Publishing: one commit per table, and only when its rows differ from what is there.
//!
//! Promise: a table is replaced, or days of it are, in one snapshot; equal rows make no
//! commit. A commit is pinned to the table that the rows were compared with: when another
//! writer came first, the night ends with an error and nothing is overwritten.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use headwater_tables::{
    Catalog, Change, DataFile, Operation, Partition, Table, TableName, TableSpec, write,
};
use iceberg::spec::{Literal, PrimitiveLiteral};

use crate::config::Config;
use crate::metrics;
use crate::night::NightError;
use crate::rows::{conform, row_texts, sha256};
use crate::session::Session;

/// Property of a table that is replaced whole: SHA-256 of its rows.
const CONTENT_HASH: &str = "headwater.warehouse.content-sha256";

/// What a night wrote to one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The snapshot that the commit made.
    pub snapshot_id: i64,
    /// Rows that it added.
    pub rows: u64,
}

/// The tables as this night sees them, and what it has written.
pub(crate) struct Publisher<'a> {
    catalog: &'a Catalog,
    config: &'a Config,
    tables: BTreeMap<TableName, Table>,
    written: BTreeMap<TableName, Written>,
}

impl<'a> Publisher<'a> {
    /// Pins every table of the catalog.
    pub(crate) async fn open(catalog: &'a Catalog, config: &'a Config) -> Result<Self, NightError> {
        Ok(Self {
            catalog,
            config,
            tables: catalog.load_all().await?,
            written: BTreeMap::new(),
        })
    }

    pub(crate) fn tables(&self) -> &BTreeMap<TableName, Table> {
        &self.tables
    }

    pub(crate) fn written(&self) -> &BTreeMap<TableName, Written> {
        &self.written
    }

    /// Returns a session over the tables as this night sees them.
    pub(crate) fn session(&self) -> Result<Session, NightError> {
        let memory_bytes = self.config.limits.query_memory_bytes;
        Session::new(&self.tables, self.catalog.store(), memory_bytes)
            .map_err(NightError::query("the session"))
    }

    /// Returns the table, made or widened when necessary.
    pub(crate) async fn ensure(&mut self, spec: &TableSpec) -> Result<Table, NightError> {
        let table = self.catalog.ensure(spec).await?;
        self.tables.insert(spec.name.clone(), table.clone());
        Ok(table)
    }

    /// Replaces the whole table when its rows differ; true when it was replaced.
    pub(crate) async fn replace_all(
        &mut self,
        name: &TableName,
        rows: &RecordBatch,
    ) -> Result<bool, NightError> {
        let spec = TableSpec::from_arrow(name.clone(), &rows.schema(), Partition::None)?;
        let table = self.ensure(&spec).await?;
        let texts = row_texts(rows)?;
        let hash = sha256(texts.iter().map(String::as_str));
        let known = table.metadata().properties().get(CONTENT_HASH);
        if known == Some(&hash) {
            return Ok(false);
        }
        let add = if rows.num_rows() == 0 {
            Vec::new()
        } else {
            self.write(name, &table, vec![rows.clone()]).await?
        };
        let change = Change {
            operation: Operation::Overwrite,
            add,
            remove: paths(
                &write::live_files(&table)
                    .await
                    .map_err(NightError::write(name))?,
            ),
            properties: BTreeMap::from([(CONTENT_HASH.to_owned(), hash)]),
            summary: BTreeMap::new(),
        };
        self.commit(name, &table, change).await?;
        Ok(true)
    }

    /// Replaces the partitions of `days` with `add`, in one commit.
    pub(crate) async fn replace_days(
        &mut self,
        name: &TableName,
        days: &BTreeSet<i32>,
        add: Vec<DataFile>,
        properties: BTreeMap<String, String>,
    ) -> Result<(), NightError> {
        let table = self.tables[name].clone();
        let live = write::live_files(&table)
            .await
            .map_err(NightError::write(name))?;
        let replaced: Vec<DataFile> = live
            .into_iter()
            .filter(|file| partition_day(file).is_none_or(|day| days.contains(&day)))
            .collect();
        let change = Change {
            operation: if replaced.is_empty() {
                Operation::Append
            } else {
                Operation::Overwrite
            },
            add,
            remove: paths(&replaced),
            properties,
            summary: BTreeMap::new(),
        };
        self.commit(name, &table, change).await
    }

    /// Writes rows as files that nothing refers to yet.
    pub(crate) async fn write(
        &self,
        name: &TableName,
        table: &Table,
        rows: Vec<RecordBatch>,
    ) -> Result<Vec<DataFile>, NightError> {
        write::write_batches(table, rows)
            .await
            .map_err(NightError::write(name))
    }

    /// Writes rows as they come, in files of bounded size.
    pub(crate) async fn write_stream(
        &self,
        name: &TableName,
        mut rows: SendableRecordBatchStream,
    ) -> Result<Vec<DataFile>, NightError> {
        let table = &self.tables[name];
        let mut files = Vec::new();
        let mut held = Vec::new();
        let mut held_rows = 0;
        while let Some(batch) = rows.try_next().await.map_err(NightError::query(name))? {
            held_rows += batch.num_rows();
            held.push(batch);
            if held_rows >= self.config.limits.file_rows_max {
                files.extend(self.write(name, table, std::mem::take(&mut held)).await?);
                held_rows = 0;
            }
        }
        if held_rows > 0 {
            files.extend(self.write(name, table, held).await?);
        }
        Ok(files)
    }

    /// Commits on top of `base` and remembers what was written.
    pub(crate) async fn commit(
        &mut self,
        name: &TableName,
        base: &Table,
        change: Change,
    ) -> Result<(), NightError> {
        let rows = change.add.iter().map(DataFile::record_count).sum();
        let table = self.catalog.commit(base, change).await?;
        let snapshot_id = table
            .metadata()
            .current_snapshot()
            .map_or(0, |snapshot| snapshot.snapshot_id());
        tracing::info!(table = %name, snapshot_id, rows, "committed");
        ::metrics::counter!(metrics::COMMITS, "table" => name.to_string()).increment(1);
        ::metrics::counter!(metrics::ROWS_WRITTEN, "table" => name.to_string()).increment(rows);
        self.tables.insert(name.clone(), table);
        self.written
            .insert(name.clone(), Written { snapshot_id, rows });
        Ok(())
    }
}

/// Days whose rows differ between what is published and what was computed. Rows are texts by day, in
/// the order of the report's grain.
pub(crate) fn changed_days(
    published: &BTreeMap<i32, Vec<String>>,
    computed: &BTreeMap<i32, Vec<String>>,
) -> BTreeSet<i32> {
    let days: BTreeSet<i32> = published.keys().chain(computed.keys()).copied().collect();
    days.into_iter()
        .filter(|day| published.get(day) != computed.get(day))
        .collect()
}

/// Returns the rows in the table's own columns and types.
pub(crate) fn conform_to_table(
    name: &TableName,
    table: &Table,
    rows: &[RecordBatch],
) -> Result<RecordBatch, NightError> {
    let schema = write::arrow_schema(table).map_err(NightError::write(name))?;
    Ok(conform(&schema, rows)?)
}

fn paths(files: &[DataFile]) -> HashSet<String> {
    files
        .iter()
        .map(|file| file.file_path().to_owned())
        .collect()
}

/// Returns the day that a file of a table partitioned by day holds.
fn partition_day(file: &DataFile) -> Option<i32> {
    match file.partition().iter().next()?? {
        Literal::Primitive(PrimitiveLiteral::Int(day)) => Some(*day),
        _ => None,
    }
}
