//! `system.runs`: what each night read and wrote.
//!
//! Place on the path: the last commit of a night. Promise: a row is there only when every report of
//! that night is, and its id is a function of what the night read, so that running it again
//! finds the row and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Date32Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Date32Type, Field, Schema};
use chrono::NaiveDate;
use headwater_service::clock::Micros;
use headwater_tables::{Change, Operation, Partition, TableName, TableSpec};

use crate::models::Model;
use crate::night::NightError;
use crate::publish::Publisher;
use crate::rows::sha256;
use headwater_tables::query::functions::timestamp_type;

/// What a night read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// The date of the night.
    pub(crate) date: NaiveDate,
    /// How many days before it were computed too.
    pub(crate) late_days: u32,
    /// Table → snapshot; a table without snapshot is not named.
    pub(crate) snapshots: BTreeMap<String, i64>,
    /// Report → SHA-256 of its model.
    pub(crate) models: BTreeMap<String, String>,
}

impl Inputs {
    /// Takes down what the reports of this night read.
    pub(crate) fn of(
        publisher: &Publisher<'_>,
        models: &[Model],
        date: NaiveDate,
        late_days: u32,
    ) -> Self {
        let snapshots = publisher
            .tables()
            .iter()
            .filter(|(name, _)| matches!(name.namespace(), "ops" | "core"))
            .filter_map(|(name, table)| {
                let snapshot = table.metadata().current_snapshot()?;
                Some((name.to_string(), snapshot.snapshot_id()))
            })
            .collect();
        let models = models
            .iter()
            .map(|model| (model.table.to_string(), model.digest.clone()))
            .collect();
        Self {
            date,
            late_days,
            snapshots,
            models,
        }
    }

    /// Returns the id of a run that reads exactly this.
    pub(crate) fn run_id(&self) -> String {
        let text = format!("{self:?}");
        sha256([text.as_str()])[..32].to_owned()
    }
}

fn table_name() -> Result<TableName, NightError> {
    Ok(TableName::new("system", "runs")?)
}

/// Returns whether a run with this id has been published whole.
pub(crate) async fn is_recorded(
    publisher: &Publisher<'_>,
    run_id: &str,
) -> Result<bool, NightError> {
    let name = table_name()?;
    if !publisher.tables().contains_key(&name) {
        return Ok(false);
    }
    let sql = format!("SELECT run_id FROM {name} WHERE run_id = '{run_id}'");
    let rows = publisher
        .session()?
        .rows(&sql)
        .await
        .map_err(NightError::query(&name))?;
    Ok(rows.iter().any(|batch| batch.num_rows() > 0))
}

/// Adds the row of this run.
pub(crate) async fn record(
    publisher: &mut Publisher<'_>,
    inputs: &Inputs,
    started_at: Micros,
    finished_at: Micros,
) -> Result<(), NightError> {
    let name = table_name()?;
    let row = row(publisher, inputs, started_at, finished_at)?;
    let spec = TableSpec::from_arrow(name.clone(), &row.schema(), Partition::None)?;
    let table = publisher.ensure(&spec).await?;
    let change = Change {
        operation: Operation::Append,
        add: publisher.write(&name, &table, vec![row]).await?,
        ..Change::default()
    };
    publisher.commit(&name, &table, change).await
}

fn row(
    publisher: &Publisher<'_>,
    inputs: &Inputs,
    started_at: Micros,
    finished_at: Micros,
) -> Result<RecordBatch, NightError> {
    let written: BTreeMap<String, i64> = publisher
        .written()
        .iter()
        .map(|(name, written)| (name.to_string(), written.snapshot_id))
        .collect();
    let rows: BTreeMap<String, u64> = publisher
        .written()
        .iter()
        .map(|(name, written)| (name.to_string(), written.rows))
        .collect();
    let text = |value: String| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let time = |value: Micros| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(vec![value]).with_timezone("+00:00"))
    };
    let date = Date32Array::from(vec![Date32Type::from_naive_date(inputs.date)]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("run_id", text(inputs.run_id())),
        ("run_date", Arc::new(date)),
        ("started_at", time(started_at)),
        ("finished_at", time(finished_at)),
        ("status", text("published".to_owned())),
        (
            "read_snapshots",
            text(serde_json::json!(inputs.snapshots).to_string()),
        ),
        (
            "written_snapshots",
            text(serde_json::json!(written).to_string()),
        ),
        ("rows_written", text(serde_json::json!(rows).to_string())),
        (
            "model_digests",
            text(serde_json::json!(inputs.models).to_string()),
        ),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), false))
        .collect();
    debug_assert_eq!(fields[2].data_type(), &timestamp_type());
    debug_assert_eq!(fields[1].data_type(), &DataType::Date32);
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)
}
