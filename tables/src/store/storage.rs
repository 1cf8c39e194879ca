//! A store as the iceberg crate wants it: files by their location.
//!
//! Place on the event's path: every metadata, manifest and data file that is not on the local disk is
//! written and read through it. Promise: it touches nothing outside its bucket.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{
    FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig,
    StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::upload::Upload;
use super::{Store, failed};

/// Why a store is never sent anywhere.
const NOT_SENT: &str = "a store is opened where it is used: its credentials are not sent";

#[async_trait]
#[typetag::serde(name = "HeadwaterStore")]
impl Storage for Store {
    async fn exists(&self, location: &str) -> Result<bool> {
        match self.inner.head(&self.key(location)?).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failed("look for", location, &error)),
        }
    }

    async fn metadata(&self, location: &str) -> Result<FileMetadata> {
        let found = self.inner.head(&self.key(location)?).await;
        let found = found.map_err(|error| failed("look for", location, &error))?;
        Ok(FileMetadata { size: found.size })
    }

    async fn read(&self, location: &str) -> Result<Bytes> {
        let error = |error| failed("read", location, &error);
        let answer = self.inner.get(&self.key(location)?).await;
        answer.map_err(error)?.bytes().await.map_err(error)
    }

    async fn reader(&self, location: &str) -> Result<Box<dyn FileRead>> {
        Ok(Box::new(Reader {
            key: self.key(location)?,
            location: location.to_owned(),
            store: self.clone(),
        }))
    }

    async fn write(&self, location: &str, bytes: Bytes) -> Result<()> {
        let mut writer = self.writer(location).await?;
        writer.write(bytes).await?;
        writer.close().await
    }

    async fn writer(&self, location: &str) -> Result<Box<dyn FileWrite>> {
        let key = self.key(location)?;
        Ok(Box::new(Upload::new(self.clone(), location, key)))
    }

    async fn delete(&self, location: &str) -> Result<()> {
        match self.inner.delete(&self.key(location)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("delete", location, &error)),
        }
    }

    async fn delete_prefix(&self, location: &str) -> Result<()> {
        let message = format!("everything below `{location}` is not deleted: name the files");
        Err(Error::new(ErrorKind::FeatureUnsupported, message))
    }

    async fn delete_stream(&self, mut locations: BoxStream<'static, String>) -> Result<()> {
        while let Some(location) = locations.next().await {
            self.delete(&location).await?;
        }
        Ok(())
    }

    fn new_input(&self, location: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), location.to_owned()))
    }

    fn new_output(&self, location: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), location.to_owned()))
    }
}

#[typetag::serde(name = "HeadwaterStoreFactory")]
impl StorageFactory for Store {
    fn build(&self, _: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

// The traits ask for both, to send a plan to another machine, which nothing of ours does.
impl Serialize for Store {
    fn serialize<S: Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom(NOT_SENT))
    }
}

impl<'de> Deserialize<'de> for Store {
    fn deserialize<D: Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
        Err(serde::de::Error::custom(NOT_SENT))
    }
}

struct Reader {
    store: Store,
    location: String,
    key: Path,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let read = self.store.inner.get_range(&self.key, range).await;
        read.map_err(|error| failed("read", &self.location, &error))
    }
}
