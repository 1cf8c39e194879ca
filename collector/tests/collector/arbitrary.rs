//! Bodies of any bytes, and sound ones that were damaged.

use headwater_collector::plan::Plan;
use headwater_collector::staging::{self, BatchOrigin};
use headwater_protocol::{BatchHeader, Codec, batch};
use proptest::prelude::*;

use crate::world::{NOW, mixed};

/// A change to sound bytes, at a place that is taken modulo their number.
#[derive(Debug, Clone)]
enum Damage {
    Set(usize, u8),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        let bytes = prop::collection::vec(any::<u8>(), 1..12);
        prop_oneof![
            (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Self::Set(at, byte)),
            (any::<usize>(), 1..40usize).prop_map(|(at, count)| Self::Remove(at, count)),
            (any::<usize>(), bytes).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
        ]
    }

    fn apply(self, body: &mut Vec<u8>) {
        let place = |at: usize| at % (body.len() + 1);
        match self {
            Self::Set(at, byte) => {
                let at = place(at);
                if let Some(found) = body.get_mut(at) {
                    *found = byte;
                }
            }
            Self::Remove(at, count) => {
                let at = place(at);
                let end = body.len().min(at + count);
                body.drain(at..end);
            }
            Self::Insert(at, bytes) => {
                let at = place(at);
                body.splice(at..at, bytes);
            }
        }
    }
}

fn check(records: &[u8], count: u32) -> Result<(), TestCaseError> {
    let header = BatchHeader {
        epoch: 1,
        first_sequence: 1,
        count,
        codec: Codec::Zstd,
        body_bytes: records.len() as u64,
    };
    let origin = BatchOrigin::new("agent-1".parse().unwrap(), 1, &header, NOW);
    let body = batch::compress(records).unwrap();
    if let Ok(rows) = staging::stage(&origin, &header, &body, &Plan::builtin()) {
        let sum = rows.events.num_rows() + rows.quarantine.num_rows();
        prop_assert_eq!(sum, count as usize);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn each_sequence_of_a_damaged_body_is_one_row_or_the_batch_is_refused(
        records in 1..6u64,
        damages in prop::collection::vec(Damage::any(), 0..6),
        count in prop_oneof![4 => Just(None), 1 => (0..12u32).prop_map(Some)],
    ) {
        let mut body: Vec<u8> = mixed(1..=records).iter().flat_map(|it| it.encode()).collect();
        for damage in damages {
            damage.apply(&mut body);
        }
        check(&body, count.unwrap_or(records as u32))?;
    }

    #[test]
    fn each_sequence_of_any_bytes_is_one_row_or_the_batch_is_refused(
        body in prop::collection::vec(any::<u8>(), 0..300),
        count in 0..20u32,
    ) {
        check(&body, count)?;
    }
}
