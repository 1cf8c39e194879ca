//! Who and when: retries that are not stored twice, suppressed subjects, addresses, clocks.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use headwater_agent::Config;
use headwater_agent::buffer::{AppendError, Appender, Buffer};
use headwater_agent::config::BufferConfig;
use headwater_agent::reload::Settings;
use headwater_agent::sequencer::{Append, Entry, Sequencer};
use headwater_agent::window::Window;
use headwater_protocol::{Record, SourceKind, timestamp};
use parking_lot::Mutex;
use serde_json::json;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{Agent, Site, batch, event, nobody, post, request, until};
use crate::process::Process;

/// Returns whether any file below `directory` holds these bytes, as they are or compressed.
fn on_disk(directory: &Path, bytes: &[u8]) -> bool {
    let holds = |content: &[u8]| content.windows(bytes.len()).any(|it| it == bytes);
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return on_disk(&path, bytes);
        }
        let content = std::fs::read(&path).unwrap();
        let starts = (0..content.len()).filter(|&at| content[at..].starts_with(&ZSTD_MAGIC));
        holds(&content)
            || starts
                .into_iter()
                .any(|at| holds(&inflated(&content[at..])))
    })
}

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Returns what a frame holds, as far as it can be read.
fn inflated(frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let frame = zstd::Decoder::new(frame).unwrap().single_frame();
    // What came before damage, or before the end of a cut frame, is in `out`.
    drop(frame.take(1 << 20).read_to_end(&mut out));
    out
}

/// Accepted, duplicates and suppressed of an answer.
async fn counts(address: std::net::SocketAddr, body: &str) -> [u64; 3] {
    let answer = post(address, "/v1/batch", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let json = answer.json();
    ["accepted", "duplicates", "suppressed"].map(|name| json[name].as_u64().unwrap())
}

#[tokio::test]
async fn a_retry_is_answered_and_not_stored_again() {
    let site = Site::new();
    let tables = Arc::new(Mutex::new(Tables::default()));
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    assert_eq!(
        counts(agent.address, &batch(["a", "b"], 3)).await,
        [2, 0, 0]
    );
    assert_eq!(
        counts(agent.address, &batch(["a", "c"], 3)).await,
        [1, 1, 0]
    );
    // Twice in one request; and what was refused before it was stored is a duplicate as well.
    let bad = r#"{"type":"track","event":"E","messageId":"bad"}"#;
    let mixed = format!(
        r#"{{"batch":[{},{bad},{},{bad}]}}"#,
        event("d", 0),
        event("d", 0)
    );
    let answer = post(agent.address, "/v1/batch", &mixed).await.json();
    assert_eq!(
        (&answer["accepted"], &answer["duplicates"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(answer["rejected"].as_array().unwrap().len(), 1);
    // The same id with other bytes is for the tables to judge, and so is another company's event.
    assert_eq!(counts(agent.address, &batch(["a"], 4)).await, [1, 0, 0]);
    let other = request(
        agent.address,
        "POST",
        "/v1/batch",
        &[("x-write-key", "key-2")],
        batch(["a"], 3).as_bytes(),
    )
    .await
    .unwrap();
    assert_eq!(other.json()["duplicates"], 0);
    // Without an id nothing can be told.
    let nameless =
        r#"{"batch":[{"type":"identify","userId":"u"},{"type":"identify","userId":"u"}]}"#;
    assert_eq!(counts(agent.address, nameless).await, [2, 0, 0]);
    agent.until_drained().await;
    // 2 + 1 + 2 + 1 + 1 + 2 of the 13 that were sent.
    assert_eq!(tables.lock().events.len(), 9);
    agent.stop().await;
}

#[tokio::test]
async fn one_id_from_many_connections_is_stored_once() {
    const COPIES: usize = 64;
    let site = Site::new();
    let agent = Agent::start(site.config(nobody())).await;
    let body = batch(["x", "y", "z"], 10);
    let posts = (0..COPIES).map(|_| counts(agent.address, &body));
    let answers = futures::future::join_all(posts).await;
    let sum = |place: usize| answers.iter().map(|answer| answer[place]).sum::<u64>();
    assert_eq!((sum(0), sum(1)), (3, 3 * COPIES as u64 - 3));
    assert_eq!(agent.running.buffered(), 3);
    agent.stop().await;
}

#[tokio::test]
async fn a_retry_after_a_kill_is_not_stored_again() {
    let site = Site::new();
    let tables = Arc::new(Mutex::new(Tables::default()));
    let mut sent = 0;
    for round in 0..4 {
        let process = Process::start(&site, nobody()).await;
        for id in 0..20 {
            let body = batch([format!("{round}-{id}").as_str()], 50);
            assert_eq!(counts(process.address, &body).await, [1, 0, 0]);
            sent += 1;
        }
        // All of them come again, those of the rounds before too.
        for id in 0..20 {
            for round in 0..=round {
                let body = batch([format!("{round}-{id}").as_str()], 50);
                assert_eq!(counts(process.address, &body).await, [0, 1, 0]);
            }
        }
        let duplicates = process
            .metric("agent_events_received_total{verdict=\"duplicate\"}")
            .await;
        assert_eq!(duplicates as usize, 20 * (round + 1));
        assert_eq!(process.kill().await, Vec::<String>::new());
    }
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let process = Process::start(&site, collector.address).await;
    until("all events arrived", || tables.lock().ids.len() == sent).await;
    assert_eq!(tables.lock().events.len(), sent, "each is there once");
    process.kill().await;
    println!("{sent} events, 4 kills, each event sent again after each");
}

#[tokio::test]
async fn a_lost_window_stores_twice_and_loses_nothing() {
    let site = Site::new();
    for damage in ["gone", "cut", "garbage"] {
        let agent = Agent::start(site.config(nobody())).await;
        let ids: Vec<String> = (0..10).map(|n| format!("{damage}-{n}")).collect();
        let body = batch(ids.iter().map(String::as_str), 20);
        assert_eq!(counts(agent.address, &body).await, [10, 0, 0]);
        let buffered = agent.running.buffered();
        agent.stop().await;
        let window = site.buffer().join("window");
        match damage {
            "gone" => std::fs::remove_dir_all(&window).unwrap(),
            other => {
                for entry in std::fs::read_dir(&window).unwrap() {
                    let path = entry.unwrap().path();
                    let length = std::fs::metadata(&path).unwrap().len() as usize;
                    match other {
                        "cut" => {
                            std::fs::write(&path, &std::fs::read(&path).unwrap()[..length - 1])
                        }
                        _ => std::fs::write(&path, vec![b'x'; length]),
                    }
                    .unwrap();
                }
            }
        }
        let agent = Agent::start(site.config(nobody())).await;
        assert_eq!(agent.running.buffered(), buffered);
        assert_eq!(counts(agent.address, &body).await, [10, 0, 0], "{damage}");
        assert_eq!(counts(agent.address, &body).await, [0, 10, 0], "{damage}");
        agent.stop().await;
    }
}

/// Settings with a suppression list of this text.
fn suppressing(site: &Site, text: &str) -> Config {
    let mut config = site.config(nobody());
    let file = site.path("suppressed");
    std::fs::write(&file, text).unwrap();
    config.suppression.file = file;
    config
}

#[tokio::test]
async fn nothing_of_a_suppressed_subject_reaches_the_disk() {
    const SUBJECT: &str = "subject-7f3a91";
    let site = Site::new();
    let config = suppressing(
        &site,
        &format!("# asked to be forgotten\nacme\t{SUBJECT}\n"),
    );
    let event_bytes_max = config.http.event_bytes_max as usize;
    let agent = Agent::start(config).await;
    let of = |field: &str| {
        format!(r#"{{"type":"track","event":"E","messageId":"m","userId":"u",{field}}}"#)
    };
    let s = SUBJECT;
    let large = "x".repeat(event_bytes_max);
    let events = [
        of(&format!(r#""userId":"{s}""#)),
        of(&format!(r#""anonymousId":"{s}""#)),
        of(&format!(r#""previousId":"{s}""#)),
        of(&format!(r#""distinct_id":"{s}""#)),
        of(&format!(r#""context":{{"contact_id":"{s}"}}"#)),
        of(&format!(r#""properties":{{"contact_id":"{s}"}}"#)),
        of(&format!(r#""properties":{{"distinct_id":"{s}"}}"#)),
        // The last one wins where a parser reads it; the bytes would be there all the same.
        of(&format!(r#""userId":"{s}","userId":"other""#)),
        // Not valid, and too large.
        format!(r#"{{"userId":"{s}"}}"#),
        of(&format!(r#""userId":"{s}","properties":{{"p":"{large}"}}"#)),
    ];
    let body = format!(
        r#"{{"batch":[{},{}]}}"#,
        events.join(","),
        event("kept-1", 0)
    );
    assert_eq!(
        counts(agent.address, &body).await,
        [1, 0, events.len() as u64]
    );
    // Alone, in a body that is no JSON, and in a header's company only.
    let single = format!(r#"{{"event":"E","userId":"{s}"}}"#);
    let answer = post(agent.address, "/v1/track", &single).await.json();
    assert_eq!(
        (&answer["suppressed"], &answer["accepted"]),
        (&json!(1), &json!(0))
    );
    let broken = format!(r#"{{"batch":[{{"userId":"{s}"}}"#);
    assert_eq!(post(agent.address, "/v1/batch", &broken).await.status, 400);
    assert_eq!(agent.running.buffered(), 1);
    assert!(!on_disk(&site.buffer(), SUBJECT.as_bytes()));
    assert!(
        on_disk(&site.buffer(), b"kept-1"),
        "the search finds what is there"
    );
    // Another company's user of that name is somebody else.
    let theirs = [("x-write-key", "key-2")];
    let answer = request(
        agent.address,
        "POST",
        "/v1/track",
        &theirs,
        single.as_bytes(),
    )
    .await;
    assert_eq!(answer.unwrap().json()["accepted"], 1);
    assert!(on_disk(&site.buffer(), SUBJECT.as_bytes()));
    agent.stop().await;
    println!("{} events of the subject refused", events.len() + 2);
}

#[tokio::test]
async fn a_changed_list_is_taken_up_and_a_broken_one_is_not() {
    let site = Site::new();
    let config = suppressing(&site, "acme\tu-1\n");
    let file = config.suppression.file.clone();
    let agent = Agent::start(config).await;
    let suppressed = async |user: &str| {
        let body = format!(r#"{{"event":"E","userId":"{user}"}}"#);
        let answer = post(agent.address, "/v1/track", &body).await;
        answer.json()["suppressed"] == 1
    };
    assert!(suppressed("u-1").await && !suppressed("u-2").await);
    // Broken first: the one after it shows that it was looked at.
    std::fs::write(&file, "u-1 and u-2\n").unwrap();
    let deadline = tokio::time::Instant::now() + crate::harness::PATIENCE;
    let failures = "agent_suppression_failures_total";
    let admin = agent.running.admin_address;
    loop {
        assert!(tokio::time::Instant::now() < deadline, "never looked at");
        let metrics = request(admin, "GET", "/metrics", &[], b"")
            .await
            .unwrap()
            .body;
        let is_counted = |line: &str| {
            let value = line.strip_prefix(failures);
            value.is_some_and(|value| value.trim().parse::<f64>().is_ok_and(|it| it > 0.0))
        };
        if metrics.lines().any(is_counted) {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(suppressed("u-1").await && !suppressed("u-2").await);
    let new = site.path("suppressed.new");
    std::fs::write(&new, "acme\tu-2\n").unwrap();
    std::fs::rename(&new, &file).unwrap();
    while !suppressed("u-2").await {
        assert!(tokio::time::Instant::now() < deadline, "never taken up");
    }
    assert!(!suppressed("u-1").await);
    agent.stop().await;
}

#[tokio::test]
async fn a_broken_list_at_start_stops_the_start() {
    let site = Site::new();
    let config = suppressing(&site, "acme\tu-1\nno tab\n");
    let clock = headwater_service::clock::SystemClock::shared();
    let started = headwater_agent::start(config, clock, Default::default()).await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("line 2"), "{error}");
}

#[tokio::test]
async fn addresses_are_cut_before_the_disk_and_nothing_else_is_touched() {
    let site = Site::new();
    let tables = Arc::new(Mutex::new(Tables::default()));
    let agent = Agent::start(site.config(nobody())).await;
    let sent = r#"{"type":"track", "event":"\u00e9", "userId":1.50e3, "messageId":"a", "ip":"198.51.100.77",
        "context":{"ip" : "2001:db8:1:2::9"}, "properties":{"$ip":"198.51.100.78","zip":"198.51.100.79"}}"#;
    assert_eq!(
        counts(agent.address, &format!(r#"{{"batch":[{sent}]}}"#)).await,
        [1, 0, 0]
    );
    for whole in ["198.51.100.77", "198.51.100.78", "db8:1:2"] {
        assert!(!on_disk(&site.buffer(), whole.as_bytes()), "{whole}");
    }
    assert!(
        on_disk(&site.buffer(), b"198.51.100.79"),
        "no address by its key"
    );
    // An unreadable body is kept for quarantine without them.
    let broken = r#"{"batch":[{"context":{"ip":"198.51.100.66"}}"#;
    assert_eq!(post(agent.address, "/v1/batch", broken).await.status, 400);
    assert!(!on_disk(&site.buffer(), b"198.51.100.66"));
    agent.stop().await;
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    agent.until_drained().await;
    let expected = sent
        .replace("198.51.100.77", "198.51.100.0")
        .replace("198.51.100.78", "198.51.100.0")
        .replace("2001:db8:1:2::9", "2001:db8:1::");
    let record = tables.lock().records().next().unwrap().clone();
    assert_eq!(String::from_utf8_lossy(&record.body), expected);
    assert_eq!(record.ip.as_deref(), Some("127.0.0.0"));
    agent.stop().await;
}

#[tokio::test]
async fn a_record_carries_the_skew_of_its_device() {
    const HOUR_MS: i64 = 3_600_000;
    let site = Site::new();
    let tables = Arc::new(Mutex::new(Tables::default()));
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    let now = headwater_service::clock::SystemClock::shared().now();
    let iso = |ms: i64| timestamp::format(now + ms * 1000).unwrap();
    let send = async |key: &str, id: &str, device: &str, sent_at_ms: i64, retries: &str| {
        let body = format!(
            r#"{{"sentAt":"{}","batch":[{{"type":"track","event":"E","messageId":"{id}",{device}}}]}}"#,
            iso(sent_at_ms)
        );
        let headers = [("x-write-key", key), ("x-retry-count", retries)];
        let answer = request(
            agent.address,
            "POST",
            "/v1/batch",
            &headers,
            body.as_bytes(),
        )
        .await;
        assert_eq!(answer.unwrap().status, 200);
    };
    let anonymous = r#""anonymousId":"a-1""#;
    let device = r#""userId":"u","context":{"device":{"id":"d-1"}}"#;
    // A good clock, then a batch that was frozen six hours ago and says nothing of retries.
    send("key-1", "good", anonymous, 0, "0").await;
    send("key-1", "frozen", anonymous, -6 * HOUR_MS, "0").await;
    // Three days ahead, told by the device's id alone, then its retry.
    send("key-1", "ahead", device, 72 * HOUR_MS, "0").await;
    send("key-1", "retry", device, 71 * HOUR_MS, "3").await;
    // Nothing but a retry; a server; a client that names no device.
    send(
        "key-1",
        "unknown",
        r#""anonymousId":"a-2""#,
        -6 * HOUR_MS,
        "2",
    )
    .await;
    send("key-2", "server", anonymous, -6 * HOUR_MS, "0").await;
    send("key-1", "nobody", r#""userId":"u""#, -6 * HOUR_MS, "0").await;
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    let skew = |id: &str| {
        let named = |record: &&Record| {
            let body: serde_json::Value = serde_json::from_slice(&record.body).unwrap();
            body["messageId"] == id
        };
        tables.records().find(named).unwrap().skew_ms
    };
    // The test's own time passes between `now` and the arrival.
    let near = |skew: Option<i64>, expected: i64| {
        let off = skew.unwrap() - expected;
        assert!(
            (0..60_000).contains(&off),
            "{skew:?} is not near {expected}"
        );
    };
    near(skew("good"), 0);
    assert_eq!(skew("frozen"), skew("good"));
    near(skew("ahead"), -72 * HOUR_MS);
    assert_eq!(skew("retry"), skew("ahead"));
    for id in ["unknown", "server", "nobody"] {
        assert_eq!(skew(id), None, "{id}");
    }
}

/// The buffer's writer, failing on demand as on a full disk.
struct Faulty {
    appender: Appender,
    fails: Arc<AtomicBool>,
}

impl Append for Faulty {
    fn append(&mut self, records: &[&[u8]]) -> Result<(), AppendError> {
        if self.fails.load(Ordering::Relaxed) && !records.is_empty() {
            return Err(AppendError::DiskFull { wanted: 1 });
        }
        self.appender.append(records)
    }

    fn epoch(&self) -> u64 {
        self.appender.epoch()
    }

    fn durable(&self) -> u64 {
        self.appender.next() - 1
    }

    fn maintain(&mut self, settings: &BufferConfig) {
        Append::maintain(&mut self.appender, settings);
    }
}

#[tokio::test]
async fn an_event_that_could_not_be_stored_is_no_duplicate() {
    let site = Site::new();
    let config = site.config(nobody());
    let clock = headwater_service::clock::SystemClock::shared();
    let agent = "agent-1".parse().unwrap();
    let (buffer, appender) = Buffer::open(&config.buffer, &agent, clock).unwrap();
    let (window, fingerprinter) = Window::open(
        &config.buffer.directory,
        100,
        appender.epoch(),
        appender.next() - 1,
    )
    .unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let faulty = Faulty {
        appender,
        fails: fails.clone(),
    };
    let settings = Settings::fixed(config);
    let (sequencer, thread) = Sequencer::start(faulty, Some(window), settings).unwrap();
    let entry = |id: &str| {
        let record = Record::new(1, "acme", "web", SourceKind::Browser, "/v1/batch", id);
        Entry {
            fingerprint: Some(fingerprinter.fingerprint(&record)),
            record: record.encode(),
        }
    };
    let append = async |ids: &[&str], disk_is_full: bool| {
        fails.store(disk_is_full, Ordering::Relaxed);
        let entries = ids.iter().map(|id| entry(id)).collect();
        sequencer.append(entries, None).await.ok()
    };
    assert_eq!(append(&["a"], true).await, None);
    assert_eq!(
        append(&["a"], false).await,
        Some(vec![]),
        "it was not stored"
    );
    assert_eq!(append(&["a"], true).await, Some(vec![0]), "it is durable");
    assert_eq!(append(&["a", "b"], true).await, None);
    assert_eq!(append(&["a", "b"], false).await, Some(vec![0]));
    assert_eq!(append(&["c", "b", "c"], false).await, Some(vec![1, 2]));
    assert_eq!(buffer.buffered(), 3);
    drop(sequencer);
    thread.join().unwrap();
}
