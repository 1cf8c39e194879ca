//! What of a group of staged batches goes into a commit, given the watermarks of its base.
//!
//! Place on the path: asked before every attempt, because another collector may have come first.
//! Pure. Promise (EO-1, EO-3): a taken row is above the watermark, and what is taken of an epoch
//! continues it without a hole.

use std::collections::HashMap;

use headwater_protocol::Sequence;

use crate::admission::{Admission, Position, Span, decide};
use crate::ledger::Key;

/// What becomes of one staged batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its rows above this sequence are committed.
    Take {
        /// Everything up to here is committed or taken by an earlier batch.
        after: Sequence,
    },
    /// All of it is committed already.
    Committed,
    /// What comes before it is neither committed nor staged; its sender must retry.
    Gap,
}

/// Decides on every batch of a group, in the order staged.
pub(crate) fn plan<'a>(
    batches: impl Iterator<Item = (&'a Key, Span)>,
    watermark: impl Fn(&Key) -> Sequence,
) -> Vec<Verdict> {
    let mut positions: HashMap<&Key, Position> = HashMap::new();
    batches
        .map(|(key, span)| {
            let position = positions
                .entry(key)
                .or_insert_with(|| Position::default().raised(watermark(key)));
            let after = position.staged;
            match decide(*position, span) {
                Admission::New | Admission::Overlap { .. } => {
                    assert!(span.first <= after + 1 && after < span.last, "EO-1, EO-3");
                    position.staged = span.last;
                    Verdict::Take { after }
                }
                Admission::Duplicate => Verdict::Committed,
                Admission::Gap { .. } => Verdict::Gap,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(agent: &str, epoch: u64) -> Key {
        Key {
            agent: agent.parse().unwrap(),
            epoch,
        }
    }

    #[test]
    fn what_another_collector_committed_is_left_out() {
        let (a, b, old) = (key("a", 2), key("b", 1), key("a", 1));
        let span = |first, last| Span { first, last };
        let batches = [
            (&a, span(1, 10)),
            (&b, span(1, 5)),
            (&a, span(11, 20)),
            (&old, span(7, 9)),
            (&b, span(9, 9)),
            (&a, span(21, 30)),
        ];
        let watermark = |key: &Key| if *key == a { 14 } else { 0 };
        assert_eq!(
            plan(batches.into_iter(), watermark),
            [
                Verdict::Committed,
                Verdict::Take { after: 0 },
                Verdict::Take { after: 14 },
                Verdict::Gap,
                Verdict::Gap,
                Verdict::Take { after: 20 },
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn taken_rows_continue_the_watermark(
            watermark in 0u64..40,
            spans in proptest::collection::vec((1u64..50, 1u64..10), 1..40),
        ) {
            let key = key("a", 1);
            let spans: Vec<Span> = spans
                .into_iter()
                .map(|(first, count)| Span { first, last: first + count - 1 })
                .collect();
            let verdicts = plan(spans.iter().map(|span| (&key, *span)), |_| watermark);
            let mut through = watermark;
            for (span, verdict) in spans.iter().zip(verdicts) {
                match verdict {
                    Verdict::Take { after } => {
                        proptest::prop_assert_eq!(after, through);
                        proptest::prop_assert!(span.first <= through + 1 && span.last > through);
                        through = span.last;
                    }
                    Verdict::Committed => proptest::prop_assert!(span.last <= through),
                    Verdict::Gap => proptest::prop_assert!(span.first > through + 1),
                }
            }
        }
    }
}
