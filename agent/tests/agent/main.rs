//! The agent with real sockets, a real disk and, where it matters, a real process to kill.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod answers;
mod buffer_model;
mod collector;
mod commands;
mod delivery;
mod harness;
mod process;
mod reload;
