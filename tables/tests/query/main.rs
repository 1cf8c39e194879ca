//! The read side against real tables: pruning never changes an answer, a session never changes its
//! snapshots, and the events view shows each event once.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod catalog;
mod deletes;
mod events;
mod interactions;
mod lake;
mod plans;
mod quarantine;
mod s3;
#[path = "../s3/server.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod s3_server;
mod scan;
mod session;
