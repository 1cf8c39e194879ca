//! Memory and time of a commit whose rows lie in thousands of days: an agent that was cut off for
//! long, or devices with wrong clocks, must not make the writer open a file per day at once.
//!
//! `cargo bench -p headwater-tables --bench partitions` writes 5,000 days; without `--bench` (as a test)
//! a few hundred. Fails when more than one file is open at once, and when memory grows by more than its
//! bound, which a few hundred open files would not reach.

#[path = "common/counted.rs"]
mod counted;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use headwater_tables::write::write_batches;
use headwater_tables::{Catalog, CatalogConfig, Change, Partition, Table, TableSpec};
use iceberg::Runtime;

use counted::Counted;

const DAY: i64 = 86_400_000_000;
const ROWS_PER_BATCH: usize = 8192;
/// Beyond the rows themselves and one copy of them, which the caller bounds.
const GROWTH_MAX: u64 = 64 << 20;
/// What `write_batches` promises: one file at a time.
const OPEN_MAX: usize = 1;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (days, rows_per_day) = if is_bench { (5_000, 40) } else { (300, 10) };
    let directory = tempfile::tempdir()?;
    let catalog = Catalog::open(&CatalogConfig::local(directory.path())).await?;
    let at = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("at", at, false),
        Field::new("properties", DataType::Utf8, false),
    ]));
    let partition = Partition::Day("at".to_owned());
    let spec = TableSpec::from_arrow("raw.late".parse()?, &schema, partition)?;
    let table = catalog.ensure(&spec).await?;

    // The same table, on a disk that counts.
    let disk = Counted::default();
    let counted = Table::builder()
        .identifier(table.identifier().clone())
        .metadata(table.metadata_ref())
        .file_io(disk.file_io())
        .runtime(Runtime::try_current()?)
        .build()?;

    let batches = batches(&schema, days, rows_per_day)?;
    let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let before = peak_rss()?;
    let started = Instant::now();
    let files = write_batches(&counted, batches).await?;
    let written = started.elapsed();
    let grown = peak_rss()?.saturating_sub(before);
    let open = disk.most();
    ensure!(files.len() == days, "{} files for {days} days", files.len());
    let started = Instant::now();
    catalog.commit(&table, Change::append(files)).await?;
    say(&format!(
        "{days} days, {} rows of {:.1} MB: written in {written:.2?}, committed in {:.2?}, memory grew by {:.1} MB, files open at once: {open}",
        days * rows_per_day,
        bytes as f64 / 1e6,
        started.elapsed(),
        grown as f64 / 1e6,
    ));
    ensure!(
        (1..=OPEN_MAX).contains(&open),
        "{open} files were open at once, {OPEN_MAX} is promised"
    );
    let bound = GROWTH_MAX + bytes as u64;
    ensure!(
        grown <= bound,
        "memory grew by {grown} bytes, {bound} are allowed"
    );
    Ok(())
}

/// Returns rows whose days take turns, so that every batch holds many days.
fn batches(schema: &SchemaRef, days: usize, rows_per_day: usize) -> Result<Vec<RecordBatch>> {
    let rows: Vec<usize> = (0..days * rows_per_day).collect();
    let batch = |rows: &[usize]| {
        let ids = Int64Array::from_iter_values(rows.iter().map(|row| *row as i64));
        let at = rows.iter().map(|row| (*row % days) as i64 * DAY);
        let at = TimestampMicrosecondArray::from_iter_values(at).with_timezone("UTC");
        let text = rows.iter().map(|row| format!("{row:0300}"));
        let text = StringArray::from_iter_values(text);
        let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(at), Arc::new(text)];
        RecordBatch::try_new(schema.clone(), columns)
    };
    Ok(rows
        .chunks(ROWS_PER_BATCH)
        .map(batch)
        .collect::<Result<_, _>>()?)
}

/// Returns the most memory that the process has held, in bytes.
fn peak_rss() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib
        .context("no peak of memory in /proc")?
        .trim()
        .parse::<u64>()?
        * 1024)
}

#[expect(clippy::print_stdout, reason = "a bench prints its result")]
fn say(line: &str) {
    println!("{line}");
}
