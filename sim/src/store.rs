//! The object store: files in memory, behind the faults of a process and of the store itself.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage,
    StorageConfig, StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::host::{Host, Point, Target};
use crate::world::World;

/// Location below which all tables lie.
pub(crate) const WAREHOUSE: &str = "memory://warehouse";

/// All files there are, whoever wrote them.
#[derive(Debug, Default)]
pub(crate) struct Files(Mutex<BTreeMap<String, Bytes>>);

impl Files {
    pub(crate) fn read(&self, path: &str) -> Option<Bytes> {
        self.0.lock().get(path).cloned()
    }
}

/// The store as one process sees it; without a host there are no faults.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Store {
    #[serde(skip)]
    files: Arc<Files>,
    #[serde(skip)]
    faults: Option<(Arc<World>, Arc<Host>)>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Returns the store without faults.
    pub(crate) fn sound(files: Arc<Files>) -> FileIO {
        Self {
            files,
            faults: None,
        }
        .file_io()
    }

    /// Returns the store as `host` sees it.
    pub(crate) fn of(world: &Arc<World>, host: &Arc<Host>) -> FileIO {
        Self {
            files: world.files.clone(),
            faults: Some((world.clone(), host.clone())),
        }
        .file_io()
    }

    fn file_io(self) -> FileIO {
        FileIOBuilder::new(Arc::new(Factory { store: self })).build()
    }

    async fn get(&self, path: &str) -> Result<Bytes> {
        if let Some((_, host)) = &self.faults {
            host.pass(Point::Other).await;
        }
        self.files
            .read(path)
            .ok_or_else(|| Error::new(ErrorKind::DataInvalid, format!("no file `{path}`")))
    }

    async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        let Some((world, host)) = &self.faults else {
            self.files.0.lock().insert(path.to_owned(), bytes);
            return Ok(());
        };
        host.pass(Point::Other).await;
        let fails = world.knobs.strikes(&world.dice, world.knobs.write_faults);
        if fails && world.dice.says(500) {
            world.trace.count("store: a write fails");
            return Err(Error::new(ErrorKind::Unexpected, "the store fails"));
        }
        self.files.0.lock().insert(path.to_owned(), bytes);
        if fails {
            world.trace.count("store: a write fails and is done");
            return Err(Error::new(ErrorKind::Unexpected, "the store is silent"));
        }
        host.pass(point_of(path)).await;
        Ok(())
    }
}

/// Returns the point that is passed when a file of this name is written.
fn point_of(path: &str) -> Point {
    let target = match path.contains("/raw/quarantine/") {
        true => Target::Quarantine,
        false => Target::Events,
    };
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.ends_with(".parquet") {
        Point::DataFileClosed(target)
    } else if name.starts_with("snap-") {
        Point::ManifestListWritten(target)
    } else if name.ends_with(".avro") {
        Point::ManifestWritten(target)
    } else {
        Point::MetadataWritten(target)
    }
}

#[async_trait]
#[typetag::serde(name = "HeadwaterSimStore")]
impl Storage for Store {
    async fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.files.read(path).is_some())
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let size = self.get(path).await?.len() as u64;
        Ok(FileMetadata { size })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        self.get(path).await
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        Ok(Box::new(Reader(self.get(path).await?)))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.put(path, bytes).await
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        Ok(Box::new(Writer {
            store: self.clone(),
            path: path.to_owned(),
            bytes: Vec::new(),
        }))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        if let Some((world, host)) = &self.faults {
            host.pass(Point::Other).await;
            world.trace.count("store: a file is deleted");
        }
        self.files.0.lock().remove(path);
        Ok(())
    }

    async fn delete_prefix(&self, _: &str) -> Result<()> {
        Err(Error::new(
            ErrorKind::FeatureUnsupported,
            "nobody does that",
        ))
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Factory {
    #[serde(skip)]
    store: Store,
}

#[typetag::serde(name = "HeadwaterSimStoreFactory")]
impl StorageFactory for Factory {
    fn build(&self, _: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.store.clone()))
    }
}

struct Reader(Bytes);

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let (start, end) = (range.start as usize, range.end as usize);
        if start > end || end > self.0.len() {
            return Err(Error::new(ErrorKind::DataInvalid, "beyond the end"));
        }
        Ok(self.0.slice(start..end))
    }
}

struct Writer {
    store: Store,
    path: String,
    bytes: Vec<u8>,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        self.store.put(&self.path, bytes.into()).await
    }
}
