//! What can go wrong with the catalog, each in one line that says what to do.
//!
//! Place on the event's path: returned by every call of [`Catalog`](crate::Catalog). Promise: nothing
//! was changed, unless a [`CommitError`] inside says that this is not known.

use std::path::PathBuf;

use super::config::InvalidSetting;
use super::rest::RestError;
use crate::commit::CommitError;
use crate::durable::SyncError;
use crate::name::TableName;
use crate::schema::SchemaError;
use crate::store::StoreError;

/// Why the catalog could not answer. Nothing was changed unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A setting cannot be used. Change it.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// The store of the tables cannot be used. Check its address, the network, the credentials.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog's server cannot be reached at start. Check the address, the server, the password.
    #[error(
        "`{place}` cannot be reached: {source}; check catalog.uri, the server and the password"
    )]
    Unreachable {
        /// Host, port and database.
        place: String,
        /// What went wrong.
        #[source]
        source: sqlx::Error,
    },
    /// The catalog's REST server cannot be used at start. Check the address, the server, the
    /// credentials.
    #[error(
        "`{place}` cannot be used: {source}; check catalog.uri, the server and the credentials"
    )]
    RestUnreachable {
        /// The address.
        place: String,
        /// What went wrong.
        #[source]
        source: Box<CatalogError>,
    },
    /// The REST catalog refused or failed. Retry; then check the server and what is between.
    #[error("the REST catalog failed when it was asked to {action}: {source}")]
    Rest {
        /// What was asked.
        action: &'static str,
        /// What went wrong.
        #[source]
        source: RestError,
    },
    /// The catalog gave no answer in time. Retry; then check the server and the network.
    #[error(
        "the catalog gave no answer within {waited_ms} ms when it was asked to {action}: check the server and the network"
    )]
    Unanswered {
        /// What was asked.
        action: &'static str,
        /// How long it was waited for.
        waited_ms: u128,
    },
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
    /// The catalog database refused or failed. Retry; then check the database and its
    /// disk.
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
        source: Box<iceberg::Error>,
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
