//! The fence: whose plan decides at present into which table an event goes.
//!
//! Place on the path: the committer asks before each attempt, with both heads loaded. Two collectors
//! may judge the same event differently, because one has read another tracking plan or is of another
//! version. Each decides by a commit to one table: `raw.quarantine` gets the event, or `raw.events`
//! does, and no catalog commits to both at once. Without more, both could happen, or neither.
//!
//! ```text
//! headwater.plan.fence   "<number> <fingerprint of the plan>", a property of both tables
//!
//! decide only when   raw.events has (n, mine)   and   raw.quarantine has (n, mine)
//! take over          raw.events := (n + 1, mine),  then  raw.quarantine := (n + 1, mine) if lower
//! ```
//!
//! Promise (EO-1, EO-3), whatever each collector's plan says: the one with the lower number is refused
//! by the table that the other has fenced, or has committed before it, and then the other sees it: in
//! the watermark of `raw.events`, or among the rows of `raw.quarantine` above that watermark, which are
//! read where there can be some and honoured. `docs/exactly-once.md` has the argument.

use std::collections::BTreeMap;

use headwater_tables::Table;

/// Property of both tables.
const FENCE: &str = "headwater.plan.fence";

/// Who decides, as one table says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fence {
    number: u64,
    plan: String,
}

impl Fence {
    /// Reads the fence of a table; number 0 where there is none yet, which is nobody's.
    pub(crate) fn of(table: &Table) -> Self {
        let value = table.metadata().properties().get(FENCE);
        Self::parse(value.map_or("", String::as_str)).unwrap_or(Self {
            number: 0,
            plan: String::new(),
        })
    }

    /// Returns the number, higher with each that takes over.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    fn parse(value: &str) -> Option<Self> {
        let (number, plan) = value.split_once(' ')?;
        Some(Self {
            number: number.parse().ok()?,
            plan: plan.to_owned(),
        })
    }

    /// Returns the table properties that set this fence.
    pub(crate) fn properties(&self) -> BTreeMap<String, String> {
        let value = format!("{} {}", self.number, self.plan);
        BTreeMap::from([(FENCE.to_owned(), value)])
    }
}

/// What is to be done before a collector decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: both tables are fenced for this plan.
    Decide,
    /// Set this fence in `raw.events`, then load again.
    FenceEvents(Fence),
    /// Set this fence in `raw.quarantine`, then load again.
    FenceQuarantine(Fence),
    /// `raw.events` was read before somebody took over: load again.
    Reload,
}

/// Says what a collector with `plan` does when it finds these fences; `seen` is the highest number that
/// it had seen in `raw.quarantine` before it loaded `raw.events`.
pub(crate) fn step(events: &Fence, quarantine: &Fence, seen: u64, plan: &str) -> Step {
    let take_over = || {
        Step::FenceEvents(Fence {
            number: events.number.max(quarantine.number) + 1,
            plan: plan.to_owned(),
        })
    };
    if events.number < quarantine.number && events.number >= seen {
        Step::Reload
    } else if events.number < quarantine.number {
        // `raw.events` is always fenced first, so this is not the table that was: it is new or restored.
        take_over()
    } else if events.plan != plan {
        take_over()
    } else if events.number > quarantine.number {
        Step::FenceQuarantine(events.clone())
    } else if events.plan != quarantine.plan {
        // A number has one plan, but for a restored table, whose numbers come again.
        take_over()
    } else {
        Step::Decide
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(number: u64, plan: &str) -> Fence {
        Fence {
            number,
            plan: plan.to_owned(),
        }
    }

    #[test]
    fn a_fence_reads_back_as_it_was_written() {
        let fence = fence(17, "0a1b");
        let value = &fence.properties()[FENCE];
        assert_eq!(Fence::parse(value), Some(fence));
        assert_eq!(Fence::parse(""), None);
        assert_eq!(Fence::parse("x y"), None);
    }

    #[test]
    fn nobody_decides_before_both_tables_are_fenced_for_the_plan() {
        let none = fence(0, "");
        let cases = [
            (&none, &none, Step::FenceEvents(fence(1, "a"))),
            (&fence(1, "a"), &none, Step::FenceQuarantine(fence(1, "a"))),
            (&fence(1, "a"), &fence(1, "a"), Step::Decide),
            // Another plan is in force: its number must be passed in both tables.
            (
                &fence(1, "b"),
                &fence(1, "b"),
                Step::FenceEvents(fence(2, "a")),
            ),
            (&fence(1, "b"), &none, Step::FenceEvents(fence(2, "a"))),
            (
                &fence(2, "a"),
                &fence(1, "b"),
                Step::FenceQuarantine(fence(2, "a")),
            ),
            // Somebody took over after `raw.events` was loaded.
            (&fence(1, "a"), &fence(2, "b"), Step::Reload),
            (&fence(1, "b"), &fence(2, "a"), Step::Reload),
        ];
        for (events, quarantine, expected) in cases {
            assert_eq!(
                step(events, quarantine, 0, "a"),
                expected,
                "{events:?} {quarantine:?}"
            );
        }
    }

    #[test]
    fn a_new_or_restored_table_gets_a_number_that_was_never_used() {
        let new = fence(0, "");
        let restored = fence(2, "a");
        // The number of `raw.quarantine` was known before `raw.events` was loaded, which still has less.
        for events in [&new, &restored] {
            let expected = Step::FenceEvents(fence(6, "a"));
            assert_eq!(step(events, &fence(5, "a"), 5, "a"), expected);
            assert_eq!(step(events, &fence(5, "b"), 5, "a"), expected);
        }
        // Somebody took over in between: that is no sign of it.
        assert_eq!(step(&fence(5, "a"), &fence(6, "b"), 5, "a"), Step::Reload);
        let expected = Step::FenceEvents(fence(6, "a"));
        assert_eq!(step(&fence(5, "a"), &fence(5, "b"), 5, "a"), expected);
    }
}
