//! One night, from the operational database to the reports.
//!
//! ```text
//! models ─ source ─► ops.* ─► core.company_plans ─► core.events ─► core.conversations ─► reports.* ─► system.runs
//! ```
//!
//! Promise: nothing is written before the source has been read whole; each table is computed whole
//! before its one commit; the row in `system.runs` is the last commit.

use std::collections::BTreeMap;

use arrow::error::ArrowError;
use chrono::NaiveDate;
use datafusion::error::DataFusionError;
use headwater_service::clock::SharedClock;
use headwater_tables::watermark::WatermarkError;
use headwater_tables::write::WriteError;
use headwater_tables::{Catalog, CatalogError, CommitError, InvalidTableName, SchemaError};

use crate::config::Config;
use crate::models::{self, ModelError};
use crate::progress::Progress;
use crate::publish::Publisher;
use crate::publish::Written;
use crate::runs::Inputs;
use crate::sources::{self, SourceError};
use crate::{core, ops, plans, reports, runs};

/// What a night did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It published, and `system.runs` has its row.
    Published,
    /// A night that read the same had been published before; nothing was written.
    AlreadyUpToDate,
}

/// The account of one night.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NightReport {
    /// Id of the run: equal inputs have equal ids.
    pub run_id: String,
    /// The date of the night.
    pub date: NaiveDate,
    /// Whether it published.
    pub outcome: Outcome,
    /// What it wrote, by table.
    pub written: BTreeMap<String, Written>,
}

/// Why a night failed. Run it again once the cause is gone: what it has committed stays valid, what
/// it has not is not there.
#[derive(Debug, thiserror::Error)]
pub enum NightError {
    /// The operational database could not be copied; nothing was written.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A model cannot be used; nothing was written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The catalog did not answer or a table is damaged.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A table cannot have the shape asked for.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The watermarks of `raw.events` cannot be read.
    #[error(transparent)]
    Watermark(#[from] WatermarkError),
    /// A name is not a table name.
    #[error(transparent)]
    Name(#[from] InvalidTableName),
    /// A commit was not made, or is not known to be made; a second run finds out.
    #[error("{source}; run the night again")]
    Commit {
        /// What the catalog said.
        #[from]
        source: CommitError,
    },
    /// Files could not be written or listed: check the disk.
    #[error("cannot write `{table}`: {source}")]
    Write {
        /// The table.
        table: String,
        /// What failed.
        #[source]
        source: WriteError,
    },
    /// A query failed.
    #[error("computing `{table}` failed: {source}")]
    Query {
        /// What was computed.
        table: String,
        /// What DataFusion said.
        #[source]
        source: Box<DataFusionError>,
    },
    /// A report does not keep its header's word.
    #[error("report `{table}` {reason}")]
    Report {
        /// The table.
        table: String,
        /// What is wrong.
        reason: String,
    },
    /// Rows could not be put into shape.
    #[error("rows could not be put into shape: {0}")]
    Rows(#[from] ArrowError),
}

impl NightError {
    /// Says for which table a query failed.
    pub(crate) fn query(table: impl ToString) -> impl Fn(DataFusionError) -> Self {
        let table = table.to_string();
        move |source| Self::Query {
            table: table.clone(),
            source: Box::new(source),
        }
    }

    /// Says for which table writing failed.
    pub(crate) fn write(table: impl ToString) -> impl Fn(WriteError) -> Self {
        let table = table.to_string();
        move |source| Self::Write {
            table: table.clone(),
            source,
        }
    }
}

/// Runs the night of `date`: copies the operational database, takes in new events and publishes the
/// reports of `date` and of the late days before it.
///
/// Two nights at once are safe: the second one to commit a table ends with an error.
///
/// # Errors
/// See [`NightError`].
pub async fn nightly(
    config: &Config,
    date: NaiveDate,
    clock: SharedClock,
    progress: &dyn Progress,
) -> Result<NightReport, NightError> {
    let started_at = clock.now();
    let models = models::load(config.reports.models_directory.as_deref())?;
    let snapshot = sources::snapshot(&config.source, progress).await?;
    let catalog = Catalog::open(&config.catalog).await?;
    let mut publisher = Publisher::open(&catalog, config).await?;
    ops::publish(&mut publisher, &snapshot, started_at, progress).await?;
    drop(snapshot);
    plans::publish(&mut publisher, progress).await?;
    core::publish(&mut publisher, progress).await?;
    let inputs = Inputs::of(&publisher, &models, date, config.reports.late_days);
    let run_id = inputs.run_id();
    let is_done = runs::is_recorded(&publisher, &run_id).await?
        && models
            .iter()
            .all(|model| publisher.tables().contains_key(&model.table));
    if !is_done {
        reports::publish(&mut publisher, &models, config, date, progress).await?;
        runs::record(&mut publisher, &inputs, started_at, clock.now()).await?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a gauge of seconds")]
    metrics::gauge!(crate::metrics::NIGHT_SECONDS).set((clock.now() - started_at) as f64 / 1e6);
    let written = publisher
        .written()
        .iter()
        .map(|(name, written)| (name.to_string(), *written))
        .collect();
    Ok(NightReport {
        run_id,
        date,
        outcome: if is_done {
            Outcome::AlreadyUpToDate
        } else {
            Outcome::Published
        },
        written,
    })
}
