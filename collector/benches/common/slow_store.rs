//! A catalog whose files answer late, as a store over a network does: they are in memory, and each request
//! waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use headwater_service::clock::{Clock, SystemClock};
use headwater_tables::catalog::{Catalog, CatalogError, Heads, Parts, Swap};
use headwater_tables::name::TableName;
use headwater_tables::store::Store;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use parking_lot::Mutex;

/// The bucket that the files seem to be in.
const BUCKET: &str = "s3://bench";

/// Returns a catalog of files of which each request takes `latency`. Its heads are in memory, too: a real
/// catalog adds its own round trip.
pub(crate) fn catalog(latency: Duration) -> Catalog {
    let wait = ThrottleConfig {
        wait_delete_per_call: latency,
        wait_get_per_call: latency,
        wait_list_per_call: latency,
        wait_list_with_delimiter_per_call: latency,
        wait_put_per_call: latency,
        ..ThrottleConfig::default()
    };
    let store = Store::new(BUCKET, Arc::new(ThrottledStore::new(InMemory::new(), wait)));
    Catalog::assemble(Parts {
        heads: Arc::new(LocalHeads::default()),
        warehouse: format!("{BUCKET}/warehouse"),
        file_io: store.file_io(),
        now: Arc::new(|| SystemClock.now()),
    })
}

/// The heads of one process.
#[derive(Default)]
struct LocalHeads(Mutex<BTreeMap<TableName, String>>);

#[async_trait]
impl Heads for LocalHeads {
    async fn all(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        Ok(self.0.lock().clone().into_iter().collect())
    }

    async fn get(&self, name: &TableName) -> Result<Option<String>, CatalogError> {
        Ok(self.0.lock().get(name).cloned())
    }

    async fn insert(&self, name: &TableName, location: &str) -> Result<bool, CatalogError> {
        let mut heads = self.0.lock();
        let head = heads
            .entry(name.clone())
            .or_insert_with(|| location.to_owned());
        Ok(head == location)
    }

    async fn swap(&self, name: &TableName, from: &str, to: &str) -> Result<Swap, CatalogError> {
        let mut heads = self.0.lock();
        let Some(head) = heads.get_mut(name).filter(|head| *head == from) else {
            return Ok(Swap::Lost);
        };
        to.clone_into(head);
        Ok(Swap::Won)
    }
}
