//! Opening the catalog: it makes what is missing and says in one line what is wrong.

use headwater_tables::{Catalog, CatalogConfig, schema};

use crate::lake::{Lake, TODAY, ids, name};

#[tokio::test]
async fn a_catalog_reopens_with_its_tables() {
    let lake = Lake::new().await;
    lake.append(&lake.table().await, &[(1, TODAY)]).await;
    lake.catalog.ensure(&schema::raw_events()).await.unwrap();
    let reopened = lake.another_process().await;
    let tables = reopened.load_all().await.unwrap();
    let names: Vec<String> = tables.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["raw.events", "raw.small"]);
    assert_eq!(ids(&tables[&name()]).await, [1]);
    let heads = reopened.heads().await.unwrap();
    assert_eq!(
        Some(heads[1].1.as_str()),
        tables[&name()].metadata_location()
    );
}

#[tokio::test]
async fn a_missing_table_is_named() {
    let lake = Lake::new().await;
    let error = lake.catalog.load(&name()).await.unwrap_err();
    assert_eq!(error.to_string(), "the catalog has no table `raw.small`");
    assert!(
        lake.catalog
            .load_if_exists(&name())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("notes.txt"), "this is not a database, it is a note\n").unwrap();
    std::fs::write(
        path("cut.db"),
        b"SQLite format 3\0garbage that is no header",
    )
    .unwrap();
    std::fs::create_dir(path("directory")).unwrap();
    let sqlite = |name: &str| format!("sqlite://{}", path(name).display());
    let cases = [
        (sqlite("notes.txt"), "warehouse", "not a SQLite database"),
        (sqlite("cut.db"), "warehouse", "not a SQLite database"),
        (sqlite("directory"), "warehouse", "directory"),
        (sqlite("notes.txt/catalog.db"), "warehouse", "notes.txt"),
        (sqlite("good.db"), "notes.txt/warehouse", "notes.txt"),
        (
            "mysql://localhost/x".to_owned(),
            "warehouse",
            "not supported",
        ),
        ("sqlite://".to_owned(), "warehouse", "not supported"),
    ];
    for (uri, warehouse, reason) in cases {
        let config = CatalogConfig {
            uri: uri.clone(),
            warehouse: path(warehouse).display().to_string(),
            ..CatalogConfig::default()
        };
        let error = Catalog::open(&config).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{uri}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_together_make_a_table_once() {
    let lake = Lake::new().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let catalog = lake.another_process().await;
        tasks.spawn(async move { catalog.ensure(&schema::raw_events()).await.unwrap() });
    }
    let tables = tasks.join_all().await;
    let uuid = tables[0].metadata().uuid();
    assert!(tables.iter().all(|table| table.metadata().uuid() == uuid));
}
