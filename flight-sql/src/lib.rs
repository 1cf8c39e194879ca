//! Arrow Flight SQL over the tables, read-only: what DBeaver, JDBC and ADBC talk to.
//!
//! Place on the event's path: the end, where the rows are asked for.
//!
//! ```text
//! client ─TLS─► service ─► auth ─► session
//!                 │ GetFlightInfo, Prepare: snapshot (pins all tables) ─► statement (read-only plan)
//!                 │ DoGet: handle ─► admission (places, queue) ─► result (batches, bounds)
//!                 └ metadata, sql_info, type_info: what there is
//! ```
//!
//! Promises: one query reads one set of snapshots (Q-1); no statement writes (Q-2); a result is whole
//! or an error (Q-3); a handle works only for the principal it was given to (Q-4).

mod action;
mod admission;
mod auth;
pub mod config;
mod deadline;
mod error;
mod handle;
mod metadata;
pub mod metrics;
mod parameters;
mod queries;
mod result;
mod server;
mod service;
pub mod session;
mod snapshot;
mod sql_info;
mod statement;
mod type_info;

pub use config::Config;
pub use server::{RunError, Running, StartError, start};
