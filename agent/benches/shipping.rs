//! How fast the agent ships over one QUIC connection, by delay of the line, and what a draining
//! backlog does to live requests.
//!
//! `cargo bench -p headwater-agent --bench shipping` prints two Markdown tables. The agent ships a
//! backlog of 600-byte events to a collector that acknowledges at once, through a line with a delay
//! (half of it each way) and a loss of 0.1 % each way. The line is a UDP relay in user space, on the
//! same cores. Then the same backlog drains while a load in a process of its own sends live events. It
//! fails when what is promised is missed.
//!
//! `HEADWATER_BENCH_DIR` is the directory, which must lie on a real disk (default: the target
//! directory); `HEADWATER_BENCH_EVENTS` the backlog (default 400,000).

#![allow(clippy::unwrap_used, reason = "a bench stops at the first fault")]

#[path = "../tests/agent/collector.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod collector;
#[path = "../tests/agent/harness.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod harness;
#[path = "common/load.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod load;
#[path = "common/relay.rs"]
mod relay;
#[path = "common/targets.rs"]
mod targets;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use collector::{Collector, Manner, Tables};
use harness::{Agent, Site, nobody};
use headwater_agent::Config;
use load::{BATCH_EVENTS, Load};
use parking_lot::Mutex;
use targets::Targets;
use tokio::runtime::Runtime;

/// Five times what the best peer publishes for 2 ms with acks on, 7,000 events/s (vector#25792).
const EVENTS_PER_S_MIN: f64 = 5.0 * 7_000.0;
const LOSS: u32 = 1000;
const LIVE_EVENTS_PER_S: f64 = 10_000.0;
const CONNECTIONS: usize = 16;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("threads start")
}

/// A collector on a runtime of its own, behind a line.
struct Far {
    runtime: Runtime,
    tables: Arc<Mutex<Tables>>,
    collector: Collector,
    line: std::net::SocketAddr,
}

impl Far {
    fn start(site: &Site, round_trip: Duration) -> Self {
        let runtime = runtime();
        let tables = Arc::new(Mutex::new(Tables::default()));
        let collector = runtime.block_on(Collector::start(site, &tables, Manner::Counting));
        let line = relay::start(collector.address, round_trip / 2, LOSS);
        Self {
            runtime,
            tables,
            collector,
            line,
        }
    }

    fn committed(&self) -> u64 {
        self.tables.lock().watermarks.values().sum()
    }

    fn stop(self) {
        self.runtime.block_on(self.collector.stop());
        self.runtime.shutdown_background();
    }
}

fn config(site: &Site, directory: &Path, collector: std::net::SocketAddr) -> Config {
    let mut config = site.config(collector);
    config.buffer.directory = directory.to_owned();
    config.collector.linger_ms = 200;
    config
}

/// Makes a buffer that holds at least `events`, through the real front.
fn backlog(site: &Site, directory: &Path, events: u64) -> u64 {
    let runtime = runtime();
    let agent = runtime.block_on(Agent::start(config(site, directory, nobody())));
    while agent.running.buffered() < events {
        let outcome = Load {
            address: agent.address,
            connections: CONNECTIONS,
            batches_per_s: None,
            time: Duration::from_millis(500),
        }
        .run();
        assert_eq!(outcome.refused, 0, "the backlog fits");
    }
    let stored = agent.running.buffered();
    runtime.block_on(agent.stop());
    runtime.shutdown_background();
    stored
}

/// Ships a copy of the backlog; returns events per second from the first commit to the last.
fn ship(site: &Site, backlog: &Path, events: u64, round_trip: Duration) -> f64 {
    let directory = backlog.with_extension("shipping");
    harness::copy_directory(backlog, &directory);
    let far = Far::start(site, round_trip);
    let runtime = runtime();
    let agent = runtime.block_on(Agent::start(config(site, &directory, far.line)));
    let started = until(|| far.committed() > 0);
    let first = far.committed();
    let ended = until(|| far.committed() >= events);
    runtime.block_on(agent.stop());
    runtime.shutdown_background();
    far.stop();
    std::fs::remove_dir_all(&directory).expect("the directory is ours");
    (events - first) as f64 / (ended - started).as_secs_f64()
}

fn until(mut holds: impl FnMut() -> bool) -> Instant {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !holds() {
        assert!(Instant::now() < deadline, "the backlog does not move");
        std::thread::sleep(Duration::from_millis(1));
    }
    Instant::now()
}

/// Live requests with and without a draining backlog behind them.
fn beside_live(site: &Site, backlog: &Path, events: u64, targets: &mut Targets) {
    let directory = backlog.with_extension("draining");
    harness::copy_directory(backlog, &directory);
    let far = Far::start(site, Duration::from_millis(2));
    let runtime = runtime();
    let live = |address, time| Load {
        address,
        connections: CONNECTIONS,
        batches_per_s: Some(LIVE_EVENTS_PER_S / BATCH_EVENTS as f64),
        time,
    };
    let agent = runtime.block_on(Agent::start(config(site, &directory, far.line)));
    let started = Instant::now();
    let first = far.committed();
    let load = live(agent.address, Duration::from_secs(8)).start();
    // Drained: the collector has all that the buffer held, and is only as far behind as a batch.
    until(|| far.committed() >= events && agent.running.buffered() < LIVE_EVENTS_PER_S as u64);
    let seconds = started.elapsed().as_secs_f64();
    let drained = (far.committed() - first) as f64 / seconds;
    let during = load.wait();
    let after = live(agent.address, Duration::from_secs(8)).run();
    runtime.block_on(agent.stop());
    runtime.shutdown_background();
    far.stop();
    std::fs::remove_dir_all(&directory).expect("the directory is ours");
    println!(
        "\n| live load | events/s | shipped events/s | × live | p50 / p99 / max ms of its acks |"
    );
    println!("|---|---|---|---|---|");
    println!(
        "| while {events} events drain in {seconds:.1} s | {:.0} | {drained:.0} | {:.1} | {:.1} / {:.1} / {:.1} |",
        during.events_per_s,
        drained / during.events_per_s,
        during.p50_ms,
        during.p99_ms,
        during.max_ms
    );
    println!(
        "| without a backlog | {:.0} | {:.0} | 1.0 | {:.1} / {:.1} / {:.1} |",
        after.events_per_s, after.events_per_s, after.p50_ms, after.p99_ms, after.max_ms
    );
    let times_live = drained / during.events_per_s;
    targets.at_least("speed of a drain to the live rate", times_live, 3.0);
    targets.at_most("p99 of live acks beside a drain, ms", during.p99_ms, 100.0);
}

fn main() -> ExitCode {
    if load::serve_as_load() {
        return ExitCode::SUCCESS;
    }
    let mut targets = Targets::default();
    let events = std::env::var("HEADWATER_BENCH_EVENTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(400_000);
    let base = std::env::var_os("HEADWATER_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let directory = base.join(format!("shipping-{}", std::process::id()));
    let site = Site::new();
    let stored = backlog(&site, &directory, events);
    println!("| round trip | loss each way | events/s | datagrams that the relay lost besides |");
    println!("|---|---|---|---|");
    for round_trip_ms in [2, 20, 100] {
        let dropped = relay::dropped();
        let rate = ship(
            &site,
            &directory,
            stored,
            Duration::from_millis(round_trip_ms),
        );
        let dropped = relay::dropped() - dropped;
        println!("| {round_trip_ms} ms | 0.1 % | {rate:.0} | {dropped} |");
        if round_trip_ms == 2 {
            targets.at_least("events/s at 2 ms", rate, EVENTS_PER_S_MIN);
        }
    }
    beside_live(&site, &directory, stored, &mut targets);
    std::fs::remove_dir_all(&directory).expect("the directory is ours");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("\nload average at the end: {load}");
    targets.end()
}
