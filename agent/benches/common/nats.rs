//! As much of the NATS client protocol as the bench needs: a work queue in JetStream, publishing with
//! acks, consuming with acks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::load;

const WINDOW: u64 = 100;

/// Makes the stream and its consumer.
pub(crate) fn create(to: SocketAddr) {
    let mut client = Client::connect(to);
    client.subscribe("inbox.create");
    for (subject, request) in [
        (
            "$JS.API.STREAM.CREATE.EV",
            r#"{"name":"EV","subjects":["ev"],"storage":"file","retention":"workqueue"}"#,
        ),
        (
            "$JS.API.CONSUMER.DURABLE.CREATE.EV.SHIP",
            r#"{"stream_name":"EV","config":{"durable_name":"SHIP","deliver_subject":"out","ack_policy":"explicit","max_ack_pending":10000}}"#,
        ),
    ] {
        client.publish(subject, "inbox.create", request);
        client.flush();
        let answer = String::from_utf8(client.next().payload).unwrap();
        assert!(!answer.contains("\"error\""), "{answer}");
    }
}

/// Publishes for `time`; returns how many events were acknowledged, which is all of them.
pub(crate) fn send(to: SocketAddr, number: usize, time: Duration) -> u64 {
    let mut client = Client::connect(to);
    let inbox = format!("inbox.{number}");
    client.subscribe(&inbox);
    let event = load::event(&format!("nats-{number}"), number);
    let (started, mut sent) = (Instant::now(), 0);
    while started.elapsed() < time {
        for _ in 0..WINDOW {
            client.publish("ev", &inbox, &event);
        }
        client.flush();
        for _ in 0..WINDOW {
            let ack = String::from_utf8(client.next().payload).unwrap();
            assert!(ack.contains("\"seq\""), "{ack}");
        }
        sent += WINDOW;
    }
    sent
}

/// A consumer at work.
pub(crate) struct Consumer(Arc<AtomicU64>);

impl Consumer {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Consumes and acknowledges until the server is gone.
pub(crate) fn consume(to: SocketAddr) -> Consumer {
    let mut client = Client::connect(to);
    client.subscribe("out");
    client.flush();
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        while let Some(message) = client.try_next() {
            client.publish(&message.reply, "", "+ACK");
            counted.fetch_add(1, Ordering::Relaxed);
            if client.reader.buffer().is_empty() {
                client.flush();
            }
        }
    });
    Consumer(count)
}

struct Message {
    reply: String,
    payload: Vec<u8>,
}

struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    out: Vec<u8>,
}

impl Client {
    fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        let reader = BufReader::with_capacity(64 * 1024, stream.try_clone().unwrap());
        let out = b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n".to_vec();
        Self {
            stream,
            reader,
            out,
        }
    }

    fn subscribe(&mut self, subject: &str) {
        write!(self.out, "SUB {subject} 1\r\n").unwrap();
    }

    fn publish(&mut self, subject: &str, reply: &str, payload: &str) {
        let length = payload.len();
        write!(self.out, "PUB {subject} {reply} {length}\r\n{payload}\r\n").unwrap();
    }

    fn flush(&mut self) {
        // The server may be gone; then nothing more comes either.
        drop(self.stream.write_all(&self.out));
        self.out.clear();
    }

    fn next(&mut self) -> Message {
        self.try_next().expect("the server answers")
    }

    fn try_next(&mut self) -> Option<Message> {
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).ok()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => return None,
                ["MSG", _, _, reply @ .., length] => {
                    let mut payload = vec![0; length.parse::<usize>().unwrap() + 2];
                    self.reader.read_exact(&mut payload).ok()?;
                    payload.truncate(payload.len() - 2);
                    let reply = reply.concat();
                    return Some(Message { reply, payload });
                }
                ["PING"] => {
                    self.out.extend_from_slice(b"PONG\r\n");
                    self.flush();
                }
                ["-ERR", ..] => panic!("{line}"),
                _ => {}
            }
        }
    }
}
