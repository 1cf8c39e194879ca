//! Days as partitions at the edges of time, written and read in time zones that are not ours.
//!
//! Readers of other projects have put times before 1970 a day too late, and have pruned by the time
//! zone of the machine; `cargo xtask test` runs all tests in a zone half an hour off the hour, with
//! summer time.

use std::collections::BTreeMap;
use std::process::Command;

use headwater_tables::partitions::day_of;
use headwater_tables::{DataFile, Table, write};
use iceberg::spec::PrimitiveLiteral;
use serde_json::json;

use crate::lake::{DAY, Lake, TODAY, name};
use crate::pyiceberg::python_in;

/// Moments, in order, in microseconds since 1970. Python knows the years 1 to 9999.
const MOMENTS: [i64; 16] = [
    -62_135_596_800_000_000, // 0001-01-01T00:00:00
    -2_208_988_800_000_001,  // 1899-12-31T23:59:59.999999
    -DAY - 1,
    -DAY,
    -DAY + 1,
    -1,
    0,
    1,
    DAY - 1,
    DAY,
    // Around the hour that America/St_Johns has twice, and midnight of Asia/Kolkata.
    1_793_503_799_999_999,
    1_793_503_800_000_000,
    TODAY - 19_800_000_000,
    TODAY - 1,
    TODAY,
    253_402_300_799_999_999, // 9999-12-31T23:59:59.999999
];

fn rows() -> Vec<(i64, i64)> {
    // Not in order of time: a batch does not come sorted.
    let mut rows: Vec<_> = (0..).zip(MOMENTS).collect();
    rows.rotate_left(7);
    rows
}

/// Returns the first and the last moment of each day.
fn days() -> BTreeMap<i64, (i64, i64)> {
    let mut days = BTreeMap::new();
    for at in MOMENTS {
        days.entry(at.div_euclid(DAY)).or_insert((at, at)).1 = at;
    }
    days
}

/// Returns the same as a file says it, in its partition and its bounds.
fn day(table: &Table, file: &DataFile) -> (i64, (i64, i64)) {
    let schema = table.metadata().current_schema();
    let id = schema.field_id_by_name("at").unwrap();
    let [first, last] =
        [file.lower_bounds(), file.upper_bounds()].map(|bounds| match bounds[&id].literal() {
            PrimitiveLiteral::Long(at) => *at,
            other => panic!("{other:?}"),
        });
    let day = day_of(file).unwrap() - chrono::NaiveDate::default();
    (day.num_days(), (first, last))
}

#[tokio::test]
async fn every_moment_lies_in_its_day_of_utc() {
    let lake = Lake::new().await;
    let head = lake.append(&lake.table().await, &rows()).await;
    let live = write::live_files(&head).await.unwrap();
    let written: BTreeMap<_, _> = live.iter().map(|file| day(&head, file)).collect();
    assert_eq!(written, days());
    assert_eq!(live.len(), written.len(), "one file a day");
}

#[test]
fn the_writer_may_be_in_any_time_zone() {
    for zone in ["UTC", "Asia/Kolkata", "America/St_Johns"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "times::every_moment_lies_in_its_day_of_utc"])
            .env("TZ", zone)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{zone}: {said}");
        assert!(said.contains("1 passed"), "{zone}: {said}");
    }
}

#[tokio::test]
async fn the_reader_may_be_in_any_time_zone() {
    let lake = Lake::new().await;
    lake.append(&lake.table().await, &rows()).await;
    for zone in ["UTC", "Asia/Kolkata", "America/St_Johns"] {
        let seen = python_in(zone, &lake, "times", &name());
        let days: Vec<i64> = days().into_keys().collect();
        assert_eq!(seen["partitions"], json!(days), "{zone}");
        // What is pruned by partition and bounds is what a look at every row finds.
        for (n, at) in MOMENTS.iter().enumerate() {
            let from: Vec<usize> = (n..MOMENTS.len()).collect();
            assert_eq!(seen["from"][n], json!(from), "{zone}: {at}");
            assert_eq!(seen["at"][n], json!([n]), "{zone}: {at}");
        }
    }
}
