//! A simulation that tries to break exactly-once: the real parts, under faults that a seed decides.
//!
//! ```text
//!  client ─▶ agent ────────────▶ link ─────▶ collector ─────────▶ table
//!            buffer (sled)       messages:   engine, committer    metadata, manifests, Parquet
//!            shipper             lost,       catalog client       in memory, behind
//!            on a disk in        doubled,                         a catalog and a store
//!            memory: cut,        late        dies at each point   that fail before, after
//!            restored, wiped                 of a commit, freezes and without committing
//! ```
//!
//! | part | here |
//! |---|---|
//! | buffer, epochs, marks, generations, batches, retries, hand-over | the agent's code, on real files |
//! | protocol | the real bytes of every message |
//! | admission, ledger, staging, commit, read-back, retry | the collector's code |
//! | watermarks, snapshots, compare-and-swap, Parquet | the code of `tables` and of the iceberg crate |
//! | HTTP front and group commit of the agent, QUIC and TLS, SQLite, the disk's own failures | not here: the tests of those parts |
//!
//! One thread, virtual time, one seed: the same seed gives the same trace. `oracle` says what is
//! checked. A run in which nothing happened fails.

mod agent;
mod collector;
mod compactor;
mod dice;
mod entropy;
mod heads;
mod host;
mod knobs;
mod link;
mod oracle;
mod run;
mod store;
mod trace;
mod truth;
mod world;

pub use run::{Outcome, REQUIRED, Tally, run, run_all, run_apart};
