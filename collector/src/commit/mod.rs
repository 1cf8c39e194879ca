//! The committer: one task that turns everything staged into snapshots and moves the watermarks.
//!
//! Place on the path: after staging, before the acks. Each round:
//!
//! ```text
//! load heads ─ plan against their watermarks ─ write files
//!   ├─ raw.quarantine: rows + its own watermark, for the epochs that have such rows
//!   └─ raw.events:     rows + the watermark of every sequence, accepted or not  ─ read back ─ acks
//! ```
//!
//! Promises: **EO-1** a round takes only rows above the watermark of the base it commits on, so a
//! crash between the two commits, a second collector or a repeated batch adds nothing twice;
//! **EO-2** the ledger, and with it every ack, moves only after the catalog has read the commit back;
//! **EO-4** the watermark moves in the commit that adds the rows; **EO-5** an unknown outcome is
//! resolved by loading the table again, and no data file is ever deleted here.

mod figures;
pub mod files;
pub(crate) mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use headwater_protocol::Sequence;
use headwater_service::chance::SharedChance;
use headwater_service::clock::SharedClock;
use headwater_tables::schema::{RAW_EVENTS, RAW_QUARANTINE};
use headwater_tables::watermark::{WatermarkError, Watermarks};
use headwater_tables::{Catalog, CatalogError, Change, CommitError, DataFile, Table, TableName};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Span;
use crate::config::CommitConfig;
use crate::ledger::{Committed, Key, Ledger};
use crate::metrics as names;
use crate::readiness::Readiness;
use crate::room::Memory;
use crate::series::Companies;
use crate::staging::{Rows, event_rows, quarantine_rows};
use files::FilesError;
use plan::Verdict;

/// A batch that waits for its commit.
#[derive(Debug)]
pub(crate) struct StagedBatch {
    pub(crate) key: Key,
    /// Sequences of the rows: every one of them is a row of one table or the other.
    pub(crate) span: Span,
    pub(crate) rows: Rows,
    pub(crate) staged_at: Instant,
    /// Its share of the staged bytes.
    pub(crate) memory: Memory,
}

/// A moment in a round, for [`CommitHook`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitPoint {
    /// Heads are loaded, nothing is written.
    Planned,
    /// The quarantine is committed, the events are not.
    BetweenCommits,
    /// Both are committed, nobody is told.
    BeforeAcks,
}

/// What a [`CommitHook`] wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookAction {
    /// Go on.
    Continue,
    /// End here as if the process were killed: no answer, no further commit.
    Kill,
}

/// Fault injection for tests and simulation: called at each [`CommitPoint`].
pub trait CommitHook: Send + Sync + 'static {
    /// Says what happens at `point`.
    fn at(&self, point: CommitPoint) -> HookAction;
}

/// Goes on everywhere: what production uses.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoHook;

impl CommitHook for NoHook {
    fn at(&self, _: CommitPoint) -> HookAction {
        HookAction::Continue
    }
}

/// A [`CommitHook`] said [`HookAction::Kill`].
#[derive(Debug, thiserror::Error)]
#[error("the committer was killed at `{0:?}` by its fault hook")]
pub struct Killed(pub CommitPoint);

/// Why a round did not commit. All but `Killed` are tried again.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Killed(#[from] Killed),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Files(Box<FilesError>),
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<FilesError> for RoundError {
    fn from(error: FilesError) -> Self {
        Self::Files(Box::new(error))
    }
}

/// The committer: commits what is staged until it is told to end.
pub struct Committer {
    pub(crate) catalog: Catalog,
    pub(crate) config: CommitConfig,
    /// Staged bytes that start a commit before the interval is over.
    pub(crate) early_bytes: u64,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) readiness: Arc<Readiness>,
    /// Tells how fresh events are.
    pub(crate) clock: SharedClock,
    /// Counts whose they are.
    pub(crate) companies: Arc<Companies>,
    /// Spreads the waits between attempts.
    pub(crate) chance: SharedChance,
    pub(crate) hook: Arc<dyn CommitHook>,
    pub(crate) staged: mpsc::Receiver<StagedBatch>,
    /// Nothing more is staged: commit what is there and end.
    pub(crate) drain: CancellationToken,
    /// The time for that is over: end now.
    pub(crate) abandon: CancellationToken,
}

/// Files written for a plan, used again while the plan stays the same.
#[derive(Debug, Default)]
struct Prepared {
    rows: Vec<Option<Cut>>,
    files: Option<Vec<DataFile>>,
}

/// Sequence above which a batch's rows are taken.
type Cut = Sequence;

impl Prepared {
    /// Forgets the files when other rows are wanted. They stay in the store: whether a commit that
    /// names them happened may not be known (EO-5).
    fn for_rows(&mut self, rows: &[Option<Cut>]) {
        if self.rows != rows {
            self.rows = rows.to_vec();
            self.files = None;
        }
    }
}

/// A group of staged batches on its way into the tables.
struct Group {
    batches: Vec<StagedBatch>,
    events: Prepared,
    quarantine: Prepared,
}

impl Group {
    fn plan(&self, marks: &Watermarks) -> Vec<Verdict> {
        let batches = self.batches.iter().map(|batch| (&batch.key, batch.span));
        plan::plan(batches, |key| marks.get(key.agent.as_str(), key.epoch))
    }

    /// Returns from where on each batch's events are taken, `None` where none is.
    fn event_cuts(&self, plan: &[Verdict]) -> Vec<Option<Cut>> {
        plan.iter()
            .map(|verdict| match verdict {
                Verdict::Take { after } => Some(*after),
                Verdict::Committed | Verdict::Gap => None,
            })
            .collect()
    }

    /// The same for quarantine rows, whose table has watermarks `marks` of its own.
    fn quarantine_cuts(&self, plan: &[Verdict], marks: &Watermarks) -> Vec<Option<Cut>> {
        let cuts = self.event_cuts(plan);
        let cut_of = |(batch, cut): (&StagedBatch, Option<Cut>)| {
            let committed = marks.get(batch.key.agent.as_str(), batch.key.epoch);
            let cut = cut?.max(committed);
            (quarantine_rows_of(batch, cut).num_rows() > 0).then_some(cut)
        };
        self.batches.iter().zip(cuts).map(cut_of).collect()
    }

    /// Asserts that every sequence which the watermark will pass has its row, in one table or the other.
    fn assert_whole(&self, cuts: &[Option<Cut>]) {
        for (batch, cut) in self.batches.iter().zip(cuts) {
            let Some(cut) = *cut else { continue };
            let rows =
                event_rows_of(batch, cut).num_rows() + quarantine_rows_of(batch, cut).num_rows();
            let (key, sequences) = (&batch.key, batch.span.last - cut);
            assert_eq!(rows as u64, sequences, "EO-3: {key:?} above {cut}");
        }
    }

    /// Returns the last sequence of every epoch that has a batch with a cut.
    fn reached(&self, cuts: &[Option<Cut>]) -> Reached {
        let taken = self
            .batches
            .iter()
            .zip(cuts)
            .filter(|(_, cut)| cut.is_some());
        taken
            .map(|(batch, _)| (batch.key.clone(), batch.span.last))
            .collect()
    }

    fn rows(
        &self,
        cuts: &[Option<Cut>],
        of: impl Fn(&StagedBatch, Cut) -> RecordBatch,
    ) -> Vec<RecordBatch> {
        let taken = self.batches.iter().zip(cuts);
        taken
            .filter_map(|(batch, cut)| cut.map(|cut| of(batch, cut)))
            .filter(|rows| rows.num_rows() > 0)
            .collect()
    }
}

fn event_rows_of(batch: &StagedBatch, cut: Cut) -> RecordBatch {
    files::rows_after(&batch.rows.events, event_rows::column::SEQUENCE, cut)
}

fn quarantine_rows_of(batch: &StagedBatch, cut: Cut) -> RecordBatch {
    files::rows_after(
        &batch.rows.quarantine,
        quarantine_rows::SEQUENCE_COLUMN,
        cut,
    )
}

/// Sequence up to which each epoch comes with a commit.
type Reached = BTreeMap<Key, Sequence>;

fn count(rows: &[RecordBatch]) -> u64 {
    rows.iter().map(|rows| rows.num_rows() as u64).sum()
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
}

impl Committer {
    /// Commits until `drain` or `abandon` is cancelled.
    ///
    /// # Errors
    /// [`Killed`] when the fault hook says so; every other failure is tried again.
    pub async fn run(mut self) -> Result<(), Killed> {
        let interval = Duration::from_millis(self.config.interval_ms);
        let mut next_commit = Instant::now();
        loop {
            let batches = self.collect(next_commit).await;
            let oldest = batches.first().map(|batch| batch.staged_at);
            let Some(oldest) = oldest.filter(|_| !self.abandon.is_cancelled()) else {
                return Ok(());
            };
            next_commit = Instant::now() + interval;
            self.readiness.oldest_staged(Some(oldest));
            metrics::gauge!(names::STAGED_OLDEST_SECONDS).set(oldest.elapsed().as_secs_f64());
            let group = Group {
                batches,
                events: Prepared::default(),
                quarantine: Prepared::default(),
            };
            self.commit(group).await?;
            self.readiness.oldest_staged(None);
            metrics::gauge!(names::STAGED_OLDEST_SECONDS).set(0.0);
            if self.abandon.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Takes what is staged until `deadline`, or until there is enough. Empty means: the end.
    async fn collect(&mut self, deadline: Instant) -> Vec<StagedBatch> {
        let mut batches = Vec::new();
        let mut bytes = 0;
        loop {
            let waits_for_more = bytes < self.early_bytes;
            let next = tokio::select! {
                biased;
                () = self.abandon.cancelled() => None,
                batch = self.staged.recv() => batch,
                () = self.drain.cancelled() => None,
                () = tokio::time::sleep_until(deadline), if !batches.is_empty() => None,
                () = std::future::ready(()), if !waits_for_more => None,
            };
            let Some(batch) = next else {
                return batches;
            };
            if batches.is_empty() {
                self.readiness.oldest_staged(Some(batch.staged_at));
            }
            bytes += batch.memory.bytes;
            batches.push(batch);
        }
    }

    /// Commits one group, however often it takes, and wakes those who wait for it.
    async fn commit(&self, mut group: Group) -> Result<(), Killed> {
        let started = Instant::now();
        let mut failures = 0;
        loop {
            let error = match self.round(&mut group).await {
                Ok(()) => {
                    metrics::counter!(names::COMMITS, "outcome" => "ok").increment(1);
                    metrics::histogram!(names::COMMIT_SECONDS)
                        .record(started.elapsed().as_secs_f64());
                    self.readiness.committed();
                    return Ok(());
                }
                Err(RoundError::Killed(killed)) => return Err(killed),
                Err(error) => error,
            };
            failures += 1;
            self.note(&error, failures);
            let wait = self.retry_wait(&error, failures);
            tokio::select! {
                biased;
                () = self.abandon.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn note(&self, error: &RoundError, attempt: u32) {
        let outcome = match error {
            RoundError::Commit(CommitError::Conflict { .. }) => "conflict",
            RoundError::Commit(CommitError::Unknown { .. }) => "unknown",
            _ => "failed",
        };
        metrics::counter!(names::COMMITS, "outcome" => outcome).increment(1);
        if outcome == "conflict" {
            tracing::debug!(attempt, "another commit came first");
            return;
        }
        self.readiness.failed(error);
        let needs_a_person = matches!(error, RoundError::Commit(error) if !error.is_retryable());
        let error = error as &dyn std::error::Error;
        if needs_a_person {
            // Tried again all the same: the agents keep the events until somebody has acted.
            tracing::error!(error, attempt, "the commit is refused");
        } else {
            tracing::warn!(error, attempt, outcome, "commit did not succeed");
        }
    }

    /// Doubles from `retry_min_ms` to `retry_max_ms`, less up to half by chance, so that collectors
    /// that collided do not collide again. A lost race is tried again soon.
    fn retry_wait(&self, error: &RoundError, failures: u32) -> Duration {
        let doublings = match error {
            RoundError::Commit(CommitError::Conflict { .. }) => failures.min(4) - 1,
            _ => failures.min(20) - 1,
        };
        let longest = self
            .config
            .retry_min_ms
            .saturating_mul(1 << doublings)
            .min(self.config.retry_max_ms);
        Duration::from_millis(self.chance.within(longest / 2..=longest))
    }

    /// One attempt: load, plan, write, commit the quarantine, commit the events, tell.
    async fn round(&self, group: &mut Group) -> Result<(), RoundError> {
        let (base, marks) = load(&self.catalog, &RAW_EVENTS).await?;
        let plan = group.plan(&marks);
        self.at(CommitPoint::Planned)?;
        let quarantined = self.commit_quarantine(group, &plan).await?;
        self.at(CommitPoint::BetweenCommits)?;
        let cuts = group.event_cuts(&plan);
        group.assert_whole(&cuts);
        let reached = group.reached(&cuts);
        let rows = group.rows(&cuts, event_rows_of);
        let committed = count(&rows);
        let head = if reached.is_empty() {
            base
        } else {
            group.events.for_rows(&cuts);
            if group.events.files.is_none() {
                group.events.files = Some(files::write_events(&base, rows).await?);
            }
            let files = group.events.files.clone().unwrap_or_default();
            // No file is fine: the snapshot then only moves the watermark (EO-4).
            let change = change(files, &marks, &reached);
            self.catalog.commit(&base, change).await?
        };
        self.at(CommitPoint::BeforeAcks)?;
        self.settle(group, &plan, &head)?;
        metrics::counter!(names::EVENTS_COMMITTED).increment(committed);
        let rows = group.rows(&cuts, event_rows_of);
        figures::record_freshness(&rows, self.clock.now());
        figures::by_company(&rows, |company, events| {
            self.companies.count(company, events)
        });
        self.log(&head, committed, quarantined, group.batches.len());
        Ok(())
    }

    /// Commits the quarantine rows that are not in the table yet; returns how many.
    async fn commit_quarantine(
        &self,
        group: &mut Group,
        plan: &[Verdict],
    ) -> Result<u64, RoundError> {
        if group
            .batches
            .iter()
            .all(|batch| batch.rows.quarantine.num_rows() == 0)
        {
            return Ok(0);
        }
        let (base, marks) = load(&self.catalog, &RAW_QUARANTINE).await?;
        let cuts = group.quarantine_cuts(plan, &marks);
        let reached = group.reached(&cuts);
        if reached.is_empty() {
            return Ok(0);
        }
        let rows = group.rows(&cuts, quarantine_rows_of);
        let quarantined = count(&rows);
        group.quarantine.for_rows(&cuts);
        if group.quarantine.files.is_none() {
            group.quarantine.files = Some(files::write_quarantine(&base, rows).await?);
        }
        let files = group.quarantine.files.clone().unwrap_or_default();
        let change = change(files, &marks, &reached);
        self.catalog.commit(&base, change).await?;
        figures::count_quarantined(&group.rows(&cuts, quarantine_rows_of));
        Ok(quarantined)
    }

    /// Raises the ledger to what the head says, which wakes everybody who waits for an ack (EO-2).
    fn settle(&self, group: &Group, plan: &[Verdict], head: &Table) -> Result<(), RoundError> {
        let marks = Watermarks::of(head).map_err(HeadError::from)?;
        for (batch, verdict) in group.batches.iter().zip(plan) {
            let through = marks.get(batch.key.agent.as_str(), batch.key.epoch);
            let is_covered = through >= batch.span.last || *verdict == Verdict::Gap;
            assert!(is_covered, "EO-2: {:?} ends above {through}", batch.key);
        }
        let snapshot_id = head.metadata().current_snapshot_id().unwrap_or_default();
        self.ledger
            .raise_all(snapshot_id, |key| marks.get(key.agent.as_str(), key.epoch));
        for (batch, verdict) in group.batches.iter().zip(plan) {
            if *verdict == Verdict::Gap {
                tracing::error!(
                    agent_id = %batch.key.agent,
                    epoch = batch.key.epoch,
                    first = batch.span.first,
                    watermark = marks.get(batch.key.agent.as_str(), batch.key.epoch),
                    "the watermark is behind a staged batch: was the table rolled back?"
                );
                self.ledger.reset(&batch.key);
            }
        }
        Ok(())
    }

    fn log(&self, head: &Table, committed: u64, quarantined: u64, batches: usize) {
        tracing::debug!(
            snapshot_id = head.metadata().current_snapshot_id().unwrap_or_default(),
            events = committed,
            quarantined,
            batches,
            "committed"
        );
    }

    fn at(&self, point: CommitPoint) -> Result<(), Killed> {
        match self.hook.at(point) {
            HookAction::Continue => Ok(()),
            HookAction::Kill => Err(Killed(point)),
        }
    }
}

/// An append of `files` that moves the watermarks of `reached` in the same commit (EO-4).
fn change(files: Vec<DataFile>, base: &Watermarks, reached: &Reached) -> Change {
    let mut marks = base.clone();
    for (key, through) in reached {
        marks.advance(key.agent.as_str(), key.epoch, *through);
    }
    Change {
        properties: marks.changed_properties(base),
        ..Change::append(files)
    }
}

/// Reads what the head of `raw.events` says about an epoch.
pub(crate) async fn committed(catalog: &Catalog, key: &Key) -> Result<Committed, HeadError> {
    let (head, marks) = load(catalog, &RAW_EVENTS).await?;
    Ok(Committed {
        through: marks.get(key.agent.as_str(), key.epoch),
        snapshot_id: head.metadata().current_snapshot_id().unwrap_or_default(),
    })
}

/// Loads the current head of a table and its watermarks.
async fn load(catalog: &Catalog, name: &TableName) -> Result<(Table, Watermarks), HeadError> {
    let head = catalog
        .load(name)
        .await
        .map_err(|error| HeadError::Catalog(Box::new(error)))?;
    let marks = Watermarks::of(&head)?;
    Ok((head, marks))
}

/// Says whether a commit could begin: reads the head of `raw.events` and looks for its metadata file, which
/// the catalog may remember.
pub(crate) async fn reach(catalog: &Catalog) -> Result<(), HeadError> {
    let (head, _) = load(catalog, &RAW_EVENTS).await?;
    let location = head.metadata_location().unwrap_or_default();
    let gone =
        |error: Option<iceberg::Error>| HeadError::Store(location.to_owned(), error.map(Box::new));
    let file = head
        .file_io()
        .new_input(location)
        .map_err(|error| gone(Some(error)))?;
    match file.exists().await {
        Ok(true) => Ok(()),
        Ok(false) => Err(gone(None)),
        Err(error) => Err(gone(Some(error))),
    }
}

/// Why a head cannot be read; try again later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the catalog cannot be read: {0}")]
    Catalog(#[source] Box<CatalogError>),
    #[error("the store has no `{0}`")]
    Store(String, #[source] Option<Box<iceberg::Error>>),
    #[error(transparent)]
    Watermark(#[from] WatermarkError),
}
