//! Throughput of the collector's CPU path on one core, in MB/s of MessagePack (uncompressed bodies).
//!
//! Batches of the wire are staged, sorted, written as Parquet and committed to a catalog in a
//! temporary directory, one after the other, so that wall time is the time of one core plus the
//! disk. Run with `cargo bench -p headwater-collector`; without `--bench` (as a test) it runs once on
//! little data. Events are 600-byte track calls of 200 users, half of them with ten properties.

use std::time::{Duration, Instant};

use headwater_collector::commit::files::sort_events;
use headwater_collector::plan::Plan;
use headwater_collector::staging::{BatchOrigin, stage};
use headwater_protocol::{BatchHeader, Codec, Record, SourceKind, batch};
use headwater_tables::write::write_batches;
use headwater_tables::{Catalog, CatalogConfig, Change, schema};
use serde_bytes::ByteBuf;

const EVENTS_PER_BATCH: u32 = 5_000;

fn event(n: u64) -> Record {
    let body = format!(
        r#"{{"type":"track","event":"Conversation Replied","messageId":"{n:032x}","userId":"user-{}","timestamp":"2026-11-20T10:00:{:02}.123Z","properties":{{"conversation_id":"c-{}","part_id":"p-{n}","part_type":"comment","is_visible":true,"body_length":{},"attachments_count":0,"language":"en","team_id":"t-7","in_reply_to":"p-{}","channel":"chat"}},"context":{{"library":{{"name":"@segment/analytics-node","version":"3.1.0"}},"locale":"en-GB","timezone":"Europe/Dublin","userAgent":"node/22","page":{{"url":"https://app.example.com/inbox/{}","path":"/inbox"}}}}}}"#,
        n % 200,
        n % 60,
        n % 997,
        n % 400,
        n / 2,
        n % 97,
    );
    Record {
        received_at: 1_795_168_800_000_000 + (n as i64) * 1000,
        company_id: format!("company-{}", n % 20),
        source_id: "web".to_owned(),
        source_kind: SourceKind::Server,
        path: "/v1/batch".to_owned(),
        event_type: None,
        sent_at: Some("2026-11-20T10:00:59.000Z".to_owned()),
        attempt: Some(0),
        ip: Some("192.0.2.0".to_owned()),
        user_agent: None,
        body: ByteBuf::from(body.into_bytes()),
        skew_ms: None,
    }
}

fn wire_batch(number: u64) -> (BatchHeader, Vec<u8>) {
    let first = number * u64::from(EVENTS_PER_BATCH) + 1;
    let mut body = Vec::new();
    for n in first..first + u64::from(EVENTS_PER_BATCH) {
        event(n).encode_into(&mut body);
    }
    let header = BatchHeader {
        epoch: 1,
        first_sequence: first,
        count: EVENTS_PER_BATCH,
        codec: Codec::Zstd,
        body_bytes: body.len() as u64,
    };
    let compressed = batch::compress(&body).expect("zstd has memory");
    (header, compressed)
}

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
            .map(|n| wire_batch(commit * batches + n))
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
    report(bytes, events, &spent);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a bench prints its result")]
fn report(bytes: u64, events: u64, spent: &[Duration; 4]) {
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
}
