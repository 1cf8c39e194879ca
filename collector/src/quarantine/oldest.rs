//! The events that were received first, found without reading a payload.
//!
//! Beside the path: a replay with a limit begins with them, so that one after the other works through a
//! large quarantine. Promise: what is held is bounded by the limit, however many rows there are.

use std::collections::BTreeSet;

use headwater_protocol::Sequence;
use headwater_tables::Table;
use iceberg::expr::{Predicate, Reference};
use iceberg::spec::Datum;

use super::entry::{ARRIVAL_COLUMNS, arrivals};
use super::{Entry, Filter, QuarantineError, scan_columns};
use crate::ledger::Key;

/// When an event was received, in microseconds since the Unix epoch, and its position.
pub(super) type Arrival = (i64, Key, Sequence);

/// The rows that were received first, and how many were left out for them.
#[derive(Debug)]
pub(super) struct Oldest {
    rows: BTreeSet<Arrival>,
    rows_max: usize,
    left: u64,
}

impl Oldest {
    fn new(rows_max: usize) -> Self {
        Self {
            rows: BTreeSet::new(),
            rows_max,
            left: 0,
        }
    }

    /// Looks at all rows that `filter` means and keeps at most `rows_max`.
    pub(super) async fn of(
        quarantine: &Table,
        filter: &Filter,
        rows_max: usize,
    ) -> Result<Self, QuarantineError> {
        let mut oldest = Self::new(rows_max);
        let all = filter.predicate()?;
        scan_columns(quarantine, all, ARRIVAL_COLUMNS, async |rows| {
            arrivals(&rows)?.into_iter().for_each(|it| oldest.add(it));
            Ok(())
        })
        .await?;
        Ok(oldest)
    }

    fn add(&mut self, row: Arrival) {
        self.rows.insert(row);
        if self.rows.len() > self.rows_max {
            self.rows.pop_last();
            self.left += 1;
        }
    }

    /// Returns when the last of them was received.
    pub(super) fn through(&self) -> Option<i64> {
        self.rows.last().map(|(received_at, ..)| *received_at)
    }

    /// Returns how many rows were received later than these.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Returns what holds for all of them, and for few others.
    pub(super) fn predicate(&self) -> Predicate {
        match self.through() {
            None => Predicate::AlwaysFalse,
            Some(through) => Reference::new("received_at")
                .less_than_or_equal_to(Datum::timestamptz_micros(through)),
        }
    }

    pub(super) fn holds(&self, entry: &Entry) -> bool {
        let row = (entry.received_at, entry.key.clone(), entry.sequence);
        self.rows.contains(&row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_later_gives_way_whatever_the_order() {
        let key = Key {
            agent: "agent-1".parse().unwrap(),
            epoch: 5,
        };
        let mut oldest = Oldest::new(3);
        assert_eq!(oldest.through(), None);
        for (received_at, sequence) in [(9, 1), (4, 2), (7, 3), (4, 4), (8, 5), (5, 6)] {
            oldest.add((received_at, key.clone(), sequence));
        }
        let kept: Vec<_> = oldest.rows.iter().map(|(at, _, seq)| (*at, *seq)).collect();
        assert_eq!(kept, [(4, 2), (4, 4), (5, 6)]);
        assert_eq!((oldest.left(), oldest.through()), (3, Some(5)));
    }
}
