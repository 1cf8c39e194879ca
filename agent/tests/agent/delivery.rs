//! From the 200 to the ack: every acknowledged event arrives, in order, once per position.

use std::collections::BTreeSet;
use std::sync::Arc;

use headwater_agent::Config;
use parking_lot::Mutex;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{
    Agent, BASIC, Site, batch, copy_directory, disk_bytes, nobody, post, post_events, request,
    until, until_async,
};

fn tables() -> Arc<Mutex<Tables>> {
    Arc::default()
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|index| format!("{prefix}-{index}"))
        .collect()
}

#[tokio::test]
async fn event_arrives_as_it_was_sent() {
    let site = Site::new();
    let tables = tables();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    let body = r#"{ "sentAt":"2026-01-01T00:00:00Z","batch" : [ {"type":"track", "event":"\u00e9",  "userId":1.50e3, "messageId":"a"} ] }"#;
    let headers = [BASIC, ("x-retry-count", "3"), ("user-agent", "sdk/1")];
    let answer = request(
        agent.address,
        "POST",
        "/v1/batch",
        &headers,
        body.as_bytes(),
    )
    .await
    .unwrap();
    assert_eq!(answer.status, 200);
    let large = crate::harness::event("large", 300_000);
    assert_eq!(post(agent.address, "/v1/track", &large).await.status, 200);
    agent.until_drained().await;
    {
        let tables = tables.lock();
        let records: Vec<_> = tables
            .events
            .values()
            .map(|record| record.clone().unwrap())
            .collect();
        assert_eq!(
            &records[0].body[..],
            br#"{"type":"track", "event":"\u00e9",  "userId":1.50e3, "messageId":"a"}"#
        );
        assert_eq!(records[0].company_id, "acme");
        assert_eq!(records[0].attempt, Some(3));
        assert_eq!(records[0].ip.as_deref(), Some("127.0.0.0"));
        assert_eq!(records[0].user_agent.as_deref(), Some("sdk/1"));
        assert_eq!(records[0].sent_at.as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(&records[1].body[..], large.as_bytes());
        assert_eq!(tables.hellos[0].lowest_unacknowledged, 1);
    }
    agent.stop().await;
}

#[tokio::test]
async fn collector_may_be_away_and_sequences_stay_contiguous_over_restarts() {
    let site = Site::new();
    let tables = tables();
    let agent = Agent::start(site.config(nobody())).await;
    post_events(agent.address, "before", 250, 100).await;
    assert_eq!(agent.running.buffered(), 250);
    agent.stop().await;

    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let address = collector.address;
    let agent = Agent::start(site.config(address)).await;
    agent.until_drained().await;
    collector.stop().await;
    post_events(agent.address, "away", 50, 100).await;
    assert_eq!(agent.running.buffered(), 50);
    let collector = Collector::start_at(&site, address, &tables, Manner::Prompt).await;
    agent.until_drained().await;
    agent.stop().await;

    let agent = Agent::start(site.config(address)).await;
    post_events(agent.address, "after", 50, 100).await;
    agent.until_drained().await;
    agent.stop().await;
    collector.stop().await;
    let tables = tables.lock();
    let expected = [ids("before", 250), ids("away", 50), ids("after", 50)].concat();
    assert_eq!(tables.message_ids(), expected);
    assert_eq!(tables.epochs().len(), 1, "a restart keeps the epoch");
}

#[tokio::test]
async fn repeats_refusals_and_answers_out_of_order_lose_nothing() {
    for manner in [Manner::RetryFirst, Manner::RefuseFirst, Manner::Reversed(5)] {
        let site = Site::new();
        let tables = tables();
        let collector = Collector::start(&site, &tables, manner).await;
        let mut config = site.config(collector.address);
        config.collector.batch_events_max = 20;
        config.buffer.generation_events_max = 90;
        let agent = Agent::start(config).await;
        post_events(agent.address, "e", 400, 50).await;
        agent.until_drained().await;
        agent.stop().await;
        let tables = tables.lock();
        assert_eq!(tables.message_ids(), ids("e", 400), "{manner:?}");
        assert!(tables.batches >= 20, "{manner:?}");
        assert_eq!(
            tables.refused,
            usize::from(matches!(manner, Manner::RefuseFirst))
        );
    }
}

#[tokio::test]
async fn full_buffer_answers_503_and_takes_events_again_after_a_drain() {
    let site = Site::new();
    let tables = tables();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let away = collector.address;
    collector.stop().await;
    let mut config = site.config(away);
    config.buffer.disk_bytes_max = 24 << 20;
    config.dedup.ids_max = 1000;
    let agent = Agent::start(config).await;
    let mut accepted = Vec::new();
    let refusal = loop {
        let id = format!("e-{}", accepted.len());
        let answer = post(agent.address, "/v1/batch", &batch([id.as_str()], 200_000)).await;
        assert!(disk_bytes(&site.buffer()) <= 24 << 20, "D-3");
        if answer.status != 200 {
            break answer;
        }
        accepted.push(id);
    };
    assert_eq!(refusal.status, 503);
    assert!(
        refusal
            .header("retry-after")
            .unwrap()
            .parse::<u32>()
            .unwrap()
            >= 1
    );
    assert_eq!(
        (
            refusal.header("access-control-allow-origin"),
            refusal.header("access-control-expose-headers")
        ),
        (Some("*"), Some("retry-after")),
        "a browser's page may read it"
    );
    assert!(accepted.len() > 20, "{}", accepted.len());
    assert_eq!(agent.running.buffered(), accepted.len() as u64);
    until_readiness(&agent, 503).await;

    let collector = Collector::start_at(&site, away, &tables, Manner::Prompt).await;
    agent.until_drained().await;
    until_async("there is room again", async || {
        let again = post(agent.address, "/v1/batch", &batch(["again"], 200_000)).await;
        assert!(again.status == 200 || again.status == 503, "{again:?}");
        again.status == 200
    })
    .await;
    agent.until_drained().await;
    until_readiness(&agent, 200).await;
    until("the disk comes back", || {
        disk_bytes(&site.buffer()) <= 6 << 20
    })
    .await;
    agent.stop().await;
    collector.stop().await;
    accepted.push("again".to_owned());
    assert_eq!(tables.lock().message_ids(), accepted);
}

async fn until_readiness(agent: &Agent, status: u16) {
    let admin = agent.running.admin_address;
    until_async("readiness tells", async || {
        let answer = request(admin, "GET", "/readyz", &[], b"").await.unwrap();
        answer.status == status
    })
    .await;
}

/// Fills five generations of 100 events, damages the second with `damage`, and ships.
async fn ship_with_a_damaged_generation(
    damage: impl Fn(&mut Vec<u8>),
) -> (Site, Arc<Mutex<Tables>>) {
    let site = Site::new();
    let tables = tables();
    let mut config = site.config(nobody());
    config.buffer.generation_events_max = 100;
    let agent = Agent::start(config.clone()).await;
    post_events(agent.address, "e", 500, 100).await;
    agent.stop().await;
    let db = site
        .buffer()
        .join("generations")
        .join(format!("{:020}", 101))
        .join("db");
    let mut bytes = std::fs::read(&db).unwrap();
    damage(&mut bytes);
    std::fs::write(&db, bytes).unwrap();

    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    config.collector.addresses = vec![collector.address.to_string()];
    let agent = Agent::start(config).await;
    agent.until_drained().await;
    post_events(agent.address, "new", 10, 100).await;
    agent.until_drained().await;
    agent.stop().await;
    collector.stop().await;
    (site, tables)
}

#[tokio::test]
async fn damaged_generation_is_set_aside_and_the_rest_ships() {
    let zeros: fn(&mut Vec<u8>) = |bytes| bytes.fill(0);
    let noise: fn(&mut Vec<u8>) = |bytes| {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte ^= (index * 7 + index / 3) as u8 | 1;
        }
    };
    let cut: fn(&mut Vec<u8>) = |bytes| bytes.truncate(1_000);
    for damage in [zeros, noise, cut] {
        let (site, tables) = ship_with_a_damaged_generation(damage).await;
        let tables = tables.lock();
        let arrived: BTreeSet<String> = tables.message_ids().into_iter().collect();
        let all = [ids("e", 500), ids("new", 10)].concat();
        let lost: Vec<_> = all.iter().filter(|id| !arrived.contains(*id)).collect();
        assert!(!lost.is_empty() && lost.len() <= 100, "{}", lost.len());
        assert!(lost.iter().all(|id| {
            let number: usize = id.trim_start_matches("e-").parse().unwrap();
            (100..200).contains(&number)
        }));
        assert_eq!(
            tables.epochs().len(),
            2,
            "what follows the loss counts from 1 again"
        );
        assert_eq!(
            std::fs::read_dir(site.buffer().join("quarantine"))
                .unwrap()
                .count(),
            1
        );
    }
}

#[tokio::test]
async fn damaged_newest_generation_does_not_stop_the_agent() {
    let site = Site::new();
    let tables = tables();
    let agent = Agent::start(site.config(nobody())).await;
    post_events(agent.address, "e", 50, 100).await;
    agent.stop().await;
    let db = site
        .buffer()
        .join("generations")
        .join(format!("{:020}", 1))
        .join("db");
    let length = std::fs::metadata(&db).unwrap().len();
    std::fs::write(&db, vec![0x5a; usize::try_from(length).unwrap()]).unwrap();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    post_events(agent.address, "new", 10, 100).await;
    agent.until_drained().await;
    agent.stop().await;
    assert_eq!(tables.lock().message_ids(), ids("new", 10));
}

/// Starts an agent, has ten events of `round` delivered, and stops it.
async fn deliver_ten(config: &Config, round: &str) {
    let agent = Agent::start(config.clone()).await;
    post_events(agent.address, round, 10, 0).await;
    agent.until_drained().await;
    agent.stop().await;
}

#[tokio::test]
async fn restored_disk_opens_a_new_epoch_and_loses_nothing() {
    let site = Site::new();
    let tables = tables();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let config = site.config(collector.address);
    deliver_ten(&config, "old").await;
    copy_directory(&site.buffer(), &site.path("backup"));
    deliver_ten(&config, "forgotten").await;
    std::fs::remove_dir_all(site.buffer()).unwrap();
    std::fs::rename(site.path("backup"), site.buffer()).unwrap();

    // More events than were forgotten, and a restart, before the collector is seen again: their
    // numbers lie below the collector's watermark and above it.
    let mut away = config.clone();
    away.collector.addresses = vec![nobody().to_string()];
    for round in ["new-a", "new-b"] {
        let agent = Agent::start(away.clone()).await;
        post_events(agent.address, round, 15, 0).await;
        agent.stop().await;
    }
    let agent = Agent::start(config).await;
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    let expected = [
        ids("old", 10),
        ids("forgotten", 10),
        ids("new-a", 15),
        ids("new-b", 15),
    ]
    .concat();
    assert_eq!(tables.message_ids(), expected);
    assert_eq!(tables.epochs().len(), 2);
}

/// What the collector holds of the former life is not committed yet.
#[tokio::test]
async fn restored_disk_opens_a_new_epoch_when_its_numbers_are_only_in_use() {
    let site = Site::new();
    let tables = tables();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let config = site.config(collector.address);
    deliver_ten(&config, "old").await;
    let epoch = tables.lock().hellos[0].epoch;
    // As if events 11 to 15 had been quarantined, or staged, when the disk was set back.
    tables.lock().used.insert(epoch, 15);
    deliver_ten(&config, "new").await;
    let tables = tables.lock();
    assert_eq!(
        tables.message_ids(),
        [ids("old", 10), ids("new", 10)].concat()
    );
    assert_eq!(
        tables.watermarks[&epoch], 10,
        "none of its numbers is used again"
    );
    assert_eq!(tables.epochs().len(), 2);
}

#[tokio::test]
async fn collector_that_forgot_gets_a_new_epoch() {
    let site = Site::new();
    let tables = tables();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let config = site.config(collector.address);
    deliver_ten(&config, "a").await;
    *tables.lock() = Tables::default();
    deliver_ten(&config, "b").await;
    assert_eq!(tables.lock().message_ids(), ids("b", 10));
}

#[tokio::test]
async fn stop_ends_in_time_with_batches_in_flight() {
    let site = Site::new();
    let tables = tables();
    let collector = Collector::start(&site, &tables, Manner::Silent).await;
    let agent = Agent::start(site.config(collector.address)).await;
    post_events(agent.address, "e", 50, 0).await;
    until("a batch is in flight", || tables.lock().batches > 0).await;
    let stopping = std::time::Instant::now();
    agent.stop().await;
    assert!(stopping.elapsed().as_secs() < 5);
}

#[tokio::test]
async fn nearly_full_disk_answers_503_and_keeps_what_it_has() {
    let site = Site::new();
    let mut config = site.config(nobody());
    let agent = Agent::start(config.clone()).await;
    post_events(agent.address, "e", 20, 0).await;
    agent.stop().await;
    config.buffer.disk_free_bytes_min = u64::MAX / 2;
    let agent = Agent::start(config).await;
    let answer = post(agent.address, "/v1/batch", &batch(["late"], 0)).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert_eq!(agent.running.buffered(), 20);
    agent.stop().await;
}
