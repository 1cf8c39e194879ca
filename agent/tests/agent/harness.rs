//! What the tests share: certificates, an agent in this process, a plain HTTP client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use headwater_agent::config::WriteKey;
use headwater_agent::{Config, Running};
use headwater_protocol::SourceKind;
use headwater_service::clock::SystemClock;
use headwater_service::tls::TlsFiles;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use authority::Authority;

#[path = "authority.rs"]
pub(crate) mod authority;

/// No test waits longer than this for anything; a host with ten times the load is still quicker.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A directory with a CA, the collector's certificate and the agent's.
pub(crate) struct Site {
    directory: tempfile::TempDir,
    pub(crate) authority: Authority,
}

impl Site {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("test CA");
        std::fs::write(directory.path().join("ca.pem"), &authority.pem).unwrap();
        for (name, host) in [
            ("collector", "localhost"),
            ("agent-1", "agent-1"),
            ("agent-2", "agent-2"),
        ] {
            authority.issue(directory.path(), name, host);
        }
        Self {
            directory,
            authority,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn tls(&self, name: &str) -> TlsFiles {
        TlsFiles {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
            ca: self.path("ca.pem"),
        }
    }

    pub(crate) fn buffer(&self) -> PathBuf {
        self.path("buffer")
    }

    /// Settings for an agent that ships to `collector` quickly.
    pub(crate) fn config(&self, collector: SocketAddr) -> Config {
        let keys = vec![
            write_key("key-1", "acme", "web", SourceKind::Browser),
            write_key("key-2", "globex", "server", SourceKind::Server),
        ];
        let mut config = Config::new(self.tls("agent-1"), keys);
        config.http.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.admin.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.buffer.directory = self.buffer();
        config.buffer.reserve_bytes = 0;
        config.buffer.disk_free_bytes_min = 0;
        config.collector.addresses = vec![collector.to_string()];
        config.collector.linger_ms = 5;
        config.collector.backoff_min_ms = 20;
        config.collector.backoff_max_ms = 100;
        // A handshake takes that long on a busy host.
        config.collector.connect_timeout_ms = 2000;
        config.collector.stop_drain_ms = 200;
        config
    }
}

fn write_key(key: &str, company: &str, source: &str, kind: SourceKind) -> WriteKey {
    WriteKey {
        key: key.to_owned(),
        company: company.to_owned(),
        source: source.to_owned(),
        kind,
    }
}

/// An address where nobody answers.
pub(crate) fn nobody() -> SocketAddr {
    // Held until the test ends, so that no other test's collector gets the port.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::mem::forget(socket);
    address
}

/// An agent in this process.
pub(crate) struct Agent {
    pub(crate) running: Running,
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
}

impl Agent {
    pub(crate) async fn start(config: Config) -> Self {
        let stop = CancellationToken::new();
        let running = headwater_agent::start(config, SystemClock::shared(), stop.clone())
            .await
            .unwrap();
        let address = running.address;
        Self {
            running,
            address,
            stop,
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running.finished())
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) async fn until_drained(&self) {
        until("the buffer is drained", || self.running.buffered() == 0).await;
    }
}

/// Returns how often a long test does its work: `short`, or `full` when `HEADWATER_SOAK=1`.
pub(crate) fn soak(short: usize, full: usize) -> usize {
    if std::env::var("HEADWATER_SOAK").is_ok_and(|value| value == "1") {
        full
    } else {
        short
    }
}

/// Returns and prints the seed of a test's random choices: `HEADWATER_SEED`, or a new one.
pub(crate) fn seed(test: &str) -> u64 {
    let given = std::env::var("HEADWATER_SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("{test}: HEADWATER_SEED={seed}");
    seed
}

/// Waits until `holds`.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until an attempt succeeds.
pub(crate) async fn until_async(what: &str, mut attempt: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !attempt().await {
        assert!(tokio::time::Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Sends one request; an error when the connection breaks before the answer is whole.
pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address).await?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    // The agent may answer and close before it has read all of a body that is too large.
    let written = stream.write_all(&bytes).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        written?;
        read?;
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    let length: usize = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    if body.len() < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Response {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// `Authorization` of write key `key-1`.
pub(crate) const BASIC: (&str, &str) = ("authorization", "Basic a2V5LTE6");

/// Posts `body` with the key of company `acme`.
pub(crate) async fn post(address: SocketAddr, path: &str, body: &str) -> Response {
    request(address, "POST", path, &[BASIC], body.as_bytes())
        .await
        .unwrap()
}

/// Letters that hardly compress.
static NOISE: LazyLock<String> = LazyLock::new(|| {
    let mut bytes = vec![0; 2 << 20];
    rand::Rng::fill(&mut StdRng::seed_from_u64(1), &mut bytes[..]);
    bytes
        .iter()
        .map(|byte| char::from(b'0' + byte % 43))
        .collect()
});

/// A valid event with this id; `padding` bytes, at most 1 MiB, are added to it, which hardly compress.
pub(crate) fn event(id: &str, padding: usize) -> String {
    let from = crc32fast::hash(id.as_bytes()) as usize % (1 << 20);
    let padding = &NOISE[from..from + padding];
    format!(
        r#"{{"type":"track","event":"Conversation Started","userId":"u1","messageId":"{id}","properties":{{"p":"{padding}"}}}}"#
    )
}

/// A batch of the events with these ids.
pub(crate) fn batch<'a>(ids: impl IntoIterator<Item = &'a str>, padding: usize) -> String {
    let events: Vec<String> = ids.into_iter().map(|id| event(id, padding)).collect();
    format!(
        r#"{{"batch":[{}],"sentAt":"2026-01-01T00:00:00Z"}}"#,
        events.join(",")
    )
}

/// Posts `count` events in requests of ten with ids `prefix-0..`; all must be accepted.
pub(crate) async fn post_events(address: SocketAddr, prefix: &str, count: usize, padding: usize) {
    let ids: Vec<String> = (0..count)
        .map(|index| format!("{prefix}-{index}"))
        .collect();
    for part in ids.chunks(10) {
        let answer = post(
            address,
            "/v1/batch",
            &batch(part.iter().map(String::as_str), padding),
        )
        .await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

pub(crate) fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Returns the bytes that `path` and all below it take on disk.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    metadata.blocks() * 512 + below.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}
