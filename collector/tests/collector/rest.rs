//! An Iceberg REST server as catalog: lost answers, a server that dies, and collectors that come late.

use std::net::SocketAddr;
use std::sync::Arc;

use headwater_protocol::BatchReply;
use headwater_service::admin;
use headwater_tables::{Catalog, CatalogConfig, schema};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certificates::until;
use crate::relay::{DoorKeeper, Fault, Relay};
use crate::rest_server::RestServer;
use crate::secrets;
use crate::world::{World, acked, is_bad, mixed};

/// Puts a relay before the catalog of a world, and makes the tables before: the first questions to a
/// server that has just started take long.
async fn put_relay_before(world: &mut World) -> Relay {
    let catalog = Catalog::open(&world.catalog).await.unwrap();
    for table in [schema::raw_events(), schema::raw_quarantine()] {
        catalog.ensure(&table).await.unwrap();
    }
    let (relay, uri) = Relay::through(&world.catalog.uri).await;
    world.catalog.uri = uri;
    world.catalog.timeout_ms = 1_500;
    relay
}

/// A world whose catalog is behind a relay.
async fn behind_a_relay() -> (World, Relay) {
    let mut world = World::on_rest();
    let relay = put_relay_before(&mut world).await;
    (world, relay)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_server_or_a_proxy_makes_of_a_commit_neither_loses_nor_doubles() {
    let (world, relay) = behind_a_relay().await;
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send_records(1, &mixed(1..=10)).await), 10);
    let faults = [
        Fault::DoneBut(500),
        Fault::NotDone(500),
        Fault::DoneBut(503),
        Fault::NotDone(503),
        Fault::Twice,
        Fault::DoneBut(409),
        Fault::NotDone(409),
        Fault::NotDone(200),
        Fault::Untrue,
        Fault::DoneInSilence,
        Fault::DoneAndCut,
        Fault::Lost,
    ];
    let mut next = 11;
    for fault in faults {
        // The commit to the quarantine and the next one, be it the same again or that to the events.
        relay.strike(&[fault, fault]);
        let reply = agent.send_records(next, &mixed(next..=next + 9)).await;
        assert_eq!(acked(reply), next + 9, "{fault:?}");
        next += 10;
    }
    relay.assert_all_met();
    world
        .assert_events("agent-1", (1..next).filter(|seq| !is_bad(*seq)))
        .await;
    world
        .assert_quarantine("agent-1", (1..next).filter(|seq| is_bad(*seq)))
        .await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_collector_whose_commit_comes_after_that_of_another_is_refused() {
    let (world, relay) = behind_a_relay().await;
    let first = world.collector().await;
    let second = world.collector().await;
    let to_first = world.agent("agent-1", &first).await;
    let to_second = world.agent("agent-1", &second).await;
    assert_eq!(acked(to_first.send(1..=10).await), 10);
    relay.strike(&[Fault::Late]);
    let slow = tokio::spawn(async move { (to_first.send(11..=20).await, to_first) });
    relay.struck().await;
    let reply = to_second.send(1..=15).await;
    assert!(acked(reply) >= 15);
    relay.let_go();
    relay.struck().await;
    let (reply, to_first) = slow.await.unwrap();
    assert_eq!(acked(reply), 20);
    assert_eq!(acked(to_first.send(21..=25).await), 25);
    world.assert_events("agent-1", 1..=25).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_killed_before_its_commit_loses_nothing() {
    killed_while_it_commits(Fault::Lost).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_killed_after_its_commit_doubles_nothing() {
    killed_while_it_commits(Fault::Held).await;
}

/// Returns how many commits ended without anybody knowing whether they happened, as the collectors of this
/// process and the table count them.
fn unknown_commits() -> [f64; 2] {
    let counted = |name: &str, labels: &str| {
        let series = admin::samples(name);
        let found = series.iter().find(|(said, _)| *said == labels);
        // There is no series before the first.
        found.map_or(0.0, |(_, count)| *count)
    };
    [
        counted("collector_commits_total", "outcome=\"unknown\""),
        counted(
            "tables_commits_total",
            "table=\"raw.events\",outcome=\"unknown\"",
        ),
    ]
}

/// Kills the server when a commit is as far as the fault lets it.
async fn killed_while_it_commits(fault: Fault) {
    let mut server = RestServer::start();
    let mut world = World::new();
    world.catalog.uri = server.catalog("catalog");
    let relay = put_relay_before(&mut world).await;
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    let before = unknown_commits();
    relay.strike(&[fault]);
    let send = tokio::spawn(async move { (agent.send(11..=20).await, agent) });
    relay.struck().await;
    server.kill();
    relay.let_go();
    // Long enough for every look at what became of it.
    until("a commit is counted as unknown", || {
        let now = unknown_commits();
        now.iter().zip(before).all(|(now, before)| *now > before)
    })
    .await;
    assert!(!send.is_finished(), "nobody knows yet (EO-5)");
    server.start_again();
    let (reply, agent) = send.await.unwrap();
    assert_eq!(acked(reply), 20);
    assert_eq!(acked(agent.send(11..=25).await), 25);
    world.assert_events("agent-1", 1..=25).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_collector_does_not_ack_while_the_server_is_away() {
    let (world, relay) = behind_a_relay().await;
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    relay.set_silent(true);
    let send = tokio::spawn(async move { (agent.send(11..=20).await, agent) });
    // Several attempts end without an answer.
    let asked = relay.asked().len();
    while relay.asked().len() < asked + 8 {
        tokio::task::yield_now().await;
    }
    assert!(!send.is_finished(), "nothing is committed (EO-2)");
    relay.set_silent(false);
    let (reply, agent) = send.await.unwrap();
    assert_eq!(acked(reply), 20);
    assert!(matches!(
        agent.send(21..=25).await,
        Some(BatchReply::Ack { .. })
    ));
    world.assert_events("agent-1", 1..=25).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_with_tls_is_trusted_by_its_certificate_alone() {
    let mut world = World::on_rest();
    let (plain, name) = world.catalog.uri.rsplit_once('/').unwrap();
    let plain = plain.replace("rest+http://", "");
    let port = put_tls_before(&world, plain).await.port();
    world.catalog.uri = format!("rest+https://localhost:{port}/{name}");
    let error = Catalog::open(&world.catalog).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    world.catalog.rest.ca_file = Some(world.path("ca.pem"));
    let elsewhere = CatalogConfig {
        uri: format!("rest+https://127.0.0.1:{port}"),
        ..world.catalog.clone()
    };
    let error = Catalog::open(&elsewhere).await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");

    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    world.assert_events("agent-1", 1..=10).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_token_is_in_no_log_of_any_level() {
    const SECRET: &str = "hunter2";
    const TOKEN: &str = "token-hunter2";
    let (world, relay) = behind_a_relay().await;
    relay.post(DoorKeeper {
        credential: format!("client_id=me&client_secret={SECRET}&scope=catalog"),
        token: TOKEN.to_owned(),
        given: 0,
    });
    let in_file = |key: &str, text: &str| {
        let path = world.path(key);
        std::fs::write(&path, text).unwrap();
        format!("[catalog.rest]\n{key} = '{}'", path.display())
    };
    let with_token = in_file("token_file", TOKEN);
    secrets::assert_keeps(SECRET, &world, &with_token, &[]);
    secrets::assert_keeps(SECRET, &world, "", &[("ICEBERG_REST_TOKEN", TOKEN)]);
    let with_credential = in_file("credential_file", &format!("me:{SECRET}"));
    secrets::assert_keeps(SECRET, &world, &with_credential, &[]);
    assert_eq!(relay.door_keeper().given, 1);
    // The server repeats what it was sent.
    for wrong in [
        in_file("token_file", &format!("{TOKEN}-of-yesterday")),
        in_file("credential_file", &format!("you:{SECRET}")),
    ] {
        secrets::assert_is_refused(SECRET, &world, &wrong, "401");
    }
}

/// Puts TLS before a server, with a certificate for `localhost` of the world's authority.
async fn put_tls_before(world: &World, server: String) -> SocketAddr {
    let files = world.certificate("catalog");
    let chain = CertificateDer::pem_file_iter(&files.certificate).unwrap();
    let chain = chain.map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(server).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address
}
