//! What became of a commit, decided from what the catalog and the table say.
//!
//! Place on the event's path: after the swap, before anybody is told. Pure. Promise (EO-5): an outcome
//! is named only when it is proven; who is named a loser can never win afterwards.

/// What was read after a swap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evidence<'a> {
    /// Metadata location that the commit was built on.
    pub(crate) base: &'a str,
    /// Metadata location that the commit has written.
    pub(crate) ours: &'a str,
    /// Where the head is now.
    pub(crate) head: &'a str,
    /// Former heads as the present one lists them; the oldest ones are dropped.
    pub(crate) log: &'a [&'a str],
    /// Whether a snapshot that the head still knows carries the commit's id.
    pub(crate) has_snapshot: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is part of the table.
    Committed,
    /// The base is still the head. A swap that is on its way may yet be done.
    NotCommitted,
    /// Another commit followed the base: this one never will.
    Overtaken,
    /// The log does not reach back to the base.
    Unknown,
}

/// Decides what became of a commit.
///
/// ```text
/// log of the head:   … base ─ A ─ B ─ head      base is there: A is its only successor
///                            C ─ D ─ E ─ head      base is not: ours may have been before C
/// ```
pub(crate) fn resolve(evidence: Evidence<'_>) -> Outcome {
    let Evidence {
        base,
        ours,
        head,
        log,
        has_snapshot,
    } = evidence;
    assert_ne!(base, ours, "a commit writes metadata of its own");
    if head == ours || log.contains(&ours) || has_snapshot {
        Outcome::Committed
    } else if head == base {
        Outcome::NotCommitted
    } else if log.contains(&base) {
        // A location is a head once, and a head has one successor, which is listed after it.
        Outcome::Overtaken
    } else {
        Outcome::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resolves our commit on `base` in a history of heads of which the last `kept` are listed.
    fn after(history: &[&str], kept: usize, has_snapshot: bool) -> Outcome {
        let (head, former) = history.split_last().unwrap();
        resolve(Evidence {
            base: "base",
            ours: "ours",
            head,
            log: &former[former.len().saturating_sub(kept)..],
            has_snapshot,
        })
    }

    #[test]
    fn an_outcome_is_named_only_when_it_is_proven() {
        let cases: [(&[&str], usize, bool, Outcome); 9] = [
            (&["z", "base"], 9, false, Outcome::NotCommitted),
            (&["base", "ours"], 9, false, Outcome::Committed),
            (&["base", "ours", "a"], 9, false, Outcome::Committed),
            (&["base", "ours", "a"], 1, false, Outcome::Committed),
            (&["base", "ours", "a", "b"], 1, false, Outcome::Unknown),
            (&["base", "ours", "a", "b"], 1, true, Outcome::Committed),
            (&["base", "a"], 1, false, Outcome::Overtaken),
            (&["base", "a", "b"], 2, false, Outcome::Overtaken),
            (&["base", "a", "b"], 1, false, Outcome::Unknown),
        ];
        for (history, kept, has_snapshot, expected) in cases {
            let outcome = after(history, kept, has_snapshot);
            assert_eq!(outcome, expected, "{history:?} of which {kept} are listed");
        }
    }
}
