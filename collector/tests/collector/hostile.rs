//! Peers that break the protocol, on purpose or not, over real QUIC: each is stopped within its bound and
//! counted with its reason, and the batches of others go on meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use headwater_collector::commit::NoHook;
use headwater_protocol::{
    ALPN, BatchHeader, BatchReply, Codec, HelloReply, RefusalCause, batch, close, frame,
};
use headwater_service::{admin, tls};
use quinn::{Connection, ConnectionError, SendStream};

use crate::program::{self, Program};
use crate::world::{Agent, Collector, EPOCH, World, acked, dial, good, hello, read_reply};

/// Counters are those of the process: tests that look at them go one after the other.
pub(crate) static COUNTERS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Much longer than any bound of [`Attacked::new`].
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

fn refusals(reason: &str) -> f64 {
    counted("collector_refusals_total", "reason", reason)
}

/// Returns what the process has counted under a label.
pub(crate) fn counted(name: &str, label: &str, value: &str) -> f64 {
    let label = format!("{label}=\"{value}\"");
    let series = admin::samples(name);
    let found = series.iter().find(|(labels, _)| *labels == label);
    let missing = || panic!("no series with {label} in {series:?}");
    found.unwrap_or_else(missing).1
}

/// A collector under attack, and an agent that it must not forget.
struct Attacked {
    world: World,
    collector: Collector,
    bystander: Agent,
    next: u64,
}

impl Attacked {
    /// Its bounds in time are a second and a half.
    async fn new(change: impl FnOnce(&mut headwater_collector::Config)) -> Self {
        let world = World::new();
        let mut config = world.config();
        config.quic.hello_timeout_ms = 1500;
        config.limits.body_timeout_ms = 1500;
        change(&mut config);
        let collector = world.collector_with(config, Arc::new(NoHook)).await;
        let bystander = world.agent("bystander", &collector).await;
        Self {
            world,
            collector,
            bystander,
            next: 1,
        }
    }

    async fn others_go_on(&mut self) {
        let last = self.next + 4;
        assert_eq!(acked(self.bystander.send(self.next..=last).await), last);
        self.next = last + 1;
    }

    async fn silent(&self) -> (quinn::Endpoint, Connection) {
        let (endpoint, connection) = self.world.silent("attacker", self.collector.address).await;
        (endpoint, connection.unwrap())
    }

    /// Sends `bytes` where Hello belongs and returns what comes back.
    async fn says(&self, bytes: &[u8]) -> (Option<HelloReply>, ConnectionError) {
        let (_endpoint, connection) = self.silent().await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        let reply = read_reply(&mut recv).await;
        (reply, closed(&connection).await)
    }

    async fn stop(mut self) {
        self.others_go_on().await;
        self.world.assert_events("bystander", 1..self.next).await;
        self.collector.stop().await;
    }
}

pub(crate) async fn closed(connection: &Connection) -> ConnectionError {
    let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
    closed.expect("the collector closes the connection within its bound")
}

pub(crate) fn is_closed_with(error: &ConnectionError, code: u32) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(closed) if closed.error_code == code.into())
}

/// Writes a byte ten times a second until it is stopped, beginning with the length of a long message: no
/// read is idle for long, and nothing comes.
async fn dribble(mut send: SendStream) {
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for byte in [0, 0, 100, 0].into_iter().cycle() {
        pace.tick().await;
        if send.write_all(&[byte]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_hello_are_refused_and_counted() {
    let _alone = COUNTERS.lock().await;
    let mut attacked = Attacked::new(|_| {}).await;
    let whole = frame::encode(&hello("attacker", EPOCH));
    let mut stranger = hello("attacker", EPOCH);
    stranger.protocol_version = 0;
    let mut other = whole.clone();
    other[4..].fill(0xc1);
    let cases: [(&str, Vec<u8>, &str); 7] = [
        (
            "no frame",
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "hello_malformed",
        ),
        ("4 GiB", vec![0xff; 4], "hello_malformed"),
        ("cut in the length", whole[..2].to_vec(), "hello_malformed"),
        ("cut", whole[..whole.len() - 1].to_vec(), "hello_malformed"),
        ("no MessagePack", other, "hello_malformed"),
        ("nothing", Vec::new(), "hello_malformed"),
        (
            "no such version",
            frame::encode(&stranger),
            "hello_rejected",
        ),
    ];
    for (name, bytes, reason) in cases {
        let before = refusals(reason);
        let (reply, error) = attacked.says(&bytes).await;
        assert!(
            matches!(reply, Some(HelloReply::Refused { .. })),
            "{name}: {reply:?}"
        );
        assert!(is_closed_with(&error, close::REFUSED), "{name}: {error:?}");
        assert_eq!(refusals(reason), before + 1.0, "{name}");
        attacked.others_go_on().await;
    }
    // Additions are compatible, so what is newer is welcome.
    let mut newer = hello("newer", EPOCH);
    newer.protocol_version = u16::MAX;
    let address = attacked.collector.address;
    assert!(
        attacked
            .world
            .connect("newer", newer, address)
            .await
            .is_ok()
    );
    attacked.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_does_not_come_ends_the_connection() {
    let _alone = COUNTERS.lock().await;
    let mut attacked = Attacked::new(|_| {}).await;
    let before = refusals("hello_timeout");
    let (_silent, silent) = attacked.silent().await;
    let (_slow, slow) = attacked.silent().await;
    let (send, _recv) = slow.open_bi().await.unwrap();
    let dribbling = tokio::spawn(dribble(send));
    attacked.others_go_on().await;
    for connection in [&silent, &slow] {
        assert!(is_closed_with(&closed(connection).await, close::REFUSED));
    }
    dribbling.await.unwrap();
    assert_eq!(refusals("hello_timeout"), before + 2.0);
    attacked.stop().await;
}

/// Whoever reads no answer holds no place for longer than a bound, and does not keep others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_no_answer_is_let_go() {
    let _alone = COUNTERS.lock().await;
    let mut attacked = Attacked::new(|_| {}).await;
    let address = attacked.collector.address;
    let before = refusals("answer_timeout");
    let welcome = frame::encode(&hello("attacker", EPOCH));
    let stranger = frame::encode(&hello("somebody-else", EPOCH));
    let mut held = Vec::new();
    for says in [welcome, stranger, vec![0, 0, 0, 1, 0xc1]] {
        let (endpoint, connection) = attacked.world.deaf("attacker", address).await;
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&says).await.unwrap();
        held.push((endpoint, connection, send, recv));
    }
    attacked.others_go_on().await;
    for (_, connection, ..) in &held {
        assert!(is_closed_with(&closed(connection).await, close::REFUSED));
    }
    // The other two are counted by what they said.
    assert_eq!(refusals("answer_timeout"), before + 1.0);
    attacked.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_without_a_certificate_of_the_ca() {
    let _alone = COUNTERS.lock().await;
    let mut attacked = Attacked::new(|_| {}).await;
    let address = attacked.collector.address;
    let files = attacked.world.certificate("attacker");
    let mut roots = rustls::RootCertStore::empty();
    for ca in tls::certificates("CA", &files.ca).unwrap() {
        roots.add(ca).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let foreign = World::new();
    let files = foreign.certificate("attacker");
    let chain = tls::certificates("certificate", &files.certificate).unwrap();
    let key = rustls::pki_types::pem::PemObject::from_pem_file(&files.key).unwrap();
    let configs = [
        builder().with_no_client_auth(),
        builder().with_client_auth_cert(chain, key).unwrap(),
    ];
    for mut config in configs {
        config.alpn_protocols = vec![ALPN.to_vec()];
        let before = refusals("handshake");
        let (_endpoint, connection) = dial(config, address).await;
        // A client's side of a handshake ends before the server's.
        let error = match connection {
            Ok(connection) => closed(&connection).await,
            Err(error) => error,
        };
        assert!(
            matches!(error, ConnectionError::ConnectionClosed(_)),
            "{error:?}"
        );
        assert_eq!(refusals("handshake"), before + 1.0);
        attacked.others_go_on().await;
    }
    attacked.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_hello_are_bounded_and_take_no_place_of_a_session() {
    let _alone = COUNTERS.lock().await;
    let mut attacked = Attacked::new(|config| {
        config.quic.handshakes_max = 4;
        config.quic.sessions_max = 3;
        config.quic.hello_timeout_ms = 4000;
    })
    .await;
    let address = attacked.collector.address;
    let before = refusals("handshakes_full");
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(attacked.silent().await);
    }
    let (_endpoint, fifth) = attacked.world.silent("attacker", address).await;
    assert!(fifth.is_err(), "four are the bound");
    assert_eq!(refusals("handshakes_full"), before + 1.0);
    attacked.others_go_on().await;
    for (_, connection) in &held {
        assert!(is_closed_with(&closed(connection).await, close::REFUSED));
    }
    // Three sessions are the bound, and the silent ones took none.
    let agents = [
        attacked.world.agent("agent-1", &attacked.collector).await,
        attacked.world.agent("agent-2", &attacked.collector).await,
    ];
    let before = refusals("sessions_full");
    let (_endpoint, fourth) = attacked.world.silent("attacker", address).await;
    assert!(fourth.is_err());
    assert_eq!(refusals("sessions_full"), before + 1.0);
    for agent in agents {
        assert_eq!(acked(agent.send(1..=3).await), 3);
    }
    attacked.stop().await;
}

/// Name, header, body, and the reason and cause of the refusal.
type Case<'a> = (&'a str, Vec<u8>, &'a [u8], &'a str, RefusalCause);

/// A body that holds what its header says, but for what is changed.
fn body_of(records: u64) -> Vec<u8> {
    (1..=records).flat_map(|it| good(it).encode()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_break_the_protocol_are_refused_and_counted() {
    let _alone = COUNTERS.lock().await;
    let mut attacked = Attacked::new(|_| {}).await;
    let agent = attacked.world.agent("attacker", &attacked.collector).await;
    let body = body_of(3);
    let sound = batch::compress(&body).unwrap();
    let header = |first, count, bytes| frame::encode(&agent.header(first, count, bytes));
    let noise: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
    let zeros = vec![0; 64 << 20];
    let bomb = batch::compress(&zeros).unwrap();
    let values = batch::compress(&zeros[..8 << 20]).unwrap();
    let (events, protocol) = (RefusalCause::Events, RefusalCause::Protocol);
    let cases: [Case<'_>; 12] = [
        ("4 GiB", vec![0xff; 4], &sound, "header_malformed", protocol),
        (
            "noise",
            [&[0, 0, 0, 9][..], &noise[..9]].concat(),
            &sound,
            "header_malformed",
            protocol,
        ),
        (
            "cut",
            header(1, 3, body.len())[..9].to_vec(),
            &[],
            "header_malformed",
            protocol,
        ),
        (
            "sequence 0",
            header(0, 3, body.len()),
            &sound,
            "header_rejected",
            protocol,
        ),
        (
            "no events",
            header(1, 0, body.len()),
            &sound,
            "header_rejected",
            protocol,
        ),
        (
            "too many events",
            header(1, u32::MAX, 9),
            &sound,
            "over_limit",
            events,
        ),
        (
            "too many bytes",
            header(1, 3, 1 << 40),
            &sound,
            "over_limit",
            events,
        ),
        (
            "longer than announced",
            header(1, 3, 100),
            &noise,
            "body_too_long",
            events,
        ),
        (
            "noise for a body",
            header(1, 3, 4096),
            &noise,
            "body_malformed",
            events,
        ),
        (
            "other count",
            header(1, 2, body.len()),
            &sound,
            "body_malformed",
            events,
        ),
        (
            "zstd bomb",
            header(1, 3, 64 << 10),
            &bomb,
            "body_malformed",
            events,
        ),
        (
            "a value in every byte",
            header(1, 3, 8 << 20),
            &values,
            "body_malformed",
            events,
        ),
    ];
    for (name, header, body, reason, cause) in cases {
        let before = refusals(reason);
        let (mut send, mut recv) = agent.connection.open_bi().await.unwrap();
        // It may be stopped before everything is written.
        let written = async {
            send.write_all(&header).await.ok();
            send.write_all(body).await.ok();
            send.finish().ok();
        };
        let ((), reply) = tokio::join!(written, read_reply::<BatchReply>(&mut recv));
        assert!(
            matches!(&reply, Some(BatchReply::Refused { cause: found, .. }) if *found == cause),
            "{name}: {reply:?}"
        );
        assert_eq!(refusals(reason), before + 1.0, "{name}");
        attacked.others_go_on().await;
    }
    assert_eq!(acked(agent.send(1..=3).await), 3, "the session lives on");
    attacked.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_of_messagepack_go_to_quarantine() {
    let _alone = COUNTERS.lock().await;
    let attacked = Attacked::new(|_| {}).await;
    let agent = attacked.world.agent("attacker", &attacked.collector).await;
    // Arrays of one within each other; an array and a map of four thousand million; a binary as long.
    let bombs: [Vec<u8>; 4] = [
        vec![0x91; 1 << 20],
        vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        vec![0xdf, 0xff, 0xff, 0xff, 0xff],
        [&[0x9b, 0][..], &[0xc6, 0xff, 0xff, 0xff, 0xff]].concat(),
    ];
    let mut next = 1;
    for bomb in bombs {
        let body = [body_of(1), bomb].concat();
        let header = agent.header(next, 2, body.len());
        let reply = agent
            .send_raw(&header, &batch::compress(&body).unwrap())
            .await;
        assert_eq!(acked(reply), next + 1);
        next += 2;
    }
    let (world, last) = (&attacked.world, next - 1);
    world
        .assert_events("attacker", (1..=last).filter(|it| it % 2 == 1))
        .await;
    world
        .assert_quarantine("attacker", (1..=last).filter(|it| it % 2 == 0))
        .await;
    attacked.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_dribble_in_are_put_off() {
    let _alone = COUNTERS.lock().await;
    let mut attacked = Attacked::new(|_| {}).await;
    let agent = attacked.world.agent("attacker", &attacked.collector).await;
    let body = agent.header(1, 1, 1 << 20);
    let cases: [(&[u8], &str); 2] = [
        (&[], "header_timeout"),
        (&frame::encode(&body), "body_timeout"),
    ];
    for (first, reason) in cases {
        let before = refusals(reason);
        let (mut send, mut recv) = agent.connection.open_bi().await.unwrap();
        send.write_all(first).await.unwrap();
        let dribbling = tokio::spawn(dribble(send));
        attacked.others_go_on().await;
        let reply = tokio::time::timeout(PATIENCE, read_reply::<BatchReply>(&mut recv)).await;
        assert!(
            matches!(reply, Ok(Some(BatchReply::Retry { .. }))),
            "{reply:?}"
        );
        assert_eq!(refusals(reason), before + 1.0);
        // The rest is not read for ever either.
        tokio::time::timeout(PATIENCE, dribbling)
            .await
            .unwrap()
            .unwrap();
    }
    attacked.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_session_are_bounded() {
    let mut attacked = Attacked::new(|config| config.limits.batches_in_flight_max = 8).await;
    let agent = attacked.world.agent("attacker", &attacked.collector).await;
    let mut open = Vec::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1000) {
        let stream = agent.connection.open_bi();
        match tokio::time::timeout(Duration::from_millis(300), stream).await {
            Ok(stream) => {
                let (mut send, recv) = stream.unwrap();
                send.write_all(&[0]).await.unwrap();
                open.push((send, recv));
            }
            Err(_) => break,
        }
    }
    // One is that of Hello.
    assert_eq!(open.len(), 8);
    assert!(agent.connection.open_uni().now_or_never().is_none());
    attacked.others_go_on().await;
    attacked.stop().await;
}

/// In a process of its own: its memory is nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_announced_takes_little_memory_and_stops_nobody() {
    let program = Program::start("[commit]\ninterval_ms = 20\n").await;
    let program = program.unwrap();
    let attacker = program.agent("attacker").await.unwrap();
    let bystander = program.agent("bystander").await.unwrap();
    let header = |first, body_bytes| BatchHeader {
        epoch: program::EPOCH,
        first_sequence: first,
        count: 1,
        codec: Codec::Zstd,
        body_bytes,
    };
    let others_go_on = async |first: u64| {
        let body = good(first).encode();
        let header = header(first, body.len() as u64);
        let body = batch::compress(&body).unwrap();
        let reply = bystander.send(&header, &body).await;
        assert_eq!(acked(reply.ok()), first);
    };
    others_go_on(1).await;
    let before = program.rss().unwrap();
    let mut held = Vec::new();
    // Every stream announces the longest message and the largest body, and sends nothing of it.
    for first in 1..=64 {
        let (mut send, recv) = attacker.connection.open_bi().await.unwrap();
        let announced = match first % 2 {
            0 => 65_536_u32.to_be_bytes().to_vec(),
            _ => frame::encode(&header(first, 8 << 20)),
        };
        send.write_all(&announced).await.unwrap();
        held.push((send, recv));
    }
    for first in 2..=6 {
        others_go_on(first).await;
    }
    let grown = program.rss().unwrap().saturating_sub(before);
    assert!(
        grown < 48 << 20,
        "{grown} bytes for what was only announced"
    );
}
