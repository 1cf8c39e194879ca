//! Several collectors over the same tables: fail-over, the return to the preferred one, and some that
//! hang while their connection lives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headwater_agent::Config;
use parking_lot::Mutex;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{Agent, Site, nobody, post_events, request, until, until_async};

/// Posts until `stop`; every request must be answered with 200. Returns how many events were sent.
pub(crate) fn keep_posting(
    agent: &Agent,
    stop: &Arc<AtomicBool>,
) -> tokio::task::JoinHandle<usize> {
    let (address, stop) = (agent.address, stop.clone());
    tokio::spawn(async move {
        let mut sent = 0;
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        while !stop.load(Ordering::Relaxed) {
            post_events(address, &format!("live-{sent}"), 10, 100).await;
            sent += 10;
            pace.tick().await;
        }
        sent
    })
}

fn last_visited(tables: &Mutex<Tables>) -> Option<SocketAddr> {
    tables.lock().visits.last().map(|visit| visit.0)
}

async fn connected(agent: &Agent, collector: SocketAddr) -> bool {
    let admin = agent.running.admin_address;
    let answer = request(admin, "GET", "/metrics", &[], b"").await.unwrap();
    let line = format!("agent_collector_connected{{collector=\"{collector}\"}} 1");
    answer.body.contains(&line)
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_fails_over_and_returns_to_the_preferred_collector() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let preferred = Collector::start(&site, &tables, Manner::Prompt).await;
    let other = Collector::start(&site, &tables, Manner::Prompt).await;
    let (first, second) = (preferred.address, other.address);
    let mut config = site.config(first);
    config.collector.addresses.push(second.to_string());
    config.collector.preferred_probe_ms = 100;
    let agent = Agent::start(config).await;
    let stop = Arc::default();
    let posting = keep_posting(&agent, &stop);
    let mut preferred = Some(preferred);
    let rounds = 3;
    for round in 0..rounds {
        until("events go to the preferred collector", || {
            last_visited(&tables) == Some(first)
        })
        .await;
        until_async("the gauge shows it", || connected(&agent, first)).await;
        preferred.take().unwrap().stop().await;
        until("events go to the other", || {
            last_visited(&tables) == Some(second)
        })
        .await;
        until_async("the gauge shows it", || connected(&agent, second)).await;
        assert!(!connected(&agent, first).await);
        let before = tables.lock().events.len();
        until("events arrive there", || {
            tables.lock().events.len() > before + 50
        })
        .await;
        preferred = Some(Collector::start_at(&site, first, &tables, Manner::Prompt).await);
        println!(
            "round {round}: {} events committed",
            tables.lock().events.len()
        );
    }
    until("events are back at the preferred collector", || {
        last_visited(&tables) == Some(first)
    })
    .await;
    let visits = tables.lock().visits.len();
    stop.store(true, Ordering::Relaxed);
    let sent = posting.await.unwrap();
    agent.until_drained().await;
    assert_eq!(tables.lock().visits.len(), visits, "it stays there");
    agent.stop().await;
    other.stop().await;
    let tables = tables.lock();
    assert!(sent > 100 * rounds, "the run did something: {sent}");
    assert_eq!(tables.message_ids().len(), sent, "each event once");
    assert_eq!(tables.epochs().len(), 1);
}

#[tokio::test]
async fn dead_and_unresolvable_collectors_are_passed_over() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let alive = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut config = site.config(nobody());
    config.collector.addresses.extend([
        "no.such.host.invalid:1".to_owned(),
        alive.address.to_string(),
    ]);
    let agent = Agent::start(config).await;
    post_events(agent.address, "e", 30, 10).await;
    agent.until_drained().await;
    agent.stop().await;
    assert_eq!(tables.lock().message_ids().len(), 30);
    assert_eq!(tables.lock().visits.len(), 1);
}

/// With the default wait for an answer, which is longer than any test waits.
fn stalling(site: &Site, first: &Collector, second: &Collector, stall_timeout_ms: u64) -> Config {
    let mut config = site.config(first.address);
    config.collector.addresses.push(second.address.to_string());
    config.collector.stall_timeout_ms = stall_timeout_ms;
    // A connection has time to come about on a busy machine.
    config.collector.connect_timeout_ms = 10_000;
    config
}

fn visited(tables: &Mutex<Tables>) -> Vec<SocketAddr> {
    tables.lock().visits.iter().map(|visit| visit.0).collect()
}

#[tokio::test]
async fn hung_collector_is_left_and_taken_up_again_when_it_is_mended() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let hung = Collector::start(&site, &tables, Manner::Silent).await;
    let other = Collector::start(&site, &tables, Manner::Prompt).await;
    let first = hung.address;
    let mut config = stalling(&site, &hung, &other, 200);
    config.collector.preferred_probe_ms = 1000;
    let agent = Agent::start(config).await;
    // More than may be in flight, so that batches wait in every state.
    post_events(agent.address, "e", 1500, 10).await;
    agent.until_drained().await;
    hung.stop().await;
    let before = visited(&tables).len();
    let mended = Collector::start_at(&site, first, &tables, Manner::Prompt).await;
    until("the preferred collector is taken up again", || {
        visited(&tables)[before..].contains(&first)
    })
    .await;
    post_events(agent.address, "back", 50, 10).await;
    agent.until_drained().await;
    agent.stop().await;
    mended.stop().await;
    assert_eq!(tables.lock().message_ids().len(), 1550, "each event once");
    assert_eq!(tables.lock().epochs().len(), 1);
}

#[tokio::test]
async fn hung_collector_stays_when_no_other_is_to_be_had() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let slow = Collector::start(&site, &tables, Manner::Slow(Duration::from_secs(2))).await;
    let away = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut config = stalling(&site, &slow, &away, 200);
    // Several attempts fail before the slow one answers.
    config.collector.connect_timeout_ms = 500;
    away.stop().await;
    let agent = Agent::start(config).await;
    post_events(agent.address, "e", 10, 10).await;
    agent.until_drained().await;
    agent.stop().await;
    assert_eq!(visited(&tables), [slow.address]);
}

#[tokio::test]
async fn agent_does_not_hop_between_slow_collectors() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let hung = Collector::start(&site, &tables, Manner::Silent).await;
    let slow = Collector::start(&site, &tables, Manner::Slow(Duration::from_millis(500))).await;
    let mut config = stalling(&site, &hung, &slow, 100);
    config.collector.batch_events_max = 10;
    let agent = Agent::start(config).await;
    post_events(agent.address, "e", 80, 10).await;
    agent.until_drained().await;
    agent.stop().await;
    // Each batch took five times as long as a stall.
    assert_eq!(visited(&tables), [hung.address, slow.address]);
    assert_eq!(tables.lock().message_ids().len(), 80);
}

#[tokio::test]
async fn hung_collector_that_is_alone_gets_another_connection() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let alone = Collector::start(&site, &tables, Manner::SilentAtFirst).await;
    let mut config = site.config(alone.address);
    config.collector.stall_timeout_ms = 200;
    // Longer than the test may take.
    config.collector.reply_timeout_ms = 600_000;
    config.collector.connect_timeout_ms = 10_000;
    let agent = Agent::start(config).await;
    // More than may be in flight.
    post_events(agent.address, "e", 1500, 10).await;
    agent.until_drained().await;
    agent.stop().await;
    assert_eq!(visited(&tables), [alone.address; 2]);
    assert_eq!(tables.lock().message_ids().len(), 1500, "each event once");
    assert_eq!(tables.lock().epochs().len(), 1);
}

#[tokio::test]
async fn slow_collector_that_is_alone_is_not_connected_to_again_and_again() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let slow = Collector::start(&site, &tables, Manner::Slow(Duration::from_millis(500))).await;
    let mut config = site.config(slow.address);
    config.collector.stall_timeout_ms = 100;
    config.collector.connect_timeout_ms = 10_000;
    config.collector.batch_events_max = 10;
    let agent = Agent::start(config).await;
    post_events(agent.address, "e", 80, 10).await;
    agent.until_drained().await;
    agent.stop().await;
    // Each batch took five times as long as a stall.
    assert_eq!(visited(&tables), [slow.address; 2]);
    assert_eq!(tables.lock().message_ids().len(), 80);
}

#[tokio::test]
async fn collector_that_only_ever_says_retry_is_left() {
    // Soon, and later than the test may take.
    for after_ms in [5, 300_000] {
        let site = Site::new();
        let tables: Arc<Mutex<Tables>> = Arc::default();
        let busy = Collector::start(&site, &tables, Manner::RetryAll(after_ms)).await;
        let other = Collector::start(&site, &tables, Manner::Prompt).await;
        let agent = Agent::start(stalling(&site, &busy, &other, 500)).await;
        post_events(agent.address, "e", 1500, 10).await;
        agent.until_drained().await;
        agent.stop().await;
        assert_eq!(visited(&tables), [busy.address, other.address]);
        assert_eq!(tables.lock().message_ids().len(), 1500, "each event once");
    }
}

#[tokio::test]
async fn collector_that_only_ever_says_retry_stays_when_it_is_alone() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let busy = Collector::start(&site, &tables, Manner::RetryAll(20)).await;
    let mut config = site.config(busy.address);
    config.collector.stall_timeout_ms = 100;
    let agent = Agent::start(config).await;
    post_events(agent.address, "e", 10, 10).await;
    until("it has said so for many times as long as a stall", || {
        tables.lock().batches > 50
    })
    .await;
    agent.stop().await;
    assert_eq!(visited(&tables), [busy.address]);
}

const PAUSE: Duration = Duration::from_millis(200);
const STALL_MS: u64 = 3000;

/// Ships `count` events to a collector of this manner, which must take longer than a stall.
async fn stays_with(manner: Manner, count: usize, padding: usize) {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let slow = Collector::start(&site, &tables, manner).await;
    let other = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut config = stalling(&site, &slow, &other, STALL_MS);
    config.collector.batch_events_max = 10;
    config.collector.linger_ms = 500;
    // The first answers to batches are spread over all of the time.
    config.collector.batches_in_flight_max = 2;
    let agent = Agent::start(config).await;
    let started = std::time::Instant::now();
    post_events(agent.address, "e", count, padding).await;
    agent.until_drained().await;
    agent.stop().await;
    let took = started.elapsed();
    assert!(took > Duration::from_millis(STALL_MS), "{took:?}");
    assert_eq!(visited(&tables), [slow.address]);
}

#[tokio::test]
async fn collector_that_answers_slowly_is_not_left() {
    stays_with(Manner::Slow(PAUSE), 200, 10).await;
}

#[tokio::test]
async fn collector_that_says_retry_beside_other_answers_is_not_left() {
    stays_with(Manner::RetrySlowly(PAUSE), 250, 10).await;
}

#[tokio::test]
async fn collector_that_reads_slowly_is_not_left() {
    // One batch, 1.8 MB when compressed.
    stays_with(Manner::SlowReader(PAUSE), 10, 260_000).await;
}
