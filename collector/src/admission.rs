//! Admission: decides from two numbers whether a batch is new, known or too early.
//!
//! Place on the path: between the header of a batch (session) and its body (staging); the committer
//! asks again before each commit. Pure: no clock, no lock, no IO. Promise (EO-1): a sequence at or
//! below the position is never let through a second time, and none is let through before the one
//! before it.

use headwater_protocol::Sequence;

/// How far one epoch of one agent has come in this collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Everything up to here is committed: the table's watermark as last read.
    pub committed: Sequence,
    /// Everything up to here is committed or waits for the next commit; never below `committed`.
    pub staged: Sequence,
}

impl Position {
    /// Returns the position with the watermark raised to `committed`; nothing ever moves back.
    #[must_use]
    pub fn raised(self, committed: Sequence) -> Self {
        let committed = committed.max(self.committed);
        Self {
            committed,
            staged: self.staged.max(committed),
        }
    }
}

/// Sequences of a batch, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First sequence, at least 1.
    pub first: Sequence,
    /// Last sequence, at least `first`.
    pub last: Sequence,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It continues exactly where the position ends.
    New,
    /// Every event of it is staged or committed already: answer when it is committed.
    Duplicate,
    /// Its first `skip` events are known, the rest is new.
    Overlap {
        /// Number of events to leave out, at least 1.
        skip: u64,
    },
    /// Events before it are missing.
    Gap {
        /// The sequence that must come first.
        expected: Sequence,
    },
}

/// Decides on a batch.
///
/// ```text
///            staged
/// ──────────────┤
///   ├───────┤        Duplicate
///           ├───────┤        Overlap
///                ├───────┤   New
///                  ├──────┤  Gap
/// ```
pub fn decide(position: Position, span: Span) -> Admission {
    assert!(position.committed <= position.staged, "{position:?}");
    assert!(1 <= span.first && span.first <= span.last, "{span:?}");
    let expected = position.staged.saturating_add(1);
    if span.last <= position.staged {
        Admission::Duplicate
    } else if span.first > expected {
        Admission::Gap { expected }
    } else if span.first == expected {
        Admission::New
    } else {
        Admission::Overlap {
            skip: expected - span.first,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(committed: Sequence, staged: Sequence) -> Position {
        Position { committed, staged }
    }

    #[test]
    fn every_small_case_is_decided_by_its_sequences() {
        for staged in 0..8u64 {
            for first in 1..12u64 {
                for last in first..13u64 {
                    let span = Span { first, last };
                    let known = (first..=last).filter(|seq| *seq <= staged).count() as u64;
                    let expected = if known == last - first + 1 {
                        Admission::Duplicate
                    } else if known > 0 {
                        Admission::Overlap { skip: known }
                    } else if first == staged + 1 {
                        Admission::New
                    } else {
                        Admission::Gap {
                            expected: staged + 1,
                        }
                    };
                    assert_eq!(decide(at(0, staged), span), expected, "{staged} {span:?}");
                }
            }
        }
    }

    #[test]
    fn the_first_sequence_of_an_epoch_is_one() {
        let span = Span { first: 1, last: 1 };
        assert_eq!(decide(Position::default(), span), Admission::New);
        let span = Span { first: 2, last: 2 };
        assert_eq!(
            decide(Position::default(), span),
            Admission::Gap { expected: 1 }
        );
    }

    #[test]
    fn the_largest_sequences_do_not_overflow() {
        let span = Span {
            first: Sequence::MAX,
            last: Sequence::MAX,
        };
        assert_eq!(decide(at(0, Sequence::MAX), span), Admission::Duplicate);
        assert_eq!(decide(at(0, Sequence::MAX - 1), span), Admission::New);
    }

    #[test]
    fn a_raised_watermark_never_moves_back() {
        assert_eq!(at(5, 9).raised(3), at(5, 9));
        assert_eq!(at(5, 9).raised(7), at(7, 9));
        assert_eq!(at(5, 9).raised(12), at(12, 12));
    }

    proptest! {
        /// Whatever order, overlap and repetition batches come in: each sequence enters once, in order.
        #[test]
        fn each_sequence_enters_once_and_in_order(
            batches in prop::collection::vec((1u64..60, 1u64..20), 1..200)
        ) {
            let mut position = Position::default();
            let mut entered = Vec::new();
            for (first, count) in batches {
                let span = Span { first, last: first + count - 1 };
                let from = match decide(position, span) {
                    Admission::New => span.first,
                    Admission::Overlap { skip } => span.first + skip,
                    Admission::Duplicate => continue,
                    Admission::Gap { expected } => {
                        prop_assert_eq!(expected, position.staged + 1);
                        continue;
                    }
                };
                entered.extend(from..=span.last);
                position.staged = span.last;
            }
            let whole: Vec<u64> = (1..=position.staged).collect();
            prop_assert_eq!(entered, whole);
        }
    }
}
