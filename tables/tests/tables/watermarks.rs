//! Watermarks travel with the rows, survive everything, and tell when they cannot be trusted.

use headwater_tables::watermark::{WatermarkError, Watermarks};
use headwater_tables::{Change, Operation, Table, write};
use iceberg::TableUpdate;
use iceberg::spec::{SnapshotReference, SnapshotRetention};

use crate::lake::{Lake, TODAY, files, ids, name};

async fn commit_rows(lake: &Lake, base: &Table, agent: &str, sequence: u64) -> Table {
    let before = Watermarks::of(base).unwrap();
    let mut after = before.clone();
    after.advance(agent, 1, sequence);
    let change = Change {
        properties: after.changed_properties(&before),
        ..Change::append(files(base, &[(i64::try_from(sequence).unwrap(), TODAY)]).await)
    };
    lake.catalog.commit(base, change).await.unwrap()
}

#[tokio::test]
async fn watermarks_are_committed_with_their_rows() {
    let lake = Lake::new().await;
    let mut head = lake.table().await;
    for sequence in 1..=5 {
        head = commit_rows(&lake, &head, "agent-1", sequence).await;
        head = commit_rows(&lake, &head, "agent-2", sequence * 10).await;
    }
    let reopened = lake.another_process().await.load(&name()).await.unwrap();
    let watermarks = Watermarks::of(&reopened).unwrap();
    let all: Vec<_> = watermarks.agents().collect();
    assert_eq!(all, [("agent-1", 1, 5), ("agent-2", 1, 50)]);
    assert_eq!(ids(&reopened).await.len(), 10);
}

#[tokio::test]
async fn a_rewrite_carries_the_stamp_and_cannot_move_a_watermark() {
    let lake = Lake::new().await;
    let base = commit_rows(&lake, &lake.table().await, "agent-1", 1).await;
    let live = write::live_files(&base).await.unwrap();
    let change = Change {
        operation: Operation::Replace,
        add: files(&base, &[(1, TODAY)]).await,
        remove: live
            .iter()
            .map(|file| file.file_path().to_owned())
            .collect(),
        ..Change::default()
    };
    let before = Watermarks::of(&base).unwrap();
    let mut after = before.clone();
    after.advance("agent-1", 1, 2);
    let moving = Change {
        properties: after.changed_properties(&before),
        ..change.clone()
    };
    let error = lake.catalog.commit(&base, moving).await.unwrap_err();
    assert!(error.to_string().contains("moves no watermark"), "{error}");
    let head = lake.catalog.commit(&base, change).await.unwrap();
    assert_eq!(Watermarks::of(&head).unwrap(), before);
}

#[tokio::test]
async fn watermarks_of_another_version_are_refused() {
    let lake = Lake::new().await;
    let old = commit_rows(&lake, &lake.table().await, "agent-1", 1).await;
    let head = commit_rows(&lake, &old, "agent-1", 9).await;
    let before = Watermarks::of(&old).unwrap();
    let mut after = before.clone();
    after.advance("agent-1", 1, 5);
    let change = Change {
        properties: after.changed_properties(&before),
        ..Change::default()
    };
    let error = lake.catalog.commit(&head, change).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_table_that_was_rolled_back_is_not_trusted() {
    let lake = Lake::new().await;
    let old = commit_rows(&lake, &lake.table().await, "agent-1", 1).await;
    let head = commit_rows(&lake, &old, "agent-1", 2).await;
    let rollback = TableUpdate::SetSnapshotRef {
        ref_name: "main".to_owned(),
        reference: SnapshotReference::new(
            old.metadata().current_snapshot_id().unwrap(),
            SnapshotRetention::branch(None, None, None),
        ),
    };
    let head = lake.catalog.update(&head, vec![rollback]).await.unwrap();
    let error = Watermarks::of(&head).unwrap_err();
    assert!(
        matches!(error, WatermarkError::RolledBack { .. }),
        "{error}"
    );
}
