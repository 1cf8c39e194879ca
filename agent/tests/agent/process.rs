//! The real program: killed at random moments, stopped, started with wrong settings.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rand::Rng;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{BASIC, PATIENCE, Response, Site, batch, nobody, request, until};

/// The agent as a process of its own.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: Arc<Mutex<Vec<serde_json::Value>>>,
}

impl Process {
    /// Starts with [`config`].
    pub(crate) async fn start(site: &Site, collector: SocketAddr) -> Self {
        Self::start_with(site, &config(site, collector)).await
    }

    /// Starts with a configuration file of this text, which logs JSON.
    pub(crate) async fn start_with(site: &Site, config: &str) -> Self {
        std::fs::write(site.path("agent.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_headwater-agent"))
            .arg("--config")
            .arg(site.path("agent.toml"))
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (address, admin) = loop {
            let line = lines.next_line().await.unwrap().expect("the agent starts");
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["fields"]["message"] == "agent runs" {
                let bound = |name: &str| line["fields"][name].as_str().unwrap().parse().unwrap();
                break (bound("address"), bound("admin_address"));
            }
        };
        let log: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
        let kept = log.clone();
        // Keeps the pipe empty.
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let line = serde_json::from_str(&line).unwrap_or_default();
                kept.lock().push(line);
            }
        });
        Self {
            child,
            address,
            admin,
            log,
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Returns the fields of the log lines with this message.
    pub(crate) fn logged(&self, message: &str) -> Vec<serde_json::Value> {
        let lines = self.log.lock();
        let fields = lines.iter().map(|line| &line["fields"]);
        fields
            .filter(|fields| fields["message"] == message)
            .cloned()
            .collect()
    }

    /// Asks the admin endpoint.
    pub(crate) async fn admin(&self, path: &str) -> Response {
        request(self.admin, "GET", path, &[], b"").await.unwrap()
    }

    /// Returns a metric's value; 0 when it has not been counted yet.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.admin("/metrics").await.body;
        text.lines()
            .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
            .unwrap_or(0.0)
    }
}

/// Settings of a process that ships to `collector` quickly.
pub(crate) fn config(site: &Site, collector: SocketAddr) -> String {
    let path = |name: &str| site.path(name).display().to_string();
    format!(
        r#"
        http.listen = "127.0.0.1:0"
        admin.listen = "127.0.0.1:0"
        log.format = "json"
        [buffer]
        directory = "{}"
        reserve_bytes = 0
        disk_free_bytes_min = 0
        generation_events_max = 300
        [collector]
        address = "{collector}"
        linger_ms = 5
        backoff_max_ms = 300
        [tls]
        certificate = "{}"
        key = "{}"
        ca = "{}"
        [[write_keys]]
        key = "key-1"
        company = "acme"
        source = "web"
        kind = "server"
        "#,
        path("buffer"),
        path("agent-1.pem"),
        path("agent-1.key"),
        path("ca.pem"),
    )
}

/// Posts batches of random size until the agent is gone; returns the ids that were answered with 200.
async fn post_until_killed(
    address: SocketAddr,
    name: String,
    acked: Arc<AtomicU64>,
) -> Vec<String> {
    let mut answered = Vec::new();
    for number in 0.. {
        let (count, padding) = {
            let mut random = rand::rng();
            let padding = if random.random_ratio(1, 10) {
                20_000
            } else {
                300
            };
            (random.random_range(1..=12), padding)
        };
        let ids: Vec<String> = (0..count)
            .map(|index| format!("{name}-{number}-{index}"))
            .collect();
        let body = batch(ids.iter().map(String::as_str), padding);
        match request(address, "POST", "/v1/batch", &[BASIC], body.as_bytes()).await {
            Ok(answer) if answer.status == 200 => {
                acked.fetch_add(count, Ordering::Relaxed);
                answered.extend(ids);
            }
            Ok(answer) => panic!("{answer:?}"),
            Err(_) => break,
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_agent_delivers_every_acknowledged_event() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut acknowledged = Vec::new();
    for round in 0..10 {
        // In some lives the collector is there, in others not.
        let to = if round % 3 == 0 {
            collector.address
        } else {
            nobody()
        };
        let mut process = Process::start(&site, to).await;
        let acked = Arc::new(AtomicU64::new(0));
        let posters: Vec<_> = (0..6)
            .map(|poster| {
                let name = format!("{round}-{poster}");
                tokio::spawn(post_until_killed(process.address, name, acked.clone()))
            })
            .collect();
        let moment = rand::rng().random_range(1..600);
        until("enough is acknowledged", || {
            acked.load(Ordering::Relaxed) >= moment
        })
        .await;
        process.child.kill().await.unwrap();
        for poster in posters {
            acknowledged.extend(poster.await.unwrap());
        }
    }
    let mut process = Process::start(&site, collector.address).await;
    let arrived = || -> BTreeSet<String> { tables.lock().message_ids().into_iter().collect() };
    until("all have arrived", || {
        let arrived = arrived();
        acknowledged.iter().all(|id| arrived.contains(id))
    })
    .await;
    process.child.kill().await.unwrap();
    let tables = tables.lock();
    assert!(
        acknowledged.len() > 300,
        "the run did something: {}",
        acknowledged.len()
    );
    assert_eq!(tables.epochs().len(), 1, "a kill needs no new epoch");
    let ids = tables.message_ids();
    assert_eq!(
        ids.len(),
        ids.iter().collect::<BTreeSet<_>>().len(),
        "no event has two positions"
    );
}

#[tokio::test]
async fn sigterm_ends_within_five_seconds_with_a_dead_collector() {
    let site = Site::new();
    let mut process = Process::start(&site, nobody()).await;
    let body = batch(["a", "b"], 10);
    let answer = request(
        process.address,
        "POST",
        "/v1/batch",
        &[BASIC],
        body.as_bytes(),
    )
    .await
    .unwrap();
    assert_eq!(answer.status, 200);
    let started = std::time::Instant::now();
    process.signal(rustix::process::Signal::TERM);
    let status = tokio::time::timeout(PATIENCE, process.child.wait())
        .await
        .unwrap()
        .unwrap();
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn wrong_settings_end_with_one_line_and_code_2() {
    let site = Site::new();
    let good = config(&site, nobody());
    let cases = [
        ("[http]\nlisten_at = 1\n".to_owned(), "listen_at"),
        (
            good.replace("reserve_bytes = 0", "disk_bytes_max = 5"),
            "buffer.disk_bytes_max",
        ),
        (good.replace("agent-1.pem", "missing.pem"), "missing.pem"),
        (good.replace("agent-1.key", "agent-2.key"), "agent-1.pem"),
    ];
    for (text, expected) in cases {
        std::fs::write(site.path("wrong.toml"), text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_headwater-agent"))
            .arg("--config")
            .arg(site.path("wrong.toml"))
            .output()
            .await
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains(expected), "{message}");
    }
    std::fs::write(site.path("right.toml"), good).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_headwater-agent"))
        .args(["--check-config", "--config"])
        .arg(site.path("right.toml"))
        .output()
        .await
        .unwrap();
    assert_eq!(output.stdout, b"configuration is valid\n");
}
