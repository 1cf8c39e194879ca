//! What lies in `raw.quarantine`, for the person who looks after it: list, show, replay.
//!
//! Beside the path of events: the command line reads the tables, and `replay` adds to `raw.events`
//! what has become valid. Rows of the quarantine are evidence and never change. Promise: a row is
//! *open* as long as `raw.events` has no row of its position; that is looked up, never remembered, so
//! no crash can make it wrong.

pub mod command;
mod entry;
mod oldest;
pub mod replay;

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use headwater_protocol::Sequence;
use headwater_tables::{CatalogError, CommitError, Table};
use iceberg::expr::{Predicate, Reference};
use iceberg::spec::Datum;

use crate::commit::files::FilesError;
use crate::ledger::Key;
pub use entry::Entry;
use entry::{COLUMNS, entries};

/// What to do with a `raw.quarantine` whose columns are of other types.
pub(crate) const OTHER_VERSION: &str =
    "a version with other columns made this table: rename or drop it, and a new one is made";

/// Why a command on the quarantine failed. What it said to be done is done; run it again.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    /// The catalog cannot be read.
    #[error("the catalog cannot be read: {0}; check the [catalog] section")]
    Catalog(#[from] CatalogError),
    /// `raw.quarantine` has columns of other types.
    #[error("{source}; {advice}", advice = OTHER_VERSION)]
    OtherVersion {
        /// What differs.
        source: CatalogError,
    },
    /// A table cannot be read.
    #[error("table `{table}` cannot be read: {source}")]
    Read {
        /// Which one.
        table: String,
        /// Why.
        #[source]
        source: Box<iceberg::Error>,
    },
    /// A column is not what this version knows.
    #[error("a row of the quarantine cannot be read: {0}")]
    Row(String),
    /// There is no such row.
    #[error(
        "the quarantine has no row `{0}`: ids are `agent/epoch/sequence`, as `list` shows them"
    )]
    NoSuchId(String),
    /// Rows cannot be built.
    #[error("rows of `raw.events` cannot be built: {0}")]
    Rows(#[from] arrow::error::ArrowError),
    /// Data files cannot be written.
    #[error(transparent)]
    Files(Box<FilesError>),
    /// The watermarks cannot be read.
    #[error(transparent)]
    Watermark(#[from] headwater_tables::watermark::WatermarkError),
    /// The plan's columns cannot be added.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    /// The commit did not succeed.
    #[error(transparent)]
    Commit(Box<CommitError>),
    /// Others commit all the time.
    #[error("other commits came first {0} times in a row; run it again")]
    Busy(u32),
    /// A hook ended it, in tests.
    #[error("killed at `{0:?}` by its fault hook")]
    Killed(replay::ReplayPoint),
}

impl QuarantineError {
    /// Says why `raw.quarantine` is not as it must be.
    fn of_ensure(error: CatalogError) -> Self {
        match error {
            CatalogError::Incompatible { .. } => Self::OtherVersion { source: error },
            _ => Self::Catalog(error),
        }
    }
}

/// Which rows are meant. Empty means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Ids, as `list` shows them.
    pub ids: Vec<String>,
    /// Received at or after this: microseconds since the Unix epoch.
    pub since: Option<i64>,
    /// Of this company.
    pub company: Option<String>,
    /// With this `failure_type`.
    pub failure_type: Option<String>,
}

impl Filter {
    fn predicate(&self) -> Result<Predicate, QuarantineError> {
        let mut all = Predicate::AlwaysTrue;
        if let Some(since) = self.since {
            let since = Datum::timestamptz_micros(since);
            all = all.and(Reference::new("received_at").greater_than_or_equal_to(since));
        }
        for (column, value) in [
            ("company_id", &self.company),
            ("failure_type", &self.failure_type),
        ] {
            if let Some(value) = value {
                all = all.and(Reference::new(column).equal_to(Datum::string(value)));
            }
        }
        let mut ids: Option<Predicate> = None;
        for id in &self.ids {
            let one = position(id)?;
            ids = Some(match ids {
                Some(others) => others.or(one),
                None => one,
            });
        }
        Ok(match ids {
            Some(ids) => all.and(ids),
            None => all,
        })
    }
}

/// Returns the predicate of the row with this id.
fn position(id: &str) -> Result<Predicate, QuarantineError> {
    let wrong = || QuarantineError::NoSuchId(id.to_owned());
    let (rest, sequence) = id.rsplit_once('/').ok_or_else(wrong)?;
    let (agent, epoch) = rest.rsplit_once('/').ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<i64>().map(Datum::long).map_err(|_| wrong());
    Ok(Reference::new("_agent_id")
        .equal_to(Datum::string(agent))
        .and(Reference::new("_epoch").equal_to(number(epoch)?))
        .and(Reference::new("_sequence").equal_to(number(sequence)?)))
}

fn read_error(table: &Table) -> impl Fn(iceberg::Error) -> QuarantineError + use<> {
    let table = table.identifier().to_string();
    move |source| QuarantineError::Read {
        table: table.clone(),
        source: Box::new(source),
    }
}

/// Calls `each` with every row of which `predicate` holds, in no order, a part of a file at a time.
async fn scan(
    quarantine: &Table,
    predicate: Predicate,
    mut each: impl AsyncFnMut(Vec<Entry>) -> Result<(), QuarantineError>,
) -> Result<(), QuarantineError> {
    scan_columns(quarantine, predicate, COLUMNS, async |rows| {
        each(entries(&rows)?).await
    })
    .await
}

/// As [`scan`], with some columns of the rows.
async fn scan_columns<const N: usize>(
    quarantine: &Table,
    predicate: Predicate,
    columns: [&str; N],
    mut each: impl AsyncFnMut(RecordBatch) -> Result<(), QuarantineError>,
) -> Result<(), QuarantineError> {
    if quarantine.metadata().current_snapshot().is_none() {
        return Ok(());
    }
    let failed = read_error(quarantine);
    let scan = quarantine.scan().with_filter(predicate);
    let scan = scan.with_batch_size(Some(ROWS_AT_ONCE)).select(columns);
    let scan = scan.build().map_err(&failed)?;
    let mut rows = scan.to_arrow().await.map_err(&failed)?;
    while let Some(rows) = rows.try_next().await.map_err(&failed)? {
        each(rows).await?;
    }
    Ok(())
}

/// Rows that are held at once: at most 16 MiB of payloads of 64 KiB.
const ROWS_AT_ONCE: usize = 256;

/// Positions by agent and epoch.
pub(crate) type Positions = BTreeMap<Key, BTreeSet<Sequence>>;

/// Returns which of `wanted` are rows of `table`.
pub(crate) async fn present(
    table: &Table,
    wanted: &Positions,
) -> Result<Positions, QuarantineError> {
    let mut found = Positions::new();
    for (key, sequences) in wanted {
        let (Some(first), Some(last)) = (sequences.first(), sequences.last()) else {
            continue;
        };
        let rows = sequences_of(table, key, first - 1, *last).await;
        let rows = rows.map_err(read_error(table))?;
        found.insert(key.clone(), &rows & sequences);
    }
    Ok(found)
}

/// Returns which sequences of `key` in (`after`, `through`] are rows of `table`.
///
/// # Errors
/// When the rows cannot be read; try again later.
pub(crate) async fn sequences_of(
    table: &Table,
    key: &Key,
    after: Sequence,
    through: Sequence,
) -> Result<BTreeSet<Sequence>, iceberg::Error> {
    if table.metadata().current_snapshot().is_none() {
        return Ok(BTreeSet::new());
    }
    let sequence = || Reference::new("_sequence");
    let of_key = Reference::new("_agent_id")
        .equal_to(Datum::string(key.agent.as_str()))
        .and(Reference::new("_epoch").equal_to(Datum::long(key.epoch.cast_signed())))
        .and(sequence().greater_than(Datum::long(after.cast_signed())))
        .and(sequence().less_than_or_equal_to(Datum::long(through.cast_signed())));
    let scan = table.scan().with_filter(of_key).select(["_sequence"]);
    let mut rows = scan.build()?.to_arrow().await?;
    let mut found = BTreeSet::new();
    while let Some(rows) = rows.try_next().await? {
        let sequences = rows.column(0).as_primitive::<Int64Type>().values();
        found.extend(sequences.iter().map(|sequence| sequence.cast_unsigned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
