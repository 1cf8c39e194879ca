//! Opaque handles: what a client holds instead of a statement, a result or a session.
//!
//! Place on the event's path: the client gets the handle, the server keeps the thing in a bounded
//! table. Promise: a handle is 256 random bits, belongs to one principal, ends after its idle time,
//! and the table never grows past its bound. Entries are looked up by digest, so the time of a
//! lookup tells nothing about the handles that exist.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use headwater_service::clock::{Micros, SharedClock};
use parking_lot::Mutex;
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

/// Bounds of one table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Entries of all owners together.
    pub(crate) total_max: usize,
    /// Entries of one owner.
    pub(crate) per_owner_max: usize,
    /// Entries unused for longer are forgotten, milliseconds.
    pub(crate) idle_ms: u64,
}

/// A bounded table of things by handle. When it is full, the least recently used entry goes.
pub(crate) struct Handles<T> {
    entries: Mutex<HashMap<Digest, Entry<T>>>,
    bounds: Bounds,
    clock: SharedClock,
    /// Gauge that shows the number of entries.
    gauge: &'static str,
    /// Counter of entries forgotten because the table was full.
    evicted: &'static str,
}

type Digest = [u8; 32];

struct Entry<T> {
    value: Arc<T>,
    owner: Arc<str>,
    used: Micros,
}

impl<T> Handles<T> {
    pub(crate) fn new(
        bounds: Bounds,
        clock: SharedClock,
        gauge: &'static str,
        evicted: &'static str,
    ) -> Self {
        Self {
            entries: Mutex::new(HashMap::new()),
            bounds,
            clock,
            gauge,
            evicted,
        }
    }

    /// Keeps `value` for `owner` and returns its new handle.
    pub(crate) fn insert(&self, owner: Arc<str>, value: Arc<T>) -> String {
        let handle = random_handle();
        let now = self.clock.now();
        let mut entries = self.entries.lock();
        if entries.len() >= self.bounds.total_max {
            self.forget_expired(&mut entries, now);
        }
        let owned = entries
            .values()
            .filter(|entry| entry.owner == owner)
            .count();
        if owned >= self.bounds.per_owner_max {
            self.evict(&mut entries, |entry| entry.owner == owner);
        } else if entries.len() >= self.bounds.total_max {
            self.evict(&mut entries, |_| true);
        }
        let entry = Entry {
            value,
            owner,
            used: now,
        };
        entries.insert(digest(handle.as_bytes()), entry);
        self.show(&entries);
        handle
    }

    /// Returns the entry and marks it used; `None` when it is unknown or expired.
    pub(crate) fn get(&self, handle: &[u8]) -> Option<Arc<T>> {
        let now = self.clock.now();
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(&digest(handle))?;
        if self.is_expired(entry, now) {
            return None;
        }
        entry.used = now;
        Some(Arc::clone(&entry.value))
    }

    /// As [`Self::get`], for the entries of `owner` alone.
    pub(crate) fn get_owned(&self, handle: &[u8], owner: &str) -> Option<Arc<T>> {
        let owned = {
            let entries = self.entries.lock();
            let entry = entries.get(&digest(handle))?;
            &*entry.owner == owner
        };
        if owned { self.get(handle) } else { None }
    }

    /// Forgets the entry when `owner` owns it.
    pub(crate) fn remove_owned(&self, handle: &[u8], owner: &str) -> Option<Arc<T>> {
        let mut entries = self.entries.lock();
        let key = digest(handle);
        if &*entries.get(&key)?.owner != owner {
            return None;
        }
        let removed = entries.remove(&key);
        self.show(&entries);
        removed.map(|entry| entry.value)
    }

    /// Forgets what has expired.
    pub(crate) fn sweep(&self) {
        let now = self.clock.now();
        let mut entries = self.entries.lock();
        self.forget_expired(&mut entries, now);
        self.show(&entries);
    }

    fn forget_expired(&self, entries: &mut HashMap<Digest, Entry<T>>, now: Micros) {
        entries.retain(|_, entry| !self.is_expired(entry, now));
    }

    fn is_expired(&self, entry: &Entry<T>, now: Micros) -> bool {
        let idle = i64::try_from(self.bounds.idle_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
        now.saturating_sub(entry.used) > idle
    }

    fn evict(
        &self,
        entries: &mut HashMap<Digest, Entry<T>>,
        candidate: impl Fn(&Entry<T>) -> bool,
    ) {
        let oldest = entries
            .iter()
            .filter(|(_, entry)| candidate(entry))
            .min_by_key(|(_, entry)| entry.used)
            .map(|(key, _)| *key);
        if let Some(key) = oldest {
            entries.remove(&key);
            metrics::counter!(self.evicted).increment(1);
        }
    }

    fn show(&self, entries: &HashMap<Digest, Entry<T>>) {
        metrics::gauge!(self.gauge).set(entries.len() as f64);
    }
}

fn digest(handle: &[u8]) -> Digest {
    Sha256::digest(handle).into()
}

fn random_handle() -> String {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use headwater_service::clock::ManualClock;

    fn table(total_max: usize, per_owner_max: usize) -> (Arc<ManualClock>, Handles<u32>) {
        let clock = ManualClock::at(0);
        let bounds = Bounds {
            total_max,
            per_owner_max,
            idle_ms: 10,
        };
        let handles = Handles::new(bounds, Arc::clone(&clock) as SharedClock, "g", "e");
        (clock, handles)
    }

    #[test]
    fn handle_of_another_principal_is_unknown() {
        let (_, handles) = table(10, 10);
        let handle = handles.insert("a".into(), Arc::new(1));
        assert!(handles.get_owned(handle.as_bytes(), "b").is_none());
        assert!(handles.remove_owned(handle.as_bytes(), "b").is_none());
        assert_eq!(
            handles.get_owned(handle.as_bytes(), "a").as_deref(),
            Some(&1)
        );
    }

    #[test]
    fn unused_entry_expires_and_a_used_one_stays() {
        let (clock, handles) = table(10, 10);
        let used = handles.insert("a".into(), Arc::new(1));
        let unused = handles.insert("a".into(), Arc::new(2));
        clock.set(8_000);
        assert!(handles.get(used.as_bytes()).is_some());
        clock.set(16_000);
        assert!(handles.get(used.as_bytes()).is_some());
        assert!(handles.get(unused.as_bytes()).is_none());
        handles.sweep();
        assert_eq!(handles.entries.lock().len(), 1);
    }

    #[test]
    fn full_table_forgets_the_least_recently_used() {
        let (clock, handles) = table(2, 2);
        let first = handles.insert("a".into(), Arc::new(1));
        clock.set(1);
        let second = handles.insert("b".into(), Arc::new(2));
        clock.set(2);
        let third = handles.insert("c".into(), Arc::new(3));
        assert!(handles.get(first.as_bytes()).is_none());
        assert!(handles.get(second.as_bytes()).is_some());
        assert!(handles.get(third.as_bytes()).is_some());
    }

    #[test]
    fn one_owner_at_its_bound_evicts_only_itself() {
        let (clock, handles) = table(10, 1);
        let other = handles.insert("a".into(), Arc::new(1));
        clock.set(1);
        let first = handles.insert("b".into(), Arc::new(2));
        clock.set(2);
        handles.insert("b".into(), Arc::new(3));
        assert!(handles.get(other.as_bytes()).is_some());
        assert!(handles.get(first.as_bytes()).is_none());
    }
}
