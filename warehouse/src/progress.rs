//! How a night tells a person where it is.
//!
//! The library reports steps; the program decides whether they become a bar or plain lines.

/// Receives the steps of a night, in order. A step is a table, or `source` and `record`.
pub trait Progress: Send + Sync {
    /// A step began; `total` is the number of units of work, where it is known.
    fn started(&self, step: &str, total: Option<u64>);
    /// `done` units of the step are done.
    fn advanced(&self, step: &str, done: u64);
    /// The step ended; `detail` says what it changed, for a person.
    fn finished(&self, step: &str, detail: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn started(&self, _step: &str, _total: Option<u64>) {}
    fn advanced(&self, _step: &str, _done: u64) {}
    fn finished(&self, _step: &str, _detail: &str) {}
}
