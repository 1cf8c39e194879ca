//! Crashes around the two commits, and two collectors on one catalog.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use headwater_collector::RunError;
use headwater_collector::commit::{CommitHook, CommitPoint, HookAction};
use headwater_protocol::{BatchReply, close};
use parking_lot::{Condvar, Mutex};

use crate::hostile::{closed, is_closed_with};
use crate::world::{Agent, EPOCH, World, acked, is_bad, mixed};

/// Kills the collector once, at the given point.
pub(crate) struct KillAt {
    point: CommitPoint,
    done: AtomicBool,
}

impl KillAt {
    pub(crate) fn new(point: CommitPoint) -> Arc<Self> {
        Arc::new(Self {
            point,
            done: AtomicBool::new(false),
        })
    }
}

impl CommitHook for KillAt {
    fn at(&self, point: CommitPoint) -> HookAction {
        if point == self.point && !self.done.swap(true, Ordering::SeqCst) {
            HookAction::Kill
        } else {
            HookAction::Continue
        }
    }
}

async fn replay_after_kill_at(world: &World, point: CommitPoint) {
    let hook = KillAt::new(point);
    let collector = world.collector_with(world.config(), hook).await;
    let agent = world.agent("agent-1", &collector).await;
    // The kill takes the answer with it (EO-2).
    assert_eq!(agent.send_records(1, &mixed(1..=30)).await, None);
    let ended = collector.killed().await;
    assert!(matches!(ended, RunError::Killed(killed) if killed.0 == point));

    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let through = agent.welcome.committed_through;
    assert_eq!(through == 30, point == CommitPoint::BeforeAcks);
    // Other batch boundaries than before.
    assert!(acked(agent.send_records(1, &mixed(1..=12)).await) >= 12);
    assert_eq!(acked(agent.send_records(13, &mixed(13..=45)).await), 45);
    world
        .assert_events("agent-1", (1..=45).filter(|seq| !is_bad(*seq)))
        .await;
    world
        .assert_quarantine("agent-1", (1..=45).filter(|seq| is_bad(*seq)))
        .await;
    collector.stop().await;
}

pub(crate) async fn a_crash_before_the_commits_loses_nothing(world: World) {
    replay_after_kill_at(&world, CommitPoint::Planned).await;
}

pub(crate) async fn a_crash_between_quarantine_and_events_doubles_nothing(world: World) {
    replay_after_kill_at(&world, CommitPoint::BetweenCommits).await;
}

pub(crate) async fn a_crash_before_the_acks_doubles_nothing(world: World) {
    replay_after_kill_at(&world, CommitPoint::BeforeAcks).await;
}

/// Holds its collector at a point until it is let go.
pub(crate) struct Gate {
    point: CommitPoint,
    state: Mutex<State>,
    changed: Condvar,
    reached: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    is_open: bool,
}

impl Gate {
    pub(crate) fn at(point: CommitPoint) -> Arc<Self> {
        Arc::new(Self {
            point,
            state: Mutex::default(),
            changed: Condvar::new(),
            reached: tokio::sync::Notify::new(),
        })
    }

    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    pub(crate) fn open(&self) {
        self.state.lock().is_open = true;
        self.changed.notify_all();
    }
}

impl CommitHook for Gate {
    fn at(&self, point: CommitPoint) -> HookAction {
        if point == self.point {
            let mut state = self.state.lock();
            if !state.is_open {
                self.reached.notify_one();
            }
            while !state.is_open {
                tokio::task::block_in_place(|| self.changed.wait(&mut state));
            }
        }
        HookAction::Continue
    }
}

/// Two collectors get the same batches of one agent; the first has its base loaded when the second
/// commits.
async fn collide_at(world: &World, point: CommitPoint, second_through: u64) {
    let gate = Gate::at(point);
    let first = world.collector_with(world.config(), gate.clone()).await;
    let second = world.collector().await;
    let to_first = world.agent("agent-1", &first).await;
    let to_second = world.agent("agent-1", &second).await;
    let slow = tokio::spawn(async move {
        let reply = to_first.send_records(1, &mixed(1..=30)).await;
        (to_first, reply)
    });
    gate.reached().await;
    let records = mixed(1..=second_through);
    let reply = to_second.send_records(1, &records).await;
    assert_eq!(acked(reply), second_through);
    gate.open();
    let (to_first, reply) = slow.await.unwrap();
    let through = second_through.max(30);
    assert_eq!(acked(reply), through);
    // Both go on from where the table stands.
    let next = through + 1;
    let records = mixed(next..=next + 9);
    let (one, two) = tokio::join!(
        to_first.send_records(next, &records),
        to_second.send_records(next, &records)
    );
    let reached = [one, two]
        .into_iter()
        .filter_map(|reply| match reply.unwrap() {
            BatchReply::Ack {
                committed_through, ..
            } => Some(committed_through),
            // This collector has not seen the other's commit; the agent sends again.
            BatchReply::Retry { .. } => None,
            other => panic!("{other:?}"),
        });
    assert_eq!(reached.max(), Some(next + 9));
    assert_eq!(world.watermark("agent-1", EPOCH).await, next + 9);
    world
        .assert_events("agent-1", (1..=next + 9).filter(|seq| !is_bad(*seq)))
        .await;
    world
        .assert_quarantine("agent-1", (1..=next + 9).filter(|seq| is_bad(*seq)))
        .await;
    first.stop().await;
    second.stop().await;
}

pub(crate) async fn two_collectors_with_the_same_batch_store_it_once(world: World) {
    collide_at(&world, CommitPoint::Planned, 30).await;
}

pub(crate) async fn a_batch_that_another_collector_has_in_part_is_completed(world: World) {
    collide_at(&world, CommitPoint::Planned, 17).await;
}

pub(crate) async fn a_batch_that_another_collector_has_and_more_is_dropped(world: World) {
    collide_at(&world, CommitPoint::BetweenCommits, 40).await;
}

pub(crate) async fn quarantine_of_a_lost_race_is_not_repeated(world: World) {
    collide_at(&world, CommitPoint::BetweenCommits, 17).await;
}

pub(crate) async fn a_gap_that_another_collector_has_filled_is_none(world: World) {
    let first = world.collector().await;
    let second = world.collector().await;
    let to_first = world.agent("agent-1", &first).await;
    let to_second = world.agent("agent-1", &second).await;
    let records = mixed(1..=10);
    assert_eq!(acked(to_second.send_records(1, &records).await), 10);
    let records = mixed(11..=20);
    assert_eq!(acked(to_first.send_records(11, &records).await), 20);
    world
        .assert_events("agent-1", (1..=20).filter(|seq| !is_bad(*seq)))
        .await;
    first.stop().await;
    second.stop().await;
}

pub(crate) async fn many_agents_on_two_collectors_lose_and_double_nothing(world: World) {
    let first = world.collector().await;
    let second = world.collector().await;
    let work = (0..6u64).map(|n| {
        let (world, first, second) = (&world, &first, &second);
        async move {
            let name = format!("agent-{n}");
            let agents = [
                world.agent(&name, first).await,
                world.agent(&name, second).await,
            ];
            let mut next = 1;
            while next <= 60 {
                let agent = &agents[usize::from((next / 10 + n) % 2 == 0)];
                match agent.send_records(next, &mixed(next..=next + 9)).await {
                    Some(BatchReply::Ack {
                        committed_through, ..
                    }) => next = committed_through + 1,
                    // The other collector took what is missing here: go there.
                    Some(BatchReply::Retry { .. }) => {
                        let other = &agents[usize::from((next / 10 + n) % 2 != 0)];
                        let again = next.saturating_sub(10).max(1);
                        let reply = other.send_records(again, &mixed(again..=next + 9)).await;
                        next = acked(reply) + 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    futures::future::join_all(work).await;
    for n in 0..6 {
        let name = format!("agent-{n}");
        world
            .assert_events(&name, (1..=60).filter(|seq| !is_bad(*seq)))
            .await;
        world
            .assert_quarantine(&name, (1..=60).filter(|seq| is_bad(*seq)))
            .await;
    }
    first.stop().await;
    second.stop().await;
}

/// Has ten events acked in two commits, and returns the head after the first five.
async fn ten_acked(world: &World, agent: &Agent) -> String {
    assert_eq!(acked(agent.send(1..=5).await), 5);
    let five = world.events().await;
    assert_eq!(acked(agent.send(6..=10).await), 10);
    five.metadata_location().unwrap().to_owned()
}

/// Asserts that the session was closed because the table was set back.
async fn assert_closed(agent: &Agent) {
    let error = closed(&agent.connection).await;
    assert!(is_closed_with(&error, close::SET_BACK), "{error:?}");
}

/// The catalog of a running collector is set back, by a restore or a fail-over to a replica that was behind.
/// What the collector remembers of the table must not outlive it: the agent would forget what is lost, or
/// send for ever what cannot follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_welcome_says_what_is_left_of_a_catalog_that_was_set_back() {
    let world = World::new();
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let before = ten_acked(&world, &agent).await;
    world.set_back(&before).await;
    // While the session before it is open, so that the collector still knows of it.
    let again = world.agent("agent-1", &collector).await;
    assert_eq!(again.welcome.committed_through, 5);
    assert_eq!(acked(again.send(6..=12).await), 12);
    world.assert_events("agent-1", 1..=12).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_when_a_commit_finds_the_catalog_set_back() {
    let world = World::new();
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let silent = world.agent("agent-2", &collector).await;
    let before = ten_acked(&world, &agent).await;
    assert_eq!(acked(silent.send(1..=3).await), 3);
    world.set_back(&before).await;
    let reply = agent.send(11..=15).await;
    assert!(
        matches!(reply, None | Some(BatchReply::Retry { .. })),
        "{reply:?}"
    );
    for (name, agent, left) in [("agent-1", agent, 5), ("agent-2", silent, 0)] {
        assert_closed(&agent).await;
        let again = world.agent(name, &collector).await;
        assert_eq!(again.welcome.committed_through, left, "{name}");
        assert_eq!(acked(again.send(left + 1..=20).await), 20);
        world.assert_events(name, 1..=20).await;
    }
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_when_a_gap_shows_that_the_catalog_was_set_back() {
    let world = World::new();
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let before = ten_acked(&world, &agent).await;
    world.set_back(&before).await;
    let reply = agent.send(12..=15).await;
    assert!(
        matches!(reply, None | Some(BatchReply::Retry { .. })),
        "{reply:?}"
    );
    assert_closed(&agent).await;
    collector.stop().await;
}
