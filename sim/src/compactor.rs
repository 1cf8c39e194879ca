//! Compaction beside the commits: live files of one partition are read and written as one, in a
//! replace that races with the collectors. The history of snapshots is cut by the commits themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use headwater_tables::schema::{RAW_EVENTS, RAW_QUARANTINE};
use headwater_tables::write::{live_entries, write_batches};
use headwater_tables::{Catalog, Change, CommitError, DataFile, Operation, TableName};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio_util::sync::CancellationToken;

use crate::collector::catalog;
use crate::host::Host;
use crate::world::World;

/// Compacts now and then until the faults are over.
pub(crate) async fn run(world: Arc<World>, healed: CancellationToken) {
    let host = Host::new(
        "compactor".to_owned(),
        world.trace.clone(),
        world.dice.clone(),
        None,
    );
    let catalog = catalog(&world, &host);
    loop {
        tokio::select! {
            biased;
            () = healed.cancelled() => return,
            () = tokio::time::sleep(world.dice.ms(500..=5_000)) => {}
        }
        let name = [&*RAW_EVENTS, &*RAW_QUARANTINE][world.dice.index(2)];
        match compact(&world, &catalog, name).await {
            Ok(true) => world.trace.count("compaction: done"),
            Ok(false) => {}
            Err(error) => {
                world.trace.count("compaction: not done");
                world
                    .trace
                    .line(format_args!("compaction of {name}: {}", kind(&error)));
            }
        }
    }
}

/// Errors name files, which differ from run to run only in their names.
fn kind(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref() {
        Some(CommitError::Conflict { .. }) => "conflict",
        Some(CommitError::Unknown { .. }) => "unknown",
        Some(CommitError::Failed { .. }) => "failed",
        None => "error",
    }
}

async fn compact(world: &Arc<World>, catalog: &Catalog, name: &TableName) -> anyhow::Result<bool> {
    let base = catalog.load(name).await?;
    let mut partitions: BTreeMap<String, Vec<DataFile>> = BTreeMap::new();
    for live in live_entries(&base).await? {
        let partition = format!("{:?}", live.file.partition());
        partitions.entry(partition).or_default().push(live.file);
    }
    let Some(files) = partitions.into_values().find(|files| files.len() > 1) else {
        return Ok(false);
    };
    let mut rows = Vec::new();
    for file in &files {
        rows.extend(read(world, file.file_path(), None)?);
    }
    let change = Change {
        operation: Operation::Replace,
        add: write_batches(&base, rows).await?,
        remove: files
            .iter()
            .map(|file| file.file_path().to_owned())
            .collect(),
        ..Change::default()
    };
    world.moved(&change.add);
    catalog.commit(&base, change).await?;
    Ok(true)
}

/// Reads all rows of a data file, of the `columns` or of all.
pub(crate) fn read(
    world: &World,
    path: &str,
    columns: Option<&[&str]>,
) -> anyhow::Result<Vec<RecordBatch>> {
    let bytes = world.files.read(path);
    let bytes = bytes.ok_or_else(|| anyhow::anyhow!("live data file is gone"))?;
    let mut reader = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    if let Some(columns) = columns {
        let columns = columns.iter().copied();
        let mask = ProjectionMask::columns(reader.parquet_schema(), columns);
        reader = reader.with_projection(mask);
    }
    Ok(reader.build()?.collect::<Result<_, _>>()?)
}
