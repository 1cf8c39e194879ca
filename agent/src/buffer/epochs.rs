//! How positions in the buffer become (epoch, sequence) on the wire.
//!
//! A position never changes; an epoch is a stretch of positions in which sequences count from 1
//! without holes. When positions are lost (a generation that cannot be read) or may mean something
//! else to the collector (a disk restored from a backup), the events after that point get a new
//! epoch. Nothing is copied: only this list changes.

use headwater_protocol::{Epoch, Sequence};
use serde::{Deserialize, Serialize};

use super::chunk::Position;

/// One epoch: positions above `after`, up to `through`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Name of the epoch.
    pub epoch: Epoch,
    /// Position before its first event; sequence = position − `after`.
    pub after: Position,
    /// Its last position; `None` for the epoch that still grows.
    pub through: Option<Position>,
}

impl Stretch {
    /// Returns the sequence of a position.
    pub fn sequence(&self, position: Position) -> Sequence {
        position.saturating_sub(self.after)
    }

    /// Returns the position of a sequence.
    pub fn position(&self, sequence: Sequence) -> Position {
        self.after.saturating_add(sequence)
    }
}

/// The epochs that still hold events, oldest first; the last one grows. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Epochs(Vec<Stretch>);

impl Epochs {
    /// Starts with one epoch of the positions above `after`.
    pub(super) fn starting(epoch: Epoch, after: Position) -> Self {
        Self(vec![Stretch {
            epoch,
            after,
            through: None,
        }])
    }

    /// Says whether a list read from disk can be used.
    pub(super) fn is_sound(&self) -> bool {
        let ordered = self.0.windows(2).all(|pair| {
            pair[0].epoch < pair[1].epoch
                && pair[0]
                    .through
                    .is_some_and(|through| pair[0].after <= through && through <= pair[1].after)
        });
        ordered && self.0.last().is_some_and(|last| last.through.is_none())
    }

    /// Returns the oldest epoch.
    pub(super) fn head(&self) -> Stretch {
        *self.0.first().expect("there is always one epoch")
    }

    /// Returns the epoch that still grows.
    pub(super) fn newest(&self) -> Epoch {
        self.0.last().expect("there is always one epoch").epoch
    }

    /// Counts the positions in (`after`, `last`] that are not lost.
    pub(super) fn count(&self, after: Position, last: Position) -> u64 {
        let within = |stretch: &Stretch| {
            let end = stretch.through.unwrap_or(last).min(last);
            end.saturating_sub(stretch.after.max(after))
        };
        self.0.iter().map(within).sum()
    }

    /// Takes the positions `first..=last` out: what comes before keeps its epoch, what comes after
    /// gets a new one.
    pub(super) fn lose(&mut self, first: Position, last: Position, now_ms: u64) {
        let mut epoch = self.newest();
        let mut out = Vec::with_capacity(self.0.len() + 1);
        for stretch in self.0.drain(..) {
            let end = stretch.through.unwrap_or(Position::MAX);
            if end < first || stretch.after >= last {
                out.push(stretch);
                continue;
            }
            if stretch.after + 1 < first {
                out.push(Stretch {
                    through: Some(first - 1),
                    ..stretch
                });
            }
            if end > last {
                out.push(Stretch {
                    epoch: 0,
                    after: last,
                    through: stretch.through,
                });
            }
        }
        // Epochs stay in order: everything from the first renumbered stretch on gets a new name.
        let mut renumbering = false;
        for stretch in &mut out {
            renumbering |= stretch.epoch == 0;
            if renumbering {
                epoch = (epoch + 1).max(now_ms);
                stretch.epoch = epoch;
            }
        }
        self.0 = out;
    }

    /// Gives everything above `after` one new epoch per stretch, as if nothing of it had been sent.
    pub(super) fn renumber(&mut self, after: Position, now_ms: u64) {
        let mut epoch = self.newest();
        self.0
            .retain(|stretch| stretch.through.is_none_or(|through| through > after));
        for stretch in &mut self.0 {
            epoch = (epoch + 1).max(now_ms);
            stretch.epoch = epoch;
            stretch.after = stretch.after.max(after);
        }
    }

    /// Forgets epochs that are wholly acknowledged. Returns where reading goes on.
    pub(super) fn acknowledge(&mut self, mut acked: Position) -> Position {
        while self.0.len() > 1 && self.head().through.is_some_and(|through| through <= acked) {
            self.0.remove(0);
            acked = acked.max(self.head().after);
        }
        acked.max(self.head().after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_positions_split_an_epoch_and_the_rest_counts_from_one() {
        let mut epochs = Epochs::starting(10, 0);
        epochs.lose(101, 200, 5);
        assert!(epochs.is_sound(), "{epochs:?}");
        assert_eq!(
            epochs.head(),
            Stretch {
                epoch: 10,
                after: 0,
                through: Some(100)
            }
        );
        assert_eq!(epochs.count(50, 250), 50 + 50);
        assert_eq!(epochs.acknowledge(99), 99);
        assert_eq!(epochs.acknowledge(100), 200);
        let head = epochs.head();
        assert_eq!((head.epoch, head.sequence(201)), (11, 1));
    }

    #[test]
    fn losing_the_oldest_positions_leaves_only_the_new_epoch() {
        let mut epochs = Epochs::starting(10, 0);
        epochs.lose(1, 200, 77);
        assert_eq!(
            epochs.head(),
            Stretch {
                epoch: 77,
                after: 200,
                through: None
            }
        );
        epochs.lose(301, 400, 77);
        epochs.lose(250, 260, 77);
        assert!(epochs.is_sound(), "{epochs:?}");
        assert_eq!(epochs.count(0, 500), 49 + 40 + 100);
    }

    #[test]
    fn renumbering_starts_after_what_is_acknowledged() {
        let mut epochs = Epochs::starting(10, 0);
        epochs.lose(101, 200, 0);
        epochs.renumber(40, 0);
        assert!(epochs.is_sound(), "{epochs:?}");
        assert_eq!(
            epochs.head(),
            Stretch {
                epoch: 12,
                after: 40,
                through: Some(100)
            }
        );
        epochs.renumber(150, 1000);
        assert!(epochs.is_sound(), "{epochs:?}");
        assert_eq!(
            epochs.head(),
            Stretch {
                epoch: 1000,
                after: 200,
                through: None
            }
        );
    }
}
