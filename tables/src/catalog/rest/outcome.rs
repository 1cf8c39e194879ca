//! What became of a commit to a REST catalog, decided from what the server and the table say.
//!
//! Place on the event's path: after the commit was asked for, before anybody is told. Pure. Promise
//! (EO-5): the same as [`catalog::outcome`](crate::catalog::outcome), by other means. There the name
//! of our metadata file tells whether we are in the history; here the server names it, so what we know
//! before is our commit's id and the snapshot that `main` was required to be.

use crate::catalog::outcome::Outcome;

/// What was read after a commit that adds a snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    /// The snapshot that `main` was required to be; `None` when the table had none.
    pub(super) base: Option<i64>,
    /// Whether the table lists our snapshot, or the metadata file that the server named, as its head
    /// or as a former one.
    pub(super) is_listed: bool,
    /// `main` and what it follows, newest first, each with its parent, as far as the table lists it.
    pub(super) history: &'a [(i64, Option<i64>)],
}

/// Decides what became of a commit that adds a snapshot.
///
/// ```text
/// main:   … base ← A ← B ← main      A follows base, and is not ours: overtaken
///                      C ← main      base's successor is no longer listed: it may have been ours
/// ```
pub(super) fn of_snapshot(evidence: Evidence<'_>) -> Outcome {
    let Evidence {
        base,
        is_listed,
        history,
    } = evidence;
    if is_listed {
        Outcome::Committed
    } else if history.first().map(|(id, _)| *id) == base {
        Outcome::NotCommitted
    } else if history.iter().any(|(_, parent)| *parent == base) {
        // `main` was moved off the base by another commit, and the server checks it in the moment of
        // each commit. Only somebody who sets `main` back by hand makes the base true again.
        Outcome::Overtaken
    } else {
        Outcome::Unknown
    }
}

/// Decides what became of a commit without a snapshot. It leaves nothing in the table that names it, so
/// a lost answer can only be found out by who knows what was wanted.
pub(super) fn of_properties(base: &str, head: &str, is_listed: bool) -> Outcome {
    if is_listed {
        Outcome::Committed
    } else if head == base {
        Outcome::NotCommitted
    } else {
        Outcome::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base, whether ours is listed, history, outcome.
    type Case = (Option<i64>, bool, &'static [(i64, Option<i64>)], Outcome);

    #[test]
    fn an_outcome_is_named_only_when_it_is_proven() {
        let base = Some(1);
        let cases: [Case; 9] = [
            (base, false, &[(1, None)], Outcome::NotCommitted),
            (base, true, &[(2, Some(1)), (1, None)], Outcome::Committed),
            // Ours is not listed any more, but the server had named its file.
            (base, true, &[(9, Some(8))], Outcome::Committed),
            (base, false, &[(2, Some(1)), (1, None)], Outcome::Overtaken),
            // The base has left the history, its successor has not.
            (
                base,
                false,
                &[(3, Some(2)), (2, Some(1))],
                Outcome::Overtaken,
            ),
            (base, false, &[(3, Some(2))], Outcome::Unknown),
            (None, false, &[], Outcome::NotCommitted),
            (None, false, &[(2, Some(1)), (1, None)], Outcome::Overtaken),
            (None, false, &[(2, Some(1))], Outcome::Unknown),
        ];
        for (base, is_listed, history, expected) in cases {
            let evidence = Evidence {
                base,
                is_listed,
                history,
            };
            assert_eq!(of_snapshot(evidence), expected, "{evidence:?}");
        }
    }

    #[test]
    fn a_commit_without_a_snapshot_is_named_only_by_the_answer_to_it() {
        assert_eq!(of_properties("base", "base", false), Outcome::NotCommitted);
        assert_eq!(of_properties("base", "ours", true), Outcome::Committed);
        assert_eq!(of_properties("base", "other", false), Outcome::Unknown);
    }
}
