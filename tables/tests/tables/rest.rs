//! An Iceberg REST server as catalog: Apache Iceberg's own, and what can stand between it and us.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema};
use headwater_tables::{
    Catalog, CatalogConfig, CatalogError, Change, CommitError, Partition, Table, TableSpec, schema,
};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::time::timeout;

use crate::lake::{Lake, TODAY, commit_together, files, ids, name};
use crate::relay::{DoorKeeper, Fault, Relay};
use crate::rest_server;

/// A lake whose catalog is behind a relay; the bases are made before.
async fn behind_a_relay() -> (Lake, Relay, Table, Catalog) {
    let mut lake = Lake::on_rest().await;
    let base = lake.table().await;
    let base = lake.append(&base, &[(1, TODAY)]).await;
    let (relay, uri) = Relay::through(&lake.config.uri).await;
    lake.config.uri = uri;
    lake.config.timeout_ms = 1_500;
    let catalog = lake.another_process().await;
    (lake, relay, base, catalog)
}

async fn change(base: &Table, id: i64) -> Change {
    Change::append(files(base, &[(id, TODAY)]).await)
}

/// Counts the manifests and manifest lists on the disk.
fn manifests(lake: &Lake) -> usize {
    let metadata = lake.directory.path().join("warehouse/raw/small/metadata");
    let entries = std::fs::read_dir(metadata).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".avro")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_committers_lose_nothing_and_double_nothing() {
    commit_together(&Lake::on_rest().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn programs_that_start_together_make_each_table_once() {
    const PROGRAMS: usize = 8;
    let directory = tempfile::tempdir().unwrap();
    let config = CatalogConfig {
        uri: rest_server::new_catalog(),
        ..CatalogConfig::local(directory.path())
    };
    let start = Arc::new(Barrier::new(PROGRAMS));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..PROGRAMS {
        let (config, start) = (config.clone(), start.clone());
        tasks.spawn(async move {
            start.wait().await;
            let catalog = Catalog::open(&config).await.unwrap();
            catalog.ensure(&schema::raw_events()).await.unwrap()
        });
    }
    let tables = tasks.join_all().await;
    let uuid = tables[0].metadata().uuid();
    assert!(tables.iter().all(|table| table.metadata().uuid() == uuid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_found_by_reading() {
    for fault in [
        Fault::DoneBut(500),
        Fault::DoneBut(503),
        Fault::DoneBut(429),
        Fault::DoneBut(408),
        Fault::DoneBut(404),
        // What a proxy gets that has sent it again.
        Fault::Twice,
        Fault::DoneBut(409),
        Fault::DoneInSilence,
        Fault::DoneAndCut,
    ] {
        let (lake, relay, base, catalog) = behind_a_relay().await;
        relay.strike(&[fault]);
        let head = catalog.commit(&base, change(&base, 2).await).await;
        let head = head.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        relay.assert_all_met();
        assert_eq!(ids(&head).await, [1, 2]);
        assert_eq!(
            head.metadata_location(),
            lake.head().await.metadata_location()
        );
        let next = catalog.commit(&head, change(&head, 3).await).await.unwrap();
        assert_eq!(ids(&next).await, [1, 2, 3]);
        assert_eq!(next.metadata().snapshots().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_not_done_is_done_again_with_the_same_files() {
    for fault in [
        Fault::NotDone(500),
        Fault::NotDone(503),
        Fault::NotDone(409),
        Fault::NotDone(200),
        Fault::Untrue,
        Fault::Lost,
    ] {
        let (_lake, relay, base, catalog) = behind_a_relay().await;
        relay.strike(&[fault]);
        let change = change(&base, 2).await;
        let error = catalog.commit(&base, change.clone()).await.unwrap_err();
        relay.assert_all_met();
        assert!(
            matches!(error, CommitError::Failed { .. }),
            "{fault:?}: {error}"
        );
        assert!(error.is_retryable(), "{error}");
        let head = catalog.commit(&base, change).await.unwrap();
        assert_eq!(ids(&head).await, [1, 2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_reported_and_not_set_is_an_error() {
    let (_lake, relay, _, catalog) = behind_a_relay().await;
    relay.strike(&[Fault::Untrue]);
    let error = catalog.ensure(&wider()).await.unwrap_err().to_string();
    assert!(error.contains("keeps the old head"), "{error}");
    let evolved = catalog.ensure(&wider()).await.unwrap();
    assert_eq!(evolved.metadata().schemas_iter().count(), 2);
}

/// The table of the lake with a column more.
fn wider() -> TableSpec {
    let mut fields = crate::lake::schema().fields().to_vec();
    fields.push(Arc::new(Field::new("city", DataType::Utf8, true)));
    let by_day = Partition::Day("at".to_owned());
    let spec = TableSpec::from_arrow(name(), &Schema::new(fields), by_day);
    spec.unwrap().sorted_by(&["id"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_are_deleted_only_after_a_refusal() {
    for (fault, is_deleted) in [(None, true), (Some(Fault::NotDone(500)), false)] {
        let (lake, relay, base, catalog) = behind_a_relay().await;
        lake.append(&base, &[(2, TODAY)]).await;
        let before = manifests(&lake);
        relay.strike(fault.as_slice());
        let error = catalog.commit(&base, change(&base, 3).await).await;
        assert!(
            matches!(error, Err(CommitError::Conflict { .. })),
            "{error:?}"
        );
        assert_eq!(manifests(&lake) == before, is_deleted, "{fault:?}");
        assert_eq!(ids(&lake.head().await).await, [1, 2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_built_upon_before_it_was_read_is_returned_as_it_was() {
    let (lake, relay, base, catalog) = behind_a_relay().await;
    relay.strike(&[Fault::Held]);
    let asked = change(&base, 2).await;
    let committing = {
        let catalog = catalog.clone();
        tokio::spawn(async move { catalog.commit(&base, asked).await })
    };
    relay.struck().await;
    let other = lake.head().await;
    lake.append(&other, &[(3, TODAY)]).await;
    relay.let_go();
    let ours = committing.await.unwrap().unwrap();
    assert_eq!(ids(&ours).await, [1, 2]);
    // Who goes on from there has not seen the other's row.
    let stale = catalog.commit(&ours, change(&ours, 4).await).await;
    assert!(
        matches!(stale, Err(CommitError::Conflict { .. })),
        "{stale:?}"
    );
    assert_eq!(ids(&lake.head().await).await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_comes_late_wins_or_loses_and_never_doubles() {
    for is_first in [true, false] {
        let (lake, relay, base, catalog) = behind_a_relay().await;
        relay.strike(&[Fault::Late]);
        let change = change(&base, 2).await;
        let given_up = catalog.commit(&base, change.clone()).await;
        assert!(
            matches!(given_up, Err(CommitError::Failed { .. })),
            "{given_up:?}"
        );
        relay.struck().await;
        if is_first {
            relay.let_go();
            relay.struck().await;
        }
        let again = catalog.commit(&base, change).await;
        assert_eq!(again.is_ok(), !is_first, "{again:?}");
        if !is_first {
            relay.let_go();
            relay.struck().await;
        }
        let head = lake.head().await;
        assert_eq!(ids(&head).await, [1, 2]);
        assert_eq!(head.metadata().snapshots().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_whose_answer_is_lost_is_compared_again() {
    for fault in [Fault::DoneBut(500), Fault::Twice, Fault::DoneAndCut] {
        let (_lake, relay, base, catalog) = behind_a_relay().await;
        relay.strike(&[fault]);
        let evolved = catalog.ensure(&wider()).await.unwrap();
        relay.assert_all_met();
        let metadata = evolved.metadata();
        assert!(metadata.current_schema().field_by_name("city").is_some());
        assert_eq!(metadata.schemas_iter().count(), 2);
        catalog.commit(&evolved, Change::default()).await.unwrap();
        // Files of the schema before do not go in unseen.
        let stale = catalog.commit(&base, change(&base, 2).await).await;
        assert!(stale.is_err_and(|error| error.is_retryable()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_heads_are_of_one_moment_or_none_are_told() {
    let (lake, relay, _, catalog) = behind_a_relay().await;
    for table in ["raw.other", "core.third"] {
        let table = table.parse().unwrap();
        let spec = TableSpec::from_arrow(table, &crate::lake::schema(), Partition::None);
        catalog.ensure(&spec.unwrap()).await.unwrap();
    }
    // The relay makes pages of one.
    let heads = catalog.heads().await.unwrap();
    let names: Vec<_> = heads.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["core.third", "raw.other", "raw.small"]);
    assert_eq!(catalog.load_all().await.unwrap().len(), 3);
    assert_eq!(
        Some(heads[2].1.as_str()),
        lake.head().await.metadata_location()
    );
    relay.set_restless();
    let error = timeout(Duration::from_secs(60), catalog.heads()).await;
    let error = error.unwrap().unwrap_err().to_string();
    assert!(error.contains("raise catalog.timeout_ms"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_is_given_up_and_found_again() {
    let (_lake, relay, _, catalog) = behind_a_relay().await;
    relay.set_silent(true);
    // More questions than places.
    for _ in 0..6 {
        let error = timeout(Duration::from_secs(20), catalog.load(&name())).await;
        let error = error.unwrap().unwrap_err();
        assert!(matches!(error, CatalogError::Unanswered { .. }), "{error}");
    }
    relay.set_silent(false);
    assert_eq!(ids(&catalog.load(&name()).await.unwrap()).await, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_for_renewed_once_and_never_shown() {
    let (mut lake, relay, _, _) = behind_a_relay().await;
    let keeper = DoorKeeper {
        credential: "client_id=me&client_secret=hunter2%26&scope=catalog".to_owned(),
        token: "token-1-hunter2".to_owned(),
        given: 0,
    };
    relay.post(keeper.clone());
    let credential = lake.directory.path().join("credential");
    std::fs::write(&credential, "me:hunter2&\n").unwrap();
    lake.config.rest.credential_file = Some(credential.clone());
    let catalog = lake.another_process().await;
    let base = catalog.load(&name()).await.unwrap();
    assert_eq!(relay.door_keeper().given, 1);
    // It ends before its time.
    let token = "token-2-hunter2".to_owned();
    relay.post(DoorKeeper {
        token,
        ..keeper.clone()
    });
    let head = catalog.commit(&base, change(&base, 2).await).await.unwrap();
    assert_eq!(ids(&head).await, [1, 2]);
    assert_eq!(relay.door_keeper().given, 1);

    // From a file that somebody keeps fresh.
    let token_file = lake.directory.path().join("token");
    std::fs::write(&token_file, "token-2-hunter2\n").unwrap();
    lake.config.rest.credential_file = None;
    lake.config.rest.token_file = Some(token_file.clone());
    let catalog = lake.another_process().await;
    let token = "token-3-hunter2".to_owned();
    relay.post(DoorKeeper { token, ..keeper });
    let asked = relay.asked().len();
    let error = catalog.load(&name()).await.unwrap_err();
    assert_eq!(
        relay.asked().len() - asked,
        2,
        "tried once more, not for ever"
    );
    assert_is_shown_without_secret(&error, &lake.config, "401");
    std::fs::write(&token_file, "token-3-hunter2\n").unwrap();
    assert_eq!(ids(&catalog.load(&name()).await.unwrap()).await, [1, 2]);

    // The token server repeats what it was sent.
    std::fs::write(&credential, "you:hunter2").unwrap();
    lake.config.rest.token_file = None;
    lake.config.rest.credential_file = Some(credential.clone());
    let error = Catalog::open(&lake.config).await.unwrap_err();
    assert_is_shown_without_secret(&error, &lake.config, "give a token");
    std::fs::write(&credential, "hunter2").unwrap();
    let error = Catalog::open(&lake.config).await.unwrap_err();
    assert_is_shown_without_secret(&error, &lake.config, "CLIENT_ID:SECRET");
}

fn assert_is_shown_without_secret(error: &CatalogError, config: &CatalogConfig, reason: &str) {
    let text = error.to_string();
    assert!(text.contains(reason), "{text}");
    let shown = format!("{text} {error:?} {config:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_is_said_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (silent_at, gone_at) = (silent.local_addr().unwrap(), gone.local_addr().unwrap());
    drop(gone);
    let small = CatalogConfig {
        uri: rest_server::new_catalog(),
        ..CatalogConfig::local(directory.path())
    };
    let at = |uri: String| CatalogConfig {
        uri,
        timeout_ms: 300,
        ..CatalogConfig::local(directory.path())
    };
    let mut cases = vec![
        (
            at(format!("rest+http://{silent_at}")),
            "no answer within 300 ms",
        ),
        (at(format!("rest+http://{gone_at}")), "refused"),
        (at(format!("rest+https://{gone_at}")), "refused"),
        (small.clone(), "catalog.rest.answer_bytes_max, 10 bytes"),
        (small.clone(), "no PEM certificate"),
        (small.clone(), "cannot use `/nowhere/ca.pem`"),
    ];
    cases[3].0.rest.answer_bytes_max = 10;
    let no_pem = directory.path().join("ca.pem");
    std::fs::write(&no_pem, "not PEM").unwrap();
    cases[4].0.rest.ca_file = Some(no_pem);
    cases[5].0.rest.ca_file = Some("/nowhere/ca.pem".into());
    for (config, reason) in cases {
        let text = Catalog::open(&config).await.unwrap_err().to_string();
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
