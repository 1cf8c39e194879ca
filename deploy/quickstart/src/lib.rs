//! Everything in one process, for a laptop: what `cargo run --release` starts.
//!
//! Place on the event's path: all of it. The [`desk`] invents three days of a busy support desk in a
//! seeded [`world`], the [`player`] sends them as SDKs would, [`node`] runs agent, collector and SQL
//! server, [`quickstart`] strings them together and proves with [`conservation`] that nothing was
//! lost or doubled. [`operational`] and [`pki`] also serve tests and first steps on their own.

pub mod connect;
pub mod conservation;
pub mod desk;
pub mod node;
pub mod operational;
pub mod pki;
pub mod player;
pub mod progress;
pub mod query;
pub mod quickstart;
pub mod report;
pub mod sample;
pub mod settings;
pub mod world;
