//! The sample operational database: what the forty companies' own application knows.
//!
//! Written from the same world as the events, with the schema that the nightly batch reads, into
//! SQLite or PostgreSQL. All rows are written in one transaction or none are.

mod billing;
mod rows;
mod sql;

use sqlx::any::{AnyConnectOptions, install_default_drivers};
use sqlx::{AnyConnection, ConnectOptions, Connection, Executor, Row};

use crate::desk::Desk;
pub use sql::{Cell, Table};

/// Tables and their columns, on PostgreSQL and SQLite alike.
const SCHEMA: &str = include_str!("../../../../warehouse/schema/operational.sql");

/// Why the sample database cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The URI is of no known kind.
    #[error(
        "`{0}` is neither `sqlite:///FILE` nor `postgres://USER:PASSWORD@HOST/DATABASE`; give one of them to --uri"
    )]
    Uri(String),
    /// The database does not answer or refuses.
    #[error("cannot open the database: {0}; check that it runs and that the URI is right")]
    Open(#[source] sqlx::Error),
    /// There are companies in it already.
    #[error("the database already has {0} companies; give an empty one")]
    NotEmpty(i64),
    /// A statement failed; nothing was written.
    #[error("cannot write table `{table}`: {source}")]
    Table {
        /// The table.
        table: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
}

/// Returns every table of the sample database with its rows.
pub fn tables(desk: &Desk) -> Vec<Table> {
    let mut tables = rows::customers(desk);
    tables.extend(billing::tables(desk));
    tables
}

/// Writes the sample database to `uri` and returns how many rows it has.
///
/// # Errors
/// See [`WriteError`]; after each of them the database is as before.
pub async fn write(uri: &str, desk: &Desk) -> Result<usize, WriteError> {
    let mut connection = open(uri).await?;
    refuse_filled(&mut connection).await?;
    let failed = |table| move |source| WriteError::Table { table, source };
    let mut transaction = connection.begin().await.map_err(failed("(begin)"))?;
    for statement in sql::statements(SCHEMA) {
        transaction
            .execute(statement.as_str())
            .await
            .map_err(failed("(schema)"))?;
    }
    let mut rows = 0;
    for table in tables(desk) {
        rows += table.rows.len();
        for statement in table.inserts() {
            transaction
                .execute(statement.as_str())
                .await
                .map_err(failed(table.name))?;
        }
    }
    transaction.commit().await.map_err(failed("(commit)"))?;
    connection.close().await.map_err(failed("(close)"))?;
    Ok(rows)
}

async fn open(uri: &str) -> Result<AnyConnection, WriteError> {
    install_default_drivers();
    let is_sqlite = uri.starts_with("sqlite:");
    if !is_sqlite && !uri.starts_with("postgres:") && !uri.starts_with("postgresql:") {
        return Err(WriteError::Uri(uri.to_owned()));
    }
    let mut address = uri.to_owned();
    if is_sqlite && !uri.contains('?') {
        address.push_str("?mode=rwc");
    }
    let options: AnyConnectOptions = address
        .parse()
        .map_err(|_| WriteError::Uri(uri.to_owned()))?;
    options
        .disable_statement_logging()
        .connect()
        .await
        .map_err(WriteError::Open)
}

/// Refuses a database with companies in it; one without the table is empty.
async fn refuse_filled(connection: &mut AnyConnection) -> Result<(), WriteError> {
    let counted = connection
        .fetch_one("SELECT CAST(count(*) AS BIGINT) FROM companies")
        .await;
    match counted.and_then(|row| row.try_get::<i64, _>(0)) {
        Ok(companies) => Err(WriteError::NotEmpty(companies)),
        Err(sqlx::Error::Database(_)) => Ok(()),
        Err(error) => Err(WriteError::Open(error)),
    }
}
