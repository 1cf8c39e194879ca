//! What an event costs here and elsewhere: CPU, memory and disk writes of the edge process beside
//! rsyslog (RELP in, synced disk queue, RELP out) and NATS JetStream (file storage, synced before the
//! ack), with the same events and the same promise: an ack to the client means that fdatasync has
//! returned, and an event is forgotten only after the receiver's ack.
//!
//! `cargo bench -p headwater-agent --bench peers` prints a Markdown table. It needs `rsyslogd` with
//! `imrelp` and `omrelp` (Debian: rsyslog, rsyslog-relp) and `nats-server` (2.12) in PATH. Clients and
//! receivers run in this process and are not counted.
//!
//! `HEADWATER_BENCH_DIR` is the directory, which must lie on a real disk (default: the target
//! directory); `HEADWATER_BENCH_SECONDS` the time of sending (default 15).

#![allow(clippy::unwrap_used, reason = "a bench stops at the first fault")]

#[path = "../tests/agent/collector.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod collector;
#[path = "../tests/agent/harness.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod harness;
#[path = "common/load.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod load;
#[path = "common/nats.rs"]
mod nats;
#[path = "common/relp.rs"]
mod relp;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use collector::{Collector, Manner, Tables};
use harness::Site;
use load::Load;
use parking_lot::Mutex;

const CONNECTIONS: usize = 16;

/// What one program used for what it carried.
struct Cost {
    events: u64,
    seconds: f64,
    cpu_s: f64,
    peak_rss_mib: f64,
    written_bytes: u64,
}

impl Cost {
    fn show(&self, name: &str) {
        let events = self.events as f64;
        println!(
            "| {name} | {} | {:.0} | {:.1} | {:.0} | {:.0} |",
            self.events,
            events / self.seconds,
            self.cpu_s / events * 1e6,
            self.peak_rss_mib,
            self.written_bytes as f64 / events,
        );
    }
}

/// The process that is measured; killed at the end.
struct Edge(Child);

impl Edge {
    fn start(program: &str, arguments: &[&str], listens: SocketAddr) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
        let edge = Self(child);
        until(program, || TcpStream::connect(listens).is_ok());
        edge
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap()
    }

    fn cost(&self, events: u64, seconds: f64) -> Cost {
        let stat = self.proc("stat");
        let ticks = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks: f64 = ticks
            .skip(11)
            .take(2)
            .map(|it| it.parse::<f64>().unwrap())
            .sum();
        let number = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let word = line.unwrap().split_whitespace().next();
            word.unwrap().parse().unwrap()
        };
        Cost {
            events,
            seconds,
            cpu_s: ticks / 100.0,
            peak_rss_mib: number(&self.proc("status"), "VmHWM:") as f64 / 1024.0,
            written_bytes: number(&self.proc("io"), "write_bytes:"),
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn headwater(directory: &Path, time: Duration) -> Cost {
    let site = Site::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let tables = Arc::new(Mutex::new(Tables::default()));
    let collector = runtime.block_on(Collector::start(&site, &tables, Manner::Counting));
    let (listen, admin) = (free_address(), free_address());
    let path = |name: &str| site.path(name).display().to_string();
    let config = format!(
        "http.listen = \"{listen}\"\nadmin.listen = \"{admin}\"\n\
         buffer.directory = \"{}\"\ncollector.addresses = [\"{}\"]\n\
         tls = {{ certificate = \"{}\", key = \"{}\", ca = \"{}\" }}\n\
         [[write_keys]]\nkey = \"key-1\"\ncompany = \"acme\"\nsource = \"web\"\nkind = \"server\"\n",
        directory.join("buffer").display(),
        collector.address,
        path("agent-1.pem"),
        path("agent-1.key"),
        path("ca.pem"),
    );
    std::fs::write(site.path("agent.toml"), config).unwrap();
    let file = path("agent.toml");
    let program = env!("CARGO_BIN_EXE_headwater-agent");
    let edge = Edge::start(program, &["--config", &file], listen);
    let started = Instant::now();
    let outcome = Load {
        address: listen,
        connections: CONNECTIONS,
        batches_per_s: None,
        time,
    }
    .run();
    assert_eq!(outcome.refused, 0);
    until("everything is committed", || {
        tables.lock().watermarks.values().sum::<u64>() >= outcome.events
    });
    let cost = edge.cost(outcome.events, started.elapsed().as_secs_f64());
    drop(edge);
    runtime.block_on(collector.stop());
    cost
}

fn rsyslog(directory: &Path, time: Duration) -> Cost {
    let (front, back) = (free_address(), free_address());
    let received = directory.join("received");
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let edge_directory = directory.join("edge");
    std::fs::create_dir(&edge_directory).unwrap();
    let edge_file = write(
        "edge.conf",
        format!(
            r#"global(workDirectory="{work}" maxMessageSize="64k")
module(load="imrelp")
module(load="omrelp")
template(name="raw" type="string" string="%rawmsg%")
input(type="imrelp" address="127.0.0.1" port="{port}" ruleset="ship")
ruleset(name="ship" queue.type="Disk" queue.filename="edge" queue.syncqueuefiles="on"
        queue.checkpointinterval="1" queue.maxdiskspace="8g" queue.dequeuebatchsize="1000") {{
  action(type="omrelp" target="127.0.0.1" port="{to}" template="raw" windowSize="1000"
         action.resumeretrycount="-1")
}}
"#,
            work = edge_directory.display(),
            port = front.port(),
            to = back.port(),
        ),
    );
    let sink_file = write(
        "sink.conf",
        format!(
            r#"global(workDirectory="{work}" maxMessageSize="64k")
module(load="imrelp")
template(name="line" type="string" string="%rawmsg%\n")
input(type="imrelp" address="127.0.0.1" port="{port}" ruleset="keep")
ruleset(name="keep") {{ action(type="omfile" file="{file}" template="line") }}
"#,
            work = directory.display(),
            port = back.port(),
            file = received.display(),
        ),
    );
    let pid = |name: &str| directory.join(name).display().to_string();
    let (sink_pid, edge_pid) = (pid("sink.pid"), pid("edge.pid"));
    let _sink = Edge::start("rsyslogd", &["-n", "-f", &sink_file, "-i", &sink_pid], back);
    let edge = Edge::start(
        "rsyslogd",
        &["-n", "-f", &edge_file, "-i", &edge_pid],
        front,
    );
    let started = Instant::now();
    let sent = in_parallel(|number| relp::send(front, number, time));
    until("everything is received", || {
        let bytes = std::fs::metadata(&received).map_or(0, |file| file.len());
        bytes >= sent * (load::EVENT_BYTES as u64 + 1)
    });
    edge.cost(sent, started.elapsed().as_secs_f64())
}

fn nats(directory: &Path, time: Duration) -> Cost {
    let listen = free_address();
    let file = directory.join("nats.conf");
    let config = format!(
        "listen: \"{listen}\"\njetstream {{ store_dir: \"{}\", sync_interval: always }}\n",
        directory.join("jetstream").display()
    );
    std::fs::write(&file, config).unwrap();
    let edge = Edge::start("nats-server", &["-c", &file.display().to_string()], listen);
    nats::create(listen);
    let started = Instant::now();
    let consumer = nats::consume(listen);
    let sent = in_parallel(|number| nats::send(listen, number, time));
    until("everything is consumed", || consumer.count() >= sent);
    edge.cost(sent, started.elapsed().as_secs_f64())
}

fn in_parallel(send: impl Fn(usize) -> u64 + Sync) -> u64 {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let send = &send;
                scope.spawn(move || send(number))
            })
            .collect();
        threads.into_iter().map(|it| it.join().unwrap()).sum()
    })
}

type Run = fn(&Path, Duration) -> Cost;

fn main() {
    if load::serve_as_load() {
        return;
    }
    let seconds = std::env::var("HEADWATER_BENCH_SECONDS");
    let seconds = seconds.ok().and_then(|it| it.parse().ok()).unwrap_or(15);
    let base = std::env::var_os("HEADWATER_BENCH_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    println!(
        "| edge process | events | events/s | CPU s per million events | peak RSS MiB | bytes written per event |"
    );
    println!("|---|---|---|---|---|---|");
    let peers: [(&str, Run); 3] = [
        ("headwater-agent", headwater),
        ("rsyslog", rsyslog),
        ("nats-server", nats),
    ];
    for (name, run) in peers {
        let directory = base.join(format!("peers-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("the bench directory is writable");
        run(&directory, Duration::from_secs(seconds)).show(name);
        std::fs::remove_dir_all(&directory).expect("the bench directory is ours");
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("\nload average at the end: {load}");
}
