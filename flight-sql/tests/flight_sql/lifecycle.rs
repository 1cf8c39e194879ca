//! Start, readiness, stop, and the example configuration.

use std::time::Duration;

use headwater_flight_sql::config::UserConfig;
use headwater_flight_sql::{Config, StartError, start};
use headwater_service::clock::SystemClock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::harness::{SOON, Server, query};

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn server_is_ready_counts_and_stops_within_its_bound() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    query(&mut client, "SELECT 1").await.unwrap();
    assert!(get(server.admin, "/readyz").await.contains("200 OK"));
    let metrics = get(server.admin, "/metrics").await;
    for name in [
        "flight_sql_queries_total",
        "flight_sql_rpcs_total",
        "flight_sql_sessions",
    ] {
        assert!(metrics.contains(name), "{name} is missing");
    }
    server.stop.cancel();
    let running = server.running.take().unwrap();
    tokio::time::timeout(SOON, running.finished())
        .await
        .unwrap()
        .unwrap();
    assert!(query(&mut client, "SELECT 1").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn running_result_ends_with_an_error_when_the_stop_runs_out_of_time() {
    let mut server = Server::start_with_limits(|limits| limits.stop_ms = 50).await;
    let mut client = server.client().await;
    let sql = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b \
               WHERE a.value + b.value < 0";
    let info = client.execute(sql.to_owned(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let result = client.do_get(ticket).await.unwrap();
    server.stop.cancel();
    let running = server.running.take().unwrap();
    tokio::time::timeout(SOON, running.finished())
        .await
        .unwrap()
        .unwrap();
    let outcome: Vec<_> = tokio::time::timeout(
        Duration::from_secs(10),
        futures::StreamExt::collect::<Vec<_>>(result),
    )
    .await
    .unwrap();
    assert!(outcome.last().unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn start_refuses_missing_certificates_with_their_path() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config {
        users: vec![UserConfig {
            name: "a".to_owned(),
            password: "b".to_owned(),
        }],
        ..Config::default()
    };
    config.tls = Some(headwater_flight_sql::config::TlsConfig {
        certificate: directory.path().join("none.pem"),
        key: directory.path().join("none.key"),
    });
    let error = start(config, SystemClock::shared(), CancellationToken::new())
        .await
        .unwrap_err();
    assert!(matches!(error, StartError::TlsFile { .. }));
    assert!(error.to_string().contains("none.pem"));
}

#[test]
fn example_configuration_is_valid_and_shows_the_defaults() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/config/flight-sql.toml"
    );
    let path = std::path::Path::new(path);
    let config: Config =
        headwater_service::config::load_with(Some(path), std::iter::empty()).unwrap();
    config.validate().unwrap();
    let default = Config::default();
    assert_eq!(
        format!("{:?}", config.limits),
        format!("{:?}", default.limits)
    );
    assert_eq!(config.flight.listen, default.flight.listen);
    assert_eq!(config.catalog, default.catalog);
}

#[test]
fn every_metric_is_described_once_and_documented() {
    let mut names: Vec<&str> = headwater_flight_sql::metrics::ALL
        .iter()
        .map(|(name, ..)| *name)
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), headwater_flight_sql::metrics::ALL.len());
    assert!(names.iter().all(|name| name.starts_with("flight_sql_")));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/flight-sql.md");
    let docs = std::fs::read_to_string(path).unwrap();
    for name in names {
        assert!(
            docs.contains(&format!("`{name}`")),
            "{name} is not documented"
        );
    }
}
