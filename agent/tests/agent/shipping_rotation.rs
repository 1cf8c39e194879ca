//! Certificates, keys and CA replaced on disk while events flow.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use headwater_agent::Config;
use parking_lot::Mutex;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::authority::{Authority, replace};
use crate::harness::{Agent, Site, request, soak, until, until_async};
use crate::shipping_collectors::keep_posting;

fn is_seen(tables: &Mutex<Tables>, serial: &str) -> bool {
    tables.lock().visits.iter().any(|visit| visit.1 == serial)
}

fn directory(site: &Site) -> PathBuf {
    site.path("")
}

/// A connection has time to come about on a busy machine.
fn config(site: &Site, collector: &Collector) -> Config {
    let mut config = site.config(collector.address);
    config.collector.connect_timeout_ms = 10_000;
    config
}

/// Returns the value of a metric; they are those of the whole test process.
async fn metric(agent: &Agent, line: &str) -> f64 {
    let admin = agent.running.admin_address;
    let answer = request(admin, "GET", "/metrics", &[], b"").await.unwrap();
    let found = answer.body.lines().find_map(|it| it.strip_prefix(line));
    found.map_or(0.0, |value| value.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_new_certificate_is_taken_up_without_a_lost_request() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(config(&site, &collector)).await;
    let stop = Arc::default();
    let posting = keep_posting(&agent, &stop);
    // In full: every 10 s for 3 minutes.
    let rotations = soak(5, 18);
    let mut pace = tokio::time::interval(Duration::from_millis(soak(1, 10_000) as u64));
    for rotation in 1..=rotations {
        let serial = site
            .authority
            .issue(&directory(&site), "agent-1", "agent-1");
        until("the collector sees the new certificate", || {
            is_seen(&tables, &serial)
        })
        .await;
        let before = tables.lock().events.len();
        until("events arrive under it", || {
            tables.lock().events.len() > before + 20
        })
        .await;
        let visits = tables.lock().visits.len();
        assert_eq!(visits, rotation + 1, "one session for each certificate");
        pace.tick().await;
    }
    stop.store(true, Ordering::Relaxed);
    let sent = posting.await.unwrap();
    agent.until_drained().await;
    agent.stop().await;
    collector.stop().await;
    let tables = tables.lock();
    assert_eq!(tables.message_ids().len(), sent, "each event once");
    assert_eq!(tables.epochs().len(), 1);
    println!("{rotations} certificates taken up under load, {sent} events, no request failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn ca_is_replaced_with_an_overlap() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(config(&site, &collector)).await;
    let stop = Arc::default();
    let posting = keep_posting(&agent, &stop);
    let next = Authority::new("next CA");
    let ca = site.path("ca.pem");
    let visits = || tables.lock().visits.len();

    until("the first session is open", || visits() == 1).await;
    replace(&ca, &format!("{}{}", site.authority.pem, next.pem));
    until("both CAs are trusted", || visits() == 2).await;
    collector.reload(&site);
    let serial = next.issue(&directory(&site), "agent-1", "agent-1");
    until("a certificate of the new CA is seen", || {
        is_seen(&tables, &serial)
    })
    .await;
    next.issue(&directory(&site), "collector", "localhost");
    collector.reload(&site);
    // The old CA goes. From here on nothing of it is taken by either side.
    let before = visits();
    replace(&ca, &next.pem);
    collector.reload(&site);
    until("the new CA stands alone", || visits() > before).await;
    let serial = next.issue(&directory(&site), "agent-1", "agent-1");
    until("the new CA goes on", || is_seen(&tables, &serial)).await;

    // A certificate of the old CA is whole, but the collector refuses it: the session stays.
    let (sessions, failed) = (
        visits(),
        "agent_handovers_total{reason=\"certificates\",result=\"failed\"}",
    );
    let failures = metric(&agent, failed).await;
    let serial = site
        .authority
        .issue(&directory(&site), "agent-1", "agent-1");
    until_async("the collector has refused it", async || {
        metric(&agent, failed).await > failures
    })
    .await;
    let before = tables.lock().events.len();
    until("events go on", || tables.lock().events.len() > before + 20).await;
    assert!(!is_seen(&tables, &serial));
    assert_eq!(visits(), sessions);
    stop.store(true, Ordering::Relaxed);
    let sent = posting.await.unwrap();
    agent.until_drained().await;
    agent.stop().await;
    assert_eq!(tables.lock().message_ids().len(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_and_half_written_files_are_kept_out() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(config(&site, &collector)).await;
    let stop = Arc::default();
    let posting = keep_posting(&agent, &stop);
    until("the first session is open", || {
        tables.lock().visits.len() == 1
    })
    .await;
    let (certificate, key) = (site.path("agent-1.pem"), site.path("agent-1.key"));
    let refused = "agent_certificate_reloads_total{result=\"refused\"}";
    let (pem, other_key, _) = site.authority.certify("agent-1", "agent-1");
    let (stranger, stranger_key, _) = site.authority.certify("agent-2", "agent-2");
    let half = &pem[..pem.len() / 2];
    let old_key = std::fs::read_to_string(&key).unwrap();
    let cases = [
        (half, old_key.as_str()),
        (pem.as_str(), old_key.as_str()),
        (stranger.as_str(), stranger_key.as_str()),
        ("", ""),
    ];
    for (new_certificate, new_key) in cases {
        let before = metric(&agent, refused).await;
        replace(&key, new_key);
        replace(&certificate, new_certificate);
        until_async("the set is kept out", async || {
            metric(&agent, refused).await > before
        })
        .await;
        let events = tables.lock().events.len();
        until("events go on", || tables.lock().events.len() > events + 20).await;
        assert_eq!(tables.lock().visits.len(), 1, "under the old session");
    }
    // The set becomes whole.
    replace(&certificate, &pem);
    replace(&key, &other_key);
    until("the new set is taken up", || {
        tables.lock().visits.len() == 2
    })
    .await;
    assert!(metric(&agent, "agent_certificate_expires_timestamp_seconds").await > 0.0);
    stop.store(true, Ordering::Relaxed);
    let sent = posting.await.unwrap();
    agent.until_drained().await;
    agent.stop().await;
    assert_eq!(tables.lock().message_ids().len(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_the_collector_closes_for_its_age_is_replaced_at_once() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut config = config(&site, &collector);
    // A failure would be waited for longer than anybody waits here.
    config.collector.backoff_min_ms = 3_600_000;
    config.collector.backoff_max_ms = 3_600_000;
    let agent = Agent::start(config).await;
    let stop = Arc::default();
    let posting = keep_posting(&agent, &stop);
    // Younger connections are taken for those of a collector that wants nobody.
    let mut pace = tokio::time::interval(Duration::from_millis(1_500));
    for visits in 1..=3 {
        until("a session is open and events arrive", || {
            let tables = tables.lock();
            tables.visits.len() == visits && tables.events.len() > visits * 20
        })
        .await;
        let opened = tokio::time::Instant::now();
        while opened.elapsed() < Duration::from_millis(1_100) {
            pace.tick().await;
        }
        collector.close_for_its_age();
    }
    until("the next session is open", || {
        tables.lock().visits.len() == 4
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let sent = posting.await.unwrap();
    agent.until_drained().await;
    agent.stop().await;
    collector.stop().await;
    assert_eq!(tables.lock().message_ids().len(), sent, "each event once");
}
