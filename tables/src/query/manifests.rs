//! Reads the files of a pinned snapshot from its manifests, and remembers them.
//!
//! Place on the event's path: the first step of every scan. Promise: a manifest is immutable, so what
//! the cache holds is what storage holds; the cache never grows beyond [`CACHE_BYTES_MAX`].

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use iceberg::spec::{
    DataContentType, DataFileFormat, ManifestContentType, ManifestEntryRef, ManifestFile,
    PartitionSpec, SnapshotRef,
};
use iceberg::table::Table;
use parking_lot::Mutex;

use super::QueryError;
use super::bounds::{self, ColumnBounds};
use super::metrics::{MANIFEST_CACHE_BYTES, MANIFEST_LOADS_TOTAL};
use crate::schema::BOUNDS_PROPERTY;

/// Memory that cached manifests may take, for the whole process. 128 MiB hold about 30,000 data files
/// of a table as wide as `raw.events`; beyond it the manifests used longest ago are read again.
pub(super) const CACHE_BYTES_MAX: usize = 128 << 20;

/// One data file of a snapshot.
#[derive(Debug)]
pub(super) struct LiveFile {
    pub(super) path: String,
    pub(super) size_bytes: u64,
    pub(super) rows: u64,
    /// Data sequence number: the age of the rows, kept when compaction moves them.
    pub(super) sequence: i64,
    pub(super) columns: Box<[ColumnBounds]>,
}

/// Returns the manifests of a snapshot that hold data.
///
/// # Errors
/// [`QueryError::DeleteFiles`] when the snapshot has row-level deletes, which this scan would ignore.
pub(super) async fn of_snapshot(
    table: &Table,
    snapshot: &SnapshotRef,
) -> Result<Arc<[ManifestFile]>, QueryError> {
    let key = snapshot.manifest_list();
    if let Some(Cached::List(list)) = CACHE.lock().get(key) {
        return Ok(list);
    }
    let list = table
        .manifest_list_reader(snapshot)
        .load()
        .await
        .map_err(|source| metadata_error(table, source))?;
    let mut data = Vec::with_capacity(list.entries().len());
    for manifest in list.consume_entries() {
        if !(manifest.has_added_files() || manifest.has_existing_files()) {
            continue;
        }
        if manifest.content == ManifestContentType::Deletes {
            return Err(QueryError::DeleteFiles {
                table: table.identifier().to_string(),
                snapshot_id: snapshot.snapshot_id(),
            });
        }
        data.push(manifest);
    }
    let data: Arc<[ManifestFile]> = data.into();
    CACHE
        .lock()
        .put(key, Cached::List(Arc::clone(&data)), list_bytes(&data));
    Ok(data)
}

/// Returns the live data files of a manifest.
pub(super) async fn files(
    table: &Table,
    manifest: &ManifestFile,
) -> Result<Arc<[LiveFile]>, QueryError> {
    let key = &manifest.manifest_path;
    if let Some(Cached::Files(files)) = CACHE.lock().get(key) {
        return Ok(files);
    }
    let content = manifest
        .load_manifest(table.file_io())
        .await
        .map_err(|source| metadata_error(table, source))?;
    let (entries, metadata) = content.into_parts();
    let schema = metadata.schema();
    let files: Arc<[LiveFile]> = entries
        .iter()
        .filter(|entry| entry.is_alive())
        .map(|entry| live_file(table, entry, metadata.partition_spec(), schema))
        .collect::<Result<_, _>>()?;
    let bytes = files.iter().map(LiveFile::bytes).sum();
    CACHE
        .lock()
        .put(key, Cached::Files(Arc::clone(&files)), bytes);
    Ok(files)
}

fn live_file(
    table: &Table,
    entry: &ManifestEntryRef,
    spec: &PartitionSpec,
    schema: &iceberg::spec::Schema,
) -> Result<LiveFile, QueryError> {
    let file = entry.data_file();
    if file.file_format() != DataFileFormat::Parquet || file.content_type() != DataContentType::Data
    {
        return Err(QueryError::NotParquet {
            table: table.identifier().to_string(),
            path: file.file_path().to_owned(),
            format: format!("{} ({:?})", file.file_format(), file.content_type()),
        });
    }
    let property = table.metadata().properties().get(BOUNDS_PROPERTY);
    let covering = property.is_some_and(|value| value == "covering");
    Ok(LiveFile {
        path: file.file_path().to_owned(),
        size_bytes: file.file_size_in_bytes(),
        rows: file.record_count(),
        // An absent sequence number is that of a format v1 file: older than anything.
        sequence: entry.sequence_number().unwrap_or(0),
        columns: bounds::of_file(file, spec, schema, covering),
    })
}

impl LiveFile {
    fn bytes(&self) -> usize {
        let columns: usize = self.columns.iter().map(ColumnBounds::bytes).sum();
        size_of::<Self>() + self.path.len() + columns
    }
}

fn list_bytes(manifests: &[ManifestFile]) -> usize {
    manifests
        .iter()
        .map(|manifest| size_of::<ManifestFile>() + 2 * manifest.manifest_path.len())
        .sum()
}

pub(super) fn metadata_error(table: &Table, source: iceberg::Error) -> QueryError {
    QueryError::Metadata {
        table: table.identifier().to_string(),
        source: Box::new(source),
    }
}

/// What the process remembers, by the path of the manifest or manifest list. Sessions live for one
/// query, so the memory is not theirs.
static CACHE: LazyLock<Mutex<Cache>> = LazyLock::new(|| Mutex::new(Cache::new(CACHE_BYTES_MAX)));

#[derive(Debug, Clone)]
enum Cached {
    List(Arc<[ManifestFile]>),
    Files(Arc<[LiveFile]>),
}

/// A memory of the most recently used values, bounded in bytes.
#[derive(Debug)]
struct Cache {
    entries: HashMap<String, Entry>,
    bytes: usize,
    bytes_max: usize,
    /// Counts uses: an entry's last use is its age.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    value: Cached,
    bytes: usize,
    used: u64,
}

impl Cache {
    fn new(bytes_max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            bytes: 0,
            bytes_max,
            clock: 0,
        }
    }

    fn get(&mut self, key: &str) -> Option<Cached> {
        self.clock += 1;
        let clock = self.clock;
        let found = self.entries.get_mut(key).map(|entry| {
            entry.used = clock;
            entry.value.clone()
        });
        let source = if found.is_some() { "cache" } else { "storage" };
        metrics::counter!(MANIFEST_LOADS_TOTAL, "source" => source).increment(1);
        found
    }

    /// Remembers a value. One that alone exceeds the bound is not remembered; otherwise, when the
    /// bound is exceeded, the older half goes at once, so that eviction costs little per entry.
    fn put(&mut self, key: &str, value: Cached, bytes: usize) {
        let bytes = bytes + key.len() + size_of::<Entry>();
        if bytes > self.bytes_max {
            return;
        }
        if self.bytes + bytes > self.bytes_max {
            self.keep_newest(self.bytes_max.saturating_sub(bytes) / 2);
        }
        self.clock += 1;
        let entry = Entry {
            value,
            bytes,
            used: self.clock,
        };
        self.bytes += bytes;
        if let Some(replaced) = self.entries.insert(key.to_owned(), entry) {
            self.bytes -= replaced.bytes;
        }
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics::gauge!(MANIFEST_CACHE_BYTES).set(self.bytes as f64);
    }

    fn keep_newest(&mut self, bytes_max: usize) {
        let mut ages: Vec<(u64, usize)> = self
            .entries
            .values()
            .map(|entry| (entry.used, entry.bytes))
            .collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        let mut kept = 0;
        let oldest_kept = ages
            .iter()
            .take_while(|(_, bytes)| {
                kept += bytes;
                kept <= bytes_max
            })
            .last()
            .map_or(u64::MAX, |(used, _)| *used);
        self.entries.retain(|_, entry| entry.used >= oldest_kept);
        self.bytes = self.entries.values().map(|entry| entry.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Cached {
        Cached::Files(Arc::new([]))
    }

    #[test]
    fn the_cache_stays_in_its_bound_and_keeps_what_was_used_last() {
        let mut cache = Cache::new(10_000);
        for number in 0..100 {
            cache.put(&format!("{number}"), nothing(), 900);
            assert!(cache.bytes <= cache.bytes_max);
            assert!(number == 0 || cache.get(&format!("{}", number - 1)).is_some());
        }
        assert!(cache.get("0").is_none());
    }

    #[test]
    fn a_value_larger_than_the_bound_is_not_kept() {
        let mut cache = Cache::new(1_000);
        cache.put("small", nothing(), 10);
        cache.put("large", nothing(), 1_001);
        assert!(cache.get("small").is_some() && cache.get("large").is_none());
    }

    #[test]
    fn putting_a_value_again_does_not_count_it_twice() {
        let mut cache = Cache::new(1_000);
        cache.put("key", nothing(), 10);
        let once = cache.bytes;
        cache.put("key", nothing(), 10);
        assert_eq!(cache.bytes, once);
    }
}
