//! Several collectors over the same tables: fail-over, and the return to the preferred one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
