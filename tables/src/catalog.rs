//! The catalog.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use iceberg::table::Table;
use serde::Deserialize;

use crate::commit::{Change, CommitError};
use crate::name::TableName;
use crate::schema::TableSpec;

/// Where the catalog and the tables are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogConfig {
    /// The catalog database, `sqlite://PATH`.
    pub uri: String,
    /// The directory of table data and metadata.
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

/// Why the catalog could not answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The catalog has no such table.
    #[error("the catalog has no table `{0}`")]
    NoSuchTable(TableName),
}

/// The catalog. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog(#[expect(dead_code)] Arc<()>);

#[expect(
    clippy::todo,
    clippy::unused_async,
    unused_variables,
    reason = "skeleton"
)]
impl Catalog {
    /// Opens the catalog.
    pub async fn open(config: &CatalogConfig) -> Result<Self, CatalogError> {
        todo!()
    }
    /// Loads the current head of a table.
    pub async fn load(&self, name: &TableName) -> Result<Table, CatalogError> {
        todo!()
    }
    /// Loads the current head of a table, `None` when there is no such table.
    pub async fn load_if_exists(&self, name: &TableName) -> Result<Option<Table>, CatalogError> {
        todo!()
    }
    /// Returns every table with its metadata location, in one consistent read.
    pub async fn heads(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        todo!()
    }
    /// Loads every table, in one consistent read.
    pub async fn load_all(&self) -> Result<BTreeMap<TableName, Table>, CatalogError> {
        todo!()
    }
    /// Creates the table or adds its missing nullable columns.
    pub async fn ensure(&self, spec: &TableSpec) -> Result<Table, CatalogError> {
        todo!()
    }
    /// Commits a change on top of `base`.
    pub async fn commit(&self, base: &Table, change: Change) -> Result<Table, CommitError> {
        todo!()
    }
}
