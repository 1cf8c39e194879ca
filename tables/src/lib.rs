//! The contract on Iceberg: every table Headwater writes or reads, the one way to commit to it, and
//! the watermarks that travel in the same commit as the rows.
//!
//! Place on the event's path: the collector stages rows with [`write`](mod@write), moves
//! [`Watermarks`](watermark::Watermarks) and commits through [`Catalog::commit`]; the warehouse
//! replaces tables and days through the same method; Flight SQL reads what [`Catalog::load_all`]
//! pins.
//!
//! Promise: a commit is pinned to the table it was computed from, is durable on the local disk or in
//! the bucket before the catalog points at it, and is read back from the catalog before it is reported
//! (EO-2).

pub mod catalog;
pub mod commit;
pub mod metrics;
pub mod name;
pub mod partitions;
pub mod promoted;
pub mod schema;
pub mod store;
pub mod watermark;
pub mod write;

mod blocking;
mod bounds;
mod durable;
mod evolve;
mod manifests;
mod timestamp;

#[cfg(feature = "query")]
pub mod query;

pub use blocking::blocking;
pub use catalog::{Catalog, CatalogConfig, CatalogError};
pub use commit::{Change, CommitError, Operation};
pub use durable::SyncError;
pub use iceberg::spec::DataFile;
pub use iceberg::table::Table;
pub use name::{InvalidTableName, TableName};
pub use schema::{Partition, SchemaError, TableSpec};
pub use store::{S3Config, Store, StoreError};
