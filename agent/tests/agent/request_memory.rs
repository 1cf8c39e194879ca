//! What requests take of the agent's memory, whatever their bodies become.

use std::io::Write;
use std::net::SocketAddr;

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::{BASIC, Response, Site, nobody, post, request, until_async};
use crate::process::{Process, config};

const MIB: u64 = 1 << 20;
/// The least that fits the other bounds below.
const MEMORY_BYTES_MAX: u64 = 13 * MIB;
const EVENTS: usize = 20_000;

async fn start(site: &Site) -> Process {
    start_with(site, "").await
}

async fn start_with(site: &Site, more: &str) -> Process {
    let text = config(site, nobody());
    let settings = format!(
        "{more}http.body_bytes_max = {MIB}\nhttp.inflated_bytes_max = {}\nhttp.memory_bytes_max = {MEMORY_BYTES_MAX}\n{text}",
        4 * MIB
    );
    Process::start_with(site, &settings).await
}

/// A small event, which becomes many times its size: it gets a record around it.
const SMALL: &str = "{\"type\":\"track\",\"event\":\"e\",\"userId\":\"u\"}\n";
/// A small bad one, of which the client hears.
const BAD: &str = "{}\n";

fn packed(line: &str, count: usize) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(line.repeat(count).as_bytes()).unwrap();
    packed.finish().unwrap()
}

async fn post_many(address: SocketAddr, line: &str, count: usize) -> Response {
    let body = packed(line, count);
    let answer = request(address, "POST", "/v1/events", &[BASIC], &body).await;
    answer.unwrap()
}

async fn held(process: &Process) -> f64 {
    process.metric("agent_request_memory_bytes").await
}

#[tokio::test]
async fn what_events_become_counts_before_it_is_made() {
    let site = Site::new();
    let process = start(&site).await;
    // Half a body holds a part of the memory for as long as it likes.
    let mut halves = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(process.address).await.unwrap();
        let head = format!("POST /v1/batch HTTP/1.1\r\ncontent-length: {MIB}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; 1 << 20][1..]).await.unwrap();
        halves.push(stream);
    }
    let half = 10.0 * (MIB - 1) as f64;
    until_async("the bodies are read", async || held(&process).await == half).await;
    // 1 MB of lines, a third of what is left.
    let refused = post_many(process.address, SMALL, EVENTS).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(held(&process).await, half);
    let taken = post(process.address, "/v1/track", r#"{"userId":"u"}"#).await;
    assert_eq!(taken.status, 200, "a small one still fits: {taken:?}");
    drop(halves);
    until_async("they are gone", async || held(&process).await == 0.0).await;
    assert_eq!(post_many(process.address, SMALL, EVENTS).await.status, 200);
    until_async("all is given back", async || held(&process).await == 0.0).await;
}

#[tokio::test]
async fn a_request_that_would_not_fit_alone_is_not_asked_for_again() {
    let site = Site::new();
    let settings = format!(
        "http.request_events_max = 200000\nhttp.body_bytes_max = {MIB}\n\
         http.inflated_bytes_max = {MIB}\nhttp.memory_bytes_max = {}\n{}",
        4 * MIB,
        config(&site, nobody())
    );
    let process = Process::start_with(&site, &settings).await;
    let answer = post_many(process.address, BAD, 200_000).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.body.contains("http.memory_bytes_max"), "{answer:?}");
    assert_eq!(held(&process).await, 0.0);
}

/// Requests so often that the kernel cannot take all answers.
const UNREAD: usize = 20;

/// Sends requests whose answers nobody reads.
async fn ask_and_do_not_read(address: SocketAddr) -> TcpStream {
    // Each event is told of by its place: 1.5 MB.
    let body = packed(BAD, EVENTS);
    let head = format!(
        "POST /v1/events HTTP/1.1\r\n{}: {}\r\ncontent-length: {}\r\n\r\n",
        BASIC.0,
        BASIC.1,
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    let requests = [head.as_bytes(), &body].concat().repeat(UNREAD);
    stream.write_all(&requests).await.unwrap();
    stream
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let site = Site::new();
    let process = start_with(&site, "http.idle_timeout_ms = 1000\n").await;
    let stream = ask_and_do_not_read(process.address).await;
    let closed = "agent_connections_closed_total{reason=\"timeout\"}";
    until_async("its connection is closed", async || {
        process.metric(closed).await == 1.0
    })
    .await;
    until_async("all is given back", async || held(&process).await == 0.0).await;
    let answered = process.metric("agent_requests_total{code=\"200\"}").await;
    assert!((1.0..UNREAD as f64).contains(&answered), "{answered}");
    drop(stream);
}

#[tokio::test]
async fn an_answer_counts_until_it_is_read() {
    let site = Site::new();
    let process = start(&site).await;
    let stream = ask_and_do_not_read(process.address).await;
    let mut before = (0.0, 0.0);
    until_async("an answer waits", async || {
        let answered = process.metric("agent_requests_total{code=\"200\"}").await;
        let now = (held(&process).await, answered);
        // It takes more while it is made.
        let is_one_answer = (1.0..=2.0).contains(&(now.0 / MIB as f64));
        std::mem::replace(&mut before, now) == now && is_one_answer
    })
    .await;
    let (_, answered) = before;
    assert!((1.0..UNREAD as f64).contains(&answered), "{answered}");
    drop(stream);
    until_async("all is given back", async || held(&process).await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_small_events_stays_within_the_memory() {
    let site = Site::new();
    let process = start(&site).await;
    assert_eq!(post_many(process.address, SMALL, 10).await.status, 200);
    let idle = process.peak_rss();
    let address = process.address;
    let mut flood = JoinSet::new();
    for _ in 0..64 {
        flood.spawn(async move {
            let mut statuses = Vec::new();
            for _ in 0..4 {
                statuses.push(post_many(address, SMALL, EVENTS).await.status);
            }
            statuses
        });
    }
    let statuses: Vec<u16> = flood.join_all().await.concat();
    let count = |status| statuses.iter().filter(|it| **it == status).count();
    let (taken, refused) = (count(200), count(429));
    let grown = process.peak_rss() - idle;
    println!(
        "{taken} requests of {EVENTS} events taken, {refused} refused: {} MiB at the start, {} more",
        idle / MIB,
        grown / MIB
    );
    assert_eq!(taken + refused, statuses.len(), "{statuses:?}");
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    assert!(grown < 2 * MEMORY_BYTES_MAX, "{} MiB", grown / MIB);
}
