//! Replay: what was quarantined and is valid under the plan of today is added to `raw.events`, once.
//!
//! Beside the path. Each event keeps its position and its time of arrival, and no watermark moves: the
//! positions were passed long ago. Promise (EO-1): a commit adds only positions that its base does not
//! have, and the catalog refuses it when that base is no longer the head. So a replay may be run again,
//! killed anywhere, or run twice at once. Its rows are told apart by [`BATCH_PREFIX`].

use std::collections::BTreeMap;

use arrow::record_batch::RecordBatch;
use headwater_protocol::{Event, Record};
use headwater_tables::schema::{RAW_EVENTS, RAW_QUARANTINE};
use headwater_tables::watermark::Watermarks;
use headwater_tables::{Catalog, Change, CommitError, DataFile, Table};

use super::oldest::Oldest;
use super::{Entry, Filter, Positions, QuarantineError, present, scan};
use crate::commit::files::write_events;
use crate::plan::Plan;
use crate::staging::BatchOrigin;
use crate::staging::event_rows::EventRows;

/// Start of `ingest_batch_id` of replayed rows. No agent's name has a colon.
pub const BATCH_PREFIX: &str = "replay:";

/// Commits that may come first before a replay gives up.
const ATTEMPTS_MAX: u32 = 50;

/// A moment in a replay, for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayPoint {
    /// The base is loaded and the events are judged.
    Judged,
    /// The data files are written.
    Written,
    /// The rows are committed.
    Committed,
}

/// Says at each point whether to go on.
pub type ReplayHook<'a> = &'a (dyn Fn(ReplayPoint) -> bool + Sync);

/// How far a replay goes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extent {
    /// Adds nothing, and counts the same.
    pub dry_run: bool,
    /// Looks at so many rows at most, those that were received first; `None` is all.
    pub limit: Option<usize>,
}

/// What a replay did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Events that were added to `raw.events`.
    pub added: u64,
    /// Events that were there already.
    pub present: u64,
    /// Events that are still not valid, or cannot be judged again, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Ids with their reason, at most [`REFUSED_MAX`].
    pub examples: Vec<(String, String)>,
    /// Rows that were not looked at because of the limit. They were received later than the others, or
    /// with the last of them.
    pub left: u64,
    /// When the last of those that were looked at was received, where there is a limit.
    pub through: Option<i64>,
}

/// Refused events that are named.
pub const REFUSED_MAX: usize = 20;

impl Replayed {
    fn refuse(&mut self, entry: &Entry, class: &str, reason: String) {
        *self.refused.entry(class.to_owned()).or_default() += 1;
        if self.examples.len() < REFUSED_MAX {
            self.examples.push((entry.quarantine_id.clone(), reason));
        }
    }
}

/// Judges again what `filter` means and adds what is valid now.
///
/// # Errors
/// [`QuarantineError`]; what was added until then stays, and the next run finds it.
pub async fn replay(
    catalog: &Catalog,
    plan: &Plan,
    filter: &Filter,
    Extent { dry_run, limit }: Extent,
    hook: ReplayHook<'_>,
) -> Result<Replayed, QuarantineError> {
    let quarantine = catalog.load(&RAW_QUARANTINE).await?;
    if !dry_run {
        plan.ensure_columns(catalog).await?;
    }
    let mut done = Replayed::default();
    let mut meant = filter.predicate()?;
    let mut oldest = None;
    if let Some(limit) = limit {
        let found = Oldest::of(&quarantine, filter, limit).await?;
        (done.left, done.through) = (found.left(), found.through());
        meant = meant.and(found.predicate());
        oldest = Some(found);
    }
    scan(&quarantine, meant, async |mut entries| {
        entries.retain(|entry| oldest.as_ref().is_none_or(|it| it.holds(entry)));
        let mut valid = Vec::new();
        for entry in entries {
            match judge(&entry, plan) {
                Ok(judged) => valid.push((entry, judged)),
                Err((class, reason)) => done.refuse(&entry, &class, reason),
            }
        }
        let run = Run {
            catalog,
            plan,
            dry_run,
            hook,
        };
        run.add(&valid, &mut done).await
    })
    .await?;
    Ok(done)
}

/// Returns the event if it may be stored now; why not otherwise, as a class and in words.
fn judge(entry: &Entry, plan: &Plan) -> Result<Record, (String, String)> {
    let record = entry
        .record()
        .map_err(|reason| ("not replayable".to_owned(), reason))?;
    let event = Event::from_record(&record)
        .map_err(|invalid| (invalid.failure.as_str().to_owned(), invalid.to_string()))?;
    let judgement = plan.judge(&event);
    if judgement.quarantine.is_some() {
        let reasons = judgement.violations.iter().map(ToString::to_string);
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        return Err(("tracking plan".to_owned(), reasons));
    }
    Ok(record)
}

struct Run<'a> {
    catalog: &'a Catalog,
    plan: &'a Plan,
    dry_run: bool,
    hook: ReplayHook<'a>,
}

type Judged = (Entry, Record);

impl Run<'_> {
    /// Adds what the head does not have, however often others commit meanwhile.
    async fn add(&self, valid: &[Judged], done: &mut Replayed) -> Result<(), QuarantineError> {
        if valid.is_empty() {
            return Ok(());
        }
        let mut wanted = Positions::new();
        for (entry, _) in valid {
            let of_key = wanted.entry(entry.key.clone()).or_default();
            of_key.insert(entry.sequence);
        }
        let mut written: Option<(Vec<&str>, Vec<DataFile>)> = None;
        for _ in 0..ATTEMPTS_MAX {
            let base = self.catalog.load(&RAW_EVENTS).await?;
            let there = present(&base, &wanted).await?;
            let is_there = |entry: &Entry| {
                let of_key = there.get(&entry.key);
                of_key.is_some_and(|of_key| of_key.contains(&entry.sequence))
            };
            let marks = Watermarks::of(&base)?;
            let is_settled = |entry: &Entry| {
                // Above the watermark the position is still being decided, by a collector.
                marks.get(entry.key.agent.as_str(), entry.key.epoch) >= entry.sequence
            };
            let missing: Vec<&Judged> = valid
                .iter()
                .filter(|(entry, _)| !is_there(entry) && is_settled(entry))
                .collect();
            let ids = missing
                .iter()
                .map(|(entry, _)| entry.quarantine_id.as_str());
            let ids: Vec<&str> = ids.collect();
            self.at(ReplayPoint::Judged)?;
            let added = missing.len() as u64;
            if added > 0 && !self.dry_run {
                let files = match written.take() {
                    Some((of, files)) if of == ids => files,
                    _ => self.write(&base, &missing).await?,
                };
                self.at(ReplayPoint::Written)?;
                match self.commit(&base, files.clone()).await? {
                    Committed::Yes => self.at(ReplayPoint::Committed)?,
                    Committed::Look => {
                        written = Some((ids, files));
                        continue;
                    }
                }
            }
            done.added += added;
            for (entry, _) in valid {
                if is_there(entry) {
                    done.present += 1;
                } else if !is_settled(entry) {
                    let reason = "its batch is not committed yet: run it again".to_owned();
                    done.refuse(entry, "not settled", reason);
                }
            }
            return Ok(());
        }
        Err(QuarantineError::Busy(ATTEMPTS_MAX))
    }

    async fn write(
        &self,
        base: &Table,
        missing: &[&Judged],
    ) -> Result<Vec<DataFile>, QuarantineError> {
        let rows = self.rows(missing)?;
        let files = write_events(base, vec![rows]).await;
        files.map_err(|error| QuarantineError::Files(Box::new(error)))
    }

    fn rows(&self, missing: &[&Judged]) -> Result<RecordBatch, QuarantineError> {
        let mut rows = EventRows::new(self.plan.promoted());
        for (entry, record) in missing {
            let event = Event::from_record(record).expect("it was valid when it was judged");
            let origin = BatchOrigin {
                key: entry.key.clone(),
                batch_id: format!("{BATCH_PREFIX}{}", entry.quarantine_id),
                now: entry.failed_at,
                retention_until: entry.retention_until,
            };
            let judgement = self.plan.judge(&event);
            rows.push(&origin, entry.sequence, record, &event, &judgement)?;
        }
        Ok(rows.finish()?)
    }

    async fn commit(
        &self,
        base: &Table,
        files: Vec<DataFile>,
    ) -> Result<Committed, QuarantineError> {
        match self.catalog.commit(base, Change::append(files)).await {
            Ok(_) => Ok(Committed::Yes),
            // Not committed, or not known: the table says which (EO-5).
            Err(CommitError::Conflict { .. } | CommitError::Unknown { .. }) => Ok(Committed::Look),
            Err(error) => Err(QuarantineError::Commit(Box::new(error))),
        }
    }

    fn at(&self, point: ReplayPoint) -> Result<(), QuarantineError> {
        match (self.hook)(point) {
            true => Ok(()),
            false => Err(QuarantineError::Killed(point)),
        }
    }
}

enum Committed {
    Yes,
    /// Load the table again and see.
    Look,
}
