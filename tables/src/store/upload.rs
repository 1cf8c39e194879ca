//! Files on their way to a store: small ones in one request, large ones in parts while they are being
//! written.
//!
//! Place on the event's path: under the Parquet writer and the manifest writers. Promise: a file is
//! there, whole and durable, when its writer has closed, and not at all before; a writer holds at
//! most the parts that are on their way and the one it fills. What a writer gives up is cleared away,
//! unless the process dies first.

use bytes::Bytes;
use iceberg::io::FileWrite;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;

use super::{Store, failed};

/// A file that is being written.
pub(super) struct Upload {
    store: Store,
    location: String,
    key: Path,
    /// What is not sent yet: at most one part.
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    /// Once there is more than one part.
    parts: Option<Parts>,
}

/// The parts of a file.
struct Parts {
    upload: Box<dyn MultipartUpload>,
    sending: JoinSet<object_store::Result<()>>,
}

impl Upload {
    pub(super) fn new(store: Store, location: &str, key: Path) -> Self {
        Self {
            store,
            location: location.to_owned(),
            key,
            waiting: Vec::new(),
            waiting_bytes: 0,
            parts: None,
        }
    }

    fn take_waiting(&mut self) -> PutPayload {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting).into_iter().collect()
    }

    async fn send_part(&mut self) -> object_store::Result<()> {
        let part = self.take_waiting();
        let parts = match &mut self.parts {
            Some(parts) => parts,
            none => none.insert(Parts {
                upload: self.store.inner.put_multipart(&self.key).await?,
                sending: JoinSet::new(),
            }),
        };
        parts.wait_for_fewer_than(self.store.parts_max).await?;
        let part = parts.upload.put_part(part);
        parts.sending.spawn(part);
        Ok(())
    }

    async fn finish(&mut self) -> object_store::Result<()> {
        if self.parts.is_none() {
            let whole = self.take_waiting();
            self.store.inner.put(&self.key, whole).await?;
            return Ok(());
        }
        if self.waiting_bytes > 0 {
            self.send_part().await?;
        }
        if let Some(parts) = &mut self.parts {
            parts.wait_for_fewer_than(1).await?;
            parts.upload.complete().await?;
        }
        // Nothing is left to clear away.
        self.parts = None;
        Ok(())
    }
}

impl Parts {
    async fn wait_for_fewer_than(&mut self, bound: usize) -> object_store::Result<()> {
        while self.sending.len() >= bound
            && let Some(sent) = self.sending.join_next().await
        {
            sent??;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl FileWrite for Upload {
    async fn write(&mut self, mut bytes: Bytes) -> iceberg::Result<()> {
        while self.waiting_bytes + bytes.len() > self.store.part_bytes {
            let part = bytes.split_to(self.store.part_bytes - self.waiting_bytes);
            self.waiting.push(part);
            let sent = self.send_part().await;
            sent.map_err(|error| failed("write", &self.location, &error))?;
        }
        self.waiting_bytes += bytes.len();
        self.waiting.push(bytes);
        Ok(())
    }

    async fn close(&mut self) -> iceberg::Result<()> {
        let finished = self.finish().await;
        finished.map_err(|error| failed("write", &self.location, &error))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut parts) = self.parts.take() else {
            return;
        };
        // Nobody waits for it: the store may be away. What stays is cleared by the bucket's rule.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                parts.sending.shutdown().await;
                if let Err(error) = parts.upload.abort().await {
                    let reason = super::error::explain(&error);
                    tracing::debug!(reason, "parts of a file not cleared away");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    const LOCATION: &str = "s3://lake/a/b.parquet";

    async fn written(pieces: &[usize]) -> (Bytes, Vec<u8>) {
        let mut store = Store::new("s3://lake", Arc::new(InMemory::new()));
        store.part_bytes = 10;
        store.parts_max = 2;
        let output = store.file_io().new_output(LOCATION).unwrap();
        let mut writer = output.writer().await.unwrap();
        let mut expected = Vec::new();
        for (number, length) in pieces.iter().enumerate() {
            let piece = vec![u8::try_from(number).unwrap(); *length];
            expected.extend_from_slice(&piece);
            writer.write(piece.into()).await.unwrap();
            let is_there = output.exists().await.unwrap();
            assert!(!is_there, "a file that is not closed is not there");
        }
        writer.close().await.unwrap();
        let input = store.file_io().new_input(LOCATION).unwrap();
        assert_eq!(input.metadata().await.unwrap().size, expected.len() as u64);
        (input.read().await.unwrap(), expected)
    }

    #[tokio::test]
    async fn a_file_is_what_was_written_in_however_many_parts() {
        let cases: [&[usize]; 8] = [
            &[],
            &[0],
            &[10],
            &[11],
            &[9, 1, 1],
            &[3, 30, 3],
            &[10, 10, 10],
            &[1, 100, 0, 7],
        ];
        for pieces in cases {
            let (found, expected) = written(pieces).await;
            assert_eq!(found, expected, "{pieces:?}");
        }
    }
}
