//! Tables in a bucket: large files go in parts, and what breaks on the way is no part of the table.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use headwater_tables::{Catalog, Change, DataFile, Table, write};

use crate::lake::{Lake, TODAY, assert_totals, commit_together, files, ids, name, schema, spec};
use crate::s3_server::{Asked, Fate, S3, SECRET};

const ROWS: i64 = 200;

/// Rows of one day that make a file of more than two parts.
fn large() -> RecordBatch {
    let noise = || (0..7_500).map(|_| format!("{:016x}", rand::random::<u64>()));
    let notes = (0..ROWS).map(|_| noise().collect::<String>());
    let times = std::iter::repeat_n(TODAY, usize::try_from(ROWS).unwrap());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(0..ROWS)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(notes)),
    ];
    RecordBatch::try_new(Arc::new(schema()), columns).unwrap()
}

async fn write_large(table: &Table) -> Result<Vec<DataFile>, write::WriteError> {
    write::write_batches(table, vec![large()]).await
}

fn is_part(asked: &Asked) -> bool {
    asked.method == "PUT" && asked.query.contains("partNumber")
}

/// Whether the parts are put together.
fn is_end(asked: &Asked) -> bool {
    asked.method == "POST" && asked.query.contains("uploadId")
}

fn data_files(service: &S3) -> usize {
    let keys = service.keys();
    let is_data = |key: &&String| key.ends_with(".parquet");
    keys.iter().filter(is_data).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_several_processes_keep_each_row_once() {
    commit_together(&Lake::on_s3().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_goes_in_parts_that_are_asked_again_when_they_fail() {
    let lake = Lake::on_s3().await;
    let base = lake.table().await;
    let parts = AtomicUsize::new(0);
    let fates = [
        Fate::Refused(503),
        Fate::Served,
        Fate::AnswerLost,
        Fate::Cut,
        Fate::Served,
    ];
    lake.s3().breaks(move |asked| {
        let number = if is_part(asked) {
            parts.fetch_add(1, Ordering::Relaxed)
        } else {
            1
        };
        fates.get(number).copied().unwrap_or(Fate::Served)
    });
    let written = write_large(&base).await.unwrap();
    assert_eq!(written.len(), 1);
    let bytes = written[0].file_size_in_bytes();
    assert!(bytes > 10 << 20, "{bytes} bytes are three parts");
    let served = lake
        .s3()
        .count(|asked, fate| is_part(asked) && fate == Fate::Served);
    let broken = lake.s3().count(|_, fate| fate != Fate::Served);
    assert!(
        served >= 3 && broken == 3,
        "{served} served, {broken} broken"
    );
    let head = lake.catalog.commit(&base, Change::append(written)).await;
    let head = head.unwrap();
    assert_eq!(ids(&head).await, Vec::from_iter(0..ROWS));
    assert_totals(&head).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_last_answer_is_lost_is_written_anew_and_read_once() {
    let lake = Lake::on_s3().await;
    let base = lake.table().await;
    let ends = AtomicUsize::new(0);
    lake.s3().breaks(move |asked| {
        let is_first = is_end(asked) && ends.fetch_add(1, Ordering::Relaxed) == 0;
        if is_first {
            Fate::AnswerLost
        } else {
            Fate::Served
        }
    });
    // The parts are gone when the service is asked again: it does not say whether they became a file.
    let error = write_large(&base).await.unwrap_err().to_string();
    assert!(error.contains("cannot write `s3://lake/"), "{error}");
    let left = data_files(lake.s3());
    assert_eq!(left, 1, "the file is there, and nothing refers to it");
    let written = write_large(&base).await.unwrap();
    let head = lake.catalog.commit(&base, Change::append(written)).await;
    assert_eq!(ids(&head.unwrap()).await, Vec::from_iter(0..ROWS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_that_fails_leaves_nothing_behind() {
    let lake = Lake::on_s3().await;
    let base = lake.table().await;
    lake.s3().breaks(|asked| match is_part(asked) {
        true => Fate::Refused(403),
        false => Fate::Served,
    });
    let error = write_large(&base).await.unwrap_err().to_string();
    assert!(
        error.contains("cannot write `s3://lake/some/where/raw/small/data/"),
        "{error}"
    );
    assert!(!error.contains('\n') && !error.contains(SECRET), "{error}");
    // Parts are cleared away behind the writer's back.
    let cleared = |asked: &Asked, _| asked.method == "DELETE" && asked.query.contains("uploadId");
    while lake.s3().count(cleared) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(data_files(lake.s3()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_cannot_be_written_changes_nothing_and_can_be_tried_again() {
    let lake = Lake::on_s3().await;
    let base = lake.table().await;
    let change = Change::append(files(&base, &[(1, TODAY), (2, TODAY)]).await);
    lake.s3()
        .breaks(|asked| match asked.path.ends_with(".metadata.json") {
            true => Fate::Refused(500),
            false => Fate::Served,
        });
    let error = lake
        .catalog
        .commit(&base, change.clone())
        .await
        .unwrap_err();
    assert!(error.is_retryable());
    let error = error.to_string();
    assert!(
        error.contains("nothing was committed") && error.contains("tried again 5 times"),
        "{error}"
    );
    lake.s3().is_well();
    assert_eq!(ids(&lake.head().await).await, Vec::<i64>::new());
    let head = lake.catalog.commit(&base, change).await.unwrap();
    assert_eq!(ids(&head).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_metadata_files_are_deleted_from_the_bucket() {
    const COMMITS: i64 = 9;
    let lake = Lake::on_s3().await;
    let spec = spec().with_property("write.metadata.previous-versions-max", "3");
    let mut head = lake.catalog.ensure(&spec).await.unwrap();
    for id in 0..COMMITS {
        head = lake.append(&head, &[(id, TODAY)]).await;
    }
    let keys = lake.s3().keys();
    let metadata = keys.iter().filter(|key| key.ends_with(".metadata.json"));
    // Three old ones and the head.
    assert_eq!(metadata.count(), 4, "{keys:?}");
    let read = lake.another_process().await.load(&name()).await.unwrap();
    assert_eq!(ids(&read).await, Vec::from_iter(0..COMMITS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_reads_the_same_and_a_table_of_another_place_is_named() {
    let lake = Lake::on_s3().await;
    let table = lake.table().await;
    lake.append(&table, &[(1, TODAY)]).await;
    let other = lake.another_process().await;
    assert_eq!(ids(&other.load(&name()).await.unwrap()).await, [1]);
    let mut config = lake.config.clone();
    std::fs::create_dir(lake.s3().bucket().with_file_name("pond")).unwrap();
    config.warehouse = "s3://pond/".to_owned();
    let moved = Catalog::open(&config).await.unwrap();
    let error = moved.load(&name()).await.unwrap_err().to_string();
    assert!(
        error.contains("s3://lake") && error.contains("s3://pond"),
        "{error}"
    );
    let shown = format!("{lake:?} {moved:?}", lake = lake.catalog);
    assert!(!shown.contains(SECRET), "{shown}");
}
