//! The catalog in a SQLite file: no server, one machine.
//!
//! Place on the event's path: opened at start. Promise: a commit that was reported survives a power
//! cut.

use std::io::Read;
use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, Executor, Sqlite};

use super::config::CatalogConfig;
use super::connections::Connections;
use super::error::CatalogError;
use super::heads::{CREATE_TABLES, SqlHeads, database};
use crate::durable;

/// First bytes of every SQLite file.
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Opens the database file; makes it, its directory and its tables when they are missing.
pub(crate) async fn open(
    config: &CatalogConfig,
    path: &Path,
    catalog: &'static str,
) -> Result<SqlHeads<Sqlite>, CatalogError> {
    check_file(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // FULL: a commit that was reported survives a power cut.
        .synchronous(SqliteSynchronous::Full)
        // How long a statement waits for another process that holds the write lock.
        .busy_timeout(config.timeout());
    let connections = Connections::<Sqlite>::new(options, String::new(), config);
    let error = |error| opening_error(path, error);
    let mut first = connections.connect().await.map_err(error)?;
    let made = first.execute(sqlx::raw_sql(CREATE_TABLES)).await;
    made.map_err(error)?;
    first.close().await.map_err(error)?;
    Ok(SqlHeads::new(connections, catalog))
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
        durable::make_directories(parent).map_err(|source| error(parent, source))?;
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
