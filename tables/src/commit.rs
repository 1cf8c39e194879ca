//! Commits.

use std::collections::{BTreeMap, HashSet};

use iceberg::spec::DataFile;

use crate::catalog::CatalogError;
use crate::name::TableName;

/// What a commit does to the table, as the snapshot's `operation` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Operation {
    /// Adds rows. Removes nothing.
    #[default]
    Append,
    /// Adds and removes rows: the answer changes.
    Overwrite,
    /// Rewrites files: the answer stays the same.
    Replace,
}

/// What one commit changes.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// What the change means.
    pub operation: Operation,
    /// Files to add.
    pub add: Vec<DataFile>,
    /// Paths of live files to remove.
    pub remove: HashSet<String>,
    /// Table properties to set in the same commit.
    pub properties: BTreeMap<String, String>,
    /// Entries for the snapshot's summary.
    pub summary: BTreeMap<String, String>,
}

/// Why a commit was not made, or is not known to be made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another commit came first; nothing was committed. Reload, validate again, commit again.
    #[error("another commit to `{table}` came first")]
    Conflict {
        /// The table.
        table: TableName,
    },
    /// It is not known whether the commit happened. Reload the table and look for `commit_id` in the
    /// snapshot summaries, or for the watermark. Delete no data file.
    #[error("the outcome of commit `{commit_id}` to `{table}` is unknown")]
    Unknown {
        /// The table.
        table: TableName,
        /// The value of `headwater.commit-id` in the snapshot summary, if it happened.
        commit_id: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing was committed.
    #[error("nothing was committed to `{table}`")]
    Failed {
        /// The table.
        table: TableName,
        /// Why.
        #[source]
        source: CatalogError,
    },
}
