//! The catalog database: one row per table, in the layout that the Iceberg SQL catalogs of other
//! engines read and write (`iceberg_tables`).
//!
//! Place on the event's path: the compare-and-swap that makes a commit true. The statements are our
//! own because the catalog crate drops the error of a failed COMMIT and reports success, and because
//! reading all heads at once needs one SELECT.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, SqlitePool};
use tracing::warn;

use super::error::CatalogError;
use crate::name::TableName;

/// How long a statement waits for another process that holds the write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections to the catalog: reads run beside the one writer.
const CONNECTIONS_MAX: u32 = 4;
/// First bytes of every SQLite file.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

const CREATE_TABLES: &str = "
CREATE TABLE IF NOT EXISTS iceberg_tables (
    catalog_name VARCHAR(255) NOT NULL,
    table_namespace VARCHAR(255) NOT NULL,
    table_name VARCHAR(255) NOT NULL,
    metadata_location VARCHAR(1000),
    previous_metadata_location VARCHAR(1000),
    iceberg_type VARCHAR(5),
    PRIMARY KEY (catalog_name, table_namespace, table_name));
CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
    catalog_name VARCHAR(255) NOT NULL,
    namespace VARCHAR(255) NOT NULL,
    property_key VARCHAR(255),
    property_value VARCHAR(1000),
    PRIMARY KEY (catalog_name, namespace, property_key));";

const SELECT_ALL: &str = "
SELECT table_namespace, table_name, metadata_location FROM iceberg_tables
WHERE catalog_name = ?1 AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)
ORDER BY table_namespace, table_name";

const SELECT_ONE: &str = "
SELECT metadata_location FROM iceberg_tables
WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3
  AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)";

const INSERT_NAMESPACE: &str = "
INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value)
VALUES (?1, ?2, 'exists', 'true') ON CONFLICT DO NOTHING";

const INSERT_TABLE: &str = "
INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location, iceberg_type)
VALUES (?1, ?2, ?3, ?4, 'TABLE') ON CONFLICT DO NOTHING";

const SWAP: &str = "
UPDATE iceberg_tables SET metadata_location = ?4, previous_metadata_location = ?5
WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3
  AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)
  AND metadata_location = ?5";

/// What a compare-and-swap found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The head was the expected one and the database reported the new one as committed.
    Won,
    /// The head was another one; nothing changed.
    Lost,
}

/// The heads of all tables of one catalog: the only part of it that changes. What it answers to a
/// swap is a hint, which [`Catalog::commit`](crate::Catalog::commit) checks by reading.
#[async_trait]
pub trait Heads: Send + Sync + 'static {
    /// Returns every table and its metadata location, in the order of the names, from one read.
    async fn all(&self) -> Result<Vec<(TableName, String)>, CatalogError>;

    /// Returns the metadata location of a table.
    async fn get(&self, name: &TableName) -> Result<Option<String>, CatalogError>;

    /// Adds a table. Returns whether its head is `location` now, as read back.
    async fn insert(&self, name: &TableName, location: &str) -> Result<bool, CatalogError>;

    /// Moves the head of a table from `from` to `to` if it is still `from`. An error means that it
    /// is not known whether the head moved; [`Swap::Lost`], that it certainly did not.
    async fn swap(&self, name: &TableName, from: &str, to: &str) -> Result<Swap, CatalogError>;
}

/// The heads in a SQLite file.
pub(crate) struct SqliteHeads {
    pool: SqlitePool,
    catalog: &'static str,
}

impl SqliteHeads {
    /// Opens the database file; makes it, its directory and its tables when they are missing.
    pub(crate) async fn open(path: &Path, catalog: &'static str) -> Result<Self, CatalogError> {
        check_file(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: a commit that was reported survives a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(|error| opening_error(path, error))?;
        sqlx::raw_sql(CREATE_TABLES)
            .execute(&pool)
            .await
            .map_err(|error| opening_error(path, error))?;
        Ok(Self { pool, catalog })
    }

    /// Closes the connections: every later call fails.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    async fn insert_unchecked(&self, name: &TableName, location: &str) -> Result<(), CatalogError> {
        let error = |error| database("add a table", error);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        sqlx::query(INSERT_NAMESPACE)
            .bind(self.catalog)
            .bind(name.namespace())
            .execute(&mut *transaction)
            .await
            .map_err(error)?;
        sqlx::query(INSERT_TABLE)
            .bind(self.catalog)
            .bind(name.namespace())
            .bind(name.name())
            .bind(location)
            .execute(&mut *transaction)
            .await
            .map_err(error)?;
        transaction.commit().await.map_err(error)
    }
}

#[async_trait]
impl Heads for SqliteHeads {
    async fn all(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        let rows = sqlx::query(SELECT_ALL)
            .bind(self.catalog)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| database("list the tables", error))?;
        let mut heads = Vec::with_capacity(rows.len());
        for row in rows {
            let (namespace, name, location): (String, String, Option<String>) =
                (row.get(0), row.get(1), row.get(2));
            match (TableName::new(&namespace, &name), location) {
                (Ok(name), Some(location)) => heads.push((name, location)),
                _ => warn!(namespace, name, "table of another program is left out"),
            }
        }
        Ok(heads)
    }

    async fn get(&self, name: &TableName) -> Result<Option<String>, CatalogError> {
        let head: Option<Option<String>> = sqlx::query_scalar(SELECT_ONE)
            .bind(self.catalog)
            .bind(name.namespace())
            .bind(name.name())
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| database("find a table", error))?;
        Ok(head.flatten())
    }

    async fn insert(&self, name: &TableName, location: &str) -> Result<bool, CatalogError> {
        let added = self.insert_unchecked(name, location).await;
        match self.get(name).await? {
            Some(head) => Ok(head == location),
            None => Err(added.err().unwrap_or_else(|| {
                let lost = sqlx::Error::Protocol("the insert was reported and is not there".into());
                database("add a table", lost)
            })),
        }
    }

    async fn swap(&self, name: &TableName, from: &str, to: &str) -> Result<Swap, CatalogError> {
        let error = |error| database("commit", error);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        let result = sqlx::query(SWAP)
            .bind(self.catalog)
            .bind(name.namespace())
            .bind(name.name())
            .bind(to)
            .bind(from)
            .execute(&mut *transaction)
            .await
            .map_err(error)?;
        if result.rows_affected() == 0 {
            return Ok(Swap::Lost);
        }
        transaction.commit().await.map_err(error)?;
        Ok(Swap::Won)
    }
}

/// Makes the directory, and refuses a file that cannot be read or is something else.
fn check_file(path: &Path) -> Result<(), CatalogError> {
    let error = |path: &Path, source| CatalogError::Path {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent).map_err(|source| error(parent, source))?;
    }
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error(path, source)),
    };
    let mut magic = Vec::with_capacity(SQLITE_MAGIC.len());
    file.by_ref()
        .take(SQLITE_MAGIC.len() as u64)
        .read_to_end(&mut magic)
        .map_err(|source| error(path, source))?;
    if magic.is_empty() || magic == SQLITE_MAGIC {
        return Ok(());
    }
    Err(CatalogError::NotADatabase(path.to_owned()))
}

fn opening_error(path: &Path, error: sqlx::Error) -> CatalogError {
    let code = error.as_database_error().and_then(|error| error.code());
    match code.as_deref() {
        // SQLITE_CORRUPT and SQLITE_NOTADB.
        Some("11" | "26") => CatalogError::NotADatabase(PathBuf::from(path)),
        Some("14") => CatalogError::Path {
            path: path.to_owned(),
            source: std::io::Error::other(
                "the catalog file cannot be opened for writing, or its directory cannot",
            ),
        },
        _ => database("open", error),
    }
}

fn database(action: &'static str, source: sqlx::Error) -> CatalogError {
    CatalogError::Database { action, source }
}
