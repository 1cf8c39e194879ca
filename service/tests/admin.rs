//! The admin endpoint under clients that open connections and do not use them.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headwater_service::admin::{self, Bounds, CONNECTIONS, CONNECTIONS_CLOSED, Document, Pages};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than anything here takes unless a rule is broken.
const FOREVER: Duration = Duration::from_secs(20);

/// The gauge counts the connections of the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Larger than what the kernel keeps of an answer that nobody reads.
const LARGE_BYTES: usize = 64 << 20;

struct Served {
    address: SocketAddr,
    _stop: DropGuard,
    _alone: MutexGuard<'static, ()>,
}

async fn serve(bounds: Bounds) -> Served {
    let alone = ALONE.lock().await;
    admin::init_metrics();
    until("the endpoint before is gone", || open() == 0).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let large: Document = Arc::new(|| "x".repeat(LARGE_BYTES));
    tokio::spawn(admin::serve_with(
        listener,
        move || bounds,
        Pages {
            documents: vec![("/large", large)],
            ..Pages::of(Arc::new(|| Ok(())))
        },
        stop.clone(),
    ));
    Served {
        address,
        _stop: stop.drop_guard(),
        _alone: alone,
    }
}

/// Waits until `holds`.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let mut looks = interval(Duration::from_millis(2));
    let looking = async {
        while !holds() {
            looks.tick().await;
        }
    };
    assert!(timeout(FOREVER, looking).await.is_ok(), "{what}");
}

fn sum(name: &str, label: &str) -> usize {
    let samples = admin::samples(name).into_iter();
    let values = samples.filter(|(labels, _)| labels.contains(label));
    values.map(|(_, value)| value as usize).sum()
}

fn open() -> usize {
    sum(CONNECTIONS, "")
}

fn closed(reason: &str) -> usize {
    sum(CONNECTIONS_CLOSED, reason)
}

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Opens connections that begin with `bytes`.
    async fn connect_many(&self, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = self.connect().await;
            stream.write_all(bytes).await.unwrap();
            streams.push(stream);
        }
        streams
    }

    /// Asks as a scraper does, and returns how long that took.
    async fn scrape(&self) -> Duration {
        let asked_at = Instant::now();
        let mut stream = self.connect().await;
        let answered = timeout(FOREVER, ask(&mut stream, "", 0)).await;
        assert!(answered.expect("nobody is kept out").contains("\r\n\r\nok"));
        asked_at.elapsed()
    }
}

/// Asks `/healthz` with a head that is at least `padding` bytes long; returns the answer, which is
/// empty when the connection ends instead.
async fn ask(stream: &mut TcpStream, header: &str, padding: usize) -> String {
    let padding = "x".repeat(padding);
    let head = format!("GET /healthz HTTP/1.1\r\nhost: h\r\n{header}pad: {padding}\r\n\r\n");
    let mut answer = Vec::new();
    if stream.write_all(head.as_bytes()).await.is_err() {
        return String::new();
    }
    while !answer.ends_with(b"ok\n") {
        match stream.read_buf(&mut answer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_silent_connections_keeps_nobody_out_and_stays_within_the_bound() {
    let bounds = Bounds {
        connections_max: 8,
        timeout_ms: 600_000,
        ..Bounds::default()
    };
    let served = serve(bounds).await;
    let gave_way = closed("gave_way");
    let ends = Arc::new(AtomicBool::new(false));
    let ended = ends.clone();
    let watching = std::thread::spawn(move || {
        let mut most = 0;
        while !ended.load(Ordering::Relaxed) {
            most = most.max(open());
        }
        most
    });
    let mut flood = JoinSet::new();
    for mut stream in served.connect_many(300, b"").await {
        flood.spawn(async move {
            let end = stream.read(&mut [0; 16]).await;
            assert!(!matches!(end, Ok(1..)), "nothing was asked");
        });
    }
    let took = served.scrape().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    // It stood behind all of them in the kernel's queue, so each had its place.
    for _ in 0..300 - bounds.connections_max {
        let ended = timeout(FOREVER, flood.join_next()).await;
        ended.expect("who gives way is closed").unwrap().unwrap();
    }
    ends.store(true, Ordering::Relaxed);
    let most = watching.join().unwrap();
    assert!((2..=8).contains(&most), "{most} connections at a time");
    assert!(closed("gave_way") - gave_way >= 292);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_has_its_place_for_no_longer_than_the_timeout() {
    let served = serve(Bounds {
        connections_max: 4,
        timeout_ms: 1000,
        ..Bounds::default()
    })
    .await;
    let before = closed("timeout");
    let mut streams = served
        .connect_many(4, b"GET /healthz HTTP/1.1\r\nx: ")
        .await;
    until("all places are taken", || open() == 4).await;
    let trickling = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(50));
        loop {
            ticks.tick().await;
            for stream in &mut streams {
                // Fails when it is closed at last.
                let _sent = stream.write_all(b"x").await.is_ok();
            }
        }
    });
    let took = served.scrape().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(closed("timeout") > before);
    trickling.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_has_its_place_for_no_longer_than_the_timeout() {
    let served = serve(Bounds {
        connections_max: 2,
        timeout_ms: 1000,
        ..Bounds::default()
    })
    .await;
    let before = closed("timeout");
    // With another request behind it nothing is read meanwhile either.
    let large = b"GET /large HTTP/1.1\r\nhost: h\r\n\r\n".repeat(2);
    let streams = served.connect_many(2, &large).await;
    until("both are closed", || closed("timeout") - before >= 2).await;
    let took = served.scrape().await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    for mut stream in streams {
        let mut answer = Vec::new();
        let _broken = stream.read_to_end(&mut answer).await.is_err();
        assert!((1..LARGE_BYTES).contains(&answer.len()), "{}", answer.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_above_the_bound_ends_its_connection_and_many_small_ones_do_not() {
    let served = serve(Bounds {
        timeout_ms: 1000,
        request_bytes_max: 2048,
        ..Bounds::default()
    })
    .await;
    let before = closed("request_bytes");
    let mut stream = served.connect().await;
    assert_eq!(ask(&mut stream, "", 2048).await, "");
    assert_eq!(closed("request_bytes") - before, 1);
    // A body counts as a head does.
    let mut stream = served.connect().await;
    let head = b"POST /healthz HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let part = [b'x'; 4096];
    let sending = async { while stream.write_all(&part).await.is_ok() {} };
    timeout(FOREVER, sending).await.expect("it is closed");

    // In all far above the bound, and for longer than the timeout.
    let mut stream = served.connect().await;
    let mut ticks = interval(Duration::from_millis(100));
    for _ in 0..20 {
        ticks.tick().await;
        assert!(ask(&mut stream, "", 1024).await.contains("200 OK"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_in_use_do_not_give_way() {
    let served = serve(Bounds {
        connections_max: 4,
        timeout_ms: 60_000,
        ..Bounds::default()
    })
    .await;
    // All at once, and more of them than places: nobody is asked to go.
    let gave_way = closed("gave_way");
    let mut asking = JoinSet::new();
    for mut stream in served.connect_many(12, b"GET /healthz HTTP/1.1\r\n").await {
        asking.spawn(async move {
            stream
                .write_all(b"connection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        });
    }
    while let Some(answer) = timeout(FOREVER, asking.join_next()).await.unwrap() {
        assert!(answer.unwrap().contains("200 OK"));
    }
    assert_eq!(closed("gave_way"), gave_way);
}
