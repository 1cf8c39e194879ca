//! Times SQL over one Iceberg table with `iceberg-datafusion`: the peer that `tables/benches/scan.rs`
//! compares with. Not on the path of an event.
//!
//! `peer-scan METADATA_JSON ROUNDS SQL...` registers the table as `t`, runs each statement once to
//! warm up and then ROUNDS times, and prints the median seconds of each on a line of its own.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use datafusion::prelude::SessionContext;
use iceberg::TableIdent;
use iceberg::io::FileIO;
use iceberg::table::StaticTable;
use iceberg_datafusion::IcebergStaticTableProvider;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let metadata = arguments.next().context("usage: peer-scan METADATA_JSON ROUNDS SQL...")?;
    let rounds: usize = arguments.next().context("ROUNDS is missing")?.parse()?;
    let table = StaticTable::from_metadata_file(
        &metadata,
        TableIdent::from_strs(["bench", "t"])?,
        FileIO::new_with_fs(),
    )
    .await?
    .into_table();
    let context = SessionContext::new();
    let provider = IcebergStaticTableProvider::try_new_from_table(table).await?;
    context.register_table("t", Arc::new(provider))?;
    for sql in arguments {
        let mut seconds = Vec::with_capacity(rounds);
        for round in 0..=rounds {
            let started = Instant::now();
            let batches = context.sql(&sql).await?.collect().await?;
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
            anyhow::ensure!(!batches.is_empty(), "`{sql}` returned nothing");
        }
        seconds.sort_by(f64::total_cmp);
        println!("{:.6}", seconds[rounds / 2]);
    }
    Ok(())
}
