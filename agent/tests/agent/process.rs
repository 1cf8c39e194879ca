//! The real program: stopped, and started with wrong settings.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{BASIC, PATIENCE, Response, Site, batch, nobody, request, until, until_async};

/// The agent as a process of its own.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: Arc<Mutex<Vec<serde_json::Value>>>,
    panics: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Process {
    /// Starts with [`config`].
    pub(crate) async fn start(site: &Site, collector: SocketAddr) -> Self {
        Self::start_with(site, &config(site, collector)).await
    }

    /// Starts with a configuration file of this text, which logs JSON.
    pub(crate) async fn start_with(site: &Site, config: &str) -> Self {
        Self::start_in(site, config, &[]).await
    }

    /// As [`Self::start_with`], with these variables in the environment.
    pub(crate) async fn start_in(site: &Site, config: &str, environment: &[(&str, &Path)]) -> Self {
        std::fs::write(site.path("agent.toml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_headwater-agent"))
            .arg("--config")
            .arg(site.path("agent.toml"))
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
        let panics: Arc<Mutex<Vec<String>>> = Arc::default();
        let keep = |line: &str| {
            if line.contains("panicked at") {
                panics.lock().push(line.to_owned());
            }
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            log.lock().push(line.clone());
            line
        };
        let (address, admin) = loop {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
            let line = line.expect("the agent starts in time").unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended: {:#?}", log.lock()));
            let line = keep(&line);
            if line["fields"]["message"] == "agent runs" {
                let bound = |name: &str| line["fields"][name].as_str().unwrap().parse().unwrap();
                break (bound("address"), bound("admin_address"));
            }
        };
        let (kept, noted) = (log.clone(), panics.clone());
        // Keeps the pipe empty.
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("panicked at") {
                    noted.lock().push(line.clone());
                }
                kept.lock()
                    .push(serde_json::from_str(&line).unwrap_or_default());
            }
        });
        Self {
            child,
            address,
            admin,
            log,
            panics,
            reader,
        }
    }

    /// Kills it with SIGKILL and returns what it said about panics.
    pub(crate) async fn kill(mut self) -> Vec<String> {
        self.child.kill().await.unwrap();
        self.reader.await.unwrap();
        std::mem::take(&mut *self.panics.lock())
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

    /// Returns the most memory that it has had in RAM so far, in bytes.
    pub(crate) fn peak_rss(&self) -> u64 {
        let id = self.child.id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() * 1024
    }
}

/// Builds the library to be preloaded from this source beside the tests.
pub(crate) async fn preload(site: &Site, source: &str) -> PathBuf {
    let library = site.path(source).with_extension("so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/agent")
        .join(source);
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .output();
    let built = built.await.expect("cc is installed, as for Rust");
    assert!(built.status.success(), "{built:?}");
    library
}

/// Settings of a process that ships to `collector` quickly.
pub(crate) fn config(site: &Site, collector: SocketAddr) -> String {
    let keys = "reserve_bytes = 0\n generation_events_max = 300";
    config_at(site, collector, &site.buffer(), keys)
}

/// The same with its buffer in `directory` and more keys for `[buffer]`.
pub(crate) fn config_at(
    site: &Site,
    collector: SocketAddr,
    directory: &Path,
    keys: &str,
) -> String {
    let path = |name: &str| site.path(name).display().to_string();
    format!(
        r#"
        http.listen = "127.0.0.1:0"
        admin.listen = "127.0.0.1:0"
        log.format = "json"
        [buffer]
        directory = "{}"
        disk_free_bytes_min = 0
        {keys}
        [collector]
        addresses = ["{collector}"]
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
        directory.display(),
        path("agent-1.pem"),
        path("agent-1.key"),
        path("ca.pem"),
    )
}

/// Posts one event after the other until the agent stops; returns the ids that were answered with 200.
async fn post_until_stopped(address: SocketAddr, name: String) -> Vec<String> {
    let mut answered = Vec::new();
    for number in 0.. {
        let id = format!("{name}-{number}");
        let body = batch([id.as_str()], 600);
        match request(address, "POST", "/v1/batch", &[BASIC], body.as_bytes()).await {
            Ok(answer) if answer.status == 200 => answered.push(id),
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{answer:?}");
                assert!(answer.header("retry-after").is_some());
                break;
            }
            Err(_) => break,
        }
    }
    answered
}

/// Opens a connection and sends `bytes`, which are no whole request.
async fn half_a_request(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_within_five_seconds_and_loses_nothing() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    // Takes the session and the batches, and answers none: half open.
    let silent = Collector::start(&site, &tables, Manner::Silent).await;
    let mut acknowledged = Vec::new();
    for (name, collector) in [("dead", nobody()), ("half open", silent.address)] {
        let mut process = Process::start(&site, collector).await;
        let address = process.address;
        let posters: Vec<_> = (0..4)
            .map(|poster| tokio::spawn(post_until_stopped(address, format!("{name}-{poster}"))))
            .collect();
        let slow_body = b"POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n{\"ba";
        let open = [
            half_a_request(address, slow_body).await,
            half_a_request(address, b"POST /v1/batch HT").await,
            half_a_request(address, b"").await,
        ];
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while process.metric("agent_buffered_events").await < 50.0 {
            assert!(
                tokio::time::Instant::now() < deadline,
                "nothing is buffered"
            );
        }
        let started = std::time::Instant::now();
        process.signal(rustix::process::Signal::TERM);
        let status = tokio::time::timeout(PATIENCE, process.child.wait()).await;
        let took = started.elapsed();
        assert!(took.as_secs() < 5, "{name}: {took:?}");
        assert_eq!(status.unwrap().unwrap().code(), Some(0), "{name}");
        for poster in posters {
            acknowledged.extend(poster.await.unwrap());
        }
        let hung = "the sequencer has not ended in time; what it answered is durable";
        assert!(
            process.logged(hung).is_empty(),
            "{name}: a client held the stop"
        );
        println!(
            "{name} collector, {} open connections: stopped in {took:?}",
            open.len()
        );
    }
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    until_arrived(&site, &tables, &acknowledged).await;
    println!(
        "{} events answered with 200: all arrived",
        acknowledged.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_within_five_seconds_on_a_slow_disk() {
    let site = Site::new();
    let [flag, waits] = ["slow", "waits"].map(|name| site.path(name));
    let library = preload(&site, "slow_disk.c").await;
    let environment = [
        ("LD_PRELOAD", library.as_path()),
        ("SLOW_DISK", flag.as_path()),
        ("SLOW_SYNC", waits.as_path()),
    ];
    let mut process = Process::start_in(&site, &config(&site, nobody()), &environment).await;
    let address = process.address;
    crate::harness::post_events(address, "e", 50, 600).await;
    std::fs::write(&flag, b"").unwrap();
    let waiting = tokio::spawn(post_until_stopped(address, "slow".to_owned()));
    until("a sync hangs", || waits.exists()).await;
    let started = std::time::Instant::now();
    process.signal(rustix::process::Signal::TERM);
    let status = tokio::time::timeout(PATIENCE, process.child.wait()).await;
    let took = started.elapsed();
    assert!(took.as_secs() < 5, "{took:?}");
    assert_eq!(status.unwrap().unwrap().code(), Some(0));
    let mut acknowledged = waiting.await.unwrap();
    acknowledged.extend((0..50).map(|index| format!("e-{index}")));
    std::fs::remove_file(&flag).unwrap();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    until_arrived(&site, &tables, &acknowledged).await;
    println!(
        "syncs of 20 s: stopped in {took:?}, {} events kept",
        acknowledged.len()
    );
}

#[tokio::test]
async fn gauges_follow_connections_and_bodies() {
    let site = Site::new();
    let process = Process::start(&site, nobody()).await;
    let gauges = async || {
        (
            process.metric("agent_connections_open").await,
            process.metric("agent_request_memory_bytes").await,
            process.metric("agent_queue_requests").await,
        )
    };
    let mut half = b"POST /v1/batch HTTP/1.1\r\ncontent-length: 90000\r\n\r\n".to_vec();
    half.resize(half.len() + 50_000, b' ');
    let first = half_a_request(process.address, &half).await;
    let second = half_a_request(process.address, &half).await;
    until_async("both are seen", async || {
        gauges().await == (2.0, 2.0 * 50_000.0, 0.0)
    })
    .await;
    drop((first, second));
    until_async("both are gone", async || gauges().await == (0.0, 0.0, 0.0)).await;
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

/// Starts the agent again beside a collector that answers, and waits until all that was answered with
/// 200 has arrived.
async fn until_arrived(site: &Site, tables: &Arc<Mutex<Tables>>, acknowledged: &[String]) {
    let prompt = Collector::start(site, tables, Manner::Prompt).await;
    let _process = Process::start(site, prompt.address).await;
    let arrived = || {
        let arrived: BTreeSet<String> = tables.lock().message_ids().into_iter().collect();
        acknowledged.iter().all(|id| arrived.contains(id))
    };
    until("all that was answered has arrived", arrived).await;
}
