//! Swapping days: what the warehouse publishes.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::NaiveDate;
use headwater_tables::partitions::day_of;
use headwater_tables::{Change, Partition, Table, TableSpec, write};

use crate::lake::{DAY, Lake, TODAY, assert_totals, files, ids, name, summary};

fn date(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

#[tokio::test]
async fn swapping_a_day_replaces_exactly_that_day() {
    let lake = Lake::new().await;
    let mut head = lake.table().await;
    let rows = [
        (1, TODAY - 2 * DAY),
        (2, TODAY - DAY),
        (3, TODAY),
        (4, TODAY),
    ];
    head = lake.append(&head, &rows).await;
    head = lake.append(&head, &[(5, TODAY)]).await;
    let others: BTreeSet<String> = paths(&head, |day| day != date("2026-11-20")).await;

    let add = files(&head, &[(30, TODAY + DAY - 1)]).await;
    let days = BTreeSet::from([date("2026-11-20")]);
    let change = Change::swap_days(&head, &days, add).await.unwrap();
    assert_eq!(change.remove.len(), 2);
    head = lake.catalog.commit(&head, change).await.unwrap();
    assert_eq!(ids(&head).await, [1, 2, 30]);
    assert_totals(&head).await;
    assert_eq!(summary(&head, "deleted-records"), Some(3));
    // The other days are the same files, not equal rows.
    assert_eq!(paths(&head, |day| day != date("2026-11-20")).await, others);
}

async fn paths(table: &Table, keep: impl Fn(NaiveDate) -> bool) -> BTreeSet<String> {
    let live = write::live_files(table).await.unwrap();
    live.iter()
        .filter(|file| keep(day_of(file).unwrap()))
        .map(|file| file.file_path().to_owned())
        .collect()
}

#[tokio::test]
async fn several_days_are_published_in_one_commit() {
    let lake = Lake::new().await;
    let base = lake
        .append(&lake.table().await, &[(1, TODAY - DAY), (2, TODAY)])
        .await;
    let add = files(&base, &[(10, TODAY - DAY), (20, TODAY), (21, TODAY)]).await;
    assert_eq!(add.len(), 2);
    let days = BTreeSet::from([date("2026-11-19"), date("2026-11-20")]);
    let change = Change::swap_days(&base, &days, add).await.unwrap();
    let head = lake.catalog.commit(&base, change).await.unwrap();
    assert_eq!(ids(&head).await, [10, 20, 21]);
    assert_eq!(
        head.metadata().snapshots().len(),
        base.metadata().snapshots().len() + 1
    );
}

#[tokio::test]
async fn rows_of_another_day_are_refused() {
    let lake = Lake::new().await;
    let base = lake.table().await;
    let add = files(&base, &[(1, TODAY - DAY)]).await;
    let days = BTreeSet::from([date("2026-11-20")]);
    let error = Change::swap_days(&base, &days, add).await.unwrap_err();
    assert!(error.to_string().contains("2026-11-19"), "{error}");
}

#[tokio::test]
async fn a_table_partitioned_by_a_date_column_swaps_days_too() {
    let lake = Lake::new().await;
    let schema = Arc::new(Schema::new(vec![
        Field::new("report_date", DataType::Date32, false),
        Field::new("id", DataType::Int64, false),
    ]));
    let partition = Partition::Identity("report_date".to_owned());
    let report: headwater_tables::TableName = "reports.volume".parse().unwrap();
    let spec = TableSpec::from_arrow(report.clone(), &schema, partition).unwrap();
    let table = lake.catalog.ensure(&spec).await.unwrap();
    let rows = |values: &[(i32, i64)]| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Date32Array::from_iter_values(
                values.iter().map(|row| row.0),
            )),
            Arc::new(Int64Array::from_iter_values(values.iter().map(|row| row.1))),
        ];
        vec![RecordBatch::try_new(schema.clone(), columns).unwrap()]
    };
    // 20776 is 2026-11-19. The two days are interleaved in one batch.
    let add = write::write_batches(&table, rows(&[(20776, 1), (20777, 2), (20776, 3)]))
        .await
        .unwrap();
    assert_eq!(add.len(), 2);
    let days = BTreeSet::from([date("2026-11-19"), date("2026-11-20")]);
    let change = Change::swap_days(&table, &days, add).await.unwrap();
    let table = lake.catalog.commit(&table, change).await.unwrap();
    assert_eq!(ids(&table).await, [1, 2, 3]);

    let days = BTreeSet::from([date("2026-11-19")]);
    let change = Change::swap_days(&table, &days, Vec::new()).await.unwrap();
    let table = lake.catalog.commit(&table, change).await.unwrap();
    assert_eq!(ids(&table).await, [2]);
}

#[tokio::test]
async fn an_unpartitioned_table_has_no_days_and_is_replaced_whole() {
    let lake = Lake::new().await;
    let schema = crate::lake::schema();
    let plain: headwater_tables::TableName = "ops.plans".parse().unwrap();
    let spec = TableSpec::from_arrow(plain, &schema, Partition::None).unwrap();
    let mut table = lake.catalog.ensure(&spec).await.unwrap();
    for round in 0..3 {
        let add = files(&table, &[(round, TODAY), (round + 10, TODAY - 40 * DAY)]).await;
        assert_eq!(add.len(), 1);
        let change = Change::replace_all(&table, add).await.unwrap();
        table = lake.catalog.commit(&table, change).await.unwrap();
        assert_eq!(ids(&table).await, [round, round + 10]);
        assert_totals(&table).await;
    }
    let days = BTreeSet::from([date("2026-11-20")]);
    let error = Change::swap_days(&table, &days, Vec::new())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("not partitioned by day"),
        "{error}"
    );
    assert!(
        lake.catalog
            .load_if_exists(&name())
            .await
            .unwrap()
            .is_none()
    );
}
