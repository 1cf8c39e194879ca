//! `ops.*`: the operational tables as they are, and the history of the rows that matter.
//!
//! Place on the path: after the source has been read whole. `ops.<table>` holds the current rows;
//! `ops.<table>_history` every version of a row with the interval in which it held (SCD2): a row
//! that is deleted at the source is closed, never removed.
//!
//! Promise: a table whose rows did not change is not written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray,
    UInt64Array,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use headwater_service::clock::Micros;
use headwater_tables::{Change, Operation, Partition, TableName, TableSpec, write};

use crate::night::NightError;
use crate::progress::Progress;
use crate::publish::{Publisher, conform_to_table};
use crate::rows::{conform, row_texts, sha256, sorted};
use crate::sources::{Snapshot, SourceTable, TABLES};
use headwater_tables::query::functions::timestamp_type;

/// Publishes the copy and extends the histories; `now` is when the copy was taken.
pub(crate) async fn publish(
    publisher: &mut Publisher<'_>,
    snapshot: &Snapshot,
    now: Micros,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    progress.started("ops", Some(TABLES.len() as u64));
    let mut changed = 0;
    for (index, table) in TABLES.iter().enumerate() {
        let rows = conform(&table.schema(), &snapshot.tables[table.name])?;
        let rows = sorted(&rows, &key_of(table))?;
        let count = rows.num_rows() as u64;
        metrics::counter!(crate::metrics::SOURCE_ROWS, "table" => table.name).increment(count);
        if table.name == "companies" {
            warn_of_unknown_zones(&rows);
        }
        // The history first: should the night end between the two, the next one repeats both.
        if table.has_history {
            publish_history(publisher, table, &rows, now).await?;
        }
        if publisher.replace_all(&name(table.name)?, &rows).await? {
            changed += 1;
        }
        progress.advanced("ops", index as u64 + 1);
    }
    progress.finished(
        "ops",
        &format!("{changed} of {} tables changed", TABLES.len()),
    );
    Ok(())
}

fn name(table: &str) -> Result<TableName, NightError> {
    Ok(TableName::new("ops", table)?)
}

fn key_of(table: &SourceTable) -> Vec<String> {
    table.key.iter().map(|&column| column.to_owned()).collect()
}

fn warn_of_unknown_zones(companies: &RecordBatch) {
    let column = |name| {
        companies
            .column_by_name(name)
            .map(|column| column.as_string::<i32>())
    };
    let (Some(ids), Some(zones)) = (column("company_id"), column("timezone")) else {
        return;
    };
    for (id, zone) in ids.iter().zip(zones) {
        if zone.is_none_or(|zone| zone.parse::<chrono_tz::Tz>().is_err()) {
            tracing::warn!(
                company_id = id,
                timezone = zone,
                "unknown time zone, UTC is used"
            );
        }
    }
}

async fn publish_history(
    publisher: &mut Publisher<'_>,
    table: &SourceTable,
    rows: &RecordBatch,
    now: Micros,
) -> Result<(), NightError> {
    let name = name(&format!("{}_history", table.name))?;
    let schema = history_schema(&table.schema());
    let spec = TableSpec::from_arrow(name.clone(), &schema, Partition::None)?;
    let head = publisher.ensure(&spec).await?;
    let session = publisher.session()?;
    let stored = session
        .rows(&format!("SELECT * FROM {name}"))
        .await
        .map_err(NightError::query(&name))?;
    let stored = conform(&schema, &stored)?;
    let Some(history) = extend(&stored, rows, table.key, now)? else {
        return Ok(());
    };
    let history = conform_to_table(&name, &head, &[history])?;
    let live = write::live_files(&head)
        .await
        .map_err(NightError::write(&name))?;
    let change = Change {
        operation: Operation::Overwrite,
        add: publisher.write(&name, &head, vec![history]).await?,
        remove: live
            .iter()
            .map(|file| file.file_path().to_owned())
            .collect(),
        ..Change::default()
    };
    publisher.commit(&name, &head, change).await
}

/// Returns the columns of a history table.
fn history_schema(rows: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<Field> = rows
        .fields()
        .iter()
        .map(|field| field.as_ref().clone())
        .collect();
    fields.push(Field::new("valid_from", timestamp_type(), false));
    fields.push(Field::new("valid_to", timestamp_type(), true));
    fields.push(Field::new("is_current", DataType::Boolean, false));
    fields.push(Field::new("change_hash", DataType::Utf8, false));
    Arc::new(Schema::new(fields))
}

/// The newest stored version of a row.
struct Latest {
    index: usize,
    /// Its end, or its start while it is current: a new version begins after it.
    after: Micros,
    is_current: bool,
}

/// Returns the history with the present rows taken in, or `None` when nothing changed.
///
/// A new version begins at the row's `updated_at` when that lies between its last version and `now`,
/// and else at `now`.
pub(crate) fn extend(
    stored: &RecordBatch,
    rows: &RecordBatch,
    key: &[&str],
    now: Micros,
) -> Result<Option<RecordBatch>, ArrowError> {
    let mut valid_to: Vec<Option<Micros>> = times(stored, "valid_to")?.iter().collect();
    let latest = latest_versions(stored, key)?;
    let hashes: Vec<String> = row_texts(rows)?
        .iter()
        .map(|text| sha256([text.as_str()])[..32].to_owned())
        .collect();
    let stored_hashes = column(stored, "change_hash")?.as_string::<i32>().clone();
    let updated_at = match rows.column_by_name("updated_at") {
        Some(_) => times(rows, "updated_at")?.iter().collect(),
        None => vec![None; rows.num_rows()],
    };
    let mut new_rows: Vec<(usize, Micros)> = Vec::new();
    let mut present = HashSet::new();
    for (row, key_text) in keys(rows, key)?.into_iter().enumerate() {
        let known = latest.get(&key_text);
        present.insert(key_text);
        let floor = match known {
            Some(version)
                if version.is_current && stored_hashes.value(version.index) == hashes[row] =>
            {
                continue;
            }
            Some(version) => version.after,
            None => Micros::MIN,
        };
        let from = updated_at[row]
            .filter(|time| *time > floor && *time <= now)
            .unwrap_or_else(|| now.max(floor.saturating_add(1)));
        if let Some(version) = known.filter(|version| version.is_current) {
            valid_to[version.index] = Some(from);
        }
        new_rows.push((row, from));
    }
    let mut is_changed = !new_rows.is_empty();
    for (key_text, version) in &latest {
        if version.is_current && !present.contains(key_text) {
            valid_to[version.index] = Some(now.max(version.after.saturating_add(1)));
            is_changed = true;
        }
    }
    if !is_changed {
        return Ok(None);
    }
    let closed = with_validity(stored, valid_to)?;
    let added = versions(rows, stored.schema(), &new_rows, &hashes)?;
    let mut order: Vec<String> = key.iter().map(|&name| name.to_owned()).collect();
    order.push("valid_from".to_owned());
    sorted(
        &concat_batches(&stored.schema(), [&closed, &added])?,
        &order,
    )
    .map(Some)
}

fn latest_versions(
    stored: &RecordBatch,
    key: &[&str],
) -> Result<HashMap<String, Latest>, ArrowError> {
    let from = times(stored, "valid_from")?;
    let to = times(stored, "valid_to")?;
    let mut latest: HashMap<String, Latest> = HashMap::new();
    for (index, key_text) in keys(stored, key)?.into_iter().enumerate() {
        let is_current = to.is_null(index);
        let after = if is_current {
            from.value(index)
        } else {
            to.value(index)
        };
        let is_newer = latest
            .get(&key_text)
            .is_none_or(|known| !known.is_current && (is_current || after > known.after));
        if is_newer {
            latest.insert(
                key_text,
                Latest {
                    index,
                    after,
                    is_current,
                },
            );
        }
    }
    Ok(latest)
}

/// Returns the stored versions with their ends set.
fn with_validity(
    stored: &RecordBatch,
    valid_to: Vec<Option<Micros>>,
) -> Result<RecordBatch, ArrowError> {
    let is_current: BooleanArray = valid_to.iter().map(|end| Some(end.is_none())).collect();
    let valid_to = TimestampMicrosecondArray::from(valid_to).with_timezone("+00:00");
    let schema = stored.schema();
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .zip(stored.columns())
        .map(|(field, column)| match field.name().as_str() {
            "valid_to" => Arc::new(valid_to.clone()) as ArrayRef,
            "is_current" => Arc::new(is_current.clone()),
            _ => Arc::clone(column),
        })
        .collect();
    RecordBatch::try_new(schema.clone(), columns)
}

/// Returns new current versions of the chosen rows.
fn versions(
    rows: &RecordBatch,
    schema: SchemaRef,
    chosen: &[(usize, Micros)],
    hashes: &[String],
) -> Result<RecordBatch, ArrowError> {
    let indices: UInt64Array = chosen.iter().map(|(row, _)| *row as u64).collect();
    let taken = take_record_batch(rows, &indices)?;
    let from: TimestampMicrosecondArray = chosen.iter().map(|(_, from)| Some(*from)).collect();
    let mut columns: Vec<ArrayRef> = taken.columns().to_vec();
    columns.push(Arc::new(from.with_timezone("+00:00")));
    columns.push(arrow::array::new_null_array(
        &timestamp_type(),
        chosen.len(),
    ));
    columns.push(Arc::new(BooleanArray::from(vec![true; chosen.len()])));
    let hashes: StringArray = chosen
        .iter()
        .map(|(row, _)| Some(hashes[*row].as_str()))
        .collect();
    columns.push(Arc::new(hashes));
    RecordBatch::try_new(schema, columns)
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, ArrowError> {
    batch
        .column_by_name(name)
        .ok_or_else(|| ArrowError::SchemaError(format!("no column `{name}`")))
}

fn times(batch: &RecordBatch, name: &str) -> Result<TimestampMicrosecondArray, ArrowError> {
    Ok(column(batch, name)?
        .as_primitive::<TimestampMicrosecondType>()
        .clone())
}

fn keys(batch: &RecordBatch, key: &[&str]) -> Result<Vec<String>, ArrowError> {
    let indices: Vec<usize> = key
        .iter()
        .map(|name| batch.schema().index_of(name))
        .collect::<Result<_, _>>()?;
    row_texts(&batch.project(&indices)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(plans: &[(&str, &str, i64)]) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![
            Field::new("plan_id", DataType::Utf8, false),
            Field::new("name", DataType::Utf8, true),
            Field::new("updated_at", timestamp_type(), true),
        ]));
        let ids: StringArray = plans.iter().map(|plan| Some(plan.0)).collect();
        let names: StringArray = plans.iter().map(|plan| Some(plan.1)).collect();
        let times: TimestampMicrosecondArray = plans.iter().map(|plan| Some(plan.2)).collect();
        RecordBatch::try_new(
            schema,
            vec![
                Arc::new(ids),
                Arc::new(names),
                Arc::new(times.with_timezone("+00:00")),
            ],
        )
        .unwrap()
    }

    fn step(stored: &RecordBatch, plans: &[(&str, &str, i64)], now: Micros) -> Option<RecordBatch> {
        extend(stored, &rows(plans), &["plan_id"], now).unwrap()
    }

    fn intervals(history: &RecordBatch) -> Vec<(String, String, i64, Option<i64>)> {
        let ids = history.column(0).as_string::<i32>();
        let names = history.column(1).as_string::<i32>();
        let from = times(history, "valid_from").unwrap();
        let to: Vec<Option<i64>> = times(history, "valid_to").unwrap().iter().collect();
        (0..history.num_rows())
            .map(|row| {
                (
                    ids.value(row).to_owned(),
                    names.value(row).to_owned(),
                    from.value(row),
                    to[row],
                )
            })
            .collect()
    }

    #[test]
    fn versions_meet_and_deleted_rows_are_closed() {
        let empty = RecordBatch::new_empty(history_schema(&rows(&[]).schema()));
        let first = step(&empty, &[("a", "one", 10), ("b", "x", 20)], 100).unwrap();
        assert!(step(&first, &[("a", "one", 10), ("b", "x", 20)], 200).is_none());
        // `updated_at` lies in the interval; `b` is gone.
        let second = step(&first, &[("a", "two", 150)], 200).unwrap();
        let text = |id: &str, name: &str, from, to| (id.to_owned(), name.to_owned(), from, to);
        assert_eq!(
            intervals(&second),
            [
                text("a", "one", 10, Some(150)),
                text("a", "two", 150, None),
                text("b", "x", 20, Some(200)),
            ]
        );
        // A changed row with an old `updated_at`, and a row that comes back.
        let third = step(&second, &[("a", "three", 150), ("b", "x", 20)], 300).unwrap();
        assert_eq!(intervals(&third)[1], text("a", "two", 150, Some(300)));
        assert_eq!(intervals(&third)[2], text("a", "three", 300, None));
        assert_eq!(intervals(&third)[4], text("b", "x", 300, None));
    }
}
