//! The heads of all tables, and the SQL that keeps them: one row per table, in the layout that the
//! Iceberg SQL catalogs of other engines read and write (`iceberg_tables`).
//!
//! Place on the event's path: the compare-and-swap that makes a commit true. The statements are our
//! own because the catalog crate drops the error of a failed COMMIT and reports success, and because
//! reading all heads at once needs one SELECT. Promise: every question is answered within a bound, by
//! the same statements in SQLite and PostgreSQL.

use async_trait::async_trait;
use sqlx::{ColumnIndex, Connection, Database, Decode, Encode, Executor, IntoArguments, Row, Type};
use tracing::warn;

use super::connections::Connections;
use super::error::CatalogError;
use crate::name::TableName;

pub(super) const CREATE_TABLES: &str = "
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
WHERE catalog_name = $1 AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)
ORDER BY table_namespace, table_name";

const SELECT_ONE: &str = "
SELECT metadata_location FROM iceberg_tables
WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3
  AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)";

const INSERT_NAMESPACE: &str = "
INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value)
VALUES ($1, $2, 'exists', 'true') ON CONFLICT DO NOTHING";

const INSERT_TABLE: &str = "
INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location, iceberg_type)
VALUES ($1, $2, $3, $4, 'TABLE') ON CONFLICT DO NOTHING";

const SWAP: &str = "
UPDATE iceberg_tables SET metadata_location = $4, previous_metadata_location = $5
WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3
  AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)
  AND metadata_location = $5
RETURNING table_name";

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

/// The heads in a SQL database.
pub(crate) struct SqlHeads<DB: Database> {
    connections: Connections<DB>,
    catalog: &'static str,
}

impl<DB: Database> SqlHeads<DB> {
    /// Uses a database that has the tables.
    pub(super) fn new(connections: Connections<DB>, catalog: &'static str) -> Self {
        Self {
            connections,
            catalog,
        }
    }
}

#[cfg(test)]
impl SqlHeads<sqlx::Sqlite> {
    /// Lets every later question fail.
    pub(crate) fn close(&self) {
        self.connections.close();
    }
}

async fn insert_unchecked<DB>(
    connection: &mut DB::Connection,
    catalog: &str,
    name: &TableName,
    location: &str,
) -> Result<(), sqlx::Error>
where
    DB: Database,
    for<'q> DB::Arguments<'q>: IntoArguments<'q, DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    for<'q> &'q str: Encode<'q, DB> + Type<DB>,
{
    let mut transaction = connection.begin().await?;
    sqlx::query(INSERT_NAMESPACE)
        .bind(catalog)
        .bind(name.namespace())
        .execute(&mut *transaction)
        .await?;
    sqlx::query(INSERT_TABLE)
        .bind(catalog)
        .bind(name.namespace())
        .bind(name.name())
        .bind(location)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

async fn swap<DB>(
    connection: &mut DB::Connection,
    catalog: &str,
    name: &TableName,
    from: &str,
    to: &str,
) -> Result<Swap, sqlx::Error>
where
    DB: Database,
    for<'q> DB::Arguments<'q>: IntoArguments<'q, DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    for<'q> &'q str: Encode<'q, DB> + Type<DB>,
{
    let mut transaction = connection.begin().await?;
    let swapped = sqlx::query(SWAP)
        .bind(catalog)
        .bind(name.namespace())
        .bind(name.name())
        .bind(to)
        .bind(from)
        .fetch_all(&mut *transaction)
        .await?;
    if swapped.is_empty() {
        transaction.rollback().await?;
        return Ok(Swap::Lost);
    }
    transaction.commit().await?;
    Ok(Swap::Won)
}

#[async_trait]
impl<DB> Heads for SqlHeads<DB>
where
    DB: Database,
    for<'q> DB::Arguments<'q>: IntoArguments<'q, DB>,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    for<'q> &'q str: Encode<'q, DB> + Type<DB>,
    String: for<'r> Decode<'r, DB> + Type<DB>,
    usize: ColumnIndex<DB::Row>,
{
    async fn all(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        const ACTION: &str = "list the tables";
        let mut lent = self.connections.lend(ACTION).await?;
        let rows = sqlx::query(SELECT_ALL)
            .bind(self.catalog)
            .fetch_all(lent.connection());
        let rows = self.connections.answer(ACTION, rows).await;
        self.connections.give_back(lent, &rows);
        let mut heads = Vec::new();
        for row in rows? {
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
        const ACTION: &str = "find a table";
        let mut lent = self.connections.lend(ACTION).await?;
        let row = sqlx::query(SELECT_ONE)
            .bind(self.catalog)
            .bind(name.namespace())
            .bind(name.name())
            .fetch_optional(lent.connection());
        let row = self.connections.answer(ACTION, row).await;
        self.connections.give_back(lent, &row);
        Ok(row?.and_then(|row| row.get(0)))
    }

    async fn insert(&self, name: &TableName, location: &str) -> Result<bool, CatalogError> {
        const ACTION: &str = "add a table";
        let mut lent = self.connections.lend(ACTION).await?;
        let added = insert_unchecked(lent.connection(), self.catalog, name, location);
        let added = self.connections.answer(ACTION, added).await;
        self.connections.give_back(lent, &added);
        match self.get(name).await? {
            Some(head) => Ok(head == location),
            None => Err(added.err().unwrap_or_else(|| {
                let lost = sqlx::Error::Protocol("the insert was reported and is not there".into());
                database(ACTION, lost)
            })),
        }
    }

    async fn swap(&self, name: &TableName, from: &str, to: &str) -> Result<Swap, CatalogError> {
        const ACTION: &str = "commit";
        let mut lent = self.connections.lend(ACTION).await?;
        let swapped = swap(lent.connection(), self.catalog, name, from, to);
        let swapped = self.connections.answer(ACTION, swapped).await;
        self.connections.give_back(lent, &swapped);
        swapped
    }
}

pub(super) fn database(action: &'static str, source: sqlx::Error) -> CatalogError {
    CatalogError::Database { action, source }
}
