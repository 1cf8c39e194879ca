//! What a table with ten thousand agents costs as it grows: the time of a commit, the bytes that
//! watermarks add to each metadata file, and the files that are kept.
//!
//! The real engine and committer on a SQLite catalog and local files, without sockets; first every
//! agent sends a batch, then 64 agents by chance send one event each to every commit. Run with
//! `cargo bench -p headwater-collector --bench growth` (10,000 commits); without `--bench` (as a test)
//! few agents make few commits. `-- --latency-ms 30` makes each request to the files that much slower, as a
//! store over a network is, for 1,000 commits. Fails when a bound of the product does not hold:
//!
//! - the last commits take at most 1.5 times as long as the first ones (median of 200 each, bench only);
//! - watermarks add at most 25 bytes per agent to a metadata file;
//! - manifests and metadata files stay below what the table's properties say.

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
use headwater_collector::commit::NoHook;
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
use tokio_util::sync::CancellationToken;

use load::wire_batch;

const EPOCH: u64 = 1_790_000_000_000;
const SENDERS: usize = 64;
/// Commits whose median is compared.
const WINDOW: usize = 200;
const SLOWER_MAX: f64 = 1.5;
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
        // Commits what is there: the rounds of the bench say when.
        commit: CommitConfig {
            interval_ms: 0,
            ..CommitConfig::default()
        },
        limits: Default::default(),
        log: Default::default(),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let latency = latency()?;
    let (agents, commits) = match (is_bench, latency) {
        (true, None) => (10_000, 10_000),
        (true, Some(_)) => (10_000, 1_000),
        (false, _) => (300, 120),
    };
    let directory = tempfile::tempdir()?;
    let catalog = match latency {
        None => Catalog::open(&CatalogConfig::local(directory.path())).await?,
        Some(latency) => slow_store::catalog(latency),
    };
    catalog.ensure(&schema::raw_events()).await?;
    catalog.ensure(&schema::raw_quarantine()).await?;
    let stop = CancellationToken::new();
    let (engine, committer) = EngineParts {
        config: config(),
        catalog: catalog.clone(),
        clock: SystemClock::shared(),
        chance: SystemChance::shared(),
        hook: std::sync::Arc::new(NoHook),
        plan: LivePlan::open(None)?,
    }
    .assemble(&stop);
    let committer = tokio::spawn(committer.run());

    let mut chance = StdRng::seed_from_u64(1);
    let mut fleet = Vec::with_capacity(agents);
    let started = Instant::now();
    for _ in 0..agents {
        let id = uuid(&mut chance).parse()?;
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_id: id,
            epoch: EPOCH,
            lowest_unacknowledged: 1,
            build: "bench".to_owned(),
            host: "bench".to_owned(),
        };
        let welcomed = engine.welcome(&hello.agent_id, &hello).await;
        let (intake, _) = welcomed.map_err(anyhow::Error::msg)?;
        fleet.push(Agent { intake, next: 1 });
    }
    say(&format!(
        "{agents} agents welcomed in {:.1?}",
        started.elapsed()
    ));
    let started = Instant::now();
    for fleet in fleet.chunks_mut(1000) {
        try_join_all(fleet.iter_mut().map(Agent::send)).await?;
    }
    say(&format!(
        "one batch of each committed in {:.1?}",
        started.elapsed()
    ));

    let mut rounds = Vec::with_capacity(commits);
    for round in 0..commits {
        let start = chance.random_range(0..agents);
        fleet.rotate_left(start);
        let started = Instant::now();
        try_join_all(fleet[..SENDERS].iter_mut().map(Agent::send)).await?;
        rounds.push(started.elapsed());
        if round % 1000 == 999 {
            let median = median(&rounds[round + 1 - WINDOW..]);
            say(&format!(
                "{:>6} commits, median of the last {WINDOW}: {median:.2?}",
                round + 1
            ));
        }
    }
    let head = catalog.load(&schema::RAW_EVENTS).await?;
    weigh(&head, agents)?;
    if latency.is_none() {
        count_files(&head, directory.path()).await?;
    }
    compare(&rounds, is_bench)?;
    stop.cancel();
    committer.abort();
    Ok(())
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

/// Weighs what the watermarks add to the metadata file as it is stored.
fn weigh(head: &Table, agents: usize) -> Result<()> {
    let mut metadata = serde_json::to_value(head.metadata())?;
    let with = gzipped(&metadata)?;
    let properties = metadata["properties"].as_object_mut();
    let properties = properties.context("the table has properties")?;
    properties.retain(|key, _| !key.starts_with(WATERMARK_PREFIX));
    let added = with - gzipped(&metadata)?;
    say(&format!(
        "watermarks add {added} bytes to a metadata file of {with}, {:.1} per agent",
        added as f64 / agents as f64
    ));
    // The sparse shards of the short run cost their names and bounds.
    let allowed = agents * BYTES_PER_AGENT_MAX + if agents < 10_000 { 64 * 40 } else { 0 };
    ensure!(
        added <= allowed,
        "watermarks add {added} bytes, {allowed} are allowed"
    );
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

fn compare(rounds: &[Duration], is_bench: bool) -> Result<()> {
    let window = WINDOW.min(rounds.len() / 2);
    let (first, last) = (
        median(&rounds[..window]),
        median(&rounds[rounds.len() - window..]),
    );
    let ratio = last.as_secs_f64() / first.as_secs_f64();
    let mut sorted = rounds.to_vec();
    sorted.sort_unstable();
    say(&format!(
        "a commit of {SENDERS} batches: first {first:.2?}, last {last:.2?}, ratio {ratio:.2}; p99 {:.1?}, longest {:.1?}",
        sorted[sorted.len() * 99 / 100],
        sorted[sorted.len() - 1],
    ));
    if is_bench {
        ensure!(
            ratio <= SLOWER_MAX,
            "commits became {ratio:.2} times as slow"
        );
    }
    Ok(())
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
