//! What is on its way: every batch that was sent and is not acknowledged. Pure bookkeeping; the
//! session sends and listens.
//!
//! ```text
//!   launch ─▶ Underway ──ack──▶ gone
//!                │  ▲
//!   Retry, no    │  │ due, and a slot is free (the lowest batch needs none)
//!   answer, lost ▼  │
//!              Waiting ◀── Refused: two halves, or the event alone with a substitute
//! ```
//!
//! The collector commits in order, so all others wait for the lowest batch: nothing that is sent
//! again ever stands before it.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::buffer::Position;

/// One sending of a batch. A later one of the same batch has another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Attempt(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting(Instant),
    Underway(Attempt),
}

#[derive(Debug)]
struct Place<P> {
    last: Position,
    state: State,
    /// The event stands alone and something else is sent for it.
    is_substitute: bool,
    /// Attempts in a row that were not answered.
    unanswered: u32,
    /// The batch's place in flight; halves share it.
    permit: P,
}

/// A batch to send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) first: Position,
    pub(super) last: Position,
    pub(super) is_substitute: bool,
    /// No other batch stands before it.
    pub(super) is_lowest: bool,
}

/// What to do with a batch that was refused because of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its halves are sent.
    Halved,
    /// The event that nobody takes is found.
    Alone,
    /// It is found. Whether this collector takes substitutes is not known yet, and is tried with the
    /// lowest batch: its answer waits for nobody.
    Later,
    /// Even the substitute is refused: it is not about the event.
    NotTheEvent,
}

/// All batches without an ack, by their first position. `P` is given back when a batch is gone.
#[derive(Debug)]
pub(super) struct Flight<P> {
    places: BTreeMap<Position, Place<P>>,
    attempts: u64,
    /// A substitute was committed: the collector refuses single events, not everything.
    is_proven: bool,
}

impl<P: Clone> Flight<P> {
    pub(super) fn new() -> Self {
        Self {
            places: BTreeMap::new(),
            attempts: 0,
            is_proven: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn underway(&self) -> usize {
        let underway = |place: &&Place<P>| matches!(place.state, State::Underway(_));
        self.places.values().filter(underway).count()
    }

    /// Notes a new batch that is being sent.
    pub(super) fn launch(&mut self, first: Position, last: Position, permit: P) -> Attempt {
        let attempt = self.next_attempt();
        let place = Place {
            last,
            state: State::Underway(attempt),
            is_substitute: false,
            unanswered: 0,
            permit,
        };
        self.places.insert(first, place);
        attempt
    }

    fn next_attempt(&mut self) -> Attempt {
        self.attempts += 1;
        Attempt(self.attempts)
    }

    /// Returns the lowest batch whose wait is over.
    pub(super) fn due(&self, now: Instant) -> Option<Again> {
        let lowest = *self.places.keys().next()?;
        self.places.iter().find_map(|(&first, place)| {
            let State::Waiting(due) = place.state else {
                return None;
            };
            (due <= now).then_some(Again {
                first,
                last: place.last,
                is_substitute: place.is_substitute,
                is_lowest: first == lowest,
            })
        })
    }

    /// Says whether no batch stands before the one at `first`.
    pub(super) fn is_lowest(&self, first: Position) -> bool {
        self.places.keys().next() == Some(&first)
    }

    /// Returns when the next wait after `now` is over.
    pub(super) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let waits = self.places.values().filter_map(|place| match place.state {
            State::Waiting(due) => Some(due),
            State::Underway(_) => None,
        });
        waits.filter(|due| *due > now).min()
    }

    /// Notes that the batch at `first` is being sent again.
    pub(super) fn relaunch(&mut self, first: Position) -> Attempt {
        let attempt = self.next_attempt();
        if let Some(place) = self.places.get_mut(&first) {
            place.state = State::Underway(attempt);
        }
        attempt
    }

    /// Returns the first and last position of the batch that `attempt` is the current sending of.
    pub(super) fn batch_of(&self, attempt: Attempt) -> Option<(Position, Position)> {
        let found = self
            .places
            .iter()
            .find(|(_, place)| place.state == State::Underway(attempt));
        found.map(|(&first, place)| (first, place.last))
    }

    /// Lets the batch at `first` be sent again from `due` on.
    pub(super) fn wait(&mut self, first: Position, due: Instant) {
        if let Some(place) = self.places.get_mut(&first) {
            place.state = State::Waiting(due);
        }
    }

    /// Lets everything that waits be sent again at once.
    pub(super) fn hasten(&mut self, now: Instant) {
        for place in self.places.values_mut() {
            if let State::Waiting(due) = &mut place.state {
                *due = now.min(*due);
            }
        }
    }

    /// Notes that the batch at `first` was not answered; returns how often in a row.
    pub(super) fn unanswered(&mut self, first: Position) -> u32 {
        self.places.get_mut(&first).map_or(0, |place| {
            place.unanswered += 1;
            place.unanswered
        })
    }

    /// Notes any answer to the batch at `first`.
    pub(super) fn answered(&mut self, first: Position) {
        if let Some(place) = self.places.get_mut(&first) {
            place.unanswered = 0;
        }
    }

    /// Forgets what is committed up to `through`, and returns the sendings that are of no use any
    /// more. A batch that is committed in part goes on with the rest.
    pub(super) fn acknowledge(&mut self, through: Position, now: Instant) -> Vec<Attempt> {
        let rest = self.places.split_off(&(through + 1));
        let known = std::mem::replace(&mut self.places, rest);
        let mut useless = Vec::new();
        for mut place in known.into_values() {
            if let State::Underway(attempt) = place.state {
                useless.push(attempt);
            }
            self.is_proven |= place.is_substitute;
            if place.last > through {
                place.state = State::Waiting(now);
                self.places.insert(through + 1, place);
            }
        }
        useless
    }

    /// Decides on the batch at `first`, which was refused because of its events.
    pub(super) fn refused(&mut self, first: Position, now: Instant) -> Verdict {
        let may_replace = self.is_proven || self.is_lowest(first);
        let Some(place) = self.places.get_mut(&first) else {
            return Verdict::Later;
        };
        place.state = State::Waiting(now);
        if place.is_substitute {
            return Verdict::NotTheEvent;
        }
        if place.last == first {
            return if may_replace {
                Verdict::Alone
            } else {
                Verdict::Later
            };
        }
        let middle = first + (place.last - first) / 2;
        let upper = Place {
            last: place.last,
            state: State::Waiting(now),
            is_substitute: false,
            unanswered: 0,
            permit: place.permit.clone(),
        };
        place.last = middle;
        self.places.insert(middle + 1, upper);
        Verdict::Halved
    }

    /// Lets a substitute be sent for the event at `first`.
    pub(super) fn substitute(&mut self, first: Position) {
        if let Some(place) = self.places.get_mut(&first) {
            place.is_substitute = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Sends batches of `size` up to `end` to a collector that takes no batch with a poisoned event,
    /// commits in order, and takes everything else. Returns substitutes, and sendings.
    fn ship(end: Position, size: u64, poison: &BTreeSet<Position>) -> (BTreeSet<Position>, usize) {
        let now = Instant::now();
        let mut flight = Flight::new();
        let permit = Arc::new(());
        for first in (1..=end).step_by(usize::try_from(size).unwrap()) {
            let last = (first + size - 1).min(end);
            flight.launch(first, last, permit.clone());
            flight.wait(first, now);
        }
        let mut committed = 0;
        let mut replaced = BTreeSet::new();
        let mut sendings = 0;
        while let Some(again) = flight.due(now) {
            assert!(again.is_lowest, "nothing waits behind an idle lower batch");
            assert_eq!(again.first, committed + 1);
            sendings += 1;
            let attempt = flight.relaunch(again.first);
            assert_eq!(flight.batch_of(attempt), Some((again.first, again.last)));
            let bad = poison.range(again.first..=again.last).next().is_some();
            if bad && !again.is_substitute {
                match flight.refused(again.first, now) {
                    Verdict::Halved => {}
                    Verdict::Alone => {
                        replaced.insert(again.first);
                        flight.substitute(again.first);
                    }
                    other => panic!("{other:?}: a substitute is taken, the lowest one first"),
                }
            } else {
                committed = again.last;
                flight.acknowledge(committed, now);
            }
        }
        assert_eq!((committed, flight.len()), (end, 0));
        drop(flight);
        assert_eq!(Arc::strong_count(&permit), 1, "every place is given back");
        (replaced, sendings)
    }

    proptest! {
        #[test]
        fn exactly_the_poison_is_replaced(
            end in 1u64..400, size in 1u64..120, poison in prop::collection::btree_set(1u64..400, 0..12)
        ) {
            let within: BTreeSet<_> = poison.into_iter().filter(|it| *it <= end).collect();
            let (replaced, sendings) = ship(end, size, &within);
            prop_assert_eq!(&replaced, &within);
            let batches = usize::try_from(end.div_ceil(size)).unwrap();
            // Each halving costs two sendings, 2 × log2(120) for one event, and its substitute one.
            prop_assert!(sendings <= batches + within.len() * 15);
        }

        #[test]
        fn acks_forget_what_they_cover_and_keep_the_rest(
            batches in prop::collection::vec(1u64..20, 1..20), through in 0u64..300
        ) {
            let now = Instant::now();
            let mut flight = Flight::new();
            let mut first = 1;
            for count in &batches {
                flight.launch(first, first + count - 1, ());
                first += count;
            }
            let end = first - 1;
            let useless = flight.acknowledge(through, now);
            let touched = flight.due(now).map(|again| again.first);
            prop_assert_eq!(useless.len() + flight.underway(), batches.len());
            if through >= end {
                prop_assert_eq!(flight.len(), 0);
            } else if let Some(touched) = touched {
                prop_assert_eq!(touched, through + 1);
            }
        }
    }

    #[test]
    fn a_refused_substitute_is_not_about_the_event() {
        let now = Instant::now();
        let mut flight = Flight::new();
        flight.launch(7, 7, ());
        assert_eq!(flight.refused(7, now), Verdict::Alone);
        flight.substitute(7);
        assert!(flight.due(now).is_some_and(|again| again.is_substitute));
        flight.relaunch(7);
        assert_eq!(flight.refused(7, now), Verdict::NotTheEvent);
    }

    #[test]
    fn one_substitute_proves_that_others_may_follow() {
        let now = Instant::now();
        let mut flight = Flight::new();
        for first in [7, 8, 9, 10] {
            flight.launch(first, first, ());
        }
        assert_eq!(flight.refused(8, now), Verdict::Later);
        assert_eq!(flight.refused(7, now), Verdict::Alone);
        flight.substitute(7);
        assert_eq!(flight.refused(8, now), Verdict::Later);
        flight.acknowledge(7, now);
        assert_eq!(flight.refused(10, now), Verdict::Alone);
    }

    #[test]
    fn waits_end_when_they_are_due_lowest_first() {
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        let mut flight = Flight::new();
        for first in [1, 11, 21] {
            flight.launch(first, first + 9, ());
        }
        flight.wait(21, now);
        flight.wait(11, soon);
        assert_eq!(flight.due(now).map(|again| again.first), Some(21));
        assert!(!flight.due(now).unwrap().is_lowest);
        assert_eq!(flight.wakes_at(now), Some(soon));
        assert_eq!(flight.due(soon).map(|again| again.first), Some(11));
        flight.relaunch(21);
        assert_eq!(flight.due(now), None);
        flight.hasten(now);
        assert_eq!(flight.due(now).map(|again| again.first), Some(11));
        flight.relaunch(11);
        assert_eq!(flight.due(soon), None, "what is underway stays so");
        assert_eq!(flight.unanswered(11), 1);
        assert_eq!(flight.unanswered(11), 2);
        flight.answered(11);
        assert_eq!(flight.unanswered(11), 1);
    }
}
