//! The collector as an agent and the tables see it. Each name is a promise; `EO-…` are the
//! invariants of exactly-once.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests are tests, which the lint does not see"
)]

mod arbitrary;
mod certificates;
mod faults;
mod flow;
mod hostile;
mod operation;
mod plans;
mod postgres;
#[path = "../../benches/common/program.rs"]
#[allow(dead_code, reason = "the benches use all of it")]
mod program;
mod quarantine;
#[path = "../../../tables/tests/tables/relay.rs"]
#[allow(dead_code, reason = "the tests of the tables use all of it")]
mod relay;
mod rest;
#[path = "../../../tables/tests/tables/rest_server.rs"]
mod rest_server;
mod s3;
#[path = "../../../tables/tests/s3/server.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod s3_server;
mod secrets;
mod suite;
mod world;

use headwater_protocol::{BatchReply, batch};
use world::{EPOCH, World, acked, good, hello, is_bad, mixed};

pub(crate) async fn ack_is_sent_only_after_commit(world: World) {
    // EO-2
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(agent.welcome.committed_through, 0);
    for batch in 0..3u64 {
        let (first, last) = (batch * 10 + 1, batch * 10 + 10);
        let Some(BatchReply::Ack {
            committed_through,
            snapshot_id,
        }) = agent.send(first..=last).await
        else {
            panic!("no ack");
        };
        assert_eq!(committed_through, last);
        assert_eq!(world.watermark("agent-1", EPOCH).await, last);
        world.assert_events("agent-1", 1..=last).await;
        let table = world.events().await;
        assert_eq!(table.metadata().current_snapshot_id(), Some(snapshot_id));
    }
    collector.stop().await;
}

pub(crate) async fn replays_overlaps_and_reconnects_store_every_event_once(world: World) {
    // EO-1
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=10).await), 10);
    assert_eq!(acked(agent.send(1..=10).await), 10);
    assert_eq!(acked(agent.send(4..=15).await), 15);
    let again = world.agent("agent-1", &collector).await;
    assert_eq!(again.welcome.committed_through, 15);
    assert_eq!(acked(again.send(15..=15).await), 15);
    assert_eq!(acked(again.send(1..=30).await), 30);
    collector.stop().await;
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(agent.welcome.committed_through, 30);
    assert_eq!(acked(agent.send(25..=40).await), 40);
    world.assert_events("agent-1", 1..=40).await;
    collector.stop().await;
}

pub(crate) async fn streams_that_arrive_out_of_order_are_stored_in_order(world: World) {
    let mut config = world.config();
    config.limits.park_ms = 20_000;
    let collector = world
        .collector_with(
            config,
            std::sync::Arc::new(headwater_collector::commit::NoHook),
        )
        .await;
    let agent = world.agent("agent-1", &collector).await;
    for round in 0..5u64 {
        let firsts = [6u64, 3, 0, 7, 1, 5, 2, 4].map(|n| round * 40 + n * 5 + 1);
        let sends = firsts.map(|first| agent.send(first..=first + 4));
        for (first, reply) in firsts.iter().zip(futures::future::join_all(sends).await) {
            assert!(acked(reply) >= first + 4);
        }
    }
    world.assert_events("agent-1", 1..=200).await;
    collector.stop().await;
}

pub(crate) async fn a_lost_ack_is_given_again(world: World) {
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let records = mixed(1..=20);
    let body: Vec<u8> = records.iter().flat_map(|record| record.encode()).collect();
    let header = agent.header(1, 20, body.len());
    let compressed = batch::compress(&body).unwrap();
    let answer = agent.post(&header, &compressed).await.unwrap();
    agent.until_staged(21).await;
    drop(answer);
    drop(agent);
    let agent = world.agent("agent-1", &collector).await;
    let again = agent.send_raw(&header, &compressed);
    let twice = agent.send_raw(&header, &compressed);
    let (again, twice) = tokio::join!(again, twice);
    assert_eq!((acked(again), acked(twice)), (20, 20));
    world
        .assert_events("agent-1", (1..=20).filter(|seq| !is_bad(*seq)))
        .await;
    world
        .assert_quarantine("agent-1", (1..=20).filter(|seq| is_bad(*seq)))
        .await;
    collector.stop().await;
}

pub(crate) async fn a_gap_is_answered_with_retry(world: World) {
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let Some(BatchReply::Retry { after_ms, reason }) = agent.send(5..=9).await else {
        panic!("a gap must be retried");
    };
    assert_eq!(after_ms, 1);
    assert!(reason.contains("sequence `1` comes first"), "{reason}");
    assert_eq!(acked(agent.send(1..=4).await), 4);
    assert_eq!(acked(agent.send(5..=9).await), 9);
    world.assert_events("agent-1", 1..=9).await;
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_not_in_its_certificate_is_refused() {
    let world = World::new();
    let collector = world.collector().await;
    let refused = world
        .connect("agent-2", hello("agent-1", EPOCH), collector.address)
        .await;
    let reason = refused.err().unwrap();
    assert!(
        reason.contains("agent-1") && reason.contains("agent-2"),
        "{reason}"
    );
    collector.stop().await;
}

pub(crate) async fn an_agent_whose_history_is_not_in_the_table_learns_the_watermark(world: World) {
    let collector = world.collector().await;
    let mut forgetful = hello("agent-1", EPOCH);
    forgetful.lowest_unacknowledged = 100;
    let agent = world
        .connect("agent-1", forgetful, collector.address)
        .await
        .unwrap();
    assert_eq!(agent.welcome.committed_through, 0);
    assert!(matches!(
        agent.send(100..=110).await,
        Some(BatchReply::Retry { .. })
    ));
    // The way out: a new epoch.
    let agent = world
        .connect("agent-1", hello("agent-1", EPOCH + 1), collector.address)
        .await
        .unwrap();
    assert_eq!(acked(agent.send(1..=11).await), 11);
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_others_go_on() {
    let world = World::new();
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let other = world.agent("agent-2", &collector).await;
    let body = good(1).encode();
    let compressed = batch::compress(&body).unwrap();
    let garbage = [
        (agent.header(1, 1, 100), b"no zstd at all".to_vec()),
        (agent.header(1, 1, body.len() - 1), compressed.clone()),
        (agent.header(1, 2, body.len()), compressed.clone()),
        (agent.header(1, 0, body.len()), compressed.clone()),
        (agent.header(0, 1, body.len()), compressed.clone()),
        (agent.header(1, 1, usize::MAX), compressed.clone()),
        (agent.header(1, u32::MAX, body.len()), compressed.clone()),
    ];
    for (header, body) in garbage {
        let reply = agent.send_raw(&header, &body).await;
        assert!(
            matches!(reply, Some(BatchReply::Refused { .. })),
            "{header:?}: {reply:?}"
        );
    }
    assert_eq!(acked(agent.send(1..=5).await), 5);
    assert_eq!(acked(other.send(1..=5).await), 5);
    world.assert_events("agent-1", 1..=5).await;
    world.assert_events("agent-2", 1..=5).await;
    collector.stop().await;
}

pub(crate) async fn every_sequence_is_an_event_or_in_quarantine(world: World) {
    // C-1
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send_records(1, &mixed(1..=100)).await), 100);
    // Not a record, between two that are.
    let mut body = good(101).encode();
    body.push(0x2a);
    good(103).encode_into(&mut body);
    let header = agent.header(101, 3, body.len());
    let compressed = batch::compress(&body).unwrap();
    assert_eq!(acked(agent.send_raw(&header, &compressed).await), 103);
    let is_out = |seq: &u64| *seq != 102 && (*seq > 100 || !is_bad(*seq));
    world
        .assert_events("agent-1", (1..=103).filter(is_out))
        .await;
    world
        .assert_quarantine("agent-1", (1..=103).filter(|seq| !is_out(seq)))
        .await;
    collector.stop().await;
}

pub(crate) async fn a_batch_of_nothing_but_quarantine_moves_the_watermark(world: World) {
    // EO-4
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    let records: Vec<_> = (1..=5).map(world::bad).collect();
    assert_eq!(acked(agent.send_records(1, &records).await), 5);
    assert_eq!(world.watermark("agent-1", EPOCH).await, 5);
    world.assert_events("agent-1", std::iter::empty()).await;
    world.assert_quarantine("agent-1", 1..=5).await;
    collector.stop().await;
}

pub(crate) async fn each_epoch_has_its_own_watermark(world: World) {
    let collector = world.collector().await;
    let newer = world.agent("agent-1", &collector).await;
    assert_eq!(acked(newer.send(1..=5).await), 5);
    let older = world
        .connect("agent-1", hello("agent-1", EPOCH - 1), collector.address)
        .await
        .unwrap();
    assert_eq!(older.welcome.committed_through, 0);
    assert_eq!(acked(older.send(1..=3).await), 3);
    assert_eq!(world.watermark("agent-1", EPOCH).await, 5);
    assert_eq!(world.watermark("agent-1", EPOCH - 1).await, 3);
    collector.stop().await;
}
