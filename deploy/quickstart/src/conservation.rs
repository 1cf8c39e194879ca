//! The proof that nothing was lost and nothing stored twice: sent = stored + duplicate + quarantined.
//!
//! Counted per run: `sent` is what the agent answered with 200 in this run, the rest is how much the
//! tables grew meanwhile. So the line also holds for a run that resumes an interrupted one: what the
//! first had stored comes again with the same message ids and is counted as duplicate. Events with
//! the demo write key are left out, because anybody may send them at any time.

use std::sync::atomic::Ordering;

use crate::desk::Tally;
use crate::node::DEMO_SOURCE;
use crate::player::Played;
use crate::progress::count;
use crate::query::{Query, QueryFailed};

/// What the raw tables hold of the desk's events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows of `raw.events`.
    pub rows: u64,
    /// Distinct (company, message id) among them.
    pub distinct: u64,
    /// Rows of `raw.quarantine`.
    pub quarantined: u64,
}

impl Totals {
    /// Counts them now.
    ///
    /// # Errors
    /// [`QueryFailed`] when the tables cannot be read.
    pub async fn count(query: &Query) -> Result<Self, QueryFailed> {
        let source = format!("source_id <> '{DEMO_SOURCE}'");
        let events = query
            .numbers(&format!(
                "SELECT coalesce(sum(copies), 0), count(*) FROM (
                     SELECT count(*) AS copies FROM raw.events WHERE {source}
                     GROUP BY company_id, message_id)"
            ))
            .await?;
        let quarantined = query
            .numbers(&format!(
                "SELECT count(*) FROM raw.quarantine WHERE {source}"
            ))
            .await?;
        Ok(Self {
            rows: events[0],
            distinct: events[1],
            quarantined: quarantined[0],
        })
    }
}

/// Rows and positions of `raw.events`, which must be equal (EO-1).
///
/// # Errors
/// [`QueryFailed`] when the table cannot be read.
pub async fn positions(query: &Query) -> Result<(u64, u64), QueryFailed> {
    let numbers = query
        .numbers(
            "SELECT coalesce(sum(copies), 0), count(*) FROM (
                 SELECT count(*) AS copies FROM raw.events GROUP BY _agent_id, _epoch, _sequence)",
        )
        .await?;
    Ok((numbers[0], numbers[1]))
}

/// The line of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Events answered with 200.
    pub sent: u64,
    /// Events whose message id is new.
    pub stored: u64,
    /// Further copies of message ids that were there.
    pub duplicate: u64,
    /// Events that could not be accepted, kept with their reason.
    pub quarantined: u64,
}

/// A count that does not add up: a defect, worth a report with the data directory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} should be `{expected}` and is `{got}`; keep the data directory and report this")]
pub struct Mismatch {
    /// What was counted.
    pub what: &'static str,
    /// What it should be.
    pub expected: u64,
    /// What it is.
    pub got: u64,
}

impl Line {
    /// Returns the line of a run that found `before` and left `after`.
    pub fn new(played: &Played, before: Totals, after: Totals) -> Self {
        let stored = after.distinct.saturating_sub(before.distinct);
        let copies = after
            .rows
            .saturating_sub(before.rows)
            .saturating_sub(stored);
        Self {
            sent: played.sent.load(Ordering::Relaxed),
            stored,
            duplicate: copies + played.duplicates_at_agent.load(Ordering::Relaxed),
            quarantined: after.quarantined.saturating_sub(before.quarantined),
        }
    }

    /// Checks the line, and the tables against what the desk put in.
    ///
    /// # Errors
    /// [`Mismatch`] names the first count that is wrong.
    pub fn check(&self, tally: &Tally, after: Totals) -> Result<(), Mismatch> {
        let equal = |what, expected, got| {
            if expected == got {
                Ok(())
            } else {
                Err(Mismatch {
                    what,
                    expected,
                    got,
                })
            }
        };
        equal("events sent", tally.sent(), self.sent)?;
        equal(
            "stored + duplicate + quarantined",
            self.sent,
            self.stored + self.duplicate + self.quarantined,
        )?;
        equal("quarantined events", tally.quarantined(), self.quarantined)?;
        equal(
            "distinct events in `raw.events`",
            tally.distinct,
            after.distinct,
        )
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "sent {} = stored {} + duplicate {} + quarantined {}",
            count(self.sent),
            count(self.stored),
            count(self.duplicate),
            count(self.quarantined)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desk::Flaw;

    fn tally() -> Tally {
        Tally {
            distinct: 90,
            copies: 6,
            invalid: [(Flaw::MissingName, 4)].into(),
            ..Tally::default()
        }
    }

    fn played(sent: u64) -> Played {
        let played = Played::default();
        played.sent.store(sent, Ordering::Relaxed);
        played
    }

    fn totals(rows: u64, distinct: u64, quarantined: u64) -> Totals {
        Totals {
            rows,
            distinct,
            quarantined,
        }
    }

    #[test]
    fn a_first_run_adds_up() {
        let after = totals(96, 90, 4);
        let line = Line::new(&played(100), Totals::default(), after);
        line.check(&tally(), after).unwrap();
        assert_eq!(
            line.to_string(),
            "sent 100 = stored 90 + duplicate 6 + quarantined 4"
        );
    }

    #[test]
    fn a_resumed_run_counts_what_was_there_as_duplicate() {
        let (before, after) = (totals(41, 40, 1), totals(137, 90, 5));
        let line = Line::new(&played(100), before, after);
        line.check(&tally(), after).unwrap();
        assert_eq!((line.stored, line.duplicate), (50, 46));
    }

    #[test]
    fn a_lost_event_is_an_error() {
        let after = totals(95, 89, 4);
        let line = Line::new(&played(100), Totals::default(), after);
        let mismatch = line.check(&tally(), after).unwrap_err();
        assert_eq!((mismatch.expected, mismatch.got), (100, 99));
    }
}
