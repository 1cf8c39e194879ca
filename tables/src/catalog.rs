//! The catalog: which tables exist and where the current metadata of each one is.
//!
//! Place on the event's path: the collector commits through it, the warehouse and Flight SQL pin
//! tables with it. Promise: [`Catalog::load_all`] is one consistent set, and
//! [`Catalog::commit`] never builds on anything but the base it was given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iceberg::io::{FileIO, FileIOBuilder, LocalFsStorageFactory};
use iceberg::spec::{TableMetadata, TableMetadataBuilder};
use iceberg::table::Table;
use iceberg::{MetadataLocation, Runtime, TableCreation, TableUpdate};
use parking_lot::Mutex;
use serde::Deserialize;
use tracing::{debug, info, warn};

use crate::commit::{self, Change, CommitError};
use crate::durable::{self, SyncError};
use crate::evolve;
use crate::metrics;
use crate::name::TableName;
use crate::schema::{SchemaError, TableSpec};
use crate::sql::{HeadStore, Swap};

/// The catalog's name in `iceberg_tables`; other engines open it under this name.
pub const CATALOG_NAME: &str = "headwater";

/// Times that [`Catalog::ensure`] starts again when another process changes the table meanwhile.
const ENSURE_ATTEMPTS: usize = 10;
/// Pauses between attempts to read the catalog back after a commit: 3.1 s in total.
const READ_BACK_PAUSES_MS: [u64; 5] = [100, 200, 400, 800, 1600];
/// Manifest cache of one loaded table.
const TABLE_CACHE_BYTES: u64 = 8 << 20;

/// Tells the wall-clock time in microseconds since the Unix epoch.
pub type Now = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Where the catalog and the tables are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CatalogConfig {
    /// The catalog database: `sqlite://` and a path, absolute or relative to the current directory.
    /// It is made when it is missing. Default `sqlite://headwater-data/catalog.db`.
    pub uri: String,
    /// The directory of table data and metadata; made when it is missing. Tables remember absolute
    /// paths, so moving it later means rewriting them. Default `headwater-data/warehouse`.
    pub warehouse: PathBuf,
}

impl Default for CatalogConfig {
    fn default() -> Self {
        Self {
            uri: "sqlite://headwater-data/catalog.db".to_owned(),
            warehouse: "headwater-data/warehouse".into(),
        }
    }
}

/// Why the catalog could not answer. Nothing was changed unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The configuration names a kind of catalog that is not there. Change `catalog.uri`.
    #[error(
        "catalog.uri `{0}` is not supported: write `sqlite://PATH`, such as `sqlite://headwater-data/catalog.db`"
    )]
    Uri(String),
    /// A file or directory cannot be used. Check its path and permissions.
    #[error("cannot use `{}`: {source}", path.display())]
    Path {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The catalog file holds something else. Point `catalog.uri` at another file, or restore it.
    #[error("`{}` is not a SQLite database: point catalog.uri at the catalog file or restore it from a backup", .0.display())]
    NotADatabase(PathBuf),
    /// The catalog database refused or failed. Retry; then check the file and the disk.
    #[error("the catalog database failed while it was asked to {action}: {source}")]
    Database {
        /// What was asked.
        action: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// The catalog has no such table.
    #[error("the catalog has no table `{0}`")]
    NoSuchTable(TableName),
    /// A metadata, manifest or data file of the table cannot be read or written.
    #[error("table `{table}`: {source}")]
    Table {
        /// The table.
        table: TableName,
        /// What the iceberg crate said.
        #[source]
        source: iceberg::Error,
    },
    /// The table exists and cannot become what is asked for. Rename one of the two.
    #[error("table `{table}` cannot be used: {reason}")]
    Incompatible {
        /// The table.
        table: TableName,
        /// What differs.
        reason: String,
    },
    /// The wanted table is not a possible table.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// New metadata could not be made durable.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The change asked for contradicts the table it is based on. A defect of the caller.
    #[error("commit to `{table}` refused: {reason}")]
    Refused {
        /// The table.
        table: TableName,
        /// What contradicts.
        reason: String,
    },
    /// Another process changed the table at each attempt. Retry.
    #[error(transparent)]
    Commit(Box<CommitError>),
}

/// The catalog of all tables. Cheap to clone; clones share connections and the metadata cache.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    heads: HeadStore,
    /// `file://` and the absolute path of the warehouse directory.
    warehouse: String,
    file_io: FileIO,
    now: Now,
    /// The newest table seen per name; metadata files never change, so the location is the key.
    cache: Mutex<BTreeMap<TableName, Table>>,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Catalog")
            .field("warehouse", &self.inner.warehouse)
            .finish_non_exhaustive()
    }
}

impl Catalog {
    /// Opens the catalog with the system's clock; makes the database and directories when missing.
    pub async fn open(config: &CatalogConfig) -> Result<Self, CatalogError> {
        Self::open_with_clock(config, Arc::new(system_now)).await
    }

    /// Opens the catalog with a clock, which stamps snapshots.
    pub async fn open_with_clock(config: &CatalogConfig, now: Now) -> Result<Self, CatalogError> {
        let warehouse = make_directory(&config.warehouse)?;
        let text = warehouse.to_str().ok_or_else(|| CatalogError::Path {
            path: warehouse.clone(),
            source: std::io::Error::other("the path is not UTF-8, which table locations must be"),
        })?;
        let database = config
            .uri
            .strip_prefix("sqlite://")
            .filter(|path| !path.is_empty())
            .ok_or_else(|| CatalogError::Uri(config.uri.clone()))?;
        let inner = Inner {
            heads: HeadStore::open(Path::new(database), CATALOG_NAME).await?,
            warehouse: format!("file://{text}"),
            file_io: FileIOBuilder::new(Arc::new(LocalFsStorageFactory)).build(),
            now,
            cache: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Returns every table with its metadata location, from one read: a consistent set.
    pub async fn heads(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        self.inner.heads.all().await
    }

    /// Loads the current head of a table.
    pub async fn load(&self, name: &TableName) -> Result<Table, CatalogError> {
        self.load_if_exists(name)
            .await?
            .ok_or_else(|| CatalogError::NoSuchTable(name.clone()))
    }

    /// Loads the current head of a table, `None` when there is no such table.
    pub async fn load_if_exists(&self, name: &TableName) -> Result<Option<Table>, CatalogError> {
        let Some(location) = self.inner.heads.get(name).await? else {
            return Ok(None);
        };
        match self.load_at(name, &location).await {
            Ok(table) => Ok(Some(table)),
            // Old metadata files are deleted: a slow reader may have to look again, once.
            Err(error) => match self.inner.heads.get(name).await? {
                Some(newer) if newer != location => self.load_at(name, &newer).await.map(Some),
                _ => Err(error),
            },
        }
    }

    /// Loads every table as of one read of the catalog: a consistent set.
    pub async fn load_all(&self) -> Result<BTreeMap<TableName, Table>, CatalogError> {
        let heads = self.heads().await?;
        match self.load_heads(&heads).await {
            Ok(tables) => Ok(tables),
            // Old metadata files are deleted: a slow reader may have to look again, once.
            Err(error) => match self.heads().await? {
                newer if newer != heads => self.load_heads(&newer).await,
                _ => Err(error),
            },
        }
    }

    async fn load_heads(
        &self,
        heads: &[(TableName, String)],
    ) -> Result<BTreeMap<TableName, Table>, CatalogError> {
        let mut tables = BTreeMap::new();
        for (name, location) in heads {
            let table = self.load_at(name, location).await?;
            tables.insert(name.clone(), table);
        }
        Ok(tables)
    }

    /// Makes the table when it is missing, and adds the columns it lacks, which must be nullable.
    /// Widens `int` to `long` and `float` to `double`, relaxes required columns, sets properties
    /// that are not set; never drops or rewrites anything.
    pub async fn ensure(&self, spec: &TableSpec) -> Result<Table, CatalogError> {
        let mut conflict = None;
        for _ in 0..ENSURE_ATTEMPTS {
            let Some(table) = self.load_if_exists(&spec.name).await? else {
                if let Some(created) = self.create(spec).await? {
                    return Ok(created);
                }
                continue;
            };
            let updates = evolve::updates(&table, spec)?;
            if updates.is_empty() {
                return Ok(table);
            }
            match self.update(&table, updates).await {
                Ok(table) => return Ok(table),
                Err(error @ CommitError::Conflict { .. }) => conflict = Some(error),
                Err(error) => return Err(CatalogError::Commit(Box::new(error))),
            }
        }
        Err(CatalogError::Commit(Box::new(conflict.unwrap_or_else(
            || CommitError::Conflict {
                table: spec.name.clone(),
            },
        ))))
    }

    /// Commits `change` as one snapshot on top of `base`: everything or nothing, and only when
    /// `base` is still the head. The result was read back from the catalog (EO-2).
    ///
    /// Not cancel safe: when the future is dropped, the outcome is unknown.
    pub async fn commit(&self, base: &Table, change: Change) -> Result<Table, CommitError> {
        let name = table_name(base)?;
        let started = Instant::now();
        let result = self.commit_snapshot(&name, base, change).await;
        let outcome = match &result {
            Ok(_) => "committed",
            Err(CommitError::Conflict { .. }) => "conflict",
            Err(CommitError::Unknown { .. }) => "unknown",
            Err(CommitError::Failed { .. }) => "failed",
        };
        metrics::commit_ended(&name.to_string(), outcome, started.elapsed());
        result
    }

    /// Commits metadata updates that add no rows (tags, expiry, schema) on top of `base`, with the
    /// same promises as [`Catalog::commit`].
    pub async fn update(
        &self,
        base: &Table,
        updates: Vec<TableUpdate>,
    ) -> Result<Table, CommitError> {
        let name = table_name(base)?;
        let commit_id = uuid::Uuid::now_v7().to_string();
        self.swap(&name, base, updates, &commit_id, Vec::new())
            .await
    }

    async fn commit_snapshot(
        &self,
        name: &TableName,
        base: &Table,
        change: Change,
    ) -> Result<Table, CommitError> {
        let added = change.add.iter().map(|file| file.file_path().to_owned());
        let added: Vec<String> = added.collect();
        let now_ms = (self.inner.now)() / 1000;
        let prepared = commit::prepare(name, base, change, now_ms)
            .await
            .map_err(|source| CommitError::failed(name, source))?;
        let result = self
            .swap(name, base, prepared.updates, &prepared.commit_id, added)
            .await;
        match &result {
            Ok(table) => {
                let kept = table.metadata().snapshots().len();
                metrics::snapshots_kept(&name.to_string(), kept);
                debug!(table = %name, commit_id = %prepared.commit_id, "committed");
            }
            // The head is known to be another one, so nothing can refer to these manifests.
            Err(CommitError::Conflict { .. }) => self.delete(prepared.files).await,
            Err(_) => {}
        }
        result
    }

    /// Writes new metadata, makes it durable, points the catalog at it, and reads it back.
    async fn swap(
        &self,
        name: &TableName,
        base: &Table,
        updates: Vec<TableUpdate>,
        commit_id: &str,
        added: Vec<String>,
    ) -> Result<Table, CommitError> {
        let failed = |source: CatalogError| CommitError::failed(name, source);
        let iceberg = |source: iceberg::Error| failed(table_error(name, source));
        let base_location = base.metadata_location_result().map_err(iceberg)?;
        let (metadata, expired) = apply(base, base_location, updates).map_err(iceberg)?;
        let location = next_location(base_location, &metadata).map_err(iceberg)?;
        let written = metadata.write_to(&self.inner.file_io, &location).await;
        written.map_err(iceberg)?;
        let location = location.to_string();
        durable::sync(metadata.location(), &location, added)
            .await
            .map_err(|error| failed(error.into()))?;

        let swapped = self.inner.heads.swap(name, base_location, &location).await;
        if matches!(swapped, Ok(Swap::Lost)) {
            self.delete(vec![location]).await;
            return Err(CommitError::Conflict {
                table: name.clone(),
            });
        }
        self.read_back(name, base_location, &location, commit_id, swapped.err())
            .await?;
        let table = self.table(name, &location, metadata).map_err(failed)?;
        self.remember(name, &table);
        if deletes_old_metadata(&table) {
            self.delete(expired).await;
        }
        Ok(table)
    }

    /// Finds out by reading whether `location` became the head (EO-2, EO-5). The answer of the
    /// database to the commit is only a hint: `error` is what it said, if it was not "done".
    async fn read_back(
        &self,
        name: &TableName,
        base: &str,
        location: &str,
        commit_id: &str,
        error: Option<CatalogError>,
    ) -> Result<(), CommitError> {
        if error.is_some() {
            metrics::commit_resolved(&name.to_string());
            warn!(table = %name, commit_id, error = ?error, "commit outcome unknown, reading the table");
        }
        let mut pauses = READ_BACK_PAUSES_MS.into_iter();
        let unread = loop {
            let outcome = self.outcome(name, base, location).await;
            match (outcome, pauses.next()) {
                (Ok(Outcome::Committed), _) => return Ok(()),
                (Ok(Outcome::Overtaken), _) => {
                    return Err(CommitError::Conflict {
                        table: name.clone(),
                    });
                }
                (Ok(Outcome::NotCommitted), _) => {
                    let source = error.unwrap_or_else(|| CatalogError::Refused {
                        table: name.clone(),
                        reason: "the database reported success and kept the old head".to_owned(),
                    });
                    return Err(CommitError::failed(name, source));
                }
                (Err(_), Some(pause)) => tokio::time::sleep(Duration::from_millis(pause)).await,
                (Err(unread), None) => break unread,
            }
        };
        Err(CommitError::Unknown {
            table: name.clone(),
            commit_id: commit_id.to_owned(),
            source: Box::new(error.unwrap_or(unread)),
        })
    }

    async fn outcome(
        &self,
        name: &TableName,
        base: &str,
        location: &str,
    ) -> Result<Outcome, CatalogError> {
        let head = self.inner.heads.get(name).await?;
        match head.as_deref() {
            Some(head) if head == location => Ok(Outcome::Committed),
            Some(head) if head == base => Ok(Outcome::NotCommitted),
            Some(head) => {
                let table = self.load_at(name, head).await?;
                let mut log = table.metadata().metadata_log().iter();
                let is_ancestor = log.any(|entry| entry.metadata_file == location);
                Ok(if is_ancestor {
                    Outcome::Committed
                } else {
                    Outcome::Overtaken
                })
            }
            None => Err(CatalogError::NoSuchTable(name.clone())),
        }
    }

    /// Makes the table; `None` when another process made it first.
    async fn create(&self, spec: &TableSpec) -> Result<Option<Table>, CatalogError> {
        let error = |source| table_error(&spec.name, source);
        let location = format!(
            "{}/{}/{}",
            self.inner.warehouse,
            spec.name.namespace(),
            spec.name.name()
        );
        let creation = TableCreation::builder()
            .name(spec.name.name().to_owned())
            .location(location.clone())
            .schema(spec.schema.clone())
            .partition_spec(spec.partition_spec()?)
            .sort_order(spec.sort_order()?)
            .properties(spec.all_properties())
            .build();
        let metadata = TableMetadataBuilder::from_table_creation(creation)
            .and_then(TableMetadataBuilder::build)
            .map_err(error)?
            .metadata;
        let file = MetadataLocation::new_with_metadata(&location, &metadata);
        metadata
            .write_to(&self.inner.file_io, &file)
            .await
            .map_err(error)?;
        let file = file.to_string();
        durable::sync(&location, &file, Vec::new()).await?;
        if !self.inner.heads.insert(&spec.name, &file).await? {
            self.delete(vec![file]).await;
            return Ok(None);
        }
        info!(table = %spec.name, "table made");
        self.load_at(&spec.name, &file).await.map(Some)
    }

    async fn load_at(&self, name: &TableName, location: &str) -> Result<Table, CatalogError> {
        if let Some(table) = self.inner.cache.lock().get(name)
            && table.metadata_location() == Some(location)
        {
            return Ok(table.clone());
        }
        let metadata = TableMetadata::read_from(&self.inner.file_io, location)
            .await
            .map_err(|source| table_error(name, source))?;
        let table = self.table(name, location, metadata)?;
        self.remember(name, &table);
        Ok(table)
    }

    fn table(
        &self,
        name: &TableName,
        location: &str,
        metadata: TableMetadata,
    ) -> Result<Table, CatalogError> {
        let build = |runtime| {
            Table::builder()
                .identifier(name.to_ident())
                .metadata_location(location)
                .metadata(metadata)
                .file_io(self.inner.file_io.clone())
                .cache_size_bytes(TABLE_CACHE_BYTES)
                .runtime(runtime)
                .build()
        };
        Runtime::try_current()
            .and_then(build)
            .map_err(|source| table_error(name, source))
    }

    fn remember(&self, name: &TableName, table: &Table) {
        self.inner.cache.lock().insert(name.clone(), table.clone());
    }

    /// Deletes files that nothing refers to; what cannot be deleted is left to maintenance.
    async fn delete(&self, locations: Vec<String>) {
        for location in locations {
            if let Err(error) = self.inner.file_io.delete(&location).await {
                debug!(location, error = %error, "unreferenced file not deleted");
            }
        }
    }
}

enum Outcome {
    Committed,
    NotCommitted,
    Overtaken,
}

fn apply(
    base: &Table,
    base_location: &str,
    updates: Vec<TableUpdate>,
) -> Result<(TableMetadata, Vec<String>), iceberg::Error> {
    let metadata = base.metadata().clone();
    let mut builder = metadata.into_builder(Some(base_location.to_owned()));
    for update in updates {
        builder = update.apply(builder)?;
    }
    let built = builder.build()?;
    let expired = built.expired_metadata_logs.into_iter();
    let expired = expired.map(|entry| entry.metadata_file).collect();
    Ok((built.metadata, expired))
}

fn next_location(base: &str, metadata: &TableMetadata) -> Result<MetadataLocation, iceberg::Error> {
    let base: MetadataLocation = base.parse()?;
    Ok(base.with_next_version().with_new_metadata(metadata))
}

fn deletes_old_metadata(table: &Table) -> bool {
    let properties = table.metadata().properties();
    properties
        .get("write.metadata.delete-after-commit.enabled")
        .is_some_and(|value| value == "true")
}

fn table_error(table: &TableName, source: iceberg::Error) -> CatalogError {
    CatalogError::Table {
        table: table.clone(),
        source,
    }
}

fn table_name(table: &Table) -> Result<TableName, CommitError> {
    TableName::try_from(table.identifier()).map_err(|error| {
        let name = TableName::new("unknown", "unknown").expect("a constant name is valid");
        CommitError::failed(
            &name,
            CatalogError::Refused {
                table: name.clone(),
                reason: error.to_string(),
            },
        )
    })
}

fn make_directory(path: &Path) -> Result<PathBuf, CatalogError> {
    let error = |source| CatalogError::Path {
        path: path.to_owned(),
        source,
    };
    std::fs::create_dir_all(path).map_err(error)?;
    std::path::absolute(path).map_err(error)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the default of `open_with_clock`; this crate knows no other crate of ours"
)]
fn system_now() -> i64 {
    chrono::Utc::now().timestamp_micros()
}
