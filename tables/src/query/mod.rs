//! SQL over the tables (feature `query`): the DataFusion table provider and pinned query sessions.
//!
//! Place on the event's path: the read side. The warehouse and Flight SQL take [`Pins`], open a
//! [`session`] on them and run SQL; [`IcebergProvider`] turns one pinned table into DataFusion's own
//! Parquet scan.
//!
//! ```text
//! Catalog ── Pins::take ──► Pins ── session ──► SessionContext
//!                                                 │ headwater.raw.events …  → IcebergProvider
//!                                                 │ headwater.public.events → view over raw and core
//!            manifest list ─► manifests ─► data files ─► DataSourceExec(ParquetSource)
//!            (pruned by       (pruned by   (groups and byte ranges, one group per core,
//!             partition)       bounds)      row groups and pages pruned while reading)
//! ```
//!
//! Promise: every table of a session is read at the snapshot its [`Pins`] hold, however often it is
//! mentioned and whatever is committed meanwhile (Q-1); pruning never changes an answer; nothing in a
//! session's catalog can be written to (Q-2).

mod bounds;
mod events;
pub mod functions;
mod manifests;
pub mod metrics;
mod provider;
mod scan;
mod schema;
mod session;

pub use provider::IcebergProvider;
pub use session::{Pins, SessionOptions, reading, session};

/// Why a table cannot be read or a session cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The snapshot has row-level deletes, which the scan would ignore. Compact the table with the
    /// engine that wrote them.
    #[error(
        "table `{table}` has delete files in snapshot {snapshot_id}, which Headwater does not read; rewrite the table without them"
    )]
    DeleteFiles {
        /// The table.
        table: String,
        /// The pinned snapshot.
        snapshot_id: i64,
    },
    /// A data file is not Parquet.
    #[error("data file `{path}` of table `{table}` is `{format}`; only Parquet is read")]
    NotParquet {
        /// The table.
        table: String,
        /// The file.
        path: String,
        /// Its format.
        format: String,
    },
    /// The snapshot is not in the table's metadata any more. Use a newer one.
    #[error("table `{table}` has no snapshot {snapshot_id}; it may have expired")]
    NoSuchSnapshot {
        /// The table.
        table: String,
        /// The snapshot asked for.
        snapshot_id: i64,
    },
    /// A file path is of a form that cannot be turned into a store and a path in it.
    #[error("cannot read `{path}`: {reason}; use a local path, file:// or scheme://bucket/key")]
    Location {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Metadata, a manifest list or a manifest could not be read.
    #[error("cannot read the metadata of table `{table}`: {source}")]
    Metadata {
        /// The table.
        table: String,
        /// What the iceberg crate said.
        #[source]
        source: Box<iceberg::Error>,
    },
    /// DataFusion refused the session's settings or its views.
    #[error("cannot open a query session: {0}")]
    Session(#[from] datafusion::error::DataFusionError),
}

impl From<QueryError> for datafusion::error::DataFusionError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Session(inner) => inner,
            other => Self::External(Box::new(other)),
        }
    }
}
