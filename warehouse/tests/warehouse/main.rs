//! The night, on a small operational database and events that are written through the tables' API.

mod core_tables;
mod failures;
mod metrics;
mod postgres;
mod reports;
mod world;
