//! What the real process takes of the host's memory: at 20,000 events/s, with a backlog, and while the
//! backlog drains. In full (`HEADWATER_SOAK=1`) the backlog is 5 GB and the rates are kept for minutes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{PATIENCE, Site, nobody, soak};
use crate::load::{BATCH_EVENTS, EVENT_BYTES, Load, Outcome};
use crate::process::{Process, config_at};

const MIB: u64 = 1 << 20;
/// What the code of a program that is not optimised takes more than that of one that is: 21 MiB instead
/// of 11 when idle. The bounds are those of the shipped program.
const UNOPTIMISED: u64 = if cfg!(debug_assertions) { 10 * MIB } else { 0 };
const LIVE_BOUND: u64 = 50 * MIB + UNOPTIMISED;
const BACKLOG_BOUND: u64 = 128 * MIB + UNOPTIMISED;
const LIVE_EVENTS_PER_S: f64 = 20_000.0;
const CONNECTIONS: usize = 16;

/// What is exercised: short in every run of the tests, in full in a soak.
struct Extent {
    live: Duration,
    backlog_bytes: u64,
}

fn extent() -> Extent {
    Extent {
        live: Duration::from_secs(soak(6, 120) as u64),
        backlog_bytes: soak(200_000_000, 5_000_000_000) as u64,
    }
}

/// The settings that users have, with room for the backlog.
fn settings(site: &Site, collector: std::net::SocketAddr) -> String {
    let room = "disk_bytes_max = 20000000000";
    config_at(site, collector, &site.buffer(), room).replace("linger_ms = 5", "linger_ms = 200")
}

async fn send(process: &Process, events_per_s: Option<f64>, time: Duration) -> Outcome {
    let load = Load {
        address: process.address,
        connections: CONNECTIONS,
        batches_per_s: events_per_s.map(|rate| rate / BATCH_EVENTS as f64),
        time,
    };
    tokio::task::spawn_blocking(move || load.run_here())
        .await
        .unwrap()
}

/// Waits as long as events leave.
async fn until_drained(process: &Process) {
    let (mut left, mut deadline) = (f64::MAX, Instant::now() + PATIENCE);
    while left > 0.0 {
        let now = process.metric("agent_buffered_events").await;
        if now < left {
            (left, deadline) = (now, Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < deadline, "stuck at {left} events");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn live_events_take_little_memory() {
    let site = Site::new();
    let tables = Arc::new(Mutex::new(Tables::default()));
    let collector = Collector::start(&site, &tables, Manner::Counting).await;
    let process = Process::start_with(&site, &settings(&site, collector.address)).await;
    let idle = process.peak_rss();
    let outcome = send(&process, Some(LIVE_EVENTS_PER_S), extent().live).await;
    let peak = process.peak_rss();
    println!(
        "{} events at {:.0} events/s: {} MiB at the start, {} MiB at most",
        outcome.events,
        outcome.events_per_s,
        idle / MIB,
        peak / MIB
    );
    assert!(outcome.events > 0 && outcome.refused == 0, "{outcome:?}");
    // An optimised agent must have been under this load for the bound to mean anything.
    assert!(
        soak(0, 1) == 0 || outcome.events_per_s > 0.95 * LIVE_EVENTS_PER_S,
        "{outcome:?}"
    );
    assert!(peak <= LIVE_BOUND, "{} MiB", peak / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_takes_disk_and_little_memory() {
    let site = Site::new();
    let away = nobody();
    let process = Process::start_with(&site, &settings(&site, away)).await;
    let wanted = extent().backlog_bytes / EVENT_BYTES as u64;
    let mut stored = 0;
    while stored < wanted {
        let outcome = send(&process, None, Duration::from_secs(2)).await;
        assert!(outcome.events > 0 && outcome.refused == 0, "{outcome:?}");
        stored += outcome.events;
    }
    let full = process.peak_rss();
    println!(
        "{stored} events in {} generations: {} MiB at most",
        process.metric("agent_buffer_generations").await,
        full / MIB
    );
    assert!(full <= BACKLOG_BOUND, "{} MiB while filling", full / MIB);

    // A start with all of it, then a drain beside live events.
    drop(process);
    let tables = Arc::new(Mutex::new(Tables::default()));
    let collector = Collector::start(&site, &tables, Manner::Counting).await;
    let process = Process::start_with(&site, &settings(&site, collector.address)).await;
    let live = send(&process, Some(2_000.0), Duration::from_secs(2)).await;
    until_drained(&process).await;
    let drained = process.peak_rss();
    let committed: u64 = tables.lock().watermarks.values().sum();
    println!(
        "{committed} events drained beside {} live ones: {} MiB at most",
        live.events,
        drained / MIB
    );
    assert_eq!(committed, stored + live.events);
    assert!(
        drained <= BACKLOG_BOUND,
        "{} MiB while draining",
        drained / MIB
    );
}
