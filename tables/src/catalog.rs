//! The catalog: which tables exist and where the current metadata of each one is.
//!
//! Place on the event's path: the collector commits through it, the warehouse and Flight SQL pin
//! tables with it. Promise: [`Catalog::load_all`] is one consistent set, and
//! [`Catalog::commit`] never builds on anything but the base it was given.

mod config;
mod connections;
mod error;
mod heads;
mod keeper;
mod metadata_file;
mod outcome;
mod postgres;
mod rest;
mod sqlite;
mod swap;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use config::Kind;
pub use config::{CatalogConfig, InvalidSetting};
pub use error::CatalogError;
pub use heads::{Heads, Swap};
use iceberg::io::FileIO;
use iceberg::spec::{TableMetadata, TableMetadataBuilder};
use iceberg::table::Table;
use iceberg::{MetadataLocation, Runtime, TableCreation};
use keeper::Keeper;
pub use metadata_file::METADATA_GZIP_LEVEL;
use parking_lot::Mutex;
pub use rest::{RestConfig, RestError};
use tracing::{debug, info};

use crate::commit::CommitError;
use crate::durable;
use crate::evolve;
use crate::name::TableName;
use crate::schema::TableSpec;
use crate::store::{self, Store};

/// The catalog's name in `iceberg_tables`; other engines open it under this name.
pub const CATALOG_NAME: &str = "headwater";

/// Times that [`Catalog::ensure`] starts again when another process changes the table meanwhile.
const ENSURE_ATTEMPTS: usize = 10;
/// Manifest cache of one loaded table.
const TABLE_CACHE_BYTES: u64 = 8 << 20;

/// Tells the wall-clock time in microseconds since the Unix epoch.
pub type Now = Arc<dyn Fn() -> i64 + Send + Sync>;

/// What a catalog is made of.
pub struct Parts {
    /// Where each table's metadata is.
    pub heads: Arc<dyn Heads>,
    /// Location below which tables are made, without a slash at its end.
    pub warehouse: String,
    /// The store of metadata and data.
    pub file_io: FileIO,
    /// The clock that stamps snapshots.
    pub now: Now,
}

/// The catalog of all tables. Cheap to clone; clones share connections and the metadata cache.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
    /// What query sessions read through; `None` for the local disk.
    store: Option<Store>,
}

struct Inner {
    keeper: Keeper,
    /// Where tables are made: `file://` and the absolute path of the warehouse directory, or
    /// `s3://BUCKET/PREFIX`.
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
    /// Opens the catalog with the system's clock; makes the database and directories when
    /// missing.
    pub async fn open(config: &CatalogConfig) -> Result<Self, CatalogError> {
        Self::open_with_clock(config, Arc::new(system_now)).await
    }

    /// Opens the catalog with a clock, which stamps snapshots.
    pub async fn open_with_clock(config: &CatalogConfig, now: Now) -> Result<Self, CatalogError> {
        config.validate()?;
        let opened = store::open(&config.warehouse, &config.s3).await?;
        let keeper = match config.kind()? {
            Kind::Sqlite(path) => {
                let heads = sqlite::open(config, Path::new(path), CATALOG_NAME).await?;
                Keeper::Swaps(Arc::new(heads))
            }
            Kind::Postgres => Keeper::Swaps(Arc::new(postgres::open(config, CATALOG_NAME).await?)),
            Kind::Rest(address) => Keeper::Writes(Arc::new(rest::open(config, address).await?)),
        };
        let mut catalog = Self::kept_by(keeper, opened.warehouse, opened.file_io, now);
        catalog.store = opened.store;
        Ok(catalog)
    }

    /// Puts a catalog together from its parts.
    pub fn assemble(parts: Parts) -> Self {
        let Parts {
            heads,
            warehouse,
            file_io,
            now,
        } = parts;
        Self::kept_by(Keeper::Swaps(heads), warehouse, file_io, now)
    }

    fn kept_by(keeper: Keeper, warehouse: String, file_io: FileIO, now: Now) -> Self {
        let inner = Inner {
            keeper,
            warehouse,
            file_io,
            now,
            cache: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
            store: None,
        }
    }

    /// Lets query sessions read through this store, the one that [`Parts::file_io`] came from.
    #[must_use]
    pub fn with_store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// Returns the store of the tables, `None` for the local disk.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Returns every table with its metadata location, as of one moment: a consistent set.
    pub async fn heads(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        self.inner.keeper.all().await
    }

    /// Loads the current head of a table.
    pub async fn load(&self, name: &TableName) -> Result<Table, CatalogError> {
        self.load_if_exists(name)
            .await?
            .ok_or_else(|| CatalogError::NoSuchTable(name.clone()))
    }

    /// Loads the current head of a table, `None` when there is no such table.
    pub async fn load_if_exists(&self, name: &TableName) -> Result<Option<Table>, CatalogError> {
        let Some(location) = self.inner.keeper.get(name).await? else {
            return Ok(None);
        };
        match self.load_at(name, &location).await {
            Ok(table) => Ok(Some(table)),
            // Old metadata files are deleted: a slow reader may have to look again, once.
            Err(error) => match self.inner.keeper.get(name).await? {
                Some(newer) if newer != location => self.load_at(name, &newer).await.map(Some),
                _ => Err(error),
            },
        }
    }

    /// Loads every table as of one moment of the catalog: a consistent set.
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
            match self.evolve(&table, updates).await {
                Ok(table) => return Ok(table),
                // What is not known is seen by comparing again.
                Err(error @ (CommitError::Conflict { .. } | CommitError::Unknown { .. })) => {
                    conflict = Some(error);
                }
                Err(error) => return Err(CatalogError::Commit(Box::new(error))),
            }
        }
        Err(CatalogError::Commit(Box::new(conflict.unwrap_or_else(
            || CommitError::Conflict {
                table: spec.name.clone(),
            },
        ))))
    }

    /// Makes the table; `None` when another process made it first.
    async fn create(&self, spec: &TableSpec) -> Result<Option<Table>, CatalogError> {
        let error = |source| table_error(&spec.name, source);
        let namespace = format!("{}/{}", self.inner.warehouse, spec.name.namespace());
        let location = format!("{namespace}/{}", spec.name.name());
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
        let metadata = metadata_file::write(&self.inner.file_io, metadata, &file).await;
        metadata.map_err(error)?;
        let file = file.to_string();
        // The namespace may be as new as the table, and its entry is in the warehouse.
        durable::sync(&namespace, &file, Vec::new()).await?;
        if !self.inner.keeper.insert(&spec.name, &file).await? {
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

fn table_error(table: &TableName, source: iceberg::Error) -> CatalogError {
    CatalogError::Table {
        table: table.clone(),
        source: Box::new(source),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the default of `open_with_clock`, and what the iceberg crate stamps by; this crate does not know `headwater-service`, which has the clock"
)]
fn system_now() -> i64 {
    chrono::Utc::now().timestamp_micros()
}
