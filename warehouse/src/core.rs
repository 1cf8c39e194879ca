//! `core.events` and `core.conversations`: each event once, with the plan in force, and the latest
//! state of each conversation.
//!
//! Place on the path: after `core.company_plans`, before the reports.
//!
//! Incremental, with an unlimited window: only what `raw.events` gained since the snapshot that
//! `core.events` covers is read, its keys are looked up in all of `core.events`, and only the days
//! that they touch are written again, in one commit that also moves the covered snapshot.
//!
//! Promise: one row per (company, message id), the earliest copy; a night that adds nothing commits
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Date32Type, Field, Schema};
use arrow::record_batch::RecordBatch;
use headwater_tables::query::{IcebergProvider, QueryError};
use headwater_tables::schema::{CORE_EVENTS, RAW_EVENTS, raw_events};
use headwater_tables::watermark::Watermarks;
use headwater_tables::{Change, Operation, Partition, Table, TableName, TableSpec};
use iceberg::arrow::schema_to_arrow_schema;

use crate::functions::timestamp_type;
use crate::models::{CONVERSATION_PARTS, CORE_CONVERSATIONS, CORE_EVENTS as CORE_EVENTS_SQL};
use crate::night::NightError;
use crate::progress::Progress;
use crate::publish::Publisher;
use crate::session::Session;

/// Property of `core.events` and `core.conversations`: the snapshot of `raw.events` they cover.
pub const RAW_SNAPSHOT: &str = "headwater.core.raw-snapshot-id";

/// Property of `core.events`: the watermarks of that snapshot, as `[[agent, epoch, sequence], ...]`.
const RAW_WATERMARKS: &str = "headwater.core.raw-watermarks";

/// Columns that `core.events` has beside those of `raw.events`.
const ADDED_COLUMNS: [&str; 5] = [
    "first_received_at",
    "copies",
    "plan_id_at_event",
    "subscription_status_at_event",
    "report_date",
];

/// Takes the new raw events into both tables.
pub(crate) async fn publish(
    publisher: &mut Publisher<'_>,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    progress.started("core.events", None);
    let raw = publisher.ensure(&raw_events()).await?;
    publisher.ensure(&events_spec()?).await?;
    let session = publisher.session()?;
    let Some(raw_snapshot) = raw
        .metadata()
        .current_snapshot()
        .map(|snapshot| snapshot.snapshot_id())
    else {
        progress.finished("core.events", "no events yet");
        return rebuild_missing_conversations(publisher, progress).await;
    };
    let events = publisher.tables()[&CORE_EVENTS].clone();
    let before = covered(&events);
    register_added(&session, &raw, &events, before).await?;
    let added = count(&session, "SELECT count(*) FROM added_events").await?;
    metrics::counter!(crate::metrics::EVENTS_ADDED).increment(added);
    if added == 0 {
        progress.finished("core.events", "no new events");
        return rebuild_missing_conversations(publisher, progress).await;
    }
    let touched = session
        .rows(TOUCHED_CONVERSATIONS)
        .await
        .map_err(NightError::query(&*CORE_EVENTS))?;
    let days = days(&session, AFFECTED_DAYS, &CORE_EVENTS).await?;
    let rows = session
        .stream(&events_sql(&days))
        .await
        .map_err(NightError::query(&*CORE_EVENTS))?;
    let files = publisher.write_stream(&CORE_EVENTS, rows).await?;
    let properties = BTreeMap::from([
        (RAW_SNAPSHOT.to_owned(), raw_snapshot.to_string()),
        (RAW_WATERMARKS.to_owned(), watermarks(&raw)?),
    ]);
    publisher
        .replace_days(&CORE_EVENTS, &days, files, properties)
        .await?;
    progress.finished(
        "core.events",
        &format!("{added} new events, {} days", days.len()),
    );
    publish_conversations(publisher, before, touched, progress).await
}

/// After a night that ended between the two commits, `core.conversations` covers another snapshot
/// than `core.events` and is computed whole.
async fn rebuild_missing_conversations(
    publisher: &mut Publisher<'_>,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    let name = conversations_name()?;
    let events = covered(&publisher.tables()[&CORE_EVENTS]);
    let conversations = publisher.tables().get(&name).map(covered);
    if conversations == Some(events) {
        return Ok(());
    }
    publish_conversations(publisher, None, Vec::new(), progress).await
}

/// Computes the touched conversations again; all of them when the table does not cover `before`.
async fn publish_conversations(
    publisher: &mut Publisher<'_>,
    before: Option<i64>,
    touched: Vec<RecordBatch>,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    let name = conversations_name()?;
    progress.started("core.conversations", None);
    let session = publisher.session()?;
    register_conversation_parts(&session).await?;
    let known = publisher.tables().get(&name).map(covered);
    let all = "SELECT DISTINCT company_id, conversation_id FROM core.events WHERE conversation_id IS NOT NULL";
    let touched = match known {
        Some(known) if known.is_some() && known == before => touched,
        _ => session.rows(all).await.map_err(NightError::query(&name))?,
    };
    let keys = Arc::new(Schema::new(vec![
        Field::new("company_id", DataType::Utf8, true),
        Field::new("conversation_id", DataType::Utf8, true),
    ]));
    let touched = vec![crate::rows::conform(&keys, &touched)?];
    let count = touched[0].num_rows();
    session
        .register_rows("touched_conversations", keys, touched)
        .map_err(NightError::query(&name))?;
    let (schema, rows) = session
        .rows_with_schema(CORE_CONVERSATIONS)
        .await
        .map_err(NightError::query(&name))?;
    let spec = TableSpec::from_arrow(
        name.clone(),
        &nullable(&schema),
        Partition::Day("started_at".to_owned()),
    )?
    .sorted_by(&["company_id", "started_at", "conversation_id"]);
    publisher.ensure(&spec).await?;
    let schema = Arc::new(nullable(&schema));
    let rows = vec![crate::rows::conform(&schema, &rows)?];
    merge_conversations(publisher, &name, &session, (schema, rows)).await?;
    progress.finished(
        "core.conversations",
        &format!("{count} conversations computed"),
    );
    Ok(())
}

/// Replaces the days on which the computed conversations begin, or began before.
async fn merge_conversations(
    publisher: &mut Publisher<'_>,
    name: &TableName,
    session: &Session,
    (schema, rows): (arrow::datatypes::SchemaRef, Vec<RecordBatch>),
) -> Result<(), NightError> {
    let table = publisher.tables()[name].clone();
    let failed = NightError::query(name);
    let provider = IcebergProvider::new(table.clone()).map_err(|error| failed(error.into()))?;
    let register = || -> datafusion::common::Result<()> {
        session.register("core", "conversations", Arc::new(provider))?;
        session.register_rows("new_conversations", schema, rows)
    };
    register().map_err(NightError::query(name))?;
    let days = days(session, CONVERSATION_DAYS, name).await?;
    let raw_snapshot = covered(&publisher.tables()[&CORE_EVENTS]);
    let properties: BTreeMap<String, String> = raw_snapshot
        .map(|id| (RAW_SNAPSHOT.to_owned(), id.to_string()))
        .into_iter()
        .collect();
    if days.is_empty() {
        if raw_snapshot.is_none() {
            return Ok(());
        }
        let change = Change {
            operation: Operation::Append,
            properties,
            ..Change::default()
        };
        return publisher.commit(name, &table, change).await;
    }
    let columns: Vec<String> = crate::rows::names(
        &headwater_tables::write::arrow_schema(&table).map_err(NightError::write(name))?,
    );
    let sql = format!(
        "SELECT {0} FROM new_conversations UNION ALL \
         SELECT {0} FROM core.conversations AS v LEFT ANTI JOIN touched_conversations AS t \
             ON t.company_id = v.company_id AND t.conversation_id = v.conversation_id \
         WHERE CAST(started_at AS DATE) IN ({1}) ORDER BY company_id, started_at, conversation_id",
        columns.join(", "),
        date_list(&days)
    );
    let stream = session
        .stream(&sql)
        .await
        .map_err(NightError::query(name))?;
    let files = publisher.write_stream(name, stream).await?;
    publisher.replace_days(name, &days, files, properties).await
}

/// Registers the view that all models about conversations read.
pub(crate) async fn register_conversation_parts(session: &Session) -> Result<(), NightError> {
    session
        .register_view("conversation_parts", CONVERSATION_PARTS)
        .await
        .map_err(NightError::query("conversation_parts"))
}

/// Returns the snapshot of `raw.events` that a core table covers.
pub(crate) fn covered(table: &Table) -> Option<i64> {
    table
        .metadata()
        .properties()
        .get(RAW_SNAPSHOT)?
        .parse()
        .ok()
}

fn conversations_name() -> Result<TableName, NightError> {
    Ok(TableName::new("core", "conversations")?)
}

/// Registers `added_events`: what `raw.events` gained since `before`, which `events` covers.
async fn register_added(
    session: &Session,
    raw: &Table,
    events: &Table,
    before: Option<i64>,
) -> Result<(), NightError> {
    let failed = NightError::query(&*RAW_EVENTS);
    let known: Vec<(String, i64, i64)> = events
        .metadata()
        .properties()
        .get(RAW_WATERMARKS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let provider = match before {
        Some(snapshot_id) => match IcebergProvider::added_since(raw.clone(), snapshot_id) {
            // Expired: read everything, the watermarks leave out what is covered.
            Err(QueryError::NoSuchSnapshot { .. }) if !known.is_empty() => {
                IcebergProvider::new(raw.clone())
            }
            provider => provider,
        },
        None => IcebergProvider::new(raw.clone()),
    };
    let provider = provider.map_err(|error| failed(error.into()))?;
    let schema = Arc::new(Schema::new(vec![
        Field::new("agent", DataType::Utf8, false),
        Field::new("epoch", DataType::Int64, false),
        Field::new("sequence", DataType::Int64, false),
    ]));
    let agents: StringArray = known
        .iter()
        .map(|(agent, _, _)| Some(agent.as_str()))
        .collect();
    let epochs = Int64Array::from_iter_values(known.iter().map(|(_, epoch, _)| *epoch));
    let sequences = Int64Array::from_iter_values(known.iter().map(|(_, _, sequence)| *sequence));
    let columns: Vec<ArrayRef> = vec![Arc::new(agents), Arc::new(epochs), Arc::new(sequences)];
    let rows = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let register = || -> datafusion::common::Result<()> {
        session.register("run", "added_files", Arc::new(provider))?;
        session.register_rows("covered", schema, vec![rows])
    };
    register().map_err(NightError::query(&*RAW_EVENTS))?;
    session
        .register_view("added_events", ADDED_EVENTS)
        .await
        .map_err(NightError::query(&*RAW_EVENTS))
}

/// Returns the watermarks of `raw.events` as the property that `core.events` keeps.
fn watermarks(raw: &Table) -> Result<String, NightError> {
    let watermarks = Watermarks::of(raw)?;
    let known: Vec<(&str, u64, u64)> = watermarks.agents().collect();
    Ok(serde_json::json!(known).to_string())
}

/// Compaction may move rows that are covered into files that are new: the watermarks tell them apart
/// exactly, because everything at or below a watermark was committed with it (EO-3).
const ADDED_EVENTS: &str = "
    SELECT e.* FROM added_files AS e
    LEFT ANTI JOIN covered AS c
      ON c.agent = e._agent_id AND c.epoch = e._epoch AND e._sequence <= c.sequence";

const TOUCHED_CONVERSATIONS: &str = "
    WITH keys AS (SELECT DISTINCT company_id, message_id FROM added_events)
    SELECT company_id, conversation_id FROM added_events WHERE conversation_id IS NOT NULL
    UNION
    SELECT e.company_id, e.conversation_id FROM core.events AS e
    LEFT SEMI JOIN keys ON keys.company_id = e.company_id AND keys.message_id = e.message_id
    WHERE e.conversation_id IS NOT NULL";

const AFFECTED_DAYS: &str = "
    WITH keys AS (SELECT DISTINCT company_id, message_id FROM added_events)
    SELECT CAST(event_time AS DATE) FROM added_events
    UNION
    SELECT CAST(e.event_time AS DATE) FROM core.events AS e
    LEFT SEMI JOIN keys ON keys.company_id = e.company_id AND keys.message_id = e.message_id";

const CONVERSATION_DAYS: &str = "
    SELECT CAST(started_at AS DATE) FROM new_conversations
    UNION
    SELECT CAST(v.started_at AS DATE) FROM core.conversations AS v
    LEFT SEMI JOIN touched_conversations AS t
      ON t.company_id = v.company_id AND t.conversation_id = v.conversation_id";

async fn count(session: &Session, sql: &str) -> Result<u64, NightError> {
    let rows = session
        .rows(sql)
        .await
        .map_err(NightError::query(&*CORE_EVENTS))?;
    let counted = rows
        .iter()
        .filter_map(|batch| {
            batch
                .column(0)
                .as_primitive_opt::<arrow::datatypes::Int64Type>()
        })
        .flat_map(|column| column.iter().flatten())
        .sum::<i64>();
    Ok(u64::try_from(counted).unwrap_or_default())
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

fn events_sql(days: &BTreeSet<i32>) -> String {
    let raw: Vec<String> = raw_events()
        .schema
        .as_struct()
        .fields()
        .iter()
        .map(|field| format!("e.{}", field.name))
        .collect();
    let mut core = raw.clone();
    core.extend(ADDED_COLUMNS.map(|name| format!("e.{name}")));
    let sql = CORE_EVENTS_SQL
        .replace("{raw_columns}", &raw.join(", "))
        .replace("{core_columns}", &core.join(", "))
        .replace("{days}", &date_list(days));
    // By day first, so that each file holds few days.
    format!(
        "SELECT * FROM ({sql}) ORDER BY CAST(event_time AS DATE), company_id, event_time, message_id"
    )
}

/// Returns the spec of `core.events`.
///
/// # Errors
/// Fails when `raw.events` has a column that Arrow cannot hold.
pub fn events_spec() -> Result<TableSpec, NightError> {
    let raw = schema_to_arrow_schema(&raw_events().schema)
        .map_err(headwater_tables::SchemaError::from)?;
    let mut fields: Vec<Field> = raw
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .collect();
    fields.push(Field::new(ADDED_COLUMNS[0], timestamp_type(), false));
    fields.push(Field::new(ADDED_COLUMNS[1], DataType::Int32, false));
    fields.push(Field::new(ADDED_COLUMNS[2], DataType::Utf8, true));
    fields.push(Field::new(ADDED_COLUMNS[3], DataType::Utf8, true));
    fields.push(Field::new(ADDED_COLUMNS[4], DataType::Date32, false));
    let partition = Partition::Day("event_time".to_owned());
    Ok(
        TableSpec::from_arrow(CORE_EVENTS.clone(), &Schema::new(fields), partition)?.sorted_by(&[
            "company_id",
            "event_time",
            "message_id",
        ]),
    )
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
