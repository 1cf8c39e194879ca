//! A network that moves under the session, answers that do not come, and a backlog beside live events.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{Agent, Site, event, nobody, post, post_events, soak, until};
use crate::shipping_collectors::keep_posting;

/// Carries packets between the agent and a collector; its own address towards the collector changes
/// when told to, as behind a NAT that forgets.
struct Nat {
    address: SocketAddr,
    moves: watch::Sender<usize>,
    carried: Arc<AtomicUsize>,
}

impl Nat {
    async fn start(collector: SocketAddr) -> Self {
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = inside.local_addr().unwrap();
        let (moves, mut moved) = watch::channel(0);
        let carried = Arc::new(AtomicUsize::new(0));
        let count = carried.clone();
        tokio::spawn(async move {
            let mut agent = None;
            let mut outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    Ok(()) = moved.changed() => {
                        outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                        count.store(0, Ordering::Relaxed);
                    }
                    Ok((length, from)) = inside.recv_from(&mut up) => {
                        agent = Some(from);
                        // A full socket drops packets, as networks do.
                        drop(outside.send_to(&up[..length], collector).await);
                    }
                    Ok((length, _)) = outside.recv_from(&mut down) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        if let Some(agent) = agent {
                            drop(inside.send_to(&down[..length], agent).await);
                        }
                    }
                    else => return,
                }
            }
        });
        Self {
            address,
            moves,
            carried,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_survives_changes_of_the_address() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let nat = Nat::start(collector.address).await;
    let agent = Agent::start(site.config(nat.address)).await;
    let stop = Arc::default();
    let posting = keep_posting(&agent, &stop);
    until("the session is open", || !tables.lock().events.is_empty()).await;
    for change in 1..=5 {
        nat.moves.send_replace(change);
        until("answers come to the new address", || {
            nat.carried.load(Ordering::Relaxed) > 10
        })
        .await;
        let before = tables.lock().events.len();
        until("events arrive from it", || {
            tables.lock().events.len() > before + 50
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let sent = posting.await.unwrap();
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    assert_eq!(tables.hellos.len(), 1, "the session goes on");
    assert_eq!(tables.message_ids().len(), sent, "each event once");
}

#[tokio::test]
async fn muted_answer_is_covered_by_the_next() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::MuteThird).await;
    let mut config = site.config(collector.address);
    config.collector.batch_events_max = 10;
    let agent = Agent::start(config).await;
    // The default wait for an answer is longer than the test may take.
    post_events(agent.address, "e", 200, 10).await;
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    assert_eq!(tables.message_ids().len(), 200);
    assert_eq!(tables.hellos.len(), 1);
    assert!(tables.batches >= 20);
}

#[tokio::test]
async fn stuck_batch_is_sent_again_on_another_stream() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let agent_away = Agent::start(site.config(nobody())).await;
    post_events(agent_away.address, "e", 200, 10).await;
    agent_away.stop().await;
    let collector = Collector::start(&site, &tables, Manner::SwallowThird).await;
    let mut config = site.config(collector.address);
    config.collector.batch_events_max = 10;
    config.collector.reply_timeout_ms = 300;
    let agent = Agent::start(config).await;
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    assert_eq!(tables.message_ids().len(), 200);
    assert_eq!(tables.hellos.len(), 1, "the session goes on");
    assert!(tables.batches > 20, "the third came twice");
}

#[tokio::test]
async fn slow_stream_does_not_hold_up_the_others() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let mut config = site.config(nobody());
    config.collector.batch_events_max = 10;
    let away = Agent::start(config.clone()).await;
    post_events(away.address, "before", 20, 10).await;
    // 1.8 MB when compressed: more than the collector takes in unread.
    post_events(away.address, "large", 10, 260_000).await;
    post_events(away.address, "after", 70, 10).await;
    away.stop().await;
    let collector = Collector::start(&site, &tables, Manner::SlowStream(21)).await;
    config.collector.addresses = vec![collector.address.to_string()];
    config.collector.connect_timeout_ms = 10_000;
    let agent = Agent::start(config).await;
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    assert_eq!(tables.message_ids().len(), 100);
    assert_eq!(tables.batches, 10, "nothing is sent twice");
    assert_eq!(tables.hellos.len(), 1);
}

#[tokio::test]
async fn failing_sessions_come_ever_more_rarely() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::RefuseAll).await;
    let mut config = site.config(collector.address);
    config.collector.backoff_max_ms = 640;
    let agent = Agent::start(config).await;
    post_events(agent.address, "e", 1, 10).await;
    let (mut sessions, mut since) = (0, Instant::now());
    // A wait is random; that none of a hundred is so long does not happen.
    until("a wait is ten times as long as the first bound", || {
        let now = tables.lock().hellos.len();
        if now != sessions {
            (sessions, since) = (now, Instant::now());
        }
        sessions > 3 && since.elapsed() > Duration::from_millis(200)
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn silent_collector_is_left() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let silent = Collector::start(&site, &tables, Manner::Silent).await;
    let other = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut config = site.config(silent.address);
    config.collector.addresses.push(other.address.to_string());
    config.collector.reply_timeout_ms = 300;
    let agent = Agent::start(config).await;
    post_events(agent.address, "e", 50, 10).await;
    agent.until_drained().await;
    agent.stop().await;
    assert_eq!(tables.lock().message_ids().len(), 50);
    assert_eq!(tables.lock().visits[1].0, other.address);
}

/// Posts one event and returns how long its 200 took.
async fn time_to_ack(agent: &Agent, id: &str) -> Duration {
    let started = Instant::now();
    let answer = post(agent.address, "/v1/track", &event(id, 200)).await;
    assert_eq!(answer.status, 200);
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn backlog_drains_oldest_first_and_fast_beside_live_events() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let away = Agent::start(site.config(nobody())).await;
    let backlog = soak(10_000, 200_000);
    post_events(away.address, "backlog", backlog - 50, 200).await;
    let mut calm = Vec::new();
    for probe in 0..50 {
        calm.push(time_to_ack(&away, &format!("backlog-p{probe}")).await);
    }
    away.stop().await;
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    let stop = Arc::default();
    let posting = keep_posting(&agent, &stop);
    let mut busy = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    while tables.lock().events.len() < backlog {
        pace.tick().await;
        busy.push(time_to_ack(&agent, &format!("live-p{}", busy.len())).await);
    }
    stop.store(true, Ordering::Relaxed);
    let live = posting.await.unwrap() + busy.len();
    let (probes, calm, busy) = (busy.len(), median(calm), median(busy));
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    let ids = tables.message_ids();
    assert!(probes > 10, "live events came meanwhile");
    assert!(backlog >= 3 * live, "{live} live events meanwhile");
    assert!(
        busy <= calm * 10 + Duration::from_millis(100),
        "{busy:?}, without a drain {calm:?}"
    );
    assert_eq!(ids.len(), backlog + live);
    assert!(ids[..backlog].iter().all(|id| id.starts_with("backlog-")));
    // Streams may overtake each other by as many as are prepared at once, not more.
    let mut in_order = tables.arrivals.clone();
    in_order.sort_unstable();
    for (place, first) in tables.arrivals.iter().enumerate() {
        let due = in_order.binary_search(first).unwrap();
        assert!(
            place.abs_diff(due) <= 8,
            "batch {due} came at place {place}"
        );
    }
    println!(
        "{backlog} events of backlog and {live} live ones in {} batches; acks in {busy:?}, without \
         a drain {calm:?}",
        tables.batches
    );
}
