//! The collector as it is shipped, under load from real QUIC: what it costs, how fresh the tables are,
//! how large the files become, and what it holds in memory.
//!
//! `cargo bench -p headwater-collector --bench ingest` starts the program on a SQLite catalog and local
//! files with the default settings, and sends batches that were made beforehand, paced, from eight
//! agents. The collector's CPU time, memory and files are those of its own process. Prints a Markdown
//! table and fails when a bound of the product does not hold. The baseline, in the same run, is
//! arrow-rs's Parquet writer alone on the same rows.

#[path = "common/bounds.rs"]
mod bounds;
#[path = "common/load.rs"]
mod load;
#[path = "common/program.rs"]
mod program;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use headwater_collector::commit::files::sort_events;
use headwater_collector::plan::Plan;
use headwater_collector::staging::{BatchOrigin, stage};
use headwater_protocol::{BatchHeader, BatchReply};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tokio::time::sleep_until;

use load::wire_batch;
use program::{Agent, Program};

const AGENTS: u64 = 8;
const EVENTS_PER_BATCH: u32 = 1_000;
/// Offered load, in bytes of MessagePack a second.
const OFFERED: f64 = 50e6;
const SECONDS: f64 = 30.0;
/// Agents that connect and say nothing.
const IDLE_AGENTS: usize = 500;

const PER_CORE_MIN: f64 = 50e6;
const FRESHNESS_P99_MAX: Duration = Duration::from_secs(10);
const FILE_MEDIAN_MIN: u64 = 8_000_000;
/// The default of `limits.staged_bytes_max`.
const STAGED_BYTES_MAX: u64 = 512 << 20;
const PER_BYTE_MAX: f64 = 4.0;
/// Memory of an agent that is connected and silent.
const IDLE_AGENT_MAX: u64 = 100_000;

type Batch = (BatchHeader, Vec<u8>);

#[tokio::main]
async fn main() -> Result<()> {
    // The release build is what is measured: nothing of it holds for a build for tests.
    ensure!(
        std::env::args().any(|argument| argument == "--bench"),
        "run me with `cargo bench`"
    );
    let plans = make_load();
    let bytes: u64 = plans
        .iter()
        .flatten()
        .map(|(header, _)| header.body_bytes)
        .sum();
    let events: u64 = plans
        .iter()
        .flatten()
        .map(|(header, _)| u64::from(header.count))
        .sum();
    let bare = bare_writer(&plans[0])?;

    let program = Program::start("").await?;
    let idle = program.rss()?;
    let before = program.cpu()?;
    let started = Instant::now();
    let agents = plans.into_iter().enumerate().map(|(number, plan)| {
        let agent = program.agent(&format!("agent-{number}"));
        tokio::spawn(async move { send(agent.await?, plan, number).await })
    });
    let agents: Vec<_> = agents.collect();
    let mut ages = Vec::new();
    for agent in agents {
        ages.extend(agent.await??);
    }
    let wall = started.elapsed();
    let cpu = program.cpu()? - before;
    let peak = program.peak_rss()?;
    ages.sort_unstable();
    let files = file_sizes(&program.warehouse().join("raw/events/data"))?;

    let per_core = bytes as f64 / cpu.as_secs_f64();
    let median_file = files[files.len() / 2];
    let p99 = ages[ages.len() * 99 / 100];
    say("| what | figure | bound |");
    say("|---|---|---|");
    say(&format!(
        "| offered and committed | {:.1} MB/s of MessagePack, {:.0} events/s, {:.0} s | – |",
        bytes as f64 / 1e6 / wall.as_secs_f64(),
        events as f64 / wall.as_secs_f64(),
        wall.as_secs_f64()
    ));
    say(&format!(
        "| per core, QUIC to commit | {:.1} MB/s | 50 |",
        per_core / 1e6
    ));
    say(&format!(
        "| the bare Parquet writer on the same rows | {:.1} MB/s, ratio {:.2} | – |",
        bare / 1e6,
        per_core / bare
    ));
    say(&format!(
        "| from sent to visible and acked, median, p99 | {:.1} s, {:.1} s | p99 10 s |",
        ages[ages.len() / 2].as_secs_f64(),
        p99.as_secs_f64()
    ));
    say(&format!(
        "| data files, median | {} files, {:.1} MB | 8 MB |",
        files.len(),
        median_file as f64 / 1e6
    ));
    say(&format!(
        "| memory, idle and peak | {:.0} MB, {:.0} MB | – |",
        idle as f64 / 1e6,
        peak as f64 / 1e6
    ));
    drop(program);
    let per_agent = idle_agents().await?;
    let committing = full_staging().await?;
    bounds::hold(&[
        (per_core < PER_CORE_MIN, "MB/s per core"),
        (p99 > FRESHNESS_P99_MAX, "freshness"),
        (median_file < FILE_MEDIAN_MIN, "size of data files"),
        (per_agent > IDLE_AGENT_MAX, "memory per silent agent"),
        (committing > PER_BYTE_MAX, "memory per byte staged"),
    ])
}

/// Returns the batches of every agent.
fn make_load() -> Vec<Vec<Batch>> {
    let (first, _) = wire_batch(program::EPOCH, 1, EVENTS_PER_BATCH, 1);
    let batches = (OFFERED * SECONDS / first.body_bytes as f64 / AGENTS as f64) as u64;
    let count = u64::from(EVENTS_PER_BATCH);
    let plan = |agent: u64| {
        let batches = (0..batches).map(move |number| {
            let event = (agent * batches + number) * count;
            wire_batch(program::EPOCH, number * count + 1, EVENTS_PER_BATCH, event)
        });
        batches.collect()
    };
    std::thread::scope(|scope| {
        let plans: Vec<_> = (0..AGENTS)
            .map(|agent| scope.spawn(move || plan(agent)))
            .collect();
        plans
            .into_iter()
            .map(|plan| plan.join().expect("load is made"))
            .collect()
    })
}

/// Sends batches at the agent's share of the load; returns how long each took to be acked.
async fn send(agent: Agent, plan: Vec<Batch>, number: usize) -> Result<Vec<Duration>> {
    let agent = Arc::new(agent);
    let in_flight = agent.welcome.limits.batches_in_flight_max as usize;
    let places = Arc::new(tokio::sync::Semaphore::new(in_flight));
    let pause = plan[0].0.body_bytes as f64 * AGENTS as f64 / OFFERED;
    let start = tokio::time::Instant::now()
        + Duration::from_secs_f64(pause / AGENTS as f64 * number as f64);
    let mut sent = Vec::with_capacity(plan.len());
    for (index, (header, body)) in plan.into_iter().enumerate() {
        let due = start + Duration::from_secs_f64(pause * index as f64);
        sleep_until(due).await;
        let place = Arc::clone(&places).acquire_owned().await?;
        let agent = Arc::clone(&agent);
        sent.push(tokio::spawn(async move {
            let last = header.first_sequence + u64::from(header.count) - 1;
            let reply = agent.send(&header, &body).await?;
            drop(place);
            match reply {
                BatchReply::Ack {
                    committed_through, ..
                } if committed_through >= last => {
                    // From when it was due: waiting for a place counts.
                    Ok(due.elapsed())
                }
                other => anyhow::bail!("not acked: {other:?}"),
            }
        }));
    }
    let mut ages = Vec::with_capacity(sent.len());
    for batch in sent {
        ages.push(batch.await??);
    }
    Ok(ages)
}

/// Returns the bytes of MessagePack a second whose rows arrow-rs's writer encodes on one core.
fn bare_writer(batches: &[Batch]) -> Result<f64> {
    let plan = Plan::builtin();
    let mut rows = Vec::new();
    let mut bytes = 0;
    for (header, body) in &batches[..batches.len().min(100)] {
        let origin = BatchOrigin::new("bench".parse()?, header.epoch, header, 0);
        rows.push(stage(&origin, header, body, &plan)?.events);
        bytes += header.body_bytes;
    }
    let rows = sort_events(&rows)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .build();
    let file = tempfile::tempfile()?;
    let started = Instant::now();
    let mut writer = ArrowWriter::try_new(file, rows[0].schema(), Some(properties))?;
    for rows in &rows {
        writer.write(rows)?;
    }
    writer.close()?;
    Ok(bytes as f64 / started.elapsed().as_secs_f64())
}

/// Returns the sizes of all Parquet files below `directory`, in order.
fn file_sizes(directory: &Path) -> Result<Vec<u64>> {
    let mut sizes = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else {
                sizes.push(entry.metadata()?.len());
            }
        }
    }
    sizes.sort_unstable();
    ensure!(!sizes.is_empty(), "no data file");
    Ok(sizes)
}

/// Says what an agent costs that is connected and silent; returns its bytes of memory.
async fn idle_agents() -> Result<u64> {
    let program = Program::start("").await?;
    let before = program.rss()?;
    let mut agents = Vec::new();
    for number in 0..IDLE_AGENTS {
        agents.push(program.agent(&format!("idle-{number}")).await?);
    }
    let per_agent = program.rss()?.saturating_sub(before) / IDLE_AGENTS as u64;
    say(&format!(
        "| memory of a connected agent that is silent | {} kB | 100 kB |",
        per_agent / 1000
    ));
    Ok(per_agent)
}

/// Fills the staged bytes to their bound while nothing can be committed, and says what they take; returns the
/// bytes of memory per byte staged while they are committed.
async fn full_staging() -> Result<f64> {
    let program = Program::start("").await?;
    let before = program.rss()?;
    // One agent alone may take half.
    let mut agents = Vec::new();
    for name in ["full-0", "full-1"] {
        agents.push(Arc::new(program.agent(name).await?));
    }
    program.take_metadata_away()?;
    let count = agents[0].welcome.limits.batch_events_max;
    let (largest, _) = wire_batch(program::EPOCH, 1, count, 1);
    let fit = STAGED_BYTES_MAX / 2 / largest.body_bytes;
    let mut sent = Vec::new();
    for number in 0..fit + 4 {
        let first = number * u64::from(count) + 1;
        let (header, body) = wire_batch(program::EPOCH, first, count, first);
        for agent in &agents {
            let (agent, header, body) = (Arc::clone(agent), header.clone(), body.clone());
            sent.push(tokio::spawn(async move {
                loop {
                    // One that came too early comes again, as an agent's does.
                    let reply = agent.send(&header, &body).await?;
                    let BatchReply::Retry { after_ms, .. } = reply else {
                        return anyhow::Ok(reply);
                    };
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                }
            }));
        }
    }
    // Full is when each of them has a batch that waits for room.
    let waiting = "collector_waiting_batches{for=\"agent\"}";
    let mut staged = 0.0;
    while staged < STAGED_BYTES_MAX as f64 * 0.9
        || program.metric(waiting).await? < agents.len() as f64
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
        staged = program.metric("collector_staged_bytes").await?;
    }
    let per_byte = |rss: u64| rss.saturating_sub(before) as f64 / staged;
    let held = per_byte(program.rss()?);
    program.give_metadata_back()?;
    for batch in sent {
        let reply = batch.await??;
        ensure!(
            matches!(reply, BatchReply::Ack { .. }),
            "not acked: {reply:?}"
        );
    }
    let committing = per_byte(program.peak_rss()?);
    say(&format!(
        "| memory per byte staged, {:.0} MB staged, waiting and while they are committed | {held:.1}, {committing:.1} bytes | 4 |",
        staged / 1e6,
    ));
    Ok(committing)
}

#[expect(clippy::print_stdout, reason = "a bench prints its result")]
fn say(line: &str) {
    println!("{line}");
}
