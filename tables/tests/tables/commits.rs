//! Commits: pinned to their base, atomic, read back, exact in their totals.

use std::collections::{BTreeMap, HashSet};

use headwater_tables::{Change, CommitError, Operation, Table, write};
use iceberg::spec::{SnapshotReference, SnapshotRetention};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use crate::lake::{Lake, TODAY, assert_totals, commit_together, files, ids, name, summary};

#[tokio::test]
async fn a_commit_on_a_stale_base_conflicts_and_changes_nothing() {
    let lake = Lake::new().await;
    let stale = lake.table().await;
    let head = lake.append(&stale, &[(1, TODAY)]).await;

    let change = Change::append(files(&stale, &[(2, TODAY)]).await);
    let again = change.clone();
    let error = lake.catalog.commit(&stale, change).await.unwrap_err();
    assert!(matches!(error, CommitError::Conflict { .. }), "{error}");
    assert!(error.is_retryable());
    assert_eq!(
        lake.head().await.metadata_location(),
        head.metadata_location()
    );
    assert_eq!(ids(&lake.head().await).await, [1]);

    // The files of the lost attempt are good for the next one.
    let head = lake.catalog.commit(&head, again).await.unwrap();
    assert_eq!(ids(&head).await, [1, 2]);
}

#[tokio::test]
async fn a_commit_also_conflicts_with_a_change_of_properties_alone() {
    let lake = Lake::new().await;
    let base = lake.table().await;
    let updates = vec![iceberg::TableUpdate::SetProperties {
        updates: [("owner".to_owned(), "me".to_owned())].into(),
    }];
    lake.catalog.update(&base, updates).await.unwrap();
    let change = Change::append(files(&base, &[(1, TODAY)]).await);
    let error = lake.catalog.commit(&base, change).await.unwrap_err();
    assert!(matches!(error, CommitError::Conflict { .. }), "{error}");
}

#[tokio::test]
async fn a_failed_database_commit_is_never_reported_as_done() {
    let lake = Lake::new().await;
    let base = lake.append(&lake.table().await, &[(1, TODAY)]).await;
    // The statement succeeds and the COMMIT fails: a deferred foreign key is violated.
    let mut database = connect(&lake).await;
    let sabotage = "
        CREATE TABLE parent (id INTEGER PRIMARY KEY);
        CREATE TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
        CREATE TRIGGER sabotage AFTER UPDATE ON iceberg_tables BEGIN
            INSERT INTO child VALUES (42);
        END;";
    sqlx::raw_sql(sabotage)
        .execute(&mut database)
        .await
        .unwrap();

    let change = Change::append(files(&base, &[(2, TODAY)]).await);
    let error = lake
        .catalog
        .commit(&base, change.clone())
        .await
        .unwrap_err();
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    assert!(error.is_retryable());
    let other = lake.another_process().await;
    assert_eq!(ids(&other.load(&name()).await.unwrap()).await, [1]);

    sqlx::raw_sql("DROP TRIGGER sabotage")
        .execute(&mut database)
        .await
        .unwrap();
    let head = lake.catalog.commit(&base, change).await.unwrap();
    assert_eq!(ids(&head).await, [1, 2]);
    assert_eq!(head.metadata().snapshots().len(), 2);
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_by_reading() {
    let lake = Lake::new().await;
    let base = lake.table().await;
    let change = Change::append(files(&base, &[(1, TODAY)]).await);
    let head = lake.catalog.commit(&base, change).await.unwrap();
    let id = &head
        .metadata()
        .current_snapshot()
        .unwrap()
        .summary()
        .additional_properties["headwater.commit-id"];
    // The caller that never got the answer sees the commit in the table, under its id.
    let other = lake.another_process().await.load(&name()).await.unwrap();
    let seen = other.metadata().snapshots().any(|snapshot| {
        snapshot
            .summary()
            .additional_properties
            .get("headwater.commit-id")
            == Some(id)
    });
    assert!(seen);
}

async fn connect(lake: &Lake) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(lake.database());
    options.connect().await.unwrap()
}

#[tokio::test]
async fn totals_are_exact_after_append_overwrite_and_replace() {
    let lake = Lake::new().await;
    let mut head = lake.table().await;
    for id in 0..3 {
        head = lake.append(&head, &[(id, TODAY), (id + 10, TODAY)]).await;
        assert_totals(&head).await;
    }
    assert_eq!(summary(&head, "added-records"), Some(2));

    // Overwrite: the first file goes, a file with one other row comes.
    let live = write::live_entries(&head).await.unwrap();
    let first = live.iter().min_by_key(|live| live.sequence_number).unwrap();
    let change = Change {
        operation: Operation::Overwrite,
        add: files(&head, &[(99, TODAY)]).await,
        remove: HashSet::from([first.file.file_path().to_owned()]),
        ..Change::default()
    };
    head = lake.catalog.commit(&head, change).await.unwrap();
    assert_totals(&head).await;
    assert_eq!(ids(&head).await, [1, 2, 11, 12, 99]);
    assert_eq!(summary(&head, "deleted-records"), Some(2));
    let operation = |table: &Table| {
        table
            .metadata()
            .current_snapshot()
            .unwrap()
            .summary()
            .operation
            .as_str()
            .to_owned()
    };
    assert_eq!(operation(&head), "overwrite");

    // Replace: three files become one with the same rows, as old as the base.
    let live = write::live_files(&head).await.unwrap();
    let base_sequence = head.metadata().last_sequence_number();
    let rows: Vec<_> = ids(&head).await.into_iter().map(|id| (id, TODAY)).collect();
    let change = Change {
        operation: Operation::Replace,
        add: files(&head, &rows).await,
        remove: live
            .iter()
            .map(|file| file.file_path().to_owned())
            .collect(),
        ..Change::default()
    };
    head = lake.catalog.commit(&head, change).await.unwrap();
    assert_totals(&head).await;
    assert_eq!(operation(&head), "replace");
    let live = write::live_entries(&head).await.unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].sequence_number, base_sequence);

    // Overwrite by nothing is a delete.
    let change = Change::replace_all(&head, Vec::new()).await.unwrap();
    head = lake.catalog.commit(&head, change).await.unwrap();
    assert_totals(&head).await;
    assert_eq!(operation(&head), "delete");
    assert_eq!(summary(&head, "total-records"), Some(0));
}

#[tokio::test]
async fn an_empty_append_moves_main_and_carries_properties() {
    let lake = Lake::new().await;
    let base = lake.append(&lake.table().await, &[(1, TODAY)]).await;
    let change = Change {
        properties: BTreeMap::from([("note".to_owned(), "seen".to_owned())]),
        summary: BTreeMap::from([("reason".to_owned(), "quarantined only".to_owned())]),
        ..Change::default()
    };
    let head = lake.catalog.commit(&base, change).await.unwrap();
    let snapshot = head.metadata().current_snapshot().unwrap();
    assert_ne!(
        Some(snapshot.snapshot_id()),
        base.metadata().current_snapshot_id()
    );
    assert_eq!(
        snapshot.summary().additional_properties["reason"],
        "quarantined only"
    );
    assert_eq!(head.metadata().properties()["note"], "seen");
    assert_eq!(ids(&head).await, [1]);
    assert_totals(&head).await;
}

#[tokio::test]
async fn what_was_set_on_main_stays_set() {
    let lake = Lake::new().await;
    let head = lake.append(&lake.table().await, &[(1, TODAY)]).await;
    let main = SnapshotReference::new(
        head.metadata().current_snapshot_id().unwrap(),
        SnapshotRetention::branch(Some(7), Some(86_400_000), None),
    );
    let kept = iceberg::TableUpdate::SetSnapshotRef {
        ref_name: "main".to_owned(),
        reference: main,
    };
    let head = lake.catalog.update(&head, vec![kept]).await.unwrap();
    let head = lake.append(&head, &[(2, TODAY)]).await;
    let stored = serde_json::to_value(head.metadata()).unwrap();
    let main = &stored["refs"]["main"];
    assert_eq!(main["min-snapshots-to-keep"], 7);
    assert_eq!(main["max-snapshot-age-ms"], 86_400_000);
    assert_eq!(
        main["snapshot-id"].as_i64(),
        head.metadata().current_snapshot_id()
    );
}

#[tokio::test]
async fn changes_that_contradict_the_base_are_refused() {
    let lake = Lake::new().await;
    let base = lake.append(&lake.table().await, &[(1, TODAY)]).await;
    let file = files(&base, &[(2, TODAY)]).await;
    let live = write::live_files(&base).await.unwrap()[0]
        .file_path()
        .to_owned();
    let cases = [
        (
            "not live",
            Change {
                operation: Operation::Overwrite,
                remove: HashSet::from(["file:///gone.parquet".to_owned()]),
                ..Change::default()
            },
        ),
        (
            "named twice",
            Change::append([file.clone(), file.clone()].concat()),
        ),
        (
            "removes no files",
            Change {
                remove: HashSet::from([live]),
                ..Change::default()
            },
        ),
        (
            "adds rows",
            Change {
                operation: Operation::Replace,
                add: file,
                ..Change::default()
            },
        ),
    ];
    for (reason, change) in cases {
        let error = lake.catalog.commit(&base, change).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(!error.is_retryable());
    }
    assert_eq!(
        lake.head().await.metadata_location(),
        base.metadata_location()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_committers_lose_nothing_and_double_nothing() {
    commit_together(&Lake::new().await).await;
}

#[tokio::test]
async fn what_a_crash_leaves_behind_does_not_matter() {
    let lake = Lake::new().await;
    let base = lake.append(&lake.table().await, &[(1, TODAY)]).await;
    // Killed after the data files, after a manifest, and in the middle of the metadata file.
    files(&base, &[(2, TODAY)]).await;
    let metadata = lake.directory.path().join("warehouse/raw/small/metadata");
    std::fs::write(metadata.join("0199aaaa-m0.avro"), b"half a mani").unwrap();
    let torn = "00099-0199aaaa-0000-7000-8000-000000000000.gz.metadata.json";
    std::fs::write(metadata.join(torn), b"\x1f\x8bhalf").unwrap();

    let catalog = lake.another_process().await;
    let table = catalog.load(&name()).await.unwrap();
    assert_eq!(ids(&table).await, [1]);
    let change = Change::append(files(&table, &[(3, TODAY)]).await);
    let head = catalog.commit(&table, change).await.unwrap();
    assert_eq!(ids(&head).await, [1, 3]);
    assert_totals(&head).await;
}
