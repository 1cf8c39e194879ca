//! What whoever runs a collector sees: whether it is ready, and what its metrics say.

use std::net::SocketAddr;
use std::sync::Arc;

use headwater_collector::commit::{CommitPoint, NoHook};
use headwater_protocol::{BatchHeader, Codec, Record, batch};
use headwater_tables::{CatalogConfig, DataFile, write};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::faults::Gate;
use crate::hostile::PATIENCE;
use crate::program::{self, Program};
use crate::world::{World, acked, debatable, is_bad, mixed};

/// Asks the admin endpoint and returns status line, head and body.
pub(crate) async fn get(admin: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Asks until the answer holds `text`.
pub(crate) async fn until(admin: SocketAddr, path: &str, text: &str) {
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(10));
    let ask = async {
        while !get(admin, path).await.contains(text) {
            looks.tick().await;
        }
    };
    let asked = tokio::time::timeout(PATIENCE, ask).await;
    asked.unwrap_or_else(|_| panic!("{path} does not say {text:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_without_work_says_whether_it_could_do_some() {
    let world = World::new();
    let mut config = world.config();
    config.commit.look_interval_ms = 50;
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let admin = collector.running.admin_address;
    assert!(get(admin, "/readyz").await.contains("200 OK"));

    let (store, away) = (world.path("warehouse"), world.path("away"));
    std::fs::rename(&store, &away).unwrap();
    until(admin, "/readyz", "503").await;
    assert!(get(admin, "/readyz").await.contains("the store has no"));
    std::fs::rename(&away, &store).unwrap();
    until(admin, "/readyz", "200 OK").await;

    for (from, to, says) in [
        ("iceberg_tables", "away", "503"),
        ("away", "iceberg_tables", "200 OK"),
    ] {
        world.rename_table(from, to).await;
        until(admin, "/readyz", says).await;
    }
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send(1..=3).await), 3);
    collector.stop().await;
}

/// Returns the value of a series.
fn value(text: &str, series: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(series));
    let found = found.unwrap_or_else(|| panic!("no {series} in {text}"));
    found.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_show_freshness_reasons_companies_and_who_is_behind() {
    let world = World::new();
    let collector = world.collector().await;
    let admin = collector.running.admin_address;
    let agent = world.agent("agent-behind", &collector).await;
    // Whoever else commits in this process is older than a day as well, by the records' clock.
    assert_eq!(acked(agent.send_records(1, &mixed(1..=30)).await), 30);
    let text = get(admin, "/metrics").await;
    let bad = (1..=30).filter(|it| is_bad(*it)).count() as f64;
    let quarantined = "collector_events_quarantined_total{reason=\"identity_missing\"}";
    assert!(value(&text, quarantined) >= bad);
    assert!(value(&text, "collector_freshness_seconds_bucket{le=\"+Inf\"}") >= 30.0 - bad);
    assert!(value(&text, "collector_commit_seconds_bucket{le=\"60\"}") >= 1.0);
    // This collector's own.
    let company = value(&text, "collector_company_events_total{company=\"acme\"}");
    assert_eq!(company, 30.0 - bad);
    assert!(!text.contains("agent-behind"), "nobody is behind");

    // What comes too early is not committed.
    drop(agent.send(40..=50).await);
    let text = get(admin, "/metrics").await;
    assert_eq!(
        value(&text, "collector_agent_lag_events{agent=\"agent-behind\"}"),
        20.0
    );
    assert!(value(&text, "collector_agent_lag_seconds{agent=\"agent-behind\"}") > 0.0);
    assert_eq!(acked(agent.send(31..=50).await), 50);
    let text = get(admin, "/metrics").await;
    assert!(!text.contains("agent-behind"), "it has caught up");
    collector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_oldest_batch_grows_older_while_its_commit_stands_still() {
    let world = World::new();
    let gate = Gate::at(CommitPoint::Planned);
    let collector = world.collector_with(world.config(), gate.clone()).await;
    let admin = collector.running.admin_address;
    let agent = world.agent("agent-1", &collector).await;
    let age = async || -> Option<f64> {
        let text = get(admin, "/metrics").await;
        let series = "collector_staged_oldest_seconds ";
        let found = text.lines().find_map(|line| line.strip_prefix(series));
        found?.parse().ok()
    };
    let grows = async {
        gate.reached().await;
        let before = age().await;
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(10));
        let wait = async {
            while age().await <= before {
                looks.tick().await;
            }
        };
        let grown = tokio::time::timeout(PATIENCE, wait).await;
        gate.open();
        (before, grown)
    };
    let (reply, (before, grown)) = tokio::join!(agent.send(1..=3), grows);
    assert_eq!(acked(reply), 3);
    assert!(before.is_some_and(|age| age > 0.0), "{before:?}");
    assert!(grown.is_ok(), "it stays at {before:?}");
    // Nothing waits any more.
    until(admin, "/metrics", "collector_staged_oldest_seconds 0\n").await;
    collector.stop().await;
}

/// Sends records to a program and waits until they are acked.
async fn send_to_program(agent: &program::Agent, first: u64, records: &[Record]) {
    let body: Vec<u8> = records.iter().flat_map(Record::encode).collect();
    let header = BatchHeader {
        epoch: program::EPOCH,
        first_sequence: first,
        count: records.len() as u32,
        codec: Codec::Zstd,
        body_bytes: body.len() as u64,
    };
    let reply = agent.send(&header, &batch::compress(&body).unwrap()).await;
    assert_eq!(acked(reply.ok()), first + records.len() as u64 - 1);
}

/// Of a process of its own, whose counters nobody else moves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_of_the_tables_say_what_the_tables_hold() {
    let mut world = World::new();
    let program = Program::start("[commit]\ninterval_ms = 20\n")
        .await
        .unwrap();
    world.catalog = CatalogConfig::local(program.directory.path());
    let agent = program.agent("agent-1").await.unwrap();
    for first in [1, 11, 21] {
        send_to_program(&agent, first, &mixed(first..=first + 9)).await;
    }
    let text = get(program.admin, "/metrics").await;
    for table in [world.events().await, world.quarantine().await] {
        let live = write::live_files(&table).await.unwrap();
        assert!(live.len() >= 3, "each batch has a file of its own");
        let rows: u64 = live.iter().map(DataFile::record_count).sum();
        let bytes: u64 = live.iter().map(DataFile::file_size_in_bytes).sum();
        // Those that fence the table are commits as well.
        let commits = table.metadata().snapshots().len() as u64;
        let of_table = format!("table=\"{}\"", table.identifier());
        for (series, held) in [
            (format!("tables_rows_written_total{{{of_table}}}"), rows),
            (format!("tables_written_bytes_total{{{of_table}}}"), bytes),
            (
                format!("tables_files_written_total{{{of_table}}}"),
                live.len() as u64,
            ),
            (
                format!("tables_commits_total{{{of_table},outcome=\"committed\"}}"),
                commits,
            ),
        ] {
            assert_eq!(value(&text, &series), held as f64, "{series}");
        }
    }
}

/// The program itself, and the signal that operators send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_brings_a_new_plan_and_ends_no_session() {
    let mut world = World::new();
    let plan = world.path("plan");
    std::fs::create_dir(&plan).unwrap();
    let say = |text: &str| std::fs::write(plan.join("signed_in.json"), text).unwrap();
    let mode = |mode: &str| {
        say(&format!(
            r#"{{"event":"Signed In","version":1,"mode":"{mode}","schema":{{"required":["method"]}}}}"#
        ));
    };
    mode("note");
    let settings = format!(
        "[plan]\ndirectory = {:?}\n[commit]\ninterval_ms = 20\n",
        plan.display().to_string()
    );
    let program = Program::start(&settings).await.unwrap();
    world.catalog = CatalogConfig::local(program.directory.path());
    let agent = program.agent("agent-1").await.unwrap();
    let send = async |sequence: u64| {
        send_to_program(&agent, sequence, &[debatable(sequence, true)]).await;
    };
    let reloaded = async |result: &str| {
        let id = Pid::from_child(&program.child);
        kill_process(id, Signal::HUP).unwrap();
        let counted = format!("collector_plan_reloads_total{{result=\"{result}\"}} 1\n");
        until(program.admin, "/metrics", &counted).await;
    };
    send(1).await;
    mode("quarantine");
    reloaded("applied").await;
    send(2).await;
    say("{");
    reloaded("invalid").await;
    send(3).await;
    world.assert_events("agent-1", 1..=1).await;
    world.assert_quarantine("agent-1", 2..=3).await;
}
