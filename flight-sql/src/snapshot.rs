//! The one set of table snapshots that a query reads.
//!
//! Place on the event's path: between the catalog and a statement. Promise: all tables are
//! pinned at once, in one read of the catalog, before a statement is planned; planning, every
//! reference in the statement and every fetch of its result use that set.

use std::collections::BTreeMap;

use datafusion::prelude::SessionContext;
use headwater_tables::Catalog;
use headwater_tables::query::{Pins, SessionOptions};

use crate::config::LimitsConfig;
use crate::error::StatementError;

/// Name of the only catalog.
pub(crate) const CATALOG: &str = "headwater";
/// Schema of table names that name none.
pub(crate) const DEFAULT_SCHEMA: &str = "public";

/// A pinned set of tables, ready for one query.
#[derive(Clone)]
pub(crate) struct Snapshot {
    /// Plans and runs over the pinned tables alone, within the memory of one query.
    pub(crate) context: SessionContext,
    /// Snapshot id of each table, as a JSON object.
    pub(crate) described: String,
}

impl Snapshot {
    /// Pins the present state of all tables. `schema` is the default schema of the session.
    pub(crate) async fn take(
        catalog: &Catalog,
        limits: &LimitsConfig,
        schema: &str,
    ) -> Result<Self, StatementError> {
        let pins = Pins::take(catalog)
            .await
            .map_err(|error| StatementError::Catalog(error.to_string()))?;
        let context = headwater_tables::query::session(&pins, &options(limits))
            .map_err(|error| StatementError::Catalog(error.to_string()))?;
        let state = context.state_ref();
        schema.clone_into(
            &mut state
                .write()
                .config_mut()
                .options_mut()
                .catalog
                .default_schema,
        );
        Ok(Self {
            context,
            described: describe(&pins),
        })
    }
}

fn options(limits: &LimitsConfig) -> SessionOptions {
    SessionOptions {
        memory_bytes_max: limits.query_memory_bytes,
        spill_directory: limits.spill_directory.clone(),
        spill_bytes_max: limits.query_spill_bytes,
        ..SessionOptions::default()
    }
}

fn describe(pins: &Pins) -> String {
    let snapshots: BTreeMap<String, Option<i64>> = pins
        .snapshots()
        .into_iter()
        .map(|(table, snapshot)| (table.to_string(), snapshot))
        .collect();
    serde_json::json!({ "snapshots": snapshots }).to_string()
}
