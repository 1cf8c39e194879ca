//! A bounded number of places whose bound can change while some of them are taken.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places; clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    /// How many there are, taken ones included.
    total: Arc<Mutex<usize>>,
}

impl Places {
    /// Makes `total` places, all free.
    pub fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(total)),
            total: Arc::new(Mutex::new(total)),
        }
    }

    /// Changes the bound. Taken places above a lower bound go away as they come back, which needs
    /// further calls: make one before each attempt to take a place. Returns whether it holds.
    pub fn resize(&self, wanted: usize) -> bool {
        let wanted = wanted.min(Semaphore::MAX_PERMITS);
        let mut total = self.total.lock();
        if wanted > *total {
            self.free.add_permits(wanted - *total);
            *total = wanted;
        } else if wanted < *total {
            *total -= self.free.forget_permits(*total - wanted);
        }
        *total == wanted
    }

    /// Waits for a place. Cancelling the wait takes none.
    pub async fn acquire(&self) -> OwnedSemaphorePermit {
        let taken = self.free.clone().acquire_owned().await;
        taken.expect("never closed")
    }

    /// Takes `count` places at once, or none.
    pub fn try_acquire_many(&self, count: u32) -> Option<OwnedSemaphorePermit> {
        self.free.clone().try_acquire_many_owned(count).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_bound_holds_once_enough_places_came_back() {
        let places = Places::new(4);
        let held = places.try_acquire_many(3).unwrap();
        assert!(!places.resize(2));
        assert!(places.try_acquire_many(1).is_none(), "three are taken");
        drop(held);
        assert!(places.resize(2));
        assert!(places.try_acquire_many(3).is_none());
        assert!(places.try_acquire_many(2).is_some());
        places.resize(5);
        assert!(places.try_acquire_many(5).is_some());
    }
}
