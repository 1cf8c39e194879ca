//! Days as partitions at the edges of time, read by PyIceberg in time zones that are not ours.
//!
//! Readers of other projects have put times before 1970 a day too late, and have pruned by the time
//! zone of the machine; `cargo xtask test` runs all tests in a zone half an hour off the hour, with
//! summer time.

use std::collections::BTreeSet;

use headwater_tables::partitions::day_of;
use headwater_tables::write;
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

#[tokio::test]
async fn every_moment_lies_in_its_day_of_utc() {
    let lake = Lake::new().await;
    let head = lake.append(&lake.table().await, &rows()).await;
    let expected: BTreeSet<i64> = MOMENTS.iter().map(|at| at.div_euclid(DAY)).collect();
    let live = write::live_files(&head).await.unwrap();
    let epoch = chrono::NaiveDate::default();
    let days = live
        .iter()
        .map(|file| (day_of(file).unwrap() - epoch).num_days());
    assert_eq!(days.collect::<BTreeSet<_>>(), expected);
    assert_eq!(live.len(), expected.len(), "one file a day");

    for zone in ["UTC", "Asia/Kolkata", "America/St_Johns"] {
        let seen = python_in(zone, &lake, "times", &name());
        let days: Vec<i64> = expected.iter().copied().collect();
        assert_eq!(seen["partitions"], json!(days), "{zone}");
        // What is pruned by partition and bounds is what a look at every row finds.
        for (n, at) in MOMENTS.iter().enumerate() {
            let from: Vec<usize> = (n..MOMENTS.len()).collect();
            assert_eq!(seen["from"][n], json!(from), "{zone}: {at}");
            assert_eq!(seen["at"][n], json!([n]), "{zone}: {at}");
        }
    }
}
