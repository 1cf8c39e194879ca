//! The ledger: how far each epoch of each agent has come, and whose turn it is to be staged.
//!
//! Place on the path: batch streams ask it for their turn (early ones wait in it, with only their
//! header read), the committer raises it after each commit, which wakes every stream that waits for
//! its ack. Promise: batches of one epoch are staged one after the other in sequence order, whatever
//! order their streams arrive in. It is a cache of the table's watermark and may be lost at any time;
//! where the catalog was set back, it follows the table.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use headwater_protocol::{AgentId, Epoch, Sequence};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admission::{Admission, Position, Span, decide};

/// One epoch of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) agent: AgentId,
    pub(crate) epoch: Epoch,
}

impl Key {
    /// Names an agent's epoch, if the tables can hold the epoch.
    pub(crate) fn new(agent: &AgentId, epoch: Epoch) -> Result<Self, String> {
        if i64::try_from(epoch).is_err() {
            return Err(format!("epoch `{epoch}` does not fit the tables"));
        }
        Ok(Self {
            agent: agent.clone(),
            epoch,
        })
    }
}

/// A moment between questions to the table and its answers. Who asks after an answer has come gets one
/// that is as new or newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

#[derive(Debug, Clone, Copy, Default)]
struct State {
    position: Position,
    /// Snapshot of `raw.events` in which `position.committed` was read.
    snapshot_id: i64,
    /// When the last answer came that `position.committed` rests on.
    learnt: Moment,
    /// When an answer came that said less than one before it.
    set_back: Moment,
    /// A batch has the turn.
    busy: bool,
    /// The highest sequence that was offered, taken or not.
    offered: Sequence,
    /// Since when something is offered and not committed and the watermark has not moved.
    still_since: Option<Instant>,
    /// How often staged batches were given up; those who wait for one of them must retry.
    resets: u64,
}

/// What the table says about an epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Committed {
    pub(crate) through: Sequence,
    pub(crate) snapshot_id: i64,
}

/// How far an agent is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lag {
    pub(crate) agent: AgentId,
    /// Events that were offered and are not committed.
    pub(crate) events: u64,
    /// How long its watermark has not moved although there are some.
    pub(crate) still: Duration,
}

/// All epochs that a session or a staged batch is interested in.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: Mutex<BTreeMap<Key, Arc<watch::Sender<State>>>>,
    /// The last [`Moment`].
    moments: AtomicU64,
}

impl Ledger {
    /// Returns this moment, which is after all others: whoever reads the table takes it before.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.moments.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Returns the entry of `key`, moved to what the table says, which was `asked` then. `None` when another
    /// answer came meanwhile and says something else: which of them is true is seen by asking again.
    pub(crate) fn open(&self, key: &Key, table: Committed, asked: Moment) -> Option<Entry> {
        let opened = self.moment();
        let state = Arc::clone(self.entries.lock().entry(key.clone()).or_default());
        match learn(&state, table, asked, opened, Raise::Newest) {
            Learnt::Taken => {}
            Learnt::SetBack => report(1, key, table.through),
            Learnt::Overtaken => return None,
        }
        Some(Entry { state, opened })
    }

    /// Moves every known epoch to `watermark(key)` of a head that was read, for which somebody `asked`
    /// then, and forgets the epochs that nobody uses.
    pub(crate) fn learn_all(
        &self,
        asked: Moment,
        snapshot_id: i64,
        watermark: impl Fn(&Key) -> Sequence,
    ) {
        let now = self.moment();
        let mut set_back: Option<(usize, Key, Sequence)> = None;
        self.entries.lock().retain(|key, state| {
            let through = watermark(key);
            let table = Committed {
                through,
                snapshot_id,
            };
            if learn(state, table, asked, now, Raise::Any) == Learnt::SetBack {
                let (epochs, ..) = set_back.get_or_insert_with(|| (0, key.clone(), through));
                *epochs += 1;
            }
            is_in_use(state)
        });
        if let Some((epochs, key, through)) = set_back {
            report(epochs, &key, through);
        }
    }

    /// Returns the agents that are behind, those first whose watermark has stood still for longest; at most
    /// `most`. Forgets the epochs that nobody uses: what a gone agent has offered and not brought is another
    /// collector's by now, and here no commit may come that would say so.
    pub(crate) fn furthest_behind(&self, most: usize) -> Vec<Lag> {
        let now = Instant::now();
        let mut lags: Vec<Lag> = Vec::new();
        let mut entries = self.entries.lock();
        entries.retain(|_, state| is_in_use(state));
        for (key, state) in &*entries {
            let state = state.borrow();
            let Some(since) = state.still_since else {
                continue;
            };
            let lag = Lag {
                agent: key.agent.clone(),
                events: state.offered.saturating_sub(state.position.committed),
                still: now.saturating_duration_since(since),
            };
            // Epochs of one agent stand together.
            match lags.last_mut().filter(|last| last.agent == lag.agent) {
                Some(last) => {
                    last.events += lag.events;
                    last.still = last.still.max(lag.still);
                }
                None => lags.push(lag),
            }
        }
        drop(entries);
        lags.sort_by_key(|lag| Reverse((lag.still, lag.events)));
        lags.truncate(most);
        lags
    }

    /// Gives up what is staged of `key`: its senders are told to retry.
    pub(crate) fn reset(&self, key: &Key) {
        if let Some(state) = self.entries.lock().get(key) {
            state.send_modify(|state| {
                state.position.staged = state.position.committed;
                state.resets += 1;
            });
        }
    }
}

/// Which answers raise a watermark that was learnt while they were on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Raise {
    /// All but those from before the catalog was set back: a commit has to be learnt.
    Any,
    /// None: whoever only looks can look again.
    Newest,
}

/// What became of an answer of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Learnt {
    Taken,
    /// Taken, and it is less than the table had.
    SetBack,
    /// Not taken: another one may be newer.
    Overtaken,
}

/// Takes up what the table says, which was `asked` then and is known `now`. Nothing moves back unless the
/// table has less than an answer said that had come before this was asked: then its catalog was set back,
/// what is staged is given up, and the answer is true.
fn learn(
    state: &watch::Sender<State>,
    table: Committed,
    asked: Moment,
    now: Moment,
    raise: Raise,
) -> Learnt {
    let mut learnt = Learnt::Overtaken;
    state.send_if_modified(|state| {
        let committed = state.position.committed;
        let is_less = table.through < committed;
        let is_doubtful = is_less || (table.through > committed && raise == Raise::Newest);
        let newer = if is_doubtful {
            state.learnt
        } else {
            state.set_back
        };
        if asked <= newer {
            return false;
        }
        let position = if is_less {
            learnt = Learnt::SetBack;
            state.set_back = now;
            state.resets += 1;
            Position::default().raised(table.through)
        } else {
            learnt = Learnt::Taken;
            state.position.raised(table.through)
        };
        state.learnt = state.learnt.max(now);
        let changed = position != state.position || state.snapshot_id == 0;
        if changed {
            state.position = position;
            state.snapshot_id = table.snapshot_id;
            let is_behind = state.offered > position.committed;
            state.still_since = is_behind.then(Instant::now);
        }
        changed
    });
    learnt
}

/// Tells a person that the table has less than it had, of so many epochs; `key` is one of them.
fn report(epochs: usize, key: &Key, committed_through: Sequence) {
    tracing::error!(
        epochs,
        agent_id = %key.agent,
        epoch = key.epoch,
        committed_through,
        "the table has less than it had: its catalog was set back; the agents are told"
    );
}

/// Says whether a session has the epoch open or something of it is staged.
fn is_in_use(state: &Arc<watch::Sender<State>>) -> bool {
    let position = state.borrow().position;
    // One: the map's.
    Arc::strong_count(state) > 1 || position.staged > position.committed
}

/// One epoch's place in the ledger.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    state: Arc<watch::Sender<State>>,
    opened: Moment,
}

/// What became of a wish to be staged.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// It is this batch's turn.
    Turn(Turn),
    /// Staged or committed already.
    Duplicate,
    /// The batch before it did not come in time.
    Gap {
        /// The sequence that was missing.
        expected: Sequence,
    },
}

/// How the wait for a commit ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Committed(Committed),
    GivenUp,
}

impl Entry {
    /// Returns the last sequence that is staged or committed.
    pub(crate) fn staged(&self) -> Sequence {
        self.state.borrow().position.staged
    }

    /// Notes that everything up to `last` was offered.
    pub(crate) fn offer(&self, last: Sequence) {
        self.state.send_if_modified(|state| {
            state.offered = state.offered.max(last);
            if state.offered > state.position.committed {
                state.still_since.get_or_insert_with(Instant::now);
            }
            // Nobody waits for that.
            false
        });
    }

    /// Returns whether all of `span` is staged or committed now.
    pub(crate) fn is_known(&self, span: Span) -> bool {
        decide(self.state.borrow().position, span) == Admission::Duplicate
    }

    /// Returns how often staged batches were given up; see [`Entry::until_committed`].
    pub(crate) fn resets(&self) -> u64 {
        self.state.borrow().resets
    }

    /// Waits until the table turns out to have been set back since the entry was opened. Cancellation
    /// safe.
    pub(crate) async fn until_set_back(&self) {
        let mut changes = self.state.subscribe();
        let set_back = changes.wait_for(|state| state.set_back > self.opened);
        let is_gone = set_back.await.is_err();
        debug_assert!(!is_gone, "the sender lives in `self`");
    }

    /// Waits until it is the turn of `span`. An early batch waits at most `park` without any
    /// progress before it; one whose predecessor is being read waits as long as that takes.
    /// Cancellation safe.
    pub(crate) async fn turn(&self, span: Span, park: Duration) -> Admitted {
        let mut changes = self.state.subscribe();
        loop {
            changes.mark_unchanged();
            let (admission, busy) = self.try_turn(span);
            match admission {
                Admission::Duplicate => return Admitted::Duplicate,
                Admission::New | Admission::Overlap { .. } if !busy => {
                    return Admitted::Turn(Turn {
                        entry: self.clone(),
                    });
                }
                Admission::Gap { expected } if !busy => {
                    if tokio::time::timeout(park, changes.changed()).await.is_err() {
                        return Admitted::Gap { expected };
                    }
                }
                // The sender lives in `self`, so waiting cannot fail.
                _ => changes.changed().await.unwrap_or(()),
            }
        }
    }

    /// Takes the turn when `span` is next and nobody has it; returns the decision and whether
    /// somebody else has the turn.
    fn try_turn(&self, span: Span) -> (Admission, bool) {
        let mut seen = (Admission::Duplicate, false);
        self.state.send_if_modified(|state| {
            let admission = decide(state.position, span);
            seen = (admission, state.busy);
            if matches!(admission, Admission::New | Admission::Overlap { .. }) {
                // Not a change that anybody waits for: no wake-up.
                state.busy = true;
            }
            false
        });
        seen
    }

    /// Waits until `through` is committed, or until staged batches are given up after `resets` was
    /// read. Cancellation safe.
    pub(crate) async fn until_committed(&self, through: Sequence, resets: u64) -> Outcome {
        let mut changes = self.state.subscribe();
        let state = changes
            .wait_for(|state| state.position.committed >= through || state.resets != resets)
            .await
            .map(|state| *state);
        match state {
            Ok(state) if state.position.committed >= through => Outcome::Committed(Committed {
                through: state.position.committed,
                snapshot_id: state.snapshot_id,
            }),
            _ => Outcome::GivenUp,
        }
    }
}

/// The right to stage the next batch of an epoch; dropping it passes the right on.
#[derive(Debug)]
pub(crate) struct Turn {
    entry: Entry,
}

impl Turn {
    /// Returns the first sequence that is not staged yet.
    pub(crate) fn next_sequence(&self) -> Sequence {
        self.entry.state.borrow().position.staged.saturating_add(1)
    }

    /// Moves the staged position to the end of `span` if it still continues the position, calling
    /// `enqueue` under the same lock, so that the committer's queue has the order of the sequences.
    /// Returns whether the batch is staged or committed now (another collector may have come first).
    pub(crate) fn stage(self, span: Span, enqueue: impl FnOnce()) -> bool {
        let mut staged = true;
        self.entry.state.send_if_modified(|state| {
            match decide(state.position, span) {
                Admission::New | Admission::Overlap { .. } => {
                    enqueue();
                    state.position.staged = span.last;
                }
                Admission::Duplicate => {}
                Admission::Gap { .. } => staged = false,
            }
            false
        });
        staged
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.entry.state.send_modify(|state| state.busy = false);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn entry(ledger: &Ledger, through: Sequence) -> (Key, Entry) {
        let key = Key {
            agent: "a".parse().unwrap(),
            epoch: 1,
        };
        let entry = ledger.open(&key, table(through), ledger.moment());
        (key, entry.unwrap())
    }

    fn table(through: Sequence) -> Committed {
        Committed {
            through,
            snapshot_id: 7,
        }
    }

    fn committed(entry: &Entry) -> Sequence {
        entry.state.borrow().position.committed
    }

    fn span(first: u64, last: u64) -> Span {
        Span { first, last }
    }

    #[tokio::test]
    async fn early_batches_get_their_turn_in_sequence_order() {
        let (_, entry) = entry(&Ledger::default(), 0);
        let early = tokio::spawn({
            let entry = entry.clone();
            async move { entry.turn(span(3, 4), Duration::from_secs(60)).await }
        });
        let Admitted::Turn(turn) = entry.turn(span(1, 2), Duration::ZERO).await else {
            panic!("the first batch is next");
        };
        assert!(turn.stage(span(1, 2), || {}));
        let Admitted::Turn(turn) = early.await.unwrap() else {
            panic!("its turn has come");
        };
        assert_eq!(turn.next_sequence(), 3);
    }

    #[tokio::test]
    async fn a_dropped_turn_passes_on_without_moving() {
        let (_, entry) = entry(&Ledger::default(), 0);
        let first = entry.turn(span(1, 2), Duration::ZERO).await;
        drop(first);
        assert!(matches!(
            entry.turn(span(1, 2), Duration::ZERO).await,
            Admitted::Turn(_)
        ));
    }

    #[tokio::test]
    async fn a_gap_ends_after_the_park_time() {
        let (_, entry) = entry(&Ledger::default(), 4);
        assert!(matches!(
            entry.turn(span(9, 9), Duration::ZERO).await,
            Admitted::Gap { expected: 5 }
        ));
    }

    #[tokio::test]
    async fn a_reset_tells_waiters_to_retry() {
        let ledger = Ledger::default();
        let (key, entry) = entry(&ledger, 0);
        let resets = entry.resets();
        let Admitted::Turn(turn) = entry.turn(span(1, 2), Duration::ZERO).await else {
            panic!("the first batch is next");
        };
        assert!(turn.stage(span(1, 2), || {}));
        ledger.reset(&key);
        assert!(matches!(
            entry.until_committed(2, resets).await,
            Outcome::GivenUp
        ));
    }

    #[tokio::test]
    async fn a_table_that_was_set_back_is_followed() {
        let ledger = Ledger::default();
        let (key, entry) = entry(&ledger, 10);
        let resets = entry.resets();
        let Admitted::Turn(turn) = entry.turn(span(11, 12), Duration::ZERO).await else {
            panic!("it is next");
        };
        assert!(turn.stage(span(11, 12), || {}));
        assert!(entry.until_set_back().now_or_never().is_none());
        let again = ledger.open(&key, table(4), ledger.moment()).unwrap();
        assert_eq!((committed(&again), again.staged()), (4, 4));
        let given_up = entry.until_committed(12, resets).now_or_never();
        assert!(matches!(given_up, Some(Outcome::GivenUp)));
        assert!(entry.until_set_back().now_or_never().is_some());
        // Whoever comes now is told at once.
        assert!(again.until_set_back().now_or_never().is_none());
        ledger.learn_all(ledger.moment(), 8, |_| 3);
        assert_eq!(committed(&entry), 3);
        assert!(again.until_set_back().now_or_never().is_some());
    }

    #[tokio::test]
    async fn an_answer_that_is_older_than_another_moves_nothing_and_greets_nobody() {
        let ledger = Ledger::default();
        let (key, entry) = entry(&ledger, 4);
        let open = |through, asked| ledger.open(&key, table(through), asked);
        let early = ledger.moment();
        assert!(open(10, ledger.moment()).is_some());
        assert!(open(4, early).is_none());
        ledger.learn_all(early, 8, |_| 4);
        assert_eq!(committed(&entry), 10);
        let early = ledger.moment();
        assert!(open(5, ledger.moment()).is_some());
        assert!(open(10, early).is_none());
        ledger.learn_all(early, 8, |_| 10);
        assert_eq!(committed(&entry), 5);
        ledger.learn_all(ledger.moment(), 8, |_| 11);
        assert_eq!(committed(&entry), 11);
    }

    #[tokio::test]
    async fn only_a_commit_raises_what_was_learnt_while_it_was_on_its_way() {
        let ledger = Ledger::default();
        let early = ledger.moment();
        let (key, entry) = entry(&ledger, 4);
        // From before the catalog was set back, for all that the ledger knows.
        assert!(ledger.open(&key, table(10), early).is_none());
        assert!(ledger.open(&key, table(4), early).is_some());
        assert_eq!(committed(&entry), 4);
        ledger.learn_all(early, 8, |_| 10);
        assert_eq!(committed(&entry), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn agents_are_behind_until_what_they_offered_is_committed() {
        let ledger = Ledger::default();
        let entry = |agent: &str, epoch, through| {
            let agent = agent.parse().unwrap();
            let key = Key { agent, epoch };
            let entry = ledger.open(&key, table(through), ledger.moment());
            entry.unwrap()
        };
        let (one, older, other) = (entry("a", 2, 10), entry("a", 1, 10), entry("b", 1, 10));
        assert!(ledger.furthest_behind(9).is_empty());
        let second = Duration::from_secs(1);
        one.offer(15);
        tokio::time::advance(second).await;
        for offered in [&older, &other] {
            offered.offer(12);
        }
        // What is committed already is no lag.
        entry("c", 1, 10).offer(10);
        tokio::time::advance(second).await;
        let lag = |agent: &str, events, seconds| Lag {
            agent: agent.parse().unwrap(),
            events,
            still: second * seconds,
        };
        assert_eq!(ledger.furthest_behind(9), [lag("a", 7, 2), lag("b", 2, 1)]);
        assert_eq!(ledger.furthest_behind(1).len(), 1);
        entry("a", 2, 14);
        entry("a", 1, 12);
        assert_eq!(ledger.furthest_behind(9), [lag("b", 2, 1), lag("a", 1, 0)]);
        entry("a", 2, 15);
        assert_eq!(ledger.furthest_behind(9), [lag("b", 2, 1)]);
    }

    #[tokio::test]
    async fn what_a_gone_agent_has_offered_is_no_lag() {
        let ledger = Ledger::default();
        let (_, entry) = entry(&ledger, 0);
        entry.offer(5);
        assert_eq!(ledger.furthest_behind(9).len(), 1);
        drop(entry);
        assert!(ledger.furthest_behind(9).is_empty());
        assert!(ledger.entries.lock().is_empty());
    }

    #[tokio::test]
    async fn unused_epochs_are_forgotten_and_staged_ones_kept() {
        let ledger = Ledger::default();
        let (_, first) = entry(&ledger, 0);
        let Admitted::Turn(turn) = first.turn(span(1, 2), Duration::ZERO).await else {
            panic!("the first batch is next");
        };
        assert!(turn.stage(span(1, 2), || {}));
        drop(first);
        ledger.learn_all(ledger.moment(), 8, |_| 0);
        assert_eq!(ledger.entries.lock().len(), 1);
        ledger.learn_all(ledger.moment(), 9, |_| 2);
        assert_eq!(ledger.entries.lock().len(), 0);
    }
}
