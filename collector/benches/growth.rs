//! What a table with ten thousand agents costs as it grows: the time of a commit, the bytes that
//! watermarks add to each metadata file, and the files that are kept.
//!
//! The real engine and committer on a SQLite catalog and local files, without sockets; first every
//! agent sends a batch, then 64 agents by chance send one event each to every commit. Run with
//! `cargo bench -p headwater-collector --bench growth` (10,000 commits); without `--bench` (as a test)
//! few agents make few commits. `-- --latency-ms 30` makes each request to the files that much slower, as a
//! store over a network is, for 1,000 commits. Fails when a bound of the product does not hold:
//!
//! - commits to that table take at most 1.5 times as long as the first ones to a new table, made by turns
//!   (median of 200 each, bench only);
//! - of a hundred commits to that table 99 take less than a second (bench on local files only, without
//!   `--latency-ms`);
//! - watermarks add at most 25 bytes per agent to a metadata file;
//! - manifests and metadata files stay below what the table's properties say.

#[path = "common/bounds.rs"]
mod bounds;
#[path = "common/load.rs"]
mod load;
#[path = "common/slow_store.rs"]
mod slow_store;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::future::try_join_all;
use headwater_collector::commit::{Killed, NoHook};
use headwater_collector::config::{CommitConfig, Config};
use headwater_collector::engine::EngineParts;
use headwater_collector::intake::{BodyCut, Intake, Source};
use headwater_collector::plan::live::LivePlan;
use headwater_protocol::{BatchHeader, BatchReply, Hello, PROTOCOL_VERSION};
use headwater_service::chance::SystemChance;
use headwater_service::clock::SystemClock;
use headwater_service::tls::TlsFiles;
use headwater_tables::catalog::METADATA_GZIP_LEVEL;
use headwater_tables::watermark::WATERMARK_PREFIX;
use headwater_tables::{Catalog, CatalogConfig, Table, schema};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use load::wire_batch;

const EPOCH: u64 = 1_790_000_000_000;
const SENDERS: usize = 64;
/// Commits whose median is taken.
const WINDOW: usize = 200;
const SLOWER_MAX: f64 = 1.5;
/// On local files.
const P99_MAX: Duration = Duration::from_secs(1);
/// 250 kB for ten thousand agents.
const BYTES_PER_AGENT_MAX: usize = 25;

/// An agent that has been welcomed.
struct Agent {
    intake: Intake,
    next: u64,
}

/// A batch of one event.
struct OneEvent {
    header: BatchHeader,
    body: Vec<u8>,
}

impl Source for OneEvent {
    async fn header(&mut self) -> Result<BatchHeader, String> {
        Ok(self.header.clone())
    }

    async fn body(&mut self, _: usize) -> Result<Vec<u8>, BodyCut> {
        Ok(std::mem::take(&mut self.body))
    }
}

impl Agent {
    /// Sends one event and returns when it is committed.
    async fn send(&mut self) -> Result<()> {
        let (header, body) = wire_batch(EPOCH, self.next, 1, self.next);
        match self.intake.reply(&mut OneEvent { header, body }).await {
            BatchReply::Ack {
                committed_through, ..
            } if committed_through == self.next => {
                self.next += 1;
                Ok(())
            }
            other => anyhow::bail!("not acked: {other:?}"),
        }
    }
}

fn config() -> Config {
    let nowhere = TlsFiles {
        certificate: "-".into(),
        key: "-".into(),
        ca: "-".into(),
    };
    Config {
        quic: Default::default(),
        admin: Default::default(),
        tls: nowhere.into(),
        catalog: Default::default(),
        plan: Default::default(),
        quarantine: Default::default(),
        // Commits what is there: the rounds of the bench say when.
        commit: CommitConfig {
            interval_ms: 0,
            ..CommitConfig::default()
        },
        limits: Default::default(),
        log: Default::default(),
    }
}

/// A table, an engine that commits to it, and its agents.
struct Fleet {
    agents: Vec<Agent>,
    chance: StdRng,
    committer: JoinHandle<Result<(), Killed>>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.committer.abort();
    }
}

impl Fleet {
    /// Makes the table in `catalog` and welcomes the agents.
    async fn new(catalog: &Catalog, agents: usize) -> Result<Self> {
        catalog.ensure(&schema::raw_events()).await?;
        catalog.ensure(&schema::raw_quarantine()).await?;
        let (engine, committer) = EngineParts {
            config: config(),
            catalog: catalog.clone(),
            clock: SystemClock::shared(),
            chance: SystemChance::shared(),
            hook: std::sync::Arc::new(NoHook),
            plan: LivePlan::open(None)?,
        }
        .assemble(&CancellationToken::new());
        let mut fleet = Self {
            agents: Vec::with_capacity(agents),
            chance: StdRng::seed_from_u64(1),
            committer: tokio::spawn(committer.run()),
        };
        for _ in 0..agents {
            let hello = Hello {
                protocol_version: PROTOCOL_VERSION,
                agent_id: uuid(&mut fleet.chance).parse()?,
                epoch: EPOCH,
                lowest_unacknowledged: 1,
                build: "bench".to_owned(),
                host: "bench".to_owned(),
            };
            let welcomed = engine.welcome(&hello.agent_id, &hello).await;
            let (intake, _) = welcomed.map_err(anyhow::Error::msg)?;
            fleet.agents.push(Agent { intake, next: 1 });
        }
        Ok(fleet)
    }

    /// Has one batch of each agent committed.
    async fn all_send(&mut self) -> Result<()> {
        for agents in self.agents.chunks_mut(1000) {
            try_join_all(agents.iter_mut().map(Agent::send)).await?;
        }
        Ok(())
    }

    /// Has a batch of some agents committed and returns how long that took.
    async fn some_send(&mut self) -> Result<Duration> {
        let start = self.chance.random_range(0..self.agents.len());
        self.agents.rotate_left(start);
        let started = Instant::now();
        try_join_all(self.agents[..SENDERS].iter_mut().map(Agent::send)).await?;
        Ok(started.elapsed())
    }
}

async fn catalog(latency: Option<Duration>, directory: &Path) -> Result<Catalog> {
    match latency {
        None => Ok(Catalog::open(&CatalogConfig::local(directory)).await?),
        Some(latency) => Ok(slow_store::catalog(latency)),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let latency = latency()?;
    let (agents, rounds) = match (is_bench, latency) {
        (true, None) => (10_000, 10_000),
        (true, Some(_)) => (10_000, 1_000),
        (false, _) => (300, 120),
    };
    let directory = tempfile::tempdir()?;
    let old = catalog(latency, directory.path()).await?;
    let started = Instant::now();
    let mut fleet = Fleet::new(&old, agents).await?;
    say(&format!(
        "{agents} agents welcomed in {:.1?}",
        started.elapsed()
    ));
    let started = Instant::now();
    fleet.all_send().await?;
    say(&format!(
        "one batch of each committed in {:.1?}",
        started.elapsed()
    ));
    let mut times = Vec::with_capacity(rounds);
    for round in 1..=rounds {
        times.push(fleet.some_send().await?);
        if round % 1000 == 0 {
            let median = median(&times[round - WINDOW..]);
            say(&format!(
                "{round:>6} commits, median of the last {WINDOW}: {median:.2?}"
            ));
        }
    }
    let head = old.load(&schema::RAW_EVENTS).await?;
    weigh(&head, agents)?;
    if latency.is_none() {
        count_files(&head, directory.path()).await?;
    }
    let p99 = tell_slowest(times);
    let directory = tempfile::tempdir()?;
    let new = catalog(latency, directory.path()).await?;
    let mut new = Fleet::new(&new, agents).await?;
    new.all_send().await?;
    let turns = if is_bench { WINDOW } else { 10 };
    let ratio = compare(&mut fleet, &mut new, turns).await?;
    // Few commits of a build for tests say nothing about time.
    bounds::hold(&[
        (is_bench && ratio > SLOWER_MAX, "ratio to a new table"),
        (
            is_bench && latency.is_none() && p99 >= P99_MAX,
            "p99 of commits",
        ),
    ])
}

/// Returns the wait of `--latency-ms`.
fn latency() -> Result<Option<Duration>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--latency-ms");
    match (arguments.next(), arguments.next()) {
        (None, _) => Ok(None),
        (Some(_), value) => {
            let value = value.context("--latency-ms wants a number")?;
            Ok(Some(Duration::from_millis(value.parse()?)))
        }
    }
}

fn uuid(chance: &mut StdRng) -> String {
    uuid::Uuid::from_u128(chance.random()).to_string()
}

/// Weighs what the watermarks add to the metadata file as it is stored: the table's properties, and what
/// each snapshot says of them.
fn weigh(head: &Table, agents: usize) -> Result<()> {
    let mut metadata = serde_json::to_value(head.metadata())?;
    let with = gzipped(&metadata)?;
    strip(&mut metadata["properties"])?;
    let snapshots = metadata["snapshots"].as_array_mut();
    let snapshots = snapshots.context("the table has snapshots")?;
    for snapshot in snapshots.iter_mut() {
        strip(&mut snapshot["summary"])?;
    }
    // The sparse shards of the short run cost their names and bounds, and few agents have many stamps.
    let sparse = 64 * 40 + snapshots.len() * 32;
    let added = with - gzipped(&metadata)?;
    say(&format!(
        "watermarks add {added} bytes to a metadata file of {with}, {:.1} per agent",
        added as f64 / agents as f64
    ));
    let allowed = agents * BYTES_PER_AGENT_MAX + if agents < 10_000 { sparse } else { 0 };
    ensure!(
        added <= allowed,
        "watermarks add {added} bytes, {allowed} are allowed"
    );
    Ok(())
}

/// Takes the watermarks out of a map.
fn strip(map: &mut serde_json::Value) -> Result<()> {
    let map = map.as_object_mut().context("not a map")?;
    map.retain(|key, _| !key.starts_with(WATERMARK_PREFIX));
    Ok(())
}

fn gzipped(value: &serde_json::Value) -> Result<usize> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::new(METADATA_GZIP_LEVEL));
    serde_json::to_writer(&mut gzip, value)?;
    Ok(gzip.finish()?.len())
}

async fn count_files(head: &Table, directory: &Path) -> Result<()> {
    let snapshot = head.metadata().current_snapshot().context("no snapshot")?;
    let list = head.manifest_list_reader(snapshot).load().await?;
    let manifests = list.entries().len();
    let files = std::fs::read_dir(directory.join("warehouse/raw/events/metadata"))?;
    let names = files.map(|file| Ok(file?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    let metadata = names.iter().filter(|name| name.contains(".metadata.json"));
    let (metadata, snapshots) = (metadata.count(), head.metadata().snapshots().len());
    say(&format!(
        "{manifests} manifests, {snapshots} snapshots, {metadata} metadata files, {} files beside the data",
        names.len()
    ));
    ensure!(
        manifests <= 110,
        "{manifests} manifests: small ones are not merged"
    );
    ensure!(
        metadata <= 51,
        "{metadata} metadata files: old ones are not deleted"
    );
    Ok(())
}

/// Says how long the slowest commits took; returns the p99.
fn tell_slowest(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    say(&format!(
        "a commit of {SENDERS} batches: median {:.2?}, p99 {p99:.2?}, longest {:.1?}",
        median(&times),
        times[times.len() - 1],
    ));
    p99
}

/// Compares commits to a table that has many behind it with the first ones to a new table; returns the
/// ratio. They take turns, so that whatever else the machine does meets both.
async fn compare(old: &mut Fleet, new: &mut Fleet, turns: usize) -> Result<f64> {
    let (mut of_old, mut of_new) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        of_old.push(old.some_send().await?);
        of_new.push(new.some_send().await?);
    }
    let (old, new) = (median(&of_old), median(&of_new));
    let ratio = old.as_secs_f64() / new.as_secs_f64();
    say(&format!(
        "by turns: {old:.2?} to the old table, {new:.2?} to a new one, ratio {ratio:.2}"
    ));
    Ok(ratio)
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}

#[expect(clippy::print_stdout, reason = "a bench prints its result")]
fn say(line: &str) {
    println!("{line}");
}
