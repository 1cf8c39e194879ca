//! A reader and writer that is not ours: PyIceberg on the same catalog.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use headwater_tables::watermark::Watermarks;
use headwater_tables::{Change, CommitError, Operation, Partition, TableName, TableSpec, write};
use serde_json::{Value, json};

use crate::lake::{DAY, Lake, TODAY, assert_totals, files, ids, name, schema};
use crate::s3_server::{KEY_ID, SECRET};

/// Runs the script next to this file on the catalog and returns what it printed.
fn python(lake: &Lake, command: &str, table: &TableName) -> Value {
    python_in("UTC", lake, command, table)
}

/// The same, on a machine in the time zone `zone`.
pub(crate) fn python_in(zone: &str, lake: &Lake, command: &str, table: &TableName) -> Value {
    let python = std::env::var("HEADWATER_PYTHON").expect(
        "HEADWATER_PYTHON is not set: run `cargo xtask test`, which installs PyIceberg, or set it to a python that has pyiceberg",
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables/pyiceberg_peer.py");
    let output = Command::new(python)
        .arg(script)
        .args([command, &table.to_string()])
        .arg(sqlalchemy(&lake.config.uri))
        .arg(warehouse(&lake.config.warehouse))
        .arg(properties(lake).to_string())
        .env("TZ", zone)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns a warehouse as PyIceberg writes it.
fn warehouse(place: &str) -> String {
    if place.contains("://") {
        return place.to_owned();
    }
    format!("file://{place}")
}

/// Returns how PyIceberg reaches the store.
fn properties(lake: &Lake) -> Value {
    match &lake.s3 {
        None => json!({}),
        Some(service) => json!({
            "s3.endpoint": service.endpoint(),
            "s3.access-key-id": KEY_ID,
            "s3.secret-access-key": SECRET,
            "s3.region": "us-east-1",
        }),
    }
}

/// Returns the address of a catalog as PyIceberg writes it.
fn sqlalchemy(uri: &str) -> String {
    match uri.split_once("://") {
        Some(("sqlite", path)) => format!("sqlite:///{path}"),
        Some(("rest+http", place)) => format!("http://{place}"),
        Some((_, place)) => format!("postgresql+psycopg://{place}"),
        None => panic!("{uri}"),
    }
}

#[tokio::test]
async fn pyiceberg_reads_what_we_commit_to_sqlite() {
    pyiceberg_reads_what_we_commit(Lake::new().await).await;
}

#[tokio::test]
async fn pyiceberg_reads_what_we_commit_to_postgres() {
    pyiceberg_reads_what_we_commit(Lake::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pyiceberg_reads_what_we_commit_to_s3() {
    pyiceberg_reads_what_we_commit(Lake::on_s3().await).await;
}

#[tokio::test]
async fn pyiceberg_reads_what_we_commit_over_rest() {
    pyiceberg_reads_what_we_commit(Lake::on_rest().await).await;
}

async fn pyiceberg_reads_what_we_commit(lake: Lake) {
    let mut head = lake.table().await;
    head = lake.append(&head, &[(1, TODAY), (2, TODAY - DAY)]).await;
    head = lake.append(&head, &[(3, TODAY)]).await;
    // One replaced snapshot: the two files of today become one.
    let live = write::live_files(&head).await.unwrap();
    let today: BTreeSet<_> = [chrono::NaiveDate::from_ymd_opt(2026, 11, 20).unwrap()].into();
    let is_today = |file: &&headwater_tables::DataFile| {
        headwater_tables::partitions::day_of(file).is_some_and(|day| today.contains(&day))
    };
    let replace = Change {
        operation: Operation::Replace,
        add: files(&head, &[(1, TODAY), (3, TODAY)]).await,
        remove: live
            .iter()
            .filter(is_today)
            .map(|file| file.file_path().to_owned())
            .collect(),
        ..Change::default()
    };
    head = lake.catalog.commit(&head, replace).await.unwrap();
    // A swapped day, and a watermark.
    let swap = Change::swap_days(&head, &today, files(&head, &[(7, TODAY), (8, TODAY)]).await);
    head = lake
        .catalog
        .commit(&head, swap.await.unwrap())
        .await
        .unwrap();
    let before = Watermarks::of(&head).unwrap();
    let mut after = before.clone();
    after.advance("agent-1", 1, 8);
    let change = Change {
        properties: after.changed_properties(&before),
        ..Change::append(files(&head, &[(9, TODAY)]).await)
    };
    lake.catalog.commit(&head, change).await.unwrap();

    let seen = python(&lake, "read", &name());
    assert_eq!(seen["ids"], json!([2, 7, 8, 9]));
    assert_eq!(
        seen["one_day"],
        json!([7, 8, 9]),
        "partition and bounds prune to the right rows"
    );
    assert_eq!(seen["by_note"], json!([7]));
    assert_eq!(
        seen["operations"],
        json!(["append", "append", "replace", "overwrite", "append"])
    );
    assert_eq!(seen["total_records"], json!("4"));
    assert_eq!(seen["total_data_files"], json!("3"));
    assert_eq!(
        seen["replaced_ids"],
        json!([1, 2, 3]),
        "the replaced snapshot reads the same rows"
    );
}

#[tokio::test]
async fn we_read_what_pyiceberg_commits_to_sqlite_and_go_on_from_there() {
    we_read_what_pyiceberg_commits_and_go_on_from_there(Lake::new().await).await;
}

#[tokio::test]
async fn we_read_what_pyiceberg_commits_to_postgres_and_go_on_from_there() {
    we_read_what_pyiceberg_commits_and_go_on_from_there(Lake::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn we_read_what_pyiceberg_commits_to_s3_and_go_on_from_there() {
    we_read_what_pyiceberg_commits_and_go_on_from_there(Lake::on_s3().await).await;
}

#[tokio::test]
async fn we_read_what_pyiceberg_commits_over_rest_and_go_on_from_there() {
    we_read_what_pyiceberg_commits_and_go_on_from_there(Lake::on_rest().await).await;
}

async fn we_read_what_pyiceberg_commits_and_go_on_from_there(lake: Lake) {
    let plain: TableName = "raw.plain".parse().unwrap();
    let spec = TableSpec::from_arrow(plain.clone(), &schema(), Partition::None).unwrap();
    let table = lake.catalog.ensure(&spec).await.unwrap();
    let before = Watermarks::of(&table).unwrap();
    let mut after = before.clone();
    after.advance("agent-1", 1, 3);
    let change = Change {
        properties: after.changed_properties(&before),
        ..Change::append(files(&table, &[(1, TODAY), (2, TODAY), (3, TODAY)]).await)
    };
    let ours = lake.catalog.commit(&table, change).await.unwrap();

    // It appends a row, and deletes one by rewriting our file.
    let wrote = python(&lake, "write", &plain);
    let theirs = lake.catalog.load(&plain).await.unwrap();
    assert_eq!(
        theirs.metadata_location(),
        wrote["metadata_location"].as_str()
    );
    assert_eq!(ids(&theirs).await, [1, 3, 100]);
    assert_eq!(Watermarks::of(&theirs).unwrap().get("agent-1", 1), 3);
    let change = Change::append(files(&ours, &[(10, TODAY)]).await);
    let stale = lake.catalog.commit(&ours, change.clone()).await;
    assert!(matches!(stale, Err(CommitError::Conflict { .. })));
    let head = lake.catalog.commit(&theirs, change).await.unwrap();
    assert_eq!(ids(&head).await, [1, 3, 10, 100]);
    assert_totals(&head).await;
}
