//! The wire between agent and collector, and the one definition of an event.
//!
//! Bytes become values and values become bytes; nothing here does IO, knows a socket, a disk or a
//! table. An event passes twice: as a [`Record`] (what the agent accepted, body untouched) it is
//! stored, batched and shipped; as an [`Event`] (parsed and validated) it is staged by the collector. The
//! agent's front reads no more than its [`Head`].
//!
//! ```text
//! session stream   agent → collector   frame(Hello)
//!                  collector → agent   frame(HelloReply)
//! batch stream     agent → collector   frame(BatchHeader) zstd(record record …) FIN
//! (one per batch)  collector → agent   frame(BatchReply) FIN
//! frame            u32 big-endian length, then that many bytes of MessagePack
//! ```

pub mod batch;
pub mod close;
pub mod event;
pub mod frame;
mod head;
mod id;
pub mod json;
mod record;
mod skip;
pub mod timestamp;

pub use event::{Event, EventType, Failure, Invalid};
pub use frame::{BatchHeader, BatchReply, Codec, Hello, HelloReply, Limits, RefusalCause, Welcome};
pub use head::Head;
pub use id::{AgentId, AgentIdError, Epoch, Sequence};
pub use record::{Cut, FORM_BYTES_MAX, Record, SourceKind};

/// Application protocol negotiated in TLS. A change that an old peer cannot read gets a new number.
pub const ALPN: &[u8] = b"headwater/1";

/// Version inside [`Hello`]: raised by compatible additions.
pub const PROTOCOL_VERSION: u16 = 2;
