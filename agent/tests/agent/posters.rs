//! Clients that post to the real program until it is gone, and events that show by themselves whether
//! they are whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use headwater_protocol::Record;
use tokio::task::JoinHandle;

use crate::harness::{BASIC, batch, event, request};

/// Clients that post batches of random size, one after the other each.
pub(crate) struct Posters {
    acked: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Posters {
    /// Starts `count` clients. Their ids begin with `name`; they end when the agent is gone, or at
    /// [`Self::stop`].
    pub(crate) fn start(address: SocketAddr, name: &str, count: usize) -> Self {
        let acked: Arc<AtomicU64> = Arc::default();
        let clients = (0..count).map(|client| {
            let name = format!("{name}-{client}");
            tokio::spawn(post_until_gone(address, name, acked.clone()))
        });
        Self {
            clients: clients.collect(),
            acked,
        }
    }

    /// Events answered with 200 so far.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Waits until the agent is gone for all of them; returns the ids that were answered with 200.
    pub(crate) async fn gone(self) -> Vec<String> {
        let mut answered = Vec::new();
        for client in self.clients {
            answered.extend(client.await.unwrap());
        }
        answered
    }
}

async fn post_until_gone(address: SocketAddr, name: String, acked: Arc<AtomicU64>) -> Vec<String> {
    let mut answered = Vec::new();
    for number in 0.. {
        // The first client's batches are large: one commit takes several transactions of the store.
        let most = if name.ends_with("-0") { 400 } else { 12 };
        let count = 1 + crc32fast::hash(format!("{name}-{number}").as_bytes()) % most;
        let ids: Vec<String> = (0..count)
            .map(|index| format!("{name}-{number}-{index}"))
            .collect();
        let body = batch_of(&ids);
        match request(address, "POST", "/v1/batch", &[BASIC], body.as_bytes()).await {
            Ok(answer) if answer.status == 200 => {
                acked.fetch_add(u64::from(count), Ordering::Relaxed);
                answered.extend(ids);
            }
            Ok(answer) if answer.status == 503 => tokio::task::yield_now().await,
            Ok(answer) => panic!("{answer:?}"),
            Err(_) => break,
        }
    }
    answered
}

/// The one batch body that consists of the events with these ids.
pub(crate) fn batch_of(ids: &[String]) -> String {
    let events: Vec<String> = ids.iter().map(|id| event_of(id)).collect();
    batch([], 0).replace("[]", &format!("[{}]", events.join(",")))
}

/// The one event that has this id: mostly some hundred bytes, now and then much more.
pub(crate) fn event_of(id: &str) -> String {
    let hash = crc32fast::hash(id.as_bytes()) as usize;
    let padding = match hash % 100 {
        0..=96 => hash / 100 % 600,
        97 | 98 => 4000 + hash / 100 % 3000,
        _ => 20_000 + hash / 100 % 50_000,
    };
    event(id, padding)
}

/// Returns the message ids of records, each of which must be the event of its id, byte for byte.
pub(crate) fn checked_ids<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> BTreeMap<String, u64> {
    let mut ids = BTreeMap::new();
    for record in records {
        let body: serde_json::Value = serde_json::from_slice(&record.body).unwrap();
        let id = body["messageId"].as_str().unwrap();
        assert!(
            record.body[..] == *event_of(id).as_bytes(),
            "event {id} differs from what was sent"
        );
        *ids.entry(id.to_owned()).or_insert(0) += 1;
    }
    ids
}
