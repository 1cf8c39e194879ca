//! Certificate files that change under a running collector, agents that are revoked, and connections that
//! grow old.

use std::sync::Arc;
use std::time::Duration;

use headwater_collector::commit::{CommitPoint, NoHook};
use headwater_protocol::{ALPN, close};
use headwater_service::tls::{TlsFiles, mutual_client};
use quinn::{Connection, ConnectionError};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, interval_at};

use crate::faults::Gate;
use crate::hostile::{COUNTERS, PATIENCE, closed, counted, is_closed_with};
use crate::world::{Collector, World, acked, dial};

const HOUR_MS: u64 = 3_600_000;

fn closings(reason: &str) -> f64 {
    counted("collector_sessions_closed_total", "reason", reason)
}

fn reloads(result: &str) -> f64 {
    counted("collector_certificate_reloads_total", "result", result)
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(5));
    let wait = async {
        while !condition() {
            looks.tick().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

/// Returns how a handshake with these files ends, as the client sees it in the end.
async fn refused(files: &TlsFiles, collector: &Collector) -> ConnectionError {
    let tls = mutual_client(files, ALPN).unwrap();
    let (_endpoint, connection) = dial(tls, collector.address).await;
    match connection {
        Ok(connection) => closed(&connection).await,
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_is_out_at_once_and_the_others_stay() {
    let _alone = COUNTERS.lock().await;
    let world = World::new();
    let mut config = world.config();
    config.tls.revoked = Some(world.revoke(&[]));
    config.tls.reload_interval_ms = 20;
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let lost = world.agent("agent-1", &collector).await;
    let kept = world.agent("agent-2", &collector).await;
    assert_eq!(acked(lost.send(1..=5).await), 5);
    let before = closings("untrusted");
    world.revoke(&["agent-1"]);
    let error = closed(&lost.connection).await;
    assert!(is_closed_with(&error, close::UNTRUSTED), "{error:?}");
    assert_eq!(closings("untrusted"), before + 1.0);
    let error = refused(&world.files("agent-1"), &collector).await;
    assert!(format!("{error:?}").contains("Revoked"), "{error:?}");
    assert_eq!(acked(kept.send(1..=5).await), 5, "on the same connection");
    // With a new certificate it is welcome.
    let back = world.agent("agent-1", &collector).await;
    assert_eq!(acked(back.send(6..=9).await), 9);
    world.assert_events("agent-1", 1..=9).await;
    collector.stop().await;
}

/// Returns the certificate that the collector shows.
fn shown(connection: &Connection) -> CertificateDer<'static> {
    let identity = connection.peer_identity().unwrap();
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().unwrap();
    chain[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_files_are_taken_up_whole_or_not_at_all() {
    let _alone = COUNTERS.lock().await;
    let world = World::new();
    let mut config = world.config();
    config.tls.reload_interval_ms = 20;
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let before = world.agent("agent-1", &collector).await;
    let (taken, kept_out) = (reloads("taken"), reloads("refused"));

    // A certificate without its key.
    let new = world.certificate("new");
    let read = |path| std::fs::read_to_string(path).unwrap();
    world.replace("collector.pem", &read(&new.certificate));
    until("the set is kept out", || reloads("refused") > kept_out).await;
    let during = world.agent("agent-2", &collector).await;
    assert_eq!(shown(&during.connection), shown(&before.connection));

    world.replace("collector.key", &read(&new.key));
    until("the set is taken up", || reloads("taken") > taken).await;
    let after = world.agent("agent-3", &collector).await;
    assert_ne!(shown(&after.connection), shown(&before.connection));
    for agent in [before, during, after] {
        assert_eq!(acked(agent.send(1..=5).await), 5, "no session has ended");
    }
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_of_a_ca_that_is_gone_are_out_when_the_collector_is_told_to_look() {
    let _alone = COUNTERS.lock().await;
    let (world, other) = (World::new(), World::new());
    let mut config = world.config();
    config.tls.reload_interval_ms = HOUR_MS;
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=5).await), 5);
    let ca = std::fs::read_to_string(other.files("x").ca).unwrap();
    world.replace("ca.pem", &ca);
    collector.running.reload.notify_one();
    let error = closed(&agent.connection).await;
    assert!(is_closed_with(&error, close::UNTRUSTED), "{error:?}");
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_cannot_be_used_is_no_start() {
    let (world, other) = (World::new(), World::new());
    let foreign = std::fs::read_to_string(other.revoke(&[])).unwrap();
    for text in ["nothing", &foreign] {
        let mut config = world.config();
        config.tls.revoked = Some(world.replace("revoked.pem", text));
        let started = headwater_collector::start(
            config,
            headwater_service::clock::SystemClock::shared(),
            tokio_util::sync::CancellationToken::new(),
        )
        .await;
        let error = started.unwrap_err().to_string();
        assert!(error.contains("revoked.pem"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_is_closed_after_its_last_answers() {
    let _alone = COUNTERS.lock().await;
    let world = World::new();
    let mut config = world.config();
    // A quarter of it is for the last answers.
    config.quic.connection_age_max_ms = 8_000;
    let gate = Gate::at(CommitPoint::Planned);
    let collector = world.collector_with(config, gate.clone()).await;
    let agent = world.agent("agent-1", &collector).await;
    let before = closings("age");
    let late = async {
        gate.reached().await;
        // The time itself is what is awaited.
        let late = Instant::now() + Duration::from_millis(6_300);
        interval_at(late, PATIENCE).tick().await;
        let (late, ()) = tokio::join!(agent.send(11..=20), async { gate.open() });
        late
    };
    let (taken, late) = tokio::join!(agent.send(1..=10), late);
    assert_eq!(acked(taken), 10, "what was taken is answered");
    assert_eq!(late, None, "nothing more is taken");
    let error = closed(&agent.connection).await;
    assert!(is_closed_with(&error, close::AGED), "{error:?}");
    assert_eq!(closings("age"), before + 1.0);
    let again = world.agent("agent-1", &collector).await;
    assert_eq!(again.welcome.committed_through, 10);
    assert_eq!(acked(again.send(11..=20).await), 20);
    world.assert_events("agent-1", 1..=20).await;
    collector.stop().await;
}
