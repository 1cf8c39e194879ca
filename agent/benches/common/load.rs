//! A load generator that is as light as can be: threads with blocking sockets send bodies that were
//! rendered before, in which only the message ids change.
//!
//! A test runs it beside itself ([`Load::run_here`]). A bench starts its own program again as the load
//! ([`Load::run`]); that program's `main` begins with [`serve_as_load`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

pub(crate) const EVENT_BYTES: usize = 600;
pub(crate) const BATCH_EVENTS: usize = 100;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    /// Keep-alive connections, one thread each.
    pub(crate) connections: usize,
    /// Batches per second over all connections, at even distances whatever the answers do (latency
    /// counts from when a batch was due); `None`: each connection sends when it has its answer.
    pub(crate) batches_per_s: Option<f64>,
    pub(crate) time: Duration,
}

/// What came of it.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) events_per_s: f64,
    /// Answers that were not 200.
    pub(crate) refused: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) events: u64,
}

impl Load {
    /// Runs the load in a process of its own and returns what it measured.
    pub(crate) fn run(self) -> Outcome {
        self.start().wait()
    }

    /// Runs the load in threads of this process. Blocks.
    pub(crate) fn run_here(self) -> Outcome {
        let started = Instant::now();
        let threads: Vec<_> = (0..self.connections)
            .map(|number| std::thread::spawn(move || connection(self, number, started)))
            .collect();
        let (mut micros, mut refused) = (Vec::new(), 0);
        for thread in threads {
            let (latencies, not_taken) = thread.join().expect("the agent answers");
            micros.extend(latencies);
            refused += not_taken;
        }
        micros.sort_unstable();
        let events = micros.len() * BATCH_EVENTS;
        Outcome {
            events_per_s: events as f64 / started.elapsed().as_secs_f64(),
            refused,
            p50_ms: percentile_ms(&micros, 50),
            p99_ms: percentile_ms(&micros, 99),
            max_ms: percentile_ms(&micros, 100),
            events: events as u64,
        }
    }

    /// Starts the load in a process of its own.
    pub(crate) fn start(self) -> RunningLoad {
        let child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args([
                "as-load".to_owned(),
                self.address.to_string(),
                self.connections.to_string(),
                self.batches_per_s.unwrap_or(0.0).to_string(),
                self.time.as_secs_f64().to_string(),
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts again");
        RunningLoad(child)
    }

    fn of_arguments() -> Option<Self> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let [mode, address, connections, batches_per_s, seconds] = arguments.as_slice() else {
            return None;
        };
        let batches_per_s: f64 = batches_per_s.parse().ok()?;
        (mode == "as-load").then_some(Self {
            address: address.parse().ok()?,
            connections: connections.parse().ok()?,
            batches_per_s: (batches_per_s > 0.0).then_some(batches_per_s),
            time: Duration::from_secs_f64(seconds.parse().ok()?),
        })
    }
}

/// A load at work.
pub(crate) struct RunningLoad(std::process::Child);

impl RunningLoad {
    pub(crate) fn wait(self) -> Outcome {
        let output = self.0.wait_with_output().expect("the load ends");
        let text = String::from_utf8_lossy(&output.stdout);
        let numbers: Vec<f64> = text
            .split_whitespace()
            .map(|word| word.parse().expect("the load prints numbers"))
            .collect();
        let &[events, events_per_s, refused, p50_ms, p99_ms, max_ms] = numbers.as_slice() else {
            panic!("the load failed: {text}");
        };
        Outcome {
            events_per_s,
            refused: refused as u64,
            p50_ms,
            p99_ms,
            max_ms,
            events: events as u64,
        }
    }
}

/// Is the load when this process was started as one: returns true when the program has to end.
pub(crate) fn serve_as_load() -> bool {
    let Some(load) = Load::of_arguments() else {
        return false;
    };
    let it = load.run_here();
    println!(
        "{} {} {} {} {} {}",
        it.events, it.events_per_s, it.refused, it.p50_ms, it.p99_ms, it.max_ms
    );
    true
}

fn percentile_ms(micros: &[u64], percent: usize) -> f64 {
    let index = (micros.len() * percent / 100).min(micros.len().saturating_sub(1));
    micros.get(index).map_or(0.0, |it| *it as f64 / 1000.0)
}

/// Sends over one connection; returns the latencies of the batches taken, and how many were not.
fn connection(load: Load, number: usize, started: Instant) -> (Vec<u64>, u64) {
    let mut stream = TcpStream::connect(load.address).expect("the agent listens");
    stream.set_nodelay(true).expect("a socket option");
    let mut request = Request::new(number);
    let interval = load
        .batches_per_s
        .map(|all| Duration::from_secs_f64(load.connections as f64 / all));
    let phase = interval.map(|it| it.mul_f64(number as f64 / load.connections as f64));
    let mut due = started + phase.unwrap_or_default();
    let (mut latencies, mut refused) = (Vec::new(), 0);
    loop {
        let sent = match interval {
            None => Instant::now(),
            Some(interval) => {
                let this = due;
                due += interval;
                std::thread::sleep(this.saturating_duration_since(Instant::now()));
                this
            }
        };
        if sent.duration_since(started) >= load.time {
            return (latencies, refused);
        }
        if exchange(&mut stream, request.next()) {
            let micros = sent.elapsed().as_micros();
            latencies.push(u64::try_from(micros).unwrap_or(u64::MAX));
        } else {
            refused += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Sends a request and reads its answer; says whether it was 200.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> bool {
    stream.write_all(request).expect("the agent reads");
    let mut answer = [0; 4096];
    let mut length = 0;
    loop {
        let read = stream
            .read(&mut answer[length..])
            .expect("the agent answers");
        assert!(read > 0, "the agent closed the connection");
        length += read;
        let text = std::str::from_utf8(&answer[..length]).expect("an answer is text");
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let expected: usize = head
            .split("\r\n")
            .find_map(|line| line.strip_prefix("content-length: "))
            .and_then(|length| length.parse().ok())
            .expect("an answer has a length");
        if body.len() >= expected {
            return text.starts_with("HTTP/1.1 200");
        }
    }
}

/// A request for a batch in Segment's form, rendered once.
struct Request {
    bytes: Vec<u8>,
    /// Where the digits of the message ids stand.
    digits: Vec<usize>,
    counter: u64,
}

const DIGITS: &str = "0000000000000000";

impl Request {
    fn new(connection: usize) -> Self {
        let started = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let mark = format!("{:x}-{connection:x}", started.as_micros());
        let mut body = br#"{"batch":["#.to_vec();
        let mut digits = Vec::new();
        for number in 0..BATCH_EVENTS {
            if number > 0 {
                body.push(b',');
            }
            let event = event(&mark, number);
            let place = event.find(DIGITS).expect("the id is there");
            digits.push(body.len() + place);
            body.extend_from_slice(event.as_bytes());
        }
        body.extend_from_slice(br#"],"sentAt":"2026-11-20T10:00:00.250Z"}"#);
        let head = format!(
            "POST /v1/batch HTTP/1.1\r\nhost: agent\r\nauthorization: Basic a2V5LTE6\r\n\
             content-type: application/json\r\nuser-agent: analytics-node/3.1.0\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let mut bytes = head.into_bytes();
        digits.iter_mut().for_each(|place| *place += bytes.len());
        bytes.extend_from_slice(&body);
        Self {
            bytes,
            digits,
            counter: 0,
        }
    }

    /// Returns the bytes of a batch whose message ids were never sent before.
    fn next(&mut self) -> &[u8] {
        for place in &self.digits {
            let mut counter = self.counter;
            for digit in self.bytes[*place..*place + DIGITS.len()].iter_mut().rev() {
                *digit = b"0123456789abcdef"[usize::from(counter.to_le_bytes()[0] & 15)];
                counter >>= 4;
            }
            self.counter += 1;
        }
        &self.bytes
    }
}

/// Returns an event of exactly [`EVENT_BYTES`], as analytics-node sends it. Each has ids, numbers and
/// words of its own, so that a batch compresses as a real one does.
pub(crate) fn event(mark: &str, number: usize) -> String {
    let mut dice = crc32fast::hash(format!("{mark} {number}").as_bytes()) | 1;
    let mut throw = || {
        dice ^= dice << 13;
        dice ^= dice >> 17;
        dice ^= dice << 5;
        dice
    };
    let (user, conversation, reply_s) = (throw(), throw(), throw() % 10_000);
    let words: Vec<&str> = (0..200)
        .map(|_| WORDS[throw() as usize % WORDS.len()])
        .collect();
    let words = words.join(" ");
    let render = |filling: &str| {
        format!(
            r#"{{"type":"track","event":"Reply Rated","messageId":"node-{mark}-{DIGITS}","userId":"{user:08x}-{number}","timestamp":"2026-11-20T10:00:{:02}.{:03}Z","properties":{{"conversation_id":"{conversation:010}","rating":{},"channel":"chat","seconds_to_first_reply":{reply_s},"tags":["billing","vip"],"note":"{filling}"}},"context":{{"library":{{"name":"@segment/analytics-node","version":"3.1.0"}},"locale":"en-GB","timezone":"Europe/Dublin"}},"integrations":{{}},"_metadata":{{"nodeVersion":"22.11.0","jsRuntime":"node"}}}}"#,
            number % 60,
            reply_s % 1000,
            user % 5 + 1,
        )
    };
    let filling = EVENT_BYTES - render("").len();
    render(&words[..filling])
}

const WORDS: [&str; 32] = [
    "account",
    "again",
    "answer",
    "billing",
    "cannot",
    "card",
    "change",
    "checkout",
    "customer",
    "delay",
    "email",
    "export",
    "failed",
    "invoice",
    "limit",
    "login",
    "missing",
    "order",
    "password",
    "payment",
    "plan",
    "please",
    "quick",
    "refund",
    "renewal",
    "report",
    "shipping",
    "thanks",
    "upgrade",
    "waiting",
    "wrong",
    "yesterday",
];
