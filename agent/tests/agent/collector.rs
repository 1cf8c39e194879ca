//! A small collector: speaks the wire protocol, keeps committed events in memory, and can be told to
//! be slow, to answer out of order, to ask for repeats, to refuse, or to be away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::batch::Slot;
use headwater_protocol::frame;
use headwater_protocol::{
    ALPN, BatchHeader, BatchReply, Hello, HelloReply, Record, RefusalCause, Welcome, batch, close,
};
use headwater_service::tls;
use parking_lot::Mutex;
use quinn::{Endpoint, RecvStream, SendStream};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::harness::{Site, until};

pub(crate) use manner::Manner;
use manner::slowly;

#[path = "manner.rs"]
mod manner;

/// What outlives a collector: the tables.
#[derive(Default)]
pub(crate) struct Tables {
    /// Records by epoch and sequence; `None` for one that does not decode.
    pub(crate) events: BTreeMap<(u64, u64), Option<Record>>,
    /// Message ids of the records.
    pub(crate) ids: BTreeSet<String>,
    pub(crate) watermarks: BTreeMap<u64, u64>,
    /// What a Welcome says is in use of an epoch, beyond its watermark.
    pub(crate) used: BTreeMap<u64, u64>,
    pub(crate) hellos: Vec<Hello>,
    /// For each Hello: the collector that took it, and the serial number of the agent's certificate.
    pub(crate) visits: Vec<(SocketAddr, String)>,
    /// Bytes that stood where a record should be.
    pub(crate) undecodable: Vec<Vec<u8>>,
    /// First sequences in the order in which their streams were opened.
    pub(crate) arrivals: Vec<u64>,
    pub(crate) arrived: Arc<Notify>,
    pub(crate) batches: usize,
    pub(crate) refused: usize,
}

impl Tables {
    /// Message ids in order of epoch and sequence, and that sequences count from 1 without holes.
    pub(crate) fn message_ids(&self) -> Vec<String> {
        let mut expected: BTreeMap<u64, u64> = BTreeMap::new();
        let mut ids = Vec::new();
        for ((epoch, sequence), record) in &self.events {
            let next = expected.entry(*epoch).or_insert(1);
            assert_eq!(sequence, next, "hole in epoch {epoch}");
            *next += 1;
            if let Some(record) = record {
                let body: serde_json::Value = serde_json::from_slice(&record.body).unwrap();
                ids.push(body["messageId"].as_str().unwrap().to_owned());
            }
        }
        ids
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.events.values().flatten()
    }

    pub(crate) fn epochs(&self) -> Vec<u64> {
        self.watermarks.keys().copied().collect()
    }
}

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    endpoint: Endpoint,
    manner: Manner,
    stop: CancellationToken,
    shared: Arc<Shared>,
}

struct Shared {
    stop: CancellationToken,
    tables: Arc<Mutex<Tables>>,
    manner: Manner,
    seen: Mutex<BTreeMap<(u64, u64), usize>>,
    held: Mutex<Vec<oneshot::Sender<()>>>,
    slowly: tokio::sync::Mutex<()>,
    swallowed: Notify,
    /// As the real one, a collector keeps the newest session of an agent.
    session: Mutex<Option<quinn::Connection>>,
    address: SocketAddr,
}

impl Collector {
    pub(crate) async fn start(site: &Site, tables: &Arc<Mutex<Tables>>, manner: Manner) -> Self {
        Self::start_at(site, SocketAddr::from(([127, 0, 0, 1], 0)), tables, manner).await
    }

    pub(crate) async fn start_at(
        site: &Site,
        address: SocketAddr,
        tables: &Arc<Mutex<Tables>>,
        manner: Manner,
    ) -> Self {
        let config = server_config(site, manner);
        let mut endpoint = None;
        until("the port is free", || {
            endpoint = Endpoint::server(config.clone(), address).ok();
            endpoint.is_some()
        })
        .await;
        let endpoint = endpoint.unwrap();
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            stop: stop.clone(),
            tables: tables.clone(),
            manner,
            seen: Mutex::default(),
            held: Mutex::default(),
            slowly: tokio::sync::Mutex::default(),
            swallowed: Notify::new(),
            session: Mutex::default(),
            address: endpoint.local_addr().unwrap(),
        });
        let (accepting, served) = (endpoint.clone(), shared.clone());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let shared = served.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        session(shared, connection).await;
                    }
                });
            }
        });
        Self {
            address: endpoint.local_addr().unwrap(),
            endpoint,
            manner,
            stop,
            shared,
        }
    }

    /// Closes the open connection as a collector does when it is old.
    pub(crate) fn close_for_its_age(&self) {
        if let Some(connection) = &*self.shared.session.lock() {
            connection.close(close::AGED.into(), b"come again");
        }
    }

    /// Takes up the certificate files as they are now, for the connections to come.
    pub(crate) fn reload(&self, site: &Site) {
        self.endpoint
            .set_server_config(Some(server_config(site, self.manner)));
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.endpoint.close(1_u32.into(), b"away");
        // Not for long: an agent that gave up while connecting never says so.
        let closing = tokio::time::timeout(Duration::from_millis(200), self.endpoint.wait_idle());
        drop(closing.await);
    }
}

fn server_config(site: &Site, manner: Manner) -> quinn::ServerConfig {
    let server = tls::mutual_server(&site.tls("collector"), ALPN).unwrap();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(manner.transport()));
    config
}

fn serial(connection: &quinn::Connection) -> String {
    let chain = connection.peer_identity().unwrap();
    let chain = chain
        .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
        .unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    leaf.raw_serial_as_string()
}

async fn session(shared: Arc<Shared>, connection: quinn::Connection) {
    let Ok((mut send, mut receive)) = connection.accept_bi().await else {
        return;
    };
    let Some(hello) = read_frame::<Hello>(&mut receive).await else {
        return;
    };
    let epoch = hello.epoch;
    let old = shared.session.lock().replace(connection.clone());
    if let Some(old) = old {
        old.close(2_u32.into(), b"replaced by a new session");
    }
    let welcome = {
        let mut tables = shared.tables.lock();
        assert_eq!(hello.agent_id.as_str(), "agent-1");
        tables.hellos.push(hello);
        tables.visits.push((shared.address, serial(&connection)));
        Welcome {
            committed_through: *tables.watermarks.entry(epoch).or_insert(0),
            limits: shared.manner.limits(),
            used_through: tables.used.get(&epoch).copied(),
        }
    };
    let reply = frame::encode(&HelloReply::Welcome(welcome));
    if send.write_all(&reply).await.is_err() {
        return;
    }
    while let Ok((send, receive)) = connection.accept_bi().await {
        tokio::spawn(batch_stream(shared.clone(), send, receive));
    }
}

async fn batch_stream(shared: Arc<Shared>, mut send: SendStream, mut receive: RecvStream) {
    let Some(header) = read_frame::<BatchHeader>(&mut receive).await else {
        return;
    };
    shared.tables.lock().arrivals.push(header.first_sequence);
    while matches!(shared.manner, Manner::SlowStream(first) if first == header.first_sequence)
        && shared.later(header.first_sequence) < 6
    {
        slowly(Duration::from_millis(5)).await;
    }
    let Some(body) = shared.manner.read(&mut receive).await else {
        return;
    };
    let records = batch::decompress(&header, &body).unwrap();
    let Some(reply) = shared
        .stop
        .run_until_cancelled(shared.answer(&header, &records))
        .await
    else {
        return;
    };
    // The agent may be dead by now.
    if send.write_all(&frame::encode(&reply)).await.is_ok() {
        send.finish().unwrap();
        drop(send.stopped().await);
    }
}

impl Shared {
    /// Returns how many batches after the one at `first` have been read.
    fn later(&self, first: u64) -> usize {
        let seen = self.seen.lock();
        seen.keys().filter(|(_, other)| *other > first).count()
    }

    async fn answer(&self, header: &BatchHeader, records: &[u8]) -> BatchReply {
        self.tables.lock().batches += 1;
        let sightings = {
            let mut seen = self.seen.lock();
            let count = seen
                .entry((header.epoch, header.first_sequence))
                .or_insert(0);
            *count += 1;
            (*count, seen.len())
        };
        match self.manner {
            Manner::RetryFirst | Manner::RetrySlowly(_) if sightings.0 == 1 => return retry(5),
            Manner::RetryAll(after_ms) => return retry(after_ms),
            Manner::RefuseFirst if sightings == (1, 1) => {
                self.tables.lock().refused += 1;
                return BatchReply::Refused {
                    reason: "not today".to_owned(),
                    cause: RefusalCause::Protocol,
                };
            }
            Manner::Silent => std::future::pending().await,
            Manner::SilentAtFirst if self.tables.lock().hellos.len() == 1 => {
                std::future::pending().await
            }
            Manner::RefuseAll => return self.refuse("nothing is taken"),
            Manner::Poison if holds_poison(header, records) => return self.refuse("poison"),
            Manner::SwallowThird if sightings == (1, 3) => {
                self.swallowed.notify_one();
                std::future::pending().await
            }
            Manner::SwallowThird if sightings.1 == 1 => self.swallowed.notified().await,
            _ => {}
        }
        if let Manner::Slow(pause) | Manner::RetrySlowly(pause) = self.manner {
            let _turn = self.slowly.lock().await;
            slowly(pause).await;
        }
        self.commit(header, records).await;
        if matches!(self.manner, Manner::MuteThird) && sightings.1 == 3 {
            std::future::pending().await
        }
        if let Manner::Reversed(group) = self.manner {
            self.hold(group).await;
        }
        let committed_through = self.tables.lock().watermarks[&header.epoch];
        BatchReply::Ack {
            committed_through,
            snapshot_id: 1,
        }
    }

    fn refuse(&self, reason: &str) -> BatchReply {
        self.tables.lock().refused += 1;
        BatchReply::Refused {
            reason: reason.to_owned(),
            cause: RefusalCause::Events,
        }
    }

    /// Waits for its turn, as batches arrive in any order, then commits what is new.
    async fn commit(&self, header: &BatchHeader, records: &[u8]) {
        let slots = match self.manner {
            Manner::Counting => Vec::new(),
            _ => batch::slots(header, records).unwrap().collect(),
        };
        let arrival = self.tables.lock().arrived.clone();
        loop {
            let arrived = arrival.notified();
            {
                let mut tables = self.tables.lock();
                let watermark = *tables.watermarks.entry(header.epoch).or_insert(0);
                if header.first_sequence <= watermark + 1 {
                    for (sequence, slot) in (header.first_sequence..).zip(&slots) {
                        let record = match slot {
                            Slot::Record(record) => Some(Record::clone(record)),
                            Slot::Undecodable(bytes) => {
                                tables.undecodable.push(bytes.to_vec());
                                None
                            }
                        };
                        tables.ids.extend(record.as_ref().and_then(message_id));
                        let old = tables
                            .events
                            .insert((header.epoch, sequence), record.clone());
                        assert!(
                            old.is_none_or(|old| old == record),
                            "sequence {sequence} changed"
                        );
                    }
                    let through = watermark.max(header.last_sequence());
                    tables.watermarks.insert(header.epoch, through);
                    arrival.notify_waiters();
                    return;
                }
            }
            arrived.await;
        }
    }

    async fn hold(&self, group: usize) {
        let (free, freed) = oneshot::channel();
        let full = {
            let mut held = self.held.lock();
            held.push(free);
            (held.len() >= group).then(|| std::mem::take(&mut *held))
        };
        for free in full.into_iter().flatten().rev() {
            let _gone = free.send(());
            tokio::task::yield_now().await;
        }
        // A group that never fills must not hang the test.
        drop(tokio::time::timeout(Duration::from_millis(100), freed).await);
    }
}

fn retry(after_ms: u64) -> BatchReply {
    BatchReply::Retry {
        after_ms,
        reason: "busy".to_owned(),
    }
}

fn message_id(record: &Record) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(&record.body).ok()?;
    Some(body["messageId"].as_str()?.to_owned())
}

fn holds_poison(header: &BatchHeader, records: &[u8]) -> bool {
    let mut slots = batch::slots(header, records).unwrap();
    slots.any(|slot| match slot {
        Slot::Record(record) => record.body.windows(6).any(|word| word == b"poison"),
        Slot::Undecodable(_) => false,
    })
}

async fn read_frame<T: serde::de::DeserializeOwned>(receive: &mut RecvStream) -> Option<T> {
    let mut prefix = [0; 4];
    receive.read_exact(&mut prefix).await.ok()?;
    let mut bytes = vec![0; frame::length(prefix).unwrap()];
    receive.read_exact(&mut bytes).await.ok()?;
    Some(frame::decode(&bytes).unwrap())
}
