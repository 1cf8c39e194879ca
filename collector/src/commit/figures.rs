//! What a commit shows: how fresh its events are, why others were quarantined, and whose they are.
//!
//! Beside the path: asked after a commit was read back. Promise: each event of a commit counts once, in the
//! attempt that committed it.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use headwater_service::clock::Micros;

use crate::metrics as names;
use crate::staging::event_rows::column;
use crate::staging::quarantine_rows;

/// Ages are told apart by this, in microseconds: a hundredth of the target for the slowest hundredth.
const AGE_STEP: i64 = 100_000;

/// Records for each event of `rows` (of `raw.events`) how long ago its agent accepted it.
pub(super) fn record_freshness(rows: &[RecordBatch], now: Micros) {
    let histogram = metrics::histogram!(names::FRESHNESS_SECONDS);
    for (step, events) in ages(rows, now) {
        #[expect(clippy::cast_precision_loss, reason = "steps are small")]
        let seconds = (step * AGE_STEP) as f64 / 1e6;
        histogram.record_many(seconds, events);
    }
}

/// Counts events by age, in steps, rounded up. Clocks of two machines may differ: no age is below zero.
fn ages(rows: &[RecordBatch], now: Micros) -> BTreeMap<i64, usize> {
    let mut ages = BTreeMap::new();
    for rows in rows {
        let received = rows.column(column::RECEIVED_AT);
        let received = received.as_primitive::<TimestampMicrosecondType>().values();
        // Neighbours were mostly accepted in one moment.
        for same in received.chunk_by(|one, next| one == next) {
            let age = now.saturating_sub(same[0]).max(0);
            let step = age / AGE_STEP + i64::from(age % AGE_STEP > 0);
            *ages.entry(step).or_insert(0) += same.len();
        }
    }
    ages
}

/// Counts `rows` (of `raw.quarantine`) by the reason that they carry.
pub(super) fn count_quarantined(rows: &[RecordBatch]) {
    for rows in rows {
        let reasons = rows
            .column(quarantine_rows::REASON_COLUMN)
            .as_string::<i32>();
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for reason in reasons.iter().flatten() {
            *counts.entry(reason).or_default() += 1;
        }
        for (reason, events) in counts {
            let reason = reason.to_owned();
            metrics::counter!(names::EVENTS_QUARANTINED, "reason" => reason).increment(events);
        }
    }
}

/// Calls `each` with a company and how many of `rows` (of `raw.events`) in a row are its.
pub(super) fn by_company(rows: &[RecordBatch], mut each: impl FnMut(&str, u64)) {
    for rows in rows {
        let companies = rows.column(column::COMPANY_ID).as_string::<i32>();
        let mut runs: Option<(&str, u64)> = None;
        for company in companies.iter().flatten() {
            match &mut runs {
                Some((same, events)) if *same == company => *events += 1,
                other => {
                    if let Some((done, events)) = other.replace((company, 1)) {
                        each(done, events);
                    }
                }
            }
        }
        if let Some((last, events)) = runs {
            each(last, events);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray, TimestampMicrosecondArray, new_null_array};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    /// Rows with a company and a time of arrival each.
    fn rows(events: &[(&str, i64)]) -> RecordBatch {
        let companies = StringArray::from_iter_values(events.iter().map(|event| event.0));
        let received = TimestampMicrosecondArray::from_iter_values(events.iter().map(|it| it.1));
        let mut columns: Vec<ArrayRef> =
            vec![new_null_array(&DataType::Utf8, events.len()); column::RECEIVED_AT + 1];
        columns[column::COMPANY_ID] = Arc::new(companies);
        columns[column::RECEIVED_AT] = Arc::new(received);
        let field = |(n, array): (usize, &ArrayRef)| {
            Field::new(format!("c{n}"), array.data_type().clone(), true)
        };
        let fields: Vec<Field> = columns.iter().enumerate().map(field).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    #[test]
    fn every_event_has_its_age_rounded_up() {
        let (now, second) = (1_000_000_000, 1_000_000);
        let rows = rows(&[
            ("a", now),
            ("a", now - second),
            ("a", now - second),
            ("a", now - second - 1),
            ("a", now + second),
        ]);
        let expected = BTreeMap::from([(0, 2), (10, 2), (11, 1)]);
        assert_eq!(ages(&[rows.slice(0, 2), rows.slice(2, 3)], now), expected);
    }

    #[test]
    fn every_event_counts_for_its_company() {
        let rows = rows(&[("a", 1), ("a", 1), ("b", 1), ("a", 1)]);
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        by_company(
            &[rows.clone(), rows.slice(0, 0), rows],
            |company, events| {
                *counts.entry(company.to_owned()).or_default() += events;
            },
        );
        let expected = [("a".to_owned(), 6), ("b".to_owned(), 2)];
        assert_eq!(counts, BTreeMap::from(expected));
    }
}
