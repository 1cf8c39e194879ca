//! The contract on Iceberg, tested through the public API on a real catalog file and real tables.
//!
//! Each promise of the crate is one test; a reader that is not ours (PyIceberg) checks that other
//! engines see the same tables.

#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod commits;
mod days;
mod files;
mod growth;
mod lake;
mod opening;
mod postgres;
mod pyiceberg;
mod relay;
mod rest;
mod rest_server;
mod s3;
#[path = "../s3/server.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod s3_server;
mod schemas;
mod times;
mod watermarks;
