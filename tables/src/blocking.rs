//! Where work goes that keeps a thread busy: encoding, sorting, syncing.
//!
//! Beside the path. Promise: the threads that answer the network are not held up, and on a runtime of
//! one thread a run with the same input takes the same course.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinError;

/// Returns whether work is done in place: on a runtime of one thread nothing else goes on meanwhile
/// that could be held up, and what a second thread does would end at a moment that no seed decides.
pub(crate) fn in_place() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}

/// Runs `work` on a thread that may be kept busy, or in place on a runtime of one thread.
///
/// # Errors
/// [`JoinError`] when the work panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if in_place() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
