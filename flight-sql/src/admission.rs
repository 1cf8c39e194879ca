//! Admission: how many queries run, and how many may wait.
//!
//! Place on the event's path: between the ticket of a client and the work. Promise: never more
//! queries than places, first come first served, a bounded queue and a bounded wait; beyond either
//! the client is told UNAVAILABLE, which drivers treat as "try again".

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;

use crate::config::LimitsConfig;
use crate::metrics;

/// Places for running queries.
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    wait: Duration,
}

/// A place; given back when dropped.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// Makes the places that `limits` allows.
    pub(crate) fn new(limits: &LimitsConfig) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.queries_max)),
            waiting: Arc::new(AtomicUsize::new(0)),
            waiting_max: limits.queue_max,
            wait: limits.queue_wait(),
        }
    }

    /// Waits for a place. Cancellation safe: a dropped wait leaves the queue.
    pub(crate) async fn enter(&self) -> Result<Place, Status> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place::new(permit));
        }
        let _waiting = Waiting::join(Arc::clone(&self.waiting), self.waiting_max)?;
        let start = Instant::now();
        let acquired =
            tokio::time::timeout(self.wait, Arc::clone(&self.places).acquire_owned()).await;
        ::metrics::histogram!(metrics::QUEUE_SECONDS).record(start.elapsed().as_secs_f64());
        match acquired {
            Ok(Ok(permit)) => Ok(Place::new(permit)),
            Ok(Err(_closed)) => Err(Status::unavailable("the server is stopping")),
            Err(_elapsed) => Err(refused(
                "wait",
                format!(
                    "no place for this query within `limits.queue_wait_ms` = {}; try again later",
                    self.wait.as_millis()
                ),
            )),
        }
    }
}

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        ::metrics::gauge!(metrics::QUERIES_ACTIVE).increment(1.0);
        Self { _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        ::metrics::gauge!(metrics::QUERIES_ACTIVE).decrement(1.0);
    }
}

/// One query in the queue.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn join(waiting: Arc<AtomicUsize>, max: usize) -> Result<Self, Status> {
        let joined = waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            (count < max).then_some(count + 1)
        });
        if joined.is_err() {
            return Err(refused(
                "full",
                format!("`limits.queue_max` = {max} queries wait already; try again later"),
            ));
        }
        ::metrics::gauge!(metrics::QUERIES_WAITING).increment(1.0);
        Ok(Self(waiting))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        ::metrics::gauge!(metrics::QUERIES_WAITING).decrement(1.0);
    }
}

fn refused(reason: &'static str, message: String) -> Status {
    ::metrics::counter!(metrics::QUERIES_REFUSED, "reason" => reason).increment(1);
    Status::unavailable(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(queries_max: usize, queue_max: usize, queue_wait_ms: u64) -> Admission {
        Admission::new(&LimitsConfig {
            queries_max,
            queue_max,
            queue_wait_ms,
            ..LimitsConfig::default()
        })
    }

    #[tokio::test]
    async fn full_queue_and_long_wait_are_unavailable() {
        let admission = admission(1, 0, 50);
        let place = admission.enter().await.unwrap();
        let full = admission.enter().await.err().unwrap();
        assert_eq!(full.code(), tonic::Code::Unavailable);
        assert!(full.message().contains("queue_max"));
        drop(place);
        drop(admission.enter().await.unwrap());

        let admission = self::admission(1, 1, 50);
        let _place = admission.enter().await.unwrap();
        let late = admission.enter().await.err().unwrap();
        assert!(late.message().contains("queue_wait_ms"));
        assert_eq!(admission.waiting.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn place_given_back_goes_to_the_one_that_waits() {
        let admission = Arc::new(admission(1, 1, 10_000));
        let place = admission.enter().await.unwrap();
        let waits = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.enter().await.is_ok() }
        });
        while admission.waiting.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        drop(place);
        assert!(waits.await.unwrap());
    }
}
