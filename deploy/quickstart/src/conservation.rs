//! The proof that nothing was lost and nothing stored twice: sent = stored + duplicate + quarantined.
//!
//! Counted per run: `sent` is what the agent answered with 200 in this run, the rest is how much the
//! tables grew meanwhile and what the agent said that it had not stored again. So the line also holds for a run that resumes an interrupted one: what the
//! first had stored comes again with the same message ids and is counted as duplicate. Events with
//! the demo write key are left out, because anybody may send them at any time.

use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Rows of `raw.quarantine` whose event was not replayed into `raw.events`.
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
                "SELECT count(*) FROM raw.quarantine AS q
                 LEFT ANTI JOIN raw.events AS e ON e._agent_id = q._agent_id
                   AND e._epoch = q._epoch AND e._sequence = q._sequence
                 WHERE q.{source}"
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
    /// Copies that the agent answered without storing them: the same bytes as a durable event.
    pub duplicate_at_agent: u64,
    /// Further copies of message ids that were there, found in the tables.
    pub duplicate_in_tables: u64,
    /// Events that could not be accepted, kept with their reason.
    pub quarantined: u64,
    /// What the agent said: valid events, and events for quarantine.
    said: (u64, u64),
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
        let rows = after.rows.saturating_sub(before.rows);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            sent: count(&played.sent),
            stored,
            duplicate_at_agent: count(&played.duplicates_at_agent),
            duplicate_in_tables: rows.saturating_sub(stored),
            quarantined: after.quarantined.saturating_sub(before.quarantined),
            said: (count(&played.accepted), count(&played.rejected)),
        }
    }

    /// Returns all copies.
    pub fn duplicate(&self) -> u64 {
        self.duplicate_at_agent + self.duplicate_in_tables
    }

    /// Checks the line, the tables against what the agent said, and both against what the desk put
    /// in.
    ///
    /// # Errors
    /// [`Mismatch`] names the first count that is wrong.
    pub fn check(&self, tally: &Tally, after: Totals) -> Result<(), Mismatch> {
        let is = |holds: bool, what, expected, got| {
            if holds {
                Ok(())
            } else {
                Err(Mismatch {
                    what,
                    expected,
                    got,
                })
            }
        };
        let equal = |what, expected, got| is(expected == got, what, expected, got);
        equal("events sent", tally.sent(), self.sent)?;
        equal(
            "stored + duplicate + quarantined",
            self.sent,
            self.stored + self.duplicate() + self.quarantined,
        )?;
        let (accepted, rejected) = self.said;
        equal(
            "rows in `raw.events` of events that the agent accepted",
            accepted,
            self.stored + self.duplicate_in_tables,
        )?;
        equal(
            "rows in `raw.quarantine` of events that the agent rejected",
            rejected,
            self.quarantined,
        )?;
        // How many of the copies among them the agent recognised depends on what it remembered.
        let (most, least) = (tally.broken(), tally.broken() - tally.invalid_again);
        let what = "quarantined events";
        is(self.quarantined <= most, what, most, self.quarantined)?;
        is(after.quarantined >= least, what, least, after.quarantined)?;
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
            count(self.duplicate()),
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
            invalid_again: 1,
            ..Tally::default()
        }
    }

    fn played(sent: u64, accepted: u64, duplicates: u64, rejected: u64) -> Played {
        Played {
            sent: sent.into(),
            accepted: accepted.into(),
            duplicates_at_agent: duplicates.into(),
            rejected: rejected.into(),
            ..Played::default()
        }
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
        let after = totals(92, 90, 3);
        let line = Line::new(&played(100, 92, 5, 3), Totals::default(), after);
        line.check(&tally(), after).unwrap();
        assert_eq!(
            line.to_string(),
            "sent 100 = stored 90 + duplicate 7 + quarantined 3"
        );
        assert_eq!((line.duplicate_at_agent, line.duplicate_in_tables), (5, 2));
    }

    #[test]
    fn a_resumed_run_counts_what_was_there_as_duplicate() {
        // What the agent remembers of the first run it does not store again.
        for (in_tables, at_agent, quarantined) in [(46, 0, 4), (6, 42, 2), (1, 50, 0)] {
            let before = totals(41, 40, 3);
            let rows = 50 + in_tables;
            let after = totals(41 + rows, 90, 3 + quarantined);
            let said = played(
                50 + in_tables + at_agent + quarantined,
                rows,
                at_agent,
                quarantined,
            );
            let line = Line::new(&said, before, after);
            let tally = Tally {
                copies: line.sent - 94,
                ..tally()
            };
            line.check(&tally, after).unwrap();
            assert_eq!((line.stored, line.duplicate()), (50, in_tables + at_agent));
        }
    }

    #[test]
    fn what_does_not_add_up_is_an_error() {
        let sound = played(100, 92, 5, 3);
        for (after, expected, got) in [
            // Lost; lost but another stored in its place; stored twice; not quarantined.
            (totals(91, 89, 3), 100, 99),
            (totals(92, 89, 3), 90, 89),
            (totals(93, 90, 3), 100, 101),
            (totals(92, 90, 2), 100, 99),
        ] {
            let line = Line::new(&sound, Totals::default(), after);
            let mismatch = line.check(&tally(), after).unwrap_err();
            assert_eq!((mismatch.expected, mismatch.got), (expected, got));
        }
        // The agent said otherwise, although the sum is right.
        for said in [played(100, 91, 5, 4), played(100, 93, 4, 3)] {
            let after = totals(92, 90, 3);
            let line = Line::new(&said, Totals::default(), after);
            assert!(line.check(&tally(), after).is_err());
        }
        // Fewer in quarantine than were broken.
        let after = totals(95, 90, 2);
        let line = Line::new(&played(100, 95, 3, 2), Totals::default(), after);
        let mismatch = line.check(&tally(), after).unwrap_err();
        assert_eq!((mismatch.expected, mismatch.got), (3, 2));
    }
}
