//! Events that a collector does not take: the rest ships, and nothing accepted is dropped.

use std::sync::Arc;

use headwater_protocol::Record;
use parking_lot::Mutex;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{Agent, Site, event, post, post_events, until};

fn kept(site: &Site) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(site.buffer().join("refused")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|index| format!("{prefix}-{index}"))
        .collect()
}

#[tokio::test]
async fn one_poison_event_never_holds_up_the_rest() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Poison).await;
    let mut config = site.config(collector.address);
    // Whole batches, so that there is something to halve.
    config.collector.linger_ms = 300;
    let agent = Agent::start(config).await;
    // At the head, twice in one batch, large enough for several keys, and at the end.
    let mut poison = Vec::new();
    for (round, large) in [(0, false), (1, false), (2, true), (3, false)] {
        for id in [format!("poison-{round}-a"), format!("poison-{round}-b")] {
            let body = event(&id, if large { 80_000 } else { 10 });
            assert_eq!(post(agent.address, "/v1/track", &body).await.status, 200);
            poison.push((id, body));
        }
        post_events(agent.address, &format!("good-{round}"), 70, 50).await;
    }
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    let expected: Vec<String> = (0..4)
        .flat_map(|round| ids(&format!("good-{round}"), 70))
        .collect();
    assert_eq!(tables.message_ids(), expected);
    assert_eq!(tables.events.len(), expected.len() + poison.len());
    assert_eq!(tables.hellos.len(), 1, "the session outlives a refusal");
    let files = kept(&site);
    assert_eq!(files.len(), poison.len());
    for path in files {
        let file = std::fs::read(&path).unwrap();
        let end = file.iter().position(|byte| *byte == b'\n').unwrap();
        let bytes = &file[end + 1..];
        let record = Record::decode(bytes).unwrap();
        let sent = poison
            .iter()
            .find(|(_, body)| body.as_bytes() == &record.body[..]);
        assert!(sent.is_some(), "{} is as it was sent", path.display());
        // What the collector quarantines are the first bytes of the same record.
        let name = path.file_name().unwrap().to_str().unwrap();
        let (epoch, sequence) = name.split_once('-').unwrap();
        let position = (epoch.parse().unwrap(), sequence.parse().unwrap());
        assert_eq!(tables.events[&position], None);
        let head = &bytes[..bytes.len().min(60_000)];
        let is_quarantined = |it: &Vec<u8>| it.windows(head.len()).any(|part| part == head);
        assert!(tables.undecodable.iter().any(is_quarantined));
    }
    println!(
        "{} events shipped past {} poisoned ones with {} batches",
        expected.len(),
        poison.len(),
        tables.batches
    );
}

#[tokio::test]
async fn collector_that_refuses_everything_changes_nothing() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::RefuseAll).await;
    let address = collector.address;
    let agent = Agent::start(site.config(address)).await;
    post_events(agent.address, "e", 50, 10).await;
    until("several sessions have failed", || {
        tables.lock().hellos.len() >= 3
    })
    .await;
    assert_eq!(agent.running.buffered(), 50);
    assert!(kept(&site).len() <= 1, "only the one that is being tried");
    collector.stop().await;
    let collector = Collector::start_at(&site, address, &tables, Manner::Prompt).await;
    agent.until_drained().await;
    agent.stop().await;
    collector.stop().await;
    assert_eq!(tables.lock().message_ids(), ids("e", 50));
    assert!(tables.lock().undecodable.is_empty());
}

#[tokio::test]
async fn full_refused_folder_stops_shipping_and_drops_nothing() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Poison).await;
    let mut config = site.config(collector.address);
    config.buffer.refused_bytes_max = 16 << 10;
    let agent = Agent::start(config).await;
    for id in ["poison-1", "good-1", "poison-2", "good-2"] {
        let answer = post(agent.address, "/v1/track", &event(id, 10)).await;
        assert_eq!(answer.status, 200);
    }
    until("shipping has come to its end and tried again", || {
        tables.lock().hellos.len() >= 3
    })
    .await;
    assert_eq!(kept(&site).len(), 1);
    assert_eq!(tables.lock().message_ids(), ["good-1"]);
    assert_eq!(agent.running.buffered(), 2);
    std::fs::remove_file(&kept(&site)[0]).unwrap();
    agent.until_drained().await;
    agent.stop().await;
    assert_eq!(tables.lock().message_ids(), ["good-1", "good-2"]);
    assert_eq!(kept(&site).len(), 1);
}
