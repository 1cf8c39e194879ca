//! The view `public.events`: every event once, as fresh as the last commit.
//!
//! Place on the event's path: what people query. The night's `core.events` holds each message once up
//! to a snapshot of `raw.events`; what arrived since is deduplicated on the fly. Promise: each
//! (company, message id) appears once, the copy received first wins, and the columns are the same
//! before and after the first night. A promoted property answers for every row, also for those that
//! were written before it had a column: from the JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::ViewTable;
use datafusion::datasource::empty::EmptyTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::FutureExt;
use iceberg::table::Table;

use super::session::{PinnedCatalog, PinnedSchema, Pins};
use super::{IcebergProvider, QueryError, functions, schema};
use crate::promoted::{self, Promoted};
use crate::schema::{CORE_EVENTS, RAW_EVENTS, raw_events};

/// Property of `core.events`: the sequence number of the snapshot of `raw.events` up to which it holds
/// every message. The warehouse sets it in the commit that adds the rows.
const RAW_SEQUENCE_PROPERTY: &str = "headwater.core.raw-sequence-number";
/// Property of `core.events`: the id of that snapshot, which gives its sequence number until it expires.
const RAW_SNAPSHOT_PROPERTY: &str = "headwater.core.raw-snapshot-id";

/// Columns of `core.events` that `raw.events` does not have, and what they are for an event that no
/// night has processed: the plan and the company's time zone are not known yet.
const NIGHTLY_COLUMNS: [(&str, &str); 5] = [
    ("first_received_at", "received_at"),
    ("copies", "arrow_cast(_copies, 'Int32')"),
    ("plan_id_at_event", "arrow_cast(NULL, 'Utf8')"),
    ("subscription_status_at_event", "arrow_cast(NULL, 'Utf8')"),
    ("report_date", "arrow_cast(event_time, 'Date32')"),
];

/// Builds the view over the pinned tables.
pub(super) fn view(pins: &Pins) -> Result<Arc<dyn TableProvider>, QueryError> {
    let raw = pins.table(&RAW_EVENTS);
    let promoted = raw.map(promoted::of).unwrap_or_default();
    let Some(core) = pins.table(&CORE_EVENTS) else {
        let arrived: Arc<dyn TableProvider> = match raw {
            Some(raw) => Arc::new(IcebergProvider::new(raw.clone())?),
            None => Arc::new(EmptyTable::new(raw_schema()?)),
        };
        let sql = of_arrived(&arrived.schema(), None, &promoted);
        return plan(sql, None, Some(arrived));
    };
    let arrived = raw
        .map(|raw| arrived_since(raw, core))
        .transpose()?
        .flatten();
    let core = Arc::new(IcebergProvider::new(core.clone())?);
    let of_night = core.schema();
    let sql = match &arrived {
        Some(arrived) => format!(
            "{}\nUNION ALL\n{}",
            of_core(&of_night, &arrived.schema(), &promoted),
            of_arrived(&arrived.schema(), Some(&of_night), &promoted)
        ),
        None => {
            // Without it the columns would depend on whether something has arrived.
            let raw = raw
                .map(|raw| IcebergProvider::new(raw.clone()))
                .transpose()?;
            let raw = raw.map_or_else(|| Arc::clone(&of_night), |raw| raw.schema());
            of_core(&of_night, &raw, &promoted)
        }
    };
    plan(sql, Some(core), arrived)
}

/// Returns the rows of `raw.events` that `core.events` may not hold yet, `None` when it holds all.
fn arrived_since(raw: &Table, core: &Table) -> Result<Option<Arc<dyn TableProvider>>, QueryError> {
    let newest = raw
        .metadata()
        .current_snapshot()
        .map_or(0, |snapshot| snapshot.sequence_number());
    let provider = match covered_sequence(raw, core) {
        Some(covered) if newest <= covered => return Ok(None),
        Some(covered) => IcebergProvider::added_after(raw.clone(), covered)?,
        // The snapshot expired, or core.events has never been filled: the anti-join removes what
        // core.events knows, so reading everything is slow and right.
        None => IcebergProvider::new(raw.clone())?,
    };
    Ok(Some(Arc::new(provider)))
}

/// Returns the sequence number of `raw.events` up to which `core.events` holds every message.
fn covered_sequence(raw: &Table, core: &Table) -> Option<i64> {
    let number = |key| core.metadata().properties().get(key)?.parse::<i64>().ok();
    number(RAW_SEQUENCE_PROPERTY).or_else(|| {
        let id = number(RAW_SNAPSHOT_PROPERTY)?;
        Some(raw.metadata().snapshot_by_id(id)?.sequence_number())
    })
}

fn raw_schema() -> Result<SchemaRef, QueryError> {
    schema::sql_schema(&raw_events().schema).map_err(|source| QueryError::Metadata {
        table: RAW_EVENTS.to_string(),
        source: Box::new(source),
    })
}

/// Returns the rows of `core.events`, with nulls for columns that only `raw.events` has yet.
fn of_core(core: &Schema, raw: &Schema, promoted: &[Promoted]) -> String {
    let mut list = String::new();
    for column in columns(core, raw) {
        let value = match core.field_with_name(&column.name) {
            Ok(_) => quoted(&column.name),
            Err(_) => null_of(&column.data_type),
        };
        push(
            &mut list,
            &or_from_json(value, &column, promoted),
            &column.name,
        );
    }
    format!("SELECT {list}\nFROM core.events")
}

/// Returns the rows that arrived since, each message once, with the columns of `core.events`.
fn of_arrived(raw: &Schema, core: Option<&Schema>, promoted: &[Promoted]) -> String {
    let nightly = core.map_or_else(|| nightly_schema(raw), Schema::clone);
    let mut list = String::new();
    for column in columns(&nightly, raw) {
        let of_night = NIGHTLY_COLUMNS
            .iter()
            .find(|(name, _)| *name == column.name);
        let value = match (raw.field_with_name(&column.name), of_night) {
            (Ok(_), _) => quoted(&column.name),
            (Err(_), Some((_, value))) => (*value).to_owned(),
            (Err(_), None) => null_of(&column.data_type),
        };
        push(
            &mut list,
            &or_from_json(value, &column, promoted),
            &column.name,
        );
    }
    let unknown = core.map_or("", |_| {
        "\n    LEFT ANTI JOIN core.events AS known\n      \
           ON arrived.company_id = known.company_id AND arrived.message_id = known.message_id"
    });
    format!(
        "SELECT {list}
FROM (
  SELECT *,
    row_number() OVER (PARTITION BY company_id, message_id
      ORDER BY received_at, _agent_id, _epoch, _sequence) AS _copy,
    count(*) OVER (PARTITION BY company_id, message_id) AS _copies
  FROM (
    SELECT * FROM raw.arrived AS arrived{unknown}
  ) AS unknown
) AS ranked
WHERE _copy = 1"
    )
}

/// Returns the value of a column, from the JSON where it has none and its property was promoted.
fn or_from_json(value: String, column: &ViewColumn, promoted: &[Promoted]) -> String {
    match promoted.iter().find(|it| it.name == column.name) {
        // A name that can be a column needs no quotes.
        Some(Promoted { name, column_type }) => {
            let getter = column_type.as_str();
            // Of the column's very type: of one name of UTC, too.
            let data_type = &column.data_type;
            let in_json = format!("arrow_cast(json_{getter}(properties, '{name}'), '{data_type}')");
            format!("coalesce({value}, {in_json})")
        }
        None => value,
    }
}

struct ViewColumn {
    name: String,
    data_type: DataType,
}

/// Returns the columns of the view: those of `core.events`, then those that only `raw.events` has.
fn columns(core: &Schema, raw: &Schema) -> Vec<ViewColumn> {
    let only_raw = raw
        .fields()
        .iter()
        .filter(|field| core.field_with_name(field.name()).is_err());
    core.fields()
        .iter()
        .chain(only_raw)
        .map(|field| ViewColumn {
            name: field.name().clone(),
            data_type: field.data_type().clone(),
        })
        .collect()
}

/// Returns the schema that the first night will give `core.events`.
fn nightly_schema(raw: &Schema) -> Schema {
    // Their SQL says their type.
    let nightly = NIGHTLY_COLUMNS
        .iter()
        .map(|(name, _)| Field::new(*name, DataType::Null, true));
    let raw = raw.fields().iter().map(|field| field.as_ref().clone());
    Schema::new(raw.chain(nightly).collect::<Vec<_>>())
}

fn push(list: &mut String, value: &str, name: &str) {
    let separator = if list.is_empty() { "" } else { ", " };
    let name = quoted(name);
    let result = if value == name {
        write!(list, "{separator}{name}")
    } else {
        write!(list, "{separator}{value} AS {name}")
    };
    result.expect("writing to a string cannot fail");
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn null_of(data_type: &DataType) -> String {
    format!("arrow_cast(NULL, '{data_type}')")
}

/// Plans the SQL over the two tables and nothing else. The plan holds the tables themselves, so it is
/// valid in every session.
fn plan(
    sql: String,
    core: Option<Arc<IcebergProvider>>,
    arrived: Option<Arc<dyn TableProvider>>,
) -> Result<Arc<dyn TableProvider>, QueryError> {
    let schema_of = |name: &str, table: Option<Arc<dyn TableProvider>>| {
        let tables: BTreeMap<_, _> = table
            .map(|table| (name.to_owned(), table))
            .into_iter()
            .collect();
        Arc::new(PinnedSchema { tables })
    };
    let schemas = BTreeMap::from([
        (
            "core".to_owned(),
            schema_of("events", core.map(|core| core as _)),
        ),
        ("raw".to_owned(), schema_of("arrived", arrived)),
    ]);
    let config = SessionConfig::new()
        .with_default_catalog_and_schema("headwater", "public")
        .with_create_default_catalog_and_schema(false)
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let context = SessionContext::new_with_config(config);
    for function in functions::all() {
        context.register_udf(function);
    }
    context.register_catalog("headwater", Arc::new(PinnedCatalog { schemas }));
    let plan = context
        .state()
        .create_logical_plan(&sql)
        .now_or_never()
        .expect("the tables are in memory, so that planning never waits")?;
    Ok(Arc::new(ViewTable::new(plan, Some(sql))))
}
