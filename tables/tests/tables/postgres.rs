//! PostgreSQL as catalog, on the real server of `HEADWATER_TEST_POSTGRES`, and what a network between
//! us and it can do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headwater_tables::{Catalog, CatalogConfig, Change, CommitError, schema};
use sqlx::{Connection, Executor, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::time::timeout;

use crate::lake::{Lake, TODAY, commit_together, files, ids, name};

fn server() -> String {
    std::env::var("HEADWATER_TEST_POSTGRES").expect(
        "set HEADWATER_TEST_POSTGRES to the postgres:// address of a server this test may create databases in; `cargo xtask test` starts one",
    )
}

/// Makes a schema and returns an address whose sessions work in it.
pub(crate) async fn database() -> String {
    let name = format!("catalog_{}", uuid::Uuid::new_v4().simple());
    let mut connection = PgConnection::connect(&server()).await.unwrap();
    let create = format!("CREATE SCHEMA {name}");
    connection.execute(create.as_str()).await.unwrap();
    format!("{}?options=-csearch_path%3D{name}", server())
}

#[tokio::test]
async fn concurrent_committers_lose_nothing_and_double_nothing() {
    commit_together(&Lake::on_postgres().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn programs_that_start_together_make_the_catalog_once() {
    const PROGRAMS: usize = 8;
    for _ in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let config = CatalogConfig {
            uri: database().await,
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
}

#[tokio::test]
async fn who_only_reads_need_not_be_allowed_to_make_tables() {
    let lake = Lake::on_postgres().await;
    lake.append(&lake.table().await, &[(1, TODAY)]).await;
    let mut admin = PgConnection::connect(&lake.config.uri).await.unwrap();
    let reader = format!("reader_{}", uuid::Uuid::new_v4().simple());
    let grants = format!(
        "CREATE ROLE {reader} LOGIN; \
         DO $$ BEGIN EXECUTE 'GRANT USAGE ON SCHEMA ' || current_schema || ' TO {reader}'; END $$; \
         GRANT SELECT ON iceberg_tables, iceberg_namespace_properties TO {reader}"
    );
    sqlx::raw_sql(&grants).execute(&mut admin).await.unwrap();
    let config = CatalogConfig {
        uri: lake
            .config
            .uri
            .replace("//headwater@", &format!("//{reader}@")),
        ..lake.config.clone()
    };
    let catalog = Catalog::open(&config).await.unwrap();
    let table = catalog.load(&name()).await.unwrap();
    assert_eq!(ids(&table).await, [1]);
    let change = Change::append(files(&table, &[(2, TODAY)]).await);
    let error = catalog.commit(&table, change).await.unwrap_err();
    assert!(error.to_string().contains("permission denied"), "{error}");
}

#[tokio::test]
async fn a_lock_of_somebody_else_is_waited_for_within_the_bound() {
    let mut lake = Lake::on_postgres().await;
    let base = lake.table().await;
    lake.config.timeout_ms = 300;
    let catalog = lake.another_process().await;
    let mut other = PgConnection::connect(&lake.config.uri).await.unwrap();
    let mut held = other.begin().await.unwrap();
    held.execute("SELECT 1 FROM iceberg_tables FOR UPDATE")
        .await
        .unwrap();
    let change = Change::append(files(&base, &[(1, TODAY)]).await);
    let error = catalog.commit(&base, change.clone()).await.unwrap_err();
    assert!(matches!(error, CommitError::Failed { .. }), "{error}");
    assert!(error.is_retryable());
    held.rollback().await.unwrap();
    let head = catalog.commit(&base, change).await.unwrap();
    assert_eq!(ids(&head).await, [1]);
}

#[tokio::test]
async fn what_cannot_be_reached_is_said_in_one_line_without_the_password() {
    let directory = tempfile::tempdir().unwrap();
    let password_file = directory.path().join("password");
    std::fs::write(&password_file, "hunter2\n").unwrap();
    // Takes connections and says nothing; nobody listens where the other one was.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (silent_at, gone_at) = (silent.local_addr().unwrap(), gone.local_addr().unwrap());
    drop(gone);
    let missing = Some(directory.path().join("missing"));
    let cases = [
        (
            silent_at,
            Some(password_file.clone()),
            "no answer within 200 ms",
        ),
        (gone_at, Some(password_file), "refused"),
        (gone_at, missing, "missing"),
    ];
    for (address, password_file, reason) in cases {
        let config = CatalogConfig {
            uri: format!("postgresql://me@{address}/db"),
            password_file,
            connect_timeout_ms: 200,
            ..CatalogConfig::local(directory.path())
        };
        let error = Catalog::open(&config).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(reason), "{text}");
        assert!(!text.contains('\n'), "{text}");
        assert!(!format!("{text} {error:?} {config:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_commit_whose_answer_never_comes_is_found_by_reading() {
    for fault in [Fault::Silence, Fault::Break] {
        let mut lake = Lake::on_postgres().await;
        let base = lake.table().await;
        let network = Network::before(&server(), fault).await;
        lake.config.uri = network.through(&lake.config.uri);
        lake.config.timeout_ms = 500;
        let catalog = lake.another_process().await;
        let change = Change::append(files(&base, &[(1, TODAY)]).await);
        network.is_armed.store(true, Ordering::SeqCst);
        let head = catalog.commit(&base, change).await.unwrap();
        assert!(
            !network.is_armed.load(Ordering::SeqCst),
            "no answer was lost"
        );
        assert_eq!(ids(&head).await, [1]);
        let other = lake.another_process().await.load(&name()).await.unwrap();
        assert_eq!(other.metadata_location(), head.metadata_location());
    }
}

#[tokio::test]
async fn a_catalog_that_falls_silent_is_given_up_and_found_again() {
    let mut lake = Lake::on_postgres().await;
    lake.table().await;
    let network = Network::before(&server(), Fault::Silence).await;
    lake.config.uri = network.through(&lake.config.uri);
    lake.config.timeout_ms = 500;
    lake.config.connect_timeout_ms = 2_000;
    lake.config.connections_max = 1;
    let catalog = lake.another_process().await;
    catalog.heads().await.unwrap();
    network.is_silent.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        // A test of the kept connection and a new one, each in its bound; a busy machine takes longer.
        let error = timeout(Duration::from_secs(20), catalog.heads()).await;
        let error = error.expect("it ends within its bound").unwrap_err();
        assert!(error.to_string().contains("no answer within"), "{error}");
    }
    network.is_silent.store(false, Ordering::SeqCst);
    assert_eq!(catalog.heads().await.unwrap().len(), 1);
}

/// What happens to the answer to a COMMIT.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// It never comes.
    Silence,
    /// The connection ends instead.
    Break,
}

/// A network between a catalog and its server.
struct Network {
    server: SocketAddr,
    address: SocketAddr,
    /// The next COMMIT reaches the server, its answer does not come back.
    is_armed: Arc<AtomicBool>,
    /// No answer comes back.
    is_silent: Arc<AtomicBool>,
}

impl Network {
    async fn before(server: &str, fault: Fault) -> Self {
        let options: sqlx::postgres::PgConnectOptions = server.parse().unwrap();
        let server = format!("{}:{}", options.get_host(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let network = Self {
            server: server.parse().unwrap(),
            address: listener.local_addr().unwrap(),
            is_armed: Arc::default(),
            is_silent: Arc::default(),
        };
        let (server, is_armed) = (network.server, network.is_armed.clone());
        let is_silent = network.is_silent.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server).await.unwrap();
                let (is_armed, is_silent) = (is_armed.clone(), is_silent.clone());
                tokio::spawn(carry(client, server, fault, is_armed, is_silent));
            }
        });
        network
    }

    fn through(&self, uri: &str) -> String {
        uri.replace(&self.server.to_string(), &self.address.to_string())
    }
}

/// Carries bytes between the two until one of them, or a fault, ends it.
async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    fault: Fault,
    is_armed: Arc<AtomicBool>,
    is_silent: Arc<AtomicBool>,
) {
    let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
    let mut is_lost = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                let commits = asked[..count].windows(6).any(|word| word == b"COMMIT");
                is_lost |= commits && is_armed.swap(false, Ordering::SeqCst);
                if server.write_all(&asked[..count]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                if is_lost && fault == Fault::Break {
                    return;
                }
                let is_dropped = is_lost || is_silent.load(Ordering::SeqCst);
                if !is_dropped && client.write_all(&answered[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
