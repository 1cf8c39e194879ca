//! How the tests' collector behaves.

use std::time::Duration;

use headwater_protocol::Limits;
use quinn::{RecvStream, TransportConfig, VarInt};

/// How batches are answered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manner {
    /// At once.
    Prompt,
    /// At once, with the limits of a real collector; of what is committed only the watermarks are kept.
    Counting,
    /// Each batch is first asked for again, once.
    RetryFirst,
    /// The first batch of the collector's life is refused.
    RefuseFirst,
    /// Batches with a record that holds the word `poison` are refused.
    Poison,
    /// Everything is refused, because of its events.
    RefuseAll,
    /// The third batch is committed but never answered.
    MuteThird,
    /// The third batch is swallowed at its first coming; the first is answered only after that.
    SwallowThird,
    /// The body of the batch that begins here is not read before that of six later batches.
    SlowStream(u64),
    /// Answers leave in groups of this many, last batch first.
    Reversed(usize),
    /// Never.
    Silent,
    /// Never in the first session, at once in those that follow.
    SilentAtFirst,
    /// Each batch is asked for again after so many milliseconds, always.
    RetryAll(u64),
    /// Each batch is first asked for again, once; then one after the other, with this time for each.
    RetrySlowly(Duration),
    /// One batch after the other, with this time for each.
    Slow(Duration),
    /// At once, when the body is read: at most 64 KiB, and then this time passes.
    SlowReader(Duration),
}

impl Manner {
    pub(crate) fn limits(self) -> Limits {
        let (batch_events_max, batches_in_flight_max) = match self {
            Self::Counting => (10_000, 64),
            _ => (100, 8),
        };
        Limits {
            batch_bytes_max: 4 << 20,
            batch_events_max,
            batches_in_flight_max,
        }
    }

    /// A slow reader takes in little unread, so that it shows when it reads. A connection that was given
    /// up in its first packet goes only when it has been idle, and the port with it.
    pub(crate) fn transport(self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let idle = Duration::from_secs(5).try_into().unwrap();
        transport
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(Duration::from_secs(1)));
        if let Self::SlowReader(_) = self {
            transport.stream_receive_window(VarInt::from_u32(256 << 10));
        }
        transport
    }

    /// Reads to the end of the stream; `None` when it breaks off.
    pub(crate) async fn read(self, receive: &mut RecvStream) -> Option<Vec<u8>> {
        let (mut body, mut part) = (Vec::new(), vec![0; 64 << 10]);
        while let Some(length) = receive.read(&mut part).await.ok()? {
            body.extend_from_slice(&part[..length]);
            if let Manner::SlowReader(pause) = self {
                slowly(pause).await;
            }
        }
        Some(body)
    }
}

/// Takes its time, as a collector under load does.
pub(crate) async fn slowly(pause: Duration) {
    tokio::time::sleep(pause).await;
}
