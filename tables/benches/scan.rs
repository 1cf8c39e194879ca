//! Speed of the scan against DataFusion's own listing of the same files.
//!
//! Unit: seconds per query, wall clock, on all cores of the machine; then the ratio of medians, ours
//! to the listing's, where 1.00 is equal and less is faster. The goal is at most 1.20 for reading
//! everything (the listing's floor) and well below 1 where metadata lets files be skipped.
//!
//! ```text
//! cargo bench -p headwater-tables --features query --bench scan
//! ```
//!
//! With `HEADWATER_PEER_SCAN` naming the program of `deploy/peer-scan` (a build of its own, because it
//! needs another DataFusion), `iceberg-datafusion` reads the same table in the same run.

#![expect(clippy::unwrap_used, reason = "a bench that fails stops")]

#[path = "../tests/query/lake.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod lake;

use std::ffi::OsStr;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;
use criterion::Criterion;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use headwater_tables::query::{SessionOptions, session};
use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tokio::runtime::Runtime;

use lake::{Lake, arrow_schema, paths};

const TABLE: &str = "raw.interactions";
const DAYS: i64 = 30;
const ROWS_PER_DAY: i64 = 50_000;
/// 2026-11-01T00:00:00Z.
const FIRST_DAY_MICROS: i64 = 1_793_491_200_000_000;
const DAY_MICROS: i64 = 86_400_000_000;
/// Runs of each query for the ratio.
const RUNS: usize = 15;

/// What is measured, each over the whole table or a part of it.
const QUERIES: [(&str, &str); 5] = [
    ("count", "SELECT count(*) FROM raw.interactions"),
    (
        "everything",
        "SELECT sum(id), max(company), sum(length(properties)), max(at) FROM raw.interactions",
    ),
    (
        "group",
        "SELECT company, count(*), avg(id) FROM raw.interactions GROUP BY company",
    ),
    (
        "one_day",
        "SELECT count(*), sum(length(properties)) FROM raw.interactions \
         WHERE at >= '2026-11-12T00:00:00Z' AND at < '2026-11-13T00:00:00Z'",
    ),
    (
        "one_row",
        "SELECT max(properties) FROM raw.interactions WHERE id = 777777",
    ),
];

fn main() {
    let runtime = Runtime::new().unwrap();
    let (lake, ours, listing) = runtime.block_on(open());
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_secs(3))
        .sample_size(10)
        .configure_from_args();
    for (name, sql) in QUERIES {
        let mut group = criterion.benchmark_group(name);
        for (reader, context) in [("headwater", &ours), ("listing", &listing)] {
            group.bench_function(reader, |bencher| {
                bencher.iter(|| runtime.block_on(run(context, sql)));
            });
        }
        group.finish();
    }
    criterion.final_summary();
    for (name, sql) in QUERIES {
        let seconds = print_ratio(&runtime, name, sql, &ours, &listing);
        if let Some(peer) = std::env::var_os("HEADWATER_PEER_SCAN") {
            let table = runtime.block_on(lake.load(TABLE));
            print_peer(
                &peer,
                table.metadata_location().unwrap(),
                name,
                sql,
                seconds,
            );
        }
    }
    drop(lake);
}

/// Times the same query with `iceberg-datafusion`.
#[expect(clippy::print_stdout, reason = "a bench reports to the terminal")]
fn print_peer(peer: &OsStr, metadata: &str, name: &str, sql: &str, ours: f64) {
    let output = Command::new(peer)
        .args([metadata, &RUNS.to_string(), &sql.replace(TABLE, "t")])
        .output()
        .expect("HEADWATER_PEER_SCAN names a program");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let seconds: f64 = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    println!(
        "{name}: iceberg-datafusion {seconds:.4} s, ratio {:.2}",
        ours / seconds
    );
}

/// Runs the two alternately, so that both see the same state of the machine; returns our median
/// seconds.
#[expect(clippy::print_stdout, reason = "a bench reports to the terminal")]
fn print_ratio(
    runtime: &Runtime,
    name: &str,
    sql: &str,
    ours: &SessionContext,
    listing: &SessionContext,
) -> f64 {
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (times, context) in times.iter_mut().zip([ours, listing]) {
            let start = Instant::now();
            runtime.block_on(run(context, sql));
            times.push(start.elapsed());
        }
    }
    let [ours, listing] = times.map(|mut times| {
        times.sort_unstable();
        times[RUNS / 2].as_secs_f64()
    });
    println!(
        "{name}: headwater {ours:.4} s, listing {listing:.4} s, ratio {:.2}",
        ours / listing
    );
    ours
}

async fn run(context: &SessionContext, sql: &str) {
    let frame = context.sql(sql).await.unwrap();
    black_box(frame.collect().await.unwrap());
}

/// Writes the table and opens it both ways.
async fn open() -> (Lake, SessionContext, SessionContext) {
    let lake = Lake::new().await;
    let table = lake.create(TABLE, schema(), Some("at")).await;
    let arrow = arrow_schema(&table);
    for day in 0..DAYS {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        lake.append_with(TABLE, rows(&arrow, day), properties).await;
    }
    let pins = lake.pins(&[TABLE]).await;
    let ours = session(&pins, &SessionOptions::default()).unwrap();

    let mut config = SessionConfig::new();
    config
        .options_mut()
        .execution
        .parquet
        .schema_force_view_types = false;
    let listing = SessionContext::new_with_config(config);
    let frame = listing
        .read_parquet(
            paths(&lake.load(TABLE).await).await,
            ParquetReadOptions::default(),
        )
        .await
        .unwrap();
    let raw = Arc::new(MemorySchemaProvider::new());
    let catalog = listing.catalog("datafusion").unwrap();
    catalog.register_schema("raw", raw).unwrap();
    listing.register_table(TABLE, frame.into_view()).unwrap();
    (lake, ours, listing)
}

fn schema() -> Schema {
    let required = |id, name, kind| NestedField::required(id, name, Type::Primitive(kind)).into();
    Schema::builder()
        .with_fields(vec![
            required(1, "id", PrimitiveType::Long),
            required(2, "company", PrimitiveType::String),
            required(3, "at", PrimitiveType::Timestamptz),
            required(4, "properties", PrimitiveType::String),
        ])
        .build()
        .unwrap()
}

fn rows(schema: &SchemaRef, day: i64) -> RecordBatch {
    let ids = || day * ROWS_PER_DAY..(day + 1) * ROWS_PER_DAY;
    let mixed = |id: i64| (id.wrapping_mul(0x5851_f42d_4c95_7f2d) >> 33) & 0xffff;
    let at = ids().map(|id| {
        FIRST_DAY_MICROS + day * DAY_MICROS + id % ROWS_PER_DAY * (DAY_MICROS / ROWS_PER_DAY)
    });
    let companies = ids().map(|id| format!("company-{:03}", mixed(id) % 200));
    let properties = ids().map(|id| {
        format!(
            "{{\"conversation\":\"{:016x}\",\"minutes\":{},\"channel\":\"email\"}}",
            mixed(id) * id,
            mixed(id) % 97
        )
    });
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids())),
        Arc::new(StringArray::from_iter_values(companies)),
        Arc::new(TimestampMicrosecondArray::from_iter_values(at).with_timezone("+00:00")),
        Arc::new(StringArray::from_iter_values(properties)),
    ];
    RecordBatch::try_new(Arc::clone(schema), columns).unwrap()
}
