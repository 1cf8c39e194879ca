//! Throughput of the collector's CPU path on one core, in MB/s of MessagePack (uncompressed bodies).
//!
//! Batches of the wire are staged, sorted, written as Parquet and committed to a catalog in a
//! temporary directory, one after the other, so that wall time is the time of one core plus the
//! disk. Run with `cargo bench -p headwater-collector`; without `--bench` (as a test) it runs once on
//! little data. Events are 600-byte track calls of 200 users, half of them with ten properties. Fails
//! below 50 MB/s for all of it (bench only).

#[path = "common/load.rs"]
mod load;

use std::time::{Duration, Instant};

use anyhow::ensure;
use headwater_collector::commit::files::sort_events;
use headwater_collector::plan::Plan;
use headwater_collector::staging::{BatchOrigin, stage};
use headwater_tables::write::write_batches;
use headwater_tables::{Catalog, CatalogConfig, Change, schema};

use load::wire_batch;

const EVENTS_PER_BATCH: u32 = 5_000;
/// In MB/s of MessagePack, for all stages together.
const PER_CORE_MIN: f64 = 50.0;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (commits, batches) = if is_bench { (4, 10) } else { (1, 1) };
    let directory = tempfile::tempdir()?;
    let catalog = Catalog::open(&CatalogConfig::local(directory.path())).await?;
    let mut table = catalog.ensure(&schema::raw_events()).await?;
    let plan = Plan::builtin();
    let mut spent = [Duration::ZERO; 4];
    let mut bytes = 0;
    let mut events = 0;
    for commit in 0..commits {
        let wire: Vec<_> = (0..batches)
            .map(|n| (commit * batches + n) * u64::from(EVENTS_PER_BATCH))
            .map(|done| wire_batch(1, done + 1, EVENTS_PER_BATCH, done + 1))
            .collect();
        bytes += wire
            .iter()
            .map(|(header, _)| header.body_bytes)
            .sum::<u64>();
        events += batches * u64::from(EVENTS_PER_BATCH);

        let start = Instant::now();
        let mut rows = Vec::new();
        for (header, body) in &wire {
            let origin = BatchOrigin::new("bench".parse()?, 1, header, 0);
            rows.push(stage(&origin, header, body, &plan)?.events);
        }
        spent[0] += start.elapsed();
        let start = Instant::now();
        let rows = sort_events(&rows)?;
        spent[1] += start.elapsed();
        let start = Instant::now();
        let files = write_batches(&table, rows).await?;
        spent[2] += start.elapsed();
        let start = Instant::now();
        table = catalog.commit(&table, Change::append(files)).await?;
        spent[3] += start.elapsed();
    }
    let per_core = report(bytes, events, &spent);
    ensure!(
        !is_bench || per_core >= PER_CORE_MIN,
        "{per_core:.1} MB/s per core, {PER_CORE_MIN} are the bound"
    );
    Ok(())
}

/// Prints what each stage took; returns the MB/s of all of them.
#[expect(clippy::print_stdout, reason = "a bench prints its result")]
fn report(bytes: u64, events: u64, spent: &[Duration; 4]) -> f64 {
    let names = ["decode to rows", "sort", "Parquet", "commit"];
    let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
    for (name, time) in names.iter().zip(spent) {
        println!("{name:>16}: {time:>10.2?} {:>9.1} MB/s", rate(*time));
    }
    let total: Duration = spent.iter().sum();
    println!(
        "{:>16}: {total:>10.2?} {:>9.1} MB/s of MessagePack per core, {:.0} events/s, {:.0} bytes per event",
        "all",
        rate(total),
        events as f64 / total.as_secs_f64(),
        bytes as f64 / events as f64,
    );
    rate(total)
}
