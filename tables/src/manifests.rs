//! Manifests: the lists of live files that a snapshot consists of.
//!
//! Place on the event's path: the inner half of a commit. Promise: a file that is not named in the
//! change stays live with the sequence numbers it had, and a table never has many more small
//! manifests than [`MERGE_COUNT_DEFAULT`]. A merge leaves out what outweighs all the rest, so each file's
//! entry is written again only as often as its manifest doubles.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::Error;
use iceberg::spec::{
    DataFile, Manifest, ManifestContentType, ManifestEntry, ManifestFile, ManifestWriter,
    ManifestWriterBuilder, PartitionSpec, SchemaRef, Snapshot, Summary,
};
use iceberg::table::Table;
use uuid::Uuid;

use crate::commit::write_list;

/// Table property: merge when there are that many small manifests. The name and the defaults of it
/// and of [`MERGE_BYTES`] are those of the Java library.
const MERGE_COUNT: &str = "commit.manifest.min-count-to-merge";
const MERGE_COUNT_DEFAULT: usize = 100;
/// Table property: size that merged manifests aim at; smaller ones are merged.
const MERGE_BYTES: &str = "commit.manifest.target-size-bytes";
const MERGE_BYTES_DEFAULT: i64 = 8 << 20;
/// Manifests read at the same time.
const READS_MAX: usize = 8;

/// Returns the manifests of the current snapshot.
pub(crate) async fn list(table: &Table) -> Result<Vec<ManifestFile>, Error> {
    let Some(snapshot) = table.metadata().current_snapshot() else {
        return Ok(Vec::new());
    };
    let list = table.manifest_list_reader(snapshot).load().await?;
    Ok(list.consume_entries().into_iter().collect())
}

/// Loads data manifests, in order, a few at a time.
pub(crate) fn load<'a>(
    table: &'a Table,
    manifests: &'a [ManifestFile],
) -> impl futures::Stream<Item = Result<(&'a ManifestFile, Manifest), Error>> + 'a {
    stream::iter(manifests)
        .map(move |manifest| async move {
            let loaded = manifest.load_manifest(table.file_io()).await?;
            Ok((manifest, loaded))
        })
        .buffered(READS_MAX)
}

/// Returns whether the manifest lists row-level deletes that apply.
pub(crate) fn holds_deletes(manifest: &ManifestFile) -> bool {
    manifest.content == ManifestContentType::Deletes && holds_live_files(manifest)
}

pub(crate) fn holds_live_files(manifest: &ManifestFile) -> bool {
    manifest.has_added_files() || manifest.has_existing_files()
}

/// Writes the manifests of one commit.
pub(crate) struct Manifests<'a> {
    base: &'a Table,
    commit_id: Uuid,
    snapshot_id: i64,
    files: Vec<String>,
}

impl<'a> Manifests<'a> {
    pub(crate) fn new(base: &'a Table, commit_id: Uuid, snapshot_id: i64) -> Self {
        Self {
            base,
            commit_id,
            snapshot_id,
            files: Vec::new(),
        }
    }

    /// Returns everything written so far.
    pub(crate) fn into_files(self) -> Vec<String> {
        self.files
    }

    /// Takes `paths` out of `live`: manifests that hold one of them are rewritten, the others stay as
    /// they are. Returns the manifests and the files taken out.
    pub(crate) async fn remove(
        &mut self,
        live: Vec<ManifestFile>,
        paths: &HashSet<String>,
    ) -> Result<(Vec<ManifestFile>, Vec<DataFile>), Error> {
        let live: Vec<_> = live.into_iter().filter(holds_live_files).collect();
        if paths.is_empty() {
            return Ok((live, Vec::new()));
        }
        let (data, mut kept): (Vec<_>, Vec<_>) = live
            .into_iter()
            .partition(|manifest| manifest.content == ManifestContentType::Data);
        let mut removed = Vec::new();
        let base = self.base;
        let mut loaded = std::pin::pin!(load(base, &data));
        while let Some((file, manifest)) = loaded.try_next().await? {
            let is_hit =
                |entry: &Arc<ManifestEntry>| entry.is_alive() && paths.contains(entry.file_path());
            if !manifest.entries().iter().any(is_hit) {
                kept.push(file.clone());
                continue;
            }
            let spec = manifest.metadata().partition_spec.clone();
            let mut writer = self.writer(manifest.metadata().schema.clone(), spec)?;
            for entry in manifest.entries().iter().filter(|entry| entry.is_alive()) {
                if paths.contains(entry.file_path()) {
                    delete(&mut writer, entry)?;
                    removed.push(entry.data_file().clone());
                } else {
                    keep(&mut writer, entry)?;
                }
            }
            kept.push(writer.write_manifest_file().await?);
        }
        Ok((kept, removed))
    }

    /// Merges small manifests when there are many of them. Entries keep their age.
    pub(crate) async fn merge_small(
        &mut self,
        live: Vec<ManifestFile>,
    ) -> Result<Vec<ManifestFile>, Error> {
        let metadata = self.base.metadata();
        let count_min = self.property(MERGE_COUNT, MERGE_COUNT_DEFAULT).max(2);
        let bytes = self.property(MERGE_BYTES, MERGE_BYTES_DEFAULT).max(1);
        let is_small = |manifest: &ManifestFile| {
            manifest.content == ManifestContentType::Data
                && manifest.partition_spec_id == metadata.default_partition_spec_id()
                && manifest.manifest_length < bytes
                // What this commit rewrote says what it removed: it stays as it is.
                && manifest.added_snapshot_id != self.snapshot_id
        };
        if live.iter().filter(|manifest| is_small(manifest)).count() < count_min {
            return Ok(live);
        }
        let sizes = live.iter().filter(|manifest| is_small(manifest));
        let largest = largest_to_merge(sizes.map(live_files).collect());
        let (small, mut merged): (Vec<_>, Vec<_>) = live
            .into_iter()
            .partition(|manifest| is_small(manifest) && live_files(manifest) <= largest);
        let (schema, spec) = (metadata.current_schema(), metadata.default_partition_spec());
        let base = self.base;
        let mut loaded = std::pin::pin!(load(base, &small));
        let mut open: Option<(ManifestWriter, i64)> = None;
        while let Some((file, manifest)) = loaded.try_next().await? {
            let (mut writer, size) = match open.take() {
                Some(open) => open,
                None => (self.writer(schema.clone(), spec.as_ref().clone())?, 0),
            };
            for entry in manifest.entries().iter().filter(|entry| entry.is_alive()) {
                keep(&mut writer, entry)?;
            }
            let size = size + file.manifest_length;
            if size >= bytes {
                merged.push(writer.write_manifest_file().await?);
            } else {
                open = Some((writer, size));
            }
        }
        if let Some((writer, _)) = open {
            merged.push(writer.write_manifest_file().await?);
        }
        Ok(merged)
    }

    /// Writes the manifest of the added files; `None` when there are none. `sequence` is the age they
    /// get, by default that of the commit.
    pub(crate) async fn add(
        &mut self,
        files: &[DataFile],
        sequence: Option<i64>,
    ) -> Result<Option<ManifestFile>, Error> {
        if files.is_empty() {
            return Ok(None);
        }
        let metadata = self.base.metadata();
        let spec = metadata.default_partition_spec().as_ref().clone();
        let mut writer = self.writer(metadata.current_schema().clone(), spec)?;
        for file in files {
            // A negative number means "as the commit".
            writer.add_file(file.clone(), sequence.unwrap_or(-1))?;
        }
        writer.write_manifest_file().await.map(Some)
    }

    /// Writes the manifest list and returns the snapshot that consists of it.
    pub(crate) async fn snapshot(
        &mut self,
        manifests: Vec<ManifestFile>,
        summary: Summary,
        now_ms: i64,
    ) -> Result<Snapshot, Error> {
        let metadata = self.base.metadata();
        let path = format!(
            "{}/metadata/snap-{}-0-{}.avro",
            metadata.location(),
            self.snapshot_id,
            self.commit_id
        );
        write_list(self.base, &path, self.snapshot_id, manifests).await?;
        self.files.push(path.clone());
        Ok(Snapshot::builder()
            .with_snapshot_id(self.snapshot_id)
            .with_parent_snapshot_id(metadata.current_snapshot_id())
            .with_sequence_number(metadata.next_sequence_number())
            // Clocks of several collectors differ; the history of a table does not run backwards.
            .with_timestamp_ms(now_ms.max(metadata.last_updated_ms()))
            .with_manifest_list(path)
            .with_schema_id(metadata.current_schema_id())
            .with_summary(summary)
            .build())
    }

    fn writer(&mut self, schema: SchemaRef, spec: PartitionSpec) -> Result<ManifestWriter, Error> {
        let path = format!(
            "{}/metadata/{}-m{}.avro",
            self.base.metadata().location(),
            self.commit_id,
            self.files.len()
        );
        let output = self.base.file_io().new_output(&path)?;
        self.files.push(path);
        let builder = ManifestWriterBuilder::new(output, Some(self.snapshot_id), schema, spec);
        Ok(builder.build_v2_data())
    }

    fn property<T: std::str::FromStr>(&self, key: &str, default: T) -> T {
        let value = self.base.metadata().properties().get(key);
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or(default)
    }
}

/// Returns how many live files the manifest lists.
fn live_files(manifest: &ManifestFile) -> u64 {
    let counts = [manifest.added_files_count, manifest.existing_files_count];
    counts.into_iter().flatten().map(u64::from).sum()
}

/// Returns the size, in live files, up to which manifests take part in a merge. Those that each list more
/// files than all smaller ones together do not: to write a large one again for the sake of a few small
/// ones would make one commit in a hundred many times as slow as the others.
fn largest_to_merge(mut sizes: Vec<u64>) -> u64 {
    sizes.sort_unstable();
    let mut smaller: u64 = sizes.iter().sum();
    while let Some(largest) = sizes.pop() {
        smaller -= largest;
        if largest <= smaller {
            return largest;
        }
    }
    0
}

fn keep(writer: &mut ManifestWriter, entry: &ManifestEntry) -> Result<(), Error> {
    let (snapshot_id, sequence) = origin(entry)?;
    let file = entry.data_file().clone();
    writer.add_existing_file(file, snapshot_id, sequence, entry.file_sequence_number)
}

fn delete(writer: &mut ManifestWriter, entry: &ManifestEntry) -> Result<(), Error> {
    let (_, sequence) = origin(entry)?;
    let file = entry.data_file().clone();
    writer.add_delete_file(file, sequence, entry.file_sequence_number)
}

/// Returns the snapshot that added the file, and its sequence number.
fn origin(entry: &ManifestEntry) -> Result<(i64, i64), Error> {
    entry
        .snapshot_id()
        .zip(entry.sequence_number())
        .ok_or_else(|| {
            let message = format!("entry of `{}` has no sequence number", entry.file_path());
            Error::new(iceberg::ErrorKind::DataInvalid, message)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outweighs_the_rest_is_not_merged() {
        let cases: [(&[u64], u64); 6] = [
            (&[], 0),
            (&[5], 0),
            (&[5, 5], 5),
            (&[1, 1, 1, 3], 3),
            (&[1, 1, 1, 4, 9], 1),
            (&[1, 2, 4, 8], 0),
        ];
        for (sizes, largest) in cases {
            assert_eq!(largest_to_merge(sizes.to_vec()), largest, "{sizes:?}");
        }
    }
}
