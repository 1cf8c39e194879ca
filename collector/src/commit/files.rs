//! From staged rows to data files: cut, sort, write.
//!
//! Place on the path: between a commit's plan and its snapshot; CPU work on a blocking thread.
//! Promise: rows within a file are sorted by company, event time and message id; a file that no
//! snapshot refers to is harmless.

use std::collections::{BTreeSet, HashMap};

use arrow::array::{AsArray, BooleanArray, StringArray};
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use headwater_protocol::Sequence;
use headwater_tables::write::{WriteError, write_batches};
use headwater_tables::{DataFile, Table, blocking};

use crate::staging::event_rows::column;

/// Rows per sorted batch handed to the writer; bounds what is copied at once.
const ROWS_PER_BATCH: usize = 8192;

/// Why files could not be written; nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The rows cannot be sorted.
    #[error("rows cannot be sorted: {0}")]
    Sort(#[from] ArrowError),
    /// The files cannot be written; retry when the store is back.
    #[error("data files cannot be written: {0}")]
    Write(#[from] WriteError),
    /// The sorting thread died.
    #[error("the thread that sorts rows died: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// Returns the rows with a sequence above `after`, without copying them. Rows of a batch are in the
/// order of their sequences.
pub(crate) fn rows_after(
    rows: &RecordBatch,
    sequence_column: usize,
    after: Sequence,
) -> RecordBatch {
    let sequences = rows.column(sequence_column).as_primitive::<Int64Type>();
    let start = sequences
        .values()
        .partition_point(|sequence| sequence.cast_unsigned() <= after);
    rows.slice(start, rows.num_rows() - start)
}

/// Returns the rows but for those with these sequences.
pub(crate) fn rows_without(
    rows: RecordBatch,
    sequence_column: usize,
    sequences: &BTreeSet<Sequence>,
) -> RecordBatch {
    if sequences.is_empty() {
        return rows;
    }
    let column = rows.column(sequence_column).as_primitive::<Int64Type>();
    let is_kept = column
        .values()
        .iter()
        .map(|sequence| Some(!sequences.contains(&sequence.cast_unsigned())));
    let mask: BooleanArray = is_kept.collect();
    filter_record_batch(&rows, &mask).expect("the mask has a value per row")
}

/// Writes rows of `raw.events`, sorted.
pub(crate) async fn write_events(
    table: &Table,
    rows: Vec<RecordBatch>,
) -> Result<Vec<DataFile>, FilesError> {
    let sorted = blocking(move || sort_events(&rows)).await??;
    // Encodes on a blocking thread of its own.
    Ok(write_batches(table, sorted).await?)
}

/// Writes rows of `raw.quarantine` in the order they came.
pub(crate) async fn write_quarantine(
    table: &Table,
    rows: Vec<RecordBatch>,
) -> Result<Vec<DataFile>, FilesError> {
    Ok(write_batches(table, rows).await?)
}

/// Sorts the rows of all batches (staged rows of `raw.events`) by company, event time and message id.
///
/// # Errors
/// Only when the batches have different columns.
pub fn sort_events(batches: &[RecordBatch]) -> Result<Vec<RecordBatch>, ArrowError> {
    let texts = |batch: &RecordBatch, at: usize| batch.column(at).as_string::<i32>().clone();
    let companies: Vec<StringArray> = batches
        .iter()
        .map(|batch| texts(batch, column::COMPANY_ID))
        .collect();
    let messages: Vec<StringArray> = batches
        .iter()
        .map(|batch| texts(batch, column::MESSAGE_ID))
        .collect();
    let names: BTreeSet<&str> = companies.iter().flatten().flatten().collect();
    let ranks: HashMap<&str, u32> = names.into_iter().zip(0..).collect();
    let mut rows = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for (number, batch) in batches.iter().enumerate() {
        let times = batch.column(column::EVENT_TIME);
        let times = times.as_primitive::<TimestampMicrosecondType>().values();
        for (row, (company, time)) in companies[number].iter().flatten().zip(times).enumerate() {
            rows.push(((ranks[company], *time), (number, row)));
        }
    }
    // Company and time stand in the row itself: message ids are looked at only where these are the same.
    let message = |(batch, row): (usize, usize)| messages[batch].value(row);
    rows.sort_unstable_by(|left, right| {
        let order = left.0.cmp(&right.0);
        order.then_with(|| message(left.1).cmp(message(right.1)))
    });
    let order: Vec<(usize, usize)> = rows.into_iter().map(|(_, at)| at).collect();
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    order
        .chunks(ROWS_PER_BATCH)
        .map(|order| interleave_record_batch(&batches, order))
        .collect()
}

#[cfg(test)]
mod tests {
    use headwater_protocol::{BatchHeader, Codec, Record, SourceKind, batch};

    use super::*;
    use crate::plan::Plan;
    use crate::staging::{BatchOrigin, stage};

    /// Company, second of the event and message id.
    type Key = (&'static str, i64, &'static str);

    fn staged(rows: &[Key]) -> RecordBatch {
        let mut records = Vec::new();
        for (company, second, id) in rows {
            let body = format!(r#"{{"type":"track","event":"E","userId":"u","messageId":"{id}"}}"#);
            Record::new(
                second * 1_000_000,
                *company,
                "web",
                SourceKind::Server,
                "/",
                body,
            )
            .encode_into(&mut records);
        }
        let header = BatchHeader {
            epoch: 1,
            first_sequence: 1,
            count: rows.len() as u32,
            codec: Codec::Zstd,
            body_bytes: records.len() as u64,
        };
        let origin = BatchOrigin::new("agent-1".parse().unwrap(), 1, &header, 0);
        let body = batch::compress(&records).unwrap();
        stage(&origin, &header, &body, &Plan::builtin())
            .unwrap()
            .events
    }

    #[test]
    fn rows_of_all_batches_are_in_order_of_company_time_and_message() {
        let one = [
            ("b", 5, "m9"),
            ("a", 7, "m2"),
            ("c", 3, "m1"),
            ("a", 7, "m1"),
        ];
        let two = [("a", 6, "m7"), ("b", 1, "m8"), ("a", 7, "m0")];
        let sorted = sort_events(&[staged(&one), staged(&two)]).unwrap();
        let mut expected = [one.as_slice(), &two].concat();
        expected.sort_unstable();
        let mut found = Vec::new();
        for rows in &sorted {
            let companies = rows.column(column::COMPANY_ID).as_string::<i32>();
            let times = rows.column(column::EVENT_TIME);
            let times = times.as_primitive::<TimestampMicrosecondType>();
            let messages = rows.column(column::MESSAGE_ID).as_string::<i32>();
            found.extend((0..rows.num_rows()).map(|row| {
                (
                    companies.value(row),
                    times.value(row) / 1_000_000,
                    messages.value(row),
                )
            }));
        }
        assert_eq!(found, expected);
        assert!(sort_events(&[]).unwrap().is_empty());
    }
}
