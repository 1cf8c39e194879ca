//! The night, on a small operational database and events that are written through the tables' API.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]
#![allow(dead_code, reason = "the bench uses more of the world")]

mod core_tables;
mod failures;
mod metrics;
mod postgres;
mod reports;
#[path = "../../../tables/tests/tables/rest_server.rs"]
mod rest_server;
mod s3;
#[path = "../../../tables/tests/s3/server.rs"]
mod s3_server;
mod world;
