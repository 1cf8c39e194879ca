//! One path for every commit: append, overwrite and replace differ only in what they name.
//!
//! Place on the event's path: between staged data files and the catalog's compare-and-swap. A commit
//! writes manifests for what it adds and removes, a manifest list and a snapshot, and hands the
//! catalog the metadata updates. Promise: rows and watermarks move in the same snapshot (EO-4), the
//! totals in its summary are exact, and the cost of a commit does not grow with the age of the table:
//! small manifests are merged and the snapshot history is bounded.

use std::collections::{BTreeMap, HashMap, HashSet};

use iceberg::TableUpdate;
use iceberg::spec::{
    DataFile, MAIN_BRANCH, ManifestListWriter, Operation as SnapshotOperation, Snapshot,
    SnapshotReference, SnapshotSummaryCollector, Summary,
};
use iceberg::table::Table;
use uuid::Uuid;

use crate::catalog::CatalogError;
use crate::manifests::{self, Manifests};
use crate::name::TableName;
use crate::watermark::{self, WATERMARK_PREFIX};

/// Summary entry that names one commit, unique among all commits.
pub const COMMIT_ID: &str = "headwater.commit-id";
/// Table property: most snapshots that a table keeps in its metadata. Older ones leave the history
/// when a commit would exceed it, except those that a branch or tag names.
pub const SNAPSHOTS_MAX: &str = "headwater.snapshots-max";
/// Default of [`SNAPSHOTS_MAX`]: 83 minutes of commits every 5 s, about 1 MB of metadata before
/// compression. Fewer cut time travel shorter; more make each commit write a larger file.
pub const SNAPSHOTS_MAX_DEFAULT: usize = 1000;

/// What a commit does to the table, as the snapshot's `operation` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operation {
    /// Adds rows and removes none.
    #[default]
    Append,
    /// Adds and removes rows: the answer of a query changes.
    Overwrite,
    /// Rewrites files: the answer stays the same (M-1).
    Replace,
}

/// What one commit changes. An append of nothing is allowed: it moves the table's `main`, so that
/// watermarks never travel without a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// What the change means.
    pub operation: Operation,
    /// Files to add, as [`write_batches`](crate::write::write_batches) returned them for a table that is
    /// partitioned as the base is: only the number of fields can be checked, a file does not tell its spec.
    pub add: Vec<DataFile>,
    /// Paths of live files to remove. Each of them must be live in the base.
    pub remove: HashSet<String>,
    /// Table properties to set in the same commit.
    pub properties: BTreeMap<String, String>,
    /// Further entries for the snapshot's summary.
    pub summary: BTreeMap<String, String>,
}

impl Change {
    /// Returns a change that only adds files.
    pub fn append(add: Vec<DataFile>) -> Self {
        Self {
            add,
            ..Self::default()
        }
    }
}

/// Why a commit was not made, or is not known to be made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another commit came first; nothing was committed and the data files still exist. Reload the
    /// table, validate again, commit again with the same files.
    #[error("another commit to `{table}` came first: reload the table and commit again")]
    Conflict {
        /// The table.
        table: TableName,
    },
    /// It is not known whether the commit happened: the catalog could not be read, or the table has
    /// moved on further than it remembers. Reload the table until it works and look at the watermark,
    /// or for `commit_id` in the snapshot summaries. Delete no data file (EO-5).
    #[error("it is not known whether commit `{commit_id}` to `{table}` happened: {source}")]
    Unknown {
        /// The table.
        table: TableName,
        /// The value of `headwater.commit-id` in the snapshot summary, if it happened.
        commit_id: String,
        /// What went wrong.
        #[source]
        source: Box<CatalogError>,
    },
    /// Nothing was committed. Retry when the source is the database or a disk; otherwise the change
    /// itself is wrong.
    #[error("nothing was committed to `{table}`: {source}")]
    Failed {
        /// The table.
        table: TableName,
        /// Why.
        #[source]
        source: Box<CatalogError>,
    },
}

impl CommitError {
    pub(crate) fn failed(table: &TableName, source: CatalogError) -> Self {
        Self::Failed {
            table: table.clone(),
            source: Box::new(source),
        }
    }

    /// Returns whether trying again, on a reloaded table, can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Conflict { .. } | Self::Unknown { .. } => true,
            Self::Failed { source, .. } => !matches!(**source, CatalogError::Refused { .. }),
        }
    }
}

/// A commit that only waits for the catalog.
pub(crate) struct Prepared {
    pub(crate) updates: Vec<TableUpdate>,
    pub(crate) commit_id: String,
    /// Manifests and manifest list written for it.
    pub(crate) files: Vec<String>,
}

/// Writes the manifests and the manifest list of `change` and returns the metadata updates.
pub(crate) async fn prepare(
    name: &TableName,
    base: &Table,
    change: Change,
    now_ms: i64,
) -> Result<Prepared, CatalogError> {
    check(base, &change).map_err(|reason| refused(name, reason))?;
    let error = |source| CatalogError::Table {
        table: name.clone(),
        source: Box::new(source),
    };
    let commit_id = Uuid::now_v7();
    let snapshot_id = unused_snapshot_id(base);
    let mut manifests = Manifests::new(base, commit_id, snapshot_id);

    let live = manifests::list(base).await.map_err(error)?;
    if change.operation == Operation::Replace && live.iter().any(manifests::holds_deletes) {
        let reason = "the table has row-level deletes, which a replace would lose".to_owned();
        return Err(refused(name, reason));
    }
    let (mut kept, removed) = manifests
        .remove(live, &change.remove)
        .await
        .map_err(error)?;
    if removed.len() != change.remove.len() {
        let found: HashSet<&str> = removed.iter().map(DataFile::file_path).collect();
        let missing = change
            .remove
            .iter()
            .find(|path| !found.contains(path.as_str()));
        let reason = format!("file `{}` is not live", missing.map_or("?", String::as_str));
        return Err(refused(name, reason));
    }
    kept = manifests.merge_small(kept).await.map_err(error)?;
    // Rewritten rows keep the age of the base, so that "added since" does not see them as new.
    let sequence = match (change.operation, base.metadata().current_snapshot()) {
        (Operation::Replace, Some(parent)) => Some(parent.sequence_number()),
        _ => None,
    };
    let added = manifests.add(&change.add, sequence).await.map_err(error)?;
    kept.extend(added);

    let summary = summarize(base, &change, &removed, commit_id);
    let snapshot = manifests
        .snapshot(kept, summary, now_ms)
        .await
        .map_err(error)?;
    Ok(Prepared {
        updates: updates(base, snapshot, change.properties).map_err(error)?,
        commit_id: commit_id.to_string(),
        files: manifests.into_files(),
    })
}

fn refused(name: &TableName, reason: String) -> CatalogError {
    CatalogError::Refused {
        table: name.clone(),
        reason,
    }
}

/// Checks what can be checked without reading a file.
fn check(base: &Table, change: &Change) -> Result<(), String> {
    if change.operation == Operation::Append && !change.remove.is_empty() {
        return Err("an append removes no files: use Overwrite or Replace".to_owned());
    }
    let mut paths = HashSet::new();
    let fields = base.metadata().default_partition_type().fields().len();
    for file in &change.add {
        let path = file.file_path();
        if !paths.insert(path) || change.remove.contains(path) {
            return Err(format!("file `{path}` is named twice"));
        }
        if file.partition().fields().len() != fields {
            return Err(format!("file `{path}` is not partitioned as the table is"));
        }
    }
    check_rows_kept(change, paths.len())?;
    watermark::check_forward(base.metadata().properties(), &change.properties)?;
    let moves_watermarks = change
        .properties
        .keys()
        .any(|key| key.starts_with(WATERMARK_PREFIX));
    if moves_watermarks && change.operation == Operation::Replace {
        return Err("a replace moves no watermark".to_owned()); // M-2
    }
    Ok(())
}

fn check_rows_kept(change: &Change, added: usize) -> Result<(), String> {
    if change.operation == Operation::Replace && change.remove.is_empty() && added > 0 {
        return Err("a replace that removes nothing adds rows: use Append".to_owned());
    }
    Ok(())
}

fn unused_snapshot_id(base: &Table) -> i64 {
    loop {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let id = i64::try_from((high ^ low) >> 1).expect("63 bits fit");
        if id > 0 && base.metadata().snapshot_by_id(id).is_none() {
            return id;
        }
    }
}

fn summarize(base: &Table, change: &Change, removed: &[DataFile], commit_id: Uuid) -> Summary {
    let metadata = base.metadata();
    let mut collector = SnapshotSummaryCollector::default();
    for file in &change.add {
        let spec = metadata.default_partition_spec().clone();
        collector.add_file(file, metadata.current_schema().clone(), spec);
    }
    for file in removed {
        let spec = metadata.default_partition_spec().clone();
        collector.remove_file(file, metadata.current_schema().clone(), spec);
    }
    let mut entries = collector.build();
    let parent = metadata
        .current_snapshot()
        .map(|parent| &parent.summary().additional_properties);
    add_totals(&mut entries, parent);
    entries.extend(watermark::stamp(
        metadata.properties(),
        &change.properties,
        parent,
    ));
    entries.extend(change.summary.clone());
    entries.insert(COMMIT_ID.to_owned(), commit_id.to_string());
    Summary {
        operation: match change.operation {
            Operation::Append => SnapshotOperation::Append,
            Operation::Replace => SnapshotOperation::Replace,
            Operation::Overwrite if change.add.is_empty() && !removed.is_empty() => {
                SnapshotOperation::Delete
            }
            Operation::Overwrite => SnapshotOperation::Overwrite,
        },
        additional_properties: entries,
    }
}

/// Total of the snapshot = total of its parent + added - removed. We add and remove data files only.
fn add_totals(entries: &mut HashMap<String, String>, parent: Option<&HashMap<String, String>>) {
    const TOTALS: [(&str, &str, &str); 6] = [
        ("total-records", "added-records", "deleted-records"),
        ("total-data-files", "added-data-files", "deleted-data-files"),
        ("total-files-size", "added-files-size", "removed-files-size"),
        (
            "total-delete-files",
            "added-delete-files",
            "removed-delete-files",
        ),
        (
            "total-position-deletes",
            "added-position-deletes",
            "removed-position-deletes",
        ),
        (
            "total-equality-deletes",
            "added-equality-deletes",
            "removed-equality-deletes",
        ),
    ];
    let number = |map: Option<&HashMap<String, String>>, key: &str| -> u64 {
        map.and_then(|map| map.get(key))
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    };
    for (total, added, removed) in TOTALS {
        let value = (number(parent, total) + number(Some(entries), added))
            .saturating_sub(number(Some(entries), removed));
        entries.insert(total.to_owned(), value.to_string());
    }
}

fn updates(
    base: &Table,
    snapshot: Snapshot,
    properties: BTreeMap<String, String>,
) -> Result<Vec<TableUpdate>, iceberg::Error> {
    let reference = main_at(base, &snapshot)?;
    let expired = expired_snapshots(base);
    let mut updates = vec![
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef {
            ref_name: MAIN_BRANCH.to_owned(),
            reference,
        },
    ];
    if !expired.is_empty() {
        updates.push(TableUpdate::RemoveSnapshots {
            snapshot_ids: expired,
        });
    }
    if !properties.is_empty() {
        updates.push(TableUpdate::SetProperties {
            updates: properties.into_iter().collect(),
        });
    }
    Ok(updates)
}

/// Returns `main` at `snapshot`, with the retention that somebody may have set on it. The crate has no
/// accessor for that, and its builder carries it over.
fn main_at(base: &Table, snapshot: &Snapshot) -> Result<SnapshotReference, iceberg::Error> {
    let builder = base.metadata().clone().into_builder(None);
    let builder = builder.set_branch_snapshot(snapshot.clone(), MAIN_BRANCH)?;
    let mut changes = builder.build()?.changes.into_iter();
    let main = changes.find_map(|change| match change {
        TableUpdate::SetSnapshotRef { reference, .. } => Some(reference),
        _ => None,
    });
    Ok(main.expect("a snapshot that is new moves its branch"))
}

/// Returns the oldest snapshots to drop from the history: none until there are [`SNAPSHOTS_MAX`],
/// then a quarter of them at once. Their files stay for maintenance to remove after its safety age.
fn expired_snapshots(base: &Table) -> Vec<i64> {
    let metadata = base.metadata();
    let max = metadata
        .properties()
        .get(SNAPSHOTS_MAX)
        .and_then(|value| value.parse().ok())
        .unwrap_or(SNAPSHOTS_MAX_DEFAULT)
        .max(2);
    let count = metadata.snapshots().len();
    if count < max {
        return Vec::new();
    }
    let referenced = referenced_snapshots(base);
    let mut oldest: Vec<_> = metadata
        .snapshots()
        .map(|snapshot| (snapshot.sequence_number(), snapshot.snapshot_id()))
        .filter(|(_, id)| !referenced.contains(id))
        .collect();
    oldest.sort_unstable();
    oldest.truncate(count - max + (max / 4).max(1));
    oldest.into_iter().map(|(_, id)| id).collect()
}

/// Returns the snapshots that branches and tags name. The crate has no accessor for all of them, so
/// they are read from the metadata as it is stored.
fn referenced_snapshots(base: &Table) -> HashSet<i64> {
    let stored = serde_json::to_value(base.metadata()).unwrap_or_default();
    let named = stored.get("refs").and_then(|refs| refs.as_object());
    let named = named.into_iter().flat_map(|refs| refs.values());
    let named = named.filter_map(|reference| reference.get("snapshot-id")?.as_i64());
    named.chain(base.metadata().current_snapshot_id()).collect()
}

pub(crate) async fn write_list(
    base: &Table,
    path: &str,
    snapshot_id: i64,
    manifests: Vec<iceberg::spec::ManifestFile>,
) -> Result<(), iceberg::Error> {
    let metadata = base.metadata();
    let output = base.file_io().new_output(path)?;
    let mut writer = ManifestListWriter::v2(
        output.writer().await?,
        snapshot_id,
        metadata.current_snapshot_id(),
        metadata.next_sequence_number(),
    );
    writer.add_manifests(manifests.into_iter())?;
    writer.close().await
}
