//! Where the files of tables are: a directory of this machine, or a bucket of an S3 service.
//!
//! Place on the event's path: every file that a commit writes goes through it, and every file that a
//! query reads. Promise: one client per catalog serves both, with bounds on its requests and its
//! waits; a file that was written is durable: the local disk was synced, or the service has said so.
//!
//! ```text
//! catalog.warehouse ─┬─ DIRECTORY ──────► iceberg's local files (durable.rs syncs them)
//!                    └─ s3://BUCKET/… ──► Store ─► Measured ─► AmazonS3 ─► Counted ─► HTTP
//!                                           │ (bound, metrics)  (retries)   (tries)
//!                                           ├─ FileIO: metadata, manifests, data files
//!                                           └─ sessions: DataFusion's Parquet scans
//! ```

mod config;
mod credentials;
mod error;
mod measured;
mod s3;
mod storage;
mod upload;

use std::fmt;
use std::path::{Path as LocalPath, PathBuf};
use std::sync::Arc;
#[cfg(feature = "query")]
use std::sync::atomic::{AtomicI64, Ordering};

pub use config::S3Config;
pub(crate) use config::{Warehouse, shown};
pub use error::StoreError;
use iceberg::io::{FileIO, FileIOBuilder, LocalFsStorageFactory};
use iceberg::{Error, ErrorKind};
use measured::Measured;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::catalog::CatalogError;
use crate::durable;

/// A bucket and the client that reaches it. Cheap to clone; clones share connections and bounds.
#[derive(Clone)]
pub struct Store {
    /// Scheme and bucket, without a slash at the end.
    root: Arc<str>,
    inner: Arc<dyn ObjectStore>,
    part_bytes: usize,
    parts_max: usize,
    /// Tells this store from all others of the process.
    #[cfg(feature = "query")]
    number: i64,
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Store");
        shown.field("root", &self.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Takes any store for the bucket that `root` names, such as `s3://lake`, with the default bounds:
    /// one in memory, or one that is slow on purpose.
    pub fn new(root: &str, inner: Arc<dyn ObjectStore>) -> Self {
        Self::bounded(root, inner, &S3Config::default())
    }

    fn bounded(root: &str, inner: Arc<dyn ObjectStore>, config: &S3Config) -> Self {
        #[cfg(feature = "query")]
        static NUMBERS: AtomicI64 = AtomicI64::new(1);
        Self {
            root: root.trim_end_matches('/').into(),
            inner: Arc::new(Measured::new(inner, config.requests_max)),
            part_bytes: usize::try_from(config.part_bytes).unwrap_or(usize::MAX),
            parts_max: config.parts_max,
            #[cfg(feature = "query")]
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Opens the bucket and asks it for the prefix once, so that what is wrong is said at start.
    async fn open(config: &S3Config, bucket: &str, prefix: &str) -> Result<Self, CatalogError> {
        let client = s3::client(config, bucket)?;
        let store = Self::bounded(&format!("s3://{bucket}"), client, config);
        let below = Path::from(prefix);
        let first = store.inner.list_with_delimiter(Some(&below)).await;
        first.map_err(|error| {
            let place = format!("s3://{bucket}/{prefix}");
            StoreError::opening(place, config.endpoint.as_deref(), &error)
        })?;
        Ok(store)
    }

    /// Returns how the iceberg crate reads and writes files of this store.
    pub fn file_io(&self) -> FileIO {
        FileIOBuilder::new(Arc::new(self.clone())).build()
    }

    /// Returns scheme and bucket, such as `s3://lake`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Returns the store itself: the one that files are written through.
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        self.inner.clone()
    }

    /// Returns a number that no other store of this process has.
    #[cfg(feature = "query")]
    pub(crate) fn number(&self) -> i64 {
        self.number
    }

    /// Returns the key of a location in this store.
    fn key(&self, location: &str) -> iceberg::Result<Path> {
        let elsewhere = |reason: &str| {
            let root = &self.root;
            let message = format!("`{location}` is not a file of `{root}`{reason}");
            Error::new(ErrorKind::DataInvalid, message)
        };
        let below = location.strip_prefix(&*self.root);
        let key = below.and_then(|below| below.strip_prefix('/'));
        let key = key.filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| elsewhere(", where catalog.warehouse is"))?;
        Path::parse(key).map_err(|error| elsewhere(&format!(": {error}")))
    }
}

/// Says in one line what was not done.
fn failed(action: &str, location: &str, error: &object_store::Error) -> Error {
    let reason = error::explain(error);
    let message = format!("cannot {action} `{location}`: {reason}");
    Error::new(ErrorKind::Unexpected, message)
}

/// What `catalog.warehouse` has become.
pub(crate) struct Opened {
    /// Location below which tables are made, without a slash at its end.
    pub(crate) warehouse: String,
    pub(crate) file_io: FileIO,
    /// `None` for the local disk.
    pub(crate) store: Option<Store>,
}

/// Opens the warehouse; makes the directory when it is one and missing.
pub(crate) async fn open(warehouse: &str, config: &S3Config) -> Result<Opened, CatalogError> {
    match Warehouse::parse(warehouse)? {
        Warehouse::Local(path) => local(path),
        Warehouse::S3 { bucket, prefix } => {
            let store = Store::open(config, bucket, prefix).await?;
            let place = format!("{}/{prefix}", store.root);
            Ok(Opened {
                warehouse: place.trim_end_matches('/').to_owned(),
                file_io: store.file_io(),
                store: Some(store),
            })
        }
    }
}

fn local(path: &LocalPath) -> Result<Opened, CatalogError> {
    let directory = make_directory(path)?;
    let text = directory.to_str().ok_or_else(|| CatalogError::Path {
        path: directory.clone(),
        source: std::io::Error::other("the path is not UTF-8, which table locations must be"),
    })?;
    Ok(Opened {
        warehouse: format!("file://{text}"),
        file_io: FileIOBuilder::new(Arc::new(LocalFsStorageFactory)).build(),
        store: None,
    })
}

fn make_directory(path: &LocalPath) -> Result<PathBuf, CatalogError> {
    let error = |source| CatalogError::Path {
        path: path.to_owned(),
        source,
    };
    durable::make_directories(path).map_err(error)?;
    std::path::absolute(path).map_err(error)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_store_touches_nothing_outside_its_bucket() {
        let store = Store::new("s3://lake/", Arc::new(InMemory::new()));
        let files = store.file_io();
        for location in [
            "s3://lake",
            "s3://lake/",
            "s3://lakes/a",
            "s3://other/a",
            "s3://lake/a/../b",
            "file:///lake/a",
            "lake/a",
        ] {
            let error = files.new_input(location).unwrap().read().await.unwrap_err();
            assert!(error.to_string().contains("s3://lake"), "{error}");
            assert!(files.delete(location).await.is_err(), "{location}");
        }
        assert!(!files.exists("s3://lake/a").await.unwrap());
        files.delete("s3://lake/a").await.unwrap();
        assert!(files.delete_prefix("s3://lake/a").await.is_err());
    }

    #[test]
    fn a_store_is_shown_without_what_is_in_it_and_sent_nowhere() {
        let store = Store::new("s3://lake", Arc::new(InMemory::new()));
        assert_eq!(format!("{store:?}"), r#"Store { root: "s3://lake", .. }"#);
        assert!(serde_json::to_string(&store).is_err());
    }
}
