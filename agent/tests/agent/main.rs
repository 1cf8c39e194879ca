//! The agent with real sockets, a real disk and, where it matters, a real process to kill.

mod answers;
mod buffer_model;
mod collector;
mod delivery;
mod harness;
mod process;
