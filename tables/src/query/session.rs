//! Query sessions over one consistent set of tables.
//!
//! Place on the event's path: the warehouse opens a session for a night, Flight SQL one for a query.
//! Promise: all tables of a session come from one read of the catalog; its catalog takes no
//! new tables; memory and spill space are bounded.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::Result as DataFusionResult;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::cache::DefaultFilesMetadataCache;
use datafusion::execution::cache::cache_manager::{CacheManagerConfig, FileMetadataCache};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use iceberg::table::Table;
use serde::Deserialize;

use super::{IcebergProvider, QueryError};
use super::{events, functions};
use crate::catalog::{Catalog, CatalogError};
use crate::name::TableName;
use crate::store::Store;

/// The name of the catalog in SQL.
const CATALOG: &str = "headwater";
/// The schema that unqualified names mean.
const DEFAULT_SCHEMA: &str = "public";
/// Schemas that exist even while they are empty, so that clients can browse them.
const SCHEMAS: [&str; 5] = ["raw", "ops", "core", "reports", "system"];
/// How many consumers an out-of-memory error names.
const CONSUMERS_NAMED: NonZeroUsize = NonZeroUsize::new(5).expect("5 is not zero");
/// Memory for Parquet footers, for the whole process. 256 MiB hold a few thousand footers of a table
/// as wide as `raw.events`; fewer cost one more read per file and scan.
const FOOTER_CACHE_BYTES_MAX: usize = 256 << 20;

/// Parquet footers by path. Sessions live for one query, so the memory is not theirs.
static FOOTERS: LazyLock<Arc<dyn FileMetadataCache>> =
    LazyLock::new(|| Arc::new(DefaultFilesMetadataCache::new(FOOTER_CACHE_BYTES_MAX)));

/// One consistent set of tables: what a session reads, whatever is committed meanwhile.
#[derive(Debug, Clone)]
pub struct Pins {
    tables: BTreeMap<TableName, Table>,
    /// Where their files are, unless on the local disk.
    store: Option<Store>,
}

impl Pins {
    /// Pins every table of the catalog at its current snapshot, in one consistent read.
    ///
    /// # Errors
    /// [`CatalogError`] when the catalog or a table's metadata cannot be read.
    pub async fn take(catalog: &Catalog) -> Result<Self, CatalogError> {
        Ok(Self {
            tables: catalog.load_all().await?,
            store: catalog.store().cloned(),
        })
    }

    /// Pins these tables, whose files are on the local disk unless [`Pins::in_store`] says otherwise.
    pub fn of(tables: BTreeMap<TableName, Table>) -> Self {
        Self {
            tables,
            store: None,
        }
    }

    /// Says where the files of the tables are.
    #[must_use]
    pub fn in_store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// Returns the pinned tables.
    pub fn tables(&self) -> &BTreeMap<TableName, Table> {
        &self.tables
    }

    /// Returns one pinned table.
    pub fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.get(name)
    }

    /// Returns the snapshot each table is pinned at, `None` for one that never had rows: what a run or
    /// a query records of its inputs.
    pub fn snapshots(&self) -> BTreeMap<TableName, Option<i64>> {
        self.tables
            .iter()
            .map(|(name, table)| (name.clone(), table.metadata().current_snapshot_id()))
            .collect()
    }

    /// Puts a table in place of the one with this name, or adds it.
    #[must_use]
    pub fn with_table(mut self, name: TableName, table: Table) -> Self {
        self.tables.insert(name, table);
        self
    }
}

/// How much of the machine a session may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionOptions {
    /// Cores that one query may use. Default: all of the machine. Fewer leave room for others; more
    /// only cost memory.
    pub target_partitions: usize,
    /// Rows per batch. Default 8192, DataFusion's own. Smaller batches cost time per batch, larger ones
    /// fall out of the processor's caches.
    pub batch_rows: usize,
    /// Memory that sorts, joins and aggregates of the session may hold together, in bytes. Default
    /// 1 GiB. Below it they spill or fail with the names of the largest consumers; Parquet decoding is
    /// not counted, so the machine needs more than this.
    pub memory_bytes_max: usize,
    /// Directory for spilled data. Default: the system's temporary directory. Put it on a disk with
    /// room for `spill_bytes_max`.
    pub spill_directory: Option<PathBuf>,
    /// Space that spilled data may take, in bytes. Default 10 GiB; 0 forbids spilling. A query that
    /// needs more fails.
    pub spill_bytes_max: u64,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            target_partitions: std::thread::available_parallelism().map_or(1, usize::from),
            batch_rows: 8192,
            memory_bytes_max: 1 << 30,
            spill_directory: None,
            spill_bytes_max: 10 << 30,
        }
    }
}

/// Opens a session on pinned tables: catalog `headwater`, a schema per namespace, and the view
/// `public.events`.
///
/// # Errors
/// [`QueryError`] when a table's schema or the events view cannot be planned.
pub fn session(pins: &Pins, options: &SessionOptions) -> Result<SessionContext, QueryError> {
    let runtime = runtime(options)?;
    let config = reading(config(options), &runtime, pins.store.as_ref())?;
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(Arc::new(runtime))
        .with_default_features()
        .build();
    let mut context = SessionContext::new_with_state(state);
    // `properties ->> 'key'` and its kin: what is not a column of its own is asked for in the JSON.
    datafusion_functions_json::register_all(&mut context)?;
    for function in functions::all() {
        context.register_udf(function);
    }
    context.register_catalog(CATALOG, Arc::new(catalog(pins)?));
    Ok(context)
}

/// Lets a session of `runtime` read tables of this store; `None` is the local disk. The session is made
/// with the settings that are returned.
///
/// # Errors
/// When the store's root is no address.
pub fn reading(
    config: SessionConfig,
    runtime: &RuntimeEnv,
    store: Option<&Store>,
) -> DataFusionResult<SessionConfig> {
    let Some(store) = store else {
        return Ok(config);
    };
    let url = ObjectStoreUrl::parse(store.root())?;
    runtime.register_object_store(url.as_ref(), store.object_store());
    Ok(config.with_extension(Arc::new(store.clone())))
}

fn config(options: &SessionOptions) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(options.target_partitions.max(1))
        .with_batch_size(options.batch_rows.max(1))
        .with_information_schema(true)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, DEFAULT_SCHEMA);
    let all = config.options_mut();
    all.execution.time_zone = Some("UTC".to_owned());
    // String views reach clients as a type that JDBC and ADBC drivers do not know.
    all.execution.parquet.schema_force_view_types = false;
    all.sql_parser.map_string_types_to_utf8view = false;
    config
}

fn runtime(options: &SessionOptions) -> DataFusionResult<RuntimeEnv> {
    let pool = FairSpillPool::new(options.memory_bytes_max);
    let mode = match (&options.spill_directory, options.spill_bytes_max) {
        (_, 0) => DiskManagerMode::Disabled,
        (Some(directory), _) => DiskManagerMode::Directories(vec![directory.clone()]),
        (None, _) => DiskManagerMode::OsTmpDirectory,
    };
    let disk = DiskManagerBuilder::default()
        .with_mode(mode)
        .with_max_temp_directory_size(options.spill_bytes_max);
    let caches = CacheManagerConfig::default()
        .with_file_metadata_cache(Some(Arc::clone(&FOOTERS)))
        .with_metadata_cache_limit(FOOTER_CACHE_BYTES_MAX);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(TrackConsumersPool::new(pool, CONSUMERS_NAMED)))
        .with_disk_manager_builder(disk)
        .with_cache_manager(caches)
        .build()
}

fn catalog(pins: &Pins) -> Result<PinnedCatalog, QueryError> {
    let mut schemas: BTreeMap<String, PinnedSchema> = SCHEMAS
        .iter()
        .map(|name| ((*name).to_owned(), PinnedSchema::default()))
        .collect();
    for (name, table) in &pins.tables {
        let provider = IcebergProvider::new(table.clone())?;
        schemas
            .entry(name.namespace().to_owned())
            .or_default()
            .tables
            .insert(name.name().to_owned(), Arc::new(provider));
    }
    let view = events::view(pins)?;
    schemas
        .entry(DEFAULT_SCHEMA.to_owned())
        .or_default()
        .tables
        .insert("events".to_owned(), view);
    let schemas = schemas
        .into_iter()
        .map(|(name, schema)| (name, Arc::new(schema)))
        .collect();
    Ok(PinnedCatalog { schemas })
}

/// A catalog that never changes.
#[derive(Debug)]
pub(super) struct PinnedCatalog {
    pub(super) schemas: BTreeMap<String, Arc<PinnedSchema>>,
}

/// A schema that never changes: registering and dropping tables keep their refusing defaults.
#[derive(Debug, Default)]
pub(super) struct PinnedSchema {
    pub(super) tables: BTreeMap<String, Arc<dyn TableProvider>>,
}

impl CatalogProvider for PinnedCatalog {
    fn schema_names(&self) -> Vec<String> {
        self.schemas.keys().cloned().collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let schema = self.schemas.get(name)?;
        Some(Arc::<PinnedSchema>::clone(schema))
    }
}

#[async_trait]
impl SchemaProvider for PinnedSchema {
    fn table_names(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        Ok(self.tables.get(name).cloned())
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }
}
