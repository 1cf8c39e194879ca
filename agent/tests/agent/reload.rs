//! Settings that change under load, through the real process and its signal.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{BASIC, PATIENCE, Site, batch, event, nobody, request, until};
use crate::process::{Process, config};

const RELOADS: u64 = 10;

/// Writes other settings, sends SIGHUP and waits until the reload is counted as `result`.
async fn reload(process: &Process, site: &Site, config: &str, result: &str) {
    let series = format!("agent_reloads_total{{result=\"{result}\"}}");
    let before = process.metric(&series).await;
    std::fs::write(site.path("agent.toml"), config).unwrap();
    process.signal(Signal::HUP);
    above(process, &series, before).await;
}

/// Waits until a metric is above `bound`.
async fn above(process: &Process, series: &str, bound: f64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while process.metric(series).await <= bound {
        assert!(tokio::time::Instant::now() < deadline, "{series} stays");
    }
}

async fn status(address: SocketAddr, key: &str) -> u16 {
    let headers = [("x-write-key", key)];
    let body = event("probe", 10);
    let answer = request(address, "POST", "/v1/track", &headers, body.as_bytes()).await;
    answer.unwrap().status
}

/// Posts one event after the other on one connection until told to stop; returns their ids.
async fn post_on_one_connection(
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    posted: Arc<AtomicU64>,
) -> Vec<String> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = format!("kept-{}", ids.len());
        let body = event(&id, 100);
        let head = format!(
            "POST /v1/track HTTP/1.1\r\nhost: agent\r\n{}: {}\r\ncontent-length: {}\r\n\r\n",
            BASIC.0,
            BASIC.1,
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let read = stream.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "the connection was dropped");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        ids.push(id);
        posted.fetch_add(1, Ordering::Relaxed);
    }
    ids
}

async fn post_batches(
    address: SocketAddr,
    name: usize,
    stop: Arc<AtomicBool>,
    posted: Arc<AtomicU64>,
) -> Vec<String> {
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let batch_ids: Vec<String> = (0..10)
            .map(|index| format!("{name}-{}-{index}", ids.len()))
            .collect();
        let body = batch(batch_ids.iter().map(String::as_str), 100);
        let answer = request(address, "POST", "/v1/batch", &[BASIC], body.as_bytes()).await;
        assert_eq!(answer.unwrap().status, 200);
        ids.extend(batch_ids);
        posted.fetch_add(1, Ordering::Relaxed);
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_under_load_fails_no_request_and_drops_no_connection() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let base = config(&site, collector.address);
    let process = Process::start_with(&site, &base).await;
    let (stop, posted) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let address = process.address;
    let mut posters = vec![tokio::spawn(post_on_one_connection(
        address,
        stop.clone(),
        posted.clone(),
    ))];
    for name in 0..3 {
        let (stop, posted) = (stop.clone(), posted.clone());
        posters.push(tokio::spawn(post_batches(address, name, stop, posted)));
    }
    for round in 1..=RELOADS {
        let before = posted.load(Ordering::Relaxed);
        // Another key, other bounds, and settings that renew the session with the collector.
        let changed = format!(
            "http.retry_after_s = {round}\nhttp.connections_max = {}\nlog.level = \"{}\"\n{}\n\
             [[write_keys]]\nkey = \"round-{round}\"\ncompany = \"acme\"\nsource = \"web\"\nkind = \"server\"\n",
            500 + round,
            if round % 2 == 0 { "info" } else { "debug" },
            base.replace("linger_ms = 5", &format!("linger_ms = {}", 5 + round)),
        );
        let sessions = process.metric("agent_sessions_total").await;
        reload(&process, &site, &changed, "applied").await;
        assert_eq!(status(address, &format!("round-{round}")).await, 200);
        assert_eq!(status(address, &format!("round-{}", round - 1)).await, 401);
        above(&process, "agent_sessions_total", sessions).await;
        until("requests go on", || {
            posted.load(Ordering::Relaxed) > before + 20
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut ids = Vec::new();
    for poster in posters {
        ids.extend(poster.await.unwrap());
    }
    let arrived = || {
        let tables = tables.lock();
        let stored: std::collections::HashSet<String> = tables.message_ids().into_iter().collect();
        ids.iter().all(|id| stored.contains(id))
    };
    until("all have arrived", arrived).await;
    let sessions = process.metric("agent_sessions_total").await;
    println!(
        "{RELOADS} reloads over {} requests, {} events, {sessions} sessions: none failed",
        posted.load(Ordering::Relaxed),
        ids.len(),
    );
}

#[tokio::test]
async fn reload_names_what_needs_a_restart_and_refuses_a_wrong_file() {
    let site = Site::new();
    let base = config(&site, nobody());
    let process = Process::start_with(&site, &base).await;
    let other_agent = base
        .replace("agent-1.pem", "agent-2.pem")
        .replace("agent-1.key", "agent-2.key");
    let cases = [
        (
            base.replacen("127.0.0.1:0", "127.0.0.1:1", 1),
            "http.listen",
        ),
        (base.replace("/buffer\"", "/other\""), "buffer.directory"),
        (
            base.replace("reserve_bytes = 0", "reserve_bytes = 9"),
            "buffer.reserve_bytes",
        ),
        (base.replace("\"json\"", "\"pretty\""), "log.format"),
        (other_agent, "tls.certificate (it names another agent)"),
    ];
    for (number, (text, key)) in cases.into_iter().enumerate() {
        // The rest of the same file is taken.
        let write_key = format!("write-key-{number}");
        let text = text.replace("\"key-1\"", &format!("\"{write_key}\""));
        reload(&process, &site, &text, "restart_needed").await;
        let logged = || process.logged("this setting changes only with a restart of the agent");
        until("the key is named", || logged().len() == number + 1).await;
        assert_eq!(logged()[number]["key"], key);
        assert_eq!(status(process.address, &write_key).await, 200);
    }
    let wrong = [
        base.replace("linger_ms", "lingering_ms"),
        base.replace("agent-1.key", "missing.key"),
        base.replace("backoff_max_ms = 300", "backoff_max_ms = 0"),
        "not toml".to_owned(),
    ];
    reload(&process, &site, &base, "applied").await;
    for text in wrong {
        let text = text.replace("\"key-1\"", "\"never\"");
        reload(&process, &site, &text, "invalid").await;
        assert_eq!(status(process.address, "never").await, 401);
        assert_eq!(status(process.address, "key-1").await, 200);
    }
    let refused = || process.logged("reload refused; the settings before it stay in force");
    until("the reasons are named", || refused().len() == 4).await;
    assert!(
        refused()[1]["reason"]
            .as_str()
            .unwrap()
            .contains("missing.key")
    );
}

#[tokio::test]
async fn the_admin_endpoint_takes_up_other_bounds() {
    let site = Site::new();
    let base = config(&site, nobody());
    let process = Process::start_with(&site, &base).await;
    let mut silent = JoinSet::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(process.admin).await.unwrap();
        silent.spawn(async move { stream.read(&mut [0; 16]).await.unwrap_or(0) });
    }
    let open = process.metric("admin_connections_open").await;
    assert!(open >= 21.0, "64 may be open, {open} are");
    let fewer = format!("admin.connections_max = 4\n{base}");
    reload(&process, &site, &fewer, "applied").await;
    // The next one makes them go.
    let open = process.metric("admin_connections_open").await;
    assert!(open <= 4.0, "{open} are open");
    for _ in 0..17 {
        assert_eq!(silent.join_next().await.unwrap().unwrap(), 0);
    }
    let shorter = format!("admin.timeout_ms = 1000\n{base}");
    reload(&process, &site, &shorter, "applied").await;
    let mut stream = TcpStream::connect(process.admin).await.unwrap();
    stream.write_all(b"GET /metrics").await.unwrap();
    let ended = timeout(PATIENCE, stream.read(&mut [0; 16])).await;
    assert_eq!(ended.expect("closed after a second").unwrap_or(0), 0);
    let none = format!("admin.connections_max = 1\n{base}");
    reload(&process, &site, &none, "invalid").await;
}

#[tokio::test]
async fn another_list_is_taken_up_while_the_collector_only_says_retry() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let busy = Collector::start(&site, &tables, Manner::RetryAll(5)).await;
    let other = Collector::start(&site, &tables, Manner::Prompt).await;
    let base = config(&site, busy.address);
    let base = base.replace("[collector]", "[collector]\nstall_timeout_ms = 100");
    let list = |second: SocketAddr| {
        let first = format!("\"{}\"", busy.address);
        let with = base.replace(&first, &format!("{first}, \"{second}\""));
        assert_ne!(with, base);
        with
    };
    let process = Process::start_with(&site, &list(nobody())).await;
    assert_eq!(status(process.address, "key-1").await, 200);
    let in_vain = "agent_handovers_total{reason=\"retries\",result=\"failed\"}";
    above(&process, in_vain, 0.0).await;
    let changed = base.replace(&busy.address.to_string(), &other.address.to_string());
    reload(&process, &site, &changed, "applied").await;
    until("it goes to the other", || tables.lock().ids.len() == 1).await;
    let visits = tables.lock().visits.clone();
    assert_eq!(visits.last().unwrap().0, other.address);
}
