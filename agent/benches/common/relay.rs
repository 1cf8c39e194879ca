//! A line with delay and loss: a UDP relay in user space, for machines whose kernel has no `netem`.
//!
//! Each datagram leaves in order after the delay; a fixed share is dropped, by a generator with a
//! fixed seed. Bandwidth is not limited, the datagrams under way are.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Datagrams under way in each direction; more are dropped, as a router would.
const QUEUE_MAX: usize = 65_536;

/// Relays between clients and `server` with `delay` and `loss` (1 in so many) in each direction;
/// returns where clients send to. Runs until the process ends.
pub(crate) fn start(server: SocketAddr, delay: Duration, loss: u32) -> SocketAddr {
    let front = Arc::new(socket());
    let address = front.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        let mut clients: HashMap<SocketAddr, Line> = HashMap::new();
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let mut datagram = [0; 65_536];
        while let Ok((length, client)) = front.recv_from(&mut datagram) {
            if dice.is_lost(loss) {
                continue;
            }
            let line = clients
                .entry(client)
                .or_insert_with(|| Line::start(front.clone(), client, server, delay, loss));
            line.send(&datagram[..length], delay);
        }
    });
    address
}

type UnderWay = (Instant, Vec<u8>);

/// The way from one client to the server; the way back has threads of its own.
struct Line(SyncSender<UnderWay>);

impl Line {
    fn start(
        front: Arc<UdpSocket>,
        client: SocketAddr,
        server: SocketAddr,
        delay: Duration,
        loss: u32,
    ) -> Self {
        let back = Arc::new(socket());
        let there = deliver(back.clone(), server);
        let here = deliver(front, client);
        std::thread::spawn(move || {
            let mut dice = Dice(0xd1b5_4a32_d192_ed03);
            let mut datagram = [0; 65_536];
            while let Ok((length, _)) = back.recv_from(&mut datagram) {
                if !dice.is_lost(loss) {
                    Self(here.clone()).send(&datagram[..length], delay);
                }
            }
        });
        Self(there)
    }

    fn send(&self, datagram: &[u8], delay: Duration) {
        // A full queue drops.
        drop(self.0.try_send((Instant::now() + delay, datagram.to_vec())));
    }
}

fn deliver(socket: Arc<UdpSocket>, to: SocketAddr) -> SyncSender<UnderWay> {
    let (send, receive): (_, Receiver<UnderWay>) = sync_channel(QUEUE_MAX);
    std::thread::spawn(move || {
        while let Ok((due, datagram)) = receive.recv() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // The other side may be gone.
            drop(socket.send_to(&datagram, to));
        }
    });
    send
}

fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").expect("a free port")
}

/// Datagrams that this machine's sockets have dropped because nobody read them in time: loss that the
/// line adds to the one it was asked for.
pub(crate) fn dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut udp = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (
        udp.next().unwrap_or_default(),
        udp.next().unwrap_or_default(),
    );
    names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "RcvbufErrors")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

struct Dice(u64);

impl Dice {
    /// Once in `loss` throws; never when it is 0.
    fn is_lost(&mut self, loss: u32) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        loss > 0 && self.0.is_multiple_of(loss.into())
    }
}
