//! The committer: one task that turns everything staged into snapshots and moves the watermarks.
//!
//! Place on the path: after staging, before the acks. Each round:
//!
//! ```text
//! load heads ─ fenced for this plan? ─ plan against their watermarks ─ write files
//!   ├─ raw.quarantine: rows + its own watermark, for the epochs that have such rows
//!   └─ raw.events:     rows + the watermark of every sequence, accepted or not  ─ read back ─ acks
//! ```
//!
//! Promises: **EO-1** a round takes only rows above the watermark of the base it commits on, so a
//! crash between the two commits, a second collector or a repeated batch adds nothing twice, and
//! what is in the quarantine already stays there, whatever the tracking plan says now (`commit/fence.rs`);
//! **EO-2** the ledger, and with it every ack, moves only after the catalog has read the commit back;
//! **EO-4** the watermark moves in the commit that adds the rows; **EO-5** an unknown outcome is
//! resolved by loading the table again, and no data file is ever deleted here.

pub(crate) mod fence;
mod figures;
pub mod files;
pub(crate) mod plan;

use std::collections::{BTreeMap, BTreeSet};
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
use crate::ledger::{Committed, Key, Ledger, Moment};
use crate::metrics as names;
use crate::plan::Plan;
use crate::quarantine::sequences_of;
use crate::readiness::Readiness;
use crate::room::Memory;
use crate::series::Companies;
use crate::staging::{Rows, event_rows, quarantine_rows};
use fence::{Fence, Step};
use files::FilesError;
use plan::Verdict;

/// A batch that waits for its commit.
#[derive(Debug)]
pub(crate) struct StagedBatch {
    pub(crate) key: Key,
    /// Sequences of the rows: every one of them is a row of one table or the other.
    pub(crate) span: Span,
    pub(crate) rows: Rows,
    /// What the rows were judged by.
    pub(crate) plan: Arc<Plan>,
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
    #[error("the quarantine cannot be read: {0}")]
    Quarantine(#[source] Box<iceberg::Error>),
    #[error("another collector takes over with another tracking plan")]
    Fenced,
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
    /// A batch that was judged by another plan than the group before it.
    pub(crate) held: Option<StagedBatch>,
    /// Nothing more is staged: commit what is there and end.
    pub(crate) drain: CancellationToken,
    /// The time for that is over: end now.
    pub(crate) abandon: CancellationToken,
}

/// Times that an attempt sets a fence or reads again before it waits: two collectors with different
/// plans must not take over from each other without end.
const FENCE_STEPS_MAX: usize = 4;

/// Files written for a plan, used again while the plan and the table's partitioning stay the same.
#[derive(Debug, Default)]
struct Prepared {
    rows: Vec<Option<Cut>>,
    partition_spec_id: i32,
    files: Option<Vec<DataFile>>,
}

/// Which rows of a batch are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cut {
    /// Those above this sequence,
    after: Sequence,
    /// but for these, which are in `raw.quarantine` already.
    quarantined: BTreeSet<Sequence>,
}

/// What lies in `raw.quarantine` above the watermark of `raw.events`.
type Quarantined = BTreeMap<Key, BTreeSet<Sequence>>;

impl Prepared {
    /// Forgets the files when other rows are wanted. They stay in the store: whether a commit that
    /// names them happened may not be known (EO-5).
    fn for_rows(&mut self, rows: &[Option<Cut>]) {
        if self.rows != rows {
            self.rows = rows.to_vec();
            self.files = None;
        }
    }

    /// Forgets the files when the table is partitioned otherwise now: each of them says in which partition
    /// its rows are, and under another spec queries would look for them elsewhere.
    fn for_spec(&mut self, partition_spec_id: i32) {
        if self.partition_spec_id != partition_spec_id {
            self.partition_spec_id = partition_spec_id;
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

    /// Returns the first sequence of each epoch that may be taken, less one.
    fn taken_after(&self, plan: &[Verdict]) -> Reached {
        let mut taken = Reached::new();
        for (batch, verdict) in self.batches.iter().zip(plan) {
            if let Verdict::Take { after } = verdict {
                taken.entry(batch.key.clone()).or_insert(*after);
            }
        }
        taken
    }

    /// Returns which rows of each batch are taken, of either table; `None` where none is.
    fn cuts(&self, plan: &[Verdict], quarantined: &Quarantined) -> Vec<Option<Cut>> {
        let cut_of = |(batch, verdict): (&StagedBatch, &Verdict)| match verdict {
            Verdict::Take { after } => Some(Cut {
                after: *after,
                quarantined: quarantined
                    .get(&batch.key)
                    .map(|all| all.range(after + 1..=batch.span.last).copied().collect())
                    .unwrap_or_default(),
            }),
            Verdict::Committed | Verdict::Gap => None,
        };
        self.batches.iter().zip(plan).map(cut_of).collect()
    }

    /// The same for `raw.quarantine` alone: `None` where a batch brings it no row.
    fn quarantine_cuts(&self, cuts: &[Option<Cut>]) -> Vec<Option<Cut>> {
        let cut_of = |(batch, cut): (&StagedBatch, &Option<Cut>)| {
            let cut = cut.clone()?;
            (quarantine_rows_of(batch, &cut).num_rows() > 0).then_some(cut)
        };
        self.batches.iter().zip(cuts).map(cut_of).collect()
    }

    /// Asserts that every sequence which the watermark will pass has its row, in one table or the other.
    fn assert_whole(&self, cuts: &[Option<Cut>]) {
        for (batch, cut) in self.batches.iter().zip(cuts) {
            let Some(cut) = cut else { continue };
            let rows = event_rows_of(batch, cut).num_rows()
                + quarantine_rows_of(batch, cut).num_rows()
                + cut.quarantined.len();
            let (key, sequences) = (&batch.key, batch.span.last - cut.after);
            assert_eq!(rows as u64, sequences, "EO-3: {key:?} above {cut:?}");
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
        of: impl Fn(&StagedBatch, &Cut) -> RecordBatch,
    ) -> Vec<RecordBatch> {
        let taken = self.batches.iter().zip(cuts);
        taken
            .filter_map(|(batch, cut)| Some(of(batch, cut.as_ref()?)))
            .filter(|rows| rows.num_rows() > 0)
            .collect()
    }
}

fn event_rows_of(batch: &StagedBatch, cut: &Cut) -> RecordBatch {
    let column = event_rows::column::SEQUENCE;
    let rows = files::rows_after(&batch.rows.events, column, cut.after);
    files::rows_without(rows, column, &cut.quarantined)
}

fn quarantine_rows_of(batch: &StagedBatch, cut: &Cut) -> RecordBatch {
    let column = quarantine_rows::SEQUENCE_COLUMN;
    let rows = files::rows_after(&batch.rows.quarantine, column, cut.after);
    files::rows_without(rows, column, &cut.quarantined)
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
            let group = Group {
                batches,
                events: Prepared::default(),
                quarantine: Prepared::default(),
            };
            self.commit(group).await?;
            let held = self.held.as_ref().map(|batch| batch.staged_at);
            self.readiness.oldest_staged(held);
            if self.abandon.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Takes what is staged until `deadline`, until there is enough, or until the plan changes that
    /// it was judged by. Empty means: the end.
    async fn collect(&mut self, deadline: Instant) -> Vec<StagedBatch> {
        let mut batches: Vec<StagedBatch> = self.held.take().into_iter().collect();
        let mut bytes: u64 = batches.iter().map(|batch| batch.memory.bytes).sum();
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
            let plan = batches.first().map(|first| first.plan.fingerprint());
            if plan.is_some_and(|plan| plan != batch.plan.fingerprint()) {
                self.held = Some(batch);
                return batches;
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
            RoundError::Commit(CommitError::Conflict { .. }) | RoundError::Fenced => "conflict",
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
            RoundError::Commit(CommitError::Conflict { .. }) | RoundError::Fenced => {
                failures.min(4) - 1
            }
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
        let heads = self.fenced(group).await?;
        let Head { base, marks } = heads.events;
        let plan = group.plan(&marks);
        self.at(CommitPoint::Planned)?;
        let known = quarantined(&heads.quarantine, group.taken_after(&plan)).await?;
        let cuts = group.cuts(&plan, &known);
        let quarantined = self
            .commit_quarantine(group, &cuts, heads.quarantine)
            .await?;
        self.at(CommitPoint::BetweenCommits)?;
        group.assert_whole(&cuts);
        let reached = group.reached(&cuts);
        let rows = group.rows(&cuts, event_rows_of);
        let committed = count(&rows);
        let head = if reached.is_empty() {
            base
        } else {
            group.events.for_rows(&cuts);
            group
                .events
                .for_spec(base.metadata().default_partition_spec_id());
            if group.events.files.is_none() {
                group.events.files = Some(files::write_events(&base, rows).await?);
            }
            let files = group.events.files.clone().unwrap_or_default();
            // No file is fine: the snapshot then only moves the watermark (EO-4).
            let change = change(files, &marks, &reached);
            self.catalog.commit(&base, change).await?
        };
        self.at(CommitPoint::BeforeAcks)?;
        self.settle(group, &plan, &head, heads.asked)?;
        metrics::counter!(names::EVENTS_COMMITTED).increment(committed);
        let rows = group.rows(&cuts, event_rows_of);
        figures::record_freshness(&rows, self.clock.now());
        figures::by_company(&rows, |company, events| {
            self.companies.count(company, events)
        });
        self.log(&head, committed, quarantined, group.batches.len());
        Ok(())
    }

    /// Loads both heads, fenced for the plan that judged the group: see [`fence`].
    async fn fenced(&self, group: &Group) -> Result<Heads, RoundError> {
        let plan = group.batches.first().map(|batch| batch.plan.fingerprint());
        let mut seen = 0;
        for _ in 0..FENCE_STEPS_MAX {
            let heads = Heads {
                asked: self.ledger.moment(),
                events: load(&self.catalog, &RAW_EVENTS).await?,
                quarantine: load(&self.catalog, &RAW_QUARANTINE).await?,
            };
            let (events, quarantine) = (&heads.events.base, &heads.quarantine.base);
            let fences = (Fence::of(events), Fence::of(quarantine));
            let step = fence::step(&fences.0, &fences.1, seen, plan.unwrap_or_default());
            seen = fences.1.number();
            let (base, fence) = match step {
                Step::Decide => return Ok(heads),
                Step::FenceEvents(fence) => (events, fence),
                Step::FenceQuarantine(fence) => (quarantine, fence),
                Step::Reload => continue,
            };
            // An append of nothing: a property alone would not refuse those who check snapshots.
            let change = Change {
                properties: fence.properties(),
                ..Change::append(Vec::new())
            };
            self.catalog.commit(base, change).await?;
            tracing::info!(table = %base.identifier(), ?fence, "fenced for this tracking plan");
        }
        Err(RoundError::Fenced)
    }

    /// Commits the quarantine rows that are not in the table yet; returns how many.
    async fn commit_quarantine(
        &self,
        group: &mut Group,
        cuts: &[Option<Cut>],
        head: Head,
    ) -> Result<u64, RoundError> {
        let Head { base, marks } = head;
        let cuts = group.quarantine_cuts(cuts);
        let reached = group.reached(&cuts);
        if reached.is_empty() {
            return Ok(0);
        }
        let rows = group.rows(&cuts, quarantine_rows_of);
        let quarantined = count(&rows);
        group.quarantine.for_rows(&cuts);
        group
            .quarantine
            .for_spec(base.metadata().default_partition_spec_id());
        if group.quarantine.files.is_none() {
            group.quarantine.files = Some(files::write_quarantine(&base, rows).await?);
        }
        let files = group.quarantine.files.clone().unwrap_or_default();
        let change = change(files, &marks, &reached);
        self.catalog.commit(&base, change).await?;
        figures::count_quarantined(&group.rows(&cuts, quarantine_rows_of));
        Ok(quarantined)
    }

    /// Moves the ledger to what the head says, which wakes everybody who waits for an ack (EO-2). The head
    /// is as new as if it had been `asked` for then.
    fn settle(
        &self,
        group: &Group,
        plan: &[Verdict],
        head: &Table,
        asked: Moment,
    ) -> Result<(), RoundError> {
        let marks = Watermarks::of(head).map_err(HeadError::from)?;
        for (batch, verdict) in group.batches.iter().zip(plan) {
            let through = marks.get(batch.key.agent.as_str(), batch.key.epoch);
            let is_covered = through >= batch.span.last || *verdict == Verdict::Gap;
            assert!(is_covered, "EO-2: {:?} ends above {through}", batch.key);
        }
        let snapshot_id = head.metadata().current_snapshot_id().unwrap_or_default();
        self.ledger.learn_all(asked, snapshot_id, |key| {
            marks.get(key.agent.as_str(), key.epoch)
        });
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

/// Reads of each epoch what lies in `raw.quarantine` above `after`, the watermark of `raw.events`.
/// Only a crash or a lost race between the two commits leaves something there, so nothing is read
/// otherwise.
async fn quarantined(head: &Head, after: Reached) -> Result<Quarantined, RoundError> {
    let mut found = Quarantined::new();
    for (key, after) in after {
        let through = head.marks.get(key.agent.as_str(), key.epoch);
        if through > after {
            let sequences = sequences_of(&head.base, &key, after, through).await;
            let sequences = sequences.map_err(|error| RoundError::Quarantine(Box::new(error)))?;
            found.insert(key, sequences);
        }
    }
    Ok(found)
}

/// Reads what the head of `raw.events` says about an epoch.
pub(crate) async fn committed(catalog: &Catalog, key: &Key) -> Result<Committed, HeadError> {
    let Head { base, marks } = load(catalog, &RAW_EVENTS).await?;
    Ok(Committed {
        through: marks.get(key.agent.as_str(), key.epoch),
        snapshot_id: base.metadata().current_snapshot_id().unwrap_or_default(),
    })
}

/// Reads what the head of `raw.quarantine` says about an epoch.
pub(crate) async fn quarantined_through(
    catalog: &Catalog,
    key: &Key,
) -> Result<Sequence, HeadError> {
    let Head { marks, .. } = load(catalog, &RAW_QUARANTINE).await?;
    Ok(marks.get(key.agent.as_str(), key.epoch))
}

/// The head of a table, and its watermarks.
struct Head {
    base: Table,
    marks: Watermarks,
}

/// The heads that an attempt is built on.
struct Heads {
    /// Before they were read.
    asked: Moment,
    events: Head,
    quarantine: Head,
}

/// Loads the current head of a table and its watermarks.
async fn load(catalog: &Catalog, name: &TableName) -> Result<Head, HeadError> {
    let base = catalog
        .load(name)
        .await
        .map_err(|error| HeadError::Catalog(Box::new(error)))?;
    let marks = Watermarks::of(&base)?;
    Ok(Head { base, marks })
}

/// Says whether a commit could begin: reads the head of `raw.events` and looks for its metadata file, which
/// the catalog may remember.
pub(crate) async fn reach(catalog: &Catalog) -> Result<(), HeadError> {
    let Head { base, .. } = load(catalog, &RAW_EVENTS).await?;
    let location = base.metadata_location().unwrap_or_default();
    let away = |error| HeadError::Store(Box::new(error));
    let file = base.file_io().new_input(location).map_err(away)?;
    if file.exists().await.map_err(away)? {
        return Ok(());
    }
    Err(HeadError::Missing(location.to_owned()))
}

/// Why a head cannot be read; try again later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the catalog cannot be read: {0}")]
    Catalog(#[source] Box<CatalogError>),
    #[error("the store has no `{0}`")]
    Missing(String),
    #[error("the store does not answer: {0}")]
    Store(#[source] Box<iceberg::Error>),
    #[error(transparent)]
    Watermark(#[from] WatermarkError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_used_again_only_for_the_rows_and_the_partitioning_that_they_were_written_for() {
        let cut = |after| {
            Some(Cut {
                after,
                quarantined: BTreeSet::new(),
            })
        };
        let mut prepared = Prepared::default();
        let mut is_used_again = |rows: &[Option<Cut>], spec_id| {
            prepared.for_rows(rows);
            prepared.for_spec(spec_id);
            prepared.files.replace(Vec::new()).is_some()
        };
        assert!(!is_used_again(&[cut(1)], 0));
        assert!(is_used_again(&[cut(1)], 0));
        assert!(!is_used_again(&[cut(1), None], 0));
        assert!(!is_used_again(&[cut(1), None], 1));
        assert!(is_used_again(&[cut(1), None], 1));
        assert!(!is_used_again(&[cut(2), None], 1));
    }
}
