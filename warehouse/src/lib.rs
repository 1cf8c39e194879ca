//! The night: copies the operational database, joins it with the events and publishes reports.
//!
//! Place on the event's path: after the collector has committed an event to `raw.events` and before
//! people read it as `core.events` and `reports.*`. One night runs [`sources`] → [`ops`] →
//! [`plans`] → [`core`] → [`reports`] → [`runs`].
//!
//! Promise: every report row comes from snapshots that `system.runs` names, running a night
//! again changes nothing, and a failed night leaves each table as it was or whole.

pub mod config;
pub mod core;
pub mod metrics;
pub mod models;
mod night;
pub mod ops;
pub mod plans;
pub mod progress;
mod publish;
pub mod reports;
mod rows;
pub mod runs;
mod session;
pub mod sources;

pub use config::Config;
pub use night::{NightError, NightReport, Outcome, nightly};
pub use progress::{NoProgress, Progress};
pub use publish::Written;
