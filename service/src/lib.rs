//! What every Headwater binary does and nothing else.
//!
//! An event never passes through this crate. It holds the command-line arguments, configuration
//! files, logs, the admin endpoint, bounded connections, TLS files, the clock, chance, the graceful stop
//! and the word to the supervisor that all programs share, and knows no domain crate.

pub mod admin;
pub mod chance;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connections;
pub mod logging;
pub mod notify;
pub mod places;
pub mod shutdown;
pub mod tls;
