//! The agent: takes events from analytics SDKs, makes them durable, ships them, forgets them only
//! after the ack.
//!
//! ```text
//! SDK → source (HTTP) → sequencer → buffer (sled + fdatasync) → 200
//!                                      ↓
//!                            batcher → shipper (QUIC) → collector → Ack → buffer trims
//! ```
//!
//! The promise: an event answered with 200 is in the buffer or committed to the tables, whatever is
//! killed, cut off or full (D-1 to D-4).

pub mod batcher;
pub mod buffer;
pub mod commands;
pub mod companies;
pub mod config;
pub mod metrics;
pub mod reload;
pub mod sequencer;
pub mod shipper;
pub mod source;
mod status;
pub mod suppression;
pub mod window;

mod service;

pub use config::Config;
pub use service::{RunError, Running, StartError, start};
