//! A RELP client: sends events and counts the acks, with a bounded window.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::load;

const WINDOW: u64 = 100;

/// Sends for `time`; returns how many events were acknowledged, which is all of them.
pub(crate) fn send(to: SocketAddr, number: usize, time: Duration) -> u64 {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    let offer = "relp_version=0\nrelp_software=bench\ncommands=syslog";
    writeln!(stream, "1 open {} {offer}", offer.len()).unwrap();
    let mut answers = Answers::default();
    answers.wait(&mut stream, 1);
    let event = load::event(&format!("relp-{number}"), number);
    let (started, mut sent) = (Instant::now(), 0);
    while started.elapsed() < time {
        let mut frames = Vec::new();
        for _ in 0..WINDOW {
            sent += 1;
            writeln!(frames, "{} syslog {} {event}", sent + 1, event.len()).unwrap();
        }
        stream.write_all(&frames).unwrap();
        answers.wait(&mut stream, sent + 1);
    }
    sent
}

#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    count: u64,
}

impl Answers {
    /// Reads until `count` answers have come, all of them positive.
    fn wait(&mut self, stream: &mut TcpStream, count: u64) {
        let mut part = [0; 16_384];
        while self.count < count {
            let length = stream.read(&mut part).unwrap();
            assert!(length > 0, "rsyslog closed the session");
            self.bytes.extend_from_slice(&part[..length]);
            while self.take() {}
        }
    }

    /// Takes one frame, `NUMBER rsp LENGTH 200 …`, when it is whole.
    fn take(&mut self) -> bool {
        let words: Vec<&[u8]> = self.bytes.splitn(4, |byte| *byte == b' ').collect();
        let [number, b"rsp", length, rest] = words.as_slice() else {
            return false;
        };
        let text = std::str::from_utf8(length).unwrap();
        let length: usize = text.parse().unwrap();
        if rest.len() <= length {
            return false;
        }
        assert!(rest.starts_with(b"200"), "rsyslog refuses");
        let head = number.len() + 1 + 3 + 1 + text.len() + 1;
        self.bytes.drain(..head + length + 1);
        self.count += 1;
        true
    }
}
