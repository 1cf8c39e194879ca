//! `core.events` and `core.conversations`: each event once, with the plan in force, and the latest
//! state of each conversation.
//!
//! Place on the path: after `core.company_plans`, before the reports.
//!
//! Promise: one row per (company, message id), the earliest copy; a night that adds nothing commits
//! nothing.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::datatypes::{Date32Type, Field, Schema};
use arrow::record_batch::RecordBatch;
use headwater_tables::{Table, TableName};

use crate::models::CONVERSATION_PARTS;
use crate::night::NightError;
use crate::progress::Progress;
use crate::publish::Publisher;
use crate::session::Session;

mod conversations;
mod events;

pub use events::events_spec;

/// Property of `core.events` and `core.conversations`: the snapshot of `raw.events` they cover.
pub const RAW_SNAPSHOT: &str = "headwater.core.raw-snapshot-id";

/// Takes the new raw events into both tables.
pub(crate) async fn publish(
    publisher: &mut Publisher<'_>,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    match events::publish(publisher, progress).await? {
        Some(taken_in) => conversations::publish(publisher, taken_in, progress).await,
        None => conversations::rebuild_if_behind(publisher, progress).await,
    }
}

/// Registers the view that all models about conversations read.
pub(crate) async fn register_conversation_parts(session: &Session) -> Result<(), NightError> {
    session
        .register_view("conversation_parts", CONVERSATION_PARTS)
        .await
        .map_err(NightError::query("conversation_parts"))
}

/// Returns the snapshot of `raw.events` that a core table covers.
fn covered(table: &Table) -> Option<i64> {
    number(table, RAW_SNAPSHOT)
}

fn number(table: &Table, property: &str) -> Option<i64> {
    table.metadata().properties().get(property)?.parse().ok()
}

async fn days(session: &Session, sql: &str, name: &TableName) -> Result<BTreeSet<i32>, NightError> {
    let rows = session.rows(sql).await.map_err(NightError::query(name))?;
    Ok(dates(&rows))
}

/// Returns the dates of the first column.
pub(crate) fn dates(rows: &[RecordBatch]) -> BTreeSet<i32> {
    rows.iter()
        .filter_map(|batch| batch.column(0).as_primitive_opt::<Date32Type>())
        .flat_map(|column| column.iter().flatten())
        .collect()
}

/// Writes dates as a list of SQL literals.
pub(crate) fn date_list(days: &BTreeSet<i32>) -> String {
    days.iter()
        .filter_map(|day| Date32Type::to_naive_date_opt(*day))
        .map(|date| format!("DATE '{date}'"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Returns the columns with every one nullable: whether a query's column can be null depends on its
/// plan, and a table's must not.
pub(crate) fn nullable(schema: &Schema) -> Schema {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| Field::new(field.name(), field.data_type().clone(), true))
        .collect();
    Schema::new(fields)
}
