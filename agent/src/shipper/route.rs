//! Which collector comes next, and after what wait. Pure, but for the dice.

use std::time::Duration;

use headwater_service::chance::Chance;

use crate::config::CollectorConfig;

/// Returns the collector to try after the one at `index` failed.
pub(super) fn after(index: usize, collectors: usize) -> usize {
    (index + 1) % collectors.max(1)
}

/// Returns the wait after `failures` failures in a row (0 for the first), with `collectors` to
/// choose from: anything up to a bound that doubles with each round over all of them. Full jitter: a
/// thousand agents do not come back in the same moment.
pub(super) fn backoff(
    failures: u32,
    collectors: usize,
    config: &CollectorConfig,
    chance: &dyn Chance,
) -> Duration {
    Duration::from_millis(chance.within(0..=bound_ms(failures, collectors, config)))
        // Never zero: a collector that refuses at once must not be asked in a tight loop.
        .max(Duration::from_millis(config.backoff_min_ms / 10).max(Duration::from_millis(1)))
}

fn bound_ms(failures: u32, collectors: usize, config: &CollectorConfig) -> u64 {
    let rounds = u64::from(failures) / collectors.max(1) as u64;
    let doubled = u32::try_from(rounds)
        .ok()
        .and_then(|rounds| config.backoff_min_ms.checked_shl(rounds.min(40)))
        .unwrap_or(u64::MAX);
    doubled.clamp(config.backoff_min_ms, config.backoff_max_ms)
}

#[cfg(test)]
mod tests {
    use headwater_service::chance::SystemChance;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn backoff_keeps_its_bounds(
            failures in prop_oneof![0u32..50, any::<u32>()],
            collectors in 1usize..17,
            min in 1u64..10_000,
            factor in 1u64..10_000,
        ) {
            let config = CollectorConfig {
                backoff_min_ms: min,
                backoff_max_ms: min * factor,
                ..CollectorConfig::default()
            };
            let wait = backoff(failures, collectors, &config, &SystemChance);
            prop_assert!(wait >= Duration::from_millis(1));
            prop_assert!(wait <= Duration::from_millis(min * factor));
            let bound = bound_ms(failures, collectors, &config);
            prop_assert!(wait <= Duration::from_millis(bound));
            // Twice the bound, or the largest, one round later.
            let later = bound_ms(failures.saturating_add(u32::try_from(collectors).unwrap()), collectors, &config);
            prop_assert!(later >= bound && later <= bound.saturating_mul(2));
            if (failures as usize) < collectors {
                prop_assert_eq!(bound, min);
            }
        }
    }

    #[test]
    fn jitter_is_full() {
        let config = CollectorConfig::default();
        let bound = Duration::from_millis(config.backoff_max_ms);
        let waits: Vec<Duration> = (0..1000)
            .map(|_| backoff(60, 1, &config, &SystemChance))
            .collect();
        for tenth in 0..10 {
            let (from, to) = (bound * tenth / 10, bound * (tenth + 1) / 10);
            let within = waits
                .iter()
                .filter(|wait| (from..to).contains(*wait))
                .count();
            assert!(
                (40..200).contains(&within),
                "{within} of 1000 waits between {from:?} and {to:?}"
            );
        }
    }

    #[test]
    fn every_collector_has_its_turn() {
        let mut index = 0;
        let order: Vec<usize> = (0..6)
            .map(|_| {
                index = after(index, 3);
                index
            })
            .collect();
        assert_eq!(order, [1, 2, 0, 1, 2, 0]);
        assert_eq!(after(0, 1), 0);
    }
}
