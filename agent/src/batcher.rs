//! The batcher: decides when a batch leaves. Pure; the shipper asks and acts.

use std::time::Duration;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Read a batch and send it.
    Send,
    /// Wait this long, or until more events are durable.
    Linger(Duration),
    /// There is nothing to send.
    Idle,
}

/// Decides for `available` durable unsent events, the first of which has waited for `waited`.
///
/// A full batch leaves at once; a smaller one when its first event has waited for `linger`. `closing`
/// (the epoch or the agent ends) sends what there is.
pub fn decide(
    available: u64,
    waited: Duration,
    batch_events_max: u32,
    linger: Duration,
    closing: bool,
) -> Decision {
    if available == 0 {
        Decision::Idle
    } else if closing || available >= u64::from(batch_events_max) || waited >= linger {
        Decision::Send
    } else {
        Decision::Linger(linger - waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_leaves_when_it_is_full_or_has_waited() {
        let linger = Duration::from_millis(200);
        let ms = Duration::from_millis;
        let cases = [
            (0, ms(500), false, Decision::Idle),
            (0, ms(500), true, Decision::Idle),
            (1, ms(0), false, Decision::Linger(linger)),
            (1, ms(150), false, Decision::Linger(ms(50))),
            (1, ms(200), false, Decision::Send),
            (1, ms(0), true, Decision::Send),
            (10, ms(0), false, Decision::Send),
        ];
        for (available, waited, closing, expected) in cases {
            assert_eq!(decide(available, waited, 10, linger, closing), expected);
        }
    }
}
