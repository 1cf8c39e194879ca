//! The local disk, which counts the files that are written at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use iceberg::Result;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, LocalFsStorage,
    OutputFile, Storage, StorageConfig, StorageFactory,
};
use serde::{Deserialize, Serialize};

/// The disk. Clones share what they count.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    disk: LocalFsStorage,
    #[serde(skip)]
    open: Arc<Open>,
}

/// Files that are being written.
#[derive(Debug, Default)]
struct Open {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Counted {
    /// Returns how the iceberg crate reads and writes files of this disk.
    pub(crate) fn file_io(&self) -> FileIO {
        FileIOBuilder::new(Arc::new(self.clone())).build()
    }

    /// Returns how many files were written at once, at most.
    pub(crate) fn most(&self) -> usize {
        self.open.most.load(Ordering::SeqCst)
    }
}

#[async_trait]
#[typetag::serde(name = "HeadwaterBenchDisk")]
impl Storage for Counted {
    async fn exists(&self, path: &str) -> Result<bool> {
        self.disk.exists(path).await
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        self.disk.metadata(path).await
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        self.disk.read(path).await
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        self.disk.reader(path).await
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.disk.write(path, bytes).await
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        let file = self.disk.writer(path).await?;
        let now = self.open.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.open.most.fetch_max(now, Ordering::SeqCst);
        Ok(Box::new(Writer {
            file,
            open: self.open.clone(),
        }))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        self.disk.delete(path).await
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        self.disk.delete_prefix(path).await
    }

    async fn delete_stream(&self, paths: BoxStream<'static, String>) -> Result<()> {
        self.disk.delete_stream(paths).await
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

#[typetag::serde(name = "HeadwaterBenchDiskFactory")]
impl StorageFactory for Counted {
    fn build(&self, _: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

/// A file counts until its writer is gone: a closed one may still hold what it has encoded.
struct Writer {
    file: Box<dyn FileWrite>,
    open: Arc<Open>,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.file.write(bytes).await
    }

    async fn close(&mut self) -> Result<()> {
        self.file.close().await
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.open.now.fetch_sub(1, Ordering::SeqCst);
    }
}
