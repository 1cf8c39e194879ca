//! `core.events`: each event once, with the plan in force when it happened.
//!
//! Incremental, with an unlimited window: only what `raw.events` gained since the snapshot that
//! `core.events` covers is read, its keys are looked up in all of `core.events`, and only the days
//! that they touch are written again, in one commit that also moves the covered snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use headwater_tables::query::IcebergProvider;
use headwater_tables::schema::{CORE_EVENTS, RAW_EVENTS, raw_events};
use headwater_tables::watermark::Watermarks;
use headwater_tables::{Partition, Table, TableSpec};
use iceberg::arrow::schema_to_arrow_schema;

use super::{RAW_SNAPSHOT, covered, date_list, days, number};
use crate::models::CORE_EVENTS as CORE_EVENTS_SQL;
use crate::night::NightError;
use crate::progress::Progress;
use crate::publish::Publisher;
use crate::session::Session;
use headwater_tables::query::functions::timestamp_type;

/// Property of `core.events`: the sequence number of that snapshot, by which files that came later are
/// told apart even when the snapshot itself has expired.
const RAW_SEQUENCE: &str = "headwater.core.raw-sequence-number";

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

/// What a night took in.
pub(super) struct TakenIn {
    /// The snapshot that `core.events` covered before.
    pub(super) before: Option<i64>,
    /// (company, conversation) of every row that is new or was replaced.
    pub(super) touched: Vec<RecordBatch>,
}

/// Takes the new raw events into `core.events`; returns the snapshot that it covered before and the
/// conversations that they touch, or `None` when there was nothing new.
pub(super) async fn publish(
    publisher: &mut Publisher<'_>,
    progress: &dyn Progress,
) -> Result<Option<TakenIn>, NightError> {
    progress.started("core.events", None);
    let raw = publisher.ensure(&raw_events()).await?;
    publisher.ensure(&events_spec()?).await?;
    let session = publisher.session()?;
    let Some(raw_snapshot) = raw.metadata().current_snapshot().cloned() else {
        progress.finished("core.events", "no events yet");
        return Ok(None);
    };
    let events = publisher.tables()[&CORE_EVENTS].clone();
    let before = covered(&events);
    register_added(&session, &raw, &events).await?;
    let added = count(&session, "SELECT count(*) FROM added_events").await?;
    metrics::counter!(crate::metrics::EVENTS_ADDED).increment(added);
    if added == 0 {
        progress.finished("core.events", "no new events");
        return Ok(None);
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
        (
            RAW_SNAPSHOT.to_owned(),
            raw_snapshot.snapshot_id().to_string(),
        ),
        (
            RAW_SEQUENCE.to_owned(),
            raw_snapshot.sequence_number().to_string(),
        ),
        (RAW_WATERMARKS.to_owned(), watermarks(&raw)?),
    ]);
    publisher
        .replace_days(&CORE_EVENTS, &days, files, properties)
        .await?;
    progress.finished(
        "core.events",
        &format!("{added} new events, {} days", days.len()),
    );
    Ok(Some(TakenIn { before, touched }))
}

/// Registers `added_events`: what `raw.events` has and `events` does not cover.
async fn register_added(session: &Session, raw: &Table, events: &Table) -> Result<(), NightError> {
    let failed = NightError::query(&*RAW_EVENTS);
    let known: Vec<(String, i64, i64)> = events
        .metadata()
        .properties()
        .get(RAW_WATERMARKS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let provider = match number(events, RAW_SEQUENCE) {
        Some(sequence_number) => IcebergProvider::added_after(raw.clone(), sequence_number),
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
/// exactly, because everything at or below a watermark was committed with it (EO-3). Only a replay of the
/// quarantine adds rows below a watermark; their batch id says so, and they are never left out.
const ADDED_EVENTS: &str = "
    SELECT e.* FROM added_files AS e
    LEFT ANTI JOIN covered AS c
      ON c.agent = e._agent_id AND c.epoch = e._epoch AND e._sequence <= c.sequence
        AND NOT starts_with(e.ingest_batch_id, 'replay:')";

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

async fn count(session: &Session, sql: &str) -> Result<u64, NightError> {
    let rows = session
        .rows(sql)
        .await
        .map_err(NightError::query(&*CORE_EVENTS))?;
    let counted = rows
        .iter()
        .filter_map(|batch| batch.column(0).as_primitive_opt::<Int64Type>())
        .flat_map(|column| column.iter().flatten())
        .sum::<i64>();
    Ok(u64::try_from(counted).unwrap_or_default())
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
