//! Durable appends through real HTTP into the real agent, and beside it the same HTTP front writing to
//! a plain append-only file with the same group commit and fdatasync, in turns in the same run.
//!
//! `cargo bench -p headwater-agent --bench http_append` prints a Markdown table. Batches of 100 events
//! of 600 bytes in Segment's form over keep-alive connections; the load runs in a process of its own on
//! the same cores. First at saturation (each connection sends when it has its answer), then at half of
//! the agent's own saturation with arrivals at even distances, where latency counts from the moment at
//! which a batch was due.
//!
//! `HEADWATER_BENCH_DIR` is the directory, which must lie on a real disk (default: the target
//! directory); `HEADWATER_BENCH_SECONDS` the time of one cell (default 4), `HEADWATER_BENCH_ROUNDS`
//! the rounds (default 5). It fails when what is promised is missed. The median round is shown, because a shared disk is never quiet.

#![allow(clippy::unwrap_used, reason = "a bench stops at the first fault")]

#[path = "../tests/agent/harness.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod harness;
#[path = "common/load.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod load;
#[path = "common/targets.rs"]
mod targets;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use headwater_agent::buffer::AppendError;
use headwater_agent::reload::Settings;
use headwater_agent::sequencer::{Append, Sequencer};
use headwater_agent::source::Source;
use headwater_service::clock::SystemClock;
use load::{Load, Outcome};
use targets::Targets;
use tokio_util::sync::CancellationToken;

const CONNECTIONS: usize = 64;

/// The baseline: records one after the other in one file.
struct PlainFile(File);

impl Append for PlainFile {
    fn append(&mut self, records: &[&[u8]]) -> Result<(), AppendError> {
        let failed = |error: std::io::Error| AppendError::Store(error.to_string());
        self.0.write_all(&records.concat()).map_err(failed)?;
        self.0.sync_data().map_err(failed)
    }
}

/// One measurement, with what the agent's process used for it.
#[derive(Debug, Clone)]
struct Cell {
    outcome: Outcome,
    cpu_us_per_event: f64,
}

fn measure(
    address: std::net::SocketAddr,
    connections: usize,
    batches_per_s: Option<f64>,
    time: Duration,
) -> Cell {
    let cpu = cpu_seconds();
    let outcome = Load {
        address,
        connections,
        batches_per_s,
        time,
    }
    .run();
    assert_eq!(outcome.refused, 0, "every batch is taken");
    assert!(outcome.events > 0, "something was measured");
    let cpu_us_per_event = (cpu_seconds() - cpu) * 1e6 / outcome.events as f64;
    Cell {
        outcome,
        cpu_us_per_event,
    }
}

/// CPU time of this process, user and system, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    let ticks: Vec<f64> = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|it| it.parse().expect("ticks"))
        .collect();
    ticks.iter().sum::<f64>() / 100.0
}

/// At saturation, then at `half` batches per second.
struct Round {
    full: Cell,
    half: Cell,
}

fn agent_round(
    runtime: &tokio::runtime::Runtime,
    directory: &Path,
    time: Duration,
    half: Option<f64>,
) -> Round {
    let site = harness::Site::new();
    let mut config = site.config(harness::nobody());
    config.buffer.directory = directory.join("buffer");
    let agent = runtime.block_on(harness::Agent::start(config));
    let round = round(agent.address, time, half);
    let answered = round.full.outcome.events + round.half.outcome.events;
    assert!(
        agent.running.buffered() >= answered,
        "every answered event is there"
    );
    runtime.block_on(agent.stop());
    round
}

fn file_round(
    runtime: &tokio::runtime::Runtime,
    directory: &Path,
    time: Duration,
    half: Option<f64>,
) -> Round {
    let site = harness::Site::new();
    let settings = Settings::fixed(site.config(harness::nobody()));
    let file = File::create(directory.join("plain")).expect("the directory is writable");
    let (sequencer, thread) =
        Sequencer::start(PlainFile(file), None, settings.clone()).expect("a thread starts");
    let source = Source::new(
        settings,
        sequencer,
        None,
        Arc::default(),
        SystemClock::shared(),
    );
    let stop = CancellationToken::new();
    let (address, serving) = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(source.serve(listener, None, stop.clone()));
        (address, serving)
    });
    let round = round(address, time, half);
    stop.cancel();
    runtime.block_on(serving).unwrap().unwrap();
    thread.join().expect("the sequencer does not panic");
    round
}

fn round(address: std::net::SocketAddr, time: Duration, half: Option<f64>) -> Round {
    let full = measure(address, CONNECTIONS, None, time);
    let own_half = full.outcome.events_per_s / load::BATCH_EVENTS as f64 / 2.0;
    let half = measure(address, CONNECTIONS, Some(half.unwrap_or(own_half)), time);
    Round { full, half }
}

fn main() -> ExitCode {
    if load::serve_as_load() {
        return ExitCode::SUCCESS;
    }
    let setting = |name: &str| -> Option<u32> { std::env::var(name).ok()?.parse().ok() };
    let time = Duration::from_secs(setting("HEADWATER_BENCH_SECONDS").unwrap_or(4).into());
    let rounds = setting("HEADWATER_BENCH_ROUNDS").unwrap_or(5);
    let base = std::env::var_os("HEADWATER_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("threads start");
    let (mut agents, mut files) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        let directory = base.join(format!("http-append-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("the bench directory is writable");
        let agent = agent_round(&runtime, &directory, time, None);
        let offered = agent.half.outcome.events_per_s;
        agents.push(agent);
        let half = offered / load::BATCH_EVENTS as f64;
        files.push(file_round(&runtime, &directory, time, Some(half)));
        std::fs::remove_dir_all(&directory).expect("the bench directory is ours");
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load average at the end: {load}");
    println!(
        "| behind the same HTTP front | events/s at saturation | CPU µs per event | p50 / p99 ms | offered events/s | CPU µs per event | p50 / p99 / max ms |"
    );
    println!("|---|---|---|---|---|---|---|");
    let ratios = agents
        .iter()
        .zip(&files)
        .map(|(agent, file)| agent.full.outcome.events_per_s / file.full.outcome.events_per_s);
    let ratio = median(ratios.collect(), |it| *it);
    let (full, half) = show("buffer", agents);
    show("plain file", files);
    println!("\nbuffer to plain file, median of the rounds: {ratio:.2}");
    let mut targets = Targets::default();
    targets.at_least("events/s through HTTP", full.events_per_s, 100_000.0);
    targets.at_most("p99 of the acks at half load, ms", half.p99_ms, 20.0);
    targets.at_least("ratio to a plain file", ratio, 0.75);
    targets.end()
}

fn median<T>(mut values: Vec<T>, key: impl Fn(&T) -> f64) -> T {
    values.sort_by(|a, b| key(a).total_cmp(&key(b)));
    let middle = values.len() / 2;
    values.swap_remove(middle)
}

/// Returns the median rounds at saturation and at half of it.
fn show(name: &str, rounds: Vec<Round>) -> (Outcome, Outcome) {
    let (full, half): (Vec<Cell>, Vec<Cell>) =
        rounds.into_iter().map(|it| (it.full, it.half)).unzip();
    let full = median(full, |cell| cell.outcome.events_per_s);
    let half = median(half, |cell| cell.outcome.p99_ms);
    println!(
        "| {name} | {:.0} | {:.1} | {:.1} / {:.1} | {:.0} | {:.1} | {:.1} / {:.1} / {:.1} |",
        full.outcome.events_per_s,
        full.cpu_us_per_event,
        full.outcome.p50_ms,
        full.outcome.p99_ms,
        half.outcome.events_per_s,
        half.cpu_us_per_event,
        half.outcome.p50_ms,
        half.outcome.p99_ms,
        half.outcome.max_ms,
    );
    (full.outcome, half.outcome)
}
