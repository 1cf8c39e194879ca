//! A catalog in a temporary directory with one small table, and readers of what is in it.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use futures::TryStreamExt;
use headwater_tables::{
    Catalog, CatalogConfig, Change, CommitError, DataFile, Partition, Table, TableName, TableSpec,
    write,
};
use tempfile::TempDir;
use tokio::sync::Barrier;

use crate::s3_server::S3;
use crate::{postgres, rest_server};

/// 2026-11-20T00:00:00Z in microseconds.
pub(crate) const TODAY: i64 = 1_795_132_800_000_000;
pub(crate) const DAY: i64 = 86_400_000_000;

pub(crate) struct Lake {
    pub(crate) catalog: Catalog,
    pub(crate) config: CatalogConfig,
    pub(crate) directory: TempDir,
    /// Where the tables are, unless on the local disk.
    pub(crate) s3: Option<S3>,
}

impl Lake {
    pub(crate) async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let config = CatalogConfig::local(directory.path());
        Self::at(directory, config).await
    }

    /// The same with its catalog in the tests' PostgreSQL.
    pub(crate) async fn on_postgres() -> Self {
        let directory = TempDir::new().unwrap();
        let mut config = CatalogConfig::local(directory.path());
        config.uri = postgres::database().await;
        Self::at(directory, config).await
    }

    /// The same with its tables in a bucket of an S3 service of its own.
    pub(crate) async fn on_s3() -> Self {
        let directory = TempDir::new().unwrap();
        let service = S3::start();
        let mut config = service.warehouse(CatalogConfig::local(directory.path()));
        config.s3.part_bytes = 5 << 20;
        let mut lake = Self::at(directory, config).await;
        lake.s3 = Some(service);
        lake
    }

    /// The same with its catalog on the tests' REST server.
    pub(crate) async fn on_rest() -> Self {
        let directory = TempDir::new().unwrap();
        let mut config = CatalogConfig::local(directory.path());
        config.uri = rest_server::new_catalog();
        Self::at(directory, config).await
    }

    async fn at(directory: TempDir, config: CatalogConfig) -> Self {
        let catalog = open(&config).await;
        Self {
            catalog,
            config,
            directory,
            s3: None,
        }
    }

    /// Returns the S3 service of a lake that has one.
    pub(crate) fn s3(&self) -> &S3 {
        self.s3.as_ref().unwrap()
    }

    /// Opens the same catalog as another process would: with connections and a cache of its own.
    pub(crate) async fn another_process(&self) -> Catalog {
        open(&self.config).await
    }

    pub(crate) async fn table(&self) -> Table {
        self.catalog.ensure(&spec()).await.unwrap()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.directory.path().join("catalog.db")
    }

    /// Appends rows `(id, at)` and returns the new head.
    pub(crate) async fn append(&self, base: &Table, rows: &[(i64, i64)]) -> Table {
        let change = Change::append(files(base, rows).await);
        self.catalog.commit(base, change).await.unwrap()
    }

    pub(crate) async fn head(&self) -> Table {
        self.catalog.load(&name()).await.unwrap()
    }
}

async fn open(config: &CatalogConfig) -> Catalog {
    if config.uri.starts_with("rest+") {
        // The server stamps what has no snapshot with its own clock, and takes no step back.
        return Catalog::open(config).await.unwrap();
    }
    let now = Arc::new(|| TODAY + DAY / 2);
    Catalog::open_with_clock(config, now).await.unwrap()
}

pub(crate) fn name() -> TableName {
    "raw.small".parse().unwrap()
}

pub(crate) fn spec() -> TableSpec {
    TableSpec::from_arrow(name(), &schema(), Partition::Day("at".to_owned()))
        .unwrap()
        .sorted_by(&["id"])
}

pub(crate) fn schema() -> Schema {
    let at = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("at", at, false),
        Field::new("note", DataType::Utf8, true),
    ])
}

pub(crate) fn batch(rows: &[(i64, i64)]) -> RecordBatch {
    let ids = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1));
    let notes = StringArray::from_iter_values(rows.iter().map(|row| format!("note {}", row.0)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(notes),
    ];
    RecordBatch::try_new(Arc::new(schema()), columns).unwrap()
}

/// Writes rows `(id, at)` to files that nothing refers to yet.
pub(crate) async fn files(table: &Table, rows: &[(i64, i64)]) -> Vec<DataFile> {
    write::write_batches(table, vec![batch(rows)])
        .await
        .unwrap()
}

/// Returns all rows through the iceberg crate's own reader.
pub(crate) async fn rows(table: &Table) -> Vec<RecordBatch> {
    let scan = table.scan().build().unwrap();
    scan.to_arrow().await.unwrap().try_collect().await.unwrap()
}

/// Returns one column of all rows. The iceberg crate's reader cannot fill in a missing list.
pub(crate) async fn column(table: &Table, name: &str) -> Vec<ArrayRef> {
    let scan = table.scan().select([name]).build().unwrap();
    let batches: Vec<RecordBatch> = scan.to_arrow().await.unwrap().try_collect().await.unwrap();
    batches
        .iter()
        .map(|batch| batch.column(0).clone())
        .collect()
}

/// Returns the ids of all rows, in order.
pub(crate) async fn ids(table: &Table) -> Vec<i64> {
    let mut ids = Vec::new();
    for column in column(table, "id").await {
        let column = column.as_any().downcast_ref::<Int64Array>().unwrap();
        ids.extend(column.values().iter());
    }
    ids.sort_unstable();
    ids
}

/// Returns an entry of the current snapshot's summary, as a number.
pub(crate) fn summary(table: &Table, key: &str) -> Option<u64> {
    let snapshot = table.metadata().current_snapshot()?;
    let value = snapshot.summary().additional_properties.get(key)?;
    value.parse().ok()
}

/// Asserts that the totals in the snapshot's summary are those of the live files.
pub(crate) async fn assert_totals(table: &Table) {
    let live = write::live_files(table).await.unwrap();
    let records: u64 = live.iter().map(DataFile::record_count).sum();
    let bytes: u64 = live.iter().map(DataFile::file_size_in_bytes).sum();
    assert_eq!(summary(table, "total-records"), Some(records));
    assert_eq!(summary(table, "total-data-files"), Some(live.len() as u64));
    assert_eq!(summary(table, "total-files-size"), Some(bytes));
    assert_eq!(ids(table).await.len() as u64, records);
    for file in &live {
        let stored = table.file_io().new_input(file.file_path()).unwrap();
        let stored = stored.metadata().await.unwrap().size;
        assert_eq!(stored, file.file_size_in_bytes());
    }
}

/// Lets several processes commit from one base and checks that each row is there once.
pub(crate) async fn commit_together(lake: &Lake) {
    const COMMITTERS: i64 = 4;
    const COMMITS: i64 = 5;
    lake.table().await;
    let mut tasks = tokio::task::JoinSet::new();
    // All start from one base, so that all but one must conflict at first.
    let start = Arc::new(Barrier::new(usize::try_from(COMMITTERS).unwrap()));
    for committer in 0..COMMITTERS {
        let catalog = lake.another_process().await;
        let start = start.clone();
        tasks.spawn(async move {
            let mut base = catalog.load(&name()).await.unwrap();
            start.wait().await;
            let mut conflicts = 0;
            for commit in 0..COMMITS {
                let id = committer * 100 + commit;
                conflicts += commit_until_done(&catalog, &mut base, id).await;
            }
            conflicts
        });
    }
    let conflicts: i64 = tasks.join_all().await.into_iter().sum();
    let head = lake.head().await;
    let expected: Vec<i64> = (0..COMMITTERS)
        .flat_map(|committer| (0..COMMITS).map(move |commit| committer * 100 + commit))
        .collect();
    assert_eq!(ids(&head).await, expected);
    assert_totals(&head).await;
    assert_eq!(head.metadata().snapshots().len(), expected.len());
    assert!(conflicts >= COMMITTERS - 1, "{conflicts} conflicts");
}

/// Commits one row, again after each conflict; returns the number of conflicts.
async fn commit_until_done(catalog: &Catalog, base: &mut Table, id: i64) -> i64 {
    let mut conflicts = 0;
    let change = Change::append(files(base, &[(id, TODAY - DAY)]).await);
    loop {
        match catalog.commit(base, change.clone()).await {
            Ok(head) => {
                *base = head;
                return conflicts;
            }
            Err(CommitError::Conflict { .. }) => conflicts += 1,
            Err(error) => panic!("{error}"),
        }
        *base = catalog.load(&name()).await.unwrap();
    }
}
