//! A table that is committed to for a long time does not make each commit dearer.

use std::collections::BTreeSet;
use std::path::Path;

use headwater_tables::{Change, write};
use iceberg::TableUpdate;
use iceberg::spec::{SnapshotReference, SnapshotRetention};

use crate::lake::{DAY, Lake, TODAY, assert_totals, files, ids, spec};

#[tokio::test]
async fn manifests_snapshots_and_metadata_files_stay_bounded() {
    const COMMITS: i64 = 60;
    let lake = Lake::new().await;
    let spec = spec()
        .with_property("commit.manifest.min-count-to-merge", "8")
        .with_property("headwater.snapshots-max", "12");
    let mut head = lake.catalog.ensure(&spec).await.unwrap();
    head = lake.append(&head, &[(0, TODAY)]).await;
    let tagged = head.metadata().current_snapshot_id().unwrap();
    let tag = TableUpdate::SetSnapshotRef {
        ref_name: "night".to_owned(),
        reference: SnapshotReference::new(
            tagged,
            SnapshotRetention::Tag {
                max_ref_age_ms: None,
            },
        ),
    };
    head = lake.catalog.update(&head, vec![tag]).await.unwrap();
    for id in 1..COMMITS {
        head = lake.append(&head, &[(id, TODAY - (id % 3) * DAY)]).await;
        assert!(head.metadata().snapshots().len() <= 12);
    }
    assert_eq!(ids(&head).await, (0..COMMITS).collect::<Vec<_>>());
    assert_totals(&head).await;
    // Merged entries keep their age: "added since" still tells old from new.
    let mut ages: Vec<i64> = write::live_entries(&head)
        .await
        .unwrap()
        .iter()
        .map(|live| live.sequence_number)
        .collect();
    ages.sort_unstable();
    assert_eq!(ages, (1..=COMMITS).collect::<Vec<_>>());

    let snapshot = head.metadata().current_snapshot().unwrap().clone();
    let list = head.manifest_list_reader(&snapshot).load().await.unwrap();
    assert!(list.entries().len() <= 8, "{}", list.entries().len());
    assert!(
        head.metadata().snapshot_by_id(tagged).is_some(),
        "a tagged snapshot stays"
    );
    let metadata = lake.directory.path().join("warehouse/raw/small/metadata");
    // 50 old ones and the head.
    assert_eq!(count(&metadata, ".metadata.json"), 51);
}

#[tokio::test]
async fn an_entry_is_not_written_again_with_every_merge() {
    const COMMITS: i64 = 60;
    let lake = Lake::new().await;
    let spec = spec().with_property("commit.manifest.min-count-to-merge", "4");
    let mut head = lake.catalog.ensure(&spec).await.unwrap();
    let mut largest = BTreeSet::new();
    for id in 0..COMMITS {
        head = lake.append(&head, &[(id, TODAY)]).await;
        let snapshot = head.metadata().current_snapshot().unwrap();
        let list = head.manifest_list_reader(snapshot).load().await.unwrap();
        let manifests = list.entries().iter();
        let manifest = manifests.max_by_key(|it| (it.existing_files_count, &it.manifest_path));
        largest.insert(manifest.unwrap().manifest_path.clone());
    }
    assert_eq!(ids(&head).await, (0..COMMITS).collect::<Vec<_>>());
    // Twenty merges, each of which would write the largest again.
    let written = largest.len();
    assert!((3..=12).contains(&written), "written {written} times");
}

fn count(directory: &Path, suffix: &str) -> usize {
    std::fs::read_dir(directory)
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .ends_with(suffix)
        })
        .count()
}

#[tokio::test]
async fn a_conflict_leaves_no_metadata_behind() {
    let lake = Lake::new().await;
    let stale = lake.table().await;
    lake.append(&stale, &[(1, TODAY)]).await;
    let metadata = lake.directory.path().join("warehouse/raw/small/metadata");
    let before = count(&metadata, "");
    let change = Change::append(files(&stale, &[(2, TODAY)]).await);
    lake.catalog.commit(&stale, change).await.unwrap_err();
    assert_eq!(count(&metadata, ""), before);
}
