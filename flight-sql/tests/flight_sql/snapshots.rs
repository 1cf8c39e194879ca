//! One query reads one set of snapshots, whatever is committed meanwhile.

use crate::harness::{Server, column, counter, fetch, query, texts};

#[tokio::test(flavor = "multi_thread")]
async fn result_is_the_same_however_often_it_is_fetched() {
    let server = Server::start().await;
    let mut client = server.client().await;
    server.append("core.counter", counter(1)).await;
    let info = client
        .execute("SELECT count(*) FROM core.counter".to_owned(), None)
        .await
        .unwrap();
    for n in 0..3 {
        server.append("core.counter", counter(n)).await;
        assert_eq!(
            texts(&fetch(&mut client, info.clone()).await.unwrap()),
            ["1"]
        );
    }
    assert_eq!(
        column(&mut client, "SELECT count(*) FROM core.counter").await,
        ["4"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_in_a_query_reads_the_same_snapshot_while_commits_go_on() {
    one_snapshot_while_commits_go_on(Server::start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_reads_the_same_snapshot_of_a_rest_catalog_while_commits_go_on() {
    one_snapshot_while_commits_go_on(Server::start_on_rest().await).await;
}

async fn one_snapshot_while_commits_go_on(server: Server) {
    let mut client = server.client().await;
    let catalog = server.catalog.clone();
    let commits = tokio::spawn(async move {
        for n in 0..25 {
            let base = catalog
                .load(&"core.counter".parse().unwrap())
                .await
                .unwrap();
            let files = headwater_tables::write::write_batches(&base, vec![counter(n)])
                .await
                .unwrap();
            catalog
                .commit(&base, headwater_tables::Change::append(files))
                .await
                .unwrap();
        }
    });
    let sql = "WITH a AS (SELECT count(*) AS c FROM core.counter), \
                    b AS (SELECT max(n) + 1 AS c FROM core.counter), \
                    d AS (SELECT count(DISTINCT n) AS c FROM headwater.core.counter) \
               SELECT a.c = COALESCE(b.c, 0) AND a.c = d.c, a.c FROM a, b, d";
    let mut seen = std::collections::BTreeSet::new();
    while !commits.is_finished() {
        let result = query(&mut client, sql).await.unwrap();
        assert_eq!(texts(&result), ["true"]);
        seen.insert(texts(&[result[0].project(&[1]).unwrap()]));
    }
    commits.await.unwrap();
    assert!(seen.len() > 1, "the queries saw no commit: {seen:?}");
    assert_eq!(
        column(&mut client, "SELECT count(*) FROM core.counter").await,
        ["25"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn flight_info_names_the_pinned_snapshots() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client.execute("SELECT 1".to_owned(), None).await.unwrap();
    let named: serde_json::Value = serde_json::from_slice(&info.app_metadata).unwrap();
    let table = server
        .catalog
        .load(&"core.zoo".parse().unwrap())
        .await
        .unwrap();
    let snapshot = table.metadata().current_snapshot_id().unwrap();
    assert_eq!(named["snapshots"]["core.zoo"], snapshot);
}
