//! Tables on S3, on a real service that breaks where it hurts. The promises of exactly-once hold on it as
//! on the local disk: `suite::s3` runs them all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use headwater_collector::commit::NoHook;
use headwater_service::clock::SystemClock;
use headwater_tables::CatalogConfig;
use tokio_util::sync::CancellationToken;

use crate::hostile::PATIENCE;
use crate::operation::{get, until};
use crate::s3_server::{Asked, Fate, KEY_ID, SECRET};
use crate::secrets;
use crate::world::{World, acked, is_bad, mixed};

/// Lets some of the files that are put meet this fate, and checks that each event is stored once.
async fn each_event_is_stored_once(fate: Fate, retries_max: usize) {
    let mut world = World::on_s3();
    world.catalog.s3.retries_max = retries_max;
    world.catalog.s3.request_timeout_ms = 1_000;
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let puts = AtomicUsize::new(0);
    world.s3().breaks(move |asked: &Asked| {
        // Without a retry, a commit needs its three files in a row.
        let strikes = asked.is_put() && puts.fetch_add(1, Ordering::Relaxed) % 5 == 1;
        if strikes { fate } else { Fate::Served }
    });
    for first in [1, 11, 21, 31] {
        let records = mixed(first..=first + 9);
        let reply = agent.send_records(first, &records);
        let reply = tokio::time::timeout(PATIENCE, reply).await;
        assert_eq!(acked(reply.expect("an answer within bounds")), first + 9);
    }
    let struck = world.s3().count(|_, met| met == fate);
    assert!(struck >= 4, "{struck} of the files put met {fate:?}");
    world.s3().is_well();
    collector.stop().await;
    let (events, quarantine) = (
        (1..=40).filter(|it| !is_bad(*it)),
        (1..=40).filter(|it| is_bad(*it)),
    );
    world.assert_events("agent-1", events).await;
    world.assert_quarantine("agent-1", quarantine).await;
}

macro_rules! each_event_is_stored_once {
    ($($name:ident: $fate:expr, $retries:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                each_event_is_stored_once($fate, $retries).await;
            }
        )*
    };
}

each_event_is_stored_once! {
    a_busy_store_is_asked_again: Fate::Refused(503), 5;
    an_error_of_the_store_fails_the_commit_and_no_event: Fate::Refused(500), 0;
    a_put_that_is_cut_off_is_asked_again: Fate::Cut, 5;
    a_put_whose_answer_is_lost_is_repeated_without_harm: Fate::AnswerLost, 5;
    a_commit_whose_files_are_there_without_an_answer_begins_anew: Fate::AnswerLost, 0;
    a_silent_store_is_given_up_and_asked_again: Fate::Silence, 5;
    a_commit_that_met_silence_begins_anew: Fate::Silence, 0;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_is_away_holds_up_events_and_loses_none() {
    let mut world = World::on_s3();
    world.catalog.s3.retries_max = 1;
    let mut config = world.config();
    config.commit.look_interval_ms = 500;
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let admin = collector.running.admin_address;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    until(admin, "/readyz", "200 OK").await;

    world.s3().go_away().await;
    until(admin, "/readyz", "the store does not answer").await;
    let send = tokio::spawn(async move { (agent.send(11..=20).await, agent) });
    let failed = "tables_store_requests_total{operation=\"put\",outcome=\"failed\"}";
    until(admin, "/metrics", failed).await;
    assert!(!send.is_finished(), "nothing is committed (EO-2)");
    world.s3().come_back();

    let (reply, agent) = tokio::time::timeout(PATIENCE, send).await.unwrap().unwrap();
    assert_eq!(acked(reply), 20);
    until(admin, "/readyz", "200 OK").await;
    assert_eq!(acked(agent.send(15..=30).await), 30);
    world.assert_events("agent-1", 1..=30).await;
    collector.stop().await;
}

/// A look at the tables finds nothing wrong: it writes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_can_be_read_and_not_written_to_shows_at_the_commits() {
    let mut world = World::on_s3();
    let mut config = world.config();
    config.commit.look_interval_ms = 500;
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let admin = collector.running.admin_address;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    world.s3().breaks(|asked: &Asked| {
        if asked.is_put() {
            Fate::Refused(403)
        } else {
            Fate::Served
        }
    });
    let send = tokio::spawn(async move { (agent.send(11..=20).await, agent) });
    let says = "commits failed: data files cannot be written";
    until(admin, "/readyz", says).await;
    let answer = get(admin, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("Not now"), "what the store says: {answer}");
    assert!(!send.is_finished(), "nothing is committed (EO-2)");
    world.s3().is_well();

    let (reply, _agent) = tokio::time::timeout(PATIENCE, send).await.unwrap().unwrap();
    assert_eq!(acked(reply), 20);
    until(admin, "/readyz", "200 OK").await;
    world.assert_events("agent-1", 1..=20).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_is_silent_from_now_on_is_given_up_within_the_bound() {
    let mut world = World::on_s3();
    world.catalog.s3.request_timeout_ms = 200;
    world.catalog.s3.retries_max = 1;
    let mut config = world.config();
    config.commit.look_interval_ms = 2_000;
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let admin = collector.running.admin_address;
    until(admin, "/readyz", "200 OK").await;
    world.s3().breaks(|_| Fate::Silence);
    until(admin, "/readyz", "the store does not answer").await;
    world.s3().is_well();
    until(admin, "/readyz", "200 OK").await;
    let metrics = get(admin, "/metrics").await;
    for series in [
        "tables_store_tries_total{result=\"silent\"}",
        "tables_store_requests_total{operation=\"put\",outcome=\"ok\"}",
        "tables_store_seconds_count{operation=\"put\"}",
        "tables_store_requests_open ",
        "tables_store_written_bytes_total ",
        "tables_store_read_bytes_total ",
    ] {
        assert!(metrics.contains(series), "{series}");
    }
    collector.stop().await;
}

/// Starts a collector that cannot, and returns what it says.
async fn refused(world: &World, change: impl FnOnce(&mut CatalogConfig)) -> String {
    let mut config = world.config();
    config.catalog.s3.retries_max = 1;
    change(&mut config.catalog);
    let debug = format!("{config:?}");
    let started = headwater_collector::start_with(
        config,
        SystemClock::shared(),
        CancellationToken::new(),
        Arc::new(NoHook),
    );
    let started = tokio::time::timeout(PATIENCE, started).await;
    let error = started.expect("an answer within bounds").unwrap_err();
    let text = error.to_string();
    for shown in [&text, &format!("{error:?}"), &debug] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
    assert!(!text.contains('\n'), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_store_is_said_at_start() {
    let mut world = World::on_s3();
    let file = |text: &str| {
        let path = world.path("other-credentials");
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let wrong = file(&format!("{KEY_ID}\n{SECRET}x"));
    let text = refused(&world, |it| it.s3.credentials_file = wrong).await;
    assert!(
        text.contains("credentials") && text.contains("SignatureDoesNotMatch"),
        "{text}"
    );
    let nobody = file("AKIANOBODY\nsecret");
    let text = refused(&world, |it| it.s3.credentials_file = nobody).await;
    assert!(text.contains("is refused: check the credentials"), "{text}");
    let text = refused(&world, |it| it.warehouse = "s3://pond/a".to_owned()).await;
    assert!(
        text.contains("there is no bucket of `s3://pond/a`"),
        "{text}"
    );
    let plain = world.s3().endpoint();
    let tls = plain.replace("http://", "https://");
    let text = refused(&world, |it| it.s3.endpoint = Some(tls.clone())).await;
    assert!(
        text.contains("cannot be reached") && text.contains(&tls),
        "{text}"
    );
    world.s3().go_away().await;
    let text = refused(&world, |_| ()).await;
    assert!(
        text.contains("cannot be reached") && text.contains("refused"),
        "{text}"
    );
    world.s3().come_back();
    world.s3().breaks(|_| Fate::Silence);
    let text = refused(&world, |it| it.s3.request_timeout_ms = 200).await;
    assert!(
        text.contains("cannot be reached") && text.contains("time"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_secret_is_in_no_log_of_any_level() {
    let mut world = World::on_s3();
    world.collector().await.stop().await;
    let endpoint = format!("[catalog.s3]\nendpoint = '{}'", world.s3().endpoint());
    let file = world.catalog.s3.credentials_file.clone().unwrap();
    let with_file = format!("{endpoint}\ncredentials_file = '{}'", file.display());
    let environment = [
        ("AWS_ACCESS_KEY_ID", KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    for (s3, environment) in [(&with_file, &[][..]), (&endpoint, &environment[..])] {
        secrets::assert_keeps(SECRET, &world, s3, environment);
    }
    let written_down = format!("{endpoint}\nsecret_access_key = '{SECRET}'");
    let reason = "unknown field `secret_access_key`";
    secrets::assert_is_refused(SECRET, &world, &written_down, reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_put_outside_the_prefix() {
    let mut world = World::on_s3();
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    collector.stop().await;
    let keys = world.s3().keys();
    assert!(keys.iter().any(|key| key.ends_with(".parquet")), "{keys:?}");
    let ours = |key: &String| key.starts_with("some/where/raw/");
    assert!(keys.iter().all(ours), "{keys:?}");
}
