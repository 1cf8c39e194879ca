//! The view `public.events`: each message once, before, between and after nights.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::prelude::SessionContext;
use headwater_tables::query::{SessionOptions, session};
use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use iceberg::table::Table;

use crate::interactions::{FIRST_DAY_MICROS, HOUR_MICROS};
use crate::lake::{Lake, arrow_schema};
use crate::plans::{reads, value};

const RAW: &str = "raw.events";
const CORE: &str = "core.events";

/// One row: message, name, hour of receipt, sequence. The company is the message's first letter.
type Row<'a> = (&'a str, &'a str, i64, i64);

fn fields() -> Vec<(&'static str, PrimitiveType)> {
    vec![
        ("company_id", PrimitiveType::String),
        ("message_id", PrimitiveType::String),
        ("event_time", PrimitiveType::Timestamptz),
        ("received_at", PrimitiveType::Timestamptz),
        ("event_name", PrimitiveType::String),
        ("_agent_id", PrimitiveType::String),
        ("_epoch", PrimitiveType::Long),
        ("_sequence", PrimitiveType::Long),
    ]
}

fn schema(fields: Vec<(&str, PrimitiveType)>) -> Schema {
    let fields = fields
        .into_iter()
        .zip(1..)
        .map(|((name, kind), id)| NestedField::optional(id, name, Type::Primitive(kind)).into());
    Schema::builder().with_fields(fields).build().unwrap()
}

async fn with_raw() -> Lake {
    let lake = Lake::new().await;
    lake.create(RAW, schema(fields()), Some("received_at"))
        .await;
    lake
}

async fn with_core(lake: &Lake) {
    let mut all = fields();
    all.extend([
        ("first_received_at", PrimitiveType::Timestamptz),
        ("copies", PrimitiveType::Int),
        ("plan_id_at_event", PrimitiveType::String),
        ("subscription_status_at_event", PrimitiveType::String),
        ("report_date", PrimitiveType::Date),
    ]);
    lake.create(CORE, schema(all), Some("event_time")).await;
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn columns(rows: &[Row<'_>]) -> Vec<ArrayRef> {
    let time = || {
        let hours = rows
            .iter()
            .map(|row| FIRST_DAY_MICROS + row.2 * HOUR_MICROS);
        Arc::new(TimestampMicrosecondArray::from_iter_values(hours).with_timezone("+00:00"))
    };
    vec![
        texts(rows.iter().map(|row| &row.0[..1])),
        texts(rows.iter().map(|row| row.0)),
        time(),
        time(),
        texts(rows.iter().map(|row| row.1)),
        texts(rows.iter().map(|_| "agent")),
        Arc::new(Int64Array::from(vec![1; rows.len()])),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.3))),
    ]
}

async fn arrive(lake: &Lake, rows: &[Row<'_>]) -> Table {
    let schema = arrow_schema(&lake.load(RAW).await);
    let batch = RecordBatch::try_new(schema, columns(rows)).unwrap();
    lake.append(RAW, batch).await
}

/// Does the night's work: core.events holds these rows and covers what raw.events holds now.
async fn night(lake: &Lake, rows: &[Row<'_>]) {
    let schema = arrow_schema(&lake.load(CORE).await);
    let mut all = columns(rows);
    all.push(Arc::clone(&all[3]));
    all.push(Arc::new(arrow::array::Int32Array::from(vec![
        1;
        rows.len()
    ])));
    all.push(texts(rows.iter().map(|_| "pro")));
    all.push(texts(rows.iter().map(|_| "active")));
    all.push(Arc::new(arrow::array::Date32Array::from(vec![
        20_758;
        rows.len()
    ])));
    lake.append(CORE, RecordBatch::try_new(schema, all).unwrap())
        .await;
    let covered = lake.load(RAW).await.metadata().current_snapshot_id();
    covers(lake, covered.unwrap()).await;
}

async fn covers(lake: &Lake, snapshot: i64) {
    let property = "headwater.core.raw-snapshot-id";
    lake.set_property(CORE, property, snapshot.to_string())
        .await;
}

async fn open(lake: &Lake, names: &[&str]) -> SessionContext {
    session(&lake.pins(names).await, &SessionOptions::default()).unwrap()
}

const SUMMARY: &str = "SELECT string_agg(message_id || '=' || event_name, ' ' ORDER BY message_id) \
                       FROM events";

#[tokio::test]
async fn before_the_first_night_raw_events_are_deduplicated() {
    let lake = with_raw().await;
    arrive(&lake, &[("a1", "late", 5, 9), ("a2", "only", 1, 2)]).await;
    arrive(
        &lake,
        &[
            ("a1", "early", 3, 7),
            ("a1", "tie", 3, 8),
            ("b1", "other", 1, 1),
        ],
    )
    .await;
    let context = open(&lake, &[RAW]).await;
    assert_eq!(value(&context, SUMMARY).await, "a1=early a2=only b1=other");
    let copies = "SELECT copies FROM events WHERE message_id = 'a1'";
    assert_eq!(value(&context, copies).await, "3");
    let first = "SELECT count(*) FROM events WHERE first_received_at = received_at \
                 AND report_date = DATE '2026-11-01' AND plan_id_at_event IS NULL";
    assert_eq!(value(&context, first).await, "3");
}

#[tokio::test]
async fn after_a_night_only_new_messages_are_added() {
    let lake = with_raw().await;
    with_core(&lake).await;
    arrive(&lake, &[("a1", "x", 1, 1), ("a1", "again", 2, 2)]).await;
    night(&lake, &[("a1", "x", 1, 1)]).await;
    let nightly = open(&lake, &[RAW, CORE]).await;
    assert_eq!(value(&nightly, SUMMARY).await, "a1=x");
    // All is covered, so raw.events is not even planned.
    assert_eq!(reads(&nightly, "SELECT * FROM events").await.scans, 1);

    arrive(
        &lake,
        &[
            ("a1", "third", 3, 3),
            ("a2", "new", 3, 4),
            ("a2", "twice", 4, 5),
        ],
    )
    .await;
    let fresh = open(&lake, &[RAW, CORE]).await;
    assert_eq!(value(&fresh, SUMMARY).await, "a1=x a2=new");
    let plans =
        "SELECT count(plan_id_at_event) || '/' || count(*) || '/' || sum(copies) FROM events";
    assert_eq!(value(&fresh, plans).await, "1/2/3");
    // The other company's message of the same id is another message.
    let one = "SELECT count(*) FROM events WHERE company_id = 'a' AND event_name = 'new'";
    assert_eq!(value(&fresh, one).await, "1");
    assert_eq!(value(&nightly, SUMMARY).await, "a1=x");
}

#[tokio::test]
async fn an_expired_or_missing_raw_snapshot_costs_time_and_not_rows() {
    let lake = with_raw().await;
    with_core(&lake).await;
    arrive(&lake, &[("a1", "x", 1, 1)]).await;
    // Created by a night that has not finished: nothing is covered.
    let context = open(&lake, &[RAW, CORE]).await;
    assert_eq!(value(&context, SUMMARY).await, "a1=x");
    night(&lake, &[("a1", "x", 1, 1)]).await;
    arrive(&lake, &[("a2", "y", 2, 2)]).await;
    covers(&lake, 42).await;
    let context = open(&lake, &[RAW, CORE]).await;
    assert_eq!(value(&context, SUMMARY).await, "a1=x a2=y");
}

#[tokio::test]
async fn the_sequence_number_outlives_the_raw_snapshot() {
    let lake = with_raw().await;
    with_core(&lake).await;
    let raw = arrive(&lake, &[("a1", "x", 1, 1)]).await;
    night(&lake, &[("a1", "x", 1, 1)]).await;
    let sequence = raw.metadata().current_snapshot().unwrap().sequence_number();
    let property = "headwater.core.raw-sequence-number";
    lake.set_property(CORE, property, sequence.to_string())
        .await;
    covers(&lake, 42).await;
    let context = open(&lake, &[RAW, CORE]).await;
    assert_eq!(reads(&context, "SELECT * FROM events").await.scans, 1);
    arrive(&lake, &[("a2", "y", 2, 2)]).await;
    let context = open(&lake, &[RAW, CORE]).await;
    assert_eq!(value(&context, SUMMARY).await, "a1=x a2=y");
    // The night's file twice, for the rows and for what is known, and the one new file.
    assert_eq!(reads(&context, "SELECT * FROM events").await.files, 3);
}

#[tokio::test]
async fn the_view_has_the_same_columns_whatever_is_missing() {
    let lake = with_raw().await;
    with_core(&lake).await;
    arrive(&lake, &[("a1", "x", 1, 1)]).await;
    let names = async |tables: &[&str]| {
        let context = open(&lake, tables).await;
        let frame = context.sql("SELECT * FROM events").await.unwrap();
        let fields = frame.schema().fields().iter();
        fields
            .map(|field| format!("{} {}", field.name(), field.data_type()))
            .collect::<Vec<_>>()
    };
    let both = names(&[RAW, CORE]).await;
    assert_eq!(both.len(), 13);
    assert_eq!(names(&[RAW]).await, both);
    assert_eq!(names(&[CORE]).await, both);
}

#[tokio::test]
async fn without_any_table_the_view_is_empty_and_has_the_columns_of_raw_events() {
    let lake = Lake::new().await;
    let context = open(&lake, &[]).await;
    let query = "SELECT count(*) FROM events WHERE company_id = 'a' AND report_date IS NULL";
    assert_eq!(value(&context, query).await, "0");
}
