//! Names of the metrics of this crate.
