//! Back-pressure and the graceful stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use headwater_collector::RunError;
use headwater_collector::commit::{CommitHook, CommitPoint, HookAction, NoHook};
use headwater_protocol::{BatchReply, Record, batch};

use crate::faults::Gate;
use crate::world::{Agent, World, acked, good, hello, large, read_reply};

pub(crate) async fn a_full_budget_slows_the_agent_and_loses_nothing(world: World) {
    let mut config = world.config();
    config.quic.stream_window_bytes = 16 * 1024;
    config.limits.batch_bytes_max = 100 * 1024;
    config.limits.staged_bytes_max = 200 * 1024;
    config.limits.park_ms = 20_000;
    let gate = Gate::at(CommitPoint::Planned);
    let collector = world.collector_with(config, gate.clone()).await;
    let agent = world.agent("agent-1", &collector).await;
    let written = AtomicUsize::new(0);
    let sends = (0..8u64).map(|n| {
        let (agent, written) = (&agent, &written);
        async move {
            let body = large(n + 1, 80_000).encode();
            let header = agent.header(n + 1, 1, body.len());
            let compressed = batch::compress(&body).unwrap();
            let mut answer = agent.post(&header, &compressed).await.unwrap();
            written.fetch_add(1, Ordering::SeqCst);
            read_reply::<BatchReply>(&mut answer).await
        }
    });
    let release = async {
        gate.reached().await;
        // Two bodies fit into the budget; the others stay with the agent, because each is larger
        // than its stream's window.
        while written.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        agent_is_held(&written, 2).await;
        gate.open();
    };
    let (replies, ()) = tokio::join!(futures::future::join_all(sends), release);
    for (n, reply) in replies.into_iter().enumerate() {
        assert!(acked(reply) > n as u64);
    }
    world.assert_events("agent-1", 1..=8).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_agent_that_floods_leaves_room_for_the_others() {
    others_have_room_beside(&["noisy"], 64).await;
}

/// Its shares are those of its agents, and they do not fill the room.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_company_that_floods_through_four_agents_leaves_room_for_the_others() {
    let agents = ["noisy-1", "noisy-2", "noisy-3", "noisy-4"];
    others_have_room_beside(&agents, 16).await;
}

/// Lets each of these agents send so many events at once while a commit is held, all of one company; what
/// another agent sends then, of another company, is in the commit after that.
async fn others_have_room_beside(names: &[&str], events: u64) {
    let world = World::new();
    let mut config = world.config();
    // Bodies are larger than this, so that they are written when they are read.
    config.quic.stream_window_bytes = 4 * 1024;
    config.limits.batch_bytes_max = 40 * 1024;
    config.limits.staged_bytes_max = 400 * 1024;
    config.limits.agent_staged_bytes_max = 90 * 1024;
    config.limits.park_ms = 2_000;
    let gate = Gate::at(CommitPoint::Planned);
    let collector = world.collector_with(config, gate.clone()).await;
    let mut noisy = Vec::new();
    for name in names {
        noisy.push(world.agent(name, &collector).await);
    }
    let quiet = world.agent("quiet", &collector).await;
    let written = AtomicUsize::new(0);
    let floods: Vec<_> = noisy
        .iter()
        .map(|agent| flood(agent, events, &written))
        .collect();
    // On the heap: it is large, and is moved.
    let other = Box::pin(async {
        gate.reached().await;
        // The share of each is four bodies; there is room for five times as many.
        let shares = 4 * names.len();
        while written.load(Ordering::SeqCst) < shares {
            tokio::task::yield_now().await;
        }
        agent_is_held(&written, shares).await;
        let table = world.events().await;
        let held_on = table.metadata().last_sequence_number();
        let staged = async {
            quiet.until_staged(2).await;
            gate.open();
        };
        let of_another = [Record {
            company_id: "quiet".to_owned(),
            ..good(1)
        }];
        let (reply, ()) = tokio::join!(quiet.send_records(1, &of_another), staged);
        let Some(BatchReply::Ack { snapshot_id, .. }) = reply else {
            panic!("no ack but {reply:?}");
        };
        let table = world.events().await;
        let snapshot = table.metadata().snapshot_by_id(snapshot_id).unwrap();
        // The one after that which was held, whatever else waits.
        assert_eq!(snapshot.sequence_number(), held_on + 2);
    });
    tokio::join!(futures::future::join_all(floods), other);
    for name in names {
        world.assert_events(name, 1..=events).await;
    }
    world.assert_events("quiet", 1..=1).await;
    collector.stop().await;
}

/// Sends so many large events, each in a batch of its own and all at once, until they are acked. Counts the
/// bodies that are written.
fn flood<'a>(
    agent: &'a Agent,
    events: u64,
    written: &'a AtomicUsize,
) -> impl Future<Output = ()> + 'a {
    // Made before the first is sent: from then on, time counts.
    let bodies: Vec<Vec<u8>> = (1..=events).map(|n| large(n, 20_000).encode()).collect();
    let sends = (1..).zip(bodies).map(move |(n, body)| async move {
        let header = agent.header(n, 1, body.len());
        let compressed = batch::compress(&body).unwrap();
        loop {
            let mut answer = agent.post(&header, &compressed).await.unwrap();
            written.fetch_add(1, Ordering::SeqCst);
            match read_reply::<BatchReply>(&mut answer).await {
                // It has waited too long for the one before it, as it should while nothing is committed.
                Some(BatchReply::Retry { .. }) => {}
                reply => return reply,
            }
        }
    });
    let sent = futures::future::join_all(sends);
    async move { assert!(sent.await.into_iter().all(|reply| acked(reply) > 0)) }
}

/// Gives the network every chance to move more than it may.
async fn agent_is_held(written: &AtomicUsize, at: usize) {
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
        assert_eq!(written.load(Ordering::SeqCst), at);
    }
}

pub(crate) async fn a_graceful_stop_commits_and_acks_what_is_staged(world: World) {
    let mut config = world.config();
    config.commit.interval_ms = 600_000;
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &collector).await;
    // The first commit does not wait for an interval, the second does.
    assert_eq!(acked(agent.send(1..=10).await), 10);
    let stop = async {
        agent.until_staged(21).await;
        collector.stop.cancel();
    };
    let (reply, ()) = tokio::join!(agent.send(11..=20), stop);
    assert_eq!(acked(reply), 20);
    collector.running.finished().await.unwrap();
    world.assert_events("agent-1", 1..=20).await;
    // Nobody listens any more.
    assert!(agent.send(21..=21).await.is_none());
}

/// Panics at a commit, once it is told to.
#[derive(Default)]
struct Fatal(AtomicBool);

impl CommitHook for Fatal {
    fn at(&self, _: CommitPoint) -> HookAction {
        assert!(!self.0.load(Ordering::SeqCst), "as the test wants it");
        HookAction::Continue
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_whose_last_commit_dies_is_a_failure() {
    let world = World::new();
    let mut config = world.config();
    config.commit.interval_ms = 600_000;
    let hook = Arc::new(Fatal::default());
    let collector = world.collector_with(config, hook.clone()).await;
    let agent = world.agent("agent-1", &collector).await;
    // The first commit does not wait for an interval, the second does.
    assert_eq!(acked(agent.send(1..=10).await), 10);
    hook.0.store(true, Ordering::SeqCst);
    let stop = async {
        agent.until_staged(21).await;
        collector.stop.cancel();
    };
    let (reply, ()) = tokio::join!(agent.send(11..=20), stop);
    assert!(
        matches!(reply, None | Some(BatchReply::Retry { .. })),
        "{reply:?}"
    );
    let error = collector.killed().await;
    let is_the_committer = matches!(&error, RunError::Died { task, .. } if *task == "committer");
    assert!(is_the_committer, "{error:?}");
    world.assert_events("agent-1", 1..=10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_replaces_the_old_one() {
    let world = World::new();
    let collector = world.collector().await;
    let old = world.agent("agent-1", &collector).await;
    let new = world.agent("agent-1", &collector).await;
    old.connection.closed().await;
    assert_eq!(acked(new.send(1..=3).await), 3);
    let other = world
        .connect("agent-2", hello("agent-2", 1), collector.address)
        .await;
    assert!(other.is_ok());
    assert_eq!(acked(new.send(4..=4).await), 4);
    collector.stop().await;
}
