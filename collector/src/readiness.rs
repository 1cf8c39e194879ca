//! Whether the collector does its work: what `/readyz` answers.
//!
//! Beside the path: the committer reports here, and while it has no work somebody else looks. Promise: a
//! collector that cannot commit is not ready, however healthy its process looks.

use std::time::Duration;

use headwater_tables::Catalog;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use crate::commit;
use crate::config::CommitConfig;
use crate::metrics as names;

#[derive(Debug, Default)]
struct State {
    failures: u32,
    last_error: String,
    /// Why the tables could not be reached when they were looked at last.
    unreachable: Option<String>,
    /// When the tables were reached last, by a commit or a look.
    reached_at: Option<Instant>,
    oldest_staged: Option<Instant>,
    stopping: bool,
}

/// The committer's health.
#[derive(Debug)]
pub(crate) struct Readiness {
    failures_max: u32,
    age_max: Duration,
    state: Mutex<State>,
}

impl Readiness {
    pub(crate) fn new(config: &CommitConfig) -> Self {
        Self {
            failures_max: config.failures_not_ready,
            age_max: Duration::from_millis(config.staged_age_max_ms),
            state: Mutex::default(),
        }
    }

    /// Says since when the oldest batch waits for its commit; `None` when none does.
    pub(crate) fn oldest_staged(&self, since: Option<Instant>) {
        self.state.lock().oldest_staged = since;
    }

    /// Returns for how long the oldest batch has waited; nothing when none does.
    pub(crate) fn oldest_staged_age(&self) -> Duration {
        let since = self.state.lock().oldest_staged;
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(crate) fn committed(&self) {
        let mut state = self.state.lock();
        state.failures = 0;
        state.last_error.clear();
        state.unreachable = None;
        state.reached_at = Some(Instant::now());
    }

    /// Notes what a look at the tables found.
    fn looked(&self, found: Result<(), String>) {
        let mut state = self.state.lock();
        if found.is_ok() {
            state.reached_at = Some(Instant::now());
        }
        state.unreachable = found.err();
    }

    fn reached_within(&self, time: Duration) -> bool {
        let reached_at = self.state.lock().reached_at;
        reached_at.is_some_and(|at| at.elapsed() < time)
    }

    pub(crate) fn failed(&self, error: &dyn std::error::Error) {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.last_error = error.to_string();
    }

    pub(crate) fn stopping(&self) {
        self.state.lock().stopping = true;
    }

    /// Returns the answer of `/readyz`.
    pub(crate) fn check(&self) -> Result<(), String> {
        let state = self.state.lock();
        if state.stopping {
            return Err("stopping".to_owned());
        }
        if state.failures >= self.failures_max {
            return Err(format!(
                "the last {} commits failed: {}",
                state.failures, state.last_error
            ));
        }
        if let Some(why) = &state.unreachable {
            return Err(format!("a commit could not begin: {why}"));
        }
        match state.oldest_staged.map(|since| since.elapsed()) {
            Some(age) if age > self.age_max => Err(format!(
                "the oldest staged batch waits for its commit since {} s",
                age.as_secs()
            )),
            _ => Ok(()),
        }
    }
}

/// Looks at the tables while nobody commits, so that a collector without work says in time that it could
/// not do any. Never returns.
///
/// What a commit begins with is looked at: the catalog's row and the metadata file that it names. Nothing
/// is written, because that would cost money and leave litter; a store that cannot be written to shows at the
/// first commit.
pub(crate) async fn watch(readiness: &Readiness, catalog: &Catalog, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        if readiness.reached_within(interval) {
            continue;
        }
        let found = match timeout(interval, commit::reach(catalog)).await {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", interval.as_millis())),
        };
        let outcome = if found.is_ok() { "ok" } else { "failed" };
        metrics::counter!(names::LOOKS, "outcome" => outcome).increment(1);
        if let Err(error) = &found {
            tracing::warn!(error, "the tables cannot be reached");
        }
        readiness.looked(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_the_commits() {
        let readiness = Readiness::new(&CommitConfig::default());
        assert!(readiness.check().is_ok());
        readiness.oldest_staged(Some(Instant::now()));
        assert!(readiness.check().is_ok());
        for _ in 0..3 {
            readiness.failed(&std::io::Error::other("disk full"));
        }
        assert!(readiness.check().unwrap_err().contains("disk full"));
        readiness.committed();
        assert!(readiness.check().is_ok());
        readiness.stopping();
        assert!(readiness.check().is_err());
    }

    #[test]
    fn a_batch_that_waits_too_long_is_reported() {
        let readiness = Readiness::new(&CommitConfig {
            staged_age_max_ms: 0,
            ..CommitConfig::default()
        });
        readiness.oldest_staged(Some(Instant::now()));
        while readiness.check().is_ok() {
            std::thread::yield_now();
        }
        readiness.oldest_staged(None);
        assert!(readiness.check().is_ok());
    }
}
