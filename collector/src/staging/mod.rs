//! Staging: the body of a batch becomes Arrow rows of `raw.events` and `raw.quarantine`.
//!
//! Place on the path: between admission and commit; CPU work without IO, called on a blocking
//! thread. Promise: every sequence of the batch becomes exactly one row, of one table or the
//! other, by the batch's bytes and the plan alone; what cannot be read never stalls the rest.

pub mod actor;
pub(crate) mod event_rows;
pub mod flaws;
mod promoted_column;
pub mod quarantine_rows;
pub mod time_rule;

use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use headwater_protocol::batch::{self, BodyError, Slot};
use headwater_protocol::{AgentId, BatchHeader, Epoch, Event, EventType};

use crate::config::QuarantineConfig;
use crate::ledger::Key;
use crate::metrics as names;
use crate::plan::{Judgement, Plan};
use event_rows::EventRows;
use quarantine_rows::QuarantineRows;
use time_rule::is_arrival;

/// Where a batch comes from.
#[derive(Debug, Clone)]
pub struct BatchOrigin {
    pub(crate) key: Key,
    /// Names the batch in `ingest_batch_id`.
    pub(crate) batch_id: String,
    /// Wall-clock time of staging, microseconds since the Unix epoch.
    pub(crate) now: i64,
    /// Until when what of it is quarantined should be kept, microseconds since the Unix epoch.
    pub(crate) retention_until: i64,
}

const DAY_MICROS: i64 = 86_400_000_000;

impl BatchOrigin {
    /// Names the batch of `header`, sent by `agent`. What of it is quarantined should be kept for the
    /// days of the default configuration.
    pub fn new(agent: AgentId, epoch: Epoch, header: &BatchHeader, now: i64) -> Self {
        let batch_id = format!("{agent}/{epoch}/{}+{}", header.first_sequence, header.count);
        Self {
            key: Key { agent, epoch },
            batch_id,
            now,
            retention_until: now,
        }
        .kept_for_days(QuarantineConfig::default().retention_days)
    }

    /// Returns the origin with another time for which what of it is quarantined should be kept.
    pub fn kept_for_days(self, days: u32) -> Self {
        let retention_until = self.now.saturating_add(i64::from(days) * DAY_MICROS);
        Self {
            retention_until,
            ..self
        }
    }
}

/// The rows of one batch.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Rows of `raw.events`.
    pub events: RecordBatch,
    /// Rows of `raw.quarantine`.
    pub quarantine: RecordBatch,
}

/// Why a batch cannot be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The body is not what its header says; it will never be.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The rows do not fit their columns.
    #[error("rows cannot be built: {0}")]
    Rows(#[from] ArrowError),
}

/// Turns a compressed body into rows, judged by `plan`.
///
/// # Errors
/// [`StageError::Body`] when the batch must be refused.
pub fn stage(
    origin: &BatchOrigin,
    header: &BatchHeader,
    body: &[u8],
    plan: &Plan,
) -> Result<Rows, StageError> {
    let records = batch::decompress(header, body)?;
    let slots = batch::slots(header, &records)?;
    let mut events = EventRows::new(plan.promoted());
    let mut quarantine = QuarantineRows::default();
    for (sequence, slot) in (header.first_sequence..).zip(slots) {
        match slot {
            // By a fixed range and not by our clock: every collector stages the same bytes alike.
            Slot::Record(record) if !is_arrival(record.received_at) => {
                quarantine.push_undecodable(origin, sequence, &record.encode());
            }
            Slot::Record(record) => match Event::from_record(&record) {
                Ok(event) => {
                    let judgement = plan.judge(&event);
                    count(&event, &judgement);
                    match judgement.quarantine {
                        None => events.push(origin, sequence, &record, &event, &judgement)?,
                        Some(blocked) => {
                            quarantine.push_blocked(origin, sequence, &record, &judgement, blocked);
                        }
                    }
                }
                Err(invalid) => quarantine.push_invalid(origin, sequence, &record, &invalid),
            },
            Slot::Undecodable(bytes) => quarantine.push_undecodable(origin, sequence, bytes),
        }
    }
    Ok(Rows {
        events: events.finish()?,
        quarantine: quarantine.finish()?,
    })
}

/// Counts what a person who keeps a plan asks for. Labels are names of the plan and its keywords.
fn count(event: &Event<'_>, judgement: &Judgement<'_>) {
    for violation in &judgement.violations {
        let name = judgement
            .planned
            .map_or("(unplanned)", |it| it.name.as_str());
        metrics::counter!(
            names::PLAN_VIOLATIONS,
            "event" => name.to_owned(),
            "keyword" => violation.keyword
        )
        .increment(1);
    }
    // Other calls are not judged.
    if event.event_type == EventType::Track && judgement.planned.is_none() {
        metrics::counter!(names::EVENTS_UNPLANNED).increment(1);
    }
}

#[cfg(test)]
mod tests;
