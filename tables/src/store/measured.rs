//! Every request to a store passes here: it is counted, timed, and waits for its turn.
//!
//! Place on the event's path: under each file that is written or read on a store that is not the local
//! disk. Promise: no more than the bound are on their way at once, answers that are still being read
//! included, and each request is counted once when it has ended.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics;

/// A store behind a bound.
pub(super) struct Measured {
    inner: Arc<dyn ObjectStore>,
    turns: Turns,
}

impl Measured {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, requests_max: usize) -> Self {
        let turns = Turns(Arc::new(Semaphore::new(requests_max)));
        Self { inner, turns }
    }
}

// Nothing of what is inside: a client knows its credentials.
impl fmt::Debug for Measured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Measured").finish_non_exhaustive()
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(formatter)
    }
}

#[async_trait]
impl ObjectStore for Measured {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let request = self.turns.begin("put").await;
        let bytes = payload.content_length();
        let result = self.inner.put_opts(location, payload, options).await;
        request.end_of_write(bytes, result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let request = self.turns.begin("begin_parts").await;
        let upload = self.inner.put_multipart_opts(location, options).await;
        let upload = request.end(upload)?;
        let turns = self.turns.clone();
        Ok(Box::new(MeasuredUpload { upload, turns }))
    }

    // `get_ranges` is left to its default, which comes back here for each range.
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let operation = if options.head { "head" } else { "get" };
        let request = self.turns.begin(operation).await;
        match self.inner.get_opts(location, options).await {
            Ok(found) => Ok(request.end_of_read(found)),
            Err(error) => request.end(Err(error)),
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let inner = self.inner.clone();
        self.turns
            .stream("delete", move || inner.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix) = (self.inner.clone(), prefix.cloned());
        self.turns
            .stream("list", move || inner.list(prefix.as_ref()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let request = self.turns.begin("list").await;
        request.end(self.inner.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let request = self.turns.begin("copy").await;
        request.end(self.inner.copy_opts(from, to, options).await)
    }
}

#[derive(Debug)]
struct MeasuredUpload {
    upload: Box<dyn MultipartUpload>,
    turns: Turns,
}

#[async_trait]
impl MultipartUpload for MeasuredUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bytes = data.content_length();
        let part = self.upload.put_part(data);
        let turns = self.turns.clone();
        Box::pin(async move {
            let request = turns.begin("put_part").await;
            request.end_of_write(bytes, part.await)
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let request = self.turns.begin("complete_parts").await;
        request.end(self.upload.complete().await)
    }

    async fn abort(&mut self) -> Result<()> {
        let request = self.turns.begin("abort_parts").await;
        request.end(self.upload.abort().await)
    }
}

/// Hands out turns.
#[derive(Debug, Clone)]
struct Turns(Arc<Semaphore>);

impl Turns {
    async fn begin(&self, operation: &'static str) -> Request {
        let turn = self.0.clone().acquire_owned().await;
        let turn = turn.expect("the semaphore is never closed");
        metrics::store_began();
        Request {
            operation,
            outcome: "given_up",
            started: Instant::now(),
            _turn: turn,
        }
    }

    /// Returns what `open` returns, once it is its turn, as one request.
    fn stream<T: Send + 'static>(
        &self,
        operation: &'static str,
        open: impl FnOnce() -> BoxStream<'static, Result<T>> + Send + 'static,
    ) -> BoxStream<'static, Result<T>> {
        let turns = self.clone();
        let begin = async move {
            let request = turns.begin(operation).await;
            Answer {
                inner: open(),
                request: Some(request),
                read: |_| 0,
            }
        };
        begin.into_stream().flatten().boxed()
    }
}

/// A request that is on its way. Whoever drops it unended has given it up.
struct Request {
    operation: &'static str,
    outcome: &'static str,
    started: Instant,
    _turn: OwnedSemaphorePermit,
}

impl Request {
    fn end<T>(self, result: Result<T>) -> Result<T> {
        self.ended(result.as_ref().map_or_else(failure, |_| "ok"));
        result
    }

    fn ended(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }

    fn end_of_write<T>(self, bytes: usize, result: Result<T>) -> Result<T> {
        if result.is_ok() {
            metrics::store_wrote(bytes);
        }
        self.end(result)
    }

    /// Lets the request end when the answer is read.
    fn end_of_read(self, found: GetResult) -> GetResult {
        let GetResultPayload::Stream(inner) = found.payload else {
            self.ended("ok");
            return found;
        };
        let answer = Answer {
            inner,
            request: Some(self),
            read: Bytes::len,
        };
        let payload = GetResultPayload::Stream(answer.boxed());
        GetResult { payload, ..found }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        metrics::store_ended(self.operation, self.outcome, self.started.elapsed());
    }
}

fn failure(error: &Error) -> &'static str {
    match error {
        Error::NotFound { .. } => "not_found",
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => "denied",
        _ => "failed",
    }
}

/// An answer that is being read.
struct Answer<T> {
    inner: BoxStream<'static, Result<T>>,
    request: Option<Request>,
    /// How many bytes an item counts for.
    read: fn(&T) -> usize,
}

impl<T> Stream for Answer<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.inner.poll_next_unpin(context);
        let ended = match &polled {
            Poll::Ready(Some(Ok(item))) => {
                metrics::store_read((self.read)(item));
                None
            }
            Poll::Ready(Some(Err(error))) => Some(failure(error)),
            Poll::Ready(None) => Some("ok"),
            Poll::Pending => None,
        };
        if let (Some(outcome), Some(request)) = (ended, ended.and_then(|_| self.request.take())) {
            request.ended(outcome);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn an_answer_keeps_its_turn_until_it_is_read() {
        let store = Measured::new(Arc::new(InMemory::new()), 1);
        let path = Path::from("a");
        store.put(&path, "text".into()).await.unwrap();
        let answer = store.get(&path).await.unwrap();
        let mut next = Box::pin(store.head(&path));
        assert!(next.as_mut().now_or_never().is_none());
        assert_eq!(answer.bytes().await.unwrap(), "text");
        assert_eq!(next.await.unwrap().size, 4);
        drop(store.get(&path).await.unwrap());
        let listed: Vec<_> = store.list(None).collect().await;
        assert_eq!(listed.len(), 1);
    }

    #[tokio::test]
    async fn parts_wait_for_their_turn_as_well() {
        let store = Measured::new(Arc::new(InMemory::new()), 1);
        let path = Path::from("a");
        let mut upload = store.put_multipart(&path).await.unwrap();
        let parts = ["one ", "two"].map(|text| upload.put_part(text.into()));
        futures::future::try_join_all(parts).await.unwrap();
        upload.complete().await.unwrap();
        let whole = store.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(whole, "one two");
        let missing = store.get(&Path::from("b")).await.unwrap_err();
        assert_eq!(failure(&missing), "not_found");
    }
}
