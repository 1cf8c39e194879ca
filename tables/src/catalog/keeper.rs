//! Who keeps the heads of the tables, and who writes the metadata that becomes one.
//!
//! Place on the event's path: below every question of [`Catalog`](crate::Catalog). Promise: the two ways
//! differ in how a commit is made and in nothing that is read.

use std::sync::Arc;

use super::error::CatalogError;
use super::heads::Heads;
use super::rest::RestHeads;
use crate::name::TableName;

/// Keeps the heads.
pub(super) enum Keeper {
    /// We write metadata, and a database swaps its location.
    Swaps(Arc<dyn Heads>),
    /// A server writes metadata, from the updates that it is sent.
    Writes(Arc<RestHeads>),
}

impl Keeper {
    /// Returns every table and its metadata location, as of one moment.
    pub(super) async fn all(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        match self {
            Self::Swaps(heads) => heads.all().await,
            Self::Writes(server) => server.all().await,
        }
    }

    /// Returns the metadata location of a table.
    pub(super) async fn get(&self, name: &TableName) -> Result<Option<String>, CatalogError> {
        match self {
            Self::Swaps(heads) => heads.get(name).await,
            Self::Writes(server) => server.get(name).await,
        }
    }

    /// Adds a table. Returns whether its head is `location` now, as read back.
    pub(super) async fn insert(
        &self,
        name: &TableName,
        location: &str,
    ) -> Result<bool, CatalogError> {
        match self {
            Self::Swaps(heads) => heads.insert(name, location).await,
            Self::Writes(server) => server.insert(name, location).await,
        }
    }
}
