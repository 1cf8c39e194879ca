//! The Flight SQL server as clients meet it: a real server over TLS on a free port, a small catalog
//! made through the tables API, and the Flight clients of the arrow project.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod auth;
mod harness;
mod lifecycle;
mod metadata;
mod parameters;
mod read_only;
#[path = "../../../tables/tests/tables/rest_server.rs"]
#[allow(dead_code, reason = "other tests kill it")]
mod rest_server;
mod s3;
#[path = "../../../tables/tests/s3/server.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod s3_server;
mod snapshots;
mod statements;
