//! Turns selected data files into DataFusion's own Parquet scan.
//!
//! Place on the event's path: the last planning step of a scan. Promise: each row group of each file is
//! read by exactly one partition of the plan; the partitions hold about the same number of bytes; the
//! plan has no operator of ours, so that it can be shipped to another machine.

use std::cmp::Reverse;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use datafusion::catalog::Session;
use datafusion::common::{Result, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{
    FileGroup, FileGroupPartitioner, FileScanConfigBuilder, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::object_store::ObjectMeta;
use datafusion::object_store::path::Path;
use datafusion::physical_expr_adapter::PhysicalExprAdapterFactory;
use datafusion::physical_plan::ExecutionPlan;

use super::QueryError;
use super::bounds::{self, Columns};
use super::manifests::LiveFile;
use crate::store::Store;

/// What a scan reads.
pub(super) struct Selected<'a> {
    pub(super) columns: &'a Columns,
    /// Columns whose statistics the plan needs.
    pub(super) wanted: &'a [bool],
    /// How to find columns in files, unless by name.
    pub(super) lookup: Option<Arc<dyn PhysicalExprAdapterFactory>>,
    pub(super) files: Vec<&'a LiveFile>,
}

/// Plans the scan of at least one file.
pub(super) fn plan(
    state: &dyn Session,
    selected: &Selected<'_>,
    projection: Option<&Vec<usize>>,
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = &selected.columns.schema;
    let mut store = None;
    let mut files = Vec::with_capacity(selected.files.len());
    for file in &selected.files {
        let (url, partitioned) = partitioned_file(state, selected, file)?;
        if *store.get_or_insert_with(|| url.clone()) != url {
            return Err(location_error(&file.path, "the table spans several stores").into());
        }
        files.push(partitioned);
    }
    let store = store.unwrap_or_else(ObjectStoreUrl::local_filesystem);
    let mut statistics = Statistics::try_merge_iter(
        files.iter().filter_map(|file| file.statistics.as_deref()),
        schema,
    )?;
    if limit.is_some() {
        statistics = statistics.to_inexact();
    }
    let source = parquet_source(state, &store, selected)?;
    let config = FileScanConfigBuilder::new(store, Arc::new(source))
        .with_file_groups(distribute(state, files))
        .with_statistics(statistics)
        .with_projection_indices(projection.cloned())?
        .with_limit(limit)
        .with_expr_adapter(selected.lookup.clone())
        .build();
    Ok(DataSourceExec::from_data_source(config))
}

/// Returns the Parquet reader, which takes file footers from the session's metadata cache.
fn parquet_source(
    state: &dyn Session,
    store: &ObjectStoreUrl,
    selected: &Selected<'_>,
) -> Result<ParquetSource> {
    let options = TableParquetOptions {
        global: state.config_options().execution.parquet.clone(),
        ..TableParquetOptions::default()
    };
    let runtime = state.runtime_env();
    let reader = CachedParquetFileReaderFactory::new(
        runtime.object_store(store)?,
        runtime.cache_manager.get_file_metadata_cache(),
    );
    let mut source = ParquetSource::new(Arc::clone(&selected.columns.schema))
        .with_parquet_file_reader_factory(Arc::new(reader));
    if let Some(hint) = options.global.metadata_size_hint {
        source = source.with_metadata_size_hint(hint);
    }
    Ok(source.with_table_parquet_options(options))
}

fn partitioned_file(
    state: &dyn Session,
    selected: &Selected<'_>,
    file: &LiveFile,
) -> Result<(ObjectStoreUrl, PartitionedFile), QueryError> {
    let (store, path) = locate(&file.path)?;
    let statistics = bounds::file_statistics(
        selected.columns,
        selected.wanted,
        &file.columns,
        file.rows,
        file.size_bytes,
    );
    let partitioned = PartitionedFile::new_from_meta(ObjectMeta {
        location: path,
        last_modified: unchanging(state),
        size: file.size_bytes,
        e_tag: None,
        version: None,
    });
    Ok((store, partitioned.with_statistics(Arc::new(statistics))))
}

/// Returns the time of change that the footer cache compares. Data files never change, so it may keep
/// their footers for good; but it knows them by their path alone, and two buckets may hold the same
/// path. Each store has a time of its own.
fn unchanging(state: &dyn Session) -> DateTime<Utc> {
    let store = state.config().get_extension::<Store>();
    let number = store.map_or(0, |store| store.number());
    DateTime::from_timestamp_micros(number).unwrap_or(DateTime::UNIX_EPOCH)
}

/// Distributes the files over as many groups as the query may use cores: in byte ranges of equal size
/// when they are large, else whole, the largest first, each to the group with the fewest bytes.
fn distribute(state: &dyn Session, files: Vec<PartitionedFile>) -> Vec<FileGroup> {
    let target = state.config().target_partitions().max(1);
    let optimizer = &state.config_options().optimizer;
    if optimizer.repartition_file_scans {
        let ranges = FileGroupPartitioner::new()
            .with_target_partitions(target)
            .with_repartition_file_min_size(optimizer.repartition_file_min_size)
            .repartition_file_groups(&[FileGroup::new(files.clone())]);
        if let Some(ranges) = ranges {
            return ranges;
        }
    }
    whole_files(files, target)
}

fn whole_files(mut files: Vec<PartitionedFile>, target: usize) -> Vec<FileGroup> {
    files.sort_by_key(|file| Reverse(file.object_meta.size));
    let mut groups: Vec<(u64, Vec<PartitionedFile>)> =
        vec![(0, Vec::new()); target.min(files.len())];
    for file in files {
        let Some(smallest) = groups.iter_mut().min_by_key(|(bytes, _)| *bytes) else {
            break;
        };
        smallest.0 += file.object_meta.size.max(1);
        smallest.1.push(file);
    }
    groups
        .into_iter()
        .map(|(_, files)| FileGroup::new(files))
        .collect()
}

/// Splits a file path of the metadata into its store and the path in it. The session registers the
/// store of its pins; there is no other one but the local disk.
fn locate(path: &str) -> Result<(ObjectStoreUrl, Path), QueryError> {
    let local = path
        .strip_prefix("file://")
        .or_else(|| path.strip_prefix("file:"))
        .or_else(|| (!path.contains("://")).then_some(path));
    if let Some(local) = local {
        let absolute = std::path::absolute(local).map_err(|error| location_error(path, error))?;
        let in_store =
            Path::from_absolute_path(absolute).map_err(|error| location_error(path, error))?;
        return Ok((ObjectStoreUrl::local_filesystem(), in_store));
    }
    let authority = path.find("://").map_or(0, |at| at + "://".len());
    let end = path[authority..]
        .find('/')
        .map(|at| authority + at)
        .ok_or_else(|| location_error(path, "no key after the bucket"))?;
    let store = ObjectStoreUrl::parse(&path[..end]).map_err(|error| location_error(path, error))?;
    let key = Path::parse(&path[end + 1..]).map_err(|error| location_error(path, error))?;
    Ok((store, key))
}

fn location_error(path: &str, reason: impl ToString) -> QueryError {
    QueryError::Location {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_paths_and_bucket_urls_are_located() {
        let located = |path| {
            let (store, path) = locate(path).unwrap();
            (store.as_str().to_owned(), path.to_string())
        };
        let local = (
            "file:///".to_owned(),
            "data/day=2026-11-20/a.parquet".into(),
        );
        assert_eq!(located("/data/day=2026-11-20/a.parquet"), local);
        assert_eq!(located("file:///data/day=2026-11-20/a.parquet"), local);
        let remote = ("s3://lake/".to_owned(), "t/a.parquet".into());
        assert_eq!(located("s3://lake/t/a.parquet"), remote);
        assert!(locate("s3://lake").is_err());
    }

    #[test]
    fn whole_files_go_to_the_group_with_the_fewest_bytes() {
        let file = |size| PartitionedFile::new(format!("{size}"), size);
        let groups = whole_files(vec![file(5), file(9), file(4), file(1)], 2);
        let bytes: Vec<u64> = groups
            .iter()
            .map(|group| group.iter().map(|file| file.object_meta.size).sum())
            .collect();
        assert_eq!(bytes, [10, 9]);
    }
}
