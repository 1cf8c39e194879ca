//! One pinned Iceberg table as a DataFusion table.
//!
//! Place on the event's path: what SQL sees of a table. Promise: every scan reads the snapshot that was
//! current when the provider was made; files and row groups that cannot hold a selected row are
//! skipped, and the filter is applied again to what is read.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::{PhysicalExpr, conjunction};
use datafusion::physical_expr_adapter::PhysicalExprAdapterFactory;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{ManifestFile, SnapshotRef};
use iceberg::table::Table;

use super::QueryError;
use super::bounds::{self, Columns, Containers};
use super::manifests::{self, LiveFile};
use super::metrics::SCAN_FILES_TOTAL;
use super::scan::{self, Selected};
use super::schema;

/// Manifests read at the same time. They are small and the wait is latency, not work.
const MANIFESTS_IN_FLIGHT: usize = 16;

/// A table at the snapshot that was current when `table` was loaded.
#[derive(Debug)]
pub struct IcebergProvider {
    table: Table,
    columns: Columns,
    lookup: Option<Arc<dyn PhysicalExprAdapterFactory>>,
    /// Only files whose data sequence number is above this one.
    after_sequence: Option<i64>,
}

/// One file of a manifest, without a copy.
struct FileRef {
    manifest: Arc<[LiveFile]>,
    index: usize,
}

impl FileRef {
    fn get(&self) -> &LiveFile {
        &self.manifest[self.index]
    }
}

impl IcebergProvider {
    /// Makes a table provider of a loaded table, pinned to its current snapshot.
    ///
    /// # Errors
    /// [`QueryError::Metadata`] when the schema has a type that Arrow cannot hold.
    pub fn new(table: Table) -> Result<Self, QueryError> {
        let current = table.metadata().current_schema();
        let schema = schema::sql_schema(current)
            .map_err(|source| manifests::metadata_error(&table, source))?;
        let field_ids = current
            .as_struct()
            .fields()
            .iter()
            .map(|field| field.id)
            .collect();
        Ok(Self {
            columns: Columns { schema, field_ids },
            lookup: schema::column_lookup(table.metadata()),
            after_sequence: None,
            table,
        })
    }

    /// Makes a table provider of the rows added after `snapshot_id`. Rows that compaction has since
    /// moved together with newer ones may come along, so the caller removes what it knows already.
    ///
    /// # Errors
    /// [`QueryError::NoSuchSnapshot`] when the snapshot is not in the table's metadata any more.
    pub fn added_since(table: Table, snapshot_id: i64) -> Result<Self, QueryError> {
        let Some(snapshot) = table.metadata().snapshot_by_id(snapshot_id) else {
            return Err(QueryError::NoSuchSnapshot {
                table: table.identifier().to_string(),
                snapshot_id,
            });
        };
        let sequence = snapshot.sequence_number();
        Self::added_after(table, sequence)
    }

    /// Makes a table provider of the rows added after the snapshot with this sequence number, which
    /// need not be in the table's metadata any more. Rows that compaction has since moved may come
    /// along, so the caller removes what it knows already.
    ///
    /// # Errors
    /// [`QueryError::Metadata`] when the schema has a type that Arrow cannot hold.
    pub fn added_after(table: Table, sequence_number: i64) -> Result<Self, QueryError> {
        Ok(Self {
            after_sequence: Some(sequence_number),
            ..Self::new(table)?
        })
    }

    /// Returns the table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Returns the snapshot that scans read, `None` while the table is empty.
    pub fn snapshot_id(&self) -> Option<i64> {
        self.table.metadata().current_snapshot_id()
    }

    /// Returns the files that may hold rows `predicate` selects.
    async fn select(
        &self,
        snapshot: &SnapshotRef,
        predicate: Option<&PruningPredicate>,
    ) -> Result<Vec<FileRef>> {
        let list = manifests::of_snapshot(&self.table, snapshot).await?;
        let kept = self.prune_manifests(&list, predicate)?;
        let loads: Vec<_> = kept
            .into_iter()
            .map(|manifest| manifests::files(&self.table, manifest))
            .collect();
        let loaded: Vec<Arc<[LiveFile]>> = futures::stream::iter(loads)
            .buffered(MANIFESTS_IN_FLIGHT)
            .try_collect()
            .await?;
        let files = loaded.iter().flat_map(|manifest| {
            (0..manifest.len()).map(|index| FileRef {
                manifest: Arc::clone(manifest),
                index,
            })
        });
        let after = self.after_sequence.unwrap_or(i64::MIN);
        let files: Vec<FileRef> = files.filter(|file| file.get().sequence > after).collect();
        self.prune_files(files, predicate)
    }

    fn prune_manifests<'a>(
        &self,
        list: &'a [ManifestFile],
        predicate: Option<&PruningPredicate>,
    ) -> Result<Vec<&'a ManifestFile>> {
        // A manifest is not older than the files it lists.
        let after = self.after_sequence.unwrap_or(i64::MIN);
        let recent: Vec<&ManifestFile> = list
            .iter()
            .filter(|manifest| manifest.sequence_number > after)
            .collect();
        let Some(predicate) = predicate else {
            return Ok(recent);
        };
        let metadata = self.table.metadata();
        let ranges: Vec<_> = recent
            .iter()
            .map(|manifest| {
                let spec = metadata.partition_spec_by_id(manifest.partition_spec_id);
                match (spec, &manifest.partitions) {
                    (Some(spec), Some(summaries)) => {
                        bounds::of_manifest(summaries, spec, metadata.current_schema())
                    }
                    _ => Vec::new(),
                }
            })
            .collect();
        let keep = predicate.prune(&Containers {
            columns: &self.columns,
            bounds: ranges.iter().map(Vec::as_slice).collect(),
            rows: None,
        })?;
        let pruned = recent.iter().zip(&keep).filter(|(_, keep)| !**keep);
        count_files(
            "pruned",
            pruned.map(|(manifest, _)| files_in(manifest)).sum(),
        );
        Ok(selected(recent, &keep))
    }

    fn prune_files(
        &self,
        files: Vec<FileRef>,
        predicate: Option<&PruningPredicate>,
    ) -> Result<Vec<FileRef>> {
        let Some(predicate) = predicate else {
            return Ok(files);
        };
        let keep = predicate.prune(&Containers {
            columns: &self.columns,
            bounds: files.iter().map(|file| &*file.get().columns).collect(),
            rows: Some(files.iter().map(|file| file.get().rows).collect()),
        })?;
        let before = files.len();
        let kept = selected(files, &keep);
        count_files("pruned", (before - kept.len()) as u64);
        Ok(kept)
    }

    /// Returns the filters as one predicate on bounds, `None` when bounds cannot decide any of them.
    fn pruning_predicate(
        &self,
        state: &dyn Session,
        filters: &[Expr],
    ) -> Result<Option<PruningPredicate>> {
        let schema = DFSchema::try_from(Arc::clone(&self.columns.schema))?;
        let usable: Vec<Arc<dyn PhysicalExpr>> = filters
            .iter()
            .filter_map(|filter| state.create_physical_expr(filter.clone(), &schema).ok())
            .collect();
        if usable.is_empty() {
            return Ok(None);
        }
        // Some expressions cannot be turned into one on bounds; reading all files is always right.
        Ok(
            PruningPredicate::try_new(conjunction(usable), Arc::clone(&self.columns.schema))
                .ok()
                .filter(|predicate| !predicate.always_true()),
        )
    }

    /// Says of each column whether the query reads or filters it.
    fn wanted(&self, projection: Option<&Vec<usize>>, filters: &[Expr]) -> Vec<bool> {
        let schema = &self.columns.schema;
        let Some(projection) = projection else {
            return vec![true; schema.fields().len()];
        };
        let mut wanted = vec![false; schema.fields().len()];
        let filtered = filters
            .iter()
            .flat_map(Expr::column_refs)
            .filter_map(|column| schema.index_of(column.name()).ok());
        for index in projection.iter().copied().chain(filtered) {
            wanted[index] = true;
        }
        wanted
    }
}

#[async_trait]
impl TableProvider for IcebergProvider {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let predicate = self.pruning_predicate(state, filters)?;
        let mut files = match self.table.metadata().current_snapshot() {
            Some(snapshot) => self.select(snapshot, predicate.as_ref()).await?,
            None => Vec::new(),
        };
        // A limit counts rows after filtering, so it says how many files are enough only without one.
        if let Some(limit) = limit.filter(|_| filters.is_empty()) {
            files.truncate(enough_files(&files, limit));
        }
        count_files("read", files.len() as u64);
        if files.is_empty() {
            let schema = datafusion::common::project_schema(&self.columns.schema, projection)?;
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let selected = Selected {
            columns: &self.columns,
            wanted: &self.wanted(projection, filters),
            lookup: self.lookup.clone(),
            files: files.iter().map(FileRef::get).collect(),
        };
        scan::plan(state, &selected, projection, limit)
    }
}

/// Returns how many of the files hold `limit` rows.
fn enough_files(files: &[FileRef], limit: usize) -> usize {
    let mut rows = 0;
    files
        .iter()
        .take_while(|file| {
            let more = rows < limit as u64;
            rows += file.get().rows;
            more
        })
        .count()
}

fn selected<T>(items: Vec<T>, keep: &[bool]) -> Vec<T> {
    items
        .into_iter()
        .zip(keep)
        .filter_map(|(item, keep)| keep.then_some(item))
        .collect()
}

fn files_in(manifest: &ManifestFile) -> u64 {
    let count = |files: Option<u32>| u64::from(files.unwrap_or(0));
    count(manifest.added_files_count) + count(manifest.existing_files_count)
}

fn count_files(outcome: &'static str, files: u64) {
    metrics::counter!(SCAN_FILES_TOTAL, "outcome" => outcome).increment(files);
}
