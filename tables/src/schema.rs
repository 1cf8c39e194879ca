//! Schemas.

use std::sync::LazyLock;

use iceberg::spec::Schema;

use crate::name::TableName;

/// How a table is partitioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partition {
    /// Not at all.
    None,
    /// By UTC day of this timestamptz column.
    Day(String),
    /// By the value of this column, such as a date.
    Identity(String),
}

/// What a table must look like.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// The table's name.
    pub name: TableName,
    /// Columns.
    pub schema: Schema,
    /// Partitioning.
    pub partition: Partition,
    /// Columns the files are sorted by, ascending, nulls first.
    pub sort: Vec<String>,
    /// Table properties, besides the ones every table has.
    pub properties: Vec<(String, String)>,
}

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Iceberg v2 has no such type.
    #[error("column `{column}` has type `{data_type}`, which an Iceberg v2 table cannot hold")]
    UnsupportedType {
        /// The column.
        column: String,
        /// Its Arrow type.
        data_type: String,
    },
    /// A partition or sort column is missing.
    #[error("`{table}` has no column `{column}` to partition or sort by")]
    NoSuchColumn {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
    },
    /// The iceberg crate refuses the schema.
    #[error(transparent)]
    Iceberg(#[from] iceberg::Error),
}

fn name(namespace: &str, name: &str) -> TableName {
    TableName::new(namespace, name).expect("constant names are valid")
}

/// `raw.events`: every accepted event, append-only.
pub static RAW_EVENTS: LazyLock<TableName> = LazyLock::new(|| name("raw", "events"));
/// `raw.quarantine`: every event that could not be accepted.
pub static RAW_QUARANTINE: LazyLock<TableName> = LazyLock::new(|| name("raw", "quarantine"));
/// `core.events`: one row per (company, message id).
pub static CORE_EVENTS: LazyLock<TableName> = LazyLock::new(|| name("core", "events"));

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl TableSpec {
    /// Makes a spec from an Arrow schema.
    pub fn from_arrow(
        name: TableName,
        schema: &arrow::datatypes::Schema,
        partition: Partition,
    ) -> Result<Self, SchemaError> {
        todo!()
    }
}

/// The spec of `raw.events`.
#[expect(clippy::todo, reason = "skeleton")]
pub fn raw_events() -> TableSpec {
    todo!()
}

/// The spec of `raw.quarantine`.
#[expect(clippy::todo, reason = "skeleton")]
pub fn raw_quarantine() -> TableSpec {
    todo!()
}
