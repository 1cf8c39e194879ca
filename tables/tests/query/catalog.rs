//! The whole path on the real catalog: our writer, our commits, our scan.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use headwater_tables::query::{Pins, SessionOptions, session};
use headwater_tables::write::write_batches;
use headwater_tables::{Catalog, CatalogConfig, Change, Partition, Table, TableName, TableSpec};

use crate::interactions::{FIRST_DAY_MICROS, HOUR_MICROS};
use crate::plans::{reads, value};

async fn open(directory: &tempfile::TempDir) -> Catalog {
    Catalog::open(&CatalogConfig::local(directory.path()))
        .await
        .unwrap()
}

pub(crate) fn visits() -> (TableName, Schema) {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("company", DataType::Utf8, false),
        Field::new("at", utc, false),
    ]);
    ("ops.visits".parse().unwrap(), schema)
}

pub(crate) fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let at = ids.clone().map(|id| FIRST_DAY_MICROS + id * HOUR_MICROS);
    let companies = ids.clone().map(|id| format!("company-{:04}", id / 24));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids)),
        Arc::new(StringArray::from_iter_values(companies)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(at).with_timezone("UTC")),
    ];
    RecordBatch::try_new(Arc::new(visits().1), columns).unwrap()
}

pub(crate) async fn append(catalog: &Catalog, base: &Table, batch: RecordBatch) -> Table {
    let files = write_batches(base, vec![batch]).await.unwrap();
    catalog.commit(base, Change::append(files)).await.unwrap()
}

#[tokio::test]
async fn what_is_committed_is_read_and_a_pinned_session_keeps_its_answer() {
    let directory = tempfile::tempdir().unwrap();
    let catalog = open(&directory).await;
    let (name, schema) = visits();
    let spec = TableSpec::from_arrow(name, &schema, Partition::Day("at".to_owned())).unwrap();
    let empty = catalog.ensure(&spec).await.unwrap();
    let first = append(&catalog, &empty, rows(0..240)).await;

    let pins = Pins::take(&catalog).await.unwrap();
    let pinned = session(&pins, &SessionOptions::default()).unwrap();
    append(&catalog, &first, rows(240..480)).await;
    let pins = Pins::take(&catalog).await.unwrap();
    let fresh = session(&pins, &SessionOptions::default()).unwrap();

    let count = "SELECT count(*) || '/' || sum(id) FROM ops.visits";
    assert_eq!(value(&pinned, count).await, "240/28680");
    assert_eq!(value(&fresh, count).await, "480/114960");
    let day = "SELECT count(*) FROM ops.visits WHERE at >= '2026-11-12T00:00:00Z' \
               AND at < '2026-11-13T00:00:00Z'";
    assert_eq!(value(&fresh, day).await, "24");
    assert_eq!(reads(&fresh, day).await.files, 1);
    let company = "SELECT count(*) FROM ops.visits WHERE company = 'company-0003'";
    assert_eq!(value(&fresh, company).await, "24");
    assert_eq!(reads(&fresh, company).await.files, 1);
    let bounds = "SELECT min(id) + max(id) + count(*) FROM ops.visits";
    assert_eq!(value(&fresh, bounds).await, "959");
    assert_eq!(reads(&fresh, bounds).await.scans, 0);
}
